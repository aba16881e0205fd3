//! Packets of one machine and of two with its key, and what is made of them.

use std::net::Ipv4Addr;

use proptest::prelude::*;

use super::*;

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const SLOT: u32 = 0x0007_0100;

fn peer() -> PublicKey {
    PublicKey::from_bytes([1; 32])
}

fn place(last: u8, port: u16) -> SocketAddr {
    (Ipv4Addr::new(198, 51, 100, last), port).into()
}

/// What the data plane makes of packets: it tells of those that come from elsewhere than the one before.
struct Gateway {
    keys: SharedKeys,
    now: Instant,
    began: Instant,
    at: SocketAddr,
    named: Option<Duration>,
    moves: u32,
    flaps: u32,
}

impl Gateway {
    fn new(at: SocketAddr) -> Self {
        let now = Instant::now();
        let keys = SharedKeys::default();
        Self { keys, now, began: now, at, named: None, moves: 0, flaps: 0 }
    }

    /// A packet of the client: data by the session with this index, or a handshake.
    fn hears(&mut self, from: SocketAddr, session: Option<u32>) {
        if from != self.at {
            let before = std::mem::replace(&mut self.at, from);
            match self.keys.handle_move(self.now, peer(), (before, from), session.map(|index| SLOT | index)) {
                Seen::Moved { .. } => self.moves += 1,
                Seen::Flapped => self.flaps += 1,
            }
        }
        if self.keys.shared(&peer()).is_some() && self.named.is_none() {
            self.named = Some(self.now - self.began);
        }
    }

    /// Handshake and first packet.
    fn connects(&mut self, from: SocketAddr, session: u32) {
        self.hears(from, None);
        self.now += MS * 20;
        self.hears(from, Some(session));
    }
}

#[test]
fn two_machines_that_talk_are_named_within_ten_seconds_with_both_places() {
    let (home, office) = (place(1, 4500), place(2, 4501));
    let mut gateway = Gateway::new(home);
    gateway.connects(home, 1);
    gateway.began = gateway.now;
    gateway.connects(office, 2);
    for _ in 0..12 {
        gateway.now += MS * 500;
        gateway.hears(home, Some(1));
        gateway.now += MS * 500;
        gateway.hears(office, Some(2));
    }
    assert!(gateway.named.is_some_and(|after| after < SECOND * 10), "{:?}", gateway.named);
    let (first, second) = gateway.keys.shared(&peer()).unwrap().places.unwrap();
    assert_eq!([first, second].map(|it| it.port()), [4500, 4501]);
    assert_eq!(gateway.keys.poll_news(), Some((peer(), true)));
    assert_eq!(gateway.moves, 1, "only the first one looks like a move");
}

#[test]
fn machines_behind_one_nat_that_keep_alive_and_renew_their_sessions_are_named_too() {
    let (one, other) = (place(1, 4500), place(1, 61_000));
    let mut gateway = Gateway::new(one);
    let (mut of_one, mut of_other) = (1, 2);
    gateway.connects(one, of_one);
    for round in 1..12 {
        gateway.now += SECOND * 11;
        // Every two minutes each has a handshake of its own.
        if round % 5 == 0 {
            (of_one, of_other) = (of_other + 1, of_other + 2);
            gateway.connects(one, of_one);
            gateway.connects(other, of_other);
        }
        gateway.hears(other, Some(of_other));
        gateway.now += SECOND * 14;
        gateway.hears(one, Some(of_one));
    }
    assert!(gateway.named.is_some_and(|after| after < SECOND * 130), "{:?}", gateway.named);
}

#[test]
fn a_laptop_that_goes_to_and_fro_between_two_networks_moves_and_shares_nothing() {
    let (wifi, radio) = (place(1, 4500), place(9, 33_000));
    for handshakes in [false, true] {
        let mut gateway = Gateway::new(wifi);
        let mut session = 1;
        gateway.connects(wifi, session);
        for minutes in 1..20_u32 {
            gateway.now += SECOND * 60 * minutes.min(4);
            let here = if minutes % 2 == 1 { radio } else { wifi };
            if handshakes {
                session += 1;
                gateway.connects(here, session);
            }
            for _ in 0..30 {
                gateway.now += SECOND;
                gateway.hears(here, Some(session));
            }
        }
        assert_eq!((gateway.named, gateway.moves, gateway.flaps), (None, 19, 0));
    }
}

