//! Whether the operator lives and is ready. Without a clock: times come in.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::Notify;

/// A watch that has failed for this long will not come back by itself.
const WATCH_TIMEOUT: Duration = Duration::from_mins(3);

/// A leader's loop turns every second or so; one that stood still for this long hangs.
const LOOP_TIMEOUT: Duration = Duration::from_mins(1);

/// One watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WatchId(usize);

/// Whether the operator lives and is ready. Without a clock: times come in.
#[derive(Debug, Default)]
pub struct Health {
    state: Mutex<State>,
    synced: Notify,
}

#[derive(Debug, Default)]
struct State {
    watches: Vec<Watch>,
    beat: Option<Instant>,
}

#[derive(Debug)]
struct Watch {
    kind: &'static str,
    synced: bool,
    failing_since: Option<Instant>,
}

impl Health {
    /// There will be a watch of this kind; the operator is not ready before it synced.
    pub fn expect_watch(&self, kind: &'static str) -> WatchId {
        let mut state = self.lock();
        state.watches.push(Watch { kind, synced: false, failing_since: None });
        WatchId(state.watches.len() - 1)
    }

    /// The watch delivered something.
    pub fn watch_works(&self, id: WatchId) {
        self.with(id, |watch| watch.failing_since = None);
    }

    /// The watch has delivered all that there is.
    pub fn watch_synced(&self, id: WatchId) {
        self.with(id, |watch| {
            watch.synced = true;
            watch.failing_since = None;
        });
        self.synced.notify_waiters();
    }

    /// The watch failed and will be tried again.
    pub fn watch_failed(&self, id: WatchId, now: Instant) {
        self.with(id, |watch| watch.failing_since = watch.failing_since.or(Some(now)));
    }

    fn with(&self, id: WatchId, act: impl FnOnce(&mut Watch)) {
        if let Some(watch) = self.lock().watches.get_mut(id.0) {
            act(watch);
        }
    }

    /// The leader's loop turned.
    pub fn beat(&self, now: Instant) {
        self.lock().beat = Some(now);
    }

    /// The operator does not lead any more, or not yet.
    pub fn rest(&self) {
        self.lock().beat = None;
    }

    /// Why the process should be restarted, if it should.
    pub fn illness(&self, now: Instant) -> Option<String> {
        let state = self.lock();
        let lasting = |since: Instant, patience| now.saturating_duration_since(since) >= patience;
        let watch = state
            .watches
            .iter()
            .find(|w| w.failing_since.is_some_and(|since| lasting(since, WATCH_TIMEOUT)))
            .map(|w| format!("the watch of {} has been failing for minutes: see the log", w.kind));
        let stuck = state.beat.is_some_and(|beat| lasting(beat, LOOP_TIMEOUT));
        watch.or_else(|| stuck.then(|| "the leader's loop stands still".to_owned()))
    }

    /// What the operator still waits for before it is of use.
    pub fn unready(&self) -> Option<String> {
        let state = self.lock();
        let missing: Vec<&str> = state.watches.iter().filter(|w| !w.synced).map(|w| w.kind).collect();
        if state.watches.is_empty() {
            return Some("not started yet".to_owned());
        }
        (!missing.is_empty()).then(|| format!("not listed yet: {}", missing.join(", ")))
    }

    /// Waits until the operator is ready.
    pub async fn wait_ready(&self) {
        loop {
            let synced = self.synced.notified();
            if self.unready().is_none() {
                return;
            }
            synced.await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_operator_is_ready_once_every_watch_synced() {
        let health = Health::default();
        assert!(health.unready().is_some());
        let (pod, node) = (health.expect_watch("Pod"), health.expect_watch("Node"));
        health.watch_synced(pod);
        assert_eq!(health.unready().unwrap(), "not listed yet: Node");
        health.watch_synced(node);
        assert_eq!(health.unready(), None);
    }

    #[test]
    fn a_watch_that_fails_for_minutes_is_an_illness_and_one_that_recovers_is_not() {
        let (health, now) = (Health::default(), Instant::now());
        let pod = health.expect_watch("Pod");
        health.watch_failed(pod, now);
        health.watch_failed(pod, now + WATCH_TIMEOUT / 2);
        assert_eq!(health.illness(now + WATCH_TIMEOUT / 2), None);
        assert!(health.illness(now + WATCH_TIMEOUT).is_some());
        health.watch_works(pod);
        assert_eq!(health.illness(now + WATCH_TIMEOUT), None);
    }

    #[test]
    fn only_a_leader_must_beat() {
        let (health, now) = (Health::default(), Instant::now());
        assert_eq!(health.illness(now + LOOP_TIMEOUT), None);
        health.beat(now);
        assert!(health.illness(now + LOOP_TIMEOUT).is_some());
        health.rest();
        assert_eq!(health.illness(now + LOOP_TIMEOUT), None);
    }
}
