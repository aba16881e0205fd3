//! The kernel's side of a tunnel: TUN device, addresses, routes, policy rules, forwarding, masquerading and
//! filter.
//! Everything can be repeated without harm and taken back, and acts in the caller's network namespace.

mod changes;
mod error;
mod filter;
mod full_tunnel;
mod inner;
mod kill_switch;
mod leftovers;
mod links;
mod marked;
mod masquerade;
mod mtu;
mod netlink;
mod nftables;
mod route;
mod tun;
mod way;

pub use changes::{RouteChanges, TableChanges};
pub use error::KernelError;
pub use filter::TunnelFilter;
pub use full_tunnel::FullTunnel;
pub use inner::InnerAddresses;
pub use kill_switch::{Kept, KillSwitch};
pub use leftovers::{remove_table, sweep_rules};
pub use links::{Link, LinkKind};
pub use marked::{MarkedAnswers, let_marks_count};
pub use masquerade::Masquerade;
pub use mtu::DeviceMtu;
pub use nftables::Written;
pub use route::{MAIN_TABLE, MainRoute, RefusedRoute, RouteSocket, RouteType, forward_v6};
pub use tun::{TunDevice, TunOffload};
pub use way::Way;
