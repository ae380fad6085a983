//! The border of route lookups: what the programs that follow the kernel's
//! routing decisions share with user space.

use core::mem::{offset_of, size_of};

/// Names of what the object with the route programs holds.
pub mod names {
    /// Per-CPU hash: cookie of a namespace to [`Lookups`](super::Lookups).
    pub const MAP_LOOKUPS: &str = "NETOBS_LOOKUPS";
    /// Array: [`tally_index`](super::tally_index) to [`Tally`](super::Tally).
    pub const MAP_TALLIES: &str = "NETOBS_TALLIES";
    /// Hash: [`HitKey`](super::HitKey) to a `u64` count.
    pub const MAP_HITS: &str = "NETOBS_HITS";
    /// LRU hash: [`FailureKey`](super::FailureKey) to a `u64` count.
    pub const MAP_FAILURES: &str = "NETOBS_FAILURES";
    /// LRU hash: thread id to [`Sender`](super::Sender).
    pub const MAP_SENDERS: &str = "NETOBS_SENDERS";
    /// Hash: [`BehalfKey`](super::BehalfKey) to [`Behalf`](super::Behalf). User space
    /// makes the entries.
    pub const MAP_BEHALF: &str = "NETOBS_BEHALF";
    /// Array: [`behalf_index`](super::behalf_index) to
    /// [`BehalfTally`](super::BehalfTally).
    pub const MAP_BEHALF_TALLIES: &str = "NETOBS_BEHALF_T";
    /// Per-CPU array with the one [`Work`](super::Work) record.
    pub const MAP_WORK: &str = "NETOBS_WORK";
    /// Per-CPU array with the one [`Astray`](super::Astray) record.
    pub const MAP_ASTRAY: &str = "NETOBS_ASTRAY";

    /// Tracepoint program: a visit to an IPv4 table.
    pub const PROG_IPV4: &str = "netobs_ipv4_visit";
    /// Tracepoint program: a visit to an IPv6 table.
    pub const PROG_IPV6: &str = "netobs_ipv6_visit";
    /// Tracepoint program: a packet that is dropped.
    pub const PROG_DROP: &str = "netobs_drop";
    /// Tracepoint program: a packet that is received.
    pub const PROG_RECEIVE: &str = "netobs_receive";
    /// Cgroup program: IPv4 `connect()`.
    pub const PROG_CONNECT4: &str = "netobs_connect4";
    /// Cgroup program: IPv6 `connect()`.
    pub const PROG_CONNECT6: &str = "netobs_connect6";
    /// Cgroup program: IPv4 `sendmsg()` on an unconnected UDP socket.
    pub const PROG_SENDMSG4: &str = "netobs_sendmsg4";
    /// Cgroup program: IPv6 `sendmsg()` on an unconnected UDP socket.
    pub const PROG_SENDMSG6: &str = "netobs_sendmsg6";

    /// Global `u64`: cookie of the namespace that netobs runs in.
    pub const GLOBAL_HOST: &str = "NETOBS_HOST";
    /// Global `u32`: 1 to count per route and destination, 0 for totals only.
    pub const GLOBAL_DETAIL: &str = "NETOBS_DETAIL";
    /// Global `u32`: 1 where all of [`FIELDS_CALL`](super::FIELDS_CALL) are known.
    pub const GLOBAL_CALLS: &str = "NETOBS_CALLS";
}

/// A field of a kernel structure that the programs read, and the global `u32`
/// that holds its offset in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Name of the global.
    pub global: &'static str,
    /// Name of the structure.
    pub structure: &'static str,
    /// Path of the member, through structures that it contains.
    pub path: &'static str,
    /// Kernels without it are older, and netobs does without.
    pub optional: bool,
}

/// Value of a global for a [`Field`] that the kernel does not have.
pub const ABSENT: u32 = u32::MAX;

const fn field(global: &'static str, structure: &'static str, path: &'static str) -> Field {
    Field {
        global,
        structure,
        path,
        optional: false,
    }
}

