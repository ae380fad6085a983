//! Pinned links without aya's types, which lend nobody their descriptors, and what
//! hangs on an interface without its name, which aya resolves by a socket each time.

use std::{
    ffi::CString,
    fs, io,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
    thread,
    time::{Duration, Instant},
};

use nix::libc;

/// `BPF_OBJ_GET` of `enum bpf_cmd`.
/// <https://github.com/torvalds/linux/blob/v6.18/include/uapi/linux/bpf.h>
const BPF_OBJ_GET: libc::c_long = 7;
/// `BPF_OBJ_GET_INFO_BY_FD`.
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
/// `BPF_PROG_QUERY`.
const BPF_PROG_QUERY: libc::c_long = 16;
/// `BPF_LINK_GET_NEXT_ID`, since Linux 5.8.
const BPF_LINK_GET_NEXT_ID: libc::c_long = 31;
/// `BPF_TCX_INGRESS` and `BPF_TCX_EGRESS` of `enum bpf_attach_type`, since Linux 6.6.
const BPF_TCX: [u32; 2] = [46, 47];
/// `BPF_MPROG_MAX`: no hook has more programs.
/// <https://github.com/torvalds/linux/blob/v6.18/include/linux/bpf_mprog.h>
const MOST_PROGRAMS: usize = 64;
/// `BPF_LINK_DETACH`, since Linux 5.9.
const BPF_LINK_DETACH: libc::c_long = 34;

/// How long a link may take to end.
const PATIENCE: Duration = Duration::from_secs(1);
/// Between its end and that of its last run.
const GRACE: Duration = Duration::from_millis(2);

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

/// Removes the pin of a link that cannot be detached, as those of tracepoints, and
/// waits until it has ended.
///
/// # Errors
/// Where the pin cannot be removed.
pub(super) fn end(path: &Path) -> io::Result<()> {
    let id = match get(path) {
        Ok(link) => id(&link)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    fs::remove_file(path)?;
    let started = Instant::now();
    while exists(id) && started.elapsed() < PATIENCE {
        thread::sleep(Duration::from_millis(1));
    }
    thread::sleep(GRACE);
    Ok(())
}

fn id(link: &OwnedFd) -> io::Result<u32> {
    /// The beginning of `struct bpf_link_info`.
    #[repr(C)]
    struct Info {
        kind: u32,
        id: u32,
    }
    /// The member of `union bpf_attr`.
    #[repr(C)]
    struct Ask {
        bpf_fd: u32,
        info_len: u32,
        info: u64,
    }
    let mut info = Info { kind: 0, id: 0 };
    let mut attributes = Ask {
        bpf_fd: u32::try_from(link.as_raw_fd()).map_err(io::Error::other)?,
        info_len: u32::try_from(size_of::<Info>()).map_err(io::Error::other)?,
        info: &raw mut info as u64,
    };
    call(BPF_OBJ_GET_INFO_BY_FD, &mut attributes)?;
    Ok(info.id)
}

/// Whether there is a link with this id.
fn exists(id: u32) -> bool {
    /// The member of `union bpf_attr`; the kernel writes `next_id`.
    #[repr(C)]
    struct Next {
        start_id: u32,
        next_id: u32,
        flags: u32,
    }
    let mut attributes = Next {
        start_id: id.saturating_sub(1),
        next_id: 0,
        flags: 0,
    };
    call(BPF_LINK_GET_NEXT_ID, &mut attributes).is_ok() && attributes.next_id == id
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
