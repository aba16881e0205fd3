//! Peers that want a session, all at once.

use std::{
    net::{Ipv4Addr, UdpSocket},
    time::Duration,
};

use boringtun::noise::{Tunn, TunnResult};
use serde::Serialize;
use tokio::{
    task::JoinSet,
    time::{Instant, timeout_at},
};

use super::{
    keys::Key,
    pair::Pair,
    peer::{self, INITIATION},
    scenario::quantile,
};
use crate::error::Result;

/// Their addresses in the tunnel.
const INNER: Ipv4Addr = Ipv4Addr::new(10, 64, 0, 1);
/// When a peer tries again, as WireGuard does (`REKEY_TIMEOUT`), and up to how much later.
const AGAIN: Duration = Duration::from_secs(5);
const JITTER: u32 = 333;
/// Who has no session by then is lost.
const PATIENCE: Duration = Duration::from_secs(90);
const RESPONSE: usize = 92;

/// Where peers come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// Each has an address of its own.
    AddressEach,
    /// All have one address, as behind a carrier's NAT.
    OneAddress,
}

/// How it went.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Storm {
    /// Peers with a session at its end.
    pub(super) sessions: usize,
    /// Seconds until half of them, and until the last one, had their answers.
    pub(super) half: f64,
    pub(super) last: f64,
    /// CPU seconds of the gateway.
    pub(super) cpu: f64,
}

/// Peers of a gateway.
pub(super) struct Crowd<'a> {
    pair: &'a Pair,
    keys: Vec<Key>,
}

impl<'a> Crowd<'a> {
    pub(super) fn new(pair: &'a Pair, peers: u32) -> Result<Self> {
        let keys = (0..peers).map(|_| Key::generate()).collect::<Result<Vec<_>>>()?;
        Ok(Self { pair, keys })
    }

    /// Tells the gateway of them.
    pub(super) async fn join(&self) -> Result<()> {
        let section = |(key, inner): (&Key, u32)| peer::section(key, Some(inner.into()));
        let text = self.keys.iter().zip(u32::from(INNER)..).map(section).collect();
        self.pair.far.add_configuration(text).await
    }

    /// Each asks for a session, all at the same time, and again until it has one.
    pub(super) async fn storm(&self, origin: Origin) -> Result<Storm> {
        let addresses = (0..).take(self.keys.len()).map(|n| match origin {
            Origin::AddressEach => peer::address(n),
            Origin::OneAddress => peer::address(0),
        });
        let sockets = peer::sockets(self.pair, addresses)?;
        let peers = self.keys.iter().zip(sockets).zip(0..);
        let peers = peers.map(|((key, socket), n)| Peer::new(self.pair, key, socket, n));
        let peers = peers.collect::<Result<Vec<_>>>()?;
        let before = self.pair.gateway()?;
        let begun = Instant::now();
        let mut under_way: JoinSet<Option<Answered>> =
            peers.into_iter().map(|peer| peer.run(begun)).collect();
        let mut answered = Vec::new();
        while let Some(ended) = under_way.join_next().await {
            answered.extend(ended.ok().flatten());
        }
        let cpu = self.pair.gateway()?.cpu.saturating_sub(before.cpu).as_secs_f64();
        let times: Vec<f64> = answered.iter().map(|it| it.after.as_secs_f64()).collect();
        // Only now: this side's part of the handshakes must not slow the gateway down.
        let sessions = answered.into_iter().filter_map(Answered::confirm).count();
        Ok(Storm {
            sessions,
            half: quantile(&times, 0.5).unwrap_or_default(),
            last: quantile(&times, 1.0).unwrap_or_default(),
            cpu,
        })
    }
}

/// A peer that wants a session.
struct Peer {
    tunn: Tunn,
    socket: tokio::net::UdpSocket,
    initiation: [u8; INITIATION],
    again: Duration,
}

/// A peer that got an answer.
struct Answered {
    peer: Peer,
    answer: [u8; RESPONSE],
    after: Duration,
}

impl Peer {
    fn new(pair: &Pair, key: &Key, socket: UdpSocket, n: u32) -> Result<Self> {
        let (mut tunn, socket) = (peer::tunn(pair, key, n)?, peer::awaitable(socket)?);
        let initiation = peer::initiation(&mut tunn)?;
        Ok(Self { tunn, socket, initiation, again: AGAIN + Duration::from_millis((n % JITTER).into()) })
    }

    async fn run(mut self, begun: Instant) -> Option<Answered> {
        while begun.elapsed() < PATIENCE {
            // Where the socket is full, it goes the way of a lost packet.
            let _ = self.socket.try_send(&self.initiation);
            let retry = Instant::now() + self.again;
            while let Ok(heard) = timeout_at(retry, self.hear()).await {
                if let Some(answer) = heard {
                    return Some(Answered { peer: self, answer, after: begun.elapsed() });
                }
            }
            self.initiation = peer::initiation(&mut self.tunn).ok()?;
        }
        None
    }

    /// The next answer; `None` where it was a cookie, which the next initiation will carry.
    async fn hear(&mut self) -> Option<[u8; RESPONSE]> {
        let mut room = [0; 2048];
        let length = self.socket.recv(&mut room).await.ok()?;
        let heard = room.get(..length)?;
        if let Ok(answer) = heard.try_into() {
            return Some(answer);
        }
        self.tunn.decapsulate(None, heard, &mut [0; 256]);
        None
    }
}

impl Answered {
    /// Completes the handshake, as any client's first packet does; `None` where the answer is wrong.
    fn confirm(mut self) -> Option<()> {
        let mut room = [0; 256];
        let TunnResult::WriteToNetwork(keepalive) = self.peer.tunn.decapsulate(None, &self.answer, &mut room)
        else {
            return None;
        };
        self.peer.socket.try_send(keepalive).ok().map(drop)
    }
}
