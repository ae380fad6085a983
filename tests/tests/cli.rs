//! The command line, with bad input and in trouble: every failure has its exit code and says what to do.

#[expect(
    clippy::allow_attributes,
    reason = "the lint cannot tell: what one test leaves unused another one needs"
)]
#[allow(dead_code, reason = "each test uses a part of it")]
mod common;

use std::time::Duration;

use common::{SOON, Watch, code, namespace, observes, ping, quiet_pair, row_names, rows, warnings};
use netobs_tests::{Lab, Netns, Output, netobs_binary};
use nix::sys::signal::Signal;
use serde_json::Value;

/// Nobody in particular.
const NOBODY: [&str; 3] = ["--reuid=65534", "--regid=65534", "--clear-groups"];

fn netobs(lab: &Lab, args: &[&str]) -> anyhow::Result<Output> {
    lab.netobs(args)?.output()
}

#[track_caller]
fn fails(output: &Output, expected: i32, words: &[&str]) {
    assert_eq!(output.status.code(), Some(expected), "{output:?}");
    for word in words {
        assert!(
            output.stderr.contains(word),
            "no {word:?} in {}",
            output.stderr
        );
    }
    assert!(!output.stderr.contains("panicked"), "{}", output.stderr);
}

/// netobs where nobody may run it: its own folder is closed to others.
fn open_binary(lab: &Lab) -> anyhow::Result<String> {
    let copy = lab.tmp().join("netobs");
    std::fs::copy(netobs_binary()?, &copy)?;
    lab.shell(&format!(
        "chmod 755 {} {}",
        lab.tmp().display(),
        copy.display()
    ))?;
    Ok(copy.display().to_string())
}

#[test]
fn usage_errors_exit_with_2_and_say_what_is_wrong() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    let cases: [(&[&str], &str); 7] = [
        (&["watch", "--no-such-flag"], "--no-such-flag"),
        (&["watch", "-i", "0s"], "100ms"),
        (&["watch", "-i", "50ms"], "100ms"),
        (&["watch", "-i", "soon"], "soon"),
        (&["watch", "-n", "0"], "--count"),
        (&["watch", "-o", "xml"], "xml"),
        (&["list", "--docker-host", "ssh://elsewhere"], "unix://"),
    ];
    for (args, word) in cases {
        fails(&netobs(&lab, args)?, 2, &[word]);
    }
    Ok(())
}

#[test]
fn without_capabilities_it_names_them_and_exits_with_3() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    let binary = open_binary(&lab)?;
    let as_nobody = |args: &[&str], capabilities: &[&str]| {
        let mut command = lab.command("setpriv");
        command
            .args(NOBODY)
            .args(capabilities)
            .arg(&binary)
            .args(args);
        command.output()
    };
    let output = as_nobody(&["watch", "--once"], &[])?;
    fails(&output, 3, &["CAP_BPF", "CAP_NET_ADMIN", "sudo", "setcap"]);
    fails(&as_nobody(&["doctor"], &[])?, 3, &["CAP_SYS_ADMIN", "sudo"]);

    lab.shell("ip link add va type veth peer name vb; ip link set va up; ip link set vb up")?;
    // CAP_SYS_ADMIN would include the rest: without it, what is missing is
    // named, and nothing else.
    let too_few = "+bpf,+perfmon,+sys_ptrace";
    let output = as_nobody(
        &["watch", "--once"],
        &["--inh-caps", too_few, "--ambient-caps", too_few],
    )?;
    fails(&output, 3, &["CAP_NET_ADMIN (to", "CAP_SYS_ADMIN (to"]);
    assert!(!output.stderr.contains("CAP_BPF (to"), "{}", output.stderr);

    // What the documentation says is enough, is.
    let all = "+bpf,+net_admin,+perfmon,+sys_admin,+sys_ptrace";
    let output = as_nobody(
        &["watch", "--once", "-o", "json"],
        &["--inh-caps", all, "--ambient-caps", all],
    )?;
    assert_eq!(code(&output)?, 0, "{output:?}");
    let sample: Value = serde_json::from_str(&output.stdout)?;
    assert!(observes(&sample, "host", "va") && observes(&sample, "host", "vb"));

    // `list` needs no eBPF; what it may not enter has its reason.
    lab.netns_add("closed")?;
    let output = as_nobody(&["list", "-o", "json"], &[])?;
    assert_eq!(code(&output)?, 0, "{output:?}");
    let list: Value = serde_json::from_str(&output.stdout)?;
    let reason = namespace(&list, "closed")["reason"].as_str();
    assert!(
        reason.is_some_and(|reason| reason.contains("cannot enter")),
        "{list}"
    );
    let output = as_nobody(&["list", "--strict"], &[])?;
    fails(&output, 5, &["--strict"]);
    Ok(())
}

