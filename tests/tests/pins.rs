//! `--pin`: counting goes on without netobs, and the next one goes on with the totals.

mod common;

use anyhow::Context as _;
use common::{
    Link, SOON, Watch, code, count, find_interface, inside, interface, namespace, observes, ping,
    quiet_pair, rows,
};
use netobs_tests::{Lab, Netns, poll_until};
use nix::sys::signal::Signal;
use serde_json::Value;

const FOLDER: &str = "/sys/fs/bpf/netobs";
const MODES: [&str; 2] = ["--tc-mode=tcx", "--tc-mode=clsact"];

fn links() -> [Link<'static>; 2] {
    [Link::named("a", "eth0"), Link::named("b", "eth0")]
}

/// A quiet pair. The lab has a BPF file system of its own.
fn lab() -> anyhow::Result<Lab> {
    let lab = Lab::new()?;
    quiet_pair(&lab)?;
    Ok(lab)
}

fn pings(lab: &Lab, times: usize) -> anyhow::Result<()> {
    ping(
        lab,
        &Netns::Named("a".to_owned()),
        "10.9.0.2",
        &[&format!("-c{times}")],
    )
}

/// ICMP packets that `row` received and sent.
fn icmp(sample: &Value, row: &str) -> (u64, u64) {
    let of = |direction: &str| {
        count(
            &namespace(sample, row)[direction]["ipv4"]["icmp"],
            "packets",
        )
    };
    (of("rx"), of("tx"))
}

fn lookups(sample: &Value, row: &str) -> u64 {
    count(&namespace(sample, row)["route_lookups"], "total")
}

/// Programs, links and maps of netobs that the kernel has, for this lab's folder.
fn pinned(lab: &Lab) -> anyhow::Result<Vec<String>> {
    let found = lab.shell(&format!("find {FOLDER} -type f 2>/dev/null || true"))?;
    Ok(found.lines().map(str::to_owned).collect())
}

fn filters(lab: &Lab) -> anyhow::Result<usize> {
    let mut number = 0;
    for end in ["va", "vb", "br0"] {
        for hook in ["ingress", "egress"] {
            let shown = lab.shell(&format!("tc filter show dev {end} {hook} || true"))?;
            number += shown.matches("netobs_").count();
        }
    }
    Ok(number)
}

