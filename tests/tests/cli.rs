//! The command line: who may run it, how it starts and ends, what it leaves as
//! it was. Bad input is in `trouble.rs`.

mod common;

use std::time::Duration;

use common::{SOON, Watch, code, fails, namespace, observes, ping, quiet_pair};
use netobs_tests::{Lab, Netns, Output, netobs_binary};
use nix::sys::signal::Signal;
use serde_json::Value;

/// Nobody in particular.
const NOBODY: [&str; 3] = ["--reuid=65534", "--regid=65534", "--clear-groups"];

fn netobs(lab: &Lab, args: &[&str]) -> anyhow::Result<Output> {
    lab.netobs(args)?.output()
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
    // Words need no capability, and what is wrong with them comes first.
    let schema: Value = serde_json::from_str(&as_nobody(&["schema", "sample"], &[])?.stdout)?;
    assert_eq!(schema["properties"]["schema"]["const"], "netobs.sample/1");
    let names = as_nobody(&["watch", "--fields=help"], &[])?.success()?;
    assert!(names.stdout.contains("\nrx_packets\n"), "{names:?}");
    let output = as_nobody(&["watch", "-ocsv", "--fields=rx_paket"], &[])?;
    fails(&output, 2, &["rx_packets"]);

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
    // Another test's netobs may have set it this moment, here and below.
    let ours = netobs::world::rcu::OURS;
    let before = netobs_tests::poll_until(SOON, "a value that is nobody's of ours", || {
        let text = std::fs::read_to_string(FILE)?;
        Ok((text.trim() != ours).then_some(text))
    })?;
    for flag in [&[][..], &["--no-expedite"]] {
        let output = netobs(&lab, &[&["watch", "--once", "-o", "json"], flag].concat())?;
        let sample: Value = serde_json::from_str(&output.stdout)?;
        assert!((0..10).all(|n| observes(&sample, "host", &format!("vb{n}"))));
    }
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
fn options_can_be_set_by_the_environment() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    for (value, interfaces) in [("1", 1), ("true", 1), ("0", 0), ("", 0)] {
        let mut command = lab.netobs(["list", "-o", "json"])?;
        let list = command.env("NETOBS_LOOPBACK", value).json()?;
        let host = namespace(&list, "host")["interfaces"]
            .as_array()
            .map(Vec::len);
        assert_eq!(host, Some(interfaces), "NETOBS_LOOPBACK={value}: {list}");
    }
    for (value, header) in [("mac,kind", "mac,kind\r\n"), ("", "namespace,cookie,")] {
        let mut command = lab.netobs(["list", "-o", "csv"])?;
        let csv = command.env("NETOBS_FIELDS", value).text()?;
        assert!(csv.starts_with(header), "NETOBS_FIELDS={value}: {csv}");
    }
    Ok(())
}
