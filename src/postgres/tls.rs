//! TLS to PostgreSQL with libpq's levels of trust.
//!
//! `verify-full` is rustls' own verification. `verify-ca` checks the chain and leaves the name out; `require` checks only
//! that the peer owns the certificate that it shows. A certificate that stands in the root file itself is trusted as it
//! is, since self-signed server certificates are common with PostgreSQL and OpenSSL accepts them that way.

use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::server::ParsedCertificate;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

use super::endpoint::{Endpoint, Host, SslMode};
use crate::error::{Error, Kind, Result};

/// What must be true of the server's certificate besides being its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trust {
    Anything,
    Chain,
    ChainAndName,
}

impl Trust {
    fn of(endpoint: &Endpoint) -> Self {
        match endpoint.sslmode {
            SslMode::VerifyFull => Self::ChainAndName,
            SslMode::VerifyCa => Self::Chain,
            SslMode::Require if endpoint.root_cert.is_some() => Self::Chain,
            SslMode::Disable | SslMode::Allow | SslMode::Prefer | SslMode::Require => Self::Anything,
        }
    }
}

#[derive(Debug)]
struct Verifier {
    trust: Trust,
    roots: RootCertStore,
    /// The root file's certificates, which are trusted as they are.
    pinned: Vec<CertificateDer<'static>>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if self.trust == Trust::Anything {
            return Ok(ServerCertVerified::assertion());
        }
        let certificate = ParsedCertificate::try_from(end_entity)?;
        if !self.pinned.iter().any(|pinned| pinned == end_entity) {
            let algorithms = self.provider.signature_verification_algorithms.all;
            verify_server_cert_signed_by_trust_anchor(&certificate, &self.roots, intermediates, now, algorithms)?;
        }
        if self.trust == Trust::ChainAndName {
            verify_server_name(&certificate, server_name)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// The rustls configuration and server name for an endpoint. Reads its certificate files.
pub(super) async fn client_config(endpoint: &Endpoint) -> Result<(Arc<ClientConfig>, ServerName<'static>)> {
    let trust = Trust::of(endpoint);
    let (roots, pinned) = roots(endpoint, trust).await?;
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = Verifier { trust, roots, pinned, provider: Arc::clone(&provider) };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| Error::new(Kind::Internal, "cannot set up TLS").caused_by(e))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match (&endpoint.client_cert, &endpoint.client_key) {
        (Some(cert), Some(key)) => {
            let key_pem = read_pem(key, "sslkey").await?;
            let key = PrivateKeyDer::from_pem_slice(&key_pem).map_err(|e| bad_file(key, "sslkey", &e.to_string()))?;
            builder.with_client_auth_cert(certificates(cert, "sslcert").await?, key).map_err(|e| {
                Error::new(Kind::Configuration, "`sslcert` and `sslkey` do not fit together").caused_by(e)
            })?
        }
        _ => builder.with_no_client_auth(),
    };
    let name = match &endpoint.host {
        Host::Tcp(host) => ServerName::try_from(host.clone()).ok(),
        Host::Unix(_) => None,
    };
    let name = match name {
        Some(name) => name,
        None if trust == Trust::ChainAndName => {
            let message = format!("`{endpoint}`: sslmode=verify-full needs a host name that a certificate can carry");
            return Err(Error::new(Kind::Configuration, message));
        }
        None => {
            config.enable_sni = false;
            ServerName::try_from("localhost").map_err(|e| Error::new(Kind::Internal, "server name").caused_by(e))?
        }
    };
    Ok((Arc::new(config), name))
}

async fn roots(endpoint: &Endpoint, trust: Trust) -> Result<(RootCertStore, Vec<CertificateDer<'static>>)> {
    let mut roots = RootCertStore::empty();
    if trust == Trust::Anything {
        return Ok((roots, Vec::new()));
    }
    if let Some(path) = &endpoint.root_cert {
        let pinned = certificates(path, "sslrootcert").await?;
        // A certificate that cannot be an anchor can still be trusted as it is.
        roots.add_parsable_certificates(pinned.iter().cloned());
        return Ok((roots, pinned));
    }
    if trust == Trust::Chain {
        // Any certificate of a public authority would do, for whatever host.
        let message = format!(
            "sslmode={} needs `sslrootcert`, the file of the authority that signs the server's certificate; or use \
             sslmode=verify-full, which checks the host's name against the machine's own authorities",
            endpoint.sslmode.name()
        );
        return Err(Error::new(Kind::Configuration, message));
    }
    let native = tokio::task::spawn_blocking(rustls_native_certs::load_native_certs)
        .await
        .map_err(|e| Error::new(Kind::Internal, "cannot read the machine's certificates").caused_by(e))?;
    roots.add_parsable_certificates(native.certs);
    if roots.is_empty() {
        let message = "the machine has no trusted root certificates; name the server's authority with `sslrootcert`";
        return Err(Error::new(Kind::Configuration, message));
    }
    Ok((roots, Vec::new()))
}

async fn certificates(path: &Path, setting: &str) -> Result<Vec<CertificateDer<'static>>> {
    let pem = read_pem(path, setting).await?;
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<_, _>>()
        .map_err(|e| bad_file(path, setting, &e.to_string()))?;
    if certificates.is_empty() {
        return Err(bad_file(path, setting, "it holds no certificate"));
    }
    Ok(certificates)
}

async fn read_pem(path: &Path, setting: &str) -> Result<Vec<u8>> {
    tokio::fs::read(path).await.map_err(|e| bad_file(path, setting, &e.to_string()))
}

fn bad_file(path: &Path, setting: &str, why: &str) -> Error {
    Error::new(Kind::Configuration, format!("`{setting}` {}: {why}; it must be a PEM file", path.display()))
}
