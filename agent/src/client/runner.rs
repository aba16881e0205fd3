//! Runs one tunnel: the only place where tunnel, health, session and the machine's network meet.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use pinhole_proto::{HostPort, bounds::MOST_OF_CLIENT, v1};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{
    ClientError, Credential, Impairment, Progress,
    control::{self, Asked, Keepalive, Question, Status},
    dns::{self, Dns, Wanted},
    enrol_patiently,
    enrolment::{Enrolment, Invitation},
    heard::Clock,
    keepalive::{KeepaliveDriver, Step, TunnelPath},
    kill_switch,
    network::{self, AddressKeeper, Routes, Switch, Watch, local_network, source_towards},
    routes::{self, Choice, Overlap, Present},
    session::{self, Nudges, Session, Target, Told},
    settings::{Replica, Settings},
    sleeper::{self, Place, Sleeper, Whereto},
    status_publisher::{Occasion, StatusPublisher},
    tried_ways::TriedWays,
    udp_block::UdpBlock,
    uplinks::{self, Uplink},
};
use crate::{
    clock::Skew,
    entropy,
    health::{
        Mode, Phase,
        client::{Action, Candidate, ClientHealth, Network, Sample},
    },
    identity::{Names, Store, dial::Proof},
    kernel::{KernelError, KillSwitch, RouteSocket, remove_table},
    nat::{
        Confidence, Radio, Reason,
        standby::{Ended, UdpCost},
        wire::Answer,
    },
    tunnel::{Offloads, PeerStats, PrivateKey, Probe, PublicKey, Threads, Tunnel, TunnelConfig, TunnelEvent},
    uapi::{self, Device, HandshakeClock},
    wire::phase_to_wire,
};

/// Marks the tunnel's and the session's packets, so that routes into a tunnel leave them out ("pinh").
pub(super) const FWMARK: u32 = 0x7069_6e68;
const EVENTS: usize = 1024;
/// The path is proven, and not all that the pool promises goes through the tunnel.
const DEGRADED: &str = "Degraded";
/// Changes of the local network come in bursts.
const SETTLE: Duration = Duration::from_millis(50);
/// How long a goodbye may take, over another connection where the first does not carry it.
const GOODBYE: Duration = Duration::from_millis(2500);
/// What comes to the sockets of experiments.
const ARRIVALS: usize = 256;
/// What becomes of canaries, of which there are two at a time.
const SCOUTS: usize = 8;
const IDLE: Duration = Duration::from_hours(1);
/// A gateway says again that two machines use one key, whenever it is attached to and, where they are at two replicas, every four
/// minutes; it takes five to see the end of it.
const KEY_SHARED: Duration = Duration::from_mins(10);

/// What names resolved to.
struct Resolved {
    candidates: Vec<Candidate<PublicKey>>,
    /// Every outer address that a route into the tunnel must not catch.
    outer: Vec<SocketAddr>,
}

/// What a tunnel is run with.
pub(super) struct Setup<'a> {
    pub(super) name: String,
    pub(super) store: Store,
    pub(super) key: PrivateKey,
    pub(super) names: Names,
    pub(super) enrolment: Enrolment,
    pub(super) invitation: Option<Invitation>,
    pub(super) dns: bool,
    pub(super) routes: Choice,
    pub(super) kill_switch: bool,
    pub(super) listen_port: u16,
    /// How long the first connection may take; `None` for ever.
    pub(super) patience: Option<Duration>,
    pub(super) progress: &'a (dyn Fn(Progress) + Sync),
}

struct Runner<'a> {
    setup: Setup<'a>,
    settings: Settings,
    tunnel: Tunnel,
    health: ClientHealth<PublicKey>,
    keepalive: KeepaliveDriver,
    sleeper: Sleeper,
    /// The session's address, and how the last one ended.
    attached: Option<SocketAddr>,
    ended: Ended,
    publisher: StatusPublisher,
    radio: Arc<Radio>,
    nudges: Arc<Nudges>,
    /// When the user's data last went by, as far as is known.
    data: Option<Instant>,
    udp_block: UdpBlock,
    network: Option<String>,
    routes: Routes,
    /// What of the tunnel is not as the pool says.
    impairments: Vec<Impairment>,
    /// The first connection is not to be had on the user's terms.
    refused: Option<ClientError>,
    keeper: AddressKeeper,
    switch: Switch,
    dns: Option<Dns>,
    names: Names,
    /// The replica that routes lead to.
    routed: Option<PublicKey>,
    outer: Vec<SocketAddr>,
    /// All that names resolved to.
    known: Vec<Candidate<PublicKey>>,
    /// Those of them that can be reached from the networks of now; all where none can.
    candidates: Vec<Candidate<PublicKey>>,
    tried: TriedWays,
    source: Option<IpAddr>,
    held: Held,
    was_connected: bool,
    announcement: Announcement,
    enrolled_again: bool,
    /// Another certificate is being asked for.
    renewal: Option<JoinHandle<()>>,
    last_error: Option<String>,
    /// Another machine connects with the same key, as was told; so long that is believed.
    key_shared: Option<Instant>,
    /// By how much the clock was wrong when handshakes were dropped for it.
    skew: Option<Skew>,
    target: watch::Sender<Target>,
    proof: watch::Sender<Proof>,
    told: watch::Sender<Told>,
    rests: watch::Sender<Option<v1::Rest>>,
    resolved: mpsc::Sender<Resolved>,
    resolving: bool,
    enrolled: mpsc::Sender<Result<Enrolment, ClientError>>,
    handshakes: HandshakeClock,
}

/// Whether who waits for the tunnel is to be told that it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Announcement {
    Due,
    Done,
}

/// With whom the session is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Held {
    /// There was none so far.
    NotYet,
    /// It was lost.
    Nowhere,
    /// With this replica, where it is known which.
    With(Option<PublicKey>),
}

/// Why the loop ended.
enum End {
    Stopped,
    Down(control::Answer),
}

