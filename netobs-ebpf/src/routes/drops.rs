//! What becomes of received packets: where one begins, and IPv4 packets that
//! are dropped for want of a usable route.
//!
//! Received packets whose lookup fails get a destination that drops them:
//! `ip_error()` in
//! <https://github.com/torvalds/linux/blob/v6.18/net/ipv4/route.c>.

use aya_ebpf::programs::BtfTracePointContext;
use netobs_common::routes::{
    ABSENT, ARP_NOTES, ArpNote, CLASS_BLACKHOLE, CLASS_MARTIAN, CLASS_NO_ROUTE, CLASS_PROHIBIT,
    CLASS_RP_FILTER, CLASS_UNREACHABLE, FAMILY_IPV4, FailureKey, ORIGIN_FORWARD, ORIGIN_INPUT,
    Work,
};

use crate::{
    account, behalf,
    ipv4::{rejecting, route_type},
    kernel::*,
    maps,
};

const ETH_P_IP: u16 = 0x0800;
const ETH_P_ARP: u16 = 0x0806;
const ETH_P_8021Q: u16 = 0x8100;
const ARPOP_REQUEST: u16 = 1;

/// The low bits of `_skb_refdst` are flags.
/// <https://github.com/torvalds/linux/blob/v6.18/include/linux/skbuff.h>
const DST_FLAGS: u64 = 7;

const EACCES: u16 = 13;
const EINVAL: u16 = 22;
const ENETUNREACH: u16 = 101;
const EHOSTUNREACH: u16 = 113;

/// An ARP packet for IPv4 over hardware addresses of up to 8 bytes.
#[repr(C)]
#[derive(Clone, Copy)]
struct ArpHead {
    hardware: u16,
    protocol: u16,
    hardware_len: u8,
    protocol_len: u8,
    operation: u16,
}

/// A packet came in. Counting them tells the lookup of one from the lookup of
/// the next; ARP requests are noted, since the kernel looks up a route for each.
#[inline(always)]
pub fn received(ctx: &BtfTracePointContext) {
    let packet: Object = ctx.arg(0);
    let Some(work) = maps::work() else { return };
    work.received += 1;
    let protocol = u16::from_be(load(packet, &OFF_SKB_PROTOCOL));
    if protocol == ETH_P_ARP || protocol == ETH_P_8021Q {
        arp(work, load(packet, &OFF_SKB_DATA), protocol);
    }
}

#[inline(never)]
fn arp(work: &mut Work, data: u64, protocol: u16) {
    let mut data = data;
    if protocol == ETH_P_8021Q {
        // A tag in the data: two bytes of it, then what it wraps.
        if probe::<u16>(data + 2) != Some(ETH_P_ARP.to_be()) {
            return;
        }
        data += 4;
    }
    let Some(head) = probe::<ArpHead>(data) else {
        return;
    };
    if head.operation != ARPOP_REQUEST.to_be() || head.protocol != ETH_P_IP.to_be() {
        return;
    }
    let sender = data + 8 + u64::from(head.hardware_len);
    let target = sender + 4 + u64::from(head.hardware_len);
    let (Some(sender), Some(target)) = (probe::<u32>(sender), probe::<u32>(target)) else {
        return;
    };
    // The same request may come by several interfaces, one above the other, and is
    // looked up once.
    work.arp_at = work.received;
    for note in &mut work.arp {
        if note.sender == sender && note.target == target {
            note.at = work.received;
            return;
        }
    }
    let at = account::within::<{ ARP_NOTES as i32 - 1 }>(work.arp_next);
    work.arp_next += 1;
    // SAFETY: the index is within the array, and the verifier checks the same.
    let note = unsafe { &mut *(&raw mut work.arp[0]).add(at) };
    *note = ArpNote {
        at: work.received,
        sender,
        target,
    };
}

