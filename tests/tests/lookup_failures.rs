//! Lookups that fail: which class, whose, and held against the kernel's own
//! counters. Nothing is sent to an address that is in no namespace of the lab:
//! local senders only connect, or have no route, and what a router cannot deliver is for an address
//! that exists, behind an interface that it has no route to.

mod common;
mod scene;

use std::{
    io::IoSlice,
    net::{SocketAddr, SocketAddrV4, TcpStream, UdpSocket},
    os::fd::AsRawFd as _,
};

use common::{inside, quiet_pair};
use netobs::bpf::lookups::{LookupPrograms, Settings};
use netobs_tests::{Lab, Netns};
use nix::{
    libc,
    sys::socket::{MsgFlags, MultiHeaders, SockaddrIn, sendmmsg, sendmsg},
};
use scene::{
    Scene, fail_to_connect, failed, forwarding, grown, named, quiet_netns, send_udp, snmp, snmp6,
};

/// Of each route type, for a connect, for datagrams and for TCP.
#[test]
fn local_senders_fail_by_class_in_both_families() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    quiet_pair(&lab)?;
    let mut prefixes = Vec::new();
    for (n, kind) in ["blackhole", "unreachable", "prohibit", "throw"]
        .iter()
        .enumerate()
    {
        lab.shell(&format!(
            "ip -n a route add {kind} 198.51.100.{n}/32
             ip -n a -6 route add {kind} 2001:db8:{n}::/48"
        ))?;
        prefixes.push(*kind);
    }
    let mut scene = Scene::new(&lab)?;
    let a = named("a");
    let classes = [
        ("blackhole", "198.51.100.0", "2001:db8:0::1"),
        ("unreachable", "198.51.100.1", "2001:db8:1::1"),
        ("prohibit", "198.51.100.2", "2001:db8:2::1"),
        // Thrown out of the only table, and not in it at all.
        ("no_route", "198.51.100.3", "2001:db8:3::1"),
        ("no_route", "203.0.113.1", "2001:db8:ffff::1"),
    ];
    for (class, four, six) in classes {
        let before = snmp(&lab, &a, "Ip", "OutNoRoutes")?;
        let seen =
            scene.counted(|| fail_to_connect(&lab, &a, "0.0.0.0:0", &format!("{four}:9")))?;
        assert_eq!(seen.of("a"), failed("ipv4/output", class, 1), "{four}");
        let failure = scene::failure(&scene.last, "a", four);
        assert_eq!(failure["class"], class);
        assert_eq!(failure["origin"], "output");
        assert_eq!(failure["count"], 1);
        assert_eq!(failure["reason"], serde_json::Value::Null);
        if class != "no_route" {
            assert_eq!(seen.hits("a", &format!("{four}/32")), 1, "{four}");
        }

        let seen = scene.counted(|| {
            for _ in 0..3 {
                assert!(send_udp(&lab, &a, "0.0.0.0:0", format!("{four}:9").parse()?, 1).is_err());
            }
            let tcp = inside(&lab, &a, || Ok(TcpStream::connect(format!("{four}:9"))))?;
            assert!(tcp.is_err());
            Ok(())
        })?;
        assert_eq!(seen.of("a"), failed("ipv4/output", class, 4), "{four}");
        let no_routes = snmp(&lab, &a, "Ip", "OutNoRoutes")? - before;
        assert_eq!(no_routes, if class == "no_route" { 5 } else { 0 }, "{four}");

        let before = snmp6(&lab, &a, "Ip6OutNoRoutes")?;
        let to = format!("[{six}]:9");
        let seen = scene.counted(|| fail_to_connect(&lab, &a, "[::]:0", &to))?;
        // Once for a source address, once for the route.
        assert_eq!(seen.of("a"), failed("ipv6/output", class, 2), "{six}");
        assert_eq!(
            scene::failure(&scene.last, "a", &six.replace(":0::", "::"))["class"],
            class
        );
        let no_routes = snmp6(&lab, &a, "Ip6OutNoRoutes")? - before;
        assert_eq!(no_routes, u64::from(class == "no_route"), "{six}");
    }
    // b was never asked.
    assert_eq!(scene.counted(|| Ok(()))?.of("b"), grown(&[]));
    let b = common::namespace(&scene.last, "b");
    assert_eq!(b["route_lookups"]["total"], 0, "{b}");
    scene.end()
}

