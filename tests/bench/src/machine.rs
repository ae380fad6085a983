//! Where it was measured.

use std::{fs, time::SystemTime};

use anyhow::Context as _;
use nix::sys::utsname::uname;
use serde::Serialize;

use crate::cpu;

#[derive(Debug, Serialize)]
pub(crate) struct Machine {
    pub(crate) date: String,
    pub(crate) kernel: String,
    pub(crate) cpu: String,
    pub(crate) cpus: usize,
    pub(crate) virtual_machine: bool,
    pub(crate) memory_gib: f64,
    /// Its version, and its commit where it is known.
    pub(crate) netobs: String,
}

impl Machine {
    /// `commit` is netobs's, where that is known.
    pub(crate) fn look(commit: Option<&str>) -> anyhow::Result<Self> {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo")?;
        let field = |name: &str| {
            let line = cpuinfo.lines().find(|line| line.starts_with(name))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        let meminfo = fs::read_to_string("/proc/meminfo")?;
        let total = meminfo.split_whitespace().nth(1).context("MemTotal")?;
        let version = env!("CARGO_PKG_VERSION");
        Ok(Self {
            date: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
            kernel: uname()?.release().to_string_lossy().into_owned(),
            cpu: field("model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
            cpus: cpu::number()?,
            virtual_machine: field("flags").is_some_and(|all| all.contains(" hypervisor")),
            memory_gib: total.parse::<f64>()? / f64::from(1 << 20),
            netobs: match commit {
                Some(commit) => format!("{version} ({commit})"),
                None => version.to_owned(),
            },
        })
    }
}
