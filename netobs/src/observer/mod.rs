//! Hangs the programs where the inventory says, and reads what they counted.

pub mod causes;
mod describe;
mod doubts;
mod lookups;
mod names;
mod past;
mod presence;
mod routing;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    time::{Duration, Instant, SystemTime},
};

use anyhow::Context as _;
use log::{debug, info};
use netobs_common::{SlotEntry, SlotOwner};

pub use describe::listed;
use describe::{described, namespace};
use doubts::{doubts, own_doubts};
pub use lookups::{LookupObserver, Wanted};
use names::Names;
use past::Past;
pub use routing::RoutingObserver;

use crate::{
    bpf::{
        attach::{self, Attached},
        object::{Capacity, Programs},
        qdisc,
    },
    config::TcMode,
    inventory::{
        build::{Interface, Place, Row},
        select::Selection,
    },
    model::{
        baseline::Baseline,
        counters::{Counters, Directions, KernelCounters},
        sample::{self, Hook, NsKey, Sample, State, Warning},
    },
    world::{gather::Machine, netlink::CountersByIndex, netns, rcu::Expedited},
};

/// After this time what failed is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// Settings.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How to attach.
    pub tc_mode: TcMode,
    /// Slots for interfaces of one namespace; `None` for what fits.
    pub max_interfaces: Option<u32>,
    /// Which rows to observe.
    pub selection: Selection,
    /// Shorten RCU grace periods while many programs come or go.
    pub expedite: bool,
}

/// Where programs hang: interface indexes mean something only with the
/// namespace they belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Spot {
    scope: NsKey,
    ifindex: u32,
}

/// An interface that is being observed.
struct Observed {
    owner: NsKey,
    interface: Interface,
    slot: u32,
    attached: Attached,
    since: SystemTime,
    baseline: Option<Directions<Baseline>>,
    /// The kernel's counters as read last, namespace's directions.
    kernel: Option<Directions<KernelCounters>>,
    /// How often somebody else took our programs off.
    detached: u32,
}

/// From so many interfaces at once on, grace periods are worth shortening.
const MANY: usize = 4;

/// How an interface that is wanted relates to what is observed at its spot.
enum Standing {
    /// Nothing is.
    New,
    /// It is.
    Same,
    /// It is, under a lesser identity of its namespace.
    Renamed(NsKey),
    /// Somebody else's interface was.
    Moved,
}

/// Everything of ours in the kernel.
pub struct Observer {
    settings: Settings,
    host_key: NsKey,
    host: Programs,
    inside: HashMap<NsKey, Programs>,
    observed: HashMap<Spot, Observed>,
    /// Why attaching failed, and when.
    failed: HashMap<Spot, (String, Instant)>,
    /// Interfaces that found no slot.
    turned_away: HashSet<Spot>,
    /// Interfaces that have a clsact qdisc of ours and no filter.
    made_qdiscs: HashSet<Spot>,
    names: Names,
    past: HashMap<NsKey, Past>,
    rows: BTreeMap<NsKey, Row>,
    gone: Vec<sample::Namespace>,
    verified: Instant,
}

impl Observer {
    /// Loads the programs.
    ///
    /// # Errors
    /// With the kernel's reason.
    pub fn new(settings: Settings, host_key: NsKey) -> anyhow::Result<Self> {
        Ok(Self {
            host: Programs::load(Capacity::host(settings.max_interfaces)?)?,
            settings,
            host_key,
            inside: HashMap::new(),
            observed: HashMap::new(),
            failed: HashMap::new(),
            turned_away: HashSet::new(),
            made_qdiscs: HashSet::new(),
            names: Names::default(),
            past: HashMap::new(),
            rows: BTreeMap::new(),
            gone: Vec::new(),
            verified: Instant::now(),
        })
    }

