//! `netobs.sample/1` and `netobs.list/1`: what scripts rely on. The types here
//! mirror the schema in `docs/`; everything inside may change without them.

use std::{
    collections::{BTreeMap, HashMap},
    io::{self, Write as _},
    time::SystemTime,
};

use serde::{Serialize, Serializer};
use serde_json::value::{RawValue, to_raw_value};

use super::text::harmless_json;
use crate::model::{
    baseline::Baseline,
    counters::{Counters, Directions, Family, KernelCounters, Tally},
    lookups::{Behalf, Decisions, Failures, Lookups, Origins, Unattributed},
    sample::{Host, Interface, Member, Namespace, NsKey, Observer, Peer, State, Warning},
    view::{LookupRate, Rate, Row, View},
};

/// Schema of `watch`.
pub const SAMPLE: &str = "netobs.sample/1";
/// Schema of `list`.
pub const LIST: &str = "netobs.list/1";

/// Writes `view` as one line.
///
/// # Errors
/// Where `out` fails.
pub fn sample(view: &View<'_>, out: &mut dyn io::Write) -> io::Result<()> {
    Lines::default().sample(view, out)
}

/// Line after line. Most namespaces are as they were a moment ago, and so is what is
/// written of them.
#[derive(Default)]
pub struct Lines(HashMap<NsKey, Written>);

/// What was written of a row.
struct Written {
    rates: Option<Directions<Rate>>,
    lookups: Option<LookupRate>,
    text: Box<RawValue>,
}

impl Written {
    fn new(row: &Row<'_>) -> io::Result<Self> {
        Ok(Self {
            rates: row.rates,
            lookups: row.lookups,
            text: to_raw_value(&JsonNamespace::from(row))?,
        })
    }

    /// Whether the same would be written of `row`, given that this was of the one before.
    fn is_of(&self, row: &Row<'_>) -> bool {
        self.rates == row.rates && self.lookups == row.lookups && row.is_as_before()
    }
}

impl Lines {
    /// Writes `view`, which compares with the one that was written before, as one line.
    ///
    /// # Errors
    /// Where `out` fails.
    pub fn sample(&mut self, view: &View<'_>, out: &mut dyn io::Write) -> io::Result<()> {
        let mut last = std::mem::take(&mut self.0);
        let written = |row: &Row<'_>| {
            let key = row.namespace.key;
            let known = last.remove(&key).filter(|known| known.is_of(row));
            Ok((key, known.map_or_else(|| Written::new(row), Ok)?))
        };
        let written: Vec<(NsKey, Written)> =
            view.rows.iter().map(written).collect::<io::Result<_>>()?;
        let rows = written.iter().map(|(_, written)| &*written.text);
        line(&JsonSample::new(view, rows.collect()), out)?;
        let up = view.rows.iter().zip(written);
        let up = up.filter(|(row, _)| row.namespace.state == State::Up);
        self.0 = up.map(|(_, written)| written).collect();
        Ok(())
    }
}

/// Writes the namespaces of `netobs list` as one line.
///
/// # Errors
/// Where `out` fails.
pub fn list(
    time: SystemTime,
    host: &Host,
    namespaces: &[Namespace],
    warnings: &[Warning],
    out: &mut dyn io::Write,
) -> io::Result<()> {
    line(
        &JsonList {
            schema: LIST,
            time: timestamp(time),
            host,
            namespaces: namespaces.iter().map(JsonIdentity::from).collect(),
            warnings,
        },
        out,
    )
}

pub(super) fn line(value: &impl Serialize, out: &mut dyn io::Write) -> io::Result<()> {
    let mut harmless = Harmless {
        waiting: Vec::with_capacity(2 * CHUNK),
        out,
    };
    serde_json::to_writer(&mut harmless, value)?;
    harmless.flush()?;
    out.write_all(b"\n")
}

/// Bytes that are made harmless together.
const CHUNK: usize = 32 << 10;

