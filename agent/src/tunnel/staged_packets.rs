//! Packets that wait for a session.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// Packets held for one peer. Small: enough for the first words of a few connections, whose senders repeat the
/// rest themselves.
const HELD: usize = 16;
/// After this time a packet is stale, and its sender has repeated it.
const STAGE_TIMEOUT: Duration = Duration::from_secs(10);

/// The packets of one peer, oldest first; a full queue drops its oldest.
#[derive(Debug, Default)]
pub(super) struct StagedPackets(VecDeque<(Instant, Box<[u8]>)>);

impl StagedPackets {
    /// Holds a packet. Returns how many were dropped for it.
    pub(super) fn hold(&mut self, now: Instant, packet: &[u8]) -> u64 {
        let full = self.0.len() == HELD;
        if full {
            self.0.pop_front();
        }
        self.0.push_back((now, packet.into()));
        u64::from(full)
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// All that is still fresh, and how many are not.
    pub(super) fn take(&mut self, now: Instant) -> (Vec<Box<[u8]>>, u64) {
        let all = std::mem::take(&mut self.0);
        let held = all.len();
        let fresh: Vec<_> = all
            .into_iter()
            .filter(|(since, _)| now.saturating_duration_since(*since) < STAGE_TIMEOUT)
            .map(|(_, packet)| packet)
            .collect();
        let stale = (held - fresh.len()) as u64;
        (fresh, stale)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_sixteen_are_kept_in_order() {
        let now = Instant::now();
        let mut waiting = StagedPackets::default();
        let dropped: u64 = (0..20_u8).map(|n| waiting.hold(now, &[n])).sum();
        let (packets, stale) = waiting.take(now);
        assert_eq!((dropped, stale), (4, 0));
        assert_eq!(packets.iter().map(|packet| packet[0]).collect::<Vec<_>>(), (4..20).collect::<Vec<_>>());
        assert_eq!(waiting.len(), 0);
    }

    #[test]
    fn what_is_stale_is_dropped() {
        let now = Instant::now();
        let mut waiting = StagedPackets::default();
        waiting.hold(now, &[1]);
        waiting.hold(now + Duration::from_secs(5), &[2]);
        let (packets, stale) = waiting.take(now + STAGE_TIMEOUT);
        assert_eq!((packets.len(), stale), (1, 1));
    }
}
