//! The programs that follow routing decisions, and what they counted.

mod counts;
mod features;

use std::{
    collections::{BTreeMap, HashSet},
    path::Path,
};

use anyhow::Context as _;
use aya::{
    Btf, Ebpf, EbpfLoader, include_bytes_aligned,
    maps::{Map, MapData, PerCpuArray},
    programs::ProgramInfo as KernelInfo,
};
use netobs_common::routes::{
    ABSENT, Astray, Behalf, BehalfKey, BehalfTally, DROP_REASONS, FailureKey, HitKey, Lookups,
    Sender, Tally, Work, behalf_tallies, names, tallies,
};

use self::{
    counts::Bits,
    features::{
        FEATURES, SENDER_PROGRAMS, attach_senders, attach_tracepoints, end, reads_calls, usable,
    },
};
use super::{
    kernel_types::{DropReasons, KernelTypes, VMLINUX},
    object::{cpus, program_info, timed},
    pins::{self, Part},
    tallies::{BehalfMemory, TallyMemory},
};
use crate::{
    model::{
        lookups::Backend,
        sample::{ProgramInfo, Warning},
    },
    world::{cgroup, limits},
};

/// What the object is compiled to.
static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/netobs-routes"));

/// Descriptors that they hold: maps, programs, links, types, a cgroup.
const DESCRIPTORS: u64 = 32;
/// Threads that may be about to look a route up at one time.
const SENDERS: u32 = 8192;
/// Addresses behind the host's interfaces.
const BEHALF: u32 = 16_384;

/// How to follow decisions, and how much room to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Count per route and destination, not totals only.
    pub detail: bool,
    /// Tell whose a failed lookup is by the system call, where the kernel allows it. Else,
    /// and with `false`, by programs that run with every one.
    pub calls: bool,
    /// Cookie of our own namespace, 0 for unknown.
    pub host: u64,
    /// Namespaces.
    pub namespaces: u32,
    /// Pairs of a destination and what it met.
    pub destinations: u32,
    /// Failed destinations.
    pub failures: u32,
}

/// Sizes of keys and values of all maps. Those of tables are read as a whole.
const MAPS: [(&str, usize, usize); 9] = [
    (names::MAP_BEHALF_TALLIES, 4, size_of::<BehalfTally>()),
    (names::MAP_TALLIES, 4, size_of::<Tally>()),
    (names::MAP_LOOKUPS, 8, size_of::<Lookups>()),
    (names::MAP_HITS, size_of::<HitKey>(), 8),
    (names::MAP_FAILURES, size_of::<FailureKey>(), 8),
    (names::MAP_SENDERS, 4, size_of::<Sender>()),
    (
        names::MAP_BEHALF,
        size_of::<BehalfKey>(),
        size_of::<Behalf>(),
    ),
    (names::MAP_WORK, 4, size_of::<Work>()),
    (names::MAP_ASTRAY, 4, size_of::<Astray>()),
];

/// All programs.
fn programs() -> impl Iterator<Item = &'static str> {
    always().chain(SENDER_PROGRAMS)
}

/// Those that run wherever everything does.
fn always() -> impl Iterator<Item = &'static str> {
    FEATURES.iter().map(|feature| feature.program)
}

/// The programs, attached, and their maps.
pub struct LookupPrograms {
    running: Running,
    lookups: MapData,
    tallies: TallyMemory,
    hits: MapData,
    failures: MapData,
    behalf: MapData,
    behalf_tallies: BehalfMemory,
    astray: PerCpuArray<MapData, Bits<Astray>>,
    cpus: usize,
    settings: Settings,
    reasons: DropReasons,
    doubts: Vec<Warning>,
    ipv4: bool,
    ipv6: bool,
    /// Whether all programs run.
    whole: bool,
}

/// Who keeps the programs.
enum Running {
    Here(Ebpf),
    Pinned(Part),
}

impl LookupPrograms {
    /// Loads and attaches what this kernel allows. What does not work is in
    /// [`doubts`](Self::doubts). With `part`, goes on with what is pinned there, or
    /// pins it.
    ///
    /// # Errors
    /// Where no lookups can be observed at all, with the reason.
    pub fn start(settings: Settings, part: Option<&Part>) -> anyhow::Result<Self> {
        match part {
            None => Self::load(settings, None),
            Some(part) => Self::go_on(settings, part),
        }
    }

