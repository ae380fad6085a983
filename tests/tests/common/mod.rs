//! What the tests in the lab share: a running `netobs watch` and its samples,
//! two namespaces on a bridge, and the kernel's counters beside ours.
#![allow(dead_code, reason = "each test uses a part of it")]

use std::{collections::BTreeMap, fs::File, os::fd::AsFd as _, thread, time::Duration};

use anyhow::{Context as _, bail, ensure};
use netobs_tests::{Lab, LinkStats, Netns, Output, Proc, poll_until};
use nix::{
    sched::{CloneFlags, setns},
    sys::signal::Signal,
};
use serde_json::Value;

/// Long enough for a loaded machine with two cores.
pub(crate) const SOON: Duration = Duration::from_secs(30);

/// A `netobs watch -o json` in the background.
pub(crate) struct Watch {
    pub(crate) proc: Proc,
}

impl Watch {
    /// Starts it and waits for its first sample.
    pub(crate) fn start(lab: &Lab, args: &[&str]) -> anyhow::Result<Self> {
        let mut watch = Self::begin(lab, args)?;
        watch.until("the first sample", |_| true)?;
        Ok(watch)
    }

    /// Starts it.
    pub(crate) fn begin(lab: &Lab, args: &[&str]) -> anyhow::Result<Self> {
        Self::command(lab, "watch", args)
    }

    /// Starts `netobs routes` and waits for its first sample.
    pub(crate) fn routes(lab: &Lab, args: &[&str]) -> anyhow::Result<Self> {
        let mut routes = Self::command(lab, "routes", args)?;
        routes.until("the first sample", |_| true)?;
        Ok(routes)
    }

    fn command(lab: &Lab, command: &str, args: &[&str]) -> anyhow::Result<Self> {
        let mut words = vec![command, "--output=json"];
        if !args.iter().any(|arg| arg.starts_with("--interval")) {
            words.push("--interval=200ms");
        }
        words.extend(args);
        let proc = lab.netobs(&words)?.start()?;
        Ok(Self { proc })
    }

    /// A sample of which another one, begun later, says the same of routing:
    /// what was under way has been counted.
    pub(crate) fn settled(&mut self) -> anyhow::Result<Value> {
        let mut last = self.fresh()?;
        poll_until(SOON, "routing at rest", || {
            let next = self.fresh()?;
            let same = routing(&last) == routing(&next);
            last = next;
            Ok(same.then(|| last.clone()))
        })
    }

    /// All samples so far.
    pub(crate) fn samples(&self) -> anyhow::Result<Vec<Value>> {
        parsed(&self.proc.stdout())
    }

    /// Waits for a sample, from the last one on, that `wanted` accepts.
    pub(crate) fn until(
        &mut self,
        what: &str,
        mut wanted: impl FnMut(&Value) -> bool,
    ) -> anyhow::Result<Value> {
        let seen = self.proc.stdout().len().saturating_sub(1);
        self.from(seen, what, &mut wanted)
    }

    /// A sample that was begun after this call.
    pub(crate) fn fresh(&mut self) -> anyhow::Result<Value> {
        // The next one may have been read already and not yet printed.
        let seen = self.proc.stdout().len() + 1;
        self.from(seen, "a new sample", &mut |_| true)
    }

    /// Waits for a sample that `wanted` accepts, from number `seen` on.
    pub(crate) fn from(
        &mut self,
        mut seen: usize,
        what: &str,
        wanted: &mut dyn FnMut(&Value) -> bool,
    ) -> anyhow::Result<Value> {
        let found = poll_until(SOON, what, || {
            let ended = !self.proc.is_running();
            let lines = self.proc.stdout();
            for line in lines.iter().skip(seen) {
                seen += 1;
                let Ok(sample) = serde_json::from_str::<Value>(line) else {
                    return Ok(Some(Err(format!("this is no JSON: {line}"))));
                };
                if wanted(&sample) {
                    return Ok(Some(Ok(sample)));
                }
            }
            Ok(ended.then_some(Err("netobs ended".to_owned())))
        });
        let why = match found {
            Ok(Ok(sample)) => return Ok(sample),
            Ok(Err(why)) => why,
            Err(err) => format!("{err:#}"),
        };
        let last = self.proc.stdout().last().cloned().unwrap_or_default();
        let stderr = self.proc.stderr().join("\n");
        bail!("waiting for {what}: {why}\nlast sample: {last}\nstderr: {stderr}")
    }

