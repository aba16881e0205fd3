//! NATs as models, and fleets of clients behind them in virtual time.
//!
//! [`model`] is the behaviour of one NAT, pure; the userspace NAT of the lab runs by the same rules in real time.

pub mod model;
