//! What observes meanwhile: programs of our own, netobs, and what people would use
//! instead.

mod nft;
mod process;
mod programs;

use std::time::Duration;

pub(crate) use nft::Nft;
pub(crate) use process::{Process, Ready};
pub(crate) use programs::{Flows, Lookups, Netobs, Pair, Tracepoints};

/// Something that can be switched on and off.
pub(crate) trait Observer {
    /// What it is called in tables.
    fn name(&self) -> &str;

    /// Observes from the return of this on.
    fn start(&mut self) -> anyhow::Result<()>;

    /// Observes no longer.
    fn stop(&mut self) -> anyhow::Result<()>;

    /// Loads its programs anew: where they lie in memory makes a difference of its own.
    /// Called while it does not observe.
    fn reload(&mut self) -> anyhow::Result<()> {
        Ok(())
    }

    /// CPU of its process so far, while it observes.
    fn cpu(&self) -> anyhow::Result<Duration> {
        Ok(Duration::ZERO)
    }

    /// How many of the packets since its start it has seen, where it tells.
    fn seen(&mut self) -> anyhow::Result<Option<u64>> {
        Ok(None)
    }

    /// Whether anything but all of them is an error.
    fn exact(&self) -> bool {
        true
    }
}
