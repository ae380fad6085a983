//! From a view to text: one file per format. Pure: each gets a `Write`.

pub mod csv;
pub mod doctor;
pub mod json;
pub mod list;
pub mod names;
pub mod routes;
pub mod table;
pub mod text;
