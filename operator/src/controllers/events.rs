//! Kubernetes Events: few, never in the way of work, lost rather than queued.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Client, Resource,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use tokio::sync::mpsc;

use super::error::call;

/// The same reason is told of the same object at most this often.
const REPEAT: Duration = Duration::from_mins(5);

/// Events in all, a second.
const PER_SECOND: u32 = 5;

/// Longest note, bytes: the API refuses one of more than 1 kB.
const NOTE: usize = 1000;

/// Objects whose last events are remembered.
const REMEMBERED: usize = 4096;

/// Publishes events from a task of its own.
pub(super) struct Events {
    queue: mpsc::Sender<(ObjectReference, Event)>,
    told: Mutex<HashMap<(String, &'static str), Instant>>,
}

impl Events {
    /// With the task that publishes them, which ends with the `Events`.
    pub(super) fn new(client: Client, instance: &str) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (queue, waiting) = mpsc::channel(64);
        let reporter =
            Reporter { controller: "pinhole-operator".into(), instance: Some(instance.to_owned()) };
        (Self { queue, told: Mutex::default() }, publish(Recorder::new(client, reporter), waiting))
    }

    /// Tells of something that somebody should look at.
    pub(super) fn warn<K: Resource<DynamicType = ()>>(&self, object: &K, reason: &'static str, note: &str) {
        let reference = object.object_ref(&());
        let uid = reference.uid.clone().unwrap_or_default();
        if !self.is_news(uid, reason, Instant::now()) {
            return;
        }
        let event = Event {
            type_: EventType::Warning,
            reason: reason.to_owned(),
            note: Some(cut(note)),
            action: "Reconcile".to_owned(),
            secondary: None,
        };
        if self.queue.try_send((reference, event)).is_err() {
            tracing::debug!(reason, "too many events: one was dropped");
        }
    }

    fn is_news(&self, uid: String, reason: &'static str, now: Instant) -> bool {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.len() >= REMEMBERED {
            told.retain(|_, at| now.saturating_duration_since(*at) < REPEAT);
        }
        let key = (uid, reason);
        if told.get(&key).is_some_and(|at| now.saturating_duration_since(*at) < REPEAT) {
            return false;
        }
        told.insert(key, now);
        true
    }
}

async fn publish(recorder: Recorder, mut waiting: mpsc::Receiver<(ObjectReference, Event)>) {
    let mut pace = tokio::time::interval(Duration::from_secs(1) / PER_SECOND);
    while let Some((reference, event)) = waiting.recv().await {
        pace.tick().await;
        let what = || format!("telling {} of {:?}", event.reason, reference.name);
        if let Err(error) = call(what, recorder.publish(&event, &reference)).await {
            tracing::debug!(%error, "event not published");
        }
    }
}

fn cut(note: &str) -> String {
    let end = (0..=NOTE.min(note.len())).rev().find(|n| note.is_char_boundary(*n)).unwrap_or(0);
    note.get(..end).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_note_is_cut_between_characters() {
        assert_eq!(cut("short"), "short");
        let long = cut(&"é".repeat(900));
        assert!(long.len() <= NOTE && long.chars().all(|c| c == 'é'));
    }
}
