//! The file that tells `netobs/build.rs` which toolchain to use.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::Context as _;

use crate::workspace;

/// A toolchain that builds the eBPF programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Choice {
    /// In words: which way, and what.
    pub(crate) way: String,
    /// The name for `rustup run`.
    pub(crate) toolchain: String,
    /// Whether it is a stable compiler that must be told to take `-Z` flags.
    pub(crate) bootstrap: bool,
    /// Folders that go in front of PATH.
    pub(crate) path: Vec<PathBuf>,
}

impl Choice {
    /// Where build.rs looks.
    pub(crate) fn file() -> PathBuf {
        workspace::target().join("ebpf-toolchain")
    }

    pub(crate) fn write(&self) -> anyhow::Result<()> {
        let file = Self::file();
        let text = self.text()?;
        // Unchanged, it stays untouched: cargo would build everything again.
        if fs::read_to_string(&file).is_ok_and(|old| old == text) {
            return Ok(());
        }
        let folder = file.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder)
            .and_then(|()| fs::write(&file, text))
            .with_context(|| format!("cannot write {}", file.display()))
    }

    fn text(&self) -> anyhow::Result<String> {
        let path = env::join_paths(&self.path)?;
        Ok(format!(
            "toolchain={}\nbootstrap={}\npath={}\n",
            self.toolchain,
            u8::from(self.bootstrap),
            path.to_str().context("a path that is not UTF-8")?
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_a_list_of_keys_and_values() {
        let choice = Choice {
            way: String::new(),
            toolchain: "netobs-ebpf".into(),
            bootstrap: true,
            path: vec!["/a/bin".into(), "/b".into()],
        };
        let wanted = "toolchain=netobs-ebpf\nbootstrap=1\npath=/a/bin:/b\n";
        assert_eq!(choice.text().unwrap(), wanted);
    }
}