/// What a router cannot forward, class by class.
#[test]
fn a_router_fails_by_class_and_tells_for_whom() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    forwarding(&lab)?;
    // Behind vd, which the host has no route to.
    quiet_netns(&lab, "d")?;
    lab.shell(
        "ip link add vd type veth peer name eth0 netns d
         ip link set vd addrgenmode none up
         ip -n d link set eth0 addrgenmode none up
         ip -n d address add 10.77.0.2/24 dev eth0
         ip -n d address add fd77::2/64 dev eth0 nodad",
    )?;
    let mut scene = Scene::new(&lab)?;
    let a = named("a");
    let ping = |to: &str| -> anyhow::Result<()> {
        let args = ["ping", "-q", "-c4", "-i0.02", "-W1", to];
        lab.command_in(&a, "busybox").args(args).output()?;
        Ok(())
    };
    let mut cases = vec![("no_route", "true".to_owned(), "true".to_owned())];
    for kind in ["blackhole", "unreachable", "prohibit"] {
        let set = |action: &str| {
            format!("ip route {action} {kind} 10.77.0.0/24; ip -6 route {action} {kind} fd77::/64")
        };
        cases.push((kind, set("add"), set("del")));
    }
    for rules in [
        "",
        "ip rule add from 192.0.2.1 lookup 77; ip -6 rule add from 2001:db8::1 lookup 77",
    ] {
        lab.shell(if rules.is_empty() { "true" } else { rules })?;
        for (class, set_up, take_down) in &cases {
            lab.shell(set_up)?;
            let what = format!("{class}, rules: {}", !rules.is_empty());
            let before = snmp(&lab, &Netns::Host, "IpExt", "InNoRoutes")?;
            let seen = scene.counted(|| ping("10.77.0.2"))?;
            let host = seen.of("host");
            let of = |path: &str| host.get(path).copied().unwrap_or(0);
            assert_eq!(of("/ipv4/forward"), 4, "{what}: {host:?}");
            assert_eq!(of("/ipv4/failed"), 4, "{what}: {host:?}");
            assert_eq!(of(&format!("/failures/{class}")), 4, "{what}: {host:?}");
            assert_eq!(of("/on_behalf/a"), 4, "{what}: {host:?}");
            assert_eq!(seen.by_host("a"), 4, "{what}");
            assert_eq!(of("/total"), 4 + of("/ipv4/output"), "{what}: {host:?}");
            let in_no_routes = snmp(&lab, &Netns::Host, "IpExt", "InNoRoutes")? - before;
            assert_eq!(
                in_no_routes,
                if *class == "no_route" { 4 } else { 0 },
                "{what}"
            );
            if *class != "no_route" {
                assert_eq!(seen.hits("host", "10.77.0.0/24"), 4, "{what}");
            }
            let a_row = seen.of("a");
            assert_eq!(a_row.get("/ipv4/output"), Some(&4), "{what}: {a_row:?}");
            assert_eq!(a_row.get("/failed"), None, "{what}: {a_row:?}");

            let before = snmp6(&lab, &Netns::Host, "Ip6InNoRoutes")?;
            let seen = scene.counted(|| ping("fd77::2"))?;
            let host = seen.of("host");
            let of = |path: &str| host.get(path).copied().unwrap_or(0);
            assert_eq!(of("/ipv6/forward"), 4, "{what}: {host:?}");
            assert_eq!(of("/ipv6/failed"), 4, "{what}: {host:?}");
            assert_eq!(of(&format!("/failures/{class}")), 4, "{what}: {host:?}");
            assert_eq!(of("/on_behalf/a"), 4, "{what}: {host:?}");
            let in_no_routes = snmp6(&lab, &Netns::Host, "Ip6InNoRoutes")? - before;
            if *class == "no_route" {
                assert_eq!(in_no_routes, 4, "{what}");
            }
            lab.shell(take_down)?;
        }
    }

    // Somebody else's address for a source: the host's own.
    lab.shell("ip -n a address add 10.1.0.1/32 dev lo")?;
    let seen = scene.counted(|| {
        lab.command_in(&a, "busybox")
            .args([
                "ping", "-q", "-c4", "-i0.02", "-W1", "-I", "10.1.0.1", "10.2.0.2",
            ])
            .output()?;
        Ok(())
    })?;
    let host = seen.of("host");
    assert_eq!(host.get("/failures/martian"), Some(&4), "{host:?}");
    assert_eq!(host.get("/total"), Some(&4), "one decision each: {host:?}");
    assert_eq!(
        scene::failure(&scene.last, "host", "10.2.0.2")["reason"],
        "IP_LOCAL_SOURCE"
    );
    lab.shell("ip -n a address del 10.1.0.1/32 dev lo")?;

    // A host that does not forward.
    lab.shell("sysctl -qw net.ipv4.ip_forward=0")?;
    let seen = scene.counted(|| ping("10.2.0.2"))?;
    let host = seen.of("host");
    assert_eq!(host.get("/failures/unreachable"), Some(&4), "{host:?}");
    assert_eq!(host.get("/ipv4/failed"), Some(&4), "{host:?}");
    assert_eq!(host.get("/ipv4/forward"), Some(&4), "{host:?}");
    scene.end()
}

