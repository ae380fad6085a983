//! A thousand namespaces at once: every one observed and counted, those that come and
//! go shown, and the host's own link operations not held up. Times are told, not
//! judged: other machines are busier.

mod common;
mod scraped;

use std::{
    collections::{BTreeMap, VecDeque},
    fs,
    ops::Range,
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use aya::programs::{SchedClassifier, TcAttachType};
use common::{SOON, code, count, inside, interface, namespace, observes, ping, warnings};
use netobs_tests::{Lab, Netns, Output, Proc, figure, poll_until};
use nix::{sys::signal::Signal, unistd::SysconfVar};
use scraped::Serve;
use serde_json::Value;

const NAMESPACES: u32 = 1000;
/// The first of those that end while netobs looks.
const ENDING: Range<u32> = 900..950;
const FOLDER: &str = "/sys/fs/bpf/netobs";
/// Nobody calls this slow.
const GENEROUS: Duration = Duration::from_secs(60);
/// Samples over which a steady state is measured.
const SAMPLES: u32 = 10;

/// Namespaces `n0`, `n1`, ..., each with an `eth0` (10.77.0.0/16) on the bridge `br0`.
/// Without IPv6 nothing is sent by itself.
const MAKE: &str = r#"
    seq $0 $1 | sed 's/^/netns add n/' | ip -batch -
    seq $0 $1 | xargs -P2 -I{} nsenter --net=/run/netns/n{} sh -ec '
        echo 1 >/proc/sys/net/ipv6/conf/default/disable_ipv6
        ip -batch - <<.
link add eth0 up type veth peer name v{} netns 1
address add 10.77.$(({} / 250)).$(({} % 250 + 1))/16 dev eth0
.'
    seq $0 $1 | sed 's/.*/link set v& master br0 up/' | ip -batch -
"#;

fn make(lab: &Lab, numbers: Range<u32>) -> anyhow::Result<()> {
    let [first, last] = [numbers.start, numbers.end - 1].map(|number| number.to_string());
    lab.command("sh")
        .args(["-ec", MAKE, &first, &last])
        .text()?;
    Ok(())
}

fn lab() -> anyhow::Result<Lab> {
    let lab = Lab::new()?;
    lab.shell(
        "sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1
         ip link add br0 type bridge mcast_snooping 0
         ip link set br0 up",
    )?;
    make(&lab, 0..NAMESPACES)?;
    Ok(lab)
}

fn name(number: u32) -> String {
    format!("n{number}")
}

fn netns(number: u32) -> Netns {
    Netns::Named(name(number))
}

/// A running `netobs watch`, its samples taken one by one: a thousand rows are too much
/// to look at twice.
struct Run {
    proc: Proc,
    lines: VecDeque<String>,
}

impl Run {
    fn start(lab: &Lab, args: &[&str]) -> anyhow::Result<Self> {
        let mut command = lab.netobs(["watch", "--output=json", "--interval=1s"])?;
        Ok(Self {
            proc: command.args(args).start()?,
            lines: VecDeque::new(),
        })
    }

    /// The next line that was not taken yet.
    fn line(&mut self) -> anyhow::Result<String> {
        poll_until(GENEROUS, "a sample", || {
            self.lines.extend(self.proc.take_stdout());
            let line = self.lines.pop_front();
            ensure!(
                line.is_some() || self.proc.is_running(),
                "netobs ended: {:?}",
                self.proc.stderr()
            );
            Ok(line)
        })
    }

    fn sample(&mut self) -> anyhow::Result<Value> {
        Ok(serde_json::from_str(&self.line()?)?)
    }

    /// A sample that was begun after this call.
    fn fresh(&mut self) -> anyhow::Result<Value> {
        self.lines.extend(self.proc.take_stdout());
        self.lines.clear();
        // The next one may have been read already and not yet printed.
        self.line()?;
        self.sample()
    }

    /// Samples from now on, up to the one that `wanted` accepts.
    fn until(
        &mut self,
        what: &str,
        mut wanted: impl FnMut(&Value) -> bool,
    ) -> anyhow::Result<Value> {
        let end = Instant::now() + GENEROUS;
        loop {
            let sample = self.sample()?;
            if wanted(&sample) {
                return Ok(sample);
            }
            ensure!(Instant::now() < end, "waiting for {what}: {sample}");
        }
    }

    /// Waits until all namespaces are observed.
    fn all(&mut self) -> anyhow::Result<Value> {
        self.until("all namespaces", |sample| {
            observed(sample, "tcx") == NAMESPACES as usize
        })
    }

    fn end(mut self) -> anyhow::Result<Output> {
        self.proc.end(Signal::SIGTERM, GENEROUS)
    }

    /// Time on a CPU so far.
    fn cpu(&self) -> anyhow::Result<Duration> {
        cpu(&self.proc)
    }

    /// Memory in use, in MiB.
    fn memory(&self) -> anyhow::Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.proc.pid()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.split_whitespace().next());
        Ok(kib.context("VmRSS")?.parse::<u64>()? / 1024)
    }
}

