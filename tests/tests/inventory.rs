//! Who is who: containers, networks, shared and hidden namespaces, and which
//! host end belongs to which interface.

mod common;

use common::{
    Link, SOON, Watch, count, find_interface, grown, growth, inode, interface, namespace, observes,
    ping, row_names, rows,
};
use netobs_tests::{Container, Lab, Netns, poll_until};
use nix::sys::signal::Signal;
use serde_json::Value;

/// A file below /sys/class/net of a namespace, as a number.
fn sysfs(container: &Container<'_>, path: &str) -> anyhow::Result<u64> {
    Ok(container.exec(["cat", path])?.trim().parse()?)
}

/// Holds an interface's host end against what sysfs says inside and `ip`
/// outside, and its addresses against those that `ip` shows inside.
fn names_its_host_end(
    lab: &Lab,
    sample: &Value,
    container: &Container<'_>,
    ifname: &str,
    bridge: &str,
) -> anyhow::Result<()> {
    let shown = interface(sample, container.name(), ifname);
    let index = sysfs(container, &format!("/sys/class/net/{ifname}/ifindex"))?;
    let other = sysfs(container, &format!("/sys/class/net/{ifname}/iflink"))?;
    assert_eq!(shown["ifindex"], index, "{shown}");
    assert_eq!(shown["peer"]["ifindex"], other, "{shown}");
    let peer = shown["peer"]["name"].as_str().expect("a host end");
    let outside = lab.link_stats(&Netns::Host, peer)?;
    assert_eq!(u64::from(outside.ifindex), other, "{shown}");
    assert_eq!(outside.master.as_deref(), Some(bridge), "{shown}");
    assert_eq!(shown["peer"]["master"], bridge, "{shown}");

    let args = ["-j", "address", "show", "dev", ifname];
    let inside = container.command("ip").args(args).json()?;
    let mut addresses: Vec<String> = inside[0]["addr_info"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|a| {
            let local = a["local"].as_str().unwrap_or_default();
            format!("{local}/{}", a["prefixlen"])
        })
        .collect();
    let mut ours: Vec<String> = serde_json::from_value(shown["addresses"].clone())?;
    addresses.sort();
    ours.sort();
    assert_eq!(ours, addresses, "{shown}");
    assert_eq!(shown["mac"], inside[0]["address"], "{shown}");
    Ok(())
}

#[test]
fn containers_networks_and_shared_namespaces_are_told_apart() -> anyhow::Result<()> {
    let lab = Lab::with_docker()?;
    lab.docker(["network", "create", "second"]).text()?;
    let bridge = lab.docker(["network", "inspect", "-f", "{{.Id}}", "second"]);
    let bridge = { bridge }.text()?;
    let bridge = format!("br-{}", &bridge[..12]);
    let one = lab.run_container("one", &[], &[])?;
    let two = lab.run_container("two", &[], &[])?;
    let other = lab.run_container("other", &["--network=second"], &[])?;
    let guest = lab.run_container("guest", &["--network=container:two"], &[])?;
    let hosted = lab.run_container("hosted", &["--network=host"], &[])?;
    let lonely = lab.run_container("lonely", &["--network=none"], &[])?;

    let mut watch = Watch::start(&lab, &[])?;
    let links = [
        Link::new("one", &one.netns(), "eth0"),
        Link::new("guest+two", &two.netns(), "eth0"),
        Link::new("other", &other.netns(), "eth0"),
    ];
    let before = watch.at_rest(&lab, &links)?;
    before.reconciles();
    let sample = &before.sample;
    let all = ["guest+two", "host", "lonely", "one", "other"];
    assert_eq!(row_names(sample), all);

    for (container, row) in [
        (&one, "one"),
        (&two, "guest+two"),
        (&guest, "guest+two"),
        (&hosted, "host"),
        (&other, "other"),
        (&lonely, "lonely"),
    ] {
        let shown = namespace(sample, row);
        assert_eq!(shown["inode"], inode(&lab, &container.netns())?, "{row}");
        let members = shown["members"].as_array().expect("members");
        let member = members
            .iter()
            .find(|member| member["name"] == container.name());
        let member = member.unwrap_or_else(|| panic!("{} in {shown}", container.name()));
        assert_eq!(member["runtime"], "docker");
        assert_eq!(member["id"], container.id());
        assert_eq!(member["image"], netobs_tests::image::NAME);
        assert_eq!(member["pid"], container.pid());
        let kind = if row == "host" { "host" } else { "container" };
        assert_eq!(shown["kind"], kind);
    }
    let members = |row| namespace(sample, row)["members"].as_array().map(Vec::len);
    assert_eq!(members("guest+two"), Some(2));
    assert_eq!(members("one"), Some(1));
    assert_eq!(members("host"), Some(1));
    let none = namespace(sample, "lonely")["interfaces"].as_array();
    assert_eq!(none.map(Vec::len), Some(0));

    names_its_host_end(&lab, sample, &one, "eth0", "docker0")?;
    names_its_host_end(&lab, sample, &other, "eth0", &bridge)?;
    let shared = interface(sample, "guest+two", "eth0");
    let index = sysfs(&two, "/sys/class/net/eth0/iflink")?;
    assert_eq!(shared["peer"]["ifindex"], index);

    // The other row's numbers stand still.
    ping(&lab, &one.netns(), &two.address()?, &["-c20"])?;
    let after = watch.at_rest(&lab, &links)?;
    after.reconciles();
    for direction in ["rx", "tx"] {
        let icmp = |rest: &common::Rest, row| {
            count(&rest.counters(row, direction)["ipv4"]["icmp"], "packets")
        };
        assert_eq!(icmp(&after, "one") - icmp(&before, "one"), 20);
        assert_eq!(icmp(&after, "guest+two") - icmp(&before, "guest+two"), 20);
        assert_eq!(icmp(&after, "other"), icmp(&before, "other"));
    }

    // `list` knows the same without any counters.
    let list = lab.netobs(["list", "-o", "json"])?.json()?;
    assert_eq!(list["schema"], "netobs.list/1");
    assert_eq!(row_names(&list), all);
    names_its_host_end(&lab, &list, &one, "eth0", "docker0")?;

    watch.end()?;
    Ok(())
}

