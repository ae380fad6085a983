//! CSV (RFC 4180): a header, then one line per route and one per failure.

use std::io;

use crate::{
    model::{
        book::Entry,
        route::Hop,
        routing::{FailureShown, RoutingSample},
        sample::Namespace,
    },
    render::{columns::Columns, json::timestamp, names, text::harmless},
};

const HEADER: [&str; 24] = [
    "time",
    "namespace",
    "cookie",
    "inode",
    "state",
    "record",
    "family",
    "table",
    "prefix",
    "type",
    "gateway",
    "interface",
    "protocol",
    "scope",
    "metric",
    "present",
    "match",
    "hits_output",
    "hits_input",
    "hits_forward",
    "origin",
    "class",
    "reason",
    "count",
];

/// The names of all fields.
#[must_use]
pub fn csv_fields() -> Vec<String> {
    HEADER.map(str::to_owned).into()
}

/// Writes the header.
///
/// # Errors
/// Where `out` fails.
pub fn csv_header(columns: &Columns, out: &mut dyn io::Write) -> io::Result<()> {
    columns.record(&csv_fields(), out)
}

/// Writes the routes and failures of `sample`. What a record has no use for is
/// empty.
///
/// # Errors
/// Where `out` fails.
pub fn csv(sample: &RoutingSample, columns: &Columns, out: &mut dyn io::Write) -> io::Result<()> {
    let time = timestamp(sample.time);
    for routing in &sample.namespaces {
        let head = head(&time, Some(&routing.namespace));
        for entry in routing.routes.iter().flatten() {
            let route = entry.route.as_ref();
            let or_empty = |text: Option<String>| text.unwrap_or_default();
            let fields = [
                "route".to_owned(),
                entry.family.as_str().to_owned(),
                or_empty(entry.table.map(|table| table.to_string())),
                or_empty(entry.prefix.map(|prefix| prefix.to_string())),
                or_empty((entry.kind.0 != 0).then(|| entry.kind.name())),
                joined(entry, |hop| hop.gateway.map(|gateway| gateway.to_string())),
                joined(entry, |hop| {
                    names::interface(hop.ifindex, &routing.interfaces).map(|name| harmless(&name))
                }),
                or_empty(route.map(|route| names::protocol(route.protocol))),
                or_empty(route.map(|route| names::scope(route.scope))),
                or_empty(route.map(|route| route.metric.to_string())),
                entry.present.to_string(),
                entry.matched.as_str().to_owned(),
            ];
            let hits = entry.hits;
            let mut line = head.clone();
            line.extend(fields);
            line.extend([hits.output, hits.input, hits.forward].map(|count| count.to_string()));
            line.resize(HEADER.len(), String::new());
            columns.record(&line, out)?;
        }
        for shown in &routing.failures {
            columns.record(&failure(head.clone(), shown), out)?;
        }
    }
    for shown in &sample.unattributed_failures {
        columns.record(&failure(head(&time, None), shown), out)?;
    }
    Ok(())
}

/// What all next hops have for a field, with a space between.
fn joined(entry: &Entry, field: impl Fn(&Hop) -> Option<String>) -> String {
    let all: Vec<String> = entry.hops.iter().filter_map(field).collect();
    all.join(" ")
}

/// Nobody's failures have no namespace.
fn head(time: &str, ns: Option<&Namespace>) -> Vec<String> {
    let mut head = vec![time.to_owned()];
    match ns {
        Some(ns) => head.extend([
            harmless(&ns.name),
            ns.cookie.map(|c| c.to_string()).unwrap_or_default(),
            ns.inode.map(|i| i.to_string()).unwrap_or_default(),
            ns.state.as_str().to_owned(),
        ]),
        None => head.resize(5, String::new()),
    }
    head
}

fn failure(mut line: Vec<String>, shown: &FailureShown) -> Vec<String> {
    let failure = &shown.failure;
    let (family, bits) = if failure.destination.is_ipv4() {
        ("ipv4", 32)
    } else {
        ("ipv6", 128)
    };
    line.extend(["failure".to_owned(), family.to_owned(), String::new()]);
    line.push(format!("{}/{bits}", failure.destination));
    line.resize(20, String::new());
    line.extend([
        failure.origin.as_str().to_owned(),
        failure.class.as_str().to_owned(),
        shown.reason.clone().unwrap_or_default(),
        failure.count.to_string(),
    ]);
    line
}
