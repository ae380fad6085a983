//! `cargo xtask test`.

use std::{
    env,
    ffi::OsString,
    fs,
    io::{BufRead as _, BufReader, IsTerminal as _, Read, Write},
    path::PathBuf,
    process::{Command, ExitCode, Stdio},
    str::FromStr as _,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use netobs_tests::{FIGURES, NETOBS_BIN, RUN_TAG, SKIPPED, SOAK, leaks::Snapshot};

use crate::{
    cli::SetUp,
    root, setup, sh,
    totals::{Runner, Totals},
    workspace,
};

/// How long the kernel may take to remove what tests let go.
const SETTLE: Duration = Duration::from_secs(20);

/// Files that test programs write to, one line at a time, and how long the soak is to
/// take where that is given.
struct Notes {
    skipped: PathBuf,
    figures: PathBuf,
    soak: Option<Duration>,
}

impl Notes {
    fn new(tag: &str, soak: Option<Duration>) -> anyhow::Result<Self> {
        let file = |what: &str| {
            let path = workspace::target().join(format!("{what}-{tag}"));
            fs::write(&path, "").with_context(|| format!("cannot write {}", path.display()))?;
            anyhow::Ok(path)
        };
        Ok(Self {
            skipped: file("skipped")?,
            figures: file("figures")?,
            soak,
        })
    }

    /// The environment of test programs.
    fn environment(&self, tag: &str) -> Vec<(&'static str, OsString)> {
        let mut all = vec![
            (NETOBS_BIN, workspace::netobs(true).into()),
            (RUN_TAG, tag.into()),
            (SKIPPED, self.skipped.clone().into()),
            (FIGURES, self.figures.clone().into()),
        ];
        if let Some(soak) = self.soak {
            all.push((SOAK, soak.as_secs().to_string().into()));
        }
        all
    }
}

/// The soak alone, for as long as is asked for.
pub(crate) fn soak(set_up: SetUp, duration: Duration) -> anyhow::Result<ExitCode> {
    let filter = ["--package", "netobs-tests", "--test", "soak"];
    run(set_up, &filter.map(str::to_owned), Some(duration))
}

pub(crate) fn test(set_up: SetUp, filter: &[String]) -> anyhow::Result<ExitCode> {
    run(set_up, filter, None)
}

fn run(set_up: SetUp, filter: &[String], soak: Option<Duration>) -> anyhow::Result<ExitCode> {
    setup::test_packages(set_up.no_install)?;
    setup::toolchain(set_up.no_install)?;
    sh::run(sh::cargo().args(["fmt", "--all", "--check"]))?;
    sh::run(sh::cargo().args(["clippy", "--all-targets", "--", "-D", "warnings"]))?;
    sh::run(sh::cargo().args(["build", "--package", "netobs", "--bin", "netobs"]))?;

    let tag = format!("{:x}", std::process::id());
    let before = snapshot(&tag)?;
    let notes = Notes::new(&tag, soak)?;
    let (succeeded, mut totals) = run_tests(&tag, &notes, filter)?;
    let skipped = fs::read_to_string(&notes.skipped)?;
    let figures = fs::read_to_string(&notes.figures)?;
    fs::remove_file(&notes.skipped)?;
    fs::remove_file(&notes.figures)?;
    for line in figures.lines() {
        eprintln!("figure: {line}");
    }
    // Their programs said that they passed.
    for line in skipped.lines() {
        eprintln!("skipped: {line}");
        totals.passed = totals.passed.saturating_sub(1);
        totals.skipped += 1;
    }
    let left = leaks(&tag, &before)?;
    if !left.is_empty() {
        eprintln!("\nthe tests left behind:");
        left.iter().for_each(|what| eprintln!("  {what}"));
        totals.failed += 1;
    }
    let nothing = totals.passed + totals.failed == 0;
    if nothing {
        eprintln!("\nno test ran");
    }
    // The runner may fail without a failed test, such as by a crash.
    if !succeeded && totals.failed == 0 && !nothing {
        totals.failed += 1;
    }
    let Totals {
        passed,
        failed,
        skipped,
    } = totals;
    println!("\n{passed} passed, {failed} failed, {skipped} skipped");
    Ok(match succeeded && totals.failed == 0 && !nothing {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

/// Runs all tests; whether the runner succeeded, and its totals.
fn run_tests(tag: &str, notes: &Notes, filter: &[String]) -> anyhow::Result<(bool, Totals)> {
    let mut cargo = sh::cargo();
    let runner = match sh::which("cargo-nextest") {
        Some(_) => Runner::Nextest,
        None => Runner::CargoTest,
    };
    match runner {
        Runner::Nextest => {
            cargo.args(["nextest", "run", "--no-fail-fast"]);
            cargo.args(["--no-tests", "warn"]);
        }
        Runner::CargoTest => {
            cargo.args(["test", "--no-fail-fast", "--lib", "--bins", "--tests"]);
            cargo.arg("--");
        }
    }
    cargo
        .args(filter)
        .envs(notes.environment(tag))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    if !root::is_root() {
        // Cargo stays ours, and so do its files; test programs become root's.
        let keep = ["RUST_BACKTRACE", "LD_LIBRARY_PATH", "CARGO_MANIFEST_DIR"];
        let mut start = vec!["sudo".to_owned()];
        start.extend(root::prefix(&keep));
        for (name, value) in notes.environment(tag) {
            start.push(format!("{name}={}", value.display()));
        }
        cargo.env(runner_variable()?, start.join(" "));
    }
    if std::io::stderr().is_terminal() {
        cargo.env("CARGO_TERM_COLOR", "always");
    }
    eprintln!("+ {}", sh::text_of(&cargo));
    let mut child = cargo.spawn().context("cannot start cargo")?;
    let stderr = child.stderr.take().context("a pipe")?;
    let reader = thread::spawn(move || tee(runner, stderr, std::io::stderr()));
    let stdout = child.stdout.take().context("a pipe")?;
    let mut totals = tee(runner, stdout, std::io::stdout());
    let more = reader.join().unwrap_or_default();
    totals.passed += more.passed;
    totals.failed += more.failed;
    totals.skipped += more.skipped;
    Ok((child.wait()?.success(), totals))
}

/// Hands lines on and reads totals from them.
fn tee(runner: Runner, from: impl Read, mut to: impl Write) -> Totals {
    let mut totals = Totals::default();
    let mut from = BufReader::new(from);
    let mut line = Vec::new();
    while matches!(from.read_until(b'\n', &mut line), Ok(n) if n > 0) {
        totals.read(runner, &String::from_utf8_lossy(&line));
        // Whoever reads our output may have gone; the tests go on.
        let _ = to.write_all(&line).and_then(|()| to.flush());
        line.clear();
    }
    totals
}

/// Cargo's setting for what starts test programs of this machine's kind.
fn runner_variable() -> anyhow::Result<String> {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc).arg("-vV").output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let Some(host) = text.lines().find_map(|line| line.strip_prefix("host: ")) else {
        bail!("rustc tells no host")
    };
    let host = host.to_uppercase().replace(['-', '.'], "_");
    Ok(format!("CARGO_TARGET_{host}_RUNNER"))
}

/// Looks around as root.
fn snapshot(tag: &str) -> anyhow::Result<Snapshot> {
    let own = env::current_exe().context("own path")?;
    let mut command = root::command("env", &[])?;
    command
        .arg(format!("{RUN_TAG}={tag}"))
        .arg(own)
        .arg("leak-snapshot");
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .context("cannot start the leak check")?;
    if !output.status.success() {
        bail!("the leak check ended with {}", output.status);
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let Ok(snapshot) = Snapshot::from_str(&text);
    Ok(snapshot)
}

/// What the tests left, after the kernel had time to settle.
fn leaks(tag: &str, before: &Snapshot) -> anyhow::Result<Vec<String>> {
    let end = Instant::now() + SETTLE;
    loop {
        let left = snapshot(tag)?.since(before);
        if left.is_empty() || Instant::now() >= end {
            return Ok(left);
        }
        thread::sleep(Duration::from_millis(300));
    }
}
