//! The mappings in force: found from either side, bounded in number, gone at their end.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, HashMap, VecDeque},
    net::{Ipv4Addr, SocketAddrV4},
};

use super::{oracle::Direction, packet::Protocol};
use crate::nat::model::{Binding, Dependence, Time};

/// What of the other end a mapping or a filter looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Scope {
    Any,
    Address(Ipv4Addr),
    Endpoint(SocketAddrV4),
}

impl Scope {
    pub(crate) fn of(dependence: Dependence, remote: SocketAddrV4) -> Self {
        match dependence {
            Dependence::EndpointIndependent => Self::Any,
            Dependence::AddressDependent => Self::Address(*remote.ip()),
            Dependence::AddressAndPortDependent => Self::Endpoint(remote),
        }
    }
}

/// How a mapping is found from the inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) protocol: Protocol,
    pub(crate) inside: SocketAddrV4,
    pub(crate) scope: Scope,
}

/// Names a mapping; never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Id(u64);

/// One mapping.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) key: Key,
    pub(crate) port: u16,
    pub(crate) binding: Binding,
    pub(crate) created: Time,
    /// The other end that it was made for.
    pub(crate) remote: SocketAddrV4,
    /// Whether a packet from outside ever passed.
    pub(crate) replied: bool,
    /// Lets nothing in any more.
    pub(crate) zombie: bool,
    /// When and by which way its timer was last restarted.
    pub(crate) refreshed: Time,
    /// When that was last told.
    pub(crate) told: Option<(Time, Direction)>,
    /// Whom it was used for, newest last.
    permitted: VecDeque<SocketAddrV4>,
}

impl Entry {
    /// How many other ends a mapping remembers.
    const PERMITTED: usize = 64;

    pub(crate) fn new(key: Key, port: u16, remote: SocketAddrV4, now: Time) -> Self {
        Self {
            key,
            port,
            binding: Binding::open(now),
            created: now,
            remote,
            replied: false,
            zombie: false,
            refreshed: now,
            told: None,
            permitted: VecDeque::from([remote]),
        }
    }

    /// The client sent to this end.
    pub(crate) fn permit(&mut self, remote: SocketAddrV4) {
        if self.permitted.back() == Some(&remote) {
            return;
        }
        self.permitted.retain(|known| *known != remote);
        if self.permitted.len() >= Self::PERMITTED {
            self.permitted.pop_front();
        }
        self.permitted.push_back(remote);
    }

    /// Whether the filter lets packets of this end in.
    pub(crate) fn permits(&self, filtering: Dependence, remote: SocketAddrV4) -> bool {
        let scope = Scope::of(filtering, remote);
        self.permitted.iter().any(|known| Scope::of(filtering, *known) == scope)
    }

    /// Whether the client used it towards this port of anybody.
    pub(crate) fn reaches_port(&self, port: u16) -> bool {
        self.permitted.iter().any(|known| known.port() == port)
    }
}

/// All mappings of a NAT.
#[derive(Debug, Default)]
pub(crate) struct Table {
    entries: BTreeMap<Id, Entry>,
    from_inside: HashMap<Key, Id>,
    from_outside: HashMap<(Protocol, u16), Id>,
    /// When mappings end at the earliest; an entry may since have been refreshed.
    ends: BinaryHeap<Reverse<(Time, Id)>>,
    next: u64,
}

impl Table {
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn count(&self, protocol: Protocol) -> usize {
        self.entries.values().filter(|entry| entry.key.protocol == protocol).count()
    }

    pub(crate) fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values()
    }

    pub(crate) fn entries_mut(&mut self) -> impl Iterator<Item = &mut Entry> {
        self.entries.values_mut()
    }

    pub(crate) fn get_mut(&mut self, id: Id) -> Option<&mut Entry> {
        self.entries.get_mut(&id)
    }

    pub(crate) fn inside(&self, key: &Key) -> Option<Id> {
        self.from_inside.get(key).copied()
    }

    pub(crate) fn outside(&self, protocol: Protocol, port: u16) -> Option<Id> {
        self.from_outside.get(&(protocol, port)).copied()
    }

    pub(crate) fn is_taken(&self, protocol: Protocol, port: u16) -> bool {
        self.from_outside.contains_key(&(protocol, port))
    }

    /// Adds a mapping that ends at `end` if nothing passes; its key and port are free.
    pub(crate) fn insert(&mut self, entry: Entry, end: Time) -> Id {
        let id = Id(self.next);
        self.next += 1;
        self.from_inside.insert(entry.key, id);
        self.from_outside.insert((entry.key.protocol, entry.port), id);
        self.ends.push(Reverse((end, id)));
        self.entries.insert(id, entry);
        id
    }

    pub(crate) fn clear(&mut self) -> Vec<Entry> {
        self.from_inside.clear();
        self.from_outside.clear();
        self.ends.clear();
        std::mem::take(&mut self.entries).into_values().collect()
    }

    /// Removes one mapping that is over, as `end` says; yields it and its end. None when no more are.
    pub(crate) fn pop_ended(&mut self, now: Time, end: impl Fn(&Entry) -> Time) -> Option<(Entry, Time)> {
        while let Some(Reverse((earliest, id))) = self.ends.peek().copied() {
            if earliest > now {
                return None;
            }
            self.ends.pop();
            let Some(entry) = self.entries.get(&id) else { continue };
            let end = end(entry);
            if end > now {
                self.ends.push(Reverse((end, id)));
                continue;
            }
            let entry = self.entries.remove(&id)?;
            self.from_inside.remove(&entry.key);
            self.from_outside.remove(&(entry.key.protocol, entry.port));
            return Some((entry, end));
        }
        None
    }

    /// A mapping may end as early as at `end` now.
    pub(crate) fn hasten(&mut self, id: Id, end: Time) {
        self.ends.push(Reverse((end, id)));
    }

    /// The lifetimes changed: mappings may end earlier than thought.
    pub(crate) fn reschedule(&mut self, end: impl Fn(&Entry) -> Time) {
        self.ends = self.entries.iter().map(|(id, entry)| Reverse((end(entry), *id))).collect();
    }

    /// When a mapping may end next.
    pub(crate) fn next_end(&self) -> Option<Time> {
        self.ends.peek().map(|Reverse((end, _))| *end)
    }
}
