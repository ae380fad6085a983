//! A sample: cumulative counters and the inventory at one instant.
//!
//! No rates, no formatting, no clock: the time is passed in. A sample can be
//! stored as JSON and read back.

use std::{
    fmt,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};

use super::{
    baseline::Baseline,
    counters::{Counters, Directions, KernelCounters},
    lookups::{Backend, Behalf, Lookups, Unattributed},
};

/// Identity of a namespace, as good as it could be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NsKey {
    /// `SO_NETNS_COOKIE`: unique until the next boot.
    Cookie(u64),
    /// Inode of the nsfs file, where the namespace could not be entered.
    Inode(u64),
    /// The id that our own namespace has given it, where nothing else leads
    /// to it: no process and no file.
    Nsid(i32),
}

impl NsKey {
    /// The cookie, where that is known.
    #[must_use]
    pub fn cookie(self) -> Option<u64> {
        match self {
            Self::Cookie(cookie) => Some(cookie),
            Self::Inode(_) | Self::Nsid(_) => None,
        }
    }
}

impl fmt::Display for NsKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cookie(cookie) => write!(f, "cookie:{cookie}"),
            Self::Inode(inode) => write!(f, "inode:{inode}"),
            Self::Nsid(nsid) => write!(f, "nsid:{nsid}"),
        }
    }
}

/// What a namespace is to a person.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The one that netobs runs in.
    Host,
    /// At least one container lives in it.
    Container,
    /// `ip netns` knows it.
    Named,
    /// Only processes, or nothing that could be found.
    Process,
}

impl Kind {
    /// As in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Container => "container",
            Self::Named => "named",
            Self::Process => "process",
        }
    }
}

/// Whether a namespace is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It is there.
    Up,
    /// It has ended: last totals, shown once.
    Gone,
}

impl State {
    /// As in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Gone => "gone",
        }
    }
}

/// Somebody who lives in a namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// `docker`, `podman`, `netns` or `process`.
    pub runtime: String,
    /// The container's id, 64 hexadecimal digits.
    pub id: Option<String>,
    /// Name of the container or named namespace; the command of a process.
    pub name: String,
    /// The container's image as the engine names it.
    pub image: Option<String>,
    /// Process id as netobs sees it.
    pub pid: Option<u32>,
}

/// The other end of a veth, in the host's namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// Its name.
    pub name: String,
    /// Its index.
    pub ifindex: u32,
    /// The bridge (or other device) that it is a port of.
    pub master: Option<String>,
}

/// How our programs hang on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Hook {
    /// By TCX (Linux 6.6).
    Tcx,
    /// By a clsact qdisc and a filter.
    Clsact,
    /// Not at all.
    None,
}

impl Hook {
    /// As in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
            Self::None => "none",
        }
    }
}

/// One interface of a namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Name inside the namespace; `None` where the inside is not known.
    pub name: Option<String>,
    /// Index inside the namespace.
    pub ifindex: Option<u32>,
    /// Hardware address.
    pub mac: Option<String>,
    /// `address/prefix length`, IPv4 first.
    pub addresses: Vec<String>,
    /// The host end, where there is one.
    pub peer: Option<Peer>,
    /// How it is observed.
    pub hook: Hook,
    /// Since when.
    pub observed_since: Option<SystemTime>,
    /// Why it is not, in words.
    pub reason: Option<String>,
    /// What our programs counted.
    pub counters: Option<Directions<Counters>>,
    /// What the kernel counts, same directions.
    pub kernel: Option<Directions<KernelCounters>>,
    /// What the kernel had counted before we attached.
    pub before_attach: Option<Directions<Baseline>>,
    /// For how long packets could pass before the programs hung there: 0 where they
    /// were there first, `None` where the interface was there before us.
    #[serde(default)]
    pub attach_lag: Option<Duration>,
}

impl Interface {
    /// Packets that the kernel counted since we attached and we did not
    /// (negative: the reverse); `None` unless all three are known.
    #[must_use]
    pub fn unaccounted(&self) -> Option<Directions<i64>> {
        let (counters, kernel, before) =
            (self.counters.as_ref()?, self.kernel?, self.before_attach?);
        Some(Directions {
            rx: before.rx.unaccounted(&kernel.rx, &counters.rx.total()),
            tx: before.tx.unaccounted(&kernel.tx, &counters.tx.total()),
        })
    }
}

