//! The configuration protocol of userspace WireGuard (<https://www.wireguard.com/xplatform/>), which `wg` speaks:
//! text over the unix socket `/var/run/wireguard/NAME.sock`.
//!
//! `request` reads what is asked and `device` writes what is answered, both without touching anything. `server`
//! listens, and hands each [`Question`] to whoever owns the tunnel. A [`Device`] is made of what the owner has set
//! and what the tunnel counts; `clock` gives its handshakes their dates.

mod clock;
mod device;
mod error;
mod hex;
mod request;
mod server;

pub use clock::HandshakeClock;
pub use device::{Device, Peer};
pub use error::{Refusal, UapiError};
pub use request::{AllowedIp, Change, PeerChange, Request};
pub use server::{Question, Socket, answer_read_only, open_or_say};