/// Time on a CPU so far.
fn cpu(proc: &Proc) -> anyhow::Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", proc.pid()))?;
    let (_, fields) = stat.rsplit_once(')').context("fields")?;
    let ticks = fields.split_whitespace().skip(11).take(2);
    let ticks: u64 = ticks.map(str::parse::<u64>).sum::<Result<_, _>>()?;
    let per_second = nix::unistd::sysconf(SysconfVar::CLK_TCK)?.context("ticks")?;
    Ok(Duration::from_secs_f64(ticks as f64 / per_second as f64))
}

fn named(sample: &Value) -> impl Iterator<Item = &Value> {
    let all = sample["namespaces"].as_array().into_iter().flatten();
    all.filter(|row| row["kind"] == "named")
}

/// How many `eth0` of living namespaces hang by `hook`.
fn observed(sample: &Value, hook: &str) -> usize {
    let up = named(sample).filter(|row| row["state"] == "up");
    up.filter(|row| {
        let interfaces = row["interfaces"].as_array();
        interfaces.is_some_and(
            |all| matches!(&all[..], [one] if one["name"] == "eth0" && one["hook"] == hook),
        )
    })
    .count()
}

/// ICMP packets that a row received and sent.
#[track_caller]
fn icmp(row: &Value) -> [u64; 2] {
    ["rx", "tx"].map(|direction| count(&row[direction]["ipv4"]["icmp"], "packets"))
}

/// Asks the kernel what hangs on the host ends.
fn hanging(lab: &Lab) -> anyhow::Result<usize> {
    inside(lab, &Netns::Host, || {
        let mut number = 0;
        for end in (0..=NAMESPACES).map(|number| format!("v{number}")) {
            for hook in [TcAttachType::Ingress, TcAttachType::Egress] {
                // Of those that have ended there is none.
                let found = SchedClassifier::query_tcx(&end, hook);
                number += found.map_or(0, |(_, programs)| programs.len());
            }
        }
        Ok(number)
    })
}

/// How long link operations of the host took while `work` ran.
struct Waits {
    number: usize,
    median: Duration,
    longest: Duration,
}

impl std::fmt::Display for Waits {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            number,
            median,
            longest,
        } = self;
        write!(
            f,
            "{number} link operations, median {median:.1?}, longest {longest:.1?}"
        )
    }
}

fn meanwhile<T: Send>(
    lab: &Lab,
    work: impl FnOnce() -> anyhow::Result<T> + Send,
) -> anyhow::Result<(T, Waits)> {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let loops = scope.spawn(|| inside(lab, &Netns::Host, || Ok(link_operations(&done))));
        let result = work();
        done.store(true, Ordering::Release);
        let mut times = match loops.join() {
            Ok(times) => times??,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        times.sort();
        let longest = *times.last().context("no link operation")?;
        let waits = Waits {
            number: times.len(),
            median: times[times.len() / 2],
            longest,
        };
        Ok((result?, waits))
    })
}

/// Makes and removes a pair in the namespace of this thread, until `done`.
fn link_operations(done: &AtomicBool) -> anyhow::Result<Vec<Duration>> {
    let mut times = Vec::new();
    while !done.load(Ordering::Acquire) {
        for words in [
            "link add other type veth peer name another",
            "link del other",
        ] {
            let started = Instant::now();
            let status = Command::new("ip").args(words.split(' ')).status()?;
            times.push(started.elapsed());
            ensure!(status.success(), "ip {words}: {status}");
        }
    }
    Ok(times)
}

