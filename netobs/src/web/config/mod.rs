//! The web configuration file, as Prometheus' exporters have it: TLS, users, headers.
//! <https://github.com/prometheus/exporter-toolkit/blob/master/docs/web-configuration.md>
//!
//! The format is theirs, so that one file serves all exporters of a host. What
//! netobs cannot do, or would do less safely than it reads, is refused with a
//! reason and never passed over.

mod answers;
mod auth;
mod client;
mod files;
mod headers;
mod pem;
mod reload;
mod schema;
mod tls;

#[cfg(test)]
mod fixture;
#[cfg(test)]
mod handshakes;
#[cfg(test)]
mod refusals;
#[cfg(test)]
mod tests;

use std::{path::Path, sync::Arc};

use anyhow::Context as _;
use hyper::header::{HeaderName, HeaderValue};
use rustls::ServerConfig;

use self::{auth::Users, files::Files};

pub use self::reload::Reloading;

/// One state of the file and of what it names, checked.
pub struct WebConfig {
    tls: Option<Arc<ServerConfig>>,
    users: Users,
    headers: Vec<(HeaderName, HeaderValue)>,
    /// Whether the file says that it has nothing to say: `{}`.
    open: bool,
}

impl WebConfig {
    /// Reads the file at `path`, and the certificates and keys that it names.
    ///
    /// # Errors
    /// Where something cannot be read, is malformed, unknown or not supported. The
    /// chain names the file, the line and the field where they are known.
    pub fn load(path: &Path) -> anyhow::Result<Self> {
        Self::read(path, &mut Files::beside(path))
    }

    /// The same; `files` knows afterwards what was looked at, also after a failure.
    fn read(path: &Path, files: &mut Files) -> anyhow::Result<Self> {
        Self::check(path, files).with_context(|| path.display().to_string())
    }

    fn check(path: &Path, files: &mut Files) -> anyhow::Result<Self> {
        let file = files.read(path)?;
        let text = std::str::from_utf8(&file.bytes)?;
        let said = schema::parse(text)?;
        if let Some(limit) = said.rate_limit {
            return Err(limit.problem("rate_limit", "not supported: take it out"));
        }
        let tls = said.tls_server_config.unwrap_or_default();
        if tls.key.is_some() {
            file.warn_if_exposed();
        }
        let http = said.http_server_config.unwrap_or_default();
        Ok(Self {
            tls: tls::server(&tls, files)?.map(Arc::new),
            users: Users::new(said.basic_auth_users.unwrap_or_default())?,
            headers: headers::checked(http.headers.unwrap_or_default())?,
            open: says_nothing(text),
        })
    }

    /// How to speak TLS, unless HTTP is to be plain.
    #[must_use]
    pub fn tls(&self) -> Option<Arc<ServerConfig>> {
        self.tls.clone()
    }

    /// Whether anybody has to say who they are.
    #[must_use]
    pub fn has_users(&self) -> bool {
        !self.users.is_empty()
    }

    /// Whether there are TLS or users.
    #[must_use]
    pub fn is_guarded(&self) -> bool {
        self.tls.is_some() || self.has_users()
    }

    /// What every response has besides.
    #[must_use]
    pub fn headers(&self) -> &[(HeaderName, HeaderValue)] {
        &self.headers
    }

    /// Whether who sends this value of an Authorization header may ask; anybody may
    /// where there are no users.
    ///
    /// What was not asked before costs a bcrypt hash, one at a time in this process,
    /// so this can take seconds: call it where blocking is allowed.
    #[must_use]
    pub fn admits(&self, authorization: Option<&[u8]>) -> bool {
        if self.users.is_empty() {
            return true;
        }
        let credentials = authorization.and_then(auth::parse);
        credentials.is_some_and(|(user, password)| self.users.admit(&user, &password))
    }
}

/// Whether somebody wrote that there is nothing, comments aside.
fn says_nothing(text: &str) -> bool {
    let lines = text.lines().map(str::trim);
    lines
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .eq(["{}"])
}

impl std::fmt::Debug for WebConfig {
    /// Without hashes.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WebConfig")
            .field("tls", &self.tls.is_some())
            .field("users", &self.users.len())
            .field("headers", &self.headers)
            .finish_non_exhaustive()
    }
}

/// In words, for the log.
impl std::fmt::Display for WebConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let tls = if self.tls.is_some() { "TLS" } else { "no TLS" };
        match self.users.len() {
            0 => write!(f, "{tls}, no users: anybody may ask"),
            1 => write!(f, "{tls}, 1 user"),
            users => write!(f, "{tls}, {users} users"),
        }
    }
}
