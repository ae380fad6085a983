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
const RECORD: u64 = size_of::<Record>() as u64;

/// Slots that are mapped together: a whole number of pages of any size, for any number
/// of CPUs.
const TOGETHER: u32 = 256;

/// `NETOBS_COUNTERS` as memory: reading it takes no system call. All of a mapping counts
/// as ours, so that only what is in use is mapped.
pub struct CounterMemory {
    /// By slot, [`TOGETHER`] each.
    parts: Vec<Option<MmapRaw>>,
    slots: u32,
    cpus: u32,
    map: MapData,
}

impl CounterMemory {
    /// The records of `map`.
    ///
    /// # Errors
    /// Where it is not what it should be.
    pub fn new(map: Map, slots: u32, cpus: u32) -> io::Result<Self> {
        let Map::Array(map) = map else {
            return Err(io::Error::other("the counters are no array"));
        };
        Ok(Self {
            parts: (0..slots.div_ceil(TOGETHER)).map(|_| None).collect(),
            slots,
            cpus,
            map,
        })
    }

    /// Maps the records of `slot`, so that they can be read. Those of others read as 0.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub fn open(&mut self, slot: u32) -> io::Result<()> {
        let place = slot / TOGETHER;
        if let Some(part @ None) = self.parts.get_mut(place as usize) {
            let bytes = |slot| u64::from(record_index(slot, 0, 0, self.cpus)) * RECORD;
            let first = bytes(place * TOGETHER);
            let end = bytes(self.slots.min((place + 1) * TOGETHER));
            let memory = MmapOptions::new()
                .offset(first)
                .len(usize::try_from(end - first).map_err(io::Error::other)?)
                .map_raw(self.map.fd().as_fd().as_raw_fd())?;
            *part = Some(memory);
        }
        Ok(())
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
                for (sum, cell) in sum.iter_mut().zip(self.words(slot, direction, cpu)) {
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
                for word in self.words(slot, direction, cpu) {
                    word.store(0, Ordering::Relaxed);
                }
            }
        }
    }

    /// The words of a record; none where it is not [open](Self::open).
    #[expect(unsafe_code, reason = "the kernel writes this memory while we read it")]
    fn words(&self, slot: u32, direction: u32, cpu: u32) -> &[AtomicU64] {
        let Some(Some(memory)) = self.parts.get((slot / TOGETHER) as usize) else {
            return &[];
        };
        let index = record_index(slot % TOGETHER, direction, cpu, self.cpus);
        let offset = index as usize * size_of::<Record>();
        assert!(
            offset + size_of::<Record>() <= memory.len(),
            "slot {slot} is outside the map"
        );
        // SAFETY: in bounds (asserted), aligned (the mapping is page-aligned
        // and a record is a multiple of 8 bytes), and every access on our side
        // goes through these atomics.
        unsafe {
            std::slice::from_raw_parts(memory.as_mut_ptr().add(offset).cast::<AtomicU64>(), WORDS)
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
