//! Network namespaces as files: opening, telling apart, working inside.
//!
//! An open file of a namespace, or a socket made in it, keeps the namespace
//! alive. netobs must not be the reason why one does not end, so nothing here
//! is held longer than a visit takes.

use std::{
    fs::{File, OpenOptions},
    io,
    os::{
        fd::{AsFd as _, AsRawFd as _, OwnedFd},
        unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    },
    path::Path,
    thread,
};

use nix::{
    libc,
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
/// What it is comes first: some of these folders are of other users, and to open a
/// FIFO waits for its writer, a device does whatever it does.
///
/// # Errors
/// Where it cannot be opened or is no namespace file (`InvalidInput`).
pub fn open(path: &Path) -> io::Result<File> {
    let place = place(path)?;
    File::open(format!("/proc/thread-self/fd/{}", place.as_raw_fd()))
}

/// The inode of the namespace that the file at `path` leads to; the file is not opened.
///
/// # Errors
/// Those of [`open`].
pub fn inode_at(path: &Path) -> io::Result<u64> {
    inode(&place(path)?)
}

fn place(path: &Path) -> io::Result<File> {
    let place = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH)
        .open(path)?;
    if fstatfs(&place)?.filesystem_type() != FsType(NSFS_MAGIC) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not a namespace file",
        ));
    }
    Ok(place)
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

#[cfg(test)]
mod tests {
    use std::{fs, time::Instant};

    use nix::{sys::stat::Mode, unistd::mkfifo};

    use super::*;

    /// Users have folders of their own where netobs looks for namespaces.
    #[test]
    fn a_fifo_is_no_namespace_and_nothing_to_wait_for() {
        let name = format!("netobs-fifo-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        mkfifo(&path, Mode::S_IRWXU).expect("a fifo");
        let started = Instant::now();
        let error = open(&path).expect_err("a fifo is no namespace");
        fs::remove_file(&path).expect("the fifo goes");
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        assert!(started.elapsed().as_secs() < 5);
    }

    #[test]
    fn our_own_namespace_opens() {
        let file = open(OWN.as_ref()).expect("our own namespace");
        let metadata = fs::metadata("/proc/self/ns/net").expect("our own namespace");
        assert_eq!(inode(&file).ok(), Some(metadata.ino()));
    }
}
