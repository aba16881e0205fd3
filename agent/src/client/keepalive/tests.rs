//! The driver beside a gateway in memory, in virtual time. Experiments have sockets of their own, which nobody answers here: what
//! the live channel shows has to be enough.

use std::collections::BTreeMap;

use super::*;
use crate::nat::{
    Mode,
    wire::{CookieMint, KeyId, decode_answer, decode_beat, encode_reply, encode_wake},
};

const RTT: Duration = Duration::from_millis(40);
const HERE: &str = "198.51.100.9:4000";
const ELSEWHERE: &str = "203.0.113.5:4001";
const CLIENT: [u8; 32] = [1; 32];

fn replica() -> PublicKey {
    PublicKey::from_bytes([7; 32])
}

struct World {
    driver: KeepaliveDriver,
    now: Instant,
    mint: CookieMint,
    /// Where the gateway sees the tunnel.
    public: SocketAddr,
    /// Whether answers get through.
    is_open: bool,
    /// On their way to the client.
    due: BTreeMap<(Instant, u64), Answer>,
    sent: u64,
    steps: Vec<Step>,
    beats: Vec<(Instant, Beat)>,
    way: TunnelPath,
    _silent: std::net::UdpSocket,
    _arrivals: mpsc::Receiver<Arrival>,
    _directory: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let (sender, arrivals) = mpsc::channel(64);
        let way = TunnelPath {
            replica: replica(),
            endpoint: silent.local_addr().unwrap(),
            others: Vec::new(),
            source: IpAddr::from([127, 0, 0, 1]),
            port: 1000,
            network: "home".into(),
        };
        let store = Store::open(directory.path()).unwrap();
        World {
            driver: KeepaliveDriver::new(Policy::default(), store, sender, 0, Arc::default()),
            now: Instant::now(),
            mint: CookieMint::new(&[1; 32]),
            public: HERE.parse().unwrap(),
            is_open: true,
            due: BTreeMap::new(),
            sent: 0,
            steps: Vec::new(),
            beats: Vec::new(),
            way,
            _silent: silent,
            _arrivals: arrivals,
            _directory: directory,
        }
    }

    /// With a path and a key for it.
    fn up() -> Self {
        let mut world = World::new();
        world.driver.handle_key(world.now, replica(), key());
        let way = world.way.clone();
        world.driver.handle_way(world.now, &way);
        world
    }

    fn put(&mut self, after: Duration, answer: &[u8]) {
        self.sent += 1;
        self.due.insert((self.now + after, self.sent), decode_answer(&key(), answer).unwrap());
    }

    /// What the gateway makes of a beat.
    fn answer(&mut self, datagram: &[u8]) {
        let request = decode_beat(&key(), datagram).unwrap();
        self.beats.push((self.now, request.beat));
        if !self.is_open {
            return;
        }
        let Beat { channel, seq, wake } = request.beat;
        let cookie = self.mint.cookie(&CLIENT, self.public.ip());
        let reply = Reply { channel, seq, observed: self.public, is_endpoint: true };
        self.put(RTT, &encode_reply(&key(), &reply, cookie, request.bait));
        // Another beat of the channel takes the place of a wake that is due later.
        let later = self.now + RTT;
        self.due.retain(|(at, _), answer| *at <= later || !matches!(answer, Answer::Wake(_)));
        if let Some(wake) = wake.filter(|_| self.mint.accepts(request.cookie, &CLIENT, self.public.ip())) {
            self.put(RTT + wake, &encode_wake(&key(), crate::nat::Wake { channel, seq }));
        }
    }

    /// Lives on for so long, or until something is to be done that `ends` likes.
    fn run(&mut self, span: Duration, ends: impl Fn(&Step) -> bool) -> bool {
        let end = self.now + span;
        loop {
            while let Some(step) = self.driver.poll_step() {
                let is_end = ends(&step);
                if let Step::Beat(to, datagram) = &step {
                    assert_eq!(*to, replica());
                    self.answer(datagram);
                } else {
                    self.steps.push(step);
                }
                if is_end {
                    return true;
                }
            }
            let arrival = self.due.first_key_value().map(|((at, _), _)| *at);
            let next = self.driver.poll_timeout().into_iter().chain(arrival).min();
            let Some(next) = next.filter(|next| *next <= end) else {
                self.now = end;
                return false;
            };
            self.now = self.now.max(next);
            match self.due.first_entry().filter(|entry| entry.key().0 <= self.now) {
                Some(entry) => {
                    let answer = entry.remove();
                    self.driver.handle_answer(self.now, replica(), answer);
                }
                None => self.driver.handle_timeout(self.now),
            }
        }
    }

    fn live(&mut self, seconds: u64) {
        self.run(Duration::from_secs(seconds), |_| false);
    }

    fn beats_within(&mut self, seconds: u64) -> usize {
        let before = self.beats.len();
        self.live(seconds);
        self.beats.len() - before
    }

    /// The causes of what was told, with how often.
    fn causes(&self) -> Vec<(v1::ChurnCause, u64)> {
        let mut state = v1::ClientState::default();
        self.driver.report(self.now, None, &mut state);
        let causes = state.churn.unwrap_or_default().causes;
        causes.iter().map(|of| (of.cause(), of.count)).collect()
    }
}

