use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// A watch that has failed for this long will not come back by itself.
const WATCH_PATIENCE: Duration = Duration::from_secs(180);

/// A leader's loop turns every second or so; one that stood still for this long hangs.
const LOOP_PATIENCE: Duration = Duration::from_secs(60);

/// Whether the operator lives and is ready. Without a clock: times come in.
#[derive(Debug, Default)]
pub struct Health(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    watches: BTreeMap<&'static str, Watch>,
    beat: Option<Instant>,
}

#[derive(Debug, Default)]
struct Watch {
    synced: bool,
    failing_since: Option<Instant>,
}

impl Health {
    /// There will be a watch of this kind; the operator is not ready before it synced.
    pub fn expect_watch(&self, kind: &'static str) {
        self.lock().watches.entry(kind).or_default();
    }

    /// The watch delivered something.
    pub fn watch_works(&self, kind: &'static str) {
        if let Some(watch) = self.lock().watches.get_mut(kind) {
            watch.failing_since = None;
        }
    }

    /// The watch has delivered all that there is.
    pub fn watch_synced(&self, kind: &'static str) {
        let mut state = self.lock();
        let watch = state.watches.entry(kind).or_default();
        *watch = Watch { synced: true, failing_since: None };
    }

    /// The watch failed and will be tried again.
    pub fn watch_failed(&self, kind: &'static str, now: Instant) {
        self.lock().watches.entry(kind).or_default().failing_since.get_or_insert(now);
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
            .find(|(_, w)| w.failing_since.is_some_and(|since| lasting(since, WATCH_PATIENCE)))
            .map(|(kind, _)| format!("the watch of {kind} has been failing for minutes: see the log"));
        let stuck = state.beat.is_some_and(|beat| lasting(beat, LOOP_PATIENCE));
        watch.or_else(|| stuck.then(|| "the leader's loop stands still".to_owned()))
    }

    /// What the operator still waits for before it is of use.
    pub fn unready(&self) -> Option<String> {
        let state = self.lock();
        let missing: Vec<&str> = state.watches.iter().filter(|(_, w)| !w.synced).map(|(kind, _)| *kind).collect();
        if state.watches.is_empty() {
            return Some("not started yet".to_owned());
        }
        (!missing.is_empty()).then(|| format!("not listed yet: {}", missing.join(", ")))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_operator_is_ready_once_every_watch_synced() {
        let health = Health::default();
        assert!(health.unready().is_some());
        health.expect_watch("Pod");
        health.expect_watch("Node");
        health.watch_synced("Pod");
        assert_eq!(health.unready().unwrap(), "not listed yet: Node");
        health.watch_synced("Node");
        assert_eq!(health.unready(), None);
    }

    #[test]
    fn a_watch_that_fails_for_minutes_is_an_illness_and_one_that_recovers_is_not() {
        let (health, now) = (Health::default(), Instant::now());
        health.expect_watch("Pod");
        health.watch_failed("Pod", now);
        health.watch_failed("Pod", now + WATCH_PATIENCE - Duration::from_secs(1));
        assert_eq!(health.illness(now + WATCH_PATIENCE - Duration::from_secs(1)), None);
        assert!(health.illness(now + WATCH_PATIENCE).is_some());
        health.watch_works("Pod");
        assert_eq!(health.illness(now + WATCH_PATIENCE), None);
    }

    #[test]
    fn only_a_leader_must_beat() {
        let (health, now) = (Health::default(), Instant::now());
        assert_eq!(health.illness(now + LOOP_PATIENCE), None);
        health.beat(now);
        assert!(health.illness(now + LOOP_PATIENCE).is_some());
        health.rest();
        assert_eq!(health.illness(now + LOOP_PATIENCE), None);
    }
}
