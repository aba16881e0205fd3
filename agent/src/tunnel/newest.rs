//! Whether a data message was sent after all that came by its session before. Pure.
//!
//! A peer that has two ways at once, or has just left one, is where its newest packet came from: what is late on the other way
//! must not turn answers back to it. WireGuard numbers the packets of a session (whitepaper, section 5.4.6). Between sessions
//! nothing is compared: of two that were made within a moment, boringtun sends now by the one and now by the other.

/// What tells how new a data message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sent {
    /// Own index of the session.
    pub(super) session: u32,
    /// How many were sent by the session before it.
    pub(super) counter: u64,
}

/// Sessions of a peer that may be in use at one time: the current one, the one before, and one that crossed it.
const SESSIONS: usize = 3;

/// The newest data message of each session of a peer, the session last met first.
#[derive(Debug, Default)]
pub(super) struct Newest([Option<Sent>; SESSIONS]);

impl Newest {
    /// Takes note of an authentic one. Whether none of its session came before that was sent later.
    pub(super) fn take(&mut self, sent: Sent) -> bool {
        if let Some(known) = self.0.iter_mut().flatten().find(|known| known.session == sent.session) {
            let is_newest = sent.counter > known.counter;
            known.counter = known.counter.max(sent.counter);
            return is_newest;
        }
        // The one that was met longest ago goes.
        self.0.rotate_right(1);
        if let Some(first) = self.0.first_mut() {
            *first = Some(sent);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sent(session: u32, counter: u64) -> Sent {
        Sent { session, counter }
    }

    #[test]
    fn a_later_number_of_a_session_is_newer_and_one_that_is_late_is_not() {
        let mut newest = Newest::default();
        assert!(newest.take(sent(1, 5)), "the first");
        assert!(newest.take(sent(1, 9)));
        assert!(!newest.take(sent(1, 8)), "late");
        assert!(!newest.take(sent(1, 9)), "the same again");
        assert!(newest.take(sent(1, 10)));
    }

    #[test]
    fn two_sessions_that_are_used_in_turn_both_count() {
        let mut newest = Newest::default();
        for counter in 0..20 {
            assert!(newest.take(sent(1, counter)));
            assert!(newest.take(sent(2, counter)));
            assert!(newest.take(sent(3, counter)));
        }
        assert!(!newest.take(sent(1, 18)) && !newest.take(sent(2, 18)));
    }

    proptest! {
        /// However the network delays the packets of a session, the one that is followed last was sent last.
        #[test]
        fn in_any_order_the_newest_is_the_last_that_counted(
            order in proptest::collection::vec((0..3_u32, 0..50_u64), 1..60),
        ) {
            let mut newest = Newest::default();
            let mut followed = std::collections::BTreeMap::new();
            for &(session, counter) in &order {
                if newest.take(sent(session, counter)) {
                    followed.insert(session, counter);
                }
            }
            let mut last = std::collections::BTreeMap::new();
            for &(session, counter) in &order {
                let last = last.entry(session).or_insert(counter);
                *last = counter.max(*last);
            }
            prop_assert_eq!(followed, last);
        }
    }
}
