//! Empty on purpose: `netobs-bench` names this crate as a build dependency, so that
//! cargo builds it again when the programs change. The programs are the binary
//! (`src/main.rs`), built for the bpf target by `netobs-bench`'s build script.
#![no_std]