#[test]
fn counting_goes_on_without_netobs_and_the_next_goes_on_with_the_totals() -> anyhow::Result<()> {
    for mode in MODES {
        let lab = lab()?;
        // Observed from inside, where nothing of it is on the host.
        lab.shell(
            "for ns in l r; do
                ip netns add $ns
                nsenter --net=/run/netns/$ns sysctl -qw net.ipv6.conf.default.disable_ipv6=1
             done
             ip -n l link add eth7 type veth peer name eth8 netns r
             ip -n l address add 10.8.0.1/24 dev eth7
             ip -n r address add 10.8.0.2/24 dev eth8
             ip -n l link set eth7 up
             ip -n r link set eth8 up",
        )?;
        let far = || ping(&lab, &Netns::Named("l".to_owned()), "10.8.0.2", &["-c4"]);
        let args = ["--pin", mode];
        let all = [
            Link::named("a", "eth0"),
            Link::named("b", "eth0"),
            Link::named("l", "eth7"),
            Link::named("r", "eth8"),
        ];
        let mut watch = Watch::start(&lab, &args)?;
        let none = lookups(&watch.settled()?, "a");
        pings(&lab, 5)?;
        // A run of pings takes as many lookups as another.
        let each = lookups(&watch.settled()?, "a") - none;
        assert!(each > 0);
        far()?;
        let first = watch.at_rest(&lab, &all)?;
        first.reconciles();
        assert_eq!(first.sample["observer"]["pinned"], FOLDER);
        watch.end()?;

        pings(&lab, 5)?;
        far()?;
        let mut watch = Watch::start(&lab, &args)?;
        let second = watch.at_rest(&lab, &all)?;
        second.reconciles();
        assert_eq!(icmp(&second.sample, "a"), (10, 10), "{mode}");
        assert_eq!(icmp(&second.sample, "b"), (10, 10), "{mode}");
        assert_eq!(icmp(&second.sample, "l"), (8, 8), "{mode}");
        for (row, ifname) in [("a", "eth0"), ("b", "eth0"), ("l", "eth7"), ("r", "eth8")] {
            for key in ["observed_since", "before_attach", "hook"] {
                assert_eq!(
                    interface(&second.sample, row, ifname)[key],
                    interface(&first.sample, row, ifname)[key],
                    "{mode} {row} {key}"
                );
            }
        }
        let now = lookups(&watch.settled()?, "a");
        assert_eq!(now, none + 2 * each, "{mode}");
        watch.proc.end(Signal::SIGKILL, SOON)?;

        pings(&lab, 5)?;
        let mut watch = Watch::start(&lab, &args)?;
        let third = watch.at_rest(&lab, &all)?;
        third.reconciles();
        assert_eq!(icmp(&third.sample, "a"), (15, 15), "{mode}");
        let now = lookups(&watch.settled()?, "a");
        assert_eq!(now, none + 3 * each, "{mode}");
        watch.end()?;

        let output = lab.netobs(["clean"])?.output()?.success()?;
        assert!(output.stdout.contains(FOLDER), "{output:?}");
        assert_eq!(pinned(&lab)?, Vec::<String>::new());
        assert_eq!(filters(&lab)?, 0, "{mode}");
        poll_until(SOON, "the end of the programs", || {
            let left = hooked(&lab)?;
            Ok(left.is_empty().then_some(()))
        })?;
    }
    Ok(())
}

/// What hangs on the ends by TCX, here and inside `l`.
fn hooked(lab: &Lab) -> anyhow::Result<Vec<String>> {
    use aya::programs::{SchedClassifier, TcAttachType};
    let mut found = Vec::new();
    for (netns, ends) in [
        (Netns::Host, &["va", "vb", "br0"][..]),
        (Netns::Named("a".to_owned()), &["eth0"]),
    ] {
        let on = inside(lab, &netns, || {
            let mut on = Vec::new();
            for end in ends {
                for hook in [TcAttachType::Ingress, TcAttachType::Egress] {
                    for program in SchedClassifier::query_tcx(end, hook)?.1 {
                        on.push(format!("{end}: {:?}", program.name_as_str()));
                    }
                }
            }
            Ok(on)
        })?;
        found.extend(on);
    }
    Ok(found)
}

