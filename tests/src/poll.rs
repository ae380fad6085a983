//! Waiting for something to become true.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};

/// Calls `probe` every few milliseconds until it gives `Some`.
///
/// An error of `probe` counts as "not yet"; the last one is told when the
/// time is up.
pub fn poll_until<T>(
    timeout: Duration,
    what: &str,
    mut probe: impl FnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let end = Instant::now() + timeout;
    let mut pause = Duration::from_millis(2);
    loop {
        let outcome = probe();
        if let Ok(Some(value)) = outcome {
            return Ok(value);
        }
        if Instant::now() >= end {
            return match outcome {
                Err(err) => Err(err).context(format!("{timeout:?} passed without {what}")),
                Ok(_) => bail!("{timeout:?} passed without {what}"),
            };
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_what_the_probe_found() {
        let mut calls = 0;
        let found = poll_until(Duration::from_secs(5), "three calls", || {
            calls += 1;
            Ok((calls == 3).then_some(calls))
        });
        assert_eq!(found.unwrap(), 3);
    }

    #[test]
    fn names_what_did_not_come_and_why() {
        let err = poll_until::<()>(Duration::ZERO, "rain", || bail!("blue sky")).unwrap_err();
        let text = format!("{err:#}");
        assert!(
            text.contains("without rain") && text.contains("blue sky"),
            "{text}"
        );
    }
}
