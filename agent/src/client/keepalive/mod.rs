//! Keeps the tunnel's binding alive with beats: carries out what the [`Keeper`] decides, and tells it what comes back.
//!
//! It beats where there is a path and a key for it. The health machine trusts it only once a beat was answered there:
//! where beats do not pass, or the gateway is too old for them, probes inside the tunnel go on.

mod blocked_port;
mod churn_log;
mod ledger;
mod lifetime_cache;
mod nat_discovery;
mod report;
mod sockets;

use std::{
    collections::{HashMap, VecDeque},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use pinhole_proto::v1;
use tokio::sync::mpsc;

use self::{
    blocked_port::{Answered, BlockedPortCheck},
    churn_log::ChurnLog,
    ledger::{Ledger, Read},
    lifetime_cache::{LearntAt, LifetimeCache},
    nat_discovery::NatDiscovery,
    sockets::{FIRST_SOCKET, Sockets},
};
pub(super) use self::{churn_log::Change, sockets::Arrival};
use super::{memory::SAVE_PAUSE, sleeper::Keeping};
use crate::{
    entropy,
    identity::Store,
    nat::{
        Action, Beat, Behaviour, Binding, Cause, Channel, Churn, Confidence, Finding, Guidance, Keeper, Path,
        Payload, Policy, Prior, Radio, Reason, Reply, Stats,
        wire::{self, Answer, BeatKey},
    },
    tunnel::{PeerStats, PublicKey},
};

/// Keys of one replica that are good.
const KEYS: usize = 2;
/// A poke is of no use while beats are under way anyway.
const POKE_PAUSE: Duration = Duration::from_secs(4);

/// A path that carries the tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TunnelPath {
    /// To whom.
    pub(super) replica: PublicKey,
    /// Where that is.
    pub(super) endpoint: SocketAddr,
    /// Other ip:ports of the same replica.
    pub(super) others: Vec<SocketAddr>,
    /// From which local address.
    pub(super) source: IpAddr,
    /// And port.
    pub(super) port: u16,
    /// In which network, as [`local_network`](super::network::local_network) names it.
    pub(super) network: String,
}

impl TunnelPath {
    /// Whether what was learnt of one holds for the other.
    fn is_like(&self, other: &TunnelPath) -> bool {
        (self.replica, self.endpoint, self.source) == (other.replica, other.endpoint, other.source)
            && self.network == other.network
    }

    fn local(&self) -> SocketAddr {
        SocketAddr::new(self.source, self.port)
    }
}

/// What the owner has to do.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Send this from the tunnel's own socket.
    Beat(PublicKey, Vec<u8>),
    /// Send an authenticated tunnel packet.
    Prove(PublicKey),
    /// The path carried a beat and its answer.
    Confirmed(Duration),
    /// The path does not answer.
    Lost,
    /// The gateway has started anew.
    Restarted(PublicKey),
}

/// How far beats can be trusted on the present path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trust {
    /// None was answered yet.
    Untried,
    /// They are answered.
    Proven,
    /// They were, and the owner looks for another path.
    Lost,
}

/// What is to be told with the first answer on a new path.
#[derive(Debug, Clone, Copy)]
struct Moved {
    cause: Cause,
    from: Option<SocketAddr>,
    last_heard: Option<Instant>,
}

pub(super) struct KeepaliveDriver {
    policy: Policy,
    enabled: bool,
    keeping: Keeping,
    keys: HashMap<PublicKey, VecDeque<BeatKey>>,
    keeper: Option<Keeper>,
    /// What a replica advised before there was a path to it.
    guidance: Option<(PublicKey, Guidance)>,
    way: Option<TunnelPath>,
    /// What the keeper's knowledge is of.
    learnt_on: Option<TunnelPath>,
    /// The public address that the prior in use was of.
    assumed: Option<IpAddr>,
    trust: Trust,
    moved: Option<Moved>,
    observed: Option<SocketAddr>,
    altered: bool,
    ledger: Ledger,
    radio: Arc<Radio>,
    sockets: Sockets,
    discovery: Option<NatDiscovery>,
    blocked_port: Option<BlockedPortCheck>,
    /// The network in which a port of the gateway is shut.
    shut: Option<String>,
    store: Store,
    lifetimes: LifetimeCache,
    unsaved: Option<Instant>,
    binding: (Binding, SystemTime),
    churn_log: ChurnLog,
    began: (Instant, SystemTime),
    beaten: Option<Instant>,
    heard: Option<Instant>,
    clock: Instant,
    steps: VecDeque<Step>,
}

