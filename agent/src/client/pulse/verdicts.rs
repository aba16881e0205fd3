//! What was learnt of each NAT, kept over restarts.

use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

use crate::{
    identity::Store,
    nat::{Binding, Confidence, Prior, Promotion},
};

/// In the tunnel's state directory.
const FILE: &str = "bindings.json";
const MOST: usize = 64;
const LIFETIME: Duration = Duration::from_hours(24 * 30);

/// Behind which NATs something was learnt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Place {
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
struct Verdict {
    #[serde(flatten)]
    place: Place,
    at_least_ms: u64,
    less_than_ms: Option<u64>,
    promotion: KeptPromotion,
    confirmed: bool,
    /// Seconds since 1970.
    at: u64,
}

/// All verdicts, the newest last.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Verdicts(Vec<Verdict>);

impl Verdicts {
    /// What was kept. What is damaged is learnt again.
    pub(super) fn load(store: &Store) -> Self {
        let kept = store.read(FILE).ok().flatten();
        kept.and_then(|kept| serde_json::from_slice(&kept).ok()).unwrap_or_default()
    }

    /// Keeps all of it.
    pub(super) fn save(&self, store: &Store) {
        let written = serde_json::to_vec(self).map(|content| store.write(FILE, &content));
        if let Ok(Err(error)) = written {
            tracing::warn!(%error, "what was learnt of this NAT is not kept for a restart");
        }
    }

    /// What is known of a place; where its public address is not known yet, of the last one like it.
    pub(super) fn prior(
        &self,
        now: SystemTime,
        network: &str,
        gateway: SocketAddr,
        public: Option<IpAddr>,
    ) -> Option<(IpAddr, Prior)> {
        let fits = |verdict: &&Verdict| {
            let place = &verdict.place;
            place.network == network
                && place.gateway == gateway
                && public.is_none_or(|public| public == place.public)
                && is_fresh(verdict, now)
        };
        let verdict = self.0.iter().rev().find(fits)?;
        Some((verdict.place.public, Prior { binding: verdict.binding() }))
    }

    /// Takes note of what is known now. Whether that is news.
    pub(super) fn keep(&mut self, now: SystemTime, place: Place, binding: &Binding) -> bool {
        let verdict = Verdict::new(place, binding, seconds(now));
        let same = |known: &Verdict| Verdict { at: verdict.at, ..known.clone() } == verdict;
        let is_news = !self.0.iter().any(same);
        self.0.retain(|known| known.place != verdict.place && is_fresh(known, now));
        if self.0.len() >= MOST {
            self.0.remove(0);
        }
        self.0.push(verdict);
        is_news
    }
}

impl Verdict {
    fn new(place: Place, binding: &Binding, at: u64) -> Self {
        let milliseconds = |span: Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        Verdict {
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
            at_least: Duration::from_millis(self.at_least_ms),
            less_than: self.less_than_ms.map(Duration::from_millis),
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

fn is_fresh(verdict: &Verdict, now: SystemTime) -> bool {
    seconds(now).saturating_sub(verdict.at) < LIFETIME.as_secs()
}

fn seconds(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(network: &str, public: [u8; 4]) -> Place {
        Place { network: network.into(), public: public.into(), gateway: ([192, 0, 2, 1], 51820).into() }
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
        let mut verdicts = Verdicts::load(&store);
        assert!(verdicts.keep(now, place("home", [203, 0, 113, 1]), &binding(30)));
        assert!(verdicts.keep(now, place("office", [203, 0, 113, 2]), &binding(120)));
        assert!(!verdicts.keep(now, place("home", [203, 0, 113, 1]), &binding(30)));
        verdicts.save(&store);
        let again = Verdicts::load(&store);
        assert_eq!(again, verdicts);
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
        store.write(FILE, b"{").unwrap();
        let mut verdicts = Verdicts::load(&store);
        for n in 0..100 {
            verdicts.keep(SystemTime::now(), place("home", [203, 0, 113, n]), &binding(30));
        }
        assert_eq!(verdicts.0.len(), MOST);
        let gateway = ([192, 0, 2, 1], 51820).into();
        let find =
            |n: u8| verdicts.prior(SystemTime::now(), "home", gateway, Some(IpAddr::from([203, 0, 113, n])));
        assert!(find(35).is_none() && find(36).is_some());
    }
}
