//! Routes by kind and table, and tables that change, in the lab.

mod common;
mod scene;

use std::{
    fs,
    net::UdpSocket,
    os::fd::AsFd as _,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use common::{SOON, Watch, count, inode, inside, namespace, ping, warnings};
use netobs_tests::{Lab, netobs_binary, skip};
use nix::sys::{
    signal::Signal,
    socket::{setsockopt, sockopt::BindToDevice},
};
use scene::{
    Scene, connect_udp, fail_to_connect, failed, forwarding, grown, hits, named, quiet_netns,
    route, routes,
};

/// A named namespace with an `eth0` (10.3.0.1/24, fd03::1/64) that leads nowhere:
/// its other end, `v` and its name, has no address.
fn connected(lab: &Lab, name: &str) -> anyhow::Result<()> {
    quiet_netns(lab, name)?;
    lab.shell(&format!(
        "ip link add v{name} type veth peer name eth0 index 10 netns {name}
         ip link set v{name} addrgenmode none up"
    ))?;
    addresses(lab, name)
}

/// The same without any connection: nothing but `--all` or its name shows it.
fn lonely(lab: &Lab, name: &str) -> anyhow::Result<()> {
    quiet_netns(lab, name)?;
    lab.shell(&format!(
        "ip -n {name} link add eth0 index 10 type veth peer name far index 11
         ip -n {name} link set far addrgenmode none up"
    ))?;
    addresses(lab, name)
}

fn addresses(lab: &Lab, name: &str) -> anyhow::Result<()> {
    lab.shell(&format!(
        "ip -n {name} link set eth0 addrgenmode none up
         ip -n {name} address add 10.3.0.1/24 dev eth0
         ip -n {name} address add fd03::1/64 dev eth0 nodad"
    ))?;
    Ok(())
}

#[test]
fn rules_tables_next_hop_objects_and_several_next_hops() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    connected(&lab, "p")?;
    let scene = Scene::new(&lab)?;
    every_kind(&lab, scene)
}

/// Netlink does not tell of changes in a namespace without a connection to ours.
#[test]
fn the_same_without_anybody_to_tell_of_changes() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    lonely(&lab, "p")?;
    let scene = Scene::with(&lab, &["p"])?;
    every_kind(&lab, scene)
}

fn every_kind(lab: &Lab, mut scene: Scene) -> anyhow::Result<()> {
    let p = named("p");
    let mut connects = |set_up: &str, to: &str, table: u64, prefix: &str, gateway: Option<&str>| {
        lab.shell(set_up)?;
        scene.rest()?;
        let any = if to.contains('.') {
            "0.0.0.0:0"
        } else {
            "[::]:0"
        };
        let seen = scene.counted(|| connect_udp(lab, &p, any, to))?;
        let (family, times) = if to.contains('.') {
            ("ipv4", 2)
        } else {
            ("ipv6", 1)
        };
        assert_eq!(
            seen.of("p"),
            grown(&[(&format!("{family}/output"), times)]),
            "{set_up}"
        );
        assert_eq!(seen.hits("p", prefix), times, "{set_up}");
        let found = routes(&scene.last, "p", prefix);
        let hit: Vec<_> = found
            .iter()
            .filter(|r| count(&r["hits"], "output") > 0)
            .collect();
        assert_eq!(hit[0]["table"], table, "{set_up}: {found:?}");
        assert_eq!(hit[0]["gateway"].as_str(), gateway, "{set_up}: {found:?}");
        anyhow::Ok(())
    };
    let gw = Some("10.3.0.9");
    connects(
        "ip -n p route add 198.51.100.0/24 via 10.3.0.9",
        "198.51.100.1:9",
        254,
        "198.51.100.0/24",
        gw,
    )?;
    connects(
        "ip -n p -6 route add 2001:db8:1::/48 via fd03::9",
        "[2001:db8:1::1]:9",
        254,
        "2001:db8:1::/48",
        Some("fd03::9"),
    )?;
    // A next hop object has no pointer back to the route.
    connects(
        "ip -n p nexthop add id 7 via 10.3.0.7 dev eth0; ip -n p route add 203.0.113.0/24 nhid 7",
        "203.0.113.1:9",
        254,
        "203.0.113.0/24",
        Some("10.3.0.7"),
    )?;
    // IPv4 through an IPv6 neighbour.
    connects(
        "ip -n p route add 192.0.2.0/25 via inet6 fd03::5 dev eth0",
        "192.0.2.1:9",
        254,
        "192.0.2.0/25",
        Some("fd03::5"),
    )?;
    // From here on the kernel goes through rules: local first, a table of ours,
    // then main.
    connects(
        "ip -n p rule add to 192.0.2.128/25 lookup 100
         ip -n p route add 192.0.2.128/25 via 10.3.0.8 table 100",
        "192.0.2.200:9",
        100,
        "192.0.2.128/25",
        Some("10.3.0.8"),
    )?;
    connects("true", "198.51.100.2:9", 254, "198.51.100.0/24", gw)?;
    scene.end()
}

