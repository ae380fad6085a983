//! Where to listen.

use std::{
    fmt, fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    os::unix::{
        fs::{FileTypeExt as _, PermissionsExt as _},
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
};

use anyhow::Context as _;

/// Who may connect to a socket in the file system.
const SOCKET_MODE: u32 = 0o660;

/// An address to listen at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// An address and port; of all addresses where there is none.
    Tcp(Option<IpAddr>, u16),
    /// A socket in the file system.
    Unix(PathBuf),
}

impl Listen {
    /// From `ADDRESS:PORT`, `[IPv6]:PORT`, `localhost:PORT`, `:PORT` or `unix:PATH`.
    ///
    /// # Errors
    /// With what is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            if path.is_empty() {
                return Err(format!("{text}: a path is missing"));
            }
            return Ok(Self::Unix(path.into()));
        }
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Ok(Self::Tcp(Some(address.ip()), address.port()));
        }
        let wanted = "wanted is ADDRESS:PORT, [IPv6]:PORT, localhost:PORT, :PORT for all addresses, or unix:PATH";
        let (host, port) = text
            .rsplit_once(':')
            .ok_or_else(|| format!("{text}: {wanted}"))?;
        let port = port
            .parse()
            .map_err(|_| format!("{text}: {port:?} is no port; {wanted}"))?;
        match host {
            "" => Ok(Self::Tcp(None, port)),
            "localhost" => Ok(Self::Tcp(Some(Ipv4Addr::LOCALHOST.into()), port)),
            host => Err(format!("{text}: {host:?} is no address; {wanted}")),
        }
    }

    /// Whether only this machine can connect.
    #[must_use]
    pub fn is_local(&self) -> bool {
        match self {
            Self::Tcp(address, _) => address.is_some_and(|address| address.is_loopback()),
            Self::Unix(_) => true,
        }
    }

    /// Listens.
    ///
    /// # Errors
    /// With the address and what to do.
    pub fn bind(&self) -> anyhow::Result<Bound> {
        let (listener, path) = match self {
            Self::Tcp(address, port) => {
                let listener = match address {
                    Some(address) => TcpListener::bind((*address, *port)),
                    // Where there is no IPv6, of IPv4.
                    None => TcpListener::bind((Ipv6Addr::UNSPECIFIED, *port)).or_else(|error| {
                        match error.kind() {
                            io::ErrorKind::AddrInUse => Err(error),
                            _ => TcpListener::bind((Ipv4Addr::UNSPECIFIED, *port)),
                        }
                    }),
                };
                (listener.map(Listener::Tcp), None)
            }
            Self::Unix(path) => {
                make_way(path).with_context(|| format!("listen at {self}"))?;
                let listener = UnixListener::bind(path).and_then(|listener| {
                    fs::set_permissions(path, fs::Permissions::from_mode(SOCKET_MODE))?;
                    Ok(listener)
                });
                (listener.map(Listener::Unix), Some(path.clone()))
            }
        };
        let listener = listener.map_err(|error| {
            let advice = match error.kind() {
                io::ErrorKind::AddrInUse => {
                    ": somebody listens there; --listen chooses another place"
                }
                io::ErrorKind::AddrNotAvailable => ": no interface has this address",
                io::ErrorKind::PermissionDenied => {
                    ": netobs keeps no capability for this; --listen chooses another place"
                }
                _ => "",
            };
            anyhow::Error::new(error).context(format!("listen at {self}{advice}"))
        })?;
        match &listener {
            Listener::Tcp(tcp) => tcp.set_nonblocking(true),
            Listener::Unix(unix) => unix.set_nonblocking(true),
        }
        .with_context(|| format!("listen at {self}"))?;
        Ok(Bound {
            listener,
            file: path.map(SocketFile),
        })
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(Some(address), port) => SocketAddr::new(*address, *port).fmt(f),
            Self::Tcp(None, port) => write!(f, ":{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Removes a socket that nobody listens at any more, and nothing else.
fn make_way(path: &Path) -> anyhow::Result<()> {
    let Ok(metadata) = fs::symlink_metadata(path) else {
        return Ok(());
    };
    anyhow::ensure!(
        metadata.file_type().is_socket(),
        "there is a file that is no socket; --listen chooses another place"
    );
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).context("remove a socket that nobody listens at")
        }
        _ => anyhow::bail!("somebody listens there; --listen chooses another place"),
    }
}

/// Something that listens.
#[derive(Debug)]
pub(super) enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// A place that is listened at.
#[derive(Debug)]
pub struct Bound {
    pub(super) listener: Listener,
    /// Removed in the end.
    pub(super) file: Option<SocketFile>,
}

impl Bound {
    /// The address, with the port that the kernel chose for 0.
    #[must_use]
    pub fn address(&self) -> String {
        match &self.listener {
            Listener::Tcp(tcp) => tcp
                .local_addr()
                .map_or_else(|error| error.to_string(), |address| address.to_string()),
            Listener::Unix(_) => {
                let path = self.file.as_ref().map(|file| file.0.display().to_string());
                format!("unix:{}", path.unwrap_or_default())
            }
        }
    }
}

/// A socket in the file system, removed on drop.
#[derive(Debug)]
pub(super) struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.0) {
            log::debug!("{}: {error}", self.0.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_told_apart() {
        let local = ["127.0.0.1:9929", "[::1]:9929", "localhost:1", "unix:/run/x"];
        for text in local {
            assert!(Listen::parse(text).expect(text).is_local(), "{text}");
        }
        for text in ["0.0.0.0:1", ":9929", "[::]:9", "10.0.0.1:80", "[fd00::1]:1"] {
            assert!(!Listen::parse(text).expect(text).is_local(), "{text}");
        }
        for text in ["unix:///run/x", "unix:/run/x"] {
            let expected = Listen::Unix("/run/x".into());
            assert_eq!(Listen::parse(text), Ok(expected), "{text}");
        }
        for text in [
            "",
            "9929",
            "example:80",
            "127.0.0.1",
            "::1:99999",
            "unix:",
            "1.2.3.4:x",
        ] {
            let error = Listen::parse(text).expect_err(text);
            assert!(error.starts_with(text), "{error}");
        }
    }

    #[test]
    fn a_port_in_use_is_told() {
        let first = Listen::parse("127.0.0.1:0").expect("an address").bind();
        let first = first.expect("a free port");
        let again = Listen::parse(&first.address()).expect("an address").bind();
        let error = format!("{:#}", again.expect_err("in use"));
        assert!(
            error.contains(&first.address()) && error.contains("--listen"),
            "{error}"
        );
    }

    #[test]
    fn a_socket_that_nobody_has_makes_way_and_nothing_else() {
        let folder = std::env::temp_dir().join(format!("netobs-listen-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("a folder");
        let path = folder.join("socket");
        let listen = Listen::Unix(path.clone());
        let bound = listen.bind().expect("free");
        assert_eq!(bound.address(), format!("unix:{}", path.display()));
        let error = format!("{:#}", listen.bind().expect_err("in use"));
        assert!(error.contains("somebody listens"), "{error}");
        // As a killed one leaves it.
        std::mem::forget(bound.file);
        drop(bound.listener);
        let bound = listen.bind().expect("nobody has it");
        drop(bound);
        assert!(!path.exists());
        fs::write(&path, "mine").expect("a file");
        let error = format!("{:#}", listen.bind().expect_err("a file"));
        assert!(error.contains("no socket"), "{error}");
        assert_eq!(fs::read_to_string(&path).expect("untouched"), "mine");
        fs::remove_dir_all(&folder).expect("removed");
    }
}
