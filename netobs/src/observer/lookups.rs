//! Routing decisions, joined with the namespaces of a sample.

use core::net::IpAddr;
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use log::{debug, info};
use netobs_common::routes::{BehalfKey, FAMILY_FORMER, FAMILY_IPV4, FAMILY_IPV6};

use crate::{
    bpf::{
        lookups::{LookupPrograms, Settings},
        pins::Part,
    },
    error::Chain,
    inventory::behalf::Source,
    model::{
        lookups::{Backend, Behalf, Lookups},
        sample::{Kind, MapInfo, Namespace, NsKey, Sample, State, Warning},
    },
};

/// Share of the room for namespaces from which on those that are not shown go.
const CROWDED: f64 = 0.75;
/// After so long without a lookup they go anyway.
const QUIET: Duration = Duration::from_secs(60);

/// Whether to observe lookups, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Not at all.
    Nothing,
    /// With these settings.
    This(Settings),
}

/// Follows routing decisions, where the kernel allows it.
pub struct LookupObserver {
    programs: Option<LookupPrograms>,
    /// What does not work, and why.
    doubts: Vec<Warning>,
    /// Whose packets the host forwards.
    sources: HashMap<Source, NsKey>,
    /// What was forwarded for namespaces by addresses that they no longer have.
    before: HashMap<NsKey, u64>,
    full: bool,
    /// What was read last.
    read: HashMap<u64, Lookups>,
    /// Namespaces that are not shown: decisions as read last, and since when.
    unseen: HashMap<u64, (u64, Instant)>,
}

impl LookupObserver {
    /// Starts what is wanted. That it does not work is a warning: packets are
    /// counted all the same. With `part`, what is pinned there goes on counting.
    #[must_use]
    pub fn start(wanted: Wanted, part: Option<&Part>) -> Self {
        let mut observer = Self {
            programs: None,
            doubts: Vec::new(),
            sources: HashMap::new(),
            before: HashMap::new(),
            full: false,
            read: HashMap::new(),
            unseen: HashMap::new(),
        };
        let Wanted::This(settings) = wanted else {
            if let Some(Err(error)) = part.map(LookupPrograms::take_off) {
                debug!("{error:#}");
            }
            return observer;
        };
        match LookupPrograms::start(settings, part) {
            Ok(programs) => {
                info!("observing route lookups ({})", programs.backend().as_str());
                observer.doubts = programs.doubts().to_vec();
                observer.inherit(&programs);
                observer.programs = Some(programs);
            }
            Err(error) => observer.doubts.push(Warning {
                code: "route_lookups_unavailable".to_owned(),
                namespace: None,
                message: format!("route lookups are not observed: {}", Chain(&error)),
            }),
        }
        observer
    }

    /// Who was forwarded for in the time of an earlier netobs.
    fn inherit(&mut self, programs: &LookupPrograms) {
        for (key, behalf) in programs.behalf().unwrap_or_default() {
            let owner = NsKey::Cookie(behalf.owner);
            match source(&key) {
                Some(source) => {
                    self.sources.insert(source, owner);
                }
                None => {
                    self.before.insert(owner, behalf.count);
                }
            }
        }
    }

    /// How decisions are observed.
    #[must_use]
    pub fn backend(&self) -> Backend {
        self.programs
            .as_ref()
            .map_or(Backend::None, LookupPrograms::backend)
    }

    /// The programs, where they run.
    #[must_use]
    pub fn programs(&self) -> Option<&LookupPrograms> {
        self.programs.as_ref()
    }

    /// What does not work, and why.
    #[must_use]
    pub fn doubts(&self) -> &[Warning] {
        &self.doubts
    }

    /// Counts from now on what the host forwards for `sources`.
    pub fn follow(&mut self, sources: HashMap<Source, NsKey>) {
        let Some(programs) = &self.programs else {
            return;
        };
        if sources == self.sources {
            return;
        }
        let changed = |of: &HashMap<Source, NsKey>, than: &HashMap<Source, NsKey>| {
            let differs = |(source, key): (&Source, &NsKey)| {
                (than.get(source) != Some(key)).then_some((*source, *key))
            };
            of.iter().filter_map(differs).collect::<Vec<_>>()
        };
        let gone = changed(&self.sources, &sources);
        let counts = if gone.is_empty() {
            HashMap::new()
        } else {
            programs.behalf().unwrap_or_default()
        };
        for (source, owner) in gone {
            let key = behalf_key(source);
            let count = counts.get(&key).map_or(0, |behalf| behalf.count);
            let before = self.before.entry(owner).or_default();
            *before += count;
            if let Some(cookie) = owner.cookie().filter(|_| *before > 0) {
                programs.remember(cookie, *before);
            }
            programs.unfollow(key);
            self.sources.remove(&source);
        }
        self.full = false;
        for (source, owner) in changed(&sources, &self.sources) {
            match programs.follow(behalf_key(source), owner.cookie().unwrap_or(0)) {
                Ok(()) => {
                    self.sources.insert(source, owner);
                }
                // Tried again at the next look.
                Err(error) => {
                    debug!("{}: {error:#}", source.address);
                    self.full = true;
                }
            }
        }
    }

