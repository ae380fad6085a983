//! What observing costs, what it missed, and the process that does it.

use std::fmt;

use prometheus_client::{
    encoding::{DescriptorEncoder, NoLabelSet},
    metrics::MetricType,
    registry::Unit,
};

use super::families::Family;
use crate::model::{
    exporter::Exposition,
    process::Process,
    sample::{Lags, Observer},
};

pub(super) fn encode(
    encoder: &mut DescriptorEncoder<'_>,
    exposition: &Exposition,
    process: Option<&Process>,
) -> fmt::Result {
    let observer = &exposition.observer;
    Family::new("netobs_build", "This netobs").infos(
        encoder,
        [[
            ("version", env!("CARGO_PKG_VERSION")),
            ("route_backend", observer.backend.as_str()),
        ]],
    )?;
    Family::new("netobs_namespaces", "Namespaces that are shown").gauges(
        encoder,
        exposition
            .namespaces
            .iter()
            .map(|(kind, count)| ([("kind", kind.as_str())], *count)),
    )?;
    Family::new(
        "netobs_interfaces",
        "Interfaces of these, by how the programs hang there; none: they do not",
    )
    .gauges(
        encoder,
        exposition
            .interfaces
            .iter()
            .map(|(hook, count)| ([("hook", *hook)], *count)),
    )?;
    Family::new(
        "netobs_warnings",
        "Doubts that stand, by code: `netobs watch` tells them in words",
    )
    .gauges(
        encoder,
        exposition
            .warnings
            .iter()
            .map(|(code, count)| ([("code", code.as_str())], *count)),
    )?;
    programs(encoder, observer)?;
    maps(encoder, observer)?;
    Family::new(
        "netobs_lost",
        "Packets that the programs saw and could not credit to an interface",
    )
    .of("packets")
    .counters(encoder, [([("", ""); 0], observer.lost)])?;
    lags(encoder, &observer.lags)?;
    process.map_or(Ok(()), |process| this_process(encoder, process))
}

fn programs(encoder: &mut DescriptorEncoder<'_>, observer: &Observer) -> fmt::Result {
    let programs = &observer.programs;
    let runs = programs
        .iter()
        .filter_map(|p| Some(([("program", p.name.as_str())], p.runs?)));
    Family::new(
        "netobs_program_runs",
        "Runs of an eBPF program; only with kernel.bpf_stats_enabled",
    )
    .counters(encoder, runs)?;
    let times = programs
        .iter()
        .filter_map(|p| Some(([("program", p.name.as_str())], p.run_ns? as f64 / 1e9)));
    Family::new("netobs_program_run", "Time in these runs")
        .unit(Unit::Seconds)
        .counters(encoder, times)?;
    let missed = programs
        .iter()
        .filter_map(|p| Some(([("program", p.name.as_str())], p.missed?)));
    Family::new(
        "netobs_program_missed_runs",
        "Runs that the kernel left out since they would have interrupted another",
    )
    .counters(encoder, missed)
}

fn maps(encoder: &mut DescriptorEncoder<'_>, observer: &Observer) -> fmt::Result {
    let maps = &observer.maps;
    let by_map = |of: fn(&crate::model::sample::MapInfo) -> u64| {
        maps.iter()
            .map(move |map| ([("map", map.name.as_str())], of(map)))
    };
    Family::new("netobs_map_entries", "Entries of an eBPF map in use")
        .gauges(encoder, by_map(|map| map.entries))?;
    Family::new("netobs_map_max_entries", "Entries that fit")
        .gauges(encoder, by_map(|map| map.capacity))?;
    Family::new("netobs_map_full", "How often something did not fit")
        .counters(encoder, by_map(|map| map.full))
}

fn lags(encoder: &mut DescriptorEncoder<'_>, lags: &Lags) -> fmt::Result {
    let mut metric = encoder.encode_descriptor(
        "netobs_attach_lag",
        "How long interfaces that came up waited for the programs; 0: these were there first",
        Some(&Unit::Seconds),
        MetricType::Histogram,
    )?;
    let bounds = Lags::BOUNDS.iter().map(|bound| bound.as_secs_f64());
    let mut buckets: Vec<(f64, u64)> = bounds.zip(lags.within).collect();
    let longer = lags.count - lags.within.iter().sum::<u64>();
    buckets.push((f64::INFINITY, longer));
    metric.encode_histogram::<NoLabelSet>(lags.sum.as_secs_f64(), lags.count, &buckets, None)
}

/// By the names that all clients of Prometheus have.
/// <https://prometheus.io/docs/instrumenting/writing_clientlibs/#process-metrics>
fn this_process(encoder: &mut DescriptorEncoder<'_>, process: &Process) -> fmt::Result {
    const NONE: [(&str, &str); 0] = [];
    Family::new("process_cpu", "User and system CPU time")
        .unit(Unit::Seconds)
        .counters(encoder, [(NONE, process.cpu.as_secs_f64())])?;
    let bytes = [
        (
            "process_resident_memory",
            "Resident memory",
            process.resident_bytes,
        ),
        (
            "process_virtual_memory",
            "Virtual memory",
            process.virtual_bytes,
        ),
    ];
    for (name, help, value) in bytes {
        Family::new(name, help)
            .unit(Unit::Bytes)
            .gauges(encoder, [(NONE, value)])?;
    }
    let numbers = [
        (
            "process_open_fds",
            "Open file descriptors",
            process.open_files,
        ),
        (
            "process_max_fds",
            "How many there can be",
            process.max_files,
        ),
        ("process_threads", "Threads", process.threads),
    ];
    for (name, help, value) in numbers {
        Family::new(name, help).gauges(encoder, [(NONE, value)])?;
    }
    Family::new(
        "process_start_time",
        "When the process started, since the epoch",
    )
    .unit(Unit::Seconds)
    .gauges(encoder, [(NONE, process.started)])
}