#[test]
fn a_network_joined_and_left_while_watching_adds_and_takes_an_interface() -> anyhow::Result<()> {
    let lab = Lab::with_docker()?;
    lab.docker(["network", "create", "second"]).text()?;
    let mover = lab.run_container("mover", &[], &[])?;
    let fixed = lab.run_container("fixed", &["--network=second"], &[])?;
    let address = lab.docker([
        "inspect",
        "-f",
        "{{.NetworkSettings.Networks.second.IPAddress}}",
        "fixed",
    ]);
    let address = { address }.text()?;
    let address = address.trim();
    let mut watch = Watch::start(&lab, &["mover"])?;
    let eth0 = Link::new("mover", &mover.netns(), "eth0");
    let eth1 = Link::new("mover", &mover.netns(), "eth1");
    let before = watch.at_rest(&lab, std::slice::from_ref(&eth0))?;
    before.reconciles();

    let network = |what| lab.docker(["network", what, "second", "mover"]).text();
    network("connect")?;
    watch.until("the second interface", |sample| {
        observes(sample, "mover", "eth1")
    })?;
    ping(&lab, &mover.netns(), address, &["-c7"])?;
    let joined = watch.at_rest(&lab, &[eth0.clone(), eth1])?;
    joined.reconciles();
    let icmp = |rest: &common::Rest, direction| {
        count(
            &rest.counters("mover", direction)["ipv4"]["icmp"],
            "packets",
        )
    };
    assert_eq!(icmp(&joined, "tx"), icmp(&before, "tx") + 7);
    assert_eq!(icmp(&joined, "rx"), icmp(&before, "rx") + 7);

    network("disconnect")?;
    watch.until("one interface again", |sample| {
        let row = rows(sample, "mover");
        row.iter().all(|row| find_interface(row, "eth1").is_none())
    })?;
    // What it counted stays in the totals; `growth` panics where one fell.
    let left = watch.at_rest(&lab, &[eth0])?;
    left.reconciles();
    assert_eq!(icmp(&left, "tx"), icmp(&joined, "tx"));
    for direction in ["rx", "tx"] {
        let mut last = None;
        for sample in watch.samples()? {
            let now = namespace(&sample, "mover")[direction].clone();
            if let Some(last) = last.replace(now.clone()) {
                growth(&last, &now);
            }
        }
    }
    drop(fixed);
    watch.end()?;
    Ok(())
}

