//! Standard output on a thread of its own: a reader that is slow, or has
//! stopped reading, never holds up the observing. Samples that it does not take
//! are left out.

use std::{
    io::{self, IsTerminal as _, Write as _},
    thread,
};

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use crate::error::{Cause, Failure};

/// Frames that may wait for a slow reader before sampling waits too.
const WAITING: usize = 4;

/// The way to standard output.
pub(super) struct Output {
    frames: mpsc::Sender<Bytes>,
    /// `None` once it has told its result.
    ended: Option<oneshot::Receiver<io::Result<()>>>,
}

impl Output {
    /// Starts the thread.
    pub(super) fn start() -> Self {
        let (frames, mut receive) = mpsc::channel::<Bytes>(WAITING);
        let (end, ended) = oneshot::channel();
        thread::spawn(move || {
            let mut out = io::stdout();
            let result = loop {
                let Some(frame) = receive.blocking_recv() else {
                    break Ok(());
                };
                if let Err(error) = out.write_all(&frame).and_then(|()| out.flush()) {
                    break Err(error);
                }
            };
            // Nobody listens when the main task has failed by itself.
            let _ = end.send(result);
        });
        Self {
            frames,
            ended: Some(ended),
        }
    }

    /// Whether a frame would have to wait for the reader.
    pub(super) fn is_full(&self) -> bool {
        self.frames.capacity() == 0
    }

    /// Hands a frame over; `false` once output has ended.
    pub(super) async fn send(&self, frame: Bytes) -> bool {
        self.frames.send(frame).await.is_ok()
    }

    /// Returns when output has ended by itself: never well, but a broken pipe
    /// is no failure.
    pub(super) async fn ended(&mut self) -> Result<(), Failure> {
        let Some(ended) = &mut self.ended else {
            return Ok(());
        };
        let result = ended.await;
        self.ended = None;
        finish(result.unwrap_or(Ok(())))
    }

    /// Waits until everything is written.
    pub(super) async fn close(mut self) -> Result<(), Failure> {
        // Without a sender left the thread writes what waits and ends.
        self.frames = mpsc::channel(1).0;
        self.ended().await
    }
}

/// A broken pipe is success: the reader has had enough.
pub(super) fn finish(result: io::Result<()>) -> Result<(), Failure> {
    match result {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Err(error) => Err(Failure::new(
            Cause::Run,
            anyhow::Error::new(error).context("write to standard output"),
        )),
    }
}

/// Columns and lines of the terminal that standard output is, if it is one.
pub(super) fn terminal() -> Option<(usize, usize)> {
    if !io::stdout().is_terminal() {
        return None;
    }
    let (terminal_size::Width(width), terminal_size::Height(height)) =
        terminal_size::terminal_size_of(io::stdout())?;
    Some((width.into(), height.into()))
}
