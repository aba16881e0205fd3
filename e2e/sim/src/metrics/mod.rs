//! What is measured of clients and fleets, by definitions that make figures mean the same for everyone.

mod awake;
mod bursts;
mod interval;
mod oracle;
mod reach;
mod summary;

pub use self::{
    awake::{Awake, LTE, Radio, Spent, WIFI},
    bursts::{BURST, Bursts},
    interval::{Convergence, Intervals},
    oracle::Oracle,
    reach::{Reach, Reached},
    summary::{Blind, ByProfile, Energy, Faults, Summary, compare},
};
