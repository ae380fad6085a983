//! From samples to series: labels that stay, and totals that never go back.
//!
//! A series is called after the name of its namespace, not after its identity: of a
//! container that is restarted it goes on. Identities are in series of their own.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::{Duration, SystemTime},
};

use netobs_common::SeriesKey;
use sha2::{Digest as _, Sha256};

use super::{
    book::{self, Entry, Hits},
    counters::{Counters, Directions, KernelCounters},
    ledger::Ledger,
    lookups::{Outcomes, Unattributed},
    route::{Family, Prefix},
    routing::Routing,
    sample::{Hook, Interface, Kind, Namespace, NsKey, Observer, Sample, State},
};

/// An interface of a namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InterfaceLabels {
    /// The namespace's.
    pub netns: Arc<str>,
    /// The interface's name inside it, empty for unknown.
    pub interface: Arc<str>,
}

/// A route of a namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RouteLabels {
    /// The namespace's.
    pub netns: Arc<str>,
    /// All of the route; `None` for hits of routes that found no room.
    pub route: Option<RouteName>,
}

/// What tells a route.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RouteName {
    /// The family.
    pub family: Family,
    /// The table, `None` for unknown.
    pub table: Option<u32>,
    /// Destinations, `None` for unknown.
    pub prefix: Option<Prefix>,
    /// Routers, with a space between where there are several.
    pub gateway: String,
    /// Interfaces, likewise.
    pub interface: String,
}

/// Who a namespace is, and where an interface of it leads. Labels as of Prometheus: empty
/// for unknown or none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// What series are called by.
    pub labels: InterfaceLabels,
    /// `SO_NETNS_COOKIE`.
    pub cookie: String,
    /// Inode of its file.
    pub inode: String,
    /// What it is.
    pub kind: Kind,
    /// Name of the row.
    pub name: String,
    /// Ids of its containers, with `+` between.
    pub container_id: String,
    /// Their images, likewise.
    pub image: String,
    /// Name of the host end.
    pub peer: String,
}

/// What the kernel counts of an interface, with a container that it belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelSeries {
    /// Kind of the namespace.
    pub kind: Kind,
    /// The first container in it, else its name.
    pub name: String,
    /// Id of that container.
    pub id: String,
    /// Its image.
    pub image: String,
    /// Name of the interface.
    pub interface: String,
    /// The counters, as the namespace sees them.
    pub counters: Directions<KernelCounters>,
}

/// All that is shown at one instant, in order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Exposition {
    /// Packets.
    pub packets: Vec<(InterfaceLabels, Directions<Counters>)>,
    /// Packets that the kernel has and we have not.
    pub unaccounted: Vec<(InterfaceLabels, Directions<i64>)>,
    /// Decisions.
    pub lookups: Vec<(Arc<str>, Outcomes)>,
    /// Decisions that the host took for what a namespace sent through it.
    pub by_host: Vec<(Arc<str>, u64)>,
    /// Hits; `None` where they are not asked for.
    pub hits: Option<Vec<(RouteLabels, Hits)>>,
    /// Who is who.
    pub identities: Vec<Identity>,
    /// The kernel's own counters.
    pub kernel: Vec<KernelSeries>,
    /// Decisions of no known namespace.
    pub unattributed: Option<Unattributed>,
    /// Namespaces that are there, by kind.
    pub namespaces: BTreeMap<Kind, u64>,
    /// Interfaces, by how they are observed.
    pub interfaces: BTreeMap<&'static str, u64>,
    /// Standing warnings, by code.
    pub warnings: BTreeMap<String, u64>,
    /// Ourselves.
    pub observer: Observer,
}

/// Where series are kept that go on when this process does not.
pub trait Keeper {
    /// What was kept under `key`; nothing for none.
    fn kept(&self, key: SeriesKey) -> Kept;

    /// Keeps it.
    fn keep(&mut self, key: SeriesKey, kept: &Kept);
}

/// What a series has from sources that have ended.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Kept {
    /// Of an interface.
    pub packets: Directions<Counters>,
    /// Of a namespace.
    pub lookups: Outcomes,
    /// Of a namespace.
    pub by_host: u64,
}

/// Nothing is kept.
#[derive(Clone, Copy, Debug)]
pub struct NoKeeper;

impl Keeper for NoKeeper {
    fn kept(&self, _key: SeriesKey) -> Kept {
        Kept::default()
    }

    fn keep(&mut self, _key: SeriesKey, _kept: &Kept) {}
}

