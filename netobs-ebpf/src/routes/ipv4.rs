//! IPv4 decisions, from visits to tables.
//!
//! What the kernel does: `ip_route_output_key_hash_rcu()` and
//! `ip_route_input_slow()` in
//! <https://github.com/torvalds/linux/blob/v6.18/net/ipv4/route.c>, the visits
//! in <https://github.com/torvalds/linux/blob/v6.18/net/ipv4/fib_trie.c>.

use aya_ebpf::programs::BtfTracePointContext;
use netobs_common::routes::{
    ABSENT, CLASS_BLACKHOLE, CLASS_NO_ROUTE, CLASS_PROHIBIT, CLASS_UNREACHABLE, FAMILY_IPV4,
    FailureKey, FlowNote, HIT_GATEWAY6, HIT_IMPLICIT, HOST_NOTES, HitKey, HostNote, ORIGIN_FORWARD,
    ORIGIN_INPUT, ORIGIN_OUTPUT, PREFIX_UNKNOWN, STATE_HIT, Work,
};

use crate::{
    account::{self, LOOPBACK, TABLE_DEFAULT, TABLE_MAIN},
    behalf,
    kernel::*,
    maps, senders,
};

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// `RT_SCOPE_NOWHERE`: the scope of a local address's next hop.
const SCOPE_NOWHERE: u8 = 255;

/// `RTN_*`.
/// <https://github.com/torvalds/linux/blob/v6.18/include/uapi/linux/rtnetlink.h>
pub mod route_type {
    pub const UNICAST: u8 = 1;
    pub const LOCAL: u8 = 2;
    pub const BROADCAST: u8 = 3;
    pub const ANYCAST: u8 = 4;
    pub const MULTICAST: u8 = 5;
    pub const BLACKHOLE: u8 = 6;
    pub const UNREACHABLE: u8 = 7;
    pub const PROHIBIT: u8 = 8;
}

const EAGAIN: i32 = 11;
const EACCES: i32 = 13;
const EINVAL: i32 = 22;
const EHOSTUNREACH: i32 = 113;

/// How many packets a driver may hand over before the first of them is looked
/// up.
const BATCH: u64 = 64;

/// Addresses of an interface that are looked at for their broadcast addresses.
const ADDRESSES: u32 = 8;

/// What a program reads of an IPv4 flow.
struct Flow {
    object: Object,
    iif: u32,
    protocol: u8,
    source: u32,
    destination: u32,
}

/// Where a packet is to go next, with what is read of it more than once: each time is
/// work for the verifier on every way that leads there.
struct Hop {
    object: Object,
    device: Object,
    /// Of the namespace.
    cookie: u64,
}

impl Hop {
    #[inline(always)]
    fn new(object: Object) -> Self {
        let device: Object = if object.is_null() {
            core::ptr::null()
        } else {
            load(object, &OFF_NHC_DEV)
        };
        Self {
            object,
            device,
            cookie: cookie_of(device),
        }
    }
}

/// One visit to a table.
#[inline(always)]
pub fn visit(ctx: &BtfTracePointContext) {
    let table = ctx.arg::<u64>(0) as u32;
    let object: Object = ctx.arg(1);
    let hop = Hop::new(ctx.arg(2));
    let error = ctx.arg::<u64>(3) as i32;

    let iif: u32 = load(object, &OFF_FL4_IIF);
    let protocol: u8 = load(object, &OFF_FL4_PROTO);
    // Neither sent nor received: a check of what an address is (0), or of where
    // a packet may have come from (1, without a protocol).
    if iif == 0 || (iif == LOOPBACK && protocol == 0) {
        return;
    }
    let Some(work) = maps::work() else { return };
    let flow = Flow {
        object,
        iif,
        protocol,
        source: load(object, &OFF_FL4_SADDR),
        destination: load(object, &OFF_FL4_DADDR),
    };
    if iif == LOOPBACK {
        sent(work, &flow, table, &hop, error);
    } else {
        received(work, &flow, table, &hop, error);
    }
}

