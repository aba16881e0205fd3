//! Packets for a peer that has let its binding go: held while the owner wakes it by other means.
//!
//! A datagram would not pass its NAT any more, so the initiation that a held packet calls for is handed to the owner
//! ([`TunnelEvent::Held`](super::TunnelEvent::Held)), who brings it to the peer over another way. The peer's answer comes by
//! UDP, opens a binding, and shows where it is; what is held then goes there. Whoever is held up is never told a lie:
//! after two seconds its packet is dropped, as one that is lost on the way.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// Inner bytes held for one peer. Beyond it the newest are dropped: what came first is what others wait for.
const HELD: usize = 64 << 10;
/// The same for the whole shard.
const HELD_TOGETHER: usize = 64 << 20;
/// What a packet takes up beside its bytes.
const OVERHEAD: usize = 64;
/// A packet is not held for longer.
const HOLD_TIMEOUT: Duration = Duration::from_secs(2);
/// When the owner is told, counted from the first packet: the peer's answer may be lost on the way. `Tunn` knows the answers
/// to its two latest initiations, so that with these distances round trips of up to a second have one that counts.
const KNOCKS: [Duration; 4] =
    [Duration::ZERO, Duration::from_millis(250), Duration::from_millis(600), Duration::from_millis(1200)];

/// A binding that saw packets for so long counts as one in use, with the lifetime that the client tells of: the keeper's
/// companion comes 2.5 s after its first packet for that, and Linux asks for two seconds.
const PROMOTED: Duration = Duration::from_secs(2);
/// No NAT was heard of that keeps a new binding for less than five seconds.
const UNPROMOTED: Duration = Duration::from_millis(4500);

/// Packets from one place, between which its binding lived.
#[derive(Debug, Clone, Copy)]
struct Contact {
    began: Instant,
    last: Instant,
}

/// What is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Due {
    /// Tell the owner (again).
    Knock,
    /// The peer did not come: so many packets were dropped.
    GivenUp(u64),
}

#[derive(Debug, Clone, Copy)]
struct Knocking {
    since: Instant,
    told: usize,
}

/// What is held for one peer.
#[derive(Debug, Default)]
pub(super) struct Asleep {
    after: Option<Duration>,
    contact: Option<Contact>,
    packets: VecDeque<(Instant, Box<[u8]>)>,
    bytes: usize,
    knocking: Option<Knocking>,
}

impl Asleep {
    /// Datagrams do not reach the peer once nothing came from it for so long. `None`: they always may.
    pub(super) fn set(&mut self, after: Option<Duration>) {
        self.after = after;
    }

    /// Something came from the peer's endpoint, which is another than before where it `moved`.
    pub(super) fn seen(&mut self, now: Instant, moved: bool) {
        let same = self.contact.filter(|contact| !moved && !self.is_over(contact, now));
        self.contact = Some(Contact { began: same.map_or(now, |contact| contact.began), last: now });
    }

    /// Whether datagrams are lost on it.
    pub(super) fn is(&self, now: Instant) -> bool {
        self.after.is_some() && self.contact.is_none_or(|contact| self.is_over(&contact, now))
    }

    fn is_over(&self, contact: &Contact, now: Instant) -> bool {
        let in_use = contact.last.saturating_duration_since(contact.began) >= PROMOTED;
        let after = self.after.unwrap_or(Duration::MAX);
        let lifetime = if in_use { after } else { after.min(UNPROMOTED) };
        now.saturating_duration_since(contact.last) > lifetime
    }

    /// Holds a packet, unless there is no room. `together` counts what is held in the whole shard.
    pub(super) fn hold(&mut self, now: Instant, packet: &[u8], together: &mut usize) -> bool {
        let size = packet.len() + OVERHEAD;
        if self.bytes + size > HELD || *together + size > HELD_TOGETHER {
            return false;
        }
        self.bytes += size;
        *together += size;
        self.packets.push_back((now, packet.into()));
        self.knocking.get_or_insert(Knocking { since: now, told: 0 });
        true
    }

