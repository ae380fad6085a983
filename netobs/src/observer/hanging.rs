//! How the programs come to an interface, and what becomes of them when one of them goes.

use std::time::{Instant, SystemTime};

use anyhow::Context as _;
use log::{debug, info};
use netobs_common::{SlotEntry, SlotOwner};

use super::{Observed, Observer, Spot, balance::Balance, describe::described};
use crate::{
    bpf::{
        attach::{self, Attached},
        object::Programs,
        qdisc,
    },
    inventory::build::{Interface, Place},
    model::{
        counters::{Counters, Directions},
        sample::{self, Hook, NsKey},
    },
    world::{gather::Machine, netns},
};

impl Observer {
    /// Gives an interface of `owner` a slot to count in, and hangs the programs there.
    pub(super) fn observe(
        &mut self,
        spot: Spot,
        owner: NsKey,
        interface: &Interface,
        machine: &Machine,
    ) -> anyhow::Result<Observed> {
        let programs = self.programs(spot.scope)?;
        let capacity = programs.counters().slots();
        let taken = programs.take_slot();
        let Some(slot) = taken.context("map the counters into memory")? else {
            if self.turned_away.insert(spot) {
                self.ever_turned_away += 1;
            }
            anyhow::bail!("all {capacity} slots are in use: --max-interfaces makes room for more");
        };
        let mut observed = Observed {
            owner,
            interface: interface.clone(),
            slot,
            attached: Attached::none(),
            since: SystemTime::now(),
            baseline: None,
            counters: None,
            kernel: None,
            detached: 0,
            described: SlotOwner::default(),
            lag: None,
            fresh: self.began.is_some(),
            attached_at: Instant::now(),
            balance: Balance::default(),
        };
        let entry = SlotEntry::new(slot, flags(interface));
        let name = interface.place.name();
        // Whose it is comes first: whoever finds it after us can tell then.
        let result = self
            .describe(spot, &mut observed)
            .and_then(|()| self.programs(spot.scope)?.direct(spot.ifindex, entry))
            .and_then(|()| self.hang(spot, name, machine));
        match result {
            Ok(attached) => {
                observed.attached = attached;
                observed.since = SystemTime::now();
                // With the handle of filters, by which they are found.
                if let Err(error) = self.describe(spot, &mut observed) {
                    debug!("owner of slot {slot}: {error:#}");
                }
                observed.attached_at = Instant::now();
                // The host's own interfaces are left to settle first.
                let is_end = matches!(interface.place, Place::HostEnd { .. });
                if is_end && observed.fresh {
                    let since = self.passable.get(&spot.ifindex);
                    observed.lag = since.map(Instant::elapsed);
                    observed.lag.into_iter().for_each(|lag| self.lags.add(lag));
                }
                Ok(observed)
            }
            Err(error) => {
                let programs = self.programs(spot.scope)?;
                programs.direct(spot.ifindex, SlotEntry::NONE)?;
                programs.give_back(slot)?;
                Err(error)
            }
        }
    }

    /// Attaches the programs of `spot`, in the namespace that it is in.
    pub(super) fn hang(
        &mut self,
        spot: Spot,
        name: &str,
        machine: &Machine,
    ) -> anyhow::Result<Attached> {
        let mode = self.settings.tc_mode;
        let mut made_qdisc = false;
        let result = self.inside_of(spot, machine, |programs| {
            attach::attach(programs, name, spot.ifindex, mode, &mut made_qdisc)
        });
        if made_qdisc {
            self.made_qdiscs.insert(spot);
        }
        result
    }