/// Makes JSON harmless on its way. Each piece that serde_json writes is text: it cuts
/// strings only where it escapes something.
struct Harmless<'a> {
    waiting: Vec<u8>,
    out: &'a mut dyn io::Write,
}

impl io::Write for Harmless<'_> {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        self.waiting.extend_from_slice(piece);
        if self.waiting.len() >= CHUNK {
            self.flush()?;
        }
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let text = str::from_utf8(&self.waiting).map_err(io::Error::other)?;
        self.out.write_all(harmless_json(text).as_bytes())?;
        self.waiting.clear();
        Ok(())
    }
}

/// RFC 3339 in UTC with microseconds.
#[must_use]
pub fn timestamp(time: SystemTime) -> String {
    humantime::format_rfc3339_micros(time).to_string()
}

#[derive(Serialize)]
struct JsonSample<'a> {
    schema: &'static str,
    time: String,
    interval_s: f64,
    host: &'a Host,
    namespaces: Vec<&'a RawValue>,
    unattributed: JsonUnattributed,
    observer: JsonObserver<'a>,
    warnings: &'a [Warning],
}

#[derive(Serialize)]
pub(super) struct JsonUnattributed {
    route_lookups: Option<u64>,
    failed_lookups: Option<u64>,
}

#[derive(Serialize)]
struct JsonDecisions {
    #[serde(flatten)]
    all: Origins,
    failed: u64,
}

#[derive(Serialize)]
pub(super) struct JsonLookups<'a> {
    total: u64,
    failed: u64,
    ipv4: Option<JsonDecisions>,
    ipv6: Option<JsonDecisions>,
    failures: Failures,
    on_behalf: Option<&'a BTreeMap<String, u64>>,
    by_host: Option<u64>,
}

#[derive(Serialize)]
pub(super) struct JsonObserver<'a> {
    route_backend: &'static str,
    programs: &'a [crate::model::sample::ProgramInfo],
    maps: &'a [crate::model::sample::MapInfo],
    attach_lag_s: JsonLags,
    pinned: Option<String>,
    lost: u64,
}

#[derive(Serialize)]
struct JsonNamespace<'a> {
    #[serde(flatten)]
    identity: JsonHead<'a>,
    #[serde(serialize_with = "interfaces")]
    interfaces: &'a [Interface],
    rx: Option<JsonCounters>,
    tx: Option<JsonCounters>,
    route_lookups: Option<JsonLookups<'a>>,
    rates: Option<JsonRates>,
}

#[derive(Serialize)]
pub(super) struct JsonHead<'a> {
    name: &'a str,
    cookie: Option<String>,
    inode: Option<u64>,
    kind: &'static str,
    state: &'static str,
    reason: Option<&'a str>,
    members: &'a [Member],
}

#[derive(Serialize)]
struct JsonInterfaceHead<'a> {
    name: Option<&'a str>,
    ifindex: Option<u32>,
    mac: Option<&'a str>,
    addresses: &'a [String],
    peer: Option<&'a Peer>,
}

#[derive(Serialize)]
struct JsonInterface<'a> {
    #[serde(flatten)]
    head: JsonInterfaceHead<'a>,
    hook: &'static str,
    observed_since: Option<String>,
    reason: Option<&'a str>,
    rx: Option<JsonCounters>,
    tx: Option<JsonCounters>,
    kernel: Option<Directions<KernelCounters>>,
    before_attach: Option<Directions<JsonBefore>>,
    attach_lag_s: Option<f64>,
    unaccounted: Option<Directions<i64>>,
}

#[derive(Serialize)]
struct JsonLags {
    count: u64,
    sum: f64,
    max: f64,
}

#[derive(Serialize)]
struct JsonBefore {
    packets: u64,
    bytes: u64,
}

