//! netobs: observe network namespaces by eBPF.

use std::process::ExitCode;

use clap::Parser as _;
use netobs::{app, cli::Cli};

fn main() -> ExitCode {
    let cli = Cli::parse();
    match app::run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("netobs: {failure}");
            failure.exit_code()
        }
    }
}
