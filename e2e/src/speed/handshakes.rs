//! Many peers that want a session at once, with real handshakes, each from an address of its own.

use std::{
    net::UdpSocket,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use boringtun::noise::{Tunn, TunnResult};
use tokio::{sync::Semaphore, task::JoinSet, time::Instant};

use super::{
    keys::{Key, key_text},
    pair::Pair,
    peer,
};
use crate::error::Result;

/// So many that a peer does not come again sooner than wireguard-go lets it (20 ms).
const PEERS: u32 = 256;
/// Handshakes under way at once.
const TOGETHER: usize = 32;
/// Without an answer for so long, the peer tries again.
const PATIENCE: Duration = Duration::from_millis(500);

/// How many handshakes were answered in so many seconds. None where there is nobody to answer.
pub(super) async fn answered(pair: &Pair, seconds: u32) -> Result<Option<f64>> {
    if pair.identity().is_none() {
        return Ok(None);
    }
    let keys = (0..PEERS).map(|_| Key::generate()).collect::<Result<Vec<_>>>()?;
    let sockets = peer::sockets(pair, (0..PEERS).map(peer::address))?;
    pair.far.add_configuration(keys.iter().map(|key| peer::section(key, None)).collect()).await?;
    let outcome = initiate(pair, &keys, sockets, Duration::from_secs(seconds.into())).await;
    let remove =
        keys.iter().flat_map(|key| ["peer".to_owned(), key_text(&key.public()), "remove".to_owned()]);
    pair.far.wg(["set", pair.far.device()]).args(remove).run().await?;
    outcome.map(Some)
}

async fn initiate(pair: &Pair, keys: &[Key], sockets: Vec<UdpSocket>, time: Duration) -> Result<f64> {
    let (done, turns) = (Arc::new(AtomicU64::new(0)), Arc::new(Semaphore::new(TOGETHER)));
    let end = Instant::now() + time;
    let mut peers = JoinSet::new();
    for ((key, socket), index) in keys.iter().zip(sockets).zip(1..) {
        let (tunn, socket) = (peer::tunn(pair, key, index)?, peer::awaitable(socket)?);
        let peer = Initiator { tunn, socket, done: Arc::clone(&done), turns: Arc::clone(&turns) };
        peers.spawn(tokio::time::timeout_at(end, peer.run()));
    }
    while peers.join_next().await.is_some() {}
    #[expect(clippy::cast_precision_loss, reason = "few")]
    let done = done.load(Ordering::Relaxed) as f64;
    Ok(done)
}

struct Initiator {
    tunn: Tunn,
    socket: tokio::net::UdpSocket,
    done: Arc<AtomicU64>,
    turns: Arc<Semaphore>,
}

impl Initiator {
    /// Makes one session after the other.
    async fn run(mut self) {
        loop {
            let Ok(_turn) = Arc::clone(&self.turns).acquire_owned().await else { return };
            if self.handshake().await.is_some() {
                self.done.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    async fn handshake(&mut self) -> Option<()> {
        self.socket.send(&peer::initiation(&mut self.tunn).ok()?).await.ok()?;
        let mut answer = [0; 2048];
        let length = tokio::time::timeout(PATIENCE, self.socket.recv(&mut answer)).await.ok()?.ok()?;
        let mut room = [0; 2048];
        // A cookie is none; it is used with the next initiation.
        let TunnResult::WriteToNetwork(keepalive) =
            self.tunn.decapsulate(None, answer.get(..length)?, &mut room)
        else {
            return None;
        };
        // It confirms the session, as any client's first packet does.
        self.socket.send(keepalive).await.ok().map(drop)
    }
}
