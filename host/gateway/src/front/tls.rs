//! The certificate the HTTP front shows, and its key.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject as _};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{self, ServerConfig};

use super::serve::HTTP2;

/// A certificate chain and its key, ready to be used.
#[derive(Clone)]
pub struct Tls(pub(super) TlsAcceptor);

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").finish_non_exhaustive()
    }
}

/// Why a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file cannot be read, or holds no PEM of the kind that is wanted.
    #[error("{path}: {reason}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        reason: pem::Error,
    },
    /// The certificate and the key cannot be used together, or not at all.
    #[error("the certificate {certificate} cannot be used", certificate = certificate.display())]
    Unusable {
        /// The file of the certificate.
        certificate: PathBuf,
        /// Why.
        #[source]
        source: rustls::Error,
    },
}

impl Tls {
    /// What the front is to show, where it is to speak TLS.
    ///
    /// # Errors
    /// As [`Tls::read`].
    pub fn of(gateway: &backstop::config::Gateway) -> Result<Option<Self>, TlsError> {
        match (&gateway.tls_certificate, &gateway.tls_key) {
            (Some(certificate), Some(key)) => Self::read(certificate, key).map(Some),
            _ => Ok(None),
        }
    }

    /// Reads a certificate with its chain, the leaf first, and its key, both as PEM. TLS 1.2 and 1.3 are
    /// spoken, with HTTP/2 and HTTP/1.1.
    ///
    /// # Errors
    /// [`TlsError`] names the file.
    pub fn read(certificate: &Path, key: &Path) -> Result<Self, TlsError> {
        let broken = |path: &Path| {
            let path = path.to_owned();
            move |reason| TlsError::File { path, reason }
        };
        let chain = CertificateDer::pem_file_iter(certificate)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(broken(certificate))?;
        let key = PrivateKeyDer::from_pem_file(key).map_err(broken(key))?;
        let unusable = |source| TlsError::Unusable {
            certificate: certificate.to_owned(),
            source,
        };
        let mut config = ServerConfig::builder_with_provider(aws_lc_rs::default_provider().into())
            .with_safe_default_protocol_versions()
            .map_err(unusable)?
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .map_err(unusable)?;
        config.alpn_protocols = vec![HTTP2.to_vec(), b"http/1.1".to_vec()];
        Ok(Self(TlsAcceptor::from(Arc::new(config))))
    }
}
