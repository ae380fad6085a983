//! The real systemd, in a lab.

use std::{
    fs,
    marker::PhantomData,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, ensure};

use crate::{Lab, Proc, netobs_binary, poll_until};

const PATIENCE: Duration = Duration::from_secs(60);
const PROGRAM: &str = "/lib/systemd/systemd";

/// What units lean on, each without anything of the machine's.
const TARGETS: [&str; 6] = [
    "sysinit.target",
    "basic.target",
    "shutdown.target",
    "network.target",
    "multi-user.target",
    "lab.target",
];

/// A systemd that is the first process of a pid namespace inside a lab, with its own
/// mounts, in the lab's network namespace. It knows the units that it is given, and
/// netobs at `/usr/local/bin`.
#[derive(Debug)]
pub struct Systemd<'lab> {
    proc: Proc,
    /// It ends with it at the latest.
    lab: PhantomData<&'lab Lab>,
}

impl<'lab> Systemd<'lab> {
    /// Whether the machine has one; it need not run.
    pub fn is_installed() -> bool {
        Path::new(PROGRAM).exists()
    }

    /// Writes a folder of units: what units lean on, and `units` by name (`x.service`, or
    /// `x.service.d/y.conf`).
    pub fn write_units(lab: &Lab, units: &[(&str, &str)]) -> anyhow::Result<PathBuf> {
        let folder = lab.tmp().join("systemd/units");
        fs::create_dir_all(&folder)?;
        for target in TARGETS {
            fs::write(folder.join(target), "[Unit]\nDefaultDependencies=no\n")?;
        }
        for (name, text) in units {
            let path = folder.join(name);
            fs::create_dir_all(path.parent().context("a folder")?)?;
            fs::write(path, text)?;
        }
        Ok(folder)
    }

    /// Starts it and waits until it answers.
    pub fn start(lab: &'lab Lab, units: &[(&str, &str)]) -> anyhow::Result<Self> {
        Self::write_units(lab, units)?;
        // As a host's: what is mounted in the lab later reaches systemd.
        lab.shell("mount --make-rshared / && mkdir -p /run/systemd")?;
        let proc = lab
            .command("unshare")
            .args(["--mount", "--propagation", "slave"])
            .args(["--pid", "--fork", "--kill-child", "sh", "-c"])
            .args([include_str!("systemd/first.sh"), "systemd"])
            .arg(lab.tmp().join("systemd"))
            // By this name the lab's janitor finds it.
            .arg(format!("{}-systemd", lab.name()))
            .arg(netobs_binary()?)
            .start()
            .context("cannot start unshare (package util-linux)")?;
        let mut systemd = Self {
            proc,
            lab: PhantomData,
        };
        poll_until(PATIENCE, "an answer of systemd", || {
            ensure!(systemd.proc.is_running(), "it ended");
            systemd.systemctl(&["show", "--property=Version"])?;
            Ok(Some(()))
        })
        .with_context(|| systemd.proc.stderr().join("\n"))?;
        Ok(systemd)
    }

    /// Runs systemctl, which must succeed. It is beside systemd, which talks to nobody
    /// whose number it cannot see.
    pub fn systemctl(&self, args: &[&str]) -> anyhow::Result<String> {
        let first = children(self.proc.pid())?;
        let first = first.first().context("systemd has ended")?;
        let output = Command::new("nsenter")
            .arg(format!("--target={first}"))
            .args(["--mount", "--pid", "--net", "--ipc", "--uts", "--"])
            .args(["timeout", "60", "systemctl", "--no-ask-password"])
            .args(args)
            .output()
            .context("cannot start nsenter (package util-linux)")?;
        let words = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "systemctl {args:?}: {words}");
        Ok(String::from_utf8(output.stdout)?)
    }

    /// A property of a unit.
    pub fn property(&self, unit: &str, name: &str) -> anyhow::Result<String> {
        let text = self.systemctl(&["show", unit, "--value", "--property", name])?;
        Ok(text.trim().to_owned())
    }

    /// The number on the machine of a process that systemd has started itself, by its
    /// program's name; nothing if there is none.
    pub fn process(&self, name: &str) -> anyhow::Result<Option<u32>> {
        for first in children(self.proc.pid())? {
            for pid in children(first)? {
                let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
                if comm.trim() == name {
                    return Ok(Some(pid));
                }
            }
        }
        Ok(None)
    }
}

fn children(pid: u32) -> anyhow::Result<Vec<u32>> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
    text.split_whitespace()
        .map(|pid| Ok(pid.parse()?))
        .collect()
}