#[test]
fn what_ended_or_came_meanwhile_is_told_apart_from_what_stayed() -> anyhow::Result<()> {
    let lab = lab()?;
    lab.shell("sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1")?;
    let connect = |name: &str, number: usize, index: &str| {
        lab.shell(&format!(
            "ip netns add {name}
             nsenter --net=/run/netns/{name} sysctl -qw net.ipv6.conf.default.disable_ipv6=1
             ip link add v{name} {index} type veth peer name eth0 netns {name}
             ip link set v{name} master br0 up
             ip -n {name} link set eth0 up
             ip -n {name} address add 10.9.0.{number}/24 dev eth0"
        ))
    };
    connect("short", 7, "index 700")?;
    connect("moved", 8, "index 800")?;
    connect("held", 9, "index 900")?;
    let from =
        |name: &str, times: &str| ping(&lab, &Netns::Named(name.to_owned()), "10.9.0.1", &[times]);
    let mut watch = Watch::start(&lab, &["--pin"])?;
    for name in ["short", "moved", "held"] {
        watch.until("the rows", |sample| observes(sample, name, "eth0"))?;
    }
    from("short", "-c3")?;
    from("moved", "-c2")?;
    from("held", "-c1")?;
    watch.until("the pings", |sample| {
        icmp(sample, "short") == (3, 3)
            && icmp(sample, "moved") == (2, 2)
            && icmp(sample, "held") == (1, 1)
    })?;
    watch.proc.end(Signal::SIGKILL, SOON)?;

    // One ends after more traffic, its index is another's; one moves to others; of one
    // only the pair is left for a while.
    from("held", "-c7")?;
    let holder = "exec 9</run/netns/held; echo open; exec sleep 2147483647";
    let holder = lab.command("sh").args(["-c", holder]).start()?;
    poll_until(SOON, "the holder", || {
        Ok((!holder.stdout().is_empty()).then_some(()))
    })?;
    lab.netns_del("held")?;
    from("short", "-c4")?;
    lab.netns_del("short")?;
    poll_until(SOON, "the end of its veth", || {
        let left = lab.shell("ip -o link show vshort 2>/dev/null || true")?;
        Ok(left.is_empty().then_some(()))
    })?;
    connect("heir", 7, "index 700")?;
    from("heir", "-c5")?;
    from("moved", "-c1")?;
    lab.shell(
        "ip netns add other
         ip -n moved link set eth0 netns other
         ip -n other link set eth0 up
         ip -n other address add 10.9.0.8/24 dev eth0",
    )?;
    from("other", "-c6")?;

    let mut watch = Watch::start(&lab, &["--pin"])?;
    let sample = watch.samples()?.remove(0);
    let short = namespace(&sample, "short");
    assert_eq!(short["state"], "gone", "{short}");
    assert_eq!(short["kind"], "named");
    assert_eq!(icmp(&sample, "short"), (7, 7));
    let held = namespace(&sample, "held");
    assert_eq!(held["state"], "gone", "{held}");
    assert_eq!(icmp(&sample, "held"), (8, 8));
    // What passed before we came is the kernel's only.
    assert_eq!(icmp(&sample, "heir"), (0, 0));
    assert_eq!(icmp(&sample, "other"), (0, 0));
    // Who had it keeps what was counted while nobody could tell it apart.
    assert_eq!(icmp(&sample, "moved"), (9, 9));
    assert!(find_interface(namespace(&sample, "moved"), "eth0").is_none());
    // The pair is observed anew, as nobody's.
    let tx = |sample: &Value| {
        let ns = sample["namespaces"].as_array()?.iter().find(|ns| {
            let pair = &ns["interfaces"][0];
            ns["state"] == "up" && pair["peer"]["name"] == "vheld" && pair["hook"] == "tcx"
        })?;
        ns["tx"]["ipv4"]["icmp"]["packets"].as_u64()
    };
    watch.until("the held pair", |sample| tx(sample) == Some(0))?;
    ping(&lab, &Netns::Named("a".to_owned()), "10.9.0.9", &["-c2"])?;
    watch.until("its answers", |sample| tx(sample) == Some(2))?;
    let shown = |sample: &Value| rows(sample, "short").len();
    let next = watch.fresh()?;
    assert_eq!(shown(&next), 0, "shown once");
    from("heir", "-c2")?;
    from("other", "-c3")?;
    let all = [
        Link::named("heir", "eth0"),
        Link::named("other", "eth0"),
        Link::named("a", "eth0"),
    ];
    let rest = watch.at_rest(&lab, &all)?;
    rest.reconciles();
    assert_eq!(icmp(&rest.sample, "heir"), (2, 2));
    assert_eq!(icmp(&rest.sample, "other"), (3, 3));
    assert_eq!(icmp(&rest.sample, "moved"), (9, 9));
    watch.end()?;
    // Not again in the next life either.
    let mut watch = Watch::start(&lab, &["--pin"])?;
    let sample = watch.fresh()?;
    assert_eq!(shown(&sample), 0);
    assert_eq!(icmp(&sample, "moved"), (9, 9));
    watch.end()?;
    Ok(())
}

