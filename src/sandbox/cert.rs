//! The certificate that the sandbox shows: its own, made at the start, or one that it is given.

use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::ServerConfig;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::config::CertificateFiles;
use crate::error::{Error, Kind, Result};

/// A TLS configuration and the certificates to trust, as PEM: the server's own, and its authority's after it.
pub(crate) struct Identity {
    pub(crate) tls: Arc<ServerConfig>,
    pub(crate) certificate_pem: String,
}

/// Reads the files, or makes a certificate for localhost.
pub(crate) fn identity(files: Option<&CertificateFiles>) -> Result<Identity> {
    let (chain_pem, key_pem) = if let Some(files) = files {
        (read(&files.certificate)?, read(&files.key)?)
    } else {
        let made = make().map_err(|e| Error::new(Kind::Internal, "cannot make a certificate").caused_by(e))?;
        (made.chain_pem, made.key_pem)
    };
    let unusable = |what: &str| Error::new(Kind::Configuration, format!("the sandbox's {what} cannot be used"));
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(chain_pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|e| unusable("certificate").caused_by(e))?;
    let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).map_err(|e| unusable("key").caused_by(e))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut tls = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key))
        .map_err(|e| unusable("certificate and key").caused_by(e))?;
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Identity { tls: Arc::new(tls), certificate_pem: chain_pem })
}

/// A chain of the server's certificate and the authority that signed it, and the server's key.
struct Made {
    chain_pem: String,
    key_pem: String,
}

/// Makes an authority of one's own and a certificate of it for localhost. Some clients refuse a server that is its own
/// authority, so there are two.
fn make() -> std::result::Result<Made, rcgen::Error> {
    let mut authority = CertificateParams::new(Vec::<String>::new())?;
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.distinguished_name.push(DnType::CommonName, "Tidelock sandbox authority");
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let authority_key = KeyPair::generate()?;
    let authority_pem = authority.self_signed(&authority_key)?.pem();
    let mut server = CertificateParams::new(["localhost", "127.0.0.1", "::1"].map(str::to_owned))?;
    server.distinguished_name.push(DnType::CommonName, "Tidelock sandbox");
    server.use_authority_key_identifier_extension = true;
    server.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let server_key = KeyPair::generate()?;
    let signed = server.signed_by(&server_key, &Issuer::new(authority, authority_key))?;
    Ok(Made { chain_pem: format!("{}{authority_pem}", signed.pem()), key_pem: server_key.serialize_pem() })
}

fn read(path: &std::path::Path) -> Result<String> {
    std::fs::read_to_string(path)
        .map_err(|e| Error::new(Kind::Configuration, format!("cannot read {}", path.display())).caused_by(e))
}
