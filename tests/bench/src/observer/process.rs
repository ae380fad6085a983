//! Programs that run meanwhile.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use netobs_tests::{Lab, LabCommand, Proc, poll_until};
use nix::sys::signal::Signal;

use super::Observer;
use crate::cpu;

const PATIENCE: Duration = Duration::from_secs(30);

/// When a program observes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Ready {
    /// It has said this, on either stream.
    Says(&'static str),
    /// It has a packet socket.
    Captures,
}

type Make<'a> = dyn Fn(&Lab) -> anyhow::Result<LabCommand> + 'a;

/// A program of somebody's.
pub(crate) struct Process<'a> {
    lab: &'a Lab,
    name: &'static str,
    command: Box<Make<'a>>,
    ready: Ready,
    running: Option<Proc>,
}

impl<'a> Process<'a> {
    pub(crate) fn new(
        lab: &'a Lab,
        name: &'static str,
        ready: Ready,
        command: impl Fn(&Lab) -> anyhow::Result<LabCommand> + 'a,
    ) -> Self {
        Self {
            lab,
            name,
            command: Box::new(command),
            ready,
            running: None,
        }
    }

    /// Packet sockets of the lab's host.
    fn packet_sockets(&self) -> anyhow::Result<usize> {
        Ok(self.lab.shell("cat /proc/net/packet")?.lines().count())
    }
}

impl Observer for Process<'_> {
    fn name(&self) -> &str {
        self.name
    }

    fn start(&mut self) -> anyhow::Result<()> {
        let sockets = self.packet_sockets()?;
        let mut proc = (self.command)(self.lab)?.start()?;
        let what = format!("{} to observe", self.name);
        poll_until(PATIENCE, &what, || {
            ensure!(proc.is_running(), "it ended: {:?}", proc.stderr());
            let is = match self.ready {
                Ready::Says(word) => {
                    let lines = [proc.stdout(), proc.stderr()].concat();
                    lines.iter().any(|line| line.contains(word))
                }
                Ready::Captures => self.packet_sockets()? > sockets,
            };
            Ok(is.then_some(()))
        })?;
        self.running = Some(proc);
        Ok(())
    }

    fn stop(&mut self) -> anyhow::Result<()> {
        let mut proc = self.running.take().context("it does not run")?;
        proc.end(Signal::SIGTERM, PATIENCE)?;
        Ok(())
    }

    /// Once it rests: what it still has to do for the packets of a slice belongs to them.
    fn cpu(&self) -> anyhow::Result<Duration> {
        let pid = self.running.as_ref().context("it does not run")?.pid();
        let end = Instant::now() + Duration::from_secs(2);
        let mut last = cpu::of_process(pid)?;
        loop {
            std::thread::sleep(Duration::from_millis(30));
            let now = cpu::of_process(pid)?;
            if now - last < Duration::from_millis(1) || Instant::now() > end {
                return Ok(now);
            }
            last = now;
        }
    }
}
