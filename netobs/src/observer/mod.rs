//! Hangs the programs where the inventory says, and reads what they counted.

mod balance;
pub mod causes;
mod describe;
mod doubts;
mod hanging;
mod inherit;
mod keeper;
mod lookups;
mod memory;
mod names;
mod past;
mod presence;
mod reading;
mod routing;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use log::{debug, info};
use netobs_common::{Netns, SlotOwner};

use balance::Balance;
use describe::bare;
pub use describe::listed;
pub use lookups::{LookupObserver, Wanted};
use names::Names;
use past::Past;
use presence::Turns;
use reading::add_programs;
pub use routing::RoutingObserver;

use crate::{
    bpf::{
        attach::Attached,
        object::{Capacity, Programs},
        pins::PinFolder,
        qdisc,
    },
    config::TcMode,
    inventory::{
        build::{Interface, Place, Row},
        select::Selection,
    },
    model::{
        baseline::Baseline,
        causes::Evidence,
        counters::{Counters, Directions, KernelCounters},
        sample::{self, NsKey, State},
    },
    world::{gather::Machine, rcu::Expedited},
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
    /// Shorten RCU grace periods while programs come or go.
    pub expedite: bool,
    /// Where programs, links and maps live on without us.
    pub pins: Option<Arc<PinFolder>>,
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
    /// Ours as read last.
    counters: Option<Directions<Counters>>,
    /// The kernel's counters as read last, namespace's directions.
    kernel: Option<Directions<KernelCounters>>,
    /// How often somebody else took our programs off.
    detached: u64,
    /// What was written down of it last.
    described: SlotOwner,
    /// For how long packets could pass before the programs hung there; `None` where
    /// it was there before us.
    lag: Option<Duration>,
    /// Whether it came while we were looking.
    fresh: bool,
    /// When the programs hung there.
    attached_at: Instant,
    balance: Balance,
}

/// Readings of new interfaces at once.
const READINGS: usize = 3;

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
    /// It may be another's by now, or the id of its namespace: nobody has seen it there.
    Doubtful,
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
    /// How many there were so far.
    ever_turned_away: u64,
    /// Interfaces that stay with who has them until somebody has seen them elsewhere.
    doubtful: HashSet<Spot>,
    /// Interfaces that have a clsact qdisc of ours and no filter.
    made_qdiscs: HashSet<Spot>,
    names: Names,
    past: HashMap<NsKey, Past>,
    rows: BTreeMap<NsKey, Row>,
    gone: Vec<sample::Namespace>,
    /// Namespaces as they were [shown](Self::share) last, of which nothing has changed since:
    /// whoever changes what a row shows takes it out.
    unchanged: HashMap<NsKey, Arc<sample::Namespace>>,
    turns: Turns,
    /// What is remembered in the kernel of namespaces, by cookie.
    notes: HashMap<u64, Netns>,
    /// How often one found no room there.
    notes_full: u64,
    /// Namespaces that were shown for the last time, or are not shown any more, and
    /// are to be forgotten there once that was written out.
    departed: Vec<u64>,
    /// Whether what an earlier netobs left was looked at.
    inherited: bool,
    /// Since when packets can pass the interfaces of our own namespace that came up
    /// while we were looking.
    passable: HashMap<u32, Instant>,
    /// When we had looked for the first time.
    began: Option<Instant>,
    lags: sample::Lags,
    /// What copies of the programs did that are no more.
    former: sample::Observer,
    /// Whether a series could not be kept.
    series_lost: bool,
    /// Whether everything that was wanted last hangs where it should.
    settled: bool,
    /// What the machine had lost before we began.
    beginning: Evidence,
}