#[test]
fn nothing_is_lost_while_netobs_is_killed_and_replaced_under_traffic() -> anyhow::Result<()> {
    for mode in MODES {
        let lab = lab()?;
        let mut watch = Watch::start(&lab, &["--pin", mode])?;
        watch.until("both", |sample| {
            ["a", "b"].iter().all(|row| observes(sample, row, "eth0"))
        })?;
        let a = Netns::Named("a".to_owned());
        let mut traffic = lab
            .command_in(&a, "busybox")
            .args(["ping", "-q", "-i0.004", "-W5", "10.9.0.2"])
            .start()?;
        for lives in 0..6 {
            watch.proc.end(Signal::SIGKILL, SOON)?;
            // Every other one logs: its programs are other ones.
            let verbose: &[&str] = if lives % 2 == 0 { &["-v"] } else { &[] };
            watch = Watch::start(&lab, &[&["--pin", mode], verbose].concat())?;
            assert!(traffic.is_running());
        }
        let told = traffic.end(Signal::SIGINT, SOON)?.stdout;
        let words: Vec<&str> = told.split_whitespace().collect();
        let sent = words
            .windows(3)
            .find(|w| w[1..] == ["packets", "transmitted,"]);
        let sent: u64 = sent.with_context(|| told.clone())?[0].parse()?;
        let rest = watch.at_rest(&lab, &links())?;
        rest.reconciles();
        for row in ["a", "b"] {
            let (tx, rx) = icmp(&rest.sample, row);
            assert_eq!(tx, rx, "{mode}: {told}");
            // The signal may have come between counting one and sending it.
            assert!(sent - tx <= 1, "{mode}: {row} has {tx}: {told}");
        }
        watch.end()?;
    }
    Ok(())
}

#[test]
fn a_folder_that_is_of_no_use_is_told_and_left_alone() -> anyhow::Result<()> {
    let lab = lab()?;
    let refused = |args: &[&str], words: &str| -> anyhow::Result<()> {
        let args = [&["watch", "--once", "--no-lookups"], args].concat();
        let output = lab.netobs(&args)?.output()?;
        assert_eq!(code(&output)?, 1, "{output:?}");
        assert!(output.stderr.contains(words), "{output:?}");
        assert!(output.stdout.is_empty());
        Ok(())
    };
    // No BPF file system.
    refused(
        &["--pin", "--pin-path=/run/netobs"],
        "mount -t bpf bpf /sys/fs/bpf",
    )?;
    refused(&["--pin", "--pin-path=relative"], "absolute path")?;
    // What others have made.
    lab.shell(&format!(
        "mkdir {FOLDER}
         bpftool map create {FOLDER}/stranger type array key 4 value 4 entries 1 name stranger"
    ))?;
    refused(&["--pin"], "stranger")?;
    let output = lab.netobs(["clean"])?.output()?;
    assert_eq!(code(&output)?, 1, "{output:?}");
    assert_eq!(pinned(&lab)?, [format!("{FOLDER}/stranger")]);
    lab.shell(&format!("rm {FOLDER}/stranger; rmdir {FOLDER}"))?;

    let mut watch = Watch::start(&lab, &["--pin"])?;
    refused(&["--pin"], "in use by another netobs")?;
    // One without pins, and one with a folder of its own, are no matter.
    lab.netobs(["watch", "--once", "--no-lookups"])?
        .output()?
        .success()?;
    let second = "--pin-path=/sys/fs/bpf/second";
    lab.netobs(["watch", "--once", "--no-lookups", "--pin", second])?
        .output()?
        .success()?;
    lab.netobs(["clean", second])?.output()?.success()?;
    let before = pinned(&lab)?;
    let output = lab.netobs(["clean"])?.output()?.success()?;
    assert!(output.stderr.contains("running and stay"), "{output:?}");
    assert_eq!(pinned(&lab)?, before);
    watch.fresh()?;
    watch.end()?;

    // From another namespace; then another version.
    let a = Netns::Named("a".to_owned());
    let elsewhere = lab
        .netobs_in(&a, ["watch", "--once", "--no-lookups", "--pin"])?
        .output()?;
    assert_eq!(code(&elsewhere)?, 1, "{elsewhere:?}");
    assert!(
        elsewhere.stderr.contains("another network namespace"),
        "{elsewhere:?}"
    );
    let found = pinned(&lab)?.len();
    let zeros = "0 ".repeat(95);
    lab.shell(&format!(
        "bpftool map update pinned {FOLDER}/NETOBS_META key 0 0 0 0 value 99 {zeros}"
    ))?;
    refused(&["--pin"], "another version of netobs (maps of version 99")?;
    assert_eq!(pinned(&lab)?.len(), found, "nothing is removed unasked");
    lab.netobs(["clean"])?.output()?.success()?;
    assert_eq!(pinned(&lab)?, Vec::<String>::new());
    Ok(())
}

