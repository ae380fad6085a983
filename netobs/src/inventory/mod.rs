//! From what was found on the machine to rows: pure.

pub mod behalf;
pub mod build;
pub mod facts;
pub mod select;
