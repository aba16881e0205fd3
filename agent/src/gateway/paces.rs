//! How often who may ask for an enrolment or a renewal, before anything is looked up for it. Pure.
//!
//! Strangers have a pace of each source and each kind of credential. A credential that was good once has one of its own, so
//! that whoever holds it is not kept out by others behind the same NAT who try their luck; only what fails costs a stranger's
//! pace. Clients have a pace of their own for renewals.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    net::IpAddr,
    time::{Duration, Instant},
};

use pinhole_proto::v1::{EnrolRequest, enrol_request::Credential};
use pinhole_reception::{Allowance, Rates, place};
use ring::digest::{Context, SHA256};

/// What fails of one source and kind: a hundred laptops that a misprinted token was rolled out to, and then a few a second.
const STRANGERS: Allowance = Allowance { every: Duration::from_millis(250), burst: 128 };
/// With one credential that was good, from one source.
const HOLDERS: Allowance = Allowance { every: Duration::from_millis(100), burst: 128 };
/// Of one client. A certificate lasts for weeks.
const RENEWALS: Allowance = Allowance { every: Duration::from_secs(30), burst: 8 };
/// Under way at a time, waiting included, from one source.
const UNDER_WAY_OF_ONE: usize = 16;
/// Sources that are remembered, by kind; credentials; clients. Each costs about 200 bytes.
const SOURCES: usize = 16_384;
const CREDENTIALS: usize = 4096;
const CLIENTS: usize = 32_768;

/// A kind of credential.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Kind {
    /// A join token.
    Join,
    /// A pod's ServiceAccount token.
    ServiceAccount,
    /// The keys of a client whose certificate is over.
    Keys,
}

type Fingerprint = [u8; 32];

/// One who wants to enrol: from where, and with which credential.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Applicant {
    source: IpAddr,
    pub(super) kind: Kind,
    credential: Fingerprint,
}

impl Applicant {
    /// Of a request, whatever it says.
    pub(super) fn new(source: IpAddr, request: &EnrolRequest) -> Self {
        let mut hash = Context::new(&SHA256);
        let mut add = |part: &[u8]| {
            hash.update(&part.len().to_be_bytes());
            hash.update(part);
        };
        add(request.pool_namespace.as_bytes());
        add(request.pool.as_bytes());
        let kind = match &request.credential {
            Some(Credential::ServiceAccountToken(token)) => {
                add(token.as_bytes());
                Kind::ServiceAccount
            }
            Some(Credential::Join(join)) => {
                add(join.token.as_bytes());
                add(join.secret.as_bytes());
                Kind::Join
            }
            Some(Credential::Keys(_)) => {
                add(&request.public_key);
                Kind::Keys
            }
            None => Kind::Join,
        };
        let mut credential = Fingerprint::default();
        credential.copy_from_slice(hash.finish().as_ref());
        Self { source: place(source), kind, credential }
    }
}

/// By which pace somebody was let through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pace {
    /// That of its credential.
    Holder,
    /// That of its source.
    Stranger,
}

/// What became of an enrolment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The credential was good.
    Good,
    /// It was refused.
    Bad,
    /// Nobody could say.
    Unknown,
}

/// All paces.
#[derive(Debug)]
pub(super) struct Paces {
    strangers: Rates<(Kind, IpAddr)>,
    holders: Rates<(Fingerprint, IpAddr)>,
    renewals: Rates<String>,
    good: Good,
    under_way: HashMap<IpAddr, usize>,
}

impl Default for Paces {
    fn default() -> Self {
        Self {
            strangers: Rates::new(STRANGERS, SOURCES),
            holders: Rates::new(HOLDERS, CREDENTIALS),
            renewals: Rates::new(RENEWALS, CLIENTS),
            good: Good::default(),
            under_way: HashMap::new(),
        }
    }
}

