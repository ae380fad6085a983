//! The lab: a Docker host of its own that tests, the demo and a curious
//! newcomer can break without touching the machine they sit at.
//!
//! A [`Lab`] is a set of new network, mount, pid, ipc and uts namespaces with
//! no way out. Its first process reads from a pipe that only the process with
//! the `Lab` holds: when that process ends, however it ends, the pipe closes,
//! the first process goes, and the kernel takes everything inside with it.
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! use netobs_tests::Lab;
//!
//! let lab = Lab::with_docker()?;
//! let a = lab.run_container("a", &["--cap-add=NET_ADMIN"], &[])?;
//! let b = lab.run_container("b", &[], &[])?;
//! a.exec(["ping", "-c1", &b.address()?])?;
//! println!("{:?}", lab.link_stats(&b.netns(), "eth0")?.rx);
//! # Ok(())
//! # }
//! ```

mod command;
mod container;
mod docker;
mod figures;
mod holder;
pub mod image;
mod lab;
pub mod leaks;
mod link;
mod netobs_bin;
mod poll;
mod proc;
mod prometheus;
mod skip;
mod systemd;

pub use command::{LabCommand, Netns};
pub use container::Container;
pub use figures::{FIGURES, SOAK, figure};
pub use lab::{Lab, LabBuilder};
pub use link::{Direction, LinkStats, QdiscStats};
pub use netobs_bin::{NETOBS_BIN, netobs_binary};
pub use poll::poll_until;
pub use proc::{Output, Proc};
pub use prometheus::{Prometheus, Series};
pub use skip::{SKIPPED, skip};
pub use systemd::Systemd;

/// Environment variable with the tag of a test run.
///
/// Processes inherit it and folders are named after it, so that the leak
/// check knows what belongs to its own run.
pub const RUN_TAG: &str = "NETOBS_LAB_RUN";
