//! What this process may have at once: open files and locked memory.
//!
//! Each interface that is observed by TCX holds two descriptors, so that a
//! thousand namespaces need more than most machines give a process unasked.

use std::{error::Error, fmt, fs::File, io, os::fd::AsRawFd as _};

use log::debug;
use nix::{
    libc::{EMFILE, ENFILE},
    sys::resource::{RLIM_INFINITY, Resource, getrlimit, rlim_t, setrlimit},
};

/// Descriptors that stay free for looking into namespaces, for /proc and for the
/// engine: without them nothing would be found any more.
pub const RESERVE: u64 = 24;
/// Descriptors that a look into a namespace, or at /proc, takes for a moment.
const VISIT: u64 = 4;
/// Descriptors that netobs holds itself: programs, maps, sockets.
const OWN: u64 = 50;
/// What is advised, unless that is too little.
const AMPLE: rlim_t = 65_536;

/// Raises the limits as far as this process may. To be called while it still has
/// its capabilities.
pub fn raise() {
    if let Err(error) = raise_files() {
        debug!("RLIMIT_NOFILE: {error}");
    }
    if let Err(error) = raise_memory() {
        debug!("RLIMIT_MEMLOCK: {error}");
    }
}

fn raise_files() -> nix::Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(())
}

/// Before Linux 5.11 maps and programs are locked memory; since then nobody minds.
/// <https://github.com/torvalds/linux/blob/v5.10/kernel/bpf/syscall.c>
fn raise_memory() -> nix::Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_MEMLOCK)?;
    if soft == RLIM_INFINITY {
        return Ok(());
    }
    setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY)
        .or_else(|_| setrlimit(Resource::RLIMIT_MEMLOCK, hard, hard))
}

/// How many files this process may have open; `None` where that cannot be told.
#[must_use]
pub fn files() -> Option<u64> {
    getrlimit(Resource::RLIMIT_NOFILE)
        .ok()
        .map(|(soft, _)| soft)
}

/// How many bytes programs and maps may take on the kernel `release`, in a
/// sentence with what to do about it; `None` where this process has no such limit.
#[must_use]
pub fn memory(release: &str) -> Option<String> {
    let (soft, _) = getrlimit(Resource::RLIMIT_MEMLOCK).ok()?;
    (locks_memory(release) && soft != RLIM_INFINITY).then(|| {
        format!(
            "before Linux 5.11 programs and maps are locked memory, of which this process may have \
             {soft} bytes (RLIMIT_MEMLOCK); start netobs with more by `ulimit -l unlimited` as root \
             or by LimitMEMLOCK=infinity in its systemd unit"
        )
    })
}

/// Whether the kernel `release` counts programs and maps as locked memory.
fn locks_memory(release: &str) -> bool {
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map_while(|number| number.parse::<u32>().ok());
    match (numbers.next(), numbers.next()) {
        (Some(major), Some(minor)) => (major, minor) < (5, 11),
        _ => false,
    }
}

/// Descriptors in use, as good as the lowest free one tells it.
///
/// # Errors
/// Where none is free.
pub fn in_use() -> io::Result<u64> {
    let probe = File::open("/")?;
    Ok(u64::try_from(probe.as_raw_fd()).unwrap_or(0))
}

/// Makes sure that a namespace can be looked into.
///
/// # Errors
/// Where not even that many files can be opened.
pub fn visit() -> Result<(), Short> {
    has_room(VISIT)
}

/// Makes sure that `count` descriptors more can be held for long, with
/// [`RESERVE`] left.
///
/// # Errors
/// Where they cannot.
pub fn room(count: u64) -> Result<(), Short> {
    has_room(count.saturating_add(RESERVE))
}

fn has_room(count: u64) -> Result<(), Short> {
    let Some(limit) = files() else {
        return Ok(());
    };
    match in_use() {
        Ok(used) if fits(used, count, limit) => Ok(()),
        Err(error) if error.raw_os_error() == Some(ENFILE) => Err(Short::Machine),
        Ok(_) | Err(_) => Err(Short::Process(limit)),
    }
}

