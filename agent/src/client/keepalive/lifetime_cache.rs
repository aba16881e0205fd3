//! What was learnt of each NAT, kept over restarts.

use std::{
    net::{IpAddr, SocketAddr},
    time::SystemTime,
};

use serde::{Deserialize, Serialize};

use crate::{
    client::memory::{Entry, Memory, milliseconds, seconds, span},
    nat::{Binding, Confidence, Prior, Promotion},
};

/// Behind which NATs something was learnt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct LearntAt {
    /// The local network, as [`local_network`](crate::client::network::local_network) names it.
    pub(super) network: String,
    /// The public address.
    pub(super) public: IpAddr,
    /// The gateway.
    pub(super) gateway: SocketAddr,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum KeptPromotion {
    Unknown,
    None,
    Short,
    Long,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct CachedLifetime {
    #[serde(flatten)]
    place: LearntAt,
    at_least_ms: u64,
    less_than_ms: Option<u64>,
    promotion: KeptPromotion,
    confirmed: bool,
    /// Seconds since 1970.
    at: u64,
}

impl Entry for CachedLifetime {
    const FILE: &'static str = "bindings.json";
    const UNKEPT: &'static str = "what was learnt of this NAT is not kept for a restart";

    fn at(&self) -> u64 {
        self.at
    }

    fn is_of_the_place_of(&self, other: &Self) -> bool {
        self.place == other.place
    }
}

/// All lifetimes, the newest last.
pub(super) type LifetimeCache = Memory<CachedLifetime>;

impl LifetimeCache {
    /// What is known of a place; where its public address is not known yet, of the last one like it.
    pub(super) fn prior(
        &self,
        now: SystemTime,
        network: &str,
        gateway: SocketAddr,
        public: Option<IpAddr>,
    ) -> Option<(IpAddr, Prior)> {
        let fits = |verdict: &&CachedLifetime| {
            let place = &verdict.place;
            place.network == network
                && place.gateway == gateway
                && public.is_none_or(|public| public == place.public)
                && verdict.is_fresh(now)
        };
        let verdict = self.0.iter().rev().find(fits)?;
        Some((verdict.place.public, Prior { binding: verdict.binding() }))
    }

    /// Takes note of what is known now. Whether that is news.
    pub(super) fn keep(&mut self, now: SystemTime, place: LearntAt, binding: &Binding) -> bool {
        let verdict = CachedLifetime::new(place, binding, seconds(now));
        let same = |known: &CachedLifetime| CachedLifetime { at: verdict.at, ..known.clone() } == verdict;
        let is_news = !self.0.iter().any(same);
        self.put(now, verdict);
        is_news
    }
}

impl CachedLifetime {
    fn new(place: LearntAt, binding: &Binding, at: u64) -> Self {
        CachedLifetime {
            place,
            at_least_ms: milliseconds(binding.at_least),
            less_than_ms: binding.less_than.map(milliseconds),
            promotion: match binding.promotion {
                Promotion::Unknown => KeptPromotion::Unknown,
                Promotion::None => KeptPromotion::None,
                Promotion::Short => KeptPromotion::Short,
                Promotion::Long => KeptPromotion::Long,
            },
            confirmed: binding.confidence == Confidence::Confirmed,
            at,
        }
    }

    fn binding(&self) -> Binding {
        Binding {
            at_least: span(self.at_least_ms),
            less_than: self.less_than_ms.map(span),
            promotion: match self.promotion {
                KeptPromotion::Unknown => Promotion::Unknown,
                KeptPromotion::None => Promotion::None,
                KeptPromotion::Short => Promotion::Short,
                KeptPromotion::Long => Promotion::Long,
            },
            confidence: match (self.confirmed, self.less_than_ms) {
                (true, _) => Confidence::Confirmed,
                (false, Some(_)) => Confidence::Bracketed,
                (false, None) => Confidence::Growing,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        client::memory::{LIFETIME, MOST},
        identity::Store,
    };

    fn place(network: &str, public: [u8; 4]) -> LearntAt {
        LearntAt { network: network.into(), public: public.into(), gateway: ([192, 0, 2, 1], 51820).into() }
    }

    fn binding(seconds: u64) -> Binding {
        Binding {
            at_least: Duration::from_secs(seconds),
            less_than: Some(Duration::from_secs(seconds + 2)),
            promotion: Promotion::Short,
            confidence: Confidence::Confirmed,
        }
    }

    #[test]
    fn a_verdict_survives_a_restart_and_belongs_to_its_place() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let (now, gateway) = (SystemTime::now(), ([192, 0, 2, 1], 51820).into());
        let mut lifetimes = LifetimeCache::load(&store);
        assert!(lifetimes.keep(now, place("home", [203, 0, 113, 1]), &binding(30)));
        assert!(lifetimes.keep(now, place("office", [203, 0, 113, 2]), &binding(120)));
        assert!(!lifetimes.keep(now, place("home", [203, 0, 113, 1]), &binding(30)));
        lifetimes.save(&store);
        let again = LifetimeCache::load(&store);
        assert_eq!(again, lifetimes);
        let prior = |network, public: Option<[u8; 4]>| {
            again.prior(now, network, gateway, public.map(IpAddr::from)).map(|(_, prior)| prior.binding)
        };
        assert_eq!(prior("home", None), Some(binding(30)));
        assert_eq!(prior("home", Some([203, 0, 113, 1])), Some(binding(30)));
        assert_eq!(prior("home", Some([203, 0, 113, 2])), None);
        assert_eq!(prior("hotel", None), None);
        let elsewhere = ([192, 0, 2, 2], 51820).into();
        assert_eq!(again.prior(now, "home", elsewhere, None), None);
        assert_eq!(again.prior(now + LIFETIME, "home", gateway, None), None);
    }

    #[test]
    fn the_oldest_goes_when_there_are_too_many_and_damage_is_no_error() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        store.write(CachedLifetime::FILE, b"{").unwrap();
        let mut lifetimes = LifetimeCache::load(&store);
        for n in 0..100 {
            lifetimes.keep(SystemTime::now(), place("home", [203, 0, 113, n]), &binding(30));
        }
        assert_eq!(lifetimes.0.len(), MOST);
        let gateway = ([192, 0, 2, 1], 51820).into();
        let find =
            |n: u8| lifetimes.prior(SystemTime::now(), "home", gateway, Some(IpAddr::from([203, 0, 113, n])));
        assert!(find(35).is_none() && find(36).is_some());
    }
}
