//! What a namespace's interfaces counted that it no longer has.

use netobs_common::Netns;

use crate::model::{
    counters::{Counters, Directions},
    sample,
};

/// Interfaces of a namespace that have ended and are still listed when the
/// namespace ends; older ones remain in its totals.
const REMEMBERED: usize = 8;

/// What a namespace's interfaces counted that it no longer has.
#[derive(Default)]
pub(super) struct Past {
    pub(super) folded: Directions<Counters>,
    pub(super) ended: Vec<sample::Interface>,
    /// All that have ended since the last sample.
    pub(super) recent: Vec<sample::Interface>,
}

impl Past {
    /// What was counted by interfaces that ended in the time of an earlier netobs.
    pub(super) fn begin_with(&mut self, note: &Netns) {
        self.folded.rx.add_record(&note.rx);
        self.folded.tx.add_record(&note.tx);
    }

    /// Takes what another one has.
    pub(super) fn absorb(&mut self, other: Self) {
        self.folded.rx.add(&other.folded.rx);
        self.folded.tx.add(&other.folded.tx);
        self.recent.extend(other.recent);
        other.ended.into_iter().for_each(|one| self.list(one));
    }

    /// Takes the last state of an interface.
    pub(super) fn remember(&mut self, interface: sample::Interface) {
        self.recent.push(interface.clone());
        self.list(interface);
    }

    fn list(&mut self, interface: sample::Interface) {
        self.ended.push(interface);
        if self.ended.len() > REMEMBERED
            && let Some(counters) = self.ended.remove(0).counters
        {
            self.folded.rx.add(&counters.rx);
            self.folded.tx.add(&counters.tx);
        }
    }

    /// What all of them counted.
    pub(super) fn total(&self) -> Directions<Counters> {
        let mut sum = self.folded.clone();
        for counters in self.ended.iter().filter_map(|i| i.counters.as_ref()) {
            sum.rx.add(&counters.rx);
            sum.tx.add(&counters.tx);
        }
        sum
    }
}
