//! What of a namespace's routing is worth a remark, in plain words.

use std::collections::BTreeMap;

use super::{
    book::Entry,
    route::{FailureClass, Family, Origin, PROTOCOL_KERNEL, RouteType, TABLE_LOCAL},
};

/// Interfaces on which nobody asks for neighbours.
const LOOPBACK: &str = "lo";

/// Remarks on the routes that were hit.
#[must_use]
pub fn of(entries: &[Entry], interfaces: &BTreeMap<u32, String>) -> Vec<String> {
    let connected: Vec<_> = entries
        .iter()
        .filter(|e| {
            e.route
                .as_ref()
                .is_some_and(|r| r.protocol == PROTOCOL_KERNEL)
        })
        .flat_map(|e| e.hops.iter().map(move |hop| (e, hop)))
        .filter_map(|(e, hop)| Some((e.prefix?, hop.ifindex?)))
        .collect();
    entries
        .iter()
        .filter(|entry| entry.hits.total() > 0 && entry.kind == RouteType::UNICAST)
        .filter(|entry| entry.table != Some(TABLE_LOCAL))
        .flat_map(|entry| entry.hops.iter().map(move |hop| (entry, hop)))
        .filter(|(_, hop)| hop.gateway.is_none())
        .filter_map(|(entry, hop)| {
            let (prefix, ifindex) = (entry.prefix?, hop.ifindex?);
            let interface = interfaces.get(&ifindex)?;
            let is_subnet = connected
                .iter()
                .any(|(subnet, on)| *on == ifindex && subnet.contains(prefix.address));
            if is_subnet || interface == LOOPBACK {
                return None;
            }
            let asks = match entry.family {
                Family::Ipv4 => "ARP",
                Family::Ipv6 => "neighbour discovery",
            };
            let what = if entry.route.is_none() {
                format!(
                    "{} matched no route: the socket is bound to {interface}, and",
                    prefix.address
                )
            } else if prefix.len == prefix.family().bits() {
                format!(
                    "{} matched {prefix} dev {interface} without gateway:",
                    prefix.address
                )
            } else {
                format!("{prefix} dev {interface} was hit and has no gateway:")
            };
            Some(format!("{what} neighbours must answer for it ({asks})"))
        })
        .collect()
}

/// Why a lookup failed, and what to do.
#[must_use]
pub fn advice(class: FailureClass, origin: Origin) -> &'static str {
    match (class, origin) {
        (FailureClass::NoRoute, Origin::Output) => {
            "no table has a route to it: add one, or a default route"
        }
        (FailureClass::NoRoute, _) => {
            "a packet came in for it and no table has a route: add one, or a default route"
        }
        (FailureClass::Unreachable, Origin::Output) => "an unreachable route says so",
        (FailureClass::Unreachable, _) => {
            "an unreachable route says so, or forwarding is off (IPv4: sysctl net.ipv4.ip_forward)"
        }
        (FailureClass::Blackhole, _) => "a blackhole route throws it away",
        (FailureClass::Prohibit, _) => "a prohibit route forbids it",
        (FailureClass::RpFilter, _) => {
            "its source would be answered by another interface: see rp_filter, or add a route back"
        }
        (FailureClass::Martian, _) => {
            "an address in the packet cannot be where it came from (a loopback, broadcast or own one)"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{
        book::Book,
        route::{Hit, Hop, Prefix, Route, TABLE_MAIN},
    };

    fn route(to: &str, len: u8, gateway: Option<&str>, protocol: u8) -> Route {
        Route {
            table: TABLE_MAIN,
            prefix: Prefix::of(to.parse().expect("an address"), len),
            kind: RouteType::UNICAST,
            hops: vec![Hop {
                gateway: gateway.and_then(|g| g.parse().ok()),
                ifindex: Some(2),
            }],
            nexthop: None,
            protocol,
            scope: 253,
            metric: 0,
            source: None,
        }
    }

    #[test]
    fn a_host_route_without_gateway_is_worth_a_remark_and_a_subnet_is_not() {
        let mut book = Book::default();
        let routes = vec![
            route("0.0.0.0", 0, Some("172.17.0.1"), 3),
            route("8.8.8.8", 32, None, 3),
            route("172.17.0.0", 16, None, 2),
            route("172.17.0.9", 32, None, 3),
        ];
        book.update(routes.clone());
        let interfaces = BTreeMap::from([(2, "eth0".to_owned())]);
        let remarks = |book: &Book| {
            let entries: Vec<Entry> = book.entries().into_iter().cloned().collect();
            of(&entries, &interfaces)
        };
        assert!(remarks(&book).is_empty(), "nothing was hit");
        for route in &routes {
            let hit = Hit {
                origin: Origin::Output,
                table: TABLE_MAIN,
                prefix: Prefix::of(route.prefix.address, 32),
                exact: false,
                implicit: false,
                kind: RouteType::UNKNOWN,
                hop: route.hops[0],
            };
            book.credit(&hit, 1, &[]);
        }
        assert_eq!(
            remarks(&book),
            ["8.8.8.8 matched 8.8.8.8/32 dev eth0 without gateway: \
              neighbours must answer for it (ARP)"]
        );
    }
}
