//! What the programs counted, and what is told them.

use std::{
    collections::{HashMap, HashSet},
    hash::Hash,
    io::ErrorKind,
};

use anyhow::Context as _;
use aya::{Pod, maps::MapData};
use log::debug;
use netobs_common::routes::{
    Astray, Behalf, BehalfKey, FAMILY_FORMER, FailureKey, HitKey, Lookups, names,
};

use super::{LookupPrograms, Settings};
use crate::{
    bpf::raw_maps::{self, Bytes, Entries},
    model::{
        lookups::{self, Unattributed},
        sample::MapInfo,
    },
};

#[repr(transparent)]
#[derive(Clone, Copy)]
pub(super) struct Bits<T: Copy>(T);

#[expect(unsafe_code, reason = "aya wants to know that a value is plain bytes")]
// SAFETY: `repr(C)`, integers only, no padding (asserted in netobs-common).
unsafe impl Pod for Bits<Astray> {}

macro_rules! plain {
    ($($kind:ty),*) => { $(
        #[expect(unsafe_code, reason = "the kernel fills it with bytes")]
        // SAFETY: integers only, no padding (asserted in netobs-common).
        unsafe impl Bytes for $kind {}
    )* };
}

plain!(HitKey, FailureKey, BehalfKey, Behalf, Lookups);