const fn known(global: &'static str, structure: &'static str, path: &'static str) -> Field {
    Field {
        optional: true,
        ..field(global, structure, path)
    }
}

/// What tells whose namespace a device is.
pub const FIELDS_NETNS: [Field; 3] = [
    field("OFF_DEV_NET", "net_device", "nd_net.net"),
    field("OFF_DEV_IFINDEX", "net_device", "ifindex"),
    field("OFF_NET_COOKIE", "net", "net_cookie"),
];

/// What the program for IPv4 tables reads.
pub const FIELDS_IPV4: [Field; 22] = [
    field("OFF_FL4_OIF", "flowi4", "__fl_common.flowic_oif"),
    field("OFF_FL4_IIF", "flowi4", "__fl_common.flowic_iif"),
    field("OFF_FL4_PROTO", "flowi4", "__fl_common.flowic_proto"),
    Field {
        optional: true,
        ..field("OFF_FL4_L3MDEV", "flowi4", "__fl_common.flowic_l3mdev")
    },
    field("OFF_FL4_SADDR", "flowi4", "saddr"),
    field("OFF_FL4_DADDR", "flowi4", "daddr"),
    field("OFF_NHC_DEV", "fib_nh_common", "nhc_dev"),
    field("OFF_NHC_OIF", "fib_nh_common", "nhc_oif"),
    field("OFF_NHC_SCOPE", "fib_nh_common", "nhc_scope"),
    field("OFF_NHC_GW_FAMILY", "fib_nh_common", "nhc_gw_family"),
    field("OFF_NHC_GW", "fib_nh_common", "nhc_gw"),
    Field {
        optional: true,
        ..field("OFF_NET_DISSECT", "net", "ipv4.fib_rules_require_fldissect")
    },
    known("OFF_NET_ADDRESSES", "net", "ipv4.dev_addr_genid"),
    field("OFF_DEV_IN", "net_device", "ip_ptr"),
    field("OFF_IN_ADDRESSES", "in_device", "ifa_list"),
    field("OFF_IFA_NEXT", "in_ifaddr", "ifa_next"),
    field("OFF_IFA_ADDRESS", "in_ifaddr", "ifa_address"),
    field("OFF_IFA_MASK", "in_ifaddr", "ifa_mask"),
    field("OFF_IFA_BROADCAST", "in_ifaddr", "ifa_broadcast"),
    FIELDS_NETNS[0],
    FIELDS_NETNS[1],
    FIELDS_NETNS[2],
];

/// What the program for IPv4 tables reads where a lookup fails, to tell by the system
/// call whose it is. Registers have these names on x86-64 only; without them programs
/// at `sendmsg()` note every sender.
pub const FIELDS_CALL: [Field; 14] = [
    known("OFF_REGS_CALL", "pt_regs", "orig_ax"),
    known("OFF_REGS_FIRST", "pt_regs", "di"),
    known("OFF_REGS_SECOND", "pt_regs", "si"),
    known("OFF_REGS_THIRD", "pt_regs", "dx"),
    known("OFF_REGS_FIFTH", "pt_regs", "r8"),
    known("OFF_TASK_FILES", "task_struct", "files"),
    known("OFF_FILES_TABLE", "files_struct", "fdt"),
    known("OFF_TABLE_FILES", "fdtable", "fd"),
    known("OFF_TABLE_LEN", "fdtable", "max_fds"),
    known("OFF_FILE_DATA", "file", "private_data"),
    known("OFF_SOCKET_FILE", "socket", "file"),
    known("OFF_SOCKET_SK", "socket", "sk"),
    known("OFF_SK_PROTOCOL", "sock", "sk_protocol"),
    known("OFF_SK_NET", "sock", "__sk_common.skc_net.net"),
];

