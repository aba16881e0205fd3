//! Whether a packet of the gateway would reach a client now, as only the NATs on the way know. Looking changes
//! nothing: it sends no packet, and so refreshes no mapping.

use std::{net::SocketAddr, time::Duration};

use crate::{
    device::Device,
    error::{Error, Result},
    host::Host,
    nat::UdpMapping,
};

/// The way of a tunnel through the NATs in front of its client.
#[derive(Debug, Clone)]
pub struct Way {
    host: Host,
    port: u16,
    gateway: SocketAddr,
}

/// What the NATs hold of a way in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WayIn {
    /// Where the gateway has to send to.
    pub outside: SocketAddr,
    /// How long it lasts without traffic, to the second behind netfilter.
    pub left: Duration,
    /// Whether every NAT gave it its longer lifetime.
    pub stream: bool,
}

impl Way {
    /// The way that the client uses now.
    ///
    /// # Errors
    /// When its agent does not say.
    pub async fn of(device: &Device) -> Result<Self> {
        let status = device.status().await?;
        let endpoint = status.endpoint.as_deref().and_then(|endpoint| endpoint.parse().ok());
        let gateway =
            endpoint.ok_or_else(|| Error::Invalid(format!("{} has no path", device.host().name())))?;
        Ok(Self { host: device.host().clone(), port: status.local_port, gateway })
    }

    /// The way in, if every NAT has a mapping for it.
    ///
    /// # Errors
    /// What `conntrack` says.
    pub async fn in_force(&self) -> Result<Option<WayIn>> {
        let mut way = WayIn {
            outside: SocketAddr::new(self.host.address().into(), self.port),
            left: Duration::MAX,
            stream: true,
        };
        for nat in self.host.nats() {
            let is_ours =
                |mapping: &UdpMapping| mapping.inside == way.outside && mapping.remote == self.gateway;
            let Some(mapping) = nat.mappings().await?.into_iter().find(is_ours) else { return Ok(None) };
            way = WayIn {
                outside: mapping.outside,
                left: way.left.min(mapping.left),
                stream: way.stream && mapping.stream,
            };
        }
        Ok(Some(way))
    }
}
