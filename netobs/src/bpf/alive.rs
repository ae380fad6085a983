//! Tells whether the netobs that made some programs is alive, to every other one in the
//! same network namespace, in whatever pid namespace it is: by a socket without a file,
//! which is named after the programs and ends with their process.

use std::{
    collections::HashSet,
    fs, io,
    os::{
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr, UnixDatagram},
    },
};

const PREFIX: &str = "netobs-programs";
/// Those of this thread's network namespace.
const SOCKETS: &str = "/proc/thread-self/net/unix";

/// Says so, as long as it lives.
#[derive(Debug)]
pub(super) struct Sign {
    _socket: UnixDatagram,
}

impl Sign {
    /// For the programs with these ids.
    ///
    /// # Errors
    /// Where there can be no such socket.
    pub(super) fn new([ingress, egress]: [u32; 2]) -> io::Result<Self> {
        let name = format!("{PREFIX}-{ingress}-{egress}");
        let address = SocketAddr::from_abstract_name(name)?;
        Ok(Self {
            _socket: UnixDatagram::bind_addr(&address)?,
        })
    }
}

/// The ids of all programs whose netobs is alive; `None` where that cannot be told.
pub(super) fn programs() -> Option<HashSet<u32>> {
    let text = fs::read(SOCKETS).ok()?;
    Some(told(&String::from_utf8_lossy(&text)))
}

fn told(sockets: &str) -> HashSet<u32> {
    sockets
        .lines()
        .filter_map(|line| line.rsplit_once(" @")?.1.strip_prefix(PREFIX))
        .flat_map(|ids| ids.split('-'))
        .filter_map(|id| id.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sign_is_seen_until_it_goes() {
        let sign = Sign::new([4_000_000_001, 4_000_000_002]).expect("a socket");
        let seen = programs().expect("/proc");
        assert!(seen.contains(&4_000_000_001) && seen.contains(&4_000_000_002));
        drop(sign);
        assert!(!programs().expect("/proc").contains(&4_000_000_001));
    }

    #[test]
    fn other_sockets_are_none() {
        let text = "Num       RefCount Protocol Flags    Type St Inode Path\n\
                    00: 00000002 00000000 00000000 0002 01 17 @netobs-programs-5-6\n\
                    00: 00000002 00000000 00000000 0002 01 18 /run/x @netobs-programs\n\
                    00: 00000002 00000000 00010000 0001 01 19 @other-7-8\n";
        assert_eq!(told(text), HashSet::from([5, 6]));
    }
}
