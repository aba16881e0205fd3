//! The dates of handshakes. The tunnel counts on the monotonic clock, which has none.

use std::{
    collections::HashMap,
    time::{Instant, SystemTime},
};

use crate::tunnel::PublicKey;

/// Turns a handshake's time into a date, always the same one for the same handshake: tools compare them.
#[derive(Debug, Default)]
pub struct HandshakeClock(HashMap<PublicKey, (Instant, SystemTime)>);

impl HandshakeClock {
    /// The date of a peer's handshake at `at`.
    pub fn date(&mut self, peer: PublicKey, at: Instant) -> SystemTime {
        match self.0.get(&peer) {
            Some((known, date)) if *known == at => *date,
            _ => {
                let now = SystemTime::now();
                let date = now.checked_sub(at.elapsed()).unwrap_or(now);
                self.0.insert(peer, (at, date));
                date
            }
        }
    }

    /// Forgets peers that are gone.
    pub fn retain(&mut self, is_known: impl Fn(&PublicKey) -> bool) {
        self.0.retain(|peer, _| is_known(peer));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_handshake_keeps_its_date_and_a_new_one_has_its_own() {
        let mut clock = HandshakeClock::default();
        let peer = PublicKey::from_bytes([1; 32]);
        let first = Instant::now();
        let date = clock.date(peer, first);
        assert!(SystemTime::now().duration_since(date).unwrap() < Duration::from_mins(1));
        std::thread::yield_now();
        assert_eq!(clock.date(peer, first), date);
        let second = first + Duration::from_nanos(1);
        assert_ne!(clock.date(peer, second), date);
    }
}
