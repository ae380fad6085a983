//! IPv6 decisions, from visits to tables: `fib6_table_lookup()` in
//! <https://github.com/torvalds/linux/blob/v6.18/net/ipv6/route.c>.

use core::hint::black_box;

use aya_ebpf::programs::BtfTracePointContext;
use netobs_common::routes::{
    CLASS_BLACKHOLE, CLASS_NO_ROUTE, CLASS_PROHIBIT, CLASS_UNREACHABLE, FAMILY_IPV6, FailureKey,
    HIT_GATEWAY6, HitKey, ORIGIN_FORWARD, ORIGIN_INPUT, ORIGIN_OUTPUT,
};

use crate::{
    account::{self, LOOPBACK, TABLE_MAIN},
    behalf,
    ipv4::route_type,
    kernel::*,
    maps,
};

const AF_INET6: u8 = 10;
/// `RTN_THROW`: look in the next table.
const THROW: u8 = 9;

/// No class of failures. An `Option` would be less plain to the verifier: what
/// the compiler leaves in the place of an absent value may be a pointer.
const SUCCESS: u32 = u32::MAX;

/// One visit to a table.
#[inline(always)]
pub fn visit(ctx: &BtfTracePointContext) {
    let net: Object = ctx.arg(0);
    let result: Object = ctx.arg(1);
    let table: Object = ctx.arg(2);
    let flow: Object = ctx.arg(3);

    let iif: u32 = load(flow, &OFF_FL6_IIF);
    if iif == 0 || (iif == LOOPBACK && load::<u8>(flow, &OFF_FL6_PROTO) == 0) {
        return;
    }
    let cookie: u64 = load(net, &OFF_NET_COOKIE);
    let table: u32 = load(table, &OFF_TB6_ID);
    let destination = load_address6(flow, &OFF_FL6_DADDR);
    let none: Object = load(net, &OFF_NET_NULL6);
    // A value of its own, and pointers that are read anew where they are used:
    // the compiler would calculate with them, which the verifier forbids.
    let is_none = black_box(load::<Object>(result, &OFF_RES6_F6I) == none);
    let kind: u8 = load(result, &OFF_RES6_TYPE);
    let finds_nothing = is_none || kind == THROW;
    let Some(work) = maps::work() else { return };
    let note = account::take_up::<FAMILY_IPV6>(work, flow, fold(&destination), iif, table);
    // What it met before it did not take.
    let again = account::take_back::<FAMILY_IPV6>(note, cookie);
    if finds_nothing && table != TABLE_MAIN {
        // The kernel goes on; in the main table it ends.
        return;
    }
    let class = match kind {
        _ if finds_nothing => CLASS_NO_ROUTE,
        route_type::BLACKHOLE => CLASS_BLACKHOLE,
        route_type::UNREACHABLE => CLASS_UNREACHABLE,
        route_type::PROHIBIT => CLASS_PROHIBIT,
        _ => SUCCESS,
    };
    let origin = match kind {
        _ if iif == LOOPBACK => ORIGIN_OUTPUT,
        route_type::LOCAL | route_type::ANYCAST | route_type::MULTICAST => ORIGIN_INPUT,
        _ => ORIGIN_FORWARD,
    };
    let failure = |class: u32| FailureKey {
        cookie,
        destination,
        reason: 0,
        family: FAMILY_IPV6 as u8,
        origin: origin as u8,
        class: class as u8,
        reserved: 0,
    };
    if origin == ORIGIN_FORWARD && !again {
        let source = load_address6(flow, &OFF_FL6_SADDR);
        behalf::forwarded::<FAMILY_IPV6>(cookie, iif, source);
    }
    match class {
        SUCCESS => account::hit::<FAMILY_IPV6>(note, cookie, origin, |key| {
            describe(key, result, table, kind);
        }),
        CLASS_NO_ROUTE => account::failure::<FAMILY_IPV6>(note, &failure(class)),
        class => account::rejected::<FAMILY_IPV6>(note, &failure(class), |key| {
            describe(key, result, table, kind);
        }),
    }
}

/// What the route tells.
#[inline(always)]
fn describe(key: &mut HitKey, result: Object, table: u32, kind: u8) {
    let route: Object = load(result, &OFF_RES6_F6I);
    key.destination = load_address6(route, &OFF_F6I_ADDR);
    key.table = table;
    key.route_type = kind;
    key.prefix_len = load::<u32>(route, &OFF_F6I_LEN) as u8;
    (key.gateway, key.flags, key.ifindex) = next_hop(load(result, &OFF_RES6_NH));
}

#[inline(always)]
fn next_hop(hop: Object) -> ([u8; 16], u8, u32) {
    if hop.is_null() {
        return ([0; 16], 0, 0);
    }
    // The common part is a structure inside: its offset adds to theirs.
    let at = OFF_NH6_COMMON.load();
    let device: Object = load_at(hop, at + OFF_NHC_DEV.load());
    let ifindex = if device.is_null() {
        0
    } else {
        load(device, &OFF_DEV_IFINDEX)
    };
    if load_at::<u8>(hop, at + OFF_NHC_GW_FAMILY.load()) != AF_INET6 {
        return ([0; 16], 0, ifindex);
    }
    let gateway = at + OFF_NHC_GW.load();
    let words_ = words([
        load_at(hop, gateway),
        load_at(hop, gateway + 4),
        load_at(hop, gateway + 8),
        load_at(hop, gateway + 12),
    ]);
    (words_, HIT_GATEWAY6, ifindex)
}

/// Enough of an address to tell one flow from the next.
#[inline(always)]
fn fold(address: &[u8; 16]) -> u32 {
    // SAFETY: both are 16 bytes of plain data.
    let words: [u32; 4] = unsafe { core::mem::transmute(*address) };
    words[0] ^ words[1].rotate_left(8) ^ words[2].rotate_left(16) ^ words[3]
}
