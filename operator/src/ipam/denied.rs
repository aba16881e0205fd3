//! Why a client gets no address.

use std::net::IpAddr;

use super::Family;

/// Why a client gets no address, or not the one it asks for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// All usable addresses of a family are given out.
    #[error(
        "the pool has no free {0} address: delete clients that are gone, add a prefix to the pool's cidrs, or \
         reserve less"
    )]
    Exhausted(Family),
    /// The pool holds as many clients as it may.
    #[error("the pool holds maxClients ({0}) already: delete clients that are gone or raise maxClients")]
    PoolFull(u64),
    /// A fixed address lies in none of the prefixes.
    #[error("{0} lies in none of the pool's cidrs: choose an address within them")]
    OutsidePool(IpAddr),
    /// A fixed address is the gateway's, a network's or broadcast address, or within a reserved range.
    #[error(
        "{0} is not given to clients: it is reserved, the gateway's own, or a network or broadcast address; \
         choose another"
    )]
    Reserved(IpAddr),
    /// A fixed address belongs to another client.
    #[error("{0} belongs to another client already: choose another address, or delete that client first")]
    Taken(IpAddr),
}

impl Denied {
    /// The reason's name, for conditions, events and metrics.
    pub fn category(&self) -> &'static str {
        match self {
            Self::Exhausted(_) => "PoolExhausted",
            Self::PoolFull(_) => "PoolFull",
            Self::OutsidePool(_) => "AddressOutsidePool",
            Self::Reserved(_) => "AddressReserved",
            Self::Taken(_) => "AddressConflict",
        }
    }
}
