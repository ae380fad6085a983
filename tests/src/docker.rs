//! The lab's own dockerd.

use std::{
    fs,
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, bail};
use nix::sys::signal::Signal;

use crate::{LabCommand, Proc, poll_until};

/// A loaded machine with two cores starts it in a few seconds.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running dockerd.
#[derive(Debug)]
pub(crate) struct Docker {
    proc: Proc,
    log: PathBuf,
}

/// Where a lab's dockerd keeps what.
#[derive(Clone, Debug)]
pub(crate) struct Paths {
    folder: PathBuf,
}

impl Paths {
    pub(crate) fn new(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
        }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.join("docker.sock")
    }

    pub(crate) fn url(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    /// A file system of the lab's own: nobody outside sees it.
    pub(crate) fn inner(&self, name: &str) -> PathBuf {
        self.folder.join("docker").join(name)
    }

    fn log(&self) -> PathBuf {
        self.folder.join("dockerd.log")
    }

    fn pid_file(&self) -> PathBuf {
        self.folder.join("docker.pid")
    }

    fn config(&self) -> PathBuf {
        self.folder.join("daemon.json")
    }
}

impl Docker {
    /// Starts dockerd by `command`, which runs it inside the lab, and waits
    /// until it answers.
    pub(crate) fn start(
        mut command: LabCommand,
        paths: &Paths,
        cgroup: &str,
    ) -> anyhow::Result<Self> {
        // A killed dockerd leaves both; the number may be another's by now.
        let _ = fs::remove_file(paths.pid_file());
        let _ = fs::remove_file(paths.socket());
        // The machine's own /etc/docker/daemon.json is not the lab's.
        fs::write(paths.config(), "{}\n")?;
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(paths.log())?;
        let proc = command
            .arg("--config-file")
            .arg(paths.config())
            .arg("--data-root")
            .arg(paths.inner("data"))
            .arg("--exec-root")
            .arg(paths.inner("exec"))
            .arg("--host")
            .arg(paths.url())
            .arg("--pidfile")
            .arg(paths.pid_file())
            // Below a parent of the lab's name the janitor finds them.
            .args(["--cgroup-parent", cgroup])
            .args(["--exec-opt", "native.cgroupdriver=cgroupfs"])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("cannot start dockerd (package docker.io)")?;
        let mut docker = Self {
            proc,
            log: paths.log(),
        };
        docker.wait_ready(&paths.socket())?;
        Ok(docker)
    }

    fn wait_ready(&mut self, socket: &Path) -> anyhow::Result<()> {
        let outcome = poll_until(PATIENCE, "an answer of dockerd", || {
            if let Some(status) = self.proc.try_wait()? {
                return Ok(Some(Err(status)));
            }
            Ok(ping(socket)?.then_some(Ok(())))
        });
        let why = match outcome {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(status)) => format!("dockerd ended with {status}"),
            Err(err) => format!("{err:#}"),
        };
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let last = log.lines().rev().take(12).collect::<Vec<_>>();
        let last = last.into_iter().rev().collect::<Vec<_>>().join("\n");
        bail!("{why}; its last words:\n{last}")
    }

    /// Sends a signal and waits for the end. Asked by SIGTERM, dockerd ends
    /// its containers first; after SIGKILL they live on.
    pub(crate) fn end(mut self, signal: Signal) -> anyhow::Result<()> {
        self.proc.end(signal, PATIENCE)?;
        Ok(())
    }
}

/// Asks dockerd whether it is there.
fn ping(socket: &Path) -> anyhow::Result<bool> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(b"GET /_ping HTTP/1.0\r\nHost: lab\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer.ends_with("OK"))
}
