//! `netobs routes` in its formats.

mod csv;
mod json;
mod table;

pub use csv::{csv, csv_fields, csv_header};
pub use json::{SCHEMA, json};
pub use table::lines;
