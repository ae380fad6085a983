//! `netobs routes` in its formats, over a scene made by hand: no root needed.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    time::{Duration, UNIX_EPOCH},
};

use netobs::{
    model::{
        book::{Book, Entry},
        counters::Directions,
        lookups::{Backend, Behalf, Decisions, Failures, Lookups, Origins, Unattributed},
        remarks,
        route::{
            Failure, FailureClass, Hit, Hop, Origin, Prefix, Route, RouteType, TABLE_LOCAL,
            TABLE_MAIN,
        },
        routing::{FailureShown, Routing, RoutingSample},
        sample::{
            Host, Kind, MapInfo, Member, Namespace, NsKey, Observer, ProgramInfo, State, Warning,
        },
    },
    render::{Style, columns::Columns, routes, schema},
};

/// Escape sequences, quotes, line breaks, text direction, CSV and formulas.
const HOSTILE: &str = "\u{1b}[2Jevil\"'\n,\r\t\u{202e}=1+1\u{7}\\x";
const SECOND: Duration = Duration::from_secs(1);

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn route(table: u32, to: &str, len: u8, gateway: Option<&str>) -> Route {
    Route {
        table,
        prefix: Prefix::of(address(to), len),
        kind: RouteType::UNICAST,
        hops: vec![Hop {
            gateway: gateway.map(address),
            ifindex: Some(2),
        }],
        nexthop: None,
        protocol: 3,
        scope: if gateway.is_some() { 0 } else { 253 },
        metric: 0,
        source: None,
    }
}

fn hit(route: &Route, to: &str) -> Hit {
    let to = address(to);
    Hit {
        origin: Origin::Output,
        table: route.table,
        prefix: Prefix::of(to, if to.is_ipv4() { 32 } else { 128 }),
        exact: false,
        implicit: false,
        kind: RouteType::UNKNOWN,
        hop: route.hops.first().copied().unwrap_or_default(),
    }
}

fn namespace(name: &str, key: u64, lookups: u64, failed: u64) -> Namespace {
    Namespace {
        key: NsKey::Cookie(key),
        name: name.to_owned(),
        cookie: Some(key),
        inode: Some(4_026_532_000 + key),
        kind: Kind::Container,
        state: State::Up,
        reason: None,
        members: vec![Member {
            runtime: "docker".to_owned(),
            id: None,
            name: name.to_owned(),
            image: None,
            pid: Some(7),
        }],
        interfaces: Vec::new(),
        retired: Directions::default(),
        former: Vec::new(),
        lookups: Some(Lookups {
            ipv4: Some(Decisions {
                all: Origins {
                    output: lookups,
                    ..Origins::default()
                },
                failed: Origins {
                    output: failed,
                    ..Origins::default()
                },
            }),
            ipv6: Some(Decisions::default()),
            failures: Failures {
                no_route: failed,
                ..Failures::default()
            },
        }),
        behalf: Behalf::default(),
    }
}

fn failure(class: FailureClass, to: &str, count: u64, reason: Option<&str>) -> FailureShown {
    FailureShown {
        failure: Failure {
            origin: if reason.is_some() {
                Origin::Forward
            } else {
                Origin::Output
            },
            class,
            destination: address(to),
            reason: reason.map(|_| 16),
            count,
        },
        reason: reason.map(str::to_owned),
    }
}

fn routing(namespace: Namespace, book: &Book, interface: &str) -> Routing {
    let entries: Vec<Entry> = book.entries().into_iter().cloned().collect();
    let interfaces = BTreeMap::from([(2, interface.to_owned())]);
    Routing {
        remarks: remarks::of(&entries, &interfaces),
        routes: Some(entries),
        failures: Vec::new(),
        failures_forgotten: 0,
        interfaces,
        namespace,
    }
}

