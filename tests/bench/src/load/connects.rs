//! Lookups and nothing else: each `connect()` of a datagram socket that has its own address
//! already is one.

use std::{
    net::{SocketAddrV4, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use super::Load;

const BATCH: u64 = 64;

/// Connects to one address, over and over.
pub(crate) struct Connects {
    socket: UdpSocket,
    to: SocketAddrV4,
    /// How many there were.
    count: Arc<AtomicU64>,
}

impl Connects {
    pub(crate) fn to(to: SocketAddrV4, count: Arc<AtomicU64>) -> anyhow::Result<Self> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        // Looks for an address too.
        socket.connect(to)?;
        Ok(Self { socket, to, count })
    }
}

impl Load for Connects {
    fn some(&mut self) -> anyhow::Result<u64> {
        for _ in 0..BATCH {
            self.socket.connect(self.to)?;
        }
        self.count.fetch_add(BATCH, Ordering::Relaxed);
        Ok(BATCH)
    }
}
