//! Tells a NAT that lost its state from clients that moved: by many losing their mappings at one moment.
//!
//! A client notices a loss with its next packet, so all that is known is the silence within which it happened.
//! Losses belong together when their silences share a moment, and when most of those that were heard after that
//! moment lost theirs.

use std::{
    collections::{HashMap, VecDeque},
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use crate::PeerId;

/// So many clients, at least.
const FEWEST: usize = 2;
/// After the first two losses the others are given so long to show, before a count is told.
pub const SETTLE: Duration = Duration::from_secs(5);
/// A loss is kept for so long: no keepalive interval is longer.
const KEPT: Duration = Duration::from_hours(1);
/// How exactly silences are known: a round trip and the coarseness of counters.
const SLACK: Duration = Duration::from_millis(500);
/// Losses kept of one address.
const LOSSES: usize = 256;
/// Losses kept of all addresses together.
pub const LOSSES_TOGETHER: usize = 16_384;
/// Addresses kept, and restarts told last.
pub const ADDRESSES: usize = 4096;

/// A client lost its mapping while it stayed where it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loss<K> {
    /// The client.
    pub peer: K,
    /// When it was noticed, which may be a while ago.
    pub at: Instant,
    /// Where it was seen before.
    pub from: SocketAddr,
    /// Where it is seen now: the same where the loss is invisible.
    pub to: SocketAddr,
    /// The silence within which it happened.
    pub idle: Duration,
    /// What the binding was believed to live. A loss after a longer silence is the binding's end. `None`: not
    /// known, then only short silences count.
    pub believed: Option<Duration>,
}

impl<K: PeerId> Loss<K> {
    /// Below what nearly all NATs keep even bindings that saw one direction only.
    const CERTAIN: Duration = Duration::from_secs(26);

    fn counts(&self) -> bool {
        self.idle <= self.believed.unwrap_or(Self::CERTAIN)
    }
}

/// A client that is heard at an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heard<K> {
    /// The client.
    pub peer: K,
    /// Where it is seen.
    pub endpoint: SocketAddr,
    /// When it was heard last.
    pub at: Instant,
}

/// A NAT lost its state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NatRestart {
    /// Public address before it.
    pub address: IpAddr,
    /// When the first loss was noticed.
    pub at: Instant,
    /// Clients that lost their mapping.
    pub changed: usize,
    /// Those, and all others that were heard since.
    pub clients: usize,
}

#[derive(Debug, Clone, Copy)]
struct Noted<K> {
    peer: K,
    to: IpAddr,
    after: Instant,
    noticed: Instant,
}

#[derive(Debug)]
struct Address<K> {
    losses: VecDeque<Noted<K>>,
    /// When to judge.
    due: Option<Instant>,
    /// The restart told last.
    told: Option<NatRestart>,
}

impl<K> Default for Address<K> {
    fn default() -> Self {
        Self { losses: VecDeque::new(), due: None, told: None }
    }
}

/// All public addresses of one gateway replica's clients. Times are monotonic.
#[derive(Debug)]
pub struct RestartDetector<K> {
    addresses: HashMap<IpAddr, Address<K>>,
    restarts: VecDeque<NatRestart>,
}

impl<K> Default for RestartDetector<K> {
    fn default() -> Self {
        Self { addresses: HashMap::new(), restarts: VecDeque::new() }
    }
}

impl<K: PeerId> RestartDetector<K> {
    /// Nothing was seen yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// A mapping was lost. Returns whether that was part of a restart that was told already.
    pub fn handle_loss(&mut self, now: Instant, loss: Loss<K>) -> bool {
        if !loss.counts() {
            return false;
        }
        let ip = loss.from.ip().to_canonical();
        self.make_room(now, ip);
        let address = self.addresses.entry(ip).or_default();
        address.losses.retain(|noted| noted.peer != loss.peer && now < noted.noticed + KEPT);
        if address.losses.len() >= LOSSES {
            address.losses.pop_front();
        }
        let after = loss.at.checked_sub(loss.idle + SLACK).unwrap_or(loss.at);
        let noted = Noted { peer: loss.peer, to: loss.to.ip().to_canonical(), after, noticed: loss.at };
        address.losses.push_back(noted);
        if let Some(told) = address.told.as_mut().filter(|told| after <= told.at + SLACK) {
            // It noticed late what was told already.
            told.changed += 1;
            told.clients = told.clients.max(told.changed);
            return true;
        }
        if together(&address.losses).len() >= FEWEST {
            address.due.get_or_insert(now + SETTLE);
        }
        false
    }

    /// The client itself moved, as it says: its change is no loss of the NAT's.
    pub fn handle_roam(&mut self, peer: &K) {
        for address in self.addresses.values_mut() {
            address.losses.retain(|noted| noted.peer != *peer);
        }
    }

