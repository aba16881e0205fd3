//! The data plane: WireGuard between a TUN device and a UDP socket, on a thread of its own.

mod config;
mod error;
mod event;
mod key;
mod stats;

use std::time::Duration;

pub use config::{PeerConfig, TunnelConfig};
pub use error::TunnelError;
pub use event::{SendFailure, TunnelEvent};
pub use key::{KeyError, PresharedKey, PrivateKey, PublicKey};
pub use stats::{PeerStats, Traffic};

/// After how long without an authenticated packet the next one is told as [`TunnelEvent::FirstReceive`]:
/// `KEEPALIVE_TIMEOUT` + `REKEY_TIMEOUT`, the time after which WireGuard itself begins to doubt.
pub const SILENCE: Duration = Duration::from_secs(15);
