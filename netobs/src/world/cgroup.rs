//! Where the unified cgroup hierarchy is.

use std::{fs::File, io::Read as _, path::PathBuf};

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

/// The root of the cgroup2 file system, as mounted for this process; `None`
/// where there is only version 1.
#[must_use]
pub fn root() -> Option<PathBuf> {
    // Others choose where they mount, and not all of it is UTF-8.
    let mounts = std::fs::read("/proc/self/mountinfo").ok()?;
    let mounts = String::from_utf8_lossy(&mounts);
    // Another mount may hide one that is still listed.
    places(&mounts).into_iter().find(|place| {
        statfs(place).is_ok_and(|found| found.filesystem_type() == CGROUP2_SUPER_MAGIC)
    })
}

/// `PROC_CGROUP_INIT_INO`: the number of the cgroup namespace that the machine
/// began with.
/// <https://github.com/torvalds/linux/blob/v6.18/include/linux/proc_ns.h>
const INITIAL: u64 = 0xEFFF_FFFB;

/// Whether [`root`] is that of the whole machine. In a cgroup namespace of its own
/// a container sees its own part as the root.
#[must_use]
pub fn is_whole() -> bool {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata("/proc/self/ns/cgroup").is_ok_and(|file| file.ino() == INITIAL)
}

/// Longest `/proc/PID/cgroup` that is read to its end: some twenty lines.
const CGROUPS_BYTES: u64 = 64 << 10;

/// What may be ids of containers in the names of the cgroups of process `pid`, the
/// outermost first: a container may name cgroups inside its own as it likes.
#[must_use]
pub fn container_ids(pid: u32) -> Vec<String> {
    let mut text = Vec::new();
    let read = File::open(format!("/proc/{pid}/cgroup"))
        .and_then(|file| file.take(CGROUPS_BYTES).read_to_end(&mut text));
    match read {
        Ok(_) => ids(&String::from_utf8_lossy(&text)),
        Err(_) => Vec::new(),
    }
}

/// Lines are `number:controllers:path`; engines call a cgroup `ID`, systemd calls it
/// `docker-ID.scope` or `libpod-ID.scope`. Version 1 has a line for each hierarchy.
fn ids(cgroups: &str) -> Vec<String> {
    let mut ids: Vec<String> = Vec::new();
    let paths = cgroups
        .lines()
        .filter_map(|line| line.splitn(3, ':').nth(2));
    for part in paths.flat_map(|path| path.split('/')) {
        let part = part.strip_suffix(".scope").unwrap_or(part);
        let id = part.rsplit_once('-').map_or(part, |(_, id)| id);
        if is_id(id) && !ids.iter().any(|known| known == id) {
            ids.push(id.to_owned());
        }
    }
    ids
}

/// Docker's and Podman's ids are 256 bits.
fn is_id(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Fields of `/proc/self/mountinfo`: id, parent, device, root, mount point,
/// options, optional fields, `-`, type, source, options. Parts of the hierarchy that
/// somebody mounted elsewhere have another root; the shortest mount point comes first.
fn places(mountinfo: &str) -> Vec<PathBuf> {
    let mut places: Vec<String> = mountinfo
        .lines()
        .filter_map(|line| {
            let (place, kind) = line.split_once(" - ")?;
            let mut fields = place.split(' ').skip(3);
            let (root, point) = (fields.next()?, fields.next()?);
            (root == "/" && kind.split(' ').next()? == "cgroup2").then(|| unescaped(point))
        })
        .collect();
    places.sort_by_key(String::len);
    places.into_iter().map(PathBuf::from).collect()
}

/// The kernel writes spaces and the like as `\040`.
fn unescaped(text: &str) -> String {
    let mut result = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\\') {
        result.push_str(before);
        match after
            .get(..3)
            .and_then(|octal| u8::from_str_radix(octal, 8).ok())
        {
            Some(byte) => {
                result.push(char::from(byte));
                rest = &after[3..];
            }
            None => {
                result.push('\\');
                rest = after;
            }
        }
    }
    result.push_str(rest);
    result
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    #[test]
    fn finds_the_root_in_both_layouts() {
        let hybrid = "\
24 18 0:22 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
25 24 0:23 / /sys/fs/cgroup/cpu rw shared:9 - cgroup cgroup rw,cpu
26 24 0:24 / /sys/fs/cgroup/unified rw shared:10 master:2 - cgroup2 cgroup2 rw
28 24 0:24 /x /run/part rw - cgroup2 cgroup2 rw
27 24 0:24 / /run/some\\040where/else/cgroup rw - cgroup2 cgroup2 rw
";
        let found = |mounts: &str| -> Vec<String> {
            let places = places(mounts).into_iter();
            places.map(|place| place.display().to_string()).collect()
        };
        assert_eq!(
            found(hybrid),
            ["/sys/fs/cgroup/unified", "/run/some where/else/cgroup"],
            "and no part of it"
        );
        let unified = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";
        assert_eq!(found(unified), ["/sys/fs/cgroup"]);
        assert!(found("25 24 0:23 / /c rw - cgroup cgroup rw\nnonsense\n").is_empty());
        assert_eq!(unescaped(r"/a\040b\\c\9"), r"/a b\\c\9");
    }

    #[test]
    fn a_container_is_known_by_its_outermost_cgroup() {
        let (a, b) = (&*"a1".repeat(32), &*"b2".repeat(32));
        let found = |cgroups: String| ids(&cgroups);
        assert_eq!(found(format!("0::/docker/{a}\n")), [a]);
        assert_eq!(found(format!("0::/system.slice/docker-{a}.scope\n")), [a]);
        let podman = format!("0::/machine.slice/libpod-{b}.scope/container\n");
        assert_eq!(found(podman), [b]);
        // Seen from a cgroup namespace beside it.
        assert_eq!(found(format!("0::/../{b}\n")), [b]);
        let old = format!("9:name=systemd:/lab/{a}\n4:memory:/api:1/lab/{a}\n0::/\n");
        assert_eq!(found(old), [a]);
        assert_eq!(found(format!("0::/docker/{a}/docker/{b}\n")), [a, b]);
        for other in ["0::/", "0::/docker/a1", &format!("0::/{a}0"), a] {
            assert!(found(format!("{other}\n")).is_empty(), "{other:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_no_panic(text in "(?s).{0,80}") {
            ids(&text);
            places(&text);
            unescaped(&text);
        }

        /// As the kernel writes it: `mangle()`.
        /// <https://github.com/torvalds/linux/blob/v6.18/fs/proc_namespace.c>
        #[test]
        fn mount_points_are_read_whatever_is_mounted_beside(
            point in "/[a-z \t\\\\#é]{0,20}",
            others in vec("[^\n]{0,60}", 0..4),
        ) {
            let mut escaped = String::new();
            for c in point.chars() {
                match c {
                    ' ' | '\t' | '\n' | '\\' | '#' => {
                        escaped.push_str(&format!("\\{:03o}", u32::from(c)));
                    }
                    c => escaped.push(c),
                }
            }
            let line = format!("30 23 0:26 / {escaped} rw - cgroup2 cgroup2 rw");
            let text = format!("{}\n{line}\n", others.join("\n"));
            prop_assert!(places(&text).contains(&PathBuf::from(point)));
        }
    }
}
