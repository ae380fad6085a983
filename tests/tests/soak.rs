//! Everything at once: namespaces and containers that come and go, traffic of known
//! size in each, renames, moves, networks, neighbours, and a netobs that is killed and
//! started again with `--pin`. At the end every packet is in the books.
//!
//! `NETOBS_SOAK` has the number of seconds (`cargo xtask soak`).

mod common;

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use common::{SOON, Watch, count};
use netobs_tests::{Lab, Netns, SOAK, figure, image, poll_until};
use nix::sys::signal::Signal;
use serde_json::Value;

/// Without a wish of others.
const SHORT: Duration = Duration::from_secs(40);
/// After its end a namespace is shown within this time, two samples and some room.
const SHOWN: Duration = Duration::from_millis(1500);
/// Namespaces that live at one time.
const ACTORS: usize = 3;
const FOLDER: &str = "/sys/fs/bpf/netobs";

/// From when to when.
type Span = (Instant, Instant);

/// What a namespace did, by the kernel's counters inside it.
#[derive(Clone, Copy)]
struct Truth {
    /// All packets, those of its veth's earlier life elsewhere left out.
    packets: u64,
    /// What its veth had counted elsewhere.
    earlier: u64,
    /// From before its beginning to after its end.
    lived: Span,
    /// Whether its veth has had two owners.
    moved: bool,
}

/// What happens, and what was seen of it.
#[derive(Default)]
struct Books {
    truth: Mutex<BTreeMap<String, Truth>>,
    /// Containers, pings of each, and when it lived.
    containers: Mutex<BTreeMap<String, (u64, Span)>>,
    /// From when to when netobs was dead.
    dead: Mutex<Vec<(Instant, Option<Instant>)>>,
    renames: AtomicU64,
    moves: AtomicU64,
    neighbours: AtomicU64,
    networks: AtomicU64,
}