fn key() -> BeatKey {
    BeatKey::new(KeyId(1), &[5; 32])
}

#[tokio::test]
async fn nothing_is_sent_without_a_path_a_key_or_leave() {
    let mut world = World::new();
    let way = world.way.clone();
    world.driver.handle_way(world.now, &way);
    assert_eq!(world.beats_within(120), 0, "no key");
    world.driver.handle_key(world.now, replica(), key());
    assert_eq!(world.beats_within(120), 0, "the path was refused: nobody told of it again");
    world.driver.handle_way(world.now, &way);
    assert!(world.beats_within(120) > 3);
    world.driver.handle_policy(world.now, Policy::default(), false);
    assert_eq!(world.beats_within(3600), 0, "the user wants none");
    world.driver.handle_policy(world.now, Policy::default(), true);
    world.driver.handle_way(world.now, &way);
    assert!(world.beats_within(120) > 3);
    world.driver.handle_unreachable(world.now);
    assert_eq!(world.beats_within(3600), 0, "there is no network");
}

#[tokio::test]
async fn beats_are_trusted_once_one_was_answered_and_lost_when_none_is_any_more() {
    let mut world = World::up();
    world.is_open = false;
    world.live(60);
    assert_eq!((world.driver.interval(), world.steps.len()), (None, 0), "who never answered is not lost");
    world.is_open = true;
    assert!(world.run(Duration::from_mins(2), |step| matches!(step, Step::Confirmed(rtt) if *rtt == RTT)));
    let interval = world.driver.interval().unwrap();
    assert!(interval <= Policy::default().interval, "{interval:?}");
    assert_eq!(world.driver.observed(), Some(world.public));
    world.live(600);
    assert!(!world.steps.contains(&Step::Lost), "{:?}", world.steps);
    world.is_open = false;
    let since = world.now;
    let interval = world.driver.interval().unwrap();
    assert!(world.run(Duration::from_hours(1), |step| *step == Step::Lost));
    assert!(world.now - since <= interval + Duration::from_secs(8), "{:?}", world.now - since);
    assert_eq!(world.driver.interval(), None);
}

#[tokio::test]
async fn a_gateway_that_started_anew_is_told_once() {
    let mut world = World::up();
    world.live(120);
    world.mint = CookieMint::new(&[2; 32]);
    world.live(600);
    let restarts = world.steps.iter().filter(|step| **step == Step::Restarted(replica())).count();
    assert_eq!(restarts, 1, "{:?}", world.steps);
    assert!(world.driver.interval().is_some());
}