    /// A sample taken while nothing moved: the kernel's counters of `links`
    /// were the same before and after it, and it shows the same.
    pub(crate) fn at_rest(&mut self, lab: &Lab, links: &[Link<'_>]) -> anyhow::Result<Rest> {
        let mut last = None;
        poll_until(SOON, "a sample at rest", || {
            let before = Self::kernel(lab, links)?;
            let sample = self.fresh()?;
            let after = Self::kernel(lab, links)?;
            // Delayed acknowledgements and the like may still be on their way:
            // two samples in a row have to agree.
            let quiet = last.as_ref() == Some(&before) && before == after;
            last = Some(after.clone());
            Ok(quiet.then_some(Rest {
                sample,
                kernel: after,
            }))
        })
    }

    fn kernel(
        lab: &Lab,
        links: &[Link<'_>],
    ) -> anyhow::Result<BTreeMap<(String, String), LinkStats>> {
        let read = |link: &Link<'_>| {
            let key = (link.row.to_owned(), link.ifname.to_owned());
            Ok((key, lab.link_stats(&link.netns, link.ifname)?))
        };
        links.iter().map(read).collect()
    }

    /// Ends it well and gives everything it said.
    pub(crate) fn end(mut self) -> anyhow::Result<Output> {
        self.proc.end(Signal::SIGTERM, SOON)?.success()
    }
}

/// What a sample says of lookups, routes and failures.
fn routing(sample: &Value) -> Vec<[&Value; 5]> {
    let all = sample["namespaces"].as_array().into_iter().flatten();
    all.map(|row| {
        let keys = ["name", "state", "route_lookups", "routes", "failures"];
        keys.map(|key| &row[key])
    })
    .collect()
}

/// Every line of `lines` as JSON.
pub(crate) fn parsed(lines: &[String]) -> anyhow::Result<Vec<Value>> {
    let parse = |line: &String| {
        serde_json::from_str(line).with_context(|| format!("this is no JSON: {line}"))
    };
    lines.iter().map(parse).collect()
}

/// An interface of a row.
#[derive(Clone, Debug)]
pub(crate) struct Link<'a> {
    /// The row's name.
    pub(crate) row: &'a str,
    /// Where the interface is.
    pub(crate) netns: Netns,
    /// Its name there.
    pub(crate) ifname: &'a str,
}

impl<'a> Link<'a> {
    pub(crate) fn new(row: &'a str, netns: &Netns, ifname: &'a str) -> Self {
        let netns = netns.clone();
        Self { row, netns, ifname }
    }

    /// That of a named namespace.
    pub(crate) fn named(row: &'a str, ifname: &'a str) -> Self {
        Self::new(row, &Netns::Named(row.to_owned()), ifname)
    }
}

/// A sample and what the kernel had counted at that time.
#[derive(Debug)]
pub(crate) struct Rest {
    pub(crate) sample: Value,
    kernel: BTreeMap<(String, String), LinkStats>,
}

impl Rest {
    /// Holds every link against the kernel's own counters: nothing missing,
    /// nothing twice, and the classes are the whole.
    #[track_caller]
    pub(crate) fn reconciles(&self) {
        for ((row, ifname), kernel) in &self.kernel {
            let interface = interface(&self.sample, row, ifname);
            for (direction, kernel) in [("rx", kernel.rx), ("tx", kernel.tx)] {
                let what = format!("{row}/{ifname} {direction}: {interface}");
                let ours = &interface[direction];
                let before = &interface["before_attach"][direction];
                let sum = |key| count(before, key) + count(ours, key);
                assert_eq!(sum("packets"), kernel.packets, "packets of {what}");
                assert_eq!(sum("bytes"), kernel.bytes, "bytes of {what}");
                let shown = &interface["kernel"][direction];
                assert_eq!(count(shown, "packets"), kernel.packets, "{what}");
                assert_eq!(count(shown, "bytes"), kernel.bytes, "{what}");
                assert_eq!(count(shown, "errors"), kernel.errors, "{what}");
                // Not "dropped": each end of a pair counts its own, and what is sent
                // while one end is not up yet is a drop of the other's.
                assert_eq!(interface["unaccounted"][direction], 0, "{what}");
                classes_sum_up(ours, &what);
            }
        }
    }

    /// Whether the kernel had counted the same.
    pub(crate) fn is_like(&self, other: &Self) -> bool {
        self.kernel == other.kernel
    }

    /// The counters of a row in a direction.
    #[track_caller]
    pub(crate) fn counters(&self, row: &str, direction: &str) -> &Value {
        &namespace(&self.sample, row)[direction]
    }
}

