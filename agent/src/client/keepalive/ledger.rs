//! Between what is meant and what is sent: numbers of one key, cookies, and baits. Pure.

use std::{
    collections::{HashMap, VecDeque},
    net::{IpAddr, SocketAddr},
};

use crate::nat::{
    Beat, Channel, Payload, Reply, Wake,
    wire::{Answer, BeatKey, Cookie, Echo, encode_beat},
};

/// Beats of a channel that may still be answered. A wake belongs to one of the last few.
const REMEMBERED: usize = 16;

#[derive(Debug)]
struct Sent {
    number: u64,
    seq: u64,
    wants_wake: bool,
    cookie: Cookie,
}

#[derive(Debug)]
struct Account {
    bait: SocketAddr,
    sent: VecDeque<Sent>,
}

/// What an answer means to who asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Read {
    /// To a beat.
    Reply {
        /// With the beat's own number.
        reply: Reply,
        /// What became of the addresses in it.
        payload: Payload,
    },
    /// To a beat whose wake was not taken on, since its cookie was an old one: as good as lost. The next one will do.
    Refused,
    /// Sent by the gateway itself.
    Wake(Wake),
}

/// What was sent under one key, or several.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    last: u64,
    /// The address that the gateway sees, and its cookie there.
    cookie: Option<(IpAddr, Cookie)>,
    accounts: HashMap<Channel, Account>,
}

impl Ledger {
    /// Writes a beat, from the socket that has `local` as its address.
    pub(super) fn write(&mut self, key: &BeatKey, beat: &Beat, local: SocketAddr) -> Vec<u8> {
        // Who asks may start anew with its numbers; a key's never do.
        self.last += 1;
        let number = self.last;
        let cookie = self.cookie.map(|(_, cookie)| cookie).unwrap_or_default();
        let account = self
            .accounts
            .entry(beat.channel)
            .or_insert_with(|| Account { bait: local, sent: VecDeque::new() });
        account.bait = local;
        if account.sent.len() == REMEMBERED {
            account.sent.pop_front();
        }
        let wants_wake = beat.wake.is_some();
        account.sent.push_back(Sent { number, seq: beat.seq, wants_wake, cookie });
        encode_beat(key, &Beat { seq: number, ..*beat }, cookie, local)
    }

    /// Reads what arrived on the channel's socket. Tells as well whether the gateway seems to have started anew, and
    /// so to have forgotten what it was asked.
    pub(super) fn read(&mut self, channel: Channel, answer: Answer) -> Option<(Read, bool)> {
        match answer {
            Answer::Wake(wake) => {
                let sent = self.sent(channel, wake.channel, wake.seq)?;
                Some((Read::Wake(Wake { channel, seq: sent.seq }), false))
            }
            Answer::Reply(echo) => self.read_reply(channel, &echo),
            // It is the session's.
            Answer::Recall => None,
        }
    }

    /// The address that the channel's beats were last sent from.
    pub(super) fn local(&self, channel: Channel) -> Option<SocketAddr> {
        self.accounts.get(&channel).map(|account| account.bait)
    }

    /// The channel's socket is gone.
    pub(super) fn close(&mut self, channel: Channel) {
        self.accounts.remove(&channel);
    }

    fn read_reply(&mut self, channel: Channel, echo: &Echo) -> Option<(Read, bool)> {
        let Reply { observed, seq, .. } = echo.reply;
        let sent = self.sent(channel, echo.reply.channel, seq)?;
        let (refused, seq) = (sent.wants_wake && sent.cookie != echo.cookie, sent.seq);
        let before = self.cookie.replace((observed.ip(), echo.cookie));
        let restarted = before.is_some_and(|(ip, cookie)| ip == observed.ip() && cookie != echo.cookie);
        if refused {
            return Some((Read::Refused, restarted));
        }
        let bait = self.accounts.get(&channel)?.bait;
        let payload = if echo.is_meddled_with(bait) { Payload::Altered } else { Payload::Intact };
        Some((Read::Reply { reply: Reply { seq, ..echo.reply }, payload }, restarted))
    }

