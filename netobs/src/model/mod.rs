//! What was read, and what it means: pure data, no world.

pub mod baseline;
pub mod counters;
pub mod lookups;
pub mod sample;
pub mod view;
