//! Route lookups, counted exactly: which namespace, which route, and what fails.
//!
//! How many decisions the kernel takes for what is a fact about the kernel: a
//! UDP `connect()` on an unbound socket takes two (the second with the source
//! address that the first one found), a TCP one three, a datagram of an
//! unconnected socket one, a received packet one.

mod common;
mod scene;

use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};

use common::{Watch, inside, namespace, ping, quiet_pair, warnings};
use netobs_tests::{Lab, Netns, skip};
use scene::{Scene, connect_udp, forwarding, grown, hits, named, quiet_netns, send_udp, snmp};
use serde_json::json;

/// The scene that netobs was made for.
#[test]
fn two_containers_look_up_the_same_address_and_meet_different_routes() -> anyhow::Result<()> {
    let lab = Lab::with_docker()?;
    let a = lab.run_container("netshoot_a", &["--cap-add=NET_ADMIN"], &[])?;
    let b = lab.run_container("netshoot_b", &[], &[])?;
    a.exec(["route", "add", "-host", "8.8.8.8", "dev", "eth0"])?;
    let mut routes = Watch::routes(&lab, &[])?;
    let before = routes.settled()?;
    for container in [&a, &b] {
        connect_udp(&lab, &container.netns(), "0.0.0.0:0", "8.8.8.8:53")?;
    }
    let after = routes.settled()?;

    for (name, route, hit) in [
        ("netshoot_a", "8.8.8.8/32", 2),
        ("netshoot_a", "0.0.0.0/0", 0),
        ("netshoot_b", "0.0.0.0/0", 2),
    ] {
        let grew = hits(&after, name, route) - hits(&before, name, route);
        assert_eq!(grew, hit, "{name} {route}: {after}");
    }
    let b_routes = namespace(&after, "netshoot_b")["routes"].to_string();
    assert!(!b_routes.contains("8.8.8.8"), "{b_routes}");
    let host = namespace(&after, "host");
    assert_eq!(host["route_lookups"]["total"], 0, "{host}");
    for name in ["netshoot_a", "netshoot_b"] {
        let lookups = &namespace(&after, name)["route_lookups"];
        assert_eq!(lookups["ipv4"]["output"], 2, "{lookups}");
        assert_eq!(lookups["total"], 2, "{lookups}");
        assert_eq!(lookups["failed"], 0, "{lookups}");
    }
    // How the route looks to `ip route`.
    let route = scene::route(&after, "netshoot_a", "8.8.8.8/32");
    assert_eq!(
        *route,
        json!({"family": "ipv4", "table": 254, "prefix": "8.8.8.8/32", "type": "unicast",
            "gateway": null, "interface": "eth0", "nexthops": null, "protocol": "boot", "scope": "link",
            "metric": 0, "source": null, "present": true, "match": "inferred",
            "hits": {"output": 2, "input": 0, "forward": 0}})
    );
    let default = scene::route(&after, "netshoot_b", "0.0.0.0/0");
    assert_eq!(default["gateway"], "172.17.0.1");
    let remarks = namespace(&after, "netshoot_a")["remarks"].to_string();
    assert!(remarks.contains("neighbours must answer"), "{remarks}");
    routes.end()?;
    Ok(())
}

