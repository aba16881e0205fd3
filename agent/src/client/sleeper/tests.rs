//! The sleeper beside a session in memory, in virtual time. Its canaries are the real ones: calls of their own over pipes, which
//! a gateway answers that forgets a mapping after a while, as a NAT does.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
};

use futures::{Stream, StreamExt, stream};
use hyper_util::rt::TokioIo;
use pinhole_proto::v1::client_session_server::{ClientSession, ClientSessionServer};
use tokio::time::{sleep, sleep_until};
use tonic::{
    Request, Response, Status, Streaming,
    transport::{Channel, Endpoint, Server, Uri},
};

use super::*;
use crate::nat::standby::Preference;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_mins(1);
const HOUR: Duration = Duration::from_hours(1);
const RTT: Duration = Duration::from_millis(40);
/// What is sent over a mapping that is gone ends the connection.
const USER_TIMEOUT: Duration = Duration::from_secs(3);
const UDP: UdpCost = UdpCost { interval: Duration::from_secs(20), learnt: true };
const POLICY: Policy =
    Policy { preference: Preference::Session, max: Duration::from_hours(2), longest_blind: None };

/// The NAT of all its TCP connections.
#[derive(Debug)]
struct Nat {
    lifetime: Duration,
    /// Whether canaries get through.
    is_open: bool,
    /// Canaries whose rests it waits for.
    resting: usize,
    /// The ages that were tried.
    tried: Vec<Duration>,
}

/// The gateway's end of canaries.
#[derive(Debug, Clone)]
struct Gateway(Arc<Mutex<Nat>>);

impl Gateway {
    fn nat(&self) -> MutexGuard<'_, Nat> {
        self.0.lock().unwrap()
    }
}

/// One that rests, until its connection ends.
struct Resting(Gateway);

impl Drop for Resting {
    fn drop(&mut self) {
        self.0.nat().resting -= 1;
    }
}

impl Connect for Gateway {
    async fn connect(self, _: SocketAddr) -> Option<Channel> {
        if !self.nat().is_open {
            return None;
        }
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        let incoming = stream::iter([io::Result::Ok(theirs)]).chain(stream::pending());
        tokio::spawn(
            Server::builder().add_service(ClientSessionServer::new(self)).serve_with_incoming(incoming),
        );
        let mut ours = Some(TokioIo::new(ours));
        let connector = tower::service_fn(move |_: Uri| {
            let ours = ours.take().ok_or(io::ErrorKind::ConnectionReset);
            async { Ok::<_, io::Error>(ours?) }
        });
        Endpoint::from_static("http://gateway.invalid").connect_with_connector(connector).await.ok()
    }
}

#[tonic::async_trait]
impl ClientSession for Gateway {
    type AttachStream = Pin<Box<dyn Stream<Item = Result<v1::SessionMessage, Status>> + Send>>;

    async fn scout(&self, request: Request<v1::Rest>) -> Result<Response<v1::Wake>, Status> {
        let rest = request.into_inner();
        let after = span(rest.wake_after);
        let lifetime = {
            let mut nat = self.nat();
            nat.resting += 1;
            nat.tried.push(after);
            nat.lifetime
        };
        let _resting = Resting(self.clone());
        if after >= lifetime {
            return std::future::pending().await;
        }
        sleep(after).await;
        Ok(Response::new(v1::Wake { seq: rest.seq }))
    }

    async fn challenge(
        &self,
        _: Request<v1::ChallengeRequest>,
    ) -> Result<Response<v1::EnrolmentChallenge>, Status> {
        Err(Status::unimplemented("no canary asks"))
    }

    async fn enrol(&self, _: Request<v1::EnrolRequest>) -> Result<Response<v1::EnrolResponse>, Status> {
        Err(Status::unimplemented("no canary enrols"))
    }

    async fn attach(
        &self,
        _: Request<Streaming<v1::ClientMessage>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        Err(Status::unimplemented("no canary attaches"))
    }

    async fn renew(&self, _: Request<v1::RenewRequest>) -> Result<Response<v1::IssuedCertificate>, Status> {
        Err(Status::unimplemented("no canary renews"))
    }
}

fn span(wire: Option<prost_types::Duration>) -> Duration {
    wire.unwrap().try_into().unwrap()
}

fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

