//! Whether our programs still hang where they were hung: others may delete a qdisc
//! or detach a link.

use std::{
    collections::{HashMap, hash_map::Entry},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use log::{debug, info};

use super::{Observer, Spot};
use crate::{
    bpf::{attach::Attached, chain, filters},
    model::sample::{Hook, NsKey, Warning},
    world::{gather::Machine, netlink::Netlink, netns},
};

/// In this time every interface is looked at.
const VERIFY: Duration = Duration::from_secs(2);
/// Up to so many are looked at together.
const FEW: usize = 16;
/// Of more, each look takes a share, so that each has been looked at in this time: the
/// kernel holds a lock that all others want, too. Where it has counted and we have not
/// is looked at first.
const VERIFY_MANY: Duration = Duration::from_secs(10);

/// Whose turn it is to be looked at.
pub(super) struct Turns {
    next: Vec<Spot>,
    suspects: Vec<Spot>,
    at: Instant,
}

impl Default for Turns {
    fn default() -> Self {
        Self {
            next: Vec::new(),
            suspects: Vec::new(),
            at: Instant::now(),
        }
    }
}

impl Turns {
    /// `spot` is to be looked at soon.
    pub(super) fn suspect(&mut self, spot: Spot) {
        self.suspects.push(spot);
    }

    /// Those of the `number` spots `all` whose turn it is.
    fn take<'a>(&mut self, number: usize, all: impl Iterator<Item = &'a Spot>) -> Vec<Spot> {
        let elapsed = self.at.elapsed();
        if number <= FEW && elapsed < VERIFY {
            return Vec::new();
        }
        let mut turn = std::mem::take(&mut self.suspects);
        self.at = Instant::now();
        if number <= FEW {
            return all.copied().collect();
        }
        if self.next.is_empty() {
            self.next = all.copied().collect();
        }
        let share = elapsed.div_duration_f64(VERIFY_MANY) * number as f64;
        let left = self.next.len().saturating_sub(share.ceil() as usize);
        turn.extend(self.next.drain(left..));
        turn
    }
}

impl Observer {
    /// Looks whether our programs still hang where they should, and hangs them there
    /// again: qdiscs and links may be taken away by others. Slot and baseline stay,
    /// so that what passed meanwhile is unaccounted for all to see.
    pub(super) async fn verify(&mut self, machine: &Machine) {
        let spots = self.turns.take(self.observed.len(), self.observed.keys());
        let mut ids = HashMap::new();
        for spot in spots {
            let still = self.still_hangs(spot, machine, &mut ids).await;
            if still.unwrap_or(true) {
                continue;
            }
            let Some(observed) = self.observed.get_mut(&spot) else {
                continue;
            };
            let name = observed.interface.place.name().to_owned();
            info!("{name}: somebody took the programs off");
            observed.detached += 1;
            self.unchanged.remove(&observed.owner);
            // What is left of them goes first, where it is.
            let left = std::mem::replace(&mut observed.attached, Attached::none());
            let file = machine
                .path_of(spot.scope)
                .and_then(|path| netns::open(&path).ok());
            match file {
                Some(file) if spot.scope != self.host_key => {
                    let _ended = netns::within(&file, || left.take_off());
                }
                _ => left.take_off(),
            }
            match self.hang(spot, &name, machine) {
                Ok(attached) => {
                    let Some(mut observed) = self.observed.remove(&spot) else {
                        continue;
                    };
                    observed.attached = attached;
                    if let Err(error) = self.describe(spot, &mut observed) {
                        debug!("{name}: {error:#}");
                    }
                    self.observed.insert(spot, observed);
                }
                Err(error) => {
                    debug!("{name}: {error:#}");
                    self.failed
                        .insert(spot, (format!("{error:#}"), Instant::now()));
                    self.retire(spot, true);
                }
            }
        }
    }

    /// Whether the programs of `spot` hang there; an error is no answer. `known` keeps
    /// the kernel's ids of the programs from spot to spot.
    async fn still_hangs(
        &mut self,
        spot: Spot,
        machine: &Machine,
        known: &mut HashMap<NsKey, [u32; 2]>,
    ) -> anyhow::Result<bool> {
        let ids = match known.entry(spot.scope) {
            Entry::Occupied(ids) => *ids.get(),
            Entry::Vacant(none) => *none.insert(self.programs(spot.scope)?.ids()?),
        };
        let observed = self.observed.get(&spot).context("not observed")?;
        let hook = observed.attached.hook;
        if spot.scope == self.host_key {
            return match hook {
                Hook::Clsact => Ok(filters::have(machine.netlink(), spot.ifindex, ids).await),
                Hook::Tcx | Hook::None => chain::has(spot.ifindex, ids),
            };
        }
        let path = machine.path_of(spot.scope).context("it has ended")?;
        let file = netns::open(&path)?;
        match hook {
            Hook::Clsact => {
                let (netlink, _) = Netlink::open_in(&file)?;
                Ok(filters::have(&netlink, spot.ifindex, ids).await)
            }
            Hook::Tcx | Hook::None => netns::within(&file, || chain::has(spot.ifindex, ids))?,
        }
    }

    /// Whose programs somebody else has taken off.
    pub(super) fn detached(&self) -> impl Iterator<Item = Warning> + '_ {
        let all = self
            .observed
            .values()
            .filter(|observed| observed.detached > 0);
        all.map(|observed| Warning {
            code: "programs_detached".to_owned(),
            namespace: self.rows.get(&observed.owner).map(|row| row.name.clone()),
            message: format!(
                "{}: somebody else took our programs off ({} times); they hang there again, and what \
                 passed meanwhile is in the kernel's counters only (unaccounted); `netobs doctor` shows \
                 who else is there",
                observed.interface.place.name(),
                observed.detached
            ),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::sample::NsKey;

    fn spots(number: u32) -> Vec<Spot> {
        let spot = |ifindex| Spot {
            scope: NsKey::Inode(1),
            ifindex,
        };
        (0..number).map(spot).collect()
    }

    fn after(elapsed: Duration) -> Turns {
        let at = Instant::now().checked_sub(elapsed);
        Turns {
            at: at.expect("the machine runs for longer"),
            ..Turns::default()
        }
    }

    #[test]
    fn a_few_are_looked_at_together() {
        let all = spots(3);
        assert_eq!(after(VERIFY / 2).take(3, all.iter()), []);
        assert_eq!(after(VERIFY).take(3, all.iter()), all);
    }

    #[test]
    fn many_take_turns_and_nobody_is_left_out() {
        let all = spots(1000);
        let mut turns = after(VERIFY_MANY / 4);
        let mut seen = turns.take(1000, all.iter());
        assert!((250..300).contains(&seen.len()), "{}", seen.len());
        turns.at = after(VERIFY_MANY).at;
        seen.extend(turns.take(1000, all.iter()));
        seen.sort_by_key(|spot| spot.ifindex);
        assert_eq!(seen, all);
    }

    #[test]
    fn of_many_the_suspect_go_first() {
        let all = spots(1000);
        let mut turns = Turns::default();
        turns.suspect(all[7]);
        assert_eq!(turns.take(1000, all.iter())[0], all[7]);
        assert!(turns.take(1000, all.iter()).len() < 10);
    }
}
