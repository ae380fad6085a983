//! A sample of routing: per namespace its routes with hits, and its failed
//! lookups.

use std::{collections::BTreeMap, time::SystemTime};

use super::{
    book::Entry,
    lookups::Unattributed,
    route::Failure,
    sample::{Host, Namespace, Observer, Warning},
};

/// Routing of one namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Routing {
    /// The namespace, with its totals of lookups. Its packets are not counted.
    pub namespace: Namespace,
    /// Its routes, in the order of [`Book::entries`](super::book::Book::entries);
    /// `None` where they cannot be read.
    pub routes: Option<Vec<Entry>>,
    /// Its failed lookups, most frequent first.
    pub failures: Vec<FailureShown>,
    /// Failed lookups whose destination is no longer remembered.
    pub failures_forgotten: u64,
    /// Names of its interfaces.
    pub interfaces: BTreeMap<u32, String>,
    /// What of its routing is worth a remark.
    pub remarks: Vec<String>,
}

/// A failed lookup with the name of its reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailureShown {
    /// What failed.
    pub failure: Failure,
    /// The kernel's name for the reason of the drop, or its number.
    pub reason: Option<String>,
}

/// What was read at one instant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoutingSample {
    /// When.
    pub time: SystemTime,
    /// Where.
    pub host: Host,
    /// One per namespace.
    pub namespaces: Vec<Routing>,
    /// Failed lookups of no known namespace.
    pub unattributed_failures: Vec<FailureShown>,
    /// Decisions of no known namespace; `None` where they are not observed.
    pub unattributed: Option<Unattributed>,
    /// Ourselves.
    pub observer: Observer,
    /// Doubts that stand.
    pub warnings: Vec<Warning>,
}
