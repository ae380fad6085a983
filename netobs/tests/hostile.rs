//! Names and patterns that nobody would choose in good faith, in every format and
//! as arguments.

use std::{sync::Arc, time::Duration};

use netobs::{
    inventory::{build::Row, select::Selection},
    model::{
        exporter::{Exporter, NoKeeper},
        process::Process,
        sample::{Kind, Member, Namespace, NsKey, Sample, Warning},
        view::View,
    },
    render::{Style, columns::Columns, csv, json, list, metrics, table, text},
};
use proptest::{collection::vec, prelude::*, test_runner::FileFailurePersistence};

/// What was found once is tried again first, by everybody: the file is a part of the
/// repository.
fn config() -> ProptestConfig {
    ProptestConfig {
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(
            "proptest-regressions/hostile.txt",
        ))),
        ..ProptestConfig::default()
    }
}

/// Any characters, those that steer terminals and confuse parsers more often.
fn name() -> impl Strategy<Value = String> {
    let special: Vec<char> = "\0\u{1b}\r\n\t\u{7}\u{7f}\u{9b}\u{85}\u{2028}\u{202e}\u{2066}\u{200d}\u{feff}\u{e0041}\"',;\\={}[]*?\u{301}日🙂"
        .chars()
        .collect();
    let character = prop_oneof![prop::sample::select(special), any::<char>()];
    vec(character, 0..40).prop_map(|characters| characters.into_iter().collect())
}

/// As `netobs list` has them.
fn listed(sample: &Sample) -> Vec<Namespace> {
    let all = sample.namespaces.iter();
    all.map(|ns| Namespace::clone(ns)).collect()
}

/// A recorded sample with these names in it.
fn sample(names: &[String]) -> Sample {
    let file = format!("{}/testdata/sample-2.json", env!("CARGO_MANIFEST_DIR"));
    let recorded = std::fs::read_to_string(file).expect("the recorded sample");
    let mut sample: Sample = serde_json::from_str(&recorded).expect("a sample");
    let mut names = names.iter().cycle().cloned();
    let mut next = || names.next().unwrap_or_default();
    for ns in &mut sample.namespaces {
        let ns = Arc::make_mut(ns);
        ns.name = next();
        for member in &mut ns.members {
            member.name = next();
            member.image = Some(next());
        }
        for interface in &mut ns.interfaces {
            interface.name = Some(next());
            if let Some(peer) = &mut interface.peer {
                peer.name = next();
                peer.master = Some(next());
            }
        }
    }
    sample.warnings.push(Warning {
        code: "namespace_unreadable".to_owned(),
        namespace: Some(next()),
        message: next(),
    });
    sample
}

/// Undoes `harmless`, by what its documentation says of it.
fn original(harmless: &str) -> Option<String> {
    let mut result = String::new();
    let mut rest = harmless;
    while let Some((before, after)) = rest.split_once('\\') {
        result.push_str(before);
        let kind = after.chars().next()?;
        rest = &after[kind.len_utf8()..];
        match kind {
            '\\' => result.push('\\'),
            'n' => result.push('\n'),
            'r' => result.push('\r'),
            't' => result.push('\t'),
            'u' => {
                let (number, after) = rest.strip_prefix('{')?.split_once('}')?;
                result.push(char::from_u32(u32::from_str_radix(number, 16).ok()?)?);
                rest = after;
            }
            _ => return None,
        }
    }
    result.push_str(rest);
    Some(result)
}

/// What no terminal should get as a part of a name.
fn steers(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200b}'..='\u{200f}')
}

fn row(name: &str, id: &str, kind: Kind) -> Row {
    Row {
        key: NsKey::Cookie(7),
        name: name.to_owned(),
        cookie: Some(7),
        inode: Some(4_026_532_290),
        kind,
        reason: None,
        members: vec![Member {
            runtime: "docker".to_owned(),
            id: Some(id.to_owned()),
            name: name.to_owned(),
            image: None,
            pid: Some(1),
        }],
        interfaces: Vec::new(),
        shown: true,
    }
}

