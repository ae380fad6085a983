//! `netobs doctor`: what was checked, for people and for scripts.

use std::io;

use serde::Serialize;

use super::text::{harmless, harmless_json, wrapped};

mod chains;

pub use chains::{Chain, Place};

/// Columns of a line for people.
const WIDTH: usize = 80;
/// Where the text about a check begins.
const INDENT: usize = 24;

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// netobs does with less.
    Limited,
    /// netobs cannot observe.
    Bad,
}

/// One check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// Stable and short.
    pub name: String,
    /// How it came out.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// What follows from it, and what to do.
    pub consequence: Option<String>,
}

/// Everything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// `netobs.doctor/1`.
    pub schema: &'static str,
    /// What netobs would use: `tcx`, `clsact` or `none`.
    pub hook: &'static str,
    /// The checks.
    pub checks: Vec<Check>,
    /// Interfaces that netobs would observe.
    pub interfaces: usize,
    /// Who is attached where; interfaces without anybody are left out.
    pub chains: Vec<Chain>,
}

/// Writes the report as one object.
///
/// # Errors
/// Where `out` fails.
pub fn json(report: &Report, out: &mut dyn io::Write) -> io::Result<()> {
    let json = serde_json::to_string_pretty(report)?;
    out.write_all(harmless_json(&json).as_bytes())?;
    out.write_all(b"\n")
}

/// Writes the report for people.
///
/// # Errors
/// Where `out` fails.
pub fn table(report: &Report, color: bool, out: &mut dyn io::Write) -> io::Result<()> {
    for check in &report.checks {
        let (mark, code) = match check.verdict {
            Verdict::Ok => ("ok     ", "32"),
            Verdict::Limited => ("limited", "33"),
            Verdict::Bad => ("BAD    ", "31"),
        };
        let mark = if color {
            format!("\x1b[{code}m{mark}\x1b[0m")
        } else {
            mark.to_owned()
        };
        let mut lines = wrapped(&harmless(&check.found), WIDTH - INDENT);
        if let Some(consequence) = &check.consequence {
            lines.extend(wrapped(&harmless(consequence), WIDTH - INDENT));
        }
        let mut lines = lines.into_iter();
        let first = lines.next().unwrap_or_default();
        writeln!(out, "{mark}  {:<14} {first}", check.name)?;
        for line in lines {
            writeln!(out, "{:INDENT$}{line}", "")?;
        }
    }
    writeln!(out)?;
    writeln!(out, "netobs would attach by: {}", report.hook)?;
    chains::table(&report.chains, report.interfaces, out)
}
