//! Routing tables of namespaces, joined with what decisions met.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use log::debug;
use netobs_common::routes::HitKey;

use super::{
    describe::namespace,
    lookups::{LookupObserver, map_doubt},
    names::Names,
};
use crate::{
    error::Chain,
    inventory::{build::Row, select::Selection},
    model::{
        book::Book,
        remarks,
        route::{Failure, Hit, Route},
        routing::{FailureShown, Routing, RoutingSample},
        sample::{Host, Kind, Namespace, NsKey, Observer, Sample, State, Warning},
    },
    world::{
        gather::Machine,
        route_events::{Change, RouteEvent},
    },
};

/// Tables are read again after this time even if nothing told of a change: the
/// kernel drops the IPv4 routes of an interface that goes down without a word.
const STALE: Duration = Duration::from_secs(5);
/// Routes of a namespace that are remembered between two samples.
const PASSING: usize = 4096;
/// Destinations that were not met for so long make room where that is scarce. Not
/// at once: what is counted between the reading and the removal would be lost.
const IDLE: Duration = Duration::from_secs(10);
/// Share of the room for destinations from which on idle ones make room.
const CROWDED: f64 = 0.5;

/// A namespace that is shown.
struct Shown {
    row: Row,
    book: Book,
    interfaces: BTreeMap<u32, String>,
    /// Why its tables cannot be read.
    trouble: Option<String>,
    /// Whether somebody has tried to.
    tried: bool,
    /// Whether they could be read once.
    read: bool,
    /// The id that our namespace has given it.
    nsid: Option<i32>,
}

/// Follows routing decisions and tables.
pub struct RoutingObserver {
    selection: Selection,
    names: Names,
    /// Whether netlink tells of changes in other namespaces.
    hears_others: bool,
    shown: BTreeMap<NsKey, Shown>,
    gone: Vec<Shown>,
    /// Counts as read last, and when they last changed.
    counted: HashMap<HitKey, (u64, Instant)>,
    /// Namespaces that netlink told of since the last sample, by the id that ours
    /// has given them, `None` for our own; and the routes that it told of.
    passing: HashMap<Option<i32>, VecDeque<Route>>,
    read_at: Option<Instant>,
    /// How often the kernel dropped events.
    overruns: u64,
}

impl RoutingObserver {
    /// Joins lookups with the tables of what `selection` includes.
    /// `hears_others`: netlink tells of changes in other namespaces too.
    #[must_use]
    pub fn new(selection: Selection, hears_others: bool) -> Self {
        Self {
            selection,
            names: Names::default(),
            hears_others,
            shown: BTreeMap::new(),
            gone: Vec::new(),
            counted: HashMap::new(),
            passing: HashMap::new(),
            read_at: None,
            overruns: 0,
        }
    }

    /// Takes what netlink told.
    pub fn event(&mut self, event: RouteEvent) {
        match event.change {
            Change::Route(route) => {
                let passing = self.passing.entry(event.nsid).or_default();
                if passing.len() == PASSING {
                    passing.pop_front();
                }
                passing.push_back(route);
            }
            Change::Other => {
                self.passing.entry(event.nsid).or_default();
            }
            Change::Lost => {
                self.overruns += 1;
                self.read_at = None;
            }
        }
    }

    /// Adjusts to what was found on the machine.
    pub async fn apply(&mut self, rows: Vec<Row>, machine: &Machine) {
        let mut old = std::mem::take(&mut self.shown);
        let rows = self.names.select(rows, &self.selection, |key| {
            old.get(&key).map(|shown| &shown.row)
        });
        for row in rows.into_values() {
            let shown = match old.remove(&row.key) {
                Some(shown) => Shown { row, ..shown },
                None => Shown {
                    row,
                    book: Book::default(),
                    interfaces: BTreeMap::new(),
                    trouble: None,
                    tried: false,
                    read: false,
                    nsid: None,
                },
            };
            self.shown.insert(shown.row.key, shown);
        }
        // What was known by its interfaces only is known better by now, or had
        // nothing to say.
        let gone = old
            .into_values()
            .filter(|shown| shown.row.cookie.is_some() && self.selection.includes(&shown.row))
            .map(|shown| Shown {
                // Its end may have been met by a reading: what was read before stands.
                trouble: shown.trouble.filter(|_| !shown.read),
                ..shown
            });
        self.gone.extend(gone);
        // A namespace that has just begun may end before the next sample.
        let new: Vec<NsKey> = self
            .shown
            .values()
            .filter(|shown| !shown.tried)
            .map(|shown| shown.row.key)
            .collect();
        for key in new {
            self.read(key, machine).await;
        }
    }