struct World {
    sleeper: Sleeper<Gateway>,
    news: mpsc::Receiver<News>,
    gateway: Gateway,
    place: Place,
    /// Whether a connection of the session's is there, and when its mapping last saw a packet.
    session: Option<Instant>,
    /// A wake that is due, of this number.
    wake: Option<(Instant, u64)>,
    /// When the session's end, or the next one, is noticed.
    turn: Option<Instant>,
    keeping: Keeping,
    burst: Instant,
    /// What was to be done, and when.
    steps: Vec<(Instant, Step)>,
    store: Store,
    directory: Arc<tempfile::TempDir>,
}

impl World {
    fn new(lifetime: Duration) -> Self {
        let directory = Arc::new(tempfile::tempdir().unwrap());
        Self::beside(lifetime, POLICY, &Store::open(directory.path()).unwrap(), directory)
    }

    fn beside(lifetime: Duration, policy: Policy, store: &Store, directory: Arc<tempfile::TempDir>) -> Self {
        let nat = Nat { lifetime, is_open: true, resting: 0, tried: Vec::new() };
        let gateway = Gateway(Arc::new(Mutex::new(nat)));
        let (sender, news) = mpsc::channel(8);
        World {
            sleeper: Sleeper::new(now(), policy, 7, store.clone(), gateway.clone(), sender),
            news,
            gateway,
            place: Place { replica: PublicKey::from_bytes([7; 32]), network: "home".into() },
            session: Some(now()),
            wake: None,
            turn: None,
            keeping: Keeping::Always,
            burst: now(),
            steps: Vec::new(),
            store: store.clone(),
            directory,
        }
    }

    /// Asleep, over mappings that live for so long.
    async fn asleep(lifetime: Duration) -> Self {
        let mut world = World::new(lifetime);
        world.until(MINUTE * 5, |world| world.keeping == Keeping::Never).await;
        world
    }

    async fn live(&mut self, time: Duration) {
        self.run(time, |_| false).await;
    }

    async fn until(&mut self, most: Duration, is_so: impl Fn(&Self) -> bool) -> Duration {
        let began = now();
        assert!(self.run(most, is_so).await, "{:?}", self.sleeper.standby());
        now() - began
    }

    /// Lives on for so long, or until it is so.
    async fn run(&mut self, time: Duration, is_so: impl Fn(&Self) -> bool) -> bool {
        let end = now() + time;
        loop {
            self.act();
            if is_so(self) {
                return true;
            }
            let burst = Some(self.burst).filter(|_| self.keeping != Keeping::Never);
            let wake = self.wake.map(|(at, _)| at);
            let due = [self.sleeper.poll_timeout(), wake, self.turn, burst].into_iter().flatten().min();
            let due = due.unwrap_or(end).min(end);
            tokio::select! {
                biased;
                Some(news) = self.news.recv() => self.sleeper.handle_news(now(), &news),
                () = sleep_until(due.into()) => self.happen(),
            }
            if now() >= end {
                self.act();
                return is_so(self);
            }
        }
    }

    fn is_mapped(&self) -> bool {
        self.session.is_some_and(|refreshed| now() - refreshed < self.gateway.nat().lifetime)
    }

    fn happen(&mut self) {
        let now = now();
        if self.turn.take_if(|at| *at <= now).is_some() {
            // It is noticed to be gone, and then it is there again.
            let is_gone = self.session.take().is_some();
            self.wake = None;
            self.turn = is_gone.then_some(now + RTT * 4);
            if !is_gone {
                self.session = Some(now);
            }
        }
        if let Some((_, seq)) = self.wake.take_if(|(at, _)| *at <= now)
            && self.is_mapped()
        {
            self.session = Some(now);
            self.sleeper.handle_wake(now, seq);
        }
        if self.burst <= now && self.keeping != Keeping::Never {
            self.burst = now + UDP.interval;
            self.sleeper.handle_burst(now);
        }
        self.sleeper.handle_timeout(now);
    }

    fn act(&mut self) {
        let now = now();
        let session = self.session.map(|_| "192.0.2.1:443".parse().unwrap());
        self.sleeper.handle_ready(now, Some(self.place.clone()), session, Ended::TimedOut);
        self.sleeper.handle_cost(now, UDP);
        while let Some(step) = self.sleeper.poll_step(now) {
            match &step {
                Step::Rest(rest) if self.is_mapped() => {
                    self.session = Some(now);
                    self.wake = Some((now + span(rest.wake_after).max(RTT), rest.seq));
                }
                Step::Rest(_) => self.turn = self.turn.or(Some(now + USER_TIMEOUT)),
                Step::Keep(keeping) => {
                    self.keeping = *keeping;
                    self.burst = now;
                }
                Step::Doubt => {}
            }
            self.steps.push((now, step));
        }
    }

