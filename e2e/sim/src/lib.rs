//! NATs as models, and fleets of clients behind them in virtual time.
//!
//! [`model`] is the behaviour of one NAT, pure; the userspace NAT of the lab runs by the same rules in real time.
//! [`fleet`] runs many clients through an [`Algorithm`](algorithm::Algorithm), each behind a NAT of its own, and
//! [`metrics`] says how it went, against an oracle that knows each NAT's truth.

pub mod algorithm;
pub mod engine;
pub mod fleet;
pub mod metrics;
pub mod model;
pub mod profiles;
pub mod report;
pub mod rng;
