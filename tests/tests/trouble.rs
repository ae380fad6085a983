//! Bad input and trouble: what netobs says, and how it ends.

mod common;

use std::{
    fs,
    os::unix::{fs::PermissionsExt as _, net::UnixListener},
    time::{Duration, Instant},
};

use common::{SOON, Watch, code, find_interface, namespace, observes, row_names, warnings};
use netobs_tests::{Lab, Output, netobs_binary};
use serde_json::Value;

/// A namespace of this name with an `eth0` on the host.
fn connected(lab: &Lab, name: &str) -> anyhow::Result<()> {
    lab.netns_add(name)?;
    lab.shell(&format!(
        "ip link add v{name} type veth peer name eth0 netns {name}
         ip link set v{name} up
         ip -n {name} link set eth0 up"
    ))?;
    Ok(())
}

fn said(output: &Output, code_: i32, words: &[&str]) -> anyhow::Result<()> {
    assert_eq!(code(output)?, code_, "{output:?}");
    for word in words {
        assert!(output.stderr.contains(word), "no {word:?}: {output:?}");
    }
    Ok(())
}

#[test]
fn wrong_arguments_end_with_2() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    for (args, word) in [
        (&["watch", "--no-such-flag"][..], "--no-such-flag"),
        (&["watch", "--interval=0"], "interval"),
        (&["watch", "--interval=0s"], "interval"),
        (&["watch", "--interval=50ms"], "100ms"),
        (&["watch", "--interval=soon"], "interval"),
        (&["watch", "--count=0"], "count"),
        (&["watch", "--output=xml"], "output"),
        (&["watch", "--docker-host=ssh://somewhere"], "docker-host"),
        (&["watch", "-o", "csv", "--fields=rx_paket"], "rx_packets"),
        (&["routes", "--fields=prefix"], "-o csv"),
        (&["list", "-o", "csv", "--fields=mac,mac"], "twice"),
        (&["schema"], "routes"),
        (&["wach"], "wach"),
    ] {
        let output = lab.netobs(args)?.output()?;
        said(&output, 2, &[word])?;
        assert_eq!(output.stdout, "", "{args:?}");
    }
    Ok(())
}

#[test]
fn a_reader_that_leaves_is_fine_and_a_full_disk_is_not() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    let netobs = netobs_binary()?;
    let netobs = netobs.display();
    for format in ["table", "csv", "json"] {
        let start = Instant::now();
        let script = format!(
            "set -o pipefail; '{netobs}' watch -i100ms -o {format} | head -n1 >/dev/null; \
             echo \"${{PIPESTATUS[0]}}\""
        );
        let status = lab.command("bash").args(["-c", &script]).text()?;
        assert_eq!(status, "0\n", "{format}");
        assert!(start.elapsed() < Duration::from_secs(20), "{format}");
    }
    for args in ["watch -i100ms", "watch -n1 -i100ms", "list"] {
        let script = format!("exec '{netobs}' {args} >/dev/full");
        let output = lab.command("sh").args(["-c", &script]).output()?;
        said(&output, 1, &["standard output", "No space left"])?;
    }
    Ok(())
}

/// Whoever runs an engine that answers badly has to know; whoever runs none
/// does not.
#[test]
fn an_engine_that_refuses_is_a_warning_and_none_is_fine() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    connected(&lab, "alone")?;
    let once = ["watch", "--once", "-o", "json"];
    let sample = lab.netobs(once)?.json()?;
    assert_eq!(sample["warnings"], Value::Array(Vec::new()));

    // A socket that nobody listens on any more.
    let dead = lab.tmp().join("dead.sock");
    drop(UnixListener::bind(&dead)?);
    let locked = lab.tmp().join("locked.sock");
    let _listener = UnixListener::bind(&locked)?;
    fs::set_permissions(&locked, fs::Permissions::from_mode(0o000))?;
    fs::set_permissions(lab.tmp(), fs::Permissions::from_mode(0o755))?;

    let url = format!("unix://{}", dead.display());
    let sample = lab.netobs(once)?.args(["--docker-host", &url]).json()?;
    refused(&sample, "refused");
    assert_eq!(row_names(&sample), ["alone", "host"]);

    // Root may open everything: as somebody else, with what `list` needs.
    let caps = "+sys_admin,+sys_ptrace,+net_admin";
    let url = format!("unix://{}", locked.display());
    let list = lab
        .command("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .args(["--inh-caps", caps, "--ambient-caps", caps, "--"])
        .arg(netobs_binary()?)
        .args(["list", "-o", "json", "--docker-host", &url])
        .json()?;
    refused(&list, "ermission denied");
    assert_eq!(row_names(&list), ["alone", "host"]);

    // A table has no place for warnings: they go to standard error, once.
    let url = format!("unix://{}", dead.display());
    let mut watch = lab.netobs(["watch", "-i100ms", "-n3"])?;
    let output = watch.args(["--docker-host", &url]).output()?.success()?;
    let times = output.stderr.matches("refused").count();
    assert_eq!(times, 1, "{output:?}");
    Ok(())
}

