//! What this process takes, from /proc.

use std::{fs, time::Duration};

use anyhow::Context as _;
use nix::{
    sys::resource::{Resource, getrlimit},
    unistd::{SysconfVar, sysconf},
};

use crate::model::process::Process;

/// Gives back to the kernel what a start took, some tens of megabytes: netobs runs for
/// long and never needs so much again.
pub fn release_memory() {
    #[cfg(target_env = "gnu")]
    {
        #[expect(unsafe_code, reason = "there is no safe name for it")]
        // SAFETY: it only returns free pages, and may be called at any time.
        unsafe {
            nix::libc::malloc_trim(0);
        }
    }
}

/// Reads it.
///
/// # Errors
/// Where /proc cannot be read.
pub fn read() -> anyhow::Result<Process> {
    let read = |path: &str| fs::read_to_string(path).with_context(|| format!("read {path}"));
    let number = |variable| {
        let value = sysconf(variable).ok().flatten();
        value
            .and_then(|value| u64::try_from(value).ok())
            .context("a number of the system")
    };
    let stat = read("/proc/self/stat")?;
    let boot = read("/proc/stat")?;
    let boot = boot.lines().find_map(|line| line.strip_prefix("btime "));
    parse(
        &stat,
        boot.and_then(|boot| boot.parse().ok()).unwrap_or(0),
        number(SysconfVar::CLK_TCK)?,
        number(SysconfVar::PAGE_SIZE)?,
    )
    .map(|process| Process {
        open_files: fs::read_dir("/proc/self/fd").map_or(0, |files| files.count() as u64),
        max_files: getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft),
        ..process
    })
    .context("/proc/self/stat is not as proc_pid_stat(5) says")
}

/// From the text of `/proc/self/stat`, the second of boot, and the units of time and memory.
fn parse(stat: &str, boot: u64, ticks: u64, page: u64) -> Option<Process> {
    // The command may have spaces and parentheses.
    let (_, rest) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    // By their numbers in proc_pid_stat(5), of which the third is the first here.
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    let (user, system) = (field(14)?, field(15)?);
    Some(Process {
        cpu: Duration::from_secs_f64((user + system) as f64 / ticks as f64),
        threads: field(20)?,
        started: boot as f64 + field(22)? as f64 / ticks as f64,
        virtual_bytes: field(23)?,
        resident_bytes: field(24)? * page,
        ..Process::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_read() {
        let process = read().expect("/proc");
        assert!(process.resident_bytes > 1 << 20, "{process:?}");
        assert!(process.virtual_bytes >= process.resident_bytes);
        assert!(process.threads > 0 && process.open_files > 2 && process.max_files > 2);
        assert!(process.started > 1e9, "{process:?}");
    }

    #[test]
    fn a_command_may_look_like_fields() {
        let stat =
            "7 (a) 9 (b)) S 1 7 7 0 -1 4194560 5 0 0 0 150 50 0 0 20 0 3 0 1000 8192 3 18446";
        let process = parse(stat, 100, 100, 4096).expect("a process");
        assert_eq!(process.cpu, Duration::from_secs(2));
        assert_eq!((process.threads, process.started), (3, 110.0));
        assert_eq!(
            (process.virtual_bytes, process.resident_bytes),
            (8192, 12288)
        );
    }
}
