//! Looks things up by their keys, each once for all who wait ([`Shared`]): a token that was made a moment ago is good, one that
//! was revoked is not, and however many guess, the API server is asked now and then.

use std::{
    collections::HashMap,
    future::Future,
    hash::Hash,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use pinhole_reception::Shared;

use super::RecordsError;

/// Things that are looked up now, beyond which those that nobody waits for are forgotten.
const MAX_LOOKUPS: usize = 1024;
/// From one look to the next.
const PAUSE: Duration = Duration::from_millis(50);

type Answer<V> = Result<V, Arc<RecordsError>>;

/// Lookups by key.
pub(super) struct Lookups<K, V>(Mutex<HashMap<K, Arc<Shared<Answer<V>>>>>);

impl<K, V> Default for Lookups<K, V> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Eq + Hash, V: Clone> Lookups<K, V> {
    /// What `look` yields, or what somebody else's that began since did.
    pub(super) async fn get(
        &self,
        key: K,
        look: impl Future<Output = Result<V, RecordsError>>,
    ) -> Result<V, RecordsError> {
        let shared = self.of(key);
        let answer = shared.get(async { look.await.map_err(Arc::new) }).await;
        answer.map_err(RecordsError::Shared)
    }

    fn of(&self, key: K) -> Arc<Shared<Answer<V>>> {
        let mut lookups = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lookups.len() >= MAX_LOOKUPS {
            lookups.retain(|_, shared| Arc::strong_count(shared) > 1);
        }
        Arc::clone(lookups.entry(key).or_insert_with(|| Arc::new(Shared::new(PAUSE))))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use futures::future::join_all;
    use tokio::time::sleep;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_failure_is_told_to_all_who_wait_and_not_remembered() {
        let (lookups, looks) = (Lookups::<_, u32>::default(), AtomicU32::new(0));
        let fail = || async {
            looks.fetch_add(1, Ordering::Relaxed);
            sleep(PAUSE).await;
            Err(RecordsError::Timeout { doing: "looking" })
        };
        let answers = join_all((0..100).map(|_| lookups.get("token", fail()))).await;
        let unavailable = |answer: &Result<u32, RecordsError>| {
            answer.as_ref().is_err_and(|error| error.category() == "ApiServerUnavailable")
        };
        assert!(answers.iter().all(unavailable));
        assert!(looks.load(Ordering::Relaxed) <= 2);
        assert_eq!(lookups.get("token", async { Ok(7) }).await.unwrap(), 7);
    }

    #[tokio::test]
    async fn what_nobody_waits_for_is_forgotten() {
        let lookups = Lookups::default();
        for n in 0..10_000_u32 {
            lookups.get(n, async { Ok(n) }).await.unwrap();
        }
        assert!(lookups.0.lock().unwrap().len() <= MAX_LOOKUPS);
    }
}
