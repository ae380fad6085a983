//! Which namespace is which row, which veth belongs to whom, and where each
//! interface is to be observed.

use std::collections::{BTreeMap, HashMap};

use super::facts::{Container, Facts, Link, NamespaceFacts};
use crate::model::sample::{Kind, Member, NsKey, Peer};

/// Where the programs for an interface hang.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// On the host end of the pair, in our own namespace: directions swapped.
    HostEnd {
        /// Index of the host end.
        ifindex: u32,
        /// Its name.
        name: String,
    },
    /// On the interface itself, inside its namespace.
    Inside {
        /// Index inside.
        ifindex: u32,
        /// Its name.
        name: String,
    },
}

impl Place {
    /// Index of the interface that carries the programs.
    #[must_use]
    pub fn ifindex(&self) -> u32 {
        match self {
            Self::HostEnd { ifindex, .. } | Self::Inside { ifindex, .. } => *ifindex,
        }
    }

    /// Name of the interface that carries the programs.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::HostEnd { name, .. } | Self::Inside { name, .. } => name,
        }
    }
}

/// One interface of a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Name inside, `None` where the inside is not known.
    pub name: Option<String>,
    /// Index inside.
    pub ifindex: Option<u32>,
    /// Hardware address.
    pub mac: Option<String>,
    /// Addresses.
    pub addresses: Vec<String>,
    /// The host end.
    pub peer: Option<Peer>,
    /// The id that our namespace has given to where it is.
    pub nsid: Option<i32>,
    /// Where to observe it.
    pub place: Place,
    /// Whether the frames there begin with an Ethernet header.
    pub ethernet: bool,
}

/// One namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Identity.
    pub key: NsKey,
    /// Name.
    pub name: String,
    /// Cookie.
    pub cookie: Option<u64>,
    /// Inode.
    pub inode: Option<u64>,
    /// Kind.
    pub kind: Kind,
    /// Why it could not be looked into.
    pub reason: Option<String>,
    /// Members.
    pub members: Vec<Member>,
    /// Interfaces.
    pub interfaces: Vec<Interface>,
    /// Whether it is shown without `--all`.
    pub shown: bool,
}

/// Settings that change which interfaces count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Observe `lo` too.
    pub loopback: bool,
}

/// Makes the rows of `facts`: the host first, then all others by key.
#[must_use]
pub fn rows(facts: &Facts, options: Options) -> Vec<Row> {
    let owners = HostEnds::new(facts);
    let mut rows = vec![host(facts, &owners, options)];
    let containers = by_inode(&facts.containers);
    let mut others: Vec<Row> = facts
        .namespaces
        .iter()
        .map(|ns| {
            let containers = containers.get(&ns.inode).map_or(&[][..], Vec::as_slice);
            namespace(ns, containers, &owners, options)
        })
        .collect();
    others.extend(owners.unresolved());
    others.sort_by_key(|row| row.key);
    rows.extend(others);
    rows
}

fn by_inode(containers: &[Container]) -> HashMap<u64, Vec<&Container>> {
    let mut map: HashMap<u64, Vec<&Container>> = HashMap::new();
    for container in containers {
        if let Some(inode) = container.inode {
            map.entry(inode).or_default().push(container);
        }
    }
    for list in map.values_mut() {
        list.sort_by(|a, b| (&a.name, &a.id).cmp(&(&b.name, &b.id)));
    }
    map
}

/// The ends in our namespace of pairs whose other end is elsewhere.
struct HostEnds<'a> {
    /// Names of all interfaces of ours, for those that are masters.
    names: HashMap<u32, &'a str>,
    by_nsid: BTreeMap<i32, Vec<&'a Link>>,
    /// The same where it is not known where that is.
    unresolved: BTreeMap<i32, Vec<&'a Link>>,
}

