//! The client's TCP connections: their mappings at the NAT, retransmissions, and the gateway's end.
//!
//! What is modelled of TCP is what decides: a segment is sent again after 0.2, 0.6 and 1.4 s, a sender gives up 3 s
//! after the first (`TCP_USER_TIMEOUT`), and what was delivered was acknowledged. Acknowledgements restart the mapping's
//! timer with the segment that they belong to, and do not get lost.

use std::time::Duration;

use pinhole_nat::standby::{Ended, Line};

use super::{Channel, Event, Rng, Run, Time};
use crate::{
    algorithm::Algorithm,
    engine::mapping::Mapping,
    model::{TcpClose, Timers},
};

const RETRANSMISSIONS: [Duration; 4] =
    [Duration::ZERO, Duration::from_millis(200), Duration::from_millis(600), Duration::from_millis(1400)];
const USER_TIMEOUT: Duration = Duration::from_secs(3);
const REDIAL: Duration = Duration::from_secs(15);
/// With IPv4 and TCP headers: a message in TLS and its acknowledgement; the handshakes of TCP and TLS, each way.
const MESSAGE: u64 = 120;
const ACK: u64 = 52;
const HANDSHAKE: u64 = 1600;

/// Something about a connection that happens by itself.
#[derive(Debug, Clone, Copy)]
pub(in crate::engine) enum Occurrence {
    Attached(Line),
    /// It is known by its number, as the session is dialled again and again.
    Ended(Line, u64, Ended),
    /// A message of the client arrives at the gateway; a rest, unless it wants an answer.
    Arrives(Line, u64, Option<(u64, Duration)>),
    Due(Line, u64, u64),
    /// A wake arrives at the client; without a number an answer.
    ToClient(Line, u64, Option<u64>),
}

#[derive(Debug, Clone, Copy)]
struct Connection {
    line: Line,
    number: u64,
    mapping: Mapping,
    /// The gateway's end is open.
    served: bool,
    rest: Option<(u64, Duration)>,
    /// When the gateway last heard or said something.
    heard: Time,
}

#[derive(Debug)]
pub(super) struct Sessions {
    connections: Vec<Connection>,
    number: u64,
    timers: Timers,
    losses: Rng,
}

impl Sessions {
    pub(super) fn new(timers: Timers, losses: Rng) -> Self {
        Self { connections: Vec::new(), number: 0, timers, losses }
    }

    /// All their mappings, and some that have ended.
    pub(super) fn mappings(&mut self) -> impl Iterator<Item = (&mut Mapping, Timers)> {
        let timers = self.timers;
        self.connections.iter_mut().map(move |own| (&mut own.mapping, timers))
    }

    /// Mappings live for so long from now on; those that have ended stay so.
    pub(super) fn set_lifetime(&mut self, now: Time, lifetime: Duration) {
        let timers = self.timers;
        for own in &mut self.connections {
            if !own.mapping.is_alive(now, &timers) {
                own.mapping.evict(now);
            }
        }
        self.timers.set(now, lifetime, lifetime);
    }

    fn find(&mut self, line: Line) -> Option<&mut Connection> {
        self.connections.iter_mut().find(|own| own.line == line)
    }

    fn numbered(&mut self, number: u64) -> Option<&mut Connection> {
        self.connections.iter_mut().find(|own| own.number == number)
    }

    fn remove(&mut self, line: Line) {
        self.connections.retain(|own| own.line != line);
    }
}

impl<A: Algorithm> Run<'_, '_, A> {
    /// When the session's mapping ends, if the gateway could still send over it.
    pub(super) fn session_ends(&self) -> Option<Time> {
        let sessions = self.sessions.as_ref()?;
        let live = sessions.connections.iter().find(|own| own.line == Line::Live)?;
        live.served.then(|| live.mapping.ends(&sessions.timers))
    }

    pub(super) fn flush_sessions(&mut self, now: Time) {
        for connection in self.sessions.iter_mut().flat_map(|sessions| &mut sessions.connections) {
            connection.mapping.evict(now);
        }
    }

    pub(super) fn dial(&mut self, now: Time, line: Line) {
        self.tell(now, format_args!("> dials {line:?}"));
        self.sent(now, Channel::Live, HANDSHAKE);
        let delay = self.through(now).map_or(REDIAL, |delay| delay + self.scenario.rtt * 3);
        self.after(now, delay, Occurrence::Attached(line));
    }

    pub(super) fn hang_up(&mut self, now: Time, line: Line) {
        self.tell(now, format_args!("> closes {line:?}"));
        self.sent(now, Channel::Live, ACK);
        if let Some(sessions) = &mut self.sessions {
            sessions.remove(line);
        }
    }

    /// The client says something over a connection.
    pub(super) fn say(&mut self, now: Time, line: Line, rest: Option<(u64, Duration)>) {
        self.tell(now, format_args!("> {line:?}: {rest:?}"));
        self.sent(now, Channel::Live, MESSAGE);
        if line == Line::Live {
            self.answer_faults(now);
        }
        let delay = self.through(now);
        let alive = delay.is_some_and(|delay| self.has_mapping(line, now + delay));
        let (rtt, resets) = (self.scenario.rtt, self.resets());
        let Some(sessions) = &mut self.sessions else { return };
        let timers = sessions.timers;
        let Some(connection) = sessions.find(line) else { return };
        let (number, served) = (connection.number, connection.served);
        match delay {
            Some(delay) if alive && served => {
                connection.mapping.outbound(now + delay, &timers);
                self.carried(now, Channel::Live, ACK);
                self.after(now, delay + rtt / 2, Occurrence::Arrives(line, number, rest));
            }
            Some(delay) if alive || resets => {
                self.after(now, delay + rtt, Occurrence::Ended(line, number, Ended::Reset));
            }
            _ => self.after(now, USER_TIMEOUT, Occurrence::Ended(line, number, Ended::TimedOut)),
        }
    }

