//! rtnetlink: links, addresses, counters, namespace ids, events.

use std::{
    collections::HashMap,
    fs::File,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::AsRawFd as _,
};

use anyhow::Context as _;
use futures_util::{StreamExt as _, TryStreamExt as _};
use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage},
    link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, LinkXdp, Stats64},
    nsid::{NsidAttribute, NsidMessage},
    route::{RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteVia},
    tc::{TcAttribute, TcHandle, TcMessage, TcStats2},
};
use rtnetlink::Handle;
use tokio::task::JoinHandle;

use super::{dump, netns};
use crate::{
    inventory::facts::Link,
    model::{
        causes::{Losses, Queue},
        neighbours::XdpMode,
        route::{Hop, Prefix, Route, RouteType},
    },
};

/// A route socket in one namespace. Dropping it closes the socket.
pub struct Netlink {
    handle: Handle,
    task: JoinHandle<()>,
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// How an interface is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkState {
    /// What the kernel lost there.
    pub losses: Losses,
    /// Whether it can send.
    pub carrier: bool,
    /// Whether it is a bridge.
    pub is_bridge: bool,
}

impl Netlink {
    /// Opens a socket in the namespace of this thread.
    ///
    /// # Errors
    /// Where the socket cannot be made.
    pub fn open() -> io::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        let task = tokio::spawn(connection);
        Ok(Self { handle, task })
    }

    /// Opens a socket in the namespace `file`, and reads that one's cookie on
    /// the way.
    ///
    /// # Errors
    /// Where the namespace cannot be entered.
    pub fn open_in(file: &File) -> io::Result<(Self, Option<u64>)> {
        let (netlink, cookie, ()) = Self::visit(file, || ())?;
        Ok((netlink, cookie))
    }

    /// The same with what `look` finds there.
    ///
    /// # Errors
    /// Where the namespace cannot be entered.
    pub fn visit<T: Send>(
        file: &File,
        look: impl FnOnce() -> T + Send,
    ) -> io::Result<(Self, Option<u64>, T)> {
        let runtime = tokio::runtime::Handle::current();
        netns::within(file, || {
            let _context = runtime.enter();
            Ok((Self::open()?, netns::cookie().ok(), look()))
        })?
    }

    /// The XDP programs on an interface, by id.
    ///
    /// # Errors
    /// Where the interface is gone.
    pub async fn xdp(&self, ifindex: u32) -> anyhow::Result<Vec<(XdpMode, u32)>> {
        let request = self.handle.link().get().match_index(ifindex);
        let mut replies = request.execute();
        let message = replies.try_next().await.context("ask for XDP programs")?;
        Ok(message.iter().flat_map(xdp).collect())
    }

    /// How an interface is, beyond what it carried.
    ///
    /// # Errors
    /// Where the interface is gone.
    pub async fn state(&self, ifindex: u32) -> anyhow::Result<LinkState> {
        let request = self.handle.link().get().match_index(ifindex);
        let mut replies = request.execute();
        let message = replies.try_next().await.context("ask for a link's state")?;
        Ok(message.as_ref().map(link_state).unwrap_or_default())
    }

    /// An interface without its addresses; `None` where it is gone.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub async fn link(&self, ifindex: u32) -> anyhow::Result<Option<Link>> {
        let request = self.handle.link().get().match_index(ifindex);
        match request.execute().try_next().await {
            Ok(message) => Ok(message.as_ref().map(link)),
            Err(rtnetlink::Error::NetlinkError(error))
                if error.raw_code() == -nix::libc::ENODEV =>
            {
                Ok(None)
            }
            Err(error) => Err(error).context("read a link"),
        }
    }

    /// The queueing discipline at the root of an interface.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub async fn queue(&self, ifindex: u32) -> anyhow::Result<Option<Queue>> {
        let index = i32::try_from(ifindex)?;
        let mut dump = self.handle.qdisc().get().index(index).execute();
        let mut root = None;
        // The kernel does not heed the index.
        while let Some(message) = dump.try_next().await.context("list qdiscs")? {
            if message.header.index == index && message.header.parent == TcHandle::ROOT {
                root = Some(queue(&message));
            }
        }
        Ok(root)
    }

    /// All routes of all tables.
    ///
    /// # Errors
    /// Where the kernel refuses or the namespace is gone.
    pub async fn routes(&self) -> anyhow::Result<Vec<Route>> {
        let mut routes = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut request = RouteMessage::default();
            request.header.address_family = family;
            let mut dump = self.handle.route().get(request).execute();
            while let Some(message) = dump.try_next().await.context("list routes")? {
                routes.extend(route(&message));
            }
        }
        Ok(routes)
    }

    /// The id that this socket's namespace has given to the namespace `file`;
    /// `None` where it has given none.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub async fn nsid_of(&self, file: &File) -> anyhow::Result<Option<i32>> {
        let mut request = NsidMessage::default();
        request
            .attributes
            .push(NsidAttribute::Fd(u32::try_from(file.as_raw_fd())?));
        let mut message = NetlinkMessage::from(RouteNetlinkMessage::GetNsId(request));
        message.header.flags = NLM_F_REQUEST;
        let mut replies = self.handle.clone().request(message)?;
        while let Some(reply) = replies.next().await {
            match reply.payload {
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNsId(reply)) => {
                    return Ok(reply
                        .attributes
                        .iter()
                        .find_map(|attribute| match attribute {
                            // -1: not assigned.
                            NsidAttribute::Id(id) if *id >= 0 => Some(*id),
                            _ => None,
                        }));
                }
                NetlinkPayload::Error(error) if error.code.is_some() => {
                    return Err(error.to_io()).context("ask for a namespace id");
                }
                _ => {}
            }
        }
        Ok(None)
    }

    /// The socket's own handle, for traffic control.
    #[must_use]
    pub fn handle(&self) -> &Handle {
        &self.handle
    }
}