/// For about how many interfaces `limit` open files are enough, beside what
/// netobs has open itself.
#[must_use]
pub fn interfaces(limit: u64) -> u64 {
    limit.saturating_sub(OWN + RESERVE) / 2
}

fn fits(used: u64, count: u64, limit: u64) -> bool {
    used.saturating_add(count) <= limit
}

/// No room for more open files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Short {
    /// In this process, which may have so many.
    Process(u64),
    /// On this machine.
    Machine,
}

impl fmt::Display for Short {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process(limit) => {
                let ample = ample(*limit);
                write!(
                    f,
                    "too many open files: this process may have {limit} (RLIMIT_NOFILE), and each \
                     interface takes two; start netobs with more by `ulimit -n {ample}` or by \
                     LimitNOFILE={ample} in its systemd unit"
                )
            }
            Self::Machine => f.write_str(
                "too many open files on this machine: `sysctl fs.file-max` says how many there may \
                 be, and sets it",
            ),
        }
    }
}

impl Error for Short {}

/// How many open files to ask for where `limit` are not enough.
#[must_use]
pub fn ample(limit: u64) -> u64 {
    AMPLE.max(limit.saturating_mul(2))
}

/// The limit that `error` is about, if it is about one.
#[must_use]
pub fn behind(error: &(dyn Error + 'static)) -> Option<Short> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(short) = error.downcast_ref::<Short>() {
            return Some(*short);
        }
        let code = error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::raw_os_error)
            .or_else(|| error.downcast_ref::<nix::Error>().map(|e| *e as i32));
        match code {
            Some(EMFILE) => return Some(Short::Process(files().unwrap_or(0))),
            Some(ENFILE) => return Some(Short::Machine),
            _ => {}
        }
        next = error.source();
    }
    None
}

/// `error` in words, with what to do where a limit is behind it.
#[must_use]
pub fn told(error: &(dyn Error + 'static)) -> String {
    behind(error).map_or_else(|| error.to_string(), |short| short.to_string())
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::*;

    #[test]
    fn room_ends_at_the_limit() {
        assert!(fits(10, 2, 12));
        assert!(!fits(10, 2, 11));
        // Lowered while more are open.
        assert!(!fits(10, 2, 3));
        assert!(fits(10, 2, RLIM_INFINITY));
    }

    #[test]
    fn a_reserve_is_kept() {
        let limit = files().unwrap_or(0);
        assert_eq!(room(1), Ok(()));
        assert_eq!(room(limit - RESERVE), Err(Short::Process(limit)));
        assert_eq!(has_room(limit - RESERVE), Ok(()));
    }

    #[test]
    fn a_limit_is_found_behind_other_words_and_told_with_advice() {
        let bare: Result<(), io::Error> = Err(io::Error::from_raw_os_error(EMFILE));
        let error = bare.context("look into it").unwrap_err();
        assert!(matches!(behind(error.as_ref()), Some(Short::Process(_))));
        let words = told(error.as_ref());
        for word in ["RLIMIT_NOFILE", "ulimit -n", "LimitNOFILE="] {
            assert!(words.contains(word), "{words}");
        }
        let machine = io::Error::from_raw_os_error(ENFILE);
        assert!(told(&machine).contains("fs.file-max"));
        let other = io::Error::from_raw_os_error(nix::libc::ENOENT);
        assert_eq!(behind(&other), None);
        assert_eq!(told(&other), other.to_string());
    }

    #[test]
    fn old_kernels_count_locked_memory() {
        for (release, counts) in [
            ("5.10.0-30-amd64", true),
            ("4.19", true),
            ("5.11.0", false),
            ("5.15.0-91-generic", false),
            ("6.18.44", false),
            ("unknown", false),
        ] {
            assert_eq!(locks_memory(release), counts, "{release}");
        }
    }

    #[test]
    fn more_is_advised_than_there_is() {
        assert_eq!(ample(64), AMPLE);
        assert_eq!(ample(100_000), 200_000);
    }
}