/// Runs until stopped, or until it cannot go on.
pub(super) async fn run(
    setup: Setup<'_>,
    mut asked: mpsc::Receiver<Asked>,
    stop: CancellationToken,
) -> Result<(), ClientError> {
    let settings = parse(setup.enrolment.config.clone(), &setup.key)?;
    let (events, mut tunnel_events) = mpsc::channel(EVENTS);
    let config = TunnelConfig {
        private_key: setup.key.clone(),
        listen_port: setup.listen_port,
        tun_name: setup.name.clone(),
        threads: Threads::ONE,
        addresses: settings.addresses.clone(),
        mtu: settings.mtu,
        fwmark: Some(FWMARK),
        offloads: Offloads::ALL,
    };
    let tunnel = Tunnel::start(config, events)?;
    let (wg_socket, mut wg_questions) = uapi::open_or_say(tunnel.name());
    let (target, target_now) = watch::channel(target_of(&setup.enrolment, &settings, None, 0));
    let (proof, proof_now) = watch::channel(setup.enrolment.proof.clone());
    let (told, told_now) = watch::channel(Told::default());
    let (rests, rests_now) = watch::channel(None);
    let (scouted, mut canaries) = mpsc::channel(SCOUTS);
    let (arrivals, mut arrived) = mpsc::channel(ARRIVALS);
    let (session_events, mut session) = mpsc::channel(EVENTS);
    let (resolved, mut resolutions) = mpsc::channel(1);
    let (enrolled, mut enrolments) = mpsc::channel(1);
    let (radio, nudges) = (Arc::new(Radio::default()), Arc::new(Nudges::default()));
    let mut random = entropy::jitter();
    let names = setup.names.clone();
    let holder = Session {
        instance: (u128::from(random.next_u64()) << 64 | u128::from(random.next_u64())).to_be_bytes(),
        nudges: Arc::clone(&nudges),
        radio: Arc::clone(&radio),
        names: names.clone(),
        target: target_now,
        proof: proof_now,
        told: told_now,
        rests: rests_now,
        events: session_events,
    };
    let session_task = tokio::spawn(holder.run());
    let network = Watch::open(&setup.name)
        .map_err(|source| ClientError::Setting(format!("cannot watch the network: {source}")))?;

    // Behind a kill switch the network's own servers are looked for also where none are set.
    let dns = (setup.dns || setup.kill_switch)
        .then(|| Dns::open(&setup.name, setup.store.clone(), names.clone()))
        .transpose()?;
    let dns_watch = dns.as_ref().and_then(|_| dns::Watch::open_or_say());
    let patience = setup.patience;
    let mut runner = Runner {
        health: ClientHealth::new(settings.effective_mode(), settings.interval, entropy::jitter()),
        keepalive: KeepaliveDriver::new(
            settings.policy,
            setup.store.clone(),
            arrivals,
            FWMARK,
            Arc::clone(&radio),
        ),
        sleeper: Sleeper::new(
            Instant::now(),
            settings.standby,
            entropy::jitter().next_u64(),
            setup.store.clone(),
            Whereto { target: target.subscribe(), proof: proof.subscribe(), radio: Arc::clone(&radio) },
            scouted,
        ),
        attached: None,
        ended: Ended::Closed,
        publisher: StatusPublisher::default(),
        radio,
        nudges,
        data: None,
        udp_block: UdpBlock::default(),
        network: None,
        routes: Routes::new(&setup.name, tunnel.index(), FWMARK, setup.routes.main_first),
        impairments: Vec::new(),
        refused: None,
        keeper: AddressKeeper::new(&setup.name),
        switch: Switch::new(),
        dns,
        names,
        routed: None,
        outer: Vec::new(),
        known: Vec::new(),
        candidates: Vec::new(),
        tried: TriedWays::default(),
        source: None,
        held: Held::NotYet,
        was_connected: false,
        announcement: Announcement::Done,
        enrolled_again: false,
        renewal: None,
        last_error: None,
        key_shared: None,
        skew: None,
        target,
        proof,
        told,
        rests,
        resolved,
        resolving: false,
        enrolled,
        handshakes: HandshakeClock::default(),
        setup,
        settings,
        tunnel,
    };
    // Before the first name is asked for.
    let switch = runner.wanted_switch(&network::present(runner.tunnel.index()));
    runner.keep_in(switch)?;
    runner.keeper.keep(&runner.settings.addresses);
    runner.route_to(None);
    runner.resolve();

    let deadline = tokio::time::Instant::now() + patience.unwrap_or(IDLE * 24 * 365);
    let end = loop {
        let wake = runner.poll_timeout().unwrap_or_else(|| Instant::now() + IDLE);
        tokio::select! {
            () = stop.cancelled() => break Ok(End::Stopped),
            Some(event) = tunnel_events.recv() => {
                if let Err(error) = runner.handle_tunnel(event) {
                    break Err(error);
                }
            }
            Some(event) = session.recv() => {
                if let Err(error) = runner.handle_session(event) {
                    break Err(error);
                }
            }
            Some(arrival) = arrived.recv() => runner.keepalive.handle_arrival(&arrival),
            Some(news) = canaries.recv() => runner.sleeper.handle_news(Instant::now(), &news),
            Some(resolved) = resolutions.recv() => runner.handle_resolved(resolved),
            Some(enrolled) = enrolments.recv() => {
                if let Err(error) = runner.handle_enrolled(enrolled) {
                    break Err(error);
                }
            }
            Some((question, answer)) = asked.recv() => match question {
                Question::Status => answer.send(runner.status()),
                Question::Down => break Ok(End::Down(answer)),
            },
            Some(question) = wg_questions.recv() => uapi::answer_read_only(question, || runner.device()),
            changed = network.changed() => {
                if changed.is_ok() {
                    sleep(SETTLE).await;
                    runner.check_network();
                }
            }
            () = dns::changed(dns_watch.as_ref()) => runner.dns.iter().for_each(Dns::handle_changed),
            () = dns::settled(runner.dns.as_mut()) => runner.handle_names(),
            () = sleep_until(deadline), if !runner.was_connected => {
                break Err(runner.unreachable(patience.unwrap_or_default()));
            }
            () = sleep_until(wake.into()) => {
                let now = Instant::now();
                runner.sample(now);
                runner.health.handle_timeout(now);
                runner.keepalive.handle_timeout(now);
                runner.sleeper.handle_timeout(now);
            }
        }
        runner.act();
        if let Some(error) = runner.refused.take() {
            break Err(error);
        }
    };

    runner.health.handle_stop();
    runner.say_goodbye();
    runner.keepalive.save();
    runner.sleeper.save();
    let _ = tokio::time::timeout(GOODBYE, session_task).await;
    let status = runner.status();
    drop(wg_socket);
    runner.shut_down(matches!(end, Ok(End::Down(_))));
    match end? {
        End::Stopped => Ok(()),
        End::Down(answer) => {
            answer.give(status).await;
            Ok(())
        }
    }
}