/// Raw sockets pass no hook that would tell whose they are; nobody gets the blame.
#[test]
fn what_cannot_be_told_is_unattributed() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    quiet_pair(&lab)?;
    let mut scene = Scene::new(&lab)?;
    let seen = scene.counted(|| {
        let ping = ["ping", "-q", "-c1", "-W1", "203.0.113.9"];
        let output = lab.command_in(&named("a"), "busybox").args(ping).output()?;
        assert!(!output.status.success(), "{output:?}");
        Ok(())
    })?;
    assert_eq!(seen.of("a"), grown(&[]));
    // Of the whole machine, so others may add to it.
    let (lookups, failed) = seen.unattributed();
    assert!(lookups >= failed && failed >= 1, "{lookups} {failed}");
    let all = scene.last["unattributed"]["failures"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let found = all
        .iter()
        .find(|failure| failure["destination"] == "203.0.113.9");
    assert!(
        found.is_some_and(|failure| failure["class"] == "no_route"),
        "{all:?}"
    );
    scene.end()
}

/// By every call that sends a datagram or connects, from sockets of both families, and by
/// a thread that is in another namespace than its socket.
#[test]
fn a_failed_datagram_is_of_its_sockets_namespace() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    quiet_pair(&lab)?;
    let mut scene = Scene::new(&lab)?;
    let (four, six, own) = inside(&lab, &named("a"), || {
        Ok((
            UdpSocket::bind("0.0.0.0:0")?,
            UdpSocket::bind("[::]:0")?,
            UdpSocket::bind("10.9.0.1:0")?,
        ))
    })?;
    let SocketAddr::V4(own) = own.local_addr()? else {
        anyhow::bail!("not an IPv4 address");
    };
    let nowhere: SocketAddrV4 = "203.0.113.9:9".parse()?;
    let calls: [(&str, u64, &dyn Fn() -> bool); 7] = [
        ("connect", 1, &|| four.connect(nowhere).is_ok()),
        ("connect, IPv6", 1, &|| {
            six.connect("[::ffff:203.0.113.9]:9").is_ok()
        }),
        ("sendto", 1, &|| four.send_to(b"netobs", nowhere).is_ok()),
        ("sendto, IPv6", 1, &|| {
            six.send_to(b"netobs", "[::ffff:203.0.113.9]:9").is_ok()
        }),
        ("sendmsg", 1, &|| {
            let to = SockaddrIn::from(nowhere);
            let data = [IoSlice::new(b"netobs")];
            sendmsg(four.as_raw_fd(), &data, &[], MsgFlags::empty(), Some(&to)).is_ok()
        }),
        // Two that arrive, then the one that does not.
        ("sendmmsg", 3, &|| {
            let to = [own, own, nowhere].map(|to| Some(SockaddrIn::from(to)));
            let data = [[IoSlice::new(b"netobs")]; 3];
            let mut headers = MultiHeaders::preallocate(3, None);
            let flags = MsgFlags::empty();
            sendmmsg(four.as_raw_fd(), &mut headers, &data, to, [], flags)
                .is_ok_and(|sent| sent.count() == 3)
        }),
        // The same with addresses as close as they can be.
        ("sendmmsg, an array", 3, &|| {
            send_array(&four, [own, own, nowhere]) == 3
        }),
    ];
    for (what, lookups, call) in calls {
        let seen = scene.counted(|| {
            anyhow::ensure!(!call(), "{what}: succeeded");
            Ok(())
        })?;
        let mut expected = failed("ipv4/output", "no_route", 1);
        for key in ["/ipv4/output", "/total"] {
            expected.insert(key.to_owned(), lookups);
        }
        assert_eq!(seen.of("a"), expected, "{what}");
        assert_eq!(seen.of("host"), grown(&[]), "{what}");
    }
    scene.end()
}

