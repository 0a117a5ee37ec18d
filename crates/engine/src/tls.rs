//! TLS by rustls: a server's certificate, reread when its files change; whom a client trusts; certificates for
//! development.

use parking_lot::Mutex;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use rustls_platform_verifier::Verifier;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use tokio_rustls::rustls::client::WebPkiServerVerifier;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio_rustls::rustls::server::{ClientHello, ResolvesServerCert};
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::{
    ClientConfig, DigitallySignedStruct, Error as RustlsError, RootCertStore, ServerConfig, SignatureScheme,
};

/// How often the files of a certificate are looked at, at most.
const CHECK_EVERY: Duration = Duration::from_secs(1);
/// How long a certificate for development is valid. Browsers refuse more than 398 days.
const DEV_DAYS: u64 = 397;

/// What is wrong with a file or a setting; the text names it.
#[derive(Debug)]
pub enum TlsError {
    /// The file cannot be read.
    File {
        /// The argument that named it.
        setting: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's word.
        error: io::Error,
    },
    /// What is in it will not do.
    Content {
        /// The argument that named it.
        setting: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        text: String,
    },
    /// Anything else.
    Other(String),
}

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { setting, path, error } => write!(f, "{setting}={}: {error}", path.display()),
            Self::Content { setting, path, text } => write!(f, "{setting}={}: {text}", path.display()),
            Self::Other(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for TlsError {}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn pem_error(setting: &'static str, path: &Path, error: pem::Error) -> TlsError {
    let path = path.to_owned();
    match error {
        pem::Error::Io(error) => TlsError::File { setting, path, error },
        pem::Error::NoItemsFound => {
            let what = if setting.contains("key") { "private key" } else { "certificate" };
            TlsError::Content { setting, path, text: format!("there is no {what} in this file (PEM is expected)") }
        }
        other => TlsError::Content { setting, path, text: format!("not PEM: {other}") },
    }
}

fn certificates(setting: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found: Result<Vec<_>, _> =
        CertificateDer::pem_file_iter(path).map_err(|e| pem_error(setting, path, e))?.collect();
    let found = found.map_err(|e| pem_error(setting, path, e))?;
    if found.is_empty() {
        return Err(pem_error(setting, path, pem::Error::NoItemsFound));
    }
    Ok(found)
}

fn private_key(setting: &'static str, path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_file(path).map_err(|e| pem_error(setting, path, e))
}

/// When the files were written, to see that they were written again.
type Stamp = [Option<(SystemTime, u64)>; 2];

/// A server's certificate and key, reread when their files change.
pub struct Identity {
    certfile: PathBuf,
    keyfile: PathBuf,
    /// Guards the key while it is looked up or replaced; files are read under it at most once a second.
    state: Mutex<IdentityState>,
    /// Told of a file that was replaced by something unusable: the old certificate goes on.
    report: Box<dyn Fn(String) + Send + Sync>,
}

struct IdentityState {
    key: Arc<CertifiedKey>,
    stamp: Stamp,
    checked: Instant,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("certfile", &self.certfile).finish_non_exhaustive()
    }
}

impl Identity {
    fn stamp(certfile: &Path, keyfile: &Path) -> Stamp {
        let one = |path: &Path| fs::metadata(path).ok().and_then(|m| Some((m.modified().ok()?, m.len())));
        [one(certfile), one(keyfile)]
    }

    fn load(certfile: &Path, keyfile: &Path) -> Result<CertifiedKey, TlsError> {
        let chain = certificates("certfile", certfile)?;
        let key = private_key("keyfile", keyfile)?;
        let content = |text: String| TlsError::Content { setting: "keyfile", path: keyfile.to_owned(), text };
        let key = provider().key_provider.load_private_key(key).map_err(|e| content(e.to_string()))?;
        let key = CertifiedKey::new(chain, key);
        match key.keys_match() {
            Ok(()) | Err(RustlsError::InconsistentKeys(tokio_rustls::rustls::InconsistentKeys::Unknown)) => Ok(key),
            Err(RustlsError::InconsistentKeys(_)) => {
                Err(content(format!("this key does not belong to the certificate in certfile={}", certfile.display())))
            }
            Err(error) => {
                Err(TlsError::Content { setting: "certfile", path: certfile.to_owned(), text: error.to_string() })
            }
        }
    }

