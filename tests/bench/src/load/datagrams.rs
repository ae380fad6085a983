//! Datagrams by a socket that is not connected: the kernel looks a route up for each.

use std::{
    io::IoSlice,
    net::{SocketAddrV4, UdpSocket},
    os::fd::AsRawFd as _,
};

use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrIn, sendmmsg};

use super::Load;

const BATCH: usize = 64;
const PAYLOAD: [u8; 18] = [0; 18];

/// Sends to one address.
pub(crate) struct Datagrams {
    socket: UdpSocket,
    to: SockaddrIn,
    headers: MultiHeaders<SockaddrIn>,
}

impl Datagrams {
    pub(crate) fn to(address: SocketAddrV4) -> anyhow::Result<Self> {
        Ok(Self {
            socket: UdpSocket::bind("0.0.0.0:0")?,
            to: address.into(),
            headers: MultiHeaders::preallocate(BATCH, None),
        })
    }
}

impl Load for Datagrams {
    fn some(&mut self) -> anyhow::Result<u64> {
        let slices = [[IoSlice::new(&PAYLOAD)]; BATCH];
        let sent = sendmmsg(
            self.socket.as_raw_fd(),
            &mut self.headers,
            &slices,
            [Some(self.to); BATCH],
            [],
            MsgFlags::empty(),
        )?;
        Ok(sent.count() as u64)
    }
}
