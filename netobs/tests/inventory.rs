//! From facts to rows: which veth is whose.

use netobs::{
    inventory::{
        build::{self, Options, Place, Row},
        facts::{Container, Facts, HostFacts, Link, NamespaceFacts, Process},
        select::Selection,
    },
    model::sample::{Kind, NsKey},
};

fn veth(ifindex: u32, name: &str, link: u32, nsid: Option<i32>) -> Link {
    Link {
        ifindex,
        name: name.to_owned(),
        kind: Some("veth".to_owned()),
        hardware: 1,
        link: Some(link),
        link_nsid: nsid,
        ..Link::default()
    }
}

fn bridge(ifindex: u32, name: &str) -> Link {
    Link {
        ifindex,
        name: name.to_owned(),
        kind: Some("bridge".to_owned()),
        hardware: 1,
        ..Link::default()
    }
}

fn loopback() -> Link {
    Link {
        ifindex: 1,
        name: "lo".to_owned(),
        hardware: 772,
        ..Link::default()
    }
}

fn namespace(cookie: u64, nsid: Option<i32>, links: Vec<Link>) -> NamespaceFacts {
    NamespaceFacts {
        cookie: Some(cookie),
        inode: 4_026_532_000 + cookie,
        nsid,
        names: Vec::new(),
        process: Some(Process {
            pid: 1000 + cookie as u32,
            comm: "sleep".to_owned(),
        }),
        links: Ok(links),
    }
}

fn container(name: &str, ns: &NamespaceFacts) -> Container {
    Container {
        runtime: "docker".to_owned(),
        id: format!("{name:0<64}"),
        name: name.to_owned(),
        image: Some("busybox".to_owned()),
        pid: 4000,
        started: None,
        inode: Some(ns.inode),
    }
}

fn facts(links: Vec<Link>, namespaces: Vec<NamespaceFacts>) -> Facts {
    Facts {
        host: HostFacts {
            cookie: Some(1),
            inode: 4_026_531_840,
            links,
        },
        namespaces,
        containers: Vec::new(),
    }
}

fn rows(facts: &Facts) -> Vec<Row> {
    build::rows(facts, Options::default())
}

fn row<'a>(rows: &'a [Row], name: &str) -> &'a Row {
    rows.iter()
        .find(|row| row.name == name)
        .unwrap_or_else(|| panic!("no row {name} in {rows:#?}"))
}

/// Two containers with the same indexes inside, each behind its own veth.
fn docker_host() -> Facts {
    let mut ends = vec![veth(26, "vetha", 2, Some(0)), veth(30, "vethb", 2, Some(1))];
    for end in &mut ends {
        end.master = Some(3);
    }
    ends.extend([loopback(), bridge(3, "docker0")]);
    let a = namespace(100, Some(0), vec![loopback(), veth(2, "eth0", 26, Some(0))]);
    let b = namespace(200, Some(1), vec![loopback(), veth(2, "eth0", 30, Some(0))]);
    let containers = vec![container("a", &a), container("b", &b)];
    Facts {
        containers,
        ..facts(ends, vec![b, a])
    }
}

#[test]
fn equal_indexes_in_two_namespaces_find_their_own_host_ends() {
    let rows = rows(&docker_host());
    for (name, end) in [("a", "vetha"), ("b", "vethb")] {
        let row = row(&rows, name);
        assert_eq!(row.kind, Kind::Container);
        let [interface] = &row.interfaces[..] else {
            panic!("{row:#?}");
        };
        let peer = interface.peer.as_ref().expect("a host end");
        assert_eq!(
            (peer.name.as_str(), peer.master.as_deref()),
            (end, Some("docker0"))
        );
        assert_eq!(interface.name.as_deref(), Some("eth0"));
        assert!(matches!(interface.place, Place::HostEnd { .. }));
    }
    let host = row(&rows, "host");
    let names: Vec<_> = host.interfaces.iter().map(|i| i.name.as_deref()).collect();
    assert_eq!(
        names,
        [Some("docker0")],
        "neither lo nor the containers' ends"
    );
}

#[test]
fn a_link_that_is_left_out_means_the_same_index_on_both_ends() {
    let mut end = veth(7, "v", 7, Some(0));
    end.link = None;
    let mut inside = veth(7, "eth0", 7, Some(0));
    inside.link = None;
    let rows = rows(&facts(vec![end], vec![namespace(5, Some(0), vec![inside])]));
    let row = row(&rows, "pid:1005(sleep)");
    assert_eq!(row.interfaces.len(), 1, "{row:#?}");
    assert_eq!(row.interfaces[0].peer.as_ref().map(|p| p.ifindex), Some(7));
}

#[test]
fn without_a_host_end_an_interface_is_observed_from_inside() {
    let lan = Link {
        kind: Some("macvlan".to_owned()),
        link_nsid: Some(0),
        ..veth(9, "eth1", 4, Some(0))
    };
    let vlan = Link {
        kind: Some("vlan".to_owned()),
        ..veth(10, "eth0.5", 2, None)
    };
    let ns = namespace(5, None, vec![veth(2, "eth0", 2, Some(3)), lan, vlan]);
    let rows = rows(&facts(vec![], vec![ns]));
    let row = &rows[1];
    let places: Vec<_> = row.interfaces.iter().map(|i| i.place.clone()).collect();
    let inside = |ifindex, name: &str| Place::Inside {
        ifindex,
        name: name.to_owned(),
    };
    assert_eq!(
        places,
        [inside(2, "eth0"), inside(9, "eth1")],
        "the VLAN carries what eth0 carries already"
    );
    assert!(!row.shown, "nothing connects it to us, and nobody named it");
}

