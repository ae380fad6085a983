//! Counters that are called by a label and outlive what they count: of a container that
//! is restarted, one goes on where the other ended.
//!
//! What an account has from sources that have ended can be kept elsewhere, so that the
//! account goes on where this process does not: see [`Ledger::settle`].
//!
//! An account grows by what its sources have counted more than the last time, and never
//! shrinks. When all its sources have ended it is shown for a while, then it rests; a new
//! source of the same label wakes it.

use std::{
    collections::HashMap,
    hash::Hash,
    time::{Duration, SystemTime},
};

/// Accounts without a source that are kept: more than a scraper misses, less than what
/// fills memory where every container has a name of its own.
const KEPT: usize = 10_000;

/// Accounts without a source on one page: after a long time without a scraper the next one
/// gets them in turns.
const MOST_RESTING: usize = 2_000;
/// Sources that nobody tells of any more, and of no end either, are remembered so long as
/// they are fewer: they may be told of again, and must not be counted anew then.
const ABSENT: usize = 40_000;

/// What can be counted. Sums wrap: what is kept of an account may be less than nothing.
pub trait Count: Clone + Default + PartialEq {
    /// Calls `work` with each number of this and the same of another.
    fn pairs(&mut self, other: &Self, work: &mut dyn FnMut(&mut u64, u64));

    /// Takes the new reading `now` and returns what it has more than the last. What has
    /// gone back counts again once it is beyond where it was.
    fn advance(&mut self, now: &Self) -> Self {
        let mut more = now.clone();
        more.pairs(self, &mut |more, last| *more = more.saturating_sub(last));
        self.add(&more);
        more
    }

    /// Adds to an account.
    fn add(&mut self, more: &Self) {
        self.pairs(more, &mut |sum, more| *sum = sum.wrapping_add(more));
    }

    /// Takes from an account.
    fn take(&mut self, less: &Self) {
        self.pairs(less, &mut |sum, less| *sum = sum.wrapping_sub(less));
    }

    /// As it is shown: not less than nothing.
    fn shown(&self) -> Self {
        let mut shown = self.clone();
        shown.pairs(self, &mut |shown, n| {
            if n > u64::MAX / 2 {
                *shown = 0;
            }
        });
        shown
    }
}

/// One number of a reading: `last` becomes the larger of both, and the difference is
/// returned.
pub fn advance(last: &mut u64, now: u64) -> u64 {
    let more = now.saturating_sub(*last);
    *last += more;
    more
}

impl Count for u64 {
    fn pairs(&mut self, other: &Self, work: &mut dyn FnMut(&mut u64, u64)) {
        work(self, *other);
    }
}

/// Accounts called `Label` of sources known by `Source`.
#[derive(Debug)]
pub struct Ledger<Label, Source, C> {
    accounts: HashMap<Label, Account<C>>,
    sources: HashMap<Source, Reading<Label, C>>,
    round: u64,
}

#[derive(Debug, Default)]
struct Account<C> {
    sum: C,
    /// When a live source was seen last.
    round: u64,
    ended: Option<Ended>,
    /// What of the sum is not of live sources, as it was kept last.
    kept: C,
}

#[derive(Clone, Copy, Debug)]
struct Ended {
    at: SystemTime,
    /// When its last state was shown first.
    shown: Option<SystemTime>,
}

impl Ended {
    fn new(at: SystemTime) -> Self {
        Self { at, shown: None }
    }

    /// Whether it was shown for long enough.
    fn is_over(&self, now: SystemTime, grace: Duration) -> bool {
        self.shown
            .is_some_and(|at| now.duration_since(at).is_ok_and(|age| age >= grace))
    }
}

#[derive(Debug)]
struct Reading<Label, C> {
    label: Label,
    last: C,
    round: u64,
    ended: bool,
}

impl<Label, Source, C> Default for Ledger<Label, Source, C> {
    fn default() -> Self {
        Self {
            accounts: HashMap::new(),
            sources: HashMap::new(),
            round: 1,
        }
    }
}

