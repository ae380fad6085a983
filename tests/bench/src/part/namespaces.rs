//! What grows with the number of namespaces.

use std::{
    collections::BTreeMap,
    fs,
    process::Stdio,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use netobs::world::rcu::Expedited;
use netobs_tests::{Lab, Proc, poll_until};
use nix::sys::signal::Signal;

use super::commands::{self, Spent};
use crate::{
    alternate::{Plan, alternate},
    cpu,
    load::{Frames, Generator, open},
    observer::{Netobs, Observer, Pair},
    report::{Bound, Part, Plot, Table, column},
    scene::{Scene, end, inside},
    stats::Spread,
};

const NUMBERS: [u32; 4] = [1, 100, 1000, 4000];
/// What targets are about.
const MANY: u32 = 1000;
/// Starts that are timed.
const STARTS: usize = 5;
/// Seconds over which a running netobs is watched.
const SECONDS: usize = 10;
/// Nobody calls this slow.
const PATIENCE: Duration = Duration::from_secs(120);
/// Where `serve` listens, in the lab.
const PAGE: &str = "http://127.0.0.1:9929/metrics";

/// Everything that was measured with a number of namespaces.
#[derive(Default)]
struct Measured {
    /// By what it is.
    figures: BTreeMap<&'static str, Option<Spread>>,
}

impl Measured {
    fn put(&mut self, what: &'static str, values: impl IntoIterator<Item = f64>) {
        self.figures.insert(what, Spread::of(values));
    }

    fn get(&self, what: &str) -> Option<Spread> {
        self.figures.get(what).copied().flatten()
    }
}

pub(crate) fn namespaces(plan: Plan) -> anyhow::Result<Part> {
    let mut all = Vec::new();
    for number in NUMBERS {
        eprintln!("  {number} namespaces");
        let scene = Scene::new(number)?;
        let mut measured = Measured::default();
        if number > 1 {
            packets(plan, &scene, &mut measured)?;
        }
        starts(&scene, &mut measured)?;
        for output in ["json", "csv", "table"] {
            steady(&scene, output, &mut measured)?;
        }
        served(&scene, &mut measured)?;
        all.push((number, measured));
    }
    Ok(told(&all))
}

/// All of them active in turn, so that no packet finds its record in a cache.
fn packets(plan: Plan, scene: &Scene, measured: &mut Measured) -> anyhow::Result<()> {
    let names = 0..scene.namespaces;
    let files = names
        .clone()
        .map(|number| scene.netns(&format!("n{number}")));
    let files: Vec<_> = files.collect::<Result<_, _>>()?;
    let frames = names
        .clone()
        .map(|number| scene.frame(number, 1024).bytes())
        .collect();
    // As netobs does where there are many at once.
    let _expedited = Expedited::begin();
    let mut generator = Generator::start(scene.netns("n0")?, move || {
        let sockets = files.iter().map(|netns| inside(netns, || open("eth0")));
        Ok(Frames::each(sockets.collect::<Result<_, _>>()?, frames))
    });
    let interfaces: Vec<String> = names.map(end).collect();
    scene.on_host(|| {
        cpu::stay_on(cpu::others()?)?;
        let mut observers: Vec<Box<dyn Observer + '_>> = vec![
            Box::new(Pair::empty(&interfaces)?),
            Box::new(Netobs::new(&interfaces)?),
        ];
        let result = alternate(plan, &mut generator, &mut observers, || sent(&scene.lab))?;
        let (empty, ours) = (result.of("empty TCX pair")?, result.of("netobs")?);
        measured.put("rate", ours.rate.iter().copied());
        measured.put(
            "rate_to_empty",
            ours.rate.iter().zip(&empty.rate).map(|(a, b)| a / b),
        );
        measured.put("empty_added", empty.added.iter().copied());
        measured.put("added", ours.added.iter().copied());
        measured.put("cost", result.cost);
        drop(observers);
        let netobs = Netobs::new(&interfaces)?;
        let times = (0..plan.rounds.max(5)).map(|_| {
            let started = Instant::now();
            std::hint::black_box(netobs.read());
            started.elapsed().as_secs_f64() * 1e3
        });
        measured.put("read", times);
        Ok(())
    })
}