/// What the `suppress_prefixlength` of a rule (as for WireGuard) rejects is no
/// hit: the decision goes on.
#[test]
fn a_suppressed_route_is_no_hit_and_a_later_table_is_the_last() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    connected(&lab, "p")?;
    lab.shell(
        "ip -n p route add default via 10.3.0.9
         ip -n p route add default via 10.3.0.5 table 51820
         ip -n p rule add not fwmark 51820 table 51820
         ip -n p rule add table main suppress_prefixlength 0",
    )?;
    let p = named("p");
    let mut scene = Scene::new(&lab)?;
    for n in 1..=3 {
        let seen = scene.counted(|| connect_udp(&lab, &p, "0.0.0.0:0", "198.51.100.1:9"))?;
        assert_eq!(seen.of("p"), grown(&[("ipv4/output", 2)]));
        let default = routes(&scene.last, "p", "0.0.0.0/0");
        for route in default {
            let wanted = if route["table"] == 51820 { 2 * n } else { 0 };
            assert_eq!(count(&route["hits"], "output"), wanted, "{route}");
        }
    }
    // More specific than the suppressed length: met in main.
    let seen = scene.counted(|| connect_udp(&lab, &p, "0.0.0.0:0", "10.3.0.77:9"))?;
    assert_eq!(seen.hits("p", "10.3.0.0/24"), 2);
    // Main is asked twice and has nothing: one failure, not two.
    lab.shell("ip -n p route del default; ip -n p route del default table 51820")?;
    scene.rest()?;
    let seen = scene.counted(|| fail_to_connect(&lab, &p, "0.0.0.0:0", "198.51.100.1:9"))?;
    assert_eq!(seen.of("p"), scene::failed("ipv4/output", "no_route", 1));
    // The default table is behind main, where it exists.
    lab.shell("ip -n p route add 198.51.100.0/24 via 10.3.0.3 table default")?;
    scene.rest()?;
    let seen = scene.counted(|| connect_udp(&lab, &p, "0.0.0.0:0", "198.51.100.1:9"))?;
    assert_eq!(seen.of("p"), grown(&[("ipv4/output", 2)]));
    assert_eq!(seen.hits("p", "198.51.100.0/24"), 2);
    scene.end()
}

#[test]
fn several_next_hops_are_one_route() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    connected(&lab, "p")?;
    lab.shell(
        "ip netns exec p sysctl -qw net.ipv4.fib_multipath_hash_policy=1
         ip -n p route add 198.51.100.0/24 nexthop via 10.3.0.8 nexthop via 10.3.0.9",
    )?;
    let mut scene = Scene::new(&lab)?;
    let seen = scene.counted(|| {
        inside(&lab, &named("p"), || {
            for port in 1..=40 {
                UdpSocket::bind("0.0.0.0:0")?.connect(("198.51.100.1", port))?;
            }
            Ok(())
        })
    })?;
    assert_eq!(seen.of("p"), grown(&[("ipv4/output", 80)]));
    assert_eq!(seen.hits("p", "198.51.100.0/24"), 80);
    // Which of them a flow takes is chosen after the kernel has told.
    let route = route(&scene.last, "p", "198.51.100.0/24");
    let hop = |gateway| serde_json::json!({"gateway": gateway, "interface": "eth0"});
    assert_eq!(
        route["nexthops"],
        serde_json::json!([hop("10.3.0.8"), hop("10.3.0.9")])
    );
    assert_eq!(route["gateway"], serde_json::Value::Null);
    scene.end()
}

