//! Bytes over TCP, in segments as large as the kernel makes them.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddrV4, TcpListener, TcpStream},
    sync::mpsc::SyncSender,
    time::Duration,
};

use anyhow::Context as _;
use nix::unistd::gettid;

use super::Load;

const CHUNK: usize = 256 << 10;

/// Sends as fast as it is taken.
pub(crate) struct Stream {
    stream: TcpStream,
    chunk: Vec<u8>,
    /// The receiver's own account of its CPU.
    receiver: String,
}

impl Stream {
    /// `receiver` is the thread of [`sink`].
    pub(crate) fn to(address: SocketAddrV4, receiver: i32) -> anyhow::Result<Self> {
        Ok(Self {
            stream: TcpStream::connect(address)?,
            chunk: vec![0; CHUNK],
            receiver: format!("/proc/self/task/{receiver}/schedstat"),
        })
    }
}

impl Load for Stream {
    fn some(&mut self) -> anyhow::Result<u64> {
        self.stream.write_all(&self.chunk)?;
        Ok(CHUNK as u64)
    }

    fn elsewhere(&self) -> anyhow::Result<Duration> {
        let text = fs::read_to_string(&self.receiver)?;
        let spent = text.split(' ').next().context("schedstat")?;
        Ok(Duration::from_nanos(spent.parse()?))
    }
}

/// Takes what one client sends, until it ends; tells which thread that is.
pub(crate) fn sink(address: SocketAddrV4, thread: &SyncSender<i32>) -> anyhow::Result<()> {
    let listener = TcpListener::bind(address)?;
    thread.send(gettid().as_raw())?;
    let (mut stream, _) = listener.accept()?;
    let mut buffer = vec![0; CHUNK];
    while stream.read(&mut buffer)? > 0 {}
    Ok(())
}
