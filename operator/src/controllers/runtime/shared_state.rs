//! Where watches and the fleet meet the leader's loop.

use std::{
    mem,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::sync::Notify;

use super::{
    index::{Effects, Index},
    request::Request,
};
use crate::telemetry::{Health, Metrics};

/// The observed world, and what changed in it since the leader last looked. A standby keeps the index only.
#[derive(Debug)]
pub struct SharedState {
    index: Mutex<Index>,
    effects: Mutex<Effects>,
    leading: AtomicBool,
    changed: Notify,
    pub(crate) health: Arc<Health>,
    pub(crate) metrics: Arc<Metrics>,
}

impl SharedState {
    /// Of an empty world.
    pub fn new(health: Arc<Health>, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self {
            index: Mutex::default(),
            effects: Mutex::default(),
            leading: AtomicBool::new(false),
            changed: Notify::new(),
            health,
            metrics,
        })
    }

    /// Reads or changes the index. Short: everybody waits.
    pub(crate) fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something happened.
    pub(crate) fn raise(&self, effects: Effects) {
        if !self.leading.load(Ordering::SeqCst) || effects == Effects::default() {
            return;
        }
        self.effects.lock().unwrap_or_else(PoisonError::into_inner).merge(effects);
        self.changed.notify_one();
    }

    /// Something is to be looked at.
    pub(crate) fn raise_work(&self, request: impl IntoIterator<Item = Request>) {
        self.raise(Effects { request: request.into_iter().collect(), gone: Vec::new() });
    }

    /// From now on, what happens is kept for [`changes`](Self::changes).
    pub(crate) fn start_leading(&self) {
        self.leading.store(true, Ordering::SeqCst);
    }

    /// Waits for something to happen.
    pub(crate) async fn changes(&self) -> Effects {
        loop {
            let effects = mem::take(&mut *self.effects.lock().unwrap_or_else(PoisonError::into_inner));
            if effects != Effects::default() {
                return effects;
            }
            self.changed.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{future::Future as _, pin::pin, task::Poll};

    use super::*;
    use crate::fleet::{ClientKey, PoolKey};

    fn request(name: &str) -> Request {
        Request::Client(ClientKey::new("vpn", name))
    }

    fn shared() -> Arc<SharedState> {
        SharedState::new(Arc::new(Health::default()), Arc::new(Metrics::new()))
    }

    /// What happened, if anything did: without waiting.
    async fn now(shared: &SharedState) -> Option<Effects> {
        let mut changes = pin!(shared.changes());
        std::future::poll_fn(|context| match changes.as_mut().poll(context) {
            Poll::Ready(effects) => Poll::Ready(Some(effects)),
            Poll::Pending => Poll::Ready(None),
        })
        .await
    }

    #[tokio::test]
    async fn a_standby_keeps_nothing_and_a_leader_all_that_came_since() {
        let shared = shared();
        shared.raise_work([request("before")]);
        assert_eq!(now(&shared).await, None);
        shared.start_leading();
        assert_eq!(now(&shared).await, None, "what came before is in the list that a leader starts from");
        shared.raise_work([request("a"), request("b")]);
        let gone = (PoolKey::new("vpn", "staff"), "uid".to_owned());
        shared.raise(Effects { request: [request("a")].into(), gone: vec![gone.clone()] });
        let effects = now(&shared).await.unwrap();
        assert_eq!(effects.request, [request("a"), request("b")].into(), "each once");
        assert_eq!(effects.gone, [gone]);
        assert_eq!(now(&shared).await, None, "it is handed over once");
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_is_woken_by_what_happens_and_not_by_nothing() {
        let shared = shared();
        shared.start_leading();
        let waiting = tokio::spawn({
            let shared = Arc::clone(&shared);
            async move { shared.changes().await }
        });
        tokio::task::yield_now().await;
        shared.raise(Effects::default());
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        shared.raise_work([request("a")]);
        let woken = tokio::time::timeout(std::time::Duration::from_secs(1), waiting).await;
        assert_eq!(woken.unwrap().unwrap().request, [request("a")].into());
    }
}