#[test]
fn a_nat_that_deals_out_ports_anew_with_every_packet_is_no_second_machine() {
    let mut gateway = Gateway::new(place(1, 1));
    gateway.connects(place(1, 1), 1);
    for n in 0..2_000_u16 {
        gateway.now += MS * 300;
        // Three ports, of which each comes back, and a handshake every two minutes.
        gateway.hears(place(1, 1 + n % 3), Some(1 + u32::from(n) / 400));
    }
    assert_eq!(gateway.named, None);
}

#[test]
fn one_machine_behind_two_uplinks_is_no_second_machine_though_its_session_changes() {
    let uplinks = [place(1, 4500), place(2, 4500)];
    let mut gateway = Gateway::new(uplinks[0]);
    gateway.connects(uplinks[0], 1);
    for n in 0..6_000_usize {
        gateway.now += MS * 100;
        let session = 1 + u32::try_from(n).unwrap() / 1_200;
        if n % 1_200 == 0 {
            gateway.hears(uplinks[n / 1_200 % 2], None);
        }
        gateway.hears(uplinks[n * 7 % 13 % 2], Some(session));
    }
    assert_eq!(gateway.named, None);
    assert!(gateway.flaps > 1_000 && gateway.moves < 20, "{} {}", gateway.flaps, gateway.moves);
}

#[test]
fn packets_that_a_slow_network_kept_back_for_seconds_are_no_second_machine() {
    let (radio, wifi) = (place(9, 33_000), place(1, 4500));
    let mut gateway = Gateway::new(radio);
    gateway.connects(radio, 1);
    gateway.connects(wifi, 2);
    for _ in 0..40 {
        gateway.now += MS * 50;
        gateway.hears(wifi, Some(2));
        gateway.now += MS * 50;
        gateway.hears(radio, Some(1));
    }
    for _ in 0..100 {
        gateway.now += SECOND;
        gateway.hears(wifi, Some(2));
    }
    assert_eq!((gateway.named, gateway.moves), (None, 1));
}

#[test]
fn a_machine_that_starts_again_and_again_is_one_and_two_that_take_turns_are_two() {
    let mut keys = SharedKeys::default();
    let now = Instant::now();
    let process = |n: u8| Some(Instance([n; Instance::LENGTH]));
    for n in 0..20 {
        keys.handle_attached(now + SECOND * n.into(), peer(), process(n), Some(place(n, 1)));
        keys.handle_attached(now + SECOND * n.into(), peer(), process(n), Some(place(n + 1, 2)));
        keys.handle_attached(now + SECOND * n.into(), peer(), None, Some(place(n + 2, 2)));
    }
    assert_eq!(keys.shared(&peer()), None);
    keys.handle_attached(now + SECOND * 30, peer(), process(100), Some(place(1, 1)));
    keys.handle_attached(now + SECOND * 31, peer(), process(101), Some(place(2, 2)));
    keys.handle_attached(now + SECOND * 32, peer(), process(100), Some(place(1, 3)));
    assert_eq!(keys.shared(&peer()), None, "it may have been held up");
    keys.handle_attached(now + SECOND * 33, peer(), process(101), Some(place(2, 4)));
    let shared = *keys.shared(&peer()).unwrap();
    assert_eq!(shared.places, Some((place(2, 4), place(1, 3))));
    keys.handle_attached(now + SECOND * 34, peer(), process(100), Some(place(1, 5)));
    assert_eq!(keys.shared(&peer()).unwrap().places, shared.places, "ports of connections are no news");
    // What the tunnel shows of places is better.
    for (at, session) in [(36, 1), (40, 2), (44, 1), (48, 2)] {
        let places = [place(1, 4500), place(2, 4501)];
        let [from, to] = if session == 1 { [places[1], places[0]] } else { places };
        keys.handle_move(now + SECOND * at, peer(), (from, to), Some(SLOT | session));
    }
    assert_eq!(keys.shared(&peer()).unwrap().places, Some((place(1, 4500), place(2, 4501))));
}

#[test]
fn it_is_over_five_minutes_after_it_was_last_seen() {
    let mut keys = SharedKeys::default();
    let now = Instant::now();
    for n in 0..4 {
        let process = Some(Instance([n % 2; Instance::LENGTH]));
        keys.handle_attached(now + SECOND * n.into(), peer(), process, Some(place(n % 2, 1)));
    }
    let over = keys.poll_timeout().unwrap();
    assert_eq!(over, now + SECOND * 3 + FORGET_TIMEOUT);
    keys.handle_timeout(now + SECOND * 2 + FORGET_TIMEOUT);
    assert!(keys.shared(&peer()).is_some());
    keys.handle_timeout(over);
    assert_eq!((keys.poll_news(), keys.poll_news()), (Some((peer(), true)), Some((peer(), false))));
    assert_eq!(words(&mut keys), [(peer(), true), (peer(), false)]);
    assert_eq!((keys.poll_timeout(), keys.entries()), (None, 0));
}

