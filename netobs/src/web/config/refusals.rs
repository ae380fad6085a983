//! Bad files, and what is said about them.

use std::{fs, os::unix::fs::PermissionsExt as _};

use super::{
    Reloading, WebConfig,
    fixture::{Authority, Folder, tls},
};
use crate::error::Chain;

/// What is said of `text`, with a good pair beside it.
fn refused(text: &str) -> String {
    let folder = Folder::new();
    folder.put_pair(&Authority::new().sign("localhost"));
    folder.refused(text)
}

#[test]
fn what_cannot_be_says_why() {
    for (text, words) in [
        ("basic_auth_users: [", "line 1"),
        ("tls_server_config: 7\n", "line 1"),
        ("a: b: c\n", "line 1"),
        ("- a\n", "line 1"),
        ("{}\n---\n{}\n", "multiple"),
        ("a: 1\n", "unknown field `a`"),
        ("tls_server_config: {certfile: a}\n", "certfile"),
        ("http_server_config:\n  http3: true\n", "http3"),
        ("http_server_config: {http2: maybe}\n", "line 1"),
        (
            "basic_auth_users: {a: x}\nbasic_auth_users: {}\n",
            "duplicate mapping key `basic_auth_users`",
        ),
        ("basic_auth_users:\n  a:\n", "line 2"),
        ("rate_limit:\n  burst: 1\n", "rate_limit: not supported"),
        (
            "basic_auth_users:\n  a: plain\n",
            "line 2: basic_auth_users.a: not a bcrypt hash",
        ),
        ("basic_auth_users:\n  'a:b': plain\n", "colon"),
        (
            "http_server_config:\n  headers:\n    Server: a\n",
            "line 3: http_server_config.headers.Server: cannot be set",
        ),
        (
            "http_server_config: {headers: {X-Frame-Options: allow}}\n",
            "deny or sameorigin",
        ),
        (
            "http_server_config: {headers: {X-XSS-Protection: \"a\\nb\"}}\n",
            "characters",
        ),
        (
            "tls_server_config: {min_version: TLS13}\n",
            "there is no cert_file",
        ),
        (
            "tls_server_config: {cert_file: cert.pem}\n",
            "there is no key_file",
        ),
        (
            "tls_server_config: {key_file: key.pem}\n",
            "there is no cert_file",
        ),
    ] {
        let said = refused(text);
        assert!(said.contains(words), "{text}: {said}");
    }
}

#[test]
fn what_tls_cannot_do_says_why() {
    for (more, words) in [
        (
            "min_version: TLS10",
            "line 4: tls_server_config.min_version: too weak",
        ),
        ("max_version: SSL30", "may be TLS12 or TLS13"),
        ("min_version: TLS13\n  max_version: TLS12", "above"),
        (
            "cipher_suites: [TLS_RSA_WITH_AES_128_CBC_SHA]",
            "TLS_RSA_WITH_AES_128_CBC_SHA is not supported, only TLS_ECDHE",
        ),
        (
            "cipher_suites: [TLS_AES_128_GCM_SHA256]\n  max_version: TLS12",
            "no usable cipher suites",
        ),
        (
            "curve_preferences: [CurveP521]",
            "CurveP521 is not supported",
        ),
        ("client_auth_type: RequireAnyClientCert", "anybody can make"),
        ("client_auth_type: RequestClientCert", "does not look at it"),
        (
            "client_auth_type: Other",
            "Other is not known: take NoClientCert,",
        ),
        (
            "client_auth_type: RequireAndVerifyClientCert",
            "needs client_ca_file",
        ),
        (
            "client_ca_file: cert.pem",
            "for nothing without client_auth_type",
        ),
        (
            "client_auth_type: VerifyClientCertIfGiven\n  client_ca_file: none.pem",
            "none.pem: No such file",
        ),
        (
            "client_auth_type: VerifyClientCertIfGiven\n  client_ca_file: key.pem",
            "no certificate in it",
        ),
        ("client_allowed_sans: [a]", "needs client_auth_type"),
        ("client_allowed_sans: []", "nobody could come in"),
        (
            "client_auth_type: RequireAndVerifyClientCert\n  client_ca_file: cert.pem\n  client_allowed_sans: [a@b]",
            "e-mail",
        ),
    ] {
        let said = refused(&tls(&format!("  {more}\n")));
        assert!(said.contains(words), "{more}: {said}");
    }
}

#[test]
fn files_that_cannot_be_used_are_named() {
    let folder = Folder::new();
    let authority = Authority::new();
    let text = tls("");
    let error = WebConfig::load(&folder.path("web.yml")).expect_err("none there");
    assert!(Chain(&error).to_string().contains("web.yml: No such file"));
    let words = folder.refused(&text);
    assert!(
        words.contains("line 2: tls_server_config.cert_file"),
        "{words}"
    );
    assert!(words.contains("cert.pem: No such file"), "{words}");

    folder.put_pair(&authority.sign("localhost"));
    folder.put("key.pem", &authority.sign("localhost").key);
    let words = folder.refused(&text);
    assert!(words.contains("not the key of"), "{words}");

    let pair = authority.sign("localhost");
    for (key, reason) in [
        (pair.cert.as_str(), "no key in it"),
        ("", "no key in it"),
        (
            "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAA==\n-----END ENCRYPTED PRIVATE KEY-----\n",
            "encrypted",
        ),
        ("-----BEGIN PRIVATE KEY-----\nA", "cut off"),
        (
            "-----BEGIN PRIVATE KEY-----\nAA==\n-----END PRIVATE KEY-----\n",
            "key.pem: failed to parse private key",
        ),
    ] {
        folder.put("key.pem", key);
        let words = folder.refused(&text);
        assert!(words.contains(reason), "{key}: {words}");
    }

    folder.put_pair(&pair);
    folder.put("cert.pem", &"a".repeat(2 << 20));
    assert!(
        folder
            .refused(&text)
            .contains("cert.pem: longer than 1 MiB")
    );
    fs::remove_file(folder.path("cert.pem")).expect("removed");
    fs::create_dir(folder.path("cert.pem")).expect("made");
    assert!(
        folder
            .refused(&text)
            .contains("cert.pem: not a regular file")
    );
    fs::write(folder.path("web.yml"), b"a: \xff\n").expect("written");
    let error = WebConfig::load(&folder.path("web.yml")).expect_err("not text");
    assert!(Chain(&error).to_string().contains("utf-8"), "{error:#}");
}

/// Where root's rights do not hide it.
#[test]
fn what_may_not_be_read_says_whose_it_has_to_be() {
    let folder = Folder::new();
    folder.put_pair(&Authority::new().sign("localhost"));
    let key = folder.path("key.pem");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o000)).expect("set");
    if fs::read(&key).is_ok() {
        eprintln!("SKIPPED: this user may read everything");
        return;
    }
    let words = folder.refused(&tls(""));
    assert!(words.contains("netobs' user or group"), "{words}");
    // It is found again by the time of its inode.
    let reloading = Reloading::load(&folder.config("{}")).expect("loaded");
    folder.config(&tls(""));
    assert!(reloading.current().tls().is_none());
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).expect("set");
    assert!(reloading.current().tls().is_some());
}

#[test]
fn aliases_do_not_multiply() {
    let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..12 {
        let before = level - 1;
        let ten = vec![format!("*a{before}"); 10].join(", ");
        text.push_str(&format!("a{level}: &a{level} [{ten}]\n"));
    }
    let _refused = refused(&format!("rate_limit:\n  {}", text.replace('\n', "\n  ")));
}