impl<Label: Clone + Eq + Hash, Source: Eq + Hash, C: Count> Ledger<Label, Source, C> {
    /// The account called `label` begins with what was kept of it, unless it is there.
    pub fn begin(&mut self, label: &Label, kept: impl FnOnce() -> C) {
        if !self.accounts.contains_key(label) {
            let kept = kept();
            let account = Account {
                sum: kept.clone(),
                round: 0,
                ended: None,
                kept,
            };
            self.accounts.insert(label.clone(), account);
        }
    }

    /// A source that is there has counted so much.
    pub fn live(&mut self, label: Label, source: Source, now: &C) {
        let round = self.round;
        let reading = self.sources.entry(source).or_insert_with(|| Reading {
            label: label.clone(),
            last: C::default(),
            round,
            ended: false,
        });
        let more = reading.last.advance(now);
        reading.round = round;
        reading.label.clone_from(&label);
        let account = self.accounts.entry(label).or_default();
        account.sum.add(&more);
        account.round = round;
        account.ended = None;
    }

    /// A source has ended with so much; it may be told again. `label` is what it is called
    /// if it was never seen before.
    pub fn ended(&mut self, label: Label, source: Source, last: &C, at: SystemTime) {
        let round = self.round;
        let reading = self.sources.entry(source).or_insert_with(|| Reading {
            label,
            last: C::default(),
            round,
            ended: false,
        });
        let again = std::mem::replace(&mut reading.ended, true);
        let more = reading.last.advance(last);
        reading.round = round;
        let account = self.accounts.entry(reading.label.clone()).or_default();
        account.sum.add(&more);
        if !again && account.round != round {
            account.ended.get_or_insert(Ended::new(at)).shown = None;
        }
    }

    /// All sources have been told of. Gives what is to be kept: of which accounts another
    /// part than before is not of live sources, nothing of those that are given up.
    pub fn settle(&mut self, at: SystemTime) -> Vec<(Label, C)> {
        let round = self.round;
        self.sources
            .retain(|_, reading| reading.round == round || !reading.ended);
        if self.sources.len() > ABSENT {
            self.sources.retain(|_, reading| reading.round == round);
        }
        for account in self.accounts.values_mut() {
            if account.round != round {
                account.ended.get_or_insert(Ended::new(at));
            }
        }
        let mut live: HashMap<&Label, C> = HashMap::new();
        for reading in self.sources.values().filter(|reading| !reading.ended) {
            live.entry(&reading.label).or_default().add(&reading.last);
        }
        let mut keep = Vec::new();
        for (label, account) in &mut self.accounts {
            let mut kept = account.sum.clone();
            kept.take(&live.remove(label).unwrap_or_default());
            if kept != account.kept {
                account.kept.clone_from(&kept);
                keep.push((label.clone(), kept));
            }
        }
        let mut resting: Vec<SystemTime> = self
            .accounts
            .values()
            .filter_map(|account| account.ended.map(|ended| ended.at))
            .collect();
        if resting.len() > KEPT {
            let surplus = resting.len() - KEPT;
            let (_, limit, _) = resting.select_nth_unstable(surplus);
            let limit = *limit;
            let old = |account: &Account<C>| account.ended.is_some_and(|ended| ended.at < limit);
            let old = self.accounts.extract_if(|_, account| old(account));
            keep.extend(old.map(|(label, _)| (label, C::default())));
        }
        self.round += 1;
        keep
    }

    /// Whether there is an account called `label`.
    #[must_use]
    pub fn knows(&self, label: &Label) -> bool {
        self.accounts.contains_key(label)
    }

    /// Whether a source was ever told of that has not ended.
    #[must_use]
    pub fn follows(&self, source: &Source) -> bool {
        self.sources.contains_key(source)
    }

    /// What a source that is [followed](Self::follows) was called last.
    #[must_use]
    pub fn label_of(&self, source: &Source) -> Option<&Label> {
        self.sources.get(source).map(|reading| &reading.label)
    }