#[test]
fn docker_stats_shows_the_same_bytes() -> anyhow::Result<()> {
    let lab = Lab::with_docker()?;
    let server = lab.run_container("server", &[], &["httpd", "-f", "-h", "/www"])?;
    let client = lab.run_container("client", &[], &[])?;
    let mut watch = Watch::start(&lab, &[])?;
    let url = format!("http://{}/index.html", server.address()?);
    for _ in 0..5 {
        client.exec(["wget", "-q", "-O", "/dev/null", &url])?;
    }
    let links = [
        Link::new("server", &server.netns(), "eth0"),
        Link::new("client", &client.netns(), "eth0"),
    ];
    let stats = |container: &Container<'_>| {
        // `docker stats` rounds what this answer of its API holds.
        let path = format!(
            "http://localhost/containers/{}/stats?stream=false&one-shot=true",
            container.id()
        );
        let answer = lab
            .command("curl")
            .args(["-sf", "--unix-socket"])
            .arg(lab.docker_socket())
            .arg(path)
            .json()?;
        anyhow::Ok(answer["networks"]["eth0"].clone())
    };
    // The host's end of a veth has a link-local address and multicasts now and then:
    // the engine's numbers have to be of a time at which nothing moved.
    let (rest, theirs) = poll_until(SOON, "the engine's numbers at rest", || {
        let before = watch.at_rest(&lab, &links)?;
        let theirs = [stats(&server)?, stats(&client)?];
        let after = watch.at_rest(&lab, &links)?;
        Ok(before.is_like(&after).then_some((after, theirs)))
    })?;
    rest.reconciles();
    for (container, theirs) in [&server, &client].into_iter().zip(&theirs) {
        let ours = interface(&rest.sample, container.name(), "eth0");
        for direction in ["rx", "tx"] {
            for key in ["bytes", "packets"] {
                assert_eq!(
                    count(&ours["before_attach"][direction], key) + count(&ours[direction], key),
                    count(theirs, &format!("{direction}_{key}")),
                    "{} {direction} {key}",
                    container.name()
                );
            }
        }
    }
    let sent = &namespace(&rest.sample, "server")["tx"];
    // Five times the page.
    assert!(count(sent, "bytes") > 5 * 7 * 1024, "{sent}");
    assert_eq!(count(&sent["tcp_flags"], "syn"), 5);
    watch.end()?;
    Ok(())
}

/// One that nothing leads to, and that is not asked for, gets another pair and ends. The
/// next one is known by the same id for a moment.
#[test]
fn what_was_not_asked_for_leaves_nothing_to_the_next_with_its_id() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    lab.netns_add("hidden")?;
    lab.shell(
        "sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1
         ip link add vh up type veth peer name eth0 netns hidden",
    )?;
    let id = |end: &str| {
        let shown = ["-j", "link", "show", "dev", end];
        let shown = lab.command("ip").args(shown).json()?;
        Ok::<_, anyhow::Error>(shown[0]["link_netnsid"].clone())
    };
    let first = id("vh")?;
    let go = lab.tmp().join("go");
    let keep = format!(
        "mkfifo {go}; exec 4</run/netns/hidden; ip netns del hidden; echo kept
         read go <{go}
         ip link add v2 type veth peer name eth1 netns /proc/self/fd/4
         ip link set v2 up; echo made; exec sleep 1000",
        go = go.display()
    );
    let mut keeper = lab.command("sh").args(["-ec", &keep]).start()?;
    keeper.wait_stdout(SOON, |line| line == "kept")?;
    let mut watch = Watch::start(&lab, &["web"])?;
    watch.fresh()?;
    lab.shell(&format!("echo >{}", go.display()))?;
    keeper.wait_stdout(SOON, |line| line == "made")?;
    assert_eq!(id("v2")?, first);
    watch.fresh()?;
    watch.fresh()?;
    keeper.end(Signal::SIGKILL, SOON)?;
    poll_until(SOON, "the end of its pairs", || {
        let links = lab.command("ip").args(["-br", "link"]).text()?;
        Ok((!links.contains("v2@") && !links.contains("vh@")).then_some(()))
    })?;

    lab.netns_add("web")?;
    lab.shell("ip link add vw up type veth peer name eth0 netns web")?;
    assert_eq!(id("vw")?, first, "the lowest that is free");
    watch.until("web", |sample| observes(sample, "web", "eth0"))?;
    let seen = watch.proc.stdout().len();
    lab.netns_del("web")?;
    let sample = watch.from(seen, "its end", &mut |sample| {
        rows(sample, "web").iter().any(|row| row["state"] == "gone")
    })?;
    let interfaces = &namespace(&sample, "web")["interfaces"];
    assert_eq!(interfaces.as_array().map(Vec::len), Some(1), "{interfaces}");
    watch.end()?;
    Ok(())
}

