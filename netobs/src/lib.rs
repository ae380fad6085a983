//! netobs.
