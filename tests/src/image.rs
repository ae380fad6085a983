//! The image that containers of a lab run: busybox and nothing else.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, bail, ensure};

/// Its name in the lab's Docker.
pub const NAME: &str = "netobs-lab:latest";

/// Where a busybox may be.
const PLACES: [&str; 3] = ["/bin/busybox", "/usr/bin/busybox", "/usr/local/bin/busybox"];

/// Finds a busybox that runs where there is no C library.
pub fn static_busybox() -> anyhow::Result<PathBuf> {
    for place in PLACES {
        if let Ok(bytes) = fs::read(place)
            && !has_interpreter(&bytes)
        {
            return Ok(place.into());
        }
    }
    bail!("no statically linked busybox at {}", PLACES.join(", "))
}

/// Whether an ELF file asks for a dynamic linker, whose path (a segment of
/// its own) lies near the start of the file.
fn has_interpreter(elf: &[u8]) -> bool {
    let head = &elf[..elf.len().min(8192)];
    [&b"/ld-linux"[..], b"/ld-musl", b"/ld64.so", b"/ld.so"]
        .iter()
        .any(|name| head.windows(name.len()).any(|window| window == *name))
}

/// Writes the image's files to a tar archive, for `docker import`.
pub fn write_tar(folder: &Path, tar: &Path) -> anyhow::Result<()> {
    let root = folder.join("image");
    for part in ["bin", "etc", "tmp", "www", "root", "var"] {
        let part = root.join(part);
        fs::create_dir_all(&part).with_context(|| format!("cannot make {}", part.display()))?;
    }
    let busybox = static_busybox()?;
    fs::copy(&busybox, root.join("bin/busybox"))
        .with_context(|| format!("cannot copy {}", busybox.display()))?;
    for applet in applets(&busybox)? {
        if applet != "busybox" {
            symlink("busybox", root.join("bin").join(&applet))
                .with_context(|| format!("cannot link {applet}"))?;
        }
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n")?;
    fs::write(root.join("etc/group"), "root:x:0:\n")?;
    // Something to fetch that takes more than one packet.
    fs::write(root.join("www/index.html"), "netobs\n".repeat(1024))?;

    let packed = Command::new("tar")
        .arg("-C")
        .arg(&root)
        .args(["--owner=0", "--group=0", "-cf"])
        .arg(tar)
        .arg(".")
        .output()
        .context("cannot start tar")?;
    let words = String::from_utf8_lossy(&packed.stderr);
    ensure!(
        packed.status.success(),
        "tar ended with {}: {words}",
        packed.status
    );
    fs::remove_dir_all(&root).with_context(|| format!("cannot remove {}", root.display()))
}

fn applets(busybox: &Path) -> anyhow::Result<Vec<String>> {
    let listed = Command::new(busybox)
        .arg("--list")
        .output()
        .with_context(|| format!("cannot start {}", busybox.display()))?;
    let names = String::from_utf8(listed.stdout).context("names of applets")?;
    Ok(names.lines().map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_static_from_dynamic_programs() {
        assert!(has_interpreter(
            b"\x7fELF..../lib64/ld-linux-x86-64.so.2\0...."
        ));
        assert!(!has_interpreter(b"\x7fELF....all in one"));
        // Test programs are dynamic wherever these tests are built.
        let own = fs::read(std::env::current_exe().unwrap()).unwrap();
        assert!(has_interpreter(&own));
    }
}
