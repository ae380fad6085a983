//! Doubts about a sample that follow from what is in it.

use std::sync::Arc;

use netobs_common::names;

use crate::model::sample::{self, Warning};

/// About what could not be observed.
pub(super) fn doubts(namespaces: &[Arc<sample::Namespace>]) -> impl Iterator<Item = Warning> + '_ {
    namespaces.iter().flat_map(|ns| {
        let unreadable = ns.reason.iter().map(|reason| Warning {
            code: "namespace_unreadable".to_owned(),
            namespace: Some(ns.name.clone()),
            message: reason.clone(),
        });
        let unattached = ns.interfaces.iter().filter_map(|interface| {
            let reason = interface.reason.as_ref()?;
            let name = interface
                .name
                .as_deref()
                .or(interface.peer.as_ref().map(|p| p.name.as_str()));
            Some(Warning {
                code: "interface_not_observed".to_owned(),
                namespace: Some(ns.name.clone()),
                message: format!("{}: {reason}", name.unwrap_or("?")),
            })
        });
        unreadable.chain(unattached)
    })
}

/// About ourselves. `turned_away`: some interfaces have no slot now.
pub(super) fn own_doubts(
    observer: &sample::Observer,
    turned_away: bool,
) -> impl Iterator<Item = Warning> + '_ {
    let full = move |name: &str| turned_away || name != names::MAP_COUNTERS;
    let full = observer
        .maps
        .iter()
        .filter(move |map| map.full > 0 && full(&map.name))
        .map(|map| Warning {
            code: "map_full".to_owned(),
            namespace: None,
            message: format!(
                "{} is full and some interfaces are not observed: --max-interfaces makes room for more",
                map.name
            ),
        });
    let lost = (observer.lost > 0).then(|| Warning {
        code: "packets_lost".to_owned(),
        namespace: None,
        message: "packets passed interfaces that had no slot at that moment, and are in no row \
                  (observer.lost in JSON says how many)"
            .to_owned(),
    });
    full.chain(lost)
}
