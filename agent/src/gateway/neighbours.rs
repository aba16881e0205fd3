//! What clients behind the same NATs show together, and what those without an agent show by themselves. Pure.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use pinhole_proto::{bounds::Word, v1};

use super::{
    desired::Desired,
    nat_state::{Move, NatState},
    told::{BindingTold, ChurnTold, EventTold, NatTold, Told},
};
use crate::{
    nat::{
        Binding, Cause, Confidence, Guidance,
        prior::{Neighbourhoods, Place},
        restart::{Heard, Loss, NatRestart, RestartDetector},
        stock::{Counters, StockClients},
    },
    tunnel::{PeerStats, PublicKey},
    wire,
};

/// What an experiment that tells a lost mapping from a shorter lifetime takes, beside the lifetime.
const EXPERIMENT: Duration = Duration::from_secs(30);

/// A client as its data path shows it.
#[derive(Debug, Clone, Copy)]
struct Seen {
    endpoint: SocketAddr,
    at: Instant,
}

/// What follows for one client.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Finding {
    /// It is to be guided anew.
    Guidance(Guidance),
    /// Its last loss was its NAT's restart.
    Restarted,
    /// Its mapping was lost, which nobody but this gateway saw.
    Lost(Move),
}

/// All clients of one gateway replica. Times are monotonic.
#[derive(Debug)]
pub(super) struct Neighbours {
    port: u16,
    pools: HashMap<PublicKey, Arc<str>>,
    stock: StockClients<PublicKey>,
    stock_keys: HashSet<PublicKey>,
    priors: Neighbourhoods<PublicKey>,
    places: HashMap<PublicKey, Place>,
    restarts: RestartDetector<PublicKey>,
    seen: HashMap<PublicKey, Seen>,
    told: HashMap<PublicKey, ChurnTold>,
    findings: VecDeque<(PublicKey, Finding)>,
    since: HashMap<PublicKey, (Confidence, SystemTime)>,
}

impl Neighbours {
    /// Of a gateway that is reached on this port.
    pub(super) fn new(port: u16) -> Self {
        Self {
            port,
            pools: HashMap::new(),
            stock: StockClients::new(),
            stock_keys: HashSet::new(),
            priors: Neighbourhoods::new(),
            places: HashMap::new(),
            restarts: RestartDetector::new(),
            seen: HashMap::new(),
            told: HashMap::new(),
            findings: VecDeque::new(),
            since: HashMap::new(),
        }
    }

    /// The clients there may be. Those in `agents` run one, whatever they were made as.
    pub(super) fn handle_clients(
        &mut self,
        now: Instant,
        desired: &Desired,
        is_agent: impl Fn(&PublicKey) -> bool,
    ) {
        let names: Vec<Arc<str>> = desired.pools.iter().map(|pool| pool_name(&pool.wire)).collect();
        let pool = |(key, peer): (&PublicKey, &super::desired::Peer)| {
            names.get(peer.pool).map(|name| (*key, Arc::clone(name)))
        };
        self.pools = desired.peers.iter().filter_map(pool).collect();
        let stock =
            desired.peers.iter().filter(|(key, peer)| peer.stock_keepalive.is_some() && !is_agent(key));
        self.stock_keys = stock.map(|(key, _)| *key).collect();
        self.stock.handle_clients(now, &self.stock_keys);
        let pools = &self.pools;
        let gone: Vec<_> = self.places.keys().filter(|key| !pools.contains_key(*key)).copied().collect();
        for key in gone {
            self.handle_detached(now, &key);
        }
        let pools = &self.pools;
        self.seen.retain(|key, _| pools.contains_key(key));
        self.told.retain(|key, _| pools.contains_key(key));
        self.since.retain(|key, _| self.stock_keys.contains(key));
    }

    /// A client's agent attached. `source` is where its session comes from: its tunnel may not be there yet.
    pub(super) fn handle_attached(&mut self, now: Instant, peer: PublicKey, source: Option<SocketAddr>) {
        if self.stock_keys.remove(&peer) {
            self.stock.handle_clients(now, &self.stock_keys);
        }
        let address = self.seen.get(&peer).map(|seen| seen.endpoint).or(source);
        if let Some(address) = address {
            self.come(now, peer, address.ip());
        }
    }