impl Paces {
    /// Whether this one may ask now. If so, [`ended`](Self::ended) is to follow.
    pub(super) fn begin(&mut self, now: Instant, applicant: &Applicant) -> Option<Pace> {
        let under_way = self.under_way.get(&applicant.source).copied().unwrap_or_default();
        if under_way >= UNDER_WAY_OF_ONE {
            return None;
        }
        let is_holder = self.good.contains(&applicant.credential)
            && self.holders.take(now, &(applicant.credential, applicant.source));
        let pace = if is_holder {
            Pace::Holder
        } else if self.strangers.take(now, &(applicant.kind, applicant.source)) {
            Pace::Stranger
        } else {
            return None;
        };
        self.under_way.insert(applicant.source, under_way + 1);
        Some(pace)
    }

    /// What became of one that was let through.
    pub(super) fn ended(&mut self, applicant: &Applicant, pace: Pace, outcome: Outcome) {
        match outcome {
            Outcome::Good => {
                self.good.add(applicant.credential);
                if pace == Pace::Stranger {
                    self.strangers.give_back(&(applicant.kind, applicant.source));
                }
            }
            Outcome::Bad => self.good.remove(&applicant.credential),
            Outcome::Unknown => {}
        }
        let Some(under_way) = self.under_way.get_mut(&applicant.source) else { return };
        *under_way = under_way.saturating_sub(1);
        if *under_way == 0 {
            self.under_way.remove(&applicant.source);
        }
    }

    /// Whether the client with this UID, which has shown its certificate, may ask for another.
    pub(super) fn renew(&mut self, now: Instant, uid: &str) -> bool {
        self.renewals.take(now, &uid.to_owned())
    }
}

/// The latest credentials that were good.
#[derive(Debug, Default)]
struct Good {
    known: HashSet<Fingerprint>,
    /// Those and some that are not any more, the oldest first.
    order: VecDeque<Fingerprint>,
}

impl Good {
    fn contains(&self, credential: &Fingerprint) -> bool {
        self.known.contains(credential)
    }

    fn add(&mut self, credential: Fingerprint) {
        if !self.known.insert(credential) {
            return;
        }
        self.order.push_back(credential);
        if self.order.len() > CREDENTIALS
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
    }

