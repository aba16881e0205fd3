//! The gate in front of handshakes: each costs about 200 µs to answer, and anybody who knows the public key
//! can send one.
//!
//! A source has a small allowance without proof. Beyond it, or when too many wait already ([`HandshakeQueue`]), it must return
//! a cookie (whitepaper, section 5.4.7), which a forged source address cannot. Proven sources come first, within an
//! allowance of their own that nobody can spend in their name; what they ask beyond it is answered last.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use boringtun::{
    noise::{TunnResult, rate_limiter::RateLimiter},
    x25519,
};
use pinhole_reception::place;

use super::handshake_queue::{HandshakeQueue, Priority};

/// Bytes of a cookie reply.
pub(super) const COOKIE_REPLY: usize = 64;
/// Sources remembered. Each costs about 80 bytes.
const SOURCES: usize = 16_384;

/// A token bucket: `rate` a second, up to `burst` at once.
#[derive(Debug, Clone, Copy)]
pub(super) struct Allowance {
    pub(super) rate: u32,
    pub(super) burst: u32,
}

const UNPROVEN: Allowance = Allowance { rate: 20, burst: 100 };
const PROVEN: Allowance = Allowance { rate: 50, burst: 200 };

#[derive(Debug, Clone, Copy)]
pub(super) struct Bucket {
    full_at: Instant,
}

impl Bucket {
    pub(super) const fn full(now: Instant) -> Self {
        Self { full_at: now }
    }

    /// Takes a token if there is one. The bucket is its moment of being full again (GCRA), which needs no
    /// upkeep.
    pub(super) fn take(&mut self, now: Instant, allowance: Allowance) -> bool {
        let token = Duration::from_secs(1) / allowance.rate;
        let full_at = self.full_at.max(now) + token;
        if full_at > now + token * allowance.burst {
            return false;
        }
        self.full_at = full_at;
        true
    }
}

#[derive(Debug)]
struct Source {
    unproven: Bucket,
    proven: Bucket,
}

/// What is to become of a handshake message.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Answer it when its priority comes.
    Admit(Priority),
    /// Send this cookie instead.
    Challenge([u8; COOKIE_REPLY]),
    /// It is broken, not for us, or too much.
    Refuse,
}

pub(super) struct HandshakeGate {
    /// Checks the first MAC only; shared with every `Tunn`, which would otherwise count for itself.
    open: Arc<RateLimiter>,
    /// Always demands a cookie.
    strict: RateLimiter,
    sources: HashMap<IpAddr, Source>,
    /// For proven sources that the full table has no place for.
    overflow: Bucket,
    swept: Instant,
}

impl HandshakeGate {
    pub(super) fn new(public_key: &x25519::PublicKey, now: Instant) -> Self {
        let full = Bucket::full(now);
        Self {
            open: Arc::new(RateLimiter::new(public_key, u64::MAX)),
            strict: RateLimiter::new(public_key, 0),
            sources: HashMap::new(),
            overflow: full,
            swept: now,
        }
    }

    /// The limiter for a `Tunn` behind this gate.
    pub(super) fn limiter(&self) -> Arc<RateLimiter> {
        Arc::clone(&self.open)
    }

    /// Judges a handshake initiation or response.
    pub(super) fn judge(
        &mut self,
        now: Instant,
        source: IpAddr,
        message: &[u8],
        queue: &HandshakeQueue,
    ) -> Verdict {
        if self.open.verify_packet(None, message, &mut []).is_err() {
            return Verdict::Refuse;
        }
        let place = place(source);
        if has_proof(message)
            && self.strict.verify_packet(Some(source), message, &mut [0; COOKIE_REPLY]).is_ok()
        {
            return if queue.has_room(Priority::First) && self.take_proven(now, place) {
                Verdict::Admit(Priority::First)
            } else if queue.has_room(Priority::Spare) {
                Verdict::Admit(Priority::Spare)
            } else {
                Verdict::Refuse
            };
        }
        if queue.has_room(Priority::Newcomer) && self.take_unproven(now, place) {
            return Verdict::Admit(Priority::Newcomer);
        }
        let mut reply = [0; COOKIE_REPLY];
        match self.strict.verify_packet(Some(source), message, &mut reply) {
            Err(TunnResult::WriteToNetwork(cookie)) if cookie.len() == COOKIE_REPLY => {
                Verdict::Challenge(reply)
            }
            _ => Verdict::Refuse,
        }
    }

