//! The netobs under test.

use std::{
    env,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};

/// Environment variable with the path of the netobs to test.
pub const NETOBS_BIN: &str = "NETOBS_BIN";

/// Finds the netobs to test: [`NETOBS_BIN`], else the newest one in the
/// target folder that this test was built into.
pub fn netobs_binary() -> anyhow::Result<PathBuf> {
    if let Some(path) = env::var_os(NETOBS_BIN) {
        let path = PathBuf::from(path);
        return path
            .canonicalize()
            .with_context(|| format!("{NETOBS_BIN}={}", path.display()));
    }
    let own = env::current_exe().context("own path")?;
    match newest_below(&own) {
        Some(path) => Ok(path),
        None => bail!(
            "there is no netobs beside {}: run `cargo build --bin netobs` \
             (or `cargo xtask test`), or set {NETOBS_BIN}",
            own.display()
        ),
    }
}

/// A test is in `target/PROFILE/deps`, netobs in `target/PROFILE`.
fn newest_below(test: &Path) -> Option<PathBuf> {
    let target = test.ancestors().nth(3)?;
    ["debug", "release"]
        .iter()
        .map(|profile| target.join(profile).join("netobs"))
        .filter(|path| path.is_file())
        .max_by_key(|path| path.metadata().and_then(|meta| meta.modified()).ok())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn takes_the_newest_of_the_profiles() {
        let target = nix::unistd::mkdtemp(&env::temp_dir().join("netobs-bin-XXXXXX")).unwrap();
        let test = target.join("debug/deps/lab-0123");
        assert_eq!(newest_below(&test), None);
        for profile in ["debug", "release"] {
            fs::create_dir(target.join(profile)).unwrap();
            let file = fs::File::create(target.join(profile).join("netobs")).unwrap();
            let age = u64::from(profile == "release") * 60;
            let then = std::time::SystemTime::now() - std::time::Duration::from_secs(age);
            file.set_modified(then).unwrap();
        }
        assert_eq!(newest_below(&test), Some(target.join("debug/netobs")));
        fs::remove_dir_all(&target).unwrap();
    }
}
