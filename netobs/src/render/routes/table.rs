//! `netobs routes` for people: per namespace its tables as `ip route` lists
//! them, each line with its hits, then what failed.

use core::net::IpAddr;
use std::fmt::Write as _;

use unicode_width::UnicodeWidthStr as _;

use crate::{
    model::{
        book::Entry,
        remarks::advice,
        route::{Family, Match, PROTOCOL_KERNEL, RouteType},
        routing::{FailureShown, Routing, RoutingSample},
        sample::State,
    },
    render::{
        Style, names,
        text::{fit, harmless, si},
    },
};

/// Columns of a count.
const COUNT: usize = 8;
/// Columns of a share.
const SHARE: usize = 7;
/// Columns of a table's name, at least.
const TABLE: usize = 7;
/// Failed destinations shown per namespace.
const FAILURES: usize = 10;

/// What a line is, for its colour.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Title,
    Namespace,
    Header,
    Hit,
    Quiet,
    Past,
    Failure,
    Remark,
}

struct Line {
    kind: Kind,
    text: String,
}

fn line(kind: Kind, text: impl Into<String>) -> Line {
    Line {
        kind,
        text: text.into(),
    }
}

/// The lines of `sample`, none wider than `style.width`.
#[must_use]
pub fn lines(sample: &RoutingSample, style: Style) -> Vec<String> {
    let mut lines = vec![line(Kind::Title, title(sample))];
    for routing in &sample.namespaces {
        namespace(routing, style, &mut lines);
    }
    if !sample.unattributed_failures.is_empty() {
        lines.push(line(Kind::Namespace, "unattributed (sender unknown)"));
        failures(&sample.unattributed_failures, 0, &mut lines);
    }
    let mut notes: Vec<Line> = Vec::new();
    if style.notes {
        for warning in &sample.warnings {
            let text = harmless(&warning.message);
            notes.push(line(
                Kind::Remark,
                match &warning.namespace {
                    Some(name) => format!("! {}: {text}", harmless(name)),
                    None => format!("! {text}"),
                },
            ));
        }
    }
    if let Some(height) = style.height {
        let room = height.saturating_sub(notes.len()).max(height / 2);
        if lines.len() > room {
            // What was hit or failed says more than what was not.
            shorten(&mut lines, room);
        }
        notes.truncate(height.saturating_sub(lines.len()));
    }
    lines.extend(notes);
    lines
        .into_iter()
        .map(|line| {
            let text = fit(&line.text, style.width);
            let code = match line.kind {
                _ if !style.color => "",
                Kind::Namespace => "1",
                Kind::Past | Kind::Header => "2",
                Kind::Failure => "31",
                Kind::Remark => "33",
                Kind::Hit => "32",
                Kind::Title | Kind::Quiet => "",
            };
            if code.is_empty() {
                text
            } else {
                format!("\x1b[{code}m{text}\x1b[0m")
            }
        })
        .collect()
}

/// Leaves out lines until `room` is enough: routes without hits first, then
/// whatever comes last.
fn shorten(lines: &mut Vec<Line>, room: usize) {
    let mut surplus = lines.len() + 1 - room.min(lines.len());
    let mut hidden = 0;
    let mut at = lines.len();
    while at > 0 && surplus > 0 {
        at -= 1;
        if lines[at].kind == Kind::Quiet {
            lines.remove(at);
            surplus -= 1;
            hidden += 1;
        }
    }
    if lines.len() + 1 > room {
        let keep = room.saturating_sub(1);
        hidden += lines.len() - keep.min(lines.len());
        lines.truncate(keep);
    }
    lines.push(line(
        Kind::Header,
        format!("{hidden} lines more: name some namespaces, or use -o json"),
    ));
}

fn title(sample: &RoutingSample) -> String {
    let time = humantime::format_rfc3339_seconds(sample.time);
    let up = sample
        .namespaces
        .iter()
        .filter(|routing| routing.namespace.state == State::Up)
        .count();
    let s = if up == 1 { "" } else { "s" };
    format!(
        "{time}  {}  {up} namespace{s}, route lookups by {}",
        harmless(&sample.host.name),
        sample.observer.backend.as_str()
    )
}

fn namespace(routing: &Routing, style: Style, lines: &mut Vec<Line>) {
    let ns = &routing.namespace;
    let mut head = harmless(&ns.name);
    if ns.state == State::Gone {
        head.push_str(" (gone)");
    }
    // Writing to a String cannot fail.
    if let Some(lookups) = ns.lookups {
        let _ = write!(head, "  {} lookups", si(lookups.total()));
        if lookups.failed() > 0 {
            let _ = write!(head, ", {} failed", si(lookups.failed()));
        }
    }
    if let Some(count) = ns.behalf.by_host.filter(|count| *count > 0) {
        let _ = write!(head, ", {} more by the host for it", si(count));
    }
    lines.push(line(Kind::Namespace, head));
    let Some(routes) = &routing.routes else {
        lines.push(line(Kind::Remark, "  its tables cannot be read"));
        return;
    };
    let total: u64 = routes.iter().map(|entry| entry.hits.total()).sum();
    // What every namespace has and nobody looks for: shown once it is hit.
    let shown: Vec<&Entry> = routes
        .iter()
        .filter(|entry| !is_furniture(entry) || entry.hits.total() > 0)
        .collect();
    if shown.is_empty() {
        lines.push(line(Kind::Quiet, "  no routes"));
    } else {
        let room = style
            .width
            .saturating_sub(2 + TABLE + 1 + COUNT + SHARE + 1);
        lines.push(line(
            Kind::Header,
            format!(
                "  {:TABLE$} {}{:>COUNT$}{:>SHARE$}",
                "TABLE",
                padded("ROUTE", room),
                "HITS",
                "SHARE"
            ),
        ));
        for entry in shown {
            lines.push(route(entry, routing, room, total));
        }
    }
    for remark in &routing.remarks {
        lines.push(line(Kind::Remark, format!("  ! {}", harmless(remark))));
    }
    failures(&routing.failures, routing.failures_forgotten, lines);
}

