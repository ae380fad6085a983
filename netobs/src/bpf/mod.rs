//! Our programs and maps in the kernel. With `world`, the only code that
//! touches the machine.

mod alive;
pub mod attach;
pub mod chain;
pub mod counters;
pub mod filters;
pub mod kernel_types;
pub mod lookups;
pub mod object;
pub mod pins;
pub mod qdisc;
mod raw_links;
mod raw_maps;
mod tallies;
