//! Way 1: a nightly of rustup's, with the standard library's source.

use std::path::Path;

use super::Choice;
use crate::sh;

/// Finds a complete nightly and a linker, or says what they lack.
pub(crate) fn find() -> Result<Choice, String> {
    let nightlies = nightlies()?;
    let Some(nightly) = nightlies.iter().find(|name| has_source(name)) else {
        return Err(format!("{} has no rust-src", nightlies.join(", ")));
    };
    let Some(linker) = sh::which("bpf-linker") else {
        return Err(format!(
            "{nightly} is complete, but no bpf-linker is on PATH"
        ));
    };
    Ok(Choice {
        way: format!("rustup's {nightly}, {}", linker.display()),
        toolchain: nightly.clone(),
        bootstrap: false,
        path: linker.parent().map(Path::to_owned).into_iter().collect(),
    })
}

fn nightlies() -> Result<Vec<String>, String> {
    let list = sh::ask("rustup", ["toolchain", "list"]).ok_or("there is no rustup")?;
    let names = list
        .lines()
        .filter_map(|line| line.split_whitespace().next());
    let nightlies: Vec<_> = names
        .filter(|name| name.starts_with("nightly"))
        .map(str::to_owned)
        .collect();
    match nightlies.is_empty() {
        true => Err("rustup has no nightly".to_owned()),
        false => Ok(nightlies),
    }
}

/// Whether `-Z build-std` finds its source there.
pub(crate) fn has_source(toolchain: &str) -> bool {
    let sysroot = sh::ask("rustup", ["run", toolchain, "rustc", "--print", "sysroot"]);
    sysroot.is_some_and(|root| {
        Path::new(&root)
            .join("lib/rustlib/src/rust/library")
            .is_dir()
    })
}
