//! The addresses whose path refuses to split datagrams for us (UDP GSO): a device without checksums on the way
//! out, or a path narrower than a datagram.

use std::{
    collections::HashMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

/// How long an address goes without, until it is tried again: routes change.
const FORGET: Duration = Duration::from_mins(5);
/// Addresses remembered. Beyond them all are tried again.
const MOST: usize = 4096;

/// Whom to send one datagram at a time.
#[derive(Debug, Default)]
pub(super) struct Unsplit(HashMap<SocketAddr, Instant>);

impl Unsplit {
    /// Takes note of a refusal.
    pub(super) fn refused(&mut self, to: SocketAddr, now: Instant) {
        if self.0.len() >= MOST {
            self.0.clear();
        }
        self.0.insert(to, now);
    }

    /// Whether this path has refused lately.
    pub(super) fn contains(&mut self, to: SocketAddr, now: Instant) -> bool {
        // The common case costs nothing.
        if self.0.is_empty() {
            return false;
        }
        let Some(since) = self.0.get(&to) else { return false };
        if now.saturating_duration_since(*since) < FORGET {
            return true;
        }
        self.0.remove(&to);
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(n: u16) -> SocketAddr {
        ([192, 0, 2, 1], n).into()
    }

    #[test]
    fn a_path_that_refused_is_spared_for_a_while_and_others_are_not() {
        let now = Instant::now();
        let mut unsplit = Unsplit::default();
        unsplit.refused(address(1), now);
        assert!(unsplit.contains(address(1), now));
        assert!(!unsplit.contains(address(2), now));
        assert!(!unsplit.contains(address(1), now + FORGET));
        assert!(!unsplit.contains(address(1), now), "it is forgotten");
    }

    #[test]
    fn memory_is_bounded() {
        let now = Instant::now();
        let mut unsplit = Unsplit::default();
        for n in 0..=u16::try_from(MOST).unwrap() {
            unsplit.refused(address(n), now);
        }
        assert_eq!(unsplit.0.len(), 1);
    }
}