#[derive(Serialize)]
struct JsonCounters {
    packets: u64,
    bytes: u64,
    segments: u64,
    wire_bytes: u64,
    ipv4: JsonFamily,
    ipv6: JsonFamily,
    arp: JsonClass,
    other: JsonClass,
    tcp_flags: JsonFlags,
    broadcast: u64,
    multicast: u64,
    fragments: u64,
}

#[derive(Serialize)]
struct JsonFamily {
    tcp: JsonClass,
    udp: JsonClass,
    icmp: JsonClass,
    other: JsonClass,
}

#[derive(Serialize)]
struct JsonClass {
    packets: u64,
    bytes: u64,
    segments: u64,
}

#[derive(Serialize)]
struct JsonFlags {
    syn: u64,
    fin: u64,
    rst: u64,
}

#[derive(Serialize)]
struct JsonRates {
    rx_packets: f64,
    rx_bytes: f64,
    rx_segments: f64,
    tx_packets: f64,
    tx_bytes: f64,
    tx_segments: f64,
    route_lookups: Option<f64>,
    failed_lookups: Option<f64>,
}

#[derive(Serialize)]
struct JsonList<'a> {
    schema: &'static str,
    time: String,
    host: &'a Host,
    namespaces: Vec<JsonIdentity<'a>>,
    warnings: &'a [Warning],
}

#[derive(Serialize)]
struct JsonIdentity<'a> {
    #[serde(flatten)]
    head: JsonHead<'a>,
    interfaces: Vec<JsonInterfaceHead<'a>>,
}

fn interfaces<S: Serializer>(all: &[Interface], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(all.iter().map(JsonInterface::from))
}

impl<'a> JsonSample<'a> {
    fn new(view: &'a View<'a>, namespaces: Vec<&'a RawValue>) -> Self {
        let sample = view.sample;
        Self {
            schema: SAMPLE,
            time: timestamp(sample.time),
            interval_s: view.interval.as_secs_f64(),
            host: &sample.host,
            namespaces,
            unattributed: sample.unattributed.into(),
            observer: (&sample.observer).into(),
            warnings: &sample.warnings,
        }
    }
}

impl<'a> From<&'a Row<'a>> for JsonNamespace<'a> {
    fn from(row: &'a Row<'a>) -> Self {
        Self {
            identity: row.namespace.into(),
            interfaces: &row.namespace.interfaces,
            rx: row.totals.as_ref().map(|totals| (&totals.rx).into()),
            tx: row.totals.as_ref().map(|totals| (&totals.tx).into()),
            route_lookups: JsonLookups::of(row.namespace.lookups, &row.namespace.behalf),
            rates: row.rates.map(|rates| JsonRates {
                rx_packets: rates.rx.packets,
                rx_bytes: rates.rx.bytes,
                rx_segments: rates.rx.segments,
                tx_packets: rates.tx.packets,
                tx_bytes: rates.tx.bytes,
                tx_segments: rates.tx.segments,
                route_lookups: row.lookups.map(|lookups| lookups.total),
                failed_lookups: row.lookups.map(|lookups| lookups.failed),
            }),
        }
    }
}

impl<'a> JsonLookups<'a> {
    /// Of a namespace; `None` where its lookups are not observed.
    pub(super) fn of(lookups: Option<Lookups>, behalf: &'a Behalf) -> Option<Self> {
        let lookups = lookups?;
        Some(Self {
            total: lookups.total(),
            failed: lookups.failed(),
            ipv4: lookups.ipv4.map(Into::into),
            ipv6: lookups.ipv6.map(Into::into),
            failures: lookups.failures,
            on_behalf: behalf.on_behalf.as_ref(),
            by_host: behalf.by_host,
        })
    }
}

impl From<Decisions> for JsonDecisions {
    fn from(decisions: Decisions) -> Self {
        Self {
            all: decisions.all,
            failed: decisions.failed.total(),
        }
    }
}

