//! Keeps the facts in step with the machine.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque},
    fs::File,
    path::PathBuf,
    rc::Rc,
    time::{Duration, Instant},
};

use anyhow::Context as _;

use super::{
    cgroup, engine, limits,
    link_events::{Heard, LinkEvent},
    netlink::{self, Netlink},
    netns,
    scan::{self, Found, Scan},
    stats::{self, CountersByIndex},
};
use crate::{
    inventory::facts::{Container, Facts, HostFacts, Link, NamespaceFacts},
    model::{route::Route, sample::NsKey},
};

/// Between periodic looks.
pub const PERIOD: Duration = Duration::from_secs(1);
/// How long an interface that appears in our namespace may be on its way
/// into another one.
const SETTLE: Duration = Duration::from_secs(1);
/// What is known of the inside of a namespace is looked at again after this
/// time even if nothing told of a change there.
const STALE: Duration = Duration::from_secs(5);
/// The same of a namespace of which netlink tells us, in case that something was missed.
const RARELY: Duration = Duration::from_secs(300);
/// The links of our own namespace are kept in step with what netlink tells, and read again
/// after this time, in case that something was missed.
const RESYNC: Duration = Duration::from_secs(30);
/// Up to so many namespaces are looked into at once when they are stale. Of more, each
/// periodic look takes a share: what waits for it does not wait for all.
const FEW: usize = 16;
/// Folders of sandboxes that are looked into: an engine has one.
const MOST_SANDBOXES: usize = 64;

/// What a look at the machine is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// Something changed here: our links, and namespaces never seen before.
    Event,
    /// Time has passed: also what is stale.
    Periodic,
}

/// The machine, as far as it is known.
pub struct Machine {
    host: Netlink,
    own: File,
    own_inode: u64,
    own_cookie: Option<u64>,
    containers: Vec<Container>,
    /// The same as the engine told it, without what was found of them since.
    told: Vec<Container>,
    /// Containers that the engine has told of, whether or not they run.
    made: VecDeque<engine::Made>,
    /// Containers known by a process of theirs and not by the engine's list yet.
    recognised: Vec<Container>,
    sandboxes: Vec<PathBuf>,
    folders: scan::Folders,
    namespaces: BTreeMap<u64, Visited>,
    /// Inodes of `namespaces`.
    inodes: HashMap<NsKey, u64>,
    host_links: Vec<Link>,
    /// When these were read as a whole; `None` where that is due.
    links_read: Option<Instant>,
    /// Those of them whose other end may be elsewhere by now: nobody tells.
    unsure: BTreeSet<u32>,
    /// Whether somebody hands over what netlink tells of our links.
    told_of_links: bool,
    /// Whether that includes other namespaces, those with an id here.
    told_of_others: bool,
    /// Ids of namespaces in which something changed since they were looked into.
    changed: HashSet<i32>,
    seen: HashMap<u32, Seen>,
    /// Interfaces inside namespaces whose other end here was not seen, since when.
    unpaired: HashMap<(u64, u32), Instant>,
    /// Ids that meant a namespace that was looked into, and mean another one or none
    /// since this time.
    stale_ids: HashMap<i32, Instant>,
    scanned_processes: Option<Instant>,
    looked: bool,
    /// Whether something was told, or waits for another look.
    unsettled: bool,
    /// What was found, as of the last look or the last time that somebody wanted to know.
    facts: Facts,
    /// Files that promise a namespace and are none, since when.
    suspects: HashMap<PathBuf, Instant>,
    /// Those of them that stay so, with what is wrong.
    pub troubles: Vec<(PathBuf, String)>,
    /// Why namespaces cannot be looked for at the moment.
    pub blind: Option<limits::Short>,
}

/// What is remembered of an interface of ours from look to look.
#[derive(Clone, Copy, Debug)]
struct Seen {
    /// Since when it stands where it stands.
    since: Option<Instant>,
    /// Where its other end was.
    nsid: Option<i32>,
    /// Whether that namespace is known.
    resolved: bool,
    /// Whether it was known and is not any more.
    lost: bool,
}

/// A namespace that was looked into.
struct Visited {
    facts: NamespaceFacts,
    path: PathBuf,
    /// The pairs between us and it when it was looked into: index here, index
    /// there. Indexes here grow, so another pair is another pair of numbers.
    pairs: Pairs,
    at: Instant,
    cgroups: Option<Cgroups>,
}