#[test]
fn an_engine_that_is_absent_is_fine_and_one_that_refuses_is_a_warning() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    lab.netns_add("plain")?;
    let sample = |args: &[&str]| -> anyhow::Result<Value> {
        let output = netobs(&lab, &[&["watch", "--once", "-o", "json"], args].concat())?;
        anyhow::ensure!(output.status.success(), "{output:?}");
        Ok(serde_json::from_str(&output.stdout)?)
    };
    let absent = sample(&[])?;
    assert_eq!(absent["warnings"], serde_json::json!([]));
    assert_eq!(row_names(&absent), ["host", "plain"]);

    let told = format!("unix://{}/nobody.sock", lab.tmp().display());
    let refusing = lab.tmp().join("refusing.sock");
    let listener = std::os::unix::net::UnixListener::bind(&refusing)?;
    // The file stays, and nobody listens behind it.
    drop(listener);
    let refused = format!("unix://{}", refusing.display());
    for (url, reason) in [(&told, "nobody.sock"), (&refused, "refused")] {
        let sample = sample(&["--docker-host", url])?;
        let warnings = warnings(&sample, "engine_unreachable");
        assert_eq!(warnings.len(), 1, "{sample}");
        let message = warnings[0]["message"].as_str().unwrap_or_default();
        assert!(message.contains(reason), "{message}");
        assert_eq!(row_names(&sample), ["host", "plain"], "all the same");
    }

    // In a table the reason is told once, on standard error.
    let output = netobs(
        &lab,
        &["watch", "-n3", "-i200ms", "--docker-host", &refused],
    )?;
    assert!(output.status.success());
    assert_eq!(
        output.stderr.matches("refused").count(),
        1,
        "{}",
        output.stderr
    );
    Ok(())
}

#[test]
fn names_cannot_steer_what_shows_them() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    // An escape sequence, a quote, a comma, a line break, and no UTF-8.
    lab.shell(
        "n=$(printf '\\033[2J\"x,\\n\\377y'); ip netns add \"$n\"
         ip link add v1 type veth peer name v2
         ip link set v2 netns \"$n\"
         ip -n \"$n\" link set v2 name 'e\"\\,=1'",
    )?;
    for args in [
        &["list"][..],
        &["list", "-o", "csv"],
        &["list", "-o", "json"],
        &["watch", "--once"],
        &["watch", "--once", "-o", "csv"],
        &["watch", "--once", "-o", "json"],
        &["watch", "--once", "-v"],
        &["doctor"],
    ] {
        let output = netobs(&lab, args)?;
        assert!(output.status.success(), "{output:?}");
        for text in [&output.stdout, &output.stderr] {
            assert!(
                !text.contains('\u{1b}'),
                "{args:?} lets it through: {text:?}"
            );
        }
    }
    let list = lab.netobs(["list", "-o", "json"])?.json()?;
    let expected = "\u{1b}[2J\"x,\n\\xffy";
    let row = namespace(&list, expected);
    assert_eq!(row["interfaces"][0]["name"], "e\"\\,=1");
    assert_eq!(row["interfaces"][0]["peer"]["name"], "v1");
    Ok(())
}

#[test]
fn a_file_that_is_no_namespace_is_named() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    lab.netns_add("real")?;
    lab.shell("echo text > /run/netns/textfile")?;
    let output = netobs(&lab, &["list"])?;
    assert!(output.status.success());
    assert!(
        output.stderr.contains("/run/netns/textfile"),
        "{}",
        output.stderr
    );
    assert!(output.stdout.contains("real"), "{}", output.stdout);
    Ok(())
}

