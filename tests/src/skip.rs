//! Tests that a machine cannot run.

use std::{env, fs::OpenOptions, io::Write as _};

/// Environment variable with a file that notes every test that was skipped.
///
/// A runner shows nothing of what a passed test said, and a skipped one must not
/// look like a passed one.
pub const SKIPPED: &str = "NETOBS_LAB_SKIPPED";

/// Tells that the running test is skipped because of `why`. The caller has made
/// sure that the machine really lacks what it needs.
pub fn skip(why: &str) {
    let test = std::thread::current().name().unwrap_or("?").to_owned();
    let line = format!("{test}: {why}\n");
    eprint!("SKIPPED {line}");
    let Some(file) = env::var_os(SKIPPED) else {
        return;
    };
    let noted = OpenOptions::new()
        .append(true)
        .open(&file)
        .and_then(|mut file| file.write_all(line.as_bytes()));
    if let Err(err) = noted {
        panic!("cannot note a skipped test in {}: {err}", file.display());
    }
}