impl Visited {
    /// Notes in which cgroups its process is. A short-lived one has ended before
    /// the engine has told what they mean.
    fn note_cgroups(&mut self) {
        let Some(process) = &self.facts.process else {
            return;
        };
        let pid = process.pid;
        if self.cgroups.as_ref().is_some_and(|known| known.pid == pid) {
            return;
        }
        let (ids, started) = (cgroup::container_ids(pid), scan::started(pid));
        // Else it has ended, and its number may be another's.
        self.cgroups = (scan::inode_of(pid) == Some(self.facts.inode)).then(|| Cgroups {
            pid,
            started,
            ids,
            at: Instant::now(),
        });
    }
}

/// What the cgroups of a process say.
struct Cgroups {
    pid: u32,
    /// When it started, in clock ticks since boot.
    started: Option<u64>,
    /// What may be ids of containers, the outermost first.
    ids: Vec<String>,
    at: Instant,
}

impl Cgroups {
    /// The one of `made` that the process is in, or was in a moment ago.
    fn container(&self, inode: u64, made: &VecDeque<engine::Made>) -> Option<Container> {
        let made = self
            .ids
            .iter()
            .find_map(|id| made.iter().find(|made| made.id == *id))?;
        let current = self.at.elapsed() < STALE || scan::started(self.pid) == self.started;
        current.then(|| Container {
            runtime: made.runtime.to_owned(),
            id: made.id.clone(),
            name: made.name.clone(),
            image: made.image.clone(),
            pid: self.pid,
            started: self.started,
            inode: Some(inode),
        })
    }
}

/// Pairs between us and a namespace, in order.
type Pairs = BTreeSet<(u32, u32)>;

impl Machine {
    /// Opens what is needed to look at it.
    ///
    /// # Errors
    /// Where our own namespace cannot be read.
    pub fn open() -> anyhow::Result<Self> {
        let own = netns::open(netns::OWN.as_ref())
            .context("open /proc/thread-self/ns/net: is /proc mounted?")?;
        Ok(Self {
            host: Netlink::open().context("open a route socket")?,
            own_inode: netns::inode(&own)?,
            own,
            own_cookie: netns::cookie().ok(),
            containers: Vec::new(),
            told: Vec::new(),
            made: VecDeque::new(),
            recognised: Vec::new(),
            sandboxes: Vec::new(),
            folders: scan::Folders::default(),
            namespaces: BTreeMap::new(),
            inodes: HashMap::new(),
            host_links: Vec::new(),
            links_read: None,
            unsure: BTreeSet::new(),
            told_of_links: false,
            told_of_others: false,
            changed: HashSet::new(),
            seen: HashMap::new(),
            unpaired: HashMap::new(),
            stale_ids: HashMap::new(),
            scanned_processes: None,
            looked: false,
            unsettled: true,
            facts: Facts::default(),
            suspects: HashMap::new(),
            troubles: Vec::new(),
            blind: None,
        })
    }

    /// Takes what the engine told. `false`: nothing that was looked at has another
    /// name by it.
    pub fn take(&mut self, update: &engine::Update) -> bool {
        self.unsettled = true;
        let mut changed = false;
        if let engine::Update::Containers(running) = update {
            changed = self.told != running.containers;
            if changed {
                self.told.clone_from(&running.containers);
                self.containers.clone_from(&running.containers);
            }
            self.made.clone_from(&running.made);
            let before = std::mem::take(&mut self.recognised);
            self.recognise();
            changed |= self.recognised != before;
            // Folders stay known: the next container's sandbox is made before
            // the engine tells of it.
            for sandbox in &running.sandboxes {
                if self.sandboxes.len() < MOST_SANDBOXES && !self.sandboxes.contains(sandbox) {
                    self.sandboxes.push(sandbox.clone());
                    changed = true;
                }
            }
        }
        changed
    }

    /// The route socket of our own namespace.
    #[must_use]
    pub fn netlink(&self) -> &Netlink {
        &self.host
    }

    /// A file that leads to the namespace `key`, where it is still the same.
    #[must_use]
    pub fn path_of(&self, key: NsKey) -> Option<PathBuf> {
        if self.host_key() == key {
            return Some(netns::OWN.into());
        }
        self.visited(key).map(|visited| visited.path.clone())
    }

