//! What a test run must not leave on the machine.
//!
//! A [`Snapshot`] is a set of sentences, each about one thing that exists;
//! what is new in a later one was left behind. As plain lines it can be taken
//! by a privileged helper and compared elsewhere.

use std::{
    collections::BTreeSet, env, fmt, fs, path::Path, process::Command, str::FromStr, thread,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use serde_json::Value;

use crate::{RUN_TAG, holder};

/// Programs of these kinds are netobs's whatever their name.
const PROGRAM_TYPES: [&str; 2] = ["sched_cls", "tracing"];
/// Processes that labs start, for a run without a tag.
const NAMES: [&str; 4] = ["netobs", "dockerd", "containerd", "iperf3"];
/// Where cgroups of either version may be.
const CGROUPS: &str = "/sys/fs/cgroup";

/// What lives on this machine and could be a leak.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot(BTreeSet<String>);

impl Snapshot {
    /// Looks around. Where the environment has a tag ([`RUN_TAG`]), folders,
    /// cgroups and processes of other runs are left out.
    pub fn take() -> anyhow::Result<Self> {
        let tag = env::var(RUN_TAG).ok();
        let tag = tag.as_deref();
        let mut found = BTreeSet::new();
        found.extend(entries("/run/netns", "named namespace", |_| true));
        found.extend(entries("/sys/class/net", "link", |_| true));
        let expedited = fs::read_to_string("/sys/kernel/rcu_expedited").unwrap_or_default();
        if !["", "0"].contains(&expedited.trim()) {
            found.insert(format!("rcu_expedited {}", expedited.trim()));
        }
        found.extend(entries("/sys/fs/bpf", "pin", |n| n.starts_with("netobs")));
        found.extend(
            holder::folders(tag)
                .iter()
                .map(|path| format!("folder {}", path.display())),
        );
        let cgroup = tag.map_or(holder::PREFIX.to_owned(), |tag| {
            format!("{}{tag}-", holder::PREFIX)
        });
        cgroups(Path::new(CGROUPS), &cgroup, &mut found);
        found.extend(processes(tag));
        found.extend(programs(tag)?);
        Ok(Self(found))
    }

    /// What is here and was not there `before`.
    pub fn since(&self, before: &Self) -> Vec<String> {
        self.0.difference(&before.0).cloned().collect()
    }
}

impl fmt::Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|line| writeln!(f, "{line}"))
    }
}

impl FromStr for Snapshot {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(text.lines().map(str::to_owned).collect()))
    }
}

fn entries(folder: &str, what: &str, wanted: fn(&str) -> bool) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| wanted(name))
        .map(|name| format!("{what} {name}"))
        .collect()
}

/// Cgroups of labs, in every hierarchy and at any depth.
fn cgroups(folder: &Path, prefix: &str, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let path = entry.path();
        match entry.file_name().to_string_lossy().starts_with(prefix) {
            true => drop(found.insert(format!("cgroup {}", path.display()))),
            false => cgroups(&path, prefix, found),
        }
    }
}

/// Processes of the run with this tag, or with a lab's usual names.
fn processes(tag: Option<&str>) -> Vec<String> {
    let own = std::process::id();
    let parent = std::os::unix::process::parent_id();
    let numbers = fs::read_dir("/proc").into_iter().flatten().flatten();
    numbers
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        // Whoever asks has the tag, and so has a sudo in between.
        .filter(|pid| *pid != own && *pid != parent)
        .filter_map(|pid| {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
            let name = name.trim();
            let ours = match tag {
                Some(tag) => has_tag(pid, tag) && name != "cargo",
                None => NAMES.iter().any(|known| name.starts_with(known)),
            };
            ours.then(|| format!("process {pid} ({name})"))
        })
        .collect()
}

fn has_tag(pid: u32, tag: &str) -> bool {
    let wanted = format!("{RUN_TAG}={tag}");
    let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    environment
        .split(|byte| *byte == 0)
        .any(|var| var == wanted.as_bytes())
}

/// Loaded programs and links that netobs could have made.
fn programs(tag: Option<&str>) -> anyhow::Result<Vec<String>> {
    let programs = bpftool("prog")?;
    let mut suspects = BTreeSet::new();
    let mut found = Vec::new();
    for program in programs.as_array().into_iter().flatten() {
        let name = program["name"].as_str().unwrap_or("without a name");
        let kind = program["type"].as_str().unwrap_or_default();
        if !name.starts_with("netobs") && !PROGRAM_TYPES.contains(&kind) {
            continue;
        }
        // Held by processes that are not of this run: somebody else's.
        let holders = program["pids"].as_array().map_or(&[][..], Vec::as_slice);
        let foreign = |holder: &Value| {
            let pid = holder["pid"].as_u64().and_then(|pid| pid.try_into().ok());
            pid.is_some_and(|pid| tag.is_some_and(|tag| !has_tag(pid, tag)))
        };
        if !holders.is_empty() && holders.iter().all(foreign) {
            continue;
        }
        suspects.insert(program["id"].as_u64());
        found.push(format!("bpf program {} {name} ({kind})", program["id"]));
    }
    let links = bpftool("link")?;
    for link in links.as_array().into_iter().flatten() {
        if suspects.contains(&link["prog_id"].as_u64()) {
            found.push(format!(
                "bpf link {} of program {}",
                link["id"], link["prog_id"]
            ));
        }
    }
    Ok(found)
}

fn bpftool(object: &str) -> anyhow::Result<Value> {
    let show = || {
        Command::new("bpftool")
            .args(["--json", object, "show"])
            .output()
            .context("cannot start bpftool, which tells whether programs were left")
    };
    let mut output = show()?;
    // It gives up at the first link that somebody is making at that moment.
    for _ in 0..20 {
        if output.status.success() {
            break;
        }
        thread::sleep(Duration::from_millis(50));
        output = show()?;
    }
    let words = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success(),
        "`bpftool --json {object} show` ended with {}: {words}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout)
        .with_context(|| format!("`bpftool --json {object} show` printed: {words}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_what_is_new() {
        let before: Snapshot = "link lo\nlink eth0\n".parse().unwrap();
        let after: Snapshot = "link eth0\nlink lo\nlink veth1\n".parse().unwrap();
        assert_eq!(after.since(&before), ["link veth1"]);
        assert!(before.since(&after).is_empty());
        assert_eq!(after.to_string().parse(), Ok(after));
    }

    #[test]
    fn finds_lab_folders_of_cgroups_at_any_depth() {
        let root = nix::unistd::mkdtemp(&env::temp_dir().join("netobs-leaks-XXXXXX")).unwrap();
        fs::create_dir_all(root.join("memory/session/netobs-lab-x1/box")).unwrap();
        let mut found = BTreeSet::new();
        cgroups(&root, "netobs-lab-", &mut found);
        assert_eq!(found.len(), 1);
        assert!(found.first().unwrap().ends_with("netobs-lab-x1"));
        fs::remove_dir_all(&root).unwrap();
    }
}
