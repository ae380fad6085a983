//! Builds the programs that netobs is compared with (`netobs-bench-ebpf`).

#[path = "../../netobs/build/toolchain.rs"]
mod toolchain;

use std::path::Path;

use anyhow::anyhow;

fn main() -> anyhow::Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .ok_or_else(|| anyhow!("the crate stands alone"))?;
    toolchain::build(root, "netobs-bench-ebpf", "tests/bench-ebpf")
}
