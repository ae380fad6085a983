//! Real handshakes, with clients of all kinds.

use std::sync::Arc;

use rustls::{
    ClientConfig, RootCertStore, SupportedProtocolVersion,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
    version::{TLS12, TLS13},
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::{
    WebConfig,
    fixture::{Authority, Folder, Identity},
};

/// A server's authority and folder, and the authority of its clients.
struct Lab {
    folder: Folder,
    servers: Authority,
    clients: Authority,
}

/// What a client is like.
struct Client<'a> {
    identity: Option<&'a Identity>,
    version: &'static SupportedProtocolVersion,
    alpn: &'static [&'static str],
}

const PLAIN: Client<'_> = Client {
    identity: None,
    version: &TLS13,
    alpn: &["h2", "http/1.1"],
};

impl Lab {
    fn new() -> Self {
        let lab = Self {
            folder: Folder::new(),
            servers: Authority::new(),
            clients: Authority::new(),
        };
        lab.folder.put_pair(&lab.servers.sign("localhost"));
        lab.folder.put("ca.pem", &lab.clients.pem());
        lab
    }

    fn config(&self, more: &str) -> WebConfig {
        let path = self.folder.config(&format!(
            "tls_server_config:\n  cert_file: cert.pem\n  key_file: key.pem\n{more}"
        ));
        WebConfig::load(&path).expect("a good file")
    }

    /// What `client` and the server say of each other: an echo and a protocol.
    fn meet(&self, config: &WebConfig, client: &Client<'_>) -> Result<String, String> {
        let runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = { runtime }.build().expect("a runtime");
        let acceptor = TlsAcceptor::from(config.tls().expect("TLS"));
        let connector = TlsConnector::from(Arc::new(self.client(client)));
        let (near, far) = tokio::io::duplex(1 << 14);
        let serve = async {
            let mut stream = acceptor.accept(far).await.map_err(|e| e.to_string())?;
            let mut bytes = [0; 5];
            stream
                .read_exact(&mut bytes)
                .await
                .map_err(|e| e.to_string())?;
            stream.write_all(&bytes).await.map_err(|e| e.to_string())?;
            stream.shutdown().await.map_err(|e| e.to_string())?;
            let protocol = stream.get_ref().1.alpn_protocol().unwrap_or(b"none");
            Ok(String::from_utf8_lossy(protocol).into_owned())
        };
        let ask = async {
            let name = ServerName::try_from("localhost").expect("a name");
            let mut stream = connector.connect(name, near).await?;
            stream.write_all(b"hello").await?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await?;
            assert_eq!(answer, b"hello");
            Ok::<_, std::io::Error>(())
        };
        let (served, asked) = runtime.block_on(async { tokio::join!(serve, ask) });
        assert_eq!(served.is_ok(), asked.is_ok(), "{served:?} {asked:?}");
        served
    }

    fn client(&self, client: &Client<'_>) -> ClientConfig {
        let ca = CertificateDer::from_pem_slice(self.servers.pem().as_bytes());
        let mut roots = RootCertStore::empty();
        roots.add(ca.expect("PEM")).expect("a CA");
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[client.version])
            .expect("a version")
            .with_root_certificates(roots);
        let mut config = match client.identity {
            None => builder.with_no_client_auth(),
            Some(Identity { cert, key }) => {
                let cert = CertificateDer::from_pem_slice(cert.as_bytes()).expect("PEM");
                let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("PEM");
                let builder = builder.with_client_auth_cert(vec![cert], key);
                builder.expect("a pair")
            }
        };
        let alpn = client.alpn.iter();
        config.alpn_protocols = alpn.map(|name| name.as_bytes().to_vec()).collect();
        config
    }
}

#[test]
fn anybody_is_served_where_nobody_is_asked() {
    let lab = Lab::new();
    let config = lab.config("");
    for version in [&TLS12, &TLS13] {
        let client = Client { version, ..PLAIN };
        assert_eq!(lab.meet(&config, &client).as_deref(), Ok("http/1.1"));
    }
    let silent = Client { alpn: &[], ..PLAIN };
    assert_eq!(lab.meet(&config, &silent).as_deref(), Ok("none"));
    let only_2 = Client {
        alpn: &["h2"],
        ..PLAIN
    };
    assert!(lab.meet(&config, &only_2).is_err());
    // Certificates are not asked for, so they do no harm.
    let stranger = Authority::new().sign("stranger");
    let client = Client {
        identity: Some(&stranger),
        ..PLAIN
    };
    assert!(lab.meet(&config, &client).is_ok());
}

#[test]
fn versions_and_suites_are_kept_to() {
    let lab = Lab::new();
    let old = Client {
        version: &TLS12,
        ..PLAIN
    };
    let newest = lab.config("  min_version: TLS13\n");
    assert!(lab.meet(&newest, &PLAIN).is_ok());
    assert!(lab.meet(&newest, &old).is_err());
    let oldest = lab.config("  max_version: TLS12\n");
    assert!(lab.meet(&oldest, &PLAIN).is_err());
    assert!(lab.meet(&oldest, &old).is_ok());
    // The key is one for ECDSA.
    let other = lab.config("  cipher_suites: [TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256]\n");
    assert!(lab.meet(&other, &old).is_err());
    assert!(lab.meet(&other, &PLAIN).is_ok(), "TLS 1.3 has its own");
    let curve = lab.config("  curve_preferences: [CurveP384]\n");
    assert!(lab.meet(&curve, &PLAIN).is_ok());
}

#[test]
fn certificates_of_clients_are_looked_at() {
    let lab = Lab::new();
    let right = lab.clients.sign("prometheus.example");
    let wrong = Authority::new().sign("prometheus.example");
    let always =
        lab.config("  client_auth_type: RequireAndVerifyClientCert\n  client_ca_file: ca.pem\n");
    let if_given =
        lab.config("  client_auth_type: VerifyClientCertIfGiven\n  client_ca_file: ca.pem\n");
    for version in [&TLS12, &TLS13] {
        let with = |identity| Client {
            identity,
            version,
            ..PLAIN
        };
        for (config, none) in [(&always, false), (&if_given, true)] {
            assert!(lab.meet(config, &with(Some(&right))).is_ok());
            assert!(lab.meet(config, &with(Some(&wrong))).is_err());
            assert_eq!(lab.meet(config, &with(None)).is_ok(), none);
        }
    }
}

#[test]
fn only_clients_of_a_name_are_let_in() {
    let lab = Lab::new();
    let config = lab.config(
        "  client_auth_type: RequireAndVerifyClientCert\n  client_ca_file: ca.pem\n  client_allowed_sans: [a.example, 10.0.0.1, 'spiffe://example/a', '::1']\n",
    );
    for (name, comes_in) in [
        ("a.example", true),
        ("b.example", false),
        ("*.example", false),
        ("10.0.0.1", true),
        ("10.0.0.2", false),
        ("::1", true),
        ("spiffe://example/a", true),
        ("spiffe://example/ab", false),
    ] {
        let identity = lab.clients.sign(name);
        let client = Client {
            identity: Some(&identity),
            ..PLAIN
        };
        assert_eq!(lab.meet(&config, &client).is_ok(), comes_in, "{name}");
    }
    assert!(lab.meet(&config, &PLAIN).is_err());
    // The name alone is not enough.
    let wrong = Authority::new().sign("a.example");
    let client = Client {
        identity: Some(&wrong),
        ..PLAIN
    };
    assert!(lab.meet(&config, &client).is_err());
}