#[track_caller]
fn refused(output: &Value, why: &str) {
    let all = warnings(output, "engine_unreachable");
    assert_eq!(all.len(), 1, "{output}");
    let message = all[0]["message"].as_str().unwrap_or_default();
    assert!(message.contains(why), "{message}");
}

/// Names are chosen by others: nothing in them may reach a terminal, a
/// spreadsheet or a parser as anything but text.
#[test]
fn hostile_names_are_text_in_every_format() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    // An escape sequence, quotes, a comma, a line break, bytes that are no
    // UTF-8, a character that reverses the line.
    let names = [
        r"esc\033[31mred\033]0;title\007",
        r#"quo"te'\054comma"#,
        r"line\nbreak\ttab\rreturn",
        r"=cmd|calc",
        r"bytes\377\376end",
        r"rlo\342\200\256txet",
        r"csi\302\23331mdel\177",
    ];
    for (number, name) in names.iter().enumerate() {
        lab.shell(&format!(
            r#"ip netns add plain
               name=$(printf '%b' '{}')
               mv() {{ touch "/run/netns/$name"; mount --bind /run/netns/plain "/run/netns/$name"; }}
               ip link add h{number} type veth peer name eth0 netns plain
               ip link set h{number} up
               ip -n plain link set eth0 up
               mv
               ip netns del plain"#,
            name.replace('\'', r"\047")
        ))?;
    }
    // The kernel takes all but slashes, colons and spaces.
    let odd = "\u{1b}[7m\"',\u{202e}";
    lab.netns_add("inner")?;
    let mut add = lab.command("ip");
    add.args(["link", "add", "hx", "type", "veth", "peer", "name", odd]);
    add.args(["netns", "inner"]).text()?;
    lab.shell("ip link set hx up")?;
    fs::write(lab.tmp().join("ordinary"), "no namespace\n")?;
    lab.shell(&format!(
        "cp {}/ordinary /run/netns/ordinary",
        lab.tmp().display()
    ))?;

    for command in [&["watch", "--once"][..], &["list"]] {
        for format in ["table", "csv", "json"] {
            let output = lab
                .netobs(command)?
                .args(["--color=never", "-o", format])
                .output()?
                .success()?;
            let what = format!("{command:?} {format}: {output:?}");
            for text in [&output.stdout, &output.stderr] {
                // CSV ends its lines by both (RFC 4180).
                let text = text.replace("\r\n", "\n");
                let bad = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
                assert!(!text.contains(bad), "{what}");
                assert!(!text.contains('\u{fffd}'), "{what}");
            }
            assert!(
                output.stdout.contains("ordinary") || output.stderr.contains("ordinary"),
                "{what}"
            );
            match format {
                "json" => {
                    let value: Value = serde_json::from_str(&output.stdout)?;
                    json_has_them(&value, odd);
                }
                "csv" => {
                    assert!(
                        output.stdout.contains(r"bytes\xff\xfeend")
                            || output.stdout.contains(r"bytes\\xff\\xfeend"),
                        "{what}"
                    );
                }
                _ => {
                    // No name takes a second line.
                    assert!(output.stdout.contains("esc"), "{what}");
                }
            }
        }
    }
    Ok(())
}

/// JSON has an escape for everything, so names are what they are there.
#[track_caller]
fn json_has_them(value: &Value, odd: &str) {
    let names = row_names(value);
    for name in [
        "esc\u{1b}[31mred\u{1b}]0;title\u{7}",
        "quo\"te',comma",
        "line\nbreak\ttab\rreturn",
        "=cmd|calc",
        r"bytes\xff\xfeend",
        "rlo\u{202e}txet",
        "csi\u{9b}31mdel\u{7f}",
        "inner",
        "host",
    ] {
        assert!(
            names.iter().any(|known| known == name),
            "{name:?} in {names:?}"
        );
    }
    let inner = namespace(value, "inner");
    assert!(find_interface(inner, odd).is_some(), "{inner}");
    let warned = value["warnings"].as_array().into_iter().flatten();
    let told = |warning: &Value| {
        warning["message"]
            .as_str()
            .is_some_and(|message| message.contains("/run/netns/ordinary"))
    };
    assert_eq!(
        warned.filter(|w| told(w)).count(),
        1,
        "{}",
        value["warnings"]
    );
}

