//! What a tunnel tells its owner while it runs.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use super::PublicKey;
use crate::nat::wire::Answer;

/// Something that happened to a peer. Sent without waiting: when the owner's channel is full the event is
/// lost and counted ([`Tunnel::events_lost`](super::Tunnel::events_lost)), so whoever must not miss a state
/// also reads [`stats`](super::Tunnel::stats).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TunnelEvent {
    /// A handshake ended with a fresh session, whoever began it. On the responding side this is told when the
    /// first data message proves that the initiator has the keys as well.
    HandshakeCompleted {
        /// The peer.
        peer: PublicKey,
        /// It answered an initiation of ours.
        initiated: bool,
    },
    /// No answer to handshake initiations for 90 s (`REKEY_ATTEMPT_TIME`); the tunnel stops trying until there
    /// is something to send, or it is told to.
    HandshakeTimedOut {
        /// The peer.
        peer: PublicKey,
    },
    /// An authenticated packet that is not late came from elsewhere, and the tunnel follows it.
    EndpointChanged {
        /// The peer.
        peer: PublicKey,
        /// Where it was. `None` when it was known nowhere.
        from: Option<SocketAddr>,
        /// Where it is now.
        to: SocketAddr,
        /// How long nothing authenticated had come from where it was. `None` when nothing ever had.
        idle: Option<Duration>,
        /// Own index of the session that the packet came by; its low byte counts up with each handshake. `None` for a
        /// handshake message.
        session: Option<u32>,
    },
    /// The answer to a probe came back through the tunnel.
    ProbeAnswered {
        /// The peer.
        peer: PublicKey,
        /// The probe's number.
        id: u64,
        /// From sending the probe to its answer.
        rtt: Duration,
    },
    /// The first authenticated packet ever, or after at least [`SILENCE`](super::SILENCE).
    FirstReceive {
        /// The peer.
        peer: PublicKey,
        /// How long there had been silence. `None` when nothing had ever come.
        silence: Option<Duration>,
    },
    /// A gateway's reply or wake arrived on the tunnel's own socket.
    BeatAnswered {
        /// The gateway.
        peer: PublicKey,
        /// When it was received.
        at: Instant,
        /// What it says.
        answer: Answer,
    },
    /// A client that asked to be woken on the tunnel's own socket was, and has sent no beat since.
    WakeUnanswered {
        /// The client.
        peer: PublicKey,
    },
    /// Packets are held for a peer that does not hear datagrams now ([`Tunnel::hold_after`](super::Tunnel::hold_after)):
    /// bring it this initiation ([`Tunnel::take_initiation`](super::Tunnel::take_initiation)). Told again while they are.
    Held {
        /// The peer.
        peer: PublicKey,
        /// A handshake initiation, without secrets.
        initiation: Box<[u8]>,
    },
    /// It did not come within two seconds, and what was held for it was dropped.
    NotWoken {
        /// The peer.
        peer: PublicKey,
    },
    /// An authentic handshake initiation of the peer was not newer than one before, and dropped: its clock went back, or somebody
    /// played an old one back. Not told of one that comes within a second of the one that was taken, as the network delivers
    /// some twice. The first can be helped by [`Tunnel::call_back`](super::Tunnel::call_back) and
    /// [`Tunnel::begin_anew`](super::Tunnel::begin_anew).
    Stale {
        /// The peer.
        peer: PublicKey,
    },
    /// The kernel refused a datagram to the peer. Told once, until something
    /// authenticated comes from the peer, its endpoint changes, or the reason does.
    SendFailed {
        /// The peer.
        peer: PublicKey,
        /// What the kernel said.
        category: SendFailure,
    },
    /// The data plane's thread ended on an error that it cannot outlive, such as the TUN device being deleted.
    Stopped {
        /// What failed, for a log or a status message.
        reason: String,
    },
}

/// Why the kernel refused a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SendFailure {
    /// `EMSGSIZE`: larger than the path takes; the tunnel's MTU is too large for it.
    TooLarge,
    /// `ENETUNREACH`, `EHOSTUNREACH`, `EADDRNOTAVAIL`, `ENETDOWN`, `EAFNOSUPPORT`: no way there at the moment.
    Unreachable,
    /// `EPERM`, `EACCES`: a local packet filter forbids it.
    Forbidden,
    /// `ENOBUFS`, `ENOMEM`: the kernel is short of buffers.
    NoBuffers,
    /// Anything else.
    Other,
}

impl SendFailure {
    /// A stable, low-cardinality name for metric labels and reasons.
    pub const fn category(self) -> &'static str {
        match self {
            Self::TooLarge => "DatagramTooLarge",
            Self::Unreachable => "NetworkUnreachable",
            Self::Forbidden => "SendForbidden",
            Self::NoBuffers => "NoBuffers",
            Self::Other => "SendFailed",
        }
    }
}

impl From<&std::io::Error> for SendFailure {
    fn from(error: &std::io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::EMSGSIZE) => Self::TooLarge,
            Some(
                libc::ENETUNREACH
                | libc::EHOSTUNREACH
                | libc::EADDRNOTAVAIL
                | libc::ENETDOWN
                | libc::EAFNOSUPPORT,
            ) => Self::Unreachable,
            Some(libc::EPERM | libc::EACCES) => Self::Forbidden,
            Some(libc::ENOBUFS | libc::ENOMEM) => Self::NoBuffers,
            _ => Self::Other,
        }
    }
}