/// The key of an account; of namespaces the interface is `None`.
fn series_key(netns: &str, interface: Option<&str>) -> SeriesKey {
    let mut hash = Sha256::new();
    hash.update(u64::try_from(netns.len()).unwrap_or(u64::MAX).to_le_bytes());
    hash.update(netns);
    if let Some(interface) = interface {
        hash.update([1]);
        hash.update(interface);
    }
    let hash: [u8; 32] = hash.finalize().into();
    let mut key = SeriesKey::default();
    for (to, from) in key.iter_mut().zip(hash) {
        *to = from;
    }
    key
}

/// A namespace that is known by a process or by an id only may be a container that has
/// just started, and an interface may be known by its other end only: they are counted under
/// their names, which come within this time.
const NAMELESS: Duration = Duration::from_secs(5);

/// What tells an interface from any other: since when it is observed, to the nanosecond.
type Attachment = SystemTime;

/// Turns samples into series.
pub struct Exporter {
    grace: Duration,
    /// Series of hits that there can be; `None` where they are not asked for.
    max_routes: Option<usize>,
    /// What series of namespaces are called by.
    names: HashMap<NsKey, Arc<str>>,
    packets: Ledger<InterfaceLabels, Attachment, Directions<Counters>>,
    lookups: Ledger<Arc<str>, NsKey, Outcomes>,
    by_host: Ledger<Arc<str>, NsKey, u64>,
    hits: Ledger<RouteLabels, (NsKey, book::Identity), Hits>,
    /// Those that have a series of their own.
    routes: HashSet<RouteLabels>,
    /// With a route, and without.
    unattributed: [u64; 2],
    /// How often maps were full.
    full: HashMap<String, u64>,
    /// Identities that are no more.
    former: HashMap<InterfaceLabels, Identity>,
    latest: Exposition,
}

impl Exporter {
    /// Series of what has ended stay for `grace`. Hits of routes have at most `max_routes`
    /// series, or are left out.
    #[must_use]
    pub fn new(grace: Duration, max_routes: Option<usize>) -> Self {
        Self {
            grace,
            max_routes,
            names: HashMap::new(),
            packets: Ledger::default(),
            lookups: Ledger::default(),
            by_host: Ledger::default(),
            hits: Ledger::default(),
            routes: HashSet::new(),
            unattributed: [0; 2],
            full: HashMap::new(),
            former: HashMap::new(),
            latest: Exposition::default(),
        }
    }

    /// Takes in what was read, with the `routing` of its namespaces where asked for. What
    /// is to go on after us is with `keeper`.
    pub fn take(&mut self, sample: &Sample, routing: &[Routing], keeper: &mut dyn Keeper) {
        let mut latest = Exposition {
            observer: sample.observer.clone(),
            unattributed: sample.unattributed.map(|now| self.rising(now)),
            ..Exposition::default()
        };
        self.name(&sample.namespaces);
        for map in &mut latest.observer.maps {
            let full = self.full.entry(map.name.clone()).or_default();
            super::ledger::advance(full, map.full);
            map.full = *full;
        }
        for warning in &sample.warnings {
            *latest.warnings.entry(warning.code.clone()).or_default() += 1;
        }
        for ns in &sample.namespaces {
            let netns = self.name_of(ns);
            self.count(ns, &netns, sample.time, keeper);
            if ns.state == State::Up {
                *latest.namespaces.entry(ns.kind).or_default() += 1;
                describe(ns, &netns, sample.time, &mut latest);
            }
        }
        for routing in routing {
            self.count_hits(routing, sample.time);
        }
        let up = sample.namespaces.iter().filter(|ns| ns.state == State::Up);
        let up: HashSet<NsKey> = up.map(|ns| ns.key).collect();
        self.names.retain(|key, _| up.contains(key));
        self.settle(sample.time, keeper);
        self.retire_identities(&latest);
        self.latest = latest;
    }

    /// Everything, to be shown at `now`.
    pub fn show(&mut self, now: SystemTime) -> Exposition {
        let mut shown = self.latest.clone();
        shown.packets = sorted(self.packets.show(now, self.grace));
        shown.lookups = sorted(self.lookups.show(now, self.grace));
        shown.by_host = sorted(self.by_host.show(now, self.grace));
        shown.hits = self
            .max_routes
            .map(|_| sorted(self.hits.show(now, self.grace)));
        // As long as their series are.
        let (packets, grace) = (&self.packets, self.grace);
        self.former
            .retain(|labels, _| !packets.rests(labels, now, grace));
        shown.identities.extend(self.former.values().cloned());
        shown.identities.sort_by(|a, b| a.labels.cmp(&b.labels));
        shown
    }

    fn rising(&mut self, now: Unattributed) -> Unattributed {
        // Each for itself: a failure may be counted ahead of its decision.
        let [ok, failed] = &mut self.unattributed;
        super::ledger::advance(ok, now.lookups.saturating_sub(now.failed));
        super::ledger::advance(failed, now.failed);
        Unattributed {
            lookups: *ok + *failed,
            failed: *failed,
        }
    }

