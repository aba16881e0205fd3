//! Whatever clients and the operator say, the control loop goes on, and its memory has a bound.

use std::net::Ipv4Addr;

use pinhole_proto::hostile::Hostile;
use proptest::prelude::*;
use tokio::sync::oneshot;

use super::*;
use crate::{
    gateway::{
        desired::tests::{peer, state},
        told::{Instance, Said},
    },
    nat::restart::{ADDRESSES, LOSSES_TOGETHER},
};

pub(super) const CLIENTS: u8 = 24;
/// Things remembered of one client, in all maps together.
const A_CLIENT: usize = 64;
/// Things remembered of whatever clients name: verdicts of neighbourhoods, and losses by address.
const NAMED: usize = 4096 * 8 + ADDRESSES + LOSSES_TOGETHER;

/// A loop without a data plane, whose figures are made up.
pub(super) struct Gateway {
    pub(super) control: Control,
    hostile: Hostile,
    pub(super) now: Instant,
    words: Vec<mpsc::Receiver<Word>>,
    reports: mpsc::Receiver<v1::GatewayMessage>,
    _events: mpsc::Receiver<TunnelEvent>,
    _commands: mpsc::Receiver<Command>,
}

pub(super) fn key(n: u8) -> PublicKey {
    PublicKey::from_bytes([n; 32])
}

pub(super) fn desired() -> v1::DesiredState {
    let peer = |n: u8| {
        // Every fourth has no agent.
        let stock = n.is_multiple_of(4).then_some(prost_types::Duration { seconds: 25, nanos: 0 });
        v1::Peer { stock_keepalive: stock, ..peer(&format!("client-{n}"), n) }
    };
    state((1..=CLIENTS).map(peer).collect())
}

impl Gateway {
    pub(super) fn new(seed: u64) -> Self {
        let private_key = PrivateKey::generate().unwrap();
        let (commands, received) = mpsc::channel(1);
        let setup = Setup {
            prober: Prober::new(PrivateKey::generate().unwrap(), private_key.public()),
            private_key,
            listen_port: 51820,
            tun_name: "none".into(),
            threads: Threads::ONE,
            uplink: None,
            pod_address: (Ipv4Addr::LOCALHOST, 51820).into(),
            served: watch::Sender::default(),
            running: watch::Sender::default(),
            snapshot: watch::Sender::default(),
            control: commands,
            faults: Faults::default(),
        };
        let (mut control, events) = Control::new(setup);
        let now = Instant::now();
        control.adopt(now, &Arc::new(Desired::parse(desired()).unwrap().0));
        let (outbox, reports) = mpsc::channel(64);
        control.handle_command(now, Command::LinkUp { outbox });
        let hostile = Hostile::new(seed);
        Self { control, hostile, now, words: Vec::new(), reports, _events: events, _commands: received }
    }

    /// One thing happens, and time passes.
    fn step(&mut self) {
        let peer = key(u8::try_from(self.hostile.below(usize::from(CLIENTS))).unwrap() + 1);
        let session = 1 + self.hostile.below(2) as u64;
        match self.hostile.below(40) {
            0 | 1 => {
                let (words, said) = mpsc::channel(4);
                self.words.push(said);
                self.words.truncate(8);
                let source = Some(self.place());
                let instance = Some(Instance([u8::try_from(session).unwrap(); Instance::LENGTH]));
                let opened = Opened { peer, session, key: None, source, instance, words };
                self.control.handle_command(self.now, Command::SessionOpened(Box::new(opened)));
            }
            2 => self.control.handle_command(self.now, Command::SessionClosed { peer, session }),
            3 => self.sample(),
            4 => {
                let idle = self.hostile.below(2) == 0;
                let idle = idle.then(|| Duration::from_secs(self.hostile.below(100_000) as u64));
                let (from, to) = (Some(self.place()), self.place());
                let session = self.hostile.below(6).checked_sub(1).and_then(|index| index.try_into().ok());
                let moved = TunnelEvent::EndpointChanged { peer, from, to, idle, session };
                self.control.handle_event(self.now, &moved);
            }
            5 if self.hostile.below(8) == 0 => self.snapshot(),
            _ => self.say(peer, session),
        }
        let pause = [0, 0, 1, 100, 5_000, 600_000][self.hostile.below(6)];
        self.now += Duration::from_millis(pause);
        self.control.handle_time(self.now);
        while self.reports.try_recv().is_ok() {}
    }

    fn say(&mut self, peer: PublicKey, session: u64) {
        let said = Said::from(self.hostile.readable::<v1::ClientMessage>("ClientMessage"));
        let command = match said {
            Said::Told(told) => Command::SessionTold { peer, told },
            Said::Rest(asked) => {
                let stirred = Command::SessionStirred { peer, wake_after: asked.wake_after };
                self.control.handle_command(self.now, stirred);
                self.control.health.handle_rest(self.now, &peer, asked.wake_after);
                Command::SessionRests { peer, session, asked }
            }
            Said::Anew => Command::SessionAnew { peer, session },
            Said::Clock(theirs) => {
                let skew = crate::clock::Skew::between(theirs, SystemTime::now());
                Command::SessionClock { peer, session, skew }
            }
            Said::Hello { .. } | Said::Heard(_) | Said::Newer => Command::SessionDoubtful { peer, session },
        };
        self.control.handle_command(self.now, command);
    }

