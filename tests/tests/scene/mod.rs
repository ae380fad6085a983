//! What the tests of routing share: `netobs routes` in the background, how its
//! numbers grow, and small networks.
#![allow(dead_code, reason = "each test uses a part of it")]

use std::{
    collections::BTreeMap,
    net::{SocketAddr, UdpSocket},
};

use anyhow::Context as _;
use netobs_tests::{Lab, Netns};
use serde_json::Value;

use crate::common::{Watch, count, growth, inside, namespace, rows};

type Growth = BTreeMap<String, u64>;

/// A lab with `netobs routes`.
pub(crate) struct Scene {
    pub(crate) routes: Watch,
    /// The last sample at rest.
    pub(crate) last: Value,
}

/// What grew in every namespace.
pub(crate) struct Seen {
    before: Value,
    after: Value,
}

impl Scene {
    pub(crate) fn new(lab: &Lab) -> anyhow::Result<Self> {
        Self::with(lab, &[])
    }

    pub(crate) fn with(lab: &Lab, args: &[&str]) -> anyhow::Result<Self> {
        let often = ["--interval=100ms"];
        let mut routes = Watch::routes(lab, &[&often, args].concat())?;
        let last = routes.settled()?;
        Ok(Self { routes, last })
    }

    /// What `work` made the namespaces look up.
    pub(crate) fn counted(
        &mut self,
        work: impl FnOnce() -> anyhow::Result<()>,
    ) -> anyhow::Result<Seen> {
        work()?;
        let after = self.routes.settled()?;
        let before = std::mem::replace(&mut self.last, after.clone());
        Ok(Seen { before, after })
    }

    /// Waits for what is under way.
    pub(crate) fn rest(&mut self) -> anyhow::Result<()> {
        self.last = self.routes.settled()?;
        Ok(())
    }

    pub(crate) fn end(self) -> anyhow::Result<()> {
        self.routes.end()?;
        Ok(())
    }
}

impl Seen {
    /// What grew in `row`'s lookups, as `path -> number`. What its row says of
    /// the host's work is left to [`by_host`](Self::by_host).
    #[track_caller]
    pub(crate) fn of(&self, row: &str) -> Growth {
        let lookups = |sample| namespace(sample, row)["route_lookups"].clone();
        let mut grown = growth(&lookups(&self.before), &lookups(&self.after));
        grown.remove("/by_host");
        grown
    }

    /// What the host looked up for `row`.
    #[track_caller]
    pub(crate) fn by_host(&self, row: &str) -> u64 {
        let of = |sample| namespace(sample, row)["route_lookups"]["by_host"].as_u64();
        of(&self.after).unwrap_or(0) - of(&self.before).unwrap_or(0)
    }

    /// What grew of hits of `prefix` in `row`.
    #[track_caller]
    pub(crate) fn hits(&self, row: &str, prefix: &str) -> u64 {
        hits(&self.after, row, prefix) - hits(&self.before, row, prefix)
    }

    /// What grew of lookups of no known namespace: total and failed.
    pub(crate) fn unattributed(&self) -> (u64, u64) {
        let of = |key: &str| {
            count(&self.after["unattributed"], key) - count(&self.before["unattributed"], key)
        };
        (of("route_lookups"), of("failed_lookups"))
    }
}

/// Growth that consists of decisions only: `paths` are `family/origin`.
pub(crate) fn grown(paths: &[(&str, u64)]) -> Growth {
    let mut all = Growth::new();
    for (path, number) in paths {
        all.insert(format!("/{path}"), *number);
        *all.entry("/total".to_owned()).or_default() += number;
    }
    all
}

/// The same for decisions that fail: `class` is why.
pub(crate) fn failed(path: &str, class: &str, number: u64) -> Growth {
    let family = path.split('/').next().unwrap_or_default();
    let mut all = grown(&[(path, number)]);
    all.insert("/failed".to_owned(), number);
    all.insert(format!("/{family}/failed"), number);
    all.insert(format!("/failures/{class}"), number);
    all
}

pub(crate) fn named(name: &str) -> Netns {
    Netns::Named(name.to_owned())
}

/// A named namespace whose interfaces say at once which IPv6 groups they listen to
/// and then nothing more: the kernel says so a second time within a second, and
/// what receives it looks a route up.
pub(crate) fn quiet_netns(lab: &Lab, name: &str) -> anyhow::Result<()> {
    let netns = lab.netns_add(name)?;
    let settings = [
        "net.ipv6.conf.default.accept_dad=0",
        "net.ipv6.conf.default.mldv2_unsolicited_report_interval=1",
    ];
    let args = ["-qw"].into_iter().chain(settings);
    lab.command_in(&netns, "sysctl").args(args).text()?;
    Ok(())
}

/// The routes of `row` with this prefix.
pub(crate) fn routes<'a>(sample: &'a Value, row: &str, prefix: &str) -> Vec<&'a Value> {
    let all = rows(sample, row);
    let all = all.iter().filter_map(|row| row["routes"].as_array());
    all.flatten()
        .filter(|route| route["prefix"] == prefix)
        .collect()
}

