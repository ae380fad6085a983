//! What the kernel had counted before we did.

use serde::{Deserialize, Serialize};

use super::counters::{KernelCounters, Tally};

/// Readings that may still lower the estimate.
const READINGS: u8 = 4;

/// What the kernel had counted of an interface and direction when we attached.
///
/// The kernel counts a packet when the sender hands it to the device; the
/// ingress hook sees it later, when the receiving CPU takes it from its
/// backlog. So as long as our counters are read first and the kernel's after
/// them, `kernel - ours` is never below the truth and sinks to it at the first
/// quiet reading: the smallest of the first few readings counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Baseline {
    /// skbs.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
    #[serde(skip)]
    readings: u8,
}

impl Baseline {
    /// From the first pair of readings, ours taken first.
    #[must_use]
    pub fn new(kernel: &KernelCounters, ours: &Tally) -> Self {
        Self {
            packets: kernel.packets.saturating_sub(ours.packets),
            bytes: kernel.bytes.saturating_sub(ours.bytes),
            readings: 1,
        }
    }

    /// Takes one more pair of readings, ours taken first.
    pub fn observe(&mut self, kernel: &KernelCounters, ours: &Tally) {
        if self.readings >= READINGS {
            return;
        }
        let seen = Self::new(kernel, ours);
        if seen.packets < self.packets {
            self.packets = seen.packets;
            self.bytes = seen.bytes;
        }
        self.readings += 1;
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
        baseline.observe(&kernel(20), &ours(10));
        assert_eq!((baseline.packets, baseline.bytes), (10, 1000));
        assert_eq!(baseline.unaccounted(&kernel(30), &ours(20)), 0);
    }

    #[test]
    fn a_later_difference_is_shown_and_not_absorbed() {
        let mut baseline = Baseline::new(&kernel(10), &ours(0));
        for _ in 0..5 {
            baseline.observe(&kernel(10), &ours(0));
        }
        baseline.observe(&kernel(10), &ours(4));
        assert_eq!(baseline.packets, 10);
        assert_eq!(baseline.unaccounted(&kernel(10), &ours(4)), -4);
        assert_eq!(baseline.unaccounted(&kernel(19), &ours(4)), 5);
    }
}