/// The two containers: one has a host route for 8.8.8.8.
fn scene(name: &str, interface: &str) -> RoutingSample {
    let default = route(TABLE_MAIN, "0.0.0.0", 0, Some("172.17.0.1"));
    let host = route(TABLE_MAIN, "8.8.8.8", 32, None);
    let subnet = |source: &str| Route {
        protocol: 2,
        source: Some(address(source)),
        ..route(TABLE_MAIN, "172.17.0.0", 16, None)
    };
    let local = |own: &str| Route {
        kind: RouteType::LOCAL,
        protocol: 2,
        scope: 254,
        source: Some(address(own)),
        ..route(TABLE_LOCAL, own, 32, None)
    };
    let six = Route {
        metric: 256,
        protocol: 2,
        ..route(TABLE_MAIN, "fd00::", 64, None)
    };
    let several = Route {
        hops: vec![
            Hop {
                gateway: Some(address("172.17.0.8")),
                ifindex: Some(2),
            },
            Hop {
                gateway: Some(address("fe80::9")),
                ifindex: Some(7),
            },
        ],
        ..route(100, "10.0.0.0", 8, None)
    };
    let blackhole = Route {
        kind: RouteType::BLACKHOLE,
        scope: 0,
        hops: Vec::new(),
        ..route(TABLE_MAIN, "198.51.100.0", 24, None)
    };

    let mut a = Book::default();
    let own = [
        default.clone(),
        host.clone(),
        subnet("172.17.0.3"),
        local("172.17.0.3"),
        six,
        several,
        blackhole.clone(),
    ];
    a.update(own.to_vec());
    a.credit(&hit(&host, "8.8.8.8"), 2, &[]);
    let rejected = Hit {
        kind: RouteType::BLACKHOLE,
        ..hit(&blackhole, "198.51.100.7")
    };
    a.credit(&rejected, 5, &[]);
    let bound = Hit {
        implicit: true,
        table: 0,
        ..hit(&host, "203.0.113.9")
    };
    a.credit(&bound, 1, &[]);
    // One that was there and has gone, and one that nobody saw.
    let gone = route(TABLE_MAIN, "192.0.2.0", 24, Some("172.17.0.7"));
    a.credit(&hit(&gone, "192.0.2.1"), 3, std::slice::from_ref(&gone));
    let unseen = route(TABLE_MAIN, "192.0.2.0", 24, Some("172.17.0.6"));
    a.credit(&hit(&unseen, "192.0.2.1"), 4, &[]);
    let mut a = routing(namespace(name, 606, 20, 9), &a, interface);
    a.failures = vec![
        failure(FailureClass::Blackhole, "198.51.100.7", 5, None),
        failure(FailureClass::NoRoute, "2001:db8::1", 2, None),
        failure(FailureClass::RpFilter, "10.2.0.2", 1, Some("IP_RPFILTER")),
    ];
    a.failures_forgotten = 1;
    a.namespace.behalf.by_host = Some(14);

    let mut b = Book::default();
    b.update(vec![
        default.clone(),
        subnet("172.17.0.4"),
        local("172.17.0.4"),
    ]);
    b.credit(&hit(&default, "8.8.8.8"), 2, &[]);
    let b = routing(namespace("netshoot_b", 607, 2, 0), &b, "eth0");

    let mut c = routing(namespace("unreadable", 608, 0, 0), &Book::default(), "eth0");
    c.routes = None;
    c.namespace.lookups = None;
    c.namespace.state = State::Gone;
    RoutingSample {
        time: UNIX_EPOCH,
        host: Host {
            name: "machine".to_owned(),
            kernel: "6.18.44".to_owned(),
        },
        namespaces: vec![a, b, c],
        unattributed_failures: vec![failure(FailureClass::NoRoute, "203.0.113.1", 1, None)],
        unattributed: Some(Unattributed {
            lookups: 1,
            failed: 1,
        }),
        observer: Observer {
            programs: vec![ProgramInfo {
                name: "netobs_ipv4_visit".to_owned(),
                runs: None,
                run_ns: None,
                missed: Some(0),
            }],
            maps: vec![MapInfo {
                name: "NETOBS_HITS".to_owned(),
                entries: 3,
                capacity: 65_536,
                full: 0,
            }],
            lost: 0,
            backend: Backend::Tracepoint,
            ..Observer::default()
        },
        warnings: vec![Warning {
            code: "namespace_unreadable".to_owned(),
            namespace: Some(name.to_owned()),
            message: format!("cannot enter {name}"),
        }],
    }
}