impl<'a> From<&'a Observer> for JsonObserver<'a> {
    fn from(observer: &'a Observer) -> Self {
        Self {
            route_backend: observer.backend.as_str(),
            programs: &observer.programs,
            maps: &observer.maps,
            attach_lag_s: JsonLags {
                count: observer.lags.count,
                sum: observer.lags.sum.as_secs_f64(),
                max: observer.lags.max.as_secs_f64(),
            },
            pinned: observer
                .pinned
                .as_ref()
                .map(|path| path.to_string_lossy().into_owned()),
            lost: observer.lost,
        }
    }
}

impl From<Option<Unattributed>> for JsonUnattributed {
    fn from(unattributed: Option<Unattributed>) -> Self {
        Self {
            route_lookups: unattributed.map(|u| u.lookups),
            failed_lookups: unattributed.map(|u| u.failed),
        }
    }
}

impl<'a> From<&'a Namespace> for JsonHead<'a> {
    fn from(ns: &'a Namespace) -> Self {
        Self {
            name: &ns.name,
            // A string: u64 does not survive every reader's numbers.
            cookie: ns.cookie.map(|cookie| cookie.to_string()),
            inode: ns.inode,
            kind: ns.kind.as_str(),
            state: ns.state.as_str(),
            reason: ns.reason.as_deref(),
            members: &ns.members,
        }
    }
}

impl<'a> From<&'a Namespace> for JsonIdentity<'a> {
    fn from(ns: &'a Namespace) -> Self {
        Self {
            head: ns.into(),
            interfaces: ns.interfaces.iter().map(JsonInterfaceHead::from).collect(),
        }
    }
}

impl<'a> From<&'a Interface> for JsonInterfaceHead<'a> {
    fn from(interface: &'a Interface) -> Self {
        Self {
            name: interface.name.as_deref(),
            ifindex: interface.ifindex,
            mac: interface.mac.as_deref(),
            addresses: &interface.addresses,
            peer: interface.peer.as_ref(),
        }
    }
}

impl<'a> From<&'a Interface> for JsonInterface<'a> {
    fn from(interface: &'a Interface) -> Self {
        let counters = interface.counters.as_ref();
        Self {
            head: interface.into(),
            hook: interface.hook.as_str(),
            observed_since: interface.observed_since.map(timestamp),
            reason: interface.reason.as_deref(),
            rx: counters.map(|counters| (&counters.rx).into()),
            tx: counters.map(|counters| (&counters.tx).into()),
            kernel: interface.kernel,
            attach_lag_s: interface.attach_lag.map(|lag| lag.as_secs_f64()),
            before_attach: interface
                .before_attach
                .map(|before| before.map(JsonBefore::from)),
            unaccounted: interface.unaccounted(),
        }
    }
}

impl From<Baseline> for JsonBefore {
    fn from(baseline: Baseline) -> Self {
        Self {
            packets: baseline.packets,
            bytes: baseline.bytes,
        }
    }
}

impl From<&Counters> for JsonCounters {
    fn from(counters: &Counters) -> Self {
        let total = counters.total();
        Self {
            packets: total.packets,
            bytes: total.bytes,
            segments: total.segments,
            wire_bytes: total.wire_bytes,
            ipv4: counters.ipv4().into(),
            ipv6: counters.ipv6().into(),
            arp: counters.arp().into(),
            other: counters.other().into(),
            tcp_flags: JsonFlags {
                syn: counters.syn,
                fin: counters.fin,
                rst: counters.rst,
            },
            broadcast: counters.broadcast,
            multicast: counters.multicast,
            fragments: counters.fragments,
        }
    }
}

impl From<Family<'_>> for JsonFamily {
    fn from(family: Family<'_>) -> Self {
        Self {
            tcp: family.tcp.into(),
            udp: family.udp.into(),
            icmp: family.icmp.into(),
            other: family.other.into(),
        }
    }
}

impl From<&Tally> for JsonClass {
    fn from(tally: &Tally) -> Self {
        Self {
            packets: tally.packets,
            bytes: tally.bytes,
            segments: tally.segments,
        }
    }
}