    pub(super) fn occur(&mut self, now: Time, occurrence: Occurrence) {
        let at = self.really(now);
        match occurrence {
            Occurrence::Attached(line) => {
                if let Some(sessions) = &mut self.sessions {
                    sessions.remove(line);
                }
                if !self.make_room(now) {
                    self.tell(now, format_args!("  the table is full"));
                    // A canary is given up by who sent it.
                    if line == Line::Live {
                        self.after(now, REDIAL, occurrence);
                    }
                    return;
                }
                let Some(sessions) = &mut self.sessions else { return };
                sessions.number += 1;
                let number = sessions.number;
                sessions.connections.push(Connection {
                    line,
                    number,
                    mapping: self.maker.open(now),
                    served: true,
                    rest: None,
                    heard: now,
                });
                self.carried(now, Channel::Live, HANDSHAKE);
                self.algorithm.handle_attached(at, line);
            }
            Occurrence::Ended(line, number, ended) => {
                let there =
                    self.sessions.as_mut().is_some_and(|sessions| sessions.numbered(number).is_some());
                if !there {
                    return;
                }
                self.tell(now, format_args!("! {line:?} ended: {ended:?}"));
                if let Some(sessions) = &mut self.sessions {
                    sessions.remove(line);
                }
                self.carried(now, Channel::Live, ACK);
                self.algorithm.handle_ended(at, line, ended);
                if line == Line::Live {
                    self.dial(now, line);
                }
            }
            Occurrence::Arrives(line, number, rest) => {
                let Some(own) = self.numbered(number) else { return };
                own.heard = now;
                match rest {
                    Some((seq, wake_after)) => {
                        own.rest = rest;
                        self.after(now, wake_after, Occurrence::Due(line, number, seq));
                    }
                    None => self.send_down(now, line, number, None),
                }
            }
            Occurrence::Due(line, number, seq) => {
                let Some(own) = self.numbered(number) else { return };
                let Some((_, wake_after)) = own.rest.filter(|(newest, _)| *newest == seq) else { return };
                let silent = now.since(own.heard);
                if silent < wake_after {
                    return self.after(now, wake_after.saturating_sub(silent), occurrence);
                }
                own.rest = None;
                self.send_down(now, line, number, Some(seq));
            }
            Occurrence::ToClient(line, number, wake) => {
                if self.numbered(number).is_none() {
                    return;
                }
                if let Some(later) = self.pager.as_mut().and_then(|pager| pager.delays(now)) {
                    return self.queue.push(later, Event::Session(occurrence));
                }
                self.tell(now, format_args!("< {line:?}: wake {wake:?}"));
                self.carried(now, Channel::Live, MESSAGE + ACK);
                match wake {
                    Some(seq) => self.algorithm.handle_session_wake(at, line, seq),
                    None => self.algorithm.handle_session_packet(at),
                }
            }
        }
    }

    /// The gateway says something: it passes the NAT when it arrives there.
    fn send_down(&mut self, now: Time, line: Line, number: u64, wake: Option<u64>) {
        let delay = self.through(now).map(|delay| delay + self.scenario.rtt / 2);
        let passes = delay.filter(|delay| self.has_mapping(line, now + *delay));
        let Some(sessions) = &mut self.sessions else { return };
        let timers = sessions.timers;
        let Some(own) = sessions.numbered(number) else { return };
        own.heard = now;
        match passes {
            Some(delay) => {
                own.mapping.inbound(now + delay, &timers);
                self.after(now, delay, Occurrence::ToClient(line, number, wake));
            }
            // Nobody acknowledges it, or RST comes back: the gateway closes its end, and nobody can tell the client.
            None => own.served = false,
        }
    }

    fn numbered(&mut self, number: u64) -> Option<&mut Connection> {
        self.sessions.as_mut()?.numbered(number)
    }

    fn has_mapping(&mut self, line: Line, at: Time) -> bool {
        let Some(sessions) = &mut self.sessions else { return false };
        let timers = sessions.timers;
        sessions.find(line).is_some_and(|own| own.mapping.is_alive(at, &timers))
    }

    fn resets(&self) -> bool {
        self.scenario.tcp.is_some_and(|(_, close)| close == TcpClose::Reset)
    }

    /// How long until a segment gets through. `None`: not before its sender gives up.
    fn through(&mut self, now: Time) -> Option<Duration> {
        let losses = RETRANSMISSIONS.map(|after| (after, self.loss(now + after)));
        let sessions = self.sessions.as_mut()?;
        losses.into_iter().find(|(_, loss)| !sessions.losses.chance(*loss)).map(|(after, _)| after)
    }

    fn after(&mut self, now: Time, delay: Duration, occurrence: Occurrence) {
        self.queue.push(now + delay, Event::Session(occurrence));
    }
}