/// The configuration, with the replicas in an order of this client's own: a fleet spreads over them.
fn parse(config: v1::ClientConfig, key: &PrivateKey) -> Result<Settings, ClientError> {
    let mut settings = Settings::parse(config)?;
    settings.spread(&key.public());
    for left_out in &settings.left_out {
        tracing::warn!(category = left_out.category(), "{left_out}");
    }
    Ok(settings)
}

/// IPv4 as such, also where a socket of both families shows it.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn texts(endpoints: &[HostPort]) -> Vec<String> {
    endpoints.iter().map(ToString::to_string).collect()
}

fn target_of(enrolment: &Enrolment, settings: &Settings, first: Option<PublicKey>, times: u64) -> Target {
    let mut ways = settings.session_ways(first.as_ref());
    ways.push((None, enrolment.membership.endpoints.clone()));
    Target {
        server_name: enrolment.membership.server_name.clone(),
        ca_pem: enrolment.membership.ca.clone(),
        ways,
        fwmark: Some(FWMARK),
        enrolment: times,
    }
}

async fn resolve_all(
    names: &Names,
    replicas: Vec<Replica>,
    fallback: Vec<String>,
    radio: &Radio,
) -> Resolved {
    let (mut candidates, mut outer) = (Vec::new(), Vec::new());
    for replica in &replicas {
        for endpoint in &replica.tunnel_endpoints {
            let addresses = names.resolve(&endpoint.to_string(), Some(radio)).await.unwrap_or_default();
            outer.extend(&addresses);
            candidates.extend(
                addresses.into_iter().map(|endpoint| Candidate { replica: replica.public_key, endpoint }),
            );
        }
    }
    let sessions = replicas.iter().flat_map(|replica| texts(&replica.session_endpoints));
    for endpoint in sessions.chain(fallback) {
        outer.extend(names.resolve(&endpoint, Some(radio)).await.unwrap_or_default());
    }
    Resolved { candidates, outer }
}