impl Books {
    /// Whether netobs was there all the time, and long enough after to show the end.
    fn watched(&self, (began, ended): Span) -> bool {
        let apart = |&(from, to): &(Instant, Option<Instant>)| {
            ended + SHOWN < from || to.is_some_and(|to| to < began)
        };
        lock(&self.dead).iter().all(apart)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Rows as seen last, by name and cookie.
#[derive(Default)]
struct Seen {
    rows: BTreeMap<(String, String), Value>,
    samples: u64,
    most_lag: f64,
    unexpected: BTreeSet<String>,
}

impl Seen {
    /// Takes what `watch` has printed since the last time.
    fn take(&mut self, watch: &Watch) -> anyhow::Result<()> {
        let mut lines = watch.proc.take_stdout();
        // Of a killed one the last may be cut.
        if lines.last().is_some_and(|line| !line.ends_with('}')) {
            lines.pop();
        }
        for line in lines {
            let sample: Value = serde_json::from_str(&line).context(line)?;
            self.sample(&sample)?;
        }
        Ok(())
    }

    fn sample(&mut self, sample: &Value) -> anyhow::Result<()> {
        self.samples += 1;
        ensure!(sample["observer"]["lost"] == 0, "lost packets: {sample}");
        let lag = sample["observer"]["attach_lag_s"]["max"].as_f64();
        self.most_lag = self.most_lag.max(lag.unwrap_or(0.0));
        for warning in sample["warnings"].as_array().into_iter().flatten() {
            // A namespace may end while it is looked at, an interface while it is attached to.
            let code = warning["code"].as_str().unwrap_or_default();
            // A bridge that its last port has left drops what the host multicasts there, a
            // full backlog what a veth has handed over: netobs tells so.
            let message = warning["message"].as_str().unwrap_or_default();
            let drop = code == "unaccounted" && message.contains("dropped");
            let ending = ["namespace_unreadable", "interface_not_observed"].contains(&code);
            if !drop && !ending {
                self.unexpected.insert(warning.to_string());
            }
        }
        for row in sample["namespaces"].as_array().into_iter().flatten() {
            let text = |key: &str| row[key].as_str().unwrap_or_default().to_owned();
            let key = (text("name"), text("cookie"));
            // Without a cookie it may be another one each time.
            if let Some(before) = self.rows.get(&key).filter(|_| !key.1.is_empty()) {
                for direction in ["rx", "tx"] {
                    // Null before anything was counted.
                    let of = |row: &Value| row[direction]["packets"].as_u64().unwrap_or(0);
                    ensure!(
                        of(row) >= of(before),
                        "{key:?} went back: {before} then {row}"
                    );
                }
            }
            // Who was killed after it had shown an end is followed by one that shows it
            // again, with less to say.
            let again = self
                .rows
                .get(&key)
                .is_some_and(|known| known["state"] == "gone");
            if !again || key.1.is_empty() {
                self.rows.insert(key, row.clone());
            }
        }
        Ok(())
    }

    /// The row of a name that was used once.
    fn row(&self, name: &str) -> Vec<&Value> {
        let all = self.rows.iter().filter(|((known, _), _)| known == name);
        // What could not be entered, as it was just being made, has nothing to tell.
        all.filter(|((_, cookie), row)| !cookie.is_empty() || packets(row) > 0)
            .map(|(_, row)| row)
            .collect()
    }
}

/// Sums over interfaces of what the kernel had counted before, received and sent.
fn before(row: &Value) -> u64 {
    let interfaces = row["interfaces"].as_array().into_iter().flatten();
    let befores = interfaces.map(|interface| &interface["before_attach"]);
    befores
        .filter(|before| !before.is_null())
        .map(|before| count(&before["rx"], "packets") + count(&before["tx"], "packets"))
        .sum()
}

fn packets(row: &Value) -> u64 {
    let of = |direction: &str| match &row[direction] {
        Value::Null => 0,
        counters => count(counters, "packets"),
    };
    of("rx") + of("tx")
}

fn icmp(row: &Value) -> u64 {
    let of = |direction: &str| match &row[direction] {
        Value::Null => 0,
        counters => count(&counters["ipv4"]["icmp"], "packets"),
    };
    of("rx") + of("tx")
}

/// All packets that passed the host end of the veth of `name`, which is `ifname` in
/// `netns`, once nothing moves there: an answer may come after who asked has ended.
/// What the host end has handed over and the kernel dropped, for lack of room, passed.
fn kernel(lab: &Lab, name: &str, netns: &str, ifname: &str) -> anyhow::Result<u64> {
    let netns = Netns::Named(netns.to_owned());
    let end = format!("v{name}");
    let mut last = None;
    poll_until(SOON, "a veth at rest", || {
        let inside = lab.link_stats(&netns, ifname)?;
        let dropped = lab.link_stats(&Netns::Host, &end)?.tx.dropped;
        let now = Some(inside.rx.packets + inside.tx.packets + dropped);
        let rests = now == std::mem::replace(&mut last, now);
        Ok(now.filter(|_| rests))
    })
}

/// One end of an actor's pair, with no neighbour to be asked for.
fn addresses(actor: usize) -> (String, String) {
    (format!("10.100.{actor}.1"), format!("10.100.{actor}.2"))
}

fn set_up(lab: &Lab, netns: &str, ifname: &str, actor: usize) -> anyhow::Result<()> {
    let (host, own) = addresses(actor);
    lab.shell(&format!(
        "ip -n {netns} link set {ifname} up
         ip -n {netns} address add {own}/30 dev {ifname}
         ip -n {netns} neigh replace {host} lladdr 02:00:00:00:01:0{actor} dev {ifname} nud permanent"
    ))?;
    Ok(())
}

fn make(lab: &Lab, name: &str, actor: usize) -> anyhow::Result<()> {
    let (host, own) = addresses(actor);
    lab.shell(&format!(
        "ip netns add {name}
         ip link add v{name} address 02:00:00:00:01:0{actor} type veth \
            peer name eth0 address 02:00:00:00:02:0{actor} netns {name}
         nsenter --net=/run/netns/{name} sysctl -qw net.ipv6.conf.eth0.disable_ipv6=1
         ip link set v{name} up
         ip address add {host}/30 dev v{name}
         ip neigh replace {own} lladdr 02:00:00:00:02:0{actor} dev v{name} nud permanent"
    ))?;
    set_up(lab, name, "eth0", actor)
}

fn pings(lab: &Lab, netns: &str, actor: usize, times: u64) -> anyhow::Result<()> {
    let (host, _) = addresses(actor);
    let times = format!("-c{times}");
    let netns = Netns::Named(netns.to_owned());
    // Under such a load some answers find no room in the kernel's backlog.
    lab.command_in(&netns, "busybox")
        .args(["ping", "-q", "-W5", "-i0.002", &times, &host])
        .output()?;
    Ok(())
}

/// The life of one namespace, perhaps of two that share a veth one after the other.
fn live(lab: &Lab, books: &Books, actor: usize, number: u64) -> anyhow::Result<()> {
    let name = format!("n{actor}x{number}");
    let began = Instant::now();
    make(lab, &name, actor)?;
    let mut ifname = "eth0";
    for _ in 0..fastrand::u32(1..4) {
        let times = fastrand::u64(1..60);
        pings(lab, &name, actor, times)?;
        match fastrand::u32(0..4) {
            0 => {
                let new = if ifname == "eth0" { "wan0" } else { "eth0" };
                lab.shell(&format!("ip -n {name} link set {ifname} name {new}"))?;
                ifname = new;
                books.renames.fetch_add(1, Ordering::Relaxed);
            }
            1 => {
                lab.shell(&format!("ip link set v{name} name w{name}"))?;
                lab.shell(&format!("ip link set w{name} name v{name}"))?;
                books.renames.fetch_add(1, Ordering::Relaxed);
            }
            2 => thread::sleep(Duration::from_millis(fastrand::u64(0..400))),
            _ => {}
        }
    }
    let packets = kernel(lab, &name, &name, ifname)?;
    let mut moved = false;
    if fastrand::u32(0..5) == 0 {
        let next = format!("{name}y");
        lab.shell(&format!(
            "ip netns add {next}
             nsenter --net=/run/netns/{next} sysctl -qw net.ipv6.conf.default.disable_ipv6=1
             ip -n {name} link set {ifname} netns {next}"
        ))?;
        set_up(lab, &next, ifname, actor)?;
        // What passes before netobs has heard of the move is the earlier owner's.
        thread::sleep(Duration::from_millis(300));
        let times = fastrand::u64(1..60);
        pings(lab, &next, actor, times)?;
        let heir = Truth {
            packets: kernel(lab, &name, &next, ifname)? - packets,
            earlier: packets,
            lived: (began, Instant::now()),
            moved: true,
        };
        moved = true;
        lock(&books.truth).insert(next.clone(), heir);
        books.moves.fetch_add(1, Ordering::Relaxed);
        lab.netns_del(&next)?;
    }
    lab.netns_del(&name)?;
    // The kernel removes the pair in its own time, and the next one has its address.
    poll_until(SOON, "the end of a veth", || {
        let left = lab.shell(&format!("ip -o link show v{name} 2>/dev/null || true"))?;
        Ok(left.is_empty().then_some(()))
    })?;
    let truth = Truth {
        packets,
        earlier: 0,
        lived: (began, Instant::now()),
        moved,
    };
    lock(&books.truth).insert(name, truth);
    Ok(())
}

/// Containers whose first act is to send, and networks that come and go.
fn containers(lab: &Lab, books: &Books, stop: &AtomicBool) -> anyhow::Result<()> {
    lab.docker(["network", "create", "second"]).text()?;
    let target = lab.run_container("target", &[], &[])?;
    let address = target.address()?;
    let script = format!("ping -q -c4 -i0.05 -W5 {address} && sleep 0.1");
    let mut number = 0;
    while !stop.load(Ordering::SeqCst) {
        let began = Instant::now();
        let name = format!("c{number}");
        let run = ["run", "--rm", "--name", &name, image::NAME, "sh", "-c"];
        lab.docker(run).arg(&script).text()?;
        lock(&books.containers).insert(name, (4, (began, Instant::now())));
        if number % 5 == 0 {
            lab.docker(["network", "connect", "second", "target"])
                .text()?;
            thread::sleep(Duration::from_millis(fastrand::u64(0..300)));
            lab.docker(["network", "disconnect", "second", "target"])
                .text()?;
            books.networks.fetch_add(1, Ordering::Relaxed);
        }
        number += 1;
    }
    lab.docker(["stop", "target"]).text()?;
    Ok(())
}

/// Programs of another netobs ahead of ours, on every interface, that come and go.
fn neighbours(lab: &Lab, books: &Books, stop: &AtomicBool) -> anyhow::Result<()> {
    while !stop.load(Ordering::SeqCst) {
        let mut args = vec!["--no-lookups", "--interval=1s"];
        if fastrand::bool() {
            args.push("--tc-mode=clsact");
        }
        let other = Watch::start(lab, &args)?;
        thread::sleep(Duration::from_millis(fastrand::u64(500..2500)));
        other.end()?;
        books.neighbours.fetch_add(1, Ordering::Relaxed);
        thread::sleep(Duration::from_millis(fastrand::u64(500..3000)));
    }
    Ok(())
}

fn begin(lab: &Lab, books: &Books) -> anyhow::Result<Watch> {
    let watch = Watch::start(lab, &["--pin", "--interval=500ms"])?;
    if let Some(last) = lock(&books.dead).last_mut() {
        last.1 = Some(Instant::now());
    }
    Ok(watch)
}

/// Resident memory of a process in KiB, its descriptors and its threads: of both those
/// that it keeps, and not what it has at a moment when it looks into a namespace.
fn weight(pid: u32) -> anyhow::Result<(u64, usize, usize)> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let resident = line.context("VmRSS")?.trim().trim_end_matches(" kB");
    let entries = |what: &str| Ok::<_, anyhow::Error>(std::fs::read_dir(what)?.count());
    let (mut descriptors, mut threads) = (usize::MAX, usize::MAX);
    for _ in 0..20 {
        descriptors = descriptors.min(entries(&format!("/proc/{pid}/fd"))?);
        threads = threads.min(entries(&format!("/proc/{pid}/task"))?);
        thread::sleep(Duration::from_millis(20));
    }
    Ok((resident.trim().parse()?, descriptors, threads))
}

/// Tells the others to stop, also where this thread panics: a scope waits for them.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Runs `work` beside all actors until it is done.
fn beside<T>(
    lab: &Lab,
    books: &Books,
    round: u64,
    work: impl FnOnce() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let stop = &stop;
        let mut actors = Vec::new();
        for actor in 1..=ACTORS {
            actors.push(scope.spawn(move || {
                let mut number = round * 1_000_000;
                while !stop.load(Ordering::SeqCst) {
                    live(lab, books, actor, number)?;
                    number += 1;
                }
                anyhow::Ok(())
            }));
        }
        let result = {
            let _stop = Stop(stop);
            work()
        };
        for actor in actors {
            actor.join().expect("an actor")?;
        }
        result
    })
}

