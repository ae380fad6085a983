//! A sample per interval, to standard output.

use std::{ops::ControlFlow, time::Duration};

use bytes::Bytes;
use tokio::time::{self, MissedTickBehavior};

use super::{live::Outlet, output::Output};
use crate::{config::Pace, error::Failure};

/// How long a reader has to take the last samples after a signal.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Prints samples at a pace.
pub(super) struct Paced {
    output: Output,
    /// Begins with the first time that a sample is waited for.
    ticks: Option<time::Interval>,
    pace: Pace,
    left: Option<u64>,
}

impl Paced {
    /// At `pace`, from when the first sample is waited for.
    pub(super) fn new(pace: Pace) -> Self {
        Self {
            output: Output::start(),
            ticks: None,
            left: pace.count,
            pace,
        }
    }
}

fn ticks(pace: Pace) -> time::Interval {
    let first = time::Instant::now() + pace.interval;
    let mut ticks = time::interval_at(first, pace.interval);
    // After a pause (a suspended machine, a blocked reader) one sample, not many.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    ticks
}

impl Outlet<Bytes> for Paced {
    async fn wanted(&mut self) -> ControlFlow<Result<(), Failure>> {
        // A timer is not due at once, and what comes meanwhile is not what --once asks for.
        if self.ticks.is_none() && self.pace.once {
            self.ticks = Some(ticks(self.pace));
            return ControlFlow::Continue(());
        }
        let ticks = self.ticks.get_or_insert_with(|| ticks(self.pace));
        loop {
            tokio::select! {
                biased;
                ended = self.output.ended() => return ControlFlow::Break(ended),
                _ = ticks.tick() => {}
            }
            if !self.output.is_full() {
                return ControlFlow::Continue(());
            }
        }
    }

    async fn give(&mut self, frame: Bytes) -> ControlFlow<Result<(), Failure>> {
        if !self.output.send(frame).await {
            return ControlFlow::Break(self.output.ended().await);
        }
        if let Some(left) = &mut self.left {
            *left -= 1;
            if *left == 0 {
                return ControlFlow::Break(Ok(()));
            }
        }
        ControlFlow::Continue(())
    }

    async fn close(self, signalled: bool) -> Result<(), Failure> {
        // A reader that does not read would be waited for without end.
        let patience = if signalled { LAST_WORDS } else { Duration::MAX };
        tokio::select! {
            closed = self.output.close() => closed,
            () = time::sleep(patience) => Ok(()),
        }
    }
}