    /// Whether another [`apply`](Self::apply) of the same rows would change nothing.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.names.are_settled()
    }

    /// Reads the tables of one namespace.
    async fn read(&mut self, key: NsKey, machine: &Machine) {
        let routes = machine.routes_in(key).await;
        let Some(shown) = self.shown.get_mut(&key) else {
            return;
        };
        shown.tried = true;
        match routes {
            Ok(routes) => {
                shown.read = true;
                shown.trouble = None;
                shown.book.update(routes);
            }
            Err(error) => shown.trouble = Some(Chain(&error).to_string()),
        }
        // Names of interfaces that have gone are of use while their routes are shown.
        let used = shown.book.interfaces();
        shown.interfaces.retain(|index, _| used.contains(index));
        shown.interfaces.extend(machine.interface_names(key));
    }

    /// Reads the hits, then the tables: a route that was met is there, or has gone and was
    /// told of. To be called before the totals of lookups are read, so that there are no
    /// more hits than lookups.
    pub async fn update(&mut self, lookups: &LookupObserver, machine: &Machine) {
        let added = self.added(lookups);
        let all = self.read_at.is_none_or(|at| at.elapsed() >= STALE);
        if all {
            self.read_at = Some(Instant::now());
        }
        // Nobody tells of what has no connection to us: where something was met
        // there, that tells.
        let met: HashSet<u64> = added.iter().map(|(key, _)| key.cookie).collect();
        let own = machine.host_key();
        let mut stale = Vec::new();
        for shown in self.shown.values_mut() {
            let key = shown.row.key;
            shown.nsid = machine.nsid_of(key).or(shown.nsid);
            let met = shown.row.cookie.is_some_and(|cookie| met.contains(&cookie));
            let heard = key == own || (self.hears_others && shown.nsid.is_some());
            let told =
                (key == own || shown.nsid.is_some()) && self.passing.contains_key(&shown.nsid);
            if all || told || (met && !heard) {
                stale.push(key);
            }
        }
        for key in stale {
            self.read(key, machine).await;
        }
        self.credit(&added);
    }

    /// Joins the namespaces of `sample`, as of [`Self::bare`] and with their totals of
    /// lookups, with their routes and failures. The failures are read after the totals:
    /// what fails meanwhile shall not look forgotten. Then what is no longer of use is
    /// [forgotten](LookupObserver::forget).
    pub fn join(&mut self, lookups: &mut LookupObserver, mut sample: Sample) -> RoutingSample {
        let mut failures = failures(lookups);
        self.describe_maps(lookups, &mut sample, failures.values().map(Vec::len).sum());
        lookups.forget(&sample);
        let unattributed_failures = failures.remove(&0).unwrap_or_default();
        let past: HashMap<NsKey, Shown> = std::mem::take(&mut self.gone)
            .into_iter()
            .map(|shown| (shown.row.key, shown))
            .collect();
        let mut namespaces: Vec<Routing> = std::mem::take(&mut sample.namespaces)
            .into_iter()
            .filter_map(|ns| {
                let shown = self.shown.get(&ns.key).or_else(|| past.get(&ns.key))?;
                let of = ns.cookie.and_then(|cookie| failures.remove(&cookie));
                let ns = Arc::unwrap_or_clone(ns);
                Some(routing(ns, shown, of.unwrap_or_default()))
            })
            .collect();
        // By name, as people look for them; our own namespace first, what has
        // ended last.
        namespaces.sort_by(|a, b| {
            let key = |routing: &Routing| {
                let ns = &routing.namespace;
                (ns.state == State::Gone, ns.kind != Kind::Host)
            };
            (key(a), &a.namespace.name, a.namespace.key).cmp(&(
                key(b),
                &b.namespace.name,
                b.namespace.key,
            ))
        });
        RoutingSample {
            time: sample.time,
            host: sample.host,
            namespaces,
            unattributed_failures,
            unattributed: sample.unattributed,
            observer: sample.observer,
            warnings: sample.warnings,
        }
    }

    /// All namespaces that are or were shown, with nothing counted of them yet.
    #[must_use]
    pub fn bare(&self, host: Host, time: SystemTime, warnings: Vec<Warning>) -> Sample {
        let up = self
            .shown
            .values()
            .filter(|shown| self.selection.includes(&shown.row))
            .map(|shown| namespace(&shown.row));
        let gone = self.gone.iter().map(|shown| Namespace {
            state: State::Gone,
            ..namespace(&shown.row)
        });
        let mut sample = Sample {
            time,
            host,
            namespaces: up.chain(gone).map(Arc::new).collect(),
            unattributed: None,
            observer: Observer::default(),
            warnings,
        };
        for shown in self.shown.values() {
            if let Some(reason) = shown.row.reason.as_ref().or(shown.trouble.as_ref()) {
                sample.warnings.push(Warning {
                    code: "namespace_unreadable".to_owned(),
                    namespace: Some(shown.row.name.clone()),
                    message: reason.clone(),
                });
            }
        }
        if self.overruns > 0 {
            sample.warnings.push(Warning {
                code: "netlink_overrun".to_owned(),
                namespace: None,
                message: format!(
                    "routes changed faster than the kernel could tell ({} times): tables were read \
                     anew; hits of routes that were there for a moment may be shown without a prefix",
                    self.overruns
                ),
            });
        }
        sample
    }

    /// Adds how full the maps of routes and destinations are.
    fn describe_maps(&self, lookups: &LookupObserver, sample: &mut Sample, failures: usize) {
        let Some(programs) = lookups.programs() else {
            return;
        };
        let maps = programs.detail_maps(self.counted.len(), failures);
        let doubt = map_doubt(&maps[0], "--max-destinations");
        sample.warnings.extend(doubt);
        sample.observer.maps.extend(maps);
    }

    /// What was counted since the last time.
    fn added(&mut self, lookups: &LookupObserver) -> Vec<(HitKey, i64)> {
        let Some(programs) = lookups.programs() else {
            return Vec::new();
        };
        let hits = match programs.hits() {
            Ok(hits) => hits,
            Err(error) => {
                debug!("{error:#}");
                return Vec::new();
            }
        };
        let now = Instant::now();
        let mut added = Vec::new();
        for (key, count) in &hits {
            let entry = self.counted.entry(*key).or_insert((0, now));
            // A visit that went on takes one back, perhaps just now.
            let more = count.wrapping_sub(entry.0).cast_signed();
            if more != 0 {
                *entry = (*count, now);
                added.push((*key, more));
            }
        }
        self.counted.retain(|key, _| hits.contains_key(key));
        if programs.is_full_of_hits(hits.len(), CROWDED) {
            self.counted.retain(|key, (_, at)| {
                let idle = at.elapsed() >= IDLE;
                if idle {
                    programs.forget_hit(key);
                }
                !idle
            });
        }
        added
    }

    fn credit(&mut self, added: &[(HitKey, i64)]) {
        let passing = std::mem::take(&mut self.passing);
        let gone = self.gone.iter_mut();
        let mut books: HashMap<u64, &mut Shown> = self
            .shown
            .values_mut()
            .chain(gone)
            .filter_map(|shown| Some((shown.row.cookie?, shown)))
            .collect();
        for (key, count) in added {
            let (Some(shown), Ok(hit)) = (books.get_mut(&key.cookie), Hit::try_from(key)) else {
                continue;
            };
            let told = match (shown.row.kind, shown.nsid) {
                (Kind::Host, _) => passing.get(&None),
                (_, None) => None,
                (_, nsid) => passing.get(&nsid),
            };
            let empty = VecDeque::new();
            shown.book.credit(&hit, *count, told.unwrap_or(&empty));
        }
    }
}

