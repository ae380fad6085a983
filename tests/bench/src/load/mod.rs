//! What is sent while observers come and go: generators on a CPU of their own.

mod connects;
mod datagrams;
mod frames;
mod requests;
mod stream;

use std::{
    fs::File,
    os::fd::AsFd as _,
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use nix::sched::{CloneFlags, setns};

pub(crate) use connects::Connects;
pub(crate) use datagrams::Datagrams;
pub(crate) use frames::{Frame, Frames, open};
pub(crate) use requests::{Requests, echo};
pub(crate) use stream::{Stream, sink};

use crate::cpu::{self, Softirqs};

/// Something that can be done again and again.
pub(crate) trait Load {
    /// Does some of it; gives how many units: packets, bytes, round trips.
    fn some(&mut self) -> anyhow::Result<u64>;

    /// CPU that others have spent on it so far.
    fn elsewhere(&self) -> anyhow::Result<Duration> {
        Ok(Duration::ZERO)
    }
}

/// What was done in a slice of time.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Slice {
    pub(crate) units: u64,
    pub(crate) wall: Duration,
    /// CPU of the generator, of what receives, and of softirqs.
    pub(crate) cpu: Duration,
}

impl Slice {
    /// Units per second.
    pub(crate) fn rate(&self) -> f64 {
        self.units as f64 / self.wall.as_secs_f64()
    }

    /// Nanoseconds of CPU per unit.
    pub(crate) fn cost(&self) -> f64 {
        self.cpu.as_nanos() as f64 / self.units as f64
    }

    /// Nanoseconds that a unit took.
    pub(crate) fn time(&self) -> f64 {
        self.wall.as_nanos() as f64 / self.units as f64
    }
}

/// A thread that works in a namespace, on [`cpu::LOAD`], when it is asked to.
pub(crate) struct Generator {
    ask: SyncSender<Duration>,
    slices: Receiver<anyhow::Result<Slice>>,
    thread: Option<JoinHandle<anyhow::Result<()>>>,
}

impl Generator {
    /// `make` runs in the thread, inside `netns`.
    pub(crate) fn start<L: Load>(
        netns: File,
        make: impl FnOnce() -> anyhow::Result<L> + Send + 'static,
    ) -> Self {
        let (ask, asked) = sync_channel(0);
        let (answer, slices) = sync_channel(0);
        let work = move || {
            setns(netns.as_fd(), CloneFlags::CLONE_NEWNET)?;
            cpu::stay_on([cpu::LOAD])?;
            let mut load = make()?;
            let softirqs = Softirqs::find()?;
            while let Ok(duration) = asked.recv() {
                if answer.send(slice(&mut load, &softirqs, duration)).is_err() {
                    break;
                }
            }
            Ok(())
        };
        Self {
            ask,
            slices,
            thread: Some(thread::spawn(work)),
        }
    }

    /// Works for `duration`.
    pub(crate) fn run(&mut self, duration: Duration) -> anyhow::Result<Slice> {
        let asked = self.ask.send(duration).is_ok();
        match asked.then(|| self.slices.recv()) {
            Some(Ok(slice)) => slice,
            _ => {
                let thread = self
                    .thread
                    .take()
                    .context("the generator has failed before")?;
                match thread.join() {
                    Ok(result) => Err(result.err().context("the generator ended")?),
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
        }
    }
}

impl Drop for Generator {
    /// Waits until its sockets are closed. Each takes a grace period, and a child that is
    /// forked meanwhile inherits what is left of thousands, and closes them before it begins.
    fn drop(&mut self) {
        let (nobody, _) = sync_channel(0);
        self.ask = nobody;
        if let Some(thread) = self.thread.take() {
            // Whoever asked was told of its errors.
            let _ = thread.join();
        }
    }
}

fn slice(load: &mut impl Load, softirqs: &Softirqs, duration: Duration) -> anyhow::Result<Slice> {
    let spent =
        |load: &dyn Load| anyhow::Ok(cpu::of_this_thread()? + softirqs.cpu()? + load.elsewhere()?);
    let before = spent(load)?;
    let started = Instant::now();
    let mut units = 0;
    let mut wall = Duration::ZERO;
    while wall < duration {
        units += load.some()?;
        wall = started.elapsed();
    }
    Ok(Slice {
        units,
        wall,
        cpu: spent(load)?.saturating_sub(before),
    })
}
