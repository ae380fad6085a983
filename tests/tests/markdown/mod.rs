//! Shell blocks of the documentation. How they are marked:
//!
//! - `sh`: a script, which has to end with 0 and to print something: a filter that no
//!   longer finds its keys is silent. `sh quiet`: with 0. `sh exit N`: with N.
//! - `console`: a session. What stands behind `$ ` is run, and ends with 0 (`console exit
//!   N`: with N); the lines below it are what it prints. Those without a digit have
//!   to be printed as they are, but for the spaces.
//! - `sh no-run: WHY`, `console no-run: WHY`: a test cannot run it.
//! - `text`: nothing to run. `yaml`, `promql`: files and queries, which other tests hold
//!   against what reads them.
//!
//! Nothing else is there, so that nothing is left out by mistake.
#![allow(dead_code, reason = "each test uses a part of it")]

use anyhow::{Context as _, bail, ensure};

/// A script and what the documentation says of it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Snippet {
    /// File and line.
    pub(crate) place: String,
    pub(crate) script: String,
    /// The code that it ends with.
    pub(crate) code: i32,
    /// Whether it prints something.
    pub(crate) speaks: bool,
    /// Lines that it prints.
    pub(crate) shown: Vec<String>,
}

enum Kind {
    Script { code: i32, speaks: bool },
    Session { code: i32 },
    Nothing,
}

/// The scripts of a Markdown file.
pub(crate) fn snippets(file: &str, text: &str) -> anyhow::Result<Vec<Snippet>> {
    let mut found = Vec::new();
    let mut lines = text.lines().zip(1..);
    let mut blank = true;
    while let Some((line, number)) = lines.next() {
        let place = format!("{file}:{number}");
        // Below a paragraph, or a line of a list, it is a part of that.
        if blank && line.starts_with("    ") {
            bail!("{place}: a block without a fence, which tells nobody whether it runs");
        }
        blank = line.is_empty();
        let Some(info) = line.strip_prefix("```") else {
            continue;
        };
        let kind = kind(info).with_context(|| place.clone())?;
        let mut block = Vec::new();
        loop {
            match lines.next() {
                Some(("```", _)) => break,
                Some((line, _)) => block.push(line),
                None => bail!("{place}: a fence without an end"),
            }
        }
        match kind {
            Kind::Script { code, speaks } => found.push(Snippet {
                place,
                script: block.join("\n"),
                code,
                speaks,
                shown: Vec::new(),
            }),
            Kind::Session { code } => found.extend(session(&place, &block, code)?),
            Kind::Nothing => {}
        }
    }
    Ok(found)
}

fn kind(info: &str) -> anyhow::Result<Kind> {
    let (language, rest) = info.split_once(' ').unwrap_or((info, ""));
    if matches!(info, "text" | "yaml" | "promql") {
        return Ok(Kind::Nothing);
    }
    ensure!(
        matches!(language, "sh" | "console"),
        "{info:?} is neither sh, console, text, yaml nor promql"
    );
    if let Some(why) = rest.strip_prefix("no-run:") {
        ensure!(!why.trim().is_empty(), "no-run: and why?");
        return Ok(Kind::Nothing);
    }
    // What goes wrong on purpose may have told so on standard error only.
    let speaks = rest.is_empty();
    let script = language == "sh";
    let code = match rest.strip_prefix("exit ") {
        Some(code) => code.parse()?,
        None if speaks || (script && rest == "quiet") => 0,
        None => bail!("{rest:?} is none of `quiet`, `exit N` and `no-run: WHY`"),
    };
    Ok(match script {
        true => Kind::Script { code, speaks },
        false => Kind::Session { code },
    })
}

/// The blocks of a Markdown file in a language that is not run in a shell.
pub(crate) fn blocks(text: &str, language: &str) -> Vec<String> {
    let begin = format!("```{language}");
    let mut found = Vec::new();
    let mut lines = text.lines();
    while lines.any(|line| line == begin) {
        let block = lines.by_ref().take_while(|line| *line != "```");
        found.push(block.collect::<Vec<_>>().join("\n"));
    }
    found
}

/// Each command of a session, with what is shown below it.
fn session(place: &str, block: &[&str], code: i32) -> anyhow::Result<Vec<Snippet>> {
    let mut found: Vec<Snippet> = Vec::new();
    for line in block {
        if let Some(script) = line.strip_prefix("$ ") {
            found.push(Snippet {
                place: place.to_owned(),
                script: script.to_owned(),
                code,
                speaks: false,
                shown: Vec::new(),
            });
        } else {
            let last = found.last_mut();
            let last = last.with_context(|| format!("{place}: {line:?} before any command"))?;
            last.shown.push((*line).to_owned());
        }
    }
    ensure!(!found.is_empty(), "{place}: no command");
    Ok(found)
}

impl Snippet {
    /// What is wrong with what it printed, if anything is.
    pub(crate) fn doubt(&self, printed: &str) -> Option<String> {
        if (self.speaks || !self.shown.is_empty()) && printed.trim().is_empty() {
            return Some("printed nothing".to_owned());
        }
        let printed: Vec<String> = printed.lines().map(spaced).collect();
        self.shown
            .iter()
            .filter(|line| !line.contains(|c: char| c.is_ascii_digit()))
            .find(|line| !printed.contains(&spaced(line)))
            .map(|line| format!("did not print {line:?}"))
    }
}

/// With one space where there are many.
fn spaced(line: &str) -> String {
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}
