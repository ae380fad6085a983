//! Changes of routes, rules, addresses and links, as netlink tells of them: those
//! of our own namespace and of all that it has given an id.

use std::io;

use netlink_packet_core::NetlinkPayload;
use netlink_packet_route::RouteNetlinkMessage;
use nix::{libc, sys::socket::MsgFlags};
use rtnetlink::{MulticastGroup, sys::Socket};
use tokio::io::{Interest, unix::AsyncFd};

use super::{
    multicast::{self, DATAGRAM_BYTES},
    netlink,
};
use crate::model::route::Route;

/// Something happened to the routing of a namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteEvent {
    /// The id that our namespace has given it; `None` for our own.
    pub nsid: Option<i32>,
    /// What.
    pub change: Change,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// This route came or went.
    Route(Route),
    /// Something else changed that routes depend on.
    Other,
    /// The kernel dropped events, of whatever namespace.
    Lost,
}

/// A socket that hears of changes.
pub struct RouteEvents {
    socket: AsyncFd<Socket>,
    buffer: Vec<u8>,
    /// Whether other namespaces than ours are heard.
    pub hears_others: bool,
}

impl RouteEvents {
    /// Opens it in the namespace of this thread. To hear of other namespaces takes
    /// CAP_NET_BROADCAST.
    ///
    /// # Errors
    /// Where the socket cannot be made.
    pub fn open() -> io::Result<Self> {
        let socket = multicast::subscribe(&[
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv4Rule,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv6Route,
            MulticastGroup::Ipv6Rule,
        ])?;
        socket.set_non_blocking(true)?;
        let hears_others = socket.set_listen_all_namespaces(true).is_ok();
        #[expect(
            unsafe_code,
            reason = "tokio wants a promise about the file descriptor"
        )]
        // SAFETY: the socket owns its descriptor, which stays open and the same until
        // the socket is dropped, with this `AsyncFd`.
        let socket = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }
            .map_err(|error| io::Error::other(error.to_string()))?;
        Ok(Self {
            socket,
            buffer: vec![0; DATAGRAM_BYTES],
            hears_others,
        })
    }

    /// Waits for events.
    pub async fn next(&mut self) -> Vec<RouteEvent> {
        loop {
            let Ok(mut ready) = self.socket.readable().await else {
                // The runtime is going down.
                return std::future::pending().await;
            };
            match ready.try_io(|socket| {
                multicast::receive(socket.get_ref(), &mut self.buffer, MsgFlags::MSG_DONTWAIT)
            }) {
                Ok(Ok((len, nsid))) => return events(&self.buffer[..len], nsid),
                Ok(Err(error)) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    let change = Change::Lost;
                    return vec![RouteEvent { nsid: None, change }];
                }
                Ok(Err(error)) => log::debug!("route events: {error}"),
                Err(_would_block) => {}
            }
        }
    }
}

/// The events in a datagram. One that cannot be read is a change of some kind.
fn events(datagram: &[u8], nsid: Option<i32>) -> Vec<RouteEvent> {
    multicast::messages(datagram)
        .map(|message| {
            let change = match message.map(|message| message.payload) {
                Some(NetlinkPayload::InnerMessage(
                    RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route),
                )) => netlink::route(&route).map_or(Change::Other, Change::Route),
                Some(_) | None => Change::Other,
            };
            RouteEvent { nsid, change }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::NetlinkMessage;
    use netlink_packet_route::route::{RouteAttribute, RouteMessage};
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn datagram() -> Vec<u8> {
        let mut route = RouteMessage::default();
        route.header.address_family = netlink_packet_route::AddressFamily::Inet;
        route.header.destination_prefix_length = 24;
        route.attributes = vec![
            RouteAttribute::Destination(std::net::IpAddr::from([198, 51, 100, 0]).into()),
            RouteAttribute::Oif(7),
        ];
        let mut message = NetlinkMessage::from(RouteNetlinkMessage::NewRoute(route));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        bytes
    }

    #[test]
    fn a_datagram_may_hold_several_messages() {
        let one = datagram();
        let both = [one.clone(), one].concat();
        let found = events(&both, Some(3));
        assert_eq!(found.len(), 2);
        for event in found {
            assert_eq!(event.nsid, Some(3));
            let Change::Route(route) = event.change else {
                panic!("{:?}", event.change)
            };
            assert_eq!(route.prefix.to_string(), "198.51.100.0/24");
            assert_eq!(route.hops[0].ifindex, Some(7));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        /// Nothing is lost: what cannot be read is a change of some kind, after which
        /// everything is read again.
        #[test]
        fn what_cannot_be_read_is_a_change_and_no_panic(bytes in netlink::tests::datagrams()) {
            let found = events(&bytes, Some(7));
            prop_assert_eq!(found.is_empty(), bytes.is_empty());
            prop_assert!(found.iter().all(|event| event.nsid == Some(7)));
        }

        #[test]
        fn whole_messages_in_front_of_a_broken_one_are_read(rest in vec(any::<u8>(), 0..80)) {
            let found = events(&[datagram(), rest].concat(), None);
            let first = &found[0].change;
            prop_assert!(matches!(first, Change::Route(route) if route.hops[0].ifindex == Some(7)));
        }
    }
}