/// One network namespace: one row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Namespace {
    /// Identity: samples are paired by it.
    pub key: NsKey,
    /// Name of the row.
    pub name: String,
    /// `SO_NETNS_COOKIE`.
    pub cookie: Option<u64>,
    /// Inode of `/proc/PID/ns/net`.
    pub inode: Option<u64>,
    /// What it is.
    pub kind: Kind,
    /// Whether it is there.
    pub state: State,
    /// Why it could not be looked into, in words.
    pub reason: Option<String>,
    /// Who lives in it.
    pub members: Vec<Member>,
    /// Its interfaces.
    pub interfaces: Vec<Interface>,
    /// What interfaces counted that the namespace no longer has.
    pub retired: Directions<Counters>,
    /// All interfaces that it has lost since the last sample: their counters are elsewhere in
    /// it too.
    #[serde(default)]
    pub former: Vec<Interface>,
    /// Its routing decisions; `None` where they are not observed.
    #[serde(default)]
    pub lookups: Option<Lookups>,
    /// What the host looked up for it, or it for others as the host.
    #[serde(default)]
    pub behalf: Behalf,
}

impl Namespace {
    /// What all interfaces counted since netobs began to observe the
    /// namespace; `None` where none was ever observed.
    #[must_use]
    pub fn totals(&self) -> Option<Directions<Counters>> {
        let mut sum = self.retired.clone();
        let mut observed = sum != Directions::default();
        for counters in self.interfaces.iter().filter_map(|i| i.counters.as_ref()) {
            sum.rx.add(&counters.rx);
            sum.tx.add(&counters.tx);
            observed = true;
        }
        observed.then_some(sum)
    }
}

/// The machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// Host name.
    pub name: String,
    /// Kernel release.
    pub kernel: String,
}

/// A program of ours in the kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgramInfo {
    /// Its name.
    pub name: String,
    /// How often it ran; `None` unless `kernel.bpf_stats_enabled` is set.
    pub runs: Option<u64>,
    /// For how long, in nanoseconds; `None` likewise.
    pub run_ns: Option<u64>,
    /// Runs that the kernel left out since they would have interrupted another
    /// run of the same program; `None` for unknown.
    #[serde(default)]
    pub missed: Option<u64>,
}

/// A map of ours in the kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapInfo {
    /// Its name.
    pub name: String,
    /// Entries in use.
    pub entries: u64,
    /// Entries that fit.
    pub capacity: u64,
    /// How often something did not fit.
    pub full: u64,
}

/// What observing costs and what it missed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observer {
    /// Our programs.
    pub programs: Vec<ProgramInfo>,
    /// Our maps.
    pub maps: Vec<MapInfo>,
    /// Packets that our programs saw and could not credit.
    pub lost: u64,
    /// How routing decisions are observed.
    #[serde(default)]
    pub backend: Backend,
    /// How long interfaces that came up waited for the programs.
    #[serde(default)]
    pub lags: Lags,
    /// Where everything lives on without us, if it does.
    #[serde(default)]
    pub pinned: Option<PathBuf>,
}

/// How long interfaces waited for the programs, from the moment that packets could
/// pass, as the kernel's message was heard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lags {
    /// Interfaces that waited no longer than the [bound](Self::BOUNDS) of the same place,
    /// and longer than the one before.
    #[serde(default)]
    pub within: [u64; Lags::BOUNDS.len()],
    /// Interfaces.
    pub count: u64,
    /// All together.
    pub sum: Duration,
    /// The longest.
    pub max: Duration,
}

impl Lags {
    /// Upper bounds, to count by.
    pub const BOUNDS: [Duration; 10] = [
        Duration::from_millis(1),
        Duration::from_millis(2),
        Duration::from_millis(5),
        Duration::from_millis(10),
        Duration::from_millis(20),
        Duration::from_millis(50),
        Duration::from_millis(100),
        Duration::from_millis(250),
        Duration::from_millis(500),
        Duration::from_secs(1),
    ];

    /// One more interface.
    pub fn add(&mut self, lag: Duration) {
        if let Some(place) = Self::BOUNDS.iter().position(|bound| lag <= *bound) {
            self.within[place] += 1;
        }
        self.count += 1;
        self.sum += lag;
        self.max = self.max.max(lag);
    }
}

/// A doubt about what is shown, with advice.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Warning {
    /// Stable and short.
    pub code: String,
    /// Name of the row that it is about.
    pub namespace: Option<String>,
    /// For people.
    pub message: String,
}

/// What was read at one instant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// When.
    pub time: SystemTime,
    /// Where.
    pub host: Host,
    /// One row per namespace, in no order. Those of which nothing has changed are shared
    /// with the sample before.
    pub namespaces: Vec<Arc<Namespace>>,
    /// Decisions of no known namespace; `None` where they are not observed.
    #[serde(default)]
    pub unattributed: Option<Unattributed>,
    /// Ourselves.
    pub observer: Observer,
    /// Doubts that stand.
    pub warnings: Vec<Warning>,
}
