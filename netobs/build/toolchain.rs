//! Builds a crate of eBPF programs and leaves its objects in `OUT_DIR`: a part of the
//! build scripts of those who load them.
//!
//! The bpf target needs a compiler with the standard library's source and
//! `bpf-linker`. `cargo xtask build` finds or installs both and writes which
//! ones it took to `target/ebpf-toolchain`; this only reads that.

use std::{
    env,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, anyhow};
use aya_build::{Package, Toolchain};

/// Builds the package `name` in the folder `folder` of the workspace at `root`.
pub(crate) fn build(root: &Path, name: &str, folder: &str) -> anyhow::Result<()> {
    println!("cargo:rerun-if-env-changed=CARGO_TARGET_DIR");
    let choice = env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| root.join("target"), |dir| root.join(dir))
        .join("ebpf-toolchain");
    println!("cargo:rerun-if-changed={}", choice.display());
    let choice = EbpfToolchain::read(&choice)?;
    choice.enter();

    let ebpf = root.join(folder);
    let root_dir = ebpf
        .to_str()
        .ok_or_else(|| anyhow!("{} is not UTF-8", ebpf.display()))?;
    aya_build::build_ebpf(
        [Package {
            name,
            root_dir,
            ..Default::default()
        }],
        Toolchain::Custom(&choice.toolchain),
    )
    .context("the eBPF programs did not build: `cargo xtask doctor` says what the toolchain lacks")
}

/// What `cargo xtask build` chose.
struct EbpfToolchain {
    /// Name for `rustup run`.
    toolchain: String,
    /// Whether a stable compiler must be told to accept `-Z build-std`.
    bootstrap: bool,
    /// Folders that go ahead of PATH: bpf-linker, and LLVM's own.
    path: Vec<PathBuf>,
}

impl EbpfToolchain {
    fn read(file: &Path) -> anyhow::Result<Self> {
        let Ok(text) = fs::read_to_string(file) else {
            // Not set up by us: a nightly with rust-src and bpf-linker is what
            // aya's own documentation asks for.
            return Ok(Self {
                toolchain: "nightly".into(),
                bootstrap: false,
                path: Vec::new(),
            });
        };
        let value = |key: &str| {
            text.lines()
                .filter_map(|line| line.split_once('='))
                .find_map(|(k, v)| (k.trim() == key).then(|| v.trim()))
                .ok_or_else(|| anyhow!("{} lacks {key}=", file.display()))
        };
        Ok(Self {
            toolchain: value("toolchain")?.to_owned(),
            bootstrap: value("bootstrap")? == "1",
            path: env::split_paths(value("path")?).collect(),
        })
    }

    /// Puts the choice into this process's environment, where aya-build's
    /// children find it.
    #[expect(
        unsafe_code,
        reason = "aya-build takes its settings from the environment only"
    )]
    fn enter(&self) {
        let old = env::var_os("PATH").unwrap_or_default();
        let path: OsString =
            env::join_paths(self.path.iter().cloned().chain(env::split_paths(&old))).unwrap_or(old);
        // SAFETY: a build script's main has no other thread yet.
        unsafe {
            env::set_var("PATH", path);
            // aya-build shows the inner cargo's progress as warnings.
            env::set_var("CARGO_TERM_QUIET", "true");
            if self.bootstrap {
                env::set_var("RUSTC_BOOTSTRAP", "1");
            }
        }
    }
}