/// A socket bound to an interface gets through without any route.
#[test]
fn a_bound_socket_needs_no_route() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    connected(&lab, "p")?;
    let p = named("p");
    let mut scene = Scene::new(&lab)?;
    let seen = scene.counted(|| {
        inside(&lab, &p, || {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            setsockopt(&socket.as_fd(), BindToDevice, &"eth0".into())?;
            socket.connect("203.0.113.5:9")?;
            Ok(())
        })
    })?;
    assert_eq!(seen.of("p"), grown(&[("ipv4/output", 2)]));
    let implicit = route(&scene.last, "p", "203.0.113.5/32");
    assert_eq!(implicit["match"], "implicit");
    assert_eq!(implicit["interface"], "eth0");
    assert_eq!(implicit["present"], false);
    assert_eq!(count(&implicit["hits"], "output"), 2);
    scene.end()
}

/// A VRF has a table of its own.
#[test]
fn a_vrf_is_a_table_of_its_own() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    forwarding(&lab)?;
    let made = lab
        .command("ip")
        .args(["link", "add", "red", "type", "vrf", "table", "10"])
        .output()?;
    if !made.status.success() {
        // A kernel built without them has nothing to test.
        assert!(made.stderr.contains("Unknown device type"), "{made:?}");
        skip("this kernel has no VRF");
        return Ok(());
    }
    lab.shell(
        "ip link set red up
         ip link set va master red; ip link set vc master red
         for address in 10.1.0.2; do ip neigh replace $address lladdr 02:00:00:00:02:01 dev va nud permanent; done
         for address in 10.2.0.2; do ip neigh replace $address lladdr 02:00:00:00:02:02 dev vc nud permanent; done",
    )?;
    let mut scene = Scene::new(&lab)?;
    let seen = scene.counted(|| ping(&lab, &named("a"), "10.2.0.2", &["-c6"]))?;
    let host = seen.of("host");
    assert_eq!(host.get("/ipv4/forward"), Some(&12), "{host:?}");
    assert_eq!(host.get("/total"), Some(&12), "{host:?}");
    assert_eq!(host.get("/on_behalf/a"), Some(&6), "{host:?}");
    for prefix in ["10.2.0.0/24", "10.1.0.0/24"] {
        let met: Vec<_> = routes(&scene.last, "host", prefix)
            .into_iter()
            .filter(|route| count(&route["hits"], "forward") > 0)
            .collect();
        assert_eq!(met.len(), 1, "{met:?}");
        assert_eq!(met[0]["table"], 10);
        assert_eq!(count(&met[0]["hits"], "forward"), 6);
    }
    scene.end()
}

/// Same addresses, same interface indexes; and a namespace that gets the inode of
/// one that has ended.
#[test]
fn namespaces_do_not_mix() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    connected(&lab, "p")?;
    connected(&lab, "q")?;
    for name in ["p", "q"] {
        lab.shell(&format!("ip -n {name} route add default via 10.3.0.9"))?;
    }
    let mut scene = Scene::new(&lab)?;
    let seen = scene.counted(|| connect_udp(&lab, &named("p"), "0.0.0.0:0", "198.51.100.1:9"))?;
    assert_eq!(seen.of("p"), grown(&[("ipv4/output", 2)]));
    assert_eq!(seen.of("q"), grown(&[]));
    assert_eq!(seen.hits("q", "0.0.0.0/0"), 0);
    let old = inode(&lab, &named("p"))?;
    let cookie = namespace(&scene.last, "p")["cookie"].clone();
    lab.netns_del("p")?;
    let sample = scene.routes.until("p's end", |sample| {
        common::rows(sample, "p")
            .iter()
            .any(|row| row["state"] == "gone")
    })?;
    assert_eq!(hits(&sample, "p", "0.0.0.0/0"), 2, "its last word");

    // Freed numbers are given out again, lowest first.
    let mut reused = false;
    for _ in 0..200 {
        lab.netns_add("p")?;
        if inode(&lab, &named("p"))? == old {
            reused = true;
            break;
        }
        lab.netns_del("p")?;
    }
    if !reused {
        // Another lab's has it: numbers are the machine's.
        lab.netns_add("p")?;
    }
    lab.shell(
        "ip link add vp type veth peer name eth0 index 10 netns p
         ip link set vp addrgenmode none up",
    )?;
    addresses(&lab, "p")?;
    lab.shell("ip -n p route add default via 10.3.0.9")?;
    let sample = scene.routes.until("the new p", |sample| {
        common::rows(sample, "p")
            .iter()
            .any(|row| row["state"] == "up")
    })?;
    let row = common::rows(&sample, "p")
        .into_iter()
        .find(|row| row["state"] == "up");
    let row = row.expect("just seen");
    assert_ne!(row["cookie"], cookie);
    assert_eq!(row["route_lookups"]["total"], 0, "reused: {reused}, {row}");
    scene.rest()?;
    let seen = scene.counted(|| connect_udp(&lab, &named("p"), "0.0.0.0:0", "198.51.100.1:9"))?;
    assert_eq!(seen.hits("p", "0.0.0.0/0"), 2);
    if !reused {
        skip("the inode went to another namespace of this machine");
    }
    scene.end()
}