#[test]
fn every_packet_is_in_the_books_whatever_happens() -> anyhow::Result<()> {
    let wish = env::var(SOAK).ok().map(|text| text.parse());
    let duration = wish.transpose()?.map_or(SHORT, Duration::from_secs);
    let lab = Lab::with_docker()?;
    lab.shell("sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1")?;
    let books = Books::default();
    let mut seen = Seen::default();
    let mut watch = begin(&lab, &books)?;

    // Two thirds of the time with deaths, containers and neighbours.
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let others = [
            scope.spawn(|| containers(&lab, &books, &stop)),
            scope.spawn(|| neighbours(&lab, &books, &stop)),
        ];
        let guard = Stop(&stop);
        let result = beside(&lab, &books, 0, || {
            let end = Instant::now() + duration * 2 / 3;
            while Instant::now() < end {
                let life = Instant::now() + Duration::from_millis(fastrand::u64(1000..8000));
                while Instant::now() < life.min(end) {
                    thread::sleep(Duration::from_millis(200));
                    seen.take(&watch)?;
                }
                lock(&books.dead).push((Instant::now(), None));
                watch.proc.end(Signal::SIGKILL, SOON)?;
                seen.take(&watch)?;
                thread::sleep(Duration::from_millis(fastrand::u64(0..500)));
                watch = begin(&lab, &books)?;
            }
            Ok(())
        });
        drop(guard);
        for other in others {
            other.join().expect("an actor")?;
        }
        result
    })?;

    // The rest without, to see that nothing grows.
    let settle = |watch: &mut Watch, seen: &mut Seen| -> anyhow::Result<Value> {
        let sample = poll_until(SOON, "an empty lab", || {
            let sample = watch.fresh()?;
            let rows = sample["namespaces"].as_array().map_or(0, Vec::len);
            // The host, and dockerd's own.
            Ok((rows <= 2 && sample["namespaces"][0]["state"] == "up").then_some(sample))
        })?;
        seen.take(watch)?;
        Ok(sample)
    };
    settle(&mut watch, &mut seen)?;
    let pid = watch.proc.pid();
    // As much as it takes once everything was done once.
    let mut weights = Vec::new();
    for round in 1..=3 {
        beside(&lab, &books, round, || {
            let end = Instant::now() + duration / 9;
            while Instant::now() < end {
                thread::sleep(Duration::from_millis(200));
                seen.take(&watch)?;
            }
            Ok(())
        })?;
        settle(&mut watch, &mut seen)?;
        weights.push(weight(pid)?);
    }
    let last = settle(&mut watch, &mut seen)?;
    balanced(&books, &seen, &weights);
    let observed = last["namespaces"]
        .as_array()
        .into_iter()
        .flatten()
        .flat_map(|row| row["interfaces"].as_array().into_iter().flatten())
        .filter(|interface| interface["hook"] != "none")
        .count();
    let maps = last["observer"]["maps"].as_array().into_iter().flatten();
    let slots = maps
        .filter(|map| map["name"] == "NETOBS_COUNTERS")
        .map(|map| count(map, "entries"))
        .sum::<u64>();
    assert_eq!(slots, observed as u64, "slots that nobody has: {last}");
    watch.end()?;
    let links = lab.shell(&format!("ls {FOLDER}/links"))?;
    let links = links.lines().filter(|name| !name.starts_with("netobs_"));
    assert_eq!(links.count(), 2 * observed, "links that nobody has");
    lab.netobs(["clean"])?.output()?.success()?;
    assert_eq!(lab.shell(&format!("ls {FOLDER} 2>/dev/null || true"))?, "");
    Ok(())
}