/// All interfaces of the namespace of this thread with their addresses.
///
/// # Errors
/// Where the kernel refuses.
pub fn links() -> anyhow::Result<Vec<Link>> {
    let mut links = Vec::new();
    let request = RouteNetlinkMessage::GetLink(LinkMessage::default());
    each(request, |message| {
        if let RouteNetlinkMessage::NewLink(message) = message {
            links.push(link(&message));
        }
    })
    .context("list links")?;
    let mut addresses: HashMap<u32, Vec<String>> = HashMap::new();
    let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
    each(request, |message| {
        if let RouteNetlinkMessage::NewAddress(message) = message {
            let of = addresses.entry(message.header.index).or_default();
            of.extend(address(&message));
        }
    })
    .context("list addresses")?;
    for link in &mut links {
        link.addresses = addresses.remove(&link.ifindex).unwrap_or_default();
    }
    Ok(links)
}

/// Gives each message of a dump to `take`, one at a time: of a thousand interfaces they
/// are large.
fn each(request: RouteNetlinkMessage, mut take: impl FnMut(RouteNetlinkMessage)) -> io::Result<()> {
    let mut message = NetlinkMessage::from(request);
    message.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    dump::messages(&bytes, |bytes| {
        match NetlinkMessage::deserialize(bytes).map(|message| message.payload) {
            Ok(NetlinkPayload::InnerMessage(message)) => take(message),
            Ok(_) => {}
            Err(error) => log::debug!("a message of a dump: {error}"),
        }
    })
}

