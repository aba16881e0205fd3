//! What a gateway says on a session, as far as it is believed: parsed here, once. Pure.
//!
//! Configurations are the exception: they are kept on disk as they came, and parsed by [`Settings`](super::settings::Settings)
//! wherever they come from.

use std::time::SystemTime;

use pinhole_proto::{bounds, v1};
use tonic::transport::Channel;
use v1::client_session_client::ClientSessionClient;
use zeroize::Zeroizing;

use super::{
    ClientError,
    error::{known_category, said},
};
use crate::{
    identity::certificate,
    nat::{
        Guidance, Prior,
        wire::{BeatKey, KeyId},
    },
    wire::binding_from_wire,
};

/// Bytes of the largest message of a gateway: a configuration with ten thousand routes has a fifth of it.
const LARGEST_MESSAGE: usize = 1 << 20;
/// Bytes of WireGuard's handshake initiation.
const INITIATION: usize = 148;

/// Calls to a gateway over this channel.
pub(super) fn client(channel: Channel) -> ClientSessionClient<Channel> {
    ClientSessionClient::new(channel).max_decoding_message_size(LARGEST_MESSAGE)
}

/// What a gateway says of clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Clock {
    /// Handshakes are dropped as not new. Else any is taken from now on.
    pub(super) stale: bool,
    /// The time there.
    pub(super) now: Option<SystemTime>,
}

/// A message of a gateway.
pub(super) enum Heard {
    /// A newer configuration.
    Config(Box<v1::ClientConfig>),
    /// The right to connect was taken away.
    Cut(ClientError),
    /// The key of beats.
    BeatKey(BeatKey),
    /// It hears nothing on the tunnel.
    Poke,
    /// It holds packets, and this initiation for them.
    Initiation(Box<[u8]>),
    /// What it advises about experiments. A prior that makes no sense is none.
    Guidance(Guidance),
    /// The session was silent for as long as the rest of this number asked for.
    Wake(u64),
    /// Whether another machine connects with the same key.
    KeyShared(bool),
    /// How handshakes fare, and what the time is there, where it is one.
    Clock(Clock),
    /// Something that this client does not know, or of another time.
    Newer,
}

impl From<v1::SessionMessage> for Heard {
    fn from(wire: v1::SessionMessage) -> Self {
        use v1::session_message::Message;
        match wire.message {
            Some(Message::Config(config)) => Self::Config(Box::new(config)),
            Some(Message::Cut(cut)) => Self::Cut(cut_off(known_category(&cut.category), &cut.message)),
            Some(Message::BeatKey(key)) => match <[u8; BeatKey::SECRET]>::try_from(key.secret) {
                Ok(secret) => Self::BeatKey(BeatKey::new(KeyId(key.id), &Zeroizing::new(secret))),
                Err(_) => Self::Newer,
            },
            Some(Message::Poke(poke)) => match poke.initiation.len() {
                0 => Self::Poke,
                INITIATION => Self::Initiation(poke.initiation.into()),
                _ => Self::Newer,
            },
            Some(Message::Guidance(guidance)) => Self::Guidance(advised(&guidance)),
            Some(Message::Wake(wake)) => Self::Wake(wake.seq),
            Some(Message::KeyShared(told)) => Self::KeyShared(told.shared),
            Some(Message::Clock(clock)) => {
                Self::Clock(Clock { stale: clock.stale, now: bounds::time(clock.now) })
            }
            None => Self::Newer,
        }
    }
}

/// The end of the right to connect, with a reason that can be shown.
pub(super) fn cut_off(category: &'static str, message: &str) -> ClientError {
    ClientError::Cut { category, message: said(message) }
}

/// A certificate that was asked for: its chain, and the bundle to trust from now on, which is empty where the old one stays.
/// One that cannot be read must not take the place of one that can.
pub(super) fn issued(wire: v1::IssuedCertificate) -> Result<(String, String), ClientError> {
    certificate::validity(&wire.chain_pem)?;
    if !wire.ca_pem.is_empty() {
        certificate::chain(&wire.ca_pem)?;
    }
    Ok((wire.chain_pem, wire.ca_pem))
}

fn advised(wire: &v1::Guidance) -> Guidance {
    let prior = wire.prior.as_ref().and_then(binding_from_wire);
    Guidance { prior: prior.map(|binding| Prior { binding }), wait: wire.wait }
}

#[cfg(test)]
mod tests {
    use std::{
        net::Ipv4Addr,
        time::{Duration, Instant},
    };

    use pinhole_proto::hostile::Hostile;
    use proptest::prelude::*;

