//! What a frame is, by etherparse; and frames to ask about.

#![allow(
    dead_code,
    clippy::allow_attributes,
    reason = "each test binary uses a part"
)]

use etherparse::{
    EtherType, Ethernet2HeaderSlice, IpAuthHeaderSlice, IpNumber, Ipv4HeaderSlice,
    Ipv6FragmentHeaderSlice, Ipv6HeaderSlice, Ipv6RawExtHeaderSlice, PacketBuilder,
    SingleVlanHeaderSlice, TcpHeaderSlice,
};

/// Tags in the data that are followed; deeper ones leave a frame in `Other`.
const MAX_TAGS: usize = 4;
/// Extension headers that are followed.
const MAX_EXTENSIONS: usize = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Class {
    Ipv4Tcp,
    Ipv4Udp,
    Ipv4Icmp,
    Ipv4Other,
    Ipv6Tcp,
    Ipv6Udp,
    Ipv6Icmp,
    Ipv6Other,
    Arp,
    Other,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Expect {
    pub(crate) class: Class,
    pub(crate) syn: bool,
    pub(crate) fin: bool,
    pub(crate) rst: bool,
    pub(crate) broadcast: bool,
    pub(crate) multicast: bool,
    pub(crate) fragment: bool,
    /// A header ends before its length; only to know that such came up.
    pub(crate) cut: bool,
}

impl Expect {
    fn of(class: Class) -> Self {
        Self {
            class,
            syn: false,
            fin: false,
            rst: false,
            broadcast: false,
            multicast: false,
            fragment: false,
            cut: false,
        }
    }

    fn cut(class: Class) -> Self {
        Self {
            cut: true,
            ..Self::of(class)
        }
    }
}

/// Reads an Ethernet frame.
pub(crate) fn read(frame: &[u8]) -> Expect {
    let Ok(ethernet) = Ethernet2HeaderSlice::from_slice(frame) else {
        return Expect::cut(Class::Other);
    };
    let destination = ethernet.destination();
    let broadcast = destination == [0xff; 6];
    let multicast = destination[0] & 1 == 1 && !broadcast;
    let mut expect = network(ethernet.ether_type(), &frame[14..]);
    expect.broadcast = broadcast;
    expect.multicast = multicast;
    expect
}

fn network(mut ethertype: EtherType, mut rest: &[u8]) -> Expect {
    const TAGS: [EtherType; 3] = [
        EtherType::VLAN_TAGGED_FRAME,
        EtherType::PROVIDER_BRIDGING,
        EtherType::VLAN_DOUBLE_TAGGED_FRAME,
    ];
    let mut tags = 0;
    while TAGS.contains(&ethertype) && tags < MAX_TAGS {
        let Ok(tag) = SingleVlanHeaderSlice::from_slice(rest) else {
            return Expect::cut(Class::Other);
        };
        ethertype = tag.ether_type();
        rest = &rest[4..];
        tags += 1;
    }
    match ethertype {
        EtherType::IPV4 => ipv4(rest),
        EtherType::IPV6 => ipv6(rest),
        EtherType::ARP => Expect::of(Class::Arp),
        _ => Expect::of(Class::Other),
    }
}

fn ipv4(rest: &[u8]) -> Expect {
    let Ok(header) = Ipv4HeaderSlice::from_slice(rest) else {
        return Expect::cut(Class::Ipv4Other);
    };
    let protocol = header.protocol();
    let class = match protocol {
        IpNumber::TCP => Class::Ipv4Tcp,
        IpNumber::UDP => Class::Ipv4Udp,
        IpNumber::ICMP => Class::Ipv4Icmp,
        _ => Class::Ipv4Other,
    };
    let mut expect = Expect {
        fragment: header.is_fragmenting_payload(),
        ..Expect::of(class)
    };
    if protocol == IpNumber::TCP && header.fragments_offset().value() == 0 {
        tcp(&rest[header.slice().len()..], &mut expect);
    }
    expect
}

fn is_extension(next: IpNumber) -> bool {
    next == IpNumber::IPV6_FRAGMENTATION_HEADER
        || next == IpNumber::AUTHENTICATION_HEADER
        || Ipv6RawExtHeaderSlice::header_type_supported(next)
}

fn ipv6(mut rest: &[u8]) -> Expect {
    let Ok(header) = Ipv6HeaderSlice::from_slice(rest) else {
        return Expect::cut(Class::Ipv6Other);
    };
    rest = &rest[40..];
    let mut next = header.next_header();
    let mut fragment = false;
    for _ in 0..MAX_EXTENSIONS {
        let cut = Expect {
            fragment,
            ..Expect::cut(Class::Ipv6Other)
        };
        if next == IpNumber::IPV6_FRAGMENTATION_HEADER {
            let Ok(extension) = Ipv6FragmentHeaderSlice::from_slice(rest) else {
                return cut;
            };
            fragment |= extension.is_fragmenting_payload();
            next = extension.next_header();
            rest = &rest[8..];
            if extension.fragment_offset().value() != 0 {
                // Later fragments start with payload, whatever is named.
                let class = if is_extension(next) {
                    Class::Ipv6Other
                } else {
                    upper(next)
                };
                return Expect {
                    fragment,
                    ..Expect::of(class)
                };
            }
        } else if next == IpNumber::AUTHENTICATION_HEADER {
            // A zero length field, which etherparse refuses, still is a
            // header of eight bytes.
            let length = match IpAuthHeaderSlice::from_slice(rest) {
                Ok(extension) => extension.slice().len(),
                Err(_) if rest.len() >= 8 && rest[1] == 0 => 8,
                Err(_) => return cut,
            };
            next = IpNumber(rest[0]);
            rest = &rest[length..];
        } else if Ipv6RawExtHeaderSlice::header_type_supported(next) {
            let Ok(extension) = Ipv6RawExtHeaderSlice::from_slice(rest) else {
                return cut;
            };
            next = extension.next_header();
            rest = &rest[extension.slice().len()..];
        } else {
            break;
        }
    }
    let class = if is_extension(next) {
        Class::Ipv6Other
    } else {
        upper(next)
    };
    let mut expect = Expect {
        fragment,
        ..Expect::of(class)
    };
    if next == IpNumber::TCP {
        tcp(rest, &mut expect);
    }
    expect
}

fn upper(next: IpNumber) -> Class {
    match next {
        IpNumber::TCP => Class::Ipv6Tcp,
        IpNumber::UDP => Class::Ipv6Udp,
        IpNumber::IPV6_ICMP => Class::Ipv6Icmp,
        _ => Class::Ipv6Other,
    }
}

/// The flags are there as soon as their byte is, even where etherparse misses
/// the rest of the header.
fn tcp(rest: &[u8], expect: &mut Expect) {
    let Some(flags) = rest.get(13) else {
        expect.cut = true;
        return;
    };
    expect.fin = flags & 1 != 0;
    expect.syn = flags & 2 != 0;
    expect.rst = flags & 4 != 0;
    if let Ok(header) = TcpHeaderSlice::from_slice(rest) {
        assert_eq!(
            (expect.fin, expect.syn, expect.rst),
            (header.fin(), header.syn(), header.rst())
        );
    }
}

const UNICAST: [u8; 6] = [2, 0, 0, 0, 0, 1];
const SOURCE: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// A frame out of plausible parts, often damaged.
pub(crate) fn random_frame(random: &mut fastrand::Rng) -> Vec<u8> {
    if random.u8(..) < 8 {
        let length = random.usize(14..200);
        return (0..length).map(|_| random.u8(..)).collect();
    }
    let mut frame = Vec::new();
    match random.u8(0..6) {
        0 => frame.extend([0xff; 6]),
        1 => frame.extend([1, 0, 0x5e, 0, 0, random.u8(..)]),
        2 => frame.extend([0x33, 0x33, 0, 0, 0, random.u8(..)]),
        // Group bit set, all ones but for one bit.
        3 => frame.extend([0xff, 0xff, 0xff, 0xff, 0xff, 0xff ^ (1 << random.u8(0..8))]),
        _ => frame.extend(UNICAST),
    }
    frame.extend(SOURCE);
    let tags = if random.bool() { 0 } else { random.usize(0..7) };
    for _ in 0..tags {
        let tpid: u16 = [0x8100, 0x88a8, 0x9100][random.usize(0..3)];
        frame.extend(tpid.to_be_bytes());
        frame.extend(random.u16(..).to_be_bytes());
    }
    match random.u8(0..16) {
        0..7 => {
            frame.extend(0x0800u16.to_be_bytes());
            push_ipv4(random, &mut frame);
        }
        7..14 => {
            frame.extend(0x86ddu16.to_be_bytes());
            push_ipv6(random, &mut frame);
        }
        14 => {
            frame.extend(0x0806u16.to_be_bytes());
            frame.extend((0..28).map(|_| random.u8(..)));
        }
        _ => {
            frame.extend(random.u16(..).to_be_bytes());
            frame.extend((0..random.usize(0..64)).map(|_| random.u8(..)));
        }
    }
    match random.u8(0..8) {
        0 | 1 => frame.truncate(random.usize(14..=frame.len())),
        2 => {
            for _ in 0..random.usize(1..6) {
                let at = random.usize(..frame.len());
                frame[at] = random.u8(..);
            }
        }
        _ => {}
    }
    frame
}

fn push_ipv4(random: &mut fastrand::Rng, frame: &mut Vec<u8>) {
    let words = match random.u8(0..8) {
        0 => random.u8(0..5),
        1..4 => random.u8(6..16),
        _ => 5,
    };
    let protocol = [1, 6, 6, 17, 58, 2, 132, random.u8(..)][random.usize(0..8)];
    let fragment: u16 = match random.u8(0..8) {
        0 => 0x2000,
        1 => random.u16(1..0x2000),
        2 => 0x2000 | random.u16(1..0x2000),
        3 => 0x8000,
        _ => 0x4000,
    };
    let start = frame.len();
    frame.resize(start + usize::from(words.max(5)) * 4, 0);
    frame[start] = 0x40 | words;
    if random.u8(..) < 8 {
        frame[start] ^= random.u8(..) & 0xf0;
    }
    frame[start + 6..start + 8].copy_from_slice(&fragment.to_be_bytes());
    frame[start + 8] = 64;
    frame[start + 9] = protocol;
    push_transport(random, protocol, frame);
}

fn push_ipv6(random: &mut fastrand::Rng, frame: &mut Vec<u8>) {
    const EXTENSIONS: [u8; 8] = [0, 43, 44, 51, 60, 135, 139, 140];
    let count = if random.bool() {
        0
    } else {
        random.usize(0..11)
    };
    let chain: Vec<u8> = (0..count).map(|_| EXTENSIONS[random.usize(0..8)]).collect();
    let last = [6, 6, 17, 58, 1, 50, 59, random.u8(..)][random.usize(0..8)];
    let next = |at: usize| chain.get(at).copied().unwrap_or(last);
    let start = frame.len();
    frame.resize(start + 40, 0);
    frame[start] = 0x60;
    if random.u8(..) < 8 {
        frame[start] ^= random.u8(..) & 0xf0;
    }
    frame[start + 6] = next(0);
    frame[start + 7] = 64;
    for (at, kind) in chain.iter().enumerate() {
        let words = if random.bool() { 0 } else { random.u8(0..4) };
        let (length, field) = match kind {
            44 => (8, random.u8(..)),
            51 => ((usize::from(words) + 2) * 4, words),
            _ => ((usize::from(words) + 1) * 8, words),
        };
        let here = frame.len();
        frame.extend((0..length).map(|_| random.u8(..)));
        frame[here] = next(at + 1);
        frame[here + 1] = field;
        if *kind == 44 {
            let bits: u16 = match random.u8(0..4) {
                0 => 0,
                1 => 1,
                2 => random.u16(..),
                // The reserved bits mean nothing.
                _ => 6,
            };
            frame[here + 2..here + 4].copy_from_slice(&bits.to_be_bytes());
        }
    }
    push_transport(random, last, frame);
}

fn push_transport(random: &mut fastrand::Rng, protocol: u8, frame: &mut Vec<u8>) {
    let length = match protocol {
        6 => 20 + random.usize(0..20),
        17 => 8 + random.usize(0..20),
        _ => random.usize(0..40),
    };
    frame.extend((0..length).map(|_| random.u8(..)));
}

/// Frames that each stand for something.
pub(crate) fn hand_made() -> Vec<(&'static str, Vec<u8>, Class)> {
    let four = || PacketBuilder::ethernet2(SOURCE, UNICAST).ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64);
    let six = || PacketBuilder::ethernet2(SOURCE, UNICAST).ipv6([1; 16], [2; 16], 64);
    let mut frames = Vec::new();
    let mut add = |what, frame: Vec<u8>, class| frames.push((what, frame, class));

    let mut bytes = Vec::new();
    four().udp(1, 2).write(&mut bytes, b"hello").expect("a Vec");
    add("UDP over IPv4", bytes.clone(), Class::Ipv4Udp);
    add(
        "its MAC and EtherType alone",
        bytes[..14].to_vec(),
        Class::Ipv4Other,
    );
    add(
        "cut in the IPv4 header",
        bytes[..33].to_vec(),
        Class::Ipv4Other,
    );
    add(
        "cut behind the IPv4 header",
        bytes[..34].to_vec(),
        Class::Ipv4Udp,
    );
    let mut broadcast = bytes.clone();
    broadcast[..6].copy_from_slice(&[0xff; 6]);
    add("broadcast", broadcast, Class::Ipv4Udp);

    let mut bytes = Vec::new();
    four()
        .tcp(1, 2, 3, 4)
        .syn()
        .write(&mut bytes, &[])
        .expect("a Vec");
    add("SYN", bytes.clone(), Class::Ipv4Tcp);
    add("cut before the flags", bytes[..47].to_vec(), Class::Ipv4Tcp);
    add("cut behind the flags", bytes[..48].to_vec(), Class::Ipv4Tcp);
    let mut first = bytes.clone();
    first[20] |= 0x20;
    add("first fragment: flags count", first, Class::Ipv4Tcp);
    let mut later = bytes.clone();
    later[21] |= 1;
    add("later fragment: no flags", later, Class::Ipv4Tcp);

    let mut bytes = Vec::new();
    four()
        .icmpv4_echo_request(1, 2)
        .write(&mut bytes, b"ping")
        .expect("a Vec");
    add("ICMP", bytes, Class::Ipv4Icmp);

    let mut bytes = Vec::new();
    six()
        .tcp(1, 2, 3, 4)
        .rst()
        .fin()
        .write(&mut bytes, b"x")
        .expect("a Vec");
    add("TCP over IPv6", bytes.clone(), Class::Ipv6Tcp);
    add(
        "cut in the IPv6 header",
        bytes[..53].to_vec(),
        Class::Ipv6Other,
    );
    add(
        "cut behind the IPv6 header",
        bytes[..54].to_vec(),
        Class::Ipv6Tcp,
    );

    let mut bytes = Vec::new();
    six()
        .icmpv6_echo_request(1, 2)
        .write(&mut bytes, b"ping")
        .expect("a Vec");
    add("ICMPv6", bytes, Class::Ipv6Icmp);

    let mut bytes = Vec::new();
    PacketBuilder::ethernet2(SOURCE, UNICAST)
        .double_vlan(
            1.try_into().expect("12 bits"),
            2.try_into().expect("12 bits"),
        )
        .ipv6([1; 16], [2; 16], 64)
        .udp(1, 2)
        .write(&mut bytes, b"q")
        .expect("a Vec");
    add("QinQ", bytes, Class::Ipv6Udp);

    let mut arp = [0xff; 6].to_vec();
    arp.extend(SOURCE);
    arp.extend([8, 6]);
    arp.extend([0; 28]);
    add("ARP", arp.clone(), Class::Arp);
    let mut stp = vec![1, 0x80, 0xc2, 0, 0, 0];
    stp.extend(SOURCE);
    stp.extend([0, 38]);
    stp.extend([0; 38]);
    add("spanning tree: an 802.3 length", stp, Class::Other);
    frames
}

