//! Observers in turns, in short slices, between slices without any.
//!
//! Machines are noisy, and noise is slow: what a slice is compared with is what was measured
//! without an observer right before and right behind it.

use std::{thread, time::Duration};

use anyhow::{Context as _, ensure};

use crate::{
    load::{Generator, Slice},
    observer::Observer,
    stats::Spread,
};

/// How long is measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) rounds: usize,
    pub(crate) slice: Duration,
}

/// Rounds after which programs are loaded anew.
const RELOAD: usize = 3;
/// What a slice begins with unmeasured: caches and branch predictors get used to it.
const WARM_UP: Duration = Duration::from_millis(20);

/// One observer's measurements, one of a kind per round.
#[derive(Clone, Debug, Default)]
pub(crate) struct Runs {
    pub(crate) name: String,
    /// Units per second, as a share of those without observer.
    pub(crate) rate: Vec<f64>,
    /// Nanoseconds of CPU per unit that it adds, everywhere.
    pub(crate) added: Vec<f64>,
    /// Wall time per unit, as a multiple of that without observer.
    pub(crate) time: Vec<f64>,
    /// Share of the packets that it has seen, where it tells.
    pub(crate) seen: Vec<f64>,
}

/// What was measured of all.
#[derive(Clone, Debug, Default)]
pub(crate) struct Measured {
    /// Units per second without observer.
    pub(crate) rate: Vec<f64>,
    /// Nanoseconds of CPU per unit without observer.
    pub(crate) cost: Vec<f64>,
    pub(crate) runs: Vec<Runs>,
}

impl Measured {
    pub(crate) fn of(&self, name: &str) -> anyhow::Result<&Runs> {
        let found = self.runs.iter().find(|runs| runs.name == name);
        found.with_context(|| format!("{name} was not measured"))
    }

    /// One's values as multiples of another's, round by round.
    pub(crate) fn ratio(
        &self,
        of: &str,
        to: &str,
        what: impl Fn(&Runs) -> &Vec<f64>,
    ) -> anyhow::Result<Spread> {
        let (of, to) = (what(self.of(of)?), what(self.of(to)?));
        let ratios = of.iter().zip(to).map(|(of, to)| of / to);
        Spread::of(ratios).context("nothing was measured")
    }

    /// The median of one's values as a multiple of the median of another's: for values so
    /// small that those of a single round may be below zero.
    pub(crate) fn ratio_of_medians(
        &self,
        of: &str,
        to: &str,
        what: impl Fn(&Runs) -> &Vec<f64>,
    ) -> anyhow::Result<Spread> {
        let spread = |name| {
            let values = what(self.of(name)?).iter().copied();
            Spread::of(values).context("nothing was measured")
        };
        let (of, to) = (spread(of)?, spread(to)?);
        Ok(Spread {
            median: of.median / to.median,
            low: of.low / to.median,
            high: of.high / to.median,
            n: of.n,
        })
    }
}

/// Measures `observers` while `generator` works. `sent` tells what the kernel has counted,
/// for those who tell what they have seen.
pub(crate) fn alternate(
    plan: Plan,
    generator: &mut Generator,
    observers: &mut [Box<dyn Observer + '_>],
    mut sent: impl FnMut() -> anyhow::Result<u64>,
) -> anyhow::Result<Measured> {
    let mut measured = Measured {
        runs: observers
            .iter()
            .map(|observer| Runs {
                name: observer.name().to_owned(),
                ..Runs::default()
            })
            .collect(),
        ..Measured::default()
    };
    for round in 0..plan.rounds {
        if round > 0 && round.is_multiple_of(RELOAD) {
            observers
                .iter_mut()
                .try_for_each(|observer| observer.reload())?;
        }
        let mut order: Vec<usize> = (0..observers.len()).collect();
        fastrand::shuffle(&mut order);
        let mut before = without(plan, generator)?;
        for group in order.chunks(2) {
            let mut slices = Vec::new();
            for which in group {
                let observer = &mut observers[*which];
                let slice = with(plan, generator, observer.as_mut(), &mut sent)
                    .with_context(|| format!("with {}", observer.name()))?;
                slices.push((*which, slice));
            }
            let after = without(plan, generator)?;
            for (place, (which, (slice, seen))) in slices.iter().enumerate() {
                // The last one is as near to what follows as the first to what was before.
                let share = (place + 1) as f64 / (slices.len() + 1) as f64;
                let between = |what: fn(&Slice) -> f64| {
                    what(&before) + (what(&after) - what(&before)) * share
                };
                let runs = &mut measured.runs[*which];
                runs.rate.push(slice.rate() / between(Slice::rate));
                runs.added.push(slice.cost() - between(Slice::cost));
                runs.time.push(slice.time() / between(Slice::time));
                runs.seen.extend(seen);
            }
            measured.rate.push(after.rate());
            measured.cost.push(after.cost());
            before = after;
        }
        eprint!("\r  round {} of {} ", round + 1, plan.rounds);
    }
    eprintln!();
    Ok(measured)
}

fn without(plan: Plan, generator: &mut Generator) -> anyhow::Result<Slice> {
    generator.run(WARM_UP)?;
    generator.run(plan.slice)
}

fn with(
    plan: Plan,
    generator: &mut Generator,
    observer: &mut dyn Observer,
    sent: &mut impl FnMut() -> anyhow::Result<u64>,
) -> anyhow::Result<(Slice, Option<f64>)> {
    let sent_before = at_rest(sent)?;
    observer.start()?;
    generator.run(WARM_UP)?;
    let cpu = observer.cpu()?;
    let mut slice = generator.run(plan.slice)?;
    slice.cpu += observer.cpu()?.saturating_sub(cpu);
    let sent = at_rest(sent)? - sent_before;
    let seen = observer.seen()?;
    observer.stop()?;
    let Some(seen) = seen else {
        return Ok((slice, None));
    };
    ensure!(
        !observer.exact() || seen == sent,
        "{seen} packets were counted, where the kernel counted {sent}"
    );
    Ok((slice, Some(seen as f64 / sent as f64)))
}

/// Once nothing is under way any more.
fn at_rest(sent: &mut impl FnMut() -> anyhow::Result<u64>) -> anyhow::Result<u64> {
    let mut last = sent()?;
    loop {
        thread::sleep(Duration::from_millis(5));
        let now = sent()?;
        if now == last {
            return Ok(now);
        }
        last = now;
    }
}
