//! What clients behind one public address teach each other, and how many of them may experiment at once.
//!
//! A NAT is measured by the first that come; who comes later is given their result, and has to confirm it with an
//! experiment of its own. A verdict holds for a *neighbourhood*: one pool, one public address, one port of the
//! gateway (timers can differ by port) and one class of NAT. Of IPv6 the first 64 bits count: one household, or
//! one office.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{Binding, Class, Confidence, Guidance, Prior, Promotion};
use crate::PeerId;

/// Ladders at once behind one public address, each some tens of sockets.
pub const LADDERS: usize = 2;
/// Who is given a prior needs a few sockets only, and yet they do not all begin together.
pub const SPREAD: Duration = Duration::from_millis(500);
/// A client without a verdict after so long makes way for the next: the longest lifetimes take two rounds.
pub const LONGEST_LADDER: Duration = Duration::from_mins(15);
/// A verdict that nobody confirmed for so long loses confidence,
const STALE: Duration = Duration::from_hours(24);
/// and after so long is forgotten.
const FORGOTTEN: Duration = Duration::from_hours(24 * 7);
/// Verdicts kept of one neighbourhood, the newest.
const VERDICTS: usize = 8;
/// Neighbourhoods<K> kept, those with the newest verdicts.
const NEIGHBOURHOODS: usize = 4096;

/// Who learns from whom.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// Name of the pool. Pools do not learn from each other: their clients may be rivals.
    pub pool: Arc<str>,
    /// Public address of the client.
    pub address: IpAddr,
    /// Port of the gateway.
    pub port: u16,
}

impl Place {
    fn key(&self) -> Self {
        Self { address: household(self.address), ..self.clone() }
    }
}

