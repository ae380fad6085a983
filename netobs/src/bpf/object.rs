//! Loads the programs and makes their maps.

use std::{
    collections::HashSet,
    fs, io,
    os::fd::{AsFd as _, AsRawFd as _},
    time::{Duration, SystemTime},
};

use anyhow::Context as _;
use aya::{
    Ebpf, EbpfLoader, Pod, include_bytes_aligned,
    maps::{Array, HashMap, MapData, PerCpuArray},
    programs::SchedClassifier,
    util::nr_cpus,
};
use aya_log::EbpfLogger;
use log::LevelFilter;
use netobs_common::{
    ABI_VERSION, Meta, Netns, Record, Series, SeriesKey, SlotEntry, SlotOwner, Stray, names,
    record_index,
};
use nix::time::{ClockId, clock_gettime};
use tokio::{
    io::{Interest, unix::AsyncFd},
    task::JoinHandle,
};

use super::{
    alive::Sign,
    counters::CounterMemory,
    pins::{self, Part},
};
use crate::{
    model::sample::{MapInfo, ProgramInfo},
    world::limits,
};

/// Descriptors that a copy holds: maps, programs, types, the log.
pub const DESCRIPTORS: u64 = 12;
/// Entries of the array in front of the hash of interface indexes.
const NEAR_INDEXES: u32 = 65_536;

/// Namespaces of which something can be remembered; memory is taken as they come.
const NOTES: u32 = 65_536;

/// Series that can go on over a restart of netobs, likewise.
const SERIES: u32 = 32_768;

/// What the object is compiled to.
static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/netobs-ebpf"));

#[repr(transparent)]
#[derive(Clone, Copy)]
struct Bits<T: Copy>(T);

#[expect(unsafe_code, reason = "aya wants to know that a value is plain bytes")]
// SAFETY: `repr(C)`, integers only, no padding (asserted in netobs-common).
unsafe impl Pod for Bits<SlotOwner> {}

#[expect(unsafe_code, reason = "aya wants to know that a value is plain bytes")]
// SAFETY: as above.
unsafe impl Pod for Bits<Stray> {}

#[expect(unsafe_code, reason = "aya wants to know that a value is plain bytes")]
// SAFETY: as above.
unsafe impl Pod for Bits<Netns> {}

#[expect(unsafe_code, reason = "aya wants to know that a value is plain bytes")]
// SAFETY: as above.
unsafe impl Pod for Bits<Meta> {}

#[expect(unsafe_code, reason = "aya wants to know that a value is plain bytes")]
// SAFETY: as above.
unsafe impl Pod for Bits<Series> {}

/// Sizes of keys and values of all maps that are pinned.
const MAPS: [(&str, usize, usize); 8] = [
    (names::MAP_SLOTS, 4, size_of::<SlotEntry>()),
    (names::MAP_SLOTS_FAR, 4, size_of::<SlotEntry>()),
    (names::MAP_COUNTERS, 4, size_of::<Record>()),
    (names::MAP_OWNERS, 4, size_of::<SlotOwner>()),
    (names::MAP_NETNS, 8, size_of::<Netns>()),
    (names::MAP_META, 4, size_of::<Meta>()),
    (
        names::MAP_SERIES,
        size_of::<SeriesKey>(),
        size_of::<Series>(),
    ),
    (names::MAP_STRAY, 4, size_of::<Stray>()),
];

/// How large the maps are to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Interfaces that can be observed at once.
    pub slots: u32,
    /// Entries of the array of interface indexes; those beyond go to a hash.
    pub near: u32,
}

impl Capacity {
    /// For our own namespace, where indexes grow with every container. Without
    /// `slots`: as many as 64 MiB hold, from 256 to 4096.
    ///
    /// # Errors
    /// Where the number of CPUs cannot be read.
    pub fn host(slots: Option<u32>) -> anyhow::Result<Self> {
        Ok(Self {
            slots: match slots {
                Some(slots) => slots,
                None => slots_in(64 << 20)?.clamp(256, 4096),
            },
            near: NEAR_INDEXES,
        })
    }

