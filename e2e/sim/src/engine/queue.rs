//! What is going to happen.

use std::{
    cmp::{Ordering, Reverse},
    collections::BinaryHeap,
};

use pinhole_nat::{Beat, Channel};

use super::{Change, run::Occurrence};
use crate::model::Time;

/// Something that happens by itself.
#[derive(Debug, Clone, Copy)]
pub(super) enum Event {
    /// A beat arrives at the gateway from this external port.
    BeatArrives { beat: Beat, port: u16 },
    /// A keepalive or a handshake initiation arrives at the gateway.
    TunnelArrives { port: u16, handshake: bool },
    /// The gateway sends a wake; this is its n-th copy.
    WakeDue { channel: Channel, seq: u64, port: u16, copy: u8, from: Time },
    /// A packet of the gateway arrives at the NAT.
    ToClient { to: u16, packet: Downward },
    /// A packet that passed the NAT reaches a radio that was paged for it.
    Paged { to: u16, packet: Downward },
    /// A burst of loss begins or ends.
    Weather,
    /// Something about a TCP connection.
    Session(Occurrence),
    /// The NAT loses its mappings.
    Flush,
    /// The NAT's lifetimes change.
    Lifetimes(Change),
}

/// A packet of the gateway.
#[derive(Debug, Clone, Copy)]
pub(super) enum Downward {
    /// The answer to a beat.
    Reply { channel: Channel, seq: u64, is_endpoint: bool },
    /// What a beat had asked for.
    Wake { channel: Channel, seq: u64 },
    /// The answer to a handshake initiation.
    Handshake,
}

impl Downward {
    /// For which socket it is.
    pub(super) fn channel(self) -> Channel {
        match self {
            Self::Reply { channel, .. } | Self::Wake { channel, .. } => channel,
            Self::Handshake => Channel::Live,
        }
    }
}

/// Events in order; those of the same time in the order in which they were put in.
#[derive(Debug, Default)]
pub(super) struct Queue {
    heap: BinaryHeap<Reverse<Entry>>,
    order: u64,
}

#[derive(Debug)]
struct Entry {
    at: Time,
    order: u64,
    event: Event,
}

impl Queue {
    pub(super) fn push(&mut self, at: Time, event: Event) {
        self.order += 1;
        self.heap.push(Reverse(Entry { at, order: self.order, event }));
    }

    pub(super) fn next_at(&self) -> Time {
        self.heap.peek().map_or(Time::NEVER, |Reverse(entry)| entry.at)
    }

    pub(super) fn pop(&mut self) -> Option<(Time, Event)> {
        self.heap.pop().map(|Reverse(entry)| (entry.at, entry.event))
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.order == other.order
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}