#[test]
fn a_thousand_namespaces() -> anyhow::Result<()> {
    let started = Instant::now();
    let lab = lab()?;
    figure(&format!(
        "scale: {NAMESPACES} namespaces made in {:.1?}",
        started.elapsed()
    ));
    let pause = || {
        thread::sleep(Duration::from_secs(2));
        Ok(())
    };
    figure(&format!(
        "scale: without netobs: {}",
        meanwhile(&lab, pause)?.1
    ));
    let mut run = started_with_all(&lab)?;
    steady(&mut run)?;
    counts_exactly(&lab, &mut run)?;
    looks_again(&lab, &mut run)?;
    one_more(&lab, &mut run)?;
    fifty_less(&lab, &mut run)?;
    mass_stop(&lab, run)?;
    scraped(&lab)?;
    adopted(&lab)
}

fn started_with_all(lab: &Lab) -> anyhow::Result<Run> {
    let started = Instant::now();
    let start = || {
        let mut run = Run::start(lab, &[])?;
        let first = run.sample()?;
        Ok((run, first, started.elapsed()))
    };
    let ((run, first, took), waits) = meanwhile(lab, start)?;
    assert_eq!(observed(&first, "tcx"), NAMESPACES as usize, "{first}");
    assert!(took < GENEROUS, "{took:?}");
    figure(&format!(
        "scale: first sample {took:.1?} after the start (one second of it is the interval), \
         {:.1?} of CPU; meanwhile {waits}",
        run.cpu()?
    ));
    Ok(run)
}

fn steady(run: &mut Run) -> anyhow::Result<()> {
    run.fresh()?;
    let before = run.cpu()?;
    for _ in 0..SAMPLES {
        run.line()?;
    }
    figure(&format!(
        "scale: {:.1?} of CPU per sample at 1 s, {} MiB of memory",
        (run.cpu()? - before) / SAMPLES,
        run.memory()?
    ));
    Ok(())
}

/// Among a thousand, each packet is counted for whose it is, and for nobody else.
fn counts_exactly(lab: &Lab, run: &mut Run) -> anyhow::Result<()> {
    let before = run.fresh()?;
    ping(lab, &netns(500), "10.77.0.1", &["-c7"])?;
    let after = run.fresh()?;
    let old: BTreeMap<&str, [u64; 2]> = icmp_of_all(&before);
    for (name, [rx, tx]) in icmp_of_all(&after) {
        let [old_rx, old_tx] = old[name];
        let expected = match name {
            "n0" | "n500" => [7, 7],
            _ => [0, 0],
        };
        assert_eq!([rx - old_rx, tx - old_tx], expected, "{name}");
    }
    for row in named(&after) {
        let unaccounted = &row["interfaces"][0]["unaccounted"];
        assert_eq!(
            (&unaccounted["rx"], &unaccounted["tx"]),
            (&0.into(), &0.into()),
            "{row}"
        );
    }
    let kernel = lab.link_stats(&netns(500), "eth0")?;
    let shown = &interface(&after, "n500", "eth0")["kernel"];
    assert_eq!(count(&shown["rx"], "packets"), kernel.rx.packets);
    assert_eq!(count(&shown["tx"], "packets"), kernel.tx.packets);
    Ok(())
}

fn icmp_of_all(sample: &Value) -> BTreeMap<&str, [u64; 2]> {
    named(sample)
        .filter_map(|row| Some((row["name"].as_str()?, icmp(row))))
        .collect()
}

/// The id of a link that `pid` has on the interface `ifindex`.
fn link_on(pid: u32, ifindex: u64) -> anyhow::Result<String> {
    let wanted = format!("ifindex:\t{ifindex}");
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo"))? {
        // Descriptors come and go.
        let text = fs::read_to_string(entry?.path()).unwrap_or_default();
        let id = text.lines().find_map(|line| line.strip_prefix("link_id:"));
        if let Some(id) = id.filter(|_| text.lines().any(|line| line == wanted)) {
            return Ok(id.trim().to_owned());
        }
    }
    bail!("{pid} has no link on {ifindex}")
}