    /// When [`Self::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.addresses.values().filter_map(|address| address.due).min()
    }

    /// Time passed. `heard` are the clients that are there, as they were heard last.
    pub fn handle_timeout(&mut self, now: Instant, heard: &[Heard<K>]) {
        for (ip, address) in &mut self.addresses {
            if address.due.is_none_or(|due| now < due) {
                continue;
            }
            address.due = None;
            let Some(restart) = judge(*ip, &address.losses, heard) else { continue };
            address.told = Some(restart);
            self.restarts.push_back(restart);
        }
    }

    /// The next restart to tell of, once each.
    pub fn poll_restart(&mut self) -> Option<NatRestart> {
        self.restarts.pop_front()
    }

    /// The last restart of each address, counting those too that noticed it late.
    pub fn restarts(&self) -> impl Iterator<Item = NatRestart> {
        self.addresses.values().filter_map(|address| address.told)
    }

    /// Whose losses were part of the address's last restart.
    pub fn members(&self, address: IpAddr) -> Vec<K> {
        let Some(address) = self.addresses.get(&address.to_canonical()) else { return Vec::new() };
        let Some(told) = address.told else { return Vec::new() };
        let part = |noted: &&Noted<K>| noted.after <= told.at + SLACK && noted.noticed >= told.at;
        address.losses.iter().filter(part).map(|noted| noted.peer).collect()
    }

    /// How many things are remembered.
    pub fn entries(&self) -> usize {
        self.addresses.len() + self.losses() + self.restarts.len()
    }

    fn losses(&self) -> usize {
        self.addresses.values().map(|address| address.losses.len()).sum()
    }

    fn make_room(&mut self, now: Instant, wanted: IpAddr) {
        let is_full = |all: &Self| {
            let is_new = !all.addresses.contains_key(&wanted);
            (is_new && all.addresses.len() >= ADDRESSES) || all.losses() >= LOSSES_TOGETHER
        };
        if !is_full(self) {
            return;
        }
        let last = |address: &Address<K>| address.losses.back().map(|noted| noted.noticed);
        self.addresses.retain(|_, address| last(address).is_some_and(|at| now < at + KEPT));
        while is_full(self) {
            let oldest = self.addresses.iter().min_by_key(|(_, address)| last(address)).map(|(ip, _)| *ip);
            let Some(oldest) = oldest else { return };
            self.addresses.remove(&oldest);
        }
    }
}

/// The losses that share a moment with the newest one, and an address afterwards: as many as possible.
fn together<K: PeerId>(losses: &VecDeque<Noted<K>>) -> Vec<Noted<K>> {
    let Some(newest) = losses.back() else { return Vec::new() };
    let moments = losses.iter().map(|noted| noted.after).filter(|at| *at >= newest.after);
    let sharing = |moment: Instant| -> Vec<Noted<K>> {
        let shares =
            |noted: &&Noted<K>| noted.after <= moment && moment <= noted.noticed && noted.to == newest.to;
        losses.iter().filter(shares).copied().collect()
    };
    moments.map(sharing).max_by_key(Vec::len).unwrap_or_default()
}