    /// How long the session is silent, as the last rest says.
    fn silence(&self) -> Duration {
        let mut rests = self.steps.iter().rev().filter_map(|(_, step)| match step {
            Step::Rest(rest) => Some(span(rest.wake_after)),
            _ => None,
        });
        rests.find(|after| !after.is_zero()).unwrap()
    }

    fn doubts(&self) -> usize {
        self.steps.iter().filter(|(_, step)| *step == Step::Doubt).count()
    }
}

fn reachable_by_session(report: &v1::StandbyReport) -> bool {
    report.reachable_by() == v1::keepalive_policy::Standby::Session
}

#[tokio::test(start_paused = true)]
async fn a_client_sleeps_once_its_session_was_proven_and_tells_the_gateway_after_its_keeper_rests() {
    let mut world = World::new(MINUTE * 5);
    world.act();
    assert!(!world.sleeper.sleeps() && world.sleeper.patience().is_none());
    assert!(!reachable_by_session(&world.sleeper.report()));
    let took = world.until(MINUTE * 5, |world| world.keeping == Keeping::Never).await;
    assert!(took >= SECOND * 25, "{took:?}: nothing was proven yet");
    let keep = world.steps.iter().position(|(_, step)| *step == Step::Keep(Keeping::Never)).unwrap();
    let holds: Vec<_> = world
        .steps
        .iter()
        .map(|(_, step)| match step {
            Step::Rest(rest) => rest.hold_after.map(|after| span(Some(after))),
            _ => None,
        })
        .collect();
    let hold = UDP.interval.mul_f64(OVER);
    assert!(holds[..keep].iter().all(Option::is_none), "{holds:?}");
    assert_eq!(holds[keep + 1], Some(hold), "the first rest that it sleeps on");
    assert!(world.sleeper.sleeps() && reachable_by_session(&world.sleeper.report()));
    assert_eq!(world.sleeper.patience(), Some(world.sleeper.standby().lifetime().at_least));
}

#[tokio::test(start_paused = true)]
async fn canaries_find_how_long_mappings_live_and_the_session_never_pays_for_it() {
    let lifetime = MINUTE * 20;
    let mut world = World::asleep(lifetime).await;
    world.live(HOUR * 12).await;
    assert_eq!(world.keeping, Keeping::Never);
    assert_eq!(world.sleeper.standby().stats().suspected_losses, 0);
    let found = world.silence();
    assert!(found > lifetime.mul_f64(0.85) && found < lifetime, "{found:?}");
    let tried = world.gateway.nat().tried.clone();
    assert!(tried.iter().any(|age| *age >= lifetime), "its end was found by canaries: {tried:?}");
    assert_eq!((world.gateway.nat().resting, world.sleeper.canaries.len()), (0, 0), "none is left");
}

#[tokio::test(start_paused = true)]
async fn a_canary_that_cannot_be_had_is_tried_again_later_and_leaves_nothing_behind() {
    let mut world = World::new(MINUTE * 20);
    world.gateway.nat().is_open = false;
    world.until(MINUTE * 5, |world| world.keeping == Keeping::Never).await;
    world.live(HOUR * 6).await;
    let opened = world.sleeper.standby().stats().canaries;
    assert!((10..=40).contains(&opened), "{opened}");
    assert!(world.sleeper.canaries.len() <= 1, "{}", world.sleeper.canaries.len());
    assert_eq!(world.keeping, Keeping::Never, "the session is as good as before");
}

#[tokio::test(start_paused = true)]
async fn a_canary_that_is_given_up_ends_its_connection() {
    let mut world = World::asleep(MINUTE * 20).await;
    world.until(HOUR, |world| world.gateway.nat().resting > 0).await;
    world.sleeper.handle_policy(now(), Policy { preference: Preference::UdpOnly, ..POLICY });
    world.live(SECOND).await;
    assert_eq!((world.gateway.nat().resting, world.keeping), (0, Keeping::Always));
}

