//! The NAT itself: packets and time go in, packets come out.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, SocketAddrV4},
    time::Duration,
};

use super::{
    helper::{Helper, rewrite},
    line::Line,
    oracle::{Direction, Ends, Event, Oracle},
    packet::{Malformed, Meaning, Packet, Protocol},
    ports::Ports,
    profile::UserspaceProfile,
    random::Random,
    table::{Entry, Id, Key, Scope, Table},
};
use crate::nat::{
    Mapping, UdpFilter, UdpMapping,
    model::{Dependence, Loss, PortAllocation, Profile, Refresh, Time, Timers},
};

/// Why a packet was not passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Dropped {
    /// Lost on purpose.
    #[error("lost, as the profile has it")]
    Lost,
    /// Neither from the inside nor to the NAT's address.
    #[error("not to be translated")]
    Stray,
    /// Of a kind that is not let through.
    #[error("filtered")]
    Blocked,
    /// From the outside, for no mapping.
    #[error("no mapping")]
    NoMapping,
    /// From an end that the mapping's filter does not let in.
    #[error("not permitted")]
    NotPermitted,
    /// For a mapping that lets nothing in any more, or a port that is deaf.
    #[error("no way in")]
    Deaf,
    /// No port or no place in the table was left.
    #[error("exhausted")]
    Exhausted,
    /// From one host inside to the public address of another, without hairpinning.
    #[error("no hairpinning")]
    Hairpin,
    /// Another client holds the port that a helper gives to one only.
    #[error("another client has the helper's port")]
    OtherClient,
    /// More packets on their way than the line holds.
    #[error("the line is full")]
    Congested,
    /// No packet that is translated.
    #[error("malformed ({})", .0.category())]
    Malformed(Malformed),
}

impl Dropped {
    /// Stable, low-cardinality name.
    pub const fn category(self) -> &'static str {
        match self {
            Self::Lost => "Lost",
            Self::Stray => "Stray",
            Self::Blocked => "Blocked",
            Self::NoMapping => "NoMapping",
            Self::NotPermitted => "NotPermitted",
            Self::Deaf => "Deaf",
            Self::Exhausted => "Exhausted",
            Self::Hairpin => "Hairpin",
            Self::OtherClient => "OtherClient",
            Self::Congested => "Congested",
            Self::Malformed(why) => why.category(),
        }
    }
}

/// An IPv4 NAT, sans-IO.
///
/// UDP is translated in full: mapping, filtering and lifetimes as the profile says. TCP (endpoint-independent
/// mapping, RFC 5382) and ICMP echo (RFC 5508) are there for what travels beside it: their filters are
/// address-and-port-dependent, their lifetimes long. ICMP errors about known mappings are translated both ways and
/// refresh nothing; errors about others, fragments and all else are dropped and counted.
#[derive(Debug)]
pub struct Translator {
    profile: UserspaceProfile,
    address: Ipv4Addr,
    timers: Lifetimes,
    table: Table,
    udp_ports: Ports,
    other_ports: Ports,
    random: Random,
    outbound: Line,
    inbound: Line,
    oracle: Oracle,
    drops: BTreeMap<Dropped, u64>,
    next_flush: Option<Time>,
    pressed: bool,
}

/// The timers in force, by protocol.
#[derive(Debug, Clone, Copy)]
struct Lifetimes {
    udp: Timers,
    tcp: Timers,
    icmp: Timers,
}

impl Lifetimes {
    const fn of(&self, protocol: Protocol) -> &Timers {
        match protocol {
            Protocol::Udp => &self.udp,
            Protocol::Tcp => &self.tcp,
            Protocol::Icmp => &self.icmp,
        }
    }

    fn end(&self, entry: &Entry) -> Time {
        entry.binding.ends(self.of(entry.key.protocol))
    }
}

