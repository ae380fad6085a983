//! Changes of the links and addresses of our own namespace, as netlink tells of them, with
//! the time at which they were heard of; and that something changed in another one.
//!
//! A thread of its own listens: whatever else netobs does at that moment, the time is
//! right and the kernel's buffer is empty.

use std::{io, thread, time::Instant};

use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage, address::AddressMessage, link::LinkFlags,
    nsid::NsidAttribute,
};
use nix::{libc, sys::socket::MsgFlags};
use rtnetlink::{MulticastGroup, sys::Socket};
use tokio::sync::mpsc;

use super::{
    multicast::{self, DATAGRAM_BYTES},
    netlink,
};
use crate::inventory::facts::Link;

/// Something happened to a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkEvent {
    /// Made or changed.
    Changed {
        /// How it is now, without its addresses.
        link: Box<Link>,
        /// Whether packets can pass: it is up, and so is its other end.
        up: bool,
    },
    /// Gone from our namespace. The counters that the message carries are no
    /// use: a veth that is being deleted has lost its peer, and with it what
    /// it received.
    /// <https://github.com/torvalds/linux/blob/v6.18/drivers/net/veth.c>
    Gone(u32),
    /// An address of ours came or went.
    Address {
        /// Of this interface.
        ifindex: u32,
        /// `address/prefix length`.
        address: String,
        /// Whether it is there now.
        present: bool,
    },
    /// Links or addresses changed in the namespace with this id.
    Inside {
        /// The id that our namespace has given it.
        nsid: i32,
        /// Whether a link has left it.
        left: bool,
    },
    /// From now on this id means another namespace than before, or none. The kernel
    /// tells so before it tells of a link by it.
    /// <https://github.com/torvalds/linux/blob/v6.18/net/core/net_namespace.c>
    NamespaceId(i32),
    /// Something about it that tells nothing new.
    Other,
    /// The kernel dropped events, or told what cannot be read: look at everything again.
    Lost,
}

impl LinkEvent {
    /// Whether it asks for a look.
    #[must_use]
    pub fn asks_for_a_look(&self) -> bool {
        !matches!(self, Self::NamespaceId(_) | Self::Other)
    }
}

/// When it was heard of.
#[derive(Clone, Debug)]
pub struct Heard {
    /// When.
    pub at: Instant,
    /// What.
    pub event: LinkEvent,
}

/// What is heard.
pub struct LinkEvents {
    /// One after the other.
    pub events: mpsc::UnboundedReceiver<Heard>,
    /// Whether other namespaces than ours are heard.
    pub hears_others: bool,
}

/// Starts to listen in the namespace of this thread. To hear of other namespaces takes
/// CAP_NET_BROADCAST.
///
/// # Errors
/// Where the socket or the thread cannot be made.
pub fn listen() -> io::Result<LinkEvents> {
    let socket = multicast::subscribe(&[
        MulticastGroup::Link,
        MulticastGroup::Nsid,
        MulticastGroup::Ipv4Ifaddr,
        MulticastGroup::Ipv6Ifaddr,
    ])?;
    let hears_others = socket.set_listen_all_namespaces(true).is_ok();
    let (sender, events) = mpsc::unbounded_channel();
    thread::Builder::new()
        .name("link-events".to_owned())
        .spawn(move || follow(&socket, &sender))?;
    Ok(LinkEvents {
        events,
        hears_others,
    })
}

/// Until nobody listens any more, or there is nothing to listen to.
fn follow(socket: &Socket, sender: &mpsc::UnboundedSender<Heard>) {
    let mut buffer = vec![0; DATAGRAM_BYTES];
    loop {
        let received = multicast::receive(socket, &mut buffer, MsgFlags::empty());
        let at = Instant::now();
        let events = match received {
            Ok((len, None)) => events(&buffer[..len]),
            Ok((len, Some(nsid))) => inside(&buffer[..len], nsid).into_iter().collect(),
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => vec![LinkEvent::Lost],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => {
                log::warn!("link events: {error}");
                return;
            }
        };
        for event in events {
            if sender.send(Heard { at, event }).is_err() {
                return;
            }
        }
    }
}

/// The events in a datagram. One that cannot be read is a change of some kind.
fn events(datagram: &[u8]) -> Vec<LinkEvent> {
    multicast::messages(datagram)
        .filter_map(|message| match message {
            Some(message) => event(&message),
            None => Some(LinkEvent::Lost),
        })
        .collect()
}

/// What a datagram says that comes from another namespace.
fn inside(datagram: &[u8], nsid: i32) -> Option<LinkEvent> {
    let mut event = None;
    for message in multicast::messages(datagram) {
        let left = match message.map(|message| message.payload) {
            Some(NetlinkPayload::InnerMessage(
                RouteNetlinkMessage::NewNsId(_) | RouteNetlinkMessage::DelNsId(_),
            )) => continue,
            Some(NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(_))) | None => true,
            Some(_) => false,
        };
        let before = matches!(event, Some(LinkEvent::Inside { left: true, .. }));
        event = Some(LinkEvent::Inside {
            nsid,
            left: left || before,
        });
    }
    event
}

fn address(message: &AddressMessage, present: bool) -> Option<LinkEvent> {
    Some(LinkEvent::Address {
        ifindex: message.header.index,
        address: netlink::address(message)?,
        present,
    })
}

