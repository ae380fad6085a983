//! Decisions that were counted without a hash, read as memory.

use std::{
    collections::HashSet,
    io,
    sync::atomic::{AtomicU64, Ordering},
};

use aya::maps::Map;
use memmap2::MmapRaw;
use netobs_common::routes::{Lookups, Tally, tallies, tally_family};

use super::counters::map_memory;

const WORDS: usize = size_of::<Tally>() / size_of::<u64>();

/// `NETOBS_TALLIES` as memory.
pub(super) struct TallyMemory {
    memory: MmapRaw,
    tallies: u32,
    // Keeps the map while the memory is mapped.
    _map: Map,
}

impl TallyMemory {
    /// Maps all of `map`.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub(super) fn new(map: Map, cpus: u32) -> io::Result<Self> {
        let Map::Array(data) = &map else {
            return Err(io::Error::other("the tallies are no array"));
        };
        let tallies = tallies(cpus);
        let memory = map_memory(data, tallies as usize * size_of::<Tally>())?;
        Ok(Self {
            memory,
            tallies,
            _map: map,
        })
    }

    /// All that belong to a namespace: its cookie, and what is to be added to its
    /// account.
    pub(super) fn entries(&self) -> impl Iterator<Item = (u64, Lookups)> {
        (0..self.tallies).filter_map(|index| {
            let [cookie, counts @ ..] = self.words(index);
            let cookie = cookie.load(Ordering::Acquire);
            if cookie == 0 {
                return None;
            }
            let mut lookups = Lookups::default();
            let row = &mut lookups.decisions[tally_family(index) as usize];
            for (sum, count) in row.iter_mut().zip(counts) {
                *sum = count.load(Ordering::Relaxed);
            }
            Some((cookie, lookups))
        })
    }

    /// Gives those of `cookies`, which have ended, back to the programs.
    pub(super) fn give_back(&self, cookies: &HashSet<u64>) {
        for index in 0..self.tallies {
            let [cookie, counts @ ..] = self.words(index);
            if cookies.contains(&cookie.load(Ordering::Relaxed)) {
                counts.iter().for_each(|c| c.store(0, Ordering::Relaxed));
                cookie.store(0, Ordering::Release);
            }
        }
    }

    #[expect(unsafe_code, reason = "the kernel writes this memory while we read it")]
    fn words(&self, index: u32) -> &[AtomicU64; WORDS] {
        let offset = index as usize * size_of::<Tally>();
        assert!(
            offset + size_of::<Tally>() <= self.memory.len(),
            "tally {index} is outside the map"
        );
        // SAFETY: in bounds (asserted), aligned (the mapping is page-aligned and a
        // tally is a multiple of 8 bytes), and every access on our side goes through
        // these atomics.
        unsafe {
            &*self
                .memory
                .as_ptr()
                .add(offset)
                .cast::<[AtomicU64; WORDS]>()
        }
    }
}
