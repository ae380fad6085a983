//! The programs that follow routing decisions, and what they counted.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs::{self, File},
    io::{self, ErrorKind},
    panic,
    path::Path,
    thread,
};

use anyhow::Context as _;
use aya::{
    Btf, Ebpf, EbpfLoader, Pod, include_bytes_aligned,
    maps::{Map, MapData, PerCpuArray},
    programs::{
        BtfTracePoint, CgroupAttachMode, CgroupSockAddr, Program, ProgramError,
        ProgramInfo as KernelInfo, ProgramType, links::FdLink,
    },
    sys::{BpfHelper, is_helper_supported},
};
use log::debug;
use netobs_common::routes::{
    ABSENT, Astray, Behalf, BehalfKey, BehalfTally, DROP_REASONS, FAMILY_FORMER, FIELDS_CALL,
    FIELDS_DROP, FIELDS_IPV4, FIELDS_IPV6, FIELDS_RECEIVE, FailureKey, Field, HitKey, Lookups,
    Sender, Tally, Work, behalf_tallies, names, tallies,
};

use super::{
    kernel_types::{DropReasons, KernelTypes, VMLINUX},
    object::{cpus, program_info, timed},
    pins::{self, Part},
    raw_links,
    raw_maps::{self, Bytes, Entries},
    tallies::{BehalfMemory, TallyMemory},
};
use crate::{
    model::{
        lookups::{self, Backend, Unattributed},
        sample::{MapInfo, ProgramInfo, Warning},
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

#[repr(transparent)]
#[derive(Clone, Copy)]
struct Bits<T: Copy>(T);

#[expect(unsafe_code, reason = "aya wants to know that a value is plain bytes")]
// SAFETY: `repr(C)`, integers only, no padding (asserted in netobs-common).
unsafe impl Pod for Bits<Astray> {}

macro_rules! plain {
    ($($kind:ty),*) => { $(
        #[expect(unsafe_code, reason = "the kernel fills it with bytes")]
        // SAFETY: integers only, no padding (asserted in netobs-common).
        unsafe impl Bytes for $kind {}
    )* };
}

plain!(HitKey, FailureKey, BehalfKey, Behalf, Lookups);

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

/// A part that works or not by itself.
struct Feature {
    program: &'static str,
    tracepoint: &'static str,
    fields: &'static [Field],
    /// What is missing without it.
    purpose: &'static str,
}

/// The parts of the `tracepoint` backend.
const FEATURES: [Feature; 4] = [
    Feature {
        program: names::PROG_IPV4,
        tracepoint: "fib_table_lookup",
        fields: &FIELDS_IPV4,
        purpose: "IPv4 route lookups are not observed",
    },
    Feature {
        program: names::PROG_IPV6,
        tracepoint: "fib6_table_lookup",
        fields: &FIELDS_IPV6,
        purpose: "IPv6 route lookups are not observed",
    },
    Feature {
        program: names::PROG_DROP,
        tracepoint: "kfree_skb",
        fields: &FIELDS_DROP,
        purpose: "failed IPv4 lookups of received packets are not observed",
    },
    Feature {
        program: names::PROG_RECEIVE,
        tracepoint: "netif_receive_skb",
        fields: &FIELDS_RECEIVE,
        purpose: "IPv4 lookups that ARP and source validation cause may be counted too",
    },
];

/// Socket calls that tell the namespace of lookups that fail, where the system call
/// cannot be read when that has happened: these cost every sender.
const SENDER_PROGRAMS: [&str; 4] = [
    names::PROG_CONNECT4,
    names::PROG_CONNECT6,
    names::PROG_SENDMSG4,
    names::PROG_SENDMSG6,
];

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

    /// Decisions by cookie of the namespace.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub fn lookups(&self) -> anyhow::Result<HashMap<u64, lookups::Lookups>> {
        let entries = raw_maps::entries::<u64, Lookups>(&self.lookups, self.cpus)
            .context("read the route lookups")?;
        let of_cpus = |(cookie, records): (&u64, &[Lookups])| (*cookie, total(records));
        let mut sums: HashMap<u64, Lookups> = entries.iter().map(of_cpus).collect();
        for (cookie, tally) in self.tallies.entries() {
            sums.entry(cookie).or_default().add(&tally);
        }
        Ok(sums
            .iter()
            .map(|(cookie, sum)| (*cookie, sum.into()))
            .collect())
    }

    /// What decisions ended with.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub fn hits(&self) -> anyhow::Result<HashMap<HitKey, u64>> {
        let entries = raw_maps::entries(&self.hits, 1).context("read the route hits")?;
        Ok(single(&entries))
    }

    /// Failed decisions.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub fn failures(&self) -> anyhow::Result<HashMap<FailureKey, u64>> {
        let entries = raw_maps::entries(&self.failures, 1).context("read the failed lookups")?;
        Ok(single(&entries))
    }

    /// What was forwarded on whose behalf.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub fn behalf(&self) -> anyhow::Result<HashMap<BehalfKey, Behalf>> {
        let entries = raw_maps::entries(&self.behalf, 1).context("read who was forwarded for")?;
        let mut all: HashMap<BehalfKey, Behalf> = single(&entries);
        for (key, count) in self.behalf_tallies.entries() {
            if let Some(behalf) = all.get_mut(&key) {
                behalf.count += count;
            }
        }
        Ok(all)
    }

    /// The same where there was something, as counts alone, perhaps also of what is
    /// followed no longer.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub fn forwarded(&self) -> anyhow::Result<HashMap<BehalfKey, u64>> {
        let entries = raw_maps::entries::<BehalfKey, Behalf>(&self.behalf, 1)
            .context("read who was forwarded for")?;
        let counts = entries.iter().filter_map(|(key, values)| {
            let count = values.first()?.count;
            (count > 0).then_some((*key, count))
        });
        let mut all: HashMap<BehalfKey, u64> = counts.collect();
        for (key, count) in self.behalf_tallies.entries() {
            *all.entry(key).or_default() += count;
        }
        Ok(all)
    }

    /// Counts what is forwarded for `key`, which is the `owner`'s, from now on.
    ///
    /// # Errors
    /// Where there is no room.
    pub fn follow(&self, key: BehalfKey, owner: u64) -> anyhow::Result<()> {
        match raw_maps::create(&self.behalf, &key, &Behalf { count: 0, owner }) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error.into()),
            Err(_) => Ok(()),
            Ok(()) => {
                // A program may have taken one for the former entry at the last moment.
                self.behalf_tallies.give_back(&key);
                Ok(())
            }
        }
    }

    /// Remembers what was forwarded for `owner` by addresses that it no longer has.
    pub fn remember(&self, owner: u64, count: u64) {
        let written = raw_maps::put(&self.behalf, &former(owner), &Behalf { count, owner });
        if let Err(error) = written {
            debug!("what was forwarded for {owner}: {error}");
        }
    }

    /// Forgets that.
    pub fn forget_former(&self, owner: u64) {
        delete(&self.behalf, &former(owner));
    }

    /// Counts it no longer.
    pub fn unfollow(&self, key: BehalfKey) {
        delete(&self.behalf, &key);
        self.behalf_tallies.give_back(&key);
    }

    /// Forgets namespaces that have ended.
    pub fn forget_namespaces(&self, cookies: &HashSet<u64>) {
        self.tallies.give_back(cookies);
        for cookie in cookies {
            delete(&self.lookups, cookie);
        }
        if !self.settings.detail {
            return;
        }
        for key in self.hits().unwrap_or_default().into_keys() {
            if cookies.contains(&key.cookie) {
                delete(&self.hits, &key);
            }
        }
        for key in self.failures().unwrap_or_default().into_keys() {
            if cookies.contains(&key.cookie) {
                delete(&self.failures, &key);
            }
        }
    }

    /// Whether more than `share` of the room for namespaces is taken by `entries`.
    #[must_use]
    pub fn is_crowded(&self, entries: usize, share: f64) -> bool {
        entries as f64 > f64::from(self.settings.namespaces) * share
    }

    /// The same for destinations.
    #[must_use]
    pub fn is_full_of_hits(&self, entries: usize, share: f64) -> bool {
        entries as f64 > f64::from(self.settings.destinations) * share
    }

    /// Forgets a destination, whose count the caller has noted.
    pub fn forget_hit(&self, key: &HitKey) {
        delete(&self.hits, key);
    }

    /// What is in no namespace's account.
    #[must_use]
    pub fn unattributed(&self) -> Unattributed {
        let sum = self.astray();
        Unattributed {
            lookups: sum.lookups,
            failed: sum.failed,
        }
    }

    fn astray(&self) -> Astray {
        let mut sum = Astray::default();
        for cpu in self.astray.get(&0, 0).iter().flat_map(|all| all.iter()) {
            sum.lookups = sum.lookups.wrapping_add(cpu.0.lookups);
            sum.failed = sum.failed.wrapping_add(cpu.0.failed);
            sum.lookups_full = sum.lookups_full.wrapping_add(cpu.0.lookups_full);
            sum.hits_full = sum.hits_full.wrapping_add(cpu.0.hits_full);
        }
        sum
    }

    /// How full the map of namespaces is, given how many entries were read.
    #[must_use]
    pub fn namespaces_map(&self, entries: usize) -> MapInfo {
        let full = self.astray().lookups_full;
        map_info(names::MAP_LOOKUPS, entries, self.settings.namespaces, full)
    }

    /// How full the maps of routes and destinations are, likewise.
    #[must_use]
    pub fn detail_maps(&self, destinations: usize, failures: usize) -> [MapInfo; 2] {
        let Settings {
            destinations: most_destinations,
            failures: most_failures,
            ..
        } = self.settings;
        let full = self.astray().hits_full;
        [
            map_info(names::MAP_HITS, destinations, most_destinations, full),
            // The least recent failure makes room: it is never full.
            map_info(names::MAP_FAILURES, failures, most_failures, 0),
        ]
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

/// What can be observed on this kernel, and where its structures have what is needed.
fn usable(
    types: &KernelTypes,
    doubts: &mut Vec<Warning>,
) -> (Vec<&'static Feature>, BTreeMap<&'static str, u32>) {
    let mut offsets = BTreeMap::new();
    let mut usable = Vec::new();
    for feature in &FEATURES {
        let found: Result<Vec<(&str, u32)>, String> = feature
            .fields
            .iter()
            .map(|field| Ok((field.global, types.offset(field)?)))
            .collect();
        match found {
            Ok(found) => {
                offsets.extend(found);
                usable.push(feature);
            }
            Err(field) => doubts.push(limited(format!(
                "{}: this kernel's types have no {field}",
                feature.purpose
            ))),
        }
    }
    // Optional all of them: a field that is missing has a value too.
    offsets.extend(FIELDS_CALL.iter().filter_map(|field| {
        let offset = types.offset(field).ok()?;
        Some((field.global, offset))
    }));
    (usable, offsets)
}

/// Whether the programs can tell by the system call whose a failed lookup is.
fn reads_calls(offsets: &BTreeMap<&'static str, u32>) -> bool {
    let known = |field: &Field| offsets.get(field.global).is_some_and(|at| *at != ABSENT);
    // Asked for another type of program: those for tracepoints with types have the same
    // helpers, and cannot be asked without one.
    // https://github.com/torvalds/linux/blob/v6.18/kernel/trace/bpf_trace.c
    // A kernel that is locked down does not lend those that read memory.
    let mut helpers = [
        BpfHelper::BPF_FUNC_task_pt_regs,
        BpfHelper::BPF_FUNC_probe_read_kernel,
        BpfHelper::BPF_FUNC_probe_read_user,
    ]
    .into_iter();
    FIELDS_CALL.iter().all(known)
        && helpers
            .all(|helper| is_helper_supported(ProgramType::RawTracePoint, helper).unwrap_or(false))
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

/// Where what was forwarded by former addresses is counted.
fn former(owner: u64) -> BehalfKey {
    let mut source = [0; 16];
    source[..8].copy_from_slice(&owner.to_ne_bytes());
    BehalfKey {
        source,
        ifindex: 0,
        family: FAMILY_FORMER,
    }
}

/// Ends the link of `name` that is pinned, if there is one: with another beside it
/// lookups would count twice.
fn end(part: &Part, name: &str) -> anyhow::Result<()> {
    raw_links::end(&part.link(name)).with_context(|| format!("end the link of {name}"))
}

/// Pins the program `name` and its `link` in the place of those that were there.
fn pin(
    part: &Part,
    name: &str,
    link: FdLink,
    program: impl FnOnce(&Path) -> Result<(), aya::pin::PinError>,
) -> anyhow::Result<()> {
    let context = || format!("pin {name}");
    let coming = part.coming(name);
    pins::remove_file(&coming)?;
    program(&coming).with_context(context)?;
    fs::rename(&coming, part.object(name)).with_context(context)?;
    drop(link.pin(part.link(name)).with_context(context)?);
    Ok(())
}

fn map_info(name: &str, entries: usize, capacity: u32, full: u64) -> MapInfo {
    MapInfo {
        name: name.to_owned(),
        entries: entries as u64,
        capacity: capacity.into(),
        full,
    }
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

fn single<K: Copy + Eq + std::hash::Hash, V: Copy + Default>(
    entries: &Entries<K, V>,
) -> HashMap<K, V> {
    entries
        .iter()
        .map(|(key, values)| (*key, values.first().copied().unwrap_or_default()))
        .collect()
}

fn total(records: &[Lookups]) -> Lookups {
    let mut sum = Lookups::default();
    records.iter().for_each(|record| sum.add(record));
    sum
}

/// An entry that has gone already is fine.
fn delete<K: Bytes>(map: &MapData, key: &K) {
    if let Err(error) = raw_maps::delete(map, key)
        && error.kind() != ErrorKind::NotFound
    {
        debug!("remove an entry: {error}");
    }
}

/// Loads and attaches the programs of `features`, each on a thread of its own: the verifier
/// takes its time over some of them, and looks at several at once.
fn attach_tracepoints<'a>(
    ebpf: &mut Ebpf,
    btf: &Btf,
    features: Vec<&'a Feature>,
    part: Option<&Part>,
) -> Vec<(&'a Feature, anyhow::Result<()>)> {
    let mut programs: HashMap<&str, &mut Program> = ebpf.programs_mut().collect();
    thread::scope(|scope| {
        let attach = |feature: &'a Feature| {
            let program = programs.remove(feature.program);
            let work = move || attach_tracepoint(program, btf, feature, part);
            (feature, thread::Builder::new().spawn_scoped(scope, work))
        };
        let threads: Vec<_> = features.into_iter().map(attach).collect();
        let result = |thread: io::Result<thread::ScopedJoinHandle<'_, anyhow::Result<()>>>| {
            let result = thread.context("start a thread")?.join();
            result.unwrap_or_else(|panic| panic::resume_unwind(panic))
        };
        let threads = threads.into_iter();
        threads
            .map(|(feature, thread)| (feature, result(thread)))
            .collect()
    })
}

