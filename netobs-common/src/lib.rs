//! The border between netobs and its eBPF programs.
//!
//! Both sides compile this crate: it names the maps, programs and globals, and
//! fixes the layout of every map value. Everything here is fixed-width
//! integers in `repr(C)` with sizes asserted at compile time: no `bool`, no
//! `Option`, no enum crosses the border. Readers of the maps other than
//! netobs find the same facts in `docs/maps.md`.
#![no_std]

use core::mem::{offset_of, size_of};

pub mod routes;

/// Version of every layout and meaning in this crate. Raised when a reader
/// built for an older version would misread a map.
pub const ABI_VERSION: u32 = 5;

/// Names of what the eBPF object holds.
pub mod names {
    /// Array: interface index to [`SlotEntry`](super::SlotEntry), 0 for none.
    pub const MAP_SLOTS: &str = "NETOBS_SLOTS";
    /// Hash behind [`MAP_SLOTS`] for interface indexes beyond the array.
    pub const MAP_SLOTS_FAR: &str = "NETOBS_SLOTS_HI";
    /// Memory-mappable array of [`Record`](super::Record).
    pub const MAP_COUNTERS: &str = "NETOBS_COUNTERS";
    /// Array: slot to [`SlotOwner`](super::SlotOwner). Written by user space only.
    pub const MAP_OWNERS: &str = "NETOBS_OWNERS";
    /// Per-CPU array with the one [`Stray`](super::Stray) record.
    pub const MAP_STRAY: &str = "NETOBS_STRAY";
    /// Hash: cookie of a namespace to [`Netns`](super::Netns). Written by user space only.
    pub const MAP_NETNS: &str = "NETOBS_NETNS";
    /// Array with the one [`Meta`](super::Meta) record. Written by user space only.
    pub const MAP_META: &str = "NETOBS_META";
    /// [`Series`](super::Series), by [`SeriesKey`](super::SeriesKey).
    pub const MAP_SERIES: &str = "NETOBS_SERIES";
    /// TC classifier for the ingress hook.
    pub const PROG_INGRESS: &str = "netobs_ingress";
    /// TC classifier for the egress hook.
    pub const PROG_EGRESS: &str = "netobs_egress";
    /// Global `u32`: number of CPU columns in [`MAP_COUNTERS`].
    pub const GLOBAL_CPUS: &str = "NETOBS_CPUS";
}

/// The namespace receives: column 0 of a slot.
pub const RX: u32 = 0;
/// The namespace transmits: column 1 of a slot.
pub const TX: u32 = 1;
/// Number of directions.
pub const DIRECTIONS: u32 = 2;

/// What is counted of one class, in one direction of one interface, on one CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cell {
    /// skbs: one per `sk_buff`, as the kernel's interface counters count them.
    pub packets: u64,
    /// Sum of `skb->len`, in bytes, link-layer header included.
    pub bytes: u64,
    /// Packets on the wire: sum of `max(1, gso_segs)`.
    pub segments: u64,
    /// `bytes` plus the headers that segmentation will repeat, in bytes.
    pub wire_bytes: u64,
}

/// The counters of one slot, direction and CPU.
///
/// The first [`CLASSES`] fields are one [`Cell`] per class, in the order of
/// the `CLASS_*` constants; a packet adds to exactly one of them. Totals are
/// their sum, made by the reader.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// [`CLASS_IPV4_TCP`].
    pub ipv4_tcp: Cell,
    /// [`CLASS_IPV4_UDP`].
    pub ipv4_udp: Cell,
    /// [`CLASS_IPV4_ICMP`].
    pub ipv4_icmp: Cell,
    /// [`CLASS_IPV4_OTHER`].
    pub ipv4_other: Cell,
    /// [`CLASS_IPV6_TCP`].
    pub ipv6_tcp: Cell,
    /// [`CLASS_IPV6_UDP`].
    pub ipv6_udp: Cell,
    /// [`CLASS_IPV6_ICMP`].
    pub ipv6_icmp: Cell,
    /// [`CLASS_IPV6_OTHER`].
    pub ipv6_other: Cell,
    /// [`CLASS_ARP`].
    pub arp: Cell,
    /// [`CLASS_OTHER`].
    pub other: Cell,
    /// skbs with the TCP flag SYN (SYN-ACK too).
    pub syn: u64,
    /// skbs with the TCP flag FIN.
    pub fin: u64,
    /// skbs with the TCP flag RST.
    pub rst: u64,
    /// skbs to the all-ones MAC address.
    pub broadcast: u64,
    /// skbs to any other group MAC address.
    pub multicast: u64,
    /// IP fragments, first ones too.
    pub fragments: u64,
    /// Always 0: keeps the record a power of two.
    pub reserved: [u64; 18],
}

