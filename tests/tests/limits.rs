//! Fewer open files than netobs would need: what there is room for is observed,
//! the rest says why it is not, and nothing ends early.

mod common;

use std::ops::Range;

use common::{SOON, Watch, code, interface, namespace, row_names, warnings};
use netobs_tests::{Lab, LabCommand, netobs_binary, poll_until};
use serde_json::Value;

/// What every message about the limit has to say.
const WORDS: [&str; 3] = ["RLIMIT_NOFILE", "ulimit -n", "LimitNOFILE="];

/// Namespaces `n0`, `n1`, ... with an `eth0` on the host.
fn connected(lab: &Lab, numbers: Range<u32>) -> anyhow::Result<()> {
    lab.shell(&format!(
        "for i in $(seq {} {}); do
            ip netns add n$i
            ip link add v$i type veth peer name eth0 netns n$i
            ip link set v$i up
            ip -n n$i link set eth0 up
         done",
        numbers.start,
        numbers.end - 1
    ))?;
    Ok(())
}

/// The netobs under test, with at most `files` open.
fn limited(lab: &Lab, files: &str, args: &[&str]) -> anyhow::Result<LabCommand> {
    let mut command = lab.command("prlimit");
    command.arg(format!("--nofile={files}"));
    command.arg(netobs_binary()?).args(args);
    Ok(command)
}

/// How many of the `eth0` in the rows `n*` are observed; those that are not say
/// why.
#[track_caller]
fn observed(sample: &Value) -> usize {
    let names = row_names(sample);
    let rows = names.iter().filter(|name| name.starts_with('n'));
    rows.filter(|name| {
        let eth0 = interface(sample, name, "eth0");
        if eth0["hook"] == "none" {
            tells_the_limit(eth0["reason"].as_str().unwrap_or_default());
        }
        eth0["hook"] != "none"
    })
    .count()
}

#[track_caller]
fn tells_the_limit(message: &str) {
    for word in WORDS {
        assert!(message.contains(word), "no {word:?} in {message:?}");
    }
}

#[test]
fn what_there_is_room_for_is_observed_and_the_rest_says_why_not() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    connected(&lab, 0..20)?;
    let mut counts = Vec::new();
    for limit in [5, 10, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 256] {
        let files = format!("{limit}:{limit}");
        let args = ["watch", "--once", "--strict", "--output=json"];
        let output = limited(&lab, &files, &args)?.output()?;
        let what = format!("{limit}: {output:?}");
        assert!(!output.stderr.contains("panicked"), "{what}");
        match code(&output)? {
            // Not even the programs fit.
            1 => {
                assert!(counts.is_empty(), "more room, less observed: {what}");
                assert_eq!(output.stdout, "", "{what}");
                tells_the_limit(&output.stderr);
                continue;
            }
            5 => assert!(output.stderr.contains("--strict"), "{what}"),
            other => assert_eq!(other, 0, "{what}"),
        }
        let sample: Value = serde_json::from_str(output.stdout.trim())?;
        let rows = row_names(&sample);
        let rows = rows.iter().filter(|name| name.starts_with('n'));
        assert_eq!(rows.count(), 20, "{what}");
        let count = observed(&sample);
        let lookups = warnings(&sample, "route_lookups_unavailable");
        for warning in &lookups {
            tells_the_limit(warning["message"].as_str().unwrap_or_default());
        }
        let partial = count < 20 || !lookups.is_empty();
        assert_eq!(code(&output)? == 5, partial, "{what}");
        counts.push(count);
    }
    eprintln!("observed of 20: {counts:?}");
    assert_eq!(counts.last(), Some(&20), "{counts:?}");
    assert!(counts.iter().any(|n| (1..20).contains(n)), "{counts:?}");
    Ok(())
}

#[test]
fn the_soft_limit_is_raised_to_the_hard_one() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    connected(&lab, 0..20)?;
    let args = ["watch", "--once", "--strict", "--output=json"];
    let output = limited(&lab, "64:512", &args)?.output()?;
    assert_eq!(code(&output)?, 0, "{output:?}");
    assert_eq!(observed(&serde_json::from_str(output.stdout.trim())?), 20);
    Ok(())
}

/// Namespaces that come while it runs may find no room, and find it when others go.
#[test]
fn room_that_comes_free_is_used() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    connected(&lab, 0..5)?;
    let args = ["watch", "--output=json", "--interval=200ms"];
    let proc = limited(&lab, "112:112", &args)?.start()?;
    let mut watch = Watch { proc };
    watch.until("the first five", |sample| {
        row_names(sample).len() == 6 && observed(sample) == 5
    })?;
    connected(&lab, 5..25)?;
    let sample = watch.until("twenty more", |sample| {
        let looked = |name: &String| *name == "host" || sees_eth0(sample, name);
        let names = row_names(sample);
        names.len() == 26 && names.iter().all(looked)
    })?;
    let some = poll_until(SOON, "as many as fit", || {
        let count = observed(&watch.fresh()?);
        Ok((count > 5).then_some(count))
    })?;
    assert!((6..25).contains(&some), "{some} of 25: {sample}");
    for number in 0..15 {
        lab.netns_del(&format!("n{number}"))?;
    }
    watch.until("room for all that are left", |sample| {
        row_names(sample).len() == 11 && observed(sample) == 10
    })?;
    watch.end()?;
    Ok(())
}

/// Lowered below what is open already: nothing more can be opened, and what is known
/// stays.
#[test]
fn a_limit_that_sinks_under_it_is_survived() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    connected(&lab, 0..5)?;
    let mut watch = Watch::start(&lab, &[])?;
    watch.until("five", |sample| observed(sample) == 5)?;
    let pid = watch.proc.pid().to_string();
    let sink = |files: &str| {
        // The pid is one outside the lab.
        let args = ["--pid", &pid, &format!("--nofile={files}:4096")];
        let status = std::process::Command::new("prlimit").args(args).status()?;
        anyhow::ensure!(status.success(), "prlimit {args:?}: {status}");
        Ok(())
    };
    sink("20")?;
    connected(&lab, 5..7)?;
    let told = |sample: &Value| {
        let told = warnings(sample, "open_files_exhausted");
        told.first()
            .map(|warning| tells_the_limit(warning["message"].as_str().unwrap_or_default()))
            .is_some()
    };
    watch.until("a word about it", told)?;
    // Long enough for a look at everything that is stale.
    let end = std::time::Instant::now() + std::time::Duration::from_secs(6);
    while std::time::Instant::now() < end {
        let sample = watch.fresh()?;
        let known = |number| common::observes(&sample, &format!("n{number}"), "eth0");
        assert!((0..5).all(known), "{sample}");
    }
    sink("4096")?;
    watch.until("all seven", |sample| {
        !told(sample) && (0..7).all(|n| common::observes(sample, &format!("n{n}"), "eth0"))
    })?;
    watch.end()?;
    Ok(())
}

fn sees_eth0(sample: &Value, name: &str) -> bool {
    common::find_interface(namespace(sample, name), "eth0").is_some()
}