fn attach_tracepoint(
    program: Option<&mut Program>,
    btf: &Btf,
    feature: &Feature,
    part: Option<&Part>,
) -> anyhow::Result<()> {
    let program: &mut BtfTracePoint = program
        .with_context(|| format!("the object has no program {}", feature.program))?
        .try_into()?;
    program
        .load(feature.tracepoint, btf)
        .map_err(brief)
        .with_context(|| format!("load the program {}", feature.program))?;
    debug!(
        "loaded {}: {:?} instructions looked at by the verifier",
        feature.program,
        program.info()?.verified_instruction_count()
    );
    if let Some(part) = part {
        end(part, feature.program)?;
    }
    let link = program
        .attach()
        .with_context(|| format!("attach to the tracepoint {}", feature.tracepoint))?;
    if let Some(part) = part {
        let link = program.take_link(link)?.into();
        pin(part, feature.program, link, |path| program.pin(path))?;
    }
    Ok(())
}

/// How the verifier begins the lines behind its verdict.
const STATISTICS: [&str; 3] = ["processed ", "stack depth ", "verification time "];

/// The verifier's whole log is for those who ask (-vv); its last words say
/// what was wrong.
fn brief(error: ProgramError) -> anyhow::Error {
    match error {
        ProgramError::LoadError {
            io_error,
            verifier_log,
        } => {
            let log = verifier_log.to_string();
            debug!("the verifier says:\n{log}");
            let last =
                log.lines().rev().map(str::trim).find(|line| {
                    !line.is_empty() && !STATISTICS.iter().any(|s| line.starts_with(s))
                });
            anyhow::anyhow!(
                "{io_error}: {}",
                last.unwrap_or("the verifier says nothing")
            )
        }
        other => other.into(),
    }
}

fn attach_senders(ebpf: &mut Ebpf, part: Option<&Part>) -> anyhow::Result<()> {
    let root = cgroup::root().context(
        "there is no cgroup2 file system (mount the unified hierarchy, as on /sys/fs/cgroup/unified)",
    )?;
    let cgroup = File::open(&root).with_context(|| format!("open {}", root.display()))?;
    for name in SENDER_PROGRAMS {
        let program: &mut CgroupSockAddr = ebpf
            .program_mut(name)
            .with_context(|| format!("the object has no program {name}"))?
            .try_into()?;
        program
            .load()
            .map_err(brief)
            .with_context(|| format!("load the program {name}"))?;
        // By a link, which always stands beside others' programs, and for which
        // the kernel takes no flags.
        // https://github.com/torvalds/linux/blob/v6.18/kernel/bpf/cgroup.c
        if let Some(part) = part {
            end(part, name)?;
        }
        let link = program
            .attach(&cgroup, CgroupAttachMode::Single)
            .with_context(|| format!("attach {name} to {}", root.display()))?;
        if let Some(part) = part {
            let link = program.take_link(link)?.try_into()?;
            pin(part, name, link, |path| program.pin(path))?;
        }
    }
    Ok(())
}
