//! Which routes of a namespace were hit how often.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::ledger::Count;
use super::route::{
    Family, Hit, Hop, Match, Origin, Prefix, Route, RouteType, TABLE_LOCAL, TABLE_MAIN,
};

/// Routes that have gone and were hit are remembered so long as they are fewer.
const REMEMBERED: usize = 4096;

/// Hits by origin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hits {
    /// By local senders.
    pub output: u64,
    /// By received packets for this namespace.
    pub input: u64,
    /// By received packets for elsewhere.
    pub forward: u64,
}

impl Hits {
    /// Of all origins.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.output + self.input + self.forward
    }

    fn of(&mut self, origin: Origin) -> &mut u64 {
        match origin {
            Origin::Output => &mut self.output,
            Origin::Input => &mut self.input,
            Origin::Forward => &mut self.forward,
        }
    }
}

impl Count for Hits {
    fn pairs(&mut self, other: &Self, work: &mut dyn FnMut(&mut u64, u64)) {
        work(&mut self.output, other.output);
        work(&mut self.input, other.input);
        work(&mut self.forward, other.forward);
    }
}

/// A line of the book: a route, or what decisions met that no known route
/// explains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The route's table; `None` for unknown.
    pub table: Option<u32>,
    /// Its destinations; `None` for unknown.
    pub prefix: Option<Prefix>,
    /// The family, known even where the prefix is not.
    pub family: Family,
    /// Its type.
    pub kind: RouteType,
    /// Where to, one of these.
    pub hops: Vec<Hop>,
    /// The route itself, where it was ever seen.
    pub route: Option<Route>,
    /// Whether it is there now.
    pub present: bool,
    /// How it was told that it was hit.
    pub matched: Match,
    /// How often.
    pub hits: Hits,
}

/// What tells the entries of a route apart from those of another. Netlink may
/// tell of a route anew with another protocol or source: it is the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    table: Option<u32>,
    prefix: Option<Prefix>,
    family: Family,
    kind: RouteType,
    hops: Vec<Hop>,
    metric: u32,
    implicit: bool,
}

/// The book of one namespace.
#[derive(Clone, Debug, Default)]
pub struct Book {
    entries: Vec<Entry>,
    by_identity: HashMap<Identity, usize>,
    /// Entries with a route, by prefix.
    by_prefix: HashMap<Prefix, Vec<usize>>,
    /// Lengths that occur, longest first, by family.
    lengths: BTreeMap<Family, Vec<u8>>,
}

impl Book {
    /// Takes in the routes that are there now. Others have gone: those that were
    /// hit stay, as not present. Those that were not stay until the next time:
    /// hits that are yet to be credited may be theirs.
    pub fn update(&mut self, routes: Vec<Route>) {
        let mut entries = std::mem::take(&mut self.entries);
        let now: HashSet<Identity> = routes.iter().map(identity_of).collect();
        let mut was_present = HashSet::new();
        for entry in &mut entries {
            if std::mem::take(&mut entry.present) {
                was_present.insert(entry.identity());
            }
        }
        let mut past = 0;
        // The latest to go are the last: they are the ones to keep.
        let mut kept: Vec<Entry> = entries
            .into_iter()
            .rev()
            .filter(|entry| {
                let there = now.contains(&entry.identity());
                past += usize::from(!there);
                let of_use = entry.hits.total() > 0 || was_present.contains(&entry.identity());
                there || (of_use && past <= REMEMBERED)
            })
            .collect();
        kept.reverse();
        self.entries = kept;
        self.index();
        for route in routes {
            self.present(route);
        }
        self.index();
    }

    /// Notes a route that was there for a moment, or is there from now on.
    fn present(&mut self, route: Route) {
        let identity = identity_of(&route);
        let at = match self.by_identity.get(&identity) {
            Some(at) => *at,
            None => {
                self.entries.push(entry_of(&route));
                self.by_identity.insert(identity, self.entries.len() - 1);
                self.entries.len() - 1
            }
        };
        self.entries[at].present = true;
        self.entries[at].route = Some(route);
    }

    fn index(&mut self) {
        self.by_identity.clear();
        self.by_prefix.clear();
        let mut lengths: BTreeMap<Family, HashSet<u8>> = BTreeMap::new();
        for (at, entry) in self.entries.iter().enumerate() {
            self.by_identity.insert(entry.identity(), at);
            if let (Some(prefix), Some(_)) = (entry.prefix, &entry.route) {
                self.by_prefix.entry(prefix).or_default().push(at);
                lengths.entry(entry.family).or_default().insert(prefix.len);
            }
        }
        self.lengths = lengths
            .into_iter()
            .map(|(family, lengths)| {
                let mut lengths: Vec<u8> = lengths.into_iter().collect();
                lengths.sort_unstable_by(|a, b| b.cmp(a));
                (family, lengths)
            })
            .collect();
    }

