//! `netobs list` for people: one line per interface.

use std::io;

use comfy_table::{Cell, Table, presets};

use super::text::harmless;
use crate::model::sample::{Interface, Namespace};

const UNKNOWN: &str = "-";

/// Writes the table.
///
/// # Errors
/// Where `out` fails.
pub fn table(namespaces: &[Namespace], color: bool, out: &mut dyn io::Write) -> io::Result<()> {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(
        [
            "NAMESPACE",
            "KIND",
            "INTERFACE",
            "HOST END",
            "BRIDGE",
            "ADDRESSES",
        ]
        .map(Cell::new),
    );
    for ns in namespaces {
        let mut first = true;
        for interface in &ns.interfaces {
            table.add_row(row(ns, Some(interface), first));
            first = false;
        }
        if first {
            table.add_row(row(ns, None, true));
        }
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let text = table.trim_fmt();
    for (at, line) in text.lines().enumerate() {
        if color && at == 0 {
            writeln!(out, "\x1b[1m{line}\x1b[0m")?;
        } else {
            writeln!(out, "{line}")?;
        }
    }
    Ok(())
}

fn row(ns: &Namespace, interface: Option<&Interface>, first: bool) -> Vec<String> {
    let or_unknown = |text: Option<&str>| text.map_or_else(|| UNKNOWN.to_owned(), harmless);
    let peer = interface.and_then(|i| i.peer.as_ref());
    let addresses = match (interface, &ns.reason) {
        (Some(interface), _) if !interface.addresses.is_empty() => interface.addresses.join("\n"),
        (None, Some(reason)) => harmless(reason),
        _ => UNKNOWN.to_owned(),
    };
    vec![
        if first {
            harmless(&ns.name)
        } else {
            String::new()
        },
        if first {
            ns.kind.as_str().to_owned()
        } else {
            String::new()
        },
        interface.map_or_else(|| UNKNOWN.to_owned(), interface_name),
        or_unknown(peer.map(|p| p.name.as_str())),
        or_unknown(peer.and_then(|p| p.master.as_deref())),
        addresses,
    ]
}

/// As `ip link` shows it: `eth0@if26`.
fn interface_name(interface: &Interface) -> String {
    let name = interface
        .name
        .as_deref()
        .map_or_else(|| "?".to_owned(), harmless);
    match &interface.peer {
        Some(peer) => format!("{name}@if{}", peer.ifindex),
        None => name,
    }
}
