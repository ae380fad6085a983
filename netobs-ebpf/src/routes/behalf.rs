//! On whose behalf the host forwards.

use netobs_common::routes::BehalfKey;

use crate::{account, kernel::NETOBS_HOST, maps};

/// Counts what the namespace `cookie`, if that is the host's, forwards for
/// `source` behind the interface `ifindex`.
#[inline(always)]
pub fn forwarded(cookie: u64, ifindex: u32, family: u32, source: [u8; 16]) {
    if cookie != NETOBS_HOST.load() {
        return;
    }
    let key = BehalfKey {
        source,
        ifindex,
        family,
    };
    // Only addresses that user space knows have an entry: a flood of made-up
    // sources fills nothing.
    if let Some(behalf) = maps::NETOBS_BEHALF.get_ptr_mut(key) {
        // Its first field is the count.
        account::add(behalf.cast(), 1);
    }
}
