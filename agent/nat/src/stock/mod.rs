//! What a gateway alone learns of clients that have no agent.
//!
//! A packet from the client proves its way out, never its way in. The way in is proven when the gateway speaks
//! first after a silence in both directions and is answered from where the client was. A handshake initiation is
//! the one thing that every stock client answers at once, so that is what a *wake* is; where the client is silent
//! by itself, wakes at growing ages show how long its mapping lives.
//!
//! A missing answer is a dead mapping only if the client was there: it is where it speaks by itself on time right
//! afterwards, or comes from another port of the same address. A client that merely comes back later may have
//! slept, and is believed the second time.
//!
//! What is recommended stays below what NATs give to a mapping that is not promoted yet: a stock client sends one
//! packet an interval and so may never promote a mapping after the NAT lost it.

mod client;

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    fmt,
    net::SocketAddr,
    time::{Duration, Instant},
};

use self::client::Client;
use super::{Binding, Churn, ChurnLog};
use crate::PeerId;

/// All wakes of a gateway are at least so far apart.
pub const SPACING: Duration = Duration::from_millis(50);

/// What the data plane counted for one client.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Where it is.
    pub endpoint: Option<SocketAddr>,
    /// Last authenticated packet.
    pub last_receive: Option<Instant>,
    /// Last datagram to it.
    pub last_send: Option<Instant>,
    /// When a handshake last ended with a session.
    pub last_handshake: Option<Instant>,
}

/// Why an interval is recommended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// A mapping was gone after this silence.
    Died {
        /// The shortest such silence.
        at: Duration,
    },
    /// The client's own interval, and mappings survive it.
    Holds {
        /// That interval.
        interval: Duration,
    },
    /// A client that sends nothing by itself was reached after this silence.
    Survived {
        /// The longest such silence.
        silence: Duration,
    },
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Died { at } => write!(f, "a mapping was gone after {} s of silence", at.as_secs()),
            Self::Holds { interval } => {
                write!(f, "mappings survive the interval of {} s", interval.as_secs())
            }
            Self::Survived { silence } => write!(f, "reached after {} s of silence", silence.as_secs()),
        }
    }
}

/// The `PersistentKeepalive` that a client should have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recommendation {
    /// Whole seconds, 1 to 65535.
    pub interval: Duration,
    /// Why.
    pub why: Why,
}

impl Recommendation {
    fn new(interval: Duration, cap: Duration, why: Why) -> Self {
        let seconds = interval.min(cap).as_secs().clamp(1, 65_535);
        Self { interval: Duration::from_secs(seconds), why }
    }
}

/// What is known of one client.
#[derive(Debug, Clone, Copy)]
pub struct NatState<'a> {
    /// The lifetime of its mappings.
    pub binding: Binding,
    /// At which interval it sends by itself. `None`: it does not, or not regularly.
    pub interval: Option<Duration>,
    /// What it should be configured with. `None`: not known.
    pub recommendation: Option<Recommendation>,
    /// Its changes.
    pub churn: &'a ChurnLog,
    /// Wakes that it answered,
    pub answered: u64,
    /// and that it did not.
    pub unanswered: u64,
}

/// All clients without an agent of one gateway replica. Times are monotonic.
#[derive(Debug)]
pub struct StockClients<K> {
    clients: HashMap<K, Client>,
    /// As they were before what came last.
    remembered: HashMap<K, Client>,
    deadlines: BTreeSet<(Instant, K)>,
    due: HashMap<K, Instant>,
    last_wake: Option<Instant>,
}

impl<K> Default for StockClients<K> {
    fn default() -> Self {
        Self {
            clients: HashMap::new(),
            remembered: HashMap::new(),
            deadlines: BTreeSet::new(),
            due: HashMap::new(),
            last_wake: None,
        }
    }
}