    fn visited(&self, key: NsKey) -> Option<&Visited> {
        self.namespaces.get(self.inodes.get(&key)?)
    }

    /// Key of our own namespace.
    #[must_use]
    pub fn host_key(&self) -> NsKey {
        self.own_cookie
            .map_or(NsKey::Inode(self.own_inode), NsKey::Cookie)
    }

    /// When an interface that is settling will have settled.
    #[must_use]
    pub fn settles_in(&self) -> Option<Duration> {
        self.host_links
            .iter()
            .filter(|link| link.settling)
            .filter_map(|link| self.seen.get(&link.ifindex)?.since)
            .chain(
                self.unpaired
                    .values()
                    .copied()
                    .filter(|since| since.elapsed() < SETTLE),
            )
            .map(|since| SETTLE.saturating_sub(since.elapsed()))
            .min()
    }

    /// From now on [`hear`](Self::hear) is called with what netlink tells of our namespace,
    /// and of `others`.
    pub fn listens(&mut self, others: bool) {
        self.told_of_links = true;
        self.told_of_others = others;
    }

    /// Takes what was heard of a link of ours. `true`: packets of a namespace begin to
    /// pass here or elsewhere, and waiting for a look would take too long.
    pub fn hear(&mut self, heard: &Heard) -> bool {
        self.unsettled = true;
        match &heard.event {
            LinkEvent::Changed { link, .. } => {
                let old = self
                    .host_links
                    .iter_mut()
                    .find(|old| old.ifindex == link.ifindex);
                let moved = old
                    .as_ref()
                    .is_none_or(|old| old.link_nsid != link.link_nsid);
                match old {
                    Some(old) => {
                        *old = Link {
                            addresses: std::mem::take(&mut old.addresses),
                            ..Link::clone(link)
                        };
                    }
                    None => self.host_links.push(Link::clone(link)),
                }
                let elsewhere = moved && link.is_veth() && link.link_nsid.is_some();
                if elsewhere {
                    self.distrust(link.link_nsid);
                }
                elsewhere
            }
            LinkEvent::Gone(ifindex) => {
                let old = self
                    .host_links
                    .iter()
                    .position(|link| link.ifindex == *ifindex);
                if let Some(at) = old {
                    let old = self.host_links.remove(at);
                    // Of a pair that was here one end may have moved: nobody tells what
                    // that means for the other.
                    if old.is_veth() && old.link_nsid.is_none() {
                        self.unsure.extend(old.link);
                    }
                }
                false
            }
            LinkEvent::Address {
                ifindex,
                address,
                present,
            } => {
                let mut links = self.host_links.iter_mut();
                if let Some(link) = links.find(|link| link.ifindex == *ifindex) {
                    link.addresses.retain(|known| known != address);
                    if *present {
                        link.addresses.push(address.clone());
                        // IPv4 first, else as they came.
                        link.addresses.sort_by_key(|address| address.contains(':'));
                    }
                }
                false
            }
            LinkEvent::Inside { nsid, left } => {
                self.changed.insert(*nsid);
                // It may be the other end of one of ours, in a third one now.
                if *left {
                    let there = |link: &&Link| link.is_veth() && link.link_nsid == Some(*nsid);
                    let ours = self.host_links.iter().filter(there);
                    self.unsure.extend(ours.map(|link| link.ifindex));
                }
                false
            }
            LinkEvent::NamespaceId(id) => {
                self.stale_ids.insert(*id, heard.at);
                let known = |id: &i32| self.namespaces.values().any(|v| v.facts.nsid == Some(*id));
                self.stale_ids.retain(|id, _| known(id));
                false
            }
            LinkEvent::Other => false,
            LinkEvent::Lost => {
                self.links_read = None;
                self.changed.extend(
                    self.namespaces
                        .values()
                        .filter_map(|visited| visited.facts.nsid),
                );
                false
            }
        }
    }

    /// A new pair leads to whom `nsid` means now: no longer to who had it before.
    fn distrust(&mut self, nsid: Option<i32>) {
        let Some(since) = nsid.and_then(|nsid| self.stale_ids.remove(&nsid)) else {
            return;
        };
        for visited in self.namespaces.values_mut() {
            if visited.facts.nsid == nsid && visited.at < since {
                visited.facts.nsid = None;
            }
        }
    }