/// A packet is dropped.
#[inline(always)]
pub fn dropped(ctx: &BtfTracePointContext) {
    let reason = ctx.arg::<u64>(2) as u32;
    let Some(cause) = cause(reason) else {
        return;
    };
    let packet: Object = ctx.arg(0);
    if load::<u16>(packet, &OFF_SKB_PROTOCOL) != ETH_P_IP.to_be() {
        return;
    }
    let Some((class, kind)) = class(packet, cause) else {
        return;
    };
    let device: Object = load(packet, &OFF_SKB_DEV);
    let head: u64 = load(packet, &OFF_SKB_HEAD);
    let header = head + u64::from(load::<u16>(packet, &OFF_SKB_NETWORK));
    // Source and destination, as the IPv4 header has them.
    let Some([source, destination]) = probe::<[u32; 2]>(header + 12) else {
        return;
    };
    let Some(work) = maps::work() else { return };
    let counted = if work.input_at == work.received
        && work.input_source == source
        && work.input_destination == destination
    {
        work.input_counted
    } else {
        0
    };
    let origin = match counted {
        // Without a decision: for a group, or from where nothing may come.
        0 if class == CLASS_MARTIAN || class == CLASS_RP_FILTER => ORIGIN_INPUT,
        0 => ORIGIN_FORWARD,
        counted => counted - 1,
    };
    let cookie = cookie_of(device);
    let key = FailureKey {
        cookie,
        destination: address4(destination),
        reason,
        family: FAMILY_IPV4 as u8,
        origin: origin as u8,
        class: class as u8,
        reserved: 0,
    };
    if counted == 0 && origin == ORIGIN_FORWARD && !device.is_null() {
        let ifindex = load(device, &OFF_DEV_IFINDEX);
        behalf::dropped(cookie, ifindex, FAMILY_IPV4, address4(source));
    }
    if counted == 0 && kind != 0 {
        let hit = rejecting(cookie, destination, 0, origin, kind);
        account::dropped_by(&hit, &key);
    } else {
        account::dropped(&key, counted != 0);
    }
}

#[inline(always)]
fn is(reason: u32, known: u32) -> bool {
    known != ABSENT && reason == known
}

/// What a drop is about, by its reason.
#[derive(Clone, Copy)]
enum Cause {
    RpFilter,
    Martian,
    /// The packet's destination has an error that tells.
    Destination,
}

#[inline(always)]
fn cause(reason: u32) -> Option<Cause> {
    if is(reason, REASON_RPFILTER.load()) {
        return Some(Cause::RpFilter);
    }
    if is(reason, REASON_LOCAL_SOURCE.load())
        || is(reason, REASON_INVALID_SOURCE.load())
        || is(reason, REASON_LOCALNET.load())
        || is(reason, REASON_INVALID_DEST.load())
    {
        return Some(Cause::Martian);
    }
    let by_destination = is(reason, REASON_NOT_SPECIFIED.load())
        || is(reason, REASON_INNOROUTES.load())
        || is(reason, REASON_INADDRERRORS.load());
    by_destination.then_some(Cause::Destination)
}

/// The class of the failure and the type of the route that rejected, 0 for
/// none; nothing where the drop has other reasons.
#[inline(always)]
fn class(packet: Object, cause: Cause) -> Option<(u32, u8)> {
    match cause {
        Cause::RpFilter => return Some((CLASS_RP_FILTER, 0)),
        Cause::Martian => return Some((CLASS_MARTIAN, 0)),
        Cause::Destination => {}
    }
    let destination = load::<u64>(packet, &OFF_SKB_DST) & !DST_FLAGS;
    if destination == 0 {
        return None;
    }
    let error: i16 = probe(destination + u64::from(OFF_DST_ERROR.load()))?;
    match error.unsigned_abs() {
        ENETUNREACH => Some((CLASS_NO_ROUTE, 0)),
        EHOSTUNREACH => Some((CLASS_UNREACHABLE, route_type::UNREACHABLE)),
        EINVAL => Some((CLASS_BLACKHOLE, route_type::BLACKHOLE)),
        EACCES => Some((CLASS_PROHIBIT, route_type::PROHIBIT)),
        _ => None,
    }
}