    /// An interface of our own namespace has ended, the kernel says. To be
    /// called before the next [`apply`](Self::apply), so that its index means
    /// nothing any more.
    pub fn ended(&mut self, ifindex: u32) {
        let spot = Spot {
            scope: self.host_key,
            ifindex,
        };
        self.failed.remove(&spot);
        self.turned_away.remove(&spot);
        self.made_qdiscs.remove(&spot);
        self.retire(spot, true);
    }

    /// Attaches to what is new in `rows` and lets go of what is not there any
    /// more. What failed is tried again after a while.
    pub async fn apply(&mut self, rows: Vec<Row>, machine: &Machine) {
        let known = &self.rows;
        let rows = self
            .names
            .select(rows, &self.settings.selection, |key| known.get(&key));
        self.failed.retain(|_, (_, at)| at.elapsed() < RETRY);
        let wanted: HashMap<Spot, (NsKey, &Interface)> = rows
            .values()
            .flat_map(|row| row.interfaces.iter().map(move |i| (row.key, i)))
            .map(|(owner, interface)| (self.spot(owner, &interface.place), (owner, interface)))
            .collect();

        let unwanted: Vec<Spot> = self
            .observed
            .keys()
            .filter(|spot| !wanted.contains_key(spot))
            .copied()
            .collect();
        let coming = wanted
            .keys()
            .filter(|spot| !self.observed.contains_key(spot) && !self.failed.contains_key(spot));
        let _expedited = self.expedited(coming.count() + unwanted.len());
        for spot in unwanted {
            let alive = machine.path_of(spot.scope).is_some();
            self.release(spot, machine, !alive).await;
        }
        self.failed.retain(|spot, _| wanted.contains_key(spot));

        let mut renamed = HashSet::new();
        let mut fresh = HashSet::new();
        for (spot, (owner, interface)) in wanted {
            match self.standing(spot, owner, interface) {
                Standing::New | Standing::Same => {}
                // The same namespace, known better by now.
                Standing::Renamed(old) => {
                    renamed.insert(old);
                    if let Some(past) = self.past.remove(&old) {
                        self.past.insert(owner, past);
                    }
                }
                // The other end has moved to another namespace.
                Standing::Moved => self.release(spot, machine, false).await,
            }
            if let Some(observed) = self.observed.get_mut(&spot) {
                observed.owner = owner;
                observed.interface = interface.clone();
            } else if !self.failed.contains_key(&spot) {
                let name = interface.place.name();
                match self.observe(spot, owner, interface, machine) {
                    Ok(observed) => {
                        info!("observing {name} ({})", observed.attached.hook.as_str());
                        self.observed.insert(spot, observed);
                        fresh.insert(spot);
                    }
                    Err(error) => {
                        debug!("{name}: {error:#}");
                        self.failed
                            .insert(spot, (format!("{error:#}"), Instant::now()));
                    }
                }
            }
        }
        self.note_gone(&rows, &renamed);
        self.rows = rows;
        self.describe_owners();
        if !fresh.is_empty() {
            self.read_kernel(machine, Some(&fresh)).await;
        }
        self.verify(machine).await;
        self.inside
            .retain(|key, _| self.observed.keys().any(|spot| spot.scope == *key));
    }

    /// Why nothing at all could be attached, where that is so.
    #[must_use]
    pub fn nothing_works(&self) -> Option<&str> {
        if !self.observed.is_empty() {
            return None;
        }
        self.failed
            .values()
            .next()
            .map(|(reason, _)| reason.as_str())
    }

    /// For the time in which `count` interfaces come or go.
    fn expedited(&self, count: usize) -> Option<Expedited> {
        (self.settings.expedite && count >= MANY).then(Expedited::begin)?
    }