macro_rules! add_cells {
    ($to:ident, $from:ident, $($cell:ident),*) => { $(
        $to.$cell.packets += $from.$cell.packets;
        $to.$cell.bytes += $from.$cell.bytes;
        $to.$cell.segments += $from.$cell.segments;
        $to.$cell.wire_bytes += $from.$cell.wire_bytes;
    )* };
}

impl Record {
    /// Adds all counters of `other`.
    pub const fn add(&mut self, other: &Self) {
        add_cells!(
            self, other, ipv4_tcp, ipv4_udp, ipv4_icmp, ipv4_other, ipv6_tcp, ipv6_udp, ipv6_icmp,
            ipv6_other, arp, other
        );
        self.syn += other.syn;
        self.fin += other.fin;
        self.rst += other.rst;
        self.broadcast += other.broadcast;
        self.multicast += other.multicast;
        self.fragments += other.fragments;
    }
}

/// IPv4, protocol TCP.
pub const CLASS_IPV4_TCP: u32 = 0;
/// IPv4, protocol UDP.
pub const CLASS_IPV4_UDP: u32 = 1;
/// IPv4, protocol ICMP.
pub const CLASS_IPV4_ICMP: u32 = 2;
/// IPv4, any other protocol, or a header cut short.
pub const CLASS_IPV4_OTHER: u32 = 3;
/// Distance from a class of IPv4 to the same class of IPv6.
pub const CLASS_IPV6: u32 = 4;
/// IPv6, upper-layer protocol TCP.
pub const CLASS_IPV6_TCP: u32 = CLASS_IPV6 + CLASS_IPV4_TCP;
/// IPv6, upper-layer protocol UDP.
pub const CLASS_IPV6_UDP: u32 = CLASS_IPV6 + CLASS_IPV4_UDP;
/// IPv6, upper-layer protocol ICMPv6.
pub const CLASS_IPV6_ICMP: u32 = CLASS_IPV6 + CLASS_IPV4_ICMP;
/// IPv6, any other upper-layer protocol, or a header cut short.
pub const CLASS_IPV6_OTHER: u32 = CLASS_IPV6 + CLASS_IPV4_OTHER;
/// ARP.
pub const CLASS_ARP: u32 = 8;
/// Any other EtherType, an 802.3 length, or a frame too short for one.
pub const CLASS_OTHER: u32 = 9;
/// Number of classes.
pub const CLASSES: u32 = 10;

/// TCP SYN as the TCP header has it.
pub const TCP_SYN: u32 = 0x02;
/// TCP FIN as the TCP header has it.
pub const TCP_FIN: u32 = 0x01;
/// TCP RST as the TCP header has it.
pub const TCP_RST: u32 = 0x04;

/// Value of [`names::MAP_SLOTS`]: 0 for "not observed", else the slot's number
/// plus one in the low bits and flags in the high ones.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SlotEntry(pub u32);

impl SlotEntry {
    /// No slot.
    pub const NONE: Self = Self(0);
    /// The interface is observed from inside its namespace: TC ingress is the
    /// namespace's rx. Without it the interface is the host end of a veth,
    /// and TC ingress is the namespace's tx.
    pub const INSIDE: u32 = 1 << 31;
    /// Frames have no Ethernet header: they start with the IP header.
    pub const NO_ETHERNET: u32 = 1 << 30;
    const SLOT_MASK: u32 = Self::NO_ETHERNET - 1;

