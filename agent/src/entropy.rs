//! The system's random numbers, for rooms that take theirs from outside.

use ring::rand::{SecureRandom, SystemRandom};
use zeroize::Zeroizing;

use crate::health::Jitter;

/// Fresh secret bytes. `None` when the system gives no random numbers.
pub fn secret<const N: usize>() -> Option<Zeroizing<[u8; N]>> {
    let mut secret = Zeroizing::new([0; N]);
    SystemRandom::new().fill(secret.as_mut()).ok()?;
    Some(secret)
}

/// Delays that no other process draws. Not for secrets.
pub fn jitter() -> Jitter {
    use std::hash::{BuildHasher, Hasher, RandomState};
    Jitter::new(RandomState::new().build_hasher().finish())
}
