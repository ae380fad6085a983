//! `tls_server_config`: from what is said to how rustls is to serve.

use std::sync::Arc;

use anyhow::bail;
use rustls::{
    Error, InconsistentKeys, ServerConfig, SupportedProtocolVersion,
    crypto::{CryptoProvider, ring},
    sign::{CertifiedKey, SingleCertAndKey},
    version::{TLS12, TLS13},
};

use super::{
    client,
    files::Files,
    pem::Pem,
    schema::{Said, Tls, Word, Words, filled},
};

/// All that is spoken inside TLS.
const ALPN: &[u8] = b"http/1.1";

/// The cipher suites of TLS 1.3 by Go's names. As in Go, nobody chooses among them.
const SUITES_13: [&str; 3] = [
    "TLS_AES_128_GCM_SHA256",
    "TLS_AES_256_GCM_SHA384",
    "TLS_CHACHA20_POLY1305_SHA256",
];

/// How to serve what `said` asks for; nothing where it says nothing.
///
/// Exporters serve without TLS too where there are other fields but no certificate.
/// Who writes a section for TLS wants TLS: here that is refused.
pub(super) fn server(said: &Tls, files: &mut Files) -> anyhow::Result<Option<ServerConfig>> {
    let chain = Pem::of("cert", &said.cert, &said.cert_file, files)?;
    let key = Pem::of("key", &said.key, &said.key_file, files)?;
    let (chain, key) = match (chain, key) {
        (Some(chain), Some(key)) => (chain, key),
        (None, None) if *said == Tls::default() => return Ok(None),
        (None, _) => bail!("tls_server_config: there is no cert_file"),
        (_, None) => bail!("tls_server_config: there is no key_file"),
    };
    let provider = Arc::new(provider(said)?);
    let certified = certified(&chain, &key, &provider)?;
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&versions(said)?)
        .map_err(|error| anyhow::anyhow!("tls_server_config: {}", words(error)))?;
    let builder = match client::verifier(said, &provider, files)? {
        Some(verifier) => builder.with_client_cert_verifier(verifier),
        None => builder.with_no_client_auth(),
    };
    let mut server = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
    server.alpn_protocols = vec![ALPN.to_vec()];
    server.ignore_client_order = said.prefer_server_cipher_suites.unwrap_or(true);
    Ok(Some(server))
}

/// The certificates with the key of the first one.
fn certified(chain: &Pem, key: &Pem, provider: &CryptoProvider) -> anyhow::Result<CertifiedKey> {
    let certificates = chain.certificates()?;
    let signing = provider.key_provider.load_private_key(key.key()?);
    let signing = signing.map_err(|error| anyhow::anyhow!("{}: {}", key.place, words(error)))?;
    let certified = CertifiedKey::new(certificates, signing);
    match certified.keys_match() {
        Ok(()) | Err(Error::InconsistentKeys(InconsistentKeys::Unknown)) => Ok(certified),
        Err(Error::InconsistentKeys(_)) => bail!(
            "{}: not the key of the first certificate of {}",
            key.place,
            chain.place
        ),
        Err(error) => bail!("{}: {}", chain.place, words(error)),
    }
}

/// What rustls says, without the name of its most general kind.
fn words(error: Error) -> String {
    match error {
        Error::General(words) => words,
        error => error.to_string(),
    }
}

/// The versions from `min_version` to `max_version`.
fn versions(said: &Tls) -> anyhow::Result<Vec<&'static SupportedProtocolVersion>> {
    let least = version("min_version", &said.min_version)?.unwrap_or(12);
    let most = version("max_version", &said.max_version)?.unwrap_or(13);
    if least > most {
        bail!("tls_server_config: min_version is above max_version");
    }
    let all = [(12, &TLS12), (13, &TLS13)];
    let wanted = all.iter().filter(|(n, _)| (least..=most).contains(n));
    Ok(wanted.map(|(_, version)| *version).collect())
}

fn version(name: &str, word: &Word) -> anyhow::Result<Option<u8>> {
    let Some(said) = filled(word) else {
        return Ok(None);
    };
    let why = match said.value().as_str() {
        "TLS12" => return Ok(Some(12)),
        "TLS13" => return Ok(Some(13)),
        "TLS10" | "TLS11" => "too weak to be offered, take TLS12",
        _ => "may be TLS12 or TLS13",
    };
    Err(said.problem(format!("tls_server_config.{name}"), why))
}

/// The cipher suites and groups that are wanted, of those that there are.
fn provider(said: &Tls) -> anyhow::Result<CryptoProvider> {
    let mut provider = ring::default_provider();
    if let Some(names) = filled_list(&said.cipher_suites) {
        let all = std::mem::take(&mut provider.cipher_suites);
        let (suites_13, suites_12): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|suite| suite.tls13().is_some());
        provider.cipher_suites = suites_13;
        for name in names {
            let is = |id: Option<&str>| id == Some(name.value().as_str());
            let suite = suites_12.iter().find(|suite| is(suite.suite().as_str()));
            match suite {
                Some(suite) => provider.cipher_suites.push(*suite),
                None if SUITES_13.contains(&name.value().as_str()) => {}
                None => {
                    let known = suites_12.iter().filter_map(|suite| suite.suite().as_str());
                    let known = known.collect::<Vec<_>>().join(", ");
                    return Err(name.problem(
                        "tls_server_config.cipher_suites",
                        format!("{} is not supported, only {known}", name.value()),
                    ));
                }
            }
        }
    }
    if let Some(names) = filled_list(&said.curve_preferences) {
        provider.kx_groups.clear();
        for name in names {
            provider.kx_groups.push(match name.value().as_str() {
                "X25519" => ring::kx_group::X25519,
                "CurveP256" => ring::kx_group::SECP256R1,
                "CurveP384" => ring::kx_group::SECP384R1,
                other => {
                    return Err(name.problem(
                        "tls_server_config.curve_preferences",
                        format!("{other} is not supported, only X25519, CurveP256, CurveP384"),
                    ));
                }
            });
        }
    }
    Ok(provider)
}

/// An empty list wants what is usual.
fn filled_list(words: &Words) -> Option<&[Said<String>]> {
    words.as_deref().filter(|words| !words.is_empty())
}