/// The classes of an interface and direction sum to its totals exactly.
#[track_caller]
fn classes_sum_up(counters: &Value, what: &str) {
    let mut classes = vec![&counters["arp"], &counters["other"]];
    for family in ["ipv4", "ipv6"] {
        for protocol in ["tcp", "udp", "icmp", "other"] {
            classes.push(&counters[family][protocol]);
        }
    }
    for key in ["packets", "bytes", "segments"] {
        let sum: u64 = classes.iter().map(|class| count(class, key)).sum();
        assert_eq!(sum, count(counters, key), "{key} of the classes of {what}");
    }
}

/// The number at `key`, which must be there.
#[track_caller]
pub(crate) fn count(counters: &Value, key: &str) -> u64 {
    let number = counters[key].as_u64();
    number.unwrap_or_else(|| panic!("no number {key:?} in {counters}"))
}

/// The rows of this name.
pub(crate) fn rows<'a>(sample: &'a Value, name: &str) -> Vec<&'a Value> {
    let all = sample["namespaces"].as_array();
    let named = |row: &&Value| row["name"] == name;
    all.map_or(&[][..], Vec::as_slice)
        .iter()
        .filter(named)
        .collect()
}

/// The names of the rows of a sample, sorted.
pub(crate) fn row_names(sample: &Value) -> Vec<String> {
    let all = sample["namespaces"].as_array().into_iter().flatten();
    let mut names: Vec<String> = all
        .filter_map(|row| Some(row["name"].as_str()?.to_owned()))
        .collect();
    names.sort();
    names
}

/// The row of this name, of which there must be one.
#[track_caller]
pub(crate) fn namespace<'a>(sample: &'a Value, name: &str) -> &'a Value {
    match rows(sample, name)[..] {
        [row] => row,
        ref rows => panic!("{} rows {name:?} in {sample}", rows.len()),
    }
}

/// Whether `row` (a namespace) has an interface of this name.
pub(crate) fn find_interface<'a>(row: &'a Value, ifname: &str) -> Option<&'a Value> {
    let mut all = row["interfaces"].as_array()?.iter();
    all.find(|interface| interface["name"] == ifname)
}

/// The interface of this name in the row of that name.
#[track_caller]
pub(crate) fn interface<'a>(sample: &'a Value, row: &str, ifname: &str) -> &'a Value {
    let row = namespace(sample, row);
    find_interface(row, ifname).unwrap_or_else(|| panic!("no {ifname:?} in {row}"))
}

/// Whether `row` is there, up, with this interface observed.
pub(crate) fn observes(sample: &Value, row: &str, ifname: &str) -> bool {
    rows(sample, row).iter().any(|row| {
        let interface = find_interface(row, ifname);
        row["state"] == "up" && interface.is_some_and(|interface| interface["hook"] != "none")
    })
}

/// The warnings of a sample with this code.
pub(crate) fn warnings<'a>(sample: &'a Value, code: &str) -> Vec<&'a Value> {
    let all = sample["warnings"].as_array().into_iter().flatten();
    all.filter(|warning| warning["code"] == code).collect()
}

/// What COUNTERS grew by, as `path -> number`, without the zeros.
#[track_caller]
pub(crate) fn growth(before: &Value, after: &Value) -> BTreeMap<String, u64> {
    let mut leaves = BTreeMap::new();
    flatten("", after, &mut leaves);
    let mut old = BTreeMap::new();
    flatten("", before, &mut old);
    for (path, number) in &mut leaves {
        let was = old.get(path).copied().unwrap_or(0);
        assert!(*number >= was, "{path} went back from {was} to {number}");
        *number -= was;
    }
    leaves.retain(|_, number| *number > 0);
    leaves
}

fn flatten(path: &str, value: &Value, into: &mut BTreeMap<String, u64>) {
    if let Some(object) = value.as_object() {
        for (key, value) in object {
            flatten(&format!("{path}/{key}"), value, into);
        }
    }
    if let Some(number) = value.as_u64() {
        into.insert(path.to_owned(), number);
    }
}

