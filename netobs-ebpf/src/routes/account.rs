//! What is counted of a decision, and how it is taken back.
//!
//! The kernel's tracepoints fire per table that is visited. A visit that looks
//! like the end of a decision is counted as such; where another visit for the
//! same flow follows (a rule suppressed the route, or the last table was not
//! the last), what was counted is taken back.

use core::arch::asm;

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
fn number<const FAMILY: u32>(work: &mut Work, object: Object) -> u64 {
    let place = &raw mut work.numbers[FAMILY as usize];
    // SAFETY: the place is in a map's value. Volatile, so that it goes there.
    unsafe {
        place.write_volatile(object as u64);
        place.read_volatile()
    }
}

/// Takes up `flow`: its notes, and what was counted for it in them, which is nothing
/// unless this visit belongs to the same decision as the last one there.
///
/// A flow is on the stack, and the next one may be at the same place with the
/// same destination: that of a packet that was passed on to the next namespace.
/// Another packet is another decision, and so is a visit to the table that the
/// flow began with. Where two flows want the same notes, the first is forgotten:
/// notes are per CPU, and nobody waits for the end of a lookup.
#[inline(always)]
pub fn take_up<const FAMILY: u32>(
    work: &mut Work,
    flow: Object,
    destination: u32,
    iif: u32,
    table: u32,
) -> &mut FlowNote {
    let flow = number::<FAMILY>(work, flow);
    let at = work.received;
    // Stacks are aligned to their size: what tells two apart is in the middle.
    let hash = (flow >> 12) ^ (flow >> 16);
    let notes = &raw mut work.flows[FAMILY as usize];
    // SAFETY: the index is within the array, and the verifier checks the same.
    let note = unsafe {
        &mut *notes
            .cast::<FlowNote>()
            .add(within::<{ FLOW_NOTES as i32 - 1 }>(hash))
    };
    if note.flow == flow
        && note.destination == destination
        && note.iif == iif
        && (iif == LOOPBACK || note.at == at)
        && note.table != table
        && table != TABLE_LOCAL
    {
        return note;
    }
    note.flow = flow;
    note.at = at;
    note.destination = destination;
    note.iif = iif;
    note.table = table;
    note.state = STATE_OPEN;
    note
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

/// `index` in an array whose length is `MASK` + 1. The compiler may know the bound
/// already and would leave the mask out; the verifier knows nothing unless it sees it.
#[inline(always)]
pub fn within<const MASK: i32>(index: u64) -> usize {
    let mut index = index;
    // SAFETY: arithmetic.
    unsafe {
        asm!(
            "{index} &= {mask}",
            index = inout(reg) index,
            mask = const MASK,
            options(pure, nomem, nostack),
        );
    }
    index as usize
}

/// Counts a decision by `amount` (1, or minus 1), for the program of its family alone.
///
/// The kernel lets no program interrupt itself, so that on this CPU nobody else
/// writes this tally, and it needs no atomic addition.
#[inline(always)]
fn decision<const FAMILY: u32>(cookie: u64, origin: u32, amount: u64) {
    // SAFETY: the tally is in a map's value, alive while we run.
    if cookie != 0
        && let Some(tally) = maps::tally(FAMILY, cookie)
        && unsafe { (*tally).cookie } == cookie
    {
        // SAFETY: likewise, and the index is within the array.
        unsafe {
            let counts = (&raw mut (*tally).decisions).cast::<u64>();
            *counts.add(within::<3>(origin.into())) += amount;
        }
        return;
    }
    first_decision(cookie, FAMILY, origin, amount);
}

/// The same where the namespace has no tally: it gets one, unless another has its place.
#[inline(never)]
fn first_decision(cookie: u64, family: u32, origin: u32, amount: u64) {
    if !shared_decision(cookie, family, origin, amount) {
        return;
    }
    let family = within::<1>(family.into()) as u32;
    if let Some(tally) = maps::tally(family, cookie) {
        // SAFETY: see above.
        unsafe {
            if (*tally).cookie == 0 {
                (*tally).decisions = [0; 4];
                (*tally).cookie = cookie;
            }
        }
    }
}

/// Counts a decision by `amount` for whoever asks; true where the namespace has room.
#[inline(always)]
fn shared_decision(cookie: u64, family: u32, origin: u32, amount: u64) -> bool {
    // SAFETY: only addresses are taken, of what is within the arrays.
    unsafe {
        if cookie != 0
            && let Some(lookups) = lookups(cookie)
        {
            let counts = (&raw mut (*lookups).decisions).cast::<u64>();
            let at = within::<1>(family.into()) * 4 + within::<3>(origin.into());
            add(counts.add(at), amount);
            return true;
        }
        if let Some(astray) = maps::astray() {
            let count = if cookie == 0 {
                &raw mut (*astray).lookups
            } else {
                &raw mut (*astray).lookups_full
            };
            add(count, amount);
        }
        false
    }
}

/// Counts a failure of the namespace in `key`.
#[inline(never)]
fn failed(key: &FailureKey, amount: u64) {
    // SAFETY: only addresses are taken, of what is within the arrays.
    unsafe {
        if key.cookie == 0 {
            if let Some(astray) = maps::astray() {
                add(&raw mut (*astray).failed, amount);
            }
        } else if let Some(lookups) = lookups(key.cookie) {
            let counts = (&raw mut (*lookups).failed).cast::<u64>();
            let at = within::<1>(key.family.into()) * 4 + within::<3>(key.origin.into());
            add(counts.add(at), amount);
            let classes = (&raw mut (*lookups).classes).cast::<u64>();
            add(classes.add(within::<7>(key.class.into())), amount);
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
    match maps::NETOBS_HITS.get_ptr_mut(key) {
        Some(count) => add(count, amount),
        None => first_hit(key, amount),
    }
}

#[inline(never)]
fn first_hit(key: &HitKey, amount: u64) {
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

/// A decision of the namespace `cookie` ended with a route. What it is, `describe`
/// writes into a key that has zeros; it is asked only where routes are counted.
#[inline(always)]
pub fn hit<const FAMILY: u32>(
    note: &mut FlowNote,
    cookie: u64,
    origin: u32,
    describe: impl FnOnce(&mut HitKey),
) {
    counted::<FAMILY>(note, STATE_HIT, cookie, origin);
    note_hit::<FAMILY>(note, cookie, origin, describe);
}

/// Counts a decision, and notes for whom.
#[inline(always)]
fn counted<const FAMILY: u32>(note: &mut FlowNote, state: u32, cookie: u64, origin: u32) {
    decision::<FAMILY>(cookie, origin, 1);
    note.state = state;
    note.cookie = cookie;
    note.origin = origin.into();
}

/// Counts a hit. The key is made where it stays: it is large.
#[inline(always)]
fn note_hit<const FAMILY: u32>(
    note: &mut FlowNote,
    cookie: u64,
    origin: u32,
    describe: impl FnOnce(&mut HitKey),
) {
    if !in_detail() {
        return;
    }
    let key = &mut note.hit;
    // SAFETY: it is seven words. Volatile: of what is left between the fields that are
    // written below the compiler makes calls that write byte by byte.
    unsafe { (&raw mut *key).cast::<[u64; 7]>().write_volatile([0; 7]) };
    key.cookie = cookie;
    key.family = FAMILY as u8;
    key.origin = origin as u8;
    describe(key);
    route_hit(key, 1);
}

/// A decision failed.
#[inline(always)]
pub fn failure<const FAMILY: u32>(note: &mut FlowNote, key: &FailureKey) {
    counted::<FAMILY>(note, STATE_FAILED, key.cookie, key.origin.into());
    // The verifier follows a pointer into a map more surely than one to our stack.
    note.failure = *key;
    failed(&note.failure, 1);
}

/// A decision failed by a route that rejects: a hit of that route, which `describe`
/// writes into a key, and a failure.
#[inline(always)]
pub fn rejected<const FAMILY: u32>(
    note: &mut FlowNote,
    key: &FailureKey,
    describe: impl FnOnce(&mut HitKey),
) {
    failure::<FAMILY>(note, key);
    note.state = STATE_REJECTED;
    note_hit::<FAMILY>(note, key.cookie, key.origin.into(), describe);
}

/// A packet failed after its decision, or without one: `counted` tells which.
#[inline(always)]
pub fn dropped(key: &FailureKey, counted: bool) {
    if !counted {
        // The program for visits may be under way on this CPU.
        shared_decision(key.cookie, key.family.into(), key.origin.into(), 1);
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
pub fn take_back<const FAMILY: u32>(note: &mut FlowNote, cookie: u64) -> bool {
    note.state != STATE_OPEN && take_back_counted::<FAMILY>(note, cookie)
}

#[inline(never)]
fn take_back_counted<const FAMILY: u32>(note: &mut FlowNote, cookie: u64) -> bool {
    const BACK: u64 = u64::MAX;
    let state = note.state;
    note.state = STATE_OPEN;
    let (counted, origin) = (note.cookie, note.origin as u32);
    // A decision stays in its namespace: this was another.
    if cookie != 0 && counted != 0 && counted != cookie {
        return false;
    }
    if state != STATE_FAILED {
        route_hit(&note.hit, BACK);
    }
    if state != STATE_HIT {
        failed(&note.failure, BACK);
    }
    decision::<FAMILY>(counted, origin, BACK);
    origin == ORIGIN_FORWARD
}
