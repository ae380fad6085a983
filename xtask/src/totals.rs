//! Reading how many tests a runner ran.

/// Tests by outcome.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) skipped: u64,
}

/// Who prints the summaries. Each is read for its own only: nextest repeats
/// what a failed test program printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Runner {
    Nextest,
    CargoTest,
}

impl Totals {
    /// Adds what a line of the runner's output tells, if it is a summary.
    pub(crate) fn read(&mut self, runner: Runner, line: &str) {
        let line = without_colours(line);
        let line = line.trim();
        let counts = match runner {
            Runner::Nextest => nextest(line),
            Runner::CargoTest => libtest(line),
        };
        let Some(counts) = counts else { return };
        for count in counts.split([',', ';']) {
            let mut words = count.split_whitespace();
            let (Some(number), Some(word)) = (words.next(), words.next()) else {
                continue;
            };
            let Ok(number) = number.parse::<u64>() else {
                continue;
            };
            match word {
                "passed" => self.passed += number,
                "failed" | "timed" => self.failed += number,
                "skipped" | "ignored" => self.skipped += number,
                _ => {}
            }
        }
    }
}

/// `Summary [   0.1s] 5 tests run: 4 passed (1 slow), 1 failed, 0 skipped`
fn nextest(line: &str) -> Option<&str> {
    let rest = line.strip_prefix("Summary [")?;
    rest.split_once(" run: ").map(|(_, counts)| counts)
}

/// `test result: ok. 5 passed; 0 failed; 1 ignored; ...`
fn libtest(line: &str) -> Option<&str> {
    let rest = line.strip_prefix("test result: ")?;
    rest.split_once(". ").map(|(_, counts)| counts)
}

/// Without the sequences that set colours, `ESC [ ... m`.
fn without_colours(line: &str) -> String {
    let mut parts = line.split("\u{1b}[");
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        text.push_str(part.split_once('m').map_or(part, |(_, rest)| rest));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn totals(runner: Runner, lines: &[&str]) -> (u64, u64, u64) {
        let mut totals = Totals::default();
        lines.iter().for_each(|line| totals.read(runner, line));
        (totals.passed, totals.failed, totals.skipped)
    }

    #[test]
    fn reads_nextest() {
        let line = "     Summary [   8.531s] 19 tests run: 17 passed (1 slow), 1 failed, 1 timed out, 2 skipped";
        assert_eq!(totals(Runner::Nextest, &[line]), (17, 2, 2));
        let one = "\u{1b}[32;1m     Summary\u{1b}[0m [   0.012s] \u{1b}[1m1\u{1b}[0m test run: \u{1b}[1m1\u{1b}[0m \u{1b}[32;1mpassed\u{1b}[0m, \u{1b}[1m0\u{1b}[0m skipped";
        assert_eq!(totals(Runner::Nextest, &[one]), (1, 0, 0));
    }

    #[test]
    fn adds_up_test_programs() {
        let lines = [
            "running 3 tests",
            "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.00s",
            "test result: FAILED. 4 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s",
        ];
        assert_eq!(totals(Runner::CargoTest, &lines), (7, 2, 1));
        assert_eq!(totals(Runner::Nextest, &lines), (0, 0, 0));
    }
}
