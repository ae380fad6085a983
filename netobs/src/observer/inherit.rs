//! What an earlier netobs left: pinned programs that went on counting, and filters of
//! one that was killed.

use std::{
    collections::HashMap,
    time::{Duration, Instant, SystemTime},
};

use log::{debug, info};
use netobs_common::{SlotEntry, SlotOwner};

use super::{Observed, Observer, Spot, balance::Balance, describe::described, hanging::flags};
use crate::{
    bpf::{
        attach,
        attach::Attached,
        filters::{self, Unpinned},
    },
    config::TcMode,
    inventory::build::{Interface, Place},
    model::{
        baseline::Baseline,
        counters::Directions,
        sample::{self, Hook, NsKey},
    },
    world::{gather::Machine, rcu::Expedited},
};

impl Observer {
    /// Goes on with what an earlier netobs left pinned where it is still `wanted`,
    /// and takes the rest off, with what it counted. Removes filters that one left
    /// that was killed.
    pub(super) async fn inherit(
        &mut self,
        wanted: &HashMap<Spot, (NsKey, &Interface)>,
        machine: &Machine,
    ) {
        let Some(folder) = self.settings.pins.clone() else {
            self.remove_filters_of_the_dead(wanted, machine).await;
            return;
        };
        for (cookie, note) in &self.notes {
            let past = self.past.entry(NsKey::Cookie(*cookie)).or_default();
            past.begin_with(note);
        }
        let mut scopes = vec![self.host_key];
        for (cookie, _) in folder.inside().unwrap_or_default() {
            scopes.push(NsKey::Cookie(cookie));
        }
        for scope in scopes {
            let mut found = match self.programs(scope) {
                Ok(programs) => programs.found(),
                Err(error) => {
                    log::warn!("what is pinned of {scope} is of no use: {error:#}");
                    continue;
                }
            };
            // First the one that was added to its namespace's note last: the next one's
            // would hide that.
            let is_folded = |owner: &SlotOwner| {
                let note = self.notes.get(&owner.cookie);
                note.is_some_and(|note| note.folded == owner.generation)
            };
            found.sort_by_key(|(_, owner)| !is_folded(owner));
            for (slot, owner) in found {
                self.inherit_slot(scope, slot, &owner, wanted, machine);
            }
            if let Ok(programs) = self.programs(scope)
                && let Err(error) = programs.take_over()
            {
                log::warn!("the programs of {scope} are not pinned: {error:#}");
            }
        }
        self.remove_filters_of_the_dead(wanted, machine).await;
        if !self.observed.is_empty() {
            info!("going on with {} interfaces", self.observed.len());
        }
    }

    /// Filters of ours that no netobs has: of one that was killed without pins, and with
    /// ours, before it had written down by which handle they are found.
    async fn remove_filters_of_the_dead(
        &self,
        wanted: &HashMap<Spot, (NsKey, &Interface)>,
        machine: &Machine,
    ) {
        let links = wanted
            .iter()
            .filter(|(spot, _)| spot.scope == self.host_key)
            .map(|(spot, (_, interface))| (spot.ifindex, interface.place.name()));
        let unpinned = Unpinned {
            maps: self.host.map_id().into_iter().collect(),
            keep: self
                .observed
                .iter()
                .map(|(spot, observed)| (spot.ifindex, observed.attached.handle))
                .collect(),
        };
        if self.settings.expedite && Expedited::repair() {
            info!("put /sys/kernel/rcu_expedited back, which a killed netobs had left set");
        }
        match filters::remove_ours(machine.netlink(), links, &unpinned).await {
            Ok(left) => left.removed.iter().for_each(|what| {
                info!("removed what a killed netobs left: {what}");
            }),
            Err(error) => debug!("filters of a killed netobs: {error:#}"),
        }
    }

    fn inherit_slot(
        &mut self,
        scope: NsKey,
        slot: u32,
        owner: &SlotOwner,
        wanted: &HashMap<Spot, (NsKey, &Interface)>,
        machine: &Machine,
    ) {
        let spot = Spot {
            scope,
            ifindex: owner.hook_ifindex,
        };
        if let Ok(programs) = self.programs(scope) {
            programs.keep(slot, owner);
        }
        let still = wanted
            .get(&spot)
            .filter(|(key, interface)| is_same(owner, *key, interface));
        let adopted = still.and_then(|(key, interface)| {
            match self.adopt(spot, interface.place.name(), owner, machine) {
                Ok(attached) => Some((*key, *interface, attached)),
                Err(error) => {
                    debug!("{}: {error:#}", interface.place.name());
                    None
                }
            }
        });
        let Some((key, interface, attached)) = adopted else {
            self.bury(spot, slot, owner, machine);
            return;
        };
        // Where nobody can tell by now whose the interface is, what was counted is theirs who
        // had it: the pair of a namespace that is ending is there for a moment longer.
        let key = match owner.cookie {
            0 => key,
            cookie => NsKey::Cookie(cookie),
        };
        let entry = SlotEntry::new(slot, flags(interface));
        if let Ok(programs) = self.programs(scope)
            && let Err(error) = programs.direct(spot.ifindex, entry)
        {
            debug!("{}: {error:#}", interface.place.name());
        }
        if owner.flags & SlotOwner::OWN_QDISC != 0 {
            self.made_qdiscs.insert(spot);
        }
        self.observed.insert(
            spot,
            Observed {
                owner: key,
                interface: interface.clone(),
                slot,
                attached,
                since: since(owner),
                baseline: baseline(owner),
                kernel: None,
                detached: owner.detached,
                described: SlotOwner::default(),
                lag: None,
                fresh: false,
                attached_at: Instant::now(),
                counters: None,
                balance: Balance::default(),
            },
        );
    }