#[test]
fn a_reader_that_leaves_is_fine_and_a_full_disk_is_not() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    let binary = netobs_binary()?;
    let binary = binary.display();
    for output in ["table", "json", "csv"] {
        // Endless, but for the pipe that breaks.
        let script = format!("( {binary} watch -i 100ms -o {output}; echo $? >&2 ) | head -n 1");
        let mut shell = lab.command("sh").args(["-c", &script]).start()?;
        let ended = shell.wait(SOON)?;
        assert_eq!(ended.stderr.trim(), "0", "{ended:?}");
        assert_eq!(ended.stdout.lines().count(), 1);

        let script = format!("{binary} watch -i 100ms -o {output} > /dev/full");
        let ended = lab
            .command("sh")
            .args(["-c", &script])
            .start()?
            .wait(SOON)?;
        fails(&ended, 1, &["standard output", "No space left"]);
    }
    let script = format!("{binary} list > /dev/full");
    let ended = lab
        .command("sh")
        .args(["-c", &script])
        .start()?
        .wait(SOON)?;
    fails(&ended, 1, &["standard output"]);
    Ok(())
}

#[test]
fn signals_are_a_good_end() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let mut watch = Watch::start(&lab, &[])?;
        let ended = watch.proc.end(signal, SOON)?;
        assert_eq!(ended.status.code(), Some(0), "{signal}: {ended:?}");
        assert_eq!(ended.stderr, "", "{signal}");
    }
    Ok(())
}

#[test]
fn names_and_patterns_select_and_what_is_not_there_yet_comes() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    for name in ["web-1", "web-2", "db"] {
        lab.netns_add(name)?;
    }
    let names = |args: &[&str]| -> anyhow::Result<Vec<String>> {
        let output = netobs(&lab, &[&["watch", "--once", "-o", "json"], args].concat())?;
        anyhow::ensure!(output.status.success(), "{output:?}");
        Ok(row_names(&serde_json::from_str(&output.stdout)?))
    };
    assert_eq!(names(&[])?, ["db", "host", "web-1", "web-2"]);
    assert_eq!(names(&["web-*"])?, ["web-1", "web-2"]);
    assert_eq!(names(&["web-?", "--exclude", "*2"])?, ["web-1"]);
    assert_eq!(names(&["host"])?, ["host"]);
    assert_eq!(names(&["--exclude", "web*,db"])?, ["host"]);
    let inode = common::inode(&lab, &Netns::Named("db".to_owned()))?;
    assert_eq!(names(&[&inode.to_string()])?, ["db"]);

    let mut watch = Watch::start(&lab, &["later"])?;
    let first = watch.fresh()?;
    assert_eq!(row_names(&first), [""; 0]);
    assert_eq!(warnings(&first, "no_such_namespace").len(), 1, "{first}");
    lab.netns_add("later")?;
    let sample = watch.until("the row", |sample| !rows(sample, "later").is_empty())?;
    assert!(
        warnings(&sample, "no_such_namespace").is_empty(),
        "{sample}"
    );
    watch.end()?;
    Ok(())
}

#[test]
fn more_interfaces_than_slots_are_told_and_strict_is_strict() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    quiet_pair(&lab)?;
    // br0, va and vb: one fits.
    let args = [
        "watch",
        "-n2",
        "-i200ms",
        "-o",
        "json",
        "--max-interfaces",
        "1",
    ];
    let output = netobs(&lab, &args)?;
    assert!(output.status.success(), "{output:?}");
    for line in output.stdout.lines() {
        let sample: Value = serde_json::from_str(line)?;
        assert_eq!(warnings(&sample, "map_full").len(), 1, "{sample}");
        let reasons = warnings(&sample, "interface_not_observed");
        assert_eq!(reasons.len(), 2, "{sample}");
        for reason in reasons {
            let message = reason["message"].as_str().unwrap_or_default();
            assert!(message.contains("--max-interfaces"), "{message}");
        }
    }
    fails(
        &netobs(&lab, &[&args[..], &["--strict"]].concat())?,
        5,
        &["--strict"],
    );
    let output = netobs(&lab, &["watch", "--once", "--strict"])?;
    assert!(output.status.success(), "all is observed: {output:?}");
    Ok(())
}

#[test]
fn the_first_sample_comes_after_one_interval_or_at_once() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    quiet_pair(&lab)?;
    let mut watch = Watch::start(&lab, &["-n", "3"])?;
    ping(&lab, &Netns::Named("a".to_owned()), "10.9.0.2", &["-c1"])?;
    let ended = watch.proc.wait(SOON)?.success()?;
    let samples = common::parsed(&ended.stdout.lines().map(str::to_owned).collect::<Vec<_>>())?;
    assert_eq!(samples.len(), 3);
    assert!(
        samples[0]["namespaces"][0]["rates"].is_null(),
        "nothing to compare with"
    );
    assert!(samples[1]["namespaces"][0]["rates"].is_object());
    assert_eq!(samples[0]["interval_s"], 0.2);

    // An hour is not waited for.
    let mut once = lab.netobs(["watch", "--once", "-i", "1h"])?.start()?;
    let ended = once.wait(Duration::from_secs(20))?.success()?;
    assert!(ended.stdout.contains("NAMESPACE"));
    Ok(())
}

