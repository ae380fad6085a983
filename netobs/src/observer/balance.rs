//! Whether the books balance: what the kernel counted and what we did, compared at
//! rest. A difference that stands is told, with what may be behind it.

use log::debug;

use super::{
    Observer, Spot,
    causes::{self, Carrier},
};
use crate::{
    inventory::build::Place,
    model::{counters::Directions, sample::Warning},
    world::gather::Machine,
};

/// Interfaces whose differences are looked into for one sample: it takes a few
/// requests for each.
const AT_ONCE: usize = 4;

/// What was found when an interface was last looked at.
#[derive(Debug, Default)]
pub(super) struct Balance {
    /// Packets that the kernel had counted, and packets that we had.
    last: Option<[Directions<u64>; 2]>,
    /// The difference that was looked into, and what may be behind it.
    told: Option<(Directions<i64>, Vec<String>)>,
}

impl Observer {
    /// Compares, once the counters were read.
    pub(super) async fn balance(&mut self, machine: &Machine) {
        let mut standing = Vec::new();
        for (spot, observed) in &mut self.observed {
            let (Some(counters), Some(kernel), Some(before)) =
                (&observed.counters, &observed.kernel, &observed.baseline)
            else {
                continue;
            };
            let totals = Directions {
                rx: counters.rx.total(),
                tx: counters.tx.total(),
            };
            let difference = Directions {
                rx: before.rx.unaccounted(&kernel.rx, &totals.rx),
                tx: before.tx.unaccounted(&kernel.tx, &totals.tx),
            };
            let now = Some([
                kernel.map(|counters| counters.packets),
                totals.map(|tally| tally.packets),
            ]);
            let last = std::mem::replace(&mut observed.balance.last, now);
            // Only the kernel has counted.
            if let (Some([kernel, ours]), Some([old_kernel, old_ours])) = (now, last)
                && kernel != old_kernel
                && ours == old_ours
            {
                self.turns.suspect(*spot);
            }
            let rests = now == last;
            let told = &mut observed.balance.told;
            if difference == Directions::default() {
                *told = None;
            } else if rests && told.as_ref().is_none_or(|(known, _)| *known != difference) {
                standing.push((*spot, difference));
            }
        }
        for (spot, difference) in standing.into_iter().take(AT_ONCE) {
            let causes = self.look_into(spot, difference, machine).await;
            if let Some(observed) = self.observed.get_mut(&spot) {
                observed.balance.told = Some((difference, causes));
            }
        }
    }

    async fn look_into(
        &mut self,
        spot: Spot,
        difference: Directions<i64>,
        machine: &Machine,
    ) -> Vec<String> {
        let Ok(own) = self
            .programs(spot.scope)
            .and_then(|programs| programs.ids())
        else {
            return Vec::new();
        };
        let Some(observed) = self.observed.get(&spot) else {
            return Vec::new();
        };
        let place = &observed.interface.place;
        let carrier = Carrier {
            scope: spot.scope,
            name: place.name(),
            ifindex: spot.ifindex,
        };
        let difference = oriented_difference(place, difference);
        let hook = observed.attached.hook;
        let found = causes::causes(
            machine,
            carrier,
            own,
            hook,
            difference,
            Some(&self.beginning),
        )
        .await;
        match found {
            Ok(causes) => causes.iter().map(ToString::to_string).collect(),
            Err(error) => {
                debug!("{}: {error:#}", place.name());
                Vec::new()
            }
        }
    }

    /// Differences that stand.
    pub(super) fn unbalanced(&self) -> impl Iterator<Item = Warning> + '_ {
        self.observed.values().filter_map(|observed| {
            let (difference, causes) = observed.balance.told.as_ref()?;
            let name = observed.interface.name.as_deref();
            let name = name.unwrap_or_else(|| observed.interface.place.name());
            let mut causes = causes.clone();
            if observed.detached > 0 {
                causes.insert(0, "somebody else had taken our programs off".to_owned());
            }
            let causes = match causes.as_slice() {
                [] => "nothing was found that explains it".to_owned(),
                causes => format!("what may be behind it: {}", causes.join("; ")),
            };
            Some(Warning {
                code: "unaccounted".to_owned(),
                namespace: self.rows.get(&observed.owner).map(|row| row.name.clone()),
                message: format!("{name}: {}: {causes}", words(*difference)),
            })
        })
    }
}

/// A namespace's difference in the directions of the interface that carries the programs.
fn oriented_difference(place: &Place, difference: Directions<i64>) -> Directions<i64> {
    match place {
        Place::HostEnd { .. } => difference.mirrored(),
        Place::Inside { .. } => difference,
    }
}

/// What the difference is.
fn words(difference: Directions<i64>) -> String {
    let one = |packets: i64, direction: &str| match packets {
        0 => None,
        1.. => Some(format!("{packets} {direction} packets that we did not")),
        _ => Some(format!(
            "{} {direction} packets less than we did",
            packets.unsigned_abs()
        )),
    };
    let parts: Vec<String> = [one(difference.rx, "rx"), one(difference.tx, "tx")]
        .into_iter()
        .flatten()
        .collect();
    format!("the kernel has counted {}", parts.join(" and "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_told_by_direction_and_sign() {
        assert_eq!(
            words(Directions { rx: 3, tx: -2 }),
            "the kernel has counted 3 rx packets that we did not and 2 tx packets less than we did"
        );
    }
}