/// What local senders and receivers cost, in both families, over a bridge that
/// needs no decision of the host.
#[test]
fn connects_datagrams_and_pings_take_so_many_decisions() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    quiet_pair(&lab)?;
    // The bridge is a neighbour too: broadcasts reach the host.
    lab.shell("ip address add 10.9.0.254/24 dev br0")?;
    let mut scene = Scene::new(&lab)?;
    let (a, b) = (named("a"), named("b"));
    for (family, to) in [("ipv4", "10.9.0.2"), ("ipv6", "fd09::2")] {
        let (any, at) = match family {
            "ipv4" => ("0.0.0.0:0", format!("{to}:9")),
            _ => ("[::]:0", format!("[{to}]:9")),
        };
        let at: SocketAddr = at.parse()?;
        let out = |n| grown(&[(&format!("{family}/output"), n)]);

        let seen = scene.counted(|| connect_udp(&lab, &a, any, &at.to_string()))?;
        // The kernel asks once more for IPv6 only where the source was not known.
        assert_eq!(
            seen.of("a"),
            out(if family == "ipv4" { 2 } else { 1 }),
            "{family} connect"
        );
        assert_eq!(seen.of("b"), grown(&[]), "nothing was sent");

        // Somebody has to be there, or an error comes back.
        let seen =
            inside(&lab, &b, || UdpSocket::bind(at).map_err(Into::into)).and_then(|open| {
                let seen = scene.counted(|| send_udp(&lab, &a, any, at, 5));
                drop(open);
                seen
            })?;
        assert_eq!(seen.of("a"), out(5), "{family} datagrams");
        assert_eq!(seen.of("b"), grown(&[(&format!("{family}/input"), 5)]));

        // Nobody there: an error for each comes back, and a limit on them is
        // far away.
        let seen = scene.counted(|| ping(&lab, &a, to, &["-c4"]))?;
        let both = grown(&[
            (&format!("{family}/output"), 4),
            (&format!("{family}/input"), 4),
        ]);
        assert_eq!(seen.of("a"), both, "{family} ping");
        assert_eq!(seen.of("b"), both, "{family} ping");

        let listener = inside(&lab, &b, || TcpListener::bind(at).map_err(Into::into))?;
        let mut open = None;
        let seen = scene.counted(|| {
            open = Some(inside(&lab, &a, || {
                TcpStream::connect(at).map_err(Into::into)
            })?);
            Ok(())
        })?;
        let output = seen.of("a").get(&format!("/{family}/output")).copied();
        assert_eq!(
            output,
            Some(if family == "ipv4" { 3 } else { 1 }),
            "{family} TCP connect"
        );
        assert_eq!(seen.of("host"), grown(&[]), "bridged");
        drop((open, listener));
        scene.rest()?;
    }

    // For everybody on the link, the host too: delivered, not forwarded.
    for to in ["10.9.0.255:9", "10.9.0.98:9"] {
        if to.contains("98") {
            lab.shell(
                "ip -n a address add 10.9.1.1/24 broadcast 10.9.0.98 dev eth0
                 ip -n b address add 10.9.1.2/24 broadcast 10.9.0.98 dev eth0
                 ip address add 10.9.1.3/24 broadcast 10.9.0.98 dev br0",
            )?;
            scene.rest()?;
        }
        let to: SocketAddr = to.parse()?;
        let seen = scene.counted(|| send_udp(&lab, &a, "0.0.0.0:0", to, 3))?;
        assert_eq!(seen.of("a"), grown(&[("ipv4/output", 3)]), "{to}");
        assert_eq!(seen.of("b"), grown(&[("ipv4/input", 3)]), "{to}");
        assert_eq!(seen.of("host"), grown(&[("ipv4/input", 3)]), "{to}");
    }
    scene.end()
}

/// The kernel looks up a route for every ARP request, also those for others that
/// a bridge passes on to everybody: none of that is for a packet.
#[test]
fn what_arp_asks_for_is_no_lookup() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    quiet_pair(&lab)?;
    lab.shell(
        "ip address add 10.9.0.254/24 dev br0
         sysctl -qw net.ipv4.ip_forward=1
         ip netns exec a sysctl -qw net.ipv4.conf.all.rp_filter=1 net.ipv4.ip_forward=1
         ip netns exec b sysctl -qw net.ipv4.conf.all.rp_filter=1",
    )?;
    let mut scene = Scene::new(&lab)?;
    let seen = scene.counted(|| {
        for _ in 0..5 {
            for name in ["a", "b"] {
                lab.shell(&format!(
                    "ip -n {name} neigh flush all nud permanent; ip -n {name} neigh flush all"
                ))?;
            }
            ping(&lab, &named("a"), "10.9.0.2", &["-c1"])?;
            // For nobody: everybody hears of it.
            lab.command_in(&named("a"), "busybox")
                .args(["arping", "-q", "-c1", "-w1", "-I", "eth0", "10.9.0.77"])
                .output()?;
        }
        Ok(())
    })?;
    // arping sends no packet of IP, and finds its source by one UDP connect.
    let a = seen.of("a");
    assert_eq!(a.get("/ipv4/input"), Some(&5), "{a:?}");
    assert_eq!(a.get("/ipv4/forward"), None, "{a:?}");
    assert_eq!(
        seen.of("b"),
        grown(&[("ipv4/output", 5), ("ipv4/input", 5)])
    );
    assert_eq!(seen.of("host"), grown(&[]));
    scene.end()
}