    fn standing(&self, spot: Spot, owner: NsKey, interface: &Interface) -> Standing {
        let Some(observed) = self.observed.get(&spot) else {
            return Standing::New;
        };
        let same_end = same_end(&observed.interface.place, &interface.place);
        match observed.owner {
            old if old == owner && same_end => Standing::Same,
            old @ (NsKey::Nsid(_) | NsKey::Inode(_)) if same_end => Standing::Renamed(old),
            _ => Standing::Moved,
        }
    }

    fn spot(&self, owner: NsKey, place: &Place) -> Spot {
        Spot {
            scope: match place {
                Place::HostEnd { .. } => self.host_key,
                Place::Inside { .. } => owner,
            },
            ifindex: place.ifindex(),
        }
    }

    fn programs(&mut self, scope: NsKey) -> anyhow::Result<&mut Programs> {
        if scope == self.host_key {
            return Ok(&mut self.host);
        }
        let slots = self.settings.max_interfaces;
        Ok(match self.inside.entry(scope) {
            std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::hash_map::Entry::Vacant(entry) => {
                entry.insert(Programs::load(Capacity::inside(slots)?)?)
            }
        })
    }

    fn observe(
        &mut self,
        spot: Spot,
        owner: NsKey,
        interface: &Interface,
        machine: &Machine,
    ) -> anyhow::Result<Observed> {
        let programs = self.programs(spot.scope)?;
        let capacity = programs.counters().slots();
        let Some(slot) = programs.take_slot() else {
            self.turned_away.insert(spot);
            anyhow::bail!("all {capacity} slots are in use: --max-interfaces makes room for more");
        };
        let entry = SlotEntry::new(slot, flags(interface));
        let name = interface.place.name();
        let result = programs
            .direct(spot.ifindex, entry)
            .and_then(|()| self.hang(spot, name, machine));
        let programs = self.programs(spot.scope)?;
        match result {
            Ok(attached) => Ok(Observed {
                owner,
                interface: interface.clone(),
                slot,
                attached,
                since: SystemTime::now(),
                baseline: None,
                kernel: None,
                detached: 0,
            }),
            Err(error) => {
                programs.direct(spot.ifindex, SlotEntry::NONE)?;
                programs.give_back(slot)?;
                Err(error)
            }
        }
    }

    /// Attaches the programs of `spot`, in the namespace that it is in.
    fn hang(&mut self, spot: Spot, name: &str, machine: &Machine) -> anyhow::Result<Attached> {
        let mode = self.settings.tc_mode;
        let in_host = spot.scope == self.host_key;
        let path = machine.path_of(spot.scope);
        let programs = self.programs(spot.scope)?;
        let mut made_qdisc = false;
        let mut attach = |programs: &mut Programs| {
            attach::attach(programs, name, spot.ifindex, mode, &mut made_qdisc)
        };
        let result = if in_host {
            attach(programs)
        } else {
            let file = netns::open(&path.context("the namespace has ended")?)?;
            netns::within(&file, || {
                if let (NsKey::Cookie(expected), Ok(cookie)) = (spot.scope, netns::cookie()) {
                    anyhow::ensure!(expected == cookie, "the namespace has ended");
                }
                attach(programs)
            })?
        };
        if made_qdisc {
            self.made_qdiscs.insert(spot);
        }
        result
    }

