//! What a tunnel knows about each peer, published once per batch of packets.

use std::{
    collections::HashMap,
    iter::Sum,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, TryLockError},
    time::Instant,
};

use super::{PublicKey, Refused};
use crate::health::gateway::Unconfirmed;

/// Adds the counts of several threads up. One that is left out here does not compile.
macro_rules! summed {
    ($counts:ident { $($count:ident),* }) => {
        impl Sum for $counts {
            fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
                all.fold(Self::default(), |sum, each| Self { $($count: sum.$count + each.$count),* })
            }
        }
    };
}

/// One peer as the data plane sees it. Times are of the monotonic clock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerStats {
    /// The peer.
    pub public_key: PublicKey,
    /// Where its datagrams go now. `None` until it is known.
    pub endpoint: Option<SocketAddr>,
    /// Whether there is a session that can carry data now.
    pub has_session: bool,
    /// When the last handshake ended with a session.
    pub last_handshake: Option<Instant>,
    /// The peer's handshakes that were answered since one last ended with a session: it seems to hear none of the answers.
    pub unconfirmed: Option<Unconfirmed>,
    /// When the last authenticated packet (handshake, data, keepalive or beat) came.
    pub last_receive: Option<Instant>,
    /// When the last data message of a session came, keepalives included.
    pub last_data: Option<Instant>,
    /// When the last beat, or answer to one, came on this socket.
    pub last_beat: Option<Instant>,
    /// When the last message of WireGuard was sent, of any kind.
    pub last_send: Option<Instant>,
    /// The last of those after which a message of WireGuard came: data flows both ways, at least until then.
    pub last_answered_send: Option<Instant>,
    /// When the last data message was sent that was no keepalive.
    pub last_data_send: Option<Instant>,
    /// Inner bytes and packets received, without keepalives.
    pub received: Traffic,
    /// Inner bytes and packets sent, without keepalives.
    pub sent: Traffic,
    /// Messages of WireGuard received, of any kind, with all that is around inner packets. Only authentic ones.
    pub received_messages: Traffic,
    /// Messages of WireGuard sent, of any kind, with all that is around inner packets.
    pub sent_messages: Traffic,
    /// Packets dropped: no session in time, a source that is not the peer's, a replay, a broken packet.
    pub dropped: u64,
    /// Packets refused, as they were to go where the peer's may not.
    pub refused: Refused,
    /// How often the endpoint moved to follow an authenticated packet; its first sighting does not count.
    pub endpoint_changes: u64,
}

/// Bytes and packets of one direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Inner bytes.
    pub bytes: u64,
    /// Inner packets.
    pub packets: u64,
}

impl Traffic {
    pub(super) const fn count(&mut self, bytes: usize) {
        self.bytes = self.bytes.wrapping_add(bytes as u64);
        self.packets = self.packets.wrapping_add(1);
    }
}

impl PeerStats {
    /// Of a peer that was never heard.
    pub(crate) fn new(public_key: PublicKey) -> Self {
        Self {
            public_key,
            endpoint: None,
            has_session: false,
            last_handshake: None,
            unconfirmed: None,
            last_receive: None,
            last_data: None,
            last_beat: None,
            last_send: None,
            last_answered_send: None,
            last_data_send: None,
            received: Traffic { bytes: 0, packets: 0 },
            sent: Traffic { bytes: 0, packets: 0 },
            received_messages: Traffic { bytes: 0, packets: 0 },
            sent_messages: Traffic { bytes: 0, packets: 0 },
            dropped: 0,
            refused: Refused::default(),
            endpoint_changes: 0,
        }
    }
}

/// Datagrams and packets that belonged to no peer, and handshakes that led to nothing, since the tunnel started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Discards {
    /// Datagrams that are no message of WireGuard.
    pub malformed: u64,
    /// Messages to or from a peer that does not exist (any more).
    pub unknown_peer: u64,
    /// Handshake messages with a wrong first MAC, or beyond their source's allowance.
    pub refused: u64,
    /// Handshake messages answered with a cookie.
    pub challenged: u64,
    /// Inner packets to an address that is nobody's.
    pub unrouted: u64,
    /// Authentic initiations of peers that were not newer than one before: a clock that went back, or a replay.
    pub stale: u64,
}

summed!(Discards { malformed, unknown_peer, refused, challenged, unrouted, stale });