    /// For the interfaces observed inside one other namespace. Without `slots`:
    /// as many as 4 MiB hold, from 16 to 256.
    ///
    /// # Errors
    /// Where the number of CPUs cannot be read.
    pub fn inside(slots: Option<u32>) -> anyhow::Result<Self> {
        Ok(Self {
            slots: match slots {
                Some(slots) => slots,
                None => slots_in(4 << 20)?.clamp(16, 256),
            },
            near: 1,
        })
    }
}

/// How many slots fit into `bytes` of counters on this machine.
fn slots_in(bytes: usize) -> anyhow::Result<u32> {
    let slot_bytes = record_index(1, 0, 0, cpus()?) as usize * size_of::<Record>();
    Ok(u32::try_from(bytes / slot_bytes)?)
}

/// One loaded copy of the programs, for the interfaces of one namespace:
/// interface indexes tell interfaces apart only within a namespace.
pub struct Programs {
    ebpf: Ebpf,
    near: Array<MapData, u32>,
    near_len: u32,
    far: HashMap<MapData, u32, u32>,
    owners: Array<MapData, Bits<SlotOwner>>,
    netns: HashMap<MapData, u64, Bits<Netns>>,
    meta: Array<MapData, Bits<Meta>>,
    series: HashMap<MapData, SeriesKey, Bits<Series>>,
    /// What is in it, and since when.
    kept: std::collections::HashMap<SeriesKey, u64>,
    object: [u8; 32],
    part: Option<Part>,
    /// Others need not know; without it they may take filters of ours for a dead one's.
    sign: Option<Sign>,
    stray: PerCpuArray<MapData, Bits<Stray>>,
    counters: CounterMemory,
    free: Vec<u32>,
    generations: Vec<u64>,
    /// How often no slot was free.
    full: u64,
    log: Option<JoinHandle<()>>,
}

impl Drop for Programs {
    fn drop(&mut self) {
        if let Some(log) = &self.log {
            log.abort();
        }
    }
}

impl Programs {
    /// Loads a copy, of its own.
    ///
    /// # Errors
    /// With the verifier's or the kernel's reason.
    pub fn load(capacity: Capacity) -> anyhow::Result<Self> {
        Self::make(capacity, None)
    }

    /// Loads a copy over the maps that are pinned in `part`, or pins them there, for
    /// the interfaces of the namespace with the cookie `scope`. Maps that are there
    /// keep their capacity.
    ///
    /// # Errors
    /// With the verifier's or the kernel's reason, or why what is there is of no use.
    pub fn load_pinned(capacity: Capacity, part: Part, scope: u64) -> anyhow::Result<Self> {
        part.make()?;
        let capacity = match pinned_capacity(&part)? {
            Some(pinned) => pinned,
            None => {
                remove_unfinished(&part)?;
                capacity
            }
        };
        let mut programs = Self::make(capacity, Some(part))?;
        programs.introduce(scope)?;
        Ok(programs)
    }