    fn remove(&mut self, credential: &Fingerprint) {
        self.known.remove(credential);
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use pinhole_proto::v1::JoinCredential;
    use proptest::prelude::*;

    use super::*;

    fn source(n: u32) -> IpAddr {
        Ipv4Addr::from(0x0a00_0000 + n).into()
    }

    fn join(from: u32, secret: &str) -> Applicant {
        let join = JoinCredential { token: "first".into(), secret: secret.into() };
        let credential = Some(Credential::Join(join));
        Applicant::new(source(from), &EnrolRequest { credential, ..EnrolRequest::default() })
    }

    fn pod(from: u32, token: &str) -> Applicant {
        let credential = Some(Credential::ServiceAccountToken(token.into()));
        Applicant::new(source(from), &EnrolRequest { credential, ..EnrolRequest::default() })
    }

    /// Asks, and is told that its credential is good or not.
    fn asks(paces: &mut Paces, now: Instant, applicant: &Applicant, outcome: Outcome) -> bool {
        let Some(pace) = paces.begin(now, applicant) else { return false };
        paces.ended(applicant, pace, outcome);
        true
    }

    fn flood(paces: &mut Paces, now: Instant, from: u32) {
        let guess = |n: u32| join(from, &format!("guess-{n}"));
        let let_through = (0..1000).filter(|n| asks(paces, now, &guess(*n), Outcome::Bad)).count();
        assert!(let_through <= 128, "{let_through}");
    }

    #[test]
    fn who_guesses_is_stopped_and_nobody_elsewhere_notices() {
        let (mut paces, now) = (Paces::default(), Instant::now());
        for from in 0..10_000 {
            paces.begin(now, &join(from, "guess"));
        }
        flood(&mut paces, now, 20_000);
        assert!(!asks(&mut paces, now, &join(20_000, "right"), Outcome::Good));
        assert!(asks(&mut paces, now, &join(20_001, "right"), Outcome::Good));
    }

    #[test]
    fn guesses_at_tokens_keep_no_pod_behind_the_same_address_out() {
        let (mut paces, now) = (Paces::default(), Instant::now());
        flood(&mut paces, now, 1);
        assert!(asks(&mut paces, now, &pod(1, "token"), Outcome::Good));
    }

    #[test]
    fn who_holds_a_credential_that_was_good_is_let_through_past_neighbours_who_guess_until_it_is_refused() {
        let (mut paces, now) = (Paces::default(), Instant::now());
        let holder = join(1, "right");
        assert!(asks(&mut paces, now, &holder, Outcome::Good));
        flood(&mut paces, now, 1);
        assert!(asks(&mut paces, now, &holder, Outcome::Good));
        assert!(asks(&mut paces, now, &holder, Outcome::Bad), "it was revoked");
        assert!(!asks(&mut paces, now, &holder, Outcome::Bad), "and is a stranger's again");
    }

    #[test]
    fn what_succeeds_costs_a_source_nothing() {
        let (mut paces, now) = (Paces::default(), Instant::now());
        let each = |n: u32| join(1, &format!("single-use-{n}"));
        assert!((0..10_000).all(|n| asks(&mut paces, now, &each(n), Outcome::Good)));
        assert!(paces.good.order.len() <= CREDENTIALS && paces.good.known.len() <= CREDENTIALS);
    }

    #[test]
    fn one_source_has_few_under_way_and_others_have_theirs() {
        let (mut paces, now) = (Paces::default(), Instant::now());
        let begun: Vec<_> = (0..100).filter_map(|_| paces.begin(now, &join(1, "slow"))).collect();
        assert_eq!(begun.len(), UNDER_WAY_OF_ONE);
        assert!(paces.begin(now, &join(2, "slow")).is_some());
        for pace in begun {
            paces.ended(&join(1, "slow"), pace, Outcome::Unknown);
        }
        assert!(paces.begin(now, &join(1, "slow")).is_some());
    }

    #[test]
    fn a_client_that_renews_without_end_is_stopped_alone() {
        let (mut paces, now) = (Paces::default(), Instant::now());
        assert_eq!((0..100).filter(|_| paces.renew(now, "uid-1")).count(), 8);
        assert!(paces.renew(now, "uid-2"));
        assert!(paces.renew(now + RENEWALS.every, "uid-1"));
    }

    #[test]
    fn hosts_of_one_ipv6_network_share_a_pace_and_parts_of_a_credential_do_not_mix() {
        let from = |address: &str| Applicant::new(address.parse().unwrap(), &EnrolRequest::default());
        assert_eq!(from("2001:db8::1"), from("2001:db8::ffff:0:0:2"));
        assert_ne!(from("2001:db8::1"), from("2001:db8:0:1::1"));
        let of = |token: &str, secret: &str| {
            let join = JoinCredential { token: token.into(), secret: secret.into() };
            let credential = Some(Credential::Join(join));
            Applicant::new(source(1), &EnrolRequest { credential, ..EnrolRequest::default() })
        };
        assert_ne!(of("ab", "c"), of("a", "bc"));
    }

    proptest! {
        #[test]
        fn whatever_others_do_and_the_clock_does_a_newcomer_from_elsewhere_is_let_through_and_all_ends(
            steps in prop::collection::vec((0_u32..10_000, 0_u64..10_000, 0_u8..3, 0_u32..4), 1..300),
        ) {
            let (mut paces, start) = (Paces::default(), Instant::now());
            let mut under_way = Vec::new();
            for (n, (from, ms, outcome, secret)) in (0_u32..).zip(steps) {
                // Any time after any other.
                let now = start + Duration::from_millis(ms);
                let applicant = join(from % 50, &secret.to_string());
                let outcome = [Outcome::Good, Outcome::Bad, Outcome::Unknown][usize::from(outcome)];
                if let Some(pace) = paces.begin(now, &applicant) {
                    under_way.push((applicant, pace, outcome));
                }
                if n % 3 == 0 && let Some((applicant, pace, outcome)) = under_way.pop() {
                    paces.ended(&applicant, pace, outcome);
                }
                prop_assert!(asks(&mut paces, now, &join(100_000 + n, "right"), Outcome::Good));
                prop_assert!(paces.under_way.values().all(|count| *count <= UNDER_WAY_OF_ONE));
            }
            for (applicant, pace, outcome) in under_way {
                paces.ended(&applicant, pace, outcome);
            }
            prop_assert!(paces.under_way.is_empty());
        }
    }
}