    fn current(&self) -> Arc<CertifiedKey> {
        let mut state = self.state.lock();
        if state.checked.elapsed() < CHECK_EVERY {
            return Arc::clone(&state.key);
        }
        state.checked = Instant::now();
        let stamp = Self::stamp(&self.certfile, &self.keyfile);
        if stamp != state.stamp {
            match Self::load(&self.certfile, &self.keyfile) {
                Ok(key) => {
                    state.key = Arc::new(key);
                    state.stamp = stamp;
                }
                // Perhaps half written: tried again in a second, and reported once for each state of the files.
                Err(error) => {
                    (self.report)(format!("the certificate was not reread, the old one goes on: {error}"));
                    state.stamp = stamp;
                }
            }
        }
        Arc::clone(&state.key)
    }
}

impl ResolvesServerCert for Identity {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current())
    }
}

/// A server's side: TLS 1.2 and 1.3, ALPN for HTTP/2 and HTTP/1.1.
///
/// # Errors
/// When a file cannot be read, has nothing of use in it, or key and certificate do not belong together.
pub fn server_config(
    certfile: &Path,
    keyfile: &Path,
    report: impl Fn(String) + Send + Sync + 'static,
) -> Result<Arc<ServerConfig>, TlsError> {
    let stamp = Identity::stamp(certfile, keyfile);
    let key = Arc::new(Identity::load(certfile, keyfile)?);
    let identity = Identity {
        certfile: certfile.to_owned(),
        keyfile: keyfile.to_owned(),
        state: Mutex::new(IdentityState { key, stamp, checked: Instant::now() }),
        report: Box::new(report),
    };
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|e| TlsError::Other(e.to_string()))?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(identity));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    // A ticket comes when the handshake is over (RFC 8446 section 4.6.1). A client that reads and writes in two threads, with
    // OpenSSL and no lock around the two, as in CPython 3.11's `ssl`, may hang on it: the writer takes the ticket that
    // the reader is at for a handshake, and waits for more of that. `websockets`' threading client is one. A ticket would spare
    // no round trip, only a signature, and only to the 256 clients that rustls remembers.
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// Whom a client trusts.
#[derive(Clone, Debug, Default)]
pub struct Trust {
    /// Only authorities in this file, instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// Only a server whose certificate has this SHA-256, whoever signed it and whatever names it has.
    pub fingerprint: Option<[u8; 32]>,
    /// Anybody: no verification at all.
    pub anybody: bool,
    /// Certificate and key to show to the server.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// A client's side: TLS 1.2 and 1.3.
///
/// # Errors
/// When a file will not do, or the system has no certificates.
pub fn client_config(trust: &Trust) -> Result<Arc<ClientConfig>, TlsError> {
    let other = |e: RustlsError| TlsError::Other(e.to_string());
    let verifier: Arc<dyn ServerCertVerifier> = if trust.anybody {
        Arc::new(Pinned { fingerprint: None, provider: provider() })
    } else if let Some(fingerprint) = trust.fingerprint {
        Arc::new(Pinned { fingerprint: Some(fingerprint), provider: provider() })
    } else if let Some(path) = &trust.ca_file {
        let mut roots = RootCertStore::empty();
        for certificate in certificates("ca_file", path)? {
            roots.add(certificate).map_err(|e| TlsError::Content {
                setting: "ca_file",
                path: path.clone(),
                text: e.to_string(),
            })?;
        }
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
            .build()
            .map_err(|e| TlsError::Content { setting: "ca_file", path: path.clone(), text: e.to_string() })?
    } else {
        Arc::new(Verifier::new(provider()).map_err(other)?)
    };
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(other)?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match &trust.identity {
        None => builder.with_no_client_auth(),
        Some((certfile, keyfile)) => {
            let chain = certificates("client_certfile", certfile)?;
            let key = private_key("client_keyfile", keyfile)?;
            builder.with_client_auth_cert(chain, key).map_err(|e| TlsError::Content {
                setting: "client_keyfile",
                path: keyfile.clone(),
                text: e.to_string(),
            })?
        }
    };
    // A WebSocket's opening handshake is HTTP/1.1 here; RFC 8441's over HTTP/2 is not spoken.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// Accepts one certificate, or any; the signature that proves possession of its key is checked in both cases.
#[derive(Debug)]
struct Pinned {
    fingerprint: Option<[u8; 32]>,
    provider: Arc<CryptoProvider>,
}

/// SHA-256 of a certificate, which is what `openssl x509 -fingerprint -sha256` prints.
#[must_use]
pub fn fingerprint(certificate: &CertificateDer<'_>) -> [u8; 32] {
    use sha2::Digest;
    sha2::Sha256::digest(certificate.as_ref()).into()
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, RustlsError> {
        let shown = fingerprint(end_entity);
        if self.fingerprint.is_none_or(|pinned| pinned == shown) {
            return Ok(ServerCertVerified::assertion());
        }
        let shown: Vec<String> = shown.iter().map(|byte| format!("{byte:02X}")).collect();
        Err(RustlsError::General(format!("the server's certificate has the fingerprint {}", shown.join(":"))))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, RustlsError> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, RustlsError> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Certificates for development, as PEM.
#[derive(Debug)]
pub struct DevCertificates {
    /// The local authority, to be trusted by browsers and clients.
    pub authority: String,
    /// Certificate for the names, signed by the authority, followed by the authority's.
    pub certificate: String,
    /// The certificate's key.
    pub key: String,
}

/// Makes a local authority and a certificate for `names` (host names or addresses). The authority's key is thrown
/// away: nobody can sign anything else with it.
///
/// # Errors
/// When a name is neither a host name nor an address.
pub fn dev_certificates(names: &[String]) -> Result<DevCertificates, TlsError> {
    let other = |e: rcgen::Error| TlsError::Other(format!("cannot make a certificate for {}: {e}", names.join(", ")));
    if let Some(name) = names.iter().find(|name| !is_name(name)) {
        return Err(TlsError::Other(format!("{name:?} is neither a host name nor an address")));
    }
    let now = SystemTime::now();
    let valid = |params: &mut CertificateParams, common_name: &str| {
        // A day back, for clocks that are behind.
        params.not_before = (now - Duration::from_secs(86_400)).into();
        params.not_after = (now + Duration::from_secs(86_400 * DEV_DAYS)).into();
        params.distinguished_name.push(DnType::OrganizationName, "pyHV development");
        params.distinguished_name.push(DnType::CommonName, common_name);
    };
    let mut authority = CertificateParams::new(Vec::new()).map_err(other)?;
    valid(&mut authority, "pyHV development authority");
    authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    authority.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign, rcgen::KeyUsagePurpose::CrlSign];
    let authority_key = KeyPair::generate().map_err(other)?;
    let issuer = CertifiedIssuer::self_signed(authority, authority_key).map_err(other)?;

    let mut params = CertificateParams::new(names).map_err(other)?;
    valid(&mut params, names.first().map_or("localhost", String::as_str));
    params.key_usages = vec![rcgen::KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate().map_err(other)?;
    let certificate = params.signed_by(&key, &issuer).map_err(other)?;
    Ok(DevCertificates {
        certificate: certificate.pem() + &issuer.pem(),
        authority: issuer.pem(),
        key: key.serialize_pem(),
    })
}

/// An IP address, or a host name (RFC 1123 section 2.1), perhaps with a `*` as its first label.
fn is_name(name: &str) -> bool {
    let label = |label: &str| {
        let inside = label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        inside && !label.is_empty() && label.len() <= 63 && !label.starts_with('-') && !label.ends_with('-')
    };
    let host = name.strip_prefix("*.").unwrap_or(name);
    name.parse::<std::net::IpAddr>().is_ok() || host.len() <= 253 && host.split('.').all(label)
}
