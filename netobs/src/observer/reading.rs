//! Reads what was counted, and says what it is of.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::SystemTime,
};

use log::debug;

use super::{
    Observer, Spot,
    describe::{bare, described},
    doubts::{doubts, own_doubts},
    past::Past,
};
use crate::{
    bpf::object::Programs,
    inventory::build::{Interface, Place, Row},
    model::{
        baseline::Baseline,
        counters::{Directions, KernelCounters},
        sample::{self, NsKey, Sample, State, Warning},
    },
    world::{gather::Machine, stats::CountersByIndex},
};

impl Observer {
    /// Reads the kernel's counters, of `only` where given, and adjusts the
    /// baselines. Ours are read first: see [`Baseline`].
    pub(super) fn read_kernel(&mut self, machine: &Machine, only: Option<&HashSet<Spot>>) {
        let mut kernel: HashMap<NsKey, CountersByIndex> = HashMap::new();
        for (spot, observed) in &mut self.observed {
            if only.is_some_and(|only| !only.contains(spot)) {
                continue;
            }
            let programs = if spot.scope == self.host_key {
                Some(&self.host)
            } else {
                self.inside.get(&spot.scope)
            };
            let read = programs.map(|programs| programs.counters().read(observed.slot));
            if observed.counters != read {
                observed.counters = read;
                self.unchanged.remove(&observed.owner);
            }
            kernel.entry(spot.scope).or_default();
        }
        for (scope, counters) in &mut kernel {
            match machine.counters_in(*scope) {
                Ok(read) => *counters = read,
                Err(error) => debug!("{scope}: {error:#}"),
            }
        }
        for (spot, observed) in &mut self.observed {
            if only.is_some_and(|only| !only.contains(spot)) {
                continue;
            }
            let read = kernel
                .get(&spot.scope)
                .and_then(|counters| counters.get(&spot.ifindex))
                .map(|counters| oriented(&observed.interface.place, *counters));
            let (Some(read), Some(counters)) = (read, &observed.counters) else {
                continue;
            };
            let (rx, tx) = (counters.rx.total(), counters.tx.total());
            let baseline = match observed.baseline {
                // So soon after another, what was counted may be yet to pass our hook.
                Some(mut baseline) if only.is_some() => {
                    baseline.rx.lower(&read.rx, &rx);
                    baseline.tx.lower(&read.tx, &tx);
                    baseline
                }
                Some(mut baseline) => {
                    baseline.rx.observe(&read.rx, &rx);
                    baseline.tx.observe(&read.tx, &tx);
                    baseline
                }
                None => Directions {
                    rx: Baseline::new(&read.rx, &rx),
                    tx: Baseline::new(&read.tx, &tx),
                },
            };
            let now = (Some(read), Some(baseline));
            if (observed.kernel, observed.baseline) != now {
                (observed.kernel, observed.baseline) = now;
                self.unchanged.remove(&observed.owner);
            }
        }
    }

    /// Reads everything.
    pub async fn sample(
        &mut self,
        machine: &Machine,
        host: sample::Host,
        time: SystemTime,
        mut warnings: Vec<Warning>,
    ) -> Sample {
        self.read_kernel(machine, None);
        self.balance(machine).await;
        let mut recent: HashMap<NsKey, Vec<sample::Interface>> = self
            .past
            .iter_mut()
            .map(|(key, past)| (*key, std::mem::take(&mut past.recent)))
            .collect();
        let mut namespace = |row: &Row| sample::Namespace {
            retired: self.past.get(&row.key).map(Past::total).unwrap_or_default(),
            former: recent.remove(&row.key).unwrap_or_default(),
            interfaces: row
                .interfaces
                .iter()
                .chain(self.kept_by(row.key))
                .map(|interface| self.interface(row.key, interface))
                .collect(),
            ..bare(row)
        };
        let mut namespaces: Vec<Arc<sample::Namespace>> = self
            .rows
            .values()
            .filter(|row| self.settings.selection.includes(row) && !self.is_passing(row))
            .map(|row| match self.unchanged.get(&row.key) {
                Some(known) => {
                    debug_assert_eq!(
                        sample::Namespace {
                            lookups: known.lookups,
                            behalf: known.behalf.clone(),
                            ..namespace(row)
                        },
                        **known,
                        "it has changed and nobody said so"
                    );
                    Arc::clone(known)
                }
                None => Arc::new(namespace(row)),
            })
            .collect();
        // What the last sample showed as gone has been written by now; whoever is killed
        // before that is followed by one that shows it again.
        self.forget_departed();
        self.departed
            .extend(self.gone.iter().filter_map(|ns| ns.cookie));
        namespaces.extend(self.gone.drain(..).map(Arc::new));
        warnings.extend(doubts(&namespaces));
        warnings.extend(self.detached());
        warnings.extend(self.unbalanced());
        let observer = self.about();
        warnings.extend(own_doubts(&observer, !self.turned_away.is_empty()));
        Sample {
            time,
            host,
            namespaces,
            unattributed: None,
            observer,
            warnings,
        }
    }

