//! Loads the programs and makes their maps.

use std::os::fd::{AsFd as _, AsRawFd as _};

use anyhow::Context as _;
use aya::{
    Ebpf, EbpfLoader, Pod, include_bytes_aligned,
    maps::{Array, HashMap, MapData, PerCpuArray},
    programs::SchedClassifier,
    util::nr_cpus,
};
use aya_log::EbpfLogger;
use log::LevelFilter;
use netobs_common::{Record, SlotEntry, SlotOwner, Stray, names, record_index};
use tokio::{
    io::{Interest, unix::AsyncFd},
    task::JoinHandle,
};

use super::counters::CounterMemory;
use crate::{
    model::sample::{MapInfo, ProgramInfo},
    world::limits,
};

/// Descriptors that a copy holds: maps, programs, types, the log.
pub const DESCRIPTORS: u64 = 12;
/// Entries of the array in front of the hash of interface indexes.
const NEAR_INDEXES: u32 = 65_536;

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
    /// Loads a copy.
    ///
    /// # Errors
    /// With the verifier's or the kernel's reason.
    pub fn load(capacity: Capacity) -> anyhow::Result<Self> {
        limits::room(DESCRIPTORS)?;
        let cpus = cpus()?;
        let records = record_index(capacity.slots, 0, 0, cpus);
        let log = log_level();
        let mut ebpf = EbpfLoader::new()
            .override_global(names::GLOBAL_CPUS, &cpus, true)
            .override_global(aya_log::LEVEL, &log, true)
            .map_max_entries(names::MAP_SLOTS, capacity.near)
            .map_max_entries(names::MAP_SLOTS_FAR, capacity.slots)
            .map_max_entries(names::MAP_COUNTERS, records)
            .map_max_entries(names::MAP_OWNERS, capacity.slots)
            .load(OBJECT)
            .context("create the maps")?;
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
            .context("map the counters into memory")?;
        Ok(Self {
            near: take(names::MAP_SLOTS)?.try_into()?,
            near_len: capacity.near,
            far: take(names::MAP_SLOTS_FAR)?.try_into()?,
            owners: take(names::MAP_OWNERS)?.try_into()?,
            stray: take(names::MAP_STRAY)?.try_into()?,
            counters,
            free: (0..capacity.slots).rev().collect(),
            generations: vec![0; capacity.slots as usize],
            full: 0,
            log: follower,
            ebpf,
        })
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
    pub fn take_slot(&mut self) -> Option<u32> {
        let slot = self.free.pop();
        match slot {
            Some(slot) => {
                self.counters.clear(slot);
                self.generations[slot as usize] += 1;
            }
            None => self.full += 1,
        }
        slot
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

    /// What the kernel says of the programs. Runs and time are counted only
    /// while `kernel.bpf_stats_enabled` is set.
    #[must_use]
    pub fn programs(&self) -> Vec<ProgramInfo> {
        program_infos(&self.ebpf)
    }
}

/// What the kernel says of the programs of `ebpf` that are loaded.
pub(super) fn program_infos(ebpf: &Ebpf) -> Vec<ProgramInfo> {
    let timed = std::fs::read_to_string("/proc/sys/kernel/bpf_stats_enabled")
        .is_ok_and(|text| text.trim() == "1");
    ebpf.programs()
        .filter_map(|(name, program)| {
            let info = program.info().ok()?;
            let missed = program.fd().ok().and_then(missed);
            let timed = timed.then_some(info);
            Some(ProgramInfo {
                name: name.to_owned(),
                runs: timed.as_ref().map(|info| info.run_count()),
                run_ns: timed
                    .as_ref()
                    .map(|info| u64::try_from(info.run_time().as_nanos()).unwrap_or(u64::MAX)),
                missed,
            })
        })
        .collect()
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