    /// Takes what is pinned in `part` off: it counts no longer, what it counted stays.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub fn take_off(part: &Part) -> anyhow::Result<()> {
        programs().try_for_each(|name| end(part, name))
    }

    /// Goes on with the same programs where nothing has changed, else with new ones
    /// over the same maps.
    fn go_on(mut settings: Settings, part: &Part) -> anyhow::Result<Self> {
        for (name, key, value) in MAPS {
            let path = part.object(name);
            if !path.exists() {
                continue;
            }
            let entries = pins::pinned(&path, key, value)?.info()?.max_entries();
            match name {
                names::MAP_LOOKUPS => settings.namespaces = entries,
                names::MAP_HITS if settings.detail => settings.destinations = entries,
                names::MAP_FAILURES if settings.detail => settings.failures = entries,
                _ => {}
            }
        }
        let digest = pins::digest(
            OBJECT,
            &[
                settings.detail.into(),
                settings.host,
                settings.namespaces.into(),
            ],
        );
        let known = part.meta()?.is_some_and(|meta| meta.lookups == digest);
        let whole = always().all(|name| part.object(name).exists() && part.link(name).exists());
        // With details the names of the reasons for drops are needed, and so is
        // everything that loading reads.
        if known && whole && !settings.detail {
            return Self::adopt(settings, part);
        }
        // Not to be taken for what runs, should this one end before all of it does.
        part.set_lookups([0; 32])?;
        let started = match Self::load(settings, Some(part)) {
            Ok(started) => started,
            Err(error) => {
                Self::take_off(part)?;
                return Err(error);
            }
        };
        if started.whole {
            part.set_lookups(digest)?;
        }
        Ok(started)
    }

    fn adopt(settings: Settings, part: &Part) -> anyhow::Result<Self> {
        let open = |name| Ok::<_, anyhow::Error>(MapData::from_pin(part.object(name))?);
        Ok(Self {
            lookups: open(names::MAP_LOOKUPS)?,
            tallies: tally_memory(Map::from_map_data(open(names::MAP_TALLIES)?)?)?,
            hits: open(names::MAP_HITS)?,
            failures: open(names::MAP_FAILURES)?,
            behalf: open(names::MAP_BEHALF)?,
            behalf_tallies: behalf_memory(Map::from_map_data(open(names::MAP_BEHALF_TALLIES)?)?)?,
            astray: Map::from_map_data(open(names::MAP_ASTRAY)?)?.try_into()?,
            cpus: cpus()? as usize,
            running: Running::Pinned(part.clone()),
            settings,
            reasons: DropReasons::default(),
            // Where these programs are, senders are told by them.
            doubts: match part.link(names::PROG_CONNECT4).exists() {
                true => cgroup_doubt().into_iter().collect(),
                false => Vec::new(),
            },
            ipv4: true,
            ipv6: true,
            whole: true,
        })
    }

    fn load(settings: Settings, part: Option<&Part>) -> anyhow::Result<Self> {
        limits::room(DESCRIPTORS)?;
        let types = KernelTypes::read(Path::new(VMLINUX))?;
        let mut doubts = Vec::new();
        let (usable, offsets) = usable(&types, &mut doubts);
        let reasons = types.drop_reasons();
        drop(types);
        let reads_calls = settings.calls && reads_calls(&offsets);
        let mut ebpf = make_maps(settings, part, &offsets, reads_calls, &reasons)?;
        let btf = Btf::from_sys_fs().context("read the kernel's types")?;
        let mut attached = HashSet::new();
        let mut reason = None;
        for (feature, result) in attach_tracepoints(&mut ebpf, &btf, usable, part) {
            match result {
                Ok(()) => {
                    attached.insert(feature.program);
                }
                Err(error) => {
                    let error = crate::error::Chain(&error).to_string();
                    doubts.push(limited(format!("{}: {error}", feature.purpose)));
                    reason.get_or_insert(error);
                }
            }
        }
        let (ipv4, ipv6) = (
            attached.contains(names::PROG_IPV4),
            attached.contains(names::PROG_IPV6),
        );
        if !ipv4 && !ipv6 {
            anyhow::bail!(reason.unwrap_or_else(|| {
                let doubts: Vec<&str> = doubts.iter().map(|w| w.message.as_str()).collect();
                doubts.join("; ")
            }));
        }
        let mut whole = attached.len() == FEATURES.len();
        // What a netobs of another build left of programs that do not run now.
        if let Some(part) = part {
            for feature in FEATURES.iter().filter(|f| !attached.contains(f.program)) {
                end(part, feature.program)?;
            }
            if reads_calls {
                SENDER_PROGRAMS
                    .iter()
                    .try_for_each(|name| end(part, name))?;
            }
        }
        if ipv4 && !reads_calls {
            if let Err(error) = attach_senders(&mut ebpf, part) {
                whole = false;
                if let Some(part) = part {
                    SENDER_PROGRAMS
                        .iter()
                        .try_for_each(|name| end(part, name))?;
                }
                doubts.push(limited(format!(
                    "failed IPv4 lookups of local senders are unattributed: {}",
                    crate::error::Chain(&error)
                )));
            }
            doubts.extend(cgroup_doubt());
        }
        let mut take = |name| {
            ebpf.take_map(name)
                .with_context(|| format!("the object has no map {name}"))
        };
        Ok(Self {
            lookups: data(take(names::MAP_LOOKUPS)?)?,
            tallies: tally_memory(take(names::MAP_TALLIES)?)?,
            hits: data(take(names::MAP_HITS)?)?,
            failures: data(take(names::MAP_FAILURES)?)?,
            behalf: data(take(names::MAP_BEHALF)?)?,
            behalf_tallies: behalf_memory(take(names::MAP_BEHALF_TALLIES)?)?,
            astray: take(names::MAP_ASTRAY)?.try_into()?,
            cpus: cpus()? as usize,
            running: Running::Here(ebpf),
            settings,
            reasons,
            doubts,
            ipv4,
            ipv6,
            whole,
        })
    }

    /// Which backend this is.
    #[must_use]
    pub fn backend(&self) -> Backend {
        Backend::Tracepoint
    }

    /// What does not work.
    #[must_use]
    pub fn doubts(&self) -> &[Warning] {
        &self.doubts
    }

    /// Whether IPv4 and IPv6 lookups are observed.
    #[must_use]
    pub fn families(&self) -> (bool, bool) {
        (self.ipv4, self.ipv6)
    }

    /// The name of a reason for a drop; its number where the kernel's types have
    /// none for it.
    #[must_use]
    pub fn reason(&self, number: u32) -> String {
        self.reasons.name(number)
    }

    /// What the kernel says of the programs.
    #[must_use]
    pub fn programs(&self) -> Vec<ProgramInfo> {
        let timed = timed();
        let info = |name: &str| match &self.running {
            Running::Here(ebpf) => ebpf.program(name)?.info().ok(),
            Running::Pinned(part) => KernelInfo::from_pin(part.object(name)).ok(),
        };
        programs()
            .filter_map(|name| Some(program_info(name, &info(name)?, timed)))
            .collect()
    }
}