/// A refresh is told again after so long.
const TELL_EVERY: Duration = Duration::from_millis(100);
/// Lifetime of a TCP mapping: 2 h 4 min (RFC 5382, REQ-5), in seconds.
const TCP_LIFETIME: f64 = 7440.0;
/// Lifetime of an ICMP echo mapping: one minute (RFC 5508, REQ-2), in seconds.
const ICMP_LIFETIME: f64 = 60.0;

impl Translator {
    /// A NAT without mappings, at time zero.
    pub fn new(profile: UserspaceProfile, address: Ipv4Addr) -> Self {
        let mut random = Random::seeded(profile.seed);
        let lasting = |name, lifetime| Timers::new(&Profile::new(name, lifetime, lifetime), 0.0);
        let mut nat = Self {
            address,
            timers: Lifetimes {
                udp: Timers::new(&profile.nat, random.fraction()),
                tcp: lasting("tcp", TCP_LIFETIME),
                icmp: lasting("icmp", ICMP_LIFETIME),
            },
            table: Table::default(),
            udp_ports: Ports::new(profile.ports.clone(), profile.nat.port, profile.parity),
            other_ports: Ports::new(1024..=u16::MAX, PortAllocation::Preserve, false),
            random,
            outbound: Line::default(),
            inbound: Line::default(),
            oracle: Oracle::default(),
            drops: BTreeMap::new(),
            next_flush: None,
            pressed: false,
            profile,
        };
        nat.tell_timeouts(Time::ZERO);
        nat.draw_flush(Time::ZERO);
        nat
    }

    /// Takes a packet from either side; what comes of it is [polled](Self::poll_transmit).
    pub fn handle_packet(&mut self, now: Time, bytes: &[u8]) {
        self.handle_timeout(now);
        if let Err(why) = self.translate(now, bytes) {
            *self.drops.entry(why).or_default() += 1;
        }
    }

    /// Removes mappings that are over.
    pub fn handle_timeout(&mut self, now: Time) {
        while let Some(flush) = self.next_flush.filter(|flush| *flush <= now) {
            self.expire(flush);
            self.forget(flush);
            self.draw_flush(flush);
        }
        self.expire(now);
    }

    /// When [`Self::handle_timeout`] or [`Self::poll_transmit`] has something to do next.
    pub fn poll_timeout(&self) -> Option<Time> {
        let times = [self.table.next_end(), self.outbound.next(), self.inbound.next(), self.next_flush];
        times.into_iter().flatten().min()
    }

    /// The next packet that leaves the NAT, to either side.
    pub fn poll_transmit(&mut self, now: Time) -> Option<Vec<u8>> {
        self.outbound.pop(now).or_else(|| self.inbound.pop(now))
    }

    /// Forgets every mapping; a client may get the same port again.
    pub fn flush(&mut self, now: Time) {
        self.expire(now);
        self.forget(now);
    }

    /// Forgets every mapping, and gives ports other than before.
    pub fn rebind(&mut self, now: Time) {
        self.expire(now);
        let used = |udp: bool| {
            let entries =
                self.table.entries().filter(move |entry| (entry.key.protocol == Protocol::Udp) == udp);
            entries.map(|entry| entry.port).collect::<Vec<_>>()
        };
        let (udp, other) = (used(true), used(false));
        self.udp_ports.avoid(udp);
        self.other_ports.avoid(other);
        self.forget(now);
    }

    /// Gets another address on the outside, without its mappings.
    pub fn set_address(&mut self, now: Time, address: Ipv4Addr) {
        self.flush(now);
        self.address = address;
        self.oracle.tell(now, Event::Address { address });
    }

    /// The lifetime of promoted mappings becomes `to`, that of others at most `to`; at once, for existing ones too.
    pub fn shrink(&mut self, now: Time, to: Duration) {
        self.expire(now);
        self.timers.udp.shrink(now, to);
        self.profile.nat.timeout_s.replied = to.as_secs_f64();
        self.profile.nat.timeout_s.unreplied = self.profile.nat.timeout_s.unreplied.min(to.as_secs_f64());
        self.after_timeouts(now);
    }

