//! Certificates and keys as PEM, inline or in files of their own.

use anyhow::{Context as _, anyhow, bail};
use rustls::pki_types::{
    CertificateDer, PrivateKeyDer,
    pem::{self, PemObject},
};

use super::{
    files::Files,
    schema::{Word, filled},
};

/// PEM text, and where it is from in words.
pub(super) struct Pem {
    pub(super) place: String,
    bytes: Vec<u8>,
}

impl Pem {
    /// Of two fields: inline in `name`, or in the file that `{name}_file` names.
    pub(super) fn of(
        name: &str,
        inline: &Word,
        file: &Word,
        files: &mut Files,
    ) -> anyhow::Result<Option<Self>> {
        let field = format!("tls_server_config.{name}");
        let file_field = format!("{field}_file");
        let (said, file) = match (filled(inline), filled(file)) {
            (None, None) => return Ok(None),
            (Some(inline), None) => {
                return Ok(Some(Self {
                    place: inline.place(field),
                    bytes: inline.value().clone().into_bytes(),
                }));
            }
            (Some(_), Some(file)) => {
                return Err(file.problem(file_field, format!("{name} is there too: keep one")));
            }
            (None, Some(file)) => (file, files.resolve(file.value())),
        };
        let place = said.place(file_field);
        let content = files.read(&file).with_context(|| place.clone())?;
        if name == "key" {
            content.warn_if_exposed();
        }
        Ok(Some(Self {
            place: format!("{place}: {}", file.display()),
            bytes: content.bytes,
        }))
    }

    /// All certificates, of which there has to be one.
    pub(super) fn certificates(&self) -> anyhow::Result<Vec<CertificateDer<'static>>> {
        let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&self.bytes).collect();
        let certificates = certificates.map_err(|error| self.problem(error))?;
        if certificates.is_empty() {
            bail!("{}: no certificate in it (BEGIN CERTIFICATE)", self.place);
        }
        Ok(certificates)
    }

    /// The first private key.
    pub(super) fn key(&self) -> anyhow::Result<PrivateKeyDer<'static>> {
        PrivateKeyDer::from_pem_slice(&self.bytes).map_err(|error| match error {
            pem::Error::NoItemsFound if self.has("BEGIN ENCRYPTED PRIVATE KEY") => anyhow!(
                "{}: the key is encrypted, and nobody is there to be asked for the passphrase: \
                 openssl pkey -in KEY -out PLAIN",
                self.place
            ),
            pem::Error::NoItemsFound => {
                anyhow!("{}: no key in it (BEGIN PRIVATE KEY)", self.place)
            }
            error => self.problem(error),
        })
    }

    fn problem(&self, error: pem::Error) -> anyhow::Error {
        match error {
            // Their words are the line's bytes as numbers.
            pem::Error::MissingSectionEnd { .. } => {
                anyhow!("{}: cut off, there is no END line", self.place)
            }
            pem::Error::IllegalSectionStart { .. } => {
                anyhow!("{}: a BEGIN line that is not one", self.place)
            }
            error => anyhow::Error::new(error).context(self.place.clone()),
        }
    }

    fn has(&self, words: &str) -> bool {
        let mut parts = self.bytes.windows(words.len());
        parts.any(|part| part == words.as_bytes())
    }
}
