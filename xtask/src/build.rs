//! `cargo xtask build`.

use std::path::PathBuf;

use anyhow::ensure;

use crate::{cli::Build, setup, sh, workspace};

/// Sets up and builds netobs; gives its path.
pub(crate) fn build(options: &Build) -> anyhow::Result<PathBuf> {
    setup::toolchain(options.set_up.no_install)?;
    let mut cargo = sh::cargo();
    cargo.args(["build", "--package", "netobs", "--bin", "netobs"]);
    if !options.debug {
        cargo.arg("--release");
    }
    sh::run(&mut cargo)?;
    let netobs = workspace::netobs(options.debug);
    ensure!(netobs.is_file(), "cargo left no {}", netobs.display());
    Ok(netobs)
}