    /// What was found.
    #[must_use]
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Brings [`facts`](Self::facts) in step with what is known without a look.
    /// `false`: they are as they were.
    pub fn recall(&mut self) -> bool {
        self.notice_moves();
        self.settle();
        self.settle_inside();
        let namespaces = self.namespaces.values().map(|visited| &visited.facts);
        let containers = self.containers.iter().chain(&self.recognised);
        let same = self.host_links == self.facts.host.links
            && namespaces.clone().eq(&self.facts.namespaces)
            && containers.clone().eq(&self.facts.containers);
        if !same {
            self.facts = Facts {
                host: HostFacts {
                    cookie: self.own_cookie,
                    inode: self.own_inode,
                    links: self.host_links.clone(),
                },
                namespaces: namespaces.cloned().collect(),
                containers: containers.cloned().collect(),
            };
        }
        !same
    }

    /// Looks at the machine, and brings [`facts`](Self::facts) in step. `false`: all is as
    /// it was, troubles too.
    ///
    /// # Errors
    /// Where our own namespace cannot be read. What is wrong with another one
    /// is a fact about it.
    pub async fn look(&mut self, depth: Depth) -> anyhow::Result<bool> {
        if depth == Depth::Periodic && self.is_quiet() {
            return Ok(false);
        }
        self.read_links().await?;
        // Nothing found would look like everything gone.
        let blind = std::mem::replace(&mut self.blind, limits::visit().err());
        let troubles = self.troubles.clone();
        if self.blind.is_none() {
            self.find(depth).await;
        }
        let changed = self.recall();
        self.looked = true;
        self.unsettled |= changed || !self.unpaired.is_empty();
        self.unsettled |= self.host_links.iter().any(|link| link.young);
        self.unsettled |= self.containers.iter().any(|c| c.inode.is_none());
        Ok(changed || self.blind != blind || self.troubles != troubles)
    }

    /// Brings our links in step with what netlink does not tell of them.
    async fn read_links(&mut self) -> anyhow::Result<()> {
        let mut unsure = std::mem::take(&mut self.unsure);
        unsure.retain(|ifindex| self.host_links.iter().any(|link| link.ifindex == *ifindex));
        let mut known = self.knows_links() && unsure.len() <= FEW;
        if known {
            for ifindex in unsure {
                known &= self.read_link(ifindex).await;
            }
        }
        if !known {
            // What is told meanwhile is heard after this.
            let at = Instant::now();
            self.host_links = netlink::links()?;
            self.links_read = Some(at);
        }
        Ok(())
    }

    /// Reads one of our links again. `false`: it cannot be read by itself.
    async fn read_link(&mut self, ifindex: u32) -> bool {
        let mut links = self.host_links.iter_mut();
        let Some(old) = links.find(|link| link.ifindex == ifindex) else {
            return true;
        };
        match self.host.link(ifindex).await {
            Ok(Some(link)) => {
                *old = Link {
                    addresses: std::mem::take(&mut old.addresses),
                    ..link
                };
                true
            }
            // It is being told of.
            Ok(None) => true,
            Err(error) => {
                log::debug!("interface {ifindex}: {error:#}");
                false
            }
        }
    }

    /// Whether our links are in step with what netlink tells.
    fn knows_links(&self) -> bool {
        let fresh = |at: Instant| self.told_of_links && at.elapsed() < RESYNC;
        self.links_read.is_some_and(fresh)
    }

    /// Whether nothing was told, has come or gone, or is due: a look would find
    /// everything as it was.
    fn is_quiet(&mut self) -> bool {
        let recently = |at: Instant| at.elapsed() < STALE;
        !self.unsettled
            && self.knows_links()
            && self.scanned_processes.is_some_and(recently)
            && self.suspects.len() == self.troubles.len()
            && self.blind.is_none()
            && limits::visit().is_ok()
            && self
                .namespaces
                .values()
                .all(|visited| self.is_told(visited))
            && !self.folders.differ(&self.sandboxes)
            && self.keep_their_files(self.folders.found())
    }

    /// Whether files lead still to the namespaces that are not in `scan`.
    fn keep_their_files(&self, scan: &Scan) -> bool {
        let mut namespaces = self.namespaces.iter();
        namespaces.all(|(inode, visited)| {
            scan.found.contains_key(inode) || leads_to(&visited.path, *inode)
        })
    }