    fn adopt(
        &mut self,
        spot: Spot,
        name: &str,
        owner: &SlotOwner,
        machine: &Machine,
    ) -> anyhow::Result<Attached> {
        let as_asked = match self.settings.tc_mode {
            TcMode::Auto => true,
            TcMode::Tcx => owner.handle == 0,
            TcMode::Clsact => owner.handle != 0,
        };
        anyhow::ensure!(as_asked, "it hangs otherwise than --tc-mode asks for");
        self.inside_of(spot, machine, |programs| {
            attach::adopt(programs, name, spot.ifindex, owner.handle)
        })
    }

    /// Takes the programs of a slot off that nobody wants any more, and keeps what it
    /// counted for who had it.
    fn bury(&mut self, spot: Spot, slot: u32, owner: &SlotOwner, machine: &Machine) {
        let removed = self.inside_of(spot, machine, |programs| {
            attach::discard(programs, spot.ifindex);
            attach::remove_filters(spot.ifindex, owner.handle);
            Ok(())
        });
        if removed.is_err()
            && let Ok(programs) = self.programs(spot.scope)
        {
            // The namespace is no more, and its interfaces with it.
            attach::discard(programs, spot.ifindex);
        }
        if owner.flags & SlotOwner::OWN_QDISC != 0 {
            self.made_qdiscs.insert(spot);
        }
        let key = NsKey::Cookie(owner.cookie);
        let folded = self.notes.get(&owner.cookie);
        let again = folded.is_some_and(|note| note.folded == owner.generation);
        let counters = self.free(spot, key, slot).filter(|_| !again);
        if owner.cookie == 0 {
            return;
        }
        self.past
            .entry(key)
            .or_default()
            .remember(sample::Interface {
                counters,
                hook: if owner.handle == 0 {
                    Hook::Tcx
                } else {
                    Hook::Clsact
                },
                observed_since: Some(since(owner)),
                before_attach: last_baseline(owner),
                ..described(&interface(owner))
            });
    }
}

/// Whether the interface that had the slot is the one that is there. What is not
/// known of either does not tell them apart.
fn is_same(owner: &SlotOwner, key: NsKey, interface: &Interface) -> bool {
    let cookie = key.cookie().is_none_or(|cookie| cookie == owner.cookie);
    let index = interface
        .ifindex
        .is_none_or(|ifindex| ifindex == owner.ifindex);
    (owner.cookie == 0 || cookie) && (owner.ifindex == 0 || index)
}

fn since(owner: &SlotOwner) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_nanos(owner.since)
}

/// What stands fast of what had been counted before.
fn baseline(owner: &SlotOwner) -> Option<Directions<Baseline>> {
    let both = SlotOwner::BEFORE_FAST | SlotOwner::BEFORE_FAST << 1;
    // Else it is as good to begin anew.
    last_baseline(owner).filter(|_| owner.flags & both == both)
}

/// The best that was known of it.
fn last_baseline(owner: &SlotOwner) -> Option<Directions<Baseline>> {
    let [rx, tx] = owner
        .before
        .map(|before| Baseline::fast(before.packets, before.bytes));
    (owner.flags & SlotOwner::BEFORE_KNOWN != 0).then_some(Directions { rx, tx })
}

/// As much as is known of an interface that has ended.
fn interface(owner: &SlotOwner) -> Interface {
    let length = owner.name.iter().position(|byte| *byte == 0);
    let name = &owner.name[..length.unwrap_or(owner.name.len())];
    let name = (!name.is_empty()).then(|| String::from_utf8_lossy(name).into_owned());
    Interface {
        name,
        ifindex: (owner.ifindex != 0).then_some(owner.ifindex),
        mac: None,
        addresses: Vec::new(),
        peer: None,
        nsid: None,
        place: Place::HostEnd {
            ifindex: owner.hook_ifindex,
            name: String::new(),
        },
        ethernet: true,
    }
}
