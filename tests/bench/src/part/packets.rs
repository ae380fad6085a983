//! What a packet costs.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    sync::mpsc::sync_channel,
    thread,
};

use netobs_tests::Netns;

use crate::{
    alternate::{Measured, Plan, alternate},
    cpu,
    load::{Frames, Generator, Requests, Stream, echo, sink},
    observer::{Flows, Lookups, Netobs, Nft, Observer, Pair, Process, Ready},
    report::{Bound, Part, Plot, Table, column},
    scene::{self, Scene, end},
    stats::Spread,
};

/// Different source ports that the small packets have: flows.
const FLOWS: u16 = 64;
/// More than any cache likes.
const MANY_FLOWS: u16 = 10_000;

/// What observers are called.
const FLOOR: &str = "empty TCX pair";
const NETOBS: &str = "netobs";
const TABLE: &str = "flow table (LRU)";

const METHOD: &str = "One thread on a CPU of its own sends all the time. Observers are switched on and off in slices \
of a fraction of a second, in random order, with a slice without any before and behind every two; each is compared \
with what lies between those two. Programs are loaded anew every few rounds. CPU is that of the sender's and the \
receiver's threads with the softirqs that interrupt them, and that of the observer's own process. Whoever tells how \
many packets there were is held against the kernel's counters in every slice.";

/// Packets per second, small ones.
pub(crate) fn packets(plan: Plan) -> anyhow::Result<Part> {
    let scene = Scene::new(2)?;
    let mut part = Part {
        name: "packets",
        title: "Per packet: small ones",
        method: format!(
            "Frames of 64 bytes (UDP, {FLOWS} flows) from one namespace to another over a bridge, by a packet socket and \
             sendmmsg; the receiver drops them on entry. Both veths are observed: two program runs per packet. {METHOD}"
        ),
        ..Part::default()
    };
    let interfaces = &[end(0), end(1)][..];
    let in_kernel = small(plan, &scene, FLOWS, || {
        Ok(vec![
            Box::new(Pair::empty(interfaces)?),
            Box::new(Netobs::new(interfaces)?),
            Box::new(Lookups::and_packets(interfaces)?),
            Box::new(Flows::new(interfaces)?),
            Box::new(Nft::totals(&scene.lab, interfaces)),
            Box::new(Nft::by_class(&scene.lab, interfaces)),
        ])
    })?;
    part.tables.push(table("In the kernel alone", &in_kernel));
    let others = small(plan, &scene, FLOWS, || {
        let mut all: Vec<Box<dyn Observer + '_>> = vec![Box::new(Netobs::new(interfaces)?)];
        all.extend(processes(&scene, true));
        Ok(all)
    })?;
    part.tables.push(table("With a process", &others));
    let many = small(plan, &scene, MANY_FLOWS, || {
        Ok(vec![
            Box::new(Pair::empty(interfaces)?),
            Box::new(Netobs::new(interfaces)?),
            Box::new(Flows::new(interfaces)?),
        ])
    })?;
    part.tables
        .push(table(&format!("{MANY_FLOWS} flows"), &many));
    let rate = Spread::of(in_kernel.rate.iter().map(|rate| rate / 1e6));
    if let (Some(rate), Some(cost)) = (rate, spread(&in_kernel.cost)) {
        part.notes.push(format!(
            "Without observer: {:.2} million packets per second, {:.0} ns of CPU each.",
            rate.median, cost.median
        ));
    }
    let processes = others.runs.iter().filter(|runs| runs.name != NETOBS);
    let bars = in_kernel.runs.iter().chain(processes);
    part.plots.push(Plot::Bars {
        name: "performance-packets",
        title: "Added CPU per packet".to_owned(),
        unit: "ns",
        bars: bars
            .filter_map(|runs| Some((runs.name.clone(), spread(&runs.added)?)))
            .collect(),
    });
    packet_targets(&mut part, &in_kernel, &others)?;
    part.target(
        format!("added CPU, {TABLE} against netobs, {MANY_FLOWS} flows"),
        "",
        Bound::AtLeast(2.0),
        Some(many.ratio_of_medians(TABLE, NETOBS, |runs| &runs.added)?),
    );
    Ok(part)
}

