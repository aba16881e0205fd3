//! What Events say was refused, by what they are about. Pure.

use std::collections::{BTreeMap, HashMap};

use super::index::Name;
use crate::plan::{Note, NoteKind, Refusal};

/// Most objects that Events are kept of: far more than a cluster has gateways that fail.
const MAX_OBJECTS: usize = 10_000;

/// Kind, namespace and name of what Events are about.
type About = (NoteKind, Name);

/// The Events that are known, by what they are about.
#[derive(Debug, Default)]
pub(crate) struct Notes {
    of: HashMap<About, BTreeMap<Name, Note>>,
    /// By the Event's own name.
    about: HashMap<Name, About>,
}

impl Notes {
    /// An Event was written, or is gone: namespace and name of what it is about, if that matters.
    pub(crate) fn changed(&mut self, event: &Name, new: Option<(NoteKind, String, Note)>) -> Option<Name> {
        let old = self.forget(event);
        let Some((kind, object, note)) = new else { return old };
        let about = (kind, (event.0.clone(), object));
        if self.of.len() >= MAX_OBJECTS && !self.of.contains_key(&about) {
            return old;
        }
        self.about.insert(event.clone(), about.clone());
        self.of.entry(about.clone()).or_default().insert(event.clone(), note);
        Some(about.1)
    }

    fn forget(&mut self, event: &Name) -> Option<Name> {
        let about = self.about.remove(event)?;
        let left = self.of.get_mut(&about)?;
        left.remove(event);
        if left.is_empty() {
            self.of.remove(&about);
        }
        Some(about.1)
    }

    /// Why the StatefulSet could not make this pod, as it last said. `uid` is the StatefulSet's, when that is known.
    pub(crate) fn of_set(&self, set: &Name, uid: Option<&str>, pod: &str) -> Option<&Refusal> {
        let is_of = |note: &&Note| {
            uid.is_none_or(|uid| uid == note.uid) && note.pod.as_deref().is_none_or(|made| made == pod)
        };
        self.last(NoteKind::StatefulSet, set, is_of)
    }

    /// Why the pod does not start.
    pub(crate) fn of_pod(&self, pod: &Name, uid: &str) -> Option<&Refusal> {
        self.last(NoteKind::Pod, pod, |note| note.uid == uid)
    }

    /// Why the Service gets no load balancer.
    pub(crate) fn of_service(&self, service: &Name, uid: &str) -> Option<&Refusal> {
        self.last(NoteKind::Service, service, |note| note.uid == uid)
    }

    fn last(&self, kind: NoteKind, object: &Name, is_of: impl Fn(&&Note) -> bool) -> Option<&Refusal> {
        let notes = self.of.get(&(kind, object.clone()))?;
        notes.values().filter(is_of).max_by_key(|note| note.at).map(|note| &note.refusal)
    }

    /// A pod of a StatefulSet is there: what kept it from being made is over.
    pub(crate) fn pod_was_made(&mut self, (namespace, pod): &Name) {
        let Some((set, _)) = pod.rsplit_once('-') else { return };
        let about = (NoteKind::StatefulSet, (namespace.clone(), set.to_owned()));
        let Some(notes) = self.of.get_mut(&about) else { return };
        let over = |note: &Note| note.pod.as_deref().is_none_or(|made| made == pod);
        let events: Vec<Name> = notes.iter().filter(|(_, note)| over(note)).map(|(e, _)| e.clone()).collect();
        for event in events {
            self.forget(&event);
        }
    }
}

#[cfg(test)]
#[path = "notes_tests.rs"]
mod tests;
