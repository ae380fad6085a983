//! Processes in the background, and what they said.

use std::{
    io::{BufRead as _, BufReader, Read},
    process::{Child, ExitStatus},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::poll_until;

/// What a command that ended has left.
#[derive(Clone, Debug)]
pub struct Output {
    /// The command line, for messages.
    pub command: String,
    /// How it ended.
    pub status: ExitStatus,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Output {
    /// Turns a failure into an error with command, status and words.
    pub fn success(self) -> anyhow::Result<Self> {
        if self.status.success() {
            return Ok(self);
        }
        let words = match (self.stderr.trim(), self.stdout.trim()) {
            ("", "") => "and said nothing",
            ("", stdout) => stdout,
            (stderr, _) => stderr,
        };
        bail!("`{}` ended with {}: {words}", self.command, self.status)
    }
}

/// A process in the background; killed and reaped when dropped.
#[derive(Debug)]
pub struct Proc {
    command: String,
    pid: u32,
    child: SharedChild,
    stdout: Stream,
    stderr: Stream,
}

impl Proc {
    pub(crate) fn new(mut child: Child, command: String) -> Self {
        Self {
            command,
            stdout: Stream::follow(child.stdout.take()),
            stderr: Stream::follow(child.stderr.take()),
            pid: child.id(),
            child: SharedChild(Arc::new(Mutex::new(child))),
        }
    }

    pub(crate) fn share(&self) -> SharedChild {
        self.child.clone()
    }

    /// Its number on the machine (not inside the lab).
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The lines of standard output so far.
    pub fn stdout(&self) -> Vec<String> {
        self.stdout.lines().clone()
    }

    /// The lines of standard output since this was called last. Those taken are no
    /// longer kept.
    pub fn take_stdout(&self) -> Vec<String> {
        std::mem::take(&mut *self.stdout.lines())
    }

    /// The lines of standard error so far.
    pub fn stderr(&self) -> Vec<String> {
        self.stderr.lines().clone()
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.try_wait(), Ok(None))
    }

    /// How it ended, if it did.
    pub fn try_wait(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        Ok(self.child.lock().try_wait()?)
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        kill(Pid::from_raw(self.pid.cast_signed()), signal)
            .with_context(|| format!("cannot send {signal} to `{}`", self.command))
    }

    /// Waits for a line of standard output that `wanted` accepts.
    pub fn wait_stdout(
        &mut self,
        timeout: Duration,
        wanted: impl FnMut(&str) -> bool,
    ) -> anyhow::Result<String> {
        self.wait_line(timeout, wanted, |this| &this.stdout)
    }

    /// Waits for a line of standard error that `wanted` accepts.
    pub fn wait_stderr(
        &mut self,
        timeout: Duration,
        wanted: impl FnMut(&str) -> bool,
    ) -> anyhow::Result<String> {
        self.wait_line(timeout, wanted, |this| &this.stderr)
    }

    fn wait_line(
        &mut self,
        timeout: Duration,
        mut wanted: impl FnMut(&str) -> bool,
        stream: impl Fn(&Self) -> &Stream,
    ) -> anyhow::Result<String> {
        let mut seen = 0;
        let found = poll_until(timeout, "the line that was waited for", || {
            // Asked before the lines are read: what it wrote last is not missed.
            let ended = !self.is_running();
            if ended {
                stream(self).wait_end();
            }
            let lines = stream(self).lines();
            let fresh = lines.iter().skip(seen).find(|line| wanted(line)).cloned();
            seen = lines.len();
            match fresh {
                Some(line) => Ok(Some(Ok(line))),
                None if ended => Ok(Some(Err(()))),
                None => Ok(None),
            }
        });
        let why = match found {
            Ok(Ok(line)) => return Ok(line),
            Ok(Err(())) => "it ended".to_owned(),
            Err(err) => format!("{err:#}"),
        };
        let stdout = self.stdout.lines().join("\n");
        let stderr = self.stderr.lines().join("\n");
        bail!(
            "`{}` did not say it: {why}\nstdout: {stdout}\nstderr: {stderr}",
            self.command
        )
    }

    /// Waits for its end.
    pub fn wait(&mut self, timeout: Duration) -> anyhow::Result<Output> {
        let what = format!("the end of `{}`", self.command);
        let status = poll_until(timeout, &what, || self.try_wait())?;
        Ok(Output {
            command: self.command.clone(),
            status,
            stdout: self.stdout.all(),
            stderr: self.stderr.all(),
        })
    }

    /// Sends a signal and waits for the end.
    pub fn end(&mut self, signal: Signal, timeout: Duration) -> anyhow::Result<Output> {
        if self.is_running() {
            self.signal(signal)?;
        }
        self.wait(timeout)
    }
}

impl Drop for Proc {
    fn drop(&mut self) {
        self.child.end();
    }
}

/// A child that its lab can reap too.
///
/// A pid namespace is not gone before its last zombie is reaped, and those
/// of programs that we started are ours to reap.
#[derive(Clone, Debug)]
pub(crate) struct SharedChild(Arc<Mutex<Child>>);

impl SharedChild {
    fn lock(&self) -> MutexGuard<'_, Child> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether nobody else waits for it any more.
    pub(crate) fn is_last(&self) -> bool {
        Arc::strong_count(&self.0) == 1
    }

    /// Kills and reaps it; its status stays known.
    pub(crate) fn end(&self) {
        let mut child = self.lock();
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// Lines that a thread reads from a pipe.
#[derive(Debug)]
struct Stream {
    lines: Arc<Mutex<Vec<String>>>,
    reader: JoinHandle<()>,
}

impl Stream {
    fn follow(pipe: Option<impl Read + Send + 'static>) -> Self {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&lines);
        let reader = thread::spawn(move || {
            let Some(pipe) = pipe else { return };
            let mut pipe = BufReader::new(pipe);
            let mut line = Vec::new();
            while matches!(pipe.read_until(b'\n', &mut line), Ok(n) if n > 0) {
                let text = String::from_utf8_lossy(&line);
                let text = text.strip_suffix('\n').unwrap_or(&text).to_owned();
                locked(&sink).push(text);
                line.clear();
            }
        });
        Self { lines, reader }
    }

    fn lines(&self) -> MutexGuard<'_, Vec<String>> {
        locked(&self.lines)
    }

    /// Waits until the pipe is read to its end: briefly, since a grandchild
    /// may hold it open.
    fn wait_end(&self) {
        let _ = poll_until(Duration::from_secs(2), "the end of a pipe", || {
            Ok(self.reader.is_finished().then_some(()))
        });
    }

    fn all(&self) -> String {
        self.wait_end();
        let mut text = self.lines().join("\n");
        if !text.is_empty() {
            text.push('\n');
        }
        text
    }
}

fn locked(lines: &Mutex<Vec<String>>) -> MutexGuard<'_, Vec<String>> {
    lines.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    fn shell(script: &str) -> Proc {
        let child = Command::new("sh")
            .args(["-c", script])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Proc::new(child, script.to_owned())
    }

    #[test]
    fn captures_lines_and_status() {
        let output = shell("echo one; echo two; echo bad >&2; exit 3")
            .wait(Duration::from_secs(10))
            .unwrap();
        assert_eq!(output.stdout, "one\ntwo\n");
        assert_eq!(output.status.code(), Some(3));
        let err = output.success().unwrap_err().to_string();
        assert!(
            err.contains("exit 3` ended with exit status: 3: bad"),
            "{err}"
        );
    }

    #[test]
    fn a_line_that_never_comes_is_an_error_at_once_when_the_process_ended() {
        let mut proc = shell("echo one");
        let timeout = Duration::from_secs(60);
        assert_eq!(proc.wait_stdout(timeout, |l| l == "one").unwrap(), "one");
        assert!(proc.wait_stdout(timeout, |l| l == "two").is_err());
    }

    #[test]
    fn ends_by_signal() {
        let mut proc = shell("echo up; exec sleep 60");
        proc.wait_stdout(Duration::from_secs(10), |l| l == "up")
            .unwrap();
        assert!(proc.is_running());
        let output = proc.end(Signal::SIGKILL, Duration::from_secs(10)).unwrap();
        assert!(!output.status.success());
    }
}
