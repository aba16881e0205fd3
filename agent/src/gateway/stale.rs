//! Clients whose handshakes are dropped as not newer than one before, for longer than an agent needs to have that mended: those
//! without an agent, or whose agent is older. Pure.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use pinhole_proto::v1;

use crate::tunnel::PublicKey;

/// Two attempts of a client later.
const LASTING: Duration = Duration::from_secs(10);
/// A client that still tries does so within this (`REKEY_ATTEMPT_TIME`, and its keepalive).
const OVER: Duration = Duration::from_mins(2);

#[derive(Debug, Clone, Copy)]
struct Spell {
    first: Instant,
    last: Instant,
}

/// Those clients. No more than the tunnel has peers.
#[derive(Debug, Default)]
pub(super) struct Stale(HashMap<PublicKey, Spell>);

impl Stale {
    /// An old handshake of a client came.
    pub(super) fn handle_stale(&mut self, now: Instant, peer: PublicKey) {
        self.0.retain(|_, spell| now.saturating_duration_since(spell.last) < OVER);
        self.0.entry(peer).or_insert(Spell { first: now, last: now }).last = now;
    }

    /// One of its handshakes was taken.
    pub(super) fn handle_taken(&mut self, peer: &PublicKey) {
        self.0.remove(peer);
    }

    /// What to say of it.
    pub(super) fn impairment(&self, now: Instant) -> Option<v1::Impairment> {
        let lasts = |spell: &&Spell| {
            spell.last - spell.first >= LASTING && now.saturating_duration_since(spell.last) < OVER
        };
        let count = self.0.values().filter(lasts).count();
        (count > 0).then(|| v1::Impairment {
            category: "ClockSkew".into(),
            message: format!(
                "handshakes of {count} clients are dropped as older than ones before: set their clocks, or update their agents"
            ),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENT: PublicKey = PublicKey::from_bytes([1; 32]);
    const OTHER: PublicKey = PublicKey::from_bytes([2; 32]);
    const RETRY: Duration = Duration::from_secs(5);

    #[test]
    fn what_an_agent_mends_is_not_said_and_what_lasts_is_until_it_ends() {
        let (mut stale, now) = (Stale::default(), Instant::now());
        for attempt in 0..=2 {
            assert_eq!(stale.impairment(now + RETRY * attempt), None);
            stale.handle_stale(now + RETRY * attempt, CLIENT);
        }
        stale.handle_stale(now, OTHER);
        let said = stale.impairment(now + RETRY * 2).unwrap();
        assert_eq!(said.category, "ClockSkew");
        assert!(said.message.contains("handshakes of 1 clients"), "{}", said.message);
        assert_eq!(stale.impairment(now + RETRY * 2 + OVER), None, "nobody tries any more");
        stale.handle_taken(&CLIENT);
        assert_eq!(stale.impairment(now + RETRY * 2), None);
    }

    #[test]
    fn who_tries_no_more_is_forgotten() {
        let (mut stale, now) = (Stale::default(), Instant::now());
        stale.handle_stale(now, CLIENT);
        stale.handle_stale(now + OVER, OTHER);
        assert_eq!(stale.0.len(), 1);
    }
}