    fn make(capacity: Capacity, part: Option<Part>) -> anyhow::Result<Self> {
        limits::room(DESCRIPTORS)?;
        let cpus = cpus()?;
        let records = record_index(capacity.slots, 0, 0, cpus);
        let log = log_level();
        let mut loader = EbpfLoader::new();
        loader
            .override_global(names::GLOBAL_CPUS, &cpus, true)
            .override_global(aya_log::LEVEL, &log, true)
            .map_max_entries(names::MAP_SLOTS, capacity.near)
            .map_max_entries(names::MAP_SLOTS_FAR, capacity.slots)
            .map_max_entries(names::MAP_COUNTERS, records)
            .map_max_entries(names::MAP_NETNS, NOTES)
            .map_max_entries(names::MAP_SERIES, SERIES)
            .map_max_entries(names::MAP_OWNERS, capacity.slots);
        for (name, _, _) in MAPS {
            if let Some(part) = &part {
                loader.map_pin_path(name, part.object(name));
            }
        }
        let mut ebpf = loader.load(OBJECT).context("create the maps")?;
        let follower = if log > 0 {
            Some(follow_log(&mut ebpf)?)
        } else {
            None
        };
        for name in [names::PROG_INGRESS, names::PROG_EGRESS] {
            let program = classifier(&mut ebpf, name)?;
            program
                .load()
                .with_context(|| format!("load the program {name}"))?;
            log::debug!(
                "loaded {name}: {:?} instructions looked at by the verifier",
                program.info()?.verified_instruction_count()
            );
        }
        let mut take = |name| {
            ebpf.take_map(name)
                .with_context(|| format!("the object has no map {name}"))
        };
        let counters = CounterMemory::new(take(names::MAP_COUNTERS)?, capacity.slots, cpus)
            .context("take the counters")?;
        let mut programs = Self {
            near: take(names::MAP_SLOTS)?.try_into()?,
            near_len: capacity.near,
            far: take(names::MAP_SLOTS_FAR)?.try_into()?,
            owners: take(names::MAP_OWNERS)?.try_into()?,
            netns: take(names::MAP_NETNS)?.try_into()?,
            meta: take(names::MAP_META)?.try_into()?,
            series: take(names::MAP_SERIES)?.try_into()?,
            kept: std::collections::HashMap::new(),
            object: pins::digest(OBJECT, &[cpus.into(), log.into()]),
            stray: take(names::MAP_STRAY)?.try_into()?,
            counters,
            free: Vec::new(),
            generations: vec![0; capacity.slots as usize],
            full: 0,
            log: follower,
            part,
            sign: None,
            ebpf,
        };
        programs.sign = match Sign::new(programs.ids()?) {
            Ok(sign) => Some(sign),
            Err(error) => {
                log::debug!("a socket to tell that we are alive: {error}");
                None
            }
        };
        programs.free = (0..capacity.slots).rev().collect();
        if programs.part.is_some() {
            let all = programs.series.iter().filter_map(Result::ok);
            programs.kept = all.map(|(key, series)| (key, series.0.written)).collect();
            let taken: HashSet<u32> = programs.found().iter().map(|(slot, _)| *slot).collect();
            programs.free.retain(|slot| !taken.contains(slot));
            let mut slots = taken.iter();
            let opened = slots.try_for_each(|slot| programs.counters.open(*slot));
            opened.context("map the counters into memory")?;
        }
        Ok(programs)
    }

    /// Writes down what new maps are, and says where the programs are others than
    /// those that made them.
    fn introduce(&mut self, scope: u64) -> anyhow::Result<()> {
        let found = self.meta.get(&0, 0)?.0;
        if found.abi == 0 {
            let meta = Meta {
                abi: ABI_VERSION,
                cpus: cpus()?,
                scope,
                object: self.object,
                lookups: [0; 32],
                made: pins::since_1970(SystemTime::now()),
                reserved: 0,
            };
            self.meta.set(0, Bits(meta), 0)?;
            self.pin_programs()?;
        } else if found.object != self.object {
            log::info!("the pinned programs are of another build, or log otherwise: swapping them");
        }
        Ok(())
    }

