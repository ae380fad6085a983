//! From samples to series: what a scraper sees over the lives of containers.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use netobs::model::{
    counters::{Counters, Directions},
    exporter::{Exporter, Exposition, NoKeeper},
    sample::{Kind, Namespace, NsKey, Sample, State},
};
use netobs_common::{Cell, Record};

const GRACE: Duration = Duration::from_secs(60);

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000 + seconds)
}

fn received(packets: u64) -> Directions<Counters> {
    let mut rx = Counters::default();
    rx.add_record(&Record {
        ipv4_udp: Cell {
            packets,
            ..Cell::default()
        },
        ..Record::default()
    });
    Directions {
        rx,
        tx: Counters::default(),
    }
}

/// A namespace with one interface that is observed since the second `since`.
fn namespace(cookie: u64, name: &str, since: u64, packets: u64) -> Namespace {
    let recorded = include_str!("../testdata/sample-1.json");
    let sample: Sample = serde_json::from_str(recorded).expect("a sample");
    let mut all = sample.namespaces.into_iter();
    let one = all.find(|ns| ns.interfaces.len() == 1).expect("one");
    let mut ns = Arc::unwrap_or_clone(one);
    ns.key = NsKey::Cookie(cookie);
    ns.cookie = Some(cookie);
    name.clone_into(&mut ns.name);
    ns.kind = Kind::Container;
    ns.state = State::Up;
    ns.retired = Directions::default();
    let interface = &mut ns.interfaces[0];
    interface.name = Some("eth0".to_owned());
    interface.observed_since = Some(at(since) + Duration::from_nanos(cookie));
    interface.counters = Some(received(packets));
    ns
}

fn sample(seconds: u64, namespaces: Vec<Namespace>) -> Sample {
    let recorded = include_str!("../testdata/sample-1.json");
    let sample: Sample = serde_json::from_str(recorded).expect("a sample");
    Sample {
        time: at(seconds),
        namespaces: namespaces.into_iter().map(Arc::new).collect(),
        ..sample
    }
}

/// Takes a sample and shows it: name and received packets of each series.
fn shown(exporter: &mut Exporter, seconds: u64, namespaces: Vec<Namespace>) -> Vec<(String, u64)> {
    exporter.take(&sample(seconds, namespaces), &[], &mut NoKeeper);
    series(&exporter.show(at(seconds)))
}

fn series(shown: &Exposition) -> Vec<(String, u64)> {
    let all = shown.packets.iter();
    all.map(|(labels, packets)| (labels.netns.to_string(), packets.rx.total().packets))
        .collect()
}

fn gone(ns: Namespace) -> Namespace {
    Namespace {
        state: State::Gone,
        former: ns.interfaces.clone(),
        ..ns
    }
}

fn some(all: &[(&str, u64)]) -> Vec<(String, u64)> {
    let all = all.iter();
    all.map(|(name, packets)| ((*name).to_owned(), *packets))
        .collect()
}

#[test]
fn a_container_that_is_restarted_has_one_series_and_one_identity() {
    let mut exporter = Exporter::new(GRACE, None);
    let first = shown(&mut exporter, 0, vec![namespace(1, "web", 0, 10)]);
    assert_eq!(first, some(&[("web", 10)]));
    let both = vec![gone(namespace(1, "web", 0, 15)), namespace(2, "web", 1, 3)];
    assert_eq!(shown(&mut exporter, 1, both), some(&[("web", 18)]));
    let identities = exporter.show(at(1)).identities;
    let cookies: Vec<_> = identities.iter().map(|one| one.cookie.as_str()).collect();
    assert_eq!(cookies, ["2"]);
}

#[test]
fn what_has_ended_is_there_until_it_was_shown_and_for_the_grace_time() {
    let mut exporter = Exporter::new(GRACE, None);
    shown(&mut exporter, 0, vec![namespace(1, "web", 0, 10)]);
    let ended = sample(1, vec![gone(namespace(1, "web", 0, 12))]);
    exporter.take(&ended, &[], &mut NoKeeper);
    // Nobody has asked for long.
    let late = exporter.show(at(500));
    assert_eq!(series(&late), some(&[("web", 12)]));
    assert_eq!(late.identities.len(), 1);
    assert_eq!(series(&exporter.show(at(559))), some(&[("web", 12)]));
    let later = exporter.show(at(560));
    assert_eq!((series(&later), later.identities.len()), (some(&[]), 0));
}

