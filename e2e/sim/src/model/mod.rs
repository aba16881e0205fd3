//! How one NAT behaves, in the terms of RFC 4787: what a profile file says, and the rules a mapping lives by.
//!
//! Pure: time goes in, what is left of a mapping comes out.

mod binding;
mod error;
mod loss;
mod profile;
mod time;
mod worlds;

pub use self::{
    binding::{Binding, Timers},
    error::ProfileError,
    loss::Loss,
    profile::{Dependence, LossBursts, Paging, PortAllocation, Profile, Refresh, TcpClose, Timeouts},
    time::Time,
    worlds::{Full, Hours, Load, Pressure, Quota, Victim},
};
