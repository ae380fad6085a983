//! `netobs doctor`: what was checked, for people and for scripts.

use std::io;

use serde::Serialize;

use super::text::{harmless, harmless_json};

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

/// The programs on one interface, in the order in which they run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Chain {
    /// The namespace's name.
    pub namespace: String,
    /// The interface that carries them.
    pub interface: String,
    /// By TCX, ingress: `name#id`.
    pub tcx_ingress: Vec<String>,
    /// By TCX, egress.
    pub tcx_egress: Vec<String>,
    /// Filters on the clsact qdisc, ingress.
    pub clsact_ingress: Vec<String>,
    /// Filters on the clsact qdisc, egress.
    pub clsact_egress: Vec<String>,
}

impl Chain {
    fn hooks(&self) -> [(&'static str, &[String]); 4] {
        [
            ("tcx ingress", &self.tcx_ingress),
            ("tcx egress", &self.tcx_egress),
            ("clsact ingress", &self.clsact_ingress),
            ("clsact egress", &self.clsact_egress),
        ]
    }

    /// Whether nobody is there.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.hooks().iter().all(|(_, programs)| programs.is_empty())
    }
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
        writeln!(out, "{mark}  {:<14} {}", check.name, harmless(&check.found))?;
        if let Some(consequence) = &check.consequence {
            writeln!(out, "         {:<14} {}", "", harmless(consequence))?;
        }
    }
    writeln!(out)?;
    writeln!(out, "netobs would attach by: {}", report.hook)?;
    if report.chains.is_empty() {
        writeln!(
            out,
            "nobody else is attached to the interfaces that netobs would observe"
        )?;
    }
    for chain in &report.chains {
        writeln!(
            out,
            "{} {}:",
            harmless(&chain.namespace),
            harmless(&chain.interface)
        )?;
        for (hook, programs) in chain.hooks() {
            if !programs.is_empty() {
                let programs: Vec<String> = programs.iter().map(|p| harmless(p)).collect();
                writeln!(out, "  {hook:<15} {}", programs.join(" -> "))?;
            }
        }
    }
    Ok(())
}
