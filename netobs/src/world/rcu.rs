//! Shorter RCU grace periods while many programs are attached or detached.
//!
//! Each TCX attach and detach waits for a grace period while it holds the lock
//! of all link operations: some 9 ms each, one after the other, and nobody else
//! can touch a link meanwhile. Expedited, it is microseconds.
//! <https://github.com/torvalds/linux/blob/v6.18/kernel/ksysfs.c>

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Seek as _, Write as _},
};

use nix::fcntl::{Flock, FlockArg};

const EXPEDITED: &str = "/sys/kernel/rcu_expedited";
const NORMAL: &str = "/sys/kernel/rcu_normal";

/// What netobs writes there, "no": any number but 0 sets it, and by this one what a killed
/// netobs has left is known. (Administrators write 1.)
const OURS: &str = "28271";

/// Grace periods are expedited as long as this lives.
#[derive(Debug)]
pub struct Expedited {
    file: Flock<File>,
}

/// What stands in the way of expediting, if anything does.
///
/// # Errors
/// In words.
pub fn obstacle() -> Result<(), String> {
    let read = |path: &str| fs::read_to_string(path).map_err(|error| format!("{path}: {error}"));
    if read(NORMAL)?.trim() != "0" {
        return Err(format!("{NORMAL} is set: this host wants none"));
    }
    if !["0", OURS].contains(&read(EXPEDITED)?.trim()) {
        return Err(format!("{EXPEDITED} is set already"));
    }
    OpenOptions::new()
        .write(true)
        .open(EXPEDITED)
        .map(|_| ())
        .map_err(|error| format!("{EXPEDITED}: {error}"))
}

impl Expedited {
    /// Sets it; `None` where that is not possible or not wanted: then things
    /// take longer, and no more.
    #[must_use]
    pub fn begin() -> Option<Self> {
        if let Err(why) = obstacle() {
            log::debug!("grace periods stay as they are: {why}");
            return None;
        }
        let file = OpenOptions::new().write(true).open(EXPEDITED).ok()?;
        // Another netobs that has set it will put it back: of two that did,
        // the second would put back the first one's.
        let file = Flock::lock(file, FlockArg::LockExclusiveNonblock).ok()?;
        // Looked at before the lock was ours.
        obstacle().ok()?;
        let mut expedited = Self { file };
        expedited.write(OURS).ok()?;
        Some(expedited)
    }

    /// Puts back what a killed netobs has left set; whether there was anything.
    #[must_use]
    pub fn repair() -> bool {
        let left = fs::read_to_string(EXPEDITED).is_ok_and(|text| text.trim() == OURS);
        // Going out of scope puts it back. Where a living one has it, it will.
        left && Self::begin().is_some()
    }

    fn write(&mut self, value: &str) -> io::Result<()> {
        self.file.rewind()?;
        self.file.write_all(value.as_bytes())
    }
}

impl Drop for Expedited {
    fn drop(&mut self) {
        if let Err(error) = self.write("0") {
            log::warn!("{EXPEDITED} stays set: {error}; `echo 0 > {EXPEDITED}` puts it back");
        }
    }
}
