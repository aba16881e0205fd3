//! Tells one key on two machines from one machine that moves. Pure.
//!
//! WireGuard's own rule decides it for any client: a machine sends by its newest session alone. Once a newer one was used,
//! packets by an older one are late, or another machine's. So a roam is none, though it goes to and fro: what comes from there
//! is as new as what came before. One machine behind two uplinks is none: the same session comes from both. Late packets are
//! none: they end within seconds. An agent says it outright: its process has a number, and one that was replaced never comes
//! back on the machine that replaced it.
//!
//! Where the other machine is at another replica nothing of that is seen here. The operator sees it, and says so.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    net::SocketAddr,
    time::{Duration, Instant},
};

use super::told::{Instance, plain};
use crate::tunnel::PublicKey;

/// A place that was left so lately is no new one: to and fro within that time is no churn, and nothing is learnt of it.
const BACK: Duration = Duration::from_secs(30);
/// Moves that are closer together belong to one series.
const SERIES: Duration = Duration::from_mins(1);
/// For so long after the first packet by a newer session, one by an older session is late or out of order.
const LATE: Duration = Duration::from_secs(1);
/// Returns to an older session that are closer together are one.
const APART: Duration = Duration::from_secs(1);
/// So many returns,
const RETURNS: usize = 3;
/// the last one so long after the first: a queue on the way that is longer is hardly ever seen,
const LASTING: Duration = Duration::from_secs(5);
/// and none longer after the one before than this: a machine that only keeps its binding sends less often than it.
const WINDOW: Duration = Duration::from_mins(3);
/// Returns of an agent's process: one could be a message that was held up.
const TAKEOVERS: usize = 2;
/// It is over when nothing showed it for so long.
const FORGET_TIMEOUT: Duration = Duration::from_mins(5);
/// A client is told again after so long, of a machine at another replica: that one's packets never come here to show it, and an
/// agent believes it for ten minutes.
const SAY_AGAIN: Duration = Duration::from_mins(4);
/// Sessions, places and processes remembered of a client, of each.
const REMEMBERED: usize = 4;

/// What a move is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Seen {
    /// To another place. `begins`: none was close before it.
    Moved {
        /// What is known of the client now is not spoilt yet by what may turn out to be two machines.
        begins: bool,
    },
    /// Back to where it just was, or by another machine: it says nothing of the client's NAT.
    Flapped,
}

/// One key on two machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shared {
    /// When it was first certain.
    pub(super) since: Instant,
    /// Where the two are.
    pub(super) places: Option<(SocketAddr, SocketAddr)>,
    by_tunnel: bool,
    until: Instant,
}

#[derive(Debug, Clone, Copy)]
struct Session {
    index: u32,
    place: SocketAddr,
    since: Instant,
}

/// Returns to an older session, none of them long after the one before.
#[derive(Debug, Clone, Copy)]
struct Returns {
    count: usize,
    first: Instant,
    last: Instant,
}

#[derive(Debug, Default)]
struct Watch {
    sessions: VecDeque<Session>,
    left: VecDeque<(SocketAddr, Instant)>,
    moved: Option<Instant>,
    returns: Option<Returns>,
    processes: VecDeque<(Instance, Option<SocketAddr>)>,
    takeovers: VecDeque<Instant>,
}

/// All clients of one gateway replica. Times are monotonic.
#[derive(Debug, Default)]
pub(super) struct SharedKeys {
    watches: HashMap<PublicKey, Watch>,
    shared: HashMap<PublicKey, Shared>,
    news: VecDeque<(PublicKey, bool)>,
    /// Clients of which the operator says that the other machine is at another replica.
    elsewhere: HashSet<PublicKey>,
    say_again: Option<Instant>,
    words: VecDeque<(PublicKey, bool)>,
}

impl SharedKeys {
    /// Forgets whoever is no client any more.
    pub(super) fn retain(&mut self, is_client: impl Fn(&PublicKey) -> bool) {
        self.watches.retain(|key, _| is_client(key));
        self.shared.retain(|key, _| is_client(key));
        self.news.retain(|(key, _)| is_client(key));
        self.elsewhere.retain(&is_client);
        self.words.retain(|(key, _)| is_client(key));
    }

