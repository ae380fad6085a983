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

/// One visit to a table.
#[inline(always)]
pub fn visit(ctx: &BtfTracePointContext) {
    let table = ctx.arg::<u64>(0) as u32;
    let object: Object = ctx.arg(1);
    let hop: Object = ctx.arg(2);
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
        sent(work, &flow, table, hop, error);
    } else {
        received(work, &flow, table, hop, error);
    }
}

/// A local sender asks.
#[inline(always)]
fn sent(work: &mut Work, flow: &Flow, table: u32, hop: Object, error: i32) {
    if checks_source(work, flow) {
        return;
    }
    let note =
        account::take_up::<FAMILY_IPV4>(work, flow.object, flow.destination, flow.iif, table);
    if error == 0 {
        found(note, flow, table, hop);
    } else if error != -EAGAIN || table == TABLE_MAIN || table == TABLE_DEFAULT {
        not_found(note, flow.object, table, error);
    } else if note.state == STATE_HIT {
        // The kernel goes on, so what it met before was not what it took; and if
        // there is nothing more, this was the end.
        not_found(note, flow.object, table, error);
    }
}

/// A received packet.
#[inline(always)]
fn received(work: &mut Work, flow: &Flow, table: u32, hop: Object, error: i32) {
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
    if error == 0 {
        if !hop.is_null() {
            work.input_counted = 1 + routed(work, flow, table, hop);
        }
        return;
    }
    let note =
        account::take_up::<FAMILY_IPV4>(work, flow.object, flow.destination, flow.iif, table);
    // Without a route it is dropped, and counted there: the drop tells its namespace.
    let goes_on = error == -EAGAIN && table != TABLE_MAIN && table != TABLE_DEFAULT;
    if !goes_on || note.state == STATE_HIT {
        account::take_back::<FAMILY_IPV4>(note, 0);
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
fn hop_asks_no_ports(hop: Object) -> bool {
    if OFF_NET_DISSECT.load() == ABSENT || hop.is_null() {
        return false;
    }
    let device: Object = load(hop, &OFF_NHC_DEV);
    if device.is_null() {
        return false;
    }
    let net: Object = load(device, &OFF_DEV_NET);
    !net.is_null() && load::<u32>(net, &OFF_NET_DISSECT) == 0
}

/// A local sender found a route.
#[inline(always)]
fn found(note: &mut FlowNote, flow: &Flow, table: u32, hop: Object) {
    if hop.is_null() {
        return;
    }
    let cookie = cookie_of(load(hop, &OFF_NHC_DEV));
    account::take_back::<FAMILY_IPV4>(note, cookie);
    account::hit::<FAMILY_IPV4>(note, cookie, ORIGIN_OUTPUT, |key| {
        describe(key, flow.destination, table, hop);
        key.route_type = hop_type(hop);
    });
}

/// A route was found for a received packet; gives its origin.
#[inline(always)]
fn routed(work: &mut Work, flow: &Flow, table: u32, hop: Object) -> u32 {
    let device: Object = load(hop, &OFF_NHC_DEV);
    let cookie = cookie_of(device);
    let mut kind = hop_type(hop);
    // What is received for a neighbour of ours may be for all of them. The last two
    // bits of a broadcast address are equal, since a subnet that has one is no smaller.
    let last = u32::from_be(flow.destination) & 3;
    if kind == 0 && (last == 3 || last == 0) && is_for_all(work, device, cookie, flow.destination) {
        kind = route_type::BROADCAST;
    }
    let origin = match kind {
        route_type::LOCAL | route_type::BROADCAST => ORIGIN_INPUT,
        _ => ORIGIN_FORWARD,
    };
    let note =
        account::take_up::<FAMILY_IPV4>(work, flow.object, flow.destination, flow.iif, table);
    let again = account::take_back::<FAMILY_IPV4>(note, cookie);
    account::hit::<FAMILY_IPV4>(note, cookie, origin, |key| {
        describe(key, flow.destination, table, hop);
        key.route_type = kind;
    });
    if origin == ORIGIN_FORWARD && !again {
        behalf::forwarded::<FAMILY_IPV4>(cookie, flow.iif, address4(flow.source));
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
    // Neighbours differ in their last byte.
    let hash = u64::from(u32::from_be(destination)) >> 1;
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
    let mut address: Object = load(settings, &OFF_IN_ADDRESSES);
    for _ in 0..ADDRESSES {
        if address.is_null() {
            return false;
        }
        let mask: u32 = load(address, &OFF_IFA_MASK);
        let own: u32 = load(address, &OFF_IFA_ADDRESS);
        let subnets = (own & mask) | !mask;
        if destination == load::<u32>(address, &OFF_IFA_BROADCAST)
            // A subnet of one or two addresses has none.
            || (destination == subnets && u32::from_be(!mask) > 1)
        {
            return true;
        }
        address = load(address, &OFF_IFA_NEXT);
    }
    false
}

/// A local sender's lookup found nothing, or a route that rejects.
#[inline(never)]
fn not_found(note: &mut FlowNote, flow: Object, table: u32, error: i32) {
    let destination: u32 = load(flow, &OFF_FL4_DADDR);
    let cookie = senders::cookie_for(destination);
    account::take_back::<FAMILY_IPV4>(note, cookie);
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
