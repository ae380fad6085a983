//! Sums of routing decisions.

use std::collections::BTreeMap;

use netobs_common::routes::{
    CLASS_BLACKHOLE, CLASS_MARTIAN, CLASS_NO_ROUTE, CLASS_PROHIBIT, CLASS_RP_FILTER,
    CLASS_UNREACHABLE, FAMILY_IPV4, FAMILY_IPV6, Lookups as Record, ORIGIN_FORWARD, ORIGIN_INPUT,
    ORIGIN_OUTPUT,
};
use serde::{Deserialize, Serialize};

use super::ledger::Count;

/// How routing decisions are observed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Backend {
    /// By the tracepoints of the kernel's tables.
    Tracepoint,
    /// Not at all.
    #[default]
    None,
}

impl Backend {
    /// As in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tracepoint => "tracepoint",
            Self::None => "none",
        }
    }
}

/// Decisions by origin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origins {
    /// For local senders.
    pub output: u64,
    /// For received packets that are for this namespace.
    pub input: u64,
    /// For received packets that are for elsewhere.
    pub forward: u64,
}

impl Origins {
    /// Decisions of all origins.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.output + self.input + self.forward
    }
}

/// Decisions of one family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decisions {
    /// All, failed ones too.
    pub all: Origins,
    /// The failed ones.
    pub failed: Origins,
}

/// Failed decisions, by class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failures {
    /// No table has a route.
    pub no_route: u64,
    /// An unreachable route, or a packet for elsewhere where forwarding is off.
    pub unreachable: u64,
    /// A blackhole route.
    pub blackhole: u64,
    /// A prohibit route.
    pub prohibit: u64,
    /// The source of a received packet is not where it came from.
    pub rp_filter: u64,
    /// An address that a packet must not have.
    pub martian: u64,
}

impl Failures {
    /// From the count of each `CLASS_*`.
    fn by_class(class: impl Fn(u32) -> u64) -> Self {
        Self {
            no_route: class(CLASS_NO_ROUTE),
            unreachable: class(CLASS_UNREACHABLE),
            blackhole: class(CLASS_BLACKHOLE),
            prohibit: class(CLASS_PROHIBIT),
            rp_filter: class(CLASS_RP_FILTER),
            martian: class(CLASS_MARTIAN),
        }
    }
}

/// Routing decisions of one namespace. Cumulative.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lookups {
    /// IPv4; `None` where it is not observed.
    pub ipv4: Option<Decisions>,
    /// IPv6; `None` where it is not observed.
    pub ipv6: Option<Decisions>,
    /// Failed ones of both.
    pub failures: Failures,
}

/// What could not be told of any namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unattributed {
    /// Decisions.
    pub lookups: u64,
    /// Those of them that failed.
    pub failed: u64,
}

/// What the host looked up for others, or others had looked up by it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Behalf {
    /// Of the host: name of a namespace to decisions for what it sent through us.
    pub on_behalf: Option<BTreeMap<String, u64>>,
    /// Of another namespace: decisions of the host for what it sent.
    pub by_host: Option<u64>,
}

impl Lookups {
    /// Of a namespace where nothing was decided.
    #[must_use]
    pub fn none() -> Self {
        Self::from(&Record::default())
    }

    fn families(&self) -> impl Iterator<Item = &Decisions> {
        self.ipv4.iter().chain(&self.ipv6)
    }

    /// All decisions.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.families().map(|family| family.all.total()).sum()
    }

    /// Failed decisions.
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.families().map(|family| family.failed.total()).sum()
    }

    /// Without the families that are not observed.
    #[must_use]
    pub fn only(self, (ipv4, ipv6): (bool, bool)) -> Self {
        Self {
            ipv4: self.ipv4.filter(|_| ipv4),
            ipv6: self.ipv6.filter(|_| ipv6),
            ..self
        }
    }
}

/// From the sum of what all CPUs counted. One may have taken back what another had
/// counted, so that they wrap.
impl From<&Record> for Lookups {
    fn from(sum: &Record) -> Self {
        // Else it was read while it was being taken back.
        let shown = |sum: u64| if sum > u64::MAX / 2 { 0 } else { sum };
        let origins = |row: &[u64; 4]| Origins {
            output: shown(row[ORIGIN_OUTPUT as usize]),
            input: shown(row[ORIGIN_INPUT as usize]),
            forward: shown(row[ORIGIN_FORWARD as usize]),
        };
        let family = |family: u32| Decisions {
            all: origins(&sum.decisions[family as usize]),
            failed: origins(&sum.failed[family as usize]),
        };
        Self {
            ipv4: Some(family(FAMILY_IPV4)),
            ipv6: Some(family(FAMILY_IPV6)),
            failures: Failures::by_class(|class| shown(sum.classes[class as usize])),
        }
    }
}

fn columns(origins: Origins) -> [u64; 4] {
    let mut columns = [0; 4];
    columns[ORIGIN_OUTPUT as usize] = origins.output;
    columns[ORIGIN_INPUT as usize] = origins.input;
    columns[ORIGIN_FORWARD as usize] = origins.forward;
    columns
}

/// How the decisions of one family ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Results {
    /// With a usable route.
    pub ok: Origins,
    /// Without.
    pub failed: Origins,
}

