//! Whether this host has namespaces to show.

use std::{
    fs,
    io::{ErrorKind, Read as _, Write as _},
    os::unix::net::UnixStream,
    time::Duration,
};

const SOCKET: &str = "/var/run/docker.sock";

/// What netobs could show on this host, in words.
pub(crate) fn something_to_show() -> Option<String> {
    if let Some(what) = containers() {
        return Some(what);
    }
    let named = names("/run/netns", &[]);
    if !named.is_empty() {
        return Some(format!("named namespaces: {}", named.join(", ")));
    }
    // Docker's own: the host's, and those of its swarm.
    let docker = names("/run/docker/netns", &["default", "ingress_sbox", "lb_"]);
    (!docker.is_empty()).then(|| format!("{} namespaces of Docker", docker.len()))
}

fn containers() -> Option<String> {
    let ask = || -> std::io::Result<String> {
        let mut stream = UnixStream::connect(SOCKET)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(b"GET /containers/json HTTP/1.0\r\nHost: docker\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    match ask() {
        Ok(answer) => {
            let (_, body) = answer.split_once("\r\n\r\n")?;
            let running = body.matches("\"HostConfig\"").count();
            (running > 0).then(|| format!("{running} running containers"))
        }
        Err(err) if err.kind() == ErrorKind::PermissionDenied => {
            Some(format!("a Docker at {SOCKET}, which only root may ask"))
        }
        Err(_) => None,
    }
}

fn names(folder: &str, but: &[&str]) -> Vec<String> {
    fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| !but.iter().any(|prefix| name.starts_with(prefix)))
        .collect()
}
