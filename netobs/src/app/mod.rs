//! Wires everything: the only place that knows both the world and the pure
//! half.

mod clean;
mod doctor;
mod list;
mod live;
mod output;
mod paced;
mod routes;
mod screen;
mod serve;
mod traffic;
mod watch;

use std::io::{self, Write as _};

use clap::CommandFactory as _;
use log::LevelFilter;
use nix::libc::{ENOMEM, EPERM};

use crate::{
    cli::{Cli, Command, SchemaArg},
    config,
    error::{Cause, Chain, Failure},
    model::sample::Host,
    render::schema,
    world::{limits, privilege, seccomp, text},
};

/// Runs what the command line asks for.
///
/// # Errors
/// With the exit code and what to tell.
pub fn run(cli: Cli) -> Result<(), Failure> {
    start_log(cli.global.verbose);
    if let Some(fields) = config::fields_to_tell(&cli.command) {
        return print((fields.join("\n") + "\n").as_bytes());
    }
    match &cli.command {
        Command::Watch(args) => {
            let config = config::Watch::new(&cli.global, args)?;
            block_on(watch::run(config))
        }
        Command::Serve(args) => {
            let config = config::Serve::new(&cli.global, args)?;
            block_on(serve::run(config))
        }
        Command::List(args) => {
            let config = config::List::new(&cli.global, args)?;
            block_on(list::run(config))
        }
        Command::Routes(args) => {
            let config = config::Routes::new(&cli.global, args)?;
            block_on(routes::run(config))
        }
        Command::Doctor(args) => {
            let config = config::Doctor::new(&cli.global, args)?;
            block_on(doctor::run(config))
        }
        Command::Clean(args) => block_on(clean::run(&args.pin_path)),
        Command::Schema { name } => print(
            match name {
                SchemaArg::Sample => schema::SAMPLE,
                SchemaArg::List => schema::LIST,
                SchemaArg::Routes => schema::ROUTES,
                SchemaArg::Doctor => schema::DOCTOR,
            }
            .as_bytes(),
        ),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "netobs", &mut script);
            print(&script)
        }
        Command::Man => {
            let mut page = Vec::new();
            clap_mangen::Man::new(Cli::command())
                .render(&mut page)
                .map_err(|error| Failure::new(Cause::Run, error.into()))?;
            print(&page)
        }
    }
}

/// Warnings always; more with -v; RUST_LOG has the last word.
fn start_log(verbose: u8) {
    let level = match verbose {
        0 => LevelFilter::Warn,
        1 => LevelFilter::Info,
        2 => LevelFilter::Debug,
        _ => LevelFilter::Trace,
    };
    env_logger::Builder::new()
        // Libraries speak when asked by name or by -vvv: what they call an error
        // (an interface name that is not UTF-8) is none here.
        .filter_level(if verbose > 2 { level } else { LevelFilter::Off })
        .filter_module("netobs", level)
        .filter_module("netobs_ebpf", level)
        .parse_default_env()
        .init();
}

fn block_on(work: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    // Before the capability for it is given up.
    limits::raise();
    // There are no other threads yet.
    if let Err(error) = privilege::reduce() {
        log::debug!("capabilities: {error:#}");
    }
    if let Err(error) = seccomp::install() {
        log::debug!("system calls: {error:#}");
    }
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Cause::Run, error.into()))
        .and_then(|runtime| runtime.block_on(work))
        .map_err(name_the_limit)
}

/// What a limit of open files is behind is told as that.
fn name_the_limit(failure: Failure) -> Failure {
    match limits::behind(failure.error.as_ref()) {
        Some(short) if !format!("{:#}", failure.error).contains(&short.to_string()) => {
            Failure::new(Cause::Run, failure.error.context(short))
        }
        _ => failure,
    }
}

/// Writes all of `bytes` to standard output. A reader that went away is fine.
fn print(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    output::finish(out.write_all(bytes).and_then(|()| out.flush()))
}

fn host() -> Host {
    let name = nix::unistd::gethostname().unwrap_or_default();
    Host {
        name: text::lossless_os(&name),
        kernel: std::fs::read_to_string("/proc/sys/kernel/osrelease")
            .map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned()),
    }
}

/// Why loading or attaching failed, as an exit code: a capability that is
/// missing, or a kernel that cannot.
fn explain(error: anyhow::Error) -> Failure {
    if limits::behind(error.as_ref()).is_some() {
        return Failure::new(Cause::Run, error);
    }
    if let Some(failure) = not_permitted(&Chain(&error)) {
        return failure;
    }
    let refused = error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|cause| matches!(cause.raw_os_error(), Some(EPERM | ENOMEM)));
    match limits::memory(&host().kernel) {
        Some(memory) if refused => Failure::new(Cause::NotPermitted, error.context(memory)),
        _ => Failure::new(
            Cause::Kernel,
            error.context(
                "the kernel lacks what netobs needs: eBPF with memory-mapped arrays (since Linux 5.5) \
                 and TC hooks by TCX (6.6) or clsact (4.5, CONFIG_NET_CLS_BPF and \
                 CONFIG_NET_SCH_INGRESS); `netobs doctor` tells what is there",
            ),
        ),
    }
}

/// Names the capabilities that are missing, where any are.
fn not_permitted(what: &dyn std::fmt::Display) -> Option<Failure> {
    let missing: Vec<String> = privilege::missing()
        .map(|need| format!("{} (to {})", need.capability, need.purpose))
        .collect();
    if missing.is_empty() {
        return None;
    }
    let (missing, how) = (missing.join(", "), privilege::HOW);
    // The verifier's log is of a program that is fine with the capability.
    let what = what.to_string();
    let what = what.split(". Verifier output").next().unwrap_or_default();
    Some(Failure::words(
        Cause::NotPermitted,
        format!("not permitted: {what}; missing {missing}; {how}"),
    ))
}
