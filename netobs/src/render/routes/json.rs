//! `netobs.routes/1`.

use std::{io, time::Duration};

use serde::Serialize;

use crate::{
    model::{
        book::{Entry, Hits},
        routing::{FailureShown, Routing, RoutingSample},
        sample::{Host, Warning},
    },
    render::{
        json::{JsonHead, JsonLookups, JsonObserver, JsonUnattributed, line, timestamp},
        names,
    },
};

/// The schema.
pub const SCHEMA: &str = "netobs.routes/1";

#[derive(Serialize)]
struct JsonSample<'a> {
    schema: &'static str,
    time: String,
    interval_s: f64,
    host: &'a Host,
    namespaces: Vec<JsonRouting<'a>>,
    unattributed: JsonUnattributedRouting,
    observer: JsonObserver<'a>,
    warnings: &'a [Warning],
}

#[derive(Serialize)]
struct JsonUnattributedRouting {
    #[serde(flatten)]
    totals: JsonUnattributed,
    failures: Vec<JsonFailure>,
}

#[derive(Serialize)]
struct JsonRouting<'a> {
    #[serde(flatten)]
    head: JsonHead<'a>,
    route_lookups: Option<JsonLookups<'a>>,
    routes: Option<Vec<JsonRoute>>,
    failures: Vec<JsonFailure>,
    failures_forgotten: u64,
    remarks: &'a [String],
}

#[derive(Serialize)]
struct JsonRoute {
    family: &'static str,
    table: Option<u32>,
    prefix: Option<String>,
    #[serde(rename = "type")]
    kind: Option<String>,
    gateway: Option<String>,
    interface: Option<String>,
    nexthops: Option<Vec<JsonHop>>,
    protocol: Option<String>,
    scope: Option<String>,
    metric: Option<u32>,
    source: Option<String>,
    present: bool,
    #[serde(rename = "match")]
    matched: &'static str,
    hits: JsonHits,
}

#[derive(Serialize)]
struct JsonHop {
    gateway: Option<String>,
    interface: Option<String>,
}

#[derive(Serialize)]
struct JsonHits {
    output: u64,
    input: u64,
    forward: u64,
}

#[derive(Serialize)]
struct JsonFailure {
    family: &'static str,
    origin: &'static str,
    class: &'static str,
    destination: String,
    reason: Option<String>,
    count: u64,
}

/// Writes `sample` as one line.
///
/// # Errors
/// Where `out` fails.
pub fn json(sample: &RoutingSample, interval: Duration, out: &mut dyn io::Write) -> io::Result<()> {
    line(
        &JsonSample {
            schema: SCHEMA,
            time: timestamp(sample.time),
            interval_s: interval.as_secs_f64(),
            host: &sample.host,
            namespaces: sample.namespaces.iter().map(JsonRouting::from).collect(),
            unattributed: JsonUnattributedRouting {
                totals: sample.unattributed.into(),
                failures: failures(&sample.unattributed_failures),
            },
            observer: (&sample.observer).into(),
            warnings: &sample.warnings,
        },
        out,
    )
}

impl<'a> From<&'a Routing> for JsonRouting<'a> {
    fn from(routing: &'a Routing) -> Self {
        let ns = &routing.namespace;
        Self {
            head: ns.into(),
            route_lookups: JsonLookups::of(ns.lookups, &ns.behalf),
            routes: routing
                .routes
                .as_ref()
                .map(|routes| routes.iter().map(|entry| route(entry, routing)).collect()),
            failures: failures(&routing.failures),
            failures_forgotten: routing.failures_forgotten,
            remarks: &routing.remarks,
        }
    }
}

fn route(entry: &Entry, routing: &Routing) -> JsonRoute {
    let Hits {
        output,
        input,
        forward,
    } = entry.hits;
    let route = entry.route.as_ref();
    let mut hops: Vec<JsonHop> = entry
        .hops
        .iter()
        .map(|hop| JsonHop {
            gateway: hop.gateway.map(|gateway| gateway.to_string()),
            interface: names::interface(hop.ifindex, &routing.interfaces),
        })
        .collect();
    let single = if hops.len() == 1 { hops.pop() } else { None };
    let (gateway, interface) = single.map_or((None, None), |hop| (hop.gateway, hop.interface));
    JsonRoute {
        family: entry.family.as_str(),
        table: entry.table,
        prefix: entry.prefix.map(|prefix| prefix.to_string()),
        kind: (entry.kind.0 != 0).then(|| entry.kind.name()),
        gateway,
        interface,
        nexthops: (!hops.is_empty()).then_some(hops),
        protocol: route.map(|route| names::protocol(route.protocol)),
        scope: route.map(|route| names::scope(route.scope)),
        metric: route.map(|route| route.metric),
        source: route.and_then(|route| route.source).map(|s| s.to_string()),
        present: entry.present,
        matched: entry.matched.as_str(),
        hits: JsonHits {
            output,
            input,
            forward,
        },
    }
}

fn failures(failures: &[FailureShown]) -> Vec<JsonFailure> {
    failures
        .iter()
        .map(|shown| {
            let failure = &shown.failure;
            JsonFailure {
                family: if failure.destination.is_ipv4() {
                    "ipv4"
                } else {
                    "ipv6"
                },
                origin: failure.origin.as_str(),
                class: failure.class.as_str(),
                destination: failure.destination.to_string(),
                reason: shown.reason.clone(),
                count: failure.count,
            }
        })
        .collect()
}