/// What matters of a row.
fn brief(row: &Value) -> String {
    let interfaces = row["interfaces"].as_array().into_iter().flatten();
    let interfaces: Vec<String> = interfaces
        .map(|one| {
            let keys = [
                "name",
                "peer",
                "observed_since",
                "attach_lag_s",
                "before_attach",
            ];
            let shown = keys.map(|key| one[key].to_string());
            let of = |way: &str| one[way]["packets"].to_string();
            format!("[{} rx {} tx {}]", shown.join(" "), of("rx"), of("tx"))
        })
        .collect();
    format!(
        "{} {}: rx {} tx {}, {}",
        row["cookie"],
        row["state"],
        row["rx"]["packets"],
        row["tx"]["packets"],
        interfaces.join(" ")
    )
}

/// Holds what was seen against what happened.
fn balanced(books: &Books, seen: &Seen, weights: &[(u64, usize, usize)]) {
    let (warm, end) = (weights[0], weights[weights.len() - 1]);
    let truth = lock(&books.truth);
    let containers = lock(&books.containers);
    let (mut shown, mut unseen, mut all, mut classified) = (0u64, 0u64, 0u64, 0u64);
    let (mut wrong, mut at_once, mut unnamed, mut survived) = (Vec::new(), 0, 0, 0);
    for (name, truth) in truth.iter() {
        let watched = books.watched(truth.lived);
        let rows = seen.row(name);
        let Some(row) = rows.first() else {
            assert!(
                !watched,
                "{name} was never seen, with {} packets",
                truth.packets
            );
            unseen += 1;
            continue;
        };
        let ours = packets(row);
        // What came before it was in that namespace is its earlier owner's.
        let before = before(row).saturating_sub(truth.earlier);
        if !watched {
            // Whoever is killed between hanging programs and pinning them takes them
            // along, and what moves meanwhile nobody sees.
            let exact = rows.len() == 1 && ours + before == truth.packets;
            survived += u64::from(exact);
            unseen += u64::from(!exact);
        }
        let once = rows.len() == 1 && row["state"] == "gone";
        // One that was first shown by a later life has lost what came before attach.
        let whole = match row["interfaces"].as_array().is_some_and(Vec::is_empty) {
            true => ours <= truth.packets,
            false => ours + before == truth.packets,
        };
        if watched && !(once && whole) {
            let rows: Vec<String> = rows.iter().map(|row| brief(row)).collect();
            let rows = rows.join(", ");
            let moved = if truth.moved { ", moved" } else { "" };
            let did = format!(
                "{} packets, {} elsewhere{moved}",
                truth.packets, truth.earlier
            );
            wrong.push(format!("{name}: {did}, {before} before: {rows}"));
        }
        shown += 1;
        all += truth.packets;
        classified += ours;
    }
    let containers = || {
        let all = containers.iter();
        all.filter(|(_, (_, lived))| books.watched(*lived))
    };
    for (name, (pings, _)) in containers() {
        let rows = seen.row(name);
        // The engine may be too busy to tell a name in time: then it is another row.
        if rows.is_empty() {
            unnamed += 1;
            continue;
        }
        let missing = |row: &Value| (2 * pings).saturating_sub(icmp(row));
        if rows.len() == 1 && missing(rows[0]) == 0 {
            at_once += 1;
        }
        if rows.len() != 1 || icmp(rows[0]) > 2 * pings {
            let rows: Vec<String> = rows.iter().map(|row| brief(row)).collect();
            wrong.push(format!("{name}: {pings} pings: {}", rows.join(", ")));
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {shown} are wrong:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    assert!(seen.unexpected.is_empty(), "{:?}", seen.unexpected);
    let get = |number: &AtomicU64| number.load(Ordering::Relaxed);
    figure(&format!(
        "soak: {shown} namespaces of {all} packets in the books, {classified} of them by class (the others \
         before attach), 0 lost, 0 in others' books; {} containers that send at once, {at_once} of them with \
         every packet by class, {unnamed} without a name in time; {survived} namespaces that lived through \
         a death of netobs with every packet, {unseen} that came, moved or went meanwhile; {} kills, {} renames, {} \
         moves, {} neighbours, {} networks joined and left; longest wait for the programs {:.1} ms; \
         memory {} KiB then {} KiB",
        containers().count(),
        lock(&books.dead).len(),
        get(&books.renames),
        get(&books.moves),
        get(&books.neighbours),
        get(&books.networks),
        seen.most_lag * 1e3,
        warm.0,
        end.0,
    ));
    assert!(shown > 5, "too little happened");
    assert!(survived >= unseen, "counting did not go on without netobs");
    assert_eq!((warm.1, warm.2), (end.1, end.2), "descriptors and threads");
    // What is done for the first time takes memory once, a leak takes it in each round.
    let growth = weights
        .windows(2)
        .map(|pair| pair[1].0.saturating_sub(pair[0].0));
    assert!(growth.min() < Some(2048), "memory grew: {weights:?}");
}
