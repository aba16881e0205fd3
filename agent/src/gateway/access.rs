//! Lets clients reach the cluster: forwarding and masquerading, as the desired state says.

use ipnet::IpNet;
use pinhole_proto::v1::Impairment;

use super::desired::{Access, Desired};
use crate::kernel::{KernelError, Masquerade, RouteSocket, forward_v6};

/// Name of the gateway's own nftables table.
const TABLE: &str = "pinhole";

/// What was set up last.
#[derive(Debug, Default)]
pub(super) struct NetworkAccess {
    installed: Option<(Access, Vec<IpNet>, Option<String>)>,
    impairments: Vec<Impairment>,
}

impl NetworkAccess {
    /// Sets up what the desired state says, unless it is so already. `uplink` is the device towards the cluster.
    pub(super) fn apply(&mut self, desired: &Desired, device: (&str, u32), uplink: Option<&str>) {
        let wanted = (desired.access, desired.client_ranges(), uplink.map(ToOwned::to_owned));
        if self.installed.as_ref() == Some(&wanted) {
            return;
        }
        self.impairments.clear();
        let has_v4 = wanted.1.iter().any(|range| range.addr().is_ipv4());
        let has_v6 = wanted.1.iter().any(|range| range.addr().is_ipv6());
        if has_v4 {
            self.note("IPv4ForwardingDisabled", forward_v4(device.1, uplink));
        }
        if has_v6 {
            self.note("IPv6ForwardingDisabled", forward_v6());
        }
        let masquerade =
            Masquerade { table: TABLE.into(), sources: wanted.1.clone(), tunnel_device: device.0.into() };
        let result = match desired.access {
            Access::Masquerade => masquerade.install(),
            Access::Routed => masquerade.remove(),
        };
        self.note("MasqueradeFailed", result);
        self.installed = Some(wanted);
    }

    /// Takes back what was set up.
    pub(super) fn remove(&mut self, device: &str) {
        let Some((Access::Masquerade, sources, _)) = self.installed.take() else { return };
        let masquerade = Masquerade { table: TABLE.into(), sources, tunnel_device: device.into() };
        if let Err(error) = masquerade.remove() {
            tracing::warn!(%error, category = error.category(), "masquerading stays behind");
        }
    }

    /// What could not be set up.
    pub(super) fn impairments(&self) -> &[Impairment] {
        &self.impairments
    }

    fn note(&mut self, category: &str, result: Result<(), KernelError>) {
        let Err(error) = result else { return };
        tracing::warn!(%error, category, "part of the network access is missing");
        self.impairments.push(Impairment { category: category.into(), message: error.to_string() });
    }
}

/// Forwarding is decided by the device that a packet comes in by: the tunnel for requests, the uplink for
/// answers.
fn forward_v4(tunnel: u32, uplink: Option<&str>) -> Result<(), KernelError> {
    let mut socket = RouteSocket::open()?;
    socket.set_forwarding_v4(tunnel, true)?;
    if let Some(uplink) = uplink {
        socket.set_forwarding_v4(RouteSocket::index_of(uplink)?, true)?;
    }
    Ok(())
}
