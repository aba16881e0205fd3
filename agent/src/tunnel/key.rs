//! Keys of WireGuard: Curve25519, 32 bytes, base64 as `wg` writes them.

use std::{fmt, path::Path, str::FromStr};

use base64::{Engine, engine::general_purpose::STANDARD};
use boringtun::x25519;
use zeroize::{Zeroize, Zeroizing};

use super::TunnelError;
use crate::entropy;

/// Why a text is no key. Never carries the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a WireGuard key: expected 32 bytes in base64 (44 characters)")]
pub struct KeyError;

/// A peer's identity: its Curve25519 public key. `Display` and `FromStr` use base64.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    /// The key with these bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes of the key.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    pub(crate) fn to_x25519(self) -> x25519::PublicKey {
        x25519::PublicKey::from(self.0)
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        decode(text).map(|bytes| Self(*bytes))
    }
}

/// An own secret. Wiped from memory when dropped; cannot be printed.
#[derive(Clone)]
pub struct PrivateKey(x25519::StaticSecret);

impl PrivateKey {
    /// A fresh key from the system's random source.
    pub fn generate() -> Result<Self, TunnelError> {
        let bytes = entropy::secret().ok_or(TunnelError::NoRandomness)?;
        Ok(Self(x25519::StaticSecret::from(*bytes)))
    }

    /// The key with these bytes.
    pub fn from_bytes(mut bytes: [u8; 32]) -> Self {
        let key = Self(x25519::StaticSecret::from(bytes));
        bytes.zeroize();
        key
    }

    /// The 32 bytes of the key.
    pub fn to_bytes(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.0.to_bytes())
    }

    /// Reads a key in base64, as `wg genkey` writes it; surrounding white space is ignored.
    pub fn load(path: &Path) -> Result<Self, TunnelError> {
        let failed = |source| TunnelError::KeyFile { path: path.to_owned(), source };
        let text = Zeroizing::new(std::fs::read_to_string(path).map_err(failed)?);
        text.parse().map_err(|error| failed(std::io::Error::new(std::io::ErrorKind::InvalidData, error)))
    }

    /// The key in base64, for a file that only its owner may read.
    pub fn to_base64(&self) -> Zeroizing<String> {
        Zeroizing::new(STANDARD.encode(self.0.as_bytes()))
    }

    /// The public half.
    pub fn public(&self) -> PublicKey {
        PublicKey(*x25519::PublicKey::from(&self.0).as_bytes())
    }

    pub(crate) fn secret(&self) -> &x25519::StaticSecret {
        &self.0
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(..)")
    }
}

impl FromStr for PrivateKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        decode(text).map(|bytes| Self(x25519::StaticSecret::from(*bytes)))
    }
}

/// A symmetric secret that both ends mix into their handshakes. Wiped when dropped; cannot be printed.
#[derive(Clone, PartialEq, Eq)]
pub struct PresharedKey(Zeroizing<[u8; 32]>);

impl PresharedKey {
    /// The key with these bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    pub(crate) fn to_bytes(&self) -> [u8; 32] {
        *self.0
    }
}

impl fmt::Debug for PresharedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PresharedKey(..)")
    }
}

impl FromStr for PresharedKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        decode(text).map(Self)
    }
}

fn decode(text: &str) -> Result<Zeroizing<[u8; 32]>, KeyError> {
    let mut bytes = STANDARD.decode(text.trim()).map_err(|_| KeyError)?;
    let key = <[u8; 32]>::try_from(bytes.as_slice()).map(Zeroizing::new);
    bytes.zeroize();
    key.map_err(|_| KeyError)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_survives_its_own_text_form() {
        let private = PrivateKey::generate().unwrap();
        let again: PrivateKey = private.to_base64().parse().unwrap();
        assert_eq!(private.public(), again.public());
        assert_eq!(private.public().to_string().parse(), Ok(private.public()));
    }

    #[test]
    fn the_public_half_is_the_one_of_rfc_7748_section_6_1() {
        let private: PrivateKey = "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=".parse().unwrap();
        assert_eq!(private.public().to_string(), "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=");
    }

    #[test]
    fn what_is_too_short_too_long_or_not_base64_is_no_key() {
        for text in ["", "AAAA", "not base64 at all!", &STANDARD.encode([0; 33])] {
            assert_eq!(text.parse::<PublicKey>(), Err(KeyError), "{text}");
        }
    }

    #[test]
    fn secrets_are_not_printed() {
        let private = PrivateKey::generate().unwrap();
        assert!(!format!("{private:?}").contains(private.to_base64().as_str()));
        assert_eq!(format!("{:?}", PresharedKey::from_bytes([7; 32])), "PresharedKey(..)");
    }
}