#[tokio::test(start_paused = true)]
async fn a_wake_that_does_not_come_keeps_the_binding_again_and_what_was_proven_is_proven_anew() {
    let mut world = World::asleep(MINUTE * 20).await;
    world.live(HOUR * 3).await;
    let silence = world.silence();
    world.gateway.nat().lifetime = MINUTE;
    let took = world.until(silence * 2, |world| world.keeping == Keeping::Always).await;
    assert!(took <= silence + SECOND * 5, "{took:?} after a silence of {silence:?}");
    let asked = world.steps.iter().rev().find_map(|(_, step)| match step {
        Step::Rest(rest) => Some(span(rest.wake_after)),
        _ => None,
    });
    assert_eq!(asked, Some(Duration::ZERO), "the session is asked whether it lives");
    assert!(!world.sleeper.rests());
    let ended = world.until(MINUTE, |world| world.session.is_none()).await;
    assert!(ended <= USER_TIMEOUT + RTT, "{ended:?}");
    world.live(HOUR * 8).await;
    assert!(world.silence() < MINUTE, "{:?}", world.silence());
}

#[tokio::test(start_paused = true)]
async fn a_poke_that_nothing_follows_casts_doubt_on_the_path_once() {
    let mut world = World::asleep(MINUTE * 20).await;
    let poked = now();
    world.sleeper.handle_poke(poked);
    world.until(MINUTE, |world| world.doubts() > 0).await;
    assert_eq!(now() - poked, WOKEN);
    world.live(MINUTE).await;
    assert_eq!((world.doubts(), world.sleeper.report().last_wake), (1, None));
}

#[tokio::test(start_paused = true)]
async fn a_poke_that_data_follows_is_measured_and_opens_the_binding_for_as_long_as_data_flows() {
    let mut world = World::asleep(MINUTE * 20).await;
    world.sleeper.handle_poke(now());
    world.live(Duration::from_millis(300)).await;
    assert_eq!(world.keeping, Keeping::Opened);
    assert!(
        reachable_by_session(&world.sleeper.report()),
        "that data flows for a while is not worth a message"
    );
    world.sleeper.handle_traffic(now(), None, Some(now()));
    let woken = world.sleeper.report().last_wake;
    assert_eq!(span(woken), Duration::from_millis(300));
    let over = world.until(MINUTE, |world| world.keeping == Keeping::Never).await;
    assert!(over <= UDP.interval, "{over:?}");
    assert_eq!(world.doubts(), 0);
}

#[tokio::test(start_paused = true)]
async fn data_that_was_there_before_does_not_wake_and_new_data_does() {
    let mut world = World::asleep(MINUTE * 20).await;
    let first = now();
    world.sleeper.handle_traffic(first, Some(first), None);
    world.live(SECOND).await;
    assert_eq!(world.keeping, Keeping::Never);
    world.sleeper.handle_traffic(now(), Some(first), None);
    world.live(SECOND).await;
    assert_eq!(world.keeping, Keeping::Never);
    world.sleeper.handle_traffic(now(), Some(now()), None);
    world.live(Duration::ZERO).await;
    assert_eq!(world.keeping, Keeping::Opened);
}

#[tokio::test(start_paused = true)]
async fn what_was_learnt_is_written_a_minute_later_and_tried_first_after_a_restart() {
    let mut world = World::new(MINUTE * 20);
    let written = |world: &World| Kept::load(&world.store).prior(SystemTime::now(), "home");
    let knows_some = |world: &World| world.sleeper.standby().prior().is_some();
    world.until(MINUTE * 5, knows_some).await;
    world.live(SAVE_PAUSE.mul_f64(0.9)).await;
    assert_eq!(written(&world), None, "a disk is not written for each step");
    world.live(SAVE_PAUSE.mul_f64(0.2)).await;
    assert!(written(&world).is_some());
    world.live(HOUR * 6).await;
    world.sleeper.save();
    let learnt = written(&world).unwrap().at_least;
    assert!(learnt >= MINUTE * 15, "{learnt:?}");

    let mut again = World::beside(MINUTE * 20, POLICY, &world.store, Arc::clone(&world.directory));
    again.until(HOUR, |world| !world.gateway.nat().tried.is_empty()).await;
    assert_eq!(again.gateway.nat().tried[0], learnt);
}

#[tokio::test(start_paused = true)]
async fn another_network_begins_with_nothing_that_was_learnt() {
    let mut world = World::asleep(MINUTE * 20).await;
    world.live(HOUR * 3).await;
    world.place.network = "cafe".into();
    world.live(Duration::ZERO).await;
    assert_eq!((world.keeping, world.sleeper.patience()), (Keeping::Always, None));
    assert_eq!(world.sleeper.standby().lifetime().at_least, Duration::ZERO);
    let proven = world.until(MINUTE * 5, |world| world.keeping == Keeping::Never).await;
    assert!(proven >= SECOND * 25, "{proven:?}");
}
