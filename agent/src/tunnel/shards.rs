//! Several shards that serve one tunnel, each on its own thread with its own peers: where a peer lives, and what one
//! shard hands another.
//!
//! The kernel is asked to bring everything to the right shard at once (`steering`), but nothing depends on it: what
//! comes to another one is handed over.

use std::{
    num::NonZeroU8,
    sync::{Arc, mpsc::SyncSender},
};

use nix::sys::eventfd::EventFd;

use super::{PublicKey, handshake_queue::PendingInitiation, path::Path};

/// How many things may be on the way to a shard. Each is a frame of up to 64 KB.
pub(super) const WAITING: usize = 128;

/// Number of a shard.
pub(super) type Number = u8;

/// Which shard of how many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ShardId {
    number: Number,
    of: NonZeroU8,
}

impl ShardId {
    /// Without others.
    #[cfg(test)]
    pub(super) const ALONE: Self = Self { number: 0, of: NonZeroU8::MIN };

    /// All places of a team.
    pub(super) fn all(of: NonZeroU8) -> impl Iterator<Item = Self> {
        (0..of.get()).map(move |number| Self { number, of })
    }

    pub(super) const fn number(self) -> Number {
        self.number
    }

    /// Whether there is nobody else.
    pub(super) const fn is_alone(self) -> bool {
        self.of.get() == 1
    }

    /// The number, where it is another's.
    pub(super) fn other(self, number: Number) -> Option<Number> {
        (number != self.number && number < self.of.get()).then_some(number)
    }

    /// Where this peer lives, if elsewhere.
    pub(super) fn elsewhere(self, peer: &PublicKey) -> Option<Number> {
        self.other(home(peer, self.of))
    }
}

/// Where a peer lives. Keys are random, so this spreads them evenly; and whoever knows the key knows the shard.
pub(super) fn home(peer: &PublicKey, of: NonZeroU8) -> Number {
    let [first, ..] = *peer.as_bytes();
    first % of
}

/// What came to one shard, and is another's.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Misdelivered {
    /// A datagram.
    Datagram(Path, Vec<u8>),
    /// An initiation, of which it is known by now whose it is.
    Initiation(PendingInitiation),
    /// What was read from the TUN device in one piece.
    Frame(Vec<u8>),
}

/// The way to the other shards of a team.
#[derive(Debug)]
pub(super) struct Shards {
    members: Vec<Member>,
}

#[derive(Debug)]
struct Member {
    strays: SyncSender<Misdelivered>,
    wake: Arc<EventFd>,
    /// Something is on the way of which it does not know yet.
    is_due: bool,
}

impl Shards {
    /// All members by their numbers, with this shard among them.
    pub(super) fn new(members: impl IntoIterator<Item = (SyncSender<Misdelivered>, Arc<EventFd>)>) -> Self {
        let member = |(strays, wake)| Member { strays, wake, is_due: false };
        Self { members: members.into_iter().map(member).collect() }
    }

    /// `false` where it is lost: too much is on the way already, or the other one has ended.
    pub(super) fn hand_over(&mut self, to: Number, stray: Misdelivered) -> bool {
        let Some(member) = self.members.get_mut(usize::from(to)) else { return false };
        member.is_due = true;
        member.strays.try_send(stray).is_ok()
    }

    /// Wakes those to whom something was handed.
    pub(super) fn wake(&mut self) {
        for member in self.members.iter_mut().filter(|member| member.is_due) {
            member.is_due = false;
            // Full is as good as woken.
            let _ = member.wake.write(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_peer_lives_at_one_place_and_all_places_have_peers() {
        let of = NonZeroU8::new(3).unwrap();
        for first in 0..=u8::MAX {
            let mut key = [7; 32];
            key[0] = first;
            let key = PublicKey::from_bytes(key);
            let at_home: Vec<_> = ShardId::all(of).filter(|place| place.elsewhere(&key).is_none()).collect();
            assert_eq!(at_home.iter().map(|place| place.number()).collect::<Vec<_>>(), [first % 3]);
            assert!(
                ShardId::all(NonZeroU8::MIN).all(|place| place.is_alone() && place.elsewhere(&key).is_none())
            );
        }
    }

    #[test]
    fn a_number_that_nobody_has_is_no_other() {
        let place = ShardId::all(NonZeroU8::new(2).unwrap()).next().unwrap();
        assert_eq!([0, 1, 2, 255].map(|number| place.other(number)), [None, Some(1), None, None]);
    }

    #[test]
    fn too_much_on_the_way_is_lost_and_told() {
        let (sender, receiver) = std::sync::mpsc::sync_channel(2);
        let wake = Arc::new(EventFd::from_flags(nix::sys::eventfd::EfdFlags::EFD_NONBLOCK).unwrap());
        let mut team = Shards::new([(sender, Arc::clone(&wake))]);
        let handed = [0, 1, 2].map(|n| team.hand_over(0, Misdelivered::Frame(vec![n])));
        assert_eq!(handed, [true, true, false]);
        team.wake();
        assert_eq!(wake.read(), Ok(1));
        assert_eq!(
            receiver.try_iter().collect::<Vec<_>>(),
            [Misdelivered::Frame(vec![0]), Misdelivered::Frame(vec![1])]
        );
        assert!(!team.hand_over(1, Misdelivered::Frame(Vec::new())), "there is no such member");
    }
}
