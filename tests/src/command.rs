//! Commands that run inside a lab.

use std::{
    ffi::{CString, OsStr},
    fs::File,
    io,
    os::{fd::AsFd, unix::process::CommandExt as _},
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    sync::Arc,
};

use anyhow::{Context as _, bail};
use nix::{
    fcntl::{OFlag, open},
    sched::{CloneFlags, setns},
    sys::stat::Mode,
};

use crate::{
    holder::Namespaces,
    proc::{Output, Proc},
};

/// A network namespace of a lab.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Netns {
    /// The lab's own, which plays the Docker host's.
    #[default]
    Host,
    /// One made by `ip netns add`.
    Named(String),
    /// That of a process, by its number inside the lab.
    Pid(u32),
}

impl Netns {
    /// Where the lab's file system shows it; nothing for the lab's own.
    fn path(&self) -> Option<String> {
        match self {
            Self::Host => None,
            Self::Named(name) => Some(format!("/run/netns/{name}")),
            Self::Pid(pid) => Some(format!("/proc/{pid}/ns/net")),
        }
    }
}

/// A [`Command`] that runs inside a lab, with the same words.
///
/// It is no `Command` itself because a process enters a pid namespace by
/// being forked into it: its parent has to take part. What comes of it is the
/// program's own process (nothing in between), so that signals, exit codes
/// and a terminal work as ever.
///
/// Programs die with the lab, and so with the process that holds it.
#[derive(Debug)]
pub struct LabCommand {
    command: Command,
    namespaces: Arc<Namespaces>,
}

impl LabCommand {
    pub(crate) fn new(
        namespaces: &Arc<Namespaces>,
        netns: &Netns,
        program: impl AsRef<OsStr>,
    ) -> Self {
        let mut command = Command::new(program);
        command.env_remove("DOCKER_HOST");
        enter_before_exec(&mut command, namespaces, netns);
        Self {
            command,
            namespaces: Arc::clone(namespaces),
        }
    }

    /// Adds an argument.
    pub fn arg(&mut self, arg: impl AsRef<OsStr>) -> &mut Self {
        self.command.arg(arg);
        self
    }

    /// Adds arguments.
    pub fn args<S: AsRef<OsStr>>(&mut self, args: impl IntoIterator<Item = S>) -> &mut Self {
        self.command.args(args);
        self
    }

    /// Sets an environment variable.
    pub fn env(&mut self, key: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> &mut Self {
        self.command.env(key, value);
        self
    }

    /// Takes an environment variable away.
    pub fn env_remove(&mut self, key: impl AsRef<OsStr>) -> &mut Self {
        self.command.env_remove(key);
        self
    }

    /// Sets standard input.
    pub fn stdin(&mut self, stdin: impl Into<Stdio>) -> &mut Self {
        self.command.stdin(stdin);
        self
    }

    /// Sets standard output.
    pub fn stdout(&mut self, stdout: impl Into<Stdio>) -> &mut Self {
        self.command.stdout(stdout);
        self
    }

    /// Sets standard error.
    pub fn stderr(&mut self, stderr: impl Into<Stdio>) -> &mut Self {
        self.command.stderr(stderr);
        self
    }

    /// Runs in this folder instead of the lab's `/`.
    pub fn current_dir(&mut self, folder: impl AsRef<Path>) -> anyhow::Result<&mut Self> {
        let folder = CString::new(folder.as_ref().as_os_str().as_encoded_bytes())?;
        let change = move || Ok(nix::unistd::chdir(folder.as_c_str())?);
        #[expect(
            unsafe_code,
            reason = "std changes the folder before the mount namespace is entered"
        )]
        // SAFETY: chdir is async-signal-safe, and nothing is allocated.
        unsafe {
            self.command.pre_exec(change);
        }
        Ok(self)
    }

    /// Starts the program; its streams are inherited unless set.
    pub fn spawn(&mut self) -> anyhow::Result<Proc> {
        let child = self.fork().with_context(|| self.cannot_run())?;
        let proc = Proc::new(child, self.text_of());
        self.namespaces.register(proc.share());
        Ok(proc)
    }

    /// Starts the program in the background with its output captured.
    pub fn start(&mut self) -> anyhow::Result<Proc> {
        self.command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        self.spawn()
    }

    /// Runs the program with inherited streams (unless set) to its end.
    pub fn status(&mut self) -> anyhow::Result<ExitStatus> {
        let mut child = self.fork().with_context(|| self.cannot_run())?;
        Ok(child.wait()?)
    }

    /// Runs the program to its end and captures its output, however it ends.
    pub fn output(&mut self) -> anyhow::Result<Output> {
        self.command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = self.fork().with_context(|| self.cannot_run())?;
        let output = child.wait_with_output()?;
        Ok(Output {
            command: self.text_of(),
            status: output.status,
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    fn fork(&mut self) -> io::Result<Child> {
        let own = File::open("/proc/thread-self/ns/pid")?;
        setns(self.namespaces.pid.as_fd(), CloneFlags::CLONE_NEWPID)?;
        let child = self.command.spawn();
        if let Err(err) = setns(own.as_fd(), CloneFlags::CLONE_NEWPID) {
            // Every later child of this thread would land in the lab.
            panic!("cannot leave the lab's pid namespace: {err}");
        }
        child
    }

    /// Runs the program, which must succeed, and gives its standard output.
    pub fn text(&mut self) -> anyhow::Result<String> {
        Ok(self.output()?.success()?.stdout)
    }

    /// Runs the program, which must succeed, and parses its standard output.
    pub fn json(&mut self) -> anyhow::Result<serde_json::Value> {
        let text = self.text()?;
        match serde_json::from_str(&text) {
            Ok(value) => Ok(value),
            Err(err) => bail!("`{}` printed no JSON ({err}): {text}", self.text_of()),
        }
    }

    /// Runs the program, which must succeed, and parses each line of its standard
    /// output.
    pub fn json_lines(&mut self) -> anyhow::Result<Vec<serde_json::Value>> {
        let text = self.text()?;
        text.lines()
            .map(|line| {
                serde_json::from_str(line).with_context(|| format!("this is no JSON: {line}"))
            })
            .collect()
    }

    fn cannot_run(&self) -> String {
        format!("cannot run `{}` in the lab", self.text_of())
    }

    /// The command line, for people.
    fn text_of(&self) -> String {
        let words = std::iter::once(self.command.get_program()).chain(self.command.get_args());
        let words: Vec<_> = words.map(OsStr::to_string_lossy).collect();
        words.join(" ")
    }
}

/// Makes the child enter the lab's namespaces, and one network namespace
/// inside it.
fn enter_before_exec(command: &mut Command, namespaces: &Arc<Namespaces>, netns: &Netns) {
    let namespaces = Arc::clone(namespaces);
    let netns = netns
        .path()
        // A name with a NUL inside names nothing: an empty path says ENOENT.
        .map(|path| CString::new(path).unwrap_or_default());
    let enter = move || {
        for (file, kind) in &namespaces.others {
            setns(file.as_fd(), *kind)?;
        }
        if let Some(path) = &netns {
            let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
            let file = open(path.as_c_str(), flags, Mode::empty())?;
            setns(file.as_fd(), CloneFlags::CLONE_NEWNET)?;
        }
        Ok(())
    };
    #[expect(unsafe_code, reason = "namespaces are entered by the child itself")]
    // SAFETY: between fork and exec this makes system calls only (open, setns,
    // close): it allocates nothing and takes no lock.
    unsafe {
        command.pre_exec(enter);
    }
}
