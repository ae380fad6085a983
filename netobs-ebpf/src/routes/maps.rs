//! The maps, BTF-typed so that `bpftool map dump` prints their fields. The
//! sizes here are placeholders: the loader sets the real ones.

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    btf_maps::{Array, HashMap, LruHashMap, PerCpuArray, PerCpuHashMap},
    helpers::bpf_get_smp_processor_id,
    macros::btf_map,
};
use netobs_common::routes::{
    Astray, Behalf, BehalfKey, BehalfTally, FailureKey, HitKey, Lookups, Sender, Tally, Work,
    behalf_index, tally_index,
};

/// Memory as entries come: most machines have few.
const GROW: usize = BPF_F_NO_PREALLOC as usize;

/// User space reads it without a system call, and gives single entries back.
const BPF_F_MMAPABLE: usize = 1 << 10;

#[btf_map]
static NETOBS_TALLIES: Array<Tally, 1, BPF_F_MMAPABLE> = Array::new();

#[btf_map]
pub static NETOBS_LOOKUPS: PerCpuHashMap<u64, Lookups, 1, GROW> = PerCpuHashMap::new();

#[btf_map]
pub static NETOBS_HITS: HashMap<HitKey, u64, 1, GROW> = HashMap::new();

#[btf_map]
pub static NETOBS_FAILURES: LruHashMap<FailureKey, u64, 1> = LruHashMap::new();

#[btf_map]
pub static NETOBS_SENDERS: LruHashMap<u32, Sender, 1> = LruHashMap::new();

#[btf_map]
pub static NETOBS_BEHALF: HashMap<BehalfKey, Behalf, 1, GROW> = HashMap::new();

#[btf_map]
static NETOBS_BEHALF_T: Array<BehalfTally, 1, BPF_F_MMAPABLE> = Array::new();

#[btf_map]
static NETOBS_WORK: PerCpuArray<Work, 1> = PerCpuArray::new();

#[btf_map]
static NETOBS_ASTRAY: PerCpuArray<Astray, 1> = PerCpuArray::new();

/// This CPU's notes on what is under way.
///
/// A program that runs for a received packet may interrupt one that runs for a
/// local sender: notes on flows are by family and flow, and all others are written for
/// received packets only, of which a CPU handles one at a time. The kernel lets no
/// program interrupt itself.
#[inline(always)]
pub fn work() -> Option<&'static mut Work> {
    // SAFETY: per CPU, see above; the map outlives the program.
    NETOBS_WORK.get_ptr_mut(0).map(|work| unsafe { &mut *work })
}

/// Where this CPU may have a tally of the namespace `cookie`.
#[inline(always)]
pub fn tally(family: u32, cookie: u64) -> Option<*mut Tally> {
    // SAFETY: the helper has no preconditions.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    NETOBS_TALLIES.get_ptr_mut(tally_index(cpu, family, cookie))
}

/// This CPU's record of what is in no account.
#[inline(always)]
pub fn astray() -> Option<*mut Astray> {
    NETOBS_ASTRAY.get_ptr_mut(0)
}

/// Where this CPU may have a tally of what is forwarded for `source`.
#[inline(always)]
pub fn behalf_tally(family: u32, source: [u64; 2], ifindex: u32) -> Option<*mut BehalfTally> {
    // SAFETY: the helper has no preconditions.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    NETOBS_BEHALF_T.get_ptr_mut(behalf_index(cpu, family, source, ifindex))
}