    /// Gives each namespace that is there a name of its own. Of two with the same one, who
    /// had it first keeps it.
    fn name(&mut self, namespaces: &[Arc<Namespace>]) {
        let up = namespaces.iter().filter(|ns| ns.state == State::Up);
        let mut up: Vec<&Namespace> = up.map(|ns| &**ns).collect();
        let has = |ns: &Namespace| {
            self.names
                .get(&ns.key)
                .is_some_and(|name| **name == *ns.name)
        };
        up.sort_by_cached_key(|ns| (!has(ns), ns.key));
        let mut taken: HashSet<Arc<str>> = HashSet::new();
        for ns in up {
            let mut name: Arc<str> = ns.name.as_str().into();
            if taken.contains(&name) {
                name = format!("{} ({})", ns.name, ns.key).into();
            }
            taken.insert(name.clone());
            self.names.insert(ns.key, name);
        }
    }

    fn name_of(&self, ns: &Namespace) -> Arc<str> {
        let known = self.names.get(&ns.key).cloned();
        known.unwrap_or_else(|| ns.name.as_str().into())
    }

    fn settle(&mut self, at: SystemTime, keeper: &mut dyn Keeper) {
        for (labels, packets) in self.packets.settle(at) {
            let kept = Kept {
                packets,
                ..Kept::default()
            };
            let key = series_key(&labels.netns, Some(&*labels.interface));
            keeper.keep(key, &kept);
        }
        for (netns, lookups) in self.lookups.settle(at) {
            let key = series_key(&netns, None);
            let kept = Kept {
                lookups,
                ..keeper.kept(key)
            };
            keeper.keep(key, &kept);
        }
        for (netns, by_host) in self.by_host.settle(at) {
            let key = series_key(&netns, None);
            let kept = Kept {
                by_host,
                ..keeper.kept(key)
            };
            keeper.keep(key, &kept);
        }
        self.hits.settle(at);
    }

    fn count(&mut self, ns: &Namespace, netns: &Arc<str>, time: SystemTime, keeper: &dyn Keeper) {
        let up = ns.state == State::Up;
        // Those of one that has ended may have been told as former ones long ago.
        let there = ns.interfaces.iter().filter(|_| up);
        let there = there.map(|interface| (interface, true));
        let former = ns.former.iter().map(|interface| (interface, false));
        // Ends first: what goes on after them is not at its end.
        for (interface, up) in former.chain(there) {
            let (Some(counters), Some(since)) = (&interface.counters, interface.observed_since)
            else {
                continue;
            };
            if up && is_nameless(ns, interface, time) {
                continue;
            }
            // Pairs that end are told of in passing, under half a name.
            if !up && *counters == Directions::default() && !self.packets.follows(&since) {
                continue;
            }
            // Who leaves its namespace has lost its name there.
            let known = self.packets.label_of(&since);
            let known = known.filter(|_| !up || interface.name.is_none());
            let labels = known.cloned().unwrap_or_else(|| labels(netns, interface));
            self.packets.begin(&labels, || {
                let key = series_key(netns, Some(&*labels.interface));
                keeper.kept(key).packets
            });
            if up {
                self.packets.live(labels, since, counters);
            } else {
                self.packets.ended(labels, since, counters, time);
            }
        }
        let nameless = |interface| is_nameless(ns, interface, time);
        if up && !self.lookups.follows(&ns.key) && ns.interfaces.iter().any(nameless) {
            return;
        }
        if let Some(lookups) = &ns.lookups {
            let lookups = &Outcomes::from(lookups);
            let kept = || keeper.kept(series_key(netns, None)).lookups;
            self.lookups.begin(netns, kept);
            if up {
                self.lookups.live(netns.clone(), ns.key, lookups);
            } else {
                self.lookups.ended(netns.clone(), ns.key, lookups, time);
            }
        }
        if let Some(by_host) = &ns.behalf.by_host {
            let kept = || keeper.kept(series_key(netns, None)).by_host;
            self.by_host.begin(netns, kept);
            if up {
                self.by_host.live(netns.clone(), ns.key, by_host);
            } else {
                self.by_host.ended(netns.clone(), ns.key, by_host, time);
            }
        }
    }

