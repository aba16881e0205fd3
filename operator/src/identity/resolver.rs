//! The operator's own certificate, as TLS serves it.

use std::{
    sync::{Arc, RwLock},
    time::SystemTime,
};

use rcgen::KeyPair;
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject as _},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};

use super::{Authorities, IdentityError, authority::SERVER_LIFETIME};

/// The operator's own server certificate. It is replaced while connections go on; new ones get the new one.
#[derive(Debug, Default)]
pub struct ServerCertificate {
    current: RwLock<Option<Current>>,
}

#[derive(Debug)]
struct Current {
    key: Arc<CertifiedKey>,
    not_after: SystemTime,
}

impl ServerCertificate {
    /// Makes a key and has it certified for `names`.
    pub fn renew(
        &self,
        authorities: &Authorities,
        names: &[String],
        now: SystemTime,
    ) -> Result<(), IdentityError> {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let issued = authorities.issue_server(&key, names, now)?;
        let chain = CertificateDer::pem_slice_iter(issued.chain_pem.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| rustls::Error::General(e.to_string()))?;
        let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let signing = rustls::crypto::ring::sign::any_supported_type(&der)?;
        let current =
            Current { key: Arc::new(CertifiedKey::new(chain, signing)), not_after: issued.not_after };
        *self.current.write().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(current);
        Ok(())
    }

    /// Whether it is time to renew: less than a third of the lifetime is left, or there is none yet.
    pub fn is_due(&self, now: SystemTime) -> bool {
        let current = self.current.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        current.as_ref().is_none_or(|c| c.not_after < now + SERVER_LIFETIME / 3)
    }

    /// TLS as the link serves it: TLS 1.3, HTTP/2, this certificate, no client certificates.
    pub fn tls_config(self: &Arc<Self>) -> Result<ServerConfig, IdentityError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(self) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(config)
    }
}

impl ResolvesServerCert for ServerCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let current = self.current.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        current.as_ref().map(|c| Arc::clone(&c.key))
    }
}