impl<K: PeerId> StockClients<K> {
    /// Nobody is known yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The clients without an agent: one that stays keeps what is known of it.
    pub fn handle_clients(&mut self, now: Instant, clients: &HashSet<K>) {
        self.clients.retain(|key, _| clients.contains(key));
        self.remembered.retain(|key, _| clients.contains(key));
        self.due.retain(|key, _| clients.contains(key));
        self.deadlines.retain(|(_, key)| clients.contains(key));
        for key in clients {
            self.clients.entry(*key).or_insert_with(|| Client::new(now));
        }
    }

    /// What the data plane counted. A client that has an agent is left alone.
    pub fn handle_counters(&mut self, now: Instant, key: &K, counters: Counters) {
        let Some(client) = self.clients.get_mut(key) else { return };
        client.handle_counters(now, counters);
        self.settle(key);
    }

    /// A client's address changed. Hand this in before the counters that show it.
    pub fn handle_moved(
        &mut self,
        now: Instant,
        key: &K,
        (from, to): (SocketAddr, SocketAddr),
        idle: Duration,
    ) {
        let Some(client) = self.clients.get_mut(key) else { return };
        client.handle_moved(now, from, to, idle);
        self.settle(key);
    }

    /// Remembers a client as it is, for [`Self::set_aside`].
    pub fn remember(&mut self, key: &K) {
        if let Some(client) = self.clients.get(key) {
            self.remembered.insert(*key, client.clone());
        }
    }

    /// Nothing is learnt of a client any more, and it is what it was when it was remembered last, if it was; or it is
    /// learnt of again.
    pub fn set_aside(&mut self, now: Instant, key: &K, aside: bool) {
        let former = self.remembered.remove(key).filter(|_| aside);
        let Some(client) = self.clients.get_mut(key) else { return };
        if let Some(former) = former {
            *client = former;
        }
        client.set_aside(now, aside);
        self.settle(key);
    }

    /// A client's mapping that was lost and came back as the same ip:port: each is told once.
    pub fn take_lost(&mut self, key: &K) -> Option<Churn> {
        self.clients.get_mut(key)?.take_lost()
    }

    /// When [`Self::handle_timeout`] is due. Hand in fresh counters before.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let (at, _) = self.deadlines.first()?;
        Some(self.last_wake.map_or(*at, |last| (*at).max(last + SPACING)))
    }

    /// Time passed. Returns the client to send a handshake initiation to, if any.
    pub fn handle_timeout(&mut self, now: Instant) -> Option<K> {
        while self.poll_timeout().is_some_and(|at| now >= at) {
            let (_, key) = self.deadlines.first().copied()?;
            let wake = self.clients.get_mut(&key).is_some_and(|client| client.handle_timeout(now));
            self.settle(&key);
            if wake {
                self.last_wake = Some(now);
                return Some(key);
            }
            // Nothing came of it: not looked at again before something changes, or later.
            if self.deadlines.first().is_some_and(|(at, next)| *next == key && *at <= now) {
                self.postpone(&key, now + SPACING);
            }
        }
        None
    }

    /// What is known of a client.
    pub fn nat_state(&self, key: &K) -> Option<NatState<'_>> {
        let client = self.clients.get(key)?;
        let (answered, unanswered) = client.wakes();
        Some(NatState {
            binding: client.binding(),
            interval: client.interval(),
            recommendation: client.recommendation(),
            churn: client.churn(),
            answered,
            unanswered,
        })
    }

    fn settle(&mut self, key: &K) {
        let due = self.clients.get(key).and_then(Client::poll_timeout);
        let before = self.due.get(key).copied();
        if before == due {
            return;
        }
        if let Some(before) = before {
            self.deadlines.remove(&(before, *key));
            self.due.remove(key);
        }
        if let Some(due) = due {
            self.deadlines.insert((due, *key));
            self.due.insert(*key, due);
        }
    }

    fn postpone(&mut self, key: &K, until: Instant) {
        if let Some(before) = self.due.insert(*key, until) {
            self.deadlines.remove(&(before, *key));
        }
        self.deadlines.insert((until, *key));
    }
}

#[cfg(test)]
mod tests;
