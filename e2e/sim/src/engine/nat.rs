//! The NAT's table: one mapping for each of the client's sockets, as all of them talk to the same gateway.

use std::time::Duration;

use pinhole_nat::Channel;

use super::mapping::{Maker, Mapping};
use crate::{
    model::{PortAllocation, Time, Timers},
    rng::Rng,
};

/// The live socket's own port. A probe's lies above it.
const LIVE_PORT: u16 = 20_000;
const PROBE_PORTS: u32 = 40_000;

/// One of the client's sockets, as the NAT and the gateway know it.
#[derive(Debug, Clone, Copy)]
struct Socket {
    mapping: Option<(Mapping, u16)>,
    /// The channel's newest beat at the gateway: older ones' wakes are off.
    newest: u64,
}

/// All mappings of one client.
#[derive(Debug)]
pub(super) struct Table {
    timers: Timers,
    allocation: PortAllocation,
    ports: Rng,
    sequential: u16,
    live: Socket,
    /// In the order of their numbers, which are not used twice.
    probes: Vec<(u32, Socket)>,
    /// Mappings whose sockets were closed, where they matter.
    left: Option<Vec<Mapping>>,
}

impl Table {
    /// `remembers` the mappings of sockets that are closed, as they fill a table.
    pub(super) fn new(timers: Timers, allocation: PortAllocation, mut ports: Rng, remembers: bool) -> Self {
        let sequential = port(&mut ports);
        let left = remembers.then(Vec::new);
        Self { timers, allocation, ports, sequential, live: CLOSED, probes: Vec::new(), left }
    }

    /// Whether the channel has a mapping now.
    pub(super) fn has(&mut self, now: Time, channel: Channel) -> bool {
        let timers = self.timers;
        let mapping = self.socket(channel).and_then(|socket| socket.mapping);
        mapping.is_some_and(|(mapping, _)| mapping.is_alive(now, &timers))
    }

    /// All mappings, and some that have ended.
    pub(super) fn mappings(&mut self) -> impl Iterator<Item = (&mut Mapping, Timers)> {
        let timers = self.timers;
        let probes = self.probes.iter_mut().map(|(_, socket)| socket);
        let sockets = probes.chain([&mut self.live]).filter_map(|socket| socket.mapping.as_mut());
        let left = self.left.iter_mut().flatten();
        sockets.map(|(mapping, _)| mapping).chain(left).map(move |mapping| (mapping, timers))
    }

    /// A packet of the client passes; a mapping is made where there is none. Returns its external port.
    pub(super) fn outbound(&mut self, now: Time, channel: Channel, maker: &mut Maker) -> u16 {
        let timers = self.timers;
        let allocated = self.allocate(channel);
        let socket = self.open(channel);
        if let Some((mapping, port)) = &mut socket.mapping
            && mapping.is_alive(now, &timers)
        {
            mapping.outbound(now, &timers);
            return *port;
        }
        socket.mapping = Some((maker.open(now), allocated));
        if self.allocation == PortAllocation::Sequential {
            self.sequential = self.sequential.checked_add(1).unwrap_or(1024);
        }
        allocated
    }

    /// A packet from the gateway to this external port: whether it passes to the channel's socket.
    pub(super) fn inbound(&mut self, now: Time, channel: Channel, to: u16) -> bool {
        let timers = self.timers;
        let Some((mapping, port)) = self.socket(channel).and_then(|socket| socket.mapping.as_mut()) else {
            return false;
        };
        let passes = *port == to && mapping.is_alive(now, &timers);
        if passes {
            mapping.inbound(now, &timers);
        }
        passes
    }

    /// The live mapping's port, and when it ends if nothing passes any more.
    pub(super) fn live(&self) -> Option<(u16, Time)> {
        self.live.mapping.map(|(mapping, port)| (port, mapping.ends(&self.timers)))
    }

    pub(super) fn flush(&mut self) {
        self.live.mapping = None;
        for (_, socket) in &mut self.probes {
            socket.mapping = None;
        }
        if let Some(left) = &mut self.left {
            left.clear();
        }
    }

    /// Mappings live for so long from now on.
    pub(super) fn set(&mut self, now: Time, unreplied: Duration, replied: Duration) {
        let timers = self.timers;
        let sockets = self.probes.iter_mut().map(|(_, socket)| socket).chain([&mut self.live]);
        for socket in sockets {
            socket.mapping = socket.mapping.filter(|(mapping, _)| mapping.is_alive(now, &timers));
        }
        if let Some(left) = &mut self.left {
            left.retain(|mapping| mapping.is_alive(now, &timers));
        }
        self.timers.set(now, unreplied, replied);
    }

    /// A beat of this channel came to the gateway.
    pub(super) fn note_beat(&mut self, channel: Channel, seq: u64) {
        if let Some(socket) = self.socket(channel) {
            socket.newest = socket.newest.max(seq);
        }
    }

    /// Whether no newer beat of the channel came to the gateway.
    pub(super) fn is_newest(&mut self, channel: Channel, seq: u64) -> bool {
        self.socket(channel).is_some_and(|socket| socket.newest == seq)
    }

    /// The client closes a socket. The NAT is not told.
    pub(super) fn close(&mut self, now: Time, channel: Channel) {
        let Channel::Probe(number) = channel else { return };
        let Ok(place) = self.place(number) else { return };
        let (_, socket) = self.probes.remove(place);
        let Some(left) = &mut self.left else { return };
        left.retain(|mapping| mapping.is_alive(now, &self.timers));
        left.extend(socket.mapping.map(|(mapping, _)| mapping));
    }

    fn place(&self, number: u32) -> Result<usize, usize> {
        self.probes.binary_search_by_key(&number, |(number, _)| *number)
    }

    fn socket(&mut self, channel: Channel) -> Option<&mut Socket> {
        let Channel::Probe(number) = channel else { return Some(&mut self.live) };
        let place = self.place(number).ok()?;
        self.probes.get_mut(place).map(|(_, socket)| socket)
    }

    #[expect(clippy::indexing_slicing, reason = "the place was just found or filled")]
    fn open(&mut self, channel: Channel) -> &mut Socket {
        let Channel::Probe(number) = channel else { return &mut self.live };
        let place = self.place(number).unwrap_or_else(|place| {
            self.probes.insert(place, (number, CLOSED));
            place
        });
        &mut self.probes[place].1
    }

    fn allocate(&mut self, channel: Channel) -> u16 {
        match self.allocation {
            PortAllocation::Preserve => inner_port(channel),
            PortAllocation::Sequential => self.sequential,
            PortAllocation::Random => port(&mut self.ports),
        }
    }
}

const CLOSED: Socket = Socket { mapping: None, newest: 0 };

fn inner_port(channel: Channel) -> u16 {
    match channel {
        Channel::Live => LIVE_PORT,
        Channel::Probe(number) => LIVE_PORT + 1 + (number % PROBE_PORTS) as u16,
    }
}

#[expect(clippy::cast_possible_truncation, reason = "16 bits are asked for")]
fn port(rng: &mut Rng) -> u16 {
    1024 + (rng.next_u64() % u64::from(u16::MAX - 1024)) as u16
}