/// What the kernel counted of packets that came from all of them.
fn sent(lab: &Lab) -> anyhow::Result<u64> {
    let links = lab.command("ip").args(["-s", "-j", "link"]).json()?;
    let links = links.as_array().context("a list of links")?;
    let of_ends = links.iter().filter(|link| {
        link["ifname"]
            .as_str()
            .is_some_and(|name| name.starts_with('v'))
    });
    Ok(of_ends
        .filter_map(|link| link["stats64"]["rx"]["packets"].as_u64())
        .sum())
}

/// From the start of netobs to its first sample, and how long others wait for the lock of
/// link operations meanwhile.
fn starts(scene: &Scene, measured: &mut Measured) -> anyhow::Result<()> {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let operations = scope.spawn(|| link_operations(&scene.lab, &done));
        let spent: anyhow::Result<Vec<Spent>> = (0..STARTS)
            .map(|_| commands::run(&mut scene.lab.netobs(["watch", "--once", "--output=json"])?))
            .collect();
        done.store(true, Ordering::Release);
        let waits = operations
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        let spent = spent?;
        measured.put("start", spent.iter().map(|spent| spent.wall.as_secs_f64()));
        measured.put(
            "start_cpu",
            spent.iter().map(|spent| spent.cpu.as_secs_f64()),
        );
        let longest = waits.iter().copied().fold(0.0, f64::max);
        measured.put("longest_wait", [longest]);
        measured.put("wait", waits);
        anyhow::Ok(())
    })
}

/// Milliseconds that `ip link set` took, the program's start included.
fn link_operations(lab: &Lab, done: &AtomicBool) -> anyhow::Result<Vec<f64>> {
    let mut waits = Vec::new();
    while !done.load(Ordering::Acquire) {
        let mut command = lab.command("ip");
        let spent = commands::run(command.args(["link", "set", "dev", "lo", "alias", "bench"]))?;
        waits.push(spent.wall.as_secs_f64() * 1e3);
    }
    Ok(waits)
}

/// A netobs that runs, and looks once a second.
fn steady(scene: &Scene, output: &'static str, measured: &mut Measured) -> anyhow::Result<()> {
    let flag = format!("--output={output}");
    let mut command = scene.lab.netobs(["watch", "--interval=1s", &flag])?;
    command.env("RUST_LOG", "netobs::app::traffic=debug");
    let mut proc = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    samples(&mut proc, 3)?;
    let mut spent = Vec::new();
    for _ in 0..SECONDS {
        let before = cpu::of_process(proc.pid())?;
        thread::sleep(Duration::from_secs(1));
        spent.push((cpu::of_process(proc.pid())? - before).as_secs_f64() * 1e3);
    }
    let [cpu, sample, memory] = match output {
        "json" => ["cpu_json", "sample", "memory"],
        "csv" => ["cpu_csv", "", ""],
        _ => ["cpu_table", "", ""],
    };
    measured.put(cpu, spent);
    if output == "json" {
        measured.put(sample, samples(&mut proc, 3)?.into_iter().skip(3));
        measured.put(memory, [memory_of(&proc)?]);
        measured.put("kernel", [kernel_memory(&proc)?]);
    }
    ensure!(
        proc.end(Signal::SIGTERM, PATIENCE)?.status.success(),
        "netobs failed"
    );
    Ok(())
}

/// Milliseconds that its samples took so far, as it says, once there are `number` of them.
fn samples(proc: &mut Proc, number: usize) -> anyhow::Result<Vec<f64>> {
    poll_until(PATIENCE, "samples", || {
        let lines = proc.stderr();
        ensure!(proc.is_running(), "netobs ended: {lines:?}");
        let times = lines.iter().filter_map(|line| {
            let (_, micros) = line.split_once(" namespaces read in ")?;
            micros.strip_suffix(" µs")?.parse::<f64>().ok()
        });
        let times: Vec<f64> = times.map(|micros| micros / 1e3).collect();
        Ok((times.len() >= number).then_some(times))
    })
}

