//! The border between what is pure and what touches the machine.

use std::{fs, path::Path};

/// Folders of `src` whose code is a function of its arguments.
const PURE: [&str; 3] = ["model", "inventory", "render"];
/// What such code does not import, nor name.
const FORBIDDEN: [&str; 16] = [
    "aya",
    "aya_log",
    "hyper",
    "nix",
    "rtnetlink",
    "netlink_packet_route",
    "tokio",
    "std::fs",
    "std::net",
    "std::process",
    "std::env",
    "SystemTime::now",
    "crate::world",
    "crate::bpf",
    "crate::observer",
    "crate::app",
];

fn sources(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).expect("the folder is there") {
        let path = entry.expect("readable").path();
        if path.is_dir() {
            files.extend(sources(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.push(path);
        }
    }
    files
}

/// Whether `line` names `path` as a whole word: `nix::` but not `unix::`.
fn names(line: &str, path: &str) -> bool {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(path).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + path.len()..].chars().next();
        !before.is_some_and(is_word) && !after.is_some_and(is_word)
    })
}

#[test]
fn pure_code_imports_nothing_of_the_world() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut seen = 0;
    for folder in PURE {
        for file in sources(&src.join(folder)) {
            let text = fs::read_to_string(&file).expect("readable");
            for (number, line) in text.lines().enumerate() {
                let code = line.split("//").next().unwrap_or("");
                for path in FORBIDDEN {
                    assert!(
                        !names(code, path),
                        "{}:{}: pure code names {path}: {line}",
                        file.display(),
                        number + 1
                    );
                }
            }
            seen += 1;
        }
    }
    assert!(seen >= 12, "only {seen} files looked at: have they moved?");
}

#[test]
fn the_check_itself_tells_names_apart() {
    assert!(names("use nix::unistd;", "nix"));
    assert!(!names("use std::os::unix::fs;", "nix"));
    assert!(names("let x = crate::world::scan;", "crate::world"));
}
