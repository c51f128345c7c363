//! The client's end of TLS. It accepts any certificate: a load measures the server that answers,
//! and most test servers have a self-signed one.

use std::fmt;
use std::io::{self, Read, Write};
use std::sync::Arc;

use mio::net::TcpStream;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, Error, SignatureScheme};

/// The settings of all sessions.
#[derive(Clone)]
pub(crate) struct Tls {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
}

impl Tls {
    /// Settings for sessions with the server of this name.
    ///
    /// # Errors
    /// When `host` is not a valid name.
    pub(crate) fn new(host: &str) -> io::Result<Self> {
        let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
        let provider = Arc::new(ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
            .with_no_client_auth();
        Ok(Self { config: config.into(), name })
    }
}

/// Accepts any certificate, and checks that the server has its key.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// One TLS session.
pub(crate) struct Session(ClientConnection);

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Session").finish_non_exhaustive()
    }
}

impl Session {
    pub(crate) fn new(tls: &Tls) -> io::Result<Self> {
        ClientConnection::new(tls.config.clone(), tls.name.clone()).map(Self).map_err(io::Error::other)
    }

    /// Reads as much as there is, up to the length of `buffer`. Less than that means that the
    /// socket is empty.
    pub(crate) fn read(&mut self, tcp: &mut TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        loop {
            match self.0.reader().read(&mut buffer[filled..]) {
                Ok(0) => return Ok(filled),
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => match self.0.read_tls(tcp) {
                    Ok(0) => return Ok(filled),
                    Ok(_) => {
                        let state = self.0.process_new_packets();
                        // The answer of the handshake, or the alert that says why it failed.
                        self.flush(tcp)?;
                        state.map_err(io::Error::other)?;
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock && filled > 0 => return Ok(filled),
                    Err(error) => return Err(error),
                },
                Err(error) => return Err(error),
            }
            if filled == buffer.len() {
                return Ok(filled);
            }
        }
    }

    pub(crate) fn write(&mut self, tcp: &mut TcpStream, bytes: &[u8]) -> io::Result<usize> {
        // A session buffers a limited amount until the socket has taken what was before.
        let mut taken = 0;
        loop {
            self.flush(tcp)?;
            match self.0.writer().write(&bytes[taken..])? {
                0 if taken == 0 && !bytes.is_empty() => return Err(io::ErrorKind::WouldBlock.into()),
                0 => return Ok(taken),
                more => taken += more,
            }
        }
    }

    /// Writes as much as the socket takes now.
    pub(crate) fn flush(&mut self, tcp: &mut TcpStream) -> io::Result<()> {
        while self.0.wants_write() {
            match self.0.write_tls(tcp) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
                Ok(_) => {}
            }
        }
        Ok(())
    }
}
