//! What the gateway's parts tell its control loop.

use std::{net::SocketAddr, time::Duration};

use pinhole_proto::v1;
use tokio::sync::{mpsc, oneshot};

use super::{
    proof::Way,
    told::{Asked, Instance, Told},
};
use crate::{clock::Skew, nat::wire::BeatKey, tunnel::PublicKey};

/// A message to the control loop.
#[derive(Debug)]
pub(super) enum Command {
    /// A snapshot from the operator.
    Desired(Box<v1::DesiredState>),
    /// A stream to the operator stands; reports and acknowledgements go there.
    LinkUp {
        /// Its outgoing side, bounded.
        outbox: mpsc::Sender<v1::GatewayMessage>,
    },
    /// The stream is gone.
    LinkDown,
    /// A client's agent attached.
    SessionOpened(Box<Opened>),
    /// A client's agent tells of its path.
    SessionTold {
        /// The client.
        peer: PublicKey,
        /// Its own view.
        told: Box<Told>,
    },
    /// A client has nothing to say for a while.
    SessionRests {
        /// The client.
        peer: PublicKey,
        /// Which of its sessions.
        session: u64,
        /// It speaks again within `wake_after`, and a little more. With `hold_after` it lets its binding go: nothing that is
        /// sent gets there once it was silent for so long.
        asked: Asked,
    },
    /// Something passed on the session of a client that rests: its silence begins anew.
    SessionStirred {
        /// The client.
        peer: PublicKey,
        /// How long the silence is.
        wake_after: Duration,
    },
    /// A client did not say that it heard what its session told it.
    SessionDoubtful {
        /// The client.
        peer: PublicKey,
        /// Which of its sessions.
        session: u64,
    },
    /// A client's clock went back, and its handshakes begin anew.
    SessionAnew {
        /// The client.
        peer: PublicKey,
        /// Which of its sessions.
        session: u64,
    },
    /// A client says what it takes for the time.
    SessionClock {
        /// The client.
        peer: PublicKey,
        /// Which of its sessions.
        session: u64,
        /// How far its clock is from this machine's.
        skew: Skew,
    },
    /// A client's session stream ended.
    SessionClosed {
        /// The client.
        peer: PublicKey,
        /// Which of its sessions.
        session: u64,
    },
    /// The prober is done; `None` when nobody answered.
    Proof(Option<Way>),
    /// Whether the data path was proven lately.
    Ready(oneshot::Sender<Readiness>),
    /// The metrics, in the text format.
    Metrics(oneshot::Sender<String>),
    /// The control is to panic. Not in what is released.
    #[cfg(debug_assertions)]
    Fault,
    /// A thread of the data plane is to panic. Not in what is released.
    #[cfg(debug_assertions)]
    FaultOfTunnel,
}

/// A client's session as it begins.
#[derive(Debug)]
pub(super) struct Opened {
    /// The client.
    pub peer: PublicKey,
    /// Counts up over all sessions.
    pub session: u64,
    /// Under which it sends beats. `None` where none could be made.
    pub key: Option<BeatKey>,
    /// Where its connection comes from.
    pub source: Option<SocketAddr>,
    /// Which process of the client's it is, where it says so.
    pub instance: Option<Instance>,
    /// Takes a few words at a time.
    pub words: mpsc::Sender<Word>,
}

/// What a client's agent is told.
#[derive(Debug)]
pub(super) enum Word {
    /// To give a sign of life on the tunnel; with an initiation to answer, where packets are held for it.
    Poke(Option<Box<[u8]>>),
    /// What its neighbours know.
    Guidance(v1::Guidance),
    /// Whether another machine connects with its key.
    KeyShared(bool),
    /// The time, and whether its handshakes are dropped as not new.
    Clock {
        /// They are. Else any is taken from now on.
        stale: bool,
    },
}

/// An answer of `/readyz`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Readiness {
    /// Whether traffic may be sent here.
    pub ready: bool,
    /// Why, in one line.
    pub reason: String,
}