/// A local sender asks.
#[inline(always)]
fn sent(work: &mut Work, flow: &Flow, table: u32, hop: &Hop, error: i32) {
    if checks_source(work, flow) {
        return;
    }
    let note =
        account::take_up::<FAMILY_IPV4>(work, flow.object, flow.destination, flow.iif, table);
    let ends = match error {
        0 => !hop.object.is_null(),
        // Where the kernel goes on, what it met before was not what it took; and if
        // there is nothing more, this was the end.
        _ => !goes_on(error, table) || note.state == STATE_HIT,
    };
    if !ends {
        return;
    }
    let cookie = match error {
        0 => hop.cookie,
        _ => senders::cookie_for(flow.destination),
    };
    account::take_back::<FAMILY_IPV4>(note, cookie);
    if error == 0 {
        account::hit::<FAMILY_IPV4>(note, cookie, ORIGIN_OUTPUT, |key| {
            describe(key, flow.destination, table, hop.object);
            key.route_type = hop_type(hop.object);
        });
    } else {
        not_found(note, flow.object, table, error, cookie);
    }
}

/// Whether the kernel looks at another table after `table`, which had no route.
#[inline(always)]
fn goes_on(error: i32, table: u32) -> bool {
    error == -EAGAIN && table != TABLE_MAIN && table != TABLE_DEFAULT
}

/// A received packet.
#[inline(always)]
fn received(work: &mut Work, flow: &Flow, table: u32, hop: &Hop, error: i32) {
    if flow.protocol != 0 && hop_asks_no_ports(hop) {
        // A program or a firewall asks, not the kernel for a packet.
        return;
    }
    if checks_source(work, flow) {
        return;
    }
    let asked_by_arp = is_arp(work, flow, error);
    if error != -EAGAIN {
        // What follows may be the lookup of its source.
        work.input_flow = flow.object as u64;
        work.check_flow = 0;
        work.input_source = flow.source;
        work.input_destination = flow.destination;
        work.input_protocol = flow.protocol.into();
        work.input_at = work.received;
        work.input_counted = 0;
    }
    if asked_by_arp {
        return;
    }
    let kind = match error {
        0 if hop.object.is_null() => return,
        0 => kind(work, flow, hop),
        _ => 0,
    };
    let note =
        account::take_up::<FAMILY_IPV4>(work, flow.object, flow.destination, flow.iif, table);
    if goes_on(error, table) && note.state != STATE_HIT {
        return;
    }
    let again = account::take_back::<FAMILY_IPV4>(note, hop.cookie);
    // Without a route it is dropped, and counted there: the drop tells its namespace.
    if error == 0 {
        work.input_counted = 1 + routed(note, flow, table, hop, kind, again);
    }
}

/// Source validation (rp_filter and the like): lookups right behind that of a
/// received packet, with source and destination exchanged, of a flow of their
/// own. Local senders have a protocol; a check has one only where the rules made
/// the kernel look for ports, and then the packet's own lookup had the same.
#[inline(always)]
fn checks_source(work: &mut Work, flow: &Flow) -> bool {
    let object = flow.object as u64;
    let is = work.input_protocol == u32::from(flow.protocol)
        && work.input_source == flow.destination
        && work.input_destination == flow.source
        && work.input_at == work.received
        && work.input_flow != object
        && (work.check_flow == 0 || work.check_flow == object);
    if is {
        work.check_flow = object;
    }
    is
}

/// ARP asks where a request's target is. The interface says nothing: a request on a
/// VLAN comes in by the one below.
#[inline(always)]
fn is_arp(work: &mut Work, flow: &Flow, error: i32) -> bool {
    let object = flow.object as u64;
    if work.arp_flow == object
        && work.input_at == work.received
        && work.input_source == flow.source
        && work.input_destination == flow.destination
    {
        // The next table, for the same request.
        return true;
    }
    if work.received.wrapping_sub(work.arp_at) > BATCH {
        work.arp_flow = 0;
        return false;
    }
    for note in &mut work.arp {
        if note.at != 0
            && note.sender == flow.source
            && note.target == flow.destination
            && work.received.wrapping_sub(note.at) <= BATCH
        {
            if error != -EAGAIN {
                note.at = 0;
                work.arp_flow = object;
            }
            return true;
        }
    }
    work.arp_flow = 0;
    false
}