    /// Changes the lifetimes, for existing mappings too.
    pub fn set_timeouts(&mut self, now: Time, unreplied: Duration, replied: Duration) {
        self.expire(now);
        self.timers.udp.set(now, unreplied, replied);
        self.profile.nat.timeout_s.unreplied = unreplied.as_secs_f64();
        self.profile.nat.timeout_s.replied = replied.as_secs_f64();
        self.after_timeouts(now);
    }

    /// From now on no UDP mapping in force lets anything in, though the client's packets still leave by it and keep
    /// it: only another port of the client gets a mapping that works.
    pub fn make_zombies(&mut self, now: Time) {
        self.expire(now);
        let address = self.address;
        for entry in self.table.entries_mut().filter(|entry| entry.key.protocol == Protocol::Udp) {
            entry.zombie = true;
            self.oracle.tell(now, Event::Zombie(ends(entry, address)));
        }
    }

    /// Changes which UDP gets out.
    pub fn set_udp(&mut self, udp: UdpFilter) {
        self.profile.udp = udp;
    }

    /// Changes which outside UDP ports let nothing in.
    pub fn set_deaf(&mut self, ports: BTreeSet<u16>) {
        self.profile.deaf = ports;
    }

    /// Changes how long a round trip takes. Packets do not overtake those on their way.
    pub fn set_round_trip(&mut self, round_trip: Duration) {
        self.profile.nat.rtt_ms = round_trip.as_secs_f64() * 1e3;
    }

    /// Changes how much UDP gets lost, each way.
    pub fn set_loss(&mut self, loss: Loss) {
        self.profile.nat.loss = loss;
    }

    /// Changes its helpers.
    pub fn set_helpers(&mut self, helpers: Vec<Helper>) {
        self.profile.helpers = helpers;
    }

    /// Changes how public ports are picked; clients whose mappings it does not find get new ones.
    pub fn set_mapping(&mut self, mapping: &Mapping) {
        self.profile.set_mapping(mapping);
        self.udp_ports.set_allocation(self.profile.ports.clone(), self.profile.nat.port);
    }

    /// How it behaves now.
    pub fn profile(&self) -> &UserspaceProfile {
        &self.profile
    }

    /// The UDP mappings in force.
    pub fn mappings(&self, now: Time) -> Vec<UdpMapping> {
        let udp = self.table.entries().filter(|entry| entry.key.protocol == Protocol::Udp);
        udp.map(|entry| UdpMapping {
            inside: entry.key.inside.into(),
            outside: SocketAddrV4::new(self.address, entry.port).into(),
            remote: entry.remote.into(),
            left: entry.binding.ends(&self.timers.udp).since(now),
            replied: entry.replied,
            stream: entry.binding.is_promoted(),
        })
        .filter(|mapping| mapping.left > Duration::ZERO)
        .collect()
    }

    /// The truth, so far.
    pub fn oracle(&self) -> &Oracle {
        &self.oracle
    }

    /// How many packets were not passed on, and why.
    pub fn drops(&self) -> &BTreeMap<Dropped, u64> {
        &self.drops
    }

    fn translate(&mut self, now: Time, bytes: &[u8]) -> Result<(), Dropped> {
        let packet = Packet::parse(bytes).map_err(Dropped::Malformed)?;
        let from_inside = self.profile.inside.contains(&packet.source_address());
        let to_inside = self.profile.inside.contains(&packet.destination_address());
        match packet.meaning() {
            Meaning::Flow { protocol, source, destination } if from_inside && !to_inside => {
                self.leaves(now, packet, protocol, source, destination)
            }
            Meaning::Flow { protocol, source, destination } if *destination.ip() == self.address => {
                self.enters(now, packet, protocol, source, destination.port())
            }
            Meaning::Error { protocol, source, destination } if from_inside && !to_inside => {
                self.error_leaves(now, packet, protocol, source, destination)
            }
            Meaning::Error { protocol, source, destination }
                if packet.destination_address() == self.address =>
            {
                self.error_enters(now, packet, protocol, source, destination)
            }
            _ => Err(Dropped::Stray),
        }
    }