    /// A client's session ended.
    pub(super) fn handle_detached(&mut self, now: Instant, peer: &PublicKey) {
        self.places.remove(peer);
        self.priors.handle_gone(now, peer);
    }

    /// A client's agent tells of itself; `nat_state` knows of that already.
    pub(super) fn handle_told(&mut self, now: Instant, peer: PublicKey, told: &Told, nat_state: &NatState) {
        if let Some(churn) = &told.churn {
            self.handle_churn(now, peer, churn);
        }
        let place = self.places.get(&peer).cloned();
        let binding = told.binding.as_ref().and_then(BindingTold::binding);
        if let (Some(place), Some(binding)) = (place, binding) {
            self.priors.handle_verdict(now, peer, &place, nat_state.class(), binding);
        }
    }

    /// An authenticated packet came from elsewhere.
    pub(super) fn handle_moved(
        &mut self,
        now: Instant,
        peer: PublicKey,
        (from, to): (SocketAddr, SocketAddr),
        idle: Option<Duration>,
    ) {
        let Some(idle) = idle else { return };
        let known = self.stock.nat_state(&peer).map(|nat_state| nat_state.binding.at_least);
        let believed = known.filter(|at_least| !at_least.is_zero());
        self.stock.handle_moved(now, &peer, (from, to), idle);
        self.lose(now, Loss { peer, at: now, from, to, idle, believed });
    }

    /// Remembers what is known of a client without an agent: what comes next may have been another machine.
    pub(super) fn remember(&mut self, peer: &PublicKey) {
        self.stock.remember(peer);
    }

    /// Two machines use a client's key, or do not any more: what was known before stays, and nothing is learnt meanwhile.
    pub(super) fn set_aside(&mut self, now: Instant, peer: PublicKey, shared: bool) {
        if shared {
            self.handle_detached(now, &peer);
        }
        self.stock.set_aside(now, &peer, shared);
    }

    /// What the data plane counted.
    pub(super) fn handle_stats(&mut self, now: Instant, stats: &PeerStats) {
        let peer = stats.public_key;
        let (Some(endpoint), Some(at)) = (stats.endpoint, stats.last_receive) else { return };
        self.seen.insert(peer, Seen { endpoint, at });
        if self.stock_keys.contains(&peer) {
            let counters = Counters {
                endpoint: stats.endpoint,
                last_receive: stats.last_receive,
                last_send: stats.last_send,
                last_handshake: stats.last_handshake,
            };
            self.stock.handle_counters(now, &peer, counters);
            self.take_lost(now, peer);
        } else if self.places.contains_key(&peer) {
            self.come(now, peer, endpoint.ip());
        }
    }

