//! What the other end of a connection has against our certificate, once it has seen it.
//!
//! With TLS 1.3 a client has shaken hands before the server has judged its certificate: the refusal is an alert that comes after
//! (RFC 8446, section 6.2). What was asked meanwhile fails with whatever the layers above make of an ended connection, which may
//! be no more than that it was cancelled. So the alert is taken down where it is read.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use rustls::{AlertDescription, Error};

/// What is known of it so far. Its copies know the same.
#[derive(Debug, Clone, Default)]
pub struct Objection(Arc<AtomicBool>);

impl Objection {
    /// Whether the certificate is over by the other end's clock.
    pub fn is_expired(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    /// Takes down what a TLS stream ended with.
    pub(super) fn hear(&self, error: &io::Error) {
        let error = error.get_ref().and_then(|error| error.downcast_ref::<Error>());
        if matches!(error, Some(Error::AlertReceived(AlertDescription::CertificateExpired))) {
            self.0.store(true, Ordering::Release);
        }
    }
}
