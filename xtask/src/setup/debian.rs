//! Way 2: Debian's own current Rust, with its source, and a bpf-linker that
//! is built against the same LLVM.

use std::{env, path::PathBuf, process::Command};

use anyhow::{Context as _, bail, ensure};

use super::{Choice, apt};
use crate::{sh, workspace};

/// Debian's compiler, whatever is first on PATH.
const RUSTC: &str = "/usr/bin/rustc";
/// The name under which rustup knows it.
const TOOLCHAIN: &str = "netobs-ebpf";
/// The Rust packages.
const RUST: [&str; 3] = ["rustc-web", "cargo-web", "rust-web-src"];
/// The bpf-linker that is built, and the LLVM versions that it can use.
const LINKER: &str = "0.13.0";
const LINKER_LLVM: std::ops::RangeInclusive<u32> = 21..=23;

/// What is there, and what has to be done.
#[derive(Debug)]
pub(crate) struct Plan {
    /// Rust packages to install.
    rust: Vec<&'static str>,
    /// LLVM's major version; unknown before rustc and package lists are there.
    llvm: Option<u32>,
    has_llvm: bool,
    has_linker: bool,
    is_linked: bool,
}

/// Looks what is there; an error is why this way is closed.
pub(crate) fn find() -> Result<Plan, String> {
    apt::usable()?;
    if sh::ask("rustup", ["--version"]).is_none() {
        return Err("there is no rustup to choose between compilers".to_owned());
    }
    let rust: Vec<_> = RUST
        .into_iter()
        .filter(|package| apt::installed(package).is_none())
        .collect();
    // Old lists, as an image brings them, name a compiler that the archive has
    // replaced: what they say decides nothing.
    let lists = apt::lists_are_fresh();
    if let Some(unknown) = rust.iter().find(|package| lists && !apt::known(package)) {
        return Err(format!("apt knows no package {unknown}"));
    }
    let llvm = match rust.contains(&"rustc-web") {
        true if lists => llvm_of_package(),
        true => None,
        false => llvm_of_rustc(),
    };
    if let Some(llvm) = llvm
        && !LINKER_LLVM.contains(&llvm)
    {
        return Err(format!("bpf-linker {LINKER} cannot use LLVM {llvm}"));
    }
    Ok(Plan {
        has_llvm: llvm.is_some_and(has_llvm),
        has_linker: llvm.is_some_and(has_linker),
        is_linked: is_linked(),
        rust,
        llvm,
    })
}

impl Plan {
    pub(crate) fn is_done(&self) -> bool {
        self.rust.is_empty() && self.has_llvm && self.has_linker && self.is_linked
    }

    /// What has to be done, as commands for people.
    pub(crate) fn commands(&self) -> Vec<String> {
        let mut commands = Vec::new();
        let n = self.llvm.map_or("N".to_owned(), |llvm| llvm.to_string());
        let llvm_dev = format!("llvm-{n}-dev");
        let mut packages = self.rust.clone();
        if !self.has_llvm {
            packages.push(&llvm_dev);
        }
        if !packages.is_empty() {
            commands.push(apt::install_line(&packages));
        }
        if self.llvm.is_none() {
            commands.push(format!("# N: the LLVM version of `{RUSTC} -vV`"));
        }
        if !self.is_linked {
            commands.push(format!("rustup toolchain link {TOOLCHAIN} /usr"));
        }
        if !self.has_linker {
            let root = linker_root(self.llvm.unwrap_or_default());
            commands.push(format!(
                "PATH=/usr/lib/llvm-{n}/bin:$PATH cargo install bpf-linker --version {LINKER} \
                 --locked --no-default-features --features llvm-{n} --root {}",
                root.display()
            ));
        }
        commands
    }

    /// Does what has to be done.
    pub(crate) fn finish(self) -> anyhow::Result<Choice> {
        let mut packages = self.rust.clone();
        let guess = self.llvm.map(|llvm| format!("llvm-{llvm}-dev"));
        if let Some(llvm_dev) = &guess
            && !self.has_llvm
        {
            packages.push(llvm_dev);
        }
        if !packages.is_empty() {
            apt::install(&packages)?;
        }
        let owner = apt::owner(RUSTC);
        ensure!(
            owner.as_deref() == Some("rustc-web"),
            "{RUSTC} is not rustc-web's but that of {}",
            owner.as_deref().unwrap_or("no package")
        );
        // The compiler's own word, now that it is there.
        let llvm = llvm_of_rustc().with_context(|| format!("`{RUSTC} -vV` names no LLVM"))?;
        ensure!(
            LINKER_LLVM.contains(&llvm),
            "bpf-linker {LINKER} cannot use LLVM {llvm}, which {RUSTC} has"
        );
        if !has_llvm(llvm) {
            apt::install(&[&format!("llvm-{llvm}-dev")])?;
        }
        if !is_linked() {
            sh::run(
                Command::new("rustup")
                    .args(["toolchain", "link", TOOLCHAIN, "/usr"])
                    .env_remove("RUSTUP_TOOLCHAIN"),
            )?;
        }
        if !super::rustup::has_source(TOOLCHAIN) {
            bail!(
                "{TOOLCHAIN} (/usr) has no lib/rustlib/src/rust/library, though rust-web-src is installed"
            );
        }
        if !has_linker(llvm) {
            build_linker(llvm)?;
        }
        let version = apt::installed("rustc-web").unwrap_or_default();
        Ok(Choice {
            way: format!("Debian's rustc-web {version}, bpf-linker {LINKER}, LLVM {llvm}"),
            toolchain: TOOLCHAIN.to_owned(),
            bootstrap: true,
            path: vec![linker_root(llvm).join("bin"), llvm_bin(llvm)],
        })
    }
}

