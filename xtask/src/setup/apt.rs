//! Debian's package manager.

use std::{
    fs,
    path::Path,
    process::Command,
    time::{Duration, SystemTime},
};

use anyhow::Context as _;

use crate::{root, sh};

/// Older lists name packages that the archive has no more.
const FRESH: Duration = Duration::from_secs(24 * 60 * 60);

/// Whether this is Debian, or something made of it, with apt.
pub(crate) fn usable() -> Result<(), String> {
    if !Path::new("/etc/debian_version").exists() {
        return Err("this is no Debian".to_owned());
    }
    match sh::which("apt-get").and(sh::which("dpkg-query")) {
        Some(_) => Ok(()),
        None => Err("there is no apt-get".to_owned()),
    }
}

/// The installed version.
pub(crate) fn installed(package: &str) -> Option<String> {
    let format = "${db:Status-Status} ${Version}";
    let text = sh::ask("dpkg-query", ["--show", "--showformat", format, package])?;
    text.strip_prefix("installed ").map(str::to_owned)
}

/// Whether apt could install it.
pub(crate) fn known(package: &str) -> bool {
    let policy = sh::ask("apt-cache", ["policy", package]).unwrap_or_default();
    policy
        .lines()
        .any(|line| line.trim_start().starts_with("Candidate:") && !line.contains("(none)"))
}

/// The package that a file belongs to.
pub(crate) fn owner(file: &str) -> Option<String> {
    let text = sh::ask("dpkg-query", ["--search", file])?;
    text.split_once(':').map(|(package, _)| package.to_owned())
}

/// Fetches new package lists where there are none, or old ones.
pub(crate) fn refresh_lists(packages: &[&str]) -> anyhow::Result<()> {
    if lists_are_fresh() && packages.iter().all(|package| known(package)) {
        return Ok(());
    }
    let mut update = root::command("apt-get", &[])?;
    sh::run(update.arg("update").arg("--quiet"))
}

/// Whether the package lists are of the last day.
pub(crate) fn lists_are_fresh() -> bool {
    let lists = fs::read_dir("/var/lib/apt/lists").into_iter().flatten();
    lists
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().ends_with("Release"))
        // When they were fetched: their mtime is the archive's.
        .filter_map(|entry| entry.metadata().and_then(|meta| meta.created()).ok())
        .chain(mtime("/var/cache/apt/pkgcache.bin"))
        .any(|time| {
            let age = SystemTime::now().duration_since(time);
            age.is_ok_and(|age| age < FRESH)
        })
}

fn mtime(file: &str) -> Option<SystemTime> {
    fs::metadata(file).and_then(|meta| meta.modified()).ok()
}

/// Installs packages, without those that they only recommend, and without
/// starting the services in them.
pub(crate) fn install(packages: &[&str]) -> anyhow::Result<()> {
    eprintln!("xtask: installing with apt-get: {}", packages.join(" "));
    refresh_lists(packages)?;
    let mut install = root::command("sh", &[])?;
    install
        .args(["-c", include_str!("install.sh"), "install"])
        .args(packages);
    run_script(&mut install, packages)
}

/// Like `sh::run`, but tells the script's essence rather than its text.
fn run_script(script: &mut Command, packages: &[&str]) -> anyhow::Result<()> {
    let essence = install_line(packages);
    eprintln!("+ {essence}");
    let status = script.status().context("cannot start sh")?;
    anyhow::ensure!(status.success(), "`{essence}` ended with {status}");
    Ok(())
}

/// The command line for people.
pub(crate) fn install_line(packages: &[&str]) -> String {
    format!(
        "apt-get install -y --no-install-recommends {}",
        packages.join(" ")
    )
}