    /// The entry for `slot` with `flags` ([`INSIDE`](Self::INSIDE),
    /// [`NO_ETHERNET`](Self::NO_ETHERNET)).
    #[must_use]
    #[inline(always)]
    pub const fn new(slot: u32, flags: u32) -> Self {
        Self(((slot + 1) & Self::SLOT_MASK) | flags)
    }

    /// The slot's number, `None` where the interface is not observed.
    #[must_use]
    #[inline(always)]
    pub const fn slot(self) -> Option<u32> {
        match self.0 & Self::SLOT_MASK {
            0 => None,
            n => Some(n - 1),
        }
    }

    /// The direction, from the namespace's side, of what passes the ingress
    /// hook (`egress` 0) or the egress hook (`egress` 1).
    #[must_use]
    #[inline(always)]
    pub const fn direction(self, egress: u32) -> u32 {
        // Inside: ingress is RX (0), egress TX (1). On the host end the reverse.
        egress ^ 1 ^ (self.0 >> 31)
    }

    /// Whether the interface is observed from inside its namespace.
    #[must_use]
    #[inline(always)]
    pub const fn inside(self) -> bool {
        self.0 & Self::INSIDE != 0
    }

    /// Whether frames start with an IP header.
    #[must_use]
    #[inline(always)]
    pub const fn no_ethernet(self) -> bool {
        self.0 & Self::NO_ETHERNET != 0
    }
}

/// Index of a [`Record`] in [`names::MAP_COUNTERS`].
#[must_use]
#[inline(always)]
pub const fn record_index(slot: u32, direction: u32, cpu: u32, cpus: u32) -> u32 {
    (slot * DIRECTIONS + direction) * cpus + cpu
}

/// Packets and bytes that the kernel had counted of an interface and direction
/// before the programs came.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Before {
    /// skbs.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

/// Which slot is which namespace and interface: for readers of pinned maps, and
/// for the next netobs that finds them.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SlotOwner {
    /// Cookie of the namespace (`SO_NETNS_COOKIE`), 0 while unknown.
    pub cookie: u64,
    /// Inode of the namespace, 0 while unknown.
    pub inode: u64,
    /// Tells all owners of slots since boot apart, the later ones larger; 0 while
    /// the slot is free.
    pub generation: u64,
    /// Index of the interface in the namespace that it belongs to, 0 while unknown.
    pub ifindex: u32,
    /// Index of the interface that carries the programs.
    pub hook_ifindex: u32,
    /// Name of the interface in the namespace that it belongs to, NUL-padded.
    pub name: [u8; 16],
    /// Since when it is observed, in nanoseconds since 1970.
    pub since: u64,
    /// `before_attach` of RX and TX, once [`BEFORE_KNOWN`](Self::BEFORE_KNOWN) is set.
    pub before: [Before; DIRECTIONS as usize],
    /// [`BEFORE_KNOWN`](Self::BEFORE_KNOWN), [`BEFORE_FAST`](Self::BEFORE_FAST),
    /// [`OWN_QDISC`](Self::OWN_QDISC).
    pub flags: u32,
    /// Handle of the clsact filters; 0 for TCX.
    pub handle: u32,
    /// How often somebody else took the programs off.
    pub detached: u64,
    /// Always 0.
    pub reserved: [u64; 3],
}

impl SlotOwner {
    /// [`before`](Self::before) of RX was read at rest and stands fast; shifted by
    /// one, that of TX.
    pub const BEFORE_FAST: u32 = 1;
    /// The clsact qdisc was made by netobs.
    pub const OWN_QDISC: u32 = 1 << 2;
    /// [`before`](Self::before) was read.
    pub const BEFORE_KNOWN: u32 = 1 << 3;
}

/// What tells a series that is called by a name, not by an identity: the first bytes of a
/// SHA-256 of its labels.
pub type SeriesKey = [u8; 16];

/// What series of `netobs serve` have from sources that have ended: of a container that
/// was restarted they go on, also over a restart of netobs.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Series {
    /// Of an interface: what it received.
    pub rx: Record,
    /// What it sent.
    pub tx: Record,
    /// Of a namespace: its lookups.
    pub lookups: routes::Lookups,
    /// What the host looked up for it.
    pub by_host: u64,
    /// When this was written, in nanoseconds since 1970.
    pub written: u64,
    /// Always 0.
    pub reserved: [u64; 6],
}

