//! What the kernel had counted before we did.

use serde::{Deserialize, Serialize};

use super::counters::{KernelCounters, Tally};

/// What the kernel had counted of an interface and direction when we attached.
///
/// No pair of readings under traffic tells it exactly: packets are counted by
/// the one and not yet by the other. The first time that nothing moved between
/// two pairs it stands fast; until then it is the smallest difference seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Baseline {
    /// skbs.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
    /// The last pair of readings in packets, the kernel's and ours; `None`
    /// once the baseline stands fast.
    #[serde(skip)]
    last: Option<(u64, u64)>,
}

impl Baseline {
    /// From the first pair of readings.
    #[must_use]
    pub fn new(kernel: &KernelCounters, ours: &Tally) -> Self {
        Self {
            packets: kernel.packets.saturating_sub(ours.packets),
            bytes: kernel.bytes.saturating_sub(ours.bytes),
            last: Some((kernel.packets, ours.packets)),
        }
    }

    /// One that was found earlier and stands fast.
    #[must_use]
    pub fn fast(packets: u64, bytes: u64) -> Self {
        Self {
            packets,
            bytes,
            last: None,
        }
    }

    /// Whether it was read at rest.
    #[must_use]
    pub fn is_fast(&self) -> bool {
        self.last.is_none()
    }

    /// Takes a pair of readings that follows the last one at once: it can show that
    /// the difference is smaller, and not that nothing moves.
    pub fn lower(&mut self, kernel: &KernelCounters, ours: &Tally) {
        let seen = Self::new(kernel, ours);
        if self.last.is_some() && seen.packets < self.packets {
            *self = seen;
        }
    }

    /// Takes one more pair of readings.
    pub fn observe(&mut self, kernel: &KernelCounters, ours: &Tally) {
        let Some(last) = self.last else {
            return;
        };
        let seen = Self::new(kernel, ours);
        if seen.last == Some(last) {
            *self = Self { last: None, ..seen };
        } else if seen.packets < self.packets {
            *self = seen;
        } else {
            self.last = seen.last;
        }
    }

    /// Packets that the kernel counted since we attached and we did not
    /// (negative: the reverse). 0 at rest.
    #[must_use]
    pub fn unaccounted(&self, kernel: &KernelCounters, ours: &Tally) -> i64 {
        let expected = i128::from(self.packets) + i128::from(ours.packets);
        let difference = i128::from(kernel.packets) - expected;
        i64::try_from(difference).unwrap_or(if difference < 0 { i64::MIN } else { i64::MAX })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel(packets: u64) -> KernelCounters {
        KernelCounters {
            packets,
            bytes: packets * 100,
            ..KernelCounters::default()
        }
    }

    fn ours(packets: u64) -> Tally {
        Tally {
            packets,
            bytes: packets * 100,
            ..Tally::default()
        }
    }

    #[test]
    fn packets_under_way_at_the_first_reading_are_not_lost_for_good() {
        // 10 before us; 3 on their way to the hook at the first reading.
        let mut baseline = Baseline::new(&kernel(15), &ours(2));
        assert_eq!(baseline.packets, 13);
        baseline.observe(&kernel(20), &ours(9));
        assert_eq!((baseline.packets, baseline.bytes), (11, 1100));
        // Quiet for the first time.
        baseline.observe(&kernel(20), &ours(10));
        baseline.observe(&kernel(20), &ours(10));
        assert_eq!((baseline.packets, baseline.bytes), (10, 1000));
        assert_eq!(baseline.unaccounted(&kernel(30), &ours(20)), 0);
    }

    #[test]
    fn a_queue_behind_the_hook_does_not_lower_it_for_good() {
        // Ours are ahead of the kernel's by what waits in the queue.
        let mut baseline = Baseline::new(&kernel(15), &ours(8));
        assert_eq!(baseline.packets, 7);
        for _ in 0..2 {
            baseline.observe(&kernel(110), &ours(100));
        }
        assert_eq!(baseline.packets, 10);
    }

    #[test]
    fn a_later_difference_is_shown_and_not_absorbed() {
        let mut baseline = Baseline::new(&kernel(10), &ours(0));
        baseline.observe(&kernel(10), &ours(0));
        for _ in 0..2 {
            baseline.observe(&kernel(10), &ours(4));
        }
        assert_eq!(baseline.packets, 10);
        assert_eq!(baseline.unaccounted(&kernel(10), &ours(4)), -4);
        assert_eq!(baseline.unaccounted(&kernel(19), &ours(4)), 5);
    }
}