    /// Puts the programs in the place of those that were pinned, once no link has
    /// these any more.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub fn take_over(&mut self) -> anyhow::Result<()> {
        if self.part.is_none() {
            return Ok(());
        }
        self.pin_programs()?;
        let mut meta = self.meta.get(&0, 0)?.0;
        meta.object = self.object;
        self.meta.set(0, Bits(meta), 0)?;
        Ok(())
    }

    fn pin_programs(&mut self) -> anyhow::Result<()> {
        let Some(part) = self.part.clone() else {
            return Ok(());
        };
        for name in [names::PROG_INGRESS, names::PROG_EGRESS] {
            let coming = part.coming(name);
            pins::remove_file(&coming)?;
            self.classifier(name)?
                .pin(&coming)
                .with_context(|| format!("pin the program {name}"))?;
            fs::rename(&coming, part.object(name))
                .with_context(|| format!("pin the program {name}"))?;
        }
        Ok(())
    }

    /// Where all this is pinned, if it is.
    #[must_use]
    pub fn part(&self) -> Option<&Part> {
        self.part.as_ref()
    }

    /// The kernel's id of the map of slots: programs that use it are ours.
    ///
    /// # Errors
    /// Where the kernel does not tell.
    pub fn map_id(&self) -> anyhow::Result<u32> {
        slots_id(self.part.as_ref().context("nothing is pinned")?)
    }

    /// Slots that have an owner: after loading, those that were left by an earlier
    /// netobs.
    #[must_use]
    pub fn found(&self) -> Vec<(u32, SlotOwner)> {
        (0..self.counters.slots())
            .filter_map(|slot| Some((slot, self.owners.get(&slot, 0).ok()?.0)))
            .filter(|(_, owner)| owner.generation != 0)
            .collect()
    }

    /// Goes on with the slot of an owner that was [found](Self::found).
    pub fn keep(&mut self, slot: u32, owner: &SlotOwner) {
        self.generations[slot as usize] = owner.generation;
    }

    /// What is remembered of namespaces, by cookie.
    #[must_use]
    pub fn notes(&self) -> std::collections::HashMap<u64, Netns> {
        let all = self.netns.iter().filter_map(Result::ok);
        all.map(|(cookie, note)| (cookie, note.0)).collect()
    }

    /// Remembers `note` of a namespace.
    ///
    /// # Errors
    /// Where there is no room.
    pub fn note(&mut self, cookie: u64, note: &Netns) -> anyhow::Result<()> {
        Ok(self.netns.insert(cookie, Bits(*note), 0)?)
    }

    /// Remembers nothing of it any more.
    pub fn unnote(&mut self, cookie: u64) {
        let _gone_already = self.netns.remove(&cookie);
    }

    /// What a series has from sources that have ended; nothing for none.
    #[must_use]
    pub fn series(&self, key: SeriesKey) -> Series {
        self.series
            .get(&key, 0)
            .map_or_else(|_| Series::default(), |series| series.0)
    }

    /// Remembers that.
    ///
    /// # Errors
    /// Where there is no room.
    pub fn keep_series(&mut self, key: SeriesKey, series: &Series) -> anyhow::Result<()> {
        if *series == Series::default() {
            let _was_none = self.series.remove(&key);
            self.kept.remove(&key);
            return Ok(());
        }
        let written = pins::since_1970(std::time::SystemTime::now());
        let series = Series { written, ..*series };
        // Those that nobody has asked for since long make room.
        if self.kept.len() >= SERIES as usize && !self.kept.contains_key(&key) {
            let oldest = self.kept.iter().min_by_key(|(_, written)| **written);
            if let Some(oldest) = oldest.map(|(key, _)| *key) {
                let _was_none = self.series.remove(&oldest);
                self.kept.remove(&oldest);
            }
        }
        self.series.insert(key, Bits(series), 0)?;
        self.kept.insert(key, written);
        Ok(())
    }

    /// How full the map of series is.
    #[must_use]
    pub fn series_info(&self) -> MapInfo {
        MapInfo {
            name: names::MAP_SERIES.to_owned(),
            entries: self.kept.len() as u64,
            capacity: SERIES.into(),
            full: 0,
        }
    }

    /// The classifier for `name`.
    ///
    /// # Errors
    /// Where the object has none.
    pub fn classifier(&mut self, name: &str) -> anyhow::Result<&mut SchedClassifier> {
        classifier(&mut self.ebpf, name)
    }

    /// The kernel's ids of the programs for ingress and egress.
    ///
    /// # Errors
    /// Where the kernel does not tell.
    pub fn ids(&mut self) -> anyhow::Result<[u32; 2]> {
        let mut id = |name| anyhow::Ok(self.classifier(name)?.info()?.id());
        Ok([id(names::PROG_INGRESS)?, id(names::PROG_EGRESS)?])
    }

    /// The counters.
    #[must_use]
    pub fn counters(&self) -> &CounterMemory {
        &self.counters
    }

    /// Takes a free slot, cleared; `None` where all are in use.
    ///
    /// # Errors
    /// Where its counters cannot be mapped.
    pub fn take_slot(&mut self) -> io::Result<Option<u32>> {
        let Some(slot) = self.free.last().copied() else {
            self.full += 1;
            return Ok(None);
        };
        self.counters.open(slot)?;
        self.counters.clear(slot);
        self.free.pop();
        let after = self.generations.iter().max().map_or(1, |last| last + 1);
        self.generations[slot as usize] = since_boot().max(after);
        Ok(Some(slot))
    }

    /// Tells the owner that `slot` has now from all others.
    #[must_use]
    pub fn generation(&self, slot: u32) -> u64 {
        self.generations[slot as usize]
    }

    /// Gives a slot back. Nothing may count into it any more.
    ///
    /// # Errors
    /// Where the map of owners cannot be written.
    pub fn give_back(&mut self, slot: u32) -> anyhow::Result<()> {
        self.free.push(slot);
        self.owners.set(slot, Bits(SlotOwner::default()), 0)?;
        Ok(())
    }

    /// Credits what passes `ifindex` as `entry` says, from the next packet on.
    ///
    /// # Errors
    /// Where the map of slots cannot be written.
    pub fn direct(&mut self, ifindex: u32, entry: SlotEntry) -> anyhow::Result<()> {
        if ifindex < self.near_len {
            self.near.set(ifindex, entry.0, 0)?;
        } else if entry == SlotEntry::NONE {
            let _gone_already = self.far.remove(&ifindex);
        } else {
            self.far.insert(ifindex, entry.0, 0)?;
        }
        Ok(())
    }

    /// Writes down whose `slot` is, for readers of the maps.
    ///
    /// # Errors
    /// Where the map of owners cannot be written.
    pub fn describe(&mut self, slot: u32, mut owner: SlotOwner) -> anyhow::Result<()> {
        owner.generation = self.generations[slot as usize];
        self.owners.set(slot, Bits(owner), 0)?;
        Ok(())
    }

    /// Packets that could not be credited.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.stray.get(&0, 0).map_or(0, |per_cpu| {
            per_cpu.iter().map(|s| s.0.no_slot + s.0.no_record).sum()
        })
    }

    /// How full the maps are.
    #[must_use]
    pub fn maps(&self) -> MapInfo {
        let capacity = u64::from(self.counters.slots());
        MapInfo {
            name: names::MAP_COUNTERS.to_owned(),
            entries: capacity - self.free.len() as u64,
            capacity,
            full: self.full,
        }
    }

    /// How full the map of notes is, with so many in it and `full` that found no room.
    #[must_use]
    pub fn notes_info(&self, entries: usize, full: u64) -> MapInfo {
        MapInfo {
            name: names::MAP_NETNS.to_owned(),
            entries: entries as u64,
            capacity: NOTES.into(),
            full,
        }
    }

    /// What the kernel says of the programs. Runs and time are counted only
    /// while `kernel.bpf_stats_enabled` is set.
    #[must_use]
    pub fn programs(&self) -> Vec<ProgramInfo> {
        program_infos(&self.ebpf)
    }
}