    use super::*;
    use crate::{
        client::{
            routes::{self, Choice, Wanted},
            settings::Settings,
        },
        health::{
            Jitter,
            client::{Candidate, ClientHealth},
        },
        nat::{
            Action, Beat, Channel, Keeper, Path, Reply, Wake,
            standby::{self, Line, Standby, UdpCost},
            wire::{self, Answer},
        },
        tunnel::PublicKey,
    };

    /// Things that one machine may want done at a time, and sockets that it may have open.
    const WANTED: usize = 2_000;
    const OPEN: usize = 40;

    /// All that decides in a client, without sockets.
    struct Client {
        health: ClientHealth<PublicKey>,
        keeper: Keeper,
        standby: Standby,
        key: BeatKey,
        now: Instant,
        beats: Vec<Beat>,
    }

    fn config() -> v1::ClientConfig {
        v1::ClientConfig {
            client: Some(v1::ObjectRef {
                namespace: "vpn".into(),
                name: "laptop".into(),
                uid: String::new(),
            }),
            addresses: vec!["10.77.0.9/32".into()],
            ..v1::ClientConfig::default()
        }
    }

    impl Client {
        fn new() -> Self {
            let settings = Settings::parse(config()).unwrap();
            let now = Instant::now();
            let mut health = ClientHealth::new(settings.effective_mode(), settings.interval, Jitter::new(1));
            let candidate = |n| Candidate {
                replica: PublicKey::from_bytes([n; 32]),
                endpoint: (Ipv4Addr::new(192, 0, 2, n), 51820).into(),
            };
            health.handle_candidates(now, vec![candidate(1), candidate(2)]);
            let keeper = Keeper::new(now, settings.policy, None, 1);
            let standby = Standby::new(now, settings.standby, None, 1);
            Self { health, keeper, standby, key: BeatKey::new(KeyId(1), &[1; 32]), now, beats: Vec::new() }
        }

        fn hear(&mut self, message: v1::SessionMessage) {
            let now = self.now;
            self.standby.handle_session_packet(now);
            match Heard::from(message) {
                Heard::Config(config) => {
                    // A list that makes no sense must not keep the policy from being tried.
                    let rest = v1::ClientConfig {
                        keepalive: config.keepalive,
                        health: config.health,
                        mtu: config.mtu & 0xffff,
                        ..self::config()
                    };
                    let settings = Settings::parse(*config).or_else(|_| Settings::parse(rest)).unwrap();
                    self.health.handle_policy(settings.effective_mode(), settings.interval);
                    self.keeper.handle_policy(now, settings.policy);
                    self.standby.handle_policy(now, settings.standby);
                    let wanted = Wanted {
                        device: 1,
                        pool: &settings.routes,
                        gateway: &settings.gateway_addresses(),
                        outer: &[Ipv4Addr::new(192, 0, 2, 1).into()],
                        choice: &Choice::default(),
                        has_ipv6: true,
                    };
                    routes::plan(&wanted, &[]);
                    settings.peers(settings.replicas.first().map(|replica| &replica.public_key));
                }
                Heard::Cut(error) => assert!(!error.to_string().chars().any(char::is_control)),
                Heard::BeatKey(key) => self.key = key,
                Heard::Poke => self.keeper.handle_path(now, Path::Up),
                Heard::Initiation(initiation) => {
                    assert_eq!(initiation.len(), INITIATION);
                    self.standby.handle_poke(now);
                }
                Heard::Guidance(guidance) => {
                    self.keeper.handle_guidance(now, guidance);
                    if let Some(Prior { binding }) = guidance.prior {
                        self.standby.handle_network(now, Some(standby::Prior { at_least: binding.at_least }));
                    }
                }
                Heard::Wake(seq) => self.standby.handle_wake(now, Line::Live, seq),
                Heard::KeyShared(_) | Heard::Clock(_) | Heard::Newer => {}
            }
        }

