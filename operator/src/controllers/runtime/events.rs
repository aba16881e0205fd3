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
use pinhole_proto::printable;
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
pub(crate) struct Events {
    queue: mpsc::Sender<(ObjectReference, Event)>,
    told: Mutex<HashMap<Topic, Last>>,
}

/// UID of the object, reason, and what else tells one topic from another.
type Topic = (String, &'static str, String);

/// The last Event of a topic, and how often it would have been told again since.
#[derive(Debug)]
struct Last {
    at: Instant,
    untold: u32,
}

impl Events {
    /// With the task that publishes them, which ends with the `Events`.
    pub(crate) fn new(client: Client, instance: &str) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (queue, waiting) = mpsc::channel(64);
        let reporter =
            Reporter { controller: "pinhole-operator".into(), instance: Some(instance.to_owned()) };
        (Self { queue, told: Mutex::default() }, publish(Recorder::new(client, reporter), waiting))
    }

    /// Tells of something that somebody should look at.
    pub(crate) fn warn<K: Resource<DynamicType = ()>>(&self, object: &K, reason: &'static str, note: &str) {
        self.tell(object, EventType::Warning, (reason, ""), note);
    }

    /// Tells of something, with a reason and what else tells the topic from others of the same reason.
    pub(crate) fn tell<K: Resource<DynamicType = ()>>(
        &self,
        object: &K,
        type_: EventType,
        (reason, about): (&'static str, &str),
        note: &str,
    ) {
        let reference = object.object_ref(&());
        let uid = reference.uid.clone().unwrap_or_default();
        let Some(untold) = self.news((uid, reason, about.to_owned()), Instant::now()) else { return };
        let note = if untold == 0 { note.to_owned() } else { format!("{note} (and {untold} more before)") };
        let event = Event {
            type_,
            reason: reason.to_owned(),
            note: Some(cut(&printable(&note, NOTE))),
            action: "Reconcile".to_owned(),
            secondary: None,
        };
        if self.queue.try_send((reference, event)).is_err() {
            tracing::debug!(reason, "too many events: one was dropped");
        }
    }

    /// How often the topic came up untold since the last Event. None: it is told often enough.
    fn news(&self, topic: Topic, now: Instant) -> Option<u32> {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.len() >= REMEMBERED {
            told.retain(|_, last| now.saturating_duration_since(last.at) < REPEAT);
        }
        if let Some(last) = told.get_mut(&topic)
            && now.saturating_duration_since(last.at) < REPEAT
        {
            last.untold = last.untold.saturating_add(1);
            return None;
        }
        let last = told.insert(topic, Last { at: now, untold: 0 });
        Some(last.map_or(0, |last| last.untold))
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
    fn a_topic_is_told_once_in_a_while_and_says_how_often_it_came_up() {
        let (queue, _waiting) = mpsc::channel(1);
        let events = Events { queue, told: Mutex::default() };
        let topic = |about: &str| ("uid".to_owned(), "MappingChanged", about.to_owned());
        let now = Instant::now();
        assert_eq!(events.news(topic(""), now), Some(0));
        assert_eq!(events.news(topic("198.51.100.9"), now), Some(0));
        for second in 1..4 {
            assert_eq!(events.news(topic(""), now + Duration::from_secs(second)), None);
        }
        assert_eq!(events.news(topic(""), now + REPEAT), Some(3));
    }

    #[test]
    fn a_long_note_is_cut_between_characters() {
        assert_eq!(cut("short"), "short");
        let long = cut(&"é".repeat(900));
        assert!(long.len() <= NOTE && long.chars().all(|c| c == 'é'));
    }
}
