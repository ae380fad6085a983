//! From the inventory to rows of a sample, without counters.

use crate::{
    inventory::build::{Interface, Row},
    model::{
        counters::Directions,
        lookups::Behalf,
        sample::{self, Hook, State},
    },
};

/// An interface that is not observed.
pub(super) fn described(interface: &Interface) -> sample::Interface {
    sample::Interface {
        name: interface.name.clone(),
        ifindex: interface.ifindex,
        mac: interface.mac.clone(),
        addresses: interface.addresses.clone(),
        peer: interface.peer.clone(),
        hook: Hook::None,
        observed_since: None,
        reason: None,
        counters: None,
        kernel: None,
        before_attach: None,
        attach_lag: None,
    }
}

/// A namespace with nothing observed.
pub(super) fn namespace(row: &Row) -> sample::Namespace {
    sample::Namespace {
        interfaces: row.interfaces.iter().map(described).collect(),
        ..bare(row)
    }
}

/// A namespace without interfaces.
pub(super) fn bare(row: &Row) -> sample::Namespace {
    sample::Namespace {
        key: row.key,
        name: row.name.clone(),
        cookie: row.cookie,
        inode: row.inode,
        kind: row.kind,
        state: State::Up,
        reason: row.reason.clone(),
        members: row.members.clone(),
        interfaces: Vec::new(),
        retired: Directions::default(),
        former: Vec::new(),
        lookups: None,
        behalf: Behalf::default(),
    }
}

/// Rows as samples without counters, for `list`.
#[must_use]
pub fn listed(rows: &[Row]) -> Vec<sample::Namespace> {
    rows.iter().map(namespace).collect()
}