#[test]
fn indices_begin_anew_after_two_hundred_and_fifty_six_handshakes() {
    assert!(is_newer(SLOT | 1, SLOT | 0xff) && is_newer(SLOT | 0x10, SLOT | 0x0f));
    assert!(!is_newer(SLOT | 0xff, SLOT | 1) && !is_newer(SLOT | 5, SLOT | 5));
}

proptest! {
    /// Whatever networks, NATs and uplinks do to it, a machine uses its newest session, and what is late is so by less than a
    /// second.
    #[test]
    fn one_machine_is_never_two(
        steps in proptest::collection::vec((0..4_u8, 0..3_u16, 0..5_u8, 0..60_000_u32, any::<bool>()), 0..400),
    ) {
        let mut gateway = Gateway::new(place(0, 0));
        let (mut session, mut since) = (1, gateway.now);
        for (last, port, handshakes, pause, late) in steps {
            gateway.now += MS * pause;
            if handshakes == 0 {
                session += 1;
                since = gateway.now;
                gateway.hears(place(last, port), Some(session));
            }
            let is_late = late && session > 1 && gateway.now - since < LATE;
            gateway.hears(place(last, port), Some(session - u32::from(is_late)));
        }
        prop_assert_eq!(gateway.named, None);
    }
}

/// All that sessions are to be told now.
fn words(keys: &mut SharedKeys) -> Vec<(PublicKey, bool)> {
    std::iter::from_fn(|| keys.poll_word()).collect()
}

#[test]
fn a_machine_at_another_replica_is_told_of_when_the_operator_says_so_again_in_a_while_and_when_it_is_over() {
    let (mut keys, now) = (SharedKeys::default(), Instant::now());
    keys.handle_operator(now, std::iter::empty());
    assert_eq!((words(&mut keys), keys.poll_timeout()), (vec![], None));
    keys.handle_operator(now, std::iter::once(peer()));
    assert_eq!(words(&mut keys), [(peer(), true)]);
    assert!(keys.is_told(&peer()) && keys.shared(&peer()).is_none(), "nothing of it was seen here");
    keys.handle_operator(now + SECOND, std::iter::once(peer()));
    assert_eq!(words(&mut keys), [], "it is no news");
    for _ in 0..3 {
        let due = keys.poll_timeout().unwrap();
        keys.handle_timeout(due.checked_sub(MS).unwrap());
        assert_eq!(words(&mut keys), []);
        keys.handle_timeout(due);
        assert_eq!(words(&mut keys), [(peer(), true)], "an agent would forget it");
    }
    keys.handle_operator(now, std::iter::empty());
    assert_eq!(words(&mut keys), [(peer(), false)]);
    assert_eq!((keys.is_told(&peer()), keys.poll_timeout()), (false, None));
}

#[test]
fn a_client_hears_that_it_is_alone_when_neither_this_replica_nor_the_operator_knows_of_another_machine() {
    let here = |operator: bool| {
        let (mut keys, mut now) = (SharedKeys::default(), Instant::now());
        for process in [1, 2, 1, 2] {
            let process = Instance([process; Instance::LENGTH]);
            keys.handle_attached(now, peer(), Some(process), Some(place(1, 1)));
            now += SECOND;
        }
        assert_eq!(words(&mut keys), [(peer(), true)]);
        keys.handle_operator(now, operator.then(peer).into_iter());
        assert_eq!(words(&mut keys), [], "it knows already");
        keys
    };
    let end = Instant::now() + FORGET_TIMEOUT + SECOND * 9;
    let mut keys = here(false);
    keys.handle_timeout(end);
    assert_eq!(words(&mut keys), [(peer(), false)]);

    let mut keys = here(true);
    keys.handle_timeout(end);
    assert!(words(&mut keys).iter().all(|(_, shared)| *shared), "the operator says still that it is not");
    keys.handle_operator(end, std::iter::empty());
    assert_eq!(words(&mut keys), [(peer(), false)]);

    let mut keys = here(true);
    keys.handle_operator(end, std::iter::empty());
    assert_eq!(words(&mut keys), [], "both are here still");
}

#[test]
fn who_is_no_client_any_more_is_told_nothing() {
    let (mut keys, now) = (SharedKeys::default(), Instant::now());
    keys.handle_operator(now, std::iter::once(peer()));
    keys.retain(|_| false);
    keys.handle_operator(now, std::iter::empty());
    assert_eq!((words(&mut keys), keys.entries()), (vec![], 0));
}
