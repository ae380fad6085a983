//! The process that observes.

use std::time::Duration;

/// What it takes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Process {
    /// User and system CPU time.
    pub cpu: Duration,
    /// Resident memory.
    pub resident_bytes: u64,
    /// Virtual memory.
    pub virtual_bytes: u64,
    /// Open file descriptors.
    pub open_files: u64,
    /// How many of these there can be.
    pub max_files: u64,
    /// Threads.
    pub threads: u64,
    /// When it started, in seconds since the epoch.
    pub started: f64,
}
