//! From a view to text: one file per format. Pure: each gets a `Write`.

pub mod columns;
pub mod csv;
pub mod doctor;
pub mod json;
pub mod list;
pub mod metrics;
pub mod names;
pub mod routes;
pub mod schema;
pub mod table;
pub mod text;

/// How to show a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Style {
    /// Columns of the terminal.
    pub width: usize,
    /// Lines that fit, `None` for as many as there are.
    pub height: Option<usize>,
    /// Use colour.
    pub color: bool,
    /// Show warnings below.
    pub notes: bool,
}
