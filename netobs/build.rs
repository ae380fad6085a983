//! Builds the eBPF programs (`netobs-ebpf`) and leaves the objects in `OUT_DIR`.

#[path = "build/toolchain.rs"]
mod toolchain;

use std::path::Path;

use anyhow::anyhow;

fn main() -> anyhow::Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .ok_or_else(|| anyhow!("the crate stands alone"))?;
    println!(
        "cargo:rerun-if-changed={}",
        root.join("netobs-common").display()
    );
    toolchain::build(root, "netobs-ebpf", "netobs-ebpf")
}