/// Frames with a payload and the length of the headers in front of it.
pub(crate) fn gso_frames() -> Vec<(&'static str, Vec<u8>, u64)> {
    let payload = [7; 1400];
    let mut frames = Vec::new();
    let four = || PacketBuilder::ethernet2(SOURCE, UNICAST).ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64);

    let mut bytes = Vec::new();
    four()
        .tcp(1, 2, 3, 4)
        .write(&mut bytes, &payload)
        .expect("a Vec");
    frames.push(("TCP over IPv4", bytes, 14 + 20 + 20));

    let mut bytes = Vec::new();
    four()
        .tcp(1, 2, 3, 4)
        .options(&[etherparse::TcpOptionElement::Timestamp(1, 2)])
        .expect("fits")
        .write(&mut bytes, &payload)
        .expect("a Vec");
    frames.push(("TCP with timestamps", bytes, 14 + 20 + 32));

    let mut bytes = Vec::new();
    PacketBuilder::ethernet2(SOURCE, UNICAST)
        .single_vlan(9.try_into().expect("12 bits"))
        .ipv6([1; 16], [2; 16], 64)
        .tcp(1, 2, 3, 4)
        .write(&mut bytes, &payload)
        .expect("a Vec");
    frames.push(("TCP over IPv6 with a tag", bytes, 18 + 40 + 20));

    let mut bytes = Vec::new();
    four().udp(1, 2).write(&mut bytes, &payload).expect("a Vec");
    frames.push(("UDP", bytes, 14 + 20 + 8));
    frames
}

/// A `struct __sk_buff` for BPF_PROG_TEST_RUN with `gso_segs` and `gso_size`.
/// <https://github.com/torvalds/linux/blob/v6.18/include/uapi/linux/bpf.h>
pub(crate) fn context_with_gso(segments: u16, size: u32) -> Vec<u8> {
    const GSO_SEGS: usize = 164;
    const GSO_SIZE: usize = 176;
    let mut context = vec![0; 192];
    context[GSO_SEGS..GSO_SEGS + 4].copy_from_slice(&u32::from(segments).to_ne_bytes());
    context[GSO_SIZE..GSO_SIZE + 4].copy_from_slice(&size.to_ne_bytes());
    context
}