    /// Credits `count` more decisions that ended with `hit`. `passing` are routes
    /// that came or went in this namespace since the last look.
    pub fn credit<'a>(
        &mut self,
        hit: &Hit,
        count: i64,
        passing: impl IntoIterator<Item = &'a Route>,
    ) {
        let at = if hit.implicit {
            self.unexplained(hit)
        } else {
            self.explain(hit)
                .or_else(|| self.passed(hit, passing))
                .unwrap_or_else(|| self.unexplained(hit))
        };
        let entry = &mut self.entries[at];
        if !hit.implicit {
            entry.matched = if hit.exact {
                Match::Exact
            } else {
                Match::Inferred
            };
        }
        let counter = entry.hits.of(hit.origin);
        *counter = counter.saturating_add_signed(count);
    }

    /// The entry of the route that `hit` met.
    fn explain(&self, hit: &Hit) -> Option<usize> {
        if hit.exact {
            return self.best(hit, hit.prefix);
        }
        self.lengths
            .get(&hit.prefix.family())?
            .iter()
            .find_map(|len| self.best(hit, Prefix::of(hit.prefix.address, *len)))
    }

    /// The best of the entries for `prefix`: one that is there, with the least
    /// metric.
    fn best(&self, hit: &Hit, prefix: Prefix) -> Option<usize> {
        self.by_prefix
            .get(&prefix)?
            .iter()
            .copied()
            .filter(|at| {
                self.entries[*at]
                    .route
                    .as_ref()
                    .is_some_and(|route| fits(route, hit))
            })
            .min_by_key(|at| {
                let entry = &self.entries[*at];
                let metric = entry.route.as_ref().map_or(0, |route| route.metric);
                (!entry.present, metric)
            })
    }

    /// A route that was gone before it could be looked at.
    fn passed<'a>(
        &mut self,
        hit: &Hit,
        passing: impl IntoIterator<Item = &'a Route>,
    ) -> Option<usize> {
        let route = passing
            .into_iter()
            .filter(|route| {
                fits(route, hit)
                    && if hit.exact {
                        route.prefix == hit.prefix
                    } else {
                        route.prefix.contains(hit.prefix.address)
                    }
            })
            .max_by_key(|route| route.prefix.len)?
            .clone();
        let identity = identity_of(&route);
        self.present(route);
        let at = *self.by_identity.get(&identity)?;
        self.entries[at].present = false;
        self.index();
        Some(at)
    }

    /// An entry for what no route explains.
    fn unexplained(&mut self, hit: &Hit) -> usize {
        let entry = Entry {
            table: (hit.table != 0).then_some(hit.table),
            prefix: (hit.exact || hit.implicit).then_some(hit.prefix),
            family: hit.prefix.family(),
            kind: hit.kind,
            hops: hit_hops(hit),
            route: None,
            present: false,
            matched: if hit.implicit {
                Match::Implicit
            } else {
                Match::Inferred
            },
            hits: Hits::default(),
        };
        let identity = entry.identity();
        *self.by_identity.entry(identity).or_insert_with(|| {
            self.entries.push(entry);
            self.entries.len() - 1
        })
    }

    /// Indexes of the interfaces that entries lead by.
    #[must_use]
    pub fn interfaces(&self) -> HashSet<u32> {
        let hops = self.entries.iter().flat_map(|entry| &entry.hops);
        hops.filter_map(|hop| hop.ifindex).collect()
    }

    /// The entries: IPv4 before IPv6; main, other tables, local; then the default
    /// route first and by address, as `ip route` lists them.
    #[must_use]
    pub fn entries(&self) -> Vec<&Entry> {
        let mut entries: Vec<&Entry> = self
            .entries
            .iter()
            .filter(|entry| entry.present || entry.hits.total() > 0)
            .collect();
        entries.sort_by_key(|entry| {
            let table = match entry.table {
                Some(TABLE_MAIN) => (0, TABLE_MAIN),
                Some(TABLE_LOCAL) => (3, TABLE_LOCAL),
                Some(table) => (1, table),
                None => (2, 0),
            };
            let metric = entry.route.as_ref().map_or(0, |route| route.metric);
            (
                entry.family,
                table,
                entry.prefix.is_none(),
                entry.prefix,
                metric,
                entry.kind,
            )
        });
        entries
    }
}