    /// Whether netlink tells of changes in a namespace.
    fn is_told(&self, visited: &Visited) -> bool {
        self.told_of_others && visited.facts.nsid.is_some() && visited.facts.links.is_ok()
    }

    /// Notes which interfaces are new here or stand elsewhere than before.
    fn notice_moves(&mut self) {
        let present: HashSet<u32> = self.host_links.iter().map(|link| link.ifindex).collect();
        self.seen.retain(|index, _| present.contains(index));
        // What was there before us has settled.
        let since = self.looked.then(Instant::now);
        for link in &self.host_links {
            let seen = self.seen.entry(link.ifindex).or_insert(Seen {
                since,
                nsid: link.link_nsid,
                resolved: false,
                lost: false,
            });
            if seen.nsid != link.link_nsid {
                *seen = Seen {
                    since,
                    nsid: link.link_nsid,
                    resolved: false,
                    lost: false,
                };
            }
        }
    }

    /// Marks what is on its way: new interfaces of ours, which an engine may be
    /// about to move, and ends of pairs whose namespace is ending. Neither
    /// belongs to anybody for the moment.
    fn settle(&mut self) {
        let now = Instant::now();
        let known: HashSet<i32> = self
            .namespaces
            .values()
            .filter_map(|visited| visited.facts.nsid)
            .collect();
        for link in &mut self.host_links {
            let Some(seen) = self.seen.get_mut(&link.ifindex) else {
                continue;
            };
            let resolved = link.link_nsid.is_some_and(|nsid| known.contains(&nsid));
            if seen.resolved && !resolved {
                seen.since = Some(now);
                seen.lost = true;
            }
            seen.resolved = resolved;
            let young = seen.since.is_some_and(|since| now - since < SETTLE);
            link.young = young;
            link.settling = young
                && match link.link_nsid {
                    // A bridge cannot move to another namespace.
                    None => link.kind.as_deref() != Some("bridge"),
                    // A new pair into a namespace not found yet is a container
                    // that starts; one into a namespace no longer found ends.
                    Some(_) => !resolved && seen.lost,
                };
        }
    }

    /// Marks ends of pairs inside namespaces whose other end is here and was not seen
    /// yet: the one place was looked at before the pair was made, the other after.
    fn settle_inside(&mut self) {
        let now = Instant::now();
        let ends: HashSet<(Option<i32>, u32)> = self
            .host_links
            .iter()
            .filter(|end| end.is_veth())
            .map(|end| (end.link_nsid, end.ifindex))
            .collect();
        let mut unpaired = HashMap::new();
        for (inode, visited) in &mut self.namespaces {
            let nsid = visited.facts.nsid;
            for link in visited.facts.links.iter_mut().flatten() {
                let end = link.link.unwrap_or(link.ifindex);
                let seen = ends.contains(&(nsid, end));
                link.settling = false;
                // What was so before us stays so.
                if link.peer_here && !seen && self.looked {
                    let key = (*inode, link.ifindex);
                    let since = self.unpaired.get(&key).copied().unwrap_or(now);
                    link.settling = now - since < SETTLE;
                    unpaired.insert(key, since);
                }
            }
        }
        self.unpaired = unpaired;
    }

    /// Finds out where new pairs of ours lead, ahead of a look and without what may
    /// have to wait: who reads links waits for all who make or remove some, and a
    /// namespace may end meanwhile. `false`: nothing new.
    pub async fn glance(&mut self) -> bool {
        if limits::visit().is_err() || !self.has_strangers() {
            return false;
        }
        let mut glimpsed = false;
        for (inode, found) in &self.scan(true).found {
            let known = self.namespaces.get(inode);
            let linked = known.is_some_and(|visited| visited.facts.nsid.is_some());
            if *inode != self.own_inode
                && !linked
                && let Some(glimpse) = self.glimpse(*inode, found.clone()).await
            {
                glimpsed = true;
                self.namespaces.insert(*inode, glimpse);
            }
        }
        if glimpsed {
            self.index();
            self.recognise();
        }
        glimpsed
    }

