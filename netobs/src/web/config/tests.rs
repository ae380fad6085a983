//! Good files.

use super::fixture::{Authority, Folder, hash, tls};

#[test]
fn what_is_empty_is_plain() {
    let folder = Folder::new();
    for text in [
        "",
        "\n",
        "# nothing\n",
        "{}",
        "---\n",
        "tls_server_config:\nbasic_auth_users:\n",
        "tls_server_config: {}\nhttp_server_config: {http2: true}\nbasic_auth_users: {}\n",
        "tls_server_config:\n  cert_file:\n",
    ] {
        let config = folder.accepted(text);
        assert!(config.tls().is_none(), "{text}");
        assert!(!config.has_users(), "{text}");
        assert!(config.headers().is_empty(), "{text}");
        assert!(config.admits(None), "{text}");
        assert!(config.admits(Some(b"anything")), "{text}");
    }
}

#[test]
fn all_that_is_supported_at_once() {
    let folder = Folder::new();
    let authority = Authority::new();
    folder.put_pair(&authority.sign("localhost"));
    folder.put("ca.pem", &authority.pem());
    let text = format!(
        "{}{}",
        tls(r#"  client_auth_type: "RequireAndVerifyClientCert"
  client_ca_file: ca.pem
  client_allowed_sans: [prometheus.example, "spiffe://example/prometheus", 10.0.0.1]
  min_version: TLS12
  max_version: TLS13
  cipher_suites:
    - TLS_AES_128_GCM_SHA256
    - TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
  prefer_server_cipher_suites: false
  curve_preferences: [CurveP256, X25519]
"#),
        r#"http_server_config:
  http2: false
  headers:
    Strict-Transport-Security: max-age=31536000
    X-Frame-Options: deny
    X-XSS-Protection: ""
basic_auth_users:
  alice: HASH
"#
        .replace("HASH", &hash("secret"))
    );
    let config = folder.accepted(&text);
    let tls = config.tls().expect("TLS");
    assert_eq!(tls.alpn_protocols, [b"http/1.1"]);
    assert!(!tls.ignore_client_order);
    let suites = &tls.crypto_provider().cipher_suites;
    assert_eq!(suites.len(), 4, "those of TLS 1.3, and one");
    let headers = config.headers().iter();
    let headers: Vec<_> = headers
        .map(|(name, value)| (name.as_str(), value))
        .collect();
    assert_eq!(headers.len(), 2);
    assert_eq!(headers[0].0, "strict-transport-security");
    assert_eq!(headers[1].1, "deny");
    assert!(config.has_users());
    let words = format!("{config} {config:?}");
    assert!(words.starts_with("TLS, 1 user"), "{words}");
    assert!(!words.contains("$2"), "{words}");
}

#[test]
fn keys_and_certificates_may_be_inline() {
    let folder = Folder::new();
    let authority = Authority::new();
    let pair = authority.sign("localhost");
    let block = |text: &str| text.replace('\n', "\n    ");
    let text = format!(
        "tls_server_config:\n  cert: |\n    {}\n  key: |\n    {}\n  client_ca: |\n    {}\n  client_auth_type: VerifyClientCertIfGiven\n",
        block(&pair.cert),
        block(&pair.key),
        block(&authority.pem())
    );
    assert!(folder.accepted(&text).tls().is_some());
    let both = text.replace("  key: |", "  key_file: key.pem\n  key: |");
    let said = folder.refused(&both);
    assert!(said.contains("key_file: key is there too"), "{said}");
    assert!(!said.contains("BEGIN"), "{said}");
}
