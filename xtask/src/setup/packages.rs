//! What the lab and the tests run.

use anyhow::bail;
use netobs_tests::image;

use super::apt;
use crate::sh;

/// A program that is needed, and Debian's package that has it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Needed {
    pub(crate) program: &'static str,
    pub(crate) package: &'static str,
}

const fn needed(program: &'static str, package: &'static str) -> Needed {
    Needed { program, package }
}

/// For the demo lab.
pub(crate) const LAB: [Needed; 6] = [
    // A Docker of another origin will do, and must not be replaced.
    needed("dockerd", "docker.io"),
    needed("docker", "docker-cli"),
    needed("busybox", "busybox-static"),
    needed("ip", "iproute2"),
    needed("unshare", "util-linux"),
    needed("setpriv", "util-linux"),
];

/// For the tests, besides.
pub(crate) const TESTS: [Needed; 10] = [
    needed("bpftool", "bpftool"),
    needed("prometheus", "prometheus"),
    needed("promtool", "prometheus"),
    needed("openssl", "openssl"),
    needed("iperf3", "iperf3"),
    needed("curl", "curl"),
    // What the documentation uses.
    needed("jq", "jq"),
    needed("awk", "mawk"),
    needed("sysctl", "procps"),
    needed("setcap", "libcap2-bin"),
];

/// For the bench, besides the lab's: what netobs is compared with.
pub(crate) const BENCH: [Needed; 9] = [
    needed("bpftrace", "bpftrace"),
    needed("curl", "curl"),
    needed("nft", "nftables"),
    needed("pmacctd", "pmacct"),
    needed("prometheus-node-exporter", "prometheus-node-exporter"),
    needed("softflowd", "softflowd"),
    needed("sysctl", "procps"),
    needed("tc", "iproute2"),
    needed("tcpdump", "tcpdump"),
];

impl Needed {
    pub(crate) fn is_there(&self) -> bool {
        match self.program {
            // Containers have no C library.
            "busybox" => image::static_busybox().is_ok(),
            program => sh::which(program).is_some(),
        }
    }
}

/// Those that are missing.
pub(crate) fn missing(all: &[Needed]) -> Vec<Needed> {
    let missing = all.iter().filter(|needed| !needed.is_there());
    missing.copied().collect()
}

/// Packages for them. Debian's docker.io had the client inside until 12;
/// where docker-cli is not known, there is none of its own.
pub(crate) fn packages(missing: &[Needed]) -> Vec<&'static str> {
    let mut packages: Vec<_> = missing.iter().map(|needed| needed.package).collect();
    packages.dedup();
    packages.retain(|package| *package != "docker-cli" || apt::known(package));
    if missing.iter().any(|needed| needed.program == "docker") && packages.is_empty() {
        packages.push("docker.io");
    }
    packages
}

/// Installs what is missing.
pub(crate) fn provide(all: &[Needed], no_install: bool) -> anyhow::Result<()> {
    let lacking = missing(all);
    if lacking.is_empty() {
        return Ok(());
    }
    let programs: Vec<_> = lacking.iter().map(|needed| needed.program).collect();
    let programs = programs.join(", ");
    if let Err(why) = apt::usable() {
        bail!("missing programs: {programs} ({why}: install them by this system's own means)");
    }
    if no_install {
        let line = apt::install_line(&packages(&lacking));
        bail!("missing programs: {programs}; --no-install forbids:\n{line}");
    }
    eprintln!("xtask: missing programs: {programs}");
    // What is known depends on the lists.
    apt::refresh_lists(&["docker.io"])?;
    apt::install(&packages(&lacking))?;
    let still = missing(all);
    match still.first() {
        None => Ok(()),
        Some(needed) => bail!(
            "{} was installed, but there is no {} on PATH",
            needed.package,
            needed.program
        ),
    }
}
