//! The parts of the backend: which of them this kernel allows, and how they are attached.

use std::{
    collections::{BTreeMap, HashMap},
    fs::{self, File},
    io, panic,
    path::Path,
    thread,
};

use anyhow::Context as _;
use aya::{
    Btf, Ebpf,
    programs::{
        BtfTracePoint, CgroupAttachMode, CgroupSockAddr, Program, ProgramError, ProgramType,
        links::FdLink,
    },
    sys::{BpfHelper, is_helper_supported},
};
use log::debug;
use netobs_common::routes::{
    ABSENT, FIELDS_CALL, FIELDS_DROP, FIELDS_IPV4, FIELDS_IPV6, FIELDS_RECEIVE, Field, names,
};

use super::limited;
use crate::{
    bpf::{
        kernel_types::KernelTypes,
        pins::{self, Part},
        raw_links,
    },
    model::sample::Warning,
    world::cgroup,
};

/// A part that works or not by itself.
pub(super) struct Feature {
    pub(super) program: &'static str,
    pub(super) tracepoint: &'static str,
    pub(super) fields: &'static [Field],
    /// What is missing without it.
    pub(super) purpose: &'static str,
}

/// The parts of the `tracepoint` backend.
pub(super) const FEATURES: [Feature; 4] = [
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
pub(super) const SENDER_PROGRAMS: [&str; 4] = [
    names::PROG_CONNECT4,
    names::PROG_CONNECT6,
    names::PROG_SENDMSG4,
    names::PROG_SENDMSG6,
];

/// What can be observed on this kernel, and where its structures have what is needed.
pub(super) fn usable(
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
pub(super) fn reads_calls(offsets: &BTreeMap<&'static str, u32>) -> bool {
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

/// Loads and attaches the programs of `features`, each on a thread of its own: the verifier
/// takes its time over some of them, and looks at several at once.
pub(super) fn attach_tracepoints<'a>(
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

pub(super) fn attach_senders(ebpf: &mut Ebpf, part: Option<&Part>) -> anyhow::Result<()> {
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

/// Ends the link of `name` that is pinned, if there is one: with another beside it
/// lookups would count twice.
pub(super) fn end(part: &Part, name: &str) -> anyhow::Result<()> {
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