    fn take_unproven(&mut self, now: Instant, place: IpAddr) -> bool {
        self.source(now, place).is_some_and(|source| source.unproven.take(now, UNPROVEN))
    }

    fn take_proven(&mut self, now: Instant, place: IpAddr) -> bool {
        match self.source(now, place) {
            Some(source) => source.proven.take(now, PROVEN),
            None => self.overflow.take(now, PROVEN),
        }
    }

    fn source(&mut self, now: Instant, place: IpAddr) -> Option<&mut Source> {
        if self.sources.len() >= SOURCES && !self.sources.contains_key(&place) {
            self.sweep(now);
            if self.sources.len() >= SOURCES {
                return None;
            }
        }
        let full = Bucket::full(now);
        Some(self.sources.entry(place).or_insert(Source { unproven: full, proven: full }))
    }

    /// Forgets sources whose allowances are whole again, at most once a second.
    fn sweep(&mut self, now: Instant) {
        if now.saturating_duration_since(self.swept) < Duration::from_secs(1) {
            return;
        }
        self.swept = now;
        self.sources.retain(|_, source| source.unproven.full_at > now || source.proven.full_at > now);
    }
}

/// Whether there is a second MAC. To check one costs a cookie where it is wrong, and most messages have none.
fn has_proof(message: &[u8]) -> bool {
    message.last_chunk::<16>().is_some_and(|mac| *mac != [0; 16])
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use boringtun::noise::Tunn;

    use super::*;
    use crate::tunnel::{PrivateKey, handshake_queue::PendingInitiation};

    struct Fixture {
        gate: HandshakeGate,
        queue: HandshakeQueue,
        client: Tunn,
        now: Instant,
    }

    fn fixture() -> Fixture {
        let (gateway, client) = (PrivateKey::generate().unwrap(), PrivateKey::generate().unwrap());
        let public = gateway.public().to_x25519();
        let now = Instant::now();
        let gate = HandshakeGate::new(&public, now);
        let client = Tunn::new(client.secret().clone(), public, None, None, 1, None);
        Fixture { gate, queue: HandshakeQueue::default(), client, now }
    }

    fn initiation(client: &mut Tunn) -> Vec<u8> {
        let mut buffer = [0; 148];
        match client.format_handshake_initiation(&mut buffer, true) {
            TunnResult::WriteToNetwork(message) => message.to_vec(),
            other => panic!("no initiation but {other:?}"),
        }
    }

    const ADMITTED: Verdict = Verdict::Admit(Priority::Newcomer);
    const HERE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
    const THERE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2));

    #[test]
    fn a_message_without_the_first_mac_is_refused_and_costs_its_source_nothing() {
        let Fixture { mut gate, queue, mut client, now } = fixture();
        let mut message = initiation(&mut client);
        message[120] ^= 1;
        for _ in 0..1000 {
            assert_eq!(gate.judge(now, HERE, &message, &queue), Verdict::Refuse);
        }
        assert!(gate.sources.is_empty());
    }

    #[test]
    fn beyond_its_allowance_a_source_must_return_a_cookie_and_others_need_not() {
        let Fixture { mut gate, queue, mut client, now } = fixture();
        let message = initiation(&mut client);
        let admitted = (0..500).filter(|_| gate.judge(now, HERE, &message, &queue) == ADMITTED).count();
        assert_eq!(admitted, 100);
        assert_eq!(gate.judge(now, THERE, &message, &queue), ADMITTED);

        let Verdict::Challenge(cookie) = gate.judge(now, HERE, &message, &queue) else { panic!("no cookie") };
        assert!(matches!(client.decapsulate(None, &cookie, &mut [0; 148]), TunnResult::Done));
        let proven = initiation(&mut client);
        assert_eq!(gate.judge(now, HERE, &proven, &queue), Verdict::Admit(Priority::First));
        // The cookie is bound to the address.
        let admitted = (0..500).filter(|_| gate.judge(now, THERE, &proven, &queue) == ADMITTED).count();
        assert_eq!(admitted, 99);
    }

    #[test]
    fn an_allowance_grows_back() {
        let Fixture { mut gate, queue, mut client, now } = fixture();
        let message = initiation(&mut client);
        while gate.judge(now, HERE, &message, &queue) == ADMITTED {}
        let later = now + Duration::from_secs(2);
        let admitted = (0..500).filter(|_| gate.judge(later, HERE, &message, &queue) == ADMITTED).count();
        assert_eq!(admitted, 40);
    }

    #[test]
    fn forged_sources_take_bounded_memory_and_a_proven_one_still_gets_in() {
        let Fixture { mut gate, queue, mut client, now } = fixture();
        let message = initiation(&mut client);
        for n in 0..20_000_u32 {
            gate.judge(now, Ipv4Addr::from(0x0a00_0000 + n).into(), &message, &queue);
        }
        assert_eq!(gate.sources.len(), SOURCES);
        let Verdict::Challenge(cookie) = gate.judge(now, HERE, &message, &queue) else { panic!("no cookie") };
        assert!(matches!(client.decapsulate(None, &cookie, &mut [0; 148]), TunnResult::Done));
        let proven = initiation(&mut client);
        assert_eq!(gate.judge(now, HERE, &proven, &queue), Verdict::Admit(Priority::First));
        // All are forgotten once they are quiet.
        gate.judge(now + Duration::from_mins(1), THERE, &message, &queue);
        assert_eq!(gate.sources.len(), 1);
    }

    #[test]
    fn a_proven_source_beyond_its_allowance_is_answered_in_spare_time() {
        let Fixture { mut gate, queue, mut client, now } = fixture();
        let message = initiation(&mut client);
        let cookie = loop {
            if let Verdict::Challenge(cookie) = gate.judge(now, HERE, &message, &queue) {
                break cookie;
            }
        };
        assert!(matches!(client.decapsulate(None, &cookie, &mut [0; 148]), TunnResult::Done));
        let proven = initiation(&mut client);
        let verdicts: Vec<_> = (0..1000).map(|_| gate.judge(now, HERE, &proven, &queue)).collect();
        let first = verdicts.iter().take_while(|&it| *it == Verdict::Admit(Priority::First)).count();
        assert_eq!(first, 200);
        let spare = Verdict::Admit(Priority::Spare);
        assert!(verdicts.iter().skip(first).all(|it| *it == spare), "ten thousand may share an address");
    }

    #[test]
    fn when_too_many_wait_all_must_prove_their_address() {
        let Fixture { mut gate, mut queue, mut client, now } = fixture();
        while queue.has_room(Priority::Newcomer) {
            let from = std::net::SocketAddr::from((HERE, 1)).into();
            queue.join(
                now,
                PendingInitiation {
                    from,
                    priority: Priority::Newcomer,
                    initiator: None,
                    initiation: [0; 148],
                },
            );
        }
        let message = initiation(&mut client);
        let Verdict::Challenge(cookie) = gate.judge(now, THERE, &message, &queue) else {
            panic!("no cookie")
        };
        assert!(matches!(client.decapsulate(None, &cookie, &mut [0; 148]), TunnResult::Done));
        let proven = initiation(&mut client);
        assert_eq!(gate.judge(now, THERE, &proven, &queue), Verdict::Admit(Priority::First));
    }

    #[test]
    fn hosts_of_one_ipv6_network_are_one_source() {
        assert_eq!(
            place("2001:db8:1:2:3::4".parse().unwrap()),
            place("2001:db8:1:2:ffff::".parse().unwrap())
        );
        assert_ne!(place("2001:db8:1:2::".parse().unwrap()), place("2001:db8:1:3::".parse().unwrap()));
    }
}