/// The address, or its first 64 bits.
fn household(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[derive(Debug, Clone, Copy)]
struct Verdict<K> {
    by: K,
    at: Instant,
    class: Class,
    binding: Binding,
}

#[derive(Debug)]
struct Ladder {
    place: Place,
    until: Instant,
}

#[derive(Debug)]
struct Waiting<K> {
    peer: K,
    place: Place,
}

/// What is known of all neighbourhoods of one gateway replica. Times are monotonic.
#[derive(Debug)]
pub struct Neighbourhoods<K> {
    verdicts: BTreeMap<Place, VecDeque<Verdict<K>>>,
    ladders: HashMap<K, Ladder>,
    waiting: VecDeque<Waiting<K>>,
    /// In the order in which it is due.
    guidance: VecDeque<(Instant, K, Guidance)>,
}

impl<K> Default for Neighbourhoods<K> {
    fn default() -> Self {
        Self {
            verdicts: BTreeMap::new(),
            ladders: HashMap::new(),
            waiting: VecDeque::new(),
            guidance: VecDeque::new(),
        }
    }
}

impl<K: PeerId> Neighbourhoods<K> {
    /// Nothing is known yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// A client with an agent came to this place, or came again. The guidance is for it, at once.
    pub fn handle_newcomer(&mut self, now: Instant, peer: K, place: &Place) -> Guidance {
        let place = place.key();
        if self.ladders.get(&peer).is_some_and(|ladder| ladder.place == place) {
            return Guidance { prior: None, wait: false };
        }
        self.leave(now, &peer);
        let prior = self.prior(now, &peer, &place, None);
        if prior.is_some() {
            return Guidance { prior: prior.map(|binding| Prior { binding }), wait: false };
        }
        if self.ladders_at(&place) < LADDERS {
            self.admit(now, peer, place);
            return Guidance { prior: None, wait: false };
        }
        self.waiting.push_back(Waiting { peer, place });
        Guidance { prior: None, wait: true }
    }

    /// A client says what it measured, or what it still believes. Those that waited for it are advised.
    pub fn handle_verdict(&mut self, now: Instant, peer: K, place: &Place, class: Class, binding: Binding) {
        if binding.confidence < Confidence::Bracketed || binding.at_least.is_zero() {
            return;
        }
        let place = place.key();
        let verdicts = self.verdicts.entry(place.clone()).or_default();
        verdicts.retain(|verdict| verdict.by != peer && now < verdict.at + FORGOTTEN);
        verdicts.push_back(Verdict { by: peer, at: now, class, binding });
        if verdicts.len() > VERDICTS {
            verdicts.pop_front();
        }
        self.bound();
        let ladder = self.ladders.remove(&peer);
        self.call(now, &place);
        if let Some(elsewhere) = ladder.filter(|ladder| ladder.place.address != place.address) {
            self.call(now, &elsewhere.place);
        }
    }

    /// A client saw the lifetime shrink: what the others said before does not hold any more.
    pub fn handle_shrink(&mut self, place: &Place) {
        self.verdicts.remove(&place.key());
    }

    /// A client went, or its session did.
    pub fn handle_gone(&mut self, now: Instant, peer: &K) {
        self.leave(now, peer);
    }

    /// What neighbours of the same class say; where it is not known, the most cautious ones.
    pub fn prior(&self, now: Instant, asker: &K, place: &Place, class: Option<Class>) -> Option<Binding> {
        let verdicts = self.verdicts.get(&place.key())?;
        let mut classes: BTreeMap<Class, Vec<&Verdict<K>>> = BTreeMap::new();
        // The newest first.
        for verdict in verdicts.iter().rev() {
            let of_others = verdict.by != *asker && now < verdict.at + FORGOTTEN;
            if of_others && class.is_none_or(|class| verdict.class == class) {
                classes.entry(verdict.class).or_default().push(verdict);
            }
        }
        let joint = classes.values().filter_map(|verdicts| agree(now, verdicts));
        joint.min_by_key(|binding| binding.at_least)
    }

    /// When [`Self::handle_timeout`] or [`Self::poll_guidance`] is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let told = self.guidance.front().map(|(at, ..)| *at);
        self.ladders.values().map(|ladder| ladder.until).chain(told).min()
    }

    /// Time passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        let late = self.ladders.iter().filter(|(_, ladder)| now >= ladder.until);
        let late: Vec<K> = late.map(|(peer, _)| *peer).collect();
        for peer in late {
            self.leave(now, &peer);
        }
    }

    /// The next client to guide anew. They are spread over time.
    pub fn poll_guidance(&mut self, now: Instant) -> Option<(K, Guidance)> {
        self.guidance.front().filter(|(at, ..)| now >= *at)?;
        self.guidance.pop_front().map(|(_, peer, guidance)| (peer, guidance))
    }

    /// How many things are remembered.
    pub fn entries(&self) -> usize {
        let verdicts: usize = self.verdicts.values().map(VecDeque::len).sum();
        verdicts + self.ladders.len() + self.waiting.len() + self.guidance.len()
    }

    fn admit(&mut self, now: Instant, peer: K, place: Place) {
        self.ladders.insert(peer, Ladder { place, until: now + LONGEST_LADDER });
    }

    fn leave(&mut self, now: Instant, peer: &K) {
        self.waiting.retain(|waiting| waiting.peer != *peer);
        self.guidance.retain(|(_, guided, _)| guided != peer);
        if let Some(ladder) = self.ladders.remove(peer) {
            self.call(now, &ladder.place);
        }
    }

    fn ladders_at(&self, place: &Place) -> usize {
        // All pools and ports together: the sockets are the NAT's.
        self.ladders.values().filter(|ladder| ladder.place.address == place.address).count()
    }

    /// Guides those that wait at an address: all when there is something to tell them, else as many as there is
    /// room for.
    fn call(&mut self, now: Instant, place: &Place) {
        let mut at = now;
        for waiting in std::mem::take(&mut self.waiting) {
            if waiting.place.address != place.address {
                self.waiting.push_back(waiting);
                continue;
            }
            let prior = self.prior(now, &waiting.peer, &waiting.place, None);
            if let Some(binding) = prior {
                let guidance = Guidance { prior: Some(Prior { binding }), wait: false };
                self.queue(at, waiting.peer, guidance);
                at += SPREAD;
            } else if self.ladders_at(place) < LADDERS {
                self.queue(now, waiting.peer, Guidance { prior: None, wait: false });
                self.admit(now, waiting.peer, waiting.place);
            } else {
                self.waiting.push_back(waiting);
            }
        }
    }

    fn queue(&mut self, at: Instant, peer: K, guidance: Guidance) {
        let behind = self.guidance.partition_point(|(due, ..)| *due <= at);
        self.guidance.insert(behind, (at, peer, guidance));
    }

    fn bound(&mut self) {
        while self.verdicts.len() > NEIGHBOURHOODS {
            let newest = |verdicts: &VecDeque<Verdict<K>>| verdicts.back().map(|verdict| verdict.at);
            let oldest = self.verdicts.iter().min_by_key(|(_, verdicts)| newest(verdicts));
            let Some(oldest) = oldest.map(|(place, _)| place.clone()) else { return };
            self.verdicts.remove(&oldest);
        }
    }
}

