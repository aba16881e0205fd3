//! What is measured of clients and fleets, by definitions that make figures mean the same for everyone.

mod bursts;
mod interval;
mod oracle;
mod reach;
mod summary;

pub use self::{
    bursts::{BURST, Bursts},
    interval::{Convergence, Intervals},
    oracle::Oracle,
    reach::{Reach, Reached},
    summary::{Blind, ByProfile, Faults, Summary},
};
