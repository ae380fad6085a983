//! Sums of what the classifiers counted.

use netobs_common::{CLASS_ARP, CLASS_IPV6, CLASS_OTHER, CLASSES, Cell, Record};
use serde::{Deserialize, Serialize};

use super::ledger::Count;

/// One value for each direction, as the namespace sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Directions<T> {
    /// Comes in.
    pub rx: T,
    /// Goes out.
    pub tx: T,
}

impl<T> Directions<T> {
    /// The same with rx and tx exchanged: what the other end of a veth sees.
    #[must_use]
    pub fn mirrored(self) -> Self {
        Self {
            rx: self.tx,
            tx: self.rx,
        }
    }

    /// Applies `f` to both.
    pub fn map<U>(self, mut f: impl FnMut(T) -> U) -> Directions<U> {
        Directions {
            rx: f(self.rx),
            tx: f(self.tx),
        }
    }
}

/// What is counted of one class of packets. Cumulative.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// skbs.
    pub packets: u64,
    /// Sum of `skb->len`, in bytes.
    pub bytes: u64,
    /// Packets on the wire.
    pub segments: u64,
    /// Bytes on the wire.
    pub wire_bytes: u64,
}

impl Tally {
    fn add(&mut self, other: &Self) {
        self.packets += other.packets;
        self.bytes += other.bytes;
        self.segments += other.segments;
        self.wire_bytes += other.wire_bytes;
    }
}

impl Tally {
    fn pairs(&mut self, other: &Self, work: &mut dyn FnMut(&mut u64, u64)) {
        work(&mut self.packets, other.packets);
        work(&mut self.bytes, other.bytes);
        work(&mut self.segments, other.segments);
        work(&mut self.wire_bytes, other.wire_bytes);
    }

    fn since(&self, before: &Self) -> Option<Self> {
        Some(Self {
            packets: self.packets.checked_sub(before.packets)?,
            bytes: self.bytes.checked_sub(before.bytes)?,
            segments: self.segments.checked_sub(before.segments)?,
            wire_bytes: self.wire_bytes.checked_sub(before.wire_bytes)?,
        })
    }
}

impl From<&Tally> for Cell {
    fn from(tally: &Tally) -> Self {
        Self {
            packets: tally.packets,
            bytes: tally.bytes,
            segments: tally.segments,
            wire_bytes: tally.wire_bytes,
        }
    }
}

impl From<&Cell> for Tally {
    fn from(cell: &Cell) -> Self {
        Self {
            packets: cell.packets,
            bytes: cell.bytes,
            segments: cell.segments,
            wire_bytes: cell.wire_bytes,
        }
    }
}

/// The classes of one IP family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Family<'a> {
    /// TCP.
    pub tcp: &'a Tally,
    /// UDP.
    pub udp: &'a Tally,
    /// ICMP or ICMPv6.
    pub icmp: &'a Tally,
    /// Any other protocol, or a header cut short.
    pub other: &'a Tally,
}

/// All counters of one direction. Cumulative.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// By class, in the order of the `CLASS_*` constants of `netobs_common`.
    classes: [Tally; CLASSES as usize],
    /// skbs with SYN set.
    pub syn: u64,
    /// skbs with FIN set.
    pub fin: u64,
    /// skbs with RST set.
    pub rst: u64,
    /// skbs to the all-ones MAC address.
    pub broadcast: u64,
    /// skbs to any other group MAC address.
    pub multicast: u64,
    /// IP fragments, first ones too.
    pub fragments: u64,
}

impl Counters {
    /// The sum over all classes.
    #[must_use]
    pub fn total(&self) -> Tally {
        let mut total = Tally::default();
        for class in &self.classes {
            total.add(class);
        }
        total
    }