/// How often a route comes or goes.
const CHANGES: u64 = 60;

/// Every lookup finds its route while routes come and go.
#[test]
fn routes_change_under_traffic_and_every_hit_finds_its_route() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    connected(&lab, "p")?;
    lab.shell("ip -n p route add default via 10.3.0.9")?;
    let mut scene = Scene::new(&lab)?;
    let stop = AtomicBool::new(false);
    let mut connects = 0u64;
    let seen = scene.counted(|| {
        thread::scope(|scope| {
            let talker = scope.spawn(|| {
                inside(&lab, &named("p"), || {
                    let mut connects = 0;
                    while !stop.load(Ordering::Relaxed) {
                        UdpSocket::bind("0.0.0.0:0")?.connect("198.51.100.1:9")?;
                        connects += 1;
                        thread::sleep(Duration::from_micros(200));
                    }
                    Ok(connects)
                })
            });
            // Some of them are there for a few milliseconds only, between two
            // looks at the tables.
            for round in 0..CHANGES / 2 {
                let via = round % 5 + 20;
                lab.shell(&format!(
                    "ip -n p route add 198.51.{}.0/22 via 10.3.0.{via}
                     sleep 0.02
                     ip -n p route del 198.51.{}.0/22 via 10.3.0.{via}",
                    100, 100
                ))?;
            }
            stop.store(true, Ordering::Relaxed);
            connects = talker.join().expect("no panic")?;
            Ok(())
        })
    })?;
    assert!(connects > 100, "{connects} connects");
    let p = seen.of("p");
    // Where a route changes between the lookups of a connect and its end, the kernel looks
    // once more. (`ip4_datagram_release_cb()`)
    // https://github.com/torvalds/linux/blob/v6.18/net/ipv4/datagram.c
    let decisions = p.get("/ipv4/output").copied().unwrap_or_default();
    assert!(
        (2 * connects..=2 * connects + CHANGES).contains(&decisions),
        "{connects} connects: {p:?}"
    );
    let short = seen.hits("p", "198.51.100.0/22");
    let default = seen.hits("p", "0.0.0.0/0");
    assert_eq!(short + default, decisions, "{short} + {default}");
    assert!(short > 0 && default > 0, "{short} and {default}");
    let row = namespace(&scene.last, "p");
    for route in row["routes"].as_array().into_iter().flatten() {
        assert_ne!(route["prefix"], serde_json::Value::Null, "{route}");
        if route["prefix"] == "198.51.100.0/22" {
            assert_eq!(route["present"], false, "{route}");
        }
    }
    scene.end()
}