/// What [`growth`] gives for packets that need no segmentation: `classes`
/// are (path, packets, bytes), `beside` is (path, packets).
pub(crate) fn grown(classes: &[(&str, u64, u64)], beside: &[(&str, u64)]) -> BTreeMap<String, u64> {
    let mut all = BTreeMap::new();
    for (path, packets, bytes) in classes {
        all.insert(format!("/{path}/packets"), *packets);
        all.insert(format!("/{path}/segments"), *packets);
        all.insert(format!("/{path}/bytes"), *bytes);
        *all.entry("/packets".to_owned()).or_default() += packets;
        *all.entry("/segments".to_owned()).or_default() += packets;
        *all.entry("/bytes".to_owned()).or_default() += bytes;
        *all.entry("/wire_bytes".to_owned()).or_default() += bytes;
    }
    for (path, packets) in beside {
        all.insert(format!("/{path}"), *packets);
    }
    all
}

/// Two named namespaces, `a` and `b`, each with an `eth0` on the host's
/// bridge `br0` (host ends `va` and `vb`): 10.9.0.1 and .2, fd09::1 and ::2.
/// Neighbours are fixed and nothing is sent by itself, so that what is
/// counted is what the test sent.
pub(crate) fn quiet_pair(lab: &Lab) -> anyhow::Result<()> {
    lab.shell(
        "sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1
         ip link add br0 type bridge mcast_snooping 0
         ip link set br0 up",
    )?;
    for (name, number, other) in [("a", 1, 2), ("b", 2, 1)] {
        lab.netns_add(name)?;
        lab.shell(&format!(
            "ip link add v{name} type veth peer name eth0 netns {name} \
                address 02:00:00:00:00:0{number}
             ip link set v{name} master br0 up
             nsenter --net=/run/netns/{name} sysctl -qw \
                net.ipv6.conf.eth0.disable_ipv6=0 net.ipv6.conf.eth0.accept_dad=0 \
                net.ipv6.conf.eth0.mldv2_unsolicited_report_interval=1
             ip -n {name} link set eth0 addrgenmode none up
             ip -n {name} address add 10.9.0.{number}/24 broadcast 10.9.0.255 dev eth0
             ip -n {name} address add fd09::{number}/64 dev eth0 nodad
             ip -n {name} route add 239.0.0.0/8 dev eth0
             ip -n {name} neigh add 10.9.0.{other} lladdr 02:00:00:00:00:0{other} \
                dev eth0 nud permanent
             ip -n {name} neigh add fd09::{other} lladdr 02:00:00:00:00:0{other} \
                dev eth0 nud permanent"
        ))?;
    }
    Ok(())
}

/// Pings from a named namespace, all of which must be answered.
pub(crate) fn ping(lab: &Lab, from: &Netns, to: &str, args: &[&str]) -> anyhow::Result<()> {
    let quick = ["ping", "-q", "-W5", "-i0.02"];
    let mut command = lab.command_in(from, "busybox");
    command.args(quick).args(args).arg(to).text()?;
    Ok(())
}

/// Runs `work` on a thread inside a network namespace of the lab.
pub(crate) fn inside<T: Send>(
    lab: &Lab,
    netns: &Netns,
    work: impl FnOnce() -> anyhow::Result<T> + Send,
) -> anyhow::Result<T> {
    // A process in it leads there from outside the lab.
    let guide = lab.command_in(netns, "sleep").arg("1000").start()?;
    let file = File::open(format!("/proc/{}/ns/net", guide.pid()))?;
    drop(guide);
    thread::scope(|scope| {
        let worker = scope.spawn(|| {
            setns(file.as_fd(), CloneFlags::CLONE_NEWNET)?;
            work()
        });
        match worker.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// The number of a network namespace, as `/proc/PID/ns/net` shows it.
pub(crate) fn inode(lab: &Lab, netns: &Netns) -> anyhow::Result<u64> {
    let text = lab
        .command_in(netns, "readlink")
        .arg("/proc/self/ns/net")
        .text()?;
    let number = text.trim().strip_prefix("net:[");
    let number = number.and_then(|rest| rest.strip_suffix(']'));
    Ok(number.context("readlink /proc/self/ns/net")?.parse()?)
}

/// The exit code, which a signal has none of.
pub(crate) fn code(output: &Output) -> anyhow::Result<i32> {
    ensure!(output.status.code().is_some(), "{output:?}");
    Ok(output.status.code().unwrap_or_default())
}

/// It ended with this code and said these words.
#[track_caller]
pub(crate) fn fails(output: &Output, expected: i32, words: &[&str]) {
    assert_eq!(output.status.code(), Some(expected), "{output:?}");
    for word in words {
        assert!(
            output.stderr.contains(word),
            "no {word:?} in {}",
            output.stderr
        );
    }
    assert!(!output.stderr.contains("panicked"), "{}", output.stderr);
}
