//! Time on CPUs.

use std::{fs, io, time::Duration};

use anyhow::{Context as _, bail};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    time::{ClockId, clock_getcpuclockid, clock_gettime},
    unistd::{Pid, SysconfVar, sysconf},
};

/// Where the load runs. Everything else, observers in user space too, may use the rest.
pub(crate) const LOAD: usize = 0;

/// Keeps this thread, and what it starts, on `cpus`.
pub(crate) fn stay_on(cpus: impl IntoIterator<Item = usize>) -> anyhow::Result<()> {
    let mut set = CpuSet::new();
    for cpu in cpus {
        set.set(cpu)?;
    }
    sched_setaffinity(Pid::from_raw(0), &set).context("choose CPUs")
}

/// CPUs that are there.
pub(crate) fn number() -> anyhow::Result<usize> {
    let online =
        sysconf(SysconfVar::_NPROCESSORS_ONLN)?.context("nobody knows how many CPUs there are")?;
    Ok(usize::try_from(online)?)
}

/// CPUs but that of the load.
pub(crate) fn others() -> anyhow::Result<Vec<usize>> {
    let all = number()?;
    if all < 2 {
        bail!("the bench needs two CPUs: one for the load, one for what observes it");
    }
    Ok((0..all).filter(|cpu| *cpu != LOAD).collect())
}

/// That of this thread.
pub(crate) fn of_this_thread() -> anyhow::Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?.into())
}

/// That of a process, of all threads that it has and has had.
pub(crate) fn of_process(pid: u32) -> anyhow::Result<Duration> {
    let clock = clock_getcpuclockid(Pid::from_raw(pid.cast_signed()))?;
    Ok(clock_gettime(clock)?.into())
}

/// The kernel's thread for softirqs of the CPU of the load, where they outgrow the
/// thread that they interrupted.
pub(crate) struct Softirqs(String);

impl Softirqs {
    pub(crate) fn find() -> anyhow::Result<Self> {
        let name = format!("ksoftirqd/{LOAD}");
        for entry in fs::read_dir("/proc")? {
            let path = entry?.path();
            if fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm.trim() == name) {
                return Ok(Self(path.join("schedstat").to_string_lossy().into_owned()));
            }
        }
        bail!("there is no {name}: the bench needs /proc of the whole machine")
    }

    pub(crate) fn cpu(&self) -> anyhow::Result<Duration> {
        Ok(of_schedstat(&self.0)?)
    }
}

/// The first field is nanoseconds on a CPU.
/// <https://github.com/torvalds/linux/blob/v6.18/Documentation/scheduler/sched-stats.rst>
fn of_schedstat(path: &str) -> io::Result<Duration> {
    let text = fs::read_to_string(path)?;
    let field = text.split(' ').next().and_then(|field| field.parse().ok());
    field
        .map(Duration::from_nanos)
        .ok_or_else(|| io::Error::other(format!("{path} reads {text:?}")))
}