#[test]
fn ten_thousand_routes_and_maps_that_are_full() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    connected(&lab, "p")?;
    let batch: String = (0..10_000u32)
        .map(|n| {
            let (high, low) = (n / 250, n % 250);
            format!(
                "route add 100.{}.{}.{low}/32 via 10.3.0.9\n",
                64 + high / 250,
                high % 250
            )
        })
        .collect();
    let file = lab.tmp().join("batch");
    fs::write(&file, batch)?;
    lab.command("ip")
        .args(["-n", "p", "-batch"])
        .arg(&file)
        .text()?;
    let args = ["--all", "--max-destinations=512", "--max-failures=64"];
    let mut scene = Scene::with(&lab, &args)?;
    let seen = scene.counted(|| {
        inside(&lab, &named("p"), || {
            for n in 0..2000 {
                let to = format!("100.64.{}.{}", n / 250, n % 250);
                UdpSocket::bind("0.0.0.0:0")?.connect((to, 9))?;
            }
            for n in 0..600u32 {
                let to = format!("203.0.{}.{}:9", n / 250, n % 250);
                assert!(UdpSocket::bind("0.0.0.0:0")?.connect(to).is_err());
            }
            Ok(())
        })
    })?;
    let p = seen.of("p");
    assert_eq!(
        p.get("/ipv4/output"),
        Some(&4600),
        "totals have room: {p:?}"
    );
    assert_eq!(p.get("/failures/no_route"), Some(&600), "{p:?}");
    let row = namespace(&scene.last, "p");
    let all = row["routes"].as_array().map_or(0, Vec::len);
    assert!(all >= 10_000, "{all} routes");
    let hit: u64 = row["routes"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|route| count(&route["hits"], "output"))
        .sum();
    assert!((2..4000).contains(&hit), "{hit} hits found room");
    let maps = scene.last["observer"]["maps"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let map = maps
        .iter()
        .find(|map| map["name"] == "NETOBS_HITS")
        .expect("the map");
    // The map is for the whole machine: others may be in it.
    assert!(
        count(map, "full") + hit >= 4000,
        "none is lost unseen: {map}"
    );
    assert_eq!(warnings(&scene.last, "map_full").len(), 1);
    // The most recent failures are told, and how many are not.
    let told = row["failures"].as_array().cloned().unwrap_or_default();
    let sum: u64 = told.iter().map(|failure| count(failure, "count")).sum();
    assert!(
        !told.is_empty() && told.len() <= 64,
        "{} failures",
        told.len()
    );
    assert_eq!(sum + count(row, "failures_forgotten"), 600);
    let last = told
        .iter()
        .any(|failure| failure["destination"] == "203.0.2.99");
    assert!(last, "the last one is remembered: {told:?}");
    scene.end()
}

/// A container's row keeps its name to the end, and is shown once more.
#[test]
fn containers_come_and_go_with_their_names() -> anyhow::Result<()> {
    let lab = Lab::with_docker()?;
    let mut scene = Scene::new(&lab)?;
    let guest = lab.run_container("guest", &["--cap-add=NET_ADMIN"], &[])?;
    scene.routes.until("the container", |sample| {
        common::rows(sample, "guest")
            .iter()
            .any(|row| row["routes"].is_array())
    })?;
    scene.rest()?;
    guest.exec(["ip", "route", "add", "198.51.100.0/24", "via", "172.17.0.1"])?;
    let seen =
        scene.counted(|| connect_udp(&lab, &guest.netns(), "0.0.0.0:0", "198.51.100.1:9"))?;
    assert_eq!(seen.hits("guest", "198.51.100.0/24"), 2);
    let seen = scene.routes.proc.stdout().len();
    guest.remove()?;
    // It may have ended while Docker was still about it.
    scene.routes.from(seen, "its end", &mut |sample| {
        common::rows(sample, "guest")
            .iter()
            .any(|row| row["state"] == "gone")
    })?;
    let lines = scene.routes.proc.stdout();
    let mut gone = 0;
    for sample in common::parsed(&lines[seen..])? {
        for row in sample["namespaces"].as_array().into_iter().flatten() {
            assert!(
                ["guest", "host"].iter().any(|name| row["name"] == **name),
                "{row}"
            );
            if row["state"] == "gone" {
                gone += 1;
                assert_eq!(hits(&sample, "guest", "198.51.100.0/24"), 2, "{row}");
                assert_eq!(row["kind"], "container", "{row}");
            }
        }
    }
    assert_eq!(gone, 1, "shown once more");
    scene.end()
}

/// One of which something was told right before nothing led to it any more is read too
/// late.
#[test]
fn a_reading_that_meets_an_end_leaves_the_hits() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    connected(&lab, "p")?;
    lab.shell("ip -n p route add default via 10.3.0.9")?;
    let mut scene = Scene::new(&lab)?;
    let seen = scene.counted(|| connect_udp(&lab, &named("p"), "0.0.0.0:0", "8.8.8.8:53"))?;
    assert_eq!(seen.hits("p", "0.0.0.0/0"), 2);
    // It lives on meanwhile, so that its interfaces do not tell.
    let keep = "exec 4</run/netns/p; echo kept; exec sleep 1000";
    let mut keeper = lab.command("sh").args(["-c", keep]).start()?;
    keeper.wait_stdout(SOON, |line| line == "kept")?;
    let seen = scene.routes.proc.stdout().len();
    scene.routes.proc.signal(Signal::SIGSTOP)?;
    lab.shell("ip -n p route add 198.51.100.0/24 via 10.3.0.9")?;
    lab.netns_del("p")?;
    scene.routes.proc.signal(Signal::SIGCONT)?;
    let sample = scene.routes.from(seen, "its end", &mut |sample| {
        common::rows(sample, "p")
            .iter()
            .any(|row| row["state"] == "gone")
    })?;
    assert_eq!(hits(&sample, "p", "0.0.0.0/0"), 2, "{sample}");
    scene.end()
}

