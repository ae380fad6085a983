//! What one run of a program costs, by itself.

use std::{thread, time::Duration};

use anyhow::ensure;
use aya::{
    programs::{SchedClassifier, TestRun as _, TestRunOptions},
    sys::{Stats, enable_stats},
};

use crate::{
    alternate::Plan,
    cpu,
    load::{Frames, Generator},
    observer::{Flows, Netobs, Observer, Pair},
    report::{Bound, Part, Table, column},
    scene::{Scene, end},
    stats::Spread,
};

/// Runs of a program with one system call.
const REPEAT: u32 = 100_000;
/// BPF_PROG_TEST_RUN puts packets on the loopback interface.
const LO: u32 = 1;

/// An Ethernet header, and what stands behind it.
struct Kind {
    name: &'static str,
    ether_type: u16,
    /// To a group.
    group: bool,
    rest: Vec<u8>,
}

impl Kind {
    fn bytes(&self) -> Vec<u8> {
        let first = if self.group { 0x01 } else { 0x02 };
        let mut frame = vec![first, 0, 0x5e, 0, 0, 1, 2, 0, 0, 0, 0, 2];
        frame.extend(self.ether_type.to_be_bytes());
        frame.extend(&self.rest);
        frame.resize(frame.len().max(60), 0);
        frame
    }
}

fn ipv4(protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut header = vec![
        0x45,
        0,
        0,
        20 + payload.len() as u8,
        0,
        0,
        0x40,
        0,
        64,
        protocol,
        0,
        0,
    ];
    header.extend([10, 77, 0, 1, 10, 77, 0, 2]);
    header.extend(payload);
    header
}

fn ipv6(next: u8, payload: &[u8]) -> Vec<u8> {
    let mut header = vec![0x60, 0, 0, 0, 0, payload.len() as u8, next, 64];
    header.extend([0xfd; 32]);
    header.extend(payload);
    header
}

fn kinds() -> Vec<Kind> {
    let udp = [4, 0, 0, 9, 0, 8, 0, 0];
    // An acknowledgement without data, as every second packet of a stream is.
    let tcp = [
        4, 0, 0, 80, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 1, 0, 0, 0, 0, 0,
    ];
    let icmp = [8, 0, 0, 0, 0, 1, 0, 1];
    let hop_by_hop = [&[17, 0, 1, 4, 0, 0, 0, 0][..], &udp].concat();
    let kind = |name, ether_type, rest| Kind {
        name,
        ether_type,
        group: false,
        rest,
    };
    let mut tagged = vec![0, 5, 0x08, 0x00];
    tagged.extend(ipv4(17, &udp));
    vec![
        kind("IPv4 UDP", 0x0800, ipv4(17, &udp)),
        kind("IPv4 TCP", 0x0800, ipv4(6, &tcp)),
        kind("IPv4 ICMP", 0x0800, ipv4(1, &icmp)),
        kind("IPv6 UDP", 0x86dd, ipv6(17, &udp)),
        kind("IPv6 TCP", 0x86dd, ipv6(6, &tcp)),
        kind("ARP", 0x0806, vec![0, 1, 8, 0, 6, 4, 0, 1]),
        kind("another EtherType", 0x88cc, vec![0; 46]),
        Kind {
            group: true,
            ..kind("IPv4 UDP to a group", 0x0800, ipv4(17, &udp))
        },
        kind(
            "IPv6 UDP behind an extension header",
            0x86dd,
            ipv6(0, &hop_by_hop),
        ),
        kind("IPv4 UDP in a VLAN tag", 0x8100, tagged),
    ]
}

/// Slow by design: everything that is read by helpers.
const RARE: [&str; 2] = [
    "IPv6 UDP behind an extension header",
    "IPv4 UDP in a VLAN tag",
];

/// Nanoseconds per run.
pub(crate) fn programs(plan: Plan) -> anyhow::Result<Part> {
    let mut part = Part {
        name: "programs",
        title: "Per run of a program",
        method: format!(
            "BPF_PROG_TEST_RUN with {REPEAT} runs a time, the programs in turns and loaded anew every few rounds (the mean of \
             both directions); and, below, the kernel's own statistics (BPF_ENABLE_STATS) under the load of small packets, \
             which include what taking the time costs."
        ),
        ..Part::default()
    };
    let alone = thread::scope(|scope| scope.spawn(|| alone(plan, &mut part)).join());
    alone.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
    under_load(plan, &mut part)?;
    Ok(part)
}