/// Resident memory, MiB.
fn memory_of(proc: &Proc) -> anyhow::Result<f64> {
    let status = fs::read_to_string(format!("/proc/{}/status", proc.pid()))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line
        .and_then(|line| line.split_whitespace().next())
        .context("VmRSS")?;
    Ok(kib.parse::<f64>()? / 1024.0)
}

/// What its maps and programs take of the kernel's memory, MiB.
fn kernel_memory(proc: &Proc) -> anyhow::Result<f64> {
    let mut by_id = BTreeMap::new();
    for entry in fs::read_dir(format!("/proc/{}/fdinfo", proc.pid()))? {
        // One that was closed meanwhile.
        let Ok(text) = fs::read_to_string(entry?.path()) else {
            continue;
        };
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim().parse::<u64>().ok()
        };
        let id = field("map_id:")
            .map(|id| ("map", id))
            .or(field("prog_id:").map(|id| ("prog", id)));
        if let (Some(id), Some(bytes)) = (id, field("memlock:")) {
            by_id.insert(id, bytes);
        }
    }
    Ok(by_id.values().sum::<u64>() as f64 / f64::from(1 << 20))
}

/// `netobs serve`, idle and asked.
fn served(scene: &Scene, measured: &mut Measured) -> anyhow::Result<()> {
    let mut command = scene.lab.netobs(["serve"])?;
    let mut proc = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let ask = |more: &[&str]| {
        let mut curl = scene.lab.command("curl");
        curl.args([
            "-sSf",
            "-o",
            "/dev/null",
            "-w",
            "%{size_download} %{time_total}",
        ]);
        let text = curl.args(more).arg(PAGE).text()?;
        let (size, time) = text.split_once(' ').context("size and time")?;
        Ok((
            size.parse::<f64>()? / f64::from(1 << 20),
            time.parse::<f64>()? * 1e3,
        ))
    };
    poll_until(PATIENCE, "the page", || {
        ensure!(proc.is_running(), "netobs ended: {:?}", proc.stderr());
        ask(&[]).map(Some)
    })?;
    let mut idle = Vec::new();
    for _ in 0..SECONDS {
        let before = cpu::of_process(proc.pid())?;
        thread::sleep(Duration::from_secs(1));
        idle.push((cpu::of_process(proc.pid())? - before).as_secs_f64() * 1e3);
    }
    measured.put("serve_idle", idle);
    let [mut size, mut packed, mut time, mut cpu] = [(); 4].map(|()| Vec::new());
    for _ in 0..SECONDS {
        // What was read less than 100 ms ago is not read again.
        thread::sleep(Duration::from_millis(200));
        let before = cpu::of_process(proc.pid())?;
        let (bytes, took) = ask(&["-H", "Accept-Encoding: gzip"])?;
        cpu.push((cpu::of_process(proc.pid())? - before).as_secs_f64() * 1e3);
        packed.push(bytes);
        time.push(took);
        thread::sleep(Duration::from_millis(200));
        size.push(ask(&[])?.0);
    }
    measured.put("scrape_size", size);
    measured.put("scrape_packed", packed);
    measured.put("scrape_time", time);
    measured.put("scrape_cpu", cpu);
    ensure!(
        proc.end(Signal::SIGTERM, PATIENCE)?.status.success(),
        "netobs failed"
    );
    Ok(())
}