/// At least half of those that were heard since must have lost theirs: one that was heard where it had been did not.
fn judge<K: PeerId>(ip: IpAddr, losses: &VecDeque<Noted<K>>, heard: &[Heard<K>]) -> Option<NatRestart> {
    let lost = together(losses);
    let at = lost.iter().map(|noted| noted.noticed).min()?;
    let since = lost.iter().map(|noted| noted.after).max()?;
    let others = heard.iter().filter(|other| {
        other.endpoint.ip().to_canonical() == ip
            && other.at > since
            && lost.iter().all(|noted| noted.peer != other.peer)
    });
    let others = others.count();
    let enough = lost.len() >= FEWEST && lost.len() >= others;
    enough.then_some(NatRestart { address: ip, at, changed: lost.len(), clients: lost.len() + others })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn key(n: u8) -> u8 {
        n
    }

    fn home(port: u16) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 1], port))
    }

    fn loss(at: Instant, n: u8, idle: u64) -> Loss<u8> {
        let from = home(1000 + u16::from(n));
        let believed = Some(SECOND * 60);
        Loss {
            peer: key(n),
            at,
            from,
            to: home(2000 + u16::from(n)),
            idle: Duration::from_secs(idle),
            believed,
        }
    }

    fn heard(n: u8, at: Instant) -> Heard<u8> {
        Heard { peer: key(n), endpoint: home(1000 + u16::from(n)), at }
    }

    fn run(detector: &mut RestartDetector<u8>, heard: &[Heard<u8>]) -> Vec<NatRestart> {
        while let Some(due) = detector.poll_timeout() {
            detector.handle_timeout(due, heard);
        }
        std::iter::from_fn(|| detector.poll_restart()).collect()
    }

    #[test]
    fn two_clients_that_lose_their_mappings_within_one_moment_are_a_restart() {
        let now = Instant::now();
        let mut detector = RestartDetector::new();
        detector.handle_loss(now, loss(now, 1, 20));
        detector.handle_loss(now + SECOND * 15, loss(now + SECOND * 15, 2, 25));
        let told = run(&mut detector, &[]);
        let expected = NatRestart { address: home(1).ip(), at: now, changed: 2, clients: 2 };
        assert_eq!(told, [expected]);
    }

    #[test]
    fn one_client_alone_is_no_restart_however_often_it_moves() {
        let now = Instant::now();
        let mut detector = RestartDetector::new();
        for n in 0..20 {
            detector.handle_loss(now + SECOND * n, loss(now + SECOND * n, 1, 20));
        }
        assert_eq!(run(&mut detector, &[]), []);
    }

    #[test]
    fn losses_whose_silences_share_no_moment_are_two_losses() {
        let now = Instant::now();
        let mut detector = RestartDetector::new();
        detector.handle_loss(now, loss(now, 1, 20));
        detector.handle_loss(now + SECOND * 30, loss(now + SECOND * 30, 2, 25));
        assert_eq!(run(&mut detector, &[]), []);
    }

    #[test]
    fn fifty_clients_make_one_event_with_their_count() {
        let now = Instant::now();
        let mut detector = RestartDetector::new();
        for n in 0..50u8 {
            // All intervals are 20 s; the flush is at `now`, and each notices at its next keepalive.
            detector.handle_loss(
                now + SECOND * 20 * u32::from(n) / 50,
                loss(now + SECOND * 20 * u32::from(n) / 50, n, 20),
            );
        }
        let told = run(&mut detector, &[]);
        assert_eq!(told.len(), 1);
        assert_eq!(told[0].changed, 50);
    }

    #[test]
    fn who_notices_late_joins_the_restart_that_was_told() {
        let now = Instant::now();
        let mut detector = RestartDetector::new();
        detector.handle_loss(now, loss(now, 1, 20));
        detector.handle_loss(now + SECOND, loss(now + SECOND, 2, 20));
        assert_eq!(run(&mut detector, &[]).len(), 1);
        assert!(detector.handle_loss(now + SECOND * 19, loss(now + SECOND * 19, 3, 20)));
        assert_eq!(run(&mut detector, &[]), []);
        assert_eq!(detector.restarts().map(|restart| restart.changed).collect::<Vec<_>>(), [3]);
        assert_eq!(detector.members(home(1).ip()), [key(1), key(2), key(3)]);
    }

    #[test]
    fn two_among_many_that_were_heard_unmoved_are_no_restart() {
        let now = Instant::now();
        let mut detector = RestartDetector::new();
        detector.handle_loss(now, loss(now, 1, 20));
        detector.handle_loss(now + SECOND, loss(now + SECOND, 2, 20));
        let unmoved: Vec<_> = (10..20).map(|n| heard(n, now + SECOND * 2)).collect();
        assert_eq!(run(&mut detector, &unmoved), []);
    }

    #[test]
    fn a_binding_that_simply_ended_is_not_counted() {
        let now = Instant::now();
        let mut detector = RestartDetector::new();
        for n in 0..10 {
            detector.handle_loss(now, loss(now, n, 90));
            detector.handle_loss(now, Loss { believed: None, ..loss(now, n + 100, 40) });
        }
        assert_eq!(run(&mut detector, &[]), []);
    }

    #[test]
    fn clients_that_went_elsewhere_each_by_themselves_did_not_see_a_restart() {
        let now = Instant::now();
        let mut detector = RestartDetector::new();
        for n in 0..10 {
            let to = SocketAddr::from(([203, 0, 113, n], 1000));
            detector.handle_loss(now, Loss { to, ..loss(now, n, 20) });
        }
        assert_eq!(run(&mut detector, &[]), []);
        detector.handle_loss(now, loss(now, 20, 20));
        detector.handle_loss(now, loss(now, 21, 20));
        detector.handle_roam(&key(21));
        assert_eq!(run(&mut detector, &[]), []);
    }

    proptest! {
        /// A flush at a random moment: every client with a keepalive is counted once, in one event or as late.
        #[test]
        fn a_flush_is_told_once_and_counts_everybody(
            intervals in proptest::collection::vec((5u64..60, 0.0f64..1.0), 2..60)
        ) {
            let flush = Instant::now() + SECOND * 100;
            let mut noticed: Vec<_> = intervals.iter().enumerate().map(|(n, (interval, phase))| {
                let interval = Duration::from_secs(*interval);
                (flush + interval.mul_f64(*phase), u8::try_from(n).unwrap(), interval)
            }).collect();
            noticed.sort();
            let mut detector = RestartDetector::new();
            let mut told = 0;
            for (at, n, interval) in &noticed {
                while let Some(due) = detector.poll_timeout().filter(|due| due <= at) {
                    detector.handle_timeout(due, &[]);
                }
                detector.handle_loss(*at, loss(*at, *n, interval.as_secs()));
                told += std::iter::from_fn(|| detector.poll_restart()).count();
            }
            told += run(&mut detector, &[]).len();
            prop_assert_eq!(told, 1);
            prop_assert_eq!(detector.restarts().next().map(|restart| restart.changed), Some(intervals.len()));
        }
    }
}