impl KeepaliveDriver {
    /// Nothing to keep yet. What comes to the sockets of experiments goes to `arrivals`, for
    /// [`Self::handle_arrival`].
    pub(super) fn new(
        policy: Policy,
        store: Store,
        arrivals: mpsc::Sender<Arrival>,
        fwmark: u32,
        radio: Arc<Radio>,
    ) -> Self {
        let (now, wall) = (Instant::now(), SystemTime::now());
        KeepaliveDriver {
            policy,
            enabled: true,
            keeping: Keeping::Always,
            keys: HashMap::new(),
            keeper: None,
            guidance: None,
            way: None,
            learnt_on: None,
            assumed: None,
            trust: Trust::Untried,
            moved: None,
            observed: None,
            altered: false,
            ledger: Ledger::default(),
            sockets: Sockets::new(arrivals, fwmark, Arc::clone(&radio)),
            radio,
            discovery: None,
            blocked_port: None,
            shut: None,
            lifetimes: LifetimeCache::load(&store),
            store,
            unsaved: None,
            binding: (Binding::default(), wall),
            churn_log: ChurnLog::new(wall),
            began: (now, wall),
            beaten: None,
            heard: None,
            clock: now,
            steps: VecDeque::new(),
        }
    }

    /// What the user allows; not `enabled`: nothing is sent.
    pub(super) fn handle_policy(&mut self, now: Instant, policy: Policy, enabled: bool) {
        self.policy = policy;
        self.enabled = enabled;
        if let Some(keeper) = &mut self.keeper {
            keeper.handle_policy(now, policy);
        }
        if !enabled {
            self.handle_unreachable(now);
        }
        self.drain(now);
    }

    /// A gateway replica gave a key.
    pub(super) fn handle_key(&mut self, now: Instant, replica: PublicKey, key: BeatKey) {
        let keys = self.keys.entry(replica).or_default();
        keys.push_back(key);
        if keys.len() > KEYS {
            keys.pop_front();
        }
        // One that did not know the key before is asked again at once.
        if self.trust == Trust::Untried && self.way.as_ref().is_some_and(|way| way.replica == replica) {
            self.keep(now, Path::Up);
        }
        self.drain(now);
    }

    /// The tunnel works over this path, as it did the last time, or anew.
    pub(super) fn handle_way(&mut self, now: Instant, way: &TunnelPath) {
        if !self.enabled || !self.keys.contains_key(&way.replica) {
            return self.handle_unreachable(now);
        }
        if self.way.as_ref() == Some(way) && self.trust != Trust::Lost {
            return;
        }
        let former = self.learnt_on.replace(way.clone());
        let was_up = self.way.replace(way.clone()).is_some();
        match former {
            Some(former) if former.is_like(way) => {
                let rebound = was_up && former.port != way.port;
                if !rebound && was_up && self.trust != Trust::Lost {
                    return;
                }
                self.trust = Trust::Untried;
                self.keep(now, if rebound { Path::Rebound } else { Path::Up });
            }
            former => {
                if let Some(former) = former {
                    let same_gateway = (former.replica, former.endpoint) == (way.replica, way.endpoint);
                    let cause = if same_gateway { Cause::Roam } else { Cause::GatewayMoved };
                    self.moved = Some(Moved { cause, from: self.observed, last_heard: self.heard });
                }
                self.begin(now, way, None);
            }
        }
        self.drain(now);
    }

    /// There is no path that could be kept.
    pub(super) fn handle_unreachable(&mut self, now: Instant) {
        if self.way.take().is_some() {
            self.trust = Trust::Untried;
            self.keep(now, Path::Down);
            self.drain(now);
        }
    }

