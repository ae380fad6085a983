//! Which source address behind which of our interfaces is whose: for what the
//! host forwards.

use core::net::IpAddr;
use std::collections::HashMap;

use super::{
    build::{Place, Row},
    facts::Link,
};
use crate::model::sample::{Kind, NsKey};

/// Addresses of an interface that count: whoever may add addresses to his own
/// shall not take everybody's room.
const ADDRESSES: usize = 64;

/// A source address behind an interface of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Source {
    /// Index of the interface that its packets come in by.
    pub ifindex: u32,
    /// The address.
    pub address: IpAddr,
}

/// The sources of all `rows`, given our own interfaces. An address that two
/// namespaces have behind one interface is nobody's.
#[must_use]
pub fn sources(host_links: &[Link], rows: &[Row]) -> HashMap<Source, NsKey> {
    let masters: HashMap<u32, u32> = host_links
        .iter()
        .filter_map(|link| Some((link.ifindex, link.master?)))
        .collect();
    let mut found: HashMap<Source, Option<NsKey>> = HashMap::new();
    for row in rows.iter().filter(|row| row.kind != Kind::Host) {
        for interface in &row.interfaces {
            let Place::HostEnd { ifindex, .. } = interface.place else {
                continue;
            };
            for ifindex in ways_in(&masters, ifindex) {
                let addresses = interface.addresses.iter().filter_map(|a| parsed(a));
                for address in addresses.take(ADDRESSES) {
                    found
                        .entry(Source { ifindex, address })
                        .and_modify(|owner| *owner = owner.filter(|key| *key == row.key))
                        .or_insert(Some(row.key));
                }
            }
        }
    }
    found
        .into_iter()
        .filter_map(|(source, owner)| Some((source, owner?)))
        .collect()
}

/// The host end, the bridge it is a port of, the VRF that this is in.
fn ways_in(masters: &HashMap<u32, u32>, end: u32) -> Vec<u32> {
    let mut ways = vec![end];
    let mut at = end;
    // Masters do not nest deeper than this, nor in circles.
    for _ in 0..4 {
        match masters.get(&at) {
            Some(master) if !ways.contains(master) => {
                ways.push(*master);
                at = *master;
            }
            _ => break,
        }
    }
    ways
}

/// The address of `address/prefix length`, unless it never leaves its link.
fn parsed(address: &str) -> Option<IpAddr> {
    let (address, _) = address.split_once('/')?;
    let address: IpAddr = address.parse().ok()?;
    let stays = match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    (!stays).then_some(address)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::build::Interface;

    fn row(key: u64, end: u32, addresses: &[&str]) -> Row {
        Row {
            key: NsKey::Cookie(key),
            name: key.to_string(),
            cookie: Some(key),
            inode: None,
            kind: Kind::Container,
            reason: None,
            members: Vec::new(),
            interfaces: vec![Interface {
                name: Some("eth0".to_owned()),
                ifindex: Some(2),
                mac: None,
                addresses: addresses.iter().map(|a| (*a).to_owned()).collect(),
                peer: None,
                nsid: None,
                place: Place::HostEnd {
                    ifindex: end,
                    name: format!("veth{end}"),
                },
                ethernet: true,
            }],
            shown: true,
        }
    }

    #[test]
    fn an_address_comes_in_by_the_bridge_and_belongs_to_one_namespace() {
        let link = |ifindex, master| Link {
            ifindex,
            master,
            ..Link::default()
        };
        let links = [
            link(3, None),
            link(7, Some(3)),
            link(9, Some(3)),
            link(11, None),
        ];
        let rows = [
            row(1, 7, &["172.17.0.2/16", "fe80::1/64", "fd00::2/64"]),
            row(2, 9, &["172.17.0.3/16", "172.17.0.9/16", "nonsense"]),
            row(3, 11, &["172.17.0.2/16", "172.17.0.9/16"]),
            row(4, 9, &["172.17.0.9/16"]),
        ];
        let found = sources(&links, &rows);
        let whose = |ifindex, address: &str| {
            let address = address.parse().expect("an address");
            found.get(&Source { ifindex, address }).copied()
        };
        assert_eq!(whose(3, "172.17.0.2"), Some(NsKey::Cookie(1)));
        assert_eq!(whose(7, "172.17.0.2"), Some(NsKey::Cookie(1)));
        assert_eq!(whose(3, "fd00::2"), Some(NsKey::Cookie(1)));
        assert_eq!(whose(3, "172.17.0.3"), Some(NsKey::Cookie(2)));
        assert_eq!(whose(11, "172.17.0.2"), Some(NsKey::Cookie(3)));
        assert_eq!(whose(3, "fe80::1"), None);
        assert_eq!(whose(3, "172.17.0.9"), None, "two have it");
        assert_eq!(whose(11, "172.17.0.9"), Some(NsKey::Cookie(3)));
    }
}