impl<'a> HostEnds<'a> {
    fn new(facts: &'a Facts) -> Self {
        let known: HashMap<i32, &NamespaceFacts> = facts
            .namespaces
            .iter()
            .filter_map(|ns| Some((ns.nsid?, ns)))
            .collect();
        let mut by_nsid: BTreeMap<i32, Vec<&Link>> = BTreeMap::new();
        let mut unresolved = by_nsid.clone();
        for link in facts
            .host
            .links
            .iter()
            .filter(|l| l.is_veth() && !l.settling)
        {
            let Some(nsid) = link.link_nsid else { continue };
            let of = match known.get(&nsid) {
                Some(ns) if !link.young || may_be_in(link, ns) => &mut by_nsid,
                // The id may have been another's a moment ago.
                Some(_) | None => &mut unresolved,
            };
            of.entry(nsid).or_default().push(link);
        }
        let names = facts.host.links.iter();
        Self {
            names: names.map(|l| (l.ifindex, l.name.as_str())).collect(),
            by_nsid,
            unresolved,
        }
    }

    fn of(&self, nsid: Option<i32>) -> &[&'a Link] {
        nsid.and_then(|nsid| self.by_nsid.get(&nsid))
            .map_or(&[], Vec::as_slice)
    }

    fn name(&self, ifindex: u32) -> Option<String> {
        self.names.get(&ifindex).map(|name| (*name).to_owned())
    }

    fn contains(&self, link: &Link) -> bool {
        link.is_veth() && link.link_nsid.is_some()
    }

    /// Rows for pairs that lead to a namespace which nothing else names.
    fn unresolved(&self) -> Vec<Row> {
        self.unresolved
            .iter()
            .map(|(nsid, ends)| Row {
                key: NsKey::Nsid(*nsid),
                name: format!("nsid:{nsid}"),
                cookie: None,
                inode: None,
                kind: Kind::Process,
                reason: Some(
                    "no process and no file leads to this namespace: only its interfaces' host ends are known"
                        .to_owned(),
                ),
                members: Vec::new(),
                interfaces: ends.iter().map(|end| from_host_end(self, end, None)).collect(),
                shown: true,
            })
            .collect()
    }
}

fn host(facts: &Facts, owners: &HostEnds<'_>, options: Options) -> Row {
    let host = &facts.host;
    let containers = by_inode(&facts.containers);
    Row {
        key: host.cookie.map_or(NsKey::Inode(host.inode), NsKey::Cookie),
        name: "host".to_owned(),
        cookie: host.cookie,
        inode: Some(host.inode),
        kind: Kind::Host,
        reason: None,
        members: containers
            .get(&host.inode)
            .into_iter()
            .flatten()
            .map(|c| container_member(c))
            .collect(),
        interfaces: host
            .links
            .iter()
            .filter(|link| !owners.contains(link) && !link.settling && is_observed(link, options))
            .map(inside)
            .collect(),
        shown: true,
    }
}

fn namespace(
    ns: &NamespaceFacts,
    containers: &[&Container],
    owners: &HostEnds<'_>,
    options: Options,
) -> Row {
    let ends = owners.of(ns.nsid);
    let (interfaces, reason) = match &ns.links {
        Ok(links) => (interfaces(owners, links, ends, options), None),
        Err(reason) => (
            ends.iter()
                .map(|end| from_host_end(owners, end, None))
                .collect(),
            Some(reason.clone()),
        ),
    };
    let (kind, name, members) = identity(ns, containers);
    Row {
        key: ns.key(),
        name,
        cookie: ns.cookie,
        inode: Some(ns.inode),
        kind,
        reason,
        members,
        shown: kind != Kind::Process || !ends.is_empty(),
        interfaces,
    }
}

