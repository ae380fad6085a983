//! On whose behalf the host forwards.

use netobs_common::routes::BehalfKey;

use crate::{account, kernel::NETOBS_HOST, maps};

/// Counts what the namespace `cookie`, if that is the host's, forwards for `source`
/// behind the interface `ifindex`; for the program of visits of that family alone.
#[inline(always)]
pub fn forwarded<const FAMILY: u32>(cookie: u64, ifindex: u32, source: [u8; 16]) {
    if cookie != NETOBS_HOST.load() {
        return;
    }
    let source = halves(source);
    // SAFETY: the tally is in a map's value, alive while we run. On this CPU nobody
    // else writes it.
    if let Some(tally) = maps::behalf_tally(FAMILY, source, ifindex)
        && unsafe { (*tally).key.ifindex == ifindex && halves((*tally).key.source) == source }
    {
        // SAFETY: likewise.
        unsafe { (*tally).count += 1 };
        return;
    }
    first_forwarded(FAMILY, ifindex, source[0], source[1]);
}

/// The same for a source without a tally, which it gets if user space knows it and no
/// other has its place.
#[inline(never)]
fn first_forwarded(family: u32, ifindex: u32, source: u64, rest: u64) {
    let source = [source, rest];
    let key = key(family, ifindex, source);
    if !shared(&key) {
        return;
    }
    let family = account::within::<1>(family.into()) as u32;
    if let Some(tally) = maps::behalf_tally(family, source, ifindex) {
        // SAFETY: see above.
        unsafe {
            if (*tally).key.ifindex == 0 {
                (*tally).count = 0;
                (*tally).key = key;
            }
        }
    }
}

/// Counts what the namespace `cookie` drops instead. The program of visits may be under
/// way on this CPU.
#[inline(always)]
pub fn dropped(cookie: u64, ifindex: u32, family: u32, source: [u8; 16]) {
    if cookie == NETOBS_HOST.load() {
        shared(&key(family, ifindex, halves(source)));
    }
}

/// Counts for `key` if user space knows it: a flood of made-up sources fills nothing.
#[inline(always)]
fn shared(key: &BehalfKey) -> bool {
    let Some(behalf) = maps::NETOBS_BEHALF.get_ptr_mut(key) else {
        return false;
    };
    // Its first field is the count.
    account::add(behalf.cast(), 1);
    true
}

#[inline(always)]
fn key(family: u32, ifindex: u32, source: [u64; 2]) -> BehalfKey {
    BehalfKey {
        // SAFETY: both are 16 bytes of plain data.
        source: unsafe { core::mem::transmute::<[u64; 2], [u8; 16]>(source) },
        ifindex,
        family,
    }
}

#[inline(always)]
fn halves(source: [u8; 16]) -> [u64; 2] {
    // SAFETY: both are 16 bytes of plain data.
    unsafe { core::mem::transmute(source) }
}
