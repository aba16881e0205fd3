//! How long sessions' mappings lived in each network, kept over restarts: a hint for the next time, nothing more.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::{identity::Store, nat::standby::Prior};

/// In the tunnel's state directory.
const FILE: &str = "sessions.json";
const MOST: usize = 64;
const LIFETIME: Duration = Duration::from_hours(24 * 30);

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Known {
    /// As [`local_network`](crate::client::network::local_network) names it.
    network: String,
    at_least_ms: u64,
    /// Seconds since 1970.
    at: u64,
}

/// All of them, the newest last.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Kept(Vec<Known>);

impl Kept {
    /// What was kept. What is damaged is learnt again.
    pub(super) fn load(store: &Store) -> Self {
        let kept = store.read(FILE).ok().flatten();
        kept.and_then(|kept| serde_json::from_slice(&kept).ok()).unwrap_or_default()
    }

    /// Keeps all of it.
    pub(super) fn save(&self, store: &Store) {
        let written = serde_json::to_vec(self).map(|content| store.write(FILE, &content));
        if let Ok(Err(error)) = written {
            tracing::warn!(%error, "how long sessions last here is not kept for a restart");
        }
    }

    /// What is known of a network.
    pub(super) fn prior(&self, now: SystemTime, network: &str) -> Option<Prior> {
        let known = self.0.iter().find(|known| known.network == network && known.is_fresh(now))?;
        Some(Prior { at_least: Duration::from_millis(known.at_least_ms) })
    }

    /// Takes note of what is known now. Whether that is news.
    pub(super) fn note(&mut self, now: SystemTime, network: &str, prior: Prior) -> bool {
        let at_least_ms = u64::try_from(prior.at_least.as_millis()).unwrap_or(u64::MAX);
        let told = self.0.iter().any(|known| known.network == network && known.at_least_ms == at_least_ms);
        if told {
            return false;
        }
        self.0.retain(|known| known.network != network && known.is_fresh(now));
        if self.0.len() >= MOST {
            self.0.remove(0);
        }
        self.0.push(Known { network: network.to_owned(), at_least_ms, at: seconds(now) });
        true
    }
}

impl Known {
    /// A clock that was set back makes nothing older.
    fn is_fresh(&self, now: SystemTime) -> bool {
        seconds(now).saturating_sub(self.at) < LIFETIME.as_secs()
    }
}

fn seconds(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

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
        store.write(FILE, b"[{\"network\":").unwrap();
        assert_eq!(Kept::load(&store).prior(now, "home"), None);
    }
}