    /// Runs `work` with the programs of `spot`, in the namespace that it is in.
    pub(super) fn inside_of<T: Send>(
        &mut self,
        spot: Spot,
        machine: &Machine,
        work: impl FnOnce(&mut Programs) -> anyhow::Result<T> + Send,
    ) -> anyhow::Result<T> {
        let in_host = spot.scope == self.host_key;
        let path = machine.path_of(spot.scope);
        let programs = self.programs(spot.scope)?;
        if in_host {
            return work(programs);
        }
        let file = netns::open(&path.context("the namespace has ended")?)?;
        netns::within(&file, || {
            if let (NsKey::Cookie(expected), Ok(cookie)) = (spot.scope, netns::cookie()) {
                anyhow::ensure!(expected == cookie, "the namespace has ended");
            }
            work(programs)
        })?
    }

    /// Takes the programs off `spot` and remembers what they counted.
    pub(super) async fn release(&mut self, spot: Spot, machine: &Machine, namespace_ended: bool) {
        let qdisc = self
            .observed
            .get(&spot)
            .filter(|_| self.made_qdiscs.contains(&spot) && !namespace_ended)
            .map(|o| o.interface.place.name().to_owned());
        if !namespace_ended
            && spot.scope != self.host_key
            && self
                .observed
                .get(&spot)
                .is_some_and(|o| o.attached.hook == Hook::Clsact)
        {
            // A filter can only be deleted from within.
            let file = machine
                .path_of(spot.scope)
                .and_then(|path| netns::open(&path).ok());
            match file {
                Some(file) => {
                    let entered = netns::within(&file, || self.retire(spot, false));
                    if entered.is_err() {
                        self.retire(spot, true);
                    }
                }
                None => self.retire(spot, true),
            }
        } else {
            self.retire(spot, namespace_ended);
        }
        self.made_qdiscs.remove(&spot);
        self.turned_away.remove(&spot);
        if let Some(name) = qdisc
            && let Err(error) = qdisc::remove_if_empty(machine, spot.scope, spot.ifindex).await
        {
            debug!("{name}: the clsact qdisc stays: {error:#}");
        }
    }

    /// The part of [`release`](Self::release) that works in the namespace of
    /// the calling thread. `ended`: the interface is no more.
    pub(super) fn retire(&mut self, spot: Spot, ended: bool) {
        let Some(observed) = self.observed.remove(&spot) else {
            return;
        };
        self.settled = false;
        self.unchanged.remove(&observed.owner);
        info!("no longer observing {}", observed.interface.place.name());
        let Observed {
            owner,
            interface,
            slot,
            attached,
            since,
            baseline,
            lag,
            ..
        } = observed;
        let hook = attached.hook;
        if ended {
            attached.forget();
        } else {
            attached.take_off();
        }
        let counters = self.free(spot, owner, slot);
        self.past
            .entry(owner)
            .or_default()
            .remember(sample::Interface {
                counters,
                hook,
                observed_since: Some(since),
                // What was read last is older than what we counted.
                kernel: None,
                before_attach: baseline,
                attach_lag: lag,
                ..described(&interface)
            });
    }

    /// Gives the slot of `spot` back, once nothing can count into it any more, and
    /// returns what it counted for `owner`.
    pub(super) fn free(
        &mut self,
        spot: Spot,
        owner: NsKey,
        slot: u32,
    ) -> Option<Directions<Counters>> {
        let programs = self.programs(spot.scope).ok()?;
        let counters = programs.counters().read(slot);
        let records = programs.counters().records(slot);
        let generation = programs.generation(slot);
        let cut = programs.direct(spot.ifindex, SlotEntry::NONE);
        self.fold(owner, generation, records);
        let returned = cut.and_then(|()| self.programs(spot.scope)?.give_back(slot));
        if let Err(error) = returned {
            debug!("slot {slot} is lost: {error:#}");
        }
        Some(counters)
    }
}

/// What the programs have to know of an interface: `SlotEntry::INSIDE` and the like.
pub(super) fn flags(interface: &Interface) -> u32 {
    let inside = match interface.place {
        Place::HostEnd { .. } => 0,
        Place::Inside { .. } => SlotEntry::INSIDE,
    };
    let bare = if interface.ethernet {
        0
    } else {
        SlotEntry::NO_ETHERNET
    };
    inside | bare
}
