//! A question and its answer, one after the other.

use std::{
    net::{SocketAddrV4, UdpSocket},
    time::Duration,
};

use super::Load;

const BATCH: u64 = 16;
/// Nothing is lost between two namespaces; an answer that does not come is an error.
const PATIENCE: Duration = Duration::from_secs(2);

/// Asks and waits for the answer.
pub(crate) struct Requests(UdpSocket);

impl Requests {
    pub(crate) fn to(address: SocketAddrV4) -> anyhow::Result<Self> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect(address)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(Self(socket))
    }
}

impl Load for Requests {
    fn some(&mut self) -> anyhow::Result<u64> {
        let mut answer = [0; 1];
        for _ in 0..BATCH {
            self.0.send(&[1])?;
            self.0.recv(&mut answer)?;
        }
        Ok(BATCH)
    }
}

/// Answers, until an empty question comes.
pub(crate) fn echo(address: SocketAddrV4) -> anyhow::Result<()> {
    let socket = UdpSocket::bind(address)?;
    let mut question = [0; 1];
    loop {
        let (length, from) = socket.recv_from(&mut question)?;
        if length == 0 {
            return Ok(());
        }
        socket.send_to(&question, from)?;
    }
}
