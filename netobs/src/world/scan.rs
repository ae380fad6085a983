//! Finds the files that lead to network namespaces.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs::{self, DirEntry, File},
    io,
    os::{fd::AsFd as _, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
    rc::Rc,
    time::{Duration, Instant, SystemTime},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{netns, text};
use crate::inventory::facts::Process;

/// Where `ip netns` keeps its names.
const NAMED: &str = "/run/netns";
/// Where Docker keeps its sandboxes by default.
const DOCKER_SANDBOXES: &str = "/run/docker/netns";
/// Where rootless engines keep theirs: one folder per user.
const USERS: &str = "/run/user";

/// No clock of a file system is coarser.
const COARSE: Duration = Duration::from_secs(2);
/// Folders are looked into again after this time, in case that something was missed.
const AGAIN: Duration = Duration::from_secs(30);

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
    /// Whether there are links among the files: nobody tells where they lead later.
    links: bool,
}

impl Scan {
    /// Looks in `folders`.
    fn of<'a>(folders: impl Iterator<Item = &'a Path>) -> Self {
        let mut scan = Self::default();
        for folder in folders {
            scan.folder(folder, folder == Path::new(NAMED));
        }
        scan
    }

    fn folder(&mut self, folder: &Path, named: bool) {
        for (path, is_link) in entries(folder) {
            self.links |= is_link;
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

    /// Looks in /proc too, which takes the longest.
    pub fn processes(&mut self) {
        let mut pids: Vec<u32> = fs::read_dir("/proc")
            .into_iter()
            .flatten()
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
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

/// The folders of `ip netns`, Docker and rootless engines, and others that an engine told
/// of, with what was found in them. Looking at each file again takes long where there are
/// many; that nothing has come or gone is known by the folders themselves and, as files
/// that lead to namespaces are mounts, by the mounts.
pub struct Folders {
    mounts: Option<File>,
    scan: Rc<Scan>,
    /// In which state the folders were, each with its path.
    stamps: Vec<(PathBuf, Option<Stamp>)>,
    /// When they were looked into; `None` where it says nothing about the next time.
    at: Option<Instant>,
}

/// What a folder is and when something in it was made, removed or renamed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    place: (u64, u64),
    modified: SystemTime,
}

impl Stamp {
    fn of(folder: &Path) -> Option<Self> {
        let metadata = fs::metadata(folder).ok()?;
        Some(Self {
            place: (metadata.dev(), metadata.ino()),
            modified: metadata.modified().ok()?,
        })
    }

    /// Whether what happens from `now` on gives another stamp: clocks of file systems
    /// are coarse.
    fn is_certain(&self, now: SystemTime) -> bool {
        let age = now.duration_since(self.modified);
        age.is_ok_and(|age| age > COARSE)
    }
}

impl Default for Folders {
    fn default() -> Self {
        Self {
            mounts: File::open("/proc/self/mountinfo").ok(),
            scan: Rc::default(),
            stamps: Vec::new(),
            at: None,
        }
    }
}

impl Folders {
    /// What is in the folders, `sandboxes` among them.
    pub fn scan(&mut self, sandboxes: &[PathBuf]) -> Rc<Scan> {
        if self.differ(sandboxes) {
            let now = SystemTime::now();
            let scan = Scan::of(self.stamps.iter().map(|(folder, _)| folder.as_path()));
            let mut stamps = self.stamps.iter().filter_map(|(_, stamp)| stamp.as_ref());
            let certain = !scan.links && stamps.all(|stamp| stamp.is_certain(now));
            self.at = certain.then(Instant::now);
            self.scan = Rc::new(scan);
        }
        self.scan.clone()
    }

    /// What was in the folders when they were last looked into.
    #[must_use]
    pub fn found(&self) -> &Scan {
        &self.scan
    }

    /// Whether something else may be in the folders than what was [found](Self::found).
    pub fn differ(&mut self, sandboxes: &[PathBuf]) -> bool {
        // What happens from here on is noticed the next time.
        let mounted = self.mounted();
        let users = entries(Path::new(USERS)).into_iter();
        let stamps: Vec<_> = [NAMED, DOCKER_SANDBOXES]
            .into_iter()
            .map(PathBuf::from)
            .chain(users.map(|(user, _)| user.join("netns")))
            .chain(sandboxes.iter().cloned())
            .map(|folder| {
                let stamp = Stamp::of(&folder);
                (folder, stamp)
            })
            .collect();
        if mounted || stamps != self.stamps {
            self.at = None;
            self.stamps = stamps;
        }
        self.at.is_none_or(|at| at.elapsed() >= AGAIN)
    }

    /// Whether something was mounted or unmounted since the last call.
    /// <https://github.com/torvalds/linux/blob/v6.18/fs/proc_namespace.c>
    fn mounted(&self) -> bool {
        let Some(mounts) = &self.mounts else {
            return true;
        };
        let mut ready = [PollFd::new(mounts.as_fd(), PollFlags::POLLPRI)];
        poll(&mut ready, PollTimeout::ZERO) != Ok(0)
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

/// The paths in `folder`, sorted, and whether each is a link; none where it is not there.
fn entries(folder: &Path) -> Vec<(PathBuf, bool)> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    let is_link = |entry: &DirEntry| entry.file_type().is_ok_and(|kind| kind.is_symlink());
    let mut paths: Vec<(PathBuf, bool)> = entries
        .flatten()
        .map(|entry| (entry.path(), is_link(&entry)))
        .collect();
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
