//! `cargo xtask doctor`.

use std::process::ExitCode;

use crate::{
    host, root,
    setup::{self, Choice, apt, debian, packages, rustup},
    sh,
};

/// Tells what is there; fails where `build` or `test` would have to install.
pub(crate) fn doctor() -> anyhow::Result<ExitCode> {
    let mut complete = true;
    println!("eBPF toolchain");
    let no_rustup = match rustup::find() {
        Ok(choice) => {
            println!("  1. rustup's nightly: yes, this is taken: {}", choice.way);
            None
        }
        Err(why) => {
            println!("  1. rustup's nightly: no, {why}");
            Some(why)
        }
    };
    let way_2 = match debian::find() {
        Ok(plan) if plan.is_done() => Ok("complete".to_owned()),
        Ok(plan) => Err(format!(
            "possible; set-up would run:\n       {}",
            plan.commands().join("\n       ")
        )),
        Err(why) if no_rustup.is_some() => {
            complete = false;
            println!("  2. Debian's packages: no, {why}");
            println!(
                "{}",
                setup::what_to_install(&no_rustup.clone().unwrap_or_default(), &why)
            );
            Ok(String::new())
        }
        Err(why) => Err(format!("no, {why}")),
    };
    match way_2 {
        Ok(words) if words.is_empty() => {}
        Ok(words) if no_rustup.is_some() => {
            println!("  2. Debian's packages: yes, this is taken: {words}");
        }
        Ok(words) => println!("  2. Debian's packages: {words}, not needed"),
        Err(words) => {
            complete &= no_rustup.is_none();
            println!("  2. Debian's packages: {words}");
        }
    }
    match Choice::file().exists() {
        true => println!("  written down in {}", Choice::file().display()),
        false => println!("  not written down yet: `cargo xtask build` does"),
    }

    println!("programs of the lab and the tests");
    let all = [&packages::LAB[..], &packages::TESTS].concat();
    let missing = packages::missing(&all);
    for needed in &all {
        let there = if needed.is_there() { "yes" } else { "no" };
        println!(
            "  {:<12} {there:<4} (package {})",
            needed.program, needed.package
        );
    }
    if !missing.is_empty() {
        complete = false;
        match apt::usable() {
            Ok(()) => println!(
                "  set-up would run: {}",
                apt::install_line(&packages::packages(&missing))
            ),
            Err(why) => println!("  {why}: install them by this system's own means"),
        }
    }

    println!("this host");
    let runner = match sh::which("cargo-nextest") {
        Some(_) => "cargo-nextest",
        None => "cargo test (no cargo-nextest on PATH)",
    };
    println!("  tests run by {runner}");
    let rights = match (root::is_root(), sh::which("sudo")) {
        (true, _) => "root",
        (false, Some(_)) => "not root, through sudo",
        (false, None) => "not root, and there is no sudo: netobs and its tests cannot run",
    };
    println!("  rights: {rights}");
    match host::something_to_show() {
        Some(what) => println!("  netobs would show this host: {what}"),
        None => println!("  nothing to show here: `cargo xtask run` starts a lab"),
    }
    Ok(match complete {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}
