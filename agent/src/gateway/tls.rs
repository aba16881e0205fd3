//! TLS of the session service: the certificate comes from the operator and changes while connections go on.

use std::sync::{Arc, PoisonError, RwLock};

use rustls::{RootCertStore, ServerConfig, server::WebPkiClientVerifier};

use super::GatewayError;
use crate::identity::{SessionKey, certificate};

/// Protocol of gRPC, to be agreed in the handshake.
const HTTP2: &[u8] = b"h2";

/// The configuration for the next connection. Those that exist keep theirs.
#[derive(Debug, Default)]
pub(super) struct ServerTls(RwLock<Option<Arc<ServerConfig>>>);

impl ServerTls {
    /// What a new connection gets, `None` while there is no certificate.
    pub(super) fn current(&self) -> Option<Arc<ServerConfig>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Replaces it.
    pub(super) fn set(&self, config: ServerConfig) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(config));
    }
}

/// A server that shows `chain_pem`, and accepts clients without a certificate (they may only enrol) or with one of
/// `ca_pem`.
pub(super) fn server_config(
    key: &SessionKey,
    chain_pem: &str,
    ca_pem: &str,
) -> Result<ServerConfig, GatewayError> {
    let refused = |error: &dyn std::fmt::Display| GatewayError::Tls(error.to_string());
    let mut roots = RootCertStore::empty();
    for authority in certificate::chain(ca_pem)? {
        roots.add(authority).map_err(|error| refused(&error))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
        .allow_unauthenticated()
        .build()
        .map_err(|error| refused(&error))?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| refused(&error))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(certificate::chain(chain_pem)?, key.to_der())
        .map_err(|error| refused(&error))?;
    config.alpn_protocols = vec![HTTP2.to_vec()];
    // A resumed handshake would carry an identity on that a newer trust bundle no longer vouches for.
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}