    fn count_hits(&mut self, routing: &Routing, time: SystemTime) {
        let Some(max) = self.max_routes else { return };
        let ns = &routing.namespace;
        let netns = self.name_of(ns);
        if self.routes.len() >= max {
            let (hits, grace) = (&self.hits, self.grace);
            self.routes
                .retain(|labels| !hits.rests(labels, time, grace));
        }
        // Routes that differ in nothing that is a label are one series.
        for entry in routing.routes.iter().flatten() {
            let mut labels = RouteLabels {
                netns: netns.clone(),
                route: Some(route_name(entry, &routing.interfaces)),
            };
            if self.routes.len() < max {
                self.routes.insert(labels.clone());
            } else if !self.routes.contains(&labels) {
                labels.route = None;
            }
            let source = (ns.key, entry.identity());
            if ns.state == State::Up {
                self.hits.live(labels, source, &entry.hits);
            } else {
                self.hits.ended(labels, source, &entry.hits, time);
            }
        }
    }

    /// Keeps identities that are no more, unless another has their labels.
    fn retire_identities(&mut self, latest: &Exposition) {
        let there: HashSet<&InterfaceLabels> =
            latest.identities.iter().map(|one| &one.labels).collect();
        for identity in std::mem::take(&mut self.latest.identities) {
            if !there.contains(&identity.labels) && self.packets.knows(&identity.labels) {
                self.former.insert(identity.labels.clone(), identity);
            }
        }
        let packets = &self.packets;
        self.former
            .retain(|labels, _| !there.contains(labels) && packets.knows(labels));
    }
}

/// Whether a better name may come before long.
fn is_nameless(ns: &Namespace, interface: &Interface, now: SystemTime) -> bool {
    let age = interface
        .observed_since
        .and_then(|since| now.duration_since(since).ok());
    let unknown = ns.kind == Kind::Process || interface.name.is_none();
    unknown && age.is_some_and(|age| age < NAMELESS)
}

fn sorted<L: Ord, C>(mut series: Vec<(L, C)>) -> Vec<(L, C)> {
    series.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
    series
}

fn labels(netns: &Arc<str>, interface: &Interface) -> InterfaceLabels {
    InterfaceLabels {
        netns: netns.clone(),
        interface: interface.name.as_deref().unwrap_or_default().into(),
    }
}

/// All that has no memory.
fn describe(ns: &Namespace, netns: &Arc<str>, now: SystemTime, latest: &mut Exposition) {
    let containers = || ns.members.iter().filter(|member| member.id.is_some());
    let joined = |texts: Vec<&str>| texts.join("+");
    let identity = |labels: InterfaceLabels, peer: Option<&str>| Identity {
        labels,
        cookie: ns
            .cookie
            .map(|cookie| cookie.to_string())
            .unwrap_or_default(),
        inode: ns.inode.map(|inode| inode.to_string()).unwrap_or_default(),
        kind: ns.kind,
        name: ns.name.clone(),
        container_id: joined(containers().filter_map(|m| m.id.as_deref()).collect()),
        image: joined(containers().filter_map(|m| m.image.as_deref()).collect()),
        peer: peer.unwrap_or_default().to_owned(),
    };
    let mut seen = HashSet::new();
    for interface in &ns.interfaces {
        let hook = interface.hook;
        *latest.interfaces.entry(hook.as_str()).or_default() += 1;
        let labels = labels(netns, interface);
        if is_nameless(ns, interface, now) || !seen.insert(labels.clone()) {
            continue;
        }
        if let Some(unaccounted) = interface.unaccounted().filter(|_| hook != Hook::None) {
            latest.unaccounted.push((labels.clone(), unaccounted));
        }
        if let Some(counters) = interface.kernel {
            let first = containers().next();
            latest.kernel.push(KernelSeries {
                kind: ns.kind,
                name: first.map_or_else(|| ns.name.clone(), |member| member.name.clone()),
                id: first.and_then(|m| m.id.clone()).unwrap_or_default(),
                image: first.and_then(|m| m.image.clone()).unwrap_or_default(),
                interface: labels.interface.to_string(),
                counters,
            });
        }
        let peer = interface.peer.as_ref().map(|peer| peer.name.as_str());
        latest.identities.push(identity(labels, peer));
    }
    if ns.interfaces.is_empty() {
        let labels = InterfaceLabels {
            netns: netns.clone(),
            interface: "".into(),
        };
        latest.identities.push(identity(labels, None));
    }
}

fn route_name(entry: &Entry, interfaces: &BTreeMap<u32, String>) -> RouteName {
    let joined = |texts: Vec<String>| texts.join(" ");
    let gateways = entry.hops.iter().filter_map(|hop| hop.gateway);
    let indexes = entry.hops.iter().filter_map(|hop| hop.ifindex);
    let interface = |index: u32| {
        let name = interfaces.get(&index).cloned();
        name.unwrap_or_else(|| format!("if{index}"))
    };
    RouteName {
        family: entry.family,
        table: entry.table,
        prefix: entry.prefix,
        gateway: joined(gateways.map(|gateway| gateway.to_string()).collect()),
        interface: joined(indexes.map(interface).collect()),
    }
}