/// The kernel's id of the map of slots that is pinned in `part`.
///
/// # Errors
/// Where there is none.
pub(super) fn slots_id(part: &Part) -> anyhow::Result<u32> {
    let (name, key, value) = MAPS[0];
    Ok(pins::pinned(&part.object(name), key, value)?.info()?.id())
}

/// How large the maps are that are pinned in `part`; `None` where they are yet to be
/// made, or were not finished.
///
/// # Errors
/// Where one of them is missing, or is not what it should be.
pub(super) fn pinned_capacity(part: &Part) -> anyhow::Result<Option<Capacity>> {
    if part.meta()?.is_none_or(|meta| meta.abi == 0) {
        return Ok(None);
    }
    let mut capacity = Capacity { slots: 0, near: 0 };
    let mut records = 0;
    for (name, key, value) in MAPS {
        let entries = pins::pinned(&part.object(name), key, value)?
            .info()?
            .max_entries();
        match name {
            names::MAP_SLOTS => capacity.near = entries,
            names::MAP_OWNERS => capacity.slots = entries,
            names::MAP_COUNTERS => records = entries,
            _ => {}
        }
    }
    anyhow::ensure!(
        records == record_index(capacity.slots, 0, 0, cpus()?),
        "{}: its maps do not belong together; `netobs clean` removes them",
        part.path().display()
    );
    Ok(Some(capacity))
}

