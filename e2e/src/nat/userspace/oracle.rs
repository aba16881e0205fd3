//! The truth about every mapping: what a client's verdicts are compared with.

use std::{
    collections::VecDeque,
    net::{Ipv4Addr, SocketAddrV4},
    time::Duration,
};

use serde::{Serialize, Serializer};

use super::packet::Protocol;
use crate::nat::model::Time;

/// Which way a packet goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// From the inside.
    Outbound,
    /// From the outside.
    Inbound,
}

/// A mapping, by its ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Ends {
    /// What it carries.
    pub protocol: Protocol,
    /// The client as seen inside.
    pub inside: SocketAddrV4,
    /// The client as seen outside.
    pub outside: SocketAddrV4,
    /// The other end that it was made for.
    pub remote: SocketAddrV4,
}

/// Something that happened at a NAT.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// A mapping was made.
    Created(Ends),
    /// A mapping got the longer lifetime.
    Promoted(Ends),
    /// A packet restarted a mapping's timer. Of many in a row, one in a tenth of a second is told.
    Refreshed {
        /// The mapping.
        #[serde(flatten)]
        ends: Ends,
        /// By a packet that went this way.
        by: Direction,
    },
    /// A mapping's lifetime was over.
    Expired {
        /// The mapping.
        #[serde(flatten)]
        ends: Ends,
        /// Since its timer was last restarted, in seconds in JSON: the true lifetime.
        #[serde(rename = "idle_s", serialize_with = "seconds")]
        idle: Duration,
        /// Since it was made, in seconds in JSON.
        #[serde(rename = "lived_s", serialize_with = "seconds")]
        lived: Duration,
        /// Whether it had the longer lifetime.
        promoted: bool,
    },
    /// A mapping went before its time.
    Flushed(Ends),
    /// A mapping lets nothing in any more.
    Zombie(Ends),
    /// The lifetimes changed, for existing mappings too.
    Timeouts {
        /// Until promoted.
        #[serde(rename = "unreplied_s", serialize_with = "seconds")]
        unreplied: Duration,
        /// Once promoted.
        #[serde(rename = "replied_s", serialize_with = "seconds")]
        replied: Duration,
    },
    /// The NAT has another address on the outside.
    Address {
        /// The new one.
        address: Ipv4Addr,
    },
    /// A new flow was turned away: no port or no place in the table was left.
    Exhausted {
        /// What it would have carried.
        protocol: Protocol,
        /// The client as seen inside.
        inside: SocketAddrV4,
    },
    /// A helper changed a payload.
    Rewritten {
        /// The mapping.
        #[serde(flatten)]
        ends: Ends,
        /// Of a packet that went this way.
        by: Direction,
    },
}

impl Event {
    /// The mapping that it is about, if it is about one.
    pub fn ends(&self) -> Option<Ends> {
        match self {
            Self::Created(ends)
            | Self::Promoted(ends)
            | Self::Flushed(ends)
            | Self::Zombie(ends)
            | Self::Refreshed { ends, .. }
            | Self::Expired { ends, .. }
            | Self::Rewritten { ends, .. } => Some(*ends),
            Self::Timeouts { .. } | Self::Address { .. } | Self::Exhausted { .. } => None,
        }
    }

    /// How long an expired mapping had been idle: its true lifetime.
    pub fn idle(&self) -> Option<Duration> {
        match self {
            Self::Expired { idle, .. } => Some(*idle),
            _ => None,
        }
    }
}

/// What happened when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// Since the NAT began; in seconds in JSON.
    #[serde(rename = "t", serialize_with = "time")]
    pub at: Time,
    /// What.
    #[serde(flatten)]
    pub event: Event,
}

fn seconds<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(duration.as_secs_f64())
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn time<S: Serializer>(time: &Time, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(time.as_secs_f64())
}

/// The newest entries, in order of time.
#[derive(Debug, Clone, Default)]
pub struct Oracle {
    entries: VecDeque<Entry>,
    /// How many entries there ever were.
    written: u64,
}

impl Oracle {
    /// How many entries are kept.
    pub const CAPACITY: usize = 50_000;

    pub(crate) fn tell(&mut self, at: Time, event: Event) {
        if self.entries.len() >= Self::CAPACITY {
            self.entries.pop_front();
        }
        self.entries.push_back(Entry { at, event });
        self.written += 1;
    }

    /// The entries, oldest first.
    pub fn entries(&self) -> impl DoubleEndedIterator<Item = &Entry> {
        self.entries.iter()
    }

    /// How many entries there ever were, those not kept included.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// The entries after the first `known` ever written, as far as they are kept.
    pub(crate) fn since(&self, known: u64) -> impl Iterator<Item = &Entry> {
        let new = usize::try_from(self.written - known.min(self.written)).unwrap_or(usize::MAX);
        self.entries.iter().skip(self.entries.len().saturating_sub(new))
    }

    /// What happened to UDP mappings of this client's port, oldest first.
    pub fn of(&self, inside: SocketAddrV4) -> impl Iterator<Item = &Entry> {
        self.entries().filter(move |entry| {
            entry.event.ends().is_some_and(|ends| ends.protocol == Protocol::Udp && ends.inside == inside)
        })
    }

    /// The UDP mappings whose lifetime was over.
    pub fn expired(&self) -> impl Iterator<Item = &Entry> {
        self.entries().filter(|entry| {
            let udp = entry.event.ends().is_some_and(|ends| ends.protocol == Protocol::Udp);
            udp && matches!(entry.event, Event::Expired { .. })
        })
    }

    /// All as JSON lines.
    pub fn json_lines(&self) -> String {
        self.entries()
            .filter_map(|entry| serde_json::to_string(entry).ok())
            .fold(String::new(), |all, line| all + &line + "\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_one_line_of_json() {
        let ends = Ends {
            protocol: Protocol::Udp,
            inside: "192.168.1.2:4500".parse().unwrap(),
            outside: "203.0.113.30:50001".parse().unwrap(),
            remote: "203.0.113.10:51820".parse().unwrap(),
        };
        let mut oracle = Oracle::default();
        let expired = Event::Expired {
            ends,
            idle: Duration::from_secs(15),
            lived: Duration::from_millis(17_500),
            promoted: true,
        };
        oracle.tell(Time::from_secs_f64(17.5), expired);
        assert_eq!(
            oracle.json_lines(),
            "{\"t\":17.5,\"event\":\"expired\",\"protocol\":\"udp\",\"inside\":\"192.168.1.2:4500\",\
             \"outside\":\"203.0.113.30:50001\",\"remote\":\"203.0.113.10:51820\",\"idle_s\":15.0,\
             \"lived_s\":17.5,\"promoted\":true}\n"
        );
    }

    #[test]
    fn the_oldest_entries_make_room_for_new_ones() {
        let mut oracle = Oracle::default();
        let address = Ipv4Addr::LOCALHOST;
        for second in 0..u64::try_from(Oracle::CAPACITY).unwrap() + 10 {
            oracle.tell(Time::from_secs(second), Event::Address { address });
        }
        assert_eq!(oracle.entries().count(), Oracle::CAPACITY);
        assert_eq!(oracle.entries().next().unwrap().at, Time::from_secs(10));
        assert_eq!(oracle.since(oracle.written() - 3).count(), 3);
        assert_eq!(oracle.since(oracle.written()).count(), 0);
    }
}