#[tokio::test]
async fn a_move_is_told_with_the_first_answer_on_the_new_path_and_by_its_cause() {
    let mut world = World::up();
    world.live(120);
    assert_eq!(world.causes(), []);
    let roamed = TunnelPath { network: "cafe".into(), ..world.way.clone() };
    world.public = ELSEWHERE.parse().unwrap();
    world.driver.handle_way(world.now, &roamed);
    assert_eq!(world.causes(), [], "nobody knows yet where to");
    world.live(5);
    assert_eq!(world.causes(), [(v1::ChurnCause::Roam, 1)]);
    let (count, last) = world.driver.churn();
    let last = last.unwrap();
    assert_eq!((count, last.from, last.to), (1, Some(HERE.parse().unwrap()), Some(world.public)));
    let moved = TunnelPath { endpoint: "127.0.0.1:9".parse().unwrap(), ..roamed };
    world.driver.handle_way(world.now, &moved);
    world.live(5);
    assert_eq!(world.causes(), [(v1::ChurnCause::Roam, 1), (v1::ChurnCause::GatewayMoved, 1)]);
}

#[tokio::test]
async fn a_binding_that_moves_under_the_tunnel_is_a_mapping_that_changed() {
    let mut world = World::up();
    world.live(120);
    world.public = SocketAddr::new(world.public.ip(), 4999);
    world.live(120);
    let causes = world.causes();
    assert_eq!(causes.iter().map(|(_, count)| count).sum::<u64>(), 1, "{causes:?}");
    assert!(
        matches!(causes[0].0, v1::ChurnCause::MappingChanged | v1::ChurnCause::LifetimeShrank),
        "{causes:?}"
    );
}

#[tokio::test]
async fn a_router_that_rewrites_addresses_in_packets_is_named_once() {
    let mut world = World::up();
    world.live(60);
    let altered = |answer: &mut Answer| {
        if let Answer::Reply(echo) = answer {
            echo.mapped_intact = false;
        }
    };
    for _ in 0..3 {
        world.run(Duration::from_mins(2), |step| matches!(step, Step::Beat(..)));
        world.due.values_mut().for_each(altered);
        world.live(2);
    }
    assert_eq!(world.causes(), [(v1::ChurnCause::HelperInterference, 1)]);
    assert_eq!(world.driver.behaviour().helper_interference, Finding::Yes);
}

#[tokio::test]
async fn who_sleeps_sends_nothing_until_the_binding_is_opened_for_data() {
    let mut world = World::up();
    world.live(120);
    world.driver.handle_keeping(world.now, Keeping::Never);
    assert_eq!(world.beats_within(3600), 0);
    world.driver.handle_keeping(world.now, Keeping::Opened);
    assert!(world.beats_within(10) > 0);
}

#[tokio::test]
async fn a_poke_asks_the_path_at_once_but_not_while_a_beat_is_under_way() {
    let mut world = World::up();
    let policy = Policy { mode: Mode::Fixed, interval: Duration::from_secs(20), ..Policy::default() };
    world.driver.handle_policy(world.now, policy, true);
    world.live(600);
    assert!(world.run(Duration::from_mins(2), |step| matches!(step, Step::Beat(..))));
    world.driver.handle_poke(world.now);
    assert!(world.driver.poll_step().is_none_or(|step| !matches!(step, Step::Beat(..))));
    let idle = |world: &World| world.beats.last().is_some_and(|(at, _)| world.now > *at + POKE_PAUSE);
    assert!((0..600).any(|_| {
        world.live(1);
        idle(&world)
    }));
    let before = world.beats.len();
    world.driver.handle_poke(world.now);
    world.run(Duration::ZERO, |_| false);
    assert!(world.beats.len() > before);
}

#[tokio::test]
async fn a_fixed_interval_is_kept_whatever_is_learnt() {
    let mut world = World::up();
    let interval = Duration::from_secs(20);
    let policy = Policy { mode: Mode::Fixed, interval, ..Policy::default() };
    world.driver.handle_policy(world.now, policy, true);
    world.live(60);
    assert_eq!((world.driver.interval(), world.driver.reason()), (Some(interval), Reason::Policy));
    let bursts = world.beats_within(600);
    assert!((30..=90).contains(&bursts), "{bursts}");
}