impl Runner<'_> {
    fn handle_tunnel(&mut self, event: TunnelEvent) -> Result<(), ClientError> {
        let now = Instant::now();
        match event {
            TunnelEvent::BeatAnswered { at, .. } => self.radio.packet(at),
            TunnelEvent::HandshakeCompleted { .. }
            | TunnelEvent::ProbeAnswered { .. }
            | TunnelEvent::HandshakeTimedOut { .. } => self.radio.packet(now),
            _ => {}
        }
        match event {
            TunnelEvent::HandshakeCompleted { peer, .. } => {
                self.health.handle_handshake(now, peer);
                self.sleeper.handle_reached(now);
            }
            TunnelEvent::ProbeAnswered { peer, id, rtt } => self.health.handle_answer(now, peer, id, rtt),
            TunnelEvent::FirstReceive { .. } => self.sample(now),
            TunnelEvent::SendFailed { category, .. } => {
                self.last_error = Some(format!("the system does not send: {}", category.category()));
                self.check_network();
            }
            TunnelEvent::Stopped { reason } => {
                tracing::error!(reason, "the data plane ended");
                return Err(crate::tunnel::TunnelError::Stopped.into());
            }
            TunnelEvent::BeatAnswered { answer: Answer::Recall, .. } => self.nudges.recalled.notify_one(),
            TunnelEvent::BeatAnswered { peer, at, answer } => {
                self.sleeper.handle_burst(now);
                self.keepalive.handle_answer(at, peer, answer);
            }
            TunnelEvent::EndpointChanged { .. }
            | TunnelEvent::HandshakeTimedOut { .. }
            // Those are for gateways.
            | TunnelEvent::WakeUnanswered { .. }
            | TunnelEvent::Held { .. }
            | TunnelEvent::Stale { .. }
            | TunnelEvent::NotWoken { .. } => {}
        }
        Ok(())
    }

    /// Asks whether the session still stands: says again what was said. TCP's acknowledgement is the answer.
    fn ask_session(&mut self) {
        if matches!(self.held, Held::With(_)) {
            self.told.send_modify(|_| {});
        }
    }

    fn handle_session(&mut self, event: session::Event) -> Result<(), ClientError> {
        let now = Instant::now();
        if matches!(
            event,
            session::Event::Config(_) | session::Event::BeatKey(..) | session::Event::Guided(..)
        ) {
            self.sleeper.handle_session_packet(now);
        }
        match event {
            session::Event::Attached { replica, address } => {
                tracing::info!(%address, "session attached");
                self.attached = Some(address);
                self.sleeper.handle_attached(now);
                if self.health.phase() != Phase::Connected
                    && let Some(replica) = replica.or_else(|| self.only_replica())
                {
                    // What it dropped before as too old it can say now.
                    self.radio.packet(now);
                    self.tunnel.handshake(&replica);
                }
                // Who is there again may have started anew, and then knows nothing of the tunnel's session.
                if std::mem::replace(&mut self.held, Held::With(replica)) != Held::NotYet {
                    self.health.handle_hint(Instant::now());
                }
            }
            session::Event::BeatKey(replica, key) => {
                if let Some(replica) = replica.or_else(|| self.only_replica()) {
                    self.tunnel.hear_beats(&replica, &key);
                    self.keepalive.handle_key(Instant::now(), replica, key);
                }
            }
            session::Event::Poked(replica, initiation) => self.handle_poke(now, replica, initiation),
            session::Event::Clock(replica, clock) => self.handle_clock(replica, clock),
            session::Event::Wake(seq) => {
                self.sleeper.handle_wake(now, seq);
                if self.sleeper.rests() {
                    self.health.handle_woken(now);
                }
            }
            session::Event::Guided(replica, guidance) => {
                if let Some(replica) = replica {
                    self.keepalive.handle_guidance(Instant::now(), replica, guidance);
                }
            }
            session::Event::KeyShared(shared) => self.handle_key_shared(now, shared),
            session::Event::Config(config) => self.handle_config(*config),
            session::Event::Renewed(proof, ca) => {
                self.setup.enrolment.proof = proof.clone();
                if !ca.is_empty() {
                    self.setup.enrolment.membership.ca = ca;
                }
                if let Err(error) = self.setup.enrolment.save(&self.setup.store) {
                    tracing::warn!(%error, "the renewed certificate is not kept");
                }
                self.proof.send_replace(proof);
                let ca_pem = self.setup.enrolment.membership.ca.clone();
                // For the next connection: this one stands.
                self.target.send_if_modified(|target| {
                    target.ca_pem = ca_pem;
                    false
                });
                tracing::info!("the certificate was renewed");
            }
            session::Event::Cut(error) => {
                if !self.was_connected && self.enrol_again() {
                    return Ok(());
                }
                return Err(error);
            }
            session::Event::Expired => self.renew_by_keys(),
            session::Event::Draining(replica) => {
                if let Some(replica) = replica.or(self.routed) {
                    self.health.handle_draining(Instant::now(), replica);
                }
            }
            session::Event::Lost(error, ended) => {
                tracing::info!(error, ?ended, "no session with the gateway");
                (self.attached, self.ended) = (None, ended);
                self.last_error = Some(error);
                if matches!(self.held, Held::With(_)) {
                    self.held = Held::Nowhere;
                    self.health.handle_hint(Instant::now());
                }
            }
        }
        Ok(())
    }

    /// Another machine connects with the same key, or does not any more. It is told to the user, who alone can say which of
    /// the two is to get a key and a name of its own.
    fn handle_key_shared(&mut self, now: Instant, shared: bool) {
        let was = std::mem::replace(&mut self.key_shared, shared.then(|| now + KEY_SHARED));
        if shared && was.is_none() {
            tracing::warn!("{}", control::KEY_SHARED);
        } else if !shared && was.is_some() {
            tracing::warn!("no other machine uses this machine's key any more");
        }
    }

    /// The gateway has something for the tunnel, or hears nothing on it.
    fn handle_poke(&mut self, now: Instant, replica: Option<PublicKey>, initiation: Box<[u8]>) {
        if !initiation.is_empty() {
            if let Some(replica) = replica.or_else(|| self.only_replica()) {
                self.radio.packet(now);
                self.tunnel.take_initiation(&replica, initiation);
                self.sleeper.handle_poke(now);
            }
        } else if self.sleeper.rests() {
            self.health.handle_hint(now);
        } else {
            tracing::info!("the gateway does not hear the tunnel");
            self.keepalive.handle_poke(now);
        }
    }

    /// The gateway drops handshakes as old ones, or has forgotten newer ones since.
    fn handle_clock(&mut self, replica: Option<PublicKey>, clock: Clock) {
        if clock.stale {
            if self.health.phase() == Phase::Connected {
                return;
            }
            let skew = clock.now.map(|theirs| Skew::between(SystemTime::now(), theirs));
            tracing::warn!(
                skew = skew.map(tracing::field::display),
                "the gateway drops handshakes as old ones"
            );
            self.skew = skew;
            self.last_error = skew.map(|skew| ClientError::ClockSkew(skew).to_string());
        } else if let Some(replica) = replica.or_else(|| self.only_replica()) {
            self.radio.packet(Instant::now());
            self.tunnel.handshake(&replica);
        }
    }

    /// Asks for a new certificate, once in a run with a join token (which is meant for one use), always with a
    /// ServiceAccount's. Whether it can.
    fn enrol_again(&mut self) -> bool {
        let Some(invitation) = self.take_invitation() else { return false };
        (self.setup.progress)(Progress::Enrolling(invitation.membership.server_name.clone()));
        let (key, names, answer) = (self.setup.key.clone(), self.names.clone(), self.enrolled.clone());
        tokio::spawn(async move {
            let _ = answer.send(enrol_patiently(&invitation, &key, &names, None, &|_| {}).await).await;
        });
        true
    }

    fn take_invitation(&mut self) -> Option<Invitation> {
        let invitation = self.setup.invitation.clone()?;
        let once = matches!(invitation.credential, Credential::Join { .. });
        let again = std::mem::replace(&mut self.enrolled_again, true);
        (!again || !once).then_some(invitation)
    }

    /// The certificate is over; its keys may have another, as the tunnel's is still good, and the invitation may where they may not.
    fn renew_by_keys(&mut self) {
        if self.renewal.as_ref().is_some_and(|renewal| !renewal.is_finished()) {
            return;
        }
        let over_for = self.setup.enrolment.over_for(SystemTime::now());
        tracing::info!(?over_for, "the certificate is over: asking for another by its keys");
        let by_keys = Invitation::again(&self.setup.enrolment);
        let invitation = self.take_invitation();
        let (key, names, answer) = (self.setup.key.clone(), self.names.clone(), self.enrolled.clone());
        self.renewal = Some(tokio::spawn(async move {
            let renewed = match (enrol_patiently(&by_keys, &key, &names, None, &|_| {}).await, invitation) {
                (Err(_), Some(invitation)) => enrol_patiently(&invitation, &key, &names, None, &|_| {}).await,
                (Err(error), None) => Err(ClientError::NotRenewed { over_for, error: Box::new(error) }),
                (Ok(renewed), _) => Ok(renewed),
            };
            let _ = answer.send(renewed).await;
        }));
    }

    fn handle_enrolled(&mut self, enrolled: Result<Enrolment, ClientError>) -> Result<(), ClientError> {
        let enrolment = match enrolled {
            Ok(enrolment) => enrolment,
            // The tunnel itself does not need the certificate, and an older operator knows no way to renew it.
            Err(error @ ClientError::NotRenewed { .. }) if error.category() == "Refused" => {
                self.note(Some(error));
                return Ok(());
            }
            Err(error) if self.was_connected => {
                self.note(Some(error));
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        enrolment.save(&self.setup.store)?;
        let config = enrolment.config.clone();
        self.proof.send_replace(enrolment.proof.clone());
        self.setup.enrolment = enrolment;
        let times = self.target.borrow().enrolment + 1;
        self.target.send_replace(target_of(&self.setup.enrolment, &self.settings, self.routed, times));
        self.handle_config(config);
        Ok(())
    }

    fn handle_config(&mut self, config: v1::ClientConfig) {
        let settings = match parse(config.clone(), &self.setup.key) {
            Ok(settings) => settings,
            Err(error) => {
                tracing::warn!(%error, "the new configuration is not applied");
                self.last_error = Some(error.to_string());
                return;
            }
        };
        self.setup.enrolment.config = config;
        if let Err(error) = self.setup.enrolment.save_config(&self.setup.store) {
            tracing::warn!(%error, "the new configuration is not kept");
        }
        if settings == self.settings {
            return;
        }
        tracing::info!("a new configuration is in force");
        let (mtu, addresses) = (settings.mtu, settings.addresses.clone());
        let former = std::mem::replace(&mut self.settings, settings);
        if addresses != former.addresses {
            self.keep_routes();
        }
        if mtu != former.mtu {
            let device = self.tunnel.index();
            let set = RouteSocket::open().and_then(|mut socket| socket.set_mtu(device, mtu.into()));
            self.note(set.err());
        }
        let mode = self.settings.effective_mode();
        self.health.handle_policy(mode, self.settings.interval);
        let now = Instant::now();
        self.keepalive.handle_policy(now, self.settings.policy, mode == Mode::Loopback);
        self.sleeper.handle_policy(now, self.settings.standby);
        self.route_to(self.routed);
        self.install();
        self.retarget();
        self.resolve();
    }

    fn handle_resolved(&mut self, resolved: Resolved) {
        self.resolving = false;
        // Names that do not resolve now keep the addresses they had.
        if resolved.candidates.is_empty() {
            let settings = &self.settings;
            self.known.retain(|candidate| settings.replica(&candidate.replica).is_some());
        } else {
            self.known = resolved.candidates;
        }
        for address in resolved.outer {
            if !self.outer.contains(&address) {
                self.outer.push(address);
            }
        }
        if self.known.is_empty() {
            self.last_error =
                Some("no address of the gateway is known: its name does not resolve".to_owned());
        }
        self.look_around();
        self.install();
    }

    /// Which of the known ways there are from here, and where that is.
    fn look_around(&mut self) {
        let (ways, none): (Vec<_>, Vec<_>) = self
            .known
            .iter()
            .partition(|candidate| source_towards(candidate.endpoint, Some(FWMARK)).is_some());
        self.candidates = if ways.is_empty() { none } else { ways };
        let source = self.source_now();
        let name = source.map(local_network);
        let network = match source {
            None => Network::Unreachable,
            now if now == self.source && self.network == name => Network::Unchanged,
            _ => Network::Changed,
        };
        (self.source, self.network) = (source, name);
        self.health.handle_surroundings(Instant::now(), self.candidates.clone(), network);
        if network == Network::Changed {
            self.tunnel.forget_own_addresses();
            // From another address its connection carries nothing any more.
            self.ask_session();
        }
    }

    fn resolve(&mut self) {
        if std::mem::replace(&mut self.resolving, true) {
            return;
        }
        let (replicas, answer) = (self.settings.replicas.clone(), self.resolved.clone());
        let fallback = self.setup.enrolment.membership.endpoints.clone();
        let (radio, names) = (Arc::clone(&self.radio), self.names.clone());
        tokio::spawn(async move {
            let _ = answer.send(resolve_all(&names, replicas, fallback, &radio).await).await;
        });
    }

    /// The local address of the way in use, or of the first that has one.
    fn source_now(&self) -> Option<IpAddr> {
        let active = self.health.active().into_iter();
        let mut ways = active.chain(self.candidates.iter().copied());
        ways.find_map(|candidate| source_towards(candidate.endpoint, Some(FWMARK)))
    }

    fn check_network(&mut self) {
        self.keep_routes();
        if self.known.is_empty() {
            return self.resolve();
        }
        self.look_around();
    }

    /// The gateway's replica, where there is but one.
    fn only_replica(&self) -> Option<PublicKey> {
        let [replica] = self.settings.replicas.as_slice() else { return None };
        Some(replica.public_key)
    }

    fn poll_timeout(&self) -> Option<Instant> {
        let keeping = self.keepalive.poll_timeout().into_iter().chain(self.sleeper.poll_timeout()).min();
        let names = self.names_pending_until(Instant::now());
        let due = [self.health.poll_timeout(), keeping, self.publisher.poll_timeout(), names];
        due.into_iter().flatten().min()
    }

    fn active_stats(&self) -> Option<PeerStats> {
        let active = self.health.active()?;
        self.tunnel.stats().into_iter().find(|stats| stats.public_key == active.replica)
    }

    fn sample(&mut self, now: Instant) {
        let Some(stats) = self.active_stats() else { return };
        let sample = Sample {
            // Handshakes alone prove no session.
            last_receive: stats.last_data,
            last_beat: stats.last_beat,
            last_send: stats.last_send,
            last_data_send: stats.last_data_send,
        };
        self.health.handle_sample(now, sample);
        self.keepalive.handle_traffic(now, &stats);
        self.data = stats.last_data.max(stats.last_data_send);
        if let Some(data) = self.data {
            self.radio.foreign(data);
        }
        self.sleeper.handle_traffic(now, self.data, stats.last_receive);
    }

    fn act(&mut self) {
        loop {
            self.beat();
            if !self.act_on_health() {
                break;
            }
        }
        if let Some(dns) = &mut self.dns {
            // Behind a kill switch nobody else could be asked.
            let is_shut = self.setup.kill_switch && dns::is_everything(&self.settings.routes);
            dns.handle_path(is_shut || self.health.phase() == Phase::Connected);
        }
        self.announce();
        self.publish_state();
        // Who speaks is awake, and may have more to do.
        let now = Instant::now();
        self.sleep_or_not(now);
        self.take_steps(now);
    }

    /// Does what keeps the binding.
    fn beat(&mut self) {
        let now = Instant::now();
        // First of all: a path that was just lost is none.
        self.take_steps(now);
        match (self.health.phase(), self.way()) {
            // What another machine takes away is no loss at a NAT.
            (Phase::Connected, Some(_)) if self.key_shared.is_some_and(|until| now < until) => {
                self.keepalive.handle_unreachable(now);
            }
            (Phase::Connected, Some(way)) => {
                self.keepalive.handle_way(now, &way);
                self.look_for_a_shut_port(now, &way);
            }
            (Phase::Dormant | Phase::Disconnected, _) => self.keepalive.handle_unreachable(now),
            _ => {}
        }
        self.take_steps(now);
        self.sleep_or_not(now);
        self.take_steps(now);
        self.health.handle_beats(now, self.sleeper.patience().or(self.keepalive.interval()));
        self.look_for_a_block(now);
    }

    fn take_steps(&mut self, now: Instant) {
        while let Some(step) = self.keepalive.poll_step() {
            match step {
                Step::Beat(replica, datagram) => {
                    self.radio.packet(now);
                    self.sleeper.handle_burst(now);
                    self.tunnel.beat(&replica, datagram);
                }
                Step::Prove(replica) => {
                    self.radio.packet(now);
                    self.tunnel.keepalive(&replica);
                }
                Step::Confirmed(rtt) => self.health.handle_beat(now, rtt),
                Step::Lost => {
                    self.sample(now);
                    self.health.handle_beat_lost(now);
                    self.ask_session();
                }
                Step::Restarted(replica) => {
                    // It has forgotten the tunnel's session as well.
                    self.radio.packet(now);
                    self.tunnel.handshake(&replica);
                    self.health.handle_hint(now);
                    self.ask_session();
                }
            }
        }
    }

    /// Does what it takes to be reached by the session alone, where that is cheaper.
    fn sleep_or_not(&mut self, now: Instant) {
        let active = self.health.active().filter(|_| self.health.phase() == Phase::Connected);
        let holder = match self.held {
            Held::With(replica) => replica.or_else(|| self.only_replica()),
            Held::NotYet | Held::Nowhere => None,
        };
        let place = active
            .zip(self.network.clone())
            .map(|(active, network)| Place { replica: active.replica, network });
        let wakes = place.as_ref().is_some_and(|place| holder == Some(place.replica));
        let session =
            self.attached.filter(|_| wakes && (self.sleeper.rests() || self.keepalive.interval().is_some()));
        // A session that stands while the path does not has not ended.
        let ended = if self.attached.is_some() { Ended::Closed } else { self.ended };
        self.sleeper.handle_ready(now, place, session, ended);
        if let Some(interval) =
            self.keepalive.interval().filter(|_| self.keepalive.reason() != Reason::Backoff)
        {
            let learnt = self.keepalive.binding().0.confidence >= Confidence::Bracketed;
            self.sleeper.handle_cost(now, UdpCost { interval, learnt });
        }
        while let Some(step) = self.sleeper.poll_step(now) {
            match step {
                sleeper::Step::Rest(rest) => {
                    self.rests.send_replace(Some(rest));
                }
                sleeper::Step::Keep(keeping) => self.keepalive.handle_keeping(now, keeping),
                sleeper::Step::Doubt => self.health.handle_hint(now),
            }
        }
    }

    /// The way in use, as far as it matters to a binding.
    fn way(&self) -> Option<TunnelPath> {
        let active = self.health.active()?;
        let mut others: Vec<_> = self
            .candidates
            .iter()
            .filter(|other| other.replica == active.replica && other.endpoint != active.endpoint)
            .map(|other| other.endpoint)
            .collect();
        others.sort_unstable();
        Some(TunnelPath {
            replica: active.replica,
            endpoint: active.endpoint,
            others,
            source: self.source?,
            port: self.tunnel.local_port(),
            network: self.network.clone()?,
        })
    }

    /// A way that failed, while another to the same address and another port works: it may be the port. Asked as
    /// soon as its replica's session gave a key.
    fn look_for_a_shut_port(&mut self, now: Instant, way: &TunnelPath) {
        let keepalive = &mut self.keepalive;
        self.tried.handle_working(now, way.endpoint, |other| {
            keepalive.handle_suspect(now, (other.replica, other.endpoint), way)
        });
    }

    /// UDP without an answer, beside a session that has one, is worth saying once.
    fn look_for_a_block(&mut self, now: Instant) {
        let searching = self.was_connected
            && self.health.phase() == Phase::WaitingToReconnect
            && matches!(self.held, Held::With(_));
        if self.udp_block.handle_search(now, searching) {
            self.keepalive.handle_blocked(now);
        }
    }

    /// Does what the health machine wants. Whether that was anything.
    fn act_on_health(&mut self) -> bool {
        let mut acted = false;
        while let Some(action) = self.health.poll_action() {
            acted = true;
            match action {
                Action::Try(candidate) => {
                    tracing::debug!(endpoint = %candidate.endpoint, "trying");
                    self.tried.handle_try(Instant::now(), candidate);
                    if self.routed != Some(candidate.replica) {
                        self.route_to(Some(candidate.replica));
                    }
                    self.radio.packet(Instant::now());
                    self.tunnel.use_endpoint(&candidate.replica, candidate.endpoint);
                }
                Action::Probe { replica, id } => self.probe(&replica, id),
                Action::Resolve => self.resolve(),
                Action::Rebind => match self.tunnel.rebind() {
                    Ok(port) => tracing::info!(port, "no answer: going on from another port"),
                    Err(error) => self.note(Some(error)),
                },
                Action::Phase(phase) => self.handle_phase(phase),
            }
        }
        acted
    }

    fn probe(&self, replica: &PublicKey, id: u64) {
        let Some((from, to)) = self.settings.probe_addresses(replica) else { return };
        self.radio.packet(Instant::now());
        self.tunnel.probe(replica, Probe { from, to, id });
    }

    fn handle_phase(&mut self, phase: Phase) {
        tracing::info!(%phase, "phase");
        match phase {
            Phase::Connected => {
                let is_first = !std::mem::replace(&mut self.was_connected, true);
                (self.last_error, self.skew) = (None, None);
                self.install();
                if is_first && self.setup.routes.overlap == Some(Overlap::Refuse) && self.lacks_routes() {
                    let all: Vec<String> = self.impairments.iter().map(ToString::to_string).collect();
                    self.refused = Some(ClientError::RouteConflict(all.join("; ")));
                    return;
                }
                self.retarget();
                self.announcement = Announcement::Due;
            }
            Phase::WaitingToReconnect if !self.was_connected => {}
            Phase::WaitingToReconnect | Phase::Dormant => (self.setup.progress)(Progress::Phase(phase)),
            // The gateway's view alone.
            Phase::Standby | Phase::Disconnected => {}
        }
    }

    /// Tells who waits for the tunnel that it stands, once it is known what of the pool's promise holds.
    fn announce(&mut self) {
        let is_settled =
            self.health.phase() == Phase::Connected && self.names_pending_until(Instant::now()).is_none();
        if self.announcement == Announcement::Done || !is_settled {
            return;
        }
        let Some(active) = self.health.active() else { return };
        self.announcement = Announcement::Done;
        let replica = self.settings.replica(&active.replica);
        (self.setup.progress)(Progress::Connected {
            replica: replica.map(|replica| replica.name.clone()).unwrap_or_default(),
            endpoint: active.endpoint,
            addresses: self.settings.addresses.clone(),
            rtt: self.health.rtt(),
            impairments: self.all_impairments(),
        });
    }

    /// Lets inner traffic flow to one replica.
    fn route_to(&mut self, replica: Option<PublicKey>) {
        self.routed = replica;
        self.tunnel.set_peers(self.settings.peers(replica.as_ref()));
    }

    /// Other name servers are the network's, or those of the tunnel stand otherwise.
    fn handle_names(&mut self) {
        if self.was_connected {
            self.keep_routes();
        }
    }

    /// Has addresses, routes and tables be what they are to be, whoever changed them.
    fn keep_routes(&mut self) {
        let without = self.tunnel.set_addresses(&self.settings.addresses);
        self.keeper.keep(&self.settings.addresses);
        let present = network::present(self.tunnel.index());
        let switch = self.wanted_switch(&present);
        let shut_off = switch.as_ref().and_then(|switch| self.shut_off(switch));
        let kept_in = self.keep_in(switch);
        if !self.was_connected {
            self.note(kept_in.err());
            return self.note(without.err());
        }
        // Who is asked for the way to the gateway is not asked through it.
        let outer: Vec<IpAddr> = self.outer.iter().map(SocketAddr::ip).chain(self.names.network()).collect();
        let wanted = routes::Wanted {
            device: self.tunnel.index(),
            pool: &self.settings.routes,
            gateway: &self.settings.gateway_addresses(),
            outer: &outer,
            choice: &self.setup.routes,
            has_ipv6: without.as_ref().is_ok_and(Vec::is_empty),
        };
        let mut impairments = self.routes.set(&wanted, &present);
        impairments.extend(kept_in.err().map(|error| Impairment::failed("KillSwitchMissing", &error)));
        impairments.extend(shut_off);
        impairments.extend(without.err().map(|error| Impairment::failed("AddressMissing", &error)));
        if impairments != self.impairments {
            for impairment in &impairments {
                tracing::warn!(
                    category = impairment.category,
                    accepted = impairment.accepted,
                    "{impairment}"
                );
            }
        }
        self.impairments = impairments;
    }

    fn keep_in(&mut self, switch: Option<KillSwitch>) -> Result<(), KernelError> {
        switch.map_or(Ok(()), |wanted| self.switch.keep(wanted))
    }

    /// The kill switch, where there is to be one, in the network as it is now.
    fn wanted_switch(&self, present: &[Present]) -> Option<KillSwitch> {
        if !self.setup.kill_switch {
            return None;
        }
        let replicas = self.settings.replicas.iter();
        let endpoints = replicas.flat_map(|replica| {
            texts(&replica.tunnel_endpoints).into_iter().chain(texts(&replica.session_endpoints))
        });
        let endpoints = endpoints.chain(self.setup.enrolment.membership.endpoints.clone());
        let (pool, choice) = (&self.settings.routes, &self.setup.routes);
        Some(kill_switch::plan(&self.setup.name, FWMARK, (pool, choice), present, endpoints))
    }

    /// Where the pool has no name servers, the machine asks those of its network. Not each of them may be asked.
    fn shut_off(&self, switch: &KillSwitch) -> Option<Impairment> {
        let servers = self.names.network();
        let sets_none = !self.setup.dns || self.settings.dns_servers.is_empty();
        if !sets_none || !kill_switch::shuts_off(switch, &servers) || !dns::is_asked_by_link() {
            return None;
        }
        let servers = servers.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let message = format!(
            "this machine resolves no names: systemd-resolved asks {servers} past the tunnel, which the kill switch forbids; have \
             the pool bring name servers (spec.dns.servers), or set one of the local network"
        );
        Some(Impairment::failed("ResolverShutOff", &message))
    }

    /// What the pool promises and is missing, for those who look after the cluster.
    fn lacking(&self) -> Vec<v1::Impairment> {
        let is_pending = self.names_pending_until(Instant::now()).is_some();
        let names = self.names_missing().filter(|_| !is_pending);
        let lacking = self.impairments.iter().filter(|impairment| !impairment.accepted).cloned().chain(names);
        let told = lacking.map(|Impairment { category, message, .. }| v1::Impairment { category, message });
        told.take(MOST_OF_CLIENT).collect()
    }

    /// Whether something is missing that the pool promises.
    fn is_degraded(&self) -> bool {
        self.lacks_routes() || self.names_missing().is_some()
    }

    fn names_missing(&self) -> Option<Impairment> {
        self.dns.as_ref()?.missing(Instant::now())
    }

    fn names_pending_until(&self, now: Instant) -> Option<Instant> {
        self.dns.as_ref()?.pending_until(now)
    }

    fn lacks_routes(&self) -> bool {
        self.impairments.iter().any(|impairment| !impairment.accepted)
    }

    fn all_impairments(&self) -> Vec<Impairment> {
        self.impairments.iter().cloned().chain(self.names_missing()).collect()
    }

    /// Routes and name servers. Not before the first connection: until then names must resolve the old way.
    fn install(&mut self) {
        if !self.was_connected {
            return;
        }
        self.keep_routes();
        if let Some(dns) = self.dns.as_mut().filter(|_| self.setup.dns) {
            dns.set(Instant::now(), Wanted::of(&self.settings));
        }
    }

    /// Holds the session with the replica that carries the traffic.
    fn retarget(&self) {
        let first = self.health.active().map(|active| active.replica);
        let held = match self.held {
            Held::With(replica) => replica,
            Held::NotYet | Held::Nowhere => None,
        };
        let first = self.settings.session_with(held, first);
        let times = self.target.borrow().enrolment;
        let target = target_of(&self.setup.enrolment, &self.settings, first, times);
        self.target.send_if_modified(|current| {
            let changed = *current != target;
            *current = target;
            changed
        });
    }

    fn publish_state(&mut self) {
        let now = Instant::now();
        let occasion = self.occasion(now);
        let is_connected = self.health.phase() == Phase::Connected;
        let rides = is_connected && occasion != Occasion::Never;
        if matches!(occasion, Occasion::Awake(_)) {
            self.nudges.awake.notify_waiters();
        }
        let state = self.wire_state(now);
        if let Some(state) = self.publisher.offer(now, state, occasion) {
            self.told.send_replace(Told { state, is_goodbye: false, rides, is_connected });
            self.sleeper.handle_session_packet(now);
        } else {
            // Nothing to say.
            self.told.send_if_modified(|told| {
                told.is_connected = is_connected;
                std::mem::replace(&mut told.rides, rides) && !rides
            });
        }
    }

    /// What the session may go along with.
    fn occasion(&self, now: Instant) -> Occasion {
        let data = self.data.map(|at| now.saturating_duration_since(at));
        Occasion::new(self.keepalive.interval().is_some(), data, self.radio.age(now))
    }

    fn say_goodbye(&self) {
        let state = self.wire_state(Instant::now());
        self.told.send_replace(Told { state, is_goodbye: true, ..Told::default() });
    }

    fn wire_state(&self, now: Instant) -> v1::ClientState {
        let mut state = v1::ClientState {
            phase: phase_to_wire(self.health.phase()).into(),
            rtt: self.health.rtt().and_then(|rtt| rtt.try_into().ok()),
            local_endpoint: format!("0.0.0.0:{}", self.tunnel.local_port()),
            ..v1::ClientState::default()
        };
        self.keepalive.report(now, self.health.interval(), &mut state);
        state.standby = Some(self.sleeper.report());
        state.impairments = if self.was_connected { self.lacking() } else { Vec::new() };
        state
    }

    fn note<E: std::error::Error>(&mut self, error: Option<E>) {
        let Some(error) = error else { return };
        tracing::warn!(%error, "part of the tunnel is not set up");
        self.last_error = Some(error.to_string());
    }

    fn unreachable(&self, patience: Duration) -> ClientError {
        if let Some(skew) = self.skew {
            return ClientError::ClockSkew(skew);
        }
        let mut endpoints: Vec<_> =
            self.candidates.iter().map(|candidate| candidate.endpoint.to_string()).collect();
        endpoints.dedup();
        ClientError::TunnelUnreachable { endpoints: endpoints.join(", "), seconds: patience.as_secs() }
    }

    fn status(&self) -> Status {
        let now = Instant::now();
        let ago = |at: Option<Instant>| at.map(|at| now.saturating_duration_since(at).as_secs_f64());
        let all: HashMap<_, _> =
            self.tunnel.stats().into_iter().map(|stats| (stats.public_key, stats)).collect();
        let active = self.health.active();
        let stats = active.and_then(|active| all.get(&active.replica));
        let replica = active.and_then(|active| self.settings.replica(&active.replica));
        let interval = self.health.interval();
        let reason = match (interval, self.keepalive.interval()) {
            (_, Some(_)) => self.keepalive.reason().to_string(),
            (Some(_), None) => self.settings.interval_reason.to_owned(),
            (None, None) => "no probes: LinkStatus watches the link and the user's traffic".to_owned(),
        };
        let stats_of_beats = self.keepalive.stats();
        let membership = &self.setup.enrolment.membership;
        let endpoint = stats.and_then(|stats| stats.endpoint).or(active.map(|active| active.endpoint));
        Status {
            name: self.setup.name.clone(),
            phase: self.phase(),
            client: format!("{}/{}", self.settings.client.namespace, self.settings.client.name),
            pool: format!("{}/{}", membership.namespace, membership.pool),
            gateway: membership.server_name.clone(),
            replica: replica.map(|replica| replica.name.clone()),
            endpoint: endpoint.map(|endpoint| canonical(endpoint).to_string()),
            uplinks: self.uplinks(endpoint),
            addresses: self.settings.addresses.iter().map(ToString::to_string).collect(),
            routes: self.settings.routes.iter().map(ToString::to_string).collect(),
            mtu: self.settings.mtu,
            local_port: self.tunnel.local_port(),
            offloads: Some(self.tunnel.offloads().used().map(str::to_owned).collect()),
            last_receive_seconds: ago(stats.and_then(|stats| stats.last_receive)),
            last_confirmed_seconds: ago(self.health.confirmed()),
            rtt_milliseconds: self.health.rtt().map(|rtt| rtt.as_secs_f64() * 1000.0),
            keepalive: Keepalive {
                mode: self.settings.effective_mode().to_string(),
                interval_seconds: interval.map(|interval| interval.as_secs_f64()),
                reason,
                beats: self.keepalive.interval().is_some(),
                wakes: self.radio.bursts(),
                live_beats: stats_of_beats.live_beats,
                probe_beats: stats_of_beats.probe_beats,
                wakes_saved: self.keepalive.wakes_saved(now),
            },
            standby: control::Standby::new(now, self.sleeper.standby()),
            nat: control::Nat::new(&self.keepalive.behaviour(), self.keepalive.observed()),
            binding: control::Binding::new(&self.keepalive.binding().0),
            churn: control::Churn::new(self.keepalive.churn()),
            rx_bytes: all.values().map(|stats| stats.received.bytes).sum(),
            tx_bytes: all.values().map(|stats| stats.sent.bytes).sum(),
            session: matches!(self.held, Held::With(_)),
            left_out: self.settings.left_out.iter().map(ToString::to_string).collect(),
            impairments: self.all_impairments(),
            key_shared: self.key_shared.is_some_and(|until| now < until),
            last_error: self.last_error.clone(),
        }
    }

    /// By which networks the gateway could be reached; `endpoint` is the one in use.
    fn uplinks(&self, endpoint: Option<SocketAddr>) -> Vec<Uplink> {
        let others = self.known.iter().map(|candidate| candidate.endpoint);
        let endpoints: Vec<_> = endpoint.into_iter().chain(others).map(canonical).collect();
        uplinks::look(self.tunnel.index(), &endpoints, FWMARK).unwrap_or_else(|error| {
            tracing::debug!(%error, category = error.category(), "this machine's networks are not seen");
            Vec::new()
        })
    }

    /// The phase, as it is to be called: who sleeps is not connected, nor is who lacks something that the pool promises.
    fn phase(&self) -> String {
        match self.health.phase() {
            Phase::Connected if self.is_degraded() => DEGRADED.to_owned(),
            Phase::Connected if self.sleeper.sleeps() => Phase::Standby.to_string(),
            phase => phase.to_string(),
        }
    }

    /// What `wg show` is told.
    fn device(&mut self) -> Device {
        let peers = self.settings.peers(self.routed.as_ref());
        let (port, stats) = (self.tunnel.local_port(), self.tunnel.stats());
        let device = Device::without_secrets(port, peers, &stats, &mut self.handshakes);
        Device { fwmark: FWMARK, ..device }
    }

    /// `for_good` is what opens the kill switch.
    fn shut_down(mut self, for_good: bool) {
        if let Some(dns) = self.dns.take() {
            dns.close();
        }
        self.routes.remove();
        self.keeper.remove();
        if self.setup.kill_switch && for_good {
            let removed = remove_table(&kill_switch::table(&self.setup.name));
            self.note(removed.err());
        } else if self.setup.kill_switch {
            tracing::warn!("the kill switch stays: `pinhole down --name {}` opens it", self.setup.name);
        }
        self.tunnel.shutdown();
    }
}

/// Whether what is kept can be used as it is.
pub(super) fn usable(kept: Option<Enrolment>, invitation: Option<&Invitation>) -> Option<Enrolment> {
    let kept = kept?;
    let Some(invitation) = invitation else { return Some(kept) };
    let (ours, theirs) = (&kept.membership, &invitation.membership);
    let same = (&ours.namespace, &ours.pool, &ours.server_name)
        == (&theirs.namespace, &theirs.pool, &theirs.server_name);
    same.then_some(kept)
}