/// The text of a label: what is behind `begin`, which cannot be in a text, quotes being
/// escaped there.
fn label(line: &str, begin: &str) -> String {
    let (_, rest) = line.split_once(begin).expect("the label");
    let mut text = String::new();
    let mut chars = rest.chars();
    loop {
        match chars.next().expect("an end") {
            '"' => return text,
            '\\' => text.push(match chars.next().expect("what is escaped") {
                'n' => '\n',
                other => other,
            }),
            other => text.push(other),
        }
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn harmless_text_steers_nothing_and_loses_nothing(name in name()) {
        let shown = text::harmless(&name);
        prop_assert!(!shown.contains(steers), "{:?}", shown);
        prop_assert_eq!(original(&shown), Some(name));
    }

    #[test]
    fn what_fits_is_a_beginning_and_no_wider(name in name(), width in 1..60usize) {
        use unicode_width::UnicodeWidthStr as _;
        let shown = text::harmless(&name);
        let fitted = text::fit(&shown, width);
        prop_assert!(fitted.width() <= width, "{fitted:?} in {width}");
        let beginning = fitted.strip_suffix('…').unwrap_or(&fitted);
        prop_assert!(fitted == shown || shown.starts_with(beginning));
    }

    #[test]
    fn json_gives_the_same_names_back(names in vec(name(), 1..6)) {
        let sample = sample(&names);
        let view = View::new(None, &sample, Duration::from_secs(1));
        let mut out = Vec::new();
        json::sample(&view, &mut out)?;
        prop_assert_eq!(out.iter().filter(|byte| **byte == b'\n').count(), 1, "one line");
        let output = str::from_utf8(&out).expect("UTF-8");
        prop_assert!(!output.trim_end_matches('\n').contains(steers), "{:?}", output);
        let value: serde_json::Value = serde_json::from_slice(&out)?;
        let shown = value["namespaces"].as_array().expect("rows");
        prop_assert_eq!(shown.len(), sample.namespaces.len());
        for (row, shown) in view.rows.iter().zip(shown) {
            let ns = row.namespace;
            prop_assert_eq!(&shown["name"], &ns.name);
            for (member, shown) in ns.members.iter().zip(shown["members"].as_array().expect("members")) {
                prop_assert_eq!(&shown["name"], &member.name);
                prop_assert_eq!(shown["image"].as_str(), member.image.as_deref());
            }
            for (interface, shown) in ns.interfaces.iter().zip(shown["interfaces"].as_array().expect("interfaces")) {
                prop_assert_eq!(shown["name"].as_str(), interface.name.as_deref());
            }
        }
        let last = value["warnings"].as_array().and_then(|all| all.last()).expect("a warning");
        let warning = sample.warnings.last().expect("a warning");
        prop_assert_eq!(last["message"].as_str(), Some(&*warning.message));
    }

    #[test]
    fn metrics_give_the_same_names_back(names in vec(name(), 1..6)) {
        let sample = sample(&names);
        let mut exporter = Exporter::new(Duration::from_secs(60), None);
        exporter.take(&sample, &[], &mut NoKeeper);
        let exposition = std::sync::Arc::new(exporter.show(sample.time));
        for format in [metrics::Format::OpenMetrics, metrics::Format::Text] {
            let page = metrics::Page {
                exposition: exposition.clone(),
                process: Some(Process::default()),
                classes: true,
                cadvisor: true,
            };
            let page = page.write(format).expect("a page");
            prop_assert!(!page.contains('\0'), "{page:?}");
            // What begins a line is a name or a comment of ours: nobody's name ends one.
            let ours = ["# ", "netobs_", "container_", "process_"];
            for line in page.split_terminator('\n') {
                prop_assert!(ours.iter().any(|begin| line.starts_with(begin)), "{line:?}");
            }
            let shown: Vec<_> = page
                .split_terminator('\n')
                .filter_map(|line| line.strip_prefix("netobs_netns_info{"))
                .map(|line| label(line, ",name=\""))
                .collect();
            let told: Vec<_> = exposition
                .identities
                .iter()
                .map(|identity| identity.name.replace('\0', "\u{fffd}"))
                .collect();
            prop_assert_eq!(shown, told);
        }
    }

    #[test]
    fn csv_gives_the_same_names_back(names in vec(name(), 1..6)) {
        let sample = sample(&names);
        let view = View::new(None, &sample, Duration::from_secs(1));
        let mut out = Vec::new();
        csv::header(&Columns::default(), &mut out)?;
        csv::sample(&view, &Columns::default(), &mut out)?;
        let output = String::from_utf8(out).expect("UTF-8");
        prop_assert!(!output.replace("\r\n", "").contains(steers));
        let mut reader = ::csv::Reader::from_reader(output.as_bytes());
        let records: Vec<_> = reader.records().collect::<Result<_, _>>().expect("equal lines");
        prop_assert_eq!(records.len(), view.rows.len());
        for (row, record) in view.rows.iter().zip(&records) {
            let name = original(&record[1]);
            prop_assert_eq!(name.as_ref(), Some(&row.namespace.name));
        }

        let mut out = Vec::new();
        csv::list(&listed(&sample), &Columns::default(), &mut out)?;
        let mut reader = ::csv::Reader::from_reader(&out[..]);
        let records: Vec<_> = reader.records().collect::<Result<_, _>>().expect("equal lines");
        let interfaces = sample.namespaces.iter().flat_map(|ns| &ns.interfaces);
        let told: Vec<_> = interfaces.map(|interface| interface.name.clone()).collect();
        let read: Vec<_> = records
            .iter()
            .filter(|record| !record[5].is_empty())
            .map(|record| original(&record[4]))
            .collect();
        prop_assert_eq!(read, told);
    }

    #[test]
    fn tables_have_a_line_per_row_and_nothing_that_steers(
        names in vec(name(), 1..6),
        width in 20..200usize,
    ) {
        let sample = sample(&names);
        let view = View::new(None, &sample, Duration::from_secs(1));
        let style = Style { width, height: None, color: false, notes: true };
        for line in table::lines(&view, style) {
            prop_assert!(!line.contains(steers), "{:?}", line);
        }
        let mut out = Vec::new();
        list::table(&listed(&sample), false, &mut out)?;
        let output = String::from_utf8(out).expect("UTF-8");
        prop_assert!(!output.replace('\n', "").contains(steers), "{:?}", output);
        // A header, and a line per address, or interface or namespace without one.
        let lines = sample.namespaces.iter().map(|ns| {
            let all = ns.interfaces.iter().map(|interface| interface.addresses.len().max(1));
            all.sum::<usize>().max(1)
        });
        let lines = lines.sum::<usize>();
        prop_assert_eq!(output.lines().count(), lines + 1);
    }

    #[test]
    fn a_name_selects_what_is_called_so_and_a_strange_one_is_no_panic(
        name in name(),
        other in name(),
        pattern in name(),
    ) {
        let row_of = |name: &str| row(name, "0123456789abcdef", Kind::Container);
        let select = |text: &str| Selection::new(&[text.to_owned()], &[], false);
        prop_assert!(select(&name).includes(&row_of(&name)));
        prop_assert!(select(&name).unmatched(&[row_of(&name)]).is_empty());
        let plain = |text: &str| !text.contains(['*', '?', '[']) && text != "host";
        if name != other && plain(&other) && !"0123456789abcdef".starts_with(&other) && other != "4026532290" {
            prop_assert!(!select(&other).includes(&row_of(&name)));
        }
        let _either = select(&pattern).includes(&row_of(&name));
        let without = Selection::new(&[], std::slice::from_ref(&name), true);
        prop_assert!(!without.includes(&row_of(&name)));
    }
}

/// Nobody holds netobs up by a long name, whatever the pattern.
#[test]
fn patterns_of_many_stars_end_soon() {
    let started = std::time::Instant::now();
    let pattern = "*a".repeat(40) + "*b";
    let row = row(&"a".repeat(100_000), "", Kind::Container);
    assert!(!Selection::new(&[pattern], &[], false).includes(&row));
    assert!(
        started.elapsed() < Duration::from_secs(5),
        "{:?}",
        started.elapsed()
    );
}
