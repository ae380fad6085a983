//! Traffic of known size, counted exactly: per class and direction, and equal
//! to what the kernel counted on the interface.

mod common;

use std::{
    collections::BTreeMap,
    io::Read as _,
    net::{Ipv6Addr, Shutdown, SocketAddr, SocketAddrV6, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd as _,
};

use common::{Link, Rest, Watch, count, grown, growth, inside, ping, quiet_pair};
use netobs_tests::{Lab, Netns, QdiscStats};
use nix::{
    net::if_::if_nametoindex,
    sys::socket::{
        AddressFamily, MsgFlags, SockFlag, SockType, SockaddrLike as _, SockaddrStorage, socket,
    },
};

type Growth = BTreeMap<String, u64>;

/// The two namespaces, watched.
struct Pair {
    // Before the lab: a lab cannot end while somebody waits for its processes.
    watch: Watch,
    lab: Lab,
    last: Rest,
}

impl Pair {
    fn new() -> anyhow::Result<Self> {
        let lab = Lab::new()?;
        quiet_pair(&lab)?;
        // So that `before_attach` is not nothing.
        ping(&lab, &a(), "10.9.0.2", &["-c3"])?;
        let mut watch = Watch::start(&lab, &[])?;
        let last = watch.at_rest(&lab, &links())?;
        last.reconciles();
        Ok(Self { lab, watch, last })
    }

    /// What `work` made `a` send and receive. `b` has to have seen the same
    /// from its side, and the kernel too.
    #[track_caller]
    fn counted(
        &mut self,
        work: impl FnOnce(&Lab) -> anyhow::Result<()>,
    ) -> anyhow::Result<(Growth, Growth)> {
        work(&self.lab)?;
        let rest = self.watch.at_rest(&self.lab, &links())?;
        rest.reconciles();
        let grew = |row, direction| {
            growth(
                self.last.counters(row, direction),
                rest.counters(row, direction),
            )
        };
        let (sent, received) = (grew("a", "tx"), grew("a", "rx"));
        assert_eq!(sent, grew("b", "rx"), "what a sent, b received");
        assert_eq!(received, grew("b", "tx"), "what a received, b sent");
        self.last = rest;
        Ok((sent, received))
    }
}

fn a() -> Netns {
    Netns::Named("a".to_owned())
}

fn b() -> Netns {
    Netns::Named("b".to_owned())
}

fn links() -> [Link<'static>; 2] {
    [Link::named("a", "eth0"), Link::named("b", "eth0")]
}

/// Sends datagrams of `size` bytes from `a`.
fn send(lab: &Lab, from: &str, to: SocketAddr, size: usize, times: u64) -> anyhow::Result<()> {
    inside(lab, &a(), || {
        let socket = UdpSocket::bind(from)?;
        socket.set_broadcast(true)?;
        for _ in 0..times {
            socket.send_to(&vec![0; size], to)?;
        }
        Ok(())
    })
}

#[test]
fn pings_and_their_fragments_are_icmp_in_both_directions() -> anyhow::Result<()> {
    let mut pair = Pair::new()?;

    // Ethernet 14, IPv4 20, ICMP 8, payload 56.
    let (sent, received) = pair.counted(|lab| ping(lab, &a(), "10.9.0.2", &["-c5"]))?;
    assert_eq!(sent, grown(&[("ipv4/icmp", 5, 5 * 98)], &[]));
    assert_eq!(received, sent);

    // IPv6 has 20 bytes more.
    let (sent, received) = pair.counted(|lab| ping(lab, &a(), "fd09::2", &["-c4"]))?;
    assert_eq!(sent, grown(&[("ipv6/icmp", 4, 4 * 118)], &[]));
    assert_eq!(received, sent);

    // 4008 bytes of ICMP at an MTU of 1500 are 1480 + 1480 + 1048, each with
    // 34 bytes of headers; the class follows the protocol in every fragment.
    let big = ["-c2", "-s4000"];
    let (sent, received) = pair.counted(|lab| ping(lab, &a(), "10.9.0.2", &big))?;
    let bytes = 4008 + 3 * 34;
    let fragments = [("fragments", 6)];
    assert_eq!(sent, grown(&[("ipv4/icmp", 6, 2 * bytes)], &fragments));
    assert_eq!(received, sent);

    // 1448 + 1448 + 1112, behind a fragment header of 8 bytes.
    let (sent, received) = pair.counted(|lab| ping(lab, &a(), "fd09::2", &big))?;
    let bytes = 4008 + 3 * 62;
    assert_eq!(sent, grown(&[("ipv6/icmp", 6, 2 * bytes)], &fragments));
    assert_eq!(received, sent);

    pair.watch.end()?;
    Ok(())
}

#[test]
fn datagrams_are_udp_and_broadcast_and_multicast_are_told_apart() -> anyhow::Result<()> {
    let mut pair = Pair::new()?;
    let sinks = inside(&pair.lab, &b(), || {
        Ok((
            UdpSocket::bind("0.0.0.0:7000")?,
            UdpSocket::bind("[::]:7001")?,
        ))
    })?;

    let to: SocketAddr = "10.9.0.2:7000".parse()?;
    let (sent, received) = pair.counted(|lab| send(lab, "0.0.0.0:0", to, 100, 7))?;
    assert_eq!(sent, grown(&[("ipv4/udp", 7, 7 * 142)], &[]));
    assert_eq!(received, Growth::new());

    let to: SocketAddr = "[fd09::2]:7001".parse()?;
    let (sent, received) = pair.counted(|lab| send(lab, "[::]:0", to, 100, 3))?;
    assert_eq!(sent, grown(&[("ipv6/udp", 3, 3 * 162)], &[]));
    assert_eq!(received, Growth::new());

    // Nobody listens: the answer is ICMP and carries the datagram back.
    let to: SocketAddr = "10.9.0.2:9".parse()?;
    let (sent, received) = pair.counted(|lab| send(lab, "0.0.0.0:0", to, 100, 1))?;
    assert_eq!(sent, grown(&[("ipv4/udp", 1, 142)], &[]));
    assert_eq!(received, grown(&[("ipv4/icmp", 1, 142 + 28)], &[]));

    let to: SocketAddr = "10.9.0.255:7000".parse()?;
    let (sent, received) = pair.counted(|lab| send(lab, "0.0.0.0:0", to, 10, 2))?;
    assert_eq!(sent, grown(&[("ipv4/udp", 2, 2 * 52)], &[("broadcast", 2)]));
    assert_eq!(received, Growth::new());

    let to: SocketAddr = "239.1.2.3:7000".parse()?;
    let (sent, received) = pair.counted(|lab| send(lab, "0.0.0.0:0", to, 10, 4))?;
    assert_eq!(sent, grown(&[("ipv4/udp", 4, 4 * 52)], &[("multicast", 4)]));
    assert_eq!(received, Growth::new());

    let scope = inside(&pair.lab, &a(), || Ok(if_nametoindex("eth0")?))?;
    let group: Ipv6Addr = "ff02::4242".parse()?;
    let to = SocketAddrV6::new(group, 7001, 0, scope).into();
    let (sent, received) = pair.counted(|lab| send(lab, "[::]:0", to, 10, 5))?;
    assert_eq!(sent, grown(&[("ipv6/udp", 5, 5 * 72)], &[("multicast", 5)]));
    assert_eq!(received, Growth::new());

    drop(sinks);
    pair.watch.end()?;
    Ok(())
}

#[test]
fn connections_show_their_syn_fin_and_rst() -> anyhow::Result<()> {
    let mut pair = Pair::new()?;

    // Nobody listens: a SYN with 20 bytes of options, and a bare RST.
    for (to, header, class) in [
        ("10.9.0.2:9", 34, "ipv4/tcp"),
        ("[fd09::2]:9", 54, "ipv6/tcp"),
    ] {
        let (sent, received) = pair.counted(|lab| {
            inside(lab, &a(), || {
                assert!(TcpStream::connect(to).is_err());
                Ok(())
            })
        })?;
        let syn = [("tcp_flags/syn", 1)];
        assert_eq!(sent, grown(&[(class, 1, header + 40)], &syn));
        let rst = [("tcp_flags/rst", 1)];
        assert_eq!(received, grown(&[(class, 1, header + 20)], &rst));
    }

    // Opened and closed by both sides. How many bare acknowledgements there
    // are is up to the kernel; the flags are not.
    for (listen, class) in [
        ("10.9.0.2:7000", "/ipv4/tcp/packets"),
        ("[fd09::2]:7000", "/ipv6/tcp/packets"),
    ] {
        let listener = inside(&pair.lab, &b(), || Ok(TcpListener::bind(listen)?))?;
        let (sent, received) = pair.counted(|lab| {
            let mut stream = inside(lab, &a(), || Ok(TcpStream::connect(listen)?))?;
            let (mut accepted, _) = listener.accept()?;
            stream.shutdown(Shutdown::Write)?;
            accepted.read_to_end(&mut Vec::new())?;
            drop(accepted);
            stream.read_to_end(&mut Vec::new())?;
            Ok(())
        })?;
        for side in [&sent, &received] {
            // SYN-ACK counts too.
            assert_eq!(side.get("/tcp_flags/syn"), Some(&1));
            assert_eq!(side.get("/tcp_flags/fin"), Some(&1));
            assert_eq!(side.get("/tcp_flags/rst"), None);
            assert_eq!(side.get(class), side.get("/packets"));
        }
    }

    pair.watch.end()?;
    Ok(())
}

#[test]
fn arp_and_tagged_frames_have_their_class() -> anyhow::Result<()> {
    let mut pair = Pair::new()?;

    // 14 + 28 bytes. The first question goes to everybody, the second one to
    // who answered.
    let (sent, received) = pair.counted(|lab| {
        let args = ["arping", "-q", "-c2", "-w9", "-I", "eth0", "10.9.0.2"];
        lab.command_in(&a(), "busybox").args(args).text()?;
        Ok(())
    })?;
    assert_eq!(sent, grown(&[("arp", 2, 84)], &[("broadcast", 1)]));
    assert_eq!(received, grown(&[("arp", 2, 84)], &[]));

    // A tag does not hide what it carries, and neither do two; and whatever
    // is no IP and no ARP is `other`. Bytes are left out: the tag is part of
    // the data on one side of the wire only.
    let inner = [&[0x08, 0x00][..], &datagram()].concat();
    let tagged = [&[0x81, 0x00, 0x00, 0x07][..], &inner].concat();
    let twice = [&[0x88, 0xa8, 0x00, 0x05][..], &tagged].concat();
    let unknown = [&[0x88, 0xb5][..], &[0; 50]].concat();
    for (frame, class) in [
        (inner, "/ipv4/udp/packets"),
        (tagged, "/ipv4/udp/packets"),
        (twice, "/ipv4/udp/packets"),
        (unknown, "/other/packets"),
    ] {
        raw(&pair.lab, &frame)?;
        let rest = pair.watch.at_rest(&pair.lab, &links())?;
        for (row, direction) in [("a", "tx"), ("b", "rx")] {
            let before = pair.last.counters(row, direction);
            let mut grew = growth(before, rest.counters(row, direction));
            grew.retain(|path, _| path.ends_with("/packets"));
            let expected = [("/packets", 1), (class, 1)];
            let expected = expected.map(|(path, n)| (path.to_owned(), n));
            assert_eq!(grew, Growth::from(expected), "{row} {direction} {frame:x?}");
        }
        pair.last = rest;
    }

    pair.watch.end()?;
    Ok(())
}

/// An IPv4 datagram from 10.9.0.1 to 10.9.0.2 with 20 bytes of payload.
fn datagram() -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 48, 0, 0, 0, 0, 64, 17, 0x66, 0xa9];
    packet.extend([10, 9, 0, 1, 10, 9, 0, 2]);
    // The wrong checksum keeps anybody from answering.
    packet.extend([0x1b, 0x58, 0x1b, 0x58, 0, 28, 0, 1]);
    packet.extend([0; 20]);
    packet
}