/// Length of [`Netns::name`] in bytes.
pub const NETNS_NAME: usize = 128;

/// What is to be remembered of a namespace.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Netns {
    /// What its interfaces received that it no longer has.
    pub rx: Record,
    /// What they sent.
    pub tx: Record,
    /// The inode, 0 while unknown.
    pub inode: u64,
    /// [`SlotOwner::generation`] of the slot whose counters were added to
    /// [`rx`](Self::rx) and [`tx`](Self::tx) last; 0 for none.
    pub folded: u64,
    /// 0 host, 1 container, 2 named, 3 process.
    pub kind: u32,
    /// Bytes of the name; longer ones are cut.
    pub name_len: u32,
    /// The row's name, UTF-8 unless cut within a character.
    pub name: [u8; NETNS_NAME],
}

impl Default for Netns {
    fn default() -> Self {
        Self {
            rx: Record::default(),
            tx: Record::default(),
            inode: 0,
            folded: 0,
            kind: 0,
            name_len: 0,
            name: [0; NETNS_NAME],
        }
    }
}

/// What the maps beside it are.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    /// [`ABI_VERSION`] of who made them; 0 while they are being made.
    pub abi: u32,
    /// CPU columns of [`names::MAP_COUNTERS`].
    pub cpus: u32,
    /// Cookie of the namespace in which the interfaces with indexes in
    /// [`names::MAP_SLOTS`] are.
    pub scope: u64,
    /// SHA-256 of the object whose programs count, and of their settings.
    pub object: [u8; 32],
    /// The same for the programs that follow route lookups; zeros for none.
    pub lookups: [u8; 32],
    /// When the maps were made, in nanoseconds since 1970.
    pub made: u64,
    /// Always 0.
    pub reserved: u64,
}

/// Packets that a program saw and could not credit to a slot.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stray {
    /// skbs on an interface without a slot.
    pub no_slot: u64,
    /// skbs whose record lay outside the counters map.
    pub no_record: u64,
}

const _: () = {
    assert!(size_of::<Cell>() == 32);
    assert!(size_of::<Record>() == 512);
    assert!(offset_of!(Record, arp) == CLASS_ARP as usize * size_of::<Cell>());
    assert!(offset_of!(Record, other) == CLASS_OTHER as usize * size_of::<Cell>());
    assert!(offset_of!(Record, syn) == CLASSES as usize * size_of::<Cell>());
    assert!(size_of::<SlotEntry>() == 4);
    assert!(size_of::<SlotOwner>() == 128);
    assert!(size_of::<Netns>() == 1176);
    assert!(size_of::<Meta>() == 96);
    assert!(size_of::<Series>() == 2 * size_of::<Record>() + 256);
    assert!(size_of::<Stray>() == 16);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_end_sees_the_namespace_mirrored() {
        let host_end = SlotEntry::new(7, 0);
        assert_eq!(host_end.slot(), Some(7));
        assert_eq!(host_end.direction(0), TX);
        assert_eq!(host_end.direction(1), RX);
        let inside = SlotEntry::new(7, SlotEntry::INSIDE | SlotEntry::NO_ETHERNET);
        assert_eq!(inside.slot(), Some(7));
        assert_eq!(inside.direction(0), RX);
        assert_eq!(inside.direction(1), TX);
        assert!(inside.no_ethernet());
        assert_eq!(SlotEntry::NONE.slot(), None);
    }

    #[test]
    fn records_do_not_overlap() {
        let cpus = 4;
        let mut seen = [false; 3 * 2 * 4];
        for slot in 0..3 {
            for direction in [RX, TX] {
                for cpu in 0..cpus {
                    let index = record_index(slot, direction, cpu, cpus) as usize;
                    assert!(!core::mem::replace(&mut seen[index], true));
                }
            }
        }
        assert!(seen.iter().all(|used| *used));
    }
}
