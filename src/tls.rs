//! The server's certificate and its private key, for `wss` clients.
//!
//! Owns the certificate and key that were last read. A reload that fails changes nothing. A
//! client's session is in `conn::session`.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::NoServerSessionStorage;

use crate::files;
use crate::keys::{self, KeyKind};

/// Shortest RSA key in bits that the TLS library signs with.
const RSA_BITS_MIN: usize = 2048;

/// The reasons why a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file could not be read, or has no certificate or no key in it.
    #[error("cannot read a {what} from {}: {}", path.display(), explain(source))]
    Read {
        /// The missing item: certificate or private key.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The parser's error.
        source: pem::Error,
    },
    /// The key cannot be used.
    #[error("cannot use the private key in {}: {reason}", path.display())]
    Key {
        /// The key's file.
        path: PathBuf,
        /// The reason, and the remedy.
        reason: String,
    },
    /// The key is not that of the certificate.
    #[error("the private key in {} is not that of the certificate in {}", key.display(), cert.display())]
    Mismatch {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
    },
    /// The library cannot read the two, or does not support their kind.
    #[error("cannot use {} with {}: {source}", cert.display(), key.display())]
    Unusable {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// The library's error.
        source: rustls::Error,
    },
}

/// The reason why a file has no private key that the server can use, if it is known.
fn unusable_key(pem: &[u8]) -> Option<String> {
    let sections = keys::sections(pem);
    let Some(key) = sections.iter().find(|section| section.is_private_key()) else {
        let label = sections.first()?.label;
        return Some(format!("it has a {label} and no private key: name the file of the private key"));
    };
    if key.is_encrypted() {
        return Some("the key is encrypted: decrypt it (openssl pkey -in FILE -out DECRYPTED)".to_owned());
    }
    match keys::private_key_kind(key)? {
        KeyKind::Rsa(bits) if bits < RSA_BITS_MIN => {
            Some(format!("the RSA key has {bits} bits: make one with at least {RSA_BITS_MIN}"))
        }
        KeyKind::Ec(curve) if !["P-256", "P-384"].contains(&curve) => {
            Some(format!("the key is on an unsupported curve ({curve}): make one on P-256"))
        }
        KeyKind::Other(kind) if kind != "Ed25519" => {
            Some(format!("the key is of an unsupported kind ({kind}): make one on P-256"))
        }
        _ => None,
    }
}

fn explain(error: &pem::Error) -> String {
    match error {
        pem::Error::NoItemsFound => "there is none in PEM form".to_owned(),
        pem::Error::Io(error) => error.to_string(),
        other => other.to_string(),
    }
}

/// The certificate and key of the server; the module describes it.
pub struct Tls(RwLock<Arc<ServerConfig>>);

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").finish_non_exhaustive()
    }
}

impl Tls {
    /// Reads a certificate chain and its private key, both in PEM form.
    ///
    /// # Errors
    /// The file at fault, and the reason.
    pub fn load(cert: &Path, key: &Path) -> Result<Self, TlsError> {
        Ok(Self(RwLock::new(read(cert, key)?)))
    }

    /// Uses the certificate and key of `fresh` for later connections.
    pub fn adopt(&self, fresh: &Self) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = fresh.current();
    }

    /// The configuration of the next session.
    #[must_use]
    pub fn current(&self) -> Arc<ServerConfig> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn read(cert: &Path, key: &Path) -> Result<Arc<ServerConfig>, TlsError> {
    let failed = |what, path: &Path| {
        let path = path.to_owned();
        move |source| TlsError::Read { what, path, source }
    };
    let chain = files::read(cert).map_err(pem::Error::Io);
    let chain = chain.and_then(|pem| CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>());
    let chain = chain.and_then(|chain| if chain.is_empty() { Err(pem::Error::NoItemsFound) } else { Ok(chain) });
    let chain = chain.map_err(failed("certificate", cert))?;
    let key_pem = files::read(key).map_err(pem::Error::Io).map_err(failed("private key", key))?;
    // If the key is at fault, this is the most exact error.
    if let Some(reason) = unusable_key(&key_pem) {
        return Err(TlsError::Key { path: key.to_owned(), reason });
    }
    let private = PrivateKeyDer::from_pem_slice(&key_pem).map_err(failed("private key", key))?;
    let unusable = |source| match source {
        rustls::Error::InconsistentKeys(_) => TlsError::Mismatch { cert: cert.to_owned(), key: key.to_owned() },
        source => TlsError::Unusable { cert: cert.to_owned(), key: key.to_owned(), source },
    };
    let mut config = ServerConfig::builder_with_provider(ring::default_provider().into())
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, private))
        .map_err(unusable)?;
    // A WebSocket begins with HTTP/1.1 (RFC 6455, section 4.1).
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // A client that reconnects may resume its session. The server stores nothing for that: the
    // state is in the client's ticket, and one ticket is enough.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.ticketer = ring::Ticketer::new().map_err(unusable)?;
    config.send_tls13_tickets = 1;
    Ok(config.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unusable_key_says_why() {
        let reason = |label: &str, base64: &str| {
            unusable_key(format!("-----BEGIN {label}-----\n{base64}\n-----END {label}-----").as_bytes())
        };
        let ed448 =
            "MEcCAQAwBQYDK2VxBDsEOS+jnJhJvz4aS2bcX5KcE+W4vL3qwzUWuptzk5/hFb/3KAUqcmRuX8TkrDJOwCyLQd5WCfbkbRPJ3g==";
        let secp256k1 = "MHQCAQEEIDmCD/094BCdQW0jmUSHvNfDW1EfFRSe88JjRfHtUm1MoAcGBSuBBAAKoUQDQgAEUSH/IFkDshV/Le+lHRUgOCjQ\
                         xO5OSBVEr6SPlR+XR1mcYjspGAzELzNWrduVV2oCefb92+7AcFPmjyipcPMjsA==";
        assert!(reason("PRIVATE KEY", ed448).unwrap().contains("(Ed448)"));
        assert!(reason("EC PRIVATE KEY", secp256k1).unwrap().contains("(secp256k1)"));
        assert!(reason("ENCRYPTED PRIVATE KEY", "AA==").unwrap().starts_with("the key is encrypted"));
        assert!(reason("CERTIFICATE", "AA==").unwrap().contains("no private key"));
        assert_eq!(unusable_key(include_bytes!("../tests/it/keys/tls-key.pem")), None);
        assert_eq!(unusable_key(include_bytes!("../tests/it/keys/rsa-private.pem")), None);
    }
}