/// The bracket in which the verdicts agree, from the newest back to the first that contradicts: the NAT changed after
/// that one.
fn agree<K: PeerId>(now: Instant, newest_first: &[&Verdict<K>]) -> Option<Binding> {
    let (newest, older) = newest_first.split_first()?;
    let mut joint = newest.binding;
    if now >= newest.at + STALE {
        joint.confidence = joint.confidence.min(Confidence::Bracketed);
    }
    for verdict in older {
        let at_least = joint.at_least.max(verdict.binding.at_least);
        let less_than = match (joint.less_than, verdict.binding.less_than) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        };
        if less_than.is_some_and(|end| end <= at_least) {
            break;
        }
        joint = Binding {
            at_least,
            less_than,
            promotion: cautious(joint.promotion, verdict.binding.promotion),
            confidence: joint.confidence,
        };
    }
    Some(joint)
}

/// Of two, the one that promises less.
const fn cautious(one: Promotion, other: Promotion) -> Promotion {
    match (one, other) {
        (Promotion::Unknown, known) | (known, Promotion::Unknown) => known,
        (Promotion::Long, _) | (_, Promotion::Long) => Promotion::Long,
        (Promotion::Short, _) | (_, Promotion::Short) => Promotion::Short,
        (Promotion::None, Promotion::None) => Promotion::None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn key(n: u8) -> u8 {
        n
    }

    fn place(n: u8) -> Place {
        Place { pool: "branch/routers".into(), address: [192, 0, 2, n].into(), port: 51820 }
    }

    fn binding(at_least: u64, less_than: u64) -> Binding {
        Binding {
            at_least: SECOND * u32::try_from(at_least).unwrap(),
            less_than: Some(Duration::from_secs(less_than)),
            promotion: Promotion::Short,
            confidence: Confidence::Confirmed,
        }
    }

    const NAT: Class = Class::Nat;

    fn guided(guidance: Guidance) -> Option<Binding> {
        guidance.prior.map(|prior| prior.binding)
    }

    #[test]
    fn the_first_behind_an_address_measure_and_the_others_wait_for_them() {
        let now = Instant::now();
        let mut all = Neighbourhoods::new();
        let waiting = (0..50).filter(|n| all.handle_newcomer(now, key(*n), &place(1)).wait).count();
        assert_eq!(waiting, 50 - LADDERS);
        assert!(!all.handle_newcomer(now, key(60), &place(2)).wait);
        all.handle_verdict(now + SECOND * 40, key(0), &place(1), NAT, binding(30, 33));
        let mut told = Vec::new();
        while let Some(at) = all.poll_timeout().filter(|at| *at < now + SECOND * 100) {
            told.extend(all.poll_guidance(at).map(|(peer, guidance)| (at, peer, guidance)));
        }
        assert_eq!(told.len(), 48);
        assert!(told.iter().all(|(_, _, guidance)| guided(*guidance) == Some(binding(30, 33))));
        assert!(told.windows(2).all(|pair| pair[1].0 - pair[0].0 >= SPREAD), "they do not begin together");
    }

    #[test]
    fn a_newcomer_is_given_what_its_neighbours_measured_and_not_its_own() {
        let now = Instant::now();
        let mut all = Neighbourhoods::new();
        all.handle_verdict(now, key(1), &place(1), NAT, binding(30, 33));
        assert_eq!(guided(all.handle_newcomer(now, key(2), &place(1))), Some(binding(30, 33)));
        assert_eq!(guided(all.handle_newcomer(now, key(1), &place(1))), None);
    }

    #[test]
    fn pools_ports_and_addresses_do_not_learn_from_each_other() {
        let now = Instant::now();
        let mut all = Neighbourhoods::new();
        all.handle_verdict(now, key(1), &place(1), NAT, binding(30, 33));
        let strangers =
            [Place { pool: "other/pool".into(), ..place(1) }, Place { port: 4500, ..place(1) }, place(2)];
        for stranger in &strangers {
            assert_eq!(all.prior(now, &key(2), stranger, None), None);
        }
        assert_eq!(all.prior(now, &key(2), &place(1), Some(Class::NoNat)), None);
        let household = |host: u64| Place {
            address: Ipv6Addr::from_bits((0x2001_0db8 << 96) | u128::from(host)).into(),
            ..place(1)
        };
        all.handle_verdict(now, key(1), &household(1), NAT, binding(50, 55));
        assert_eq!(all.prior(now, &key(2), &household(2), None), Some(binding(50, 55)));
    }

    #[test]
    fn verdicts_narrow_each_other_until_one_contradicts() {
        let now = Instant::now();
        let mut all = Neighbourhoods::new();
        for (n, verdict) in [(1, binding(170, 180)), (2, binding(28, 40)), (3, binding(30, 44))] {
            all.handle_verdict(now + SECOND * n, key(u8::try_from(n).unwrap()), &place(1), NAT, verdict);
        }
        assert_eq!(all.prior(now + SECOND * 9, &key(9), &place(1), None), Some(binding(30, 40)));
    }

    #[test]
    fn of_several_classes_the_shortest_lifetime_is_told_to_who_does_not_know_its_own() {
        let now = Instant::now();
        let mut all = Neighbourhoods::new();
        all.handle_verdict(now, key(1), &place(1), NAT, binding(100, 110));
        all.handle_verdict(now, key(2), &place(1), Class::AddressDependent, binding(30, 33));
        assert_eq!(all.prior(now, &key(3), &place(1), None), Some(binding(30, 33)));
        assert_eq!(all.prior(now, &key(3), &place(1), Some(NAT)), Some(binding(100, 110)));
    }

    #[test]
    fn a_verdict_that_nobody_confirms_fades_and_a_shrink_ends_it() {
        let now = Instant::now();
        let mut all = Neighbourhoods::new();
        all.handle_verdict(now, key(1), &place(1), NAT, binding(30, 33));
        let stale = all.prior(now + STALE, &key(2), &place(1), None).unwrap();
        assert_eq!(stale.confidence, Confidence::Bracketed);
        assert_eq!(all.prior(now + FORGOTTEN, &key(2), &place(1), None), None);
        all.handle_shrink(&place(1));
        assert_eq!(all.prior(now, &key(2), &place(1), None), None);
    }

    #[test]
    fn who_measures_too_long_or_goes_away_makes_room() {
        let now = Instant::now();
        let mut all = Neighbourhoods::new();
        for n in 0..4 {
            all.handle_newcomer(now, key(n), &place(1));
        }
        all.handle_gone(now, &key(0));
        assert_eq!(all.poll_guidance(now), Some((key(2), Guidance { prior: None, wait: false })));
        assert_eq!(all.poll_guidance(now), None);
        let late = all.poll_timeout().unwrap();
        assert_eq!(late, now + LONGEST_LADDER);
        all.handle_timeout(late);
        assert_eq!(all.poll_guidance(late).map(|(peer, _)| peer), Some(key(3)));
    }

    #[test]
    fn what_is_only_growing_is_not_passed_on() {
        let now = Instant::now();
        let mut all = Neighbourhoods::new();
        let growing = Binding { confidence: Confidence::Growing, ..binding(30, 33) };
        all.handle_verdict(now, key(1), &place(1), NAT, growing);
        assert_eq!(all.prior(now, &key(2), &place(1), None), None);
    }

    proptest! {
        #[test]
        fn there_are_never_more_ladders_than_allowed_and_nobody_waits_for_ever(
            steps in proptest::collection::vec((0u8..30, 0u8..3, 0u8..3), 1..200)
        ) {
            let mut now = Instant::now();
            let mut all = Neighbourhoods::new();
            for (peer, home, what) in steps {
                now += SECOND;
                match what {
                    0 => { all.handle_newcomer(now, key(peer), &place(home)); }
                    1 => all.handle_verdict(now, key(peer), &place(home), NAT, binding(30, 33)),
                    _ => all.handle_gone(now, &key(peer)),
                }
                for home in 0..3 {
                    prop_assert!(all.ladders_at(&place(home)) <= LADDERS);
                    let waits = all.waiting.iter().any(|waiting| waiting.place == place(home));
                    prop_assert!(!waits || all.ladders_at(&place(home)) == LADDERS);
                }
                while all.poll_guidance(now).is_some() {}
            }
            while let Some(at) = all.poll_timeout() {
                all.handle_timeout(at);
                while all.poll_guidance(at).is_some() {}
            }
            prop_assert!(all.waiting.is_empty());
        }
    }
}
