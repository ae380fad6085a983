//! Frames as they are, by packet sockets: the shortest way from a sender to an
//! interface, so that what observes weighs most.

use std::{
    io,
    os::fd::{AsRawFd as _, OwnedFd},
};

use nix::{
    libc,
    net::if_::if_nametoindex,
    sys::socket::{AddressFamily, SockFlag, SockType, socket},
};

use super::Load;

/// Frames handed over with one call.
const BATCH: usize = 64;

/// A UDP datagram over IPv4 in an Ethernet frame.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Frame {
    pub(crate) source_mac: [u8; 6],
    pub(crate) destination_mac: [u8; 6],
    pub(crate) source: [u8; 4],
    pub(crate) destination: [u8; 4],
    pub(crate) source_port: u16,
    pub(crate) destination_port: u16,
}

impl Frame {
    /// 64 bytes with the checksum that Ethernet would add.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        const PAYLOAD: u16 = 18;
        let mut ip = vec![0x45, 0];
        ip.extend((28 + PAYLOAD).to_be_bytes());
        ip.extend([0, 0, 0x40, 0, 64, 17, 0, 0]);
        ip.extend(self.source);
        ip.extend(self.destination);
        let sum = checksum(&ip);
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        let mut frame = [self.destination_mac, self.source_mac].concat();
        frame.extend([0x08, 0x00]);
        frame.extend(ip);
        frame.extend(self.source_port.to_be_bytes());
        frame.extend(self.destination_port.to_be_bytes());
        frame.extend((8 + PAYLOAD).to_be_bytes());
        // No checksum, as IPv4 allows.
        frame.extend([0, 0]);
        frame.resize(frame.len() + usize::from(PAYLOAD), 0);
        frame
    }
}

/// That of an IPv4 header (RFC 1071).
fn checksum(header: &[u8]) -> u16 {
    let words = header
        .chunks_exact(2)
        .map(|w| u32::from(u16::from_be_bytes([w[0], w[1]])));
    let sum: u32 = words.sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    !(((sum & 0xffff) + (sum >> 16)) as u16)
}

/// Sends the same frames over and over, a batch at a time, or one for each of many
/// sockets.
pub(crate) struct Frames {
    // In the order of dropping; `headers` points into the others.
    headers: Vec<libc::mmsghdr>,
    _parts: Vec<libc::iovec>,
    _frames: Vec<Vec<u8>>,
    sockets: Vec<OwnedFd>,
    next: usize,
}

impl Frames {
    /// By `interface` of this thread's namespace.
    pub(crate) fn by(interface: &str, frames: Vec<Vec<u8>>) -> anyhow::Result<Self> {
        Ok(Self::new(vec![open(interface)?], frames))
    }

    /// The first frame by the first socket, and so on, one after the other.
    pub(crate) fn each(sockets: Vec<OwnedFd>, frames: Vec<Vec<u8>>) -> Self {
        assert_eq!(sockets.len(), frames.len());
        Self::new(sockets, frames)
    }

    #[expect(unsafe_code, reason = "nix prepares messages anew for every call")]
    fn new(sockets: Vec<OwnedFd>, mut frames: Vec<Vec<u8>>) -> Self {
        let mut parts: Vec<_> = frames
            .iter_mut()
            .map(|frame| libc::iovec {
                iov_base: frame.as_mut_ptr().cast(),
                iov_len: frame.len(),
            })
            .collect();
        let headers = parts
            .iter_mut()
            .map(|part| {
                // SAFETY: all zeros is a header without anything.
                let mut header: libc::mmsghdr = unsafe { std::mem::zeroed() };
                header.msg_hdr.msg_iov = part;
                header.msg_hdr.msg_iovlen = 1;
                header
            })
            .collect();
        Self {
            headers,
            _parts: parts,
            _frames: frames,
            sockets,
            next: 0,
        }
    }
}

impl Load for Frames {
    #[expect(unsafe_code, reason = "nix prepares messages anew for every call")]
    fn some(&mut self) -> anyhow::Result<u64> {
        if self.next == self.headers.len() {
            self.next = 0;
        }
        let (socket, number) = match &self.sockets[..] {
            [one] => (one, (self.headers.len() - self.next).min(BATCH)),
            each => (&each[self.next], 1),
        };
        let headers = &mut self.headers[self.next..][..number];
        // SAFETY: the headers point to parts and frames that live as long as `self` and
        // never move: the vectors that own them stay as they are.
        let sent =
            unsafe { libc::sendmmsg(socket.as_raw_fd(), headers.as_mut_ptr(), number as u32, 0) };
        match usize::try_from(sent) {
            Ok(sent) => {
                self.next += sent;
                Ok(sent as u64)
            }
            // A full queue, which is no loss: it was not sent.
            Err(_) if io::Error::last_os_error().raw_os_error() == Some(libc::ENOBUFS) => Ok(0),
            Err(_) => Err(anyhow::Error::new(io::Error::last_os_error()).context("send frames")),
        }
    }
}

/// A packet socket on `interface` of this thread's namespace that receives nothing.
#[expect(unsafe_code, reason = "nix makes no address of a link")]
pub(crate) fn open(interface: &str) -> anyhow::Result<OwnedFd> {
    let socket = socket(
        AddressFamily::Packet,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    // SAFETY: all zeros is an address.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_ifindex = if_nametoindex(interface)?.cast_signed();
    // SAFETY: the address is one of a link, and as long as is said.
    let bound = unsafe {
        libc::bind(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            size_of_val(&address) as u32,
        )
    };
    anyhow::ensure!(
        bound == 0,
        "bind to {interface}: {}",
        io::Error::last_os_error()
    );
    Ok(socket)
}