fn identity(ns: &NamespaceFacts, containers: &[&Container]) -> (Kind, String, Vec<Member>) {
    let named = ns.names.iter().map(|name| Member {
        runtime: "netns".to_owned(),
        id: None,
        name: name.clone(),
        image: None,
        pid: None,
    });
    if !containers.is_empty() {
        let names: Vec<&str> = containers.iter().map(|c| c.name.as_str()).collect();
        let members = containers
            .iter()
            .map(|c| container_member(c))
            .chain(named)
            .collect();
        return (Kind::Container, names.join("+"), members);
    }
    if !ns.names.is_empty() {
        return (Kind::Named, ns.names.join("+"), named.collect());
    }
    match &ns.process {
        Some(process) => (
            Kind::Process,
            format!("pid:{}({})", process.pid, process.comm),
            vec![Member {
                runtime: "process".to_owned(),
                id: None,
                name: process.comm.clone(),
                image: None,
                pid: Some(process.pid),
            }],
        ),
        // A sandbox that an engine keeps by a file of its own.
        None => (Kind::Process, format!("inode:{}", ns.inode), Vec::new()),
    }
}

fn container_member(container: &Container) -> Member {
    Member {
        runtime: container.runtime.clone(),
        id: Some(container.id.clone()),
        name: container.name.clone(),
        image: container.image.clone(),
        pid: Some(container.pid),
    }
}

fn is_observed(link: &Link, options: Options) -> bool {
    if link.is_loopback() {
        return options.loopback;
    }
    !link.is_stacked()
}

/// The interfaces of a namespace that could be looked into, each with its host
/// end where it has one. A host end whose inside was not seen (the pair is
/// newer than the look inside) still gets its line.
fn interfaces(
    owners: &HostEnds<'_>,
    links: &[Link],
    ends: &[&Link],
    options: Options,
) -> Vec<Interface> {
    let mut unseen: Vec<&Link> = ends.to_vec();
    let mut result = Vec::new();
    for link in links.iter().filter(|link| is_observed(link, options)) {
        let end = unseen.iter().position(|end| is_pair(link, end));
        match end {
            Some(at) => result.push(from_host_end(owners, unseen.remove(at), Some(link))),
            // Its host end is about to be seen.
            None if link.settling => {}
            None => result.push(inside(link)),
        }
    }
    result.extend(
        unseen
            .into_iter()
            .map(|end| from_host_end(owners, end, None)),
    );
    result
}

/// Whether the other end of `end` was seen in `ns`, or what is in there is not known.
fn may_be_in(end: &Link, ns: &NamespaceFacts) -> bool {
    match &ns.links {
        Ok(links) => links.iter().any(|inside| is_pair(inside, end)),
        Err(_) => true,
    }
}

/// Whether `inside` and `end` are two ends of one pair, given that `end` leads
/// into the namespace of `inside`. Some kernels leave `IFLA_LINK` out where
/// both ends have the same index.
/// <https://github.com/torvalds/linux/blob/v6.18/net/core/rtnetlink.c>
fn is_pair(inside: &Link, end: &Link) -> bool {
    inside.is_veth()
        && inside.link_nsid.is_some()
        && end.link.unwrap_or(end.ifindex) == inside.ifindex
        && inside.link.unwrap_or(inside.ifindex) == end.ifindex
}

fn from_host_end(owners: &HostEnds<'_>, end: &Link, inside: Option<&Link>) -> Interface {
    Interface {
        name: inside.map(|link| link.name.clone()),
        ifindex: inside.map_or(end.link, |link| Some(link.ifindex)),
        mac: inside.and_then(|link| link.mac.clone()),
        addresses: inside.map_or_else(Vec::new, |link| link.addresses.clone()),
        peer: Some(Peer {
            name: end.name.clone(),
            ifindex: end.ifindex,
            master: end.master.and_then(|index| owners.name(index)),
        }),
        nsid: end.link_nsid,
        place: Place::HostEnd {
            ifindex: end.ifindex,
            name: end.name.clone(),
        },
        ethernet: end.has_ethernet_header(),
    }
}

fn inside(link: &Link) -> Interface {
    Interface {
        name: Some(link.name.clone()),
        ifindex: Some(link.ifindex),
        mac: link.mac.clone(),
        addresses: link.addresses.clone(),
        peer: None,
        nsid: None,
        place: Place::Inside {
            ifindex: link.ifindex,
            name: link.name.clone(),
        },
        ethernet: link.has_ethernet_header(),
    }
}