        /// What comes by UDP, under the key that the gateway has: answers to beats that were sent, and to none.
        fn answer(&mut self, hostile: &mut Hostile) {
            let seqs = [0, 1, u64::MAX, u64::MAX / 2];
            let any = Beat { channel: Channel::Live, seq: seqs[hostile.below(4)], wake: None };
            let beat = if hostile.below(3) == 0 { any } else { self.beats.pop().unwrap_or(any) };
            let from = (Ipv4Addr::new(198, 51, 100, 1), u16::try_from(hostile.below(4)).unwrap()).into();
            let datagram = match hostile.below(5) {
                0..3 => {
                    let reply = Reply {
                        channel: beat.channel,
                        seq: beat.seq,
                        observed: from,
                        is_endpoint: hostile.below(2) == 0,
                    };
                    wire::encode_reply(&self.key, &reply, wire::Cookie::default(), wire::BaitHash::of(from))
                }
                3 => {
                    let wake = Wake { channel: beat.channel, seq: beat.seq };
                    wire::encode_wake(&self.key, wake)
                }
                _ => hostile.bytes("ClientMessage"),
            };
            match wire::decode_answer(&self.key, &datagram) {
                Some(Answer::Reply(echo)) => {
                    self.health.handle_beat(self.now, Duration::from_millis(9));
                    self.keeper.handle_reply(self.now, echo.reply);
                }
                Some(Answer::Wake(wake)) => self.keeper.handle_wake(self.now, wake),
                Some(Answer::Recall) | None => {}
            }
        }

        /// What a gateway does that is itself: it answers all, and time goes on to whatever comes next.
        fn go_on(&mut self) {
            let observed = (Ipv4Addr::new(198, 51, 100, 1), 1).into();
            for Beat { channel, seq, .. } in std::mem::take(&mut self.beats) {
                self.keeper.handle_reply(self.now, Reply { channel, seq, observed, is_endpoint: true });
            }
            let due = [self.keeper.poll_timeout(), self.standby.poll_timeout()];
            self.now = due.into_iter().flatten().min().unwrap_or(self.now).max(self.now);
            self.act();
        }

        /// Time passes, and the machines want things.
        fn act(&mut self) {
            self.health.handle_beats(self.now, Some(self.keeper.interval()));
            self.standby.handle_udp(self.now, UdpCost { interval: self.keeper.interval(), learnt: true });
            self.health.handle_timeout(self.now);
            self.keeper.handle_timeout(self.now);
            self.standby.handle_timeout(self.now);
            let health = std::iter::from_fn(|| self.health.poll_action()).take(WANTED).count();
            let standby = std::iter::from_fn(|| self.standby.poll_action()).take(WANTED).count();
            let mut keeper = 0;
            while let Some(action) = self.keeper.poll_action() {
                keeper += 1;
                if let Action::Send(beat) = action {
                    self.beats.push(beat);
                }
            }
            assert!(health.max(standby).max(keeper) < WANTED, "{health} {standby} {keeper}");
            let excess = self.beats.len().saturating_sub(OPEN);
            self.beats.drain(..excess);
            let _ = (
                self.keeper.binding(),
                self.keeper.reason(),
                self.standby.interval(),
                self.health.interval(),
            );
        }
    }

    fn run(seed: u64, steps: usize) {
        let (mut client, mut hostile) = (Client::new(), Hostile::new(seed));
        client.standby.handle_attached(client.now);
        for _ in 0..steps {
            match hostile.below(8) {
                0..3 => client.hear(hostile.readable("SessionMessage")),
                3 => client.answer(&mut hostile),
                // Another network, of which nothing was measured.
                4 => client.keeper.handle_path(client.now, Path::Fresh { prior: None }),
                // For a while all is well, so that what was said takes effect.
                _ => {
                    for _ in 0..hostile.below(30) {
                        client.go_on();
                    }
                    continue;
                }
            }
            client.now += Duration::from_millis([0, 1, 100, 2_500, 30_000, 900_000][hostile.below(6)]);
            client.act();
        }
    }

    #[test]
    fn ten_thousand_hostile_messages_in_a_row_do_not_end_a_client() {
        run(3, 10_000);
    }

    #[test]
    fn a_prior_of_all_time_is_one_of_a_week() {
        let prior = v1::BindingReport {
            at_least: Some(prost_types::Duration { seconds: i64::MAX, nanos: 0 }),
            confidence: v1::BindingConfidence::Confirmed.into(),
            ..v1::BindingReport::default()
        };
        let message =
            v1::session_message::Message::Guidance(v1::Guidance { prior: Some(prior), wait: false });
        let mut client = Client::new();
        client.hear(v1::SessionMessage { message: Some(message) });
        for _ in 0..200 {
            client.go_on();
        }
    }

    #[test]
    fn a_certificate_that_cannot_be_read_does_not_replace_one_that_can() {
        let wire = v1::IssuedCertificate { chain_pem: "junk".into(), ..v1::IssuedCertificate::default() };
        assert_eq!(issued(wire).unwrap_err().category(), "CertificateInvalid");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn no_order_of_hostile_messages_ends_a_client(seed: u64) {
            run(seed, 400);
        }
    }
}
