//! netobs.
fn main() {}
