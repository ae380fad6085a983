//! `cargo xtask`: sets up, builds, runs and tests netobs.

mod bench;
mod build;
mod cli;
mod demo;
mod doctor;
mod host;
mod lab;
mod root;
mod run;
mod setup;
mod sh;
mod signals;
mod test;
mod totals;
mod workspace;

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    match cli::Cli::parse().command.run() {
        Ok(code) => code,
        Err(err) => {
            eprintln!("xtask: {err:#}");
            ExitCode::FAILURE
        }
    }
}
