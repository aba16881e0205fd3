//! A NAT in userspace: what netfilter lacks, by the same rules as the simulator's NATs, with a log of the truth.
//!
//! [`Translator`] is pure.

mod helper;
mod line;
mod oracle;
mod packet;
mod ports;
mod profile;
mod random;
mod table;
mod translator;

pub use self::{
    helper::Helper,
    oracle::{Direction, Ends, Entry, Event, Oracle},
    packet::{Malformed, Protocol},
    profile::{Pressure, UserspaceProfile},
    translator::{Dropped, Translator},
};