#[test]
fn names_patterns_and_exclusions_select_rows() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    for name in ["web-1", "web-2", "db-1"] {
        connected(&lab, name)?;
    }
    let inode = common::inode(&lab, &netobs_tests::Netns::Named("db-1".into()))?.to_string();
    for (args, expected) in [
        (&["web-1"][..], &["web-1"][..]),
        (&["web-*"], &["web-1", "web-2"]),
        (&["?b-1", "host"], &["db-1", "host"]),
        (&[&inode], &["db-1"]),
        (&["--exclude=web-*"], &["db-1", "host"]),
        (&["--exclude=host", "--exclude=db-1"], &["web-1", "web-2"]),
        (&["web-*", "--exclude=web-2"], &["web-1"]),
    ] {
        for command in ["watch", "list"] {
            let once: &[&str] = if command == "watch" { &["--once"] } else { &[] };
            let value = lab
                .netobs([command, "-o", "json"])?
                .args(once)
                .args(args)
                .json()?;
            assert_eq!(row_names(&value), expected, "{command} {args:?}");
        }
    }

    // A NAME may come to life later.
    let mut watch = Watch::start(&lab, &["late", "web-1"])?;
    let sample = watch.fresh()?;
    assert_eq!(row_names(&sample), ["web-1"]);
    let warned = |sample: &Value| {
        let all = sample["warnings"].as_array().into_iter().flatten();
        all.filter(|w| w["message"].as_str().is_some_and(|m| m.contains("late")))
            .count()
    };
    assert_eq!(warned(&sample), 1, "{sample}");
    connected(&lab, "late")?;
    let sample = watch.until("the late row", |sample| observes(sample, "late", "eth0"))?;
    assert_eq!(row_names(&sample), ["late", "web-1"]);
    watch.until("the end of the warning", |sample| warned(sample) == 0)?;
    watch.end()?;
    Ok(())
}

#[test]
fn what_does_not_fit_is_told_and_strict_ends_with_5() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    let strict = ["watch", "--once", "--strict", "-o", "json"];
    connected(&lab, "first")?;
    // All is well with what is there.
    let output = lab.netobs(strict)?.arg("first").output()?;
    assert_eq!(code(&output)?, 0, "{output:?}");

    connected(&lab, "second")?;
    let one = ["--max-interfaces=1", "first", "second"];
    let output = lab.netobs(strict)?.args(one).output()?;
    assert_eq!(code(&output)?, 5, "{output:?}");
    assert!(output.stderr.contains("--strict"), "{output:?}");
    let sample: Value = serde_json::from_str(output.stdout.trim())?;
    let full = warnings(&sample, "map_full");
    assert_eq!(full.len(), 1, "{sample}");
    let message = full[0]["message"].as_str().unwrap_or_default();
    assert!(message.contains("--max-interfaces"), "{message}");
    let hooks = ["first", "second"].map(|row| {
        let interface = common::interface(&sample, row, "eth0");
        if interface["hook"] == "none" {
            let reason = interface["reason"].as_str().unwrap_or_default();
            assert!(reason.contains("--max-interfaces"), "{interface}");
            assert_eq!(interface["rx"], Value::Null, "unknown is not 0");
        }
        interface["hook"] != "none"
    });
    assert_eq!(hooks.iter().filter(|observed| **observed).count(), 1);

    // Without --strict the rest is still worth showing.
    let mut watch = Watch::begin(&lab, &one)?;
    let sample = watch.fresh()?;
    assert_eq!(warnings(&sample, "map_full").len(), 1);
    // Room that comes free is used.
    let free = if hooks[0] { "first" } else { "second" };
    let waits = if hooks[0] { "second" } else { "first" };
    lab.shell(&format!("ip netns del {free}"))?;
    watch.until("the other one's turn", |sample| {
        observes(sample, waits, "eth0")
    })?;
    let output = watch.proc.end(nix::sys::signal::Signal::SIGINT, SOON)?;
    assert_eq!(code(&output)?, 0, "{output:?}");
    Ok(())
}

/// Root's power is not kept for longer than it takes to give it up.
#[test]
fn only_what_is_needed_is_kept() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    connected(&lab, "alone")?;
    for watch in [Watch::start(&lab, &[])?, Watch::routes(&lab, &[])?] {
        let pid = watch.proc.pid();
        // Of every thread.
        for task in fs::read_dir(format!("/proc/{pid}/task"))? {
            // One that looks into a namespace ends with that.
            let Ok(status) = fs::read_to_string(task?.path().join("status")) else {
                continue;
            };
            let field = |name: &str| {
                let line = status.lines().find_map(|line| line.strip_prefix(name));
                line.map(str::trim).unwrap_or_default().to_owned()
            };
            assert_eq!(field("NoNewPrivs:"), "1");
            // SECCOMP_MODE_FILTER
            assert_eq!(field("Seccomp:"), "2");
            // dac_read_search 2, net_broadcast 11, net_admin 12, sys_ptrace 19,
            // sys_admin 21, perfmon 38, bpf 39, of which the machine may have less.
            let allowed = [2, 11, 12, 19, 21, 38, 39]
                .iter()
                .fold(0u64, |set, n| set | 1 << n);
            for set in ["CapEff:", "CapPrm:", "CapBnd:"] {
                let kept = u64::from_str_radix(&field(set), 16)?;
                assert_eq!(kept & !allowed, 0, "{set} {kept:x}");
                assert_ne!(kept & (1 << 39), 0, "{set} {kept:x}");
            }
            for set in ["CapInh:", "CapAmb:"] {
                assert_eq!(u64::from_str_radix(&field(set), 16)?, 0, "{set}");
            }
        }
        watch.end()?;
    }
    Ok(())
}
