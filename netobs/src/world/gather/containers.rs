//! Containers: what an engine tells of them, and what the cgroups of processes say.

use std::{
    collections::{HashSet, VecDeque},
    time::Instant,
};

use super::{Machine, STALE, namespaces::Visited};
use crate::{
    inventory::facts::Container,
    world::{cgroup, engine, scan},
};

/// Folders of sandboxes that are looked into: an engine has one.
const MOST_SANDBOXES: usize = 64;

/// What the cgroups of a process say.
pub(super) struct Cgroups {
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

impl Machine {
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

    /// Finds containers that the engine has made and does not list yet, or not any
    /// more, by the cgroups of processes: the engine tells of a container's process
    /// only once that runs, and one that lives for a moment has ended by then.
    pub(super) fn recognise(&mut self) {
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
}