/// Whether the rules of the namespace that `hop` is in make the kernel look at no
/// ports. Then lookups for received packets have no protocol.
#[inline(always)]
fn hop_asks_no_ports(hop: &Hop) -> bool {
    if OFF_NET_DISSECT.load() == ABSENT || hop.device.is_null() {
        return false;
    }
    let net: Object = load(hop.device, &OFF_DEV_NET);
    !net.is_null() && load::<u32>(net, &OFF_NET_DISSECT) == 0
}

/// The type of the route that was found for a received packet; 0 for unknown.
#[inline(always)]
fn kind(work: &mut Work, flow: &Flow, hop: &Hop) -> u8 {
    let kind = hop_type(hop.object);
    // What is received for a neighbour of ours may be for all of them.
    if kind == 0 && is_for_all(work, hop.device, hop.cookie, flow.destination) {
        return route_type::BROADCAST;
    }
    kind
}

/// A route of such a `kind` was found for a received packet, `again` if one was before;
/// gives its origin.
#[inline(always)]
fn routed(note: &mut FlowNote, flow: &Flow, table: u32, hop: &Hop, kind: u8, again: bool) -> u32 {
    let origin = match kind {
        route_type::LOCAL | route_type::BROADCAST => ORIGIN_INPUT,
        _ => ORIGIN_FORWARD,
    };
    account::hit::<FAMILY_IPV4>(note, hop.cookie, origin, |key| {
        describe(key, flow.destination, table, hop.object);
        key.route_type = kind;
    });
    if origin == ORIGIN_FORWARD && !again {
        behalf::forwarded::<FAMILY_IPV4>(hop.cookie, flow.iif, address4(flow.source));
    }
    origin
}

/// What the route tells, but for its type.
#[inline(always)]
fn describe(key: &mut HitKey, destination: u32, table: u32, hop: Object) {
    key.destination = address4(destination);
    key.table = table;
    key.ifindex = load(hop, &OFF_NHC_OIF);
    key.prefix_len = PREFIX_UNKNOWN;
    match load(hop, &OFF_NHC_GW_FAMILY) {
        AF_INET => key.gateway = address4(load(hop, &OFF_NHC_GW)),
        AF_INET6 => {
            key.gateway = load_address6(hop, &OFF_NHC_GW);
            key.flags = HIT_GATEWAY6;
        }
        _ => {}
    }
}

/// The route's type as far as its next hop tells it, which tells local ones by its
/// scope, and by a gateway that it is unicast; else 0.
#[inline(always)]
fn hop_type(hop: Object) -> u8 {
    if load::<u8>(hop, &OFF_NHC_SCOPE) == SCOPE_NOWHERE {
        route_type::LOCAL
    } else if load::<u8>(hop, &OFF_NHC_GW_FAMILY) != 0 {
        route_type::UNICAST
    } else {
        0
    }
}

/// Whether `destination` is a broadcast address on the link of `device`, which is in
/// the namespace `cookie`. What was found holds until addresses of the namespace
/// change: the kernel counts that, after it has told everybody of the change.
/// (`fib_inetaddr_event()`)
/// <https://github.com/torvalds/linux/blob/v6.18/net/ipv4/fib_frontend.c>
#[inline(always)]
fn is_for_all(work: &mut Work, device: Object, cookie: u64, destination: u32) -> bool {
    if OFF_NET_ADDRESSES.load() == ABSENT || cookie == 0 {
        return is_broadcast(device, destination);
    }
    let net: Object = load(device, &OFF_DEV_NET);
    let addresses: u32 = load(net, &OFF_NET_ADDRESSES);
    // Neighbours differ in their last byte, those on another bridge in the one that tells
    // their subnets apart.
    let hash = u64::from(destination ^ (destination >> 8) ^ (destination >> 16));
    let hash = hash ^ u64::from(destination >> 24);
    let at = account::within::<{ HOST_NOTES as i32 - 1 }>(hash);
    // SAFETY: the index is within the array, and the verifier checks the same.
    let note = unsafe { &mut *(&raw mut work.hosts).cast::<HostNote>().add(at) };
    if note.destination == destination
        && note.addresses == addresses
        && note.cookie == cookie
        && note.device == device as u64
    {
        return false;
    }
    let is = is_broadcast(device, destination);
    if !is {
        *note = HostNote {
            cookie,
            device: device as u64,
            destination,
            addresses,
        };
    }
    is
}