impl Observer {
    /// Loads the programs.
    ///
    /// # Errors
    /// With the kernel's reason.
    pub fn new(settings: Settings, host_key: NsKey) -> anyhow::Result<Self> {
        let capacity = Capacity::host(settings.max_interfaces)?;
        let host = match (&settings.pins, host_key.cookie()) {
            (Some(folder), Some(cookie)) => {
                Programs::load_pinned(capacity, folder.part().clone(), cookie)?
            }
            _ => Programs::load(capacity)?,
        };
        let notes = host.notes();
        let rows = notes
            .iter()
            .map(|(cookie, note)| (NsKey::Cookie(*cookie), memory::row(*cookie, note)))
            .collect();
        if let Some(wanted) = settings.max_interfaces
            && wanted != host.counters().slots()
        {
            log::warn!(
                "--max-interfaces: what is pinned has room for {} and keeps it; `netobs clean` makes way \
                 for more",
                host.counters().slots()
            );
        }
        Ok(Self {
            notes,
            host,
            settings,
            host_key,
            inside: HashMap::new(),
            observed: HashMap::new(),
            failed: HashMap::new(),
            turned_away: HashSet::new(),
            ever_turned_away: 0,
            doubtful: HashSet::new(),
            notes_full: 0,
            made_qdiscs: HashSet::new(),
            names: Names::default(),
            past: HashMap::new(),
            // As an earlier one knew them: they keep their names until an engine has told.
            rows,
            gone: Vec::new(),
            unchanged: HashMap::new(),
            turns: Turns::default(),
            departed: Vec::new(),
            inherited: false,
            passable: HashMap::new(),
            began: None,
            lags: sample::Lags::default(),
            former: sample::Observer::default(),
            series_lost: false,
            settled: false,
            beginning: causes::baseline(),
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
        self.passable.remove(&ifindex);
        self.unchanged.clear();
        self.retire(spot, true);
    }

    /// Packets can pass an interface of our own namespace since `at`, or no longer.
    pub fn passable(&mut self, ifindex: u32, up: bool, at: Instant) {
        if !up {
            self.passable.remove(&ifindex);
            return;
        }
        // What came up while we were starting did not wait for the programs.
        if self.began.is_none_or(|began| at < began) {
            return;
        }
        self.passable.entry(ifindex).or_insert(at);
        let spot = Spot {
            scope: self.host_key,
            ifindex,
        };
        // Else the programs were there first.
        if let Some(observed) = self.observed.get_mut(&spot)
            && observed.fresh
            && observed.lag.is_none()
            && matches!(observed.interface.place, Place::HostEnd { .. })
        {
            let lag = observed.attached_at.saturating_duration_since(at);
            observed.lag = Some(lag);
            self.unchanged.remove(&observed.owner);
            self.lags.add(lag);
        }
    }

    /// Attaches to what is new in `rows` and lets go of what is not there any
    /// more. What failed is tried again after a while.
    pub async fn apply(&mut self, rows: Vec<Row>, machine: &Machine) {
        self.unchanged.clear();
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
        if !std::mem::replace(&mut self.inherited, true) {
            self.inherit(&wanted, machine).await;
        }

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

        self.doubtful.clear();
        let mut ended_with_owner = false;
        let mut renamed = HashSet::new();
        let mut fresh = HashSet::new();
        for (spot, (owner, interface)) in wanted {
            match self.standing(spot, owner, interface) {
                Standing::New | Standing::Same => {}
                Standing::Doubtful => {
                    let old = self.observed.get(&spot).map(|observed| observed.owner);
                    if old.is_some_and(|old| rows.contains_key(&old)) {
                        self.doubtful.insert(spot);
                    } else {
                        // It ends with who had it, and is begun anew at the next look.
                        self.release(spot, machine, false).await;
                        ended_with_owner = true;
                    }
                    continue;
                }
                // The same namespace, known better by now.
                Standing::Renamed(old) => {
                    renamed.insert(old);
                    if let Some(past) = self.past.remove(&old) {
                        self.past.entry(owner).or_default().absorb(past);
                    }
                }
                // The other end has moved to another namespace.
                Standing::Moved => self.release(spot, machine, false).await,
            }
            if let Some(observed) = self.observed.get_mut(&spot) {
                observed.owner = owner;
                observed.interface = interface.clone();
            } else if !self.failed.contains_key(&spot)
                && self.begin(spot, owner, interface, machine)
            {
                fresh.insert(spot);
            }
        }
        self.note_gone(&rows, &renamed, machine);
        self.rows = rows;
        self.read_fresh(&fresh, machine);
        self.write_down();
        self.settled = self.failed.is_empty() && self.doubtful.is_empty() && !ended_with_owner;
        self.verify(machine).await;
        self.drop_unused();
        self.began.get_or_insert_with(Instant::now);
    }

    /// Attaches to what is in `rows` and new, ahead of an [`apply`](Self::apply) of all
    /// rows, which takes the longer the more there are. That one decides: it lets go of
    /// what it does not want, and tries again what failed here.
    pub fn greet(&mut self, rows: &[Row], machine: &Machine) {
        let new: Vec<(Spot, NsKey, &Interface)> = rows
            .iter()
            .filter(|row| self.settings.selection.may_include(row))
            .flat_map(|row| row.interfaces.iter().map(|interface| (row.key, interface)))
            .map(|(owner, interface)| (self.spot(owner, &interface.place), owner, interface))
            .filter(|(spot, ..)| {
                !self.observed.contains_key(spot) && !self.failed.contains_key(spot)
            })
            .collect();
        let _expedited = self.expedited(new.len());
        let mut fresh = HashSet::new();
        for (spot, owner, interface) in new {
            if self.begin(spot, owner, interface, machine) {
                self.unchanged.remove(&owner);
                fresh.insert(spot);
            } else {
                self.failed.remove(&spot);
            }
        }
        self.read_fresh(&fresh, machine);
    }

    /// Begins to observe an interface; `false` where that failed.
    fn begin(
        &mut self,
        spot: Spot,
        owner: NsKey,
        interface: &Interface,
        machine: &Machine,
    ) -> bool {
        let name = interface.place.name();
        match self.observe(spot, owner, interface, machine) {
            Ok(observed) => {
                let hook = observed.attached.hook.as_str();
                match observed.lag {
                    Some(lag) => info!("observing {name} ({hook}), {lag:.1?} after it came up"),
                    None => info!("observing {name} ({hook})"),
                }
                self.observed.insert(spot, observed);
                true
            }
            Err(error) => {
                debug!("{name}: {error:#}");
                self.failed
                    .insert(spot, (format!("{error:#}"), Instant::now()));
                false
            }
        }
    }

    /// Reads what the kernel counts of interfaces that were just begun with.
    fn read_fresh(&mut self, fresh: &HashSet<Spot>, machine: &Machine) {
        if fresh.is_empty() {
            return;
        }
        // What passed between the readings of a pair shows in the next one, and
        // an interface may not be there for long.
        for _ in 0..READINGS {
            self.read_kernel(machine, Some(fresh));
        }
    }

    /// Whether another [`apply`](Self::apply) of the same rows would change nothing.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.settled && self.names.are_settled()
    }

    /// Does what time asks for while nothing comes or goes.
    pub async fn tend(&mut self, machine: &Machine) {
        self.describe_all();
        self.verify(machine).await;
    }

    /// Copies of the programs that hang nowhere any more.
    fn drop_unused(&mut self) {
        let used: HashSet<NsKey> = self.observed.keys().map(|spot| spot.scope).collect();
        for (_, programs) in self.inside.extract_if(|key, _| !used.contains(key)) {
            add_programs(&mut self.former, &programs);
            if let Some(part) = programs.part().cloned()
                && let Err(error) = part.remove()
            {
                debug!("{error:#}");
            }
        }
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
        (self.settings.expedite && count > 0).then(Expedited::begin)?
    }

    fn standing(&self, spot: Spot, owner: NsKey, interface: &Interface) -> Standing {
        let Some(observed) = self.observed.get(&spot) else {
            return Standing::New;
        };
        let same_end = same_end(&observed.interface.place, &interface.place);
        match observed.owner {
            old if old == owner && same_end => Standing::Same,
            NsKey::Cookie(_)
                if interface.name.is_none() && interface.nsid == observed.interface.nsid =>
            {
                Standing::Doubtful
            }
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
        Ok(match self.inside.entry(scope) {
            std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::hash_map::Entry::Vacant(entry) => {
                let capacity = Capacity::inside(self.settings.max_interfaces)?;
                entry.insert(match (&self.settings.pins, scope) {
                    (Some(folder), NsKey::Cookie(cookie)) => {
                        Programs::load_pinned(capacity, folder.part().inside(cookie), cookie)?
                    }
                    _ => Programs::load(capacity)?,
                })
            }
        })
    }

    /// Keeps the last state of namespaces that have ended, for the next sample.
    fn note_gone(
        &mut self,
        rows: &BTreeMap<NsKey, Row>,
        renamed: &HashSet<NsKey>,
        machine: &Machine,
    ) {
        let ended: Vec<&Row> = self
            .rows
            .values()
            .filter(|row| !rows.contains_key(&row.key) && !renamed.contains(&row.key))
            .collect();
        for row in ended {
            // It lives, and is not asked for: whoever asks for it next goes on with it.
            let lives = row.cookie.is_some() && machine.path_of(row.key).is_some();
            if lives && !self.settings.selection.includes(row) {
                continue;
            }
            let past = self.past.remove(&row.key).unwrap_or_default();
            // A pair of which nobody has seen the other end, and that counted nothing.
            let passing =
                matches!(row.key, NsKey::Nsid(_)) && past.total() == Directions::default();
            if passing || !self.settings.selection.includes(row) {
                self.departed.extend(row.cookie);
                continue;
            }
            self.gone.push(sample::Namespace {
                state: State::Gone,
                interfaces: past.ended,
                former: past.recent,
                retired: past.folded,
                ..bare(row)
            });
        }
        // Who was greeted and is not wanted after all leaves nothing to the next one that
        // gets the same id.
        self.past
            .retain(|key, _| !matches!(key, NsKey::Nsid(_)) || rows.contains_key(key));
    }

    /// Takes everything off, unless it is to live on.
    pub async fn shut_down(mut self, machine: &Machine) {
        if self.settings.pins.is_some() {
            self.leave(machine).await;
            return;
        }
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

/// Whether two places are the same end, whatever it is called now.
fn same_end(a: &Place, b: &Place) -> bool {
    std::mem::discriminant(a) == std::mem::discriminant(b)
}
