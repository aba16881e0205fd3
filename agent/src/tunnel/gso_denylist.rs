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
const MAX_ADDRESSES: usize = 4096;

/// What a path has refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    /// To split anything.
    Anything,
    /// To split into datagrams of so many bytes: they are larger than the path takes in one piece, and smaller ones may
    /// well not be.
    Size(usize),
}

impl Refused {
    /// The least size that is not tried again.
    const fn least(self) -> usize {
        match self {
            Self::Anything => 0,
            Self::Size(size) => size,
        }
    }
}

/// Whom to send one datagram at a time, from which size of datagrams on.
#[derive(Debug, Default)]
pub(super) struct GsoDenylist(HashMap<SocketAddr, (Instant, usize)>);

impl GsoDenylist {
    /// Takes note of a refusal.
    pub(super) fn refused(&mut self, to: SocketAddr, what: Refused, now: Instant) {
        if self.0.len() >= MAX_ADDRESSES {
            self.0.clear();
        }
        // What is remembered was not asked for again, so it holds as well.
        let least = self.0.get(&to).map_or(what.least(), |&(_, least)| least.min(what.least()));
        self.0.insert(to, (now, least));
    }

    /// Whether this path has refused datagrams of so many bytes lately.
    pub(super) fn contains(&mut self, to: SocketAddr, size: usize, now: Instant) -> bool {
        // The common case costs nothing.
        if self.0.is_empty() {
            return false;
        }
        let Some(&(since, least)) = self.0.get(&to) else { return false };
        if now.saturating_duration_since(since) >= FORGET {
            self.0.remove(&to);
            return false;
        }
        size >= least
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
        let mut unsplit = GsoDenylist::default();
        unsplit.refused(address(1), Refused::Anything, now);
        assert!(unsplit.contains(address(1), 1, now));
        assert!(!unsplit.contains(address(2), 1, now));
        assert!(!unsplit.contains(address(1), 1, now + FORGET));
        assert!(!unsplit.contains(address(1), 1, now), "it is forgotten");
    }

    #[test]
    fn a_path_that_is_too_narrow_for_large_datagrams_has_smaller_ones_split() {
        let now = Instant::now();
        let mut unsplit = GsoDenylist::default();
        let refuses = |unsplit: &mut GsoDenylist| {
            [1312, 1452, 8952, 32_032].map(|size| unsplit.contains(address(1), size, now))
        };
        unsplit.refused(address(1), Refused::Size(8952), now);
        assert_eq!(refuses(&mut unsplit), [false, false, true, true]);
        // Narrower still, and then not at all.
        unsplit.refused(address(1), Refused::Size(1452), now);
        assert_eq!(refuses(&mut unsplit), [false, true, true, true]);
        unsplit.refused(address(1), Refused::Size(8952), now);
        assert_eq!(refuses(&mut unsplit), [false, true, true, true]);
        unsplit.refused(address(1), Refused::Anything, now);
        assert_eq!(refuses(&mut unsplit), [true; 4]);
    }

    #[test]
    fn memory_is_bounded() {
        let now = Instant::now();
        let mut unsplit = GsoDenylist::default();
        for n in 0..=u16::try_from(MAX_ADDRESSES).unwrap() {
            unsplit.refused(address(n), Refused::Anything, now);
        }
        assert_eq!(unsplit.0.len(), 1);
    }
}
