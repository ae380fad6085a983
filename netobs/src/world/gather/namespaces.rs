//! Other namespaces: where they are found, and what is inside.

use std::{
    collections::HashSet,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    rc::Rc,
    time::{Duration, Instant},
};

use super::{Depth, FEW, Machine, PERIOD, Pairs, SETTLE, STALE, containers::Cgroups};
use crate::{
    inventory::facts::{Link, NamespaceFacts},
    world::{
        limits,
        netlink::{self, Netlink},
        netns,
        scan::{self, Found, Scan},
    },
};

/// What is known of the inside of a namespace of which netlink tells us is looked at again
/// after this time, in case that something was missed.
const RARELY: Duration = Duration::from_secs(300);

/// A namespace that was looked into.
pub(super) struct Visited {
    pub(super) facts: NamespaceFacts,
    pub(super) path: PathBuf,
    /// The pairs between us and it when it was looked into: index here, index
    /// there. Indexes here grow, so another pair is another pair of numbers.
    pub(super) pairs: Pairs,
    pub(super) at: Instant,
    pub(super) cgroups: Option<Cgroups>,
}

impl Machine {
    /// Whether files lead still to the namespaces that are not in `scan`.
    pub(super) fn keep_their_files(&self, scan: &Scan) -> bool {
        let mut namespaces = self.namespaces.iter();
        namespaces.all(|(inode, visited)| {
            scan.found.contains_key(inode) || leads_to(&visited.path, *inode)
        })
    }

    /// Whether netlink tells of changes in a namespace.
    pub(super) fn is_told(&self, visited: &Visited) -> bool {
        self.told_of_others && visited.facts.nsid.is_some() && visited.facts.links.is_ok()
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
    pub(super) async fn find(&mut self, depth: Depth) {
        let strangers = self.has_strangers();
        self.unsettled = strangers;
        let overdue = self
            .scanned_processes
            .is_none_or(|at| depth == Depth::Periodic && at.elapsed() >= STALE);
        let (mut scan, processes) = self.scan_as_needed(strangers || overdue);
        self.suspect(&scan.troubles);
        self.locate_containers(&mut scan, processes);
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

    /// What leads to namespaces, and whether those that only processes keep are among it:
    /// where that is asked for (`processes`), or turns out to be needed.
    fn scan_as_needed(&mut self, mut processes: bool) -> (Rc<Scan>, bool) {
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
        (scan, processes)
    }

    /// Finds out in which namespaces containers are, and adds these to the scan. With
    /// `processes` again for those that were found before.
    fn locate_containers(&mut self, scan: &mut Rc<Scan>, processes: bool) {
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
                Rc::make_mut(scan).found.insert(inode, found);
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

    async fn visit(&self, inode: u64, path: &Path) -> Result<NamespaceFacts, Ended> {
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

fn leads_to(path: &Path, inode: u64) -> bool {
    std::fs::metadata(path).is_ok_and(|metadata| metadata.ino() == inode)
}