/// The route of `row` with this prefix, of which there must be one.
#[track_caller]
pub(crate) fn route<'a>(sample: &'a Value, row: &str, prefix: &str) -> &'a Value {
    match routes(sample, row, prefix)[..] {
        [route] => route,
        ref routes => panic!(
            "{} routes {prefix} of {row}: {}",
            routes.len(),
            namespace(sample, row)
        ),
    }
}

/// Hits of all routes of `row` with this prefix.
pub(crate) fn hits(sample: &Value, row: &str, prefix: &str) -> u64 {
    routes(sample, row, prefix)
        .iter()
        .map(|route| {
            let of = |origin| count(&route["hits"], origin);
            of("output") + of("input") + of("forward")
        })
        .sum()
}

/// The failure of `row` with this destination, of which there must be one.
#[track_caller]
pub(crate) fn failure<'a>(sample: &'a Value, row: &str, destination: &str) -> &'a Value {
    let row = namespace(sample, row);
    let all: Vec<&Value> = row["failures"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|failure| failure["destination"] == destination)
        .collect();
    match all[..] {
        [failure] => failure,
        _ => panic!("{} failures of {destination}: {row}", all.len()),
    }
}

/// Connects a UDP socket, which looks up a route and sends nothing.
pub(crate) fn connect_udp(lab: &Lab, netns: &Netns, from: &str, to: &str) -> anyhow::Result<()> {
    inside(lab, netns, || {
        UdpSocket::bind(from)?.connect(to)?;
        Ok(())
    })
}

/// The same for a connect that must fail.
pub(crate) fn fail_to_connect(
    lab: &Lab,
    netns: &Netns,
    from: &str,
    to: &str,
) -> anyhow::Result<()> {
    let failed = connect_udp(lab, netns, from, to).is_err();
    anyhow::ensure!(failed, "{to} can be reached");
    Ok(())
}

/// Sends `times` datagrams from a socket that is not connected.
pub(crate) fn send_udp(
    lab: &Lab,
    netns: &Netns,
    from: &str,
    to: SocketAddr,
    times: u64,
) -> anyhow::Result<()> {
    inside(lab, netns, || {
        let socket = UdpSocket::bind(from)?;
        socket.set_broadcast(true)?;
        for _ in 0..times {
            socket.send_to(b"netobs", to)?;
        }
        Ok(())
    })
}

/// A number of a namespace's `/proc/net/snmp` or `netstat`.
pub(crate) fn snmp(lab: &Lab, netns: &Netns, group: &str, name: &str) -> anyhow::Result<u64> {
    let text = lab
        .command_in(netns, "cat")
        .args(["/proc/self/net/snmp", "/proc/self/net/netstat"])
        .text()?;
    let mut lines = text
        .lines()
        .filter(|line| line.split(':').next() == Some(group));
    let (names, numbers) = (
        lines.next().context("no such group")?,
        lines.next().context("no numbers")?,
    );
    let at = names
        .split_whitespace()
        .position(|word| word == name)
        .with_context(|| format!("no {name} in {names}"))?;
    Ok(numbers
        .split_whitespace()
        .nth(at)
        .context("no number")?
        .parse()?)
}

/// A number of a namespace's `/proc/net/snmp6`.
pub(crate) fn snmp6(lab: &Lab, netns: &Netns, name: &str) -> anyhow::Result<u64> {
    let text = lab
        .command_in(netns, "cat")
        .arg("/proc/self/net/snmp6")
        .text()?;
    let number = text.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some(name)).then(|| words.next())?
    });
    Ok(number.with_context(|| format!("no {name}"))?.parse()?)
}

/// Two named namespaces, `a` (10.1.0.2, fd01::2) and `c` (10.2.0.2, fd02::2),
/// each with an `eth0` whose host end (`va`, `vc`) has .1 and ::1 and routes
/// between them. Neighbours are fixed and nothing is sent by itself.
pub(crate) fn forwarding(lab: &Lab) -> anyhow::Result<()> {
    lab.shell(
        "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 \
            net.ipv6.conf.default.accept_dad=0 \
            net.ipv6.conf.default.mldv2_unsolicited_report_interval=1",
    )?;
    for (name, number) in [("a", 1), ("c", 2)] {
        quiet_netns(lab, name)?;
        lab.shell(&format!(
            "ip link add v{name} address 02:00:00:00:01:0{number} type veth \
                peer name eth0 netns {name} address 02:00:00:00:02:0{number}
             ip link set v{name} addrgenmode none up
             ip -n {name} link set eth0 addrgenmode none up
             ip address add 10.{number}.0.1/24 dev v{name}
             ip address add fd0{number}::1/64 dev v{name} nodad
             ip -n {name} address add 10.{number}.0.2/24 dev eth0
             ip -n {name} address add fd0{number}::2/64 dev eth0 nodad
             ip -n {name} route add default via 10.{number}.0.1
             ip -n {name} -6 route add default via fd0{number}::1
             for address in 10.{number}.0.2 fd0{number}::2; do
                ip neigh add $address lladdr 02:00:00:00:02:0{number} dev v{name} nud permanent
             done
             for address in 10.{number}.0.1 fd0{number}::1; do
                ip -n {name} neigh add $address lladdr 02:00:00:00:01:0{number} dev eth0 \
                    nud permanent
             done"
        ))?;
    }
    Ok(())
}
