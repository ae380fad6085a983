//! Sockets that netlink tells of changes, and what it tells.

use std::io;

use netlink_packet_core::NetlinkMessage;
use netlink_packet_route::RouteNetlinkMessage;
use nix::sys::socket::{
    setsockopt,
    sockopt::{RcvBuf, RcvBufForce},
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
