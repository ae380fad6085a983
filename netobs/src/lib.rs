//! netobs observes network namespaces: packet counters per container, by eBPF.
//!
//! A counter travels one way: kernel program, map, [`model::sample`],
//! [`model::view`], [`render`], output. `model`, `inventory` and `render` are
//! pure; `bpf` and `world` touch the machine; `app` wires them.

pub mod app;
pub mod bpf;
pub mod cli;
pub mod config;
pub mod error;
pub mod inventory;
pub mod model;
pub mod observer;
pub mod render;
pub mod web;
pub mod world;