/// Two namespaces joined by a pair that has no end on the host, and one of
/// them with a macvlan on the host's bridge.
#[test]
fn interfaces_without_a_host_end_are_observed_from_inside() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    let (left, right) = (lab.netns_add("left")?, lab.netns_add("right")?);
    let vlan = lab.netns_add("vlan")?;
    lab.shell(
        "sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1
         for ns in left right vlan; do
            nsenter --net=/run/netns/$ns sysctl -qw net.ipv6.conf.default.disable_ipv6=1
         done
         ip -n left link add eth7 type veth peer name eth8 netns right
         # Nobody asks a neighbour again.
         nsenter --net=/run/netns/left sysctl -qw net.ipv4.neigh.eth7.delay_first_probe_time=600
         nsenter --net=/run/netns/right sysctl -qw net.ipv4.neigh.eth8.delay_first_probe_time=600
         ip -n left address add 10.8.0.1/24 dev eth7
         ip -n left link set eth7 up
         ip -n right address add 10.8.0.2/24 dev eth8
         ip -n right link set eth8 up
         ip link add br0 type bridge mcast_snooping 0
         ip address add 10.7.0.1/24 dev br0
         ip link set br0 up
         # A bridge without a port has no carrier, and neither has what is on it.
         ip link add port0 type veth peer name port1
         ip link set port0 master br0 up
         ip link set port1 up
         ip link add link br0 name mac0 type macvlan mode bridge
         ip link set mac0 netns vlan
         ip -n vlan address add 10.7.0.2/24 dev mac0
         ip -n vlan link set mac0 up",
    )?;
    // Only what one asks for: the host's own ARP for the bridge is its business.
    let mut watch = Watch::start(&lab, &["left", "right", "vlan"])?;
    let links = [
        Link::new("left", &left, "eth7"),
        Link::new("right", &right, "eth8"),
        Link::new("vlan", &vlan, "mac0"),
    ];
    let before = watch.at_rest(&lab, &links)?;
    before.reconciles();
    for (row, ifname) in [("left", "eth7"), ("right", "eth8"), ("vlan", "mac0")] {
        let shown = interface(&before.sample, row, ifname);
        assert_eq!(shown["peer"], Value::Null, "{shown}");
        assert_ne!(shown["hook"], "none", "{shown}");
    }

    // One way: nobody listens at the far end, and nothing comes back but a
    // word of ICMP with 28 bytes of headers more.
    common::inside(&lab, &left, || {
        let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
        socket.send_to(&[0; 200], "10.8.0.2:9")?;
        Ok(())
    })?;
    let after = watch.at_rest(&lab, &links)?;
    after.reconciles();
    let grew = |row, direction| {
        growth(
            before.counters(row, direction),
            after.counters(row, direction),
        )
    };
    // The first packet asks for the neighbour, who answers.
    let asked = grown(&[("arp", 1, 42), ("ipv4/udp", 1, 242)], &[("broadcast", 1)]);
    let answered = grown(&[("arp", 1, 42), ("ipv4/icmp", 1, 270)], &[]);
    assert_eq!(grew("left", "tx"), asked);
    assert_eq!(grew("right", "rx"), asked);
    assert_eq!(grew("left", "rx"), answered);
    assert_eq!(grew("right", "tx"), answered);

    // Nobody answers. The sender's kernel hands it a copy of its own
    // broadcasts, which never crossed the border and are no traffic.
    let before = after;
    common::inside(&lab, &vlan, || {
        let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
        socket.set_broadcast(true)?;
        for _ in 0..3 {
            socket.send_to(&[0; 100], "10.7.0.255:9")?;
        }
        Ok(())
    })?;
    let after = watch.at_rest(&lab, &links)?;
    after.reconciles();
    let sent = growth(before.counters("vlan", "tx"), after.counters("vlan", "tx"));
    assert_eq!(
        sent,
        grown(&[("ipv4/udp", 3, 3 * 142)], &[("broadcast", 3)])
    );
    let received = growth(before.counters("vlan", "rx"), after.counters("vlan", "rx"));
    assert_eq!(received, grown(&[], &[]));

    watch.end()?;
    Ok(())
}

