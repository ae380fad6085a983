//! Pinned links without aya's types, which lend nobody their descriptors, and what
//! hangs on an interface without its name, which aya resolves by a socket each time.

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
/// `BPF_PROG_QUERY`.
const BPF_PROG_QUERY: libc::c_long = 16;
/// `BPF_TCX_INGRESS` and `BPF_TCX_EGRESS` of `enum bpf_attach_type`, since Linux 6.6.
const BPF_TCX: [u32; 2] = [46, 47];
/// `BPF_MPROG_MAX`: no hook has more programs.
/// <https://github.com/torvalds/linux/blob/v6.18/include/linux/bpf_mprog.h>
const MOST_PROGRAMS: usize = 64;
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
    let mut attributes = Detach {
        link_fd: u32::try_from(link.as_raw_fd()).map_err(io::Error::other)?,
        padding: 0,
    };
    call(BPF_LINK_DETACH, &mut attributes).map(drop)
}

/// The ids of the programs on the TCX hooks of an interface of this thread's namespace:
/// ingress, egress.
///
/// # Errors
/// Where the kernel knows no TCX or the interface is gone.
pub(super) fn on(ifindex: u32) -> io::Result<[Vec<u32>; 2]> {
    let [ingress, egress] = BPF_TCX;
    Ok([query(ifindex, ingress)?, query(ifindex, egress)?])
}

fn query(ifindex: u32, attach_type: u32) -> io::Result<Vec<u32>> {
    /// The member of `union bpf_attr`.
    #[repr(C)]
    #[derive(Default)]
    struct Query {
        target_ifindex: u32,
        attach_type: u32,
        query_flags: u32,
        attach_flags: u32,
        prog_ids: u64,
        count: u32,
        padding: u32,
        prog_attach_flags: u64,
        link_ids: u64,
        link_attach_flags: u64,
        revision: u64,
    }
    let mut ids = vec![0; MOST_PROGRAMS];
    let mut attributes = Query {
        target_ifindex: ifindex,
        attach_type,
        prog_ids: ids.as_mut_ptr() as u64,
        count: u32::try_from(ids.len()).map_err(io::Error::other)?,
        ..Query::default()
    };
    call(BPF_PROG_QUERY, &mut attributes)?;
    ids.truncate(attributes.count as usize);
    Ok(ids)
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
    let mut attributes = Get {
        path: path.as_ptr() as u64,
        fd: 0,
        flags: 0,
    };
    let fd = call(BPF_OBJ_GET, &mut attributes)?;
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    #[expect(unsafe_code, reason = "the kernel gives a number")]
    // SAFETY: it is a new descriptor, and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[expect(unsafe_code, reason = "aya has no call for it")]
fn call<T>(command: libc::c_long, attributes: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: the attributes are as long as we say, and what they point to lives
    // through the call.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attributes, size_of::<T>()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}