/// The route that a message tells of; none where it is no route of a table.
pub(super) fn route(message: &RouteMessage) -> Option<Route> {
    let header = &message.header;
    let unspecified: IpAddr = match header.address_family {
        AddressFamily::Inet => Ipv4Addr::UNSPECIFIED.into(),
        AddressFamily::Inet6 => Ipv6Addr::UNSPECIFIED.into(),
        _ => return None,
    };
    if header.flags.contains(RouteFlags::Cloned) {
        return None;
    }
    let mut route = Route {
        table: header.table.into(),
        prefix: Prefix::of(unspecified, header.destination_prefix_length),
        kind: RouteType(header.kind.into()),
        hops: Vec::new(),
        nexthop: None,
        protocol: header.protocol.into(),
        scope: header.scope.into(),
        metric: 0,
        source: None,
    };
    let mut single = Hop::default();
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(table) => route.table = *table,
            RouteAttribute::Destination(to) => {
                if let Some(address) = ip(to) {
                    route.prefix = Prefix::of(address, header.destination_prefix_length);
                }
            }
            RouteAttribute::NhId(id) => route.nexthop = Some(*id),
            RouteAttribute::Priority(metric) => route.metric = *metric,
            RouteAttribute::PrefSource(from) => route.source = ip(from),
            RouteAttribute::Oif(index) => single.ifindex = Some(*index),
            RouteAttribute::Gateway(gateway) => single.gateway = ip(gateway),
            RouteAttribute::Via(gateway) => single.gateway = via(gateway),
            RouteAttribute::MultiPath(all) => route.hops.extend(all.iter().map(|next| {
                let mut hop = Hop {
                    gateway: None,
                    ifindex: Some(next.interface_index),
                };
                for attribute in &next.attributes {
                    match attribute {
                        RouteAttribute::Gateway(gateway) => hop.gateway = ip(gateway),
                        RouteAttribute::Via(gateway) => hop.gateway = via(gateway),
                        _ => {}
                    }
                }
                hop
            })),
            _ => {}
        }
    }
    if route.hops.is_empty() && single != Hop::default() {
        route.hops.push(single);
    }
    Some(route)
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

fn via(gateway: &RouteVia) -> Option<IpAddr> {
    match gateway {
        RouteVia::Inet(address) => Some((*address).into()),
        RouteVia::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

pub(super) fn link(message: &LinkMessage) -> Link {
    let mut link = Link {
        ifindex: message.header.index,
        hardware: message.header.link_layer_type.into(),
        ..Link::default()
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Address(bytes) if !bytes.is_empty() => {
                let bytes: Vec<String> = bytes.iter().map(|b| format!("{b:02x}")).collect();
                link.mac = Some(bytes.join(":"));
            }
            LinkAttribute::Link(index) => link.link = Some(*index),
            LinkAttribute::LinkNetNsId(id) if *id >= 0 => link.link_nsid = Some(*id),
            LinkAttribute::Controller(index) => link.master = Some(*index),
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    if let LinkInfo::Kind(kind) = info {
                        link.kind = Some(kind_name(kind));
                    }
                }
            }
            _ => {}
        }
    }
    link
}

fn xdp(message: &LinkMessage) -> Vec<(XdpMode, u32)> {
    let attached = message
        .attributes
        .iter()
        .flat_map(|attribute| match attribute {
            LinkAttribute::Xdp(attached) => attached.as_slice(),
            _ => &[],
        });
    attached
        .filter_map(|attribute| match attribute {
            LinkXdp::HwProgId(id) => Some((XdpMode::Offload, *id)),
            LinkXdp::DrvProgId(id) => Some((XdpMode::Native, *id)),
            LinkXdp::SkbProgId(id) => Some((XdpMode::Generic, *id)),
            _ => None,
        })
        .collect()
}

fn link_state(message: &LinkMessage) -> LinkState {
    let mut state = LinkState {
        carrier: message.header.flags.contains(LinkFlags::LowerUp),
        ..LinkState::default()
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::Stats64(stats) => state.losses = losses(stats),
            LinkAttribute::LinkInfo(infos) => {
                state.is_bridge = infos.contains(&LinkInfo::Kind(InfoKind::Bridge));
            }
            _ => {}
        }
    }
    state
}

fn losses(stats: &Stats64) -> Losses {
    Losses {
        rx_errors: stats.rx_errors,
        rx_dropped: stats.rx_dropped,
        rx_missed: stats.rx_missed_errors,
        tx_errors: stats.tx_errors,
        tx_dropped: stats.tx_dropped,
        tx_carrier: stats.tx_carrier_errors,
    }
}

fn queue(message: &TcMessage) -> Queue {
    let mut queue = Queue::default();
    for attribute in &message.attributes {
        match attribute {
            TcAttribute::Kind(kind) => queue.kind.clone_from(kind),
            TcAttribute::Stats2(all) => {
                for stats in all {
                    if let TcStats2::Queue(stats) = stats {
                        queue.dropped = stats.drops.into();
                        queue.waiting = stats.qlen.into();
                    }
                }
            }
            _ => {}
        }
    }
    queue
}

fn kind_name(kind: &InfoKind) -> String {
    kind.to_string()
}

