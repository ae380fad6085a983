//! Figures that a test run shows at its end.

use std::{env, fs::OpenOptions, io::Write as _};

/// Environment variable with the file for figures of a test run.
pub const FIGURES: &str = "NETOBS_TEST_FIGURES";

/// Environment variable with the number of seconds that the soak is to take.
pub const SOAK: &str = "NETOBS_SOAK";

/// Notes a figure that was measured: one line for people. It is no test.
pub fn figure(line: &str) {
    println!("{line}");
    let Some(path) = env::var_os(FIGURES) else {
        return;
    };
    let file = OpenOptions::new().append(true).create(true).open(path);
    if let Err(error) = file.and_then(|mut file| writeln!(file, "{line}")) {
        eprintln!("figures: {error}");
    }
}
