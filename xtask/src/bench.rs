//! `cargo xtask bench`.

use std::process::ExitCode;

use anyhow::Context as _;
use netobs_tests::NETOBS_BIN;

use crate::{cli::Bench, root, run, setup, sh, workspace};

pub(crate) fn bench(options: &Bench) -> anyhow::Result<ExitCode> {
    setup::bench_packages(options.set_up.no_install)?;
    setup::toolchain(options.set_up.no_install)?;
    let mut cargo = sh::cargo();
    cargo.args([
        "build",
        "--release",
        "--package",
        "netobs",
        "--bin",
        "netobs",
    ]);
    sh::run(cargo.args(["--package", "netobs-bench", "--bin", "netobs-bench"]))?;

    let target = workspace::target();
    let mut called = "cargo xtask bench".to_owned();
    for word in &options.only {
        called = called + " " + word;
    }
    let out = options.out.clone().unwrap_or_else(|| target.join("bench"));
    let mut command = root::command("env", &[])?;
    let netobs = workspace::netobs(false);
    command
        .arg(format!("{NETOBS_BIN}={}", netobs.display()))
        .arg(target.join("release/netobs-bench"))
        .arg("--out")
        .arg(out)
        .args(["--rounds", &options.rounds.to_string(), "--called", &called]);
    if let Some(commit) = commit() {
        command.args(["--commit", &commit]);
    }
    if options.docs {
        command
            .arg("--document")
            .arg(workspace::root().join("docs/performance.md"));
    }
    command.args(&options.only);
    eprintln!("+ {}", sh::text_of(&command));
    let status = command.status().context("cannot start the bench")?;
    Ok(run::exit_code(status))
}

/// What is measured; nothing outside a repository.
fn commit() -> Option<String> {
    let root = workspace::root().to_str()?;
    let git = |args: &[&str]| sh::ask("git", [&["-C", root], args].concat());
    let commit = git(&["rev-parse", "--short", "HEAD"])?;
    Some(
        match git(&["status", "--porcelain", "--untracked-files=no"])?.is_empty() {
            true => commit,
            false => commit + ", changed",
        },
    )
}
