//! Clients whose handshakes are dropped as not newer than one before: their clocks went back, or somebody plays old ones back.
//! Pure.
//!
//! An older stamp is never taken, as anybody who recorded one could play it back (WireGuard's paper, section 5.1). A client with an
//! agent is asked over its session whether it was its own. One without is called: it answers an initiation of the gateway's, which
//! nobody else can, and has a session by it, as the stamp in that is the gateway's.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use pinhole_proto::v1;

use crate::tunnel::PublicKey;

/// Two attempts of a client later: longer than an agent needs to have it mended.
const LASTING_AFTER: Duration = Duration::from_secs(10);
/// A client that still tries does so within this (`REKEY_ATTEMPT_TIME`, and its keepalive).
const TRY_TIMEOUT: Duration = Duration::from_mins(2);
/// Calls of one client are so far apart: it tries no sooner again (`REKEY_TIMEOUT`), and who plays old ones back gets no more.
const CALL_INTERVAL: Duration = Duration::from_secs(4);
/// A call is answered within this, or not at all.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// What becomes of a client's handshakes that are not new.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// They are dropped, and it did not answer a call.
    Dropped,
    /// It is called whenever one comes, and answers: its clock went back.
    CalledBack,
}

#[derive(Debug, Clone, Copy)]
struct Spell {
    first: Instant,
    last: Instant,
    called: Option<Instant>,
    answered: bool,
}

/// Those clients. No more than the tunnel has peers.
#[derive(Debug, Default)]
pub(super) struct Stale(HashMap<PublicKey, Spell>);

impl Stale {
    /// Forgets whoever is no client any more.
    pub(super) fn retain(&mut self, is_client: impl Fn(&PublicKey) -> bool) {
        self.0.retain(|key, _| is_client(key));
    }

    /// An old handshake of a client came. Whether it is to be called: one whose agent is asked is so where that does not help.
    pub(super) fn handle_stale(&mut self, now: Instant, peer: PublicKey, is_asked: bool) -> bool {
        self.0.retain(|_, spell| spell.answered || now.saturating_duration_since(spell.last) < TRY_TIMEOUT);
        let new = Spell { first: now, last: now, called: None, answered: false };
        let spell = self.0.entry(peer).or_insert(new);
        spell.last = now;
        let waits = spell.called.is_some_and(|at| now.saturating_duration_since(at) < CALL_INTERVAL);
        let calls = !waits && (!is_asked || spell.lasts());
        if calls {
            spell.called = Some(now);
        }
        calls
    }

    /// A handshake ended well, of which the first word was ours or the client's. Whether what is said of the client changed.
    pub(super) fn handle_completed(&mut self, now: Instant, peer: &PublicKey, initiated: bool) -> bool {
        if !initiated {
            return self.0.remove(peer).is_some();
        }
        let Some(spell) = self.0.get_mut(peer) else { return false };
        let is_answer = spell.called.is_some_and(|at| now.saturating_duration_since(at) < ANSWER_TIMEOUT);
        is_answer && !std::mem::replace(&mut spell.answered, true)
    }

    /// What becomes of a client's handshakes, where that is worth a word.
    pub(super) fn fate(&self, now: Instant, peer: &PublicKey) -> Option<Fate> {
        let spell = self.0.get(peer)?;
        if spell.answered {
            return Some(Fate::CalledBack);
        }
        (spell.lasts() && now.saturating_duration_since(spell.last) < TRY_TIMEOUT).then_some(Fate::Dropped)
    }

    /// What to say of it.
    pub(super) fn impairment(&self, now: Instant) -> Option<v1::Impairment> {
        let count = self.0.keys().filter(|peer| self.fate(now, peer) == Some(Fate::Dropped)).count();
        (count > 0).then(|| v1::Impairment {
            category: "ClockSkew".into(),
            message: format!(
                "handshakes of {count} clients are dropped as older than ones before: set their clocks, or update their agents"
            ),
        })
    }
}

impl Spell {
    fn lasts(&self) -> bool {
        self.last.saturating_duration_since(self.first) >= LASTING_AFTER
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
            let calls = stale.handle_stale(now + RETRY * attempt, CLIENT, true);
            assert_eq!(calls, attempt == 2, "its agent is asked first");
        }
        stale.handle_stale(now, OTHER, true);
        let said = stale.impairment(now + RETRY * 2).unwrap();
        assert_eq!(said.category, "ClockSkew");
        assert!(said.message.contains("handshakes of 1 clients"), "{}", said.message);
        assert_eq!(stale.fate(now + RETRY * 2, &CLIENT), Some(Fate::Dropped));
        assert_eq!(stale.impairment(now + RETRY * 2 + TRY_TIMEOUT), None, "nobody tries any more");
        stale.handle_completed(now + RETRY * 2, &CLIENT, false);
        assert_eq!(stale.impairment(now + RETRY * 2), None);
    }

    #[test]
    fn a_client_without_an_agent_is_called_at_each_attempt_and_called_so_until_its_own_handshake_is_taken() {
        let (mut stale, now) = (Stale::default(), Instant::now());
        assert!(stale.handle_stale(now, CLIENT, false));
        assert!(!stale.handle_stale(now + Duration::from_secs(1), CLIENT, false), "not for each of a burst");
        assert_eq!(stale.fate(now, &CLIENT), None);
        assert!(stale.handle_completed(now + Duration::from_secs(1), &CLIENT, true));
        assert_eq!(stale.fate(now, &CLIENT), Some(Fate::CalledBack));
        assert_eq!(stale.impairment(now), None);
        // Its session ends, hours later it tries again.
        let later = now + Duration::from_hours(3);
        assert!(stale.handle_stale(later, CLIENT, false));
        assert!(!stale.handle_completed(later, &CLIENT, true), "no news");
        assert_eq!(stale.fate(later, &CLIENT), Some(Fate::CalledBack));
        assert!(stale.handle_completed(later, &CLIENT, false));
        assert_eq!(stale.fate(later, &CLIENT), None);
    }

    #[test]
    fn a_handshake_of_ours_that_was_no_answer_to_a_call_shows_no_clock() {
        let (mut stale, now) = (Stale::default(), Instant::now());
        assert!(!stale.handle_completed(now, &CLIENT, true));
        assert!(stale.handle_stale(now, CLIENT, false), "played back by a thief");
        assert!(!stale.handle_completed(now + ANSWER_TIMEOUT, &CLIENT, true));
        assert_eq!(stale.fate(now + ANSWER_TIMEOUT, &CLIENT), None);
    }

    #[test]
    fn who_tries_no_more_is_forgotten() {
        let (mut stale, now) = (Stale::default(), Instant::now());
        stale.handle_stale(now, CLIENT, true);
        stale.handle_stale(now + TRY_TIMEOUT, OTHER, true);
        assert_eq!(stale.0.len(), 1);
        stale.retain(|key| *key != OTHER);
        assert!(stale.0.is_empty());
    }
}
