//! Beats at the tunnel's own port: a gateway answers them and wakes their senders, a client hears the answers.
//!
//! Whoever does not know a key gets nothing back and costs one look-up. Who does gets one answer for each beat, no
//! larger than it, within an allowance; and wakes only to where it has shown that it receives. A beat never moves
//! the tunnel's endpoint.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    time::{Duration, Instant},
};

use super::{
    PublicKey, TunnelEvent,
    gate::{Allowance, Bucket},
    output::Output,
    path::Path,
    stats::BeatCounts,
};
use crate::nat::{
    Beat, Channel, Reply, Wake,
    wire::{self, Answer, BeatKey, CookieMint, KeyId, Kind, ReplayWindow, Request},
};

/// Keys of one peer: the one in use, and the one before, until the peer has heard of the new one.
const KEYS: usize = 2;
/// Wakes pending for one peer: more than it has sockets for.
const WAKES: usize = 64;
/// Wakes pending in all, about 50 MB, beside one for each tunnel.
const WAKES_TOGETHER: usize = 262_144;
const ANSWERS: Allowance = Allowance { rate: 200, burst: 400 };
const ANSWERS_TOGETHER: Allowance = Allowance { rate: 20_000, burst: 40_000 };
/// How long after the last wake of the live channel a beat may take before the owner is told.
const KEY_TIMEOUT: Duration = Duration::from_millis(1500);

/// What a key is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// The peer is a client, and its beats are answered.
    Answer,
    /// The peer is a gateway, and what it says goes to the owner.
    Hear,
}

struct Holder {
    peer: PublicKey,
    key: BeatKey,
    role: Role,
    window: ReplayWindow,
}

struct Pending {
    to: Path,
    key: KeyId,
    seq: u64,
    /// When the first wake is due.
    first: Instant,
    /// How many were sent.
    sent: usize,
}

impl Pending {
    fn next(&self) -> Instant {
        let last = Beat::WAKES.last().copied().unwrap_or_default();
        self.first + Beat::WAKES.get(self.sent).copied().unwrap_or(last + KEY_TIMEOUT)
    }
}

struct Client {
    keys: VecDeque<KeyId>,
    allowance: Bucket,
    wakes: BTreeMap<Channel, Pending>,
}

/// What a genuine datagram says.
pub(super) enum Heard {
    /// A client wants an answer.
    Request(KeyId, Request),
    /// A gateway has answered, or woke us.
    Answer(Answer),
}

/// The beats of all peers of a shard.
pub(super) struct Beats {
    holders: HashMap<KeyId, Holder>,
    peers: HashMap<PublicKey, Client>,
    pending: usize,
    deadlines: BTreeSet<(Instant, PublicKey, Channel)>,
    mint: CookieMint,
    together: Bucket,
    counts: BeatCounts,
}

impl Beats {
    pub(super) fn new(mint: CookieMint, now: Instant) -> Self {
        Self {
            holders: HashMap::new(),
            peers: HashMap::new(),
            pending: 0,
            deadlines: BTreeSet::new(),
            mint,
            together: Bucket::full(now),
            counts: BeatCounts::default(),
        }
    }

    pub(super) const fn counts(&self) -> BeatCounts {
        self.counts
    }

    /// Accepts messages under this key from now on. The peer's last but one goes.
    pub(super) fn add_key(&mut self, now: Instant, peer: PublicKey, key: BeatKey, role: Role) {
        let id = key.id();
        if self.holders.contains_key(&id) {
            self.forget_key(id);
        }
        let client = self.peers.entry(peer).or_insert_with(|| Client {
            keys: VecDeque::new(),
            allowance: Bucket::full(now),
            wakes: BTreeMap::new(),
        });
        client.keys.push_back(id);
        let old = if client.keys.len() > KEYS { client.keys.pop_front() } else { None };
        self.holders.insert(id, Holder { peer, key, role, window: ReplayWindow::default() });
        if let Some(old) = old {
            self.holders.remove(&old);
        }
    }

    fn forget_key(&mut self, id: KeyId) {
        let Some(holder) = self.holders.remove(&id) else { return };
        if let Some(client) = self.peers.get_mut(&holder.peer) {
            client.keys.retain(|&key| key != id);
        }
    }

    /// Forgets a peer, its keys and its wakes.
    pub(super) fn remove(&mut self, peer: &PublicKey) {
        let Some(client) = self.peers.remove(peer) else { return };
        for id in client.keys {
            self.holders.remove(&id);
        }
        self.pending -= client.wakes.len();
        for (channel, wake) in client.wakes {
            self.deadlines.remove(&(wake.next(), *peer, channel));
        }
    }

    /// Sends no wake to the peer's tunnel any more before it asks again.
    pub(super) fn let_sleep(&mut self, peer: &PublicKey) {
        let Some(client) = self.peers.get_mut(peer) else { return };
        let Some(wake) = client.wakes.remove(&Channel::Live) else { return };
        self.deadlines.remove(&(wake.next(), *peer, Channel::Live));
        self.pending -= 1;
    }

