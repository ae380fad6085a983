//! The files behind a configuration: read within limits, and known again.

use std::{
    fs::{self, File, Metadata},
    io::{self, Read as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

/// Longest file: a bundle of all public CAs has a fifth of this.
const FILE_BYTES: u64 = 1 << 20;
/// The bits of a mode by which everybody may read or write.
const EVERYBODY: u32 = 0o006;

/// What tells one state of a file from another. The time of its inode is among it:
/// a file that becomes readable is otherwise the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(path: &Path) -> Option<Self> {
        let data = fs::metadata(path).ok()?;
        Some(Self {
            device: data.dev(),
            inode: data.ino(),
            size: data.size(),
            modified: (data.mtime(), data.mtime_nsec()),
            changed: (data.ctime(), data.ctime_nsec()),
        })
    }
}

/// What was read, and what it was like.
#[derive(Debug)]
pub(super) struct Content {
    pub(super) path: PathBuf,
    pub(super) bytes: Vec<u8>,
    mode: u32,
}

impl Content {
    fn is_exposed(&self) -> bool {
        self.mode & EVERYBODY != 0
    }

    /// Tells when this holds a private key that is everybody's.
    pub(super) fn warn_if_exposed(&self) {
        if self.is_exposed() {
            log::warn!(
                "{}: holds a private key that every user of this host may read or change (mode {:o}): chmod o= it",
                self.path.display(),
                self.mode & 0o7777
            );
        }
    }
}

/// Every file that was looked at, as it was just before.
#[derive(Debug)]
pub(super) struct Files {
    folder: PathBuf,
    seen: Vec<(PathBuf, Option<Stamp>)>,
}

impl Files {
    /// None yet; relative paths start where the file `config` is.
    pub(super) fn beside(config: &Path) -> Self {
        Self {
            folder: config.parent().unwrap_or(Path::new("")).to_owned(),
            seen: Vec::new(),
        }
    }

    /// Where `path` of the configuration leads.
    pub(super) fn resolve(&self, path: &str) -> PathBuf {
        self.folder.join(path)
    }

    /// Whether any of them is not what it was.
    pub(super) fn have_changed(&self) -> bool {
        let mut seen = self.seen.iter();
        seen.any(|(path, stamp)| Stamp::of(path) != *stamp)
    }

    /// Reads a whole file.
    pub(super) fn read(&mut self, path: &Path) -> anyhow::Result<Content> {
        // Before it is read: what changes meanwhile is then read again.
        self.seen.push((path.to_owned(), Stamp::of(path)));
        read(path).map_err(|error| match error.kind() {
            io::ErrorKind::PermissionDenied => anyhow::Error::new(error).context(format!(
                "{}: netobs may not read it, and gives up the right of root to read \
                 everything: it has to belong to netobs' user or group",
                path.display()
            )),
            _ => anyhow::Error::new(error).context(path.display().to_string()),
        })
    }
}

fn read(path: &Path) -> io::Result<Content> {
    // To open a FIFO would wait for its writer.
    regular(&fs::metadata(path)?)?;
    let file = File::open(path)?;
    let data = file.metadata()?;
    regular(&data)?;
    let mut bytes = Vec::new();
    // Not by its size: it may grow.
    file.take(FILE_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_BYTES {
        return Err(io::Error::other("longer than 1 MiB"));
    }
    Ok(Content {
        path: path.to_owned(),
        bytes,
        mode: data.mode(),
    })
}

fn regular(data: &Metadata) -> io::Result<()> {
    if data.is_file() {
        return Ok(());
    }
    Err(io::Error::other("not a regular file"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use nix::{sys::stat::Mode, unistd::mkfifo};

    use super::{super::fixture::Folder, *};

    #[test]
    fn a_fifo_does_not_hold_us_up() {
        let folder = Folder::new();
        let path = folder.path("fifo");
        mkfifo(&path, Mode::S_IRWXU).expect("a FIFO");
        let error = read(&path).expect_err("no file");
        assert_eq!(error.to_string(), "not a regular file");
    }

    #[test]
    fn keys_are_for_few() {
        let folder = Folder::new();
        let path = folder.put("key.pem", "");
        for (mode, exposed) in [(0o600, false), (0o640, false), (0o644, true), (0o602, true)] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("set");
            // Root may read them all.
            if let Ok(content) = read(&path) {
                assert_eq!(content.is_exposed(), exposed, "{mode:o}");
            }
        }
    }

    #[test]
    fn every_change_of_a_file_is_seen() {
        let folder = Folder::new();
        let path = folder.put("a", "1");
        let looked = || {
            let mut files = Files::beside(&folder.path("web.yml"));
            let _either = files.read(&files.resolve("a"));
            files
        };
        let before = looked();
        assert!(!before.have_changed());
        folder.put("a", "1");
        assert!(before.have_changed(), "another file");
        let before = looked();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("set");
        assert!(before.have_changed(), "another mode");
        let before = looked();
        fs::remove_file(&path).expect("removed");
        assert!(before.have_changed(), "gone");
        let before = looked();
        assert!(!before.have_changed());
        folder.put("a", "1");
        assert!(before.have_changed(), "back");
    }
}
