//! A port of the gateway that did not answer, while another one did: is it shut to us?
//!
//! A NAT's helper that lets one client through to a port, or a filter that knows a port, looks like a gateway that
//! is gone. But a gateway that holds or held a session with us, and another of its ports on the same address, show
//! that it is the path.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use super::{
    TunnelPath,
    ledger::Ledger,
    sockets::{Arrival, Sockets},
};
use crate::nat::{
    Beat, Channel,
    wire::{self, BeatKey},
};

/// The socket it asks from.
pub(super) const SOCKET: u32 = u32::MAX - 1;
/// When it asks again, and at last believes in silence.
const RESENDS: [Duration; 4] = [
    Duration::from_millis(600),
    Duration::from_millis(1200),
    Duration::from_millis(2400),
    Duration::from_millis(2400),
];

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answered {
    /// It answers by now.
    Open,
    /// It does not, however often it is asked.
    Shut,
}

/// One question.
pub(super) struct BlockedPortCheck {
    endpoint: SocketAddr,
    key: BeatKey,
    /// The way in use instead.
    way: TunnelPath,
    asked: usize,
    due: Instant,
}

impl BlockedPortCheck {
    /// To be asked at once.
    pub(super) fn new(now: Instant, endpoint: SocketAddr, key: BeatKey, way: &TunnelPath) -> Self {
        BlockedPortCheck { endpoint, key, way: way.clone(), asked: 0, due: now }
    }

    /// The network in which it was asked.
    pub(super) fn into_network(self) -> String {
        self.way.network
    }

    pub(super) fn poll_timeout(&self) -> Instant {
        self.due
    }

    /// Asks, or gives up.
    pub(super) fn handle_timeout(
        &mut self,
        now: Instant,
        ledger: &mut Ledger,
        sockets: &mut Sockets,
    ) -> Option<Answered> {
        if now < self.due {
            return None;
        }
        let Some(delay) = RESENDS.get(self.asked) else {
            close(ledger, sockets);
            return Some(Answered::Shut);
        };
        self.asked += 1;
        self.due = now + *delay;
        let Some(port) = sockets.port(SOCKET, self.endpoint) else {
            // No socket, no verdict.
            return Some(Answered::Open);
        };
        let beat = Beat { channel: Channel::Probe(SOCKET), seq: self.asked as u64, wake: None };
        let datagram = ledger.write(&self.key, &beat, SocketAddr::new(self.way.source, port));
        sockets.send(SOCKET, self.endpoint, &datagram);
        None
    }

    /// Takes what came to its socket.
    pub(super) fn handle_arrival(
        &self,
        arrival: &Arrival,
        ledger: &mut Ledger,
        sockets: &mut Sockets,
    ) -> Option<Answered> {
        // Any genuine answer will do. The ledger's account is of the gateway in use, not of this one.
        wire::decode_answer(&self.key, &arrival.datagram)?;
        close(ledger, sockets);
        Some(Answered::Open)
    }
}

fn close(ledger: &mut Ledger, sockets: &mut Sockets) {
    sockets.close(SOCKET);
    ledger.close(Channel::Probe(SOCKET));
}
