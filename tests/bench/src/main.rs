//! What observing costs, beside doing nothing, beside the floor, and beside what people
//! would use instead: `cargo xtask bench`.

mod alternate;
mod cpu;
mod load;
mod machine;
mod observer;
mod part;
mod report;
mod scene;
mod stats;

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use clap::{Parser, builder::PossibleValuesParser};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use alternate::Plan;
use machine::Machine;
use report::Report;

/// Measures what observing costs.
#[derive(Debug, Parser)]
struct Args {
    /// Folder for results.json, summary.md and plots
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Rounds in which every observer has its turn
    #[arg(long, value_name = "N", default_value_t = 15, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// Milliseconds of a turn
    #[arg(long, value_name = "MS", default_value_t = 300, value_parser = clap::value_parser!(u64).range(50..=5000))]
    slice: u64,
    /// Only these questions
    #[arg(value_name = "QUESTION", value_parser = questions())]
    only: Vec<String>,
    /// Also put the summary into this document, between its marks, and the plots beside it
    #[arg(long, value_name = "FILE")]
    document: Option<PathBuf>,
    /// What is said to have been called
    #[arg(long, hide = true, default_value = "cargo xtask bench")]
    called: String,
    /// The commit that is measured
    #[arg(long, hide = true)]
    commit: Option<String>,
}

fn questions() -> PossibleValuesParser {
    PossibleValuesParser::new(part::ALL.iter().map(|question| question.name))
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    // A socket in each of thousands of namespaces.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    let plan = Plan {
        rounds: args.rounds.into(),
        slice: Duration::from_millis(args.slice),
    };
    let mut report = Report {
        schema: "netobs.bench/1",
        command: args.called,
        rounds: plan.rounds,
        machine: Machine::look(args.commit.as_deref())?,
        parts: Vec::new(),
    };
    for question in part::ALL {
        if !args.only.is_empty() && !args.only.iter().any(|name| name == question.name) {
            continue;
        }
        eprintln!("{}", question.name);
        let part = (question.ask)(plan).with_context(|| question.name)?;
        print!("{}", part.markdown());
        report.parts.push(part);
        // What is measured so far stays, whatever comes.
        report.write(&args.out)?;
    }
    ensure!(!report.parts.is_empty(), "nothing was asked");
    if let Some(document) = &args.document {
        update(document, &report, &args.out)?;
    }
    eprintln!("{}", args.out.display());
    Ok(())
}

/// Puts the summary into `document` and the plots into its folder.
fn update(document: &Path, report: &Report, out: &Path) -> anyhow::Result<()> {
    let text = fs::read_to_string(document)?;
    let text = report::put_between_marks(&text, &report.markdown())
        .with_context(|| document.display().to_string())?;
    fs::write(document, text)?;
    let folder = document.parent().context("a document is in a folder")?;
    for plot in report.parts.iter().flat_map(|part| &part.plots) {
        let file = format!("{}.svg", plot.name());
        fs::copy(out.join(&file), folder.join(file))?;
    }
    Ok(())
}
