//! What has to be on the machine, and how it gets there.

pub(crate) mod apt;
mod choice;
pub(crate) mod debian;
pub(crate) mod packages;
pub(crate) mod rustup;

use anyhow::bail;

pub(crate) use choice::Choice;

/// Sees to it that the eBPF programs can be built, and writes down how for
/// `netobs/build.rs`.
pub(crate) fn toolchain(no_install: bool) -> anyhow::Result<()> {
    let choice = match rustup::find() {
        Ok(choice) => choice,
        Err(no_rustup) => match debian::find() {
            Ok(plan) if plan.is_done() => plan.finish()?,
            Ok(plan) if no_install => {
                bail!(
                    "the eBPF toolchain is not complete, and --no-install forbids to set it up.\n\
                     rustup's nightly: {no_rustup}\nDebian's packages would need:\n{}",
                    plan.commands().join("\n")
                )
            }
            Ok(plan) => {
                eprintln!("xtask: no nightly of rustup's: {no_rustup}");
                plan.finish()?
            }
            Err(no_debian) => bail!("{}", what_to_install(&no_rustup, &no_debian)),
        },
    };
    eprintln!("xtask: eBPF toolchain: {}", choice.way);
    choice.write()
}

/// Sees to it that the demo lab can run.
pub(crate) fn lab_packages(no_install: bool) -> anyhow::Result<()> {
    packages::provide(&packages::LAB, no_install)
}

/// Sees to it that the tests can run.
pub(crate) fn test_packages(no_install: bool) -> anyhow::Result<()> {
    let all = [&packages::LAB[..], &packages::TESTS].concat();
    packages::provide(&all, no_install)
}

/// Sees to it that the bench can run.
pub(crate) fn bench_packages(no_install: bool) -> anyhow::Result<()> {
    let all = [&packages::LAB[..], &packages::BENCH].concat();
    packages::provide(&all, no_install)
}

/// For systems where set-up can do nothing.
pub(crate) fn what_to_install(no_rustup: &str, no_debian: &str) -> String {
    format!(
        "there is no toolchain for the eBPF programs, and none that set-up could install.\n\
         Either of these will do:\n\
         1. a nightly of rustup's ({no_rustup}):\n\
         \x20    rustup toolchain install nightly --component rust-src\n\
         \x20    cargo binstall bpf-linker        # or, with LLVM's development files:\n\
         \x20    cargo install bpf-linker --locked\n\
         2. Debian's packages ({no_debian}):\n\
         \x20    apt-get install rustc-web cargo-web rust-web-src llvm-N-dev\n\
         \x20    # N: the LLVM of `/usr/bin/rustc -vV`; then `cargo xtask build` does the rest"
    )
}
