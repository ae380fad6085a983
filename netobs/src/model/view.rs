//! A view: what two samples say together.

use std::{cell::OnceCell, cmp::Reverse, collections::HashMap, sync::Arc, time::Duration};

use super::{
    counters::{Counters, Directions},
    lookups::Lookups,
    sample::{Namespace, NsKey, Sample, State},
};

/// Events per second in one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rate {
    /// skbs per second.
    pub packets: f64,
    /// Bytes per second.
    pub bytes: f64,
    /// Packets on the wire per second.
    pub segments: f64,
}

/// One namespace with what the time since the last sample adds.
#[derive(Clone, Debug)]
pub struct Row<'a> {
    /// The namespace.
    pub namespace: &'a Namespace,
    /// The same in the sample before, where it was there.
    pub before: Option<&'a Namespace>,
    /// Its totals; `None` where nothing of it is observed.
    pub totals: Option<Directions<Counters>>,
    /// Per second; `None` in the first sample of a namespace, after a counter
    /// went backwards, and for what is gone.
    pub rates: Option<Directions<Rate>>,
    /// Routing decisions per second; `None` likewise, and where they are not
    /// observed.
    pub lookups: Option<LookupRate>,
}

/// Routing decisions per second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LookupRate {
    /// All.
    pub total: f64,
    /// Failed ones.
    pub failed: f64,
}

/// A sample, ready to be shown.
#[derive(Clone, Debug)]
pub struct View<'a> {
    /// The sample that is shown.
    pub sample: &'a Sample,
    /// Asked for, between samples.
    pub interval: Duration,
    /// Busiest first.
    pub rows: Vec<Row<'a>>,
}

impl<'a> View<'a> {
    /// Compares `sample` with the one before it.
    #[must_use]
    pub fn new(before: Option<&'a Sample>, sample: &'a Sample, interval: Duration) -> Self {
        let old = Before::new(before);
        let elapsed = before.and_then(|b| sample.time.duration_since(b.time).ok());
        let mut rows: Vec<Row<'a>> = sample
            .namespaces
            .iter()
            .enumerate()
            .map(|(place, namespace)| {
                let namespace = &**namespace;
                let totals = namespace.totals();
                let before = old.get(place, namespace.key);
                let rates = elapsed
                    .filter(|_| namespace.state == State::Up)
                    .zip(totals.as_ref())
                    .zip(before)
                    .and_then(|((elapsed, new), before)| {
                        // Of most there is nothing new.
                        if std::ptr::eq(before, namespace) {
                            return rates(new, new, elapsed);
                        }
                        rates(&before.totals()?, new, elapsed)
                    });
                let lookups = elapsed
                    .filter(|_| namespace.state == State::Up)
                    .zip(before.and_then(|before| before.lookups))
                    .zip(namespace.lookups)
                    .and_then(|((elapsed, old), new)| lookup_rate(&old, &new, elapsed));
                Row {
                    namespace,
                    before,
                    totals,
                    rates,
                    lookups,
                }
            })
            .collect();
        rows.sort_by_cached_key(Row::rank);
        Self {
            sample,
            interval,
            rows,
        }
    }
}

/// The namespaces of a sample.
struct Before<'a> {
    all: &'a [Arc<Namespace>],
    by_key: OnceCell<HashMap<NsKey, &'a Namespace>>,
}

impl<'a> Before<'a> {
    fn new(sample: Option<&'a Sample>) -> Self {
        Self {
            all: sample.map_or(&[], |sample| &sample.namespaces),
            by_key: OnceCell::new(),
        }
    }

    /// The one with `key`, which most often is where it was: at `place`.
    fn get(&self, place: usize, key: NsKey) -> Option<&'a Namespace> {
        if let Some(found) = self.all.get(place).filter(|ns| ns.key == key) {
            return Some(found);
        }
        let by_key = || self.all.iter().map(|ns| (ns.key, &**ns)).collect();
        self.by_key.get_or_init(by_key).get(&key).copied()
    }
}

impl<'a> Row<'a> {
    /// Whether nothing of the namespace has changed since the sample before.
    #[must_use]
    pub fn is_as_before(&self) -> bool {
        self.before
            .is_some_and(|before| std::ptr::eq(before, self.namespace))
    }

    /// Routing decisions per packet that came or went: over the time since the
    /// last sample where something did, else since the start. `None` for unknown.
    #[must_use]
    pub fn lookups_per_packet(&self) -> Option<f64> {
        let ratio = |lookups: f64, packets: f64| (packets > 0.0).then(|| lookups / packets);
        let now = self
            .lookups
            .zip(self.rates)
            .and_then(|(lookups, rates)| ratio(lookups.total, rates.rx.packets + rates.tx.packets));
        now.or_else(|| {
            let totals = self.totals.as_ref()?;
            let packets = totals.rx.total().packets + totals.tx.total().packets;
            ratio(self.namespace.lookups?.total() as f64, packets as f64)
        })
    }

    /// Busiest now, then busiest ever, then by name; what is gone comes last.
    fn rank(&self) -> impl Ord + use<'a> {
        let now = self
            .rates
            .map_or(0.0, |rates| rates.rx.bytes + rates.tx.bytes);
        let ever = self
            .totals
            .as_ref()
            .map_or(0, |t| t.rx.total().bytes + t.tx.total().bytes);
        (
            self.namespace.state == State::Gone,
            // Whole bytes are fine enough to sort by.
            Reverse(now as u64),
            Reverse(ever),
            &self.namespace.name,
            self.namespace.key,
        )
    }
}

fn rates(
    old: &Directions<Counters>,
    new: &Directions<Counters>,
    elapsed: Duration,
) -> Option<Directions<Rate>> {
    Some(Directions {
        rx: rate(&old.rx, &new.rx, elapsed)?,
        tx: rate(&old.tx, &new.tx, elapsed)?,
    })
}

fn lookup_rate(old: &Lookups, new: &Lookups, elapsed: Duration) -> Option<LookupRate> {
    let seconds = elapsed.as_secs_f64();
    if seconds <= 0.0 {
        return None;
    }
    Some(LookupRate {
        total: new.total().checked_sub(old.total())? as f64 / seconds,
        failed: new.failed().checked_sub(old.failed())? as f64 / seconds,
    })
}

fn rate(old: &Counters, new: &Counters, elapsed: Duration) -> Option<Rate> {
    let seconds = elapsed.as_secs_f64();
    if seconds <= 0.0 {
        return None;
    }
    let added = new.since(old)?.total();
    let per_second = |count: u64| count as f64 / seconds;
    Some(Rate {
        packets: per_second(added.packets),
        bytes: per_second(added.bytes),
        segments: per_second(added.segments),
    })
}