/// Removes maps that one left that was killed while it made them.
fn remove_unfinished(part: &Part) -> anyhow::Result<()> {
    MAPS.iter()
        .try_for_each(|(name, _, _)| pins::remove_file(&part.object(name)))
}

/// Nanoseconds since boot, pauses included.
fn since_boot() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from);
    now.map_or(0, |now| u64::try_from(now.as_nanos()).unwrap_or(u64::MAX))
}

/// What the kernel says of the programs of `ebpf` that are loaded.
fn program_infos(ebpf: &Ebpf) -> Vec<ProgramInfo> {
    let timed = timed();
    ebpf.programs()
        .filter_map(|(name, program)| Some(program_info(name, &program.info().ok()?, timed)))
        .collect()
}

/// Whether the kernel counts runs of programs and their time.
pub(super) fn timed() -> bool {
    fs::read_to_string("/proc/sys/kernel/bpf_stats_enabled").is_ok_and(|text| text.trim() == "1")
}

/// What the kernel says of one program.
pub(super) fn program_info(
    name: &str,
    info: &aya::programs::ProgramInfo,
    timed: bool,
) -> ProgramInfo {
    ProgramInfo {
        name: name.to_owned(),
        runs: timed.then(|| info.run_count()),
        run_ns: timed.then(|| u64::try_from(info.run_time().as_nanos()).unwrap_or(u64::MAX)),
        missed: info.fd().ok().and_then(|fd| missed(&fd)),
    }
}

/// Runs that the kernel left out because they would have interrupted another run
/// of the same program; `None` before Linux 5.12.
fn missed(program: &aya::programs::ProgramFd) -> Option<u64> {
    let path = format!("/proc/self/fdinfo/{}", program.as_fd().as_raw_fd());
    std::fs::read_to_string(path)
        .ok()?
        .lines()
        .find_map(|line| line.strip_prefix("recursion_misses:"))?
        .trim()
        .parse()
        .ok()
}

/// CPUs that this machine can have: columns of the counters.
pub(super) fn cpus() -> anyhow::Result<u32> {
    let cpus = nr_cpus()
        .map_err(|(path, error)| anyhow::Error::new(error).context(format!("read {path}")))?;
    Ok(u32::try_from(cpus)?)
}

fn classifier<'a>(ebpf: &'a mut Ebpf, name: &str) -> anyhow::Result<&'a mut SchedClassifier> {
    Ok(ebpf
        .program_mut(name)
        .with_context(|| format!("the object has no program {name}"))?
        .try_into()?)
}

/// What the programs may log, as aya-log numbers it: nothing unless asked.
fn log_level() -> u8 {
    let level = match log::max_level() {
        LevelFilter::Off | LevelFilter::Error => 0,
        LevelFilter::Warn => aya_log::Level::Warn as u8,
        LevelFilter::Info => aya_log::Level::Info as u8,
        LevelFilter::Debug => aya_log::Level::Debug as u8,
        LevelFilter::Trace => aya_log::Level::Trace as u8,
    };
    // Without -v the logger still shows warnings of our own; the programs'
    // messages are for those who ask.
    if log::log_enabled!(target: "netobs_ebpf", log::Level::Info) {
        level
    } else {
        0
    }
}

/// Passes on what the programs log.
#[expect(
    unsafe_code,
    reason = "tokio wants a promise about the file descriptor"
)]
fn follow_log(ebpf: &mut Ebpf) -> anyhow::Result<JoinHandle<()>> {
    let logger = EbpfLogger::init(ebpf).context("follow the programs' log")?;
    // SAFETY: the logger owns the ring buffer's descriptor, which stays open
    // and the same until the logger is dropped, with this `AsyncFd`.
    let mut logger = unsafe { AsyncFd::register_with_interest(logger, Interest::READABLE) }
        .map_err(|error| anyhow::anyhow!("watch the programs' log: {error}"))?;
    Ok(tokio::spawn(async move {
        while let Ok(mut guard) = logger.readable_mut().await {
            guard.get_inner_mut().flush();
            guard.clear_ready();
        }
    }))
}
