//! The folder on the BPF file system in which programs, links and maps live on
//! while no netobs runs (`--pin`).
//!
//! ```text
//! netobs/                       what is in our own namespace, and route lookups
//!     NETOBS_*                  maps
//!     netobs_*                  programs
//!     links/26-ingress          a link per interface index and hook
//!     links/netobs_*            a link per program that hangs elsewhere
//!     inside/4711/              the same for interfaces that are observed from
//!                               inside the namespace with this cookie
//! ```

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, ErrorKind},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::SystemTime,
};

use anyhow::{Context as _, bail, ensure};
use aya::{
    Pod,
    maps::{Array, MapData},
};
use log::debug;
use netobs_common::{ABI_VERSION, Meta, names, routes};
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    libc,
    sys::statfs::{BPF_FS_MAGIC, statfs},
    unistd::geteuid,
};
use sha2::{Digest as _, Sha256};

use super::{attach::HOOKS, object, raw_links};

/// Where pins are unless `--pin-path` says otherwise.
pub const USUAL: &str = "/sys/fs/bpf/netobs";

const LINKS: &str = "links";
const INSIDE: &str = "inside";
/// Behind the name of what is about to take that name.
const NEW: &str = "-new";
/// How many foreign files an error names.
const NAMED: usize = 5;

/// Everything that a netobs of this version pins by name.
const NAMES: [&str; 27] = [
    names::MAP_SLOTS,
    names::MAP_SLOTS_FAR,
    names::MAP_COUNTERS,
    names::MAP_OWNERS,
    names::MAP_NETNS,
    names::MAP_META,
    names::MAP_SERIES,
    names::MAP_STRAY,
    names::PROG_INGRESS,
    names::PROG_EGRESS,
    routes::names::MAP_LOOKUPS,
    routes::names::MAP_TALLIES,
    routes::names::MAP_HITS,
    routes::names::MAP_FAILURES,
    routes::names::MAP_SENDERS,
    routes::names::MAP_BEHALF,
    routes::names::MAP_BEHALF_TALLIES,
    routes::names::MAP_WORK,
    routes::names::MAP_ASTRAY,
    routes::names::PROG_IPV4,
    routes::names::PROG_IPV6,
    routes::names::PROG_DROP,
    routes::names::PROG_RECEIVE,
    routes::names::PROG_CONNECT4,
    routes::names::PROG_CONNECT6,
    routes::names::PROG_SENDMSG4,
    routes::names::PROG_SENDMSG6,
];

#[repr(transparent)]
#[derive(Clone, Copy)]
struct Bits(Meta);

#[expect(unsafe_code, reason = "aya wants to know that a value is plain bytes")]
// SAFETY: `repr(C)`, integers only, no padding (asserted in netobs-common).
unsafe impl Pod for Bits {}

/// The folder, ours alone while this lives.
#[derive(Debug)]
pub struct PinFolder {
    part: Part,
    _lock: Flock<File>,
}

/// What there is to remove.
#[derive(Debug)]
pub enum Found {
    /// No folder.
    Nothing,
    /// One that a running netobs has.
    InUse,
    /// One that was left.
    Left(PinFolder),
}

/// The folder of one set of maps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    path: PathBuf,
}

impl PinFolder {
    /// Opens the folder at `path`, which is made where it is missing, for the
    /// interfaces of the namespace with the cookie `scope`.
    ///
    /// # Errors
    /// Where it is not on a BPF file system, another netobs uses it, or holds what a
    /// netobs of this version has not made. Nothing in it is changed.
    pub fn open(path: &Path, scope: u64) -> anyhow::Result<Self> {
        let folder = Self::make_and_lock(path)?.with_context(|| {
            format!(
                "{} is in use by another netobs: --pin-path gives this one a folder of its own",
                path.display()
            )
        })?;
        folder.part.survey(Some(scope))?;
        for (cookie, part) in folder.inside()? {
            part.survey(Some(cookie))?;
        }
        Ok(folder)
    }

    /// Opens it to remove it.
    ///
    /// # Errors
    /// As [`open`](Self::open), but for another version, and for one in use.
    pub fn find(path: &Path) -> anyhow::Result<Found> {
        let there = path
            .try_exists()
            .with_context(|| format!("look at {}", path.display()))?;
        if !there {
            return Ok(Found::Nothing);
        }
        let Some(folder) = Self::make_and_lock(path)? else {
            return Ok(Found::InUse);
        };
        folder.part.only_known()?;
        for (_, part) in folder.inside()? {
            part.only_known()?;
        }
        Ok(Found::Left(folder))
    }