    /// What a namespace is that a pair of ours leads to; its inside is left to a look.
    async fn glimpse(&self, inode: u64, found: Found) -> Option<Visited> {
        let file = netns::open(&found.path).ok()?;
        let same = netns::inode(&file).ok()? == inode;
        let nsid = self.host.nsid_of(&file).await.ok().flatten();
        let cookie = netns::within(&file, netns::cookie).ok()?.ok();
        (same && nsid.is_some()).then(|| Visited {
            facts: NamespaceFacts {
                cookie,
                inode,
                nsid,
                names: found.names,
                process: found.process,
                links: Err("not looked into yet".to_owned()),
            },
            path: found.path,
            // Others than there are: a look is due.
            pairs: Pairs::new(),
            at: Instant::now(),
            cgroups: None,
        })
    }

    /// Whether pairs of ours lead to where nobody has looked.
    fn has_strangers(&self) -> bool {
        let known: HashSet<i32> = self
            .namespaces
            .values()
            .filter_map(|visited| visited.facts.nsid)
            .collect();
        self.host_links
            .iter()
            .filter_map(|link| link.link_nsid)
            .any(|nsid| !known.contains(&nsid))
    }

    /// Finds namespaces and looks into those that are new or stale.
    async fn find(&mut self, depth: Depth) {
        let strangers = self.has_strangers();
        self.unsettled = strangers;
        let overdue = self
            .scanned_processes
            .is_none_or(|at| depth == Depth::Periodic && at.elapsed() >= STALE);
        let mut processes = strangers || overdue;
        let mut scan = self.scan(processes);
        // Without a look at /proc a namespace that only processes hold was not
        // found. It is there as long as its file is; where that is gone, there
        // may be another process. One that is new is called after its process.
        if !processes && (!self.keep_their_files(&scan) || self.lacks_process(&scan)) {
            processes = true;
            scan = self.scan(processes);
        }
        if processes {
            self.scanned_processes = Some(Instant::now());
        }
        self.suspect(&scan.troubles);

        for container in &mut self.containers {
            // Another process by now, where the engine is not there to tell.
            if processes || container.inode.is_none() {
                container.inode = (scan::started(container.pid) == container.started)
                    .then(|| scan::inode_of(container.pid))
                    .flatten();
            }
            if let Some(inode) = container.inode
                && !scan.found.contains_key(&inode)
            {
                let path = format!("/proc/{}/ns/net", container.pid).into();
                let found = Found {
                    path,
                    ..Found::default()
                };
                Rc::make_mut(&mut scan).found.insert(inode, found);
            }
        }
        self.namespaces
            .retain(|inode, _| !processes || scan.found.contains_key(inode));

        let mut again = None;
        let pairs = self.pairs();
        let none = Pairs::new();
        let pairs = |nsid: Option<i32>| nsid.and_then(|nsid| pairs.get(&nsid)).unwrap_or(&none);
        let stale = self.stale(depth, overdue);
        let changed = std::mem::take(&mut self.changed);
        let changed = |nsid: Option<i32>| nsid.is_some_and(|nsid| changed.contains(&nsid));
        let mut looked = false;
        for (&inode, found) in &scan.found {
            if inode == self.own_inode {
                continue;
            }
            let old = self.namespaces.get(&inode);
            let look = old.is_none_or(|visited| {
                let moved = found.process.is_some() && visited.facts.process != found.process;
                let linked = strangers && visited.facts.nsid.is_none();
                // Inodes come back: by another name it may be another namespace.
                let renamed = visited.facts.names != found.names;
                moved
                    || linked
                    || renamed
                    || stale.contains(&inode)
                    || changed(visited.facts.nsid)
                    || visited.pairs != *pairs(visited.facts.nsid)
            });
            if !look && let Some(visited) = self.namespaces.get_mut(&inode) {
                visited.facts.names.clone_from(&found.names);
                visited.path.clone_from(&found.path);
                continue;
            }
            looked = true;
            let mut visit = self.visit(inode, &found.path).await;
            let mut path = found.path.clone();
            // The process that led there has ended. An engine starts a container by
            // several, one after the other.
            if visit.is_err()
                && let Some(other) = again
                    .get_or_insert_with(|| self.scan(true))
                    .found
                    .get(&inode)
            {
                path.clone_from(&other.path);
                visit = self.visit(inode, &path).await;
            }
            match visit {
                Ok(mut facts) => {
                    facts.names.clone_from(&found.names);
                    let old = self.namespaces.remove(&inode);
                    let known = old.as_ref().and_then(|old| old.facts.process.clone());
                    facts.process = found.process.clone().or(known);
                    self.namespaces.insert(
                        inode,
                        Visited {
                            cgroups: old.and_then(|old| old.cgroups),
                            pairs: pairs(facts.nsid).clone(),
                            facts,
                            path,
                            at: Instant::now(),
                        },
                    );
                }
                // It ended while we looked.
                Err(Ended) => {
                    self.namespaces.remove(&inode);
                    self.unsettled = true;
                }
            }
        }
        if looked || self.inodes.len() != self.namespaces.len() {
            self.index();
        }
        self.recognise();
    }