    /// What the data plane would count.
    fn sample(&mut self) {
        let stats = (1..=CLIENTS).map(|n| PeerStats {
            endpoint: Some(self.place()),
            last_receive: (self.hostile.below(2) == 0).then_some(self.now),
            last_handshake: (self.hostile.below(2) == 0).then_some(self.now),
            last_send: Some(self.now),
            ..PeerStats::new(key(n))
        });
        let stats = stats.collect();
        self.control.take_stats(self.now, stats);
    }

    /// An operator that is not itself, and then is again.
    fn snapshot(&mut self) {
        let wire = self.hostile.readable::<v1::DesiredState>("DesiredState");
        if let Ok((desired, _)) = Desired::parse(wire) {
            let desired = self.control.ends.take(self.now, SystemTime::now(), desired);
            self.control.adopt(self.now, &desired);
            for peer in desired.peers.values() {
                let _ = desired.client_config(peer);
            }
            self.control.handle_time(self.now);
        }
        let (desired, _) = Desired::parse(desired()).unwrap();
        let desired = self.control.ends.take(self.now, SystemTime::now(), desired);
        self.control.adopt(self.now, &desired);
    }

    fn place(&mut self) -> SocketAddr {
        let last = u8::try_from(self.hostile.below(4)).unwrap();
        (Ipv4Addr::new(192, 0, 2, last), 1_000 + u16::try_from(self.hostile.below(50)).unwrap()).into()
    }

    /// How much is remembered of clients, and of what they name.
    fn entries(&self) -> (usize, usize) {
        let control = &self.control;
        let nat_states: usize = control.nat_states.values().map(|nat_state| nat_state.entries()).sum();
        let maps = [
            control.sessions.len(),
            control.agents.len(),
            control.sleepers.len(),
            control.changes.len(),
            control.accounted.len(),
            control.nat_states.len(),
        ];
        let (neighbours, named) = control.neighbours.entries();
        (maps.iter().sum::<usize>() + nat_states + neighbours + control.shared_keys.entries(), named)
    }

    fn scrape(&mut self) -> String {
        let (answer, mut page) = oneshot::channel();
        self.control.handle_command(self.now, Command::Metrics(answer));
        page.try_recv().unwrap()
    }
}

fn run(seed: u64, steps: usize) {
    let mut gateway = Gateway::new(seed);
    for _ in 0..steps {
        gateway.step();
    }
    let (clients, named) = gateway.entries();
    assert!(clients <= usize::from(CLIENTS) * A_CLIENT, "{clients} things of {CLIENTS} clients");
    assert!(named <= NAMED, "{named} things that clients named");
    let page = gateway.scrape();
    assert!(page.lines().all(|line| line.starts_with('#') || line.starts_with('p')), "{page}");
}

#[tokio::test]
async fn ten_thousand_hostile_messages_in_a_row_neither_end_a_gateway_nor_fill_its_memory() {
    run(7, 10_000);
}

#[test]
fn a_silence_of_all_time_is_no_silence_that_anybody_computes_with() {
    let mut gateway = Gateway::new(1);
    let forever = Some(prost_types::Duration { seconds: i64::MAX, nanos: 999_999_999 });
    for count in 1..4 {
        for n in 1..=CLIENTS {
            let last = v1::ChurnEvent {
                from: "192.0.2.1:1".into(),
                to: "192.0.2.1:1".into(),
                idle: forever,
                at: Some(SystemTime::now().into()),
            };
            let cause = v1::ChurnCause::MappingLost.into();
            let causes = vec![v1::ChurnOfCause { cause, count, last: Some(last) }];
            let binding = v1::BindingReport {
                at_least: forever,
                confidence: v1::BindingConfidence::Confirmed.into(),
                ..v1::BindingReport::default()
            };
            let told = v1::ClientState {
                binding: Some(binding),
                keepalive: Some(v1::KeepaliveReport { interval: forever, ..Default::default() }),
                churn: Some(v1::ChurnReport { causes, ..v1::ChurnReport::default() }),
                ..v1::ClientState::default()
            };
            let told = Box::new(told.into());
            gateway.control.handle_command(gateway.now, Command::SessionTold { peer: key(n), told });
            gateway.sample();
            gateway.control.handle_time(gateway.now);
            gateway.now += Duration::from_secs(5);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn no_order_of_hostile_messages_ends_a_gateway(seed: u64) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _inside = runtime.enter();
        run(seed, 400);
    }
}
