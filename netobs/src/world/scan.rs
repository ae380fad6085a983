//! Finds the files that lead to network namespaces.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use super::{netns, text};
use crate::inventory::facts::Process;

/// Where `ip netns` keeps its names.
const NAMED: &str = "/run/netns";
/// Where Docker keeps its sandboxes by default.
const DOCKER_SANDBOXES: &str = "/run/docker/netns";
/// Where rootless engines keep theirs: one folder per user.
const USERS: &str = "/run/user";

/// What leads to one namespace.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// A file to open it by.
    pub path: PathBuf,
    /// Its names for `ip netns`.
    pub names: Vec<String>,
    /// The oldest process in it.
    pub process: Option<Process>,
}

/// All namespaces found, by inode.
#[derive(Clone, Debug, Default)]
pub struct Scan {
    /// By inode.
    pub found: BTreeMap<u64, Found>,
    /// Files of `ip netns` that are no namespace, or may not be read.
    pub troubles: Vec<(PathBuf, String)>,
}

impl Scan {
    /// Looks in the folders of `ip netns`, Docker and rootless engines, and in
    /// `sandboxes` (folders that an engine told of). With `processes` in
    /// /proc too, which takes the longest.
    #[must_use]
    pub fn new<'a>(sandboxes: impl IntoIterator<Item = &'a Path>, processes: bool) -> Self {
        let mut scan = Self::default();
        scan.folder(Path::new(NAMED), true);
        scan.folder(Path::new(DOCKER_SANDBOXES), false);
        for user in entries(Path::new(USERS)) {
            scan.folder(&user.join("netns"), false);
        }
        for sandbox in sandboxes {
            scan.folder(sandbox, false);
        }
        if processes {
            scan.processes();
        }
        scan
    }

    fn folder(&mut self, folder: &Path, named: bool) {
        for path in entries(folder) {
            match netns::inode_at(&path) {
                Ok(inode) => {
                    let found = self.found.entry(inode).or_default();
                    if found.path.as_os_str().is_empty() {
                        found.path.clone_from(&path);
                    }
                    if named {
                        let name = text::lossless_os(path.file_name().unwrap_or(OsStr::new("")));
                        if !found.names.contains(&name) {
                            found.names.push(name);
                        }
                    }
                }
                // It ended while we looked.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) if named => self.troubles.push((path, error.to_string())),
                // An engine's own folder, half made or half taken down.
                Err(_) => {}
            }
        }
    }

    fn processes(&mut self) {
        let mut pids: Vec<u32> = entries(Path::new("/proc"))
            .iter()
            .filter_map(|path| path.file_name()?.to_str()?.parse().ok())
            .collect();
        pids.sort_unstable();
        for pid in pids {
            let path = PathBuf::from(format!("/proc/{pid}/ns/net"));
            // Kernel threads of other users and processes that just ended.
            let Ok(metadata) = fs::metadata(&path) else {
                continue;
            };
            let found = self.found.entry(metadata.ino()).or_default();
            if found.process.is_none() {
                found.process = Some(Process {
                    pid,
                    comm: comm(pid),
                });
            }
            if found.path.as_os_str().is_empty() {
                found.path = path;
            }
        }
    }
}

/// The inode of the namespace that process `pid` lives in.
#[must_use]
pub fn inode_of(pid: u32) -> Option<u64> {
    fs::metadata(format!("/proc/{pid}/ns/net"))
        .ok()
        .map(|metadata| metadata.ino())
}

/// When process `pid` started, in clock ticks since boot: tells it from another
/// that got its id.
#[must_use]
pub fn started(pid: u32) -> Option<u64> {
    let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
    start_time(&String::from_utf8_lossy(&stat))
}

/// Field 22 of `/proc/PID/stat`. The second, the command in parentheses, may
/// hold spaces and parentheses of its own.
fn start_time(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(19)?.parse().ok()
}

fn comm(pid: u32) -> String {
    let bytes = fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
    text::lossless(bytes.strip_suffix(b"\n").unwrap_or(&bytes))
}

/// The paths in `folder`, sorted; none where it is not there.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    #[test]
    fn a_command_with_parentheses_does_not_shift_the_fields() {
        let fields: Vec<String> = (3..=52).map(|n| n.to_string()).collect();
        let stat = format!("7 (a) b ( c)) {}", fields.join(" "));
        assert_eq!(start_time(&stat), Some(22));
        assert_eq!(start_time("nonsense"), None);
    }

    #[test]
    fn a_process_keeps_its_start() {
        let own = started(std::process::id());
        assert!(own.is_some());
        assert_eq!(own, started(std::process::id()));
    }

    proptest! {
        /// A process calls itself what it likes.
        #[test]
        fn no_command_shifts_the_fields(command in vec(any::<u8>(), 0..16), start in any::<u64>()) {
            let fields: Vec<String> = (3..=21).map(|n| n.to_string()).collect();
            let stat = [
                b"7 (",
                &command[..],
                format!(") {} {start} 23 24", fields.join(" ")).as_bytes(),
            ]
            .concat();
            prop_assert_eq!(start_time(&String::from_utf8_lossy(&stat)), Some(start));
        }

        #[test]
        fn any_text_is_no_panic(text in "(?s).{0,80}") {
            start_time(&text);
        }
    }
}