/// More changes than the kernel keeps for a reader that does not read.
#[test]
fn events_that_are_lost_are_told_and_made_up_for() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    connected(&lab, "p")?;
    let mut scene = Scene::new(&lab)?;
    scene.routes.proc.signal(Signal::SIGSTOP)?;
    let add: String = (0..12_000u32)
        .map(|n| {
            format!(
                "route add 100.{}.{}.{}/32 via 10.3.0.9\n",
                64 + n / 62_500,
                n / 250 % 250,
                n % 250
            )
        })
        .collect();
    let file = lab.tmp().join("batch");
    fs::write(&file, add)?;
    lab.command("ip")
        .args(["-n", "p", "-batch"])
        .arg(&file)
        .text()?;
    lab.shell("ip -n p route flush via 10.3.0.9; ip -n p route add 198.51.100.0/24 via 10.3.0.5")?;
    scene.routes.proc.signal(Signal::SIGCONT)?;
    scene.routes.until("the warning", |sample| {
        warnings(sample, "netlink_overrun").len() == 1
    })?;
    scene.rest()?;
    // Nothing that was there before is wrong now, and events work again.
    assert_eq!(
        route(&scene.last, "p", "198.51.100.0/24")["gateway"],
        "10.3.0.5"
    );
    lab.shell("ip -n p route replace 198.51.100.0/24 via 10.3.0.6")?;
    let seen = scene.counted(|| connect_udp(&lab, &named("p"), "0.0.0.0:0", "198.51.100.1:9"))?;
    assert_eq!(seen.of("p"), grown(&[("ipv4/output", 2)]));
    let all = routes(&scene.last, "p", "198.51.100.0/24");
    let hit: Vec<_> = all
        .iter()
        .filter(|r| count(&r["hits"], "output") > 0)
        .collect();
    assert_eq!(hit.len(), 1, "{all:?}");
    assert_eq!(hit[0]["gateway"], "10.3.0.6");
    scene.end()
}

/// With the capabilities of the README and no others.
#[test]
fn the_documented_capabilities_are_enough() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    connected(&lab, "p")?;
    let caps = "+bpf,+net_admin,+perfmon,+sys_admin,+sys_ptrace";
    let netobs = netobs_binary()?;
    for command in ["routes", "watch"] {
        let samples = lab
            .command("setpriv")
            .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
            .args([
                "--inh-caps",
                caps,
                "--ambient-caps",
                caps,
                "--bounding-set",
                &format!("-all,{caps}"),
                "--",
            ])
            .arg(&netobs)
            .args([command, "-o", "json", "-n2", "-i200ms"])
            .json_lines()?;
        let last = &samples[1];
        assert_eq!(last["observer"]["route_backend"], "tracepoint", "{last}");
        assert_eq!(last["warnings"], serde_json::json!([]), "{last}");
        assert_eq!(
            namespace(last, "p")["route_lookups"]["ipv4"]["output"],
            0,
            "{last}"
        );
    }
    Ok(())
}

