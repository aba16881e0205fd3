//! The kernel's side of a tunnel: TUN device, addresses, routes, policy rules, forwarding, masquerading and
//! filter.
//! Everything can be repeated without harm and taken back, and acts in the caller's network namespace.

mod error;
mod filter;
mod full_tunnel;
mod masquerade;
mod netlink;
mod nftables;
mod route;
mod tun;

pub use error::KernelError;
pub use filter::TunnelFilter;
pub use full_tunnel::FullTunnel;
pub use masquerade::Masquerade;
pub use route::{MAIN_TABLE, RouteSocket, forward_v6};
pub use tun::{TunDevice, TunOffload};