/// The address that a message tells of, as `address/prefix length`.
pub(super) fn address(message: &AddressMessage) -> Option<String> {
    let mut result = None;
    for attribute in &message.attributes {
        match attribute {
            // On a point-to-point link "address" is the far end; "local" is ours.
            AddressAttribute::Local(local) => {
                result = Some(*local);
                break;
            }
            AddressAttribute::Address(address) if result.is_none() => result = Some(*address),
            _ => {}
        }
    }
    result.map(|ip| format!("{ip}/{}", message.header.prefix_len))
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::LazyLock;

    use netlink_packet_route::rule::RuleMessage;
    use proptest::{collection::vec, prelude::*, sample::Index};
    use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

    use super::*;

    /// What the kernel says of this machine: links, addresses, routes and rules, each
    /// message by itself.
    static REAL: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
        let requests = [
            RouteNetlinkMessage::GetLink(LinkMessage::default()),
            RouteNetlinkMessage::GetAddress(AddressMessage::default()),
            RouteNetlinkMessage::GetRoute(RouteMessage::default()),
            RouteNetlinkMessage::GetRule(RuleMessage::default()),
        ];
        requests.into_iter().flat_map(dumped).collect()
    });

    fn dumped(request: RouteNetlinkMessage) -> Vec<Vec<u8>> {
        let mut message = NetlinkMessage::from(request);
        message.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        let mut socket = Socket::new(NETLINK_ROUTE).expect("a socket");
        socket.bind_auto().expect("a port");
        socket.connect(&SocketAddr::new(0, 0)).expect("the kernel");
        socket.send(&bytes, 0).expect("a request");
        let mut messages = Vec::new();
        loop {
            let (datagram, _) = socket.recv_from_full().expect("an answer");
            let mut rest = &datagram[..];
            while let Some(len) = rest.first_chunk().map(|len| u32::from_ne_bytes(*len)) {
                // NLMSG_DONE
                if rest[4] == 3 {
                    return messages;
                }
                messages.push(rest[..len as usize].to_vec());
                rest = &rest[len.next_multiple_of(4) as usize..];
            }
        }
    }

    /// Datagrams of the kernel's own messages, most of them with something wrong, and
    /// such as are no messages at all.
    pub(in crate::world) fn datagrams() -> impl Strategy<Value = Vec<u8>> {
        let message = (any::<Index>(), vec(any::<(Index, bool, u8)>(), 0..6));
        let changed = vec(message, 1..4).prop_map(|messages| {
            let changed = messages.into_iter().flat_map(|(which, changes)| {
                let mut bytes = which.get(&REAL).clone();
                for (place, front, value) in changes {
                    let range = if front {
                        36.min(bytes.len())
                    } else {
                        bytes.len()
                    };
                    bytes[place.index(range)] = value;
                }
                bytes
            });
            changed.collect::<Vec<u8>>()
        });
        let cut = (changed.clone(), any::<Index>()).prop_map(|(mut bytes, len)| {
            bytes.truncate(len.index(bytes.len() + 1));
            bytes
        });
        prop_oneof![4 => changed, 2 => cut, 1 => vec(any::<u8>(), 0..400)]
    }

    /// What netobs makes of a message.
    fn understood(bytes: &[u8]) -> Option<()> {
        let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(bytes).ok()?;
        match &message.payload {
            NetlinkPayload::InnerMessage(
                RouteNetlinkMessage::NewLink(found) | RouteNetlinkMessage::DelLink(found),
            ) => {
                let found = link(found);
                assert!(found.link_nsid.is_none_or(|nsid| nsid >= 0));
            }
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewAddress(found)) => {
                if let Some(text) = address(found) {
                    assert!(text.contains('/'), "{text}");
                }
            }
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(found)) => {
                if let Some(route) = route(found) {
                    // As the table writes it.
                    assert!(!route.prefix.to_string().is_empty());
                }
            }
            _ => {}
        }
        Some(())
    }

    #[test]
    fn the_kernels_own_messages_are_understood() {
        assert!(REAL.len() >= 4, "at least those of lo: {}", REAL.len());
        for message in REAL.iter() {
            assert!(understood(message).is_some(), "{message:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]
        #[test]
        fn changed_messages_are_no_panic(bytes in datagrams()) {
            understood(&bytes);
        }
    }
}
