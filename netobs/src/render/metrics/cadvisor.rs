//! The names that cAdvisor has for the kernel's counters of containers, so that what was
//! made for them works.
//! <https://github.com/google/cadvisor/blob/master/docs/storage/prometheus.md>

use std::fmt;

use prometheus_client::{encoding::DescriptorEncoder, registry::Unit};

use super::families::Family;
use crate::model::{
    counters::{Directions, KernelCounters},
    exporter::KernelSeries,
    sample::Kind,
};

type Quantity = (&'static str, &'static str, fn(&KernelCounters) -> u64);

const QUANTITIES: [Quantity; 4] = [
    ("", "bytes", |c| c.bytes),
    ("", "packets", |c| c.packets),
    ("", "errors", |c| c.errors),
    ("_packets", "dropped", |c| c.dropped),
];

type Direction = (
    &'static str,
    fn(&Directions<KernelCounters>) -> &KernelCounters,
);

const DIRECTIONS: [Direction; 2] = [("receive", |c| &c.rx), ("transmit", |c| &c.tx)];

pub(super) fn encode(encoder: &mut DescriptorEncoder<'_>, kernel: &[KernelSeries]) -> fmt::Result {
    let ids: Vec<String> = kernel.iter().map(id).collect();
    for (direction, of) in DIRECTIONS {
        for (before, unit, count) in QUANTITIES {
            let name = format!("container_network_{direction}{before}");
            let help = format!("The kernel's count of {unit} ({direction})");
            let unit = match unit {
                "bytes" => Unit::Bytes,
                other => Unit::Other(other.to_owned()),
            };
            let series = kernel.iter().zip(&ids).map(|(series, id)| {
                let labels = [
                    ("id", id.as_str()),
                    ("image", &*series.image),
                    ("interface", &*series.interface),
                    ("name", container_name(series)),
                ];
                (labels, count(of(&series.counters)))
            });
            Family::new(&name, &help)
                .unit(unit)
                .counters(encoder, series)?;
        }
    }
    Ok(())
}

/// cAdvisor's id is a cgroup: the root for the host.
fn id(series: &KernelSeries) -> String {
    match series.kind {
        Kind::Host => "/".to_owned(),
        Kind::Container => format!("/docker/{}", series.id),
        Kind::Named | Kind::Process => format!("/netns/{}", series.name),
    }
}

/// Only containers have one.
fn container_name(series: &KernelSeries) -> &str {
    match series.kind {
        Kind::Container => &series.name,
        Kind::Host | Kind::Named | Kind::Process => "",
    }
}
