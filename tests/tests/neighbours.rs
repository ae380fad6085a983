//! Others on the same hook, before and after us: they go on seeing every
//! packet, so do we, and nothing of theirs is changed or taken away.

mod common;

use aya::programs::{SchedClassifier, TcAttachType};
use common::{Link, SOON, Watch, code, interface, observes, ping, quiet_pair};
use netobs_tests::{Lab, Netns, poll_until};
use nix::sys::signal::Signal;
use serde_json::Value;

const ENDS: [&str; 2] = ["va", "vb"];
const HOOKS: [&str; 2] = ["ingress", "egress"];
const CLSACT: &str = "--tc-mode=clsact";

fn links() -> [Link<'static>; 2] {
    [Link::named("a", "eth0"), Link::named("b", "eth0")]
}

/// Filters that look at everything, count it and let it pass, and the qdisc
/// for them. (Of the classifiers and actions of `tc`, small kernels have `u32`
/// and `mirred` at most; the copies go nowhere.)
fn neighbour(lab: &Lab, end: &str) -> anyhow::Result<()> {
    lab.shell(&format!(
        "ip link add sink-{end} type veth peer name void-{end}
         ip link set sink-{end} up
         ip link set void-{end} up
         tc qdisc add dev {end} clsact
         add() {{
            tc filter add dev {end} $1 prio $2 protocol all u32 match u32 0 0 \
                action mirred egress mirror dev sink-{end}
         }}
         # With one priority `tc` would show both on each hook.
         add ingress 100
         add egress 101"
    ))?;
    Ok(())
}

/// The filters on a hook, as `tc` shows them.
fn filters(lab: &Lab, end: &str, hook: &str) -> anyhow::Result<Vec<Value>> {
    let args = ["-s", "-j", "filter", "show", "dev", end, hook];
    let all = lab.command("tc").args(args).json()?;
    // The first lines of a classifier are about itself.
    let real = |filter: &&Value| {
        let about_itself = filter["kind"] == "u32" && filter["options"]["actions"].is_null();
        filter["options"].is_object() && !about_itself
    };
    let all = all.as_array().map_or(&[][..], Vec::as_slice);
    Ok(all.iter().filter(real).cloned().collect())
}

/// How many of them are netobs's.
fn ours(lab: &Lab) -> anyhow::Result<usize> {
    let mut number = 0;
    for end in ENDS {
        for hook in HOOKS {
            let all = filters(lab, end, hook)?;
            number += all.iter().filter(|filter| filter["kind"] == "bpf").count();
        }
    }
    Ok(number)
}

/// Packets that the neighbour saw on both hooks, and that the interface did.
fn seen(lab: &Lab, end: &str) -> anyhow::Result<[(u64, u64); 2]> {
    let link = lab.link_stats(&Netns::Host, end)?;
    let mut result = [(0, link.rx.packets), (0, link.tx.packets)];
    for (hook, result) in HOOKS.iter().zip(&mut result) {
        let all = filters(lab, end, hook)?;
        let theirs: Vec<&Value> = all.iter().filter(|f| f["kind"] == "u32").collect();
        assert_eq!(theirs.len(), 1, "{end} {hook}: {all:?}");
        let stats = &theirs[0]["options"]["actions"][0]["stats"];
        result.0 = common::count(stats, "packets");
    }
    Ok(result)
}

fn has_clsact(lab: &Lab, end: &str) -> anyhow::Result<bool> {
    let all = lab.qdisc_stats(&Netns::Host, end)?;
    Ok(all.iter().any(|qdisc| qdisc.kind == "clsact"))
}

fn a() -> Netns {
    Netns::Named("a".to_owned())
}

/// Twelve pings, exactly counted by us and by the neighbour on `va`.
#[track_caller]
fn both_see_everything(lab: &Lab, watch: &mut Watch, hook: &str) -> anyhow::Result<()> {
    let before = watch.at_rest(lab, &links())?;
    before.reconciles();
    for row in ["a", "b"] {
        assert_eq!(interface(&before.sample, row, "eth0")["hook"], hook);
    }
    let old = seen(lab, "va")?;
    ping(lab, &a(), "10.9.0.2", &["-c12"])?;
    let after = watch.at_rest(lab, &links())?;
    after.reconciles();
    let new = seen(lab, "va")?;
    for (old, new) in old.iter().zip(new) {
        assert_eq!(new.0 - old.0, 12, "the neighbour");
        assert_eq!(new.1 - old.1, 12, "the interface");
    }
    for direction in ["rx", "tx"] {
        let grew = common::growth(
            before.counters("a", direction),
            after.counters("a", direction),
        );
        assert_eq!(grew, common::grown(&[("ipv4/icmp", 12, 12 * 98)], &[]));
    }
    Ok(())
}

