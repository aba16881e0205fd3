//! What a tunnel lets pass, measured from outside of it: by packets and bytes that were sent and came, not by anybody's counters.
//!
//! [`Streams`] sends a thousand numbered datagrams a second each way, [`Transfer`] a connection's bytes; what both ends took down
//! is judged by [`Record`] and [`longest_stall`], which are pure, and trials are summed up by a [`Spread`].

mod datagrams;
mod moment;
mod record;
mod spread;
mod transfer;

use std::net::IpAddr;

pub use self::{
    datagrams::Streams,
    moment::Moment,
    record::{Gap, Passage, Record, longest_stall},
    spread::Spread,
    transfer::{Transfer, Transferred},
};
use crate::{
    error::{Error, Result},
    netns::Netns,
};

/// One end of a measurement.
#[derive(Debug, Clone, Copy)]
pub struct End<'a> {
    /// Where it runs.
    pub netns: &'a Netns,
    /// Its address there.
    pub address: IpAddr,
}

/// Something of each direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BothWays<T> {
    /// From the near end to the far end.
    pub up: T,
    /// From the far end to the near end.
    pub down: T,
}

impl<T> BothWays<T> {
    /// Each with what it is called.
    pub fn named(&self) -> [(&'static str, &T); 2] {
        [("up", &self.up), ("down", &self.down)]
    }

    /// Has the threads of each come to their end, away from those that drive tasks.
    async fn join<U: Send + 'static>(self, end: fn(T) -> Result<U>) -> Result<BothWays<U>>
    where
        T: Send + 'static,
    {
        let joined =
            tokio::task::spawn_blocking(move || Ok(BothWays { up: end(self.up)?, down: end(self.down)? }));
        joined.await.map_err(|error| Error::Invalid(error.to_string()))?
    }

    /// The same made of each.
    pub fn map<U>(&self, make: impl Fn(&T) -> U) -> BothWays<U> {
        BothWays { up: make(&self.up), down: make(&self.down) }
    }
}