    /// `None`: another one has it.
    fn make_and_lock(path: &Path) -> anyhow::Result<Option<Self>> {
        let name = path.file_name().unwrap_or_default();
        let parent = path
            .parent()
            // The file system keeps names with dots for itself.
            .filter(|_| path.is_absolute() && !name.to_string_lossy().contains('.'))
            .with_context(|| {
                format!(
                    "{}: must be an absolute path, and the folder's name without dots, such as {USUAL}",
                    path.display()
                )
            })?;
        let on = statfs(parent).with_context(|| format!("look at {}", parent.display()))?;
        ensure!(
            on.filesystem_type() == BPF_FS_MAGIC,
            "{} is not on a BPF file system: `mount -t bpf bpf /sys/fs/bpf` makes one",
            parent.display()
        );
        make_folder(path)?;
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW)
            .open(path)
            .with_context(|| format!("open {}", path.display()))?;
        let found = file.metadata()?;
        ensure!(
            found.uid() == geteuid().as_raw() && found.mode() & 0o022 == 0,
            "{} is not ours alone (owner {}, mode {:o}) and stays as it is: --pin-path makes a new \
             folder beside it",
            path.display(),
            found.uid(),
            found.mode() & 0o7777
        );
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            // Whoever removes it had the lock until now.
            Ok(_) if fs::metadata(path).map_or(true, |now| now.ino() != found.ino()) => {
                bail!("{} is being removed: try again", path.display())
            }
            Ok(lock) => Ok(Some(Self {
                part: Part {
                    path: path.to_owned(),
                },
                _lock: lock,
            })),
            Err((_, Errno::EWOULDBLOCK)) => Ok(None),
            Err((_, error)) => Err(error).with_context(|| format!("lock {}", path.display())),
        }
    }

    /// For what is in our own namespace.
    #[must_use]
    pub fn part(&self) -> &Part {
        &self.part
    }

    /// For what is inside other namespaces, by their cookies.
    ///
    /// # Errors
    /// For a folder that is none of ours.
    pub fn inside(&self) -> anyhow::Result<Vec<(u64, Part)>> {
        entries(&self.part.path.join(INSIDE))?
            .into_iter()
            .map(|name| {
                let cookie = name.parse().ok().with_context(|| {
                    foreign(&self.part.path.join(INSIDE), std::slice::from_ref(&name))
                })?;
                Ok((cookie, self.part.inside(cookie)))
            })
            .collect()
    }

    /// The kernel's ids of the maps by which programs are told to be of this folder.
    ///
    /// # Errors
    /// Where what is inside other namespaces cannot be read.
    pub fn maps(&self) -> anyhow::Result<Vec<u32>> {
        let mut parts = vec![self.part.clone()];
        parts.extend(self.inside()?.into_iter().map(|(_, part)| part));
        Ok(parts
            .iter()
            .filter_map(|part| object::slots_id(part).ok())
            .collect())
    }

    /// Removes everything. What hangs by a link is off after that.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub fn remove(self) -> anyhow::Result<()> {
        for (_, part) in self.inside()? {
            part.remove()?;
        }
        remove_folder(&self.part.path.join(INSIDE))?;
        self.part.remove()
    }
}

impl Part {
    /// The part for the interfaces inside the namespace with `cookie`.
    #[must_use]
    pub fn inside(&self, cookie: u64) -> Self {
        Self {
            path: self.path.join(INSIDE).join(cookie.to_string()),
        }
    }