#[test]
fn a_filter_behind_our_tcx_programs_sees_everything_and_stays() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    quiet_pair(&lab)?;
    neighbour(&lab, "va")?;
    let mut watch = Watch::start(&lab, &["--tc-mode=tcx"])?;
    both_see_everything(&lab, &mut watch, "tcx")?;
    // Another one comes while we watch.
    neighbour(&lab, "vb")?;
    both_see_everything(&lab, &mut watch, "tcx")?;
    watch.end()?;
    for end in ENDS {
        assert!(has_clsact(&lab, end)?, "{end}");
        for hook in HOOKS {
            assert_eq!(filters(&lab, end, hook)?.len(), 1, "{end} {hook}");
        }
    }
    let old = seen(&lab, "va")?;
    ping(&lab, &a(), "10.9.0.2", &["-c3"])?;
    assert_eq!(seen(&lab, "va")?[0].0, old[0].0 + 3);
    Ok(())
}

#[test]
fn clsact_counts_the_same_and_takes_only_its_own_away() -> anyhow::Result<()> {
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let lab = Lab::new()?;
        quiet_pair(&lab)?;
        neighbour(&lab, "va")?;
        let mut watch = Watch::start(&lab, &[CLSACT])?;
        both_see_everything(&lab, &mut watch, "clsact")?;
        assert_eq!(ours(&lab)?, 4);
        let output = watch.proc.end(signal, SOON)?;
        assert_eq!(code(&output)?, 0, "{output:?}");
        assert_eq!(ours(&lab)?, 0, "{signal}");
        // Where there was a qdisc before, it stays with its filters; where
        // there was none, none is left.
        assert!(has_clsact(&lab, "va")?, "{signal}");
        assert!(!has_clsact(&lab, "vb")?, "{signal}");
        for hook in HOOKS {
            assert_eq!(filters(&lab, "va", hook)?.len(), 1, "{signal} {hook}");
        }
    }
    Ok(())
}

#[test]
fn killed_with_tcx_it_leaves_nothing() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    quiet_pair(&lab)?;
    let mut watch = Watch::start(&lab, &["--tc-mode=tcx"])?;
    watch.until("both rows", |sample| {
        ["a", "b"].iter().all(|row| observes(sample, row, "eth0"))
    })?;
    let attached = || -> anyhow::Result<usize> {
        common::inside(&lab, &Netns::Host, || {
            let mut number = 0;
            for end in ENDS {
                for hook in [TcAttachType::Ingress, TcAttachType::Egress] {
                    number += SchedClassifier::query_tcx(end, hook)?.1.len();
                }
            }
            Ok(number)
        })
    };
    assert_eq!(attached()?, 4);
    watch.proc.end(Signal::SIGKILL, SOON)?;
    // The kernel lets go of a dead process's links in its own time.
    poll_until(SOON, "the end of the links", || {
        Ok((attached()? == 0).then_some(()))
    })?;
    assert_eq!(ours(&lab)?, 0);
    for end in ENDS {
        assert!(!has_clsact(&lab, end)?, "{end}");
    }
    Ok(())
}

#[test]
fn clean_removes_what_a_killed_one_left_and_nothing_else() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    quiet_pair(&lab)?;
    neighbour(&lab, "va")?;
    let mut killed = Watch::start(&lab, &[CLSACT])?;
    killed.proc.end(Signal::SIGKILL, SOON)?;
    assert_eq!(ours(&lab)?, 4, "filters outlive their process");
    // The next start takes away what was left.
    let mut watch = Watch::start(&lab, &[CLSACT])?;
    assert_eq!(ours(&lab)?, 4);
    let mut killed = Watch::start(&lab, &[CLSACT])?;
    assert_eq!(ours(&lab)?, 8, "those of a running one stay");
    killed.proc.end(Signal::SIGKILL, SOON)?;
    assert_eq!(ours(&lab)?, 8);
    both_see_everything(&lab, &mut watch, "clsact")?;

    let output = lab.netobs(["clean"])?.output()?.success()?;
    // Those of the host's other interfaces too.
    for end in ENDS {
        let removed = format!(" on {end} (host)");
        let removed = output.stdout.lines().filter(|line| line.contains(&removed));
        assert_eq!(removed.count(), 2, "{end}: {output:?}");
    }
    assert_eq!(ours(&lab)?, 4, "those of a running one stay");
    both_see_everything(&lab, &mut watch, "clsact")?;
    watch.end()?;
    assert_eq!(ours(&lab)?, 0);

    let output = lab.netobs(["clean"])?.output()?.success()?;
    assert_eq!(output.stdout, "", "nothing is left");
    assert!(has_clsact(&lab, "va")?);
    for hook in HOOKS {
        assert_eq!(filters(&lab, "va", hook)?.len(), 1, "{hook}");
    }
    Ok(())
}

