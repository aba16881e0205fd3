//! Lets clients reach the cluster, and not the other way round: forwarding, masquerading and a filter, as the desired state
//! says.

use std::net::IpAddr;

use ipnet::IpNet;
use nix::{ifaddrs::getifaddrs, sys::socket::SockaddrStorage};
use pinhole_proto::v1::Impairment;

use super::desired::{Access, Desired};
use crate::kernel::{KernelError, Masquerade, RouteSocket, TunnelFilter, forward_v6};

/// Name of the gateway's own nftables table of masquerading.
const TABLE: &str = "pinhole";
/// Name of the one that filters: where a kernel cannot do the one, it may do the other.
const FILTER: &str = "pinhole-filter";

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
        // Before anything is forwarded.
        self.note("FilterFailed", filter(device.0).install());
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
        let Some((access, sources, _)) = self.installed.take() else { return };
        if let Err(error) = filter(device).remove() {
            tracing::warn!(%error, category = error.category(), "the filter stays behind");
        }
        if access == Access::Routed {
            return;
        }
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

fn filter(device: &str) -> TunnelFilter {
    TunnelFilter { table: FILTER.into(), tunnel_device: device.into() }
}

/// The addresses of this host, by whichever device. What comes to others the kernel's filter holds back.
pub(super) fn local_addresses() -> Vec<IpAddr> {
    let listed = getifaddrs().inspect_err(|error| tracing::warn!(%error, "cannot list own addresses"));
    let address = |storage: SockaddrStorage| {
        let address = storage.as_sockaddr_in().map(|address| IpAddr::from(address.ip()));
        address.or_else(|| storage.as_sockaddr_in6().map(|address| IpAddr::from(address.ip())))
    };
    let listed = listed.into_iter().flatten();
    listed.filter_map(|interface| interface.address).filter_map(address).collect()
}

/// That the operator is too old to say what clients may reach.
pub(super) fn unlimited(desired: &Desired) -> Option<Impairment> {
    let pools: Vec<&str> = desired.unlimited_pools().collect();
    (!pools.is_empty()).then(|| Impairment {
        category: "ReachUnlimited".into(),
        message: format!(
            "clients of {} reach whatever this gateway reaches, as the operator is older than the gateway and does \
             not say what they may: upgrade the operator",
            pools.join(", ")
        ),
    })
}

/// That this node has no IPv6, and so not these addresses of the gateway's own.
pub(super) fn without_ipv6(addresses: &[IpNet]) -> Option<Impairment> {
    let listed: Vec<String> = addresses.iter().map(IpNet::to_string).collect();
    (!listed.is_empty()).then(|| Impairment {
        category: "IPv6Unavailable".into(),
        message: format!(
            "this node has no IPv6, so the tunnel goes without {}: set the sysctl net.ipv6.conf.all.disable_ipv6=0, \
             or give the pools prefixes of IPv4 alone",
            listed.join(", ")
        ),
    })
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