#[test]
fn of_two_with_one_name_the_second_has_its_identity_behind_it() {
    let mut exporter = Exporter::new(GRACE, None);
    let both = |seconds: u64| {
        vec![
            namespace(7, "web", 0, 10 + seconds),
            namespace(3, "web", 0, 1),
        ]
    };
    shown(&mut exporter, 0, vec![namespace(7, "web", 0, 10)]);
    let expected = some(&[("web", 11), ("web (cookie:3)", 1)]);
    assert_eq!(shown(&mut exporter, 1, both(1)), expected);
    let expected = some(&[("web", 12), ("web (cookie:3)", 1)]);
    assert_eq!(shown(&mut exporter, 2, both(2)), expected);
}

#[test]
fn by_another_name_it_counts_on_from_there() {
    let mut exporter = Exporter::new(GRACE, None);
    shown(&mut exporter, 0, vec![namespace(1, "old", 0, 10)]);
    let renamed = shown(&mut exporter, 1, vec![namespace(1, "new", 0, 14)]);
    assert_eq!(renamed, some(&[("new", 4), ("old", 10)]));
}

#[test]
fn what_has_just_started_waits_for_its_name() {
    let mut exporter = Exporter::new(GRACE, None);
    let nameless = |packets| Namespace {
        kind: Kind::Process,
        ..namespace(1, "pid:7(runc)", 0, packets)
    };
    assert_eq!(shown(&mut exporter, 1, vec![nameless(2)]), some(&[]));
    let named = vec![namespace(1, "web", 0, 5)];
    assert_eq!(shown(&mut exporter, 2, named), some(&[("web", 5)]));
    // So does an interface of which only the other end was seen.
    let mut exporter = Exporter::new(GRACE, None);
    let mut half = namespace(1, "web", 0, 4);
    half.interfaces[0].name = None;
    assert_eq!(shown(&mut exporter, 1, vec![half]), some(&[]));
    let whole = shown(&mut exporter, 2, vec![namespace(1, "web", 0, 5)]);
    assert_eq!(whole, some(&[("web", 5)]));
    // One that stays so is shown all the same, and so is one that ends.
    let mut exporter = Exporter::new(GRACE, None);
    assert_eq!(
        shown(&mut exporter, 9, vec![nameless(2)]),
        some(&[("pid:7(runc)", 2)])
    );
    let mut exporter = Exporter::new(GRACE, None);
    shown(&mut exporter, 1, vec![nameless(2)]);
    let ended = shown(&mut exporter, 2, vec![gone(nameless(3))]);
    assert_eq!(ended, some(&[("pid:7(runc)", 3)]));
}

#[test]
fn an_interface_that_comes_and_goes_is_counted_to_its_end() {
    let mut exporter = Exporter::new(GRACE, None);
    let mut ns = namespace(1, "web", 0, 10);
    shown(&mut exporter, 0, vec![ns.clone()]);
    // Another one was there for a moment, and has ended.
    let mut moment = ns.interfaces[0].clone();
    moment.name = Some("eth1".to_owned());
    moment.observed_since = Some(at(1));
    moment.counters = Some(received(4));
    ns.former.push(moment);
    ns.retired = received(4);
    let expected = some(&[("web", 10), ("web", 4)]);
    assert_eq!(shown(&mut exporter, 2, vec![ns.clone()]), expected);
    ns.former.clear();
    assert_eq!(shown(&mut exporter, 3, vec![ns.clone()]), expected);
    assert_eq!(
        shown(&mut exporter, 70, vec![ns.clone()]),
        some(&[("web", 10)])
    );
    // Who leaves its namespace has lost its name there, and is the same to its end.
    let mut leaving = ns.clone();
    leaving.interfaces[0].name = None;
    let same = shown(&mut exporter, 71, vec![leaving]);
    assert_eq!(same, some(&[("web", 10)]));
    // One that has counted nothing and that nobody has seen leaves nothing.
    let mut nothing = ns.interfaces[0].clone();
    nothing.name = None;
    nothing.observed_since = Some(at(70));
    nothing.counters = Some(received(0));
    let passing = Namespace {
        former: vec![nothing],
        ..ns.clone()
    };
    let same = shown(&mut exporter, 71, vec![passing]);
    assert_eq!(same, some(&[("web", 10)]));
    // At its end the last interfaces are listed, which were told already.
    let mut moment = ns.interfaces[0].clone();
    moment.name = Some("eth1".to_owned());
    moment.observed_since = Some(at(1));
    moment.counters = Some(received(4));
    let mut ended = gone(ns);
    ended.interfaces.push(moment);
    assert_eq!(shown(&mut exporter, 72, vec![ended]), some(&[("web", 10)]));
}