/// Sends a datagram to each of `to` by one call, as programs in C do; gives how many were sent.
#[expect(unsafe_code, reason = "nix has each address in a place of its own")]
fn send_array(socket: &UdpSocket, to: [SocketAddrV4; 3]) -> i32 {
    let mut to = to.map(|to| *SockaddrIn::from(to).as_ref());
    let data = b"netobs";
    let mut part = libc::iovec {
        iov_base: data.as_ptr().cast_mut().cast(),
        iov_len: data.len(),
    };
    let mut messages = to.each_mut().map(|to| {
        // SAFETY: zeros are a message without anything.
        let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
        message.msg_hdr.msg_name = (&raw mut *to).cast();
        message.msg_hdr.msg_namelen = size_of::<libc::sockaddr_in>() as u32;
        message.msg_hdr.msg_iov = &raw mut part;
        message.msg_hdr.msg_iovlen = 1;
        message
    });
    // SAFETY: there are three messages, and what they point to outlives the call, which
    // only reads it.
    unsafe { libc::sendmmsg(socket.as_raw_fd(), messages.as_mut_ptr(), 3, 0) }
}

/// Where the system call cannot be read, as on other architectures, programs note who is
/// about to look a route up.
#[test]
fn without_system_calls_senders_are_noted() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    quiet_pair(&lab)?;
    let a = named("a");
    let cookie = inside(&lab, &a, || Ok(netobs::world::netns::cookie()?))?;
    let programs = LookupPrograms::start(
        Settings {
            detail: false,
            calls: false,
            host: 0,
            // Of the whole machine.
            namespaces: 4096,
            destinations: 1,
            failures: 1,
        },
        None,
    )?;
    let nowhere = "203.0.113.9:9";
    let mut expected = 0;
    for from in ["0.0.0.0:0", "[::]:0"] {
        let to = match from {
            "[::]:0" => "[::ffff:203.0.113.9]:9",
            _ => nowhere,
        };
        fail_to_connect(&lab, &a, from, to)?;
        let sent = inside(&lab, &a, || {
            Ok(UdpSocket::bind(from)?.send_to(b"netobs", to))
        })?;
        assert!(sent.is_err(), "{to} can be reached");
        expected += 2;
        let of_a = programs.lookups()?.remove(&cookie).unwrap_or_default();
        assert_eq!(
            (of_a.total(), of_a.failed()),
            (expected, expected),
            "{from}"
        );
    }
    Ok(())
}