    fn leaves(
        &mut self,
        now: Time,
        mut packet: Packet,
        protocol: Protocol,
        source: SocketAddrV4,
        destination: SocketAddrV4,
    ) -> Result<(), Dropped> {
        let target = destination.ip();
        if target.is_multicast() || target.is_broadcast() || target.is_loopback() || target.is_unspecified() {
            return Err(Dropped::Stray);
        }
        let hairpin = *target == self.address;
        if hairpin && !self.profile.hairpin {
            return Err(Dropped::Hairpin);
        }
        if protocol == Protocol::Udp {
            self.udp_passes(Some(destination.port()))?;
            self.helper_lets(source, destination)?;
        }
        let id = self.mapping(now, protocol, source, destination)?;
        let outside = self.outside_of(id)?;
        if protocol == Protocol::Udp {
            self.help(now, id, &mut packet, Direction::Outbound, destination.port());
        }
        packet.set_source(outside);
        if hairpin {
            return self.enters(now, packet, protocol, outside, destination.port());
        }
        self.send(now, Direction::Outbound, packet)
    }

    fn enters(
        &mut self,
        now: Time,
        mut packet: Packet,
        protocol: Protocol,
        source: SocketAddrV4,
        port: u16,
    ) -> Result<(), Dropped> {
        if protocol == Protocol::Udp {
            self.udp_passes(None)?;
            if self.profile.deaf.contains(&port) {
                return Err(Dropped::Deaf);
            }
        }
        let id = self.table.outside(protocol, port).ok_or(Dropped::NoMapping)?;
        let filtering = self.filtering(protocol);
        let entry = self.table.get_mut(id).ok_or(Dropped::NoMapping)?;
        if !entry.permits(filtering, source) {
            return Err(Dropped::NotPermitted);
        }
        if entry.zombie {
            return Err(Dropped::Deaf);
        }
        let inside = entry.key.inside;
        self.refresh(now, id, Direction::Inbound);
        packet.set_destination(inside);
        if protocol == Protocol::Udp {
            self.help(now, id, &mut packet, Direction::Inbound, source.port());
        }
        self.send(now, Direction::Inbound, packet)
    }

    /// A host inside says that a packet sent to it met an error.
    fn error_leaves(
        &mut self,
        now: Time,
        mut packet: Packet,
        protocol: Protocol,
        remote: SocketAddrV4,
        inside: SocketAddrV4,
    ) -> Result<(), Dropped> {
        let key = Key { protocol, inside, scope: Scope::of(self.mapping_of(protocol), remote) };
        let id = self.table.inside(&key).ok_or(Dropped::NoMapping)?;
        if packet.destination_address() == self.address {
            return Err(Dropped::Hairpin);
        }
        let outside = self.outside_of(id)?;
        packet.set_source(outside);
        self.send(now, Direction::Outbound, packet)
    }

    /// Somebody outside says that a packet of ours met an error.
    fn error_enters(
        &mut self,
        now: Time,
        mut packet: Packet,
        protocol: Protocol,
        outside: SocketAddrV4,
        remote: SocketAddrV4,
    ) -> Result<(), Dropped> {
        if *outside.ip() != self.address {
            return Err(Dropped::Stray);
        }
        let id = self.table.outside(protocol, outside.port()).ok_or(Dropped::NoMapping)?;
        let entry = self.table.get_mut(id).ok_or(Dropped::NoMapping)?;
        if !entry.permits(Dependence::AddressAndPortDependent, remote) {
            return Err(Dropped::NotPermitted);
        }
        if entry.zombie {
            return Err(Dropped::Deaf);
        }
        packet.set_destination(entry.key.inside);
        self.send(now, Direction::Inbound, packet)
    }