/// Failed lookups by cookie, the most frequent first.
fn failures(lookups: &LookupObserver) -> HashMap<u64, Vec<FailureShown>> {
    let mut result: HashMap<u64, Vec<FailureShown>> = HashMap::new();
    let Some(programs) = lookups.programs() else {
        return result;
    };
    for (key, count) in programs.failures().unwrap_or_default() {
        // What was taken back altogether.
        if count == 0 || count > u64::MAX / 2 {
            continue;
        }
        let Ok(failure) = Failure::new(&key, count) else {
            continue;
        };
        let reason = failure.reason.map(|number| programs.reason(number));
        result
            .entry(key.cookie)
            .or_default()
            .push(FailureShown { failure, reason });
    }
    for failures in result.values_mut() {
        failures.sort_by(|a, b| {
            let key = |f: &FailureShown| (f.failure.destination, f.failure.class, f.failure.origin);
            (b.failure.count, key(a)).cmp(&(a.failure.count, key(b)))
        });
    }
    result
}

fn routing(ns: Namespace, shown: &Shown, failures: Vec<FailureShown>) -> Routing {
    let entries: Option<Vec<_>> = (shown.read && shown.trouble.is_none())
        .then(|| shown.book.entries().into_iter().cloned().collect());
    let told: u64 = failures.iter().map(|f| f.failure.count).sum();
    let failed = ns.lookups.map_or(0, |lookups| lookups.failed());
    Routing {
        remarks: remarks::of(entries.as_deref().unwrap_or_default(), &shown.interfaces),
        routes: entries,
        failures_forgotten: failed.saturating_sub(told),
        failures,
        interfaces: shown.interfaces.clone(),
        namespace: ns,
    }
}
