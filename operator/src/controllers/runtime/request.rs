//! What can be looked at, and how urgent it is.

use std::time::Duration;

use super::queue::{Lane, Pace};
use crate::fleet::{ClientKey, GatewayKey, PoolKey};

/// What can be looked at.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Request {
    /// A gateway's objects and status.
    Gateway(GatewayKey),
    /// What a gateway's replicas are told.
    Peers(GatewayKey),
    /// A pool's objects and status.
    Pool(PoolKey),
    /// A client's addresses, Secret and status.
    Client(ClientKey),
    /// What the sidecar policy reads.
    Sidecars,
}

impl Request {
    /// Its kind, for metrics and logs.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Gateway(_) => "VPNGateway",
            Self::Peers(_) => "DesiredState",
            Self::Pool(_) => "VPNClientPool",
            Self::Client(_) => "VPNClient",
            Self::Sidecars => "Sidecars",
        }
    }

    /// Namespace and name of the object.
    pub fn object(&self) -> (&str, &str) {
        match self {
            Self::Gateway(k) | Self::Peers(k) => (&k.namespace, &k.name),
            Self::Pool(k) => (&k.namespace, &k.name),
            Self::Client(k) => (&k.namespace, &k.name),
            Self::Sidecars => ("", ""),
        }
    }

    /// Gateways and pools gather the changes of many clients; suspending one must still cut it off at once.
    pub(crate) fn pace(&self) -> Pace {
        let (settle, rest) = match self {
            Self::Gateway(_) => (20, 300),
            Self::Peers(_) => (10, 100),
            Self::Pool(_) | Self::Sidecars => (50, 500),
            Self::Client(_) => (0, 200),
        };
        let lane = if matches!(self, Self::Client(_)) { Lane::Usual } else { Lane::First };
        Pace { lane, settle: Duration::from_millis(settle), rest: Duration::from_millis(rest) }
    }
}