    /// The operator says of which clients the two machines are at two replicas.
    pub(super) fn handle_operator(&mut self, now: Instant, elsewhere: impl Iterator<Item = PublicKey>) {
        let before = std::mem::replace(&mut self.elsewhere, elsewhere.collect());
        let changed = self.elsewhere.symmetric_difference(&before);
        let changed = changed.filter(|peer| !self.shared.contains_key(*peer));
        self.words.extend(changed.map(|peer| (*peer, self.elsewhere.contains(peer))));
        self.say_again = match self.say_again {
            _ if self.elsewhere.is_empty() => None,
            Some(at) => Some(at),
            None => Some(now + SAY_AGAIN),
        };
    }

    /// Whether the client is to know that another machine uses its key, here or at another replica.
    pub(super) fn is_told(&self, peer: &PublicKey) -> bool {
        self.shared.contains_key(peer) || self.elsewhere.contains(peer)
    }

    /// The next client whose session is to be told that another machine uses its key, or none any more.
    pub(super) fn poll_word(&mut self) -> Option<(PublicKey, bool)> {
        self.words.pop_front()
    }

    /// An authenticated packet came from elsewhere; by which session of ours, where it was data.
    pub(super) fn handle_move(
        &mut self,
        now: Instant,
        peer: PublicKey,
        (from, to): (SocketAddr, SocketAddr),
        session: Option<u32>,
    ) -> Seen {
        let watch = self.watches.entry(peer).or_default();
        let (from, to) = (plain(from), plain(to));
        let was_here = watch.leave(now, from, to);
        let begins = watch.moved.replace(now).is_none_or(|at| now.saturating_duration_since(at) > SERIES);
        let returns = session.is_some_and(|index| watch.returns_by(now, index, to));
        if returns && (watch.is_certain_by_tunnel() || self.shared.contains_key(&peer)) {
            self.share(now, peer, Some((to, from)), true);
        }
        let flaps = returns || was_here || self.shared.contains_key(&peer);
        if flaps { Seen::Flapped } else { Seen::Moved { begins } }
    }

    /// A client's agent attached: which process it is, and where its connection comes from.
    pub(super) fn handle_attached(
        &mut self,
        now: Instant,
        peer: PublicKey,
        process: Option<Instance>,
        source: Option<SocketAddr>,
    ) {
        let Some(process) = process else { return };
        let watch = self.watches.entry(peer).or_default();
        let (returns, other) = watch.attach(now, process, source.map(plain));
        if returns && watch.takeovers.len() >= TAKEOVERS {
            self.share(now, peer, source.map(plain).zip(other), false);
        }
    }

    /// The client's key is on two machines that are both here, as far as is known.
    pub(super) fn shared(&self, peer: &PublicKey) -> Option<&Shared> {
        self.shared.get(peer)
    }

    /// When [`Self::handle_timeout`] is due.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.shared.values().map(|shared| shared.until).chain(self.say_again).min()
    }

    /// Time passed.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        let Self { watches, news, words, elsewhere, .. } = self;
        self.shared.retain(|peer, shared| {
            let goes_on = shared.until > now;
            if !goes_on {
                watches.remove(peer);
                news.push_back((*peer, false));
                words.extend((!elsewhere.contains(peer)).then_some((*peer, false)));
            }
            goes_on
        });
        if self.say_again.is_some_and(|at| now >= at) {
            self.words.extend(self.elsewhere.iter().map(|peer| (*peer, true)));
            self.say_again = Some(now + SAY_AGAIN);
        }
    }

    /// The next client whose key turned out to be on two machines, or is not any more.
    pub(super) fn poll_news(&mut self) -> Option<(PublicKey, bool)> {
        self.news.pop_front()
    }

    fn share(
        &mut self,
        now: Instant,
        peer: PublicKey,
        places: Option<(SocketAddr, SocketAddr)>,
        by_tunnel: bool,
    ) {
        let until = now + FORGET_TIMEOUT;
        let shared = self.shared.entry(peer).or_insert_with(|| {
            self.news.push_back((peer, true));
            self.words.push_back((peer, true));
            Shared { since: now, places, by_tunnel, until }
        });
        shared.until = until;
        // Each connection has a port of its own, which says nothing.
        if by_tunnel && !(shared.by_tunnel && are_same(shared.places, places)) {
            (shared.places, shared.by_tunnel) = (places, true);
        }
    }

    /// How many things are remembered, of which each is of a fixed size.
    #[cfg(test)]
    pub(super) fn entries(&self) -> usize {
        let of_one = |watch: &Watch| {
            watch.sessions.len()
                + watch.left.len()
                + usize::from(watch.returns.is_some())
                + watch.processes.len()
                + watch.takeovers.len()
        };
        self.news.len()
            + self.words.len()
            + self.elsewhere.len()
            + self.shared.len()
            + self.watches.values().map(of_one).sum::<usize>()
    }
}

