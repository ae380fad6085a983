//! The lab and what can be done with it.

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use anyhow::{Context as _, bail};
use nix::sys::signal::Signal;

use crate::{
    Container, LabCommand, LinkStats, Netns, QdiscStats,
    docker::{Docker, Paths},
    holder::Holder,
    image, link, netobs_binary,
};

/// Subcommands of netobs that take `--docker-host`.
const OBSERVING: [&str; 6] = ["watch", "list", "routes", "serve", "doctor", "clean"];

/// A machine of its own to play with; all of it ends when this is dropped.
#[derive(Debug)]
pub struct Lab {
    docker: Mutex<Option<Docker>>,
    paths: Paths,
    dockerd_args: Vec<String>,
    // Last: what is in the lab goes first.
    holder: Holder,
}

/// How a lab is to be; see [`Lab::builder`].
#[derive(Clone, Debug, Default)]
pub struct LabBuilder {
    docker: bool,
    dockerd_args: Vec<String>,
}

impl LabBuilder {
    /// With a running dockerd and the image [`image::NAME`].
    pub fn docker(mut self) -> Self {
        self.docker = true;
        self
    }

    /// One more argument for dockerd, whenever it is started.
    pub fn dockerd_arg(mut self, arg: &str) -> Self {
        self.dockerd_args.push(arg.to_owned());
        self
    }

    /// Makes the lab.
    pub fn start(self) -> anyhow::Result<Lab> {
        let holder = Holder::start()?;
        let lab = Lab {
            docker: Mutex::new(None),
            paths: Paths::new(holder.folder()),
            dockerd_args: self.dockerd_args,
            holder,
        };
        if self.docker {
            lab.start_docker()?;
        }
        Ok(lab)
    }
}

impl Lab {
    /// A lab to be configured.
    pub fn builder() -> LabBuilder {
        LabBuilder::default()
    }

    /// A lab with namespaces only; [`Lab::start_docker`] may follow.
    pub fn new() -> anyhow::Result<Self> {
        Self::builder().start()
    }

    /// A lab with dockerd and the image.
    pub fn with_docker() -> anyhow::Result<Self> {
        Self::builder().docker().start()
    }

    /// The lab's name: that of its folder and of its containers' cgroups.
    pub fn name(&self) -> &str {
        self.holder.name()
    }

    /// A folder for files, at the same path inside and outside.
    pub fn tmp(&self) -> &Path {
        self.holder.folder()
    }

    /// A program inside the lab, in its own network namespace.
    pub fn command(&self, program: impl AsRef<OsStr>) -> LabCommand {
        self.command_in(&Netns::Host, program)
    }

    /// A program inside the lab, in one of its network namespaces.
    pub fn command_in(&self, netns: &Netns, program: impl AsRef<OsStr>) -> LabCommand {
        LabCommand::new(self.holder.namespaces(), netns, program)
    }

    /// A shell script inside the lab, which must succeed; gives what it said.
    pub fn shell(&self, script: &str) -> anyhow::Result<String> {
        self.command("sh").args(["-ec", script]).text()
    }

    /// Makes a named network namespace with `lo` up.
    pub fn netns_add(&self, name: &str) -> anyhow::Result<Netns> {
        self.command("ip").args(["netns", "add", name]).text()?;
        let set_up = ["-n", name, "link", "set", "lo", "up"];
        self.command("ip").args(set_up).text()?;
        Ok(Netns::Named(name.to_owned()))
    }

    /// Removes a named network namespace.
    pub fn netns_del(&self, name: &str) -> anyhow::Result<()> {
        self.command("ip").args(["netns", "del", name]).text()?;
        Ok(())
    }

    /// Starts dockerd, for the first time or again, and waits until it
    /// answers. What it knew before is still there.
    pub fn start_docker(&self) -> anyhow::Result<()> {
        let mut docker = self.docker_state();
        if docker.is_some() {
            bail!("dockerd of {} runs already", self.name());
        }
        let mut command = self.command("dockerd");
        command.args(&self.dockerd_args);
        *docker = Some(Docker::start(command, &self.paths, self.name())?);
        drop(docker);
        let known = self.docker(["image", "inspect", image::NAME]).output()?;
        if !known.status.success() {
            self.import_image()?;
        }
        Ok(())
    }

    /// Ends dockerd and, with it, its containers.
    pub fn stop_docker(&self) -> anyhow::Result<()> {
        self.end_docker(Signal::SIGTERM)
    }