#[test]
fn bpftool_alone_reads_the_same_numbers() -> anyhow::Result<()> {
    let lab = lab()?;
    let mut watch = Watch::start(&lab, &["--pin", "--max-interfaces=16"])?;
    watch.at_rest(&lab, &links())?;
    pings(&lab, 9)?;
    let rest = watch.at_rest(&lab, &links())?;
    watch.end()?;
    let dump = |map: &str| -> anyhow::Result<Vec<Value>> {
        let path = format!("{FOLDER}/{map}");
        let all = lab
            .command("bpftool")
            .args(["--json", "map", "dump", "pinned", &path])
            .json()?;
        Ok(all.as_array().cloned().unwrap_or_default())
    };
    let meta = dump("NETOBS_META")?.remove(0)["formatted"]["value"].clone();
    assert_eq!(meta["abi"], 5, "{meta}");
    let cpus = count(&meta, "cpus");
    let counters = dump("NETOBS_COUNTERS")?;
    let names = dump("NETOBS_NETNS")?;
    for row in ["a", "b"] {
        let shown = namespace(&rest.sample, row);
        let cookie: u64 = shown["cookie"].as_str().unwrap_or_default().parse()?;
        let owners = dump("NETOBS_OWNERS")?;
        let (slot, owner) = owners
            .iter()
            .map(|entry| &entry["formatted"])
            .map(|entry| (count(entry, "key"), &entry["value"]))
            .find(|(_, owner)| owner["cookie"] == cookie)
            .unwrap_or_else(|| panic!("no slot of {row}"));
        assert_ne!(owner["generation"], 0);
        let eth0 = interface(&rest.sample, row, "eth0");
        assert_eq!(owner["ifindex"], eth0["ifindex"]);
        assert_eq!(owner["hook_ifindex"], eth0["peer"]["ifindex"]);
        for (direction, key) in ["rx", "tx"].iter().enumerate() {
            let first = (slot * 2 + direction as u64) * cpus;
            let sum: u64 = counters
                .iter()
                .map(|entry| &entry["formatted"])
                .filter(|entry| (first..first + cpus).contains(&count(entry, "key")))
                .map(|entry| count(&entry["value"]["ipv4_icmp"], "packets"))
                .sum();
            assert_eq!(sum, 9, "{row} {key}");
            let before = &owner["before"][direction];
            assert_eq!(*before, eth0["before_attach"][key], "{row} {key}");
        }
        let named = names
            .iter()
            .map(|entry| &entry["formatted"])
            .find(|entry| entry["key"] == cookie)
            .unwrap_or_else(|| panic!("no name of {row}"));
        assert_eq!(named["value"]["name_len"], 1);
        assert_eq!(named["value"]["kind"], 2);
    }
    lab.netobs(["clean"])?.output()?.success()?;
    Ok(())
}
