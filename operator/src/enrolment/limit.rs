//! How often gateways may ask for enrolments and renewals. Pure.
//!
//! What is bad is told apart from what is good before it costs anything that the good need: a join token is looked at, in an
//! answer of the API server that all who wait share, before its pace is spent, and that pace is its own. Only what cannot be
//! told apart without asking (a pool that nobody knows, a ServiceAccount token that was never reviewed) has a pace of its
//! gateway and kind.

use std::time::{Duration, Instant};

use pinhole_reception::{Allowance, Rates};

use super::EnrolmentError;
use crate::fleet::{GatewayKey, PoolKey};

/// With one join token or for one pod: what a fleet of machines needs that are set up at once.
const CREDENTIAL: Allowance = Allowance { every: Duration::from_micros(62_500), burst: 64 };
/// Of what nobody knows, for each gateway and kind.
const UNKNOWN: Allowance = Allowance { every: Duration::from_micros(62_500), burst: 64 };
/// Of one client. A certificate lasts for weeks.
const RENEWALS: Allowance = Allowance { every: Duration::from_secs(30), burst: 8 };
/// Of one gateway: 10 000 clients whose certificate authority changed are through within two minutes.
const RENEWALS_OF_GATEWAY: Allowance = Allowance { every: Duration::from_millis(10), burst: 1000 };
/// What is remembered of each. An entry has about 300 bytes.
const GATEWAYS: usize = 4096;
const CREDENTIALS: usize = 16_384;
const CLIENTS: usize = 32_768;

/// What nobody knows before the API server was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Unknown {
    /// A pool that the gateway is not told of.
    Pool,
    /// A ServiceAccount token that was not reviewed lately.
    ServiceAccount,
    /// Keys that may be some client's.
    Keys,
}

/// All paces.
#[derive(Debug)]
pub(super) struct Limits {
    unknown: Rates<(Unknown, GatewayKey)>,
    tokens: Rates<(PoolKey, String)>,
    pods: Rates<String>,
    renewals: Rates<(GatewayKey, String)>,
    renewals_of_gateway: Rates<GatewayKey>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            unknown: Rates::new(UNKNOWN, GATEWAYS),
            tokens: Rates::new(CREDENTIAL, CREDENTIALS),
            pods: Rates::new(CREDENTIAL, CREDENTIALS),
            renewals: Rates::new(RENEWALS, CLIENTS),
            renewals_of_gateway: Rates::new(RENEWALS_OF_GATEWAY, GATEWAYS),
        }
    }
}

type Answer = Result<(), EnrolmentError>;

impl Limits {
    /// The gateway asks for something that nobody knows.
    pub(super) fn unknown(&mut self, now: Instant, what: Unknown, gateway: &GatewayKey) -> Answer {
        allowed(self.unknown.take(now, &(what, gateway.clone())))
    }

    /// Somebody has shown a good join token.
    pub(super) fn token(&mut self, now: Instant, pool: &PoolKey, name: &str) -> Answer {
        allowed(self.tokens.take(now, &(pool.clone(), name.to_owned())))
    }

    /// Somebody has proven to be this pod.
    pub(super) fn pod(&mut self, now: Instant, uid: &str) -> Answer {
        allowed(self.pods.take(now, &uid.to_owned()))
    }

    /// A client of the gateway wants another certificate.
    pub(super) fn renewal(&mut self, now: Instant, gateway: &GatewayKey, uid: &str) -> Answer {
        allowed(self.renewals.take(now, &(gateway.clone(), uid.to_owned())))?;
        allowed(self.renewals_of_gateway.take(now, gateway))
    }
}

fn allowed(allowed: bool) -> Answer {
    if allowed { Ok(()) } else { Err(EnrolmentError::RateLimited) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gateway(name: &str) -> GatewayKey {
        GatewayKey::new("vpn", name)
    }

    fn pool() -> PoolKey {
        PoolKey::new("vpn", "staff")
    }

    #[test]
    fn a_flood_with_one_token_is_cut_to_the_rate_and_leaves_other_tokens_and_kinds_alone() {
        let (mut limits, start) = (Limits::default(), Instant::now());
        let at = |n: u32| start + Duration::from_millis(1) * n;
        let allowed = (0..10_000).filter(|n| limits.token(at(*n), &pool(), "one").is_ok()).count();
        // 10 s: the burst and 16 a second.
        assert!((64 + 159..=64 + 161).contains(&allowed), "{allowed}");
        let now = at(10_000);
        limits.token(now, &pool(), "other").unwrap();
        limits.pod(now, "uid").unwrap();
        limits.unknown(now, Unknown::ServiceAccount, &gateway("edge")).unwrap();
        limits.renewal(now, &gateway("edge"), "uid").unwrap();
    }

    #[test]
    fn what_nobody_knows_is_limited_for_its_gateway_and_kind_only() {
        let (mut limits, now) = (Limits::default(), Instant::now());
        while limits.unknown(now, Unknown::ServiceAccount, &gateway("edge")).is_ok() {}
        limits.unknown(now, Unknown::Pool, &gateway("edge")).unwrap();
        limits.unknown(now, Unknown::ServiceAccount, &gateway("other")).unwrap();
    }

    #[test]
    fn a_client_that_renews_without_end_is_stopped_and_ten_thousand_others_are_served_within_two_minutes() {
        let (mut limits, start) = (Limits::default(), Instant::now());
        let edge = gateway("edge");
        assert_eq!((0..1000).filter(|_| limits.renewal(start, &edge, "one").is_ok()).count(), 8);
        let served = |n: u32| limits.renewal(start + Duration::from_millis(11) * n, &edge, &n.to_string());
        assert!((0..10_000).map(served).all(|answer| answer.is_ok()));
    }
}