    /// Finds containers that the engine has made and does not list yet, or not any
    /// more, by the cgroups of processes: the engine tells of a container's process
    /// only once that runs, and one that lives for a moment has ended by then.
    fn recognise(&mut self) {
        let told: HashSet<u64> = self.containers.iter().filter_map(|c| c.inode).collect();
        self.recognised.clear();
        for (inode, visited) in &mut self.namespaces {
            visited.note_cgroups();
            if let Some(cgroups) = &visited.cgroups
                && !told.contains(inode)
            {
                let found = cgroups.container(*inode, &self.made);
                self.recognised.extend(found);
            }
        }
    }

    /// Whether a file leads to a namespace that nobody has looked into.
    fn lacks_process(&self, scan: &Scan) -> bool {
        let mut found = scan.found.keys();
        found.any(|inode| *inode != self.own_inode && !self.namespaces.contains_key(inode))
    }

    fn index(&mut self) {
        self.inodes = self
            .namespaces
            .iter()
            .map(|(inode, visited)| (visited.facts.key(), *inode))
            .collect();
    }

    /// Namespaces that were not looked into for long; those of which netlink tells
    /// take turns when /proc is looked at (`overdue`).
    fn stale(&self, depth: Depth, overdue: bool) -> HashSet<u64> {
        if depth == Depth::Event {
            return HashSet::new();
        }
        let (told, untold): (Vec<_>, Vec<_>) = self
            .namespaces
            .iter()
            .map(|(inode, visited)| (self.is_told(visited), (visited.at, *inode)))
            .partition(|(told, _)| *told);
        let mut stale = turn(untold, STALE, PERIOD);
        if overdue {
            stale.extend(turn(told, RARELY, STALE));
        }
        stale
    }

    /// What leads to namespaces. With `processes` of those that only these keep too.
    fn scan(&mut self, processes: bool) -> Rc<Scan> {
        let mut scan = self.folders.scan(&self.sandboxes);
        if processes {
            Rc::make_mut(&mut scan).processes();
        }
        scan
    }

    /// A namespace that is being made or taken down is an ordinary file for a
    /// moment: only what stays one is worth a word.
    fn suspect(&mut self, troubles: &[(PathBuf, String)]) {
        let now = Instant::now();
        self.suspects
            .retain(|path, _| troubles.iter().any(|(trouble, _)| trouble == path));
        self.troubles.clear();
        // What was there before us stays as it is.
        let first = if self.looked {
            Some(now)
        } else {
            now.checked_sub(SETTLE)
        };
        for (path, reason) in troubles {
            let since = self
                .suspects
                .entry(path.clone())
                .or_insert(first.unwrap_or(now));
            if now - *since >= SETTLE || !self.looked {
                self.troubles.push((path.clone(), reason.clone()));
            }
        }
    }

    /// The pairs between us and others, by the id of the namespace that they lead to.
    fn pairs(&self) -> HashMap<i32, Pairs> {
        let mut pairs: HashMap<i32, Pairs> = HashMap::new();
        for link in self.host_links.iter().filter(|link| link.is_veth()) {
            if let Some(nsid) = link.link_nsid {
                let pair = (link.ifindex, link.link.unwrap_or(link.ifindex));
                pairs.entry(nsid).or_default().insert(pair);
            }
        }
        pairs
    }