    /// When [`take_due`](Self::take_due) has something.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let Knocking { since, told } = self.knocking?;
        Some(since + KNOCKS.get(told).copied().unwrap_or(HOLD_TIMEOUT))
    }

    /// What is due by now.
    pub(super) fn take_due(&mut self, now: Instant, together: &mut usize) -> Option<Due> {
        self.deadline().filter(|at| *at <= now)?;
        let knocking = self.knocking.as_mut()?;
        if knocking.told < KNOCKS.len() {
            knocking.told += 1;
            return Some(Due::Knock);
        }
        let mut dropped = 0;
        while self
            .packets
            .front()
            .is_some_and(|(since, _)| now.saturating_duration_since(*since) >= HOLD_TIMEOUT)
        {
            dropped += u64::from(self.pop(together).is_some());
        }
        // Who came later has its own two seconds.
        self.knocking = (!self.packets.is_empty()).then_some(Knocking { since: now, told: 0 });
        Some(Due::GivenUp(dropped))
    }

    /// The oldest packet: the peer is there.
    pub(super) fn pop(&mut self, together: &mut usize) -> Option<Box<[u8]>> {
        let (_, packet) = self.packets.pop_front()?;
        let size = packet.len() + OVERHEAD;
        self.bytes -= size;
        *together -= size;
        if self.packets.is_empty() {
            self.knocking = None;
        }
        Some(packet)
    }

    /// What is held, to be taken off the whole shard's count when the peer goes.
    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether anything is held.
    pub(super) fn holds(&self) -> bool {
        !self.packets.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn who_said_nothing_of_sleep_is_never_asleep() {
        let (mut asleep, now) = (Asleep::default(), Instant::now());
        assert!(!asleep.is(now));
        asleep.set(Some(ms(20_000)));
        assert!(asleep.is(now));
        asleep.seen(now, false);
        asleep.seen(now + ms(2500), false);
        assert!(!asleep.is(now + ms(22_500)));
        assert!(asleep.is(now + ms(22_501)));
        asleep.set(None);
        assert!(!asleep.is(now + ms(99_000)));
    }

    #[test]
    fn a_binding_that_is_new_is_not_trusted_for_long() {
        let (mut asleep, now) = (Asleep::default(), Instant::now());
        asleep.set(Some(ms(20_000)));
        // A keepalive of WireGuard alone, such as ten seconds after data.
        asleep.seen(now, false);
        asleep.seen(now + ms(40), false);
        assert!(!asleep.is(now + ms(4540)) && asleep.is(now + ms(4541)));
        // In use, and then from another place.
        asleep.seen(now + ms(10_000), false);
        asleep.seen(now + ms(12_500), false);
        asleep.seen(now + ms(30_000), false);
        assert!(!asleep.is(now + ms(50_000)), "it lived in between");
        asleep.seen(now + ms(30_000), true);
        assert!(asleep.is(now + ms(35_000)));
    }

    #[test]
    fn the_owner_is_told_four_times_and_the_packet_is_dropped_after_two_seconds() {
        let (mut asleep, begin, mut together) = (Asleep::default(), Instant::now(), 0);
        assert!(asleep.hold(begin, &[1; 100], &mut together));
        let mut told = Vec::new();
        while let Some(at) = asleep.deadline() {
            told.push((at.saturating_duration_since(begin), asleep.take_due(at, &mut together)));
        }
        let knock = |at| (ms(at), Some(Due::Knock));
        assert_eq!(told, [knock(0), knock(250), knock(600), knock(1200), (ms(2000), Some(Due::GivenUp(1)))]);
        assert_eq!((together, asleep.bytes(), asleep.holds()), (0, 0, false));
    }

    #[test]
    fn a_later_packet_has_its_own_two_seconds() {
        let (mut asleep, begin, mut together) = (Asleep::default(), Instant::now(), 0);
        asleep.hold(begin, &[1], &mut together);
        asleep.hold(begin + ms(1500), &[2], &mut together);
        for _ in KNOCKS {
            asleep.take_due(begin + ms(2000), &mut together);
        }
        assert_eq!(asleep.take_due(begin + ms(2000), &mut together), Some(Due::GivenUp(1)));
        assert_eq!(asleep.deadline(), Some(begin + ms(2000)));
        assert_eq!(asleep.pop(&mut together).as_deref(), Some(&[2][..]));
        assert_eq!((together, asleep.deadline()), (0, None));
    }

    #[test]
    fn what_came_first_is_kept_and_nothing_is_held_without_bound() {
        let (mut asleep, now, mut together) = (Asleep::default(), Instant::now(), 0);
        let held = (0..200_u8).filter(|n| asleep.hold(now, &[*n; 1400], &mut together)).count();
        assert!((40..=46).contains(&held), "{held}");
        assert_eq!(asleep.pop(&mut together).and_then(|packet| packet.first().copied()), Some(0));
        let mut full = HELD_TOGETHER;
        assert!(!Asleep::default().hold(now, &[0], &mut full));
    }
}
