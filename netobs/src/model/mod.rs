//! What was read, and what it means: pure data, no world.

pub mod baseline;
pub mod book;
pub mod causes;
pub mod counters;
pub mod exporter;
pub mod ledger;
pub mod lookups;
pub mod neighbours;
pub mod process;
pub mod remarks;
pub mod route;
pub mod routing;
pub mod sample;
pub mod view;
