//! Which phases clients go through, as either side tells it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, ensure};
use futures::StreamExt;
use kube::runtime::{WatchStreamExt, watcher};
use pinhole_crds::ClientPhase;
use pinhole_e2e::{device::Device, vpn::Vpn};
use tokio::task::JoinHandle;

use crate::Outcome;

/// Every phase that clients of a VPN go through, as the API server tells it.
pub(crate) struct Phases {
    seen: Arc<Mutex<Vec<Option<ClientPhase>>>>,
    task: JoinHandle<()>,
}

impl Phases {
    /// From now on.
    pub(crate) fn watch(vpn: &Vpn<'_>) -> Self {
        let seen: Arc<Mutex<Vec<_>>> = Arc::default();
        let told = Arc::clone(&seen);
        let objects = watcher(vpn.clients(), watcher::Config::default()).default_backoff().applied_objects();
        let task = tokio::spawn(async move {
            let mut objects = std::pin::pin!(objects);
            while let Some(object) = objects.next().await {
                let Ok(client) = object else { continue };
                let phase = client.status.and_then(|status| status.phase);
                lock(&told).push(phase);
            }
        });
        Self { seen, task }
    }

    /// Each that differs from the one before.
    pub(crate) fn changes(&self) -> Vec<ClientPhase> {
        let mut phases: Vec<_> = lock(&self.seen).iter().copied().flatten().collect();
        phases.dedup();
        phases
    }

    pub(crate) fn must_all_be_connected(&self) -> Outcome {
        let seen = lock(&self.seen);
        let all = !seen.is_empty() && seen.iter().all(|phase| *phase == Some(ClientPhase::Connected));
        ensure!(all, "the VPNClient went through {seen:?}");
        Ok(())
    }
}

impl Drop for Phases {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a client's log tells of its phases, where it tells of what it knows.
pub(crate) fn phases_told(device: &Device) -> anyhow::Result<Vec<String>> {
    let log = device.process().context("it is not up")?.log();
    let told: Vec<_> = log.lines().filter(|line| line.contains("phase=")).map(str::to_owned).collect();
    ensure!(!told.is_empty(), "the log tells of no phase: {log}");
    Ok(told)
}
