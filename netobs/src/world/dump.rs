//! Tables of the kernel, read from the beginning to the end. It writes them as they are
//! read: there is nothing to wait for.

use std::{io, os::fd::AsRawFd as _};

use netlink_packet_core::{NLMSG_DONE, NLMSG_ERROR};
use nix::sys::socket::{MsgFlags, recv};
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

/// The kernel fills no more of a buffer.
/// <https://github.com/torvalds/linux/blob/v6.18/net/netlink/af_netlink.c>
const BUFFER_BYTES: usize = 32 << 10;
/// Bytes of `struct nlmsghdr`.
pub(super) const HEADER: usize = 16;

/// Sends `request` in the namespace of this thread and gives each message of the answer
/// to `take`, one at a time: of a thousand interfaces they are large.
///
/// # Errors
/// Where the kernel refuses.
pub(super) fn messages(request: &[u8], mut take: impl FnMut(&[u8])) -> io::Result<()> {
    let socket = Socket::new(NETLINK_ROUTE)?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(request, 0)?;
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let len = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        if datagram(&buffer[..len], &mut take)? {
            return Ok(());
        }
    }
}

/// `true` with the last one.
pub(super) fn datagram(mut bytes: &[u8], take: &mut impl FnMut(&[u8])) -> io::Result<bool> {
    while let Some((message, rest)) = split(bytes, HEADER, u32_at(bytes, 0)) {
        match u16_at(message, 4) {
            Some(NLMSG_DONE | NLMSG_ERROR) => {
                return match u32_at(message, HEADER).map(u32::cast_signed) {
                    Some(error) if error < 0 => {
                        Err(io::Error::from_raw_os_error(error.saturating_neg()))
                    }
                    _ => Ok(true),
                };
            }
            _ => take(message),
        }
        bytes = rest;
    }
    Ok(false)
}

/// The first `len` bytes, at least `least`, and what follows them at the next multiple of
/// four.
pub(super) fn split(bytes: &[u8], least: usize, len: Option<u32>) -> Option<(&[u8], &[u8])> {
    let len = len? as usize;
    let first = bytes.get(..len).filter(|_| len >= least)?;
    let next = len.next_multiple_of(4).min(bytes.len());
    Some((first, &bytes[next..]))
}

pub(super) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}