    /// Whether UDP gets through at all; towards this port, when it leaves. Loss is before the NAT.
    fn udp_passes(&mut self, to: Option<u16>) -> Result<(), Dropped> {
        match (&self.profile.udp, to) {
            (UdpFilter::Blocked, _) => return Err(Dropped::Blocked),
            (UdpFilter::BlockedPorts(ports), Some(port)) if ports.contains(&port) => {
                return Err(Dropped::Blocked);
            }
            _ => {}
        }
        let loss = self.profile.nat.loss.probability();
        if loss > 0.0 && self.random.fraction() < loss { Err(Dropped::Lost) } else { Ok(()) }
    }

    fn helper_lets(&self, source: SocketAddrV4, destination: SocketAddrV4) -> Result<(), Dropped> {
        let guarded = self
            .profile
            .helpers
            .iter()
            .any(|helper| matches!(helper, Helper::OneClient { port } if *port == destination.port()));
        let held = |entry: &Entry| {
            entry.key.protocol == Protocol::Udp
                && entry.key.inside.ip() != source.ip()
                && entry.reaches_port(destination.port())
        };
        if guarded && self.table.entries().any(held) { Err(Dropped::OtherClient) } else { Ok(()) }
    }

    /// The mapping of an outbound packet, made or refreshed.
    fn mapping(
        &mut self,
        now: Time,
        protocol: Protocol,
        source: SocketAddrV4,
        destination: SocketAddrV4,
    ) -> Result<Id, Dropped> {
        let key = Key { protocol, inside: source, scope: Scope::of(self.mapping_of(protocol), destination) };
        if let Some(id) = self.table.inside(&key) {
            self.refresh(now, id, Direction::Outbound);
            if let Some(entry) = self.table.get_mut(id) {
                entry.permit(destination);
            }
            return Ok(id);
        }
        let Some(port) = self.free_port(protocol, source.port()) else {
            self.oracle.tell(now, Event::Exhausted { protocol, inside: source });
            return Err(Dropped::Exhausted);
        };
        let entry = Entry::new(key, port, destination, now);
        self.oracle.tell(now, Event::Created(ends(&entry, self.address)));
        let end = self.timers.end(&entry);
        let id = self.table.insert(entry, end);
        self.press(now);
        Ok(id)
    }

    fn free_port(&mut self, protocol: Protocol, inside: u16) -> Option<u16> {
        if self.table.len() >= self.profile.capacity {
            return None;
        }
        let ports = if protocol == Protocol::Udp { &mut self.udp_ports } else { &mut self.other_ports };
        ports.pick(inside, &mut self.random, |port| self.table.is_taken(protocol, port))
    }

    /// Shrinks lifetimes once the table is as full as the profile says.
    fn press(&mut self, now: Time) {
        let Some(pressure) = self.profile.pressure.filter(|_| !self.pressed) else { return };
        if self.table.count(Protocol::Udp) >= pressure.mappings {
            self.pressed = true;
            self.shrink(now, pressure.lifetime);
        }
    }

    fn refresh(&mut self, now: Time, id: Id, by: Direction) {
        let address = self.address;
        let Some(entry) = self.table.get_mut(id) else { return };
        let is_udp = entry.key.protocol == Protocol::Udp;
        let timers = self.timers.of(entry.key.protocol);
        let refreshes = if is_udp { self.profile.nat.refresh } else { Refresh::default() };
        let was_promoted = entry.binding.is_promoted();
        let restarts = match by {
            Direction::Outbound => {
                entry.binding.outbound(now, timers);
                refreshes.outbound
            }
            Direction::Inbound => {
                entry.binding.inbound(now, timers);
                entry.replied = true;
                refreshes.inbound
            }
        };
        let ends = ends(entry, address);
        let told = entry.told;
        if restarts {
            entry.refreshed = now;
        }
        if !was_promoted && entry.binding.is_promoted() {
            // The lifetime of the promoted may be the shorter one.
            let end = self.timers.end(entry);
            self.table.hasten(id, end);
            if is_udp {
                self.oracle.tell(now, Event::Promoted(ends));
            }
        }
        let known = told.is_some_and(|(at, told)| told == by && now.since(at) < TELL_EVERY);
        if !restarts || known || !is_udp {
            return;
        }
        if let Some(entry) = self.table.get_mut(id) {
            entry.told = Some((now, by));
        }
        self.oracle.tell(now, Event::Refreshed { ends, by });
    }

