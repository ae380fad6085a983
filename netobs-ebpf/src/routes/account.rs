//! What is counted of a decision, and how it is taken back.
//!
//! The kernel's tracepoints fire per table that is visited. A visit that looks
//! like the end of a decision is counted as such; where another visit for the
//! same flow follows (a rule suppressed the route, or the last table was not
//! the last), what was counted is taken back.

use core::{arch::asm, hint::black_box};

use aya_ebpf::bindings::BPF_NOEXIST;
use netobs_common::routes::{
    FLOW_NOTES, FailureKey, FlowNote, HitKey, Lookups, ORIGIN_FORWARD, STATE_FAILED, STATE_HIT,
    STATE_OPEN, STATE_REJECTED, Work,
};

use crate::{
    kernel::{NETOBS_DETAIL, Object},
    maps,
};

/// `LOOPBACK_IFINDEX`: what flows of local senders have for an input interface.
pub const LOOPBACK: u32 = 1;

/// Local addresses: what every decision looks at first, where rules are used.
pub const TABLE_LOCAL: u32 = 255;
/// Where routes are unless somebody says otherwise.
pub const TABLE_MAIN: u32 = 254;
/// What is looked at last, where it exists.
pub const TABLE_DEFAULT: u32 = 253;

/// Adds with an atomic instruction: a program on another CPU, or one that
/// interrupts us, may add at the same time.
///
/// Rust has no atomic addition for this target, the kernel has had one from its
/// first BPF on.
/// <https://github.com/torvalds/linux/blob/v6.18/Documentation/bpf/standardization/instruction-set.rst>
#[inline(always)]
pub fn add(counter: *mut u64, amount: u64) {
    // SAFETY: the counter is in a map's value: aligned, and alive while we run;
    // the verifier checks both.
    unsafe {
        asm!(
            "lock *(u64 *)({counter} + 0) += {amount}",
            counter = in(reg) counter,
            amount = in(reg) amount,
            options(nostack),
        );
    }
}

/// Whether routes and destinations are counted, not only totals.
#[inline(always)]
pub fn in_detail() -> bool {
    NETOBS_DETAIL.load() != 0
}

/// The address of `object` as a number. The verifier lets nobody calculate with a
/// pointer, but what comes out of a map is none.
#[inline(always)]
fn number(work: &mut Work, object: Object) -> u64 {
    let place = &raw mut work.number;
    // SAFETY: the place is in a map's value. Volatile, so that it goes there.
    unsafe {
        place.write_volatile(object as u64);
        place.read_volatile()
    }
}

/// Takes up `flow`: its notes, and whether this visit belongs to the same decision
/// as the last one there.
///
/// A flow is on the stack, and the next one may be at the same place with the
/// same destination: that of a packet that was passed on to the next namespace.
/// Another packet is another decision, and so is a visit to the table that the
/// flow began with. Where two flows want the same notes, the first is forgotten:
/// notes are per CPU, and nobody waits for the end of a lookup.
#[inline(always)]
pub fn take_up(
    work: &mut Work,
    flow: Object,
    destination: u32,
    iif: u32,
    table: u32,
) -> (&mut FlowNote, bool) {
    let flow = number(work, flow);
    let at = work.received;
    // Stacks are aligned to their size: what tells two apart is in the middle.
    let hash = ((flow >> 12) ^ (flow >> 16)) as u32;
    // SAFETY: the index is within the array, and the verifier checks the same.
    let note = unsafe { &mut *(&raw mut work.flows[0]).add(within(hash, FLOW_NOTES as u32 - 1)) };
    if note.flow == flow
        && note.destination == destination
        && note.iif == iif
        && (iif == LOOPBACK || note.at == at)
        && note.table != table
        && table != TABLE_LOCAL
    {
        return (note, true);
    }
    note.flow = flow;
    note.at = at;
    note.destination = destination;
    note.iif = iif;
    note.table = table;
    note.state = STATE_OPEN;
    (note, false)
}

/// What a namespace begins with; on the stack there is no room for it.
static EMPTY: Lookups = Lookups {
    decisions: [[0; 4]; 2],
    failed: [[0; 4]; 2],
    classes: [0; 8],
};

#[inline(always)]
fn lookups(cookie: u64) -> Option<*mut Lookups> {
    if let Some(found) = maps::NETOBS_LOOKUPS.get_ptr_mut(cookie) {
        return Some(found);
    }
    // Another CPU may have been first; full is the one failure that matters,
    // and the next line tells.
    let _ = maps::NETOBS_LOOKUPS.insert(cookie, &EMPTY, BPF_NOEXIST.into());
    maps::NETOBS_LOOKUPS.get_ptr_mut(cookie)
}

/// `index` in an array whose length is `mask` + 1. The compiler may know the bound
/// already and leave the mask out; the verifier knows nothing unless it sees it.
#[inline(always)]
pub fn within(index: u32, mask: u32) -> usize {
    (black_box(index) & mask) as usize
}