    /// Whether all that was to be [followed](Self::follow) is.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        !self.full
    }

    /// Adds to `sample` what was decided in its namespaces.
    pub fn complete(&mut self, sample: &mut Sample) {
        sample.observer.backend = self.backend();
        sample.warnings.extend(self.doubts.iter().cloned());
        let Some(programs) = &self.programs else {
            return;
        };
        let lookups = match programs.lookups() {
            Ok(lookups) => lookups,
            Err(error) => {
                sample.warnings.push(Warning {
                    code: "route_lookups_unavailable".to_owned(),
                    namespace: None,
                    message: format!("route lookups cannot be read: {}", Chain(&error)),
                });
                for ns in &mut sample.namespaces {
                    set_lookups(ns, None, Behalf::default());
                }
                return;
            }
        };
        let families = programs.families();
        sample.unattributed = Some(programs.unattributed());
        let counts = self.on_behalf(programs);
        let mut on_behalf = BTreeMap::new();
        for ns in sample.namespaces.iter().filter(|ns| ns.kind != Kind::Host) {
            if let Some(count) = counts.get(&ns.key) {
                *on_behalf.entry(ns.name.clone()).or_insert(0) += *count;
            }
        }
        let mut on_behalf = Some(on_behalf);
        for ns in &mut sample.namespaces {
            let of = |cookie| {
                let found = lookups.get(&cookie).copied();
                found.unwrap_or_else(Lookups::none).only(families)
            };
            let behalf = if ns.kind == Kind::Host {
                Behalf {
                    on_behalf: on_behalf.take(),
                    ..Behalf::default()
                }
            } else {
                Behalf {
                    by_host: counts.get(&ns.key).copied(),
                    ..Behalf::default()
                }
            };
            set_lookups(ns, ns.cookie.map(of), behalf);
        }
        let map = programs.namespaces_map(lookups.len());
        sample.warnings.extend(map_doubt(&map, "--max-namespaces"));
        if self.full {
            sample.warnings.push(Warning {
                code: "map_full".to_owned(),
                namespace: None,
                message: "there are more addresses behind this host's interfaces than fit: \
                          what it forwards for some of them is not told apart"
                    .to_owned(),
            });
        }
        sample.observer.maps.push(map);
        sample.observer.programs.extend(programs.programs());
        sample.observer.programs.sort_by(|a, b| a.name.cmp(&b.name));
        self.read = lookups;
    }

    /// Whether something that was asked for is not observed.
    #[must_use]
    pub fn is_partial(&self) -> bool {
        !self.doubts.is_empty()
    }

    /// What the host looked up for each namespace.
    fn on_behalf(&self, programs: &LookupPrograms) -> HashMap<NsKey, u64> {
        let mut sums = self.before.clone();
        for owner in self.sources.values() {
            sums.entry(*owner).or_default();
        }
        // The host forwards for few of them.
        for (key, count) in programs.forwarded().unwrap_or_default() {
            let owner = source(&key).and_then(|source| self.sources.get(&source));
            if let Some(sum) = owner.and_then(|owner| sums.get_mut(owner)) {
                *sum += count;
            }
        }
        sums
    }

    /// Makes room, once `sample` is [complete](Self::complete): namespaces that have
    /// ended were shown for the last time, and those that nobody looks at and that
    /// look nothing up for a while have ended too, or can be begun anew.
    pub fn forget(&mut self, sample: &Sample) {
        let Some(programs) = &self.programs else {
            return;
        };
        let mut past: HashSet<u64> = HashSet::new();
        for ns in sample
            .namespaces
            .iter()
            .filter(|ns| ns.state == State::Gone)
        {
            past.extend(ns.cookie);
            if self.before.remove(&ns.key).is_some()
                && let Some(cookie) = ns.cookie
            {
                programs.forget_former(cookie);
            }
        }
        let shown: HashSet<u64> = sample
            .namespaces
            .iter()
            .filter_map(|ns| ns.cookie)
            .collect();
        let now = Instant::now();
        let crowded = programs.is_crowded(self.read.len(), CROWDED);
        self.unseen
            .retain(|cookie, _| self.read.contains_key(cookie));
        for (cookie, lookups) in &self.read {
            if shown.contains(cookie) {
                self.unseen.remove(cookie);
                continue;
            }
            let total = lookups.total();
            let (before, since) = self.unseen.entry(*cookie).or_insert((total, now));
            if *before != total {
                (*before, *since) = (total, now);
            }
            if crowded || since.elapsed() >= QUIET {
                past.insert(*cookie);
            }
        }
        if !past.is_empty() {
            programs.forget_namespaces(&past);
        }
    }
}

/// Says of a namespace what was decided in it, which may be what is said already: then it
/// stays shared with the sample before.
fn set_lookups(ns: &mut Arc<Namespace>, lookups: Option<Lookups>, behalf: Behalf) {
    if ns.lookups != lookups || ns.behalf != behalf {
        let ns = Arc::make_mut(ns);
        (ns.lookups, ns.behalf) = (lookups, behalf);
    }
}

/// About a map that was too small, and the `option` that makes it larger.
pub(super) fn map_doubt(map: &MapInfo, option: &str) -> Option<Warning> {
    (map.full > 0).then(|| Warning {
        code: "map_full".to_owned(),
        namespace: None,
        message: format!(
            "{} is full ({} entries): {} route lookups are in no account of their own; {option} makes \
             room for more",
            map.name, map.capacity, map.full
        ),
    })
}

fn behalf_key(source: Source) -> BehalfKey {
    let (source_bytes, family) = match source.address {
        IpAddr::V4(address) => {
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&address.octets());
            (bytes, FAMILY_IPV4)
        }
        IpAddr::V6(address) => (address.octets(), FAMILY_IPV6),
    };
    BehalfKey {
        source: source_bytes,
        ifindex: source.ifindex,
        family,
    }
}

/// The reverse; `None` for what was counted by former addresses.
fn source(key: &BehalfKey) -> Option<Source> {
    let [a, b, c, d, ..] = key.source;
    let address = match key.family {
        FAMILY_FORMER => return None,
        FAMILY_IPV4 => IpAddr::from([a, b, c, d]),
        _ => IpAddr::from(key.source),
    };
    Some(Source {
        address,
        ifindex: key.ifindex,
    })
}
