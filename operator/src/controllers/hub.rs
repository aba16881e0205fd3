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
    work::Work,
    world::{Effects, World},
};
use crate::telemetry::{Health, Metrics};

/// The observed world, and what changed in it since the leader last looked. A standby keeps the world only.
#[derive(Debug)]
pub struct Hub {
    world: Mutex<World>,
    effects: Mutex<Effects>,
    leading: AtomicBool,
    changed: Notify,
    pub(super) health: Arc<Health>,
    pub(super) metrics: Arc<Metrics>,
}

impl Hub {
    /// Of an empty world.
    pub fn new(health: Arc<Health>, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self {
            world: Mutex::default(),
            effects: Mutex::default(),
            leading: AtomicBool::new(false),
            changed: Notify::new(),
            health,
            metrics,
        })
    }

    /// Reads or changes the world. Short: everybody waits.
    pub(super) fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something happened.
    pub(super) fn raise(&self, effects: Effects) {
        if !self.leading.load(Ordering::SeqCst) || effects == Effects::default() {
            return;
        }
        self.effects.lock().unwrap_or_else(PoisonError::into_inner).merge(effects);
        self.changed.notify_one();
    }

    /// Something is to be looked at.
    pub(super) fn raise_work(&self, work: impl IntoIterator<Item = Work>) {
        self.raise(Effects { work: work.into_iter().collect(), gone: Vec::new() });
    }

    /// From now on, what happens is kept for [`changes`](Self::changes).
    pub(super) fn start_leading(&self) {
        self.leading.store(true, Ordering::SeqCst);
    }

    /// Waits for something to happen.
    pub(super) async fn changes(&self) -> Effects {
        loop {
            let effects = mem::take(&mut *self.effects.lock().unwrap_or_else(PoisonError::into_inner));
            if effects != Effects::default() {
                return effects;
            }
            self.changed.notified().await;
        }
    }
}