    /// Takes the programs off `spot` and remembers what they counted.
    async fn release(&mut self, spot: Spot, machine: &Machine, namespace_ended: bool) {
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
    fn retire(&mut self, spot: Spot, ended: bool) {
        let Some(observed) = self.observed.remove(&spot) else {
            return;
        };
        info!("no longer observing {}", observed.interface.place.name());
        let Observed {
            owner,
            interface,
            slot,
            attached,
            since,
            baseline,
            kernel: _,
            detached: _,
        } = observed;
        let hook = attached.hook;
        if ended {
            attached.forget();
        } else {
            drop(attached);
        }
        let Ok(programs) = self.programs(spot.scope) else {
            return;
        };
        let counters = programs.counters().read(slot);
        let returned = programs
            .direct(spot.ifindex, SlotEntry::NONE)
            .and_then(|()| programs.give_back(slot));
        if let Err(error) = returned {
            debug!("slot {slot} is lost: {error:#}");
        }
        self.past
            .entry(owner)
            .or_default()
            .remember(sample::Interface {
                counters: Some(counters),
                hook,
                observed_since: Some(since),
                // What was read last is older than what we counted.
                kernel: None,
                before_attach: baseline,
                ..described(&interface)
            });
    }

    /// Writes down whose each slot is.
    fn describe_owners(&mut self) {
        let rows = &self.rows;
        for (spot, observed) in &self.observed {
            let programs = if spot.scope == self.host_key {
                Some(&mut self.host)
            } else {
                self.inside.get_mut(&spot.scope)
            };
            let row = rows.get(&observed.owner);
            let mut name = [0; 16];
            if let Some(text) = &observed.interface.name {
                // IFNAMSIZ leaves room for the NUL.
                for (to, from) in name.iter_mut().take(15).zip(text.bytes()) {
                    *to = from;
                }
            }
            let owner = SlotOwner {
                cookie: match observed.owner {
                    NsKey::Cookie(cookie) => cookie,
                    _ => 0,
                },
                inode: row.and_then(|row| row.inode).unwrap_or(0),
                ifindex: observed.interface.ifindex.unwrap_or(0),
                hook_ifindex: spot.ifindex,
                name,
                ..SlotOwner::default()
            };
            if let Some(Err(error)) = programs.map(|p| p.describe(observed.slot, owner)) {
                debug!("owner of slot {}: {error:#}", observed.slot);
            }
        }
    }

    /// Keeps the last state of namespaces that have ended, for the next sample.
    fn note_gone(&mut self, rows: &BTreeMap<NsKey, Row>, renamed: &HashSet<NsKey>) {
        let ended: Vec<&Row> = self
            .rows
            .values()
            .filter(|row| !rows.contains_key(&row.key) && !renamed.contains(&row.key))
            .collect();
        for row in ended {
            let past = self.past.remove(&row.key).unwrap_or_default();
            if !self.settings.selection.includes(row) {
                continue;
            }
            self.gone.push(sample::Namespace {
                state: State::Gone,
                interfaces: past.ended,
                retired: past.folded,
                ..namespace(row)
            });
        }
    }

    /// Reads the kernel's counters, of `only` where given, and adjusts the
    /// baselines. Ours are read first: see [`Baseline`].
    async fn read_kernel(
        &mut self,
        machine: &Machine,
        only: Option<&HashSet<Spot>>,
    ) -> HashMap<Spot, Directions<Counters>> {
        let mut ours = HashMap::new();
        for (spot, observed) in &self.observed {
            if only.is_none_or(|only| only.contains(spot)) {
                let programs = if spot.scope == self.host_key {
                    Some(&self.host)
                } else {
                    self.inside.get(&spot.scope)
                };
                if let Some(programs) = programs {
                    ours.insert(*spot, programs.counters().read(observed.slot));
                }
            }
        }
        let scopes: HashSet<NsKey> = ours.keys().map(|spot| spot.scope).collect();
        let mut kernel: HashMap<NsKey, CountersByIndex> = HashMap::new();
        for scope in scopes {
            match machine.counters_in(scope).await {
                Ok(counters) => {
                    kernel.insert(scope, counters);
                }
                Err(error) => debug!("{scope}: {error:#}"),
            }
        }
        for (spot, counters) in &ours {
            let Some(observed) = self.observed.get_mut(spot) else {
                continue;
            };
            let read = kernel
                .get(&spot.scope)
                .and_then(|counters| counters.get(&spot.ifindex))
                .map(|counters| oriented(&observed.interface.place, *counters));
            let Some(read) = read else { continue };
            observed.kernel = Some(read);
            let (rx, tx) = (counters.rx.total(), counters.tx.total());
            match &mut observed.baseline {
                Some(baseline) => {
                    baseline.rx.observe(&read.rx, &rx);
                    baseline.tx.observe(&read.tx, &tx);
                }
                None => {
                    observed.baseline = Some(Directions {
                        rx: Baseline::new(&read.rx, &rx),
                        tx: Baseline::new(&read.tx, &tx),
                    });
                }
            }
        }
        ours
    }

    /// Reads everything.
    pub async fn sample(
        &mut self,
        machine: &Machine,
        host: sample::Host,
        time: SystemTime,
        mut warnings: Vec<Warning>,
    ) -> Sample {
        let mut ours = self.read_kernel(machine, None).await;
        let mut namespaces: Vec<sample::Namespace> = self
            .rows
            .values()
            .filter(|row| self.settings.selection.includes(row))
            .map(|row| sample::Namespace {
                retired: self.past.get(&row.key).map(Past::total).unwrap_or_default(),
                interfaces: row
                    .interfaces
                    .iter()
                    .map(|interface| self.interface(row.key, interface, &mut ours))
                    .collect(),
                ..namespace(row)
            })
            .collect();
        namespaces.append(&mut self.gone);
        warnings.extend(doubts(&namespaces));
        warnings.extend(self.detached());
        let observer = self.about();
        warnings.extend(own_doubts(&observer));
        Sample {
            time,
            host,
            namespaces,
            unattributed: None,
            observer,
            warnings,
        }
    }

    fn interface(
        &self,
        owner: NsKey,
        interface: &Interface,
        ours: &mut HashMap<Spot, Directions<Counters>>,
    ) -> sample::Interface {
        let spot = self.spot(owner, &interface.place);
        let described = described(interface);
        match self.observed.get(&spot) {
            Some(observed) => sample::Interface {
                hook: observed.attached.hook,
                observed_since: Some(observed.since),
                counters: ours.remove(&spot),
                kernel: observed.kernel,
                before_attach: observed.baseline,
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
        let copies = || std::iter::once(&self.host).chain(self.inside.values());
        let mut about = sample::Observer::default();
        for copy in copies() {
            about.lost += copy.lost();
            for program in copy.programs() {
                match about.programs.iter_mut().find(|p| p.name == program.name) {
                    Some(sum) => {
                        sum.runs = sum.runs.zip(program.runs).map(|(a, b)| a + b);
                        sum.run_ns = sum.run_ns.zip(program.run_ns).map(|(a, b)| a + b);
                    }
                    None => about.programs.push(program),
                }
            }
        }
        about.programs.sort_by(|a, b| a.name.cmp(&b.name));
        let mut maps = self.host.maps();
        for copy in self.inside.values() {
            let more = copy.maps();
            maps.entries += more.entries;
            maps.capacity += more.capacity;
        }
        // Interfaces, and not attempts.
        maps.full = self.turned_away.len() as u64;
        about.maps.push(maps);
        about
    }

    /// Takes everything off.
    pub async fn shut_down(mut self, machine: &Machine) {
        let spots: Vec<Spot> = self.observed.keys().copied().collect();
        let _expedited = self.expedited(spots.len());
        for spot in spots {
            let ended = machine.path_of(spot.scope).is_none();
            self.release(spot, machine, ended).await;
        }
        // Where only the qdisc could be made.
        for spot in std::mem::take(&mut self.made_qdiscs) {
            let removed = qdisc::remove_if_empty(machine, spot.scope, spot.ifindex).await;
            if let Err(error) = removed {
                debug!(
                    "interface {}: the clsact qdisc stays: {error:#}",
                    spot.ifindex
                );
            }
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

fn flags(interface: &Interface) -> u32 {
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

/// Whether two places are the same end, whatever it is called now.
fn same_end(a: &Place, b: &Place) -> bool {
    std::mem::discriminant(a) == std::mem::discriminant(b)
}