/// Rows of the table, in their order: what was measured, and what it is called.
const ROWS: [(&str, &str); 20] = [
    (
        "cost",
        "a packet without observer, all active in turn, ns of CPU",
    ),
    ("empty_added", "the empty TCX pair adds to it, ns"),
    ("added", "netobs adds to it, ns"),
    ("rate", "packets per second with netobs, of none"),
    (
        "rate_to_empty",
        "packets per second with netobs, of the empty pair",
    ),
    ("read", "reading all counters, ms"),
    ("start", "`watch --once`, from its start to its end, s"),
    ("start_cpu", "`watch --once`, s of CPU"),
    ("wait", "another's `ip link set` meanwhile, ms"),
    ("longest_wait", "the longest of them, ms"),
    ("sample", "a sample, ms"),
    ("cpu_json", "`watch -o json`, each second, ms of CPU"),
    ("cpu_csv", "`watch -o csv`, each second, ms of CPU"),
    ("cpu_table", "`watch` as a table, each second, ms of CPU"),
    ("memory", "resident memory, MiB"),
    ("kernel", "kernel memory of maps and programs, MiB"),
    (
        "serve_idle",
        "`serve` that nobody asks, each second, ms of CPU",
    ),
    ("scrape_size", "a page, MiB"),
    ("scrape_packed", "a page, gzip, MiB"),
    ("scrape_time", "a scrape (gzip), ms"),
];

fn told(all: &[(u32, Measured)]) -> Part {
    let mut part = Part {
        name: "namespaces",
        title: "Per namespace",
        method: "Named namespaces with one veth each, on bridges of a thousand. Packets: each is sent from and to another \
                 namespace than the one before it, so that what netobs needs is in no cache. `watch` runs at one sample a \
                 second, its output goes to /dev/null. Times of `ip link set` have the start of `ip` in them; the first \
                 column shows what that is without any wait."
            .to_owned(),
        ..Part::default()
    };
    let names = ["1 namespace", "100", "1,000", "4,000"];
    let columns: Vec<_> = names[..all.len()]
        .iter()
        .map(|name| column(name, "", 2))
        .collect();
    let mut table = Table::new("Growth", "what", columns);
    for (what, row) in ROWS
        .into_iter()
        .chain([("scrape_cpu", "a scrape (gzip), ms of CPU")])
    {
        let cells: Vec<_> = all.iter().map(|(_, measured)| measured.get(what)).collect();
        table.row(row, cells);
    }
    part.tables.push(table);
    let line = |name: &str, what: &str| {
        let points = all
            .iter()
            .filter_map(|(number, measured)| Some((f64::from(*number), measured.get(what)?)));
        (name.to_owned(), points.collect())
    };
    part.plots.push(Plot::Growth {
        name: "performance-namespaces",
        title: "CPU of one sample a second".to_owned(),
        across: "namespaces",
        up: "ms",
        lines: vec![
            line("watch -o json", "cpu_json"),
            line("watch, table", "cpu_table"),
            line("the sample alone", "sample"),
            line("serve, idle", "serve_idle"),
        ],
    });
    let Some((_, many)) = all.iter().find(|(number, _)| *number == MANY) else {
        return part;
    };
    let get = |what| many.get(what);
    let of_core = |what: &str| {
        let spread = many.get(what)?;
        // Milliseconds in a second to percent.
        Some(Spread {
            median: spread.median / 10.0,
            low: spread.low / 10.0,
            high: spread.high / 10.0,
            n: spread.n,
        })
    };
    let targets = [
        (
            "packets per second, netobs against the empty pair",
            "",
            Bound::AtLeast(0.97),
            get("rate_to_empty"),
        ),
        (
            "reading all counters",
            "ms",
            Bound::AtMost(0.5),
            get("read"),
        ),
        (
            "a sample, with the kernel's counters",
            "ms",
            Bound::AtMost(2.0),
            get("sample"),
        ),
        (
            "`watch` as a table, of one core",
            "%",
            Bound::AtMost(0.3),
            of_core("cpu_table"),
        ),
        (
            "`watch -o json`, of one core",
            "%",
            Bound::AtMost(0.3),
            of_core("cpu_json"),
        ),
        ("resident memory", "MiB", Bound::AtMost(32.0), get("memory")),
        (
            "start to first sample",
            "s",
            Bound::AtMost(1.0),
            get("start"),
        ),
        (
            "the longest `ip link set` meanwhile",
            "ms",
            Bound::AtMost(10.0),
            get("longest_wait"),
        ),
    ];
    for (what, unit, bound, value) in targets {
        part.target(format!("1,000 namespaces: {what}"), unit, bound, value);
    }
    part
}