/// Counts a decision of the namespace `cookie` by `amount` (1, or minus 1).
#[inline(always)]
fn decision(cookie: u64, family: u32, origin: u32, amount: u64) {
    let Some(astray) = maps::astray() else { return };
    // SAFETY: only addresses are taken.
    unsafe {
        if cookie == 0 {
            add(&raw mut (*astray).lookups, amount);
            return;
        }
        match lookups(cookie) {
            Some(lookups) => add(
                &raw mut (*lookups).decisions[within(family, 1)][within(origin, 3)],
                amount,
            ),
            None => add(&raw mut (*astray).lookups_full, amount),
        }
    }
}

/// Counts a failure of the namespace in `key`.
#[inline(always)]
fn failed(key: &FailureKey, amount: u64) {
    // SAFETY: only addresses are taken.
    unsafe {
        if key.cookie == 0 {
            if let Some(astray) = maps::astray() {
                add(&raw mut (*astray).failed, amount);
            }
        } else if let Some(lookups) = lookups(key.cookie) {
            add(
                &raw mut (*lookups).failed[within(key.family.into(), 1)]
                    [within(key.origin.into(), 3)],
                amount,
            );
            add(
                &raw mut (*lookups).classes[within(key.class.into(), 7)],
                amount,
            );
        }
    }
    if !in_detail() {
        return;
    }
    if maps::NETOBS_FAILURES.get_ptr_mut(key).is_none() {
        // The least recent one makes room.
        let _ = maps::NETOBS_FAILURES.insert(key, 0, BPF_NOEXIST.into());
    }
    if let Some(count) = maps::NETOBS_FAILURES.get_ptr_mut(key) {
        add(count, amount);
    }
}

/// Counts a hit of a route, without the decision.
#[inline(always)]
fn route_hit(key: &HitKey, amount: u64) {
    if !in_detail() {
        return;
    }
    if let Some(count) = maps::NETOBS_HITS.get_ptr_mut(key) {
        add(count, amount);
        return;
    }
    let _ = maps::NETOBS_HITS.insert(key, 0, BPF_NOEXIST.into());
    match maps::NETOBS_HITS.get_ptr_mut(key) {
        Some(count) => add(count, amount),
        None => {
            if let Some(astray) = maps::astray() {
                // SAFETY: only an address is taken.
                add(unsafe { &raw mut (*astray).hits_full }, amount);
            }
        }
    }
}

/// A decision ended with a route.
#[inline(always)]
pub fn hit(note: &mut FlowNote, key: &HitKey) {
    decision(key.cookie, key.family.into(), key.origin.into(), 1);
    route_hit(key, 1);
    note.state = STATE_HIT;
    remember_hit(note, key);
}

#[inline(always)]
fn remember_hit(note: &mut FlowNote, key: &HitKey) {
    if in_detail() {
        note.hit = *key;
    } else {
        note.hit.cookie = key.cookie;
        note.hit.family = key.family;
        note.hit.origin = key.origin;
    }
}

/// A decision failed.
#[inline(always)]
pub fn failure(note: &mut FlowNote, key: &FailureKey) {
    decision(key.cookie, key.family.into(), key.origin.into(), 1);
    failed(key, 1);
    note.state = STATE_FAILED;
    if in_detail() {
        note.failure = *key;
    } else {
        note.failure.cookie = key.cookie;
        note.failure.family = key.family;
        note.failure.origin = key.origin;
        note.failure.class = key.class;
    }
}

/// A decision ended with a route that rejects: a hit of that route, and a
/// failure.
#[inline(always)]
pub fn rejected(note: &mut FlowNote, hit: &HitKey, key: &FailureKey) {
    failure(note, key);
    route_hit(hit, 1);
    remember_hit(note, hit);
    note.state = STATE_REJECTED;
}

/// A packet failed after its decision, or without one: `counted` tells which.
#[inline(always)]
pub fn dropped(key: &FailureKey, counted: bool) {
    if !counted {
        decision(key.cookie, key.family.into(), key.origin.into(), 1);
    }
    failed(key, 1);
}

/// The same for a route that rejects.
#[inline(always)]
pub fn dropped_by(hit: &HitKey, key: &FailureKey) {
    dropped(key, false);
    route_hit(hit, 1);
}

/// Takes back what was counted for the flow, whose decision goes on in the
/// namespace `cookie` (0 for unknown); true where that was a forwarded packet's,
/// which counts for its sender once.
#[inline(always)]
pub fn take_back(note: &mut FlowNote, cookie: u64) -> bool {
    const BACK: u64 = u64::MAX;
    let state = note.state;
    if state == STATE_OPEN {
        return false;
    }
    note.state = STATE_OPEN;
    let (hit, failure) = (note.hit, note.failure);
    let counted = if state == STATE_HIT {
        hit.cookie
    } else {
        failure.cookie
    };
    // A decision stays in its namespace: this was another.
    if cookie != 0 && counted != 0 && counted != cookie {
        return false;
    }
    if state != STATE_FAILED {
        route_hit(&hit, BACK);
    }
    let (family, origin) = if state == STATE_HIT {
        (hit.family, hit.origin)
    } else {
        failed(&failure, BACK);
        (failure.family, failure.origin)
    };
    decision(counted, family.into(), origin.into(), BACK);
    u32::from(origin) == ORIGIN_FORWARD
}