fn style() -> Style {
    Style {
        width: 100,
        height: None,
        color: false,
        notes: true,
    }
}

fn text(write: impl FnOnce(&mut dyn std::io::Write) -> std::io::Result<()>) -> String {
    let mut bytes = Vec::new();
    write(&mut bytes).expect("a Vec takes everything");
    String::from_utf8(bytes).expect("output is UTF-8")
}

#[test]
fn the_tables_look_like_those_of_ip_route() {
    let sample = scene("netshoot_a", "eth0");
    insta::assert_snapshot!(routes::lines(&sample, style()).join("\n"));
}

#[test]
fn the_tables_fit_their_terminal() {
    let mut sample = scene(HOSTILE, HOSTILE);
    for n in 0..20 {
        let mut more = sample.namespaces[0].clone();
        more.namespace.name = format!("number-{n}");
        sample.namespaces.push(more);
    }
    for width in [40, 80, 100, 200] {
        for height in [4, 10, 24, 60] {
            let style = Style {
                width,
                height: Some(height),
                ..style()
            };
            let lines = routes::lines(&sample, style);
            assert!(lines.len() <= height, "{} lines in {height}", lines.len());
            for line in lines {
                let columns = unicode_width::UnicodeWidthStr::width(line.as_str());
                assert!(columns <= width, "{columns} columns in {width}: {line}");
                assert!(
                    !line.contains('\u{1b}') && !line.contains('\u{202e}'),
                    "{line}"
                );
            }
        }
    }
    // Routes that were hit stay when there is little room.
    let style = Style {
        height: Some(14),
        ..style()
    };
    let lines = routes::lines(&scene("a", "eth0"), style).join("\n");
    assert!(lines.contains("8.8.8.8 dev eth0"), "{lines}");
    assert!(lines.contains("lines more"), "{lines}");
}

#[test]
fn json_keeps_to_its_schema_and_its_snapshot() {
    let line = text(|out| routes::json(&scene(HOSTILE, HOSTILE), SECOND, out));
    assert_eq!(line.matches('\n').count(), 1, "one object per line");
    assert!(!line.contains('\u{1b}'), "no raw control characters");
    let value: serde_json::Value = serde_json::from_str(&line).expect("JSON");
    let schema = serde_json::from_str(schema::ROUTES).expect("JSON");
    let validator = jsonschema::validator_for(&schema).expect("a schema");
    let errors: Vec<String> = validator
        .iter_errors(&value)
        .map(|error| format!("{}: {error}", error.instance_path()))
        .collect();
    assert!(errors.is_empty(), "{errors:#?}\n{value:#}");
    assert_eq!(
        value["namespaces"][0]["name"], HOSTILE,
        "JSON has names as they are"
    );
    insta::assert_snapshot!(serde_json::to_string_pretty(&value["namespaces"][0]).expect("JSON"));
}

#[test]
fn csv_has_equal_lines_and_nothing_that_steers_a_terminal() {
    let sample = scene(HOSTILE, HOSTILE);
    let text = text(|out| {
        routes::csv_header(&Columns::default(), out)?;
        routes::csv(&sample, &Columns::default(), out)
    });
    assert!(
        text.split("\r\n")
            .all(|line| !line.chars().any(char::is_control)),
        "{text}"
    );
    let mut reader = csv::Reader::from_reader(text.as_bytes());
    let width = reader.headers().expect("a header").len();
    let rows: Vec<_> = reader
        .records()
        .collect::<Result<_, _>>()
        .expect("equal lines");
    assert!(rows.iter().all(|row| row.len() == width));
    insta::assert_snapshot!(text.replace("\r\n", "\n"));
}