impl Watch {
    /// Takes note of the place that it leaves. Whether it was at the other one just before.
    fn leave(&mut self, now: Instant, from: SocketAddr, to: SocketAddr) -> bool {
        let was_here =
            self.left.iter().any(|(place, at)| *place == to && now.saturating_duration_since(*at) <= BACK);
        self.left.retain(|(place, _)| *place != from);
        push(&mut self.left, (from, now));
        was_here
    }

    /// A packet by this session moved the endpoint. Whether another machine sent it than the one whose place this was, and that
    /// is not late.
    fn returns_by(&mut self, now: Instant, index: u32, place: SocketAddr) -> bool {
        // Other bits above the low byte: the peer was made anew, and its sessions count from there.
        self.sessions.retain(|session| session.index >> 8 == index >> 8);
        let newest =
            self.sessions.iter().copied().reduce(|a, b| if is_newer(b.index, a.index) { b } else { a });
        let Some(known) = self.sessions.iter_mut().find(|session| session.index == index) else {
            push(&mut self.sessions, Session { index, place, since: now });
            return false;
        };
        let stayed = std::mem::replace(&mut known.place, place) == place;
        let Some(newest) = newest.filter(|newest| is_newer(newest.index, index)) else { return false };
        let is_late = now.saturating_duration_since(newest.since) < LATE;
        if !stayed || newest.place == place || is_late {
            return false;
        }
        let since = |at: Instant| now.saturating_duration_since(at);
        self.returns = match self.returns.filter(|returns| since(returns.last) <= WINDOW) {
            None => Some(Returns { count: 1, first: now, last: now }),
            Some(returns) if since(returns.last) < APART => Some(returns),
            Some(Returns { count, first, .. }) => {
                Some(Returns { count: count.saturating_add(1), first, last: now })
            }
        };
        true
    }

    fn is_certain_by_tunnel(&self) -> bool {
        self.returns.is_some_and(|Returns { count, first, last }| count >= RETURNS && last - first >= LASTING)
    }

    /// Whether this process takes the session back from another one, and where that one was.
    fn attach(
        &mut self,
        now: Instant,
        process: Instance,
        source: Option<SocketAddr>,
    ) -> (bool, Option<SocketAddr>) {
        let last = self.processes.back().copied();
        let known = self.processes.iter().position(|(known, _)| *known == process);
        if let Some(known) = known {
            self.processes.remove(known);
        }
        push(&mut self.processes, (process, source));
        let Some((_, other)) = last.filter(|(last, _)| known.is_some() && *last != process) else {
            return (false, None);
        };
        self.takeovers.retain(|at| now.saturating_duration_since(*at) <= WINDOW);
        push(&mut self.takeovers, now);
        (true, other)
    }
}

/// Whether one session is newer than another of the same peer. The low byte of indices counts, and begins anew.
fn is_newer(index: u32, than: u32) -> bool {
    (1..128).contains(&(index.wrapping_sub(than) & 0xff))
}

fn are_same(some: Option<(SocketAddr, SocketAddr)>, others: Option<(SocketAddr, SocketAddr)>) -> bool {
    some == others || some == others.map(|(first, second)| (second, first))
}

fn push<T>(list: &mut VecDeque<T>, item: T) {
    if list.len() >= REMEMBERED {
        list.pop_front();
    }
    list.push_back(item);
}

#[cfg(test)]
mod tests;