/// A rule that suppresses the default route of the main table, as WireGuard's: each
/// packet is looked up twice there, which is one decision for whom it is made.
#[test]
fn a_suppressed_route_counts_once_for_what_is_forwarded() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    forwarding(&lab)?;
    lab.shell(
        "ip route del 10.2.0.0/24 dev vc
         ip route add default via 10.1.0.2; ip route add default dev vc table 51820
         ip rule add not fwmark 51820 table 51820
         ip rule add table main suppress_prefixlength 0
         ip -6 route del fd02::/64 dev vc
         ip -6 route add default via fd01::2; ip -6 route add fd02::/64 dev vc table 51820
         ip -6 rule add not fwmark 51820 table 51820
         ip -6 rule add table main suppress_prefixlength 0
         for f in all default va vc; do sysctl -qw net.ipv4.conf.$f.rp_filter=0; done",
    )?;
    let mut scene = Scene::new(&lab)?;
    for (family, to, prefix) in [
        ("ipv4", "10.2.0.2", "0.0.0.0/0"),
        ("ipv6", "fd02::2", "fd02::/64"),
    ] {
        let seen = scene.counted(|| ping(&lab, &named("a"), to, &["-c6"]))?;
        let host = seen.of("host");
        assert_eq!(
            host.get(&format!("/{family}/forward")),
            Some(&12),
            "{host:?}"
        );
        assert_eq!(host.get("/total"), Some(&12), "{host:?}");
        assert_eq!(host.get("/on_behalf/a"), Some(&6), "{host:?}");
        assert_eq!(host.get("/on_behalf/c"), Some(&6), "{host:?}");
        assert_eq!(seen.by_host("a"), 6);
        for route in scene::routes(&scene.last, "host", prefix) {
            let wanted = if route["table"] == 51820 { 6 } else { 0 };
            assert_eq!(route["hits"]["forward"], wanted, "{route}");
        }
    }
    scene.end()
}

/// Requests for an address on a VLAN come in by the interface below it.
#[test]
fn arp_on_a_vlan_is_no_lookup_either() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    forwarding(&lab)?;
    let vlan = "ip -n a link add link eth0 name eth0.7 type vlan id 7
         ip -n a link set eth0.7 addrgenmode none up
         ip -n a address add 10.7.0.2/24 dev eth0.7
         ip link add link va name va.7 type vlan id 7
         ip link set va.7 addrgenmode none up
         ip address add 10.7.0.1/24 dev va.7";
    let made = lab.command("sh").args(["-ec", vlan]).output()?;
    if !made.status.success() {
        // A kernel built without them has nothing to test.
        assert!(made.stderr.contains("Unknown device type"), "{made:?}");
        skip("this kernel has no VLANs");
        return Ok(());
    }
    let mut scene = Scene::new(&lab)?;
    let seen = scene.counted(|| {
        for _ in 0..5 {
            lab.shell("ip -n a neigh flush dev eth0.7; ip neigh flush dev va.7")?;
            ping(&lab, &named("a"), "10.7.0.1", &["-c1"])?;
        }
        Ok(())
    })?;
    let both = grown(&[("ipv4/output", 5), ("ipv4/input", 5)]);
    assert_eq!(seen.of("host"), both);
    assert_eq!(seen.of("a"), both);
    scene.end()
}