/// Each is the other's neighbour: who starts later runs first, so each hook
/// has one before and one after the other.
#[test]
fn two_at_once_both_count_exactly() -> anyhow::Result<()> {
    for modes in [["tcx", "tcx"], ["clsact", "clsact"], ["tcx", "clsact"]] {
        let lab = Lab::new()?;
        quiet_pair(&lab)?;
        neighbour(&lab, "va")?;
        let start = |mode| Watch::start(&lab, &[&format!("--tc-mode={mode}")]);
        let mut first = start(modes[0])?;
        both_see_everything(&lab, &mut first, modes[0])?;
        let mut second = start(modes[1])?;
        both_see_everything(&lab, &mut second, modes[1])?;
        both_see_everything(&lab, &mut first, modes[0])?;
        second.end()?;
        both_see_everything(&lab, &mut first, modes[0])?;
        first.end()?;
        assert_eq!(ours(&lab)?, 0, "{modes:?}");
    }
    Ok(())
}

/// The ids of TCX links that netobs holds.
fn tcx_links(pid: u32) -> anyhow::Result<Vec<String>> {
    let mut ids = Vec::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/fdinfo"))? {
        // Descriptors come and go.
        let text = std::fs::read_to_string(entry?.path()).unwrap_or_default();
        let value = |key: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(key))
                .map(|value| value.trim().to_owned())
        };
        if value("link_type:").is_some_and(|kind| kind == "tcx") {
            ids.extend(value("link_id:"));
        }
    }
    Ok(ids)
}

/// Programs that somebody takes off hang there again, and what passed meanwhile is
/// in nobody's account but the kernel's.
#[test]
fn what_others_take_off_hangs_there_again_and_is_told() -> anyhow::Result<()> {
    for clsact in [false, true] {
        let lab = Lab::new()?;
        quiet_pair(&lab)?;
        let args: &[&str] = if clsact { &[CLSACT] } else { &[] };
        let mut watch = Watch::start(&lab, args)?;
        let before = watch.at_rest(&lab, &links())?;
        before.reconciles();
        assert!(common::warnings(&before.sample, "programs_detached").is_empty());
        let pinging = |times: &str| ping(&lab, &Netns::Named("a".to_owned()), "10.9.0.2", &[times]);
        pinging("-c3")?;
        watch.at_rest(&lab, &links())?.reconciles();
        // It would hang the first there again while the last is still taken off.
        watch.proc.signal(Signal::SIGSTOP)?;
        if clsact {
            for end in ENDS {
                lab.shell(&format!("tc qdisc del dev {end} clsact"))?;
            }
        } else {
            let links = tcx_links(watch.proc.pid())?;
            assert!(links.len() >= 4, "{links:?}");
            for id in links {
                lab.command("bpftool")
                    .args(["link", "detach", "id", &id])
                    .text()?;
            }
        }
        pinging("-c4")?;
        watch.proc.signal(Signal::SIGCONT)?;
        watch.until("all back", |sample| {
            // Of the bridge too.
            common::warnings(sample, "programs_detached").len() >= 2
        })?;
        pinging("-c5")?;
        let rest = watch.at_rest(&lab, &links())?;
        for row in ["a", "b"] {
            let eth0 = interface(&rest.sample, row, "eth0");
            for direction in ["rx", "tx"] {
                let counted = common::count(&eth0[direction]["ipv4"]["icmp"], "packets");
                // Those that passed before the programs were back.
                assert_eq!(eth0["unaccounted"][direction], 4, "{direction}: {eth0}");
                assert_eq!(counted, 8, "{direction}: {eth0}");
            }
        }
        let output = watch.end()?;
        assert!(output.stderr.is_empty(), "{output:?}");
        // Nothing is left, and nothing was taken away twice.
        assert_eq!(ours(&lab)?, 0);
    }
    Ok(())
}