#[test]
fn doctor_finds_what_is_there_and_touches_nothing() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    quiet_pair(&lab)?;
    lab.shell("tc qdisc add dev va clsact; tc filter add dev va egress u32 match u32 0 0")?;
    let before = lab.shell("tc filter show dev va egress; tc qdisc show; ip link")?;
    let output = netobs(&lab, &["doctor", "-o", "json"])?;
    assert!(output.status.success(), "{output:?}");
    let report: Value = serde_json::from_str(&output.stdout)?;
    assert_eq!(report["hook"], "tcx");
    for check in report["checks"].as_array().into_iter().flatten() {
        assert_eq!(check["verdict"], "ok", "{check}");
    }
    let chains = report["chains"].as_array().map(Vec::len);
    assert_eq!(chains, Some(1), "{report}");
    assert_eq!(report["chains"][0]["interface"], "va");
    assert_eq!(report["chains"][0]["clsact_egress"][0], "u32");
    let clsact = netobs(&lab, &["doctor", "--tc-mode", "clsact", "-o", "json"])?;
    let report: Value = serde_json::from_str(&clsact.stdout)?;
    assert_eq!(report["hook"], "clsact");
    assert_eq!(
        lab.shell("tc filter show dev va egress; tc qdisc show; ip link")?,
        before
    );
    Ok(())
}

#[test]
fn many_interfaces_attach_at_once_and_grace_periods_are_as_before() -> anyhow::Result<()> {
    const FILE: &str = "/sys/kernel/rcu_expedited";
    let lab = Lab::new()?;
    for n in 0..10 {
        lab.shell(&format!("ip link add va{n} type veth peer name vb{n}"))?;
    }
    let before = std::fs::read_to_string(FILE)?;
    for flag in [&[][..], &["--no-expedite"]] {
        let output = netobs(&lab, &[&["watch", "--once", "-o", "json"], flag].concat())?;
        let sample: Value = serde_json::from_str(&output.stdout)?;
        assert!((0..10).all(|n| observes(&sample, "host", &format!("vb{n}"))));
    }
    // Another test's netobs may have set it this moment.
    netobs_tests::poll_until(SOON, "the old value", || {
        Ok((std::fs::read_to_string(FILE)? == before).then_some(()))
    })
}

#[test]
fn a_reader_that_does_not_read_stops_neither_observing_nor_the_end() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    // Many rows: a pipe holds few samples of them.
    for n in 0..30 {
        lab.netns_add(&format!("n{n}"))?;
    }
    let script = format!(
        "mkfifo {tmp}/pipe
         sleep 1000 < {tmp}/pipe &
         exec {netobs} watch -v -i 100ms -o json > {tmp}/pipe",
        tmp = lab.tmp().display(),
        netobs = netobs_binary()?.display()
    );
    let mut netobs = lab.command("sh").args(["-c", &script]).start()?;
    // The writer sleeps in the kernel for good once the pipe is full.
    let stuck = format!("/proc/{}/task", netobs.pid());
    netobs_tests::poll_until(SOON, "a full pipe", || {
        let tasks = std::fs::read_dir(&stuck)?.flatten();
        let waits = |task: std::fs::DirEntry| {
            std::fs::read_to_string(task.path().join("wchan"))
                .is_ok_and(|place| place.contains("pipe_write"))
        };
        Ok(tasks.into_iter().any(waits).then_some(()))
    })?;
    lab.shell("ip link add vlate type veth peer name eth0 netns n0; ip link set vlate up")?;
    netobs.wait_stderr(SOON, |line| line.contains("observing vlate"))?;
    let ended = netobs.end(Signal::SIGTERM, SOON)?;
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    Ok(())
}

#[test]
fn switches_can_be_set_by_the_environment() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    for (value, interfaces) in [("1", 1), ("true", 1), ("0", 0), ("", 0)] {
        let mut command = lab.netobs(["list", "-o", "json"])?;
        let list = command.env("NETOBS_LOOPBACK", value).json()?;
        let host = namespace(&list, "host")["interfaces"]
            .as_array()
            .map(Vec::len);
        assert_eq!(host, Some(interfaces), "NETOBS_LOOPBACK={value}: {list}");
    }
    Ok(())
}