/// Small packets of so many flows, with observers.
fn small<'a>(
    plan: Plan,
    scene: &Scene,
    flows: u16,
    observers: impl FnOnce() -> anyhow::Result<Vec<Box<dyn Observer + 'a>>> + Send,
) -> anyhow::Result<Measured> {
    let frames = (0..flows).map(|flow| scene.frame(0, 1024 + flow).bytes());
    let frames = frames.collect();
    let mut generator = Generator::start(scene.netns("n0")?, move || Frames::by("eth0", frames));
    scene.on_host(|| {
        cpu::stay_on(cpu::others()?)?;
        alternate(plan, &mut generator, &mut observers()?, || sent(scene))
    })
}

fn table(title: &str, measured: &Measured) -> Table {
    let mut table = Table::new(
        title,
        "observer",
        [
            column("packets per second", "of none", 3),
            column("added CPU", "ns per packet", 0),
            column("of the packets seen", "%", 1),
        ],
    );
    for runs in &measured.runs {
        let seen = runs.seen.iter().map(|share| 100.0 * share);
        let cells = [spread(&runs.rate), spread(&runs.added), Spread::of(seen)];
        table.row(&runs.name, cells);
    }
    table
}

fn packet_targets(part: &mut Part, in_kernel: &Measured, others: &Measured) -> anyhow::Result<()> {
    part.target(
        "packets per second, netobs against the empty pair",
        "",
        Bound::AtLeast(0.98),
        Some(in_kernel.ratio(NETOBS, FLOOR, |runs| &runs.rate)?),
    );
    part.target(
        "packets per second, netobs against none",
        "",
        Bound::AtLeast(0.93),
        spread(&in_kernel.of(NETOBS)?.rate),
    );
    part.target(
        "added CPU, netobs against the empty pair",
        "",
        Bound::AtMost(1.35),
        Some(in_kernel.ratio_of_medians(NETOBS, FLOOR, |runs| &runs.added)?),
    );
    for (measured, other, least) in [
        (in_kernel, TABLE, 2.0),
        (others, "tcpdump", 5.0),
        (others, "softflowd", 4.0),
        (in_kernel, "nft, by class", 4.0),
        (others, "bpftrace", 6.0),
        (others, "pmacctd", 20.0),
    ] {
        part.target(
            format!("added CPU, {other} against netobs"),
            "",
            Bound::AtLeast(least),
            Some(measured.ratio_of_medians(other, NETOBS, |runs| &runs.added)?),
        );
    }
    Ok(())
}

/// Programs that people would use instead. They look at one interface, except bpftrace,
/// which looks at all.
fn processes(scene: &Scene, all: bool) -> Vec<Box<dyn Observer + '_>> {
    let lab = &scene.lab;
    let capturing = |name: &'static str, args: &'static [&'static str]| -> Box<dyn Observer + '_> {
        Box::new(Process::new(lab, name, Ready::Captures, move |lab| {
            let mut command = lab.command(args[0]);
            command.args(&args[1..]).current_dir(lab.tmp())?;
            Ok(command)
        }))
    };
    let mut list = vec![
        Box::new(Process::new(lab, "netobs watch", Ready::Says("{"), |lab| {
            lab.netobs(["watch", "--output=json", "--interval=100ms"])
        })) as Box<dyn Observer + '_>,
        capturing("tcpdump", &["tcpdump", "-ni", "v0", "-w", "/dev/null"]),
    ];
    if !all {
        return list;
    }
    const COUNT: &str = "tracepoint:net:netif_receive_skb \
        { @packets[str(args->name)] = count(); @bytes[str(args->name)] = sum(args->len); } \
        interval:s:1 { printf(\"ready\\n\"); }";
    list.extend([
        capturing(
            "softflowd",
            &[
                "softflowd",
                "-d",
                "-i",
                "v0",
                "-p",
                "softflowd.pid",
                "-c",
                "softflowd.ctl",
            ],
        ),
        capturing(
            "pmacctd",
            &[
                "pmacctd",
                "-i",
                "v0",
                "-c",
                "src_host,dst_host,src_port,dst_port,proto",
                "-P",
                "memory",
            ],
        ),
        Box::new(Process::new(lab, "bpftrace", Ready::Says("ready"), |lab| {
            let mut command = lab.command("bpftrace");
            command.args(["-e", COUNT]);
            Ok(command)
        })),
    ]);
    list
}

/// What the kernel counted of the packets that came from both namespaces.
fn sent(scene: &Scene) -> anyhow::Result<u64> {
    let of = |number| anyhow::Ok(scene.lab.link_stats(&Netns::Host, &end(number))?.rx.packets);
    Ok(of(0)? + of(1)?)
}

fn spread(values: &[f64]) -> Option<Spread> {
    Spread::of(values.iter().copied())
}

fn to(number: u32, port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::from(scene::address(number)), port)
}