    /// Lets the helpers at a UDP payload; `port` is the other end's.
    fn help(&mut self, now: Time, id: Id, packet: &mut Packet, by: Direction, port: u16) {
        let meddles = self.profile.helpers.iter().any(|helper| match helper {
            Helper::Rewrites { ports } => ports.is_empty() || ports.contains(&port),
            Helper::OneClient { .. } => false,
        });
        let Some(entry) = self.table.get_mut(id).filter(|_| meddles) else { return };
        let ends = ends(entry, self.address);
        let (from, to) = match by {
            Direction::Outbound => (ends.inside, ends.outside),
            Direction::Inbound => (ends.outside, ends.inside),
        };
        if let Some(payload) = rewrite(packet.payload(), from, to) {
            packet.set_payload(&payload);
            self.oracle.tell(now, Event::Rewritten { ends, by });
        }
    }

    fn send(&mut self, now: Time, direction: Direction, packet: Packet) -> Result<(), Dropped> {
        let line = match direction {
            Direction::Outbound => &mut self.outbound,
            Direction::Inbound => &mut self.inbound,
        };
        let delay = self.profile.nat.rtt() / 2;
        let taken = line.push(now, delay, self.profile.jitter, &mut self.random, packet.into_bytes());
        if taken { Ok(()) } else { Err(Dropped::Congested) }
    }

    fn outside_of(&mut self, id: Id) -> Result<SocketAddrV4, Dropped> {
        let entry = self.table.get_mut(id).ok_or(Dropped::NoMapping)?;
        Ok(SocketAddrV4::new(self.address, entry.port))
    }

    fn mapping_of(&self, protocol: Protocol) -> Dependence {
        if protocol == Protocol::Udp { self.profile.nat.mapping } else { Dependence::EndpointIndependent }
    }

    fn filtering(&self, protocol: Protocol) -> Dependence {
        if protocol == Protocol::Udp {
            self.profile.nat.filtering
        } else {
            Dependence::AddressAndPortDependent
        }
    }

    fn expire(&mut self, now: Time) {
        let timers = self.timers;
        while let Some((entry, end)) = self.table.pop_ended(now, |entry| timers.end(entry)) {
            let event = Event::Expired {
                ends: ends(&entry, self.address),
                idle: end.since(entry.refreshed),
                lived: end.since(entry.created),
                promoted: entry.binding.is_promoted(),
            };
            self.oracle.tell(end, event);
        }
    }

    fn forget(&mut self, now: Time) {
        for entry in self.table.clear() {
            self.oracle.tell(now, Event::Flushed(ends(&entry, self.address)));
        }
    }

    fn after_timeouts(&mut self, now: Time) {
        self.tell_timeouts(now);
        self.table.reschedule(|entry| self.timers.end(entry));
    }

    fn tell_timeouts(&mut self, now: Time) {
        let seconds = |seconds: f64| Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX);
        let timeouts = self.profile.nat.timeout_s;
        let event =
            Event::Timeouts { unreplied: seconds(timeouts.unreplied), replied: seconds(timeouts.replied) };
        self.oracle.tell(now, event);
    }

    /// When it loses its mappings next, by itself.
    fn draw_flush(&mut self, now: Time) {
        let rate = self.profile.nat.flush_per_day / 86_400.0;
        let wait = -(1.0 - self.random.fraction()).ln() / rate;
        self.next_flush =
            (rate > 0.0).then(|| now + Duration::try_from_secs_f64(wait).unwrap_or(Duration::MAX));
    }
}

fn ends(entry: &Entry, address: Ipv4Addr) -> Ends {
    Ends {
        protocol: entry.key.protocol,
        inside: entry.key.inside,
        outside: SocketAddrV4::new(address, entry.port),
        remote: entry.remote,
    }
}

#[cfg(test)]
mod tests;