fn alone(plan: Plan, part: &mut Part) -> anyhow::Result<()> {
    let kinds = kinds();
    let [mut empty, mut netobs, mut flows] = [(); 3].map(|()| vec![Vec::new(); kinds.len()]);
    cpu::stay_on([cpu::LOAD])?;
    for round in 0..plan.rounds {
        let mut pair = Pair::empty(&[])?;
        let mut ours = Netobs::new(&[])?;
        ours.also(LO)?;
        let mut table = Flows::new(&[])?;
        let mut order: Vec<usize> = (0..kinds.len()).collect();
        fastrand::shuffle(&mut order);
        for which in order {
            let frame = kinds[which].bytes();
            empty[which].push(both(&frame, &mut pair, Pair::program)?);
            netobs[which].push(both(&frame, &mut ours, Netobs::program)?);
            flows[which].push(both(&frame, &mut table, Flows::program)?);
        }
        eprint!("\r  round {} of {} ", round + 1, plan.rounds);
    }
    eprintln!();
    let mut table = Table::new(
        "BPF_PROG_TEST_RUN",
        "packet",
        [
            column("empty", "ns", 1),
            column("netobs", "ns", 1),
            column("netobs", "of empty", 2),
            column("flow table", "ns", 1),
        ],
    );
    for (which, kind) in kinds.iter().enumerate() {
        let all = |values: &[f64]| Spread::of(values.iter().copied());
        let pairs = netobs[which].iter().zip(&empty[which]);
        let ratio = Spread::of(pairs.map(|(ours, empty)| ours / empty));
        table.row(
            kind.name,
            [
                all(&empty[which]),
                all(&netobs[which]),
                ratio,
                all(&flows[which]),
            ],
        );
        if !RARE.contains(&kind.name) {
            let what = format!("BPF_PROG_TEST_RUN, {}, netobs against empty", kind.name);
            part.target(what, "", Bound::AtMost(1.35), ratio);
        }
    }
    part.tables.push(table);
    Ok(())
}

/// The mean of both directions.
fn both<O>(
    frame: &[u8],
    observer: &mut O,
    program: fn(&mut O, usize) -> anyhow::Result<&mut SchedClassifier>,
) -> anyhow::Result<f64> {
    let mut sum = Duration::ZERO;
    for direction in [0, 1] {
        let result = program(observer, direction)?.test_run(TestRunOptions {
            data_in: Some(frame),
            repeat: REPEAT,
            ..Default::default()
        })?;
        ensure!(
            result.return_value.cast_signed() == -1,
            "a packet was not passed on"
        );
        sum += result.duration;
    }
    Ok(sum.as_nanos() as f64 / 2.0)
}

fn under_load(plan: Plan, part: &mut Part) -> anyhow::Result<()> {
    let scene = Scene::new(2)?;
    let frame = scene.frame(0, 1024).bytes();
    let mut generator = Generator::start(scene.netns("n0")?, move || {
        Frames::by("eth0", vec![frame; 64])
    });
    let interfaces = [end(0), end(1)];
    let [mut empty, mut netobs, mut flows] = [(); 3].map(|()| Vec::new());
    scene.on_host(|| {
        cpu::stay_on(cpu::others()?)?;
        let _counts = enable_stats(Stats::RunTime)?;
        for _ in 0..plan.rounds {
            let mut pair = Pair::empty(&interfaces)?;
            empty.push(counted(plan, &mut generator, &mut pair, Pair::program)?);
            let mut ours = Netobs::new(&interfaces)?;
            netobs.push(counted(plan, &mut generator, &mut ours, Netobs::program)?);
            let mut table = Flows::new(&interfaces)?;
            flows.push(counted(plan, &mut generator, &mut table, Flows::program)?);
        }
        Ok(())
    })?;
    let mut table = Table::new(
        "Kernel statistics under load",
        "programs",
        [column("run", "ns", 1)],
    );
    for (name, values) in [("empty", empty), ("netobs", netobs), ("flow table", flows)] {
        table.row(name, [Spread::of(values)]);
    }
    part.tables.push(table);
    Ok(())
}

/// Nanoseconds per run of both programs while `observer` observes.
fn counted<O: Observer>(
    plan: Plan,
    generator: &mut Generator,
    observer: &mut O,
    program: fn(&mut O, usize) -> anyhow::Result<&mut SchedClassifier>,
) -> anyhow::Result<f64> {
    observer.start()?;
    generator.run(plan.slice)?;
    let (mut runs, mut time) = (0, Duration::ZERO);
    for direction in [0, 1] {
        let info = program(observer, direction)?.info()?;
        runs += info.run_count();
        time += info.run_time();
    }
    observer.stop()?;
    ensure!(runs > 0, "the kernel counts no runs");
    Ok(time.as_nanos() as f64 / runs as f64)
}
