//! `cargo xtask run`.

use std::{
    env,
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    path::Path,
    process::{ExitCode, ExitStatus},
    time::Duration,
};

use anyhow::{Context as _, bail};
use netobs_tests::{Lab, NETOBS_BIN, poll_until};

use crate::{build, cli::Run, demo, host, root, setup, sh, signals};

/// Environment that netobs may take its settings from.
const KEEP: [&str; 6] = [
    "DOCKER_HOST",
    "NO_COLOR",
    "RUST_LOG",
    "RUST_BACKTRACE",
    "TERM",
    "COLORTERM",
];

pub(crate) fn run(options: &Run) -> anyhow::Result<ExitCode> {
    let in_lab = options.lab || (!options.no_lab && !has_namespaces());
    let netobs = match &options.built {
        Some(netobs) => netobs.clone(),
        None => {
            if in_lab {
                setup::lab_packages(options.build.set_up.no_install)?;
            }
            build::build(&options.build)?
        }
    };
    let watch = ["watch".to_owned()];
    let args = match &options.args[..] {
        [] => &watch[..],
        args => args,
    };
    match in_lab {
        true => run_in_lab(&netobs, args),
        false => run_here(&netobs, args),
    }
}

fn has_namespaces() -> bool {
    match host::something_to_show() {
        Some(what) => {
            eprintln!("xtask: netobs will show this host ({what}); --lab shows a lab instead");
            true
        }
        None => {
            eprintln!(
                "xtask: this host has no containers and no named namespaces to show: using the lab"
            );
            false
        }
    }
}

/// Becomes netobs: nothing of ours is left to clean up.
fn run_here(netobs: &Path, args: &[String]) -> anyhow::Result<ExitCode> {
    let mut keep: Vec<String> = KEEP.map(str::to_owned).to_vec();
    keep.extend(
        env::vars()
            .map(|(name, _)| name)
            .filter(|name| name.starts_with("NETOBS_")),
    );
    let keep: Vec<&str> = keep.iter().map(String::as_str).collect();
    let mut command = root::command(netobs, &keep)?;
    command.args(args);
    eprintln!("+ {}", sh::text_of(&command));
    Err(command.exec()).with_context(|| format!("cannot start {}", netobs.display()))
}

fn run_in_lab(netobs: &Path, args: &[String]) -> anyhow::Result<ExitCode> {
    if !root::is_root() {
        // The lab needs root as a whole.
        let own = env::current_exe().context("own path")?;
        let mut command = root::command(own, &KEEP)?;
        command.args(["run", "--lab", "--built"]).arg(netobs);
        command.arg("--").args(args);
        eprintln!("+ {}", sh::text_of(&command));
        return Err(command.exec()).context("cannot start sudo");
    }
    signals::note_them()?;
    let demo = demo::start();
    if signals::take().is_some() {
        return Ok(ExitCode::SUCCESS);
    }
    let status = netobs_in(&demo?.lab, netobs, args)?;
    Ok(exit_code(status))
}

/// Runs netobs in the lab with our terminal; hands signals on that came to
/// us alone.
fn netobs_in(lab: &Lab, netobs: &Path, args: &[String]) -> anyhow::Result<ExitStatus> {
    #[expect(
        unsafe_code,
        reason = "the lab takes netobs's path from the environment"
    )]
    // SAFETY: xtask has no other threads that read the environment: those of
    // the lab only read pipes.
    unsafe {
        env::set_var(NETOBS_BIN, netobs);
    }
    let mut proc = lab.netobs(args)?.spawn()?;
    let mut asked = 0;
    loop {
        if let Some(status) = proc.try_wait()? {
            return Ok(status);
        }
        if let Some(came) = signals::take() {
            // The first of a terminal has reached netobs as well: one that does not end
            // by it is asked again by the next.
            if !came.to_all || asked > 0 {
                proc.signal(came.signal)?;
            }
            asked += 1;
        }
        if asked > 3 {
            bail!("netobs does not end");
        }
        let _ = poll_until(Duration::from_millis(50), "netobs's end", || {
            proc.try_wait()
        });
    }
}

/// Its own exit code, or a shell's for a signal.
pub(crate) fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status.code().or_else(|| status.signal().map(|n| 128 + n));
    ExitCode::from(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}
