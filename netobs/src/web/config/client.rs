//! Certificates of clients: whose are taken.

use std::{net::IpAddr, sync::Arc};

use anyhow::{Context as _, bail};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore,
    SignatureScheme,
    client::danger::HandshakeSignatureValid,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::{
        WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use webpki::EndEntityCert;

use super::{
    files::Files,
    pem::Pem,
    schema::{Tls, filled},
};

/// What of clients is asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Nothing,
    IfGiven,
    Always,
}

/// Who looks at clients' certificates, if anybody.
pub(super) fn verifier(
    said: &Tls,
    provider: &Arc<CryptoProvider>,
    files: &mut Files,
) -> anyhow::Result<Option<Arc<dyn ClientCertVerifier>>> {
    let wanted = wanted(said)?;
    let ca = Pem::of("client_ca", &said.client_ca, &said.client_ca_file, files)?;
    let names = said.client_allowed_sans.as_deref();
    if names.is_some_and(<[_]>::is_empty) {
        bail!("tls_server_config.client_allowed_sans: empty, so that nobody could come in");
    }
    let names = names.unwrap_or_default();
    if let Some(name) = names.first()
        && wanted != Wanted::Always
    {
        return Err(name.problem(
            "tls_server_config.client_allowed_sans",
            "needs client_auth_type: RequireAndVerifyClientCert",
        ));
    }
    let ca = match (wanted, ca) {
        (Wanted::Nothing, None) => return Ok(None),
        (Wanted::Nothing, Some(ca)) => bail!(
            "{}: for nothing without client_auth_type: RequireAndVerifyClientCert",
            ca.place
        ),
        (_, None) => {
            bail!("tls_server_config.client_auth_type: needs client_ca_file, whose clients to take")
        }
        (_, Some(ca)) => ca,
    };
    let mut roots = RootCertStore::empty();
    for certificate in ca.certificates()? {
        roots.add(certificate).with_context(|| ca.place.clone())?;
    }
    let builder =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider));
    let builder = match wanted {
        Wanted::IfGiven => builder.allow_unauthenticated(),
        _ => builder,
    };
    let verifier = builder.build().with_context(|| ca.place.clone())?;
    if names.is_empty() {
        return Ok(Some(verifier));
    }
    let names = names.iter().map(|name| {
        Name::parse(name.value()).map_err(|why| {
            let field = "tls_server_config.client_allowed_sans";
            name.problem(field, format!("{} {why}", name.value()))
        })
    });
    let names = names.collect::<Result<_, _>>()?;
    Ok(Some(Arc::new(Named { verifier, names })))
}

fn wanted(said: &Tls) -> anyhow::Result<Wanted> {
    let Some(kind) = filled(&said.client_auth_type) else {
        return Ok(Wanted::Nothing);
    };
    let why = match kind.value().as_str() {
        "NoClientCert" => return Ok(Wanted::Nothing),
        "VerifyClientCertIfGiven" => return Ok(Wanted::IfGiven),
        "RequireAndVerifyClientCert" => return Ok(Wanted::Always),
        "RequestClientCert" => {
            "asks for a certificate and does not look at it: take NoClientCert or VerifyClientCertIfGiven"
        }
        "RequireAnyClientCert" | "RequireClientCert" => {
            "takes a certificate that anybody can make: take RequireAndVerifyClientCert with client_ca_file"
        }
        _ => {
            "is not known: take NoClientCert, VerifyClientCertIfGiven or RequireAndVerifyClientCert"
        }
    };
    let why = format!("{} {why}", kind.value());
    Err(kind.problem("tls_server_config.client_auth_type", why))
}

/// An entry of `client_allowed_sans`.
#[derive(Debug, PartialEq, Eq)]
enum Name {
    Dns(String),
    Uri(String),
    Ip(IpAddr),
}

impl Name {
    /// Which kind of name `text` is can be told from how it is written.
    fn parse(text: &str) -> Result<Self, &'static str> {
        if let Ok(ip) = text.parse() {
            return Ok(Self::Ip(ip));
        }
        if text.contains(':') {
            return Ok(Self::Uri(text.to_owned()));
        }
        if text.contains('@') {
            return Err("is an e-mail address, which is not supported: take a DNS name or URI");
        }
        Ok(Self::Dns(text.to_owned()))
    }

    /// Whether `certificate` has exactly this one.
    fn is_of(&self, certificate: &EndEntityCert<'_>) -> bool {
        match self {
            Self::Dns(name) => certificate.valid_dns_names().any(|other| other == name),
            Self::Uri(name) => certificate.valid_uri_names().any(|other| other == name),
            Self::Ip(ip) => certificate
                .verify_is_valid_for_subject_name(&ServerName::from(*ip))
                .is_ok(),
        }
    }
}

/// Takes what `verifier` takes where it has one of `names` too.
#[derive(Debug)]
struct Named {
    verifier: Arc<dyn ClientCertVerifier>,
    names: Vec<Name>,
}

impl ClientCertVerifier for Named {
    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self
            .verifier
            .verify_client_cert(end_entity, intermediates, now)?;
        let certificate = EndEntityCert::try_from(end_entity)
            .map_err(|_| Error::InvalidCertificate(CertificateError::BadEncoding))?;
        if self.names.iter().any(|name| name.is_of(&certificate)) {
            return Ok(verified);
        }
        let why = CertificateError::ApplicationVerificationFailure;
        Err(Error::InvalidCertificate(why))
    }

    fn offer_client_auth(&self) -> bool {
        self.verifier.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.verifier.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.verifier.root_hint_subjects()
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}
