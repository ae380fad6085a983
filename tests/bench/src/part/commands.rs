//! What a command costs.

use std::{
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::ensure;
use netobs_tests::LabCommand;
use nix::sys::{
    resource::{UsageWho, getrusage},
    time::TimeValLike as _,
};

/// What it took.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spent {
    pub(crate) wall: Duration,
    /// Of it and of its children.
    pub(crate) cpu: Duration,
}

/// Runs a command, which must succeed, its output to nowhere.
///
/// CPU is that of all children that ended meanwhile: where others run commands at the
/// same time, theirs is in it.
pub(crate) fn run(command: &mut LabCommand) -> anyhow::Result<Spent> {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let before = children()?;
    let started = Instant::now();
    let status = command.status()?;
    let wall = started.elapsed();
    ensure!(status.success(), "a command ended with {status}");
    Ok(Spent {
        wall,
        cpu: children()?.saturating_sub(before),
    })
}

fn children() -> anyhow::Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let micros = (usage.user_time() + usage.system_time()).num_microseconds();
    Ok(Duration::from_micros(u64::try_from(micros)?))
}
