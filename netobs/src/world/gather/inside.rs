//! What is read inside one namespace when somebody asks.

use std::collections::BTreeMap;

use anyhow::Context as _;

use super::Machine;
use crate::{
    model::{route::Route, sample::NsKey},
    world::{
        netlink::Netlink,
        netns,
        stats::{self, CountersByIndex},
    },
};

impl Machine {
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
}
