//! Doing what only root may.

use std::{env, ffi::OsStr, process::Command};

use anyhow::bail;

use crate::sh;

/// Whether we are root.
pub(crate) fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// A command as root: directly, or through sudo with PATH and the given
/// environment variables, which sudo would otherwise take away.
pub(crate) fn command(program: impl AsRef<OsStr>, keep: &[&str]) -> anyhow::Result<Command> {
    if is_root() {
        return Ok(Command::new(program));
    }
    if sh::which("sudo").is_none() {
        bail!("this needs root, and there is no sudo: run it as root");
    }
    let mut command = Command::new("sudo");
    command.args(prefix(keep)).arg(program);
    Ok(command)
}

/// `env NAME=VALUE...`: sudo runs it, and it the program.
pub(crate) fn prefix(keep: &[&str]) -> Vec<String> {
    let mut words = vec!["env".to_owned()];
    for name in ["PATH", "CARGO_TARGET_DIR"].iter().chain(keep) {
        if let Ok(value) = env::var(name) {
            words.push(format!("{name}={value}"));
        }
    }
    words
}
