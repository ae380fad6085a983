//! How soon what is new is observed.

use std::{
    io::Write as _,
    iter,
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use aya::programs::{SchedClassifier, TcAttachType};
use netobs::world::link_events::{self, LinkEvent};
use netobs_tests::{Proc, poll_until};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::{
    alternate::Plan,
    load::{Frame, Frames, Load as _},
    report::{Bound, Part, Table, column},
    scene::{Scene, inside},
    stats::Spread,
};

const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks: each takes the lock that attaching needs.
const LOOK: Duration = Duration::from_micros(200);
/// Namespaces that are made as fast as possible.
const BURST: usize = 200;
/// Frames that each of them sends at once.
const FRAMES: usize = 10;

pub(crate) fn events(plan: Plan) -> anyhow::Result<Part> {
    let mut part = Part {
        name: "events",
        title: "Per event",
        method: format!(
            "Attached: from the first netlink message about a veth into a namespace, as this process hears it, to both programs \
             hanging on the host's end, asked of the kernel every {LOOK:?}; a grace period of RCU is in it. The other column \
             begins when `ip` is told to make the veth, and to set it up. Burst: {BURST} namespaces \
             with a veth, made one after the other as fast as a shell and `ip` do it, each of which sends {FRAMES} \
             frames at once. Counted are those that the programs saw; the rest is in before_attach."
        ),
        ..Part::default()
    };
    let mut table = Table::new(
        "Attached",
        "beside",
        [
            column("after the message", "ms", 2),
            column("after `ip` was told", "ms", 2),
        ],
    );
    for others in [0, 1000] {
        let lags = attached(plan, others)?;
        let after_message = Spread::of(lags.iter().map(|lag| lag.after_message));
        let after_order = Spread::of(lags.iter().map(|lag| lag.after_order));
        table.row(format!("{others} namespaces"), [after_message, after_order]);
        part.target(
            format!(
                "attached after a new link's message, beside {others} namespaces (a grace period included)"
            ),
            "ms",
            Bound::AtMost(5.0),
            after_message,
        );
    }
    part.tables.push(table);
    part.tables.push(burst()?);
    Ok(part)
}

/// How long it took until a link was observed, in milliseconds.
struct Lag {
    after_message: f64,
    after_order: f64,
}

/// For one link after the other.
fn attached(plan: Plan, others: u32) -> anyhow::Result<Vec<Lag>> {
    let scene = Scene::new(others)?;
    let mut watch = scene
        .lab
        .netobs(["watch", "--interval=1s", "--output=json"])?;
    let mut watch = watch
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let mut lags = Vec::new();
    // Until it looks.
    thread::sleep(Duration::from_secs(if others > 0 { 5 } else { 2 }));
    for number in 0..plan.rounds * 2 {
        let end = format!("e{number}");
        scene.lab.netns_add(&format!("x{number}"))?;
        let order =
            format!("link add {end} type veth peer name eth0 netns x{number}\nlink set {end} up\n");
        let mut ip = scene.lab.command("ip");
        let ip = ip
            .args(["-batch", "-"])
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let (order_end, mut orders) = std::io::pipe()?;
        let mut ip = ip.stdin(order_end).spawn()?;
        let hangs = || {
            let both = [TcAttachType::Ingress, TcAttachType::Egress];
            both.into_iter().all(|hook| {
                SchedClassifier::query_tcx(&end, hook)
                    .is_ok_and(|(_, programs)| !programs.is_empty())
            })
        };
        let lag = scene.on_host(|| {
            let mut heard = link_events::listen()?;
            // It waits for its orders by now, and the new namespace has been looked at.
            thread::sleep(Duration::from_millis(300));
            let ordered = Instant::now();
            orders.write_all(order.as_bytes())?;
            drop(orders);
            while !hangs() {
                ensure!(ordered.elapsed() < PATIENCE, "{end} is not observed");
                thread::sleep(LOOK);
            }
            let hangs = Instant::now();
            let message = iter::from_fn(|| heard.events.blocking_recv())
                .take_while(|heard| heard.event != LinkEvent::Lost)
                .find(|heard| is_about(&heard.event, &end))
                .context("no message about the link")?;
            let ms = |since| Some(hangs.checked_duration_since(since)?.as_secs_f64() * 1e3);
            // Nothing where our own thread was the last to hear of it.
            Ok(ms(message.at).zip(ms(ordered)))
        })?;
        lags.extend(lag.map(|(after_message, after_order)| Lag {
            after_message,
            after_order,
        }));
        ip.wait(PATIENCE)?;
        scene.lab.netns_del(&format!("x{number}"))?;
    }
    watch.end(Signal::SIGTERM, PATIENCE)?;
    Ok(lags)
}

fn is_about(event: &LinkEvent, name: &str) -> bool {
    matches!(event, LinkEvent::Changed { link, .. } if link.name == name)
}

/// Many at once, each of which sends as soon as it can.
fn burst() -> anyhow::Result<Table> {
    let scene = Scene::new(0)?;
    scene
        .lab
        .shell("ip link add b0 up type bridge mcast_snooping 0")?;
    let mut command = scene
        .lab
        .netobs(["watch", "--interval=500ms", "--output=json"])?;
    let mut watch = command.start()?;
    poll_until(PATIENCE, "a sample", || {
        Ok((!watch.stdout().is_empty()).then_some(()))
    })?;
    let started = Instant::now();
    for number in 0..BURST {
        scene.lab.shell(&format!(
            "ip netns add n{number}
             ip netns exec n{number} sh -c 'echo 1 >/proc/sys/net/ipv6/conf/default/disable_ipv6'
             ip -batch - <<.
link add v{number} type veth peer name eth0 netns n{number}
link set v{number} master b0 up
netns exec n{number} ip link set eth0 up
."
        ))?;
        let frame = Frame {
            source_mac: [2, 0, 0, 1, 0, number as u8],
            destination_mac: [2, 0, 0, 2, 0, 0],
            source: [10, 77, 0, 1],
            destination: [10, 77, 0, 2],
            source_port: 1024,
            destination_port: 9,
        };
        inside(&scene.netns(&format!("n{number}"))?, || {
            let mut frames = Frames::by("eth0", vec![frame.bytes(); FRAMES])?;
            ensure!(frames.some()? == FRAMES as u64, "frames were not sent");
            Ok(())
        })?;
    }
    let made = started.elapsed();
    let sample = all_of_them(&mut watch)?;
    let late = started.elapsed() - made;
    let rows = sample["namespaces"].as_array().cloned().unwrap_or_default();
    let interfaces = rows
        .iter()
        .filter(|row| row["kind"] == "named")
        .flat_map(|row| row["interfaces"].as_array().cloned().unwrap_or_default());
    let (mut counted, mut before) = (0, 0);
    for interface in interfaces {
        counted += interface["tx"]["packets"].as_u64().unwrap_or(0);
        before += interface["before_attach"]["tx"]["packets"]
            .as_u64()
            .unwrap_or(0);
    }
    let sent = (BURST * FRAMES) as u64;
    ensure!(
        counted + before == sent,
        "{sent} frames were sent, {counted} were counted and {before} came before"
    );
    watch.end(Signal::SIGTERM, PATIENCE)?;
    let mut table = Table::new(
        "Burst",
        "",
        [
            column("namespaces a second", "", 0),
            column("all observed and told", "ms after the last", 0),
            column("frames counted", "%", 1),
            column("frames in the books", "%", 1),
        ],
    );
    let one = |value: f64| Spread::of([value]);
    table.row(
        format!("{BURST} namespaces"),
        [
            one(BURST as f64 / made.as_secs_f64()),
            one(late.as_secs_f64() * 1e3),
            one(100.0 * counted as f64 / sent as f64),
            one(100.0 * (counted + before) as f64 / sent as f64),
        ],
    );
    Ok(table)
}

/// The first sample with all namespaces observed, and all that came before known.
fn all_of_them(watch: &mut Proc) -> anyhow::Result<Value> {
    poll_until(PATIENCE, "all namespaces", || {
        let Some(line) = watch.take_stdout().pop() else {
            return Ok(None);
        };
        let sample: Value = serde_json::from_str(&line)?;
        let rows = sample["namespaces"].as_array().cloned().unwrap_or_default();
        let observed = rows.iter().filter(|row| {
            row["kind"] == "named"
                && row["interfaces"][0]["hook"] == "tcx"
                && row["interfaces"][0]["unaccounted"]["tx"] == 0
        });
        Ok((observed.count() == BURST).then_some(sample))
    })
}