/// Whether `destination` is a broadcast address on the link of `device`: one that
/// was given with an address, or the last of its subnet.
/// (`fib_add_ifaddr()`)
/// <https://github.com/torvalds/linux/blob/v6.18/net/ipv4/fib_frontend.c>
#[inline(never)]
fn is_broadcast(device: Object, destination: u32) -> bool {
    if device.is_null() {
        return false;
    }
    let settings: Object = load(device, &OFF_DEV_IN);
    if settings.is_null() {
        return false;
    }
    // By probes: the verifier follows a typed pointer round a loop for long, and addresses
    // of hosts are remembered.
    let Some(mut address) = probe_member::<u64>(settings as u64, &OFF_IN_ADDRESSES) else {
        return false;
    };
    for _ in 0..ADDRESSES {
        if address == 0 {
            return false;
        }
        let Some(mask) = probe_member::<u32>(address, &OFF_IFA_MASK) else {
            return false;
        };
        let Some(own) = probe_member::<u32>(address, &OFF_IFA_ADDRESS) else {
            return false;
        };
        let Some(broadcast) = probe_member::<u32>(address, &OFF_IFA_BROADCAST) else {
            return false;
        };
        let subnets = (own & mask) | !mask;
        if destination == broadcast
            // A subnet of one or two addresses has none.
            || (destination == subnets && u32::from_be(!mask) > 1)
        {
            return true;
        }
        let Some(next) = probe_member(address, &OFF_IFA_NEXT) else {
            return false;
        };
        address = next;
    }
    false
}

/// A local sender's lookup found nothing, or a route that rejects.
#[inline(never)]
fn not_found(note: &mut FlowNote, flow: Object, table: u32, error: i32, cookie: u64) {
    let destination: u32 = load(flow, &OFF_FL4_DADDR);
    let oif: u32 = load(flow, &OFF_FL4_OIF);
    // For a socket that is bound to an interface the kernel takes the
    // destination to be on that link, routes or not.
    if oif != 0 && (!has_l3mdev(flow) || is_multicast(destination)) {
        account::hit::<FAMILY_IPV4>(note, cookie, ORIGIN_OUTPUT, |key| {
            key.destination = address4(destination);
            key.ifindex = oif;
            key.route_type = route_type::UNICAST;
            key.prefix_len = PREFIX_UNKNOWN;
            key.flags = HIT_IMPLICIT;
        });
        return;
    }
    let (class, route_type) = match error {
        e if e == -EINVAL => (CLASS_BLACKHOLE, route_type::BLACKHOLE),
        e if e == -EHOSTUNREACH => (CLASS_UNREACHABLE, route_type::UNREACHABLE),
        e if e == -EACCES => (CLASS_PROHIBIT, route_type::PROHIBIT),
        _ => (CLASS_NO_ROUTE, 0),
    };
    let key = FailureKey {
        cookie,
        destination: address4(destination),
        reason: 0,
        family: FAMILY_IPV4 as u8,
        origin: ORIGIN_OUTPUT as u8,
        class: class as u8,
        reserved: 0,
    };
    if route_type == 0 {
        account::failure::<FAMILY_IPV4>(note, &key);
        return;
    }
    account::rejected::<FAMILY_IPV4>(note, &key, |key| {
        key.destination = address4(destination);
        key.table = table;
        key.route_type = route_type;
        key.prefix_len = PREFIX_UNKNOWN;
    });
}

/// The hit of a route that rejects.
#[inline(always)]
pub fn rejecting(cookie: u64, destination: u32, table: u32, origin: u32, kind: u8) -> HitKey {
    HitKey {
        cookie,
        destination: address4(destination),
        gateway: [0; 16],
        table,
        ifindex: 0,
        family: FAMILY_IPV4 as u8,
        origin: origin as u8,
        route_type: kind,
        prefix_len: PREFIX_UNKNOWN,
        flags: 0,
        reserved: [0; 3],
    }
}

/// Whether the flow is one of a VRF.
#[inline(always)]
fn has_l3mdev(flow: Object) -> bool {
    OFF_FL4_L3MDEV.load() != ABSENT && load::<u32>(flow, &OFF_FL4_L3MDEV) != 0
}

#[inline(always)]
fn is_multicast(address: u32) -> bool {
    (u32::from_be(address) >> 28) == 0xe
}
