//! Metrics over HTTP, and to whom.

pub mod config;
mod listen;
mod pages;
mod server;

pub use listen::{Bound, Listen};
pub use pages::{Pages, Request};
pub use server::Server;