/// What the program for IPv6 tables reads.
pub const FIELDS_IPV6: [Field; 18] = [
    field("OFF_FL6_IIF", "flowi6", "__fl_common.flowic_iif"),
    field("OFF_FL6_PROTO", "flowi6", "__fl_common.flowic_proto"),
    field("OFF_FL6_SADDR", "flowi6", "saddr"),
    field("OFF_FL6_DADDR", "flowi6", "daddr"),
    field("OFF_NET_NULL6", "net", "ipv6.fib6_null_entry"),
    field("OFF_RES6_NH", "fib6_result", "nh"),
    field("OFF_RES6_F6I", "fib6_result", "f6i"),
    field("OFF_RES6_TYPE", "fib6_result", "fib6_type"),
    field("OFF_TB6_ID", "fib6_table", "tb6_id"),
    field("OFF_F6I_ADDR", "fib6_info", "fib6_dst.addr"),
    field("OFF_F6I_LEN", "fib6_info", "fib6_dst.plen"),
    field("OFF_NH6_COMMON", "fib6_nh", "nh_common"),
    field("OFF_NHC_DEV", "fib_nh_common", "nhc_dev"),
    field("OFF_NHC_GW_FAMILY", "fib_nh_common", "nhc_gw_family"),
    field("OFF_NHC_GW", "fib_nh_common", "nhc_gw"),
    FIELDS_NETNS[0],
    FIELDS_NETNS[1],
    FIELDS_NETNS[2],
];

/// What the program for dropped packets reads.
pub const FIELDS_DROP: [Field; 9] = [
    field("OFF_SKB_PROTOCOL", "sk_buff", "protocol"),
    field("OFF_SKB_DEV", "sk_buff", "dev"),
    field("OFF_SKB_HEAD", "sk_buff", "head"),
    field("OFF_SKB_NETWORK", "sk_buff", "network_header"),
    field("OFF_SKB_DST", "sk_buff", "_skb_refdst"),
    field("OFF_DST_ERROR", "dst_entry", "error"),
    FIELDS_NETNS[0],
    FIELDS_NETNS[1],
    FIELDS_NETNS[2],
];

/// What the program for received packets reads.
pub const FIELDS_RECEIVE: [Field; 2] = [
    field("OFF_SKB_PROTOCOL", "sk_buff", "protocol"),
    field("OFF_SKB_DATA", "sk_buff", "data"),
];

/// A reason for a drop that the programs know, and the global `u32` that holds
/// its number on this kernel ([`ABSENT`] where it has none).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DropReason {
    /// Name of the global.
    pub global: &'static str,
    /// Name of the enumerator, without `SKB_DROP_REASON_`.
    pub name: &'static str,
}

const fn reason(global: &'static str, name: &'static str) -> DropReason {
    DropReason { global, name }
}

/// Reasons by name: their numbers differ from kernel to kernel.
pub const DROP_REASONS: [DropReason; 8] = [
    reason("REASON_NOT_SPECIFIED", "NOT_SPECIFIED"),
    reason("REASON_INNOROUTES", "IP_INNOROUTES"),
    reason("REASON_INADDRERRORS", "IP_INADDRERRORS"),
    reason("REASON_RPFILTER", "IP_RPFILTER"),
    reason("REASON_LOCAL_SOURCE", "IP_LOCAL_SOURCE"),
    reason("REASON_INVALID_SOURCE", "IP_INVALID_SOURCE"),
    reason("REASON_LOCALNET", "IP_LOCALNET"),
    reason("REASON_INVALID_DEST", "IP_INVALID_DEST"),
];

/// IPv4: row 0 of [`Lookups::decisions`].
pub const FAMILY_IPV4: u32 = 0;
/// IPv6: row 1.
pub const FAMILY_IPV6: u32 = 1;
/// Number of families.
pub const FAMILIES: usize = 2;

/// A local sender asks: column 0 of [`Lookups::decisions`].
pub const ORIGIN_OUTPUT: u32 = 0;
/// A received packet that is for this namespace.
pub const ORIGIN_INPUT: u32 = 1;
/// A received packet that is for elsewhere.
pub const ORIGIN_FORWARD: u32 = 2;

