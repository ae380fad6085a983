//! Network namespaces as files: opening, telling apart, working inside.
//!
//! An open file of a namespace, or a socket made in it, keeps the namespace
//! alive. netobs must not be the reason why one does not end, so nothing here
//! is held longer than a visit takes.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    path::Path,
    thread,
};

use nix::{
    sched::{CloneFlags, setns},
    sys::{
        socket::{AddressFamily, SockFlag, SockType, getsockopt, socket},
        statfs::{FsType, fstatfs},
    },
};

/// `NSFS_MAGIC`.
/// <https://github.com/torvalds/linux/blob/v6.18/include/uapi/linux/magic.h>
const NSFS_MAGIC: i64 = 0x6e73_6673;

/// The namespace of this thread.
pub const OWN: &str = "/proc/thread-self/ns/net";

mod sockopt {
    use nix::{getsockopt_impl, libc, sockopt_impl};

    sockopt_impl!(
        /// `SO_NETNS_COOKIE`, since Linux 5.14.
        NetnsCookie, GetOnly, libc::SOL_SOCKET, libc::SO_NETNS_COOKIE, u64);
}

/// Opens the namespace file at `path`.
///
/// # Errors
/// Where it cannot be opened or is no namespace file (`InvalidInput`).
pub fn open(path: &Path) -> io::Result<File> {
    let file = File::open(path)?;
    if fstatfs(&file)?.filesystem_type() != FsType(NSFS_MAGIC) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not a namespace file",
        ));
    }
    Ok(file)
}

/// The inode of an open namespace file.
///
/// # Errors
/// Where it cannot be read.
pub fn inode(file: &File) -> io::Result<u64> {
    Ok(file.metadata()?.ino())
}

/// The cookie of the namespace that this thread is in.
///
/// # Errors
/// Where the kernel is older than 5.14.
pub fn cookie() -> io::Result<u64> {
    let socket: OwnedFd = socket(
        AddressFamily::Unix,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    Ok(getsockopt(&socket, sockopt::NetnsCookie)?)
}

/// Runs `work` in the namespace `file` on a thread that then ends, so that no
/// thread of ours is ever left in the wrong namespace.
///
/// # Errors
/// Where the thread cannot be started or may not enter.
pub fn within<T: Send>(file: &File, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    thread::scope(|scope| {
        thread::Builder::new()
            .name("netns-visit".to_owned())
            .spawn_scoped(scope, || {
                setns(file.as_fd(), CloneFlags::CLONE_NEWNET)?;
                Ok(work())
            })?
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