    /// Whether the account called `label` is shown no longer, or was never there.
    #[must_use]
    pub fn rests(&self, label: &Label, now: SystemTime, grace: Duration) -> bool {
        self.accounts
            .get(label)
            .is_none_or(|account| account.ended.is_some_and(|ended| ended.is_over(now, grace)))
    }

    /// What is to be shown: of live sources, and of those that have ended until their last
    /// state was shown for `grace`.
    pub fn show(&mut self, now: SystemTime, grace: Duration) -> Vec<(Label, C)> {
        let mut resting: Vec<(SystemTime, &Label, &mut Account<C>)> = Vec::new();
        let mut all = Vec::new();
        for (label, account) in &mut self.accounts {
            match account.ended {
                None => all.push((label.clone(), account.sum.shown())),
                Some(ended) if ended.is_over(now, grace) => {}
                Some(ended) => resting.push((ended.at, label, account)),
            }
        }
        // Who ended first is first on its way out.
        resting.sort_by_key(|(at, _, _)| *at);
        for (_, label, account) in resting.into_iter().take(MOST_RESTING) {
            if let Some(ended) = &mut account.ended {
                ended.shown.get_or_insert(now);
            }
            all.push((label.clone(), account.sum.shown()));
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(60);

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn what_is_kept_lets_another_ledger_go_on() {
        let mut ledger = Ledger::default();
        ledger.live("web", 1, &100);
        ledger.live("db", 2, &50);
        assert_eq!(ledger.settle(at(0)), []);
        ledger.ended("web", 1, &130, at(1));
        ledger.live("web", 3, &7);
        ledger.live("db", 2, &60);
        let kept = ledger.settle(at(1));
        assert_eq!(kept, [("web", 130)]);
        ledger.live("web", 3, &9);
        ledger.live("db", 2, &60);
        assert_eq!(ledger.settle(at(2)), [], "nothing has ended");

        let mut next = Ledger::default();
        next.begin(&"web", || 130);
        next.live("web", 3, &12);
        next.begin(&"db", || 0);
        // It has ended meanwhile.
        next.ended("db", 2, &61, at(3));
        assert_eq!(next.settle(at(3)), [("db", 61)]);
        assert_eq!(shown(&mut next, 3), [("db", 61), ("web", 142)]);
    }

    fn shown(ledger: &mut Ledger<&'static str, u32, u64>, now: u64) -> Vec<(&'static str, u64)> {
        let mut all = ledger.show(at(now), GRACE);
        all.sort_unstable();
        all
    }

    #[test]
    fn a_restart_goes_on_where_the_last_life_ended() {
        let mut ledger = Ledger::default();
        ledger.live("web", 1, &100);
        ledger.settle(at(0));
        assert_eq!(shown(&mut ledger, 0), [("web", 100)]);
        // Its end, with what came after the last reading, and the next life.
        ledger.ended("web", 1, &130, at(1));
        ledger.live("web", 2, &7);
        ledger.settle(at(1));
        assert_eq!(shown(&mut ledger, 1), [("web", 137)]);
        ledger.live("web", 2, &10);
        ledger.settle(at(2));
        assert_eq!(shown(&mut ledger, 2), [("web", 140)]);
    }

    #[test]
    fn what_has_ended_is_shown_for_a_while_and_once_at_least() {
        let mut ledger = Ledger::default();
        ledger.live("a", 1, &1);
        ledger.live("b", 2, &2);
        ledger.settle(at(0));
        ledger.ended("a", 1, &5, at(10));
        ledger.live("b", 2, &2);
        ledger.settle(at(10));
        assert_eq!(shown(&mut ledger, 11), [("a", 5), ("b", 2)]);
        assert_eq!(shown(&mut ledger, 70), [("a", 5), ("b", 2)]);
        assert_eq!(shown(&mut ledger, 71), [("b", 2)]);
        // Nobody has asked for a long time.
        ledger.ended("b", 2, &9, at(80));
        ledger.settle(at(80));
        assert_eq!(shown(&mut ledger, 1000), [("b", 9)]);
        assert_eq!(shown(&mut ledger, 1059), [("b", 9)]);
        assert_eq!(shown(&mut ledger, 1060), []);
        // And back again.
        ledger.live("a", 3, &1);
        ledger.settle(at(1062));
        assert_eq!(shown(&mut ledger, 1063), [("a", 6)]);
    }

    #[test]
    fn an_end_that_is_told_again_is_the_same() {
        let mut ledger = Ledger::default();
        ledger.live("a", 1, &1);
        ledger.settle(at(0));
        for second in 1..5 {
            ledger.ended("a", 1, &4, at(second));
            ledger.settle(at(second));
        }
        // Somebody who lived between two looks.
        ledger.ended("short", 2, &3, at(5));
        ledger.settle(at(5));
        assert_eq!(shown(&mut ledger, 6), [("a", 4), ("short", 3)]);
        assert_eq!(shown(&mut ledger, 66), []);
    }

    #[test]
    fn by_another_label_only_what_comes_then_is_counted() {
        let mut ledger = Ledger::default();
        ledger.live("eth0", 1, &100);
        ledger.settle(at(0));
        ledger.live("wan0", 1, &110);
        ledger.live("eth0", 2, &3);
        ledger.settle(at(1));
        assert_eq!(shown(&mut ledger, 1), [("eth0", 103), ("wan0", 10)]);
        // What went back counts again beyond where it was.
        ledger.live("wan0", 1, &105);
        ledger.live("eth0", 2, &3);
        ledger.settle(at(2));
        ledger.live("wan0", 1, &112);
        ledger.live("eth0", 2, &3);
        ledger.settle(at(3));
        assert_eq!(shown(&mut ledger, 3), [("eth0", 103), ("wan0", 12)]);
    }

    #[test]
    fn resting_accounts_are_bounded_the_oldest_go_first() {
        let mut ledger = Ledger::<u64, u64, u64>::default();
        for number in 0..KEPT as u64 + 100 {
            ledger.ended(number, number, &1, at(number));
            ledger.settle(at(number));
        }
        assert_eq!(ledger.accounts.len(), KEPT);
        // On pages of a size, each once at least.
        let mut seen = std::collections::HashSet::new();
        for second in 0..KEPT.div_ceil(MOST_RESTING) as u64 {
            let page = ledger.show(at(1_000_000 + 60 * second), GRACE);
            assert!(page.len() <= MOST_RESTING);
            seen.extend(page.into_iter().map(|(label, _)| label));
        }
        assert_eq!((seen.len(), seen.iter().min()), (KEPT, Some(&100)));
    }

    #[test]
    fn who_is_not_told_of_for_a_while_is_not_counted_anew() {
        let mut ledger = Ledger::default();
        ledger.live("a", 1, &100);
        ledger.settle(at(0));
        ledger.settle(at(1));
        ledger.live("a", 1, &101);
        ledger.settle(at(2));
        assert_eq!(shown(&mut ledger, 2), [("a", 101)]);
    }

    #[test]
    fn what_counted_under_another_label_does_not_follow_after_a_restart() {
        let mut ledger = Ledger::default();
        ledger.live("old", 1, &100);
        ledger.settle(at(0));
        ledger.live("new", 1, &107);
        let mut kept = ledger.settle(at(1));
        kept.sort_unstable();
        let mut next = Ledger::default();
        let of = |label| kept.iter().find(|(known, _)| *known == label);
        next.begin(&"new", || of("new").expect("less than nothing").1);
        next.live("new", 1, &110);
        next.settle(at(2));
        assert_eq!(shown(&mut next, 2), [("new", 10)]);
        next.begin(&"old", || of("old").expect("kept").1);
        next.live("old", 2, &3);
        next.settle(at(3));
        assert!(shown(&mut next, 3).contains(&("old", 103)));
    }
}
