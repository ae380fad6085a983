//! Pinned links without aya's types, which lend nobody their descriptors.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use nix::libc;

/// `BPF_OBJ_GET` of `enum bpf_cmd`.
/// <https://github.com/torvalds/linux/blob/v6.18/include/uapi/linux/bpf.h>
const BPF_OBJ_GET: libc::c_long = 7;
/// `BPF_LINK_DETACH`, since Linux 5.9.
const BPF_LINK_DETACH: libc::c_long = 34;

/// Takes the program of the link that is pinned at `path` off, before this returns.
/// Without its pin and descriptors a link ends in the kernel's own time, and two
/// programs would count what passes meanwhile.
///
/// # Errors
/// Where there is none, or what it hung on is gone.
pub(super) fn detach(path: &Path) -> io::Result<()> {
    let link = get(path)?;
    /// The member of `union bpf_attr`.
    #[repr(C)]
    struct Detach {
        link_fd: u32,
        padding: u32,
    }
    let attributes = Detach {
        link_fd: u32::try_from(link.as_raw_fd()).map_err(io::Error::other)?,
        padding: 0,
    };
    call(BPF_LINK_DETACH, &attributes).map(drop)
}

fn get(path: &Path) -> io::Result<OwnedFd> {
    /// The member of `union bpf_attr`.
    #[repr(C)]
    struct Get {
        path: u64,
        fd: u32,
        flags: u32,
    }
    let path = CString::new(path.as_os_str().as_bytes())?;
    let attributes = Get {
        path: path.as_ptr() as u64,
        fd: 0,
        flags: 0,
    };
    let fd = call(BPF_OBJ_GET, &attributes)?;
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    #[expect(unsafe_code, reason = "the kernel gives a number")]
    // SAFETY: it is a new descriptor, and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[expect(unsafe_code, reason = "aya has no call for it")]
fn call<T>(command: libc::c_long, attributes: &T) -> io::Result<libc::c_long> {
    // SAFETY: the attributes are as long as we say, and what they point to lives
    // through the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            &raw const *attributes,
            size_of::<T>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}