    /// A gateway replica advises about experiments.
    pub(super) fn handle_guidance(&mut self, now: Instant, replica: PublicKey, guidance: Guidance) {
        tracing::info!(prior = ?guidance.prior, wait = guidance.wait, "the gateway advises");
        match self.keeper.as_mut().filter(|_| self.way.as_ref().is_some_and(|way| way.replica == replica)) {
            Some(keeper) => keeper.handle_guidance(now, guidance),
            None => self.guidance = Some((replica, guidance)),
        }
        self.drain(now);
    }

    /// The gateway hears nothing on the tunnel, and says so over the session.
    pub(super) fn handle_poke(&mut self, now: Instant) {
        let busy = self.beaten.is_some_and(|at| now < at + POKE_PAUSE);
        if self.way.is_some() && !busy {
            self.keep(now, Path::Up);
            self.drain(now);
        }
    }

    /// The binding need not be kept for a while, is opened for data, or has to be kept again.
    pub(super) fn handle_keeping(&mut self, now: Instant, keeping: Keeping) {
        self.keeping = keeping;
        if self.way.is_some() {
            self.keep(now, if keeping == Keeping::Never { Path::Down } else { Path::Up });
            self.drain(now);
        }
    }

    /// UDP gets no answer, while the session stands.
    pub(super) fn handle_blocked(&mut self, now: Instant) {
        let idle = self.heard.map(|at| now.saturating_duration_since(at)).unwrap_or_default();
        self.tell(&Churn { at: now, cause: Cause::UdpBlocked, from: self.observed, to: None, idle });
    }

    /// This port of a replica was not answered, while another on the same address is, by the way in use. Whether it
    /// can be asked: it takes the key of a session with that replica.
    pub(super) fn handle_suspect(
        &mut self,
        now: Instant,
        (replica, endpoint): (PublicKey, SocketAddr),
        way: &TunnelPath,
    ) -> bool {
        let key = self.keys.get(&replica).and_then(VecDeque::back).cloned();
        let Some(key) = key else { return false };
        tracing::info!(port = endpoint.port(), "another port answers: asking the silent one again");
        self.blocked_port = Some(BlockedPortCheck::new(now, endpoint, key, way));
        true
    }

    /// What the tunnel counted for the replica; before [`Self::handle_timeout`].
    pub(super) fn handle_traffic(&mut self, now: Instant, stats: &PeerStats) {
        let now = self.advance(now);
        if self.way.as_ref().is_none_or(|way| way.replica != stats.public_key) {
            return;
        }
        let received = stats.last_data.max(stats.last_handshake);
        self.heard = self.heard.max(stats.last_receive);
        if let Some(keeper) = &mut self.keeper {
            keeper.handle_traffic(now, stats.last_answered_send, received);
        }
        self.drain(now);
    }

    /// An answer came to the tunnel's own socket.
    pub(super) fn handle_answer(&mut self, at: Instant, replica: PublicKey, answer: Answer) {
        let now = self.advance(at);
        if self.way.as_ref().is_some_and(|way| way.replica == replica) {
            self.heard = Some(now);
            self.read(now, Channel::Live, answer);
        }
        self.drain(now);
    }

    /// Something came to the socket of an experiment.
    pub(super) fn handle_arrival(&mut self, arrival: &Arrival) {
        let now = self.advance(arrival.at);
        if arrival.socket == blocked_port::SOCKET {
            let verdict = self.blocked_port.as_ref().and_then(|blocked_port| {
                blocked_port.handle_arrival(arrival, &mut self.ledger, &mut self.sockets)
            });
            return self.judge(now, verdict);
        }
        let Some(keys) = self.way.as_ref().and_then(|way| self.keys.get_mut(&way.replica)) else { return };
        let keys = keys.make_contiguous();
        if arrival.socket >= FIRST_SOCKET {
            if let Some(discovery) = &mut self.discovery {
                discovery.handle_arrival(now, arrival, keys, &mut self.ledger);
            }
        } else if let Some(answer) = keys.iter().find_map(|key| wire::decode_answer(key, &arrival.datagram)) {
            self.read(now, Channel::Probe(arrival.socket), answer);
        }
        self.drain(now);
    }

