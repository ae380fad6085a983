//! Folders with configurations and certificates, for the tests.

use std::{fs, path::PathBuf};

use nix::unistd::mkdtemp;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};

use super::WebConfig;
use crate::error::Chain;

/// A folder that goes with its owner.
pub(super) struct Folder(PathBuf);

impl Folder {
    pub(super) fn new() -> Self {
        let template = std::env::temp_dir().join("netobs-web-XXXXXX");
        Self(mkdtemp(&template).expect("a folder"))
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Puts a file there as those who renew certificates do: another in its place.
    pub(super) fn put(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        let new = self.path("new");
        fs::write(&new, text).expect("written");
        fs::rename(&new, &path).expect("renamed");
        path
    }

    /// Puts `web.yml` there.
    pub(super) fn config(&self, text: &str) -> PathBuf {
        self.put("web.yml", text)
    }

    /// What becomes of a good file.
    pub(super) fn accepted(&self, text: &str) -> WebConfig {
        let config = WebConfig::load(&self.config(text));
        config.unwrap_or_else(|error| panic!("{text}: {}", Chain(&error)))
    }

    /// What is said of a bad file.
    pub(super) fn refused(&self, text: &str) -> String {
        let error = WebConfig::load(&self.config(text)).expect_err(text);
        let said = Chain(&error).to_string();
        assert!(said.contains("web.yml"), "{said}");
        said
    }

    /// Puts a certificate and its key there.
    pub(super) fn put_pair(&self, of: &Identity) {
        self.put("cert.pem", &of.cert);
        self.put("key.pem", &of.key);
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _gone = fs::remove_dir_all(&self.0);
    }
}

/// Whoever signs certificates.
pub(super) struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key, as PEM.
pub(super) struct Identity {
    pub(super) cert: String,
    pub(super) key: String,
}

impl Authority {
    pub(super) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        Self(CertifiedIssuer::self_signed(params, key).expect("signed"))
    }

    pub(super) fn pem(&self) -> String {
        self.0.pem()
    }

    /// Signs for `name`: an address, a URI, else a host.
    pub(super) fn sign(&self, name: &str) -> Identity {
        let key = KeyPair::generate().expect("a key");
        let params = if name.contains("://") {
            let mut params = CertificateParams::default();
            let uri = SanType::URI(name.try_into().expect("ASCII"));
            params.subject_alt_names.push(uri);
            params
        } else {
            CertificateParams::new([name.to_owned()]).expect("a name")
        };
        Identity {
            cert: params.signed_by(&key, &self.0).expect("signed").pem(),
            key: key.serialize_pem(),
        }
    }
}

/// A section for TLS with the pair of [`Folder::put_pair`], and `more` fields.
pub(super) fn tls(more: &str) -> String {
    format!("tls_server_config:\n  cert_file: cert.pem\n  key_file: key.pem\n{more}")
}

/// A hash of `password` that costs little.
pub(super) fn hash(password: &str) -> String {
    bcrypt::hash_with_salt(password, 4, [7; 16])
        .expect("hashed")
        .to_string()
}

/// The value of an Authorization header.
pub(super) fn basic(user: &str, password: &str) -> Vec<u8> {
    use base64::Engine as _;
    let pair = format!("{user}:{password}");
    let pair = base64::prelude::BASE64_STANDARD.encode(pair);
    format!("Basic {pair}").into_bytes()
}
