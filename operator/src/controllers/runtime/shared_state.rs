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