/// No table has a route.
pub const CLASS_NO_ROUTE: u32 = 0;
/// An unreachable route, or a packet for elsewhere where forwarding is off.
pub const CLASS_UNREACHABLE: u32 = 1;
/// A blackhole route.
pub const CLASS_BLACKHOLE: u32 = 2;
/// A prohibit route.
pub const CLASS_PROHIBIT: u32 = 3;
/// The source of a received packet is not where it came from.
pub const CLASS_RP_FILTER: u32 = 4;
/// An address that a packet must not have.
pub const CLASS_MARTIAN: u32 = 5;

/// Decisions of one namespace, on one CPU. Sums over CPUs are the truth: what
/// one has counted, another may take back, so a single one may wrap below 0.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lookups {
    /// By family, then by origin, failed ones included. There is room for one more
    /// origin.
    pub decisions: [[u64; 4]; FAMILIES],
    /// The failed ones of them.
    pub failed: [[u64; 4]; FAMILIES],
    /// Failed ones, by class. There is room for two more.
    pub classes: [u64; 8],
}

impl Lookups {
    /// Adds what another CPU counted.
    pub fn add(&mut self, other: &Self) {
        let rows = self.decisions.iter_mut().chain(&mut self.failed);
        let others = other.decisions.iter().chain(&other.failed);
        let of_rows = rows.flatten().zip(others.flatten());
        for (sum, more) in of_rows.chain(self.classes.iter_mut().zip(&other.classes)) {
            *sum = sum.wrapping_add(*more);
        }
    }
}

/// Decisions of one namespace and family on one CPU that have not been added to
/// its [`Lookups`], and never will be: what a namespace has is the sum of both.
///
/// An entry belongs to whom its cookie names, and to nobody where that is 0. The
/// program of its family and CPU takes it for the namespace that first wants it, and
/// alone adds to it; user space gives it back when the namespace has ended.
/// Namespaces that find theirs taken count in [`Lookups`], which takes longer.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Whose it is.
    pub cookie: u64,
    /// By origin, failed ones included.
    pub decisions: [u64; 4],
}

/// Entries for each CPU and family.
pub const TALLIES: u32 = 1024;

/// How many tallies there are on `cpus` CPUs.
#[must_use]
pub const fn tallies(cpus: u32) -> u32 {
    cpus * FAMILIES as u32 * TALLIES
}

/// Where `cpu` has the tally of the namespace `cookie`, unless it is another's.
#[inline(always)]
#[must_use]
pub const fn tally_index(cpu: u32, family: u32, cookie: u64) -> u32 {
    (cpu * FAMILIES as u32 + family) * TALLIES + spread(cookie, TALLIES)
}

/// The family that the tally at `index` is of.
#[must_use]
pub const fn tally_family(index: u32) -> u32 {
    index / TALLIES % FAMILIES as u32
}

/// Prefix length of a [`HitKey`] whose `destination` is an address that was
/// looked up: the kernel does not tell the prefix that matched.
pub const PREFIX_UNKNOWN: u8 = 255;
/// `flags` of a [`HitKey`]: no route matched, and the kernel took the
/// interface that the socket is bound to.
pub const HIT_IMPLICIT: u8 = 1;
/// `flags` of a [`HitKey`]: `gateway` is an IPv6 address.
pub const HIT_GATEWAY6: u8 = 2;

/// What a decision ended with.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct HitKey {
    /// Cookie of the namespace.
    pub cookie: u64,
    /// IPv4: the address that was looked up, in the first four bytes. IPv6: the
    /// route's prefix.
    pub destination: [u8; 16],
    /// The next hop, all 0 for none; IPv4 in the first four bytes.
    pub gateway: [u8; 16],
    /// The table that was visited, 0 for unknown. IPv4 reads the local table
    /// through the main one until a namespace first has a rule, so that main may
    /// stand for either.
    pub table: u32,
    /// Index of the interface, 0 for none.
    pub ifindex: u32,
    /// `FAMILY_*`.
    pub family: u8,
    /// `ORIGIN_*`.
    pub origin: u8,
    /// `RTN_*`, 0 for unknown.
    pub route_type: u8,
    /// IPv6: the route's prefix length. IPv4: [`PREFIX_UNKNOWN`].
    pub prefix_len: u8,
    /// `HIT_*`.
    pub flags: u8,
    /// Always 0.
    pub reserved: [u8; 3],
}

