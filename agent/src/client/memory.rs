//! What is known of places over restarts: bounded, and forgotten after a month.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pinhole_proto::bounds::LONGEST_SPAN;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::identity::Store;

/// Places that are remembered; the oldest goes first.
pub(super) const MOST: usize = 64;
/// For so long.
pub(super) const LIFETIME: Duration = Duration::from_hours(24 * 30);
/// What was learnt is written at most this often.
pub(super) const SAVE_PAUSE: Duration = Duration::from_mins(1);

/// What is known of one place.
pub(super) trait Entry: Serialize + DeserializeOwned {
    /// In the tunnel's state directory.
    const FILE: &'static str;
    /// What to say where it cannot be kept.
    const UNKEPT: &'static str;

    /// When it was learnt, in seconds since 1970.
    fn at(&self) -> u64;

    /// Whether both are of the same place.
    fn is_of_the_place_of(&self, other: &Self) -> bool;

    /// Whether it still counts. A clock that was set back makes nothing older.
    fn is_fresh(&self, now: SystemTime) -> bool {
        seconds(now).saturating_sub(self.at()) < LIFETIME.as_secs()
    }
}

/// All of it, the newest last.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Memory<E>(pub(super) Vec<E>);

impl<E> Default for Memory<E> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<E: Entry> Memory<E> {
    /// What was kept. What is damaged is learnt again.
    pub(super) fn load(store: &Store) -> Self {
        let kept = store.read(E::FILE).ok().flatten();
        let mut memory: Self = kept.and_then(|kept| serde_json::from_slice(&kept).ok()).unwrap_or_default();
        memory.0.drain(..memory.0.len().saturating_sub(MOST));
        memory
    }

    /// Keeps all of it.
    pub(super) fn save(&self, store: &Store) {
        let written = serde_json::to_vec(self).map(|content| store.write(E::FILE, &content));
        if let Ok(Err(error)) = written {
            tracing::warn!(%error, "{}", E::UNKEPT);
        }
    }

    /// Replaces what was known of the place.
    pub(super) fn put(&mut self, now: SystemTime, entry: E) {
        self.0.retain(|known| !known.is_of_the_place_of(&entry) && known.is_fresh(now));
        if self.0.len() >= MOST {
            self.0.remove(0);
        }
        self.0.push(entry);
    }
}

/// A time as entries have it.
pub(super) fn seconds(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// What an entry's span means, whatever became of the file: at most [`LONGEST_SPAN`].
pub(super) fn span(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds).min(LONGEST_SPAN)
}

/// A span as entries have it.
pub(super) fn milliseconds(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}