    /// The folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the folders that are missing.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub fn make(&self) -> anyhow::Result<()> {
        if let Some(parent) = self.path.parent()
            && parent.ends_with(INSIDE)
        {
            make_folder(parent)?;
        }
        make_folder(&self.path)?;
        make_folder(&self.path.join(LINKS))
    }

    /// Where the map or program `name` is pinned.
    #[must_use]
    pub fn object(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Where what is to become `name` is pinned meanwhile.
    #[must_use]
    pub fn coming(&self, name: &str) -> PathBuf {
        self.path.join(format!("{name}{NEW}"))
    }

    /// Where the link of a program that hangs on no interface is pinned.
    #[must_use]
    pub fn link(&self, program: &str) -> PathBuf {
        self.path.join(LINKS).join(program)
    }

    /// Where the link of the interface `ifindex` and one of its hooks is pinned.
    #[must_use]
    pub fn interface_link(&self, ifindex: u32, hook: &str) -> PathBuf {
        self.path.join(LINKS).join(format!("{ifindex}-{hook}"))
    }

    /// What the maps here are; `None` where there are none yet.
    ///
    /// # Errors
    /// Where the map that says it is another's.
    pub fn meta(&self) -> anyhow::Result<Option<Meta>> {
        if !self.object(names::MAP_META).exists() {
            return Ok(None);
        }
        Ok(Some(self.meta_map()?.get(&0, 0)?.0))
    }

    /// Writes down which object follows route lookups.
    ///
    /// # Errors
    /// Where there is no such map.
    pub(super) fn set_lookups(&self, lookups: [u8; 32]) -> anyhow::Result<()> {
        let mut map = self.meta_map()?;
        let meta = map.get(&0, 0)?.0;
        Ok(map.set(0, Bits(Meta { lookups, ..meta }), 0)?)
    }

    fn meta_map(&self) -> anyhow::Result<Array<MapData, Bits>> {
        let map = pinned(&self.object(names::MAP_META), 4, size_of::<Meta>())?;
        Ok(aya::maps::Map::from_map_data(map)?.try_into()?)
    }

    /// Refuses what this version of netobs cannot go on with.
    fn survey(&self, scope: Option<u64>) -> anyhow::Result<()> {
        self.only_known()?;
        let Some(meta) = self.meta()? else {
            return Ok(());
        };
        let path = self.path.display();
        ensure!(
            meta.abi == 0 || meta.abi == ABI_VERSION,
            "{path} is of another version of netobs (maps of version {}, this is {ABI_VERSION}) and \
             stays as it is: `netobs clean` removes it, --pin-path makes a new one beside it",
            meta.abi
        );
        if let Some(scope) = scope
            && meta.abi != 0
        {
            ensure!(
                meta.scope == scope,
                "{path} is of a netobs in another network namespace (cookie {}, this is {scope}): \
                 --pin-path gives this one a folder of its own",
                meta.scope
            );
        }
        object::pinned_capacity(self).map(drop)
    }

    fn only_known(&self) -> anyhow::Result<()> {
        let strangers: Vec<String> = entries(&self.path)?
            .into_iter()
            .filter(|name| {
                let plain = name.strip_suffix(NEW).unwrap_or(name);
                !is_known(plain) && name != LINKS && name != INSIDE
            })
            .collect();
        ensure!(strangers.is_empty(), foreign(&self.path, &strangers));
        let links = self.path.join(LINKS);
        let strangers: Vec<String> = entries(&links)?
            .into_iter()
            .filter(|name| !is_known(name) && !is_interface_link(name))
            .collect();
        ensure!(strangers.is_empty(), foreign(&links, &strangers));
        Ok(())
    }

    /// Removes everything of this part but what is inside other namespaces.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub fn remove(&self) -> anyhow::Result<()> {
        // Without it the rest is nothing to go on with.
        remove_file(&self.object(names::MAP_META))?;
        for folder in [&self.path.join(LINKS), &self.path] {
            for name in entries(folder)? {
                let path = folder.join(&name);
                if !path.is_dir() {
                    // Off before this returns; links of tracepoints cannot be detached, and
                    // what is no link neither.
                    if folder.ends_with(LINKS)
                        && let Err(error) = raw_links::detach(&path)
                    {
                        debug!("{}: {error}", path.display());
                    }
                    remove_file(&path)?;
                }
            }
            remove_folder(folder)?;
        }
        Ok(())
    }
}

/// The map pinned at `path`, which must have keys and values of these sizes.
///
/// # Errors
/// Where it is missing, or another's.
pub(super) fn pinned(path: &Path, key: usize, value: usize) -> anyhow::Result<MapData> {
    let map = MapData::from_pin(path).with_context(|| format!("open {}", path.display()))?;
    let info = map.info()?;
    let found = (info.key_size() as usize, info.value_size() as usize);
    if found != (key, value) {
        bail!(
            "{} is of another version of netobs, or not its own (keys of {} bytes and values of {}, \
             not {key} and {value}), and stays as it is: --pin-path makes a new folder beside it",
            path.display(),
            found.0,
            found.1
        );
    }
    Ok(map)
}

/// What tells one object with its settings from another.
#[must_use]
pub(super) fn digest(object: &[u8], settings: &[u64]) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(object);
    for setting in settings {
        hash.update(setting.to_le_bytes());
    }
    hash.finalize().into()
}

/// `time` in nanoseconds since 1970.
pub(crate) fn since_1970(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| {
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    })
}

/// Removes `path`; that there is none is fine.
///
/// # Errors
/// Where the kernel refuses.
pub(super) fn remove_file(path: &Path) -> anyhow::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", path.display()))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

fn remove_folder(path: &Path) -> anyhow::Result<()> {
    match fs::remove_dir(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", path.display()))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

fn make_folder(path: &Path) -> anyhow::Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
            Err(error).with_context(|| format!("make {}", path.display()))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Names in a folder, none where it is missing.
fn entries(folder: &Path) -> anyhow::Result<Vec<String>> {
    let found = match fs::read_dir(folder) {
        Ok(found) => found,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("read {}", folder.display())),
    };
    let names: io::Result<Vec<String>> = found
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect();
    let mut names = names.with_context(|| format!("read {}", folder.display()))?;
    names.sort();
    Ok(names)
}

fn is_known(name: &str) -> bool {
    NAMES.contains(&name)
}

fn is_interface_link(name: &str) -> bool {
    name.split_once('-')
        .is_some_and(|(ifindex, hook)| ifindex.parse::<u32>().is_ok() && HOOKS.contains(&hook))
}

fn foreign(folder: &Path, strangers: &[String]) -> String {
    let mut named = strangers
        .iter()
        .take(NAMED)
        .map(String::as_str)
        .collect::<Vec<_>>()
        .join(", ");
    if strangers.len() > NAMED {
        named.push_str(", ...");
    }
    format!(
        "{} holds what netobs has not made ({named}) and stays as it is: --pin-path makes a new folder \
         beside it",
        folder.display()
    )
}