/// What the data plane's threads did, since the tunnel started. How many datagrams go in and out with one call tells
/// whether offloads do their work.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Work {
    /// Times that a thread woke, and did all that there was.
    pub turns: u64,
    /// Calls that received datagrams.
    pub receives: u64,
    /// Datagrams received.
    pub datagrams_received: u64,
    /// Runs of datagrams sent, each with one call where the path splits them.
    pub sends: u64,
    /// Datagrams sent.
    pub datagrams_sent: u64,
    /// Frames read from the TUN device: a packet, or a super-packet.
    pub frames_read: u64,
    /// Frames written to the TUN device: a packet, or a super-packet.
    pub frames_written: u64,
    /// Datagrams, initiations and frames that came to another thread than their peer's, and were handed over.
    pub handed_over: u64,
    /// The same, but lost, as too much was on the way already.
    pub lost_between: u64,
}

impl Work {
    /// Each by its name.
    pub const fn list(&self) -> [(&'static str, u64); 9] {
        [
            ("turn", self.turns),
            ("receive", self.receives),
            ("datagram-received", self.datagrams_received),
            ("send", self.sends),
            ("datagram-sent", self.datagrams_sent),
            ("frame-read", self.frames_read),
            ("frame-written", self.frames_written),
            ("handed-over", self.handed_over),
            ("lost-between", self.lost_between),
        ]
    }
}

summed!(Work {
    turns,
    receives,
    datagrams_received,
    sends,
    datagrams_sent,
    frames_read,
    frames_written,
    handed_over,
    lost_between
});

/// What became of beats, since the tunnel started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BeatCounts {
    /// Beats answered.
    pub answered: u64,
    /// Wakes sent.
    pub wakes: u64,
    /// Times that the wakes to a tunnel's own socket led to nothing.
    pub wakes_unanswered: u64,
    /// Refused: no such message by its length or type.
    pub malformed: u64,
    /// Refused: nobody has such a key (any more).
    pub unknown_key: u64,
    /// Refused: the MAC is wrong, or the sender is not the one to say such a thing.
    pub forged: u64,
    /// Refused: it was here before.
    pub replayed: u64,
    /// Not answered: beyond the sender's allowance, or that of all.
    pub limited: u64,
    /// Answered, but a wake was not taken on: its source has not shown yet that it receives.
    pub unproven: u64,
    /// Not answered: it asks for a wake, and too many are pending.
    pub crowded: u64,
}

summed!(BeatCounts {
    answered,
    wakes,
    wakes_unanswered,
    malformed,
    unknown_key,
    forged,
    replayed,
    limited,
    unproven,
    crowded
});

/// One peer's published figures. The writer never waits: where a reader holds them it tries again with the
/// next batch.
#[derive(Debug, Clone)]
pub(super) struct Published(Arc<Mutex<PeerStats>>);

impl Published {
    /// Whether the figures are out.
    pub(super) fn publish(&self, stats: &PeerStats) -> bool {
        let Some(mut published) = unless_held(&self.0) else { return false };
        published.clone_from(stats);
        true
    }
}

/// The lock, unless somebody has it. What a reader that panicked held is whole: readers change nothing.
fn unless_held<T>(figures: &Mutex<T>) -> Option<MutexGuard<'_, T>> {
    match figures.try_lock() {
        Ok(held) => Some(held),
        Err(TryLockError::Poisoned(left)) => Some(left.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    }
}

/// The figures of all peers of a shard. Its lock is taken when peers come and go, never for packets.
#[derive(Debug, Clone, Default)]
pub(super) struct StatsRegistry {
    peers: Arc<RwLock<HashMap<PublicKey, Published>>>,
    counts: Arc<Mutex<(Discards, BeatCounts)>>,
    work: Arc<Mutex<Work>>,
}

impl StatsRegistry {
    pub(super) fn add(&self, stats: PeerStats) -> Published {
        let key = stats.public_key;
        let published = Published(Arc::new(Mutex::new(stats)));
        self.peers.write().unwrap_or_else(PoisonError::into_inner).insert(key, published.clone());
        published
    }

    pub(super) fn remove(&self, key: &PublicKey) {
        self.peers.write().unwrap_or_else(PoisonError::into_inner).remove(key);
    }

    pub(super) fn snapshot(&self) -> Vec<PeerStats> {
        let peers = self.peers.read().unwrap_or_else(PoisonError::into_inner);
        peers.values().map(|peer| peer.0.lock().unwrap_or_else(PoisonError::into_inner).clone()).collect()
    }

    /// Left out where a reader is in the way: the next batch says it again.
    pub(super) fn count(&self, discards: Discards, beats: BeatCounts) {
        if let Some(mut published) = unless_held(&self.counts) {
            *published = (discards, beats);
        }
    }

    /// Left out where a reader is in the way: the next batch says it again.
    pub(super) fn count_work(&self, work: Work) {
        if let Some(mut published) = unless_held(&self.work) {
            *published = work;
        }
    }

    pub(super) fn work(&self) -> Work {
        *self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn counts(&self) -> (Discards, BeatCounts) {
        *self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