fn llvm_bin(llvm: u32) -> PathBuf {
    format!("/usr/lib/llvm-{llvm}/bin").into()
}

fn has_llvm(llvm: u32) -> bool {
    apt::installed(&format!("llvm-{llvm}-dev")).is_some()
}

/// The version is in the name: another compiler gets another linker.
fn linker_root(llvm: u32) -> PathBuf {
    workspace::target()
        .join("tools")
        .join(format!("bpf-linker-{LINKER}-llvm-{llvm}"))
}

/// Whether it is built and still finds its LLVM.
fn has_linker(llvm: u32) -> bool {
    let linker = linker_root(llvm).join("bin/bpf-linker");
    linker.is_file() && sh::ask(linker, ["--version"]).is_some()
}

fn build_linker(llvm: u32) -> anyhow::Result<()> {
    eprintln!("xtask: building bpf-linker {LINKER} for LLVM {llvm} (about a minute)");
    let path = env::var_os("PATH").unwrap_or_default();
    let path = env::join_paths(std::iter::once(llvm_bin(llvm)).chain(env::split_paths(&path)))?;
    let mut cargo = sh::cargo();
    cargo
        .args(["install", "bpf-linker", "--version", LINKER, "--locked"])
        .args(["--no-default-features", "--features"])
        .arg(format!("llvm-{llvm}"))
        .args(["--force", "--root"])
        .arg(linker_root(llvm))
        .env("PATH", path)
        // Its own folder for objects, which it removes when done.
        .env_remove("CARGO_TARGET_DIR");
    sh::run(&mut cargo)?;
    ensure!(
        has_linker(llvm),
        "the bpf-linker that was built does not start"
    );
    Ok(())
}

fn is_linked() -> bool {
    let list = sh::ask("rustup", ["toolchain", "list", "--verbose"]).unwrap_or_default();
    list.lines().any(|line| {
        let mut words = line.split_whitespace();
        words.next() == Some(TOOLCHAIN) && words.next_back() == Some("/usr")
    })
}

/// LLVM's major version, by the compiler.
fn llvm_of_rustc() -> Option<u32> {
    major(&sh::ask(RUSTC, ["-vV"])?)
}

fn major(version: &str) -> Option<u32> {
    let line = version
        .lines()
        .find_map(|line| line.strip_prefix("LLVM version: "))?;
    line.split('.').next()?.parse().ok()
}

/// LLVM's major version, by what the compiler's packages depend on.
fn llvm_of_package() -> Option<u32> {
    let options = ["depends", "--recurse", "--no-recommends", "--no-suggests"];
    let more = [
        "--no-conflicts",
        "--no-breaks",
        "--no-replaces",
        "--no-enhances",
    ];
    let all = options.iter().chain(&more).chain(&["rustc-web"]);
    llvm_in(&sh::ask("apt-cache", all)?)
}

fn llvm_in(depends: &str) -> Option<u32> {
    depends
        .split_whitespace()
        .filter_map(|word| word.strip_prefix("libllvm")?.parse().ok())
        .max()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_llvm_of_rustc_and_of_packages() {
        let version = "rustc 1.96.0\nrelease: 1.96.0\nLLVM version: 22.1.8\n";
        assert_eq!(major(version), Some(22));
        assert_eq!(major("rustc 1.96.0"), None);
        let depends = "rustc-web\n  Depends: libc6\nlibstd-rust-web-dev\n  Depends: libllvm22\n";
        assert_eq!(llvm_in(depends), Some(22));
    }

    #[test]
    fn tells_exact_commands() {
        let bare = Plan {
            rust: RUST.to_vec(),
            llvm: Some(22),
            has_llvm: false,
            has_linker: false,
            is_linked: false,
        };
        let commands = bare.commands();
        assert_eq!(commands.len(), 3);
        assert!(commands[0].ends_with(" rustc-web cargo-web rust-web-src llvm-22-dev"));
        assert!(
            commands[2].contains("--features llvm-22 --root"),
            "{commands:?}"
        );
        assert!(!bare.is_done());
    }
}