fn event(message: &NetlinkMessage<RouteNetlinkMessage>) -> Option<LinkEvent> {
    match &message.payload {
        // What a bridge tells of its ports is not the whole link.
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link))
            if link.header.interface_family == AddressFamily::Unspec =>
        {
            Some(LinkEvent::Changed {
                link: Box::new(netlink::link(link)),
                up: link
                    .header
                    .flags
                    .contains(LinkFlags::Up | LinkFlags::LowerUp),
            })
        }
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(_)) => Some(LinkEvent::Other),
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(link)) => {
            // A port that leaves its bridge is "deleted" in the bridge's family.
            if link.header.interface_family == AddressFamily::Bridge {
                Some(LinkEvent::Other)
            } else {
                Some(LinkEvent::Gone(link.header.index))
            }
        }
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewAddress(message)) => {
            address(message, true)
        }
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelAddress(message)) => {
            address(message, false)
        }
        NetlinkPayload::InnerMessage(
            RouteNetlinkMessage::NewNsId(id) | RouteNetlinkMessage::DelNsId(id),
        ) => id.attributes.iter().find_map(|attribute| match attribute {
            NsidAttribute::Id(id) => Some(LinkEvent::NamespaceId(*id)),
            _ => None,
        }),
        NetlinkPayload::Overrun(_) => Some(LinkEvent::Lost),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::NLM_F_MULTIPART;
    use netlink_packet_route::{address::AddressAttribute, link::LinkMessage, nsid::NsidMessage};
    use proptest::prelude::*;

    use super::*;
    use crate::world::netlink::tests::datagrams;

    fn message(payload: RouteNetlinkMessage) -> Vec<u8> {
        let mut message = NetlinkMessage::from(payload);
        message.header.flags = NLM_F_MULTIPART;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        bytes
    }

    fn link(ifindex: u32, flags: LinkFlags, family: AddressFamily) -> LinkMessage {
        let mut link = LinkMessage::default();
        link.header.index = ifindex;
        link.header.flags = flags;
        link.header.interface_family = family;
        link
    }

    #[test]
    fn a_link_can_be_passed_once_both_its_ends_are_up() {
        let unspecified = AddressFamily::Unspec;
        let up = LinkFlags::Up | LinkFlags::LowerUp;
        let datagram = [
            message(RouteNetlinkMessage::NewLink(link(
                3,
                LinkFlags::Up,
                unspecified,
            ))),
            message(RouteNetlinkMessage::NewLink(link(3, up, unspecified))),
            message(RouteNetlinkMessage::DelLink(link(
                3,
                up,
                AddressFamily::Bridge,
            ))),
            message(RouteNetlinkMessage::DelLink(link(3, up, unspecified))),
        ]
        .concat();
        let link = Box::new(Link {
            ifindex: 3,
            ..Link::default()
        });
        let expected = [
            LinkEvent::Changed {
                link: link.clone(),
                up: false,
            },
            LinkEvent::Changed { link, up: true },
            LinkEvent::Other,
            LinkEvent::Gone(3),
        ];
        assert_eq!(events(&datagram), expected);
        assert_eq!(events(&[0xff; 40]), [LinkEvent::Lost], "something happened");
    }

    #[test]
    fn ids_of_namespaces_come_and_go() {
        let mut id = NsidMessage::default();
        id.attributes = vec![NsidAttribute::Id(7)];
        let datagram = [
            message(RouteNetlinkMessage::NewNsId(id.clone())),
            message(RouteNetlinkMessage::DelNsId(id)),
        ];
        let told = vec![LinkEvent::NamespaceId(7); 2];
        assert_eq!(events(&datagram.concat()), told);
    }

    #[test]
    fn addresses_and_other_namespaces_are_told() {
        let mut message_of_address = AddressMessage::default();
        message_of_address.header.index = 7;
        message_of_address.header.prefix_len = 24;
        let ip = std::net::Ipv4Addr::new(10, 0, 0, 1).into();
        message_of_address.attributes = vec![AddressAttribute::Local(ip)];
        let come = message(RouteNetlinkMessage::NewAddress(message_of_address.clone()));
        let gone = message(RouteNetlinkMessage::DelAddress(message_of_address));
        let told = |present| LinkEvent::Address {
            ifindex: 7,
            address: "10.0.0.1/24".to_owned(),
            present,
        };
        let both = [come.clone(), gone.clone()].concat();
        assert_eq!(events(&both), [told(true), told(false)]);
        let inside_of = |left| Some(LinkEvent::Inside { nsid: 3, left });
        assert_eq!(inside(&both, 3), inside_of(false));
        let unspecified = AddressFamily::Unspec;
        let link = RouteNetlinkMessage::DelLink(link(3, LinkFlags::Up, unspecified));
        assert_eq!(inside(&[message(link), come].concat(), 3), inside_of(true));
        let mut id = NsidMessage::default();
        id.attributes = vec![NsidAttribute::Id(7)];
        assert_eq!(inside(&message(RouteNetlinkMessage::NewNsId(id)), 3), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn changed_messages_are_no_panic(bytes in datagrams()) {
            events(&bytes);
            inside(&bytes, 1);
        }
    }
}