    /// When [`Self::handle_timeout`] is due. Hand in fresh stats before.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let due = [self.stock.poll_timeout(), self.priors.poll_timeout(), self.restarts.poll_timeout()];
        due.into_iter().flatten().min()
    }

    /// Time passed.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        self.priors.handle_timeout(now);
        while let Some((peer, guidance)) = self.priors.poll_guidance(now) {
            self.findings.push_back((peer, Finding::Guidance(guidance)));
        }
        if self.restarts.poll_timeout().is_some_and(|at| now >= at) {
            let heard = |(peer, seen): (&PublicKey, &Seen)| Heard {
                peer: *peer,
                endpoint: seen.endpoint,
                at: seen.at,
            };
            let heard: Vec<_> = self.seen.iter().map(heard).collect();
            self.restarts.handle_timeout(now, &heard);
        }
    }

    /// The next client without an agent to send a handshake initiation to.
    pub(super) fn poll_wake(&mut self, now: Instant) -> Option<PublicKey> {
        self.stock.handle_timeout(now)
    }

    /// The next NAT that lost its state, once each.
    pub(super) fn poll_restart(&mut self) -> Option<NatRestart> {
        let restart = self.restarts.poll_restart()?;
        for peer in self.restarts.members(restart.address) {
            self.findings.push_back((peer, Finding::Restarted));
        }
        Some(restart)
    }

    /// The next thing to do for a client.
    pub(super) fn poll_finding(&mut self) -> Option<(PublicKey, Finding)> {
        self.findings.pop_front()
    }

    /// The last restart of each public address.
    pub(super) fn restarts(&self, now: Instant, wall: SystemTime) -> Vec<v1::NatRestart> {
        let wire = |restart: NatRestart| v1::NatRestart {
            public_address: restart.address.to_string(),
            at: Some((wall - now.saturating_duration_since(restart.at)).into()),
            changed: u32::try_from(restart.changed).unwrap_or(u32::MAX),
            clients: u32::try_from(restart.clients).unwrap_or(u32::MAX),
        };
        self.restarts.restarts().map(wire).collect()
    }

    /// Writes what is seen of the clients without an agent to their nat_states.
    pub(super) fn tell_stock(
        &mut self,
        wall: SystemTime,
        mut learn: impl FnMut(&PublicKey, (Option<NatTold>, Option<BindingTold>, Option<Duration>)),
    ) {
        for peer in &self.stock_keys {
            let Some(nat_state) = self.stock.nat_state(peer) else { continue };
            let Some(seen) = self.seen.get(peer) else { continue };
            let nat = NatTold {
                public_address: Some(seen.endpoint.ip().to_canonical()),
                vantage: Word::Known(v1::Vantage::Gateway),
                ..NatTold::default()
            };
            let confidence = nat_state.binding.confidence;
            let since = self.since.entry(*peer).or_insert((confidence, wall));
            if since.0 != confidence {
                *since = (confidence, wall);
            }
            let binding = (confidence > Confidence::Unknown)
                .then(|| BindingTold::from(&to_wire(&nat_state.binding, Some(since.1))));
            let recommended = nat_state.recommendation.map(|recommendation| recommendation.interval);
            learn(peer, (Some(nat), binding, recommended));
        }
    }

    /// How many things are remembered, of which each is of a fixed size: of the clients there are, and of whomever they
    /// name.
    #[cfg(test)]
    pub(super) fn entries(&self) -> (usize, usize) {
        let causes: usize = self.told.values().map(|told| told.causes().len()).sum();
        let clients =
            [self.pools.len(), self.places.len(), self.seen.len(), self.told.len(), self.since.len()];
        (
            clients.iter().sum::<usize>() + causes + self.findings.len(),
            self.priors.entries() + self.restarts.entries(),
        )
    }

    fn come(&mut self, now: Instant, peer: PublicKey, address: IpAddr) {
        let Some(pool) = self.pools.get(&peer) else { return };
        let place = Place { pool: Arc::clone(pool), address: address.to_canonical(), port: self.port };
        if self.places.get(&peer) == Some(&place) {
            return;
        }
        let guidance = self.priors.handle_newcomer(now, peer, &place);
        self.places.insert(peer, place);
        self.findings.push_back((peer, Finding::Guidance(guidance)));
    }

    /// What the agent counted since the last time.
    fn handle_churn(&mut self, now: Instant, peer: PublicKey, churn: &ChurnTold) {
        // Of a client that lost its right nothing is kept.
        if !self.pools.contains_key(&peer) {
            return;
        }
        let before = self.told.insert(peer, churn.clone());
        // The first word of an agent is about the past.
        let Some(before) = before.filter(|before| before.since == churn.since) else { return };
        for of_cause in churn.causes() {
            if of_cause.count > before.count(of_cause.cause).unwrap_or_default() {
                self.handle_cause(now, peer, of_cause.cause, of_cause.last);
            }
        }
    }

    fn handle_cause(&mut self, now: Instant, peer: PublicKey, cause: Cause, last: Option<EventTold>) {
        match cause {
            Cause::Roam | Cause::GatewayMoved => return self.restarts.handle_roam(&peer),
            Cause::LifetimeShrank => {
                if let Some(place) = self.places.get(&peer) {
                    self.priors.handle_shrink(place);
                }
            }
            Cause::MappingChanged | Cause::MappingLost => {}
            Cause::NatRestart | Cause::UdpBlocked | Cause::HelperInterference => return,
        }
        let Some(last) = last else { return };
        let here = self.seen.get(&peer).map(|seen| seen.endpoint);
        let (Some(idle), Some(to)) = (last.idle, last.to.or(here)) else { return };
        let from = last.from.unwrap_or(to);
        let at = now.checked_sub(ago(&last, idle)).unwrap_or(now);
        // An agent's silences are no longer than what it believes in.
        self.lose(now, Loss { peer, at, from, to, idle, believed: Some(idle) });
    }

    fn lose(&mut self, now: Instant, loss: Loss<PublicKey>) {
        if self.restarts.handle_loss(now, loss) {
            self.findings.push_back((loss.peer, Finding::Restarted));
        }
    }

    fn take_lost(&mut self, now: Instant, peer: PublicKey) {
        let Some(lost) = self.stock.take_lost(&peer) else { return };
        let (Some(from), Some(to)) = (lost.from, lost.to) else { return };
        let moved = Move { at: SystemTime::now(), from: lost.from, to: lost.to, idle: Some(lost.idle) };
        self.findings.push_back((peer, Finding::Lost(moved)));
        let known = self.stock.nat_state(&peer).map(|nat_state| nat_state.binding.at_least);
        let believed = known.filter(|at_least| !at_least.is_zero());
        self.lose(now, Loss { peer, at: now, from, to, idle: lost.idle, believed });
    }
}

