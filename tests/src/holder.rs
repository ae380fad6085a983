//! The processes that keep a lab's namespaces alive.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, Read as _},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context as _, bail};
use nix::sched::CloneFlags;

use crate::proc::SharedChild;

/// Unix socket paths end at 108 bytes, and containerd's are long: labs live
/// in /tmp, whatever TMPDIR says.
const PARENT: &str = "/tmp";
/// How the folders and cgroups of every lab begin.
pub(crate) const PREFIX: &str = "netobs-lab-";

/// A running lab without anything in it.
#[derive(Debug)]
pub(crate) struct Holder {
    folder: PathBuf,
    janitor: Child,
    /// Closing it ends the lab.
    lifeline: Option<ChildStdin>,
    namespaces: Arc<Namespaces>,
}

/// The lab's namespaces, open for entering.
#[derive(Debug)]
pub(crate) struct Namespaces {
    /// Entered by the spawning thread: it counts for children only.
    pub(crate) pid: File,
    /// Entered by the child. The mount namespace is last: the paths of the
    /// others were opened outside.
    pub(crate) others: [(File, CloneFlags); 4],
    /// What was started inside and may not be reaped yet.
    children: Mutex<Vec<SharedChild>>,
}

impl Holder {
    pub(crate) fn start() -> anyhow::Result<Self> {
        if !nix::unistd::geteuid().is_root() {
            bail!("a lab makes namespaces and needs root");
        }
        let tag = std::env::var(crate::RUN_TAG)
            .map(|tag| format!("{tag}-"))
            .unwrap_or_default();
        let folder = nix::unistd::mkdtemp(&Path::new(PARENT).join(format!("{PREFIX}{tag}XXXXXX")))
            .with_context(|| format!("cannot make a folder in {PARENT}"))?;
        let mut janitor = Command::new("sh")
            .args(["-c", include_str!("holder/janitor.sh"), "netobs-lab"])
            .arg(&folder)
            .arg(include_str!("holder/init.sh"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .current_dir("/")
            // A terminal's Ctrl-C is for whoever works in the lab.
            .process_group(0)
            .spawn()
            .context("cannot start sh")?;
        let lifeline = janitor.stdin.take();
        let Some(pid) = ready(&mut janitor) else {
            drop(lifeline);
            let mut words = String::new();
            if let Some(mut stderr) = janitor.stderr.take() {
                let _ = stderr.read_to_string(&mut words);
            }
            let status = janitor.wait()?;
            bail!("the lab did not start ({status}): {}", words.trim());
        };
        Ok(Self {
            folder,
            janitor,
            lifeline,
            namespaces: Arc::new(Namespaces::open(pid)?),
        })
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(crate) fn name(&self) -> &str {
        self.folder
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or(PREFIX)
    }

    pub(crate) fn namespaces(&self) -> &Arc<Namespaces> {
        &self.namespaces
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        drop(self.lifeline.take());
        self.namespaces.end_children();
        let mut words = String::new();
        if let Some(mut stderr) = self.janitor.stderr.take() {
            let _ = stderr.read_to_string(&mut words);
        }
        let _ = self.janitor.wait();
        if !words.is_empty() {
            eprintln!("{}: {}", self.folder.display(), words.trim());
        }
    }
}

/// Reads the first process's number from its `ready` line.
fn ready(janitor: &mut Child) -> Option<u32> {
    let mut line = String::new();
    BufReader::new(janitor.stdout.take()?)
        .read_line(&mut line)
        .ok()?;
    line.trim().strip_prefix("ready ")?.parse().ok()
}

impl Namespaces {
    fn open(pid: u32) -> anyhow::Result<Self> {
        let open = |name: &str| {
            let path = format!("/proc/{pid}/ns/{name}");
            File::open(&path).with_context(|| format!("cannot open {path}"))
        };
        Ok(Self {
            pid: open("pid")?,
            others: [
                (open("ipc")?, CloneFlags::CLONE_NEWIPC),
                (open("uts")?, CloneFlags::CLONE_NEWUTS),
                (open("net")?, CloneFlags::CLONE_NEWNET),
                (open("mnt")?, CloneFlags::CLONE_NEWNS),
            ],
            children: Mutex::default(),
        })
    }

    pub(crate) fn register(&self, child: SharedChild) {
        let mut children = self.children.lock().unwrap_or_else(PoisonError::into_inner);
        children.retain(|known| !known.is_last());
        children.push(child);
    }

    fn end_children(&self) {
        let mut children = self.children.lock().unwrap_or_else(PoisonError::into_inner);
        children.drain(..).for_each(|child| child.end());
    }
}

/// Folders of labs, of this run where it has a tag.
pub(crate) fn folders(tag: Option<&str>) -> Vec<PathBuf> {
    let prefix = tag.map_or_else(|| PREFIX.to_owned(), |tag| format!("{PREFIX}{tag}-"));
    fs::read_dir(PARENT)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
        .map(|entry| entry.path())
        .collect()
}
