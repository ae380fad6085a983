//! The same question, asked otherwise: how many bytes has each container had by now?

use std::{fs, process::Stdio, time::Duration};

use anyhow::{Context as _, ensure};
use netobs_tests::{Lab, LabCommand, Proc, poll_until};
use nix::sys::signal::Signal;

use super::commands;
use crate::{
    alternate::Plan,
    cpu,
    report::{Bound, Part, Table, column},
    scene::Scene,
    stats::Spread,
};

const CONTAINERS: usize = 20;
const PATIENCE: Duration = Duration::from_secs(60);
const EXPORTER: &str = "127.0.0.1:9100";

/// A way to ask.
struct Way<'a> {
    name: &'static str,
    command: Box<dyn Fn() -> anyhow::Result<LabCommand> + 'a>,
    /// Who has work by it, besides the command.
    servers: Vec<u32>,
    /// Seconds of wall time, and milliseconds of CPU.
    walls: Vec<f64>,
    cpus: Vec<f64>,
}

impl<'a> Way<'a> {
    fn new(
        name: &'static str,
        servers: Vec<u32>,
        command: impl Fn() -> anyhow::Result<LabCommand> + 'a,
    ) -> Self {
        Self {
            name,
            command: Box::new(command),
            servers,
            walls: Vec::new(),
            cpus: Vec::new(),
        }
    }
}

pub(crate) fn polling(plan: Plan) -> anyhow::Result<Part> {
    let scene = Scene::with_docker()?;
    let lab = &scene.lab;
    for number in 0..CONTAINERS {
        lab.run_container(&format!("c{number}"), &[], &[])?;
    }
    let mut exporter = start(
        lab.command("prometheus-node-exporter")
            .arg(format!("--web.listen-address={EXPORTER}")),
    )?;
    let mut serve = start(&mut lab.netobs(["serve"])?)?;
    let pages = [
        format!("http://{EXPORTER}/metrics"),
        "http://127.0.0.1:9929/metrics".to_owned(),
    ];
    for (page, proc) in pages.iter().zip([&mut exporter, &mut serve]) {
        poll_until(PATIENCE, page, || {
            ensure!(proc.is_running(), "it ended: {:?}", proc.stderr());
            curl(lab, page)?.text().map(Some)
        })?;
    }
    let engine = engine(lab)?;
    let mut ways = [
        Way::new(ONCE, engine.clone(), || {
            lab.netobs(["watch", "--once", "--output=json"])
        }),
        Way::new(STATS, engine.clone(), || {
            Ok(lab.docker(["stats", "--no-stream", "--format", "json"]))
        }),
        Way::new("ip -s -j link", Vec::new(), || {
            let mut ip = lab.command("ip");
            ip.args(["-s", "-j", "link"]);
            Ok(ip)
        }),
        Way::new("node-exporter, a scrape", vec![exporter.pid()], || {
            curl(lab, &pages[0])
        }),
        Way::new("netobs serve, a scrape", vec![serve.pid()], || {
            curl(lab, &pages[1])
        }),
    ];
    for round in 0..plan.rounds {
        let mut order: Vec<usize> = (0..ways.len()).collect();
        fastrand::shuffle(&mut order);
        for which in order {
            let way = &mut ways[which];
            let before = of_all(&way.servers)?;
            let spent = commands::run(&mut (way.command)()?).with_context(|| way.name)?;
            let cpu = spent.cpu + of_all(&way.servers)?.saturating_sub(before);
            way.walls.push(spent.wall.as_secs_f64());
            way.cpus.push(cpu.as_secs_f64() * 1e3);
        }
        eprint!("\r  round {} of {} ", round + 1, plan.rounds);
    }
    eprintln!();
    let part = told(&ways)?;
    for mut proc in [exporter, serve] {
        proc.end(Signal::SIGTERM, PATIENCE)?;
    }
    Ok(part)
}

const ONCE: &str = "netobs watch --once -o json";
const STATS: &str = "docker stats --no-stream";

fn told(ways: &[Way<'_>]) -> anyhow::Result<Part> {
    let mut part = Part {
        name: "polling",
        title: "Against polling",
        method: format!(
            "Bytes of each of {CONTAINERS} containers by now, asked in turns, from the start of the command to its end. CPU is \
             that of the command, of the engine where that is asked, and of the exporters. `ip` and the node exporter tell \
             of the host's veths only, and not whose they are; `netobs watch --once` loads its programs, looks for \
             containers, and takes all off again."
        ),
        ..Part::default()
    };
    let mut table = Table::new(
        "Bytes per container, now",
        "asked of",
        [
            column("time", "s", 3),
            column("CPU", "ms", 1),
            column("time", "of docker stats", 3),
        ],
    );
    let find = |name| ways.iter().find(|way| way.name == name).context("a way");
    let stats = find(STATS)?;
    for way in ways {
        let ratio = Spread::of(
            way.walls
                .iter()
                .zip(&stats.walls)
                .map(|(own, stats)| own / stats),
        );
        let all = |values: &[f64]| Spread::of(values.iter().copied());
        table.row(way.name, [all(&way.walls), all(&way.cpus), ratio]);
    }
    part.tables.push(table);
    let once = find(ONCE)?;
    part.target(
        "`docker stats --no-stream`, times `netobs watch --once -o json`",
        "times",
        Bound::AtLeast(10.0),
        Spread::of(
            stats
                .walls
                .iter()
                .zip(&once.walls)
                .map(|(stats, once)| stats / once),
        ),
    );
    Ok(part)
}

fn start(command: &mut LabCommand) -> anyhow::Result<Proc> {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
}

fn curl(lab: &Lab, page: &str) -> anyhow::Result<LabCommand> {
    let mut curl = lab.command("curl");
    curl.args(["-sSf", "-o", "/dev/null", page]);
    Ok(curl)
}

/// The lab's dockerd and its containerd.
fn engine(lab: &Lab) -> anyhow::Result<Vec<u32>> {
    let folder = lab.tmp().to_string_lossy().into_owned();
    let mut pids = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path();
        let Some(pid) = path
            .file_name()
            .and_then(|name| name.to_str()?.parse().ok())
        else {
            continue;
        };
        let Ok(line) = fs::read_to_string(path.join("cmdline")) else {
            continue;
        };
        let program = line.split('\0').next().unwrap_or_default();
        let is = program.ends_with("dockerd") || program.ends_with("containerd");
        if is && line.contains(&folder) {
            pids.push(pid);
        }
    }
    ensure!(!pids.is_empty(), "the lab's dockerd was not found");
    Ok(pids)
}

fn of_all(pids: &[u32]) -> anyhow::Result<Duration> {
    pids.iter().map(|pid| cpu::of_process(*pid)).sum()
}