/// What the kernel puts there for every address and every link.
fn is_furniture(entry: &Entry) -> bool {
    let by_kernel = entry
        .route
        .as_ref()
        .is_some_and(|route| route.protocol == PROTOCOL_KERNEL);
    let link_local = entry.family == Family::Ipv6
        && entry.prefix.is_some_and(|prefix| match prefix.address {
            IpAddr::V6(address) => address.is_unicast_link_local(),
            IpAddr::V4(_) => false,
        });
    by_kernel && (entry.kind.is_own_address() || link_local)
}

fn route(entry: &Entry, routing: &Routing, room: usize, total: u64) -> Line {
    let table = entry.table.map_or_else(|| "-".to_owned(), names::table);
    let hits = entry.hits.total();
    let share = if total > 0 && hits > 0 {
        format!("{:.1}%", hits as f64 * 100.0 / total as f64)
    } else {
        String::new()
    };
    let kind = match (entry.present, hits) {
        (false, _) => Kind::Past,
        (true, 0) => Kind::Quiet,
        (true, _) => Kind::Hit,
    };
    let text = padded(&fit(&route_text(entry, routing), room), room);
    let mut text = format!("  {table:TABLE$} {text}{:>COUNT$}", si(hits));
    if !share.is_empty() {
        let _ = write!(text, "{share:>SHARE$}");
    }
    line(kind, text)
}

/// As `ip route` prints it.
fn route_text(entry: &Entry, routing: &Routing) -> String {
    let mut text = String::new();
    if entry.kind != RouteType::UNICAST && entry.kind != RouteType::UNKNOWN {
        text.push_str(&entry.kind.name());
        text.push(' ');
    }
    match entry.prefix {
        Some(prefix) if prefix.len == 0 => text.push_str("default"),
        Some(prefix) if prefix.len == prefix.family().bits() => {
            let _ = write!(text, "{}", prefix.address);
        }
        Some(prefix) => {
            let _ = write!(text, "{prefix}");
        }
        None => text.push('?'),
    }
    let several = entry.hops.len() > 1;
    let hops = hops_text(entry, routing);
    if !several {
        text.push_str(&hops);
    }
    if let Some(route) = &entry.route {
        // `ip` leaves out what is usual.
        if route.protocol != 3 {
            let _ = write!(text, " proto {}", names::protocol(route.protocol));
        }
        if route.scope != 0 && entry.family == Family::Ipv4 {
            let _ = write!(text, " scope {}", names::scope(route.scope));
        }
        if let Some(source) = route.source {
            let _ = write!(text, " src {source}");
        }
        if route.metric != 0 {
            let _ = write!(text, " metric {}", route.metric);
        }
    }
    if several {
        text.push_str(&hops);
    }
    if entry.matched == Match::Implicit {
        text.push_str(" (no route: bound to the interface)");
    } else if !entry.present {
        text.push_str(if entry.route.is_some() {
            " (gone)"
        } else {
            " (route not seen)"
        });
    }
    text
}

fn hops_text(entry: &Entry, routing: &Routing) -> String {
    let mut text = String::new();
    for hop in &entry.hops {
        if entry.hops.len() > 1 {
            text.push_str(" nexthop");
        }
        if let Some(gateway) = hop.gateway {
            let _ = match (entry.family, gateway.is_ipv6()) {
                (Family::Ipv4, true) => write!(text, " via inet6 {gateway}"),
                _ => write!(text, " via {gateway}"),
            };
        }
        if let Some(interface) = names::interface(hop.ifindex, &routing.interfaces) {
            let _ = write!(text, " dev {}", harmless(&interface));
        }
    }
    text
}

fn failures(failures: &[FailureShown], forgotten: u64, lines: &mut Vec<Line>) {
    if !failures.is_empty() {
        lines.push(line(
            Kind::Header,
            format!(
                "  {:8} {:12} {:40} {:>COUNT$}",
                "ORIGIN", "FAILED", "DESTINATION", "COUNT"
            ),
        ));
    }
    for shown in failures.iter().take(FAILURES) {
        let failure = &shown.failure;
        lines.push(line(
            Kind::Failure,
            format!(
                "  {:8} {:12} {:40} {:>COUNT$}",
                failure.origin.as_str(),
                failure.class.as_str(),
                failure.destination.to_string(),
                si(failure.count)
            ),
        ));
        let reason = shown
            .reason
            .as_ref()
            .map(|reason| format!(" [{}]", harmless(reason)))
            .unwrap_or_default();
        lines.push(line(
            Kind::Remark,
            format!("    {}{reason}", advice(failure.class, failure.origin)),
        ));
    }
    let more = failures.len().saturating_sub(FAILURES);
    if more > 0 {
        lines.push(line(
            Kind::Header,
            format!("  {more} failed destinations more: -o json has them"),
        ));
    }
    if forgotten > 0 {
        lines.push(line(
            Kind::Header,
            format!(
                "  {} failed lookups more, to destinations no longer remembered (--max-failures)",
                si(forgotten)
            ),
        ));
    }
}

fn padded(text: &str, width: usize) -> String {
    let missing = width.saturating_sub(text.width());
    format!("{text}{}", " ".repeat(missing))
}