/// A failed decision.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FailureKey {
    /// Cookie of the namespace, 0 for unattributed.
    pub cookie: u64,
    /// What was looked up; IPv4 in the first four bytes.
    pub destination: [u8; 16],
    /// The kernel's number for the reason of the drop, 0 where nothing was
    /// dropped.
    pub reason: u32,
    /// `FAMILY_*`.
    pub family: u8,
    /// `ORIGIN_*`.
    pub origin: u8,
    /// `CLASS_*`.
    pub class: u8,
    /// Always 0.
    pub reserved: u8,
}

/// Who is about to look a route up, by thread.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sender {
    /// Cookie of the socket's namespace.
    pub cookie: u64,
    /// Where to, an IPv4 address in the first four bytes.
    pub destination: [u8; 16],
    /// When, by the monotonic clock, in nanoseconds.
    pub at_ns: u64,
}

/// Who sends through the host: a source address behind one of its interfaces.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct BehalfKey {
    /// Source address; IPv4 in the first four bytes.
    pub source: [u8; 16],
    /// Index of the interface that the packet came in by, in our namespace.
    pub ifindex: u32,
    /// `FAMILY_*`; [`FAMILY_FORMER`] where `source` begins with a cookie and the
    /// count is of addresses that the namespace no longer has.
    pub family: u32,
}

/// [`BehalfKey::family`] of what programs never meet.
pub const FAMILY_FORMER: u32 = 2;

/// How much was looked up for a source.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Behalf {
    /// Decisions.
    pub count: u64,
    /// Cookie of the namespace that has the address, 0 for unknown.
    pub owner: u64,
}

/// What one CPU has counted for a source; what was looked up for it is the sum of
/// these and of its [`Behalf`]. An entry is nobody's where the interface is 0; for the
/// rest see [`Tally`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BehalfTally {
    /// Whose it is.
    pub key: BehalfKey,
    /// Decisions.
    pub count: u64,
}

/// Entries for each CPU and family.
pub const BEHALF_TALLIES: u32 = 512;

/// How many there are on `cpus` CPUs.
#[must_use]
pub const fn behalf_tallies(cpus: u32) -> u32 {
    cpus * FAMILIES as u32 * BEHALF_TALLIES
}

/// Where `cpu` has the tally of a source, the address of which is `source` in two
/// words, behind the interface `ifindex`, unless it is another's.
#[inline(always)]
#[must_use]
pub const fn behalf_index(cpu: u32, family: u32, source: [u64; 2], ifindex: u32) -> u32 {
    let all = source[0] ^ source[1].rotate_left(32) ^ (ifindex as u64).rotate_left(48);
    (cpu * FAMILIES as u32 + family) * BEHALF_TALLIES + spread(all, BEHALF_TALLIES)
}

/// One of `places`, a power of two, by the golden ratio: for numbers in a row, which
/// cookies and addresses often are, most are others.
#[inline(always)]
const fn spread(number: u64, places: u32) -> u32 {
    (number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - places.ilog2())) as u32
}

/// An ARP request whose lookup may be yet to come.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ArpNote {
    /// [`Work::received`] when it came; 0 for none.
    pub at: u64,
    /// Who asks.
    pub sender: u32,
    /// For whom.
    pub target: u32,
}

/// A flow whose lookup may go on with another table.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowNote {
    /// Its address, on the stack of whoever looks it up.
    pub flow: u64,
    /// [`Work::received`] at its first visit.
    pub at: u64,
    /// Its destination, folded.
    pub destination: u32,
    /// Its input interface.
    pub iif: u32,
    /// The table that it visited first.
    pub table: u32,
    /// `STATE_*`: what was counted for it.
    pub state: u32,
    /// The namespace that it was counted for.
    pub cookie: u64,
    /// The origin.
    pub origin: u64,
    /// The route that it met, where routes are counted.
    pub hit: HitKey,
    /// How it failed.
    pub failure: FailureKey,
}