/// Two networks and the host between them.
#[test]
fn what_the_host_forwards_is_counted_for_whom_it_forwards() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    forwarding(&lab)?;
    let mut scene = Scene::new(&lab)?;
    let a = named("a");
    for rp_filter in [0, 1, 2] {
        lab.shell(&format!(
            "for f in all default va vc; do sysctl -qw net.ipv4.conf.$f.rp_filter={rp_filter}; done"
        ))?;
        for rules in [false, true] {
            if rules {
                // A rule makes the kernel go through the local table first, and
                // validate sources by full lookups.
                lab.shell("ip rule add from 192.0.2.1 lookup 77; ip -6 rule add from 2001:db8::1 lookup 77")?;
            }
            for (family, to) in [("ipv4", "10.2.0.2"), ("ipv6", "fd02::2")] {
                let what = format!("{family}, rp_filter {rp_filter}, rules {rules}");
                let seen = scene.counted(|| ping(&lab, &a, to, &["-c7"]))?;
                let both = grown(&[
                    (&format!("{family}/output"), 7),
                    (&format!("{family}/input"), 7),
                ]);
                assert_eq!(seen.of("a"), both, "{what}");
                assert_eq!(seen.of("c"), both, "{what}");
                let host = seen.of("host");
                assert_eq!(
                    host.get(&format!("/{family}/forward")),
                    Some(&14),
                    "{what}: {host:?}"
                );
                assert_eq!(host.get("/on_behalf/a"), Some(&7), "{what}: {host:?}");
                assert_eq!(host.get("/on_behalf/c"), Some(&7), "{what}: {host:?}");
                assert_eq!(host.get("/total"), Some(&14), "{what}: {host:?}");
                assert_eq!(host.get("/failed"), None, "{what}: {host:?}");
                assert_eq!(seen.by_host("a"), 7, "{what}");
                // To the host itself: delivered, not forwarded, and it answers.
                let own = if family == "ipv4" {
                    "10.1.0.1"
                } else {
                    "fd01::1"
                };
                let seen = scene.counted(|| ping(&lab, &a, own, &["-c3"]))?;
                let both = grown(&[
                    (&format!("{family}/output"), 3),
                    (&format!("{family}/input"), 3),
                ]);
                assert_eq!(seen.of("host"), both, "{what}: own address");
                assert_eq!(seen.of("a"), both, "{what}: own address");
            }
            if rules {
                lab.shell("ip rule del from 192.0.2.1 lookup 77; ip -6 rule del from 2001:db8::1 lookup 77")?;
            }
        }
    }
    // A way back by another interface, where that is allowed: the kernel looks the
    // source up twice.
    quiet_netns(&lab, "x")?;
    lab.shell(
        "for f in all default va vc; do sysctl -qw net.ipv4.conf.$f.rp_filter=2; done
         ip -n a address add 10.67.0.1/32 dev lo
         ip link add vx type veth peer name far address 02:00:00:00:03:01 netns x
         ip link set vx addrgenmode none up; ip -n x link set far addrgenmode none up
         ip address add 10.68.0.1/24 dev vx
         ip route add 10.67.0.1 via 10.68.0.2 metric 5; ip route add 10.67.0.1 via 10.1.0.2 metric 10
         ip neigh add 10.68.0.2 lladdr 02:00:00:00:03:01 dev vx nud permanent",
    )?;
    scene.rest()?;
    let seen = scene.counted(|| {
        lab.command_in(&a, "busybox")
            .args([
                "ping",
                "-q",
                "-c5",
                "-i0.02",
                "-W1",
                "-I",
                "10.67.0.1",
                "10.2.0.2",
            ])
            .output()?;
        Ok(())
    })?;
    let host = seen.of("host");
    // There and, by the other way, back.
    assert_eq!(host.get("/ipv4/forward"), Some(&10), "{host:?}");
    assert_eq!(host.get("/total"), Some(&10), "{host:?}");
    assert_eq!(
        host.get("/on_behalf/c"),
        Some(&5),
        "what c answered: {host:?}"
    );
    assert_eq!(seen.hits("host", "10.67.0.1/32"), 5);

    // A source that would be answered elsewhere.
    lab.shell(
        "for f in all default va vc; do sysctl -qw net.ipv4.conf.$f.rp_filter=1; done
         ip -n a address add 10.66.0.1/32 dev lo",
    )?;
    let before = snmp(&lab, &Netns::Host, "TcpExt", "IPReversePathFilter")?;
    let seen = scene.counted(|| {
        lab.command_in(&a, "busybox")
            .args([
                "ping",
                "-q",
                "-c5",
                "-i0.02",
                "-W1",
                "-I",
                "10.66.0.1",
                "10.2.0.2",
            ])
            .output()?;
        Ok(())
    })?;
    let rejected = snmp(&lab, &Netns::Host, "TcpExt", "IPReversePathFilter")? - before;
    assert_eq!(rejected, 5, "the kernel's own word");
    let host = seen.of("host");
    assert_eq!(host.get("/failures/rp_filter"), Some(&5), "{host:?}");
    assert_eq!(host.get("/failed"), Some(&5), "{host:?}");
    assert_eq!(
        host.get("/ipv4/forward"),
        Some(&5),
        "one decision each: {host:?}"
    );
    let failure = scene::failure(&scene.last, "host", "10.2.0.2");
    assert_eq!(failure["class"], "rp_filter");
    assert_eq!(failure["reason"], "IP_RPFILTER");
    assert_eq!(failure["origin"], "forward");
    assert!(warnings(&scene.last, "map_full").is_empty());
    scene.end()
}
