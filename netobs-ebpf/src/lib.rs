//! Empty on purpose: `netobs` names this crate as a build dependency, so that
//! cargo builds it again when the eBPF programs change. The programs are the
//! binary (`src/main.rs`), built for the bpf target by `netobs/build.rs`.
#![no_std]