    fn sent(&self, socket: Channel, channel: Channel, number: u64) -> Option<&Sent> {
        let account = self.accounts.get(&channel).filter(|_| socket == channel)?;
        account.sent.iter().find(|sent| sent.number == number)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::nat::wire::{
        BaitHash, CookieMint, KeyId, decode_answer, decode_beat, encode_reply, encode_wake,
    };

    const LOCAL: &str = "10.0.0.2:1000";

    struct World {
        ledger: Ledger,
        key: BeatKey,
        mint: CookieMint,
        public: SocketAddr,
    }

    impl World {
        fn new() -> Self {
            World {
                ledger: Ledger::default(),
                key: BeatKey::new(KeyId(1), &[5; 32]),
                mint: CookieMint::new(&[1; 32]),
                public: "192.0.2.9:4000".parse().unwrap(),
            }
        }

        /// Sends a beat; what the gateway answers, and whether it took the wake on.
        fn exchange(&mut self, channel: Channel, seq: u64, wake: Option<Duration>) -> (Answer, bool) {
            let beat = Beat { channel, seq, wake };
            let datagram = self.ledger.write(&self.key, &beat, LOCAL.parse().unwrap());
            let request = decode_beat(&self.key, &datagram).unwrap();
            let cookie = self.mint.cookie(&[1; 32], self.public.ip());
            let reply = Reply { channel, seq: request.beat.seq, observed: self.public, is_endpoint: true };
            let answer = encode_reply(&self.key, &reply, cookie, request.bait);
            let taken = self.mint.accepts(request.cookie, &[1; 32], self.public.ip());
            (decode_answer(&self.key, &answer).unwrap(), taken)
        }

        fn read(&mut self, channel: Channel, answer: Answer) -> Option<(Read, bool)> {
            self.ledger.read(channel, answer)
        }
    }

    #[test]
    fn a_reply_has_the_number_of_its_beat_whoever_else_sends_under_the_key() {
        let mut world = World::new();
        let (first, _) = world.exchange(Channel::Live, 1, None);
        let (second, _) = world.exchange(Channel::Probe(8), 1, None);
        let (Answer::Reply(one), Answer::Reply(two)) = (first, second) else { panic!("no replies") };
        assert_ne!(one.reply.seq, two.reply.seq, "a key's numbers do not repeat");
        for (channel, answer) in [(Channel::Live, first), (Channel::Probe(8), second)] {
            let Some((Read::Reply { reply, payload }, false)) = world.read(channel, answer) else {
                panic!("not read");
            };
            assert_eq!((reply.channel, reply.seq, payload), (channel, 1, Payload::Intact));
        }
        assert_eq!(world.read(Channel::Probe(8), first), None, "it came to another socket");
    }

    #[test]
    fn the_first_cookie_serves_every_later_wake() {
        let mut world = World::new();
        let (answer, taken) = world.exchange(Channel::Live, 1, Some(Duration::from_secs(9)));
        assert!(!taken);
        assert_eq!(world.read(Channel::Live, answer), Some((Read::Refused, false)));
        for (channel, seq) in [(Channel::Live, 2), (Channel::Probe(1), 3)] {
            let (answer, taken) = world.exchange(channel, seq, Some(Duration::from_secs(9)));
            assert!(taken);
            assert!(matches!(world.read(channel, answer), Some((Read::Reply { .. }, false))));
        }
        let Answer::Reply(echo) = world.exchange(Channel::Probe(1), 4, None).0 else { panic!("no reply") };
        let wake = Wake { channel: Channel::Probe(1), seq: echo.reply.seq };
        let wake = decode_answer(&world.key, &encode_wake(&world.key, wake)).unwrap();
        let read = Some((Read::Wake(Wake { channel: Channel::Probe(1), seq: 4 }), false));
        assert_eq!(world.read(Channel::Probe(1), wake), read);
        world.ledger.close(Channel::Probe(1));
        assert_eq!(world.read(Channel::Probe(1), wake), None);
    }

    #[test]
    fn a_gateway_that_started_anew_is_told_from_a_client_that_moved() {
        let mut world = World::new();
        let (answer, _) = world.exchange(Channel::Live, 1, None);
        world.read(Channel::Live, answer);
        world.public = "192.0.2.77:4000".parse().unwrap();
        let (answer, _) = world.exchange(Channel::Live, 2, None);
        assert!(matches!(world.read(Channel::Live, answer), Some((Read::Reply { .. }, false))));
        world.mint = CookieMint::new(&[2; 32]);
        let (answer, _) = world.exchange(Channel::Live, 3, Some(Duration::from_secs(1)));
        assert_eq!(world.read(Channel::Live, answer), Some((Read::Refused, true)));
    }

    #[test]
    fn an_address_that_was_changed_on_the_way_is_noticed() {
        let mut world = World::new();
        let (answer, _) = world.exchange(Channel::Live, 1, None);
        let Answer::Reply(echo) = answer else { panic!("no reply") };
        let changed = Echo { bait: BaitHash::of("192.0.2.9:4000".parse().unwrap()), ..echo };
        let read = world.read(Channel::Live, Answer::Reply(changed));
        assert!(matches!(read, Some((Read::Reply { payload: Payload::Altered, .. }, _))), "{read:?}");
    }
}
