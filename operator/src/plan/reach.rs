//! What the clients of a pool reach. Gateways enforce it; here it is said.

use ipnet::IpNet;
use pinhole_crds::{Reachable, ReachableScope, VPNClientPoolSpec};

use crate::ipam::gateway_address;

/// Whether clients of the pool reach one another.
pub(super) fn client_to_client(spec: &VPNClientPoolSpec) -> bool {
    spec.client_to_client == Some(true)
}

/// What clients route into the tunnel, beside the gateway's own addresses.
pub(super) fn routes(spec: &VPNClientPoolSpec) -> Vec<IpNet> {
    let mut routes = spec.routes.clone();
    if client_to_client(spec) {
        routes.extend(spec.cidrs.iter().copied().filter(|cidr| !spec.routes.contains(cidr)));
    }
    routes
}

/// What of that there is to reach, for a pool's status: the gateway first, then what the pool names, in its order.
pub(super) fn reachable(spec: &VPNClientPoolSpec) -> Vec<Reachable> {
    let at = |scope| move |destination| Reachable { destination, scope };
    let gateway = spec.cidrs.iter().map(|cidr| IpNet::from(gateway_address(cidr)));
    let clients = spec.cidrs.iter().copied().filter(|_| client_to_client(spec));
    let routes = spec.routes.iter().copied().filter(|route| !within_any(route, &spec.cidrs));
    let routes = routes.filter(|route| !is_link_local(route));
    let servers = spec.dns.iter().flat_map(|dns| &dns.servers).map(|server| IpNet::from(*server));
    let apart = servers.filter(|server| {
        !is_link_local(server) && !within_any(server, &spec.routes) && !within_any(server, &spec.cidrs)
    });
    gateway
        .map(at(ReachableScope::Gateway))
        .chain(clients.map(at(ReachableScope::Clients)))
        .chain(routes.map(at(ReachableScope::All)))
        .chain(apart.map(at(ReachableScope::Dns)))
        .collect()
}

fn within_any(net: &IpNet, nets: &[IpNet]) -> bool {
    nets.iter().any(|wider| wider.contains(net))
}

/// Whether all of it is link-local, which nobody reaches.
fn is_link_local(net: &IpNet) -> bool {
    match net {
        IpNet::V4(net) => net.network().is_link_local() && net.broadcast().is_link_local(),
        IpNet::V6(net) => net.network().is_unicast_link_local() && net.broadcast().is_unicast_link_local(),
    }
}