/// The same as [`Lookups`], in parts that have nothing in common: each of them grows, their
/// difference may not while one is counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcomes {
    /// IPv4; `None` where it is not observed.
    pub ipv4: Option<Results>,
    /// IPv6; `None` where it is not observed.
    pub ipv6: Option<Results>,
    /// Failed ones of both.
    pub failures: Failures,
}

impl Outcomes {
    /// As a record, to be kept.
    #[must_use]
    pub fn record(&self) -> Record {
        let mut record = Record::default();
        for (family, results) in [(FAMILY_IPV4, self.ipv4), (FAMILY_IPV6, self.ipv6)] {
            let results = results.unwrap_or_default();
            let mut all = results.ok;
            all.add(&results.failed);
            record.decisions[family as usize] = columns(all);
            record.failed[family as usize] = columns(results.failed);
        }
        let failures = [
            (CLASS_NO_ROUTE, self.failures.no_route),
            (CLASS_UNREACHABLE, self.failures.unreachable),
            (CLASS_BLACKHOLE, self.failures.blackhole),
            (CLASS_PROHIBIT, self.failures.prohibit),
            (CLASS_RP_FILTER, self.failures.rp_filter),
            (CLASS_MARTIAN, self.failures.martian),
        ];
        for (class, count) in failures {
            record.classes[class as usize] = count;
        }
        record
    }

    /// What was kept so. A family that has nothing may be one that is not observed.
    #[must_use]
    pub fn kept(record: &Record) -> Self {
        let origins = |row: [u64; 4]| Origins {
            output: row[ORIGIN_OUTPUT as usize],
            input: row[ORIGIN_INPUT as usize],
            forward: row[ORIGIN_FORWARD as usize],
        };
        let family = |family: u32| {
            let failed = origins(record.failed[family as usize]);
            let mut ok = origins(record.decisions[family as usize]);
            ok.take(&failed);
            let results = Results { ok, failed };
            (results != Results::default()).then_some(results)
        };
        let class = |class: u32| record.classes[class as usize];
        Self {
            ipv4: family(FAMILY_IPV4),
            ipv6: family(FAMILY_IPV6),
            failures: Failures::by_class(class),
        }
    }
}

impl From<&Lookups> for Outcomes {
    fn from(lookups: &Lookups) -> Self {
        let apart = |of: Decisions| {
            let mut ok = of.all;
            ok.pairs(&of.failed, &mut |ok, failed| {
                *ok = ok.saturating_sub(failed)
            });
            Results {
                ok,
                failed: of.failed,
            }
        };
        Self {
            ipv4: lookups.ipv4.map(apart),
            ipv6: lookups.ipv6.map(apart),
            failures: lookups.failures,
        }
    }
}

impl Count for Origins {
    fn pairs(&mut self, other: &Self, work: &mut dyn FnMut(&mut u64, u64)) {
        work(&mut self.output, other.output);
        work(&mut self.input, other.input);
        work(&mut self.forward, other.forward);
    }
}

impl Count for Results {
    fn pairs(&mut self, other: &Self, work: &mut dyn FnMut(&mut u64, u64)) {
        self.ok.pairs(&other.ok, work);
        self.failed.pairs(&other.failed, work);
    }
}

impl Count for Failures {
    fn pairs(&mut self, other: &Self, work: &mut dyn FnMut(&mut u64, u64)) {
        work(&mut self.no_route, other.no_route);
        work(&mut self.unreachable, other.unreachable);
        work(&mut self.blackhole, other.blackhole);
        work(&mut self.prohibit, other.prohibit);
        work(&mut self.rp_filter, other.rp_filter);
        work(&mut self.martian, other.martian);
    }
}

impl Count for Outcomes {
    fn pairs(&mut self, other: &Self, work: &mut dyn FnMut(&mut u64, u64)) {
        // A family that only one of them has is nothing in the other.
        let mut family = |of: &mut Option<Results>, other: &Option<Results>| {
            if of.is_some() || other.is_some() {
                let other = other.unwrap_or_default();
                of.get_or_insert_default().pairs(&other, work);
            }
        };
        family(&mut self.ipv4, &other.ipv4);
        family(&mut self.ipv6, &other.ipv6);
        self.failures.pairs(&other.failures, work);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_cpu_takes_back_of_another_adds_up() {
        let mut one = Record::default();
        one.decisions[0] = [5, 1, 2, 0];
        one.failed[0] = [1, 0, 2, 0];
        one.classes[0] = 1;
        let mut other = Record::default();
        other.decisions[0] = [u64::MAX, 0, 1, 0];
        other.failed[0] = [u64::MAX, 0, 1, 0];
        other.decisions[1] = [0, 7, 0, 0];
        other.classes[0] = u64::MAX;
        one.add(&other);
        let sum = Lookups::from(&one);
        let origins = |output, input, forward| Origins {
            output,
            input,
            forward,
        };
        let ipv4 = Decisions {
            all: origins(4, 1, 3),
            failed: origins(0, 0, 3),
        };
        assert_eq!(sum.ipv4, Some(ipv4));
        assert_eq!((sum.total(), sum.failed()), (15, 3));
        let outcomes = Outcomes::from(&sum);
        assert_eq!(outcomes.ipv4.expect("observed").ok, origins(4, 1, 0));
        assert_eq!(Outcomes::kept(&outcomes.record()), outcomes);
        assert_eq!(sum.failures, Failures::default());
    }
}
