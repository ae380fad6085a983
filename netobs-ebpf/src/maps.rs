//! The maps, BTF-typed so that `bpftool map dump` prints their fields. The
//! sizes here are placeholders: the loader sets the real ones.

use aya_ebpf::{
    Global,
    bindings::BPF_F_NO_PREALLOC,
    btf_maps::{Array, HashMap, PerCpuArray},
    macros::btf_map,
};
use netobs_common::{Meta, Netns, Record, Series, SeriesKey, SlotOwner, Stray};

/// User space reads the counters without a system call.
const BPF_F_MMAPABLE: usize = 1 << 10;

/// Number of CPU columns; a constant for the verifier.
#[unsafe(no_mangle)]
static NETOBS_CPUS: Global<u32> = Global::new(1);

#[btf_map]
static NETOBS_SLOTS: Array<u32, 65536> = Array::new();

#[btf_map]
static NETOBS_SLOTS_HI: HashMap<u32, u32, 4096> = HashMap::new();

#[btf_map]
static NETOBS_COUNTERS: Array<Record, 1, BPF_F_MMAPABLE> = Array::new();

#[btf_map]
static NETOBS_OWNERS: Array<SlotOwner, 1> = Array::new();

/// Memory as entries come.
#[btf_map]
static NETOBS_NETNS: HashMap<u64, Netns, 1, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

/// For user space only, likewise.
#[btf_map]
static NETOBS_SERIES: HashMap<SeriesKey, Series, 1, { BPF_F_NO_PREALLOC as usize }> =
    HashMap::new();

#[btf_map]
static NETOBS_META: Array<Meta, 1> = Array::new();

#[btf_map]
static NETOBS_STRAY: PerCpuArray<Stray, 1> = PerCpuArray::new();

/// Number of CPU columns in the counters.
#[inline(always)]
pub fn cpus() -> u32 {
    NETOBS_CPUS.load()
}

/// The entry of `ifindex`, 0 for none.
#[inline(always)]
pub fn slot_entry(ifindex: u32) -> u32 {
    match NETOBS_SLOTS.get(ifindex) {
        Some(entry) => *entry,
        None => far_slot_entry(ifindex),
    }
}

/// Interface indexes beyond the array.
#[inline(always)]
fn far_slot_entry(ifindex: u32) -> u32 {
    // SAFETY: an entry is one aligned u32, read once.
    unsafe { NETOBS_SLOTS_HI.get(ifindex) }.map_or(0, |entry| *entry)
}

/// The record at `index`, for this CPU alone while the program runs.
#[inline(always)]
pub fn record(index: u32) -> Option<*mut Record> {
    NETOBS_COUNTERS.get_ptr_mut(index)
}

/// This CPU's record of packets without a slot.
#[inline(always)]
pub fn stray() -> Option<*mut Stray> {
    NETOBS_STRAY.get_ptr_mut(0)
}