/// Bytes per second over TCP.
pub(crate) fn stream(plan: Plan) -> anyhow::Result<Part> {
    let scene = Scene::new(2)?;
    let (tell, thread) = sync_channel(1);
    let receiver = scene.netns("n1")?;
    let receiving = thread::spawn(move || {
        scene::inside(&receiver, || {
            cpu::stay_on(cpu::others()?)?;
            sink(to(1, 5000), &tell)
        })
    });
    let receiver = thread.recv()?;
    let mut generator = Generator::start(scene.netns("n0")?, move || {
        Stream::to(to(1, 5000), receiver)
    });
    let measured = few(&scene, plan, &mut generator)?;
    drop(generator);
    finish(receiving)?;
    let mut part = Part {
        name: "stream",
        title: "Per packet: a TCP stream",
        method: "The same over a TCP connection that sends as fast as the receiver, on another CPU, takes it. The kernel \
                 hands segments over in packets of up to 64 KiB (GSO)."
            .to_owned(),
        ..Part::default()
    };
    let mut table = Table::new(
        "TCP",
        "observer",
        [
            column("bytes per second", "of none", 3),
            column("added CPU", "µs per MiB", 1),
        ],
    );
    for runs in &measured.runs {
        let added = runs.added.iter().map(|ns| ns * f64::from(1 << 20) / 1e3);
        table.row(&runs.name, [spread(&runs.rate), Spread::of(added)]);
    }
    part.tables.push(table);
    if let Some(rate) = Spread::of(measured.rate.iter().map(|rate| rate * 8.0 / 1e9)) {
        part.notes
            .push(format!("Without observer: {:.1} Gbit/s.", rate.median));
    }
    part.target(
        "bytes per second over TCP, netobs against none",
        "",
        Bound::AtLeast(0.97),
        spread(&measured.of(NETOBS)?.rate),
    );
    Ok(part)
}

/// How long an answer takes.
pub(crate) fn requests(plan: Plan) -> anyhow::Result<Part> {
    let scene = Scene::new(2)?;
    let server = scene.netns("n1")?;
    let answering = thread::spawn(move || {
        scene::inside(&server, || {
            // On one CPU: waking another one would take longer than all the rest.
            cpu::stay_on([cpu::LOAD])?;
            echo(to(1, 5001))
        })
    });
    let mut generator = Generator::start(scene.netns("n0")?, || Requests::to(to(1, 5001)));
    let measured = few(&scene, plan, &mut generator)?;
    drop(generator);
    let client = scene.netns("n0")?;
    scene::inside(&client, || {
        let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
        socket.send_to(&[], to(1, 5001))?;
        Ok(())
    })?;
    finish(answering)?;
    let mut part = Part {
        name: "requests",
        title: "Per packet: a question and its answer",
        method: "One byte by UDP and one back, one after the other, both ends on one CPU: four program runs for a round trip."
            .to_owned(),
        ..Part::default()
    };
    let mut table = Table::new(
        "Round trip",
        "observer",
        [
            column("time", "of none", 3),
            column("added CPU", "ns per round trip", 0),
        ],
    );
    for runs in &measured.runs {
        table.row(&runs.name, [spread(&runs.time), spread(&runs.added)]);
    }
    part.tables.push(table);
    if let Some(time) = Spread::of(measured.rate.iter().map(|rate| 1e6 / rate)) {
        part.notes
            .push(format!("Without observer: {:.2} µs.", time.median));
    }
    part.target(
        "round trip, netobs against none",
        "",
        Bound::AtMost(1.05),
        spread(&measured.of(NETOBS)?.time),
    );
    Ok(part)
}

/// With those observers that matter most.
fn few(scene: &Scene, plan: Plan, generator: &mut Generator) -> anyhow::Result<Measured> {
    let interfaces = [end(0), end(1)];
    scene.on_host(|| {
        cpu::stay_on(cpu::others()?)?;
        let mut observers: Vec<Box<dyn Observer + '_>> = vec![
            Box::new(Pair::empty(&interfaces)?),
            Box::new(Netobs::new(&interfaces)?),
            Box::new(Lookups::and_packets(&interfaces)?),
            Box::new(Flows::new(&interfaces)?),
            Box::new(Nft::by_class(&scene.lab, &interfaces)),
        ];
        observers.extend(processes(scene, false));
        alternate(plan, generator, &mut observers, || sent(scene))
    })
}

fn finish(thread: thread::JoinHandle<anyhow::Result<()>>) -> anyhow::Result<()> {
    match thread.join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}