    async fn visit(&self, inode: u64, path: &std::path::Path) -> Result<NamespaceFacts, Ended> {
        let mut facts = NamespaceFacts {
            cookie: None,
            inode,
            nsid: None,
            names: Vec::new(),
            process: None,
            links: Ok(Vec::new()),
        };
        let file = match netns::open(path) {
            Ok(file) => file,
            // An engine's file is an ordinary one for a moment before it is removed.
            Err(_) if !leads_to(path, inode) => return Err(Ended),
            Err(error) => {
                facts.links = Err(format!("{}: {}", path.display(), limits::told(&error)));
                return Ok(facts);
            }
        };
        if netns::inode(&file).ok() != Some(inode) {
            return Err(Ended);
        }
        facts.nsid = self.host.nsid_of(&file).await.ok().flatten();
        facts.links = match Netlink::visit(&file, netlink::links) {
            Ok((netlink, cookie, links)) => {
                facts.cookie = cookie;
                // Telling of the links has given it one.
                let here = netlink.nsid_of(&self.own).await.ok().flatten();
                links
                    .map(|links| {
                        links
                            .into_iter()
                            .map(|link| from_inside(link, here))
                            .collect()
                    })
                    .map_err(|error| format!("{error:#}"))
            }
            Err(error) => Err(format!(
                "cannot enter the namespace: {}",
                limits::told(&error)
            )),
        };
        Ok(facts)
    }

    /// The routes of the namespace `key`.
    ///
    /// # Errors
    /// Where it cannot be entered (any more).
    pub async fn routes_in(&self, key: NsKey) -> anyhow::Result<Vec<Route>> {
        if key == self.host_key() {
            return self.host.routes().await;
        }
        self.netlink_in(key)?.routes().await
    }

    /// The id that our namespace has given to the namespace `key`; netlink tells of
    /// changes there by it, and not at all where there is none.
    #[must_use]
    pub fn nsid_of(&self, key: NsKey) -> Option<i32> {
        self.visited(key).and_then(|visited| visited.facts.nsid)
    }

    /// Names of the interfaces of the namespace `key`, by index.
    #[must_use]
    pub fn interface_names(&self, key: NsKey) -> BTreeMap<u32, String> {
        let links = if key == self.host_key() {
            Some(&self.host_links)
        } else {
            self.visited(key)
                .and_then(|visited| visited.facts.links.as_ref().ok())
        };
        links
            .into_iter()
            .flatten()
            .map(|link| (link.ifindex, link.name.clone()))
            .collect()
    }

    fn netlink_in(&self, key: NsKey) -> anyhow::Result<Netlink> {
        let path = self.path_of(key).context("the namespace has ended")?;
        let file = netns::open(&path)?;
        let (netlink, cookie) = Netlink::open_in(&file)?;
        if let (NsKey::Cookie(expected), Some(cookie)) = (key, cookie) {
            anyhow::ensure!(expected == cookie, "the namespace has ended");
        }
        Ok(netlink)
    }

    /// The kernel's counters inside the namespace `key`.
    ///
    /// # Errors
    /// Where it cannot be entered (any more).
    pub fn counters_in(&self, key: NsKey) -> anyhow::Result<CountersByIndex> {
        let read = if key == self.host_key() {
            stats::counters()
        } else {
            let path = self.path_of(key).context("the namespace has ended")?;
            netns::within(&netns::open(&path)?, || {
                let same = key
                    .cookie()
                    .is_none_or(|own| netns::cookie().ok() == Some(own));
                anyhow::ensure!(same, "the namespace has ended");
                Ok(stats::counters())
            })??
        };
        read.context("read link counters")
    }
}

/// Those of `ages` whose turn it is, so that each has one in `time` when there are turns
/// `every` so often.
fn turn(ages: Vec<(bool, (Instant, u64))>, time: Duration, every: Duration) -> HashSet<u64> {
    let mut oldest: Vec<(Instant, u64)> = ages.into_iter().map(|(_, age)| age).collect();
    if oldest.len() <= FEW {
        oldest.retain(|(at, _)| at.elapsed() >= time);
    } else {
        let turns = time.div_duration_f64(every);
        let share = (oldest.len() as f64 / turns).ceil() as usize;
        oldest.sort_unstable();
        oldest.truncate(share);
    }
    oldest.into_iter().map(|(_, inode)| inode).collect()
}

/// A link as seen inside a namespace that calls ours by the id `here`.
fn from_inside(link: Link, here: Option<i32>) -> Link {
    Link {
        peer_here: link.is_veth() && here.is_some() && link.link_nsid == here,
        ..link
    }
}

/// The namespace ended while we looked at it.
struct Ended;

fn leads_to(path: &std::path::Path, inode: u64) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata(path).is_ok_and(|metadata| metadata.ino() == inode)
}
