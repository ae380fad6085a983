//! What was counted without a hash, read as memory.

use std::{
    collections::HashSet,
    io,
    sync::atomic::{AtomicU64, Ordering},
};

use aya::maps::Map;
use memmap2::MmapRaw;
use netobs_common::routes::{
    BehalfKey, BehalfTally, Lookups, Tally, behalf_index, behalf_tallies, tallies, tally_family,
};

use super::counters::map_memory;

const TALLY_WORDS: usize = size_of::<Tally>() / size_of::<u64>();
const BEHALF_WORDS: usize = size_of::<BehalfTally>() / size_of::<u64>();

/// `NETOBS_TALLIES`: decisions by namespace.
pub(super) struct TallyMemory(Memory<TALLY_WORDS>);

impl TallyMemory {
    /// Maps all of `map`.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub(super) fn new(map: Map, cpus: u32) -> io::Result<Self> {
        Memory::new(map, tallies(cpus)).map(Self)
    }

    /// All that belong to a namespace: its cookie, and what is to be added to its
    /// account.
    pub(super) fn entries(&self) -> impl Iterator<Item = (u64, Lookups)> {
        (0..self.0.len).filter_map(|index| {
            let [cookie, counts @ ..] = self.0.words(index);
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
        for index in 0..self.0.len {
            let [cookie, counts @ ..] = self.0.words(index);
            if cookies.contains(&cookie.load(Ordering::Relaxed)) {
                counts.iter().for_each(|c| c.store(0, Ordering::Relaxed));
                cookie.store(0, Ordering::Release);
            }
        }
    }
}

/// `NETOBS_BEHALF_T`: what was forwarded, by source.
pub(super) struct BehalfMemory {
    memory: Memory<BEHALF_WORDS>,
    cpus: u32,
}

impl BehalfMemory {
    /// Maps all of `map`.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub(super) fn new(map: Map, cpus: u32) -> io::Result<Self> {
        Ok(Self {
            memory: Memory::new(map, behalf_tallies(cpus))?,
            cpus,
        })
    }

    /// What was counted, to be added to the account of whose it is.
    pub(super) fn entries(&self) -> impl Iterator<Item = (BehalfKey, u64)> {
        (0..self.memory.len).filter_map(|index| {
            let [first, second, rest, count] = self.memory.words(index);
            let rest = rest.load(Ordering::Acquire);
            if rest == 0 {
                return None;
            }
            let source = [first, second].map(|word| word.load(Ordering::Relaxed));
            Some((key(source, rest), count.load(Ordering::Relaxed)))
        })
    }

    /// Gives those of `key`, which is followed no longer, back to the programs.
    pub(super) fn give_back(&self, key: &BehalfKey) {
        let (source, rest) = words(key);
        for cpu in 0..self.cpus {
            let index = behalf_index(cpu, key.family, source, key.ifindex);
            let [first, second, place, count] = self.memory.words(index);
            let found = [first, second].map(|word| word.load(Ordering::Relaxed));
            if found == source && place.load(Ordering::Relaxed) == rest {
                count.store(0, Ordering::Relaxed);
                place.store(0, Ordering::Release);
            }
        }
    }
}

/// The source of `key`, and the rest of it, as words in memory.
fn words(key: &BehalfKey) -> ([u64; 2], u64) {
    let mut halves = [[0; 8]; 2];
    halves.as_flattened_mut().copy_from_slice(&key.source);
    let rest = [key.ifindex.to_ne_bytes(), key.family.to_ne_bytes()];
    let mut word = [0; 8];
    word.copy_from_slice(rest.as_flattened());
    (halves.map(u64::from_ne_bytes), u64::from_ne_bytes(word))
}

/// The key whose [`words`] these are.
fn key(source: [u64; 2], rest: u64) -> BehalfKey {
    let mut key = BehalfKey::default();
    let halves = source.map(u64::to_ne_bytes);
    key.source.copy_from_slice(halves.as_flattened());
    let mut numbers = [[0; 4]; 2];
    numbers
        .as_flattened_mut()
        .copy_from_slice(&rest.to_ne_bytes());
    [key.ifindex, key.family] = numbers.map(u32::from_ne_bytes);
    key
}

/// An array as memory, each entry of it so many words.
struct Memory<const WORDS: usize> {
    memory: MmapRaw,
    len: u32,
    // Keeps the map while the memory is mapped.
    _map: Map,
}

impl<const WORDS: usize> Memory<WORDS> {
    fn new(map: Map, len: u32) -> io::Result<Self> {
        let Map::Array(data) = &map else {
            return Err(io::Error::other("the tallies are no array"));
        };
        let memory = map_memory(data, len as usize * size_of::<[u64; WORDS]>())?;
        Ok(Self {
            memory,
            len,
            _map: map,
        })
    }

    #[expect(unsafe_code, reason = "the kernel writes this memory while we read it")]
    fn words(&self, index: u32) -> &[AtomicU64; WORDS] {
        let offset = index as usize * size_of::<[u64; WORDS]>();
        assert!(index < self.len, "tally {index} is outside the map");
        // SAFETY: in bounds (asserted), aligned (the mapping is page-aligned and an
        // entry is words), and every access on our side goes through these atomics.
        unsafe {
            &*self
                .memory
                .as_ptr()
                .add(offset)
                .cast::<[AtomicU64; WORDS]>()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_the_words_that_the_programs_write() {
        let mut expected = BehalfKey {
            ifindex: 7,
            family: 1,
            ..BehalfKey::default()
        };
        expected.source[..9].copy_from_slice(&[1, 2, 3, 4, 5, 6, 7, 8, 9]);
        let (source, rest) = words(&expected);
        assert_eq!(source[0].to_ne_bytes(), [1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(source[1].to_ne_bytes()[0], 9);
        assert_eq!(key(source, rest), expected);
    }
}
