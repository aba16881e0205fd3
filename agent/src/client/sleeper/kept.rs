//! How long sessions' mappings lived in each network, kept over restarts: a hint for the next time, nothing more.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::{
    client::memory::{Entry, Memory, milliseconds, seconds, span},
    nat::standby::Prior,
};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Known {
    /// As [`local_network`](crate::client::network::local_network) names it.
    network: String,
    at_least_ms: u64,
    /// Seconds since 1970.
    at: u64,
}

impl Entry for Known {
    const FILE: &'static str = "sessions.json";
    const UNKEPT: &'static str = "how long sessions last here is not kept for a restart";

    fn at(&self) -> u64 {
        self.at
    }

    fn is_of_the_place_of(&self, other: &Self) -> bool {
        self.network == other.network
    }
}

/// All of them, the newest last.
pub(super) type Kept = Memory<Known>;

impl Kept {
    /// What is known of a network.
    pub(super) fn prior(&self, now: SystemTime, network: &str) -> Option<Prior> {
        let known = self.0.iter().find(|known| known.network == network && known.is_fresh(now))?;
        Some(Prior { at_least: span(known.at_least_ms) })
    }

    /// Takes note of what is known now. Whether that is news.
    pub(super) fn note(&mut self, now: SystemTime, network: &str, prior: Prior) -> bool {
        let at_least_ms = milliseconds(prior.at_least);
        let told = self.0.iter().any(|known| known.network == network && known.at_least_ms == at_least_ms);
        if told {
            return false;
        }
        self.put(now, Known { network: network.to_owned(), at_least_ms, at: seconds(now) });
        true
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;
    use crate::{
        client::memory::{LIFETIME, MOST},
        identity::Store,
    };

    fn lasts(minutes: u64) -> Prior {
        Prior { at_least: Duration::from_mins(minutes) }
    }

    #[test]
    fn what_was_learnt_of_a_network_is_there_after_a_restart_and_for_a_month() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path().join("tunnel")).unwrap();
        let now = SystemTime::now();
        let mut kept = Kept::load(&store);
        assert!(kept.note(now, "home", lasts(30)) && kept.note(now, "work", lasts(5)));
        assert!(kept.note(now, "home", lasts(60)) && !kept.note(now, "home", lasts(60)));
        kept.save(&store);
        let kept = Kept::load(&store);
        assert_eq!((kept.prior(now, "home"), kept.prior(now, "work")), (Some(lasts(60)), Some(lasts(5))));
        assert_eq!(kept.prior(now, "elsewhere"), None);
        assert_eq!(kept.prior(now + LIFETIME, "home"), None);
        assert_eq!(kept.prior(UNIX_EPOCH, "home"), Some(lasts(60)), "the clock is wrong");
    }

    #[test]
    fn it_is_bounded_and_damage_is_survived() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path().join("tunnel")).unwrap();
        let (mut kept, now) = (Kept::default(), SystemTime::now());
        for n in 0..MOST + 9 {
            kept.note(now, &n.to_string(), lasts(1));
        }
        assert_eq!((kept.0.len(), kept.prior(now, "0")), (MOST, None));
        store.write(Known::FILE, b"[{\"network\":").unwrap();
        assert_eq!(Kept::load(&store).prior(now, "home"), None);
        let forever = format!(r#"[{{"network":"home","atLeastMs":{},"at":{}}}]"#, u64::MAX, u64::MAX);
        store.write(Known::FILE, forever.as_bytes()).unwrap();
        assert_eq!(Kept::load(&store).prior(now, "home"), Some(lasts(7 * 24 * 60)));
    }
}
