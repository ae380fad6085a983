//! The kernel's numbers as `ip route` names them.

use std::collections::BTreeMap;

/// The name of an interface; `ifN` for one whose name was never seen.
#[must_use]
pub fn interface(index: Option<u32>, names: &BTreeMap<u32, String>) -> Option<String> {
    let index = index?;
    Some(
        names
            .get(&index)
            .cloned()
            .unwrap_or_else(|| format!("if{index}")),
    )
}

/// `RTPROT_*`, by the names that iproute2 has without a configuration.
#[must_use]
pub fn protocol(protocol: u8) -> String {
    let name = match protocol {
        0 => "unspec",
        1 => "redirect",
        2 => "kernel",
        3 => "boot",
        4 => "static",
        8 => "gated",
        9 => "ra",
        10 => "mrt",
        11 => "zebra",
        12 => "bird",
        13 => "dnrouted",
        14 => "xorp",
        15 => "ntk",
        16 => "dhcp",
        17 => "mrouted",
        18 => "keepalived",
        42 => "babel",
        99 => "openr",
        186 => "bgp",
        187 => "isis",
        188 => "ospf",
        189 => "rip",
        192 => "eigrp",
        number => return number.to_string(),
    };
    name.to_owned()
}

/// `RT_SCOPE_*`.
#[must_use]
pub fn scope(scope: u8) -> String {
    let name = match scope {
        0 => "global",
        200 => "site",
        253 => "link",
        254 => "host",
        255 => "nowhere",
        number => return number.to_string(),
    };
    name.to_owned()
}

/// The name of a table: `main`, `local`, `default`, else its number.
#[must_use]
pub fn table(table: u32) -> String {
    match table {
        253 => "default".to_owned(),
        254 => "main".to_owned(),
        255 => "local".to_owned(),
        number => number.to_string(),
    }
}
