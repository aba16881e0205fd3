//! Keys of WireGuard.

use base64::{Engine, engine::general_purpose::STANDARD};
use boringtun::x25519;
use ring::rand::{SecureRandom, SystemRandom};

use crate::error::{Error, Result};

/// A fresh key.
pub(super) struct Key(x25519::StaticSecret);

impl Key {
    pub(super) fn generate() -> Result<Self> {
        let mut bytes = [0; 32];
        let filled = SystemRandom::new().fill(&mut bytes);
        filled.map_err(|_| Error::Unsupported("it gives no random numbers".to_owned()))?;
        Ok(Self(bytes.into()))
    }

    pub(super) const fn secret(&self) -> &x25519::StaticSecret {
        &self.0
    }

    pub(super) fn public(&self) -> x25519::PublicKey {
        x25519::PublicKey::from(&self.0)
    }

    /// As `wg` reads it.
    pub(super) fn secret_text(&self) -> String {
        STANDARD.encode(self.0.to_bytes())
    }
}

/// As `wg` reads it.
pub(super) fn key_text(key: &x25519::PublicKey) -> String {
    STANDARD.encode(key.as_bytes())
}