impl Entry {
    /// What tells it from the others of its book.
    #[must_use]
    pub fn identity(&self) -> Identity {
        match &self.route {
            Some(route) => identity_of(route),
            None => Identity {
                table: self.table,
                prefix: self.prefix,
                family: self.family,
                kind: self.kind,
                hops: self.hops.clone(),
                metric: 0,
                implicit: self.matched == Match::Implicit,
            },
        }
    }
}

fn identity_of(route: &Route) -> Identity {
    Identity {
        table: Some(route.table),
        prefix: Some(route.prefix),
        family: route.prefix.family(),
        kind: route.kind,
        hops: route.hops.clone(),
        metric: route.metric,
        implicit: false,
    }
}

fn entry_of(route: &Route) -> Entry {
    Entry {
        table: Some(route.table),
        prefix: Some(route.prefix),
        family: route.prefix.family(),
        kind: route.kind,
        hops: route.hops.clone(),
        route: Some(route.clone()),
        present: true,
        matched: match route.prefix.family() {
            Family::Ipv4 => Match::Inferred,
            Family::Ipv6 => Match::Exact,
        },
        hits: Hits::default(),
    }
}

/// Where a hit that no route explains went.
fn hit_hops(hit: &Hit) -> Vec<Hop> {
    if hit.kind.rejects() {
        Vec::new()
    } else {
        vec![hit.hop]
    }
}

/// Whether `route` may be what `hit` met, its prefix aside.
fn fits(route: &Route, hit: &Hit) -> bool {
    let table = hit.table == 0
        || route.table == hit.table
        || (!hit.exact && hit.table == TABLE_MAIN && route.table == TABLE_LOCAL);
    let kind = match hit.kind {
        RouteType::UNKNOWN => !route.kind.rejects(),
        kind => kind == route.kind,
    };
    // IPv6 gives routes that reject the loopback interface.
    let unknown = route.hops.is_empty() && route.nexthop.is_some();
    let hop = route.kind.rejects() || unknown || route.hops.contains(&hit.hop);
    table && kind && hop
}

#[cfg(test)]
mod tests {
    use core::net::IpAddr;

    use super::*;

    fn prefix(text: &str) -> Prefix {
        let (address, len) = text.split_once('/').expect("a slash");
        Prefix::of(
            address.parse().expect("an address"),
            len.parse().expect("a length"),
        )
    }

    fn hop(gateway: &str, ifindex: u32) -> Hop {
        Hop {
            gateway: gateway.parse().ok(),
            ifindex: (ifindex != 0).then_some(ifindex),
        }
    }

    fn route(table: u32, to: &str, hop: Hop) -> Route {
        Route {
            table,
            prefix: prefix(to),
            kind: RouteType::UNICAST,
            hops: vec![hop],
            nexthop: None,
            protocol: 3,
            scope: 0,
            metric: 0,
            source: None,
        }
    }

    fn hit(to: &str, hop: Hop) -> Hit {
        let address: IpAddr = to.parse().expect("an address");
        let len = if address.is_ipv4() { 32 } else { 128 };
        Hit {
            origin: Origin::Output,
            table: TABLE_MAIN,
            prefix: Prefix::of(address, len),
            exact: false,
            implicit: false,
            kind: RouteType::UNKNOWN,
            hop,
        }
    }

    fn shown(book: &Book) -> Vec<(String, u64, bool)> {
        book.entries()
            .into_iter()
            .map(|entry| {
                let prefix = entry.prefix.map_or("?".to_owned(), |p| p.to_string());
                (prefix, entry.hits.total(), entry.present)
            })
            .collect()
    }

    fn scene() -> Vec<Route> {
        let local = Route {
            kind: RouteType::LOCAL,
            ..route(TABLE_LOCAL, "172.17.0.3/32", hop("", 2))
        };
        vec![
            route(TABLE_MAIN, "0.0.0.0/0", hop("172.17.0.1", 2)),
            route(TABLE_MAIN, "8.8.8.8/32", hop("", 2)),
            route(TABLE_MAIN, "172.17.0.0/16", hop("", 2)),
            local,
        ]
    }

    #[test]
    fn the_longest_prefix_with_the_same_next_hop_is_the_one() {
        let mut book = Book::default();
        book.update(scene());
        book.credit(&hit("8.8.8.8", hop("", 2)), 2, &[]);
        book.credit(&hit("9.9.9.9", hop("172.17.0.1", 2)), 3, &[]);
        // Through the gateway although a host route exists: before that did.
        book.credit(&hit("8.8.8.8", hop("172.17.0.1", 2)), 1, &[]);
        let local = Hit {
            kind: RouteType::LOCAL,
            origin: Origin::Input,
            ..hit("172.17.0.3", hop("", 2))
        };
        book.credit(&local, 5, &[]);
        let expected = [
            ("0.0.0.0/0", 4, true),
            ("8.8.8.8/32", 2, true),
            ("172.17.0.0/16", 0, true),
            ("172.17.0.3/32", 5, true),
        ];
        let expected: Vec<_> = expected
            .iter()
            .map(|(p, n, there)| ((*p).to_owned(), *n, *there))
            .collect();
        assert_eq!(shown(&book), expected);
    }