/// Made alike to the last number: only the namespace itself tells them apart.
#[test]
fn namespaces_with_equal_numbers_and_addresses_do_not_mix() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    lab.shell("sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1")?;
    let twins = [lab.netns_add("twin1")?, lab.netns_add("twin2")?];
    for (name, index) in [("twin1", 21), ("twin2", 22)] {
        lab.shell(&format!(
            "nsenter --net=/run/netns/{name} sysctl -qw net.ipv6.conf.default.disable_ipv6=1
             ip -n {name} link add eth0 index 77 address 02:00:00:00:00:77 \
                type veth peer name tmp0 index 70
             ip -n {name} link set tmp0 netns 1 name end{index}
             ip link set end{index} up
             ip -n {name} address add 10.6.0.2/24 dev eth0
             ip -n {name} link set eth0 up
             ip -n {name} neigh add 10.6.0.1 lladdr 02:00:00:00:00:66 dev eth0 nud permanent"
        ))?;
    }
    let mut watch = Watch::start(&lab, &[])?;
    let links = [
        Link::new("twin1", &twins[0], "eth0"),
        Link::new("twin2", &twins[1], "eth0"),
    ];
    let before = watch.at_rest(&lab, &links)?;
    before.reconciles();
    for (row, end) in [("twin1", "end21"), ("twin2", "end22")] {
        let shown = interface(&before.sample, row, "eth0");
        assert_eq!(shown["ifindex"], 77);
        assert_eq!(shown["peer"]["name"], end, "{shown}");
    }
    for (netns, times) in [(&twins[0], 3), (&twins[1], 8)] {
        common::inside(&lab, netns, || {
            let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
            for _ in 0..times {
                socket.send_to(&[0; 50], "10.6.0.1:9")?;
            }
            Ok(())
        })?;
    }
    let after = watch.at_rest(&lab, &links)?;
    after.reconciles();
    for (row, times) in [("twin1", 3), ("twin2", 8)] {
        let sent = growth(before.counters(row, "tx"), after.counters(row, "tx"));
        assert_eq!(
            sent,
            grown(&[("ipv4/udp", times, times * 92)], &[]),
            "{row}"
        );
    }
    watch.end()?;
    Ok(())
}

#[test]
fn a_namespace_that_only_a_process_holds_is_named_after_it() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    let script = "echo pid $$; exec sleep 1000";
    let mut holder = lab
        .command("unshare")
        .args(["--net", "sh", "-c", script])
        .start()?;
    let mut stranger = lab
        .command("unshare")
        .args(["--net", "sh", "-c", script])
        .start()?;
    let pid = |line: &str| line.strip_prefix("pid ").map(str::to_owned);
    let pid_of = |proc: &mut netobs_tests::Proc| -> anyhow::Result<u32> {
        let line = proc.wait_stdout(common::SOON, |line| pid(line).is_some())?;
        Ok(pid(&line).unwrap_or_default().parse()?)
    };
    let (held, apart) = (pid_of(&mut holder)?, pid_of(&mut stranger)?);
    lab.shell(&format!(
        "ip link add out0 type veth peer name eth0 netns {held}
         ip link set out0 up
         nsenter --net=/proc/{held}/ns/net ip link set eth0 up"
    ))?;
    let mut watch = Watch::start(&lab, &[])?;
    let name = format!("pid:{held}(sleep)");
    let netns = Netns::Pid(held);
    let sample = watch.until("the row", |sample| observes(sample, &name, "eth0"))?;
    let row = namespace(&sample, &name);
    assert_eq!(row["kind"], "process");
    assert_eq!(row["inode"], inode(&lab, &netns)?);
    assert_eq!(row["members"][0]["pid"], held);
    assert_eq!(interface(&sample, &name, "eth0")["peer"]["name"], "out0");
    // Nothing connects the other one to us.
    let hidden = format!("pid:{apart}(sleep)");
    assert_eq!(rows(&sample, &hidden), [&Value::Null; 0]);
    let all = lab.netobs(["list", "--all", "-o", "json"])?.json()?;
    assert_eq!(
        namespace(&all, &hidden)["inode"],
        inode(&lab, &Netns::Pid(apart))?
    );
    watch.end()?;
    Ok(())
}
