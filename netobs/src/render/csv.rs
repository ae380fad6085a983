//! CSV (RFC 4180): a header, then one line per namespace and sample. A header
//! is for scripts: fields are added at the end, and none changes its name.
//!
//! Names are written as on the terminal, with control characters escaped:
//! quoting alone would leave them whole for the next `cat`. JSON has them as
//! they are.

use std::io;

use super::{columns::Columns, json::timestamp, text::harmless};
use crate::model::{
    counters::{Counters, Tally},
    sample::Namespace,
    view::{Rate, Row, View},
};

const HEAD: [&str; 6] = ["time", "namespace", "cookie", "inode", "kind", "state"];
const CLASSES: [&str; 10] = [
    "ipv4_tcp",
    "ipv4_udp",
    "ipv4_icmp",
    "ipv4_other",
    "ipv6_tcp",
    "ipv6_udp",
    "ipv6_icmp",
    "ipv6_other",
    "arp",
    "other",
];
const CLASS_FIELDS: [&str; 3] = ["packets", "bytes", "segments"];
const TOTALS: [&str; 4] = ["packets", "bytes", "segments", "wire_bytes"];
const EXTRAS: [&str; 6] = [
    "tcp_syn",
    "tcp_fin",
    "tcp_rst",
    "broadcast",
    "multicast",
    "fragments",
];
const LOOKUPS: [&str; 4] = [
    "route_lookups",
    "failed_lookups",
    "route_lookups_per_s",
    "failed_lookups_per_s",
];
const RATES: [&str; 3] = ["packets_per_s", "bytes_per_s", "segments_per_s"];

const LIST: [&str; 11] = [
    "namespace",
    "cookie",
    "inode",
    "kind",
    "interface",
    "ifindex",
    "mac",
    "peer",
    "peer_ifindex",
    "master",
    "addresses",
];

/// The names of all fields of a sample.
#[must_use]
pub fn sample_fields() -> Vec<String> {
    let mut fields: Vec<String> = HEAD.map(str::to_owned).into();
    for direction in ["rx", "tx"] {
        let mut add = |name: &str| fields.push(format!("{direction}_{name}"));
        TOTALS.iter().for_each(|name| add(name));
        for class in CLASSES {
            for field in CLASS_FIELDS {
                add(&format!("{class}_{field}"));
            }
        }
        EXTRAS.iter().for_each(|name| add(name));
        RATES.iter().for_each(|name| add(name));
    }
    fields.extend(LOOKUPS.map(str::to_owned));
    fields
}

/// Writes the header.
///
/// # Errors
/// Where `out` fails.
pub fn header(columns: &Columns, out: &mut dyn io::Write) -> io::Result<()> {
    columns.record(&sample_fields(), out)
}

/// Writes the rows of `view`.
///
/// # Errors
/// Where `out` fails.
pub fn sample(view: &View<'_>, columns: &Columns, out: &mut dyn io::Write) -> io::Result<()> {
    let time = timestamp(view.sample.time);
    columns.records(view.rows.iter().map(|row| fields(&time, row)), out)
}

fn fields(time: &str, row: &Row<'_>) -> Vec<String> {
    let ns = row.namespace;
    let mut fields = vec![
        time.to_owned(),
        harmless(&ns.name),
        ns.cookie.map(|c| c.to_string()).unwrap_or_default(),
        ns.inode.map(|i| i.to_string()).unwrap_or_default(),
        ns.kind.as_str().to_owned(),
        ns.state.as_str().to_owned(),
    ];
    let totals = row.totals.as_ref();
    direction(totals.map(|t| &t.rx), row.rates.map(|r| r.rx), &mut fields);
    direction(totals.map(|t| &t.tx), row.rates.map(|r| r.tx), &mut fields);
    let count = |count: Option<u64>| count.map(|count| count.to_string()).unwrap_or_default();
    let rate = |rate: Option<f64>| rate.map(|rate| format!("{rate:.3}")).unwrap_or_default();
    fields.extend([
        count(ns.lookups.map(|lookups| lookups.total())),
        count(ns.lookups.map(|lookups| lookups.failed())),
        rate(row.lookups.map(|lookups| lookups.total)),
        rate(row.lookups.map(|lookups| lookups.failed)),
    ]);
    fields
}

/// What is not known is an empty field, never 0.
fn direction(counters: Option<&Counters>, rate: Option<Rate>, fields: &mut Vec<String>) {
    match counters {
        Some(counters) => {
            let total = counters.total();
            let mut add = |number: u64| fields.push(number.to_string());
            [total.packets, total.bytes, total.segments, total.wire_bytes]
                .into_iter()
                .for_each(&mut add);
            let (four, six) = (counters.ipv4(), counters.ipv6());
            let classes: [&Tally; 10] = [
                four.tcp,
                four.udp,
                four.icmp,
                four.other,
                six.tcp,
                six.udp,
                six.icmp,
                six.other,
                counters.arp(),
                counters.other(),
            ];
            for class in classes {
                [class.packets, class.bytes, class.segments]
                    .into_iter()
                    .for_each(&mut add);
            }
            [
                counters.syn,
                counters.fin,
                counters.rst,
                counters.broadcast,
                counters.multicast,
                counters.fragments,
            ]
            .into_iter()
            .for_each(&mut add);
        }
        None => {
            let unknown = TOTALS.len() + CLASSES.len() * CLASS_FIELDS.len() + EXTRAS.len();
            fields.resize(fields.len() + unknown, String::new());
        }
    }
    match rate {
        Some(rate) => fields
            .extend([rate.packets, rate.bytes, rate.segments].map(|value| format!("{value:.3}"))),
        None => fields.resize(fields.len() + RATES.len(), String::new()),
    }
}

/// The names of all fields of `netobs list`.
#[must_use]
pub fn list_fields() -> Vec<String> {
    LIST.map(str::to_owned).into()
}

/// Writes the interfaces of `netobs list`: a header, then one line each.
///
/// # Errors
/// Where `out` fails.
pub fn list(
    namespaces: &[Namespace],
    columns: &Columns,
    out: &mut dyn io::Write,
) -> io::Result<()> {
    columns.record(&list_fields(), out)?;
    for ns in namespaces {
        let head = [
            harmless(&ns.name),
            ns.cookie.map(|c| c.to_string()).unwrap_or_default(),
            ns.inode.map(|i| i.to_string()).unwrap_or_default(),
            ns.kind.as_str().to_owned(),
        ];
        // A namespace without interfaces has a line too.
        if ns.interfaces.is_empty() {
            let mut fields = head.to_vec();
            fields.resize(LIST.len(), String::new());
            columns.record(&fields, out)?;
        }
        for interface in &ns.interfaces {
            let peer = interface.peer.as_ref();
            let mut fields = head.to_vec();
            fields.extend([
                harmless(interface.name.as_deref().unwrap_or_default()),
                interface.ifindex.map(|i| i.to_string()).unwrap_or_default(),
                interface.mac.clone().unwrap_or_default(),
                harmless(peer.map(|p| p.name.as_str()).unwrap_or_default()),
                peer.map(|p| p.ifindex.to_string()).unwrap_or_default(),
                harmless(peer.and_then(|p| p.master.as_deref()).unwrap_or_default()),
                interface.addresses.join(" "),
            ]);
            columns.record(&fields, out)?;
        }
    }
    Ok(())
}