/// Without lookups there are still tables.
#[test]
fn what_this_kernel_lacks_is_named_and_the_rest_works() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    connected(&lab, "p")?;
    let types = fs::read("/sys/kernel/btf/vmlinux")?;
    let patched = lab.tmp().join("btf");
    let hide = |name: &str| -> anyhow::Result<()> {
        let (from, to) = (
            format!("\0{name}\0"),
            format!("\0{}\0", "x".repeat(name.len())),
        );
        let (from, to) = (from.as_bytes(), to.as_bytes());
        let mut types = types.clone();
        let at = types.windows(from.len()).position(|window| window == from);
        let at = at.unwrap_or_else(|| panic!("no {name} in the kernel's types"));
        types[at..at + to.len()].copy_from_slice(to);
        fs::write(&patched, types)?;
        lab.shell(&format!(
            "umount /sys/kernel/btf/vmlinux 2>/dev/null || true
             mount --bind {} /sys/kernel/btf/vmlinux",
            patched.display()
        ))?;
        Ok(())
    };
    let watch = |args: &[&str]| {
        lab.netobs(
            ["watch", "-o", "json", "-n2", "-i200ms", "p"]
                .iter()
                .chain(args),
        )?
        .json_lines()
    };
    let limited = |sample: &serde_json::Value| -> Vec<String> {
        let all = warnings(sample, "route_lookups_limited");
        all.iter()
            .filter_map(|w| w["message"].as_str().map(str::to_owned))
            .collect()
    };
    let sample = &watch(&[])?[1];
    assert_eq!(limited(sample), Vec::<String>::new(), "{sample}");

    // A field of IPv6's: IPv4 goes on.
    hide("tb6_id")?;
    let sample = &watch(&[])?[1];
    let words = limited(sample);
    assert_eq!(words.len(), 1, "{words:?}");
    assert!(
        words[0].contains("IPv6") && words[0].contains("fib6_table.tb6_id"),
        "{words:?}"
    );
    let lookups = &namespace(sample, "p")["route_lookups"];
    assert_eq!(lookups["ipv6"], serde_json::Value::Null, "{lookups}");
    assert_eq!(lookups["ipv4"]["output"], 0, "{lookups}");
    assert_eq!(sample["observer"]["route_backend"], "tracepoint");

    // One that says whose a device is: nothing can be told.
    hide("net_cookie")?;
    let sample = &watch(&[])?[1];
    assert_eq!(sample["observer"]["route_backend"], "none");
    let unavailable = warnings(sample, "route_lookups_unavailable");
    assert_eq!(unavailable.len(), 1, "{sample}");
    let words = unavailable[0]["message"].as_str().unwrap_or_default();
    assert!(words.contains("net.net_cookie"), "{words}");
    let row = namespace(sample, "p");
    assert_eq!(row["route_lookups"], serde_json::Value::Null);
    assert_eq!(
        row["interfaces"][0]["hook"], "tcx",
        "packets are counted: {row}"
    );
    // Tables are shown all the same, and --strict says that it is not all.
    let output = lab
        .netobs(["routes", "--once", "-o", "json", "--strict", "p"])?
        .output()?;
    assert_eq!(common::code(&output)?, 5, "{output:?}");
    let sample: serde_json::Value = serde_json::from_str(&output.stdout)?;
    assert_eq!(route(&sample, "p", "10.3.0.0/24")["interface"], "eth0");

    // A kernel without types.
    lab.shell("umount /sys/kernel/btf/vmlinux; mount -t tmpfs none /sys/kernel/btf")?;
    let sample = &watch(&[])?[1];
    assert_eq!(sample["observer"]["route_backend"], "none");
    let words = warnings(sample, "route_lookups_unavailable")[0]["message"].to_string();
    assert!(words.contains("/sys/kernel/btf/vmlinux"), "{words}");
    lab.shell("umount /sys/kernel/btf")?;

    // No unified cgroups: nothing that this kernel needs.
    lab.shell("while umount -l \"$(awk '$3 == \"cgroup2\" {print $2; exit}' /proc/mounts)\"; do :; done 2>/dev/null")?;
    let mut scene = Scene::with(&lab, &["p"])?;
    assert_eq!(limited(&scene.last), [""; 0]);
    let seen =
        scene.counted(|| fail_to_connect(&lab, &named("p"), "0.0.0.0:0", "203.0.113.1:9"))?;
    assert_eq!(seen.of("p"), failed("ipv4/output", "no_route", 1));
    scene.end()
}

/// Not asked for, not there.
#[test]
fn lookups_can_be_left_alone() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    connected(&lab, "p")?;
    let mut watch = Watch::start(&lab, &["--no-lookups", "p"])?;
    let sample = watch.fresh()?;
    assert_eq!(sample["observer"]["route_backend"], "none");
    assert_eq!(sample["warnings"], serde_json::json!([]));
    assert_eq!(
        namespace(&sample, "p")["route_lookups"],
        serde_json::Value::Null
    );
    let programs = sample["observer"]["programs"].to_string();
    assert!(!programs.contains("visit"), "{programs}");
    watch.end()?;
    Ok(())
}
