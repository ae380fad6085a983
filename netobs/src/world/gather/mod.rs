//! Keeps the facts in step with the machine.

mod containers;
mod inside;
mod links;
mod namespaces;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque},
    fs::File,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::Context as _;

use self::{links::Seen, namespaces::Visited};
use super::{engine, limits, netlink::Netlink, netns, scan};
use crate::{
    inventory::facts::{Container, Facts, HostFacts, Link},
    model::sample::NsKey,
};

/// Between periodic looks.
pub const PERIOD: Duration = Duration::from_secs(1);
/// How long an interface that appears in our namespace may be on its way
/// into another one.
const SETTLE: Duration = Duration::from_secs(1);
/// What is known of the inside of a namespace is looked at again after this
/// time even if nothing told of a change there.
const STALE: Duration = Duration::from_secs(5);
/// Up to so many things are looked at at once: interfaces one by one, and namespaces when
/// they are stale. Of more namespaces each periodic look takes a share: what waits for it
/// does not wait for all.
const FEW: usize = 16;

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
                host: self.host_facts(self.host_links.clone()),
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

    /// The route socket of our own namespace.
    #[must_use]
    pub fn netlink(&self) -> &Netlink {
        &self.host
    }

    /// Key of our own namespace.
    #[must_use]
    pub fn host_key(&self) -> NsKey {
        self.own_cookie
            .map_or(NsKey::Inode(self.own_inode), NsKey::Cookie)
    }

    /// What is to be known of our own namespace, with these `links`.
    fn host_facts(&self, links: Vec<Link>) -> HostFacts {
        HostFacts {
            cookie: self.own_cookie,
            inode: self.own_inode,
            links,
        }
    }

    fn visited(&self, key: NsKey) -> Option<&Visited> {
        self.namespaces.get(self.inodes.get(&key)?)
    }

    /// A file that leads to the namespace `key`, where it is still the same.
    #[must_use]
    pub fn path_of(&self, key: NsKey) -> Option<PathBuf> {
        if self.host_key() == key {
            return Some(netns::OWN.into());
        }
        self.visited(key).map(|visited| visited.path.clone())
    }

    /// The id that our namespace has given to the namespace `key`; netlink tells of
    /// changes there by it, and not at all where there is none.
    #[must_use]
    pub fn nsid_of(&self, key: NsKey) -> Option<i32> {
        self.visited(key).and_then(|visited| visited.facts.nsid)
    }
}
