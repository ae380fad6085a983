//! Routing decisions.

use std::fmt;

use prometheus_client::encoding::DescriptorEncoder;

use super::families::Family;
use crate::{
    model::{
        book::Hits,
        exporter::{Exposition, RouteLabels},
        lookups::{Origins, Outcomes, Results},
    },
    render::names,
};

pub(super) fn encode(encoder: &mut DescriptorEncoder<'_>, exposition: &Exposition) -> fmt::Result {
    let lookups = &exposition.lookups;
    let by_origin = lookups
        .iter()
        .flat_map(|(netns, lookups)| families(lookups).flat_map(move |of| outcomes(netns, of)));
    Family::new(
        "netobs_route_lookups",
        "Routing decisions of the kernel, by what they were for and how they ended",
    )
    .counters(encoder, by_origin)?;
    let by_class = lookups.iter().flat_map(|(netns, lookups)| {
        let failures = lookups.failures;
        let classes = [
            ("no_route", failures.no_route),
            ("unreachable", failures.unreachable),
            ("blackhole", failures.blackhole),
            ("prohibit", failures.prohibit),
            ("rp_filter", failures.rp_filter),
            ("martian", failures.martian),
        ];
        classes.map(|(class, count)| ([("netns", &**netns), ("class", class)], count))
    });
    Family::new(
        "netobs_route_lookup_failures",
        "Routing decisions that ended without a usable route, by reason",
    )
    .counters(encoder, by_class)?;
    let by_host = exposition
        .by_host
        .iter()
        .map(|(netns, count)| ([("netns", &**netns)], *count));
    Family::new(
        "netobs_route_lookups_by_host",
        "Routing decisions that the host took for what a namespace sent through it",
    )
    .counters(encoder, by_host)?;
    if let Some(unattributed) = exposition.unattributed {
        let ok = unattributed.lookups - unattributed.failed;
        let results = [
            ([("result", "ok")], ok),
            ([("result", "failed")], unattributed.failed),
        ];
        Family::new(
            "netobs_route_lookups_unattributed",
            "Routing decisions whose namespace cannot be told",
        )
        .counters(encoder, results)?;
    }
    let hits = exposition.hits.iter().flatten().flat_map(hits);
    Family::new(
        "netobs_route_hits",
        "Routing decisions that ended with this route; without a prefix: with a route that nobody knows, or \
         that found no room",
    )
    .counters(encoder, hits)
}

/// The families that are observed.
fn families(lookups: &Outcomes) -> impl Iterator<Item = (&'static str, Results)> {
    let ipv4 = lookups.ipv4.map(|of| ("ipv4", of));
    ipv4.into_iter().chain(lookups.ipv6.map(|of| ("ipv6", of)))
}

fn origins(of: Origins) -> [(&'static str, u64); 3] {
    [
        ("output", of.output),
        ("input", of.input),
        ("forward", of.forward),
    ]
}

fn outcomes<'a>(
    netns: &'a str,
    (family, of): (&'static str, Results),
) -> impl Iterator<Item = ([(&'static str, &'a str); 4], u64)> {
    let both = origins(of.ok).into_iter().zip(origins(of.failed));
    both.flat_map(move |((origin, ok), (_, failed))| {
        let results = [("ok", ok), ("failed", failed)];
        results.map(|(result, count)| {
            let labels = [
                ("netns", netns),
                ("family", family),
                ("origin", origin),
                ("result", result),
            ];
            (labels, count)
        })
    })
}

fn hits((labels, hits): &(RouteLabels, Hits)) -> Vec<(Vec<(&'static str, String)>, u64)> {
    let origins = [
        ("output", hits.output),
        ("input", hits.input),
        ("forward", hits.forward),
    ];
    // One at least, so that a route has a series before it is met.
    let met = |(origin, count): &(&str, u64)| *origin == "output" || *count > 0;
    origins
        .into_iter()
        .filter(met)
        .map(|(origin, count)| {
            let mut all = vec![("netns", labels.netns.to_string())];
            if let Some(route) = &labels.route {
                let table = route.table.map(names::table).unwrap_or_default();
                let prefix = route.prefix.map(|prefix| prefix.to_string());
                all.extend([
                    ("family", route.family.as_str().to_owned()),
                    ("table", table),
                    ("prefix", prefix.unwrap_or_default()),
                    ("gateway", route.gateway.clone()),
                    ("interface", route.interface.clone()),
                ]);
            }
            all.push(("origin", origin.to_owned()));
            (all, count)
        })
        .collect()
}
