//! Finds something out once for all who wait for it.

use std::{future::Future, time::Duration};

use tokio::{
    sync::Mutex,
    time::{Instant, sleep_until},
};

/// One thing that several ask for.
///
/// An answer is given to those only who came before it was looked for, so that nobody is told what was true before its time.
/// However many ask, one at a time looks, and not more often than the pause allows.
#[derive(Debug)]
pub struct Shared<V> {
    pause: Duration,
    found: Mutex<Option<(Instant, V)>>,
}

impl<V: Clone> Shared<V> {
    /// Nothing was looked for yet. From one look to the next there is at least this pause.
    pub fn new(pause: Duration) -> Self {
        Self { pause, found: Mutex::new(None) }
    }

    /// What `look` yields, or somebody else's look that began since.
    pub async fn get(&self, look: impl Future<Output = V>) -> V {
        let came = Instant::now();
        let mut found = self.found.lock().await;
        if let Some((began, value)) = &*found {
            if *began > came {
                return value.clone();
            }
            sleep_until(*began + self.pause).await;
        }
        let began = Instant::now();
        let value = look.await;
        *found = Some((began, value.clone()));
        value
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use futures::future::join_all;
    use tokio::time::sleep;

    use super::*;

    const LOOK: Duration = Duration::from_millis(10);
    const PAUSE: Duration = Duration::from_millis(50);

    async fn look(looks: &AtomicU32) -> u32 {
        let n = looks.fetch_add(1, Ordering::Relaxed);
        sleep(LOOK).await;
        n
    }

    #[tokio::test(start_paused = true)]
    async fn a_thousand_who_ask_at_once_cost_few_looks_and_none_is_told_what_was_true_before_it_came() {
        let (shared, looks) = (Shared::new(PAUSE), AtomicU32::new(0));
        let asked = |n: u32| {
            let (shared, looks) = (&shared, &looks);
            async move {
                sleep(LOOK * (n % 2) / 2).await;
                shared.get(look(looks)).await
            }
        };
        let answers = join_all((0..1000).map(asked)).await;
        assert!(looks.load(Ordering::Relaxed) <= 3, "{looks:?}");
        assert!(
            answers.iter().skip(1).step_by(2).all(|answer| *answer > 0),
            "the first look began before these came"
        );
        assert_eq!(shared.get(look(&looks)).await, looks.load(Ordering::Relaxed) - 1);
    }

    #[tokio::test(start_paused = true)]
    async fn who_asks_without_end_causes_a_look_each_pause() {
        let (shared, looks, began) = (Shared::new(PAUSE), AtomicU32::new(0), Instant::now());
        while began.elapsed() < PAUSE * 20 {
            shared.get(look(&looks)).await;
        }
        assert!(looks.load(Ordering::Relaxed) <= 21, "{looks:?}");
    }
}