    #[test]
    fn what_was_hit_and_has_gone_stays_and_what_was_not_does_not() {
        let mut book = Book::default();
        book.update(scene());
        book.update(vec![route(TABLE_MAIN, "0.0.0.0/0", hop("172.17.0.1", 2))]);
        assert_eq!(shown(&book), [("0.0.0.0/0".to_owned(), 0, true)]);
        // It was met before it went, and that is read only now.
        book.credit(&hit("8.8.8.8", hop("", 2)), 2, &[]);
        book.update(vec![route(TABLE_MAIN, "0.0.0.0/0", hop("172.17.0.1", 2))]);
        assert_eq!(
            shown(&book),
            [
                ("0.0.0.0/0".to_owned(), 0, true),
                ("8.8.8.8/32".to_owned(), 2, false)
            ]
        );
        // Credited late, when it had gone already.
        book.credit(&hit("8.8.8.8", hop("", 2)), 1, &[]);
        // And back again: the same route.
        book.update(scene());
        let all = shown(&book);
        assert!(all.contains(&("8.8.8.8/32".to_owned(), 3, true)), "{all:?}");
    }

    #[test]
    fn a_route_of_a_moment_is_known_by_its_event() {
        let mut book = Book::default();
        book.update(scene());
        let moment = route(TABLE_MAIN, "10.9.0.0/16", hop("172.17.0.9", 2));
        book.credit(&hit("10.9.1.1", hop("172.17.0.9", 2)), 4, [&moment]);
        let all = shown(&book);
        assert!(
            all.contains(&("10.9.0.0/16".to_owned(), 4, false)),
            "{all:?}"
        );
        // One that nobody told of.
        book.credit(&hit("10.8.1.1", hop("172.17.0.8", 2)), 7, &[]);
        assert!(shown(&book).contains(&("?".to_owned(), 7, false)));
    }

    #[test]
    fn rejecting_routes_tables_and_implicit_hits() {
        let mut book = Book::default();
        let blackhole = Route {
            kind: RouteType::BLACKHOLE,
            ..route(TABLE_MAIN, "10.0.0.0/8", Hop::default())
        };
        let other = route(100, "10.0.0.0/8", hop("", 3));
        book.update(vec![blackhole, other]);
        let rejected = Hit {
            kind: RouteType::BLACKHOLE,
            ..hit("10.1.1.1", Hop::default())
        };
        book.credit(&rejected, 1, &[]);
        let in_table = Hit {
            table: 100,
            ..hit("10.1.1.1", hop("", 3))
        };
        book.credit(&in_table, 2, &[]);
        // Netlink may keep the next hop of an object to itself.
        let object = Route {
            hops: Vec::new(),
            nexthop: Some(7),
            ..route(101, "10.0.0.0/8", Hop::default())
        };
        let mut objects = Book::default();
        objects.update(vec![object]);
        let met = Hit {
            table: 101,
            ..hit("10.1.1.1", hop("10.3.0.7", 3))
        };
        objects.credit(&met, 2, &[]);
        assert_eq!(shown(&objects), [("10.0.0.0/8".to_owned(), 2, true)]);
        let bound = Hit {
            implicit: true,
            table: 0,
            ..hit("1.2.3.4", hop("", 3))
        };
        book.credit(&bound, 3, &[]);
        let entries = book.entries();
        let counts: Vec<_> = entries
            .iter()
            .map(|e| (e.table, e.kind.name(), e.hits.total(), e.matched))
            .collect();
        assert_eq!(
            counts,
            [
                (Some(254), "blackhole".to_owned(), 1, Match::Inferred),
                (Some(100), "unicast".to_owned(), 2, Match::Inferred),
                (None, "unspec".to_owned(), 3, Match::Implicit),
            ]
        );
        assert_eq!(entries[2].prefix, Some(prefix("1.2.3.4/32")));
    }

    #[test]
    fn what_is_taken_back_never_goes_below_nothing() {
        let mut book = Book::default();
        book.update(scene());
        book.credit(&hit("8.8.8.8", hop("", 2)), -1, &[]);
        book.credit(&hit("8.8.8.8", hop("", 2)), 2, &[]);
        book.credit(&hit("8.8.8.8", hop("", 2)), -1, &[]);
        assert!(shown(&book).contains(&("8.8.8.8/32".to_owned(), 1, true)));
    }
}