    /// Kills dockerd. Its containers live on until it is started again (and
    /// after that too with `dockerd_arg("--live-restore")`).
    pub fn kill_docker(&self) -> anyhow::Result<()> {
        self.end_docker(Signal::SIGKILL)
    }

    fn end_docker(&self, signal: Signal) -> anyhow::Result<()> {
        let docker = self.docker_state().take();
        docker.context("dockerd does not run")?.end(signal)
    }

    fn docker_state(&self) -> MutexGuard<'_, Option<Docker>> {
        self.docker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn import_image(&self) -> anyhow::Result<()> {
        let tar = self.tmp().join("image.tar");
        image::write_tar(self.tmp(), &tar)?;
        self.docker(["import"])
            .arg(&tar)
            .arg(image::NAME)
            .text()
            .context("the lab's image")?;
        fs::remove_file(&tar).with_context(|| format!("cannot remove {}", tar.display()))
    }

    /// Docker's URL, for `--docker-host`.
    pub fn docker_host(&self) -> String {
        self.paths.url()
    }

    /// Docker's socket.
    pub fn docker_socket(&self) -> PathBuf {
        self.paths.socket()
    }

    /// A `docker` command.
    pub fn docker<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> LabCommand {
        // The system's client fits its dockerd; another on PATH may not.
        let client = Path::new("/usr/bin/docker");
        let mut command = match client.exists() {
            true => self.command(client),
            false => self.command("docker"),
        };
        command
            .env("DOCKER_HOST", self.docker_host())
            .env("DOCKER_CONFIG", self.tmp().join("docker-config"))
            .env_remove("DOCKER_CONTEXT")
            .args(args);
        command
    }

    /// Starts a container of the lab's image: `options` are those of `docker
    /// run`; without a `command` it sleeps.
    pub fn run_container(
        &self,
        name: &str,
        options: &[&str],
        command: &[&str],
    ) -> anyhow::Result<Container<'_>> {
        let command = match command {
            // A first process ignores SIGTERM unless it traps it, and
            // `docker stop` would wait for ten seconds.
            [] => &["sh", "-c", "trap exit TERM; sleep 2147483647 & wait"],
            command => command,
        };
        let id = self
            .docker(["run", "--detach", "--name", name])
            .args(options)
            .arg(image::NAME)
            .args(command)
            .text()?;
        Container::new(self, name, id.trim().to_owned())
    }

    /// Runs a command in a container, which must succeed; gives its standard
    /// output.
    pub fn exec<S: AsRef<OsStr>>(
        &self,
        container: &str,
        command: impl IntoIterator<Item = S>,
    ) -> anyhow::Result<String> {
        self.docker(["exec", container]).args(command).text()
    }

    /// The netobs under test, inside the lab; where the lab's dockerd runs
    /// (or ran), `--docker-host` follows the subcommand.
    pub fn netobs<S: AsRef<OsStr>>(
        &self,
        args: impl IntoIterator<Item = S>,
    ) -> anyhow::Result<LabCommand> {
        self.netobs_in(&Netns::Host, args)
    }

    /// The same in one of the lab's network namespaces.
    pub fn netobs_in<S: AsRef<OsStr>>(
        &self,
        netns: &Netns,
        args: impl IntoIterator<Item = S>,
    ) -> anyhow::Result<LabCommand> {
        let mut command = self.command_in(netns, netobs_binary()?);
        let mut first = true;
        for arg in args {
            command.arg(&arg);
            let observing = first && OBSERVING.iter().any(|word| arg.as_ref() == *word);
            // The lab's folder has dockerd's log from its first start on.
            if observing && self.tmp().join("dockerd.log").exists() {
                command.args(["--docker-host", &self.docker_host()]);
            }
            first = false;
        }
        Ok(command)
    }

    /// What the kernel counted on a link.
    pub fn link_stats(&self, netns: &Netns, ifname: &str) -> anyhow::Result<LinkStats> {
        let args = ["-s", "-j", "link", "show", "dev", ifname];
        link::stats(&self.command_in(netns, "ip").args(args).json()?)
            .with_context(|| format!("counters of {ifname}"))
    }

    /// What the kernel counted at a link's queueing disciplines.
    pub fn qdisc_stats(&self, netns: &Netns, ifname: &str) -> anyhow::Result<Vec<QdiscStats>> {
        let args = ["-s", "-j", "qdisc", "show", "dev", ifname];
        link::qdiscs(&self.command_in(netns, "tc").args(args).json()?)
            .with_context(|| format!("counters of {ifname}'s qdiscs"))
    }
}
