//! The control loop: the only place where tunnel, health, sessions and reports meet.

#[cfg(test)]
mod ended;
#[cfg(test)]
mod hostile;
mod restart;
#[cfg(test)]
mod shared;

use std::{
    collections::HashMap,
    net::SocketAddr,
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use futures::FutureExt as _;
use ipnet::IpNet;
use pinhole_proto::v1;
use tokio::{
    sync::{mpsc, watch},
    time::sleep_until,
};
use tokio_util::sync::CancellationToken;

use self::restart::Restarts;
use super::{
    GatewayError,
    access::{self, NetworkAccess},
    command::{Command, Opened, Readiness, Word},
    desired::{Agent, Desired},
    ends::Ends,
    faults::Faults,
    link::Running,
    metrics::{Counters, Gauges, Nats, render},
    nat_state::{Move, NatState, canonical},
    neighbours::{Finding, Neighbours, guidance_to_wire},
    proof::{Prober, Way},
    report::{Observation, Reporter},
    session::Served,
    shared_keys::{Seen, SharedKeys},
    stale::{Fate, Stale},
    told::{Asked, Instance, Told},
};
use crate::{
    clock::Skew,
    health::{
        Phase, Reach,
        gateway::{GatewayHealth, Sample},
    },
    nat::{
        Beat,
        wire::{self, BeatKey},
    },
    tunnel::{
        Offloads, PeerConfig, PeerStats, PrivateKey, PublicKey, Threads, Tunnel, TunnelConfig, TunnelEvent,
    },
    uapi::{Device, HandshakeClock, Question, answer_read_only},
};

/// The data path is proven again this long after the last authenticated client packet or own proof.
const PROOF_INTERVAL: Duration = Duration::from_secs(30);
const PROOF_RETRY: Duration = Duration::from_secs(2);
/// How old the last proof may be for the gateway to be ready: three intervals.
const PROOF_LIFETIME: Duration = Duration::from_secs(90);
/// The counters of all peers are read at most this often.
const SAMPLE: Duration = Duration::from_millis(100);
/// A client is poked at most this often.
const POKE_PAUSE: Duration = Duration::from_secs(5);
/// A client is told that its handshakes are dropped at most this often.
const WARNING_PAUSE: Duration = Duration::from_secs(2);
const TUNNEL_RETRY: Duration = Duration::from_secs(10);
const EVENTS: usize = 8192;

/// What the loop is made with.
pub(super) struct Setup {
    pub(super) private_key: PrivateKey,
    pub(super) prober: Prober,
    pub(super) listen_port: u16,
    pub(super) tun_name: String,
    pub(super) threads: Threads,
    pub(super) uplink: Option<String>,
    pub(super) pod_address: SocketAddr,
    pub(super) served: watch::Sender<Served>,
    pub(super) running: watch::Sender<Running>,
    pub(super) snapshot: watch::Sender<Option<v1::DesiredState>>,
    pub(super) control: mpsc::Sender<Command>,
    pub(super) faults: Faults,
}

/// What the loop is told.
pub(super) struct Inputs {
    pub(super) commands: mpsc::Receiver<Command>,
    pub(super) events: mpsc::Receiver<TunnelEvent>,
    pub(super) questions: mpsc::Receiver<Question>,
}

#[derive(Debug, Clone, Copy)]
struct Proof {
    at: Instant,
    by: v1::PathProof,
}

/// A client's session stream.
struct Attached {
    session: u64,
    /// For a tunnel that is not there yet.
    key: Option<BeatKey>,
    /// Which process holds it, where that says so.
    instance: Option<Instance>,
    /// How far its clock is from ours.
    skew: Option<Skew>,
    words: mpsc::Sender<Word>,
    poked: Option<Instant>,
    /// When it was told that its handshakes are not new.
    warned: Option<Instant>,
    /// How often it was recalled.
    recalls: u64,
    /// It was called to the tunnel, and has not come yet as far as is known.
    called: bool,
}

impl Attached {
    /// Asks the client over UDP to make its session anew: what it is to be told does not get through.
    fn recall(&mut self, tunnel: &Tunnel, peer: &PublicKey) {
        let Some(key) = &self.key else { return };
        self.recalls += 1;
        tunnel.beat(peer, wire::encode_recall(key, self.recalls));
    }
}

/// The stream to the operator.
struct Operator {
    outbox: mpsc::Sender<v1::GatewayMessage>,
    reporter: Reporter,
}

pub(super) struct Control {
    setup: Setup,
    tunnel: Option<Tunnel>,
    tunnel_failure: Option<v1::Impairment>,
    /// Own inner addresses that this node cannot have.
    without: Vec<IpNet>,
    tunnel_retry: Option<Instant>,
    events: mpsc::Sender<TunnelEvent>,
    /// What is in force.
    desired: Option<Arc<Desired>>,
    ends: Ends,
    health: GatewayHealth<PublicKey>,
    access: NetworkAccess,
    operator: Option<Operator>,
    sessions: HashMap<PublicKey, Attached>,
    /// Clients that run an agent, with the keepalive interval that it told.
    agents: HashMap<PublicKey, Agent>,
    /// Clients that once let their binding go, after how long a silence.
    sleepers: HashMap<PublicKey, Duration>,
    changes: HashMap<PublicKey, v1::EndpointChange>,
    /// What of each client's account is in the sums.
    accounted: HashMap<PublicKey, Reach>,
    nat_states: HashMap<PublicKey, Arc<NatState>>,
    neighbours: Neighbours,
    shared_keys: SharedKeys,
    oversized: bool,
    client_receive: Option<Instant>,
    own_proof: Option<Proof>,
    proving: bool,
    next_proof: Option<Instant>,
    sampled: Option<Instant>,
    stats: Vec<PeerStats>,
    counters: Counters,
    handshakes: HandshakeClock,
    stale: Stale,
    restarts: Restarts,
    /// Grows when all that hangs on the control is to be made anew.
    lives: u64,
}

impl Control {
    pub(super) fn new(setup: Setup) -> (Self, mpsc::Receiver<TunnelEvent>) {
        let (events, receiver) = mpsc::channel(EVENTS);
        let neighbours = Neighbours::new(setup.listen_port);
        let control = Control {
            setup,
            tunnel: None,
            tunnel_failure: None,
            without: Vec::new(),
            tunnel_retry: None,
            events,
            desired: None,
            ends: Ends::default(),
            health: GatewayHealth::new(),
            access: NetworkAccess::default(),
            operator: None,
            sessions: HashMap::new(),
            agents: HashMap::new(),
            sleepers: HashMap::new(),
            changes: HashMap::new(),
            accounted: HashMap::new(),
            nat_states: HashMap::new(),
            neighbours,
            shared_keys: SharedKeys::default(),
            oversized: false,
            client_receive: None,
            own_proof: None,
            proving: false,
            next_proof: None,
            sampled: None,
            stats: Vec::new(),
            counters: Counters::default(),
            handshakes: HandshakeClock::default(),
            stale: Stale::default(),
            restarts: Restarts::default(),
            lives: 0,
        };
        (control, receiver)
    }

    /// Works until `stop`, or until the data plane ends.
    async fn turn(&mut self, inputs: &mut Inputs, stop: &CancellationToken) -> Result<(), GatewayError> {
        let Inputs { commands, events, questions } = inputs;
        loop {
            let wake = self.next_timeout();
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                Some(event) = events.recv() => {
                    if let TunnelEvent::Stopped { reason } = event {
                        tracing::error!(reason, "the data plane ended");
                        return Err(crate::tunnel::TunnelError::Stopped.into());
                    }
                    self.handle_event(Instant::now(), &event);
                }
                Some(command) = commands.recv() => self.handle_command(Instant::now(), command),
                Some(question) = questions.recv() => answer_read_only(question, || self.device()),
                () = sleep_until(wake.into()) => {}
            }
            self.handle_time(Instant::now());
        }
    }

    /// Takes back what was set up in the kernel.
    pub(super) fn shut_down(&mut self) {
        let Some(tunnel) = self.tunnel.take() else { return };
        self.access.remove(tunnel.name());
        tunnel.shutdown();
    }

    /// Applies a snapshot, the newest one or the one kept from before.
    pub(super) fn apply(&mut self, wire: v1::DesiredState) -> Result<(), GatewayError> {
        let keep = wire.clone();
        let (desired, problem) = Desired::parse(wire)?;
        let now = Instant::now();
        let desired = self.ends.take(now, SystemTime::now(), desired);
        self.adopt(now, &desired);
        let result = self.apply_tunnel(&desired);
        self.serve(&desired);
        self.setup.running.send_replace(Running {
            revision: desired.revision,
            ca_pem: desired.ca_pem.clone(),
            pools: desired.pools.iter().filter_map(|pool| pool.wire.pool.clone()).collect(),
            lives: self.lives,
        });
        self.setup.snapshot.send_replace(Some(keep));
        self.changed(now);
        result?;
        self.counters.desired_applied += 1;
        problem.map_or(Ok(()), Err)
    }

    /// Has sessions go by it.
    fn serve(&self, desired: &Arc<Desired>) {
        let ended = self.ends.passed();
        self.setup.served.send_modify(|served| served.take(Arc::clone(desired), ended));
    }

    /// Ends what has come to its end, with the operator or without.
    fn handle_ends(&mut self, now: Instant, wall: SystemTime) {
        let Some(desired) = self.ends.handle_timeout(now, wall) else { return };
        tracing::info!(clients = desired.peers.len(), "clients came to their end, or the clock was set");
        self.adopt(now, &desired);
        if self.tunnel.is_some() {
            // What fails is told with the next report, and tried again.
            let _ = self.apply_tunnel(&desired);
        }
        self.serve(&desired);
        self.changed(now);
    }

    /// Goes by another snapshot from now on. Nothing is kept of clients that it does not have.
    fn adopt(&mut self, now: Instant, desired: &Arc<Desired>) {
        self.changes.retain(|key, _| desired.peers.contains_key(key));
        self.sleepers.retain(|key, _| desired.peers.contains_key(key));
        self.nat_states.retain(|key, _| desired.peers.contains_key(key));
        for key in desired.peers.keys() {
            self.nat_states.entry(*key).or_insert_with(|| Arc::new(NatState::new(SystemTime::now())));
        }
        self.agents.retain(|key, _| desired.peers.contains_key(key));
        self.shared_keys.retain(|key| desired.peers.contains_key(key));
        self.shared_keys.handle_operator(now, desired.shared_keys());
        self.stale.retain(|key| desired.peers.contains_key(key));
        self.neighbours.handle_clients(now, desired, |key| self.agents.contains_key(key));
        self.health.handle_peers(now, &desired.expectations(&self.agents));
        self.counters.keep_pools(desired);
        self.desired = Some(Arc::clone(desired));
    }

    fn apply_tunnel(&mut self, desired: &Desired) -> Result<(), GatewayError> {
        let result = self.try_tunnel(desired);
        self.tunnel_failure = result.as_ref().err().map(|error| v1::Impairment {
            category: error.category().to_owned(),
            message: error.to_string(),
        });
        self.tunnel_retry = result.is_err().then(|| Instant::now() + TUNNEL_RETRY);
        result
    }

    fn try_tunnel(&mut self, desired: &Desired) -> Result<(), GatewayError> {
        let is_new = self.tunnel.is_none();
        if is_new {
            let config = TunnelConfig {
                private_key: self.setup.private_key.clone(),
                listen_port: self.setup.listen_port,
                tun_name: self.setup.tun_name.clone(),
                addresses: desired.tunnel_addresses.clone(),
                mtu: desired.mtu,
                fwmark: None,
                offloads: Offloads::ALL,
                threads: self.setup.threads,
            };
            self.tunnel = Some(Tunnel::start(config, self.events.clone())?);
            self.next_proof = Some(Instant::now());
            tracing::info!(device = self.setup.tun_name, port = self.setup.listen_port, "the tunnel is up");
        }
        let Some(tunnel) = &self.tunnel else { return Ok(()) };
        let mut peers = desired.tunnel_peers(&access::local_addresses());
        peers.push(PeerConfig {
            public_key: self.setup.prober.public_key(),
            preshared_key: None,
            allowed_ips: Vec::new(),
            endpoints: Vec::new(),
            destinations: None,
        });
        // A mapping of its session that was lost in silence must not keep a client from hearing that it is cut. Later it
        // could not be reached any more.
        for (peer, attached) in &mut self.sessions {
            if !desired.peers.contains_key(peer) {
                attached.recall(tunnel, peer);
            }
        }
        // The first clients find the filter in place. Later, first of all: one that lost its right is cut even when something
        // below fails.
        if is_new {
            self.access.apply(desired, (tunnel.name(), tunnel.index()), self.setup.uplink.as_deref());
        }
        tunnel.set_peers(peers);
        if is_new {
            for (peer, attached) in &self.sessions {
                let _ = attached.key.as_ref().map(|key| tunnel.answer_beats(peer, key));
            }
        }
        self.access.apply(desired, (tunnel.name(), tunnel.index()), self.setup.uplink.as_deref());
        self.without = tunnel.set_addresses(&desired.tunnel_addresses)?;
        Ok(())
    }

    /// What `wg show` is told.
    fn device(&mut self) -> Device {
        let (Some(tunnel), Some(desired)) = (&self.tunnel, &self.desired) else { return Device::default() };
        let peers = desired.tunnel_peers(&[]);
        Device::without_secrets(tunnel.local_port(), peers, &tunnel.stats(), &mut self.handshakes)
    }

    fn next_timeout(&self) -> Instant {
        let now = Instant::now();
        let earliest = self.sampled.map_or(now, |at| at + SAMPLE);
        let due = [
            self.operator.as_ref().map(|operator| operator.reporter.poll_timeout()),
            self.health.poll_timeout(),
            self.neighbours.poll_timeout(),
            self.shared_keys.poll_timeout(),
            self.ends.poll_timeout(),
            self.next_proof.filter(|_| !self.proving),
            self.tunnel_retry,
        ];
        let due = due.into_iter().flatten().min().unwrap_or(now + PROOF_INTERVAL);
        due.max(earliest)
    }

    fn handle_command(&mut self, now: Instant, command: Command) {
        match command {
            Command::Desired(desired) => self.handle_desired(*desired),
            Command::LinkUp { outbox } => {
                self.operator = Some(Operator { outbox, reporter: Reporter::new(now) });
                self.setup.served.send_modify(|served| served.attached = Some(now));
            }
            Command::LinkDown => {
                self.operator = None;
                self.setup.served.send_modify(|served| served.attached = None);
            }
            Command::SessionOpened(opened) => {
                let Opened { peer, session, key, source, instance, words } = *opened;
                self.shared_keys.handle_attached(now, peer, instance, source);
                if let (Some(tunnel), Some(key)) = (&self.tunnel, &key) {
                    tunnel.answer_beats(&peer, key);
                }
                self.sessions.insert(
                    peer,
                    Attached {
                        session,
                        key,
                        instance,
                        skew: None,
                        words,
                        poked: None,
                        warned: None,
                        recalls: 0,
                        called: false,
                    },
                );
                self.expect(now, peer, Agent::Silent);
                if self.shared_keys.is_told(&peer) {
                    self.say_shared(&peer, true);
                }
                if self.shared_keys.shared(&peer).is_none() {
                    self.neighbours.handle_attached(now, peer, source);
                }
                self.changed(now);
            }
            Command::SessionTold { peer, told } => self.handle_told(now, peer, &told),
            Command::SessionRests { peer, session, asked } => self.handle_rest(now, peer, session, asked),
            Command::SessionStirred { peer, wake_after } => self.health.handle_stir(now, &peer, wake_after),
            Command::SessionDoubtful { peer, session } => {
                let attached = self.sessions.get_mut(&peer).filter(|attached| attached.session == session);
                if let (Some(tunnel), Some(attached)) = (&self.tunnel, attached) {
                    attached.recall(tunnel, &peer);
                    self.counters.recalls += 1;
                }
            }
            Command::SessionAnew { peer, session } => self.take_older(&peer, session),
            Command::SessionClock { peer, session, skew } => {
                let attached = self.sessions.get_mut(&peer).filter(|attached| attached.session == session);
                if let Some(attached) = attached {
                    attached.skew = Some(skew);
                    self.changed(now);
                }
            }
            Command::SessionClosed { peer, session } => {
                if self.sessions.get(&peer).is_some_and(|attached| attached.session == session) {
                    self.sessions.remove(&peer);
                    // Nobody could wake it any more.
                    if let Some(tunnel) = &self.tunnel {
                        tunnel.hold_after(&peer, None);
                    }
                    self.neighbours.handle_detached(now, &peer);
                    self.health.handle_session_end(now, &peer);
                    self.changed(now);
                }
            }
            Command::Proof(way) => self.handle_proof(now, way),
            #[cfg(debug_assertions)]
            Command::Fault => panic!("a fault was asked for"),
            #[cfg(debug_assertions)]
            Command::FaultOfTunnel => {
                let _ = self.tunnel.as_ref().map(Tunnel::fault);
            }
            Command::Ready(answer) => {
                let _ = answer.send(self.readiness(now));
            }
            Command::Metrics(answer) => {
                self.sample(now);
                self.account(now);
                self.settle();
                let _ = answer.send(render(&self.counters, &self.gauges(now)));
            }
        }
    }

    fn handle_told(&mut self, now: Instant, peer: PublicKey, told: &Told) {
        if self.shared_keys.shared(&peer).is_some() && told.measures() {
            // Each took the other's packets for losses of its own.
            return self.handle_told(now, peer, &told.without_measurements());
        }
        if told.keeps_its_binding() && self.health.handle_awake(now, &peer) {
            self.changed(now);
        }
        let interval = told.keepalive.and_then(|keepalive| keepalive.interval);
        // Whatever it says, it is not called connected for hours.
        let agent = interval.map_or(Agent::Silent, |interval| Agent::Keeps(interval.min(Beat::LONGEST_WAKE)));
        self.expect(now, peer, agent);
        let news = self.learn(&peer, |nat_state| {
            let before = nat_state.version();
            let costs = nat_state.handle_told(SystemTime::now(), told);
            (nat_state.version() != before, costs)
        });
        let (news, costs) = news.unwrap_or_default();
        self.counters.spent(costs);
        if let Some(nat_state) = self.nat_states.get(&peer) {
            self.neighbours.handle_told(now, peer, told, nat_state);
        }
        // A word for its path that is newer than this gateway changes nothing of what is seen from here.
        if told.phase.is_some_and(|phase| self.health.handle_told(now, &peer, phase)) || news {
            self.changed(now);
        }
    }

    /// A client goes to sleep on its session, or does not say when it would.
    fn handle_rest(&mut self, now: Instant, peer: PublicKey, session: u64, asked: Asked) {
        let is_current = self.sessions.get(&peer).is_some_and(|attached| attached.session == session);
        let (Some(tunnel), Some(hold_after), true) = (&self.tunnel, asked.hold_after, is_current) else {
            return;
        };
        self.sleepers.insert(peer, hold_after);
        tunnel.hold_after(&peer, Some(hold_after));
        if self.health.handle_rest(now, &peer, asked.wake_after) {
            self.changed(now);
        }
    }

    /// Packets are held for a client: its session brings it the initiation.
    fn wake(&mut self, peer: &PublicKey, initiation: &[u8]) {
        let Some(attached) = self.sessions.get_mut(peer) else { return };
        if attached.words.try_send(Word::Poke(Some(initiation.into()))).is_ok() {
            attached.called = true;
            self.counters.session_wakes += 1;
        }
    }

    /// A client did not come in time, which is its fault only if it was called at all.
    fn not_woken(&mut self, now: Instant, peer: &PublicKey) {
        let called = self.sessions.get_mut(peer).is_some_and(|attached| std::mem::take(&mut attached.called));
        self.counters.not_woken += 1;
        if called && self.health.handle_awake(now, peer) {
            self.changed(now);
        }
    }

    /// A client's handshake is not newer than one before. Only the client knows whether that one was its own: its session asks it.
    fn handle_stale(&mut self, now: Instant, peer: &PublicKey) {
        if *peer == self.setup.prober.public_key() {
            // The clock of this very process went back.
            let _ = self.tunnel.as_ref().map(|tunnel| tunnel.begin_anew(peer));
            return;
        }
        let is_asked = self.sessions.contains_key(peer);
        if self.stale.handle_stale(now, *peer, is_asked) {
            let _ = self.tunnel.as_ref().map(|tunnel| tunnel.call_back(peer));
            self.counters.called_back += 1;
            self.changed(now);
        }
        let Some(attached) = self.sessions.get_mut(peer) else { return };
        if attached.warned.is_some_and(|at| now < at + WARNING_PAUSE) {
            return;
        }
        attached.warned = Some(now);
        let _ = attached.words.try_send(Word::Clock { stale: true });
    }

    /// What becomes of a client's handshakes that are not new. One that is connected all the same has others: somebody plays old ones
    /// back.
    fn fate(&self, now: Instant, peer: &PublicKey) -> Option<Fate> {
        let fate = self.stale.fate(now, peer)?;
        (fate == Fate::CalledBack || self.health.phase(peer) != Phase::Connected).then_some(fate)
    }

    /// A client says that they are its own, by its certificate.
    fn take_older(&mut self, peer: &PublicKey, session: u64) {
        let attached = self.sessions.get_mut(peer).filter(|attached| attached.session == session);
        if let (Some(tunnel), Some(attached)) = (&self.tunnel, attached) {
            tunnel.begin_anew(peer);
            self.counters.begun_anew += 1;
            let _ = attached.words.try_send(Word::Clock { stale: false });
        }
    }

    /// Whether a client's binding ended because it sleeps, as it was silent for `idle`.
    fn slept(&self, peer: &PublicKey, idle: Option<Duration>) -> bool {
        self.sleepers.get(peer).zip(idle).is_some_and(|(after, idle)| idle > *after)
    }

    /// Adds to what is known of a client's NAT.
    fn learn<T>(&mut self, peer: &PublicKey, learn: impl FnOnce(&mut NatState) -> T) -> Option<T> {
        self.nat_states.get_mut(peer).map(|nat_state| learn(Arc::make_mut(nat_state)))
    }

    /// Adds up for how long clients were proven reachable, by pool.
    fn account(&mut self, now: Instant) {
        self.health.account(now);
        let Some(desired) = &self.desired else { return };
        self.accounted.retain(|key, _| desired.peers.contains_key(key));
        for (key, peer) in &desired.peers {
            let Some(pool) = desired.pools.get(peer.pool).and_then(|pool| pool.wire.pool.as_ref()) else {
                continue;
            };
            if let Some(wake) = self.nat_states.get(key).and_then(|nat_state| nat_state.worst_wake()) {
                let worst = self.counters.worst_wakes.entry(pool.name.clone()).or_default();
                *worst = wake.max(*worst);
            }
            let reach = self.health.reach(key);
            let before = self.accounted.insert(*key, reach).unwrap_or_default();
            if reach != before {
                self.counters.reached(&pool.name, &reach.since(&before));
            }
        }
    }

    /// Counts the causes of moves that are certain by now.
    fn settle(&mut self) {
        let now = SystemTime::now();
        let settling = self.nat_states.values_mut().filter(|nat_state| nat_state.is_settling());
        for nat_state in settling {
            for (cause, times) in Arc::make_mut(nat_state).take_settled(now).list() {
                let count = self.counters.churn.entry(cause).or_default();
                *count = count.saturating_add(times);
            }
        }
    }

    /// Asks a client's agent for a sign of life on the tunnel.
    fn poke(&mut self, now: Instant, peer: &PublicKey) {
        let Some(attached) = self.sessions.get_mut(peer) else { return };
        if attached.poked.is_some_and(|at| now < at + POKE_PAUSE) {
            return;
        }
        attached.poked = Some(now);
        if attached.words.try_send(Word::Poke(None)).is_ok() {
            self.counters.pokes += 1;
        }
    }

    /// A client runs an agent.
    fn expect(&mut self, now: Instant, peer: PublicKey, agent: Agent) {
        if self.agents.insert(peer, agent) == Some(agent) {
            return;
        }
        let Some(desired) = &self.desired else { return };
        let expectation = desired.expectation(&peer, Some(agent));
        self.health.handle_expectation(now, &peer, expectation);
    }

    fn handle_desired(&mut self, desired: v1::DesiredState) {
        let (revision, clients) = (desired.revision, desired.peers.len());
        let result = self.apply(desired);
        let ack = match &result {
            Ok(()) => {
                tracing::info!(revision, clients, "applied the desired state");
                v1::Ack { revision, ..Default::default() }
            }
            Err(error) => {
                tracing::warn!(revision, %error, category = error.category(), "could not apply all of the desired state");
                *self.counters.desired_errors.entry(error.category()).or_default() += 1;
                v1::Ack { revision, error: error.to_string(), category: error.category().to_owned() }
            }
        };
        self.tell(v1::gateway_message::Message::Ack(ack));
    }

    fn handle_event(&mut self, now: Instant, event: &TunnelEvent) {
        match *event {
            TunnelEvent::HandshakeCompleted { peer, initiated } => {
                self.counters.handshakes += 1;
                if self.stale.handle_completed(now, &peer, initiated) {
                    self.changed(now);
                }
                if let Some(attached) = self.sessions.get_mut(&peer) {
                    attached.called = false;
                }
                if peer != self.setup.prober.public_key() {
                    self.sample(now);
                }
            }
            TunnelEvent::FirstReceive { .. } => self.sample(now),
            // It let that mapping go: that is no churn.
            TunnelEvent::EndpointChanged { peer, idle, .. } if self.slept(&peer, idle) => self.changed(now),
            TunnelEvent::EndpointChanged { peer, from: Some(from), to, idle, session } => {
                match self.shared_keys.handle_move(now, peer, (from, to), session) {
                    Seen::Flapped => return self.changed(now),
                    Seen::Moved { begins: true } => self.neighbours.remember(&peer),
                    Seen::Moved { begins: false } => {}
                }
                tracing::debug!(%from, %to, ?idle, "a client's mapping moved");
                let moved = Move { at: SystemTime::now(), from: Some(from), to: Some(to), idle };
                if self.learn(&peer, |nat_state| nat_state.handle_move(moved)).unwrap_or(true) {
                    let change = v1::EndpointChange {
                        at: Some(moved.at.into()),
                        from: canonical(from),
                        to: canonical(to),
                        idle: idle.and_then(|idle| idle.try_into().ok()),
                    };
                    self.changes.insert(peer, change);
                    self.neighbours.handle_moved(now, peer, (from, to), idle);
                }
                self.changed(now);
            }
            TunnelEvent::EndpointChanged { .. } => self.changed(now),
            TunnelEvent::SendFailed { category, .. } => {
                *self.counters.send_failures.entry(category.category()).or_default() += 1;
                self.oversized |= category == crate::tunnel::SendFailure::TooLarge;
            }
            TunnelEvent::WakeUnanswered { peer } => self.poke(now, &peer),
            TunnelEvent::Held { peer, ref initiation } => self.wake(&peer, initiation),
            TunnelEvent::NotWoken { peer } => self.not_woken(now, &peer),
            TunnelEvent::Stale { peer } => self.handle_stale(now, &peer),
            TunnelEvent::HandshakeTimedOut { .. }
            | TunnelEvent::ProbeAnswered { .. }
            | TunnelEvent::BeatAnswered { .. }
            | TunnelEvent::Stopped { .. } => {}
        }
    }

    fn handle_time(&mut self, now: Instant) {
        self.handle_ends(now, SystemTime::now());
        let retry = self.tunnel_retry.is_some_and(|at| now >= at);
        if let Some(desired) = self.desired.clone().filter(|_| retry) {
            let _ = self.apply_tunnel(&desired);
        }
        if self.health.poll_timeout().is_some_and(|at| now >= at) {
            self.sample(now);
            if self.health.handle_timeout(now) {
                self.changed(now);
            }
            for peer in self.health.take_silent() {
                self.poke(now, &peer);
            }
        }
        if self.neighbours.poll_timeout().is_some_and(|at| now >= at) {
            self.sample(now);
            self.neighbours.handle_timeout(now);
        }
        self.shared_keys.handle_timeout(now);
        self.take_shared_keys(now);
        self.act(now);
        if !self.proving && self.next_proof.is_some_and(|at| now >= at) {
            self.prove(now);
        }
        self.report(now);
    }

    /// Does what follows where a key turned out to be on two machines, or is not any more.
    fn take_shared_keys(&mut self, now: Instant) {
        while let Some((peer, shared)) = self.shared_keys.poll_news() {
            if shared {
                let client = self.desired.as_ref().and_then(|desired| desired.peers.get(&peer));
                let client = client.map(|peer| peer.client.name.as_str());
                tracing::warn!(client, "two machines use one key: each takes the other's packets");
            }
            self.neighbours.set_aside(now, peer, shared);
            self.changed(now);
        }
        while let Some((peer, shared)) = self.shared_keys.poll_word() {
            self.say_shared(&peer, shared);
        }
    }

    /// A client that has no room hears it when it attaches again, as it will for the other one.
    fn say_shared(&self, peer: &PublicKey, shared: bool) {
        if let Some(attached) = self.sessions.get(peer) {
            let _ = attached.words.try_send(Word::KeyShared(shared));
        }
    }

    /// Does what clients' NATs call for.
    fn act(&mut self, now: Instant) {
        while let Some(peer) = self.neighbours.poll_wake(now) {
            let Some(tunnel) = &self.tunnel else { break };
            tunnel.handshake(&peer);
            self.counters.stock_wakes += 1;
        }
        while let Some(restart) = self.neighbours.poll_restart() {
            tracing::info!(clients = restart.clients, changed = restart.changed, "a NAT lost its state");
            self.counters.nat_restarts += 1;
            if let Some(operator) = &mut self.operator {
                operator.reporter.handle_own_change(now);
            }
        }
        while let Some((peer, finding)) = self.neighbours.poll_finding() {
            match finding {
                Finding::Guidance(guidance) => self.guide(&peer, guidance_to_wire(&guidance)),
                Finding::Lost(lost) => {
                    self.learn(&peer, |nat_state| nat_state.handle_lost(lost));
                    self.changed(now);
                }
                Finding::Restarted => {
                    self.learn(&peer, |nat_state| nat_state.handle_restart(SystemTime::now()));
                    self.changed(now);
                }
            }
        }
    }

    /// Where there is no room the client goes on by itself after a while.
    fn guide(&self, peer: &PublicKey, guidance: v1::Guidance) {
        if let Some(attached) = self.sessions.get(peer) {
            let _ = attached.words.try_send(Word::Guidance(guidance));
        }
    }

    fn changed(&mut self, now: Instant) {
        if let Some(operator) = &mut self.operator {
            operator.reporter.handle_change(now);
        }
    }

    fn sample(&mut self, now: Instant) {
        let Some(tunnel) = &self.tunnel else { return };
        let stats = tunnel.stats();
        self.take_stats(now, stats);
    }

    fn take_stats(&mut self, now: Instant, mut stats: Vec<PeerStats>) {
        let prober = self.setup.prober.public_key();
        stats.retain(|stats| stats.public_key != prober);
        self.stats = stats;
        self.sampled = Some(now);
        let desired = self.desired.as_deref();
        self.counters.add(&self.stats, |key| desired?.pool_name(key));
        let mut changed = false;
        for stats in &self.stats {
            let sample = Sample {
                last_receive: stats.last_receive,
                last_handshake: stats.last_handshake,
                unconfirmed: stats.unconfirmed,
            };
            changed |= self.health.handle_sample(now, &stats.public_key, sample);
            if self.shared_keys.shared(&stats.public_key).is_none() {
                self.neighbours.handle_stats(now, stats);
            }
            self.client_receive = self.client_receive.max(stats.last_receive);
        }
        if changed {
            self.changed(now);
        }
    }

    fn prove(&mut self, now: Instant) {
        self.sample(now);
        if let Some(received) = self.client_receive.filter(|at| now < *at + PROOF_INTERVAL) {
            self.next_proof = Some(received + PROOF_INTERVAL);
            return;
        }
        let published = self.desired.as_ref().map(|desired| desired.own_endpoints()).unwrap_or_default();
        let (prober, control) = (self.setup.prober.clone(), self.setup.control.clone());
        let pod = self.setup.pod_address;
        self.proving = true;
        tokio::spawn(async move {
            // A proof that panicked is none, and the next one is due.
            let way =
                AssertUnwindSafe(prober.prove(&published, pod)).catch_unwind().await.unwrap_or_default();
            let _ = control.send(Command::Proof(way)).await;
        });
    }

    fn handle_proof(&mut self, now: Instant, way: Option<Way>) {
        self.proving = false;
        let by = match way {
            Some(Way::PublishedEndpoint) => v1::PathProof::PublishedEndpoint,
            Some(Way::PodAddress) => v1::PathProof::PodAddress,
            None => {
                self.counters.proofs_failed += 1;
                self.next_proof = Some(now + PROOF_RETRY);
                return;
            }
        };
        if self.own_proof.is_none_or(|proof| proof.by != by) {
            tracing::info!(by = by.as_str_name(), "the data path is proven");
            if let Some(operator) = &mut self.operator {
                operator.reporter.handle_own_change(now);
            }
        }
        self.own_proof = Some(Proof { at: now, by });
        self.next_proof = Some(now + PROOF_INTERVAL);
    }

    fn proof(&self) -> Option<Proof> {
        let client = self.client_receive.map(|at| Proof { at, by: v1::PathProof::ClientTraffic });
        [client, self.own_proof].into_iter().flatten().max_by_key(|proof| proof.at)
    }

    fn readiness(&self, now: Instant) -> Readiness {
        let not = |reason: String| Readiness { ready: false, reason };
        if let Some(failure) = &self.tunnel_failure {
            return not(failure.message.clone());
        }
        if self.tunnel.is_none() {
            return not("no desired state yet: waiting for the operator".into());
        }
        match self.proof() {
            None => not("the data path has not been proven yet".into()),
            Some(proof) => {
                let age = now.saturating_duration_since(proof.at);
                let reason =
                    format!("the data path was proven {} s ago by {}", age.as_secs(), proof.by.as_str_name());
                Readiness { ready: age < PROOF_LIFETIME, reason }
            }
        }
    }

    fn impairments(&self) -> Vec<v1::Impairment> {
        let mut impairments = self.access.impairments().to_vec();
        impairments.extend(self.tunnel_failure.clone());
        impairments.extend(access::without_ipv6(&self.without));
        impairments.extend(self.restarts.impairment(Instant::now()));
        impairments.extend(self.stale.impairment(Instant::now()));
        impairments.extend(self.desired.as_ref().and_then(|desired| access::unlimited(desired)));
        if self.oversized {
            impairments.push(v1::Impairment {
                category: "DatagramTooLarge".into(),
                message: "a path takes smaller datagrams than the tunnel's MTU makes: lower the MTU".into(),
            });
        }
        impairments
    }

    fn gauges(&self, now: Instant) -> Gauges {
        let age = self.proof().map(|proof| now.saturating_duration_since(proof.at).as_secs_f64());
        Gauges {
            clients: self.health.count(),
            sessions: self.sessions.len(),
            revision: self.desired.as_ref().map_or(0, |desired| desired.revision),
            attached: self.operator.is_some(),
            ready: self.readiness(now).ready,
            proof_age_seconds: age,
            impairments: self.impairments().into_iter().map(|impairment| impairment.category).collect(),
            events_lost: self.tunnel.as_ref().map_or(0, Tunnel::events_lost),
            discards: self.tunnel.as_ref().map(Tunnel::discards).unwrap_or_default(),
            beats: self.tunnel.as_ref().map(Tunnel::beats).unwrap_or_default(),
            offloads: self.tunnel.as_ref().map(Tunnel::offloads),
            work: self.tunnel.as_ref().map(Tunnel::work).unwrap_or_default(),
            nats: Nats::of(self.nat_states.values().map(AsRef::as_ref)),
            faults: self.setup.faults.count(),
        }
    }

    /// Sends what is due. When the stream has no room the operator hears of it later, and then the newest.
    fn report(&mut self, now: Instant) {
        let due = self.operator.as_ref().is_some_and(|operator| now >= operator.reporter.poll_timeout());
        if !due {
            return;
        }
        self.sample(now);
        self.observe_stock();
        self.health.account(now);
        let restarts = self.neighbours.restarts(now, SystemTime::now());
        let observations = self.observations();
        let impairments = self.impairments();
        let proof = self.proof();
        let Some(operator) = &mut self.operator else { return };
        let reports = operator.reporter.take(now, &observations);
        let wire = |(clients, full)| v1::GatewayReport {
            clients,
            full,
            path_proof: proof.map_or(v1::PathProof::Unspecified, |proof| proof.by).into(),
            path_proof_age: proof.and_then(|proof| now.saturating_duration_since(proof.at).try_into().ok()),
            impairments: impairments.clone(),
            nat_restarts: restarts.clone(),
            sent_at: Some(SystemTime::now().into()),
        };
        for report in reports.into_iter().map(wire) {
            let message = v1::GatewayMessage { message: Some(v1::gateway_message::Message::Report(report)) };
            if operator.outbox.try_send(message).is_err() {
                // A fresh reporter says everything again with the next heartbeat.
                operator.reporter = Reporter::new(now + super::report::HEARTBEAT);
                break;
            }
            self.counters.reports += 1;
        }
    }

    /// Takes over what is seen of clients without an agent.
    fn observe_stock(&mut self) {
        let nat_states = &mut self.nat_states;
        self.neighbours.tell_stock(SystemTime::now(), |peer, (nat, binding, recommended)| {
            let Some(nat_state) = nat_states.get_mut(peer) else { return };
            if !nat_state.is_observed(nat.as_ref(), binding.as_ref(), recommended) {
                Arc::make_mut(nat_state).handle_observed(nat, binding, recommended);
            }
        });
    }

    fn observations(&self) -> Vec<(PublicKey, Observation)> {
        let Some(desired) = &self.desired else { return Vec::new() };
        let (now, wall) = (Instant::now(), SystemTime::now());
        let time = |at: Instant| wall - now.saturating_duration_since(at);
        let mut stats: HashMap<&PublicKey, &PeerStats> = HashMap::with_capacity(self.stats.len());
        stats.extend(self.stats.iter().map(|stats| (&stats.public_key, stats)));
        let observe = |(key, peer): (&PublicKey, &super::desired::Peer)| {
            let (stats, attached) = (stats.get(key), self.sessions.get(key));
            let observation = Observation {
                client: peer.client.clone(),
                phase: self.health.phase(key),
                endpoint: stats.and_then(|stats| stats.endpoint).map(canonical).unwrap_or_default(),
                session: attached.is_some(),
                instance: attached.and_then(|attached| attached.instance),
                endpoint_changes: stats.map_or(0, |stats| stats.endpoint_changes),
                last_change: self.changes.get(key).cloned(),
                last_handshake: stats.and_then(|stats| stats.last_handshake).map(time),
                last_receive: stats.and_then(|stats| stats.last_receive).map(time),
                rx_bytes: stats.map_or(0, |stats| stats.received.bytes),
                tx_bytes: stats.map_or(0, |stats| stats.sent.bytes),
                nat_state: self.nat_states.get(key).cloned(),
                last_rest: self.health.rested(key).map(time),
                reach: self.health.reach(key),
                skew: attached.and_then(|attached| attached.skew),
                fate: self.fate(now, key),
                hears_nothing: self.health.hears_nothing(now, key),
                shared: self.shared_keys.shared(key).map(|shared| (time(shared.since), *shared)),
            };
            (*key, observation)
        };
        desired.peers.iter().map(observe).collect()
    }

    fn tell(&mut self, message: v1::gateway_message::Message) {
        let Some(operator) = &self.operator else { return };
        let message = v1::GatewayMessage { message: Some(message) };
        if operator.outbox.try_send(message).is_err() {
            tracing::debug!("the stream to the operator has no room");
        }
    }
}
