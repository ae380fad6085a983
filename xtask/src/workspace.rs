//! Where things are.

use std::{
    env,
    path::{Path, PathBuf},
};

/// The top folder of the workspace.
pub(crate) fn root() -> &'static Path {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().unwrap_or(own)
}

/// Cargo's target folder.
pub(crate) fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), |dir| root().join(dir))
}

/// Where a build leaves netobs.
pub(crate) fn netobs(debug: bool) -> PathBuf {
    target()
        .join(if debug { "debug" } else { "release" })
        .join("netobs")
}