fn behalf_memory(map: Map) -> anyhow::Result<BehalfMemory> {
    BehalfMemory::new(map, cpus()?).context("map the tallies into memory")
}

fn tally_memory(map: Map) -> anyhow::Result<TallyMemory> {
    TallyMemory::new(map, cpus()?).context("map the tallies into memory")
}

fn make_maps(
    settings: Settings,
    part: Option<&Part>,
    offsets: &BTreeMap<&'static str, u32>,
    reads_calls: bool,
    reasons: &DropReasons,
) -> anyhow::Result<Ebpf> {
    let numbers: Vec<u32> = DROP_REASONS
        .iter()
        .map(|wanted| reasons.number(wanted.name).unwrap_or(ABSENT))
        .collect();
    let detail = u32::from(settings.detail);
    let calls = u32::from(reads_calls);
    let mut loader = EbpfLoader::new();
    loader
        .override_global(names::GLOBAL_HOST, &settings.host, true)
        .override_global(names::GLOBAL_DETAIL, &detail, true)
        .override_global(names::GLOBAL_CALLS, &calls, true)
        .map_max_entries(names::MAP_TALLIES, tallies(cpus()?))
        .map_max_entries(names::MAP_BEHALF_TALLIES, behalf_tallies(cpus()?))
        .map_max_entries(names::MAP_LOOKUPS, settings.namespaces)
        .map_max_entries(names::MAP_HITS, of_use(detail, settings.destinations))
        .map_max_entries(names::MAP_FAILURES, of_use(detail, settings.failures))
        .map_max_entries(names::MAP_SENDERS, SENDERS)
        .map_max_entries(names::MAP_BEHALF, BEHALF);
    for (global, offset) in offsets {
        loader.override_global(global, offset, true);
    }
    for (reason, number) in DROP_REASONS.iter().zip(&numbers) {
        loader.override_global(reason.global, number, true);
    }
    for (name, _, _) in MAPS {
        if let Some(part) = part {
            loader.map_pin_path(name, part.object(name));
        }
    }
    loader.load(OBJECT).context("create the maps")
}

fn cgroup_doubt() -> Option<Warning> {
    (!cgroup::is_whole()).then(|| {
        limited(
            "failed IPv4 lookups of most local senders are unattributed: netobs runs in a cgroup \
             namespace of its own (docker run --cgroupns=host)"
                .to_owned(),
        )
    })
}

/// A map that nobody writes to needs no room.
fn of_use(detail: u32, capacity: u32) -> u32 {
    if detail == 0 { 1 } else { capacity }
}

fn limited(message: String) -> Warning {
    Warning {
        code: "route_lookups_limited".to_owned(),
        namespace: None,
        message,
    }
}

fn data(map: Map) -> anyhow::Result<MapData> {
    match map {
        Map::HashMap(data)
        | Map::LruHashMap(data)
        | Map::PerCpuHashMap(data)
        | Map::PerCpuLruHashMap(data) => Ok(data),
        _ => anyhow::bail!("a map of the object has another type"),
    }
}