impl LookupPrograms {
    /// Decisions by cookie of the namespace.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub fn lookups(&self) -> anyhow::Result<HashMap<u64, lookups::Lookups>> {
        let entries = raw_maps::entries::<u64, Lookups>(&self.lookups, self.cpus)
            .context("read the route lookups")?;
        let of_cpus = |(cookie, records): (&u64, &[Lookups])| (*cookie, total(records));
        let mut sums: HashMap<u64, Lookups> = entries.iter().map(of_cpus).collect();
        for (cookie, tally) in self.tallies.entries() {
            sums.entry(cookie).or_default().add(&tally);
        }
        Ok(sums
            .iter()
            .map(|(cookie, sum)| (*cookie, sum.into()))
            .collect())
    }

    /// What decisions ended with.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub fn hits(&self) -> anyhow::Result<HashMap<HitKey, u64>> {
        let entries = raw_maps::entries(&self.hits, 1).context("read the route hits")?;
        Ok(single(&entries))
    }

    /// Failed decisions.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub fn failures(&self) -> anyhow::Result<HashMap<FailureKey, u64>> {
        let entries = raw_maps::entries(&self.failures, 1).context("read the failed lookups")?;
        Ok(single(&entries))
    }

    /// What was forwarded on whose behalf.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub fn behalf(&self) -> anyhow::Result<HashMap<BehalfKey, Behalf>> {
        let mut all = single(&self.followed()?);
        for (key, count) in self.behalf_tallies.entries() {
            if let Some(behalf) = all.get_mut(&key) {
                behalf.count += count;
            }
        }
        Ok(all)
    }

    /// The same where there was something, as counts alone, perhaps also of what is
    /// followed no longer.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub fn forwarded(&self) -> anyhow::Result<HashMap<BehalfKey, u64>> {
        let entries = self.followed()?;
        let counts = entries.iter().filter_map(|(key, values)| {
            let count = values.first()?.count;
            (count > 0).then_some((*key, count))
        });
        let mut all: HashMap<BehalfKey, u64> = counts.collect();
        for (key, count) in self.behalf_tallies.entries() {
            *all.entry(key).or_default() += count;
        }
        Ok(all)
    }

    fn followed(&self) -> anyhow::Result<Entries<BehalfKey, Behalf>> {
        raw_maps::entries(&self.behalf, 1).context("read who was forwarded for")
    }

    /// Counts what is forwarded for `key`, which is the `owner`'s, from now on.
    ///
    /// # Errors
    /// Where there is no room.
    pub fn follow(&self, key: BehalfKey, owner: u64) -> anyhow::Result<()> {
        match raw_maps::create(&self.behalf, &key, &Behalf { count: 0, owner }) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error.into()),
            Err(_) => Ok(()),
            Ok(()) => {
                // A program may have taken one for the former entry at the last moment.
                self.behalf_tallies.give_back(&key);
                Ok(())
            }
        }
    }

    /// Remembers what was forwarded for `owner` by addresses that it no longer has.
    pub fn remember(&self, owner: u64, count: u64) {
        let written = raw_maps::put(&self.behalf, &former(owner), &Behalf { count, owner });
        if let Err(error) = written {
            debug!("what was forwarded for {owner}: {error}");
        }
    }

    /// Forgets that.
    pub fn forget_former(&self, owner: u64) {
        delete(&self.behalf, &former(owner));
    }

    /// Counts it no longer.
    pub fn unfollow(&self, key: BehalfKey) {
        delete(&self.behalf, &key);
        self.behalf_tallies.give_back(&key);
    }

    /// Forgets namespaces that have ended.
    pub fn forget_namespaces(&self, cookies: &HashSet<u64>) {
        self.tallies.give_back(cookies);
        for cookie in cookies {
            delete(&self.lookups, cookie);
        }
        if !self.settings.detail {
            return;
        }
        for key in self.hits().unwrap_or_default().into_keys() {
            if cookies.contains(&key.cookie) {
                delete(&self.hits, &key);
            }
        }
        for key in self.failures().unwrap_or_default().into_keys() {
            if cookies.contains(&key.cookie) {
                delete(&self.failures, &key);
            }
        }
    }

    /// Forgets a destination, whose count the caller has noted.
    pub fn forget_hit(&self, key: &HitKey) {
        delete(&self.hits, key);
    }

    /// Whether more than `share` of the room for namespaces is taken by `entries`.
    #[must_use]
    pub fn is_crowded(&self, entries: usize, share: f64) -> bool {
        entries as f64 > f64::from(self.settings.namespaces) * share
    }

    /// The same for destinations.
    #[must_use]
    pub fn is_full_of_hits(&self, entries: usize, share: f64) -> bool {
        entries as f64 > f64::from(self.settings.destinations) * share
    }

    /// What is in no namespace's account.
    #[must_use]
    pub fn unattributed(&self) -> Unattributed {
        let sum = self.astray();
        Unattributed {
            lookups: sum.lookups,
            failed: sum.failed,
        }
    }

    fn astray(&self) -> Astray {
        let mut sum = Astray::default();
        for cpu in self.astray.get(&0, 0).iter().flat_map(|all| all.iter()) {
            sum.lookups = sum.lookups.wrapping_add(cpu.0.lookups);
            sum.failed = sum.failed.wrapping_add(cpu.0.failed);
            sum.lookups_full = sum.lookups_full.wrapping_add(cpu.0.lookups_full);
            sum.hits_full = sum.hits_full.wrapping_add(cpu.0.hits_full);
        }
        sum
    }

    /// How full the map of namespaces is, given how many entries were read.
    #[must_use]
    pub fn namespaces_map(&self, entries: usize) -> MapInfo {
        let full = self.astray().lookups_full;
        map_info(names::MAP_LOOKUPS, entries, self.settings.namespaces, full)
    }

    /// How full the maps of routes and destinations are, likewise.
    #[must_use]
    pub fn detail_maps(&self, destinations: usize, failures: usize) -> [MapInfo; 2] {
        let Settings {
            destinations: most_destinations,
            failures: most_failures,
            ..
        } = self.settings;
        let full = self.astray().hits_full;
        [
            map_info(names::MAP_HITS, destinations, most_destinations, full),
            // The least recent failure makes room: it is never full.
            map_info(names::MAP_FAILURES, failures, most_failures, 0),
        ]
    }
}

/// Where what was forwarded by former addresses is counted.
fn former(owner: u64) -> BehalfKey {
    let mut source = [0; 16];
    source[..8].copy_from_slice(&owner.to_ne_bytes());
    BehalfKey {
        source,
        ifindex: 0,
        family: FAMILY_FORMER,
    }
}

fn map_info(name: &str, entries: usize, capacity: u32, full: u64) -> MapInfo {
    MapInfo {
        name: name.to_owned(),
        entries: entries as u64,
        capacity: capacity.into(),
        full,
    }
}

fn single<K: Copy + Eq + Hash, V: Copy + Default>(entries: &Entries<K, V>) -> HashMap<K, V> {
    entries
        .iter()
        .map(|(key, values)| (*key, values.first().copied().unwrap_or_default()))
        .collect()
}

fn total(records: &[Lookups]) -> Lookups {
    let mut sum = Lookups::default();
    records.iter().for_each(|record| sum.add(record));
    sum
}

/// An entry that has gone already is fine.
fn delete<K: Bytes>(map: &MapData, key: &K) {
    if let Err(error) = raw_maps::delete(map, key)
        && error.kind() != ErrorKind::NotFound
    {
        debug!("remove an entry: {error}");
    }
}