/// Whatever no event tells of is found out for each of them, though each look takes a
/// share only.
fn looks_again(lab: &Lab, run: &mut Run) -> anyhow::Result<()> {
    let started = Instant::now();
    lab.shell("ip -n n321 address add 10.99.0.1/32 dev eth0")?;
    let shown = ["-j", "link", "show", "dev", "v654"];
    let shown = lab.command("ip").args(shown).json()?;
    let id = link_on(run.proc.pid(), count(&shown[0], "ifindex"))?;
    // Its turn to be looked at may be now.
    run.proc.signal(Signal::SIGSTOP)?;
    lab.command("bpftool")
        .args(["link", "detach", "id", &id])
        .text()?;
    assert_eq!(hanging(lab)?, 2 * NAMESPACES as usize - 1);
    run.proc.signal(Signal::SIGCONT)?;
    run.until("the address", |sample| {
        interface(sample, "n321", "eth0")["addresses"]
            .as_array()
            .is_some_and(|all| all.iter().any(|address| address == "10.99.0.1/32"))
    })?;
    run.until("the programs' return", |sample| {
        !warnings(sample, "programs_detached").is_empty()
    })?;
    figure(&format!(
        "scale: a new address and lost programs noticed within {:.1?}",
        started.elapsed()
    ));
    assert_eq!(hanging(lab)?, 2 * NAMESPACES as usize);
    Ok(())
}

/// One that comes while all others are there is observed at once.
fn one_more(lab: &Lab, run: &mut Run) -> anyhow::Result<()> {
    make(lab, NAMESPACES..NAMESPACES + 1)?;
    let name = name(NAMESPACES);
    // Known once packets can pass, which may be after the programs hang there.
    let lag = |sample: &Value| {
        let there = observes(sample, &name, "eth0");
        there.then(|| interface(sample, &name, "eth0")["attach_lag_s"].as_f64())
    };
    let sample = run.until("one more", |sample| lag(sample).flatten().is_some())?;
    let lag = Duration::from_secs_f64(lag(&sample).flatten().unwrap_or_default());
    assert!(lag < GENEROUS / 10, "{lag:?}");
    figure(&format!(
        "scale: one more, observed {lag:.1?} after it came up"
    ));
    ping(lab, &netns(NAMESPACES), "10.77.0.1", &["-c3"])?;
    assert_eq!(icmp(namespace(&run.fresh()?, &name)), [3, 3]);
    lab.netns_del(&name)?;
    run.until("its end", |sample| {
        named(sample).any(|row| row["name"] == *name && row["state"] == "gone")
    })?;
    Ok(())
}

/// Many that end at once are each shown once more, with all they did.
fn fifty_less(lab: &Lab, run: &mut Run) -> anyhow::Result<()> {
    for number in ENDING {
        ping(lab, &netns(number), "10.77.0.1", &["-c2"])?;
    }
    run.fresh()?;
    let ended = Instant::now();
    lab.shell(&format!(
        "seq {} {} | sed 's/^/netns del n/' | ip -batch -",
        ENDING.start,
        ENDING.end - 1
    ))?;
    let mut gone: BTreeMap<String, u32> = BTreeMap::new();
    let fewer = NAMESPACES as usize - ENDING.len();
    run.until("fifty less", |sample| {
        for row in named(sample).filter(|row| row["state"] == "gone") {
            assert_eq!(icmp(row), [2, 2], "{row}");
            *gone.entry(row["name"].to_string()).or_default() += 1;
        }
        named(sample).count() == fewer
    })?;
    figure(&format!(
        "scale: {} ended and shown {:.1?} after that began",
        ENDING.len(),
        ended.elapsed()
    ));
    let expected = ENDING.map(|number| (format!("{:?}", name(number)), 1));
    assert_eq!(gone, expected.collect());
    make(lab, ENDING)?;
    run.all()?;
    Ok(())
}