    /// Checks a datagram that begins like one of these messages.
    pub(super) fn open(&mut self, datagram: &[u8]) -> Option<(PublicKey, Heard)> {
        let Some((kind, id)) = wire::peek(datagram) else {
            self.counts.malformed += 1;
            return None;
        };
        let Some(holder) = self.holders.get_mut(&id) else {
            self.counts.unknown_key += 1;
            return None;
        };
        let heard = match (holder.role, kind) {
            (Role::Answer, Kind::Beat) => {
                wire::decode_beat(&holder.key, datagram).map(|request| Heard::Request(id, request))
            }
            (Role::Hear, Kind::Reply | Kind::Wake | Kind::Recall) => {
                wire::decode_answer(&holder.key, datagram).map(Heard::Answer)
            }
            _ => None,
        };
        let Some(heard) = heard else {
            self.counts.forged += 1;
            return None;
        };
        if let Heard::Request(_, request) = &heard
            && !holder.window.admit(request.beat.seq)
        {
            self.counts.replayed += 1;
            return None;
        }
        Some((holder.peer, heard))
    }

    /// Answers a beat, and takes on the wake that it asks for.
    pub(super) fn answer<O: Output>(
        &mut self,
        now: Instant,
        from: Path,
        (id, request): (KeyId, Request),
        is_endpoint: bool,
        out: &mut O,
    ) {
        let Some(holder) = self.holders.get(&id) else { return };
        let Some(client) = self.peers.get_mut(&holder.peer) else { return };
        if !client.allowance.take(now, ANSWERS) || !self.together.take(now, ANSWERS_TOGETHER) {
            self.counts.limited += 1;
            return;
        }
        let Beat { channel, seq, wake } = request.beat;
        let owner = holder.peer.as_bytes();
        let cookie = self.mint.cookie(owner, from.remote.ip());
        let is_crowded = client.wakes.len() >= WAKES || self.pending >= WAKES_TOGETHER;
        if is_crowded && wake.is_some() && channel != Channel::Live {
            // Silence is no lie: an answer would promise the wake.
            self.counts.crowded += 1;
            return;
        }
        let reply = Reply { channel, seq, observed: from.remote, is_endpoint };
        put(from, &wire::encode_reply(&holder.key, &reply, cookie, request.bait), out);
        self.counts.answered += 1;

        let peer = holder.peer;
        if client.wakes.get(&channel).is_some_and(|pending| pending.key == id && pending.seq > seq) {
            // It was overtaken on the way.
            return;
        }
        if let Some(earlier) = client.wakes.remove(&channel) {
            self.deadlines.remove(&(earlier.next(), peer, channel));
            self.pending -= 1;
        }
        let Some(delay) = wake else { return };
        if !self.mint.accepts(request.cookie, owner, from.remote.ip()) {
            self.counts.unproven += 1;
            return;
        }
        let first = now + delay.min(Beat::LONGEST_WAKE);
        let pending = Pending { to: from, key: id, seq, first, sent: 0 };
        self.deadlines.insert((pending.next(), peer, channel));
        client.wakes.insert(channel, pending);
        self.pending += 1;
    }

    /// When [`Self::handle_timeout`] is due.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.deadlines.first().map(|&(at, ..)| at)
    }

    /// Sends the wakes that are due. `heard` tells when a peer was last heard.
    pub(super) fn handle_timeout<O: Output>(
        &mut self,
        now: Instant,
        heard: impl Fn(&PublicKey) -> Option<Instant>,
        out: &mut O,
    ) {
        while let Some(&(at, peer, channel)) = self.deadlines.first() {
            if at > now {
                return;
            }
            self.deadlines.pop_first();
            let Some(client) = self.peers.get_mut(&peer) else { continue };
            let Some(pending) = client.wakes.get_mut(&channel) else { continue };
            if pending.sent == Beat::WAKES.len() {
                let first = pending.first;
                client.wakes.remove(&channel);
                self.pending -= 1;
                // Who has data to send is awake.
                if channel == Channel::Live && heard(&peer).is_none_or(|at| at < first) {
                    self.counts.wakes_unanswered += 1;
                    out.event(TunnelEvent::WakeUnanswered { peer });
                }
                continue;
            }
            pending.sent += 1;
            if let Some(holder) = self.holders.get(&pending.key) {
                let wake = Wake { channel, seq: pending.seq };
                put(pending.to, &wire::encode_wake(&holder.key, wake), out);
                self.counts.wakes += 1;
            }
            self.deadlines.insert((pending.next(), peer, channel));
        }
    }
}

fn put<O: Output>(to: Path, message: &[u8], out: &mut O) {
    if let Some(room) = out.datagram(to, message.len()).get_mut(..message.len()) {
        room.copy_from_slice(message);
        out.send(message.len());
    }
}
