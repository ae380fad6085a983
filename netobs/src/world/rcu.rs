//! Shorter RCU grace periods while programs are attached or detached.
//!
//! Each TCX attach and detach waits for a grace period while it holds the lock
//! of all link operations: some 9 ms each, one after the other, and nobody else
//! can touch a link meanwhile. Expedited, it is microseconds.
//! <https://github.com/torvalds/linux/blob/v6.18/kernel/ksysfs.c>

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Seek as _, Write as _},
    thread,
    time::Duration,
};

use nix::fcntl::{Flock, FlockArg};

const EXPEDITED: &str = "/sys/kernel/rcu_expedited";
const NORMAL: &str = "/sys/kernel/rcu_normal";

/// What netobs writes there, "no": any number but 0 sets it, and by this one what a killed
/// netobs has left is known. (Administrators write 1.)
pub const OURS: &str = "28271";

/// How often to try for a lock that is held for a moment.
const ATTEMPTS: usize = 5;

/// Grace periods are expedited as long as this lives.
#[derive(Debug)]
pub struct Expedited {
    file: Option<Flock<File>>,
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
    /// take longer, and no more. Several netobs may have it set at a time: the last
    /// one puts it back.
    #[must_use]
    pub fn begin() -> Option<Self> {
        if let Err(why) = obstacle() {
            log::debug!("grace periods stay as they are: {why}");
            return None;
        }
        let mut file = lock(File::options().write(true).open(EXPEDITED).ok()?)?;
        // Another one may have put it back since we looked, or somebody set it.
        obstacle().ok()?;
        write(&mut file, OURS).ok()?;
        Some(Self { file: Some(file) })
    }

    /// Puts back what a killed netobs has left set; whether there was anything.
    #[must_use]
    pub fn repair() -> bool {
        // Going out of scope puts it back, unless a living one has it.
        is_ours() && Self::begin().is_some() && !is_ours()
    }
}

/// For sharing with others that have it set. Who puts it back has it alone, and for a
/// moment only.
fn lock(mut file: File) -> Option<Flock<File>> {
    for _ in 0..ATTEMPTS {
        match Flock::lock(file, FlockArg::LockSharedNonblock) {
            Ok(locked) => return Some(locked),
            Err((back, _)) => file = back,
        }
        thread::sleep(Duration::from_millis(1));
    }
    None
}

fn is_ours() -> bool {
    fs::read_to_string(EXPEDITED).is_ok_and(|text| text.trim() == OURS)
}

fn write(file: &mut File, value: &str) -> io::Result<()> {
    file.rewind()?;
    file.write_all(value.as_bytes())
}

impl Drop for Expedited {
    fn drop(&mut self) {
        let Some(file) = self.file.take() else { return };
        let alone = file.unlock().map_err(|(_, error)| error).and_then(|file| {
            Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| error)
        });
        // Another one has it, and will put it back.
        let Ok(mut file) = alone else { return };
        // Somebody may have set it for good meanwhile.
        if !is_ours() {
            return;
        }
        if let Err(error) = write(&mut file, "0") {
            log::warn!("{EXPEDITED} stays set: {error}; `echo 0 > {EXPEDITED}` puts it back");
        }
    }
}
