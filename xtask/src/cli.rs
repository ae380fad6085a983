//! The command line.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::{Args, Parser, Subcommand};

use crate::{bench, build, doctor, lab, run, test};

/// Sets up, builds, runs and tests netobs.
#[derive(Debug, Parser)]
#[command(bin_name = "cargo xtask")]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Task,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Task {
    /// Set up what is missing, build netobs and run it as root
    Run(Run),
    /// Set up what is missing, then lints, all tests and the leak check
    Test(Test),
    /// Everything at once, for long: namespaces and containers that come and go, a netobs that is
    /// killed and started again; at the end every packet is in the books
    Soak(Soak),
    /// Measure what observing costs, beside doing nothing and beside what people use instead
    Bench(Bench),
    /// Set up what is missing and build netobs
    Build(Build),
    /// A shell, or a command, inside the demo lab
    Lab(Lab),
    /// Tell what of the toolchain is there and which way set-up would take
    Doctor,
    /// What continuous integration runs: the same as `test`
    Ci(SetUp),
    /// One snapshot of what could leak, as lines
    #[command(hide = true)]
    LeakSnapshot,
}

#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct SetUp {
    /// Install nothing: tell what is missing, and fail if anything is
    #[arg(long)]
    pub(crate) no_install: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Soak {
    #[command(flatten)]
    pub(crate) set_up: SetUp,
    /// For how many minutes
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=1440))]
    pub(crate) minutes: u64,
}

/// Measure what observing costs, beside doing nothing and beside what people use instead
///
/// Takes the better part of an hour, and wants a machine that does nothing else. Writes
/// results.json, summary.md and plots.
#[derive(Args, Debug)]
pub(crate) struct Bench {
    #[command(flatten)]
    pub(crate) set_up: SetUp,
    /// Folder to write to [default: target/bench]
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// Rounds in which every observer has its turn
    #[arg(long, value_name = "N", default_value_t = 15, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) rounds: u16,
    /// Also put the summary and the plots into docs/performance.md
    #[arg(long)]
    pub(crate) docs: bool,
    /// Only these questions, such as packets, lookups, namespaces
    #[arg(value_name = "QUESTION")]
    pub(crate) only: Vec<String>,
}

#[derive(Args, Debug)]
pub(crate) struct Build {
    #[command(flatten)]
    pub(crate) set_up: SetUp,
    /// Build without optimisation
    #[arg(long, conflicts_with = "release")]
    pub(crate) debug: bool,
    /// Build with optimisation (the default)
    #[arg(long)]
    pub(crate) release: bool,
}

/// Set up what is missing, build netobs and run it as root
///
/// Where this host has no namespaces to show, netobs runs in a lab: a Docker
/// host without a way out, with a few containers that talk to each other. The
/// lab ends with netobs. Exits with netobs's exit code.
#[derive(Args, Debug)]
pub(crate) struct Run {
    /// Use the lab whatever this host has to show
    #[arg(long, conflicts_with = "no_lab")]
    pub(crate) lab: bool,
    /// Never use the lab
    #[arg(long)]
    pub(crate) no_lab: bool,
    #[command(flatten)]
    pub(crate) build: Build,
    /// Run this netobs instead of building one
    #[arg(long, hide = true)]
    pub(crate) built: Option<PathBuf>,
    /// Arguments for netobs, instead of `watch`
    #[arg(last = true, value_name = "ARGS")]
    pub(crate) args: Vec<String>,
}

/// Set up what is missing, then lints, all tests and the leak check
///
/// Ends with one line of totals, `N passed, N failed, N skipped`, in which anything
/// that the tests left on the machine counts as one failed. Tests are skipped only
/// where the machine lacks what they need, and each says what.
#[derive(Args, Debug)]
pub(crate) struct Test {
    #[command(flatten)]
    pub(crate) set_up: SetUp,
    /// Only tests whose name contains one of these
    pub(crate) filter: Vec<String>,
}

/// A shell, or a command, inside the demo lab
///
/// DOCKER_HOST is set for it, and netobs is on its PATH once it is built.
#[derive(Args, Debug)]
pub(crate) struct Lab {
    #[command(flatten)]
    pub(crate) set_up: SetUp,
    /// The command, instead of a shell
    #[arg(last = true, value_name = "CMD")]
    pub(crate) command: Vec<String>,
}

impl Task {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            Self::Run(run) => run::run(&run),
            Self::Test(test) => test::test(test.set_up, &test.filter),
            Self::Ci(set_up) => test::test(set_up, &[]),
            Self::Soak(soak) => test::soak(soak.set_up, Duration::from_secs(60 * soak.minutes)),
            Self::Bench(options) => bench::bench(&options),
            Self::Build(build) => build::build(&build).map(|_| ExitCode::SUCCESS),
            Self::Lab(lab) => lab::lab(&lab),
            Self::Doctor => doctor::doctor(),
            Self::LeakSnapshot => {
                print!("{}", netobs_tests::leaks::Snapshot::take()?);
                Ok(ExitCode::SUCCESS)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn what_follows_two_dashes_is_for_netobs() {
        let cli = Cli::try_parse_from(["xtask", "run", "--lab", "--", "list", "--lab"]).unwrap();
        let Task::Run(run) = cli.command else {
            panic!("not run")
        };
        assert!(run.lab && !run.no_lab);
        assert_eq!(run.args, ["list", "--lab"]);
    }

    #[test]
    fn lab_and_no_lab_exclude_each_other() {
        assert!(Cli::try_parse_from(["xtask", "run", "--lab", "--no-lab"]).is_err());
    }
}
