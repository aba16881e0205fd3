//! What is measured of clients and fleets, by definitions that make figures mean the same for everyone.

mod awake;
mod bursts;
mod fault;
mod interval;
mod oracle;
mod outcome;
mod reach;
mod summary;

pub use self::{
    awake::{Awake, LTE, Radio, Spent, WIFI},
    bursts::{BURST, Bursts},
    fault::{Fault, FaultKind},
    interval::{Convergence, Intervals},
    oracle::Oracle,
    outcome::Outcome,
    reach::{Reach, Reached},
    summary::{Blind, ByProfile, Energy, Faults, Summary, compare},
};