/// Sends a frame as it is from `a` to `b`: there need be no VLAN devices.
fn raw(lab: &Lab, from_ethertype: &[u8]) -> anyhow::Result<()> {
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
    frame.extend(from_ethertype);
    inside(lab, &a(), || {
        let flags = SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Packet, SockType::Raw, flags, None)?;
        let link = nix::ifaddrs::getifaddrs()?
            .filter(|entry| entry.interface_name == "eth0")
            .filter_map(|entry| entry.address)
            .find_map(|address: SockaddrStorage| address.as_link_addr().copied());
        let link = link.expect("the address of eth0");
        assert_eq!(link.family(), Some(AddressFamily::Packet));
        let sent = nix::sys::socket::sendto(socket.as_raw_fd(), &frame, &link, MsgFlags::empty())?;
        assert_eq!(sent, frame.len());
        Ok(())
    })
}

/// Bytes and packets of a qdisc that counts what passes it.
#[track_caller]
fn passed(lab: &Lab, netns: &Netns, ifname: &str) -> anyhow::Result<QdiscStats> {
    let all = lab.qdisc_stats(netns, ifname)?;
    let found = all.into_iter().find(|qdisc| qdisc.kind == "pfifo");
    Ok(found.expect("the pfifo"))
}

/// Big TCP segments travel as one skb until the wire: `packets` and `bytes`
/// are skbs, as the interface counters have them, while `segments` and
/// `wire_bytes` are what will be on the wire, as a queueing discipline has
/// them.
///
/// Which qdisc compares one to one: on the way out of a namespace the skb
/// passes the qdisc of the `eth0` inside, then the pair, then our hook on the
/// host end (TC ingress, which comes before any other reader): the namespace's
/// tx is that inner qdisc. On the way in it passes our hook on the host end
/// first (TC egress) and the host end's own qdisc right after it: the
/// namespace's rx is that one. A veth cuts nothing in between.
#[test]
fn big_segments_are_counted_as_skbs_and_as_packets_on_the_wire() -> anyhow::Result<()> {
    let mut pair = Pair::new()?;
    let places = [
        ("a", "tx", a(), "eth0"),
        ("a", "rx", Netns::Host, "va"),
        ("b", "tx", b(), "eth0"),
        ("b", "rx", Netns::Host, "vb"),
    ];
    for (_, _, netns, ifname) in &places {
        let args = [
            "qdisc", "add", "dev", ifname, "root", "pfifo", "limit", "10000",
        ];
        pair.lab.command_in(netns, "tc").args(args).text()?;
    }

    for (to, family) in [("10.9.0.2", "ipv4"), ("fd09::2", "ipv6")] {
        let before = pair.last;
        let mut qdiscs = Vec::new();
        for (_, _, netns, ifname) in &places {
            qdiscs.push(passed(&pair.lab, netns, ifname)?);
        }
        let mut server = pair
            .lab
            .command_in(&b(), "iperf3")
            .args(["--server", "--one-off", "--forceflush"])
            .start()?;
        server.wait_stdout(common::SOON, |line| line.contains("listening"))?;
        let client = ["--client", to, "--bytes", "100M"];
        pair.lab.command_in(&a(), "iperf3").args(client).text()?;
        server.wait(common::SOON)?.success()?;

        let rest = pair.watch.at_rest(&pair.lab, &links())?;
        rest.reconciles();
        for ((row, direction, netns, ifname), before_qdisc) in places.iter().zip(qdiscs) {
            let after_qdisc = passed(&pair.lab, netns, ifname)?;
            let (old, new) = (
                before.counters(row, direction),
                rest.counters(row, direction),
            );
            let grew = |key| count(new, key) - count(old, key);
            let what = format!("{family} {row} {direction}");
            assert_eq!(
                grew("segments"),
                after_qdisc.packets - before_qdisc.packets,
                "segments, {what}"
            );
            assert_eq!(
                grew("wire_bytes"),
                after_qdisc.bytes - before_qdisc.bytes,
                "wire bytes, {what}"
            );
            let tcp = |counters: &serde_json::Value| count(&counters[family]["tcp"], "segments");
            assert_eq!(tcp(new) - tcp(old), grew("segments"), "all is TCP, {what}");
            if (*row, *direction) == ("a", "tx") {
                // 100 MiB in segments of at most 1500 bytes.
                assert!(grew("segments") > 104_857_600 / 1500, "{what}");
                assert!(
                    grew("segments") > grew("packets"),
                    "nothing was big: {what}"
                );
                assert!(grew("wire_bytes") > grew("bytes"), "{what}");
            }
        }
        pair.last = rest;
    }
    pair.watch.end()?;
    Ok(())
}
