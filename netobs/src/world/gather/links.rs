//! Our own links: in step with what netlink tells, and which of them are on their way.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use super::{FEW, Machine, Pairs, SETTLE};
use crate::{
    inventory::facts::{Facts, Link},
    world::{
        link_events::{Heard, LinkEvent},
        netlink,
    },
};

/// The links of our own namespace are kept in step with what netlink tells, and read again
/// after this time, in case that something was missed.
const RESYNC: Duration = Duration::from_secs(30);

/// What is remembered of an interface of ours from look to look.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    /// Since when it stands where it stands.
    pub(super) since: Option<Instant>,
    /// Where its other end was.
    pub(super) nsid: Option<i32>,
    /// Whether that namespace is known.
    pub(super) resolved: bool,
    /// Whether it was known and is not any more.
    pub(super) lost: bool,
}

impl Machine {
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

    /// Brings our links in step with what netlink does not tell of them.
    pub(super) async fn read_links(&mut self) -> anyhow::Result<()> {
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
    pub(super) fn knows_links(&self) -> bool {
        let fresh = |at: Instant| self.told_of_links && at.elapsed() < RESYNC;
        self.links_read.is_some_and(fresh)
    }

    /// Of all facts those about pairs that netlink told of since the last
    /// [`recall`](Self::recall), and that lead into another namespace than ours.
    #[must_use]
    pub fn newcomers(&self) -> Facts {
        let is_new = |link: &&Link| {
            let seen = self.seen.get(&link.ifindex);
            link.is_veth()
                && link.link_nsid.is_some()
                && seen.is_none_or(|seen| seen.nsid != link.link_nsid)
        };
        let new = self.host_links.iter().filter(is_new);
        Facts {
            host: self.host_facts(new.cloned().collect()),
            ..Facts::default()
        }
    }

    /// Notes which interfaces are new here or stand elsewhere than before.
    pub(super) fn notice_moves(&mut self) {
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
    pub(super) fn settle(&mut self) {
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
    pub(super) fn settle_inside(&mut self) {
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

    /// The pairs between us and others, by the id of the namespace that they lead to.
    pub(super) fn pairs(&self) -> HashMap<i32, Pairs> {
        let mut pairs: HashMap<i32, Pairs> = HashMap::new();
        for link in self.host_links.iter().filter(|link| link.is_veth()) {
            if let Some(nsid) = link.link_nsid {
                let pair = (link.ifindex, link.link.unwrap_or(link.ifindex));
                pairs.entry(nsid).or_default().insert(pair);
            }
        }
        pairs
    }
}
