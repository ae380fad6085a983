//! The configuration as it is now: certificates are renewed while we run.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::bail;

use super::{WebConfig, files::Files};
use crate::error::Chain;

/// A configuration that follows its files.
#[derive(Debug)]
pub struct Reloading {
    path: PathBuf,
    state: Mutex<State>,
    /// Whether a state without TLS and users is no good.
    guarded: bool,
}

#[derive(Debug)]
struct State {
    config: Arc<WebConfig>,
    files: Files,
}

impl Reloading {
    /// Starts with the state of the file at `path`, which has to be good.
    ///
    /// # Errors
    /// Those of [`WebConfig::load`].
    pub fn load(path: &Path) -> anyhow::Result<Self> {
        let mut files = Files::beside(path);
        let config = Arc::new(WebConfig::read(path, &mut files)?);
        Ok(Self {
            path: path.to_owned(),
            state: Mutex::new(State { config, files }),
            guarded: false,
        })
    }

    /// From now on a state without TLS and users is no good: others than this machine reach
    /// what is served.
    #[must_use]
    pub fn guarded(self) -> Self {
        Self {
            guarded: true,
            ..self
        }
    }

    /// The latest good state. Looks at what the configuration and its files are like,
    /// and reads them again if that has changed; a few milliseconds at most.
    ///
    /// A state that is not good is told of once, and what was before stays: a
    /// certificate that was renewed ahead of its key is such a state, for a moment.
    #[must_use]
    pub fn current(&self) -> Arc<WebConfig> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.files.have_changed() {
            state.renew(&self.path, self.guarded);
        }
        Arc::clone(&state.config)
    }
}

impl State {
    fn renew(&mut self, path: &Path, guarded: bool) {
        // Also what a failed attempt has looked at: there the next change will be.
        self.files = Files::beside(path);
        match self.read(path, guarded) {
            Ok(config) => {
                log::info!("{}: read again: {config}", path.display());
                self.config = Arc::new(config);
            }
            Err(error) => log::warn!("{}; what was before stays in use", Chain(&error)),
        }
    }

    fn read(&mut self, path: &Path, guarded: bool) -> anyhow::Result<WebConfig> {
        let config = WebConfig::read(path, &mut self.files)?;
        let was_guarded = self.config.is_guarded();
        if config.is_guarded() || !was_guarded {
            return Ok(config);
        }
        // Many editors empty a file before they write it. Nobody may come in then.
        if !config.open {
            bail!(
                "{}: neither TLS nor users now; to serve without, write {{}}",
                path.display()
            );
        }
        if guarded {
            bail!(
                "{}: neither TLS nor users now, and others than this machine reach what is served; \
                 --insecure serves them all the same",
                path.display()
            );
        }
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{
        super::fixture::{Authority, Folder, hash, tls},
        *,
    };

    #[test]
    fn what_is_broken_is_looked_at_once() {
        let folder = Folder::new();
        let reloading = Reloading::load(&folder.config("{}")).expect("loaded");
        folder.config("tls_server_config: {cert_file: none.pem}\n");
        let changed = || reloading.state.lock().expect("whole").files.have_changed();
        assert!(changed());
        let before = reloading.current();
        assert!(!changed());
        // Until it is broken in another way.
        folder.put("none.pem", "");
        assert!(changed());
        assert!(Arc::ptr_eq(&before, &reloading.current()));
        assert!(!changed());
    }

    #[test]
    fn nobody_takes_the_guard_away_by_mistake() {
        let folder = Folder::new();
        let users = format!("basic_auth_users: {{me: {}}}\n", hash("secret"));
        let reloading = Reloading::load(&folder.config(&users)).expect("loaded");
        for text in [
            "",
            "# rotated\n",
            "---\n",
            "basic_auth_users:\n",
            "tls_server_config: {}\n",
        ] {
            folder.config(text);
            assert!(reloading.current().is_guarded(), "{text:?}");
        }
        folder.config("# on purpose\n{}\n");
        assert!(!reloading.current().is_guarded());

        // Where others reach it, not on purpose either.
        let reloading = Reloading::load(&folder.config(&users)).expect("loaded");
        let reloading = reloading.guarded();
        folder.config("{}");
        assert!(reloading.current().is_guarded());
    }

    #[test]
    fn what_changes_is_read_again() {
        let folder = Folder::new();
        let authority = Authority::new();
        folder.put_pair(&authority.sign("localhost"));
        let reloading = Reloading::load(&folder.config(&tls(""))).expect("loaded");
        let first = reloading.current();
        assert!(Arc::ptr_eq(&first, &reloading.current()));

        let is_new = |before: &Arc<WebConfig>| {
            let now = reloading.current();
            (!Arc::ptr_eq(before, &now)).then_some(now)
        };
        // A pair comes in two steps.
        let next = authority.sign("localhost");
        folder.put("cert.pem", &next.cert);
        assert!(is_new(&first).is_none());
        assert!(is_new(&first).is_none());
        folder.put("key.pem", &next.key);
        let second = is_new(&first).expect("the new pair");

        // Users come, and what is broken keeps them.
        let with_users = format!("{}basic_auth_users:\n  alice: {}\n", tls(""), hash("a"));
        folder.config(&with_users);
        let third = is_new(&second).expect("users");
        assert!(third.has_users());
        for broken in ["", "  \n", "basic_auth_users: [", "a: 1\n"] {
            folder.config(broken);
            assert!(is_new(&third).is_none(), "{broken}");
        }
        fs::remove_file(folder.path("web.yml")).expect("removed");
        assert!(is_new(&third).is_none());
        folder.config(&with_users);
        let fourth = is_new(&third).expect("it is back");

        // A CA that is named counts too.
        folder.config(&tls(
            "  client_auth_type: VerifyClientCertIfGiven\n  client_ca_file: ca.pem\n",
        ));
        assert!(is_new(&fourth).is_none());
        folder.put("ca.pem", &authority.pem());
        let fifth = is_new(&fourth).expect("with a CA");
        folder.put("ca.pem", &Authority::new().pem());
        let sixth = is_new(&fifth).expect("with another CA");

        folder.config("{}");
        let last = is_new(&sixth).expect("plain");
        assert!(last.tls().is_none() && !last.has_users());
        folder.config("");
        assert!(is_new(&last).is_some(), "there was nothing to lose");
    }
}
