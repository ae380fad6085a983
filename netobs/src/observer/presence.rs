//! Whether our programs still hang where they were hung: others may delete a qdisc
//! or detach a link.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use log::{debug, info};

use super::{Observer, Spot};
use crate::{
    bpf::{attach::Attached, chain, filters},
    model::sample::{Hook, Warning},
    world::{gather::Machine, netlink::Netlink, netns},
};

/// Between looks.
const VERIFY: Duration = Duration::from_secs(2);

impl Observer {
    /// Looks whether our programs still hang where they should, and hangs them there
    /// again: qdiscs and links may be taken away by others. Slot and baseline stay,
    /// so that what passed meanwhile is unaccounted for all to see.
    pub(super) async fn verify(&mut self, machine: &Machine) {
        if self.verified.elapsed() < VERIFY {
            return;
        }
        self.verified = Instant::now();
        let spots: Vec<Spot> = self.observed.keys().copied().collect();
        for spot in spots {
            if self.still_hangs(spot, machine).await.unwrap_or(true) {
                continue;
            }
            let Some(observed) = self.observed.get_mut(&spot) else {
                continue;
            };
            let name = observed.interface.place.name().to_owned();
            info!("{name}: somebody took the programs off");
            observed.detached += 1;
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

    /// Whether the programs of `spot` hang there; an error is no answer.
    async fn still_hangs(&mut self, spot: Spot, machine: &Machine) -> anyhow::Result<bool> {
        let ids = self.programs(spot.scope)?.ids()?;
        let observed = self.observed.get(&spot).context("not observed")?;
        let name = observed.interface.place.name();
        let hook = observed.attached.hook;
        if spot.scope == self.host_key {
            return match hook {
                Hook::Clsact => Ok(filters::have(machine.netlink(), spot.ifindex, ids).await),
                Hook::Tcx | Hook::None => chain::has(name, ids),
            };
        }
        let path = machine.path_of(spot.scope).context("it has ended")?;
        let file = netns::open(&path)?;
        match hook {
            Hook::Clsact => {
                let (netlink, _) = Netlink::open_in(&file)?;
                Ok(filters::have(&netlink, spot.ifindex, ids).await)
            }
            Hook::Tcx | Hook::None => netns::within(&file, || chain::has(name, ids))?,
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
