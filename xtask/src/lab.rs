//! `cargo xtask lab`.

use std::{env, os::unix::process::CommandExt as _, process::ExitCode};

use anyhow::Context as _;

use crate::{cli, demo, root, run, setup, sh, signals, workspace};

pub(crate) fn lab(options: &cli::Lab) -> anyhow::Result<ExitCode> {
    setup::lab_packages(options.set_up.no_install)?;
    if !root::is_root() {
        let own = env::current_exe().context("own path")?;
        let mut command = root::command(own, &["TERM", "SHELL"])?;
        command.args(["lab", "--no-install"]);
        if !options.command.is_empty() {
            command.arg("--").args(&options.command);
        }
        eprintln!("+ {}", sh::text_of(&command));
        return Err(command.exec()).context("cannot start sudo");
    }
    signals::note_them()?;
    let demo = demo::start()?;
    let lab = &demo.lab;
    let shell = env::var("SHELL").unwrap_or_else(|_| "/bin/sh".into());
    let words = match &options.command[..] {
        [] => {
            eprintln!("xtask: the lab ends with this shell; try `docker ps`, `ip link`, `netobs`");
            &[shell][..]
        }
        command => command,
    };
    let mut path = vec![
        workspace::target().join("release"),
        workspace::target().join("debug"),
    ];
    path.extend(env::split_paths(&env::var_os("PATH").unwrap_or_default()));
    let mut command = lab.command(&words[0]);
    command
        .args(&words[1..])
        .env("DOCKER_HOST", lab.docker_host())
        .env("NETOBS_DOCKER_HOST", lab.docker_host())
        .env("PATH", env::join_paths(path)?);
    let status = command.status()?;
    drop(demo);
    Ok(run::exit_code(status))
}