    /// The classes of IPv4.
    #[must_use]
    pub fn ipv4(&self) -> Family<'_> {
        self.family(0)
    }

    /// The classes of IPv6.
    #[must_use]
    pub fn ipv6(&self) -> Family<'_> {
        self.family(CLASS_IPV6 as usize)
    }

    /// ARP.
    #[must_use]
    pub fn arp(&self) -> &Tally {
        &self.classes[CLASS_ARP as usize]
    }

    /// Neither IP nor ARP.
    #[must_use]
    pub fn other(&self) -> &Tally {
        &self.classes[CLASS_OTHER as usize]
    }

    fn family(&self, first: usize) -> Family<'_> {
        let [tcp, udp, icmp, other] = [0, 1, 2, 3].map(|class| &self.classes[first + class]);
        Family {
            tcp,
            udp,
            icmp,
            other,
        }
    }

    /// Adds what another interface counted.
    pub fn add(&mut self, more: &Self) {
        for (class, add) in self.classes.iter_mut().zip(&more.classes) {
            class.add(add);
        }
        self.syn += more.syn;
        self.fin += more.fin;
        self.rst += more.rst;
        self.broadcast += more.broadcast;
        self.multicast += more.multicast;
        self.fragments += more.fragments;
    }

    /// What was added since `before`; `None` where a counter went backwards.
    #[must_use]
    pub fn since(&self, before: &Self) -> Option<Self> {
        let mut added = self.clone();
        for (class, before) in added.classes.iter_mut().zip(&before.classes) {
            *class = class.since(before)?;
        }
        added.syn = self.syn.checked_sub(before.syn)?;
        added.fin = self.fin.checked_sub(before.fin)?;
        added.rst = self.rst.checked_sub(before.rst)?;
        added.broadcast = self.broadcast.checked_sub(before.broadcast)?;
        added.multicast = self.multicast.checked_sub(before.multicast)?;
        added.fragments = self.fragments.checked_sub(before.fragments)?;
        Some(added)
    }

    /// As a record, to be kept.
    #[must_use]
    pub fn record(&self) -> Record {
        let cell = |class: usize| Cell::from(&self.classes[class]);
        Record {
            ipv4_tcp: cell(0),
            ipv4_udp: cell(1),
            ipv4_icmp: cell(2),
            ipv4_other: cell(3),
            ipv6_tcp: cell(4),
            ipv6_udp: cell(5),
            ipv6_icmp: cell(6),
            ipv6_other: cell(7),
            arp: cell(8),
            other: cell(9),
            syn: self.syn,
            fin: self.fin,
            rst: self.rst,
            broadcast: self.broadcast,
            multicast: self.multicast,
            fragments: self.fragments,
            ..Record::default()
        }
    }

    /// Adds what one CPU counted.
    pub fn add_record(&mut self, record: &Record) {
        let cells = [
            &record.ipv4_tcp,
            &record.ipv4_udp,
            &record.ipv4_icmp,
            &record.ipv4_other,
            &record.ipv6_tcp,
            &record.ipv6_udp,
            &record.ipv6_icmp,
            &record.ipv6_other,
            &record.arp,
            &record.other,
        ];
        for (class, cell) in self.classes.iter_mut().zip(cells) {
            class.add(&cell.into());
        }
        self.syn += record.syn;
        self.fin += record.fin;
        self.rst += record.rst;
        self.broadcast += record.broadcast;
        self.multicast += record.multicast;
        self.fragments += record.fragments;
    }
}

impl Count for Counters {
    fn pairs(&mut self, other: &Self, work: &mut dyn FnMut(&mut u64, u64)) {
        for (class, other) in self.classes.iter_mut().zip(&other.classes) {
            class.pairs(other, work);
        }
        work(&mut self.syn, other.syn);
        work(&mut self.fin, other.fin);
        work(&mut self.rst, other.rst);
        work(&mut self.broadcast, other.broadcast);
        work(&mut self.multicast, other.multicast);
        work(&mut self.fragments, other.fragments);
    }
}

impl<C: Count> Count for Directions<C> {
    fn pairs(&mut self, other: &Self, work: &mut dyn FnMut(&mut u64, u64)) {
        self.rx.pairs(&other.rx, work);
        self.tx.pairs(&other.tx, work);
    }
}

/// What the kernel itself counts of an interface, in one direction
/// (`rtnl_link_stats64`). Cumulative since the interface was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelCounters {
    /// skbs.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
    /// Packets with errors.
    pub errors: u64,
    /// Packets dropped by the device.
    pub dropped: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_sum_to_the_total_and_records_keep_their_class() {
        let cell = |n| Cell {
            packets: n,
            bytes: n * 100,
            segments: n * 2,
            wire_bytes: n * 150,
        };
        let record = Record {
            ipv4_tcp: cell(1),
            ipv6_other: cell(10),
            arp: cell(100),
            other: cell(1000),
            syn: 7,
            ..Record::default()
        };
        let mut counters = Counters::default();
        counters.add_record(&record);
        counters.add_record(&record);
        assert_eq!(counters.total().packets, 2222);
        assert_eq!(counters.total().wire_bytes, 2222 * 150);
        assert_eq!(counters.ipv4().tcp.packets, 2);
        assert_eq!(counters.ipv6().other.segments, 40);
        assert_eq!(counters.arp().bytes, 20_000);
        assert_eq!(counters.other().packets, 2000);
        assert_eq!(counters.syn, 14);
        let mut again = Counters::default();
        again.add_record(&counters.record());
        assert_eq!(again, counters);
    }
}