    /// Shares what nothing changes of in `sample` with the next one, once everything is in
    /// it that is shown.
    pub fn share(&mut self, sample: &Sample) {
        let same = |ns: &&Arc<sample::Namespace>| ns.state == State::Up && ns.former.is_empty();
        let kept = sample.namespaces.iter().filter(same);
        self.unchanged = kept.map(|ns| (ns.key, Arc::clone(ns))).collect();
    }

    /// Interfaces of `owner` that may be elsewhere by now.
    fn kept_by(&self, owner: NsKey) -> impl Iterator<Item = &Interface> {
        self.doubtful
            .iter()
            .filter_map(|spot| self.observed.get(spot))
            .filter(move |observed| observed.owner == owner)
            .map(|observed| &observed.interface)
    }

    /// Whether all that makes `row` one is an interface that others have.
    fn is_passing(&self, row: &Row) -> bool {
        let doubtful = |interface: &Interface| {
            let spot = self.spot(row.key, &interface.place);
            self.doubtful.contains(&spot)
        };
        matches!(row.key, NsKey::Nsid(_)) && row.interfaces.iter().all(doubtful)
    }

    fn interface(&self, owner: NsKey, interface: &Interface) -> sample::Interface {
        let spot = self.spot(owner, &interface.place);
        let described = described(interface);
        match self.observed.get(&spot).filter(|o| o.owner == owner) {
            Some(observed) => sample::Interface {
                hook: observed.attached.hook,
                observed_since: Some(observed.since),
                counters: observed.counters.clone(),
                kernel: observed.kernel,
                before_attach: observed.baseline,
                attach_lag: observed.lag,
                ..described
            },
            None => sample::Interface {
                reason: Some(
                    self.failed
                        .get(&spot)
                        .map(|(reason, _)| reason.clone())
                        .unwrap_or_else(|| "not attached yet".to_owned()),
                ),
                ..described
            },
        }
    }

    fn about(&self) -> sample::Observer {
        let copies = std::iter::once(&self.host).chain(self.inside.values());
        let mut about = self.former.clone();
        for copy in copies {
            add_programs(&mut about, copy);
        }
        about.programs.sort_by(|a, b| a.name.cmp(&b.name));
        about
            .maps
            .push(self.host.notes_info(self.notes.len(), self.notes_full));
        if self.settings.pins.is_some() {
            about.maps.push(self.host.series_info());
        }
        let mut maps = self.host.maps();
        for copy in self.inside.values() {
            let more = copy.maps();
            maps.entries += more.entries;
            maps.capacity += more.capacity;
        }
        // Interfaces, and not attempts.
        maps.full = self.ever_turned_away;
        about.maps.push(maps);
        about.lags = self.lags;
        about.pinned = self.host.part().map(|part| part.path().to_owned());
        about
    }
}

/// Adds what a copy of the programs did and could not credit.
pub(super) fn add_programs(about: &mut sample::Observer, copy: &Programs) {
    about.lost += copy.lost();
    for program in copy.programs() {
        match about.programs.iter_mut().find(|p| p.name == program.name) {
            Some(sum) => {
                // What ran before the kernel counted runs is not known, and not much.
                let add = |sum: &mut Option<u64>, more: Option<u64>| {
                    *sum = more.map(|more| sum.unwrap_or(0) + more);
                };
                add(&mut sum.runs, program.runs);
                add(&mut sum.run_ns, program.run_ns);
                add(&mut sum.missed, program.missed);
            }
            None => about.programs.push(program),
        }
    }
}

/// What the kernel counts on the host end is the namespace's, mirrored.
fn oriented(place: &Place, counters: Directions<KernelCounters>) -> Directions<KernelCounters> {
    match place {
        Place::HostEnd { .. } => counters.mirrored(),
        Place::Inside { .. } => counters,
    }
}