/// How long ago an agent noticed a loss: it tells of one only when an experiment has shown that it was one. By the
/// agent's clock where that makes sense, else by how long such an experiment takes.
fn ago(event: &EventTold, idle: Duration) -> Duration {
    let ago = event.at.and_then(|at| SystemTime::now().duration_since(at).ok());
    ago.filter(|ago| *ago <= idle * 3 + EXPERIMENT).unwrap_or(idle)
}

fn pool_name(pool: &v1::Pool) -> Arc<str> {
    pool.pool.as_ref().map(|pool| format!("{}/{}", pool.namespace, pool.name)).unwrap_or_default().into()
}

/// A guidance as the protocol has it.
pub(super) fn guidance_to_wire(guidance: &Guidance) -> v1::Guidance {
    let prior = guidance.prior.map(|prior| to_wire(&prior.binding, None));
    v1::Guidance { prior, wait: guidance.wait }
}

fn to_wire(binding: &Binding, since: Option<SystemTime>) -> v1::BindingReport {
    wire::binding_to_wire(binding, since, v1::Vantage::Gateway)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::desired::tests::{peer, state};

    const SECOND: Duration = Duration::from_secs(1);

    fn key(n: u8) -> PublicKey {
        PublicKey::from_bytes([n; 32])
    }

    fn at(port: u16) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 1], port))
    }

    fn clients(n: u8) -> Vec<v1::Peer> {
        (1..=n).map(|n| peer(&format!("client-{n}"), n)).collect()
    }

    fn with(peers: Vec<v1::Peer>, now: Instant) -> Neighbours {
        let (desired, problem) = Desired::parse(state(peers)).unwrap();
        assert!(problem.is_none());
        let mut neighbours = Neighbours::new(51820);
        neighbours.handle_clients(now, &desired, |_| false);
        neighbours
    }

    fn measured(seconds: i64) -> Told {
        let span = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
        let binding = v1::BindingReport {
            at_least: span(seconds),
            less_than: span(seconds + 3),
            confidence: v1::BindingConfidence::Bracketed.into(),
            ..v1::BindingReport::default()
        };
        v1::ClientState { binding: Some(binding), ..v1::ClientState::default() }.into()
    }

    fn churn(cause: v1::ChurnCause, count: u64, from: SocketAddr, to: SocketAddr) -> Told {
        let last = v1::ChurnEvent {
            from: from.to_string(),
            to: to.to_string(),
            idle: Some(prost_types::Duration { seconds: 20, nanos: 0 }),
            ..v1::ChurnEvent::default()
        };
        let causes = vec![v1::ChurnOfCause { cause: cause.into(), count, last: Some(last) }];
        let churn = v1::ChurnReport { count, causes, ..v1::ChurnReport::default() };
        v1::ClientState { churn: Some(churn), ..v1::ClientState::default() }.into()
    }

    fn nat_state() -> NatState {
        NatState::new(SystemTime::now())
    }

    fn findings(neighbours: &mut Neighbours) -> Vec<(PublicKey, Finding)> {
        std::iter::from_fn(|| neighbours.poll_finding()).collect()
    }

    #[test]
    fn a_verdict_reaches_the_neighbours_that_waited_for_it() {
        let now = Instant::now();
        let mut neighbours = with(clients(5), now);
        for n in 1..=5 {
            neighbours.handle_attached(now, key(n), Some(at(1000 + u16::from(n))));
        }
        let waits = |(_, finding): &(PublicKey, Finding)| {
            matches!(finding, Finding::Guidance(Guidance { wait: true, .. }))
        };
        assert_eq!(findings(&mut neighbours).iter().filter(|found| waits(found)).count(), 3);
        let later = now + SECOND * 40;
        neighbours.handle_told(later, key(1), &measured(30), &nat_state());
        neighbours.handle_timeout(later + SECOND * 5);
        let told = findings(&mut neighbours);
        assert_eq!(told.len(), 3);
        for (_, finding) in told {
            let Finding::Guidance(guidance) = finding else { panic!("{finding:?}") };
            let wire = guidance_to_wire(&guidance);
            let back = wire::binding_from_wire(&wire.prior.unwrap()).unwrap();
            assert_eq!(back.at_least, SECOND * 30);
            assert!(!wire.wait);
        }
    }

    #[test]
    fn invisible_losses_that_agents_tell_are_one_restart() {
        let now = Instant::now();
        let mut neighbours = with(clients(3), now);
        let lost = |count, n: u16| churn(v1::ChurnCause::MappingLost, count, at(n), at(n));
        for n in 1..=3u8 {
            // The first word is about the past.
            neighbours.handle_told(now, key(n), &lost(4, n.into()), &nat_state());
            neighbours.handle_told(now + SECOND * n.into(), key(n), &lost(5, n.into()), &nat_state());
        }
        let due = neighbours.poll_timeout().unwrap();
        neighbours.handle_timeout(due);
        let restart = neighbours.poll_restart().unwrap();
        assert_eq!((restart.changed, neighbours.poll_restart()), (3, None));
        assert_eq!(findings(&mut neighbours).iter().filter(|(_, f)| *f == Finding::Restarted).count(), 3);
        assert_eq!(neighbours.restarts(due, SystemTime::now())[0].changed, 3);
    }

    #[test]
    fn agents_that_roamed_are_no_restart() {
        let now = Instant::now();
        let mut neighbours = with(clients(3), now);
        for n in 1..=3u8 {
            let told = |count| churn(v1::ChurnCause::Roam, count, at(n.into()), at(1000 + u16::from(n)));
            neighbours.handle_told(now, key(n), &told(1), &nat_state());
            neighbours.handle_moved(now, key(n), (at(n.into()), at(1000 + u16::from(n))), Some(SECOND));
            neighbours.handle_told(now, key(n), &told(2), &nat_state());
        }
        while let Some(due) = neighbours.poll_timeout() {
            neighbours.handle_timeout(due);
        }
        assert_eq!(neighbours.poll_restart(), None);
    }

    #[test]
    fn a_stock_client_is_woken_and_an_agent_is_not() {
        let now = Instant::now();
        let stock = |n| v1::Peer {
            stock_keepalive: Some(prost_types::Duration { seconds: 25, nanos: 0 }),
            ..peer(&format!("stock-{n}"), n)
        };
        let mut neighbours = with(vec![stock(1), stock(2), peer("agent", 3)], now);
        neighbours.handle_attached(now, key(2), None);
        for n in 1..=3 {
            let stats = PeerStats {
                endpoint: Some(at(1000 + u16::from(n))),
                last_receive: Some(now),
                ..PeerStats::new(key(n))
            };
            neighbours.handle_stats(now, &stats);
        }
        let due = neighbours.poll_timeout().unwrap();
        assert_eq!(neighbours.poll_wake(due), Some(key(1)));
        assert_eq!(neighbours.poll_wake(due), None);
        let mut told = Vec::new();
        neighbours
            .tell_stock(SystemTime::now(), |key, (nat, ..)| told.push((*key, nat.unwrap().public_address)));
        assert_eq!(told, [(key(1), Some(at(1).ip()))]);
    }
}
