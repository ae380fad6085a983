//! Sockets that netlink tells of changes, and what it tells.

use std::{
    io::{self, IoSliceMut},
    os::fd::AsRawFd as _,
};

use netlink_packet_core::NetlinkMessage;
use netlink_packet_route::RouteNetlinkMessage;
use nix::{
    cmsg_space, libc,
    sys::socket::{
        ControlMessageOwned, MsgFlags, NetlinkAddr, recvmsg, setsockopt,
        sockopt::{RcvBuf, RcvBufForce},
    },
};
use rtnetlink::{
    MulticastGroup,
    sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE},
};

/// Room for messages that wait to be read: a routing daemon changes thousands of
/// routes at once, an engine dozens of links.
const BUFFER_BYTES: usize = 4 << 20;
/// Longest datagram: the kernel's are no longer than a page or two.
pub(super) const DATAGRAM_BYTES: usize = 64 << 10;

/// A socket in the namespace of this thread that hears of `groups`.
///
/// # Errors
/// Where it cannot be made.
pub(super) fn subscribe(groups: &[MulticastGroup]) -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    let mask = groups
        .iter()
        .fold(0, |mask, group| mask | 1 << (*group as u32 - 1));
    socket.bind(&SocketAddr::new(0, mask))?;
    // Beyond the system's limit where we may, else up to it.
    setsockopt(&socket, RcvBufForce, &BUFFER_BYTES)
        .or_else(|_| setsockopt(&socket, RcvBuf, &BUFFER_BYTES))?;
    Ok(socket)
}

/// Reads one datagram, and whose it is: the id that our namespace has given to another
/// one, `None` for our own.
///
/// # Errors
/// As of recvmsg(2): ENOBUFS where the kernel dropped some.
pub(super) fn receive(
    socket: &Socket,
    buffer: &mut [u8],
    flags: MsgFlags,
) -> io::Result<(usize, Option<i32>)> {
    let mut control = cmsg_space!(i32);
    let mut slices = [IoSliceMut::new(buffer)];
    let message =
        recvmsg::<NetlinkAddr>(socket.as_raw_fd(), &mut slices, Some(&mut control), flags)?;
    let nsid = message.cmsgs()?.find_map(|control| match control {
        ControlMessageOwned::Unknown(control)
            if control.cmsg_header.cmsg_level == libc::SOL_NETLINK
                && control.cmsg_header.cmsg_type == libc::NETLINK_LISTEN_ALL_NSID =>
        {
            let bytes = control.data_bytes.get(..4)?;
            Some(i32::from_ne_bytes(bytes.try_into().ok()?))
        }
        _ => None,
    });
    Ok((message.bytes, nsid))
}

/// The messages in a datagram; `None` for what cannot be read, with all behind it.
pub(super) fn messages(
    mut datagram: &[u8],
) -> impl Iterator<Item = Option<NetlinkMessage<RouteNetlinkMessage>>> {
    std::iter::from_fn(move || {
        if datagram.is_empty() {
            return None;
        }
        let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(datagram).ok();
        // Where it cannot be read, its length may be nonsense too.
        let len = message
            .as_ref()
            .map_or(datagram.len(), |message| message.header.length as usize);
        // Messages are aligned to four bytes.
        let next = len.max(1).next_multiple_of(4).min(datagram.len());
        datagram = &datagram[next..];
        Some(message)
    })
}