#[test]
fn whoever_shares_a_namespace_shares_a_row() {
    let mut facts = docker_host();
    let a = facts.namespaces[1].clone();
    facts.containers.push(container("sidecar", &a));
    facts.namespaces[1].names.push("pod".to_owned());
    let rows = rows(&facts);
    let row = row(&rows, "a+sidecar");
    let members: Vec<_> = row
        .members
        .iter()
        .map(|m| (m.runtime.as_str(), m.name.as_str()))
        .collect();
    assert_eq!(
        members,
        [("docker", "a"), ("docker", "sidecar"), ("netns", "pod")]
    );
}

#[test]
fn a_container_without_a_network_of_its_own_is_the_hosts() {
    let mut facts = docker_host();
    let mut on_host = container("monitor", &facts.namespaces[0]);
    on_host.inode = Some(facts.host.inode);
    facts.containers.push(on_host);
    let rows = rows(&facts);
    let host = row(&rows, "host");
    assert_eq!(host.kind, Kind::Host);
    assert_eq!(host.members[0].name, "monitor");
}

#[test]
fn a_pair_into_the_unknown_has_a_row_and_a_reason() {
    let rows = rows(&facts(vec![veth(26, "vetha", 2, Some(4))], vec![]));
    let row = row(&rows, "nsid:4");
    assert_eq!(
        (row.key, row.cookie, row.inode),
        (NsKey::Nsid(4), None, None)
    );
    assert!(row.shown && row.reason.is_some());
    let interface = &row.interfaces[0];
    assert_eq!(
        (interface.name.as_deref(), interface.ifindex),
        (None, Some(2))
    );
}

#[test]
fn a_namespace_that_cannot_be_entered_is_shown_by_its_host_ends() {
    let mut facts = docker_host();
    facts.namespaces[0].links = Err("cannot enter the namespace: EPERM".to_owned());
    let rows = rows(&facts);
    let row = row(&rows, "b");
    assert!(row.reason.as_ref().is_some_and(|r| r.contains("EPERM")));
    assert_eq!(row.interfaces.len(), 1);
    assert_eq!(row.interfaces[0].place.name(), "vethb");
}

#[test]
fn what_is_on_its_way_into_another_namespace_is_not_yet_the_hosts() {
    let mut moving = veth(40, "vethx", 41, None);
    moving.settling = true;
    let mut facts = facts(vec![moving], vec![]);
    assert!(rows(&facts)[0].interfaces.is_empty());
    facts.host.links[0].settling = false;
    assert_eq!(rows(&facts)[0].interfaces.len(), 1);
}

#[test]
fn loopback_only_when_asked_for() {
    let facts = facts(vec![loopback()], vec![]);
    assert!(rows(&facts)[0].interfaces.is_empty());
    let with = build::rows(&facts, Options { loopback: true });
    assert_eq!(with[0].interfaces[0].name.as_deref(), Some("lo"));
    assert!(with[0].interfaces[0].ethernet);
}

#[test]
fn names_select_containers_namespaces_inodes_and_patterns() {
    let rows = rows(&docker_host());
    let selected = |names: &[&str], exclude: &[&str]| -> Vec<String> {
        let own = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        let selection = Selection::new(&own(names), &own(exclude), false);
        rows.iter()
            .filter(|row| selection.includes(row))
            .map(|row| row.name.clone())
            .collect()
    };
    assert_eq!(selected(&[], &[]), ["host", "a", "b"]);
    assert_eq!(selected(&["a"], &[]), ["a"]);
    assert_eq!(selected(&["host", "?"], &["b"]), ["host", "a"]);
    assert_eq!(selected(&["4026532200"], &[]), ["b"]);
    assert_eq!(selected(&["b000"], &[]), ["b"], "by the id's prefix");
    assert_eq!(selected(&["b0"], &[]), [""; 0], "too short for a prefix");
    assert_eq!(
        selected(&["["], &[]),
        [""; 0],
        "no pattern, and nobody's name"
    );
    let selection = Selection::new(&["a".to_owned(), "x*".to_owned()], &[], false);
    assert_eq!(selection.unmatched(&rows), ["x*"]);
}

#[test]
fn a_namespace_that_is_not_shown_is_found_by_name_or_with_all() {
    let facts = facts(vec![], vec![namespace(5, None, vec![])]);
    let rows = rows(&facts);
    let count = |selection: Selection| rows.iter().filter(|row| selection.includes(row)).count();
    assert_eq!(count(Selection::new(&[], &[], false)), 1, "the host alone");
    assert_eq!(count(Selection::new(&[], &[], true)), 2);
    assert_eq!(
        count(Selection::new(&["pid:1005(*".to_owned()], &[], false)),
        1
    );
}
