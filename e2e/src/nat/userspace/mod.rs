//! A NAT in userspace: what netfilter lacks, by the same rules as the simulator's NATs, with a log of the truth.
//!
//! [`Translator`] is pure; [`Running`] is a thread that runs it on a TUN device.

mod helper;
mod line;
mod oracle;
mod packet;
mod ports;
mod profile;
mod random;
mod running;
mod table;
mod translator;
mod tun;

pub(crate) use self::random::Random;
pub use self::{
    helper::Helper,
    oracle::{Direction, Ends, Entry, Event, Oracle},
    packet::{Malformed, Protocol},
    profile::{Pressure, UserspaceProfile},
    running::Running,
    translator::{Dropped, Translator},
};