/// A destination on the link of a device that is no broadcast address there.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostNote {
    /// Cookie of the device's namespace.
    pub cookie: u64,
    /// Its address.
    pub device: u64,
    /// The destination.
    pub destination: u32,
    /// The kernel's count of changes of addresses in that namespace.
    pub addresses: u32,
}

/// Destinations that are remembered.
pub const HOST_NOTES: usize = 256;

/// ARP requests that are remembered: a driver may hand over several at once.
pub const ARP_NOTES: usize = 4;
/// Flows that are remembered: a packet that comes in may interrupt the lookup of a
/// local sender.
pub const FLOW_NOTES: usize = 4;

/// What is under way on this CPU. User space has no use for it. What every packet
/// needs is in front, close together.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Work {
    /// Packets that were received.
    pub received: u64,
    /// By family, a pointer on its way to becoming a number.
    pub numbers: [u64; FAMILIES],
    /// [`received`](Self::received) when the last ARP request came.
    pub arp_at: u64,
    /// The flow that ARP is looking up.
    pub arp_flow: u64,
    /// The flow of the last received packet that was looked up.
    pub input_flow: u64,
    /// The flow of the check of its source.
    pub check_flow: u64,
    /// [`received`](Self::received) at that time.
    pub input_at: u64,
    /// Its IPv4 source.
    pub input_source: u32,
    /// Its destination.
    pub input_destination: u32,
    /// Protocol of that lookup: 0 unless rules ask for ports.
    pub input_protocol: u32,
    /// Its origin plus one; 0 for none, or not counted.
    pub input_counted: u32,
    /// By family, for each has its program; then by a hash of the flow's address.
    pub flows: [[FlowNote; FLOW_NOTES]; FAMILIES],
    /// By a hash of the destination.
    pub hosts: [HostNote; HOST_NOTES],
    /// ARP requests, the oldest one next to be replaced.
    pub arp: [ArpNote; ARP_NOTES],
    /// Where the next one goes.
    pub arp_next: u64,
}

/// [`FlowNote::state`]: nothing was counted.
pub const STATE_OPEN: u32 = 0;
/// [`FlowNote::state`]: a hit was counted.
pub const STATE_HIT: u32 = 1;
/// [`FlowNote::state`]: a failure was counted.
pub const STATE_FAILED: u32 = 2;
/// [`FlowNote::state`]: both were counted, of a route that rejects.
pub const STATE_REJECTED: u32 = 3;

/// Decisions that are in no namespace's account, and what did not fit.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Astray {
    /// Decisions whose namespace could not be told.
    pub lookups: u64,
    /// Those of them that failed.
    pub failed: u64,
    /// Decisions of namespaces that found no room in [`names::MAP_LOOKUPS`].
    pub lookups_full: u64,
    /// Hits that found no room in [`names::MAP_HITS`].
    pub hits_full: u64,
}

const _: () = {
    assert!(size_of::<Lookups>() == 192);
    assert!(offset_of!(Lookups, failed) == 64);
    assert!(offset_of!(Lookups, classes) == 128);
    assert!(size_of::<HitKey>() == 56);
    assert!(offset_of!(HitKey, family) == 48);
    assert!(size_of::<FailureKey>() == 32);
    assert!(size_of::<Sender>() == 32);
    assert!(size_of::<BehalfKey>() == 24);
    assert!(size_of::<Behalf>() == 16);
    assert!(offset_of!(Behalf, count) == 0);
    assert!(size_of::<BehalfTally>() == 32);
    assert!(offset_of!(BehalfTally, count) == 24);
    assert!(size_of::<Astray>() == 32);
    assert!(size_of::<ArpNote>() == 16);
    assert!(size_of::<FlowNote>() == 136);
    assert!(size_of::<Tally>() == 40);
    assert!(size_of::<Work>() == 8 * 8 + 16 + 2 * 4 * 136 + 256 * 24 + 64 + 8);
};
