//! Containers of a lab.

use std::ffi::OsStr;

use anyhow::Context as _;
use serde_json::Value;

use crate::{Lab, LabCommand, Netns};

/// A container that was started; it ends with the lab at the latest.
#[derive(Debug)]
pub struct Container<'lab> {
    lab: &'lab Lab,
    name: String,
    id: String,
    pid: u32,
}

impl<'lab> Container<'lab> {
    pub(crate) fn new(lab: &'lab Lab, name: &str, id: String) -> anyhow::Result<Self> {
        let mut container = Self {
            lab,
            name: name.to_owned(),
            id,
            pid: 0,
        };
        container.refresh()?;
        Ok(container)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its id, 64 hexadecimal digits.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Its first process's number inside the lab (another after a restart:
    /// see [`Container::refresh`]).
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Reads its process's number again, after a restart.
    pub fn refresh(&mut self) -> anyhow::Result<()> {
        let pid = self.inspect()?["State"]["Pid"].as_u64();
        self.pid = u32::try_from(pid.context("docker inspect tells no State.Pid")?)?;
        Ok(())
    }

    /// Its network namespace.
    pub fn netns(&self) -> Netns {
        Netns::Pid(self.pid)
    }

    /// What `docker inspect` tells of it.
    pub fn inspect(&self) -> anyhow::Result<Value> {
        let mut all = self.lab.docker(["inspect", &self.id]).json()?;
        Ok(all[0].take())
    }

    /// Its IPv4 address on the default bridge.
    pub fn address(&self) -> anyhow::Result<String> {
        let inspected = self.inspect()?;
        let address = inspected["NetworkSettings"]["IPAddress"].as_str();
        let address = address.filter(|address| !address.is_empty());
        Ok(address
            .with_context(|| format!("{} has no address", self.name))?
            .to_owned())
    }

    /// Runs a command in it, which must succeed; gives its standard output.
    pub fn exec<S: AsRef<OsStr>>(
        &self,
        command: impl IntoIterator<Item = S>,
    ) -> anyhow::Result<String> {
        self.lab.exec(&self.name, command)
    }

    /// A program of the machine, run in the container's network namespace:
    /// what the image lacks (`ip -j`, `tc`, `iperf3`).
    pub fn command(&self, program: impl AsRef<OsStr>) -> LabCommand {
        self.lab.command_in(&self.netns(), program)
    }

    /// Kills and removes it.
    pub fn remove(self) -> anyhow::Result<()> {
        self.lab.docker(["rm", "--force", &self.id]).text()?;
        Ok(())
    }
}
