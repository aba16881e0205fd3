//! Whether a data message was sent after all that came from its peer before. Pure.
//!
//! A peer that has two ways at once, or has just left one, is where its newest packet came from: what is late on the other way
//! must not turn answers back to it. WireGuard numbers the packets of a session (whitepaper, section 5.4.6), and a peer sends
//! by its newest session alone.

/// What tells how new a data message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sent {
    /// Own index of the session. Its low byte counts up with each handshake.
    pub(super) session: u32,
    /// How many were sent by the session before it.
    pub(super) counter: u64,
}

/// The newest data message of a peer, as far as they have come.
#[derive(Debug, Default)]
pub(super) struct Newest(Option<Sent>);

impl Newest {
    /// Takes note of an authentic one. Whether none came before that was sent later.
    pub(super) fn take(&mut self, sent: Sent) -> bool {
        let is_newest = self.0.is_none_or(|known| {
            if known.session == sent.session {
                sent.counter > known.counter
            } else {
                is_newer_session(sent.session, known.session)
            }
        });
        if is_newest {
            self.0 = Some(sent);
        }
        is_newest
    }

    /// The session that was used last.
    pub(super) fn session(&self) -> Option<u32> {
        self.0.map(|newest| newest.session)
    }
}

/// Whether a session, by its own index, began after another of the same peer. Of sessions that are up at the same time there
/// are a few, so a low byte that begins anew is no question.
pub(crate) const fn is_newer_session(index: u32, than: u32) -> bool {
    let ahead = index.to_le_bytes()[0].wrapping_sub(than.to_le_bytes()[0]);
    ahead != 0 && ahead < 0x80
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SLOT: u32 = 7 << 8;

    fn sent(session: u8, counter: u64) -> Sent {
        Sent { session: SLOT | u32::from(session), counter }
    }

    #[test]
    fn a_later_number_of_a_session_is_newer_and_one_that_is_late_is_not() {
        let mut newest = Newest::default();
        assert_eq!(newest.session(), None);
        assert!(newest.take(sent(1, 5)), "the first");
        assert!(newest.take(sent(1, 9)));
        assert!(!newest.take(sent(1, 8)), "late");
        assert!(!newest.take(sent(1, 9)), "the same again");
        assert!(newest.take(sent(1, 10)));
    }

    #[test]
    fn what_a_later_session_sends_is_newer_whatever_its_number() {
        let mut newest = Newest::default();
        assert!(newest.take(sent(255, 1000)));
        assert!(newest.take(sent(0, 0)), "the low byte begins anew");
        assert!(!newest.take(sent(255, 1001)), "by the session before");
        assert_eq!(newest.session(), Some(SLOT));
    }

    proptest! {
        /// However the network delays them, the one that is followed last was sent last.
        #[test]
        fn in_any_order_the_newest_is_the_last_that_counted(
            mut order in proptest::collection::vec((0..4_u8, 0..50_u64), 1..60),
        ) {
            let mut newest = Newest::default();
            let mut followed = None;
            for &(session, counter) in &order {
                if newest.take(sent(session, counter)) {
                    followed = Some((session, counter));
                }
            }
            order.sort_unstable();
            prop_assert_eq!(followed, order.last().copied());
        }
    }
}
