//! Bytes that the kernel or another user chose, as text.

use std::{ffi::OsStr, fmt::Write as _, os::unix::ffi::OsStrExt as _};

/// `bytes` as text that loses nothing: what is not UTF-8 becomes `\xNN`.
#[must_use]
pub fn lossless(bytes: &[u8]) -> String {
    lossless_with(bytes, "\\x")
}

/// The same with another beginning of an escape.
pub(super) fn lossless_with(bytes: &[u8], escape: &str) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        for byte in chunk.invalid() {
            // Writing to a String cannot fail.
            let _ = write!(text, "{escape}{byte:02x}");
        }
    }
    text
}

/// The same for a file name.
#[must_use]
pub fn lossless_os(name: &OsStr) -> String {
    lossless(name.as_bytes())
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    #[test]
    fn odd_bytes_stay_readable() {
        assert_eq!(lossless(b"caf\xc3\xa9"), "café");
        assert_eq!(lossless(b"a\xff\xfeb"), "a\\xff\\xfeb");
    }

    proptest! {
        /// Every byte can be found again.
        #[test]
        fn nothing_is_lost(bytes in vec(any::<u8>(), 0..60)) {
            let text = lossless_with(&bytes, "\0");
            let mut back = Vec::new();
            let mut parts = text.split('\0');
            back.extend(parts.next().unwrap_or_default().bytes());
            // Only where the bytes have no NUL of their own can escapes be told.
            prop_assume!(!bytes.contains(&0));
            for part in parts {
                back.push(u8::from_str_radix(&part[..2], 16).expect("two digits"));
                back.extend(part[2..].bytes());
            }
            prop_assert_eq!(back, bytes);
        }

        #[test]
        fn text_stays_text(text in "(?s).{0,80}") {
            prop_assert_eq!(lossless(text.as_bytes()), text);
        }
    }
}
