//! The counters, read as memory.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _},
    ptr,
    sync::atomic::{AtomicU64, Ordering},
};

use aya::maps::{Map, MapData};
use memmap2::{MmapOptions, MmapRaw};
use netobs_common::{RX, Record, TX, record_index};

use crate::model::counters::{Counters, Directions};

const WORDS: usize = size_of::<Record>() / size_of::<u64>();

/// `NETOBS_COUNTERS` as memory: reading it takes no system call.
pub struct CounterMemory {
    memory: MmapRaw,
    slots: u32,
    cpus: u32,
    // Keeps the map while the memory is mapped.
    _map: Map,
}

impl CounterMemory {
    /// Maps all records of `map`.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub fn new(map: Map, slots: u32, cpus: u32) -> io::Result<Self> {
        let Map::Array(data) = &map else {
            return Err(io::Error::other("the counters are no array"));
        };
        let len = record_index(slots, 0, 0, cpus) as usize * size_of::<Record>();
        let memory = map_memory(data, len)?;
        Ok(Self {
            memory,
            slots,
            cpus,
            _map: map,
        })
    }

    /// How many slots there are.
    #[must_use]
    pub fn slots(&self) -> u32 {
        self.slots
    }

    /// The sums of `slot` over all CPUs.
    #[must_use]
    pub fn read(&self, slot: u32) -> Directions<Counters> {
        let [rx, tx] = self.records(slot);
        Directions { rx, tx }.map(|record| {
            let mut counters = Counters::default();
            counters.add_record(&record);
            counters
        })
    }

    /// The same as one record for each direction, RX first.
    #[must_use]
    pub fn records(&self, slot: u32) -> [Record; 2] {
        [RX, TX].map(|direction| {
            let mut sum = [0u64; WORDS];
            for cpu in 0..self.cpus {
                let index = record_index(slot, direction, cpu, self.cpus);
                for (sum, cell) in sum.iter_mut().zip(self.words(index)) {
                    *sum += cell.load(Ordering::Relaxed);
                }
            }
            from_words(&sum)
        })
    }

    /// Sets all of `slot` to 0. Only for slots that no program can reach.
    pub fn clear(&self, slot: u32) {
        for direction in [RX, TX] {
            for cpu in 0..self.cpus {
                for word in self.words(record_index(slot, direction, cpu, self.cpus)) {
                    word.store(0, Ordering::Relaxed);
                }
            }
        }
    }

    #[expect(unsafe_code, reason = "the kernel writes this memory while we read it")]
    fn words(&self, index: u32) -> &[AtomicU64] {
        let offset = index as usize * size_of::<Record>();
        assert!(
            offset + size_of::<Record>() <= self.memory.len(),
            "record {index} is outside the map"
        );
        // SAFETY: in bounds (asserted), aligned (the mapping is page-aligned
        // and a record is a multiple of 8 bytes), and every access on our side
        // goes through these atomics.
        unsafe {
            std::slice::from_raw_parts(
                self.memory.as_mut_ptr().add(offset).cast::<AtomicU64>(),
                WORDS,
            )
        }
    }
}

#[expect(unsafe_code, reason = "a record is integers without padding")]
fn from_words(words: &[u64; WORDS]) -> Record {
    // SAFETY: `Record` is `repr(C)`, as large as `words`, and any bits are valid.
    unsafe { ptr::read(words.as_ptr().cast::<Record>()) }
}

/// `len` bytes of an array that may be mapped.
pub(super) fn map_memory(data: &MapData, len: usize) -> io::Result<MmapRaw> {
    MmapOptions::new()
        .len(len)
        .map_raw(data.fd().as_fd().as_raw_fd())
}
