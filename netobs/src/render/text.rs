//! Names from elsewhere, and numbers for people.

use std::{borrow::Cow, fmt::Write as _};

use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};

/// `text` without anything that could steer a terminal or hide other text:
/// control characters, line separators, and characters that change the
/// direction of text or have no width become `\u{..}` (`\n`, `\t`, ...).
#[must_use]
pub fn harmless(text: &str) -> String {
    let mut result = String::with_capacity(text.len());
    for c in text.chars() {
        if c == '\\' {
            // An escape of ours can be told from one in the name.
            result.push_str("\\\\");
        } else if is_unsafe(c) {
            result.extend(c.escape_default());
        } else {
            result.push(c);
        }
    }
    result
}

/// The JSON `text`, which means the same afterwards, with the same characters written
/// as `\uNNNN`: JSON itself asks for that below U+0020 only, and a terminal takes
/// U+009B for the beginning of a command.
#[must_use]
pub fn harmless_json(text: &str) -> Cow<'_, str> {
    if text.is_ascii() && !text.contains('\x7f') {
        return Cow::Borrowed(text);
    }
    let mut result = String::with_capacity(text.len());
    for c in text.chars() {
        // Line ends are between the strings.
        if c != '\n' && is_unsafe(c) {
            for unit in c.encode_utf16(&mut [0; 2]) {
                // Writing to a String cannot fail.
                let _ = write!(result, "\\u{unit:04x}");
            }
        } else {
            result.push(c);
        }
    }
    Cow::Owned(result)
}

fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{feff}'
            | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e007f}')
}

/// At most `width` columns of `text`, the cut marked.
#[must_use]
pub fn fit(text: &str, width: usize) -> String {
    if text.width() <= width {
        return text.to_owned();
    }
    let mut result = String::new();
    let mut used = 0;
    for c in text.chars() {
        let columns = c.width().unwrap_or(0);
        if used + columns + 1 > width {
            break;
        }
        result.push(c);
        used += columns;
    }
    result.push('…');
    result
}

/// `text` in lines of at most `width` columns, broken between words; what is
/// longer than a line has one of its own.
#[must_use]
pub fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.width() + 1 + word.width() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

/// A count with an SI prefix in at most six columns: `0`, `999`, `1.23k`,
/// `45.6M`.
#[must_use]
pub fn si(value: u64) -> String {
    scaled(value as f64)
}

/// A rate with an SI prefix in at most six columns. Below ten one decimal
/// tells slow from none.
#[must_use]
pub fn si_rate(value: f64) -> String {
    if value > 0.0 && value < 9.95 {
        return format!("{value:.1}");
    }
    scaled(value)
}

fn scaled(value: f64) -> String {
    const PREFIXES: [&str; 7] = ["", "k", "M", "G", "T", "P", "E"];
    let mut value = value;
    for prefix in PREFIXES {
        let mut text = String::new();
        let decimals = match (prefix, value) {
            ("", _) => 0,
            (_, v) if v < 9.995 => 2,
            (_, v) if v < 99.95 => 1,
            _ => 0,
        };
        // Writing to a String cannot fail.
        let _ = write!(text, "{value:.decimals$}{prefix}");
        // Rounded up to 1000 belongs to the next prefix.
        if value < 999.5 {
            return text;
        }
        value /= 1000.0;
    }
    "inf".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_to_their_columns() {
        let cases = [
            (0, "0"),
            (999, "999"),
            (1000, "1.00k"),
            (1234, "1.23k"),
            (99_949, "99.9k"),
            (99_950, "100k"),
            (999_499, "999k"),
            (999_500, "1.00M"),
            (u64::MAX, "18.4E"),
        ];
        for (value, text) in cases {
            assert_eq!(si(value), text);
            assert!(text.len() <= 6);
        }
        assert_eq!(si_rate(0.0), "0");
        assert_eq!(si_rate(0.5), "0.5");
        assert_eq!(si_rate(9.97), "10");
        assert_eq!(si_rate(12_345.6), "12.3k");
    }

    #[test]
    fn hostile_names_cannot_steer_the_terminal() {
        assert_eq!(harmless("web"), "web");
        assert_eq!(harmless("a\x1b[2Jb"), "a\\u{1b}[2Jb");
        assert_eq!(harmless("a\nb\tc"), "a\\nb\\tc");
        assert_eq!(harmless("\u{202e}evil"), "\\u{202e}evil");
        assert_eq!(harmless("\u{9b}31m"), "\\u{9b}31m");
        assert_eq!(harmless("a\\x1b"), "a\\\\x1b");
        assert_eq!(harmless("日本"), "日本");
    }

    #[test]
    fn lines_are_broken_between_words() {
        assert_eq!(wrapped("one two three", 7), ["one two", "three"]);
        assert_eq!(wrapped("日本 日本", 8), ["日本", "日本"]);
        assert_eq!(wrapped("enormous a b", 4), ["enormous", "a b"]);
        assert_eq!(wrapped("", 4), [""]);
    }

    #[test]
    fn json_stays_the_same_for_a_parser() {
        let name = "a\u{9b}31m\u{7f}\u{202e}\u{e0041}\u{1b}\n日\\";
        let json = serde_json::to_string_pretty(&[name]).expect("JSON");
        let shown = harmless_json(&json);
        assert!(
            shown.contains(r"\u009b31m\u007f\u202e\udb40\udc41\u001b\n日\\"),
            "{shown}"
        );
        let read: Vec<String> = serde_json::from_str(&shown).expect("JSON");
        assert_eq!(read, [name]);
    }

    #[test]
    fn fitting_counts_columns_and_not_bytes() {
        assert_eq!(fit("日本語", 6), "日本語");
        assert_eq!(fit("日本語", 5), "日本…");
        assert_eq!(fit("日本語", 4), "日…");
        assert_eq!(fit("abc", 3), "abc");
        assert_eq!(fit("abcd", 3), "ab…");
    }
}