fn mass_stop(lab: &Lab, run: Run) -> anyhow::Result<()> {
    assert_eq!(hanging(lab)?, 2 * NAMESPACES as usize);
    let stop = || {
        let started = Instant::now();
        Ok((run.end()?, started.elapsed()))
    };
    let ((output, took), waits) = meanwhile(lab, stop)?;
    assert_eq!(code(&output)?, 0, "{}", output.stderr);
    assert_eq!(hanging(lab)?, 0);
    figure(&format!("scale: stopped in {took:.1?}; meanwhile {waits}"));
    Ok(())
}

/// All of them in a page for Prometheus.
fn scraped(lab: &Lab) -> anyhow::Result<()> {
    for args in [&[][..], &["--no-classes"]] {
        let serve = Serve::start(lab, args)?;
        serve.until("all namespaces", |scrape| {
            scrape.sum("netobs_interfaces", &[("hook", "tcx")]) >= u64::from(NAMESPACES)
        })?;
        for packed in [&[][..], &["--compressed"]] {
            let cpu = cpu(&serve.proc)?;
            let mut times = Vec::new();
            let mut size = String::new();
            for _ in 0..SAMPLES {
                thread::sleep(Duration::from_millis(200));
                let format = "%{size_download} %{time_total}";
                let page = [
                    "-o",
                    "/dev/null",
                    "-w",
                    format,
                    "http://127.0.0.1:9929/metrics",
                ];
                let said = serve.curl(&[&page[..], packed].concat())?.success()?.stdout;
                let (bytes, seconds) = said.split_once(' ').context("two numbers")?;
                size = bytes.to_owned();
                times.push(Duration::from_secs_f64(seconds.trim().parse()?));
            }
            times.sort();
            figure(&format!(
                "scale: a page {args:?} {packed:?} has {size} bytes and takes {:.1?}, {:.1?} of CPU",
                times[times.len() / 2],
                (self::cpu(&serve.proc)? - cpu) / SAMPLES,
            ));
        }
        let scrape = serve.scrape()?;
        let received = "netobs_network_receive_packets_total";
        assert_eq!(
            scrape.all(received, &[("interface", "eth0")]).len(),
            NAMESPACES as usize * if args.is_empty() { 10 } else { 1 }
        );
        serve.end()?;
    }
    Ok(())
}

/// Another one goes on with all that a first one has pinned.
fn adopted(lab: &Lab) -> anyhow::Result<()> {
    let mut first = Run::start(lab, &["--pin"])?;
    first.all()?;
    ping(lab, &netns(500), "10.77.0.1", &["-c4"])?;
    let before = first.fresh()?;
    let started = Instant::now();
    let output = first.end()?;
    assert_eq!(code(&output)?, 0, "{}", output.stderr);
    let left = started.elapsed();
    assert_eq!(hanging(lab)?, 2 * NAMESPACES as usize);

    ping(lab, &netns(500), "10.77.0.1", &["-c5"])?;
    let started = Instant::now();
    let start = || {
        let mut second = Run::start(lab, &["--pin"])?;
        let sample = second.sample()?;
        Ok((second, sample))
    };
    let ((second, after), waits) = meanwhile(lab, start)?;
    figure(&format!(
        "scale: left pinned in {left:.1?}, first sample of the next one {:.1?} after its start; \
         meanwhile {waits}",
        started.elapsed()
    ));
    assert_eq!(observed(&after, "tcx"), NAMESPACES as usize);
    assert_eq!(after["observer"]["pinned"], FOLDER);
    assert_eq!(icmp(namespace(&after, "n500")), [9, 9]);
    let since = |sample: &Value| -> BTreeMap<String, String> {
        let since = |row: &Value| row["interfaces"][0]["observed_since"].to_string();
        named(sample)
            .map(|row| (row["name"].to_string(), since(row)))
            .collect()
    };
    assert_eq!(since(&before), since(&after));
    second.end()?.success()?;
    lab.netobs(["clean"])?.output()?.success()?;
    assert_eq!(hanging(lab)?, 0);
    poll_until(SOON, "no pins", || {
        let pins = lab.shell(&format!("find {FOLDER} -type f 2>/dev/null || true"))?;
        Ok(pins.is_empty().then_some(()))
    })
}