    /// When [`Self::handle_timeout`] is due.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let keeper = self.keeper.as_ref().filter(|_| self.way.is_some()).and_then(Keeper::poll_timeout);
        let discovery = self.discovery.as_ref().and_then(NatDiscovery::poll_timeout);
        let blocked_port = self.blocked_port.as_ref().map(BlockedPortCheck::poll_timeout);
        [keeper, discovery, blocked_port, self.unsaved].into_iter().flatten().min()
    }

    /// Time passed.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        let now = self.advance(now);
        if let Some(keeper) = self.keeper.as_mut().filter(|_| self.way.is_some()) {
            keeper.handle_timeout(now);
        }
        if let Some(discovery) = &mut self.discovery {
            discovery.handle_timeout(now);
        }
        let verdict = self
            .blocked_port
            .as_mut()
            .and_then(|blocked_port| blocked_port.handle_timeout(now, &mut self.ledger, &mut self.sockets));
        self.judge(now, verdict);
        if self.unsaved.is_some_and(|at| now >= at) {
            self.save();
        }
        self.drain(now);
    }

    /// The next thing to do.
    pub(super) fn poll_step(&mut self) -> Option<Step> {
        self.steps.pop_front()
    }

    /// Keeps what was learnt and not written yet.
    pub(super) fn save(&mut self) {
        if self.unsaved.take().is_some() {
            self.lifetimes.save(&self.store);
        }
    }

    /// The interval in force, once beats are answered on the present path.
    pub(super) fn interval(&self) -> Option<Duration> {
        let keeper = self.keeper.as_ref().filter(|_| self.trust == Trust::Proven)?;
        Some(keeper.interval())
    }

    /// Why the interval is that.
    pub(super) fn reason(&self) -> Reason {
        self.keeper.as_ref().map(Keeper::reason).unwrap_or_default()
    }

    /// What is known of the binding, and since when so well.
    pub(super) fn binding(&self) -> (Binding, SystemTime) {
        self.binding
    }

    /// What is known of the NATs.
    pub(super) fn behaviour(&self) -> Behaviour {
        let mut behaviour = self.discovery.as_ref().map(NatDiscovery::behaviour).unwrap_or_default();
        behaviour.public_address = behaviour.public_address.or(self.observed.map(|observed| observed.ip()));
        let shut = self.shut.is_some() && self.shut == self.way.as_ref().map(|way| way.network.clone());
        if self.altered || shut {
            behaviour.helper_interference = Finding::Yes;
        }
        behaviour
    }

    /// What was counted.
    pub(super) fn stats(&self) -> Stats {
        self.keeper.as_ref().map(Keeper::stats).unwrap_or_default()
    }

    /// Wake-ups that a static keepalive would have cost beyond those that there were.
    pub(super) fn wakes_saved(&self, now: Instant) -> i64 {
        report::wakes_saved(self.radio.bursts(), now.saturating_duration_since(self.began.0))
    }

    /// Where the gateway sees the tunnel.
    pub(super) fn observed(&self) -> Option<SocketAddr> {
        self.observed
    }

    /// How often the path changed, and how the last time.
    pub(super) fn churn(&self) -> (u64, Option<Change>) {
        (self.churn_log.count(), self.churn_log.last())
    }

    /// All of it for the gateway. `fallback` is the interval of probes, where those prove the path.
    pub(super) fn report(&self, now: Instant, fallback: Option<Duration>, state: &mut v1::ClientState) {
        let elapsed = now.saturating_duration_since(self.began.0);
        let since = (self.began.1, elapsed);
        let choice = (self.policy.mode, self.reason());
        let interval = self.interval().or(fallback);
        // Whatever the agent sent or heard, not the keeper alone.
        let counts = Stats { bursts: self.radio.bursts(), ..self.stats() };
        state.keepalive = interval.map(|interval| report::keepalive(interval, choice, &counts, since));
        state.churn = Some(self.churn_log.to_wire());
        if self.keeper.is_some() {
            state.nat = Some(report::nat(&self.behaviour()));
            state.binding = Some(report::binding(&self.binding.0, self.binding.1));
        }
    }

    fn advance(&mut self, now: Instant) -> Instant {
        // Packets are stamped by other threads.
        self.clock = self.clock.max(now);
        self.clock
    }

    /// Begins on a path of which nothing is known but what was kept.
    fn begin(&mut self, now: Instant, way: &TunnelPath, public: Option<IpAddr>) {
        let known = self.lifetimes.prior(SystemTime::now(), &way.network, way.endpoint, public);
        self.assumed = known.map(|(public, _)| public);
        let prior: Option<Prior> = known.map(|(_, prior)| prior);
        self.trust = Trust::Untried;
        self.altered = false;
        self.discovery = None;
        if self.keeper.is_some() {
            self.keep(now, Path::Fresh { prior });
        } else {
            let seed = entropy::jitter().next_u64();
            self.keeper = Some(Keeper::new(now, self.policy, prior, seed));
        }
        let guidance = self.guidance.take().filter(|(replica, _)| *replica == way.replica);
        if let (Some((_, guidance)), Some(keeper)) = (guidance, &mut self.keeper) {
            keeper.handle_guidance(now, guidance);
        }
    }

    fn keep(&mut self, now: Instant, path: Path) {
        let now = self.advance(now);
        if let Some(keeper) = &mut self.keeper {
            tracing::debug!(?path, "path");
            keeper.handle_path(now, path);
        }
    }

    fn read(&mut self, now: Instant, channel: Channel, answer: Answer) {
        let Some((read, restarted)) = self.ledger.read(channel, answer) else { return };
        if restarted {
            // It has forgotten the wakes that it was asked for: nothing can be concluded from their absence.
            tracing::info!("the gateway has started anew");
            let replica = self.way.as_ref().map(|way| way.replica);
            self.steps.extend(replica.map(Step::Restarted));
            self.keep(now, Path::Down);
            self.keep(now, Path::Up);
        }
        let Some(keeper) = &mut self.keeper else { return };
        match read {
            Read::Refused => {}
            Read::Wake(wake) => {
                tracing::trace!(?wake, "woken");
                keeper.handle_wake(now, wake);
            }
            Read::Reply { reply, payload } => {
                keeper.handle_reply(now, reply);
                self.look_at(now, &reply, payload);
            }
        }
    }

    fn look_at(&mut self, now: Instant, reply: &Reply, payload: Payload) {
        if payload == Payload::Altered && !std::mem::replace(&mut self.altered, true) {
            let at = Some(reply.observed);
            self.tell(&Churn {
                at: now,
                cause: Cause::HelperInterference,
                from: at,
                to: at,
                idle: Duration::ZERO,
            });
        }
        if reply.channel != Channel::Live {
            return;
        }
        let before = self.observed.replace(reply.observed);
        if let Some(Moved { cause, from, last_heard }) = self.moved.take() {
            let idle = last_heard.map(|at| now.saturating_duration_since(at)).unwrap_or_default();
            self.tell(&Churn { at: now, cause, from, to: Some(reply.observed), idle });
        }
        if before.map(|before| before.ip()) != Some(reply.observed.ip()) {
            self.settle_in(now, reply.observed.ip());
        }
    }

    /// The public address is known, or another: what was kept for it counts, and nothing that was kept for others.
    fn settle_in(&mut self, now: Instant, public: IpAddr) {
        let Some(way) = self.way.clone() else { return };
        if self.assumed.take().is_some_and(|assumed| assumed != public) {
            self.begin(now, &way, Some(public));
        }
    }

    fn judge(&mut self, now: Instant, verdict: Option<Answered>) {
        let Some(verdict) = verdict else { return };
        let Some(blocked_port) = self.blocked_port.take().filter(|_| verdict == Answered::Shut) else {
            return;
        };
        let network = blocked_port.into_network();
        if self.shut.replace(network.clone()) != Some(network) {
            let (cause, to) = (Cause::HelperInterference, self.observed);
            self.tell(&Churn { at: now, cause, from: None, to, idle: Duration::ZERO });
        }
    }

    fn drain(&mut self, now: Instant) {
        self.act(now);
        self.learn(now);
        let Some((way, key)) = self.present() else { return };
        if self.trust == Trust::Proven && self.discovery.is_none() {
            let gateways: Vec<_> = [way.endpoint].into_iter().chain(way.others).collect();
            self.discovery = Some(NatDiscovery::new(now, way.source, &gateways));
        }
        if let Some(discovery) = &mut self.discovery {
            discovery.act(&key, &mut self.ledger, &mut self.sockets);
        }
    }

    fn present(&self) -> Option<(TunnelPath, BeatKey)> {
        let way = self.way.clone()?;
        let key = self.keys.get(&way.replica)?.back()?.clone();
        Some((way, key))
    }

    fn act(&mut self, now: Instant) {
        while let Some(action) = self.keeper.as_mut().and_then(Keeper::poll_action) {
            match action {
                Action::Send(beat) => self.send(now, &beat),
                Action::Close(channel) => {
                    if let Channel::Probe(number) = channel {
                        self.sockets.close(number);
                    }
                    self.ledger.close(channel);
                }
                Action::Prove => {
                    let replica = self.way.as_ref().map(|way| way.replica);
                    self.steps.extend(replica.map(Step::Prove));
                }
                Action::Confirmed { rtt } => {
                    self.trust = Trust::Proven;
                    self.steps.push_back(Step::Confirmed(rtt));
                }
                Action::Lost if self.trust == Trust::Proven => {
                    self.trust = Trust::Lost;
                    self.steps.push_back(Step::Lost);
                }
                Action::Lost => {}
                Action::Event(churn) => self.tell(&churn),
            }
        }
    }

    fn send(&mut self, now: Instant, beat: &Beat) {
        let Some((way, key)) = self.present() else { return };
        match beat.channel {
            Channel::Live => {
                self.beaten = Some(now);
                tracing::trace!(?beat, "sent");
                // Who sleeps again by then is not to be woken.
                let wake = beat.wake.filter(|_| self.keeping == Keeping::Always);
                let datagram = self.ledger.write(&key, &Beat { wake, ..*beat }, way.local());
                self.steps.push_back(Step::Beat(way.replica, datagram));
            }
            Channel::Probe(number) => {
                let Some(port) = self.sockets.port(number, way.endpoint) else { return };
                let datagram = self.ledger.write(&key, beat, SocketAddr::new(way.source, port));
                self.sockets.send(number, way.endpoint, &datagram);
            }
        }
    }

    fn tell(&mut self, churn: &Churn) {
        tracing::info!(cause = churn.cause.name(), idle = churn.idle.as_secs(), "the path changed");
        tracing::debug!(from = ?churn.from, to = ?churn.to, "the path changed");
        self.churn_log.push(SystemTime::now(), churn);
    }

    /// Takes over what the keeper has learnt meanwhile.
    fn learn(&mut self, now: Instant) {
        let Some(binding) = self.keeper.as_ref().map(Keeper::binding) else { return };
        if self.binding.0 == binding {
            return;
        }
        let since =
            if self.binding.0.confidence == binding.confidence { self.binding.1 } else { SystemTime::now() };
        self.binding = (binding, since);
        if let Some(discovery) = &mut self.discovery {
            discovery.handle_promotion(binding.promotion);
        }
        let (Some(way), Some(observed)) = (&self.way, self.observed) else { return };
        if binding.confidence < Confidence::Bracketed {
            return;
        }
        let place = LearntAt { network: way.network.clone(), public: observed.ip(), gateway: way.endpoint };
        if self.lifetimes.keep(SystemTime::now(), place, &binding) {
            self.unsaved.get_or_insert(now + SAVE_PAUSE);
        }
    }
}

#[cfg(test)]
mod tests;
