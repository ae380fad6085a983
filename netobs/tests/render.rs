//! What users and scripts see, over samples recorded on a Docker host: no root
//! needed.

use std::{
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

use clap::CommandFactory as _;
use netobs::{
    cli::Cli,
    model::{
        lookups::{Backend, Decisions, Failures, Lookups, Origins, Unattributed},
        neighbours::{Neighbours, Program, Via, XdpMode},
        sample::{Hook, Kind, Namespace, Sample, State, Warning},
        view::View,
    },
    render::{Style, columns::Columns, csv, doctor, json, list, schema, table},
};
use unicode_width::UnicodeWidthStr as _;

/// Escape sequences, quotes, line breaks, text direction, CSV and formulas.
const HOSTILE: &str = "\u{1b}[2Jevil\"'\n,\r\t\u{202e}=1+1\u{7}\\x";

fn sample(number: u8) -> Sample {
    let file = format!(
        "{}/testdata/sample-{number}.json",
        env!("CARGO_MANIFEST_DIR")
    );
    let text = std::fs::read_to_string(&file).expect("the recorded sample");
    serde_json::from_str(&text).expect("a sample")
}

/// `sample` as of a kernel whose lookups are observed: `times` as many as there
/// are hundreds of packets, each tenth failed.
fn with_lookups(mut sample: Sample, times: u64) -> Sample {
    sample.observer.backend = Backend::Tracepoint;
    sample.unattributed = Some(Unattributed {
        lookups: 3 * times,
        failed: times,
    });
    for (ns, number) in sample.namespaces.iter_mut().zip(1..) {
        let ns = Arc::make_mut(ns);
        let decisions = Decisions {
            all: Origins {
                output: 7 * number * times,
                input: 2 * number * times,
                forward: number * times,
            },
            failed: Origins {
                output: number * times,
                ..Origins::default()
            },
        };
        ns.lookups = Some(Lookups {
            ipv4: Some(decisions),
            ipv6: None,
            failures: Failures {
                no_route: number * times,
                ..Failures::default()
            },
        });
        match ns.kind {
            Kind::Host => ns.behalf.on_behalf = Some([(HOSTILE.to_owned(), times)].into()),
            _ => ns.behalf.by_host = Some(times),
        }
    }
    sample
}

/// As `netobs list` has them.
fn listed(sample: &Sample) -> Vec<Namespace> {
    let all = sample.namespaces.iter();
    all.map(|ns| Namespace::clone(ns)).collect()
}

fn hostile_sample() -> Sample {
    let mut sample = sample(2);
    for ns in &mut sample.namespaces {
        if ns.name == "web" {
            rename(Arc::make_mut(ns));
        }
    }
    sample.warnings.push(Warning {
        code: "namespace_unreadable".to_owned(),
        namespace: Some(HOSTILE.to_owned()),
        message: format!("cannot enter {HOSTILE}"),
    });
    sample
}

fn rename(ns: &mut Namespace) {
    ns.name = HOSTILE.to_owned();
    for member in &mut ns.members {
        member.name = HOSTILE.to_owned();
        member.image = Some(HOSTILE.to_owned());
    }
    for interface in &mut ns.interfaces {
        interface.name = Some(HOSTILE.to_owned());
        if let Some(peer) = &mut interface.peer {
            peer.name = HOSTILE.to_owned();
            peer.master = Some(HOSTILE.to_owned());
        }
    }
}

fn style() -> Style {
    Style {
        width: 80,
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

const SECOND: Duration = Duration::from_secs(2);

#[test]
fn the_table_of_a_first_sample_has_totals_and_no_rates() {
    let first = sample(1);
    let view = View::new(None, &first, SECOND);
    insta::assert_snapshot!(table::lines(&view, style()).join("\n"));
}

#[test]
fn the_table_of_a_second_sample_has_rates_and_says_what_is_gone() {
    let (first, second) = (sample(1), sample(2));
    let view = View::new(Some(&first), &second, SECOND);
    insta::assert_snapshot!(table::lines(&view, style()).join("\n"));
}

#[test]
fn a_wide_table_has_lookups_too() {
    let (first, second) = (with_lookups(sample(1), 1), with_lookups(sample(2), 3));
    let view = View::new(Some(&first), &second, SECOND);
    let style = Style {
        width: 100,
        ..style()
    };
    insta::assert_snapshot!(table::lines(&view, style).join("\n"));
}

#[test]
fn the_table_fits_its_terminal() {
    let (first, mut second) = (
        with_lookups(sample(1), 1),
        with_lookups(hostile_sample(), 2),
    );
    for n in 0..30 {
        let mut more = Namespace::clone(&second.namespaces[1]);
        more.name = format!("a-container-with-quite-a-long-name-indeed-{n}");
        more.key = netobs::model::sample::NsKey::Cookie(90_000 + n);
        second.namespaces.push(more.into());
    }
    let view = View::new(Some(&first), &second, SECOND);
    for width in [80, 100, 200] {
        for height in [5, 10, 24, 60] {
            let lines = table::lines(
                &view,
                Style {
                    width,
                    height: Some(height),
                    ..style()
                },
            );
            assert!(lines.len() <= height, "{} lines in {height}", lines.len());
            for line in lines {
                let columns = unicode_width::UnicodeWidthStr::width(line.as_str());
                assert!(columns <= width, "{columns} columns in {width}: {line}");
            }
        }
    }
}

#[test]
fn json_keeps_to_its_schema_and_its_snapshot() {
    let (first, second) = (
        with_lookups(sample(1), 1),
        with_lookups(hostile_sample(), 2),
    );
    for (before, now) in [(None, &first), (Some(&first), &second)] {
        let view = View::new(before, now, SECOND);
        let line = text(|out| json::sample(&view, out));
        assert_eq!(line.matches('\n').count(), 1, "one object per line");
        let value: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        validate("sample", &value);
    }
    let view = View::new(Some(&first), &second, SECOND);
    let line = text(|out| json::sample(&view, out));
    let value: serde_json::Value = serde_json::from_str(&line).expect("JSON");
    let names: Vec<&str> = value["namespaces"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|ns| ns["name"].as_str().expect("a name"))
        .collect();
    assert!(
        names.contains(&HOSTILE),
        "JSON has names as they are: {names:?}"
    );
    assert!(!line.contains('\u{1b}'), "but no raw control characters");
    insta::assert_snapshot!(serde_json::to_string_pretty(&value["namespaces"][0]).expect("JSON"));
}

#[test]
fn what_is_not_known_is_null_and_never_zero() {
    let mut first = sample(1);
    let ns = Arc::make_mut(&mut first.namespaces[1]);
    for interface in &mut ns.interfaces {
        interface.counters = None;
        interface.kernel = None;
    }
    let key = ns.key;
    let view = View::new(None, &first, SECOND);
    let line = text(|out| json::sample(&view, out));
    let value: serde_json::Value = serde_json::from_str(&line).expect("JSON");
    validate("sample", &value);
    let at = view
        .rows
        .iter()
        .position(|row| row.namespace.key == key)
        .expect("the row");
    let ns = &value["namespaces"][at];
    assert!(ns["rx"].is_null() && ns["rates"].is_null() && ns["route_lookups"].is_null());
    assert!(ns["interfaces"][0]["unaccounted"].is_null());
}

#[test]
fn list_in_every_format() {
    let namespaces = listed(&hostile_sample());
    insta::assert_snapshot!(
        "list_table",
        text(|out| list::table(&namespaces, false, out))
    );
    insta::assert_snapshot!(
        "list_csv",
        text(|out| csv::list(&namespaces, &Columns::default(), out))
    );
    let line = text(|out| {
        let host = &hostile_sample().host;
        json::list(UNIX_EPOCH, host, &namespaces, &[], out)
    });
    validate("list", &serde_json::from_str(&line).expect("JSON"));
}

#[test]
fn csv_has_equal_lines_and_nothing_that_steers_a_terminal() {
    let (first, second) = (sample(1), hostile_sample());
    let view = View::new(Some(&first), &second, SECOND);
    let text = text(|out| {
        csv::header(&Columns::default(), out)?;
        csv::sample(&view, &Columns::default(), out)
    });
    assert!(
        text.split("\r\n")
            .all(|line| !line.chars().any(char::is_control))
    );
    let mut reader = ::csv::Reader::from_reader(text.as_bytes());
    let width = reader.headers().expect("a header").len();
    let rows: Vec<_> = reader
        .records()
        .collect::<Result<_, _>>()
        .expect("equal lines");
    assert_eq!(rows.len(), second.namespaces.len());
    assert!(rows.iter().all(|row| row.len() == width));
    let first_line = text.lines().next().expect("a header");
    insta::assert_snapshot!("csv_header", first_line.replace(',', "\n"));
}

#[test]
fn no_table_lets_a_name_steer_the_terminal() {
    let (first, second) = (sample(1), hostile_sample());
    let view = View::new(Some(&first), &second, SECOND);
    let watch = table::lines(&view, style()).join("\n");
    let list = text(|out| list::table(&listed(&second), false, out));
    for text in [&watch, &list] {
        assert!(!text.contains('\u{1b}') && !text.contains('\u{202e}') && !text.contains('\r'));
        assert!(
            text.contains("\\u{1b}"),
            "the name is there, escaped:\n{text}"
        );
    }
}

#[test]
fn rates_are_paired_by_identity_and_a_gap_is_no_rate() {
    let (mut first, mut second) = (sample(1), sample(2));
    // The order of rows means nothing.
    first.namespaces.reverse();
    let rate = |view: &View<'_>, name: &str| {
        let row = view.rows.iter().find(|row| row.namespace.name == name);
        row.expect("the row").rates
    };
    let view = View::new(Some(&first), &second, SECOND);
    let elapsed = second
        .time
        .duration_since(first.time)
        .expect("later")
        .as_secs_f64();
    let packets = |sample: &Sample| {
        let ns = sample
            .namespaces
            .iter()
            .find(|ns| ns.name == "web")
            .expect("web");
        ns.totals().expect("observed").rx.total().packets as f64
    };
    let expected = (packets(&second) - packets(&first)) / elapsed;
    let got = rate(&view, "web").expect("a rate").rx.packets;
    assert!((got - expected).abs() < 1e-9 && got > 0.0);
    assert!(
        rate(&view, "shortlived").is_none(),
        "what is gone has no rate"
    );

    // Backwards: unknown, not a huge number.
    let view = View::new(Some(&second), &first, SECOND);
    assert!(rate(&view, "web").is_none());
    first.time = second.time;
    let view = View::new(Some(&first), &second, SECOND);
    assert!(rate(&view, "web").is_none(), "no time, no rate");
    // A namespace that was not there before.
    second.namespaces.retain(|ns| ns.state == State::Up);
    first.namespaces.retain(|ns| ns.name != "web");
    let before = Sample {
        time: UNIX_EPOCH,
        ..first
    };
    let view = View::new(Some(&before), &second, SECOND);
    assert!(rate(&view, "web").is_none());
}

fn neighbour(via: Via, name: &str, id: u32) -> Program {
    Program {
        via,
        name: name.to_owned(),
        id: Some(id),
        ours: name.starts_with("netobs_"),
    }
}

/// One interface with everything on it, fifty containers that are alike, and one
/// that could not be looked at.
fn chains() -> Vec<doctor::Chain> {
    let crowded = Neighbours {
        ingress: vec![
            neighbour(Via::Xdp(XdpMode::Native), "xdp_dispatcher", 3),
            neighbour(Via::Xdp(XdpMode::Generic), HOSTILE, 4),
            neighbour(Via::Tcx, "netobs_ingress", 12),
            neighbour(Via::Tcx, "other", 9),
        ],
        egress: vec![
            neighbour(Via::Tcx, "ahead", 8),
            neighbour(Via::Tcx, "netobs_egress", 13),
            Program {
                id: None,
                ..neighbour(Via::Clsact(49152), "matchall", 0)
            },
        ],
    };
    let inside = doctor::Place::Inside;
    let new = |name: &str, place, neighbours| {
        doctor::Chain::new(name, "veth5466fc9", place, Hook::Tcx, neighbours)
    };
    let mut chains = vec![new(HOSTILE, inside, crowded)];
    for number in 0..50 {
        let neighbours = Neighbours {
            ingress: vec![
                neighbour(Via::Tcx, "netobs_ingress", 12),
                neighbour(Via::Tcx, "cil_from_contai", 100 + number),
            ],
            egress: vec![neighbour(Via::Tcx, "netobs_egress", 13)],
        };
        let name = format!("container-{number}");
        chains.push(new(&name, doctor::Place::HostEnd, neighbours));
    }
    chains.push(doctor::Chain::unknown(
        "ended",
        "eth0",
        inside,
        "the namespace has ended",
    ));
    chains
}

#[test]
fn doctor_in_both_formats() {
    let report = doctor::Report {
        schema: "netobs.doctor/1",
        hook: "tcx",
        checks: vec![
            doctor::Check {
                name: "kernel".to_owned(),
                verdict: doctor::Verdict::Ok,
                found: "6.18.44".to_owned(),
                consequence: None,
            },
            doctor::Check {
                name: "engine".to_owned(),
                verdict: doctor::Verdict::Limited,
                found: HOSTILE.to_owned(),
                consequence: Some("namespaces are shown without names of containers".to_owned()),
            },
        ],
        interfaces: 60,
        chains: chains(),
    };
    let table = text(|out| doctor::table(&report, false, out));
    for line in table.lines() {
        // But for the name of somebody else's, which is longer than a line.
        assert!(line.width() <= 80 || line.contains("evil"), "{line}");
    }
    insta::assert_snapshot!(table);
    let object = text(|out| doctor::json(&report, out));
    validate("doctor", &serde_json::from_str(&object).expect("JSON"));
}

#[test]
fn help_of_every_command() {
    let mut cli = Cli::command();
    cli.build();
    insta::assert_snapshot!("help", plain(cli.clone()));
    for name in [
        "watch", "serve", "list", "routes", "doctor", "clean", "schema",
    ] {
        let command = cli.find_subcommand(name).expect("a command").clone();
        insta::assert_snapshot!(format!("help_{name}"), plain(command));
    }
}

/// The help without the values that this process's environment would give.
fn plain(command: clap::Command) -> String {
    command
        .mut_args(|arg| arg.hide_env_values(true))
        .render_long_help()
        .to_string()
}

fn validate(schema: &str, value: &serde_json::Value) {
    let schema = match schema {
        "sample" => schema::SAMPLE,
        "list" => schema::LIST,
        _ => schema::DOCTOR,
    };
    let schema = serde_json::from_str(schema).expect("JSON");
    let validator = jsonschema::validator_for(&schema).expect("a schema");
    let errors: Vec<String> = validator
        .iter_errors(value)
        .map(|error| format!("{}: {error}", error.instance_path()))
        .collect();
    assert!(errors.is_empty(), "{errors:#?}\n{value:#}");
}
