//! The data plane: WireGuard between a TUN device and a UDP socket, on threads of its own.
//!
//! [`Tunnel`] is the owner's handle. Each thread runs a `driver`, which waits for socket, device, owner and clock,
//! and feeds its `shard`, where everything is decided without touching any of them. Each peer lives at one shard;
//! `steering` brings datagrams there, and what comes to another is handed over within the `team`. What a shard makes goes
//! through `output` straight into the buffers of `outbox`, and between a thread's two queues of the device (`lanes`)
//! by what its `flows` did of late. A `peer` wraps boringtun's `Tunn` with exact
//! deadlines (`timers`), a small queue (`waiting`) and probes, and sends no packet where its `destinations` end; `gate` stands in front of handshakes, which
//! wait in `line` for time that data does not need. `lookout` follows the host's addresses and routes, so that `sources` can tell how
//! long a peer is answered from the address that it asked. `beats` are the messages of NAT intelligence on the same port.

mod asleep;
mod beats;
mod checksum;
mod clamp;
mod coalesce;
mod config;
mod destinations;
mod driver;
mod error;
mod event;
mod flow_classifier;
mod gate;
mod gso_denylist;
mod handle;
mod handshake_queue;
mod ip;
mod key;
mod lookout;
mod message;
mod newest;
mod offloads;
mod output;
mod padding;
mod path;
mod peer;
mod probe;
mod recv_batch;
mod routing;
mod segments;
mod shard;
mod shards;
mod socket;
mod sources;
mod staged_packets;
mod stats;
mod steering;
mod timers;
mod transmit;
mod tun_queues;
mod virtio;

use std::time::Duration;

pub use config::{PeerConfig, Threads, TunnelConfig};
pub use destinations::{Destinations, Inside, Refusal, Refused};
pub use error::TunnelError;
pub use event::{SendFailure, TunnelEvent};
pub use handle::{Probe, Tunnel};
pub use key::{KeyError, PresharedKey, PrivateKey, PublicKey};
pub use offloads::Offloads;
pub use stats::{BeatCounts, Discards, PeerStats, Traffic, Work};

/// After how long without an authenticated packet the next one is told as [`TunnelEvent::FirstReceive`]:
/// `KEEPALIVE_TIMEOUT` + `REKEY_TIMEOUT`, the time after which WireGuard itself begins to doubt.
pub const SILENCE: Duration = Duration::from_secs(15);
