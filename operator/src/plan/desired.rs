//! A gateway's desired state, as its replicas are told.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use k8s_openapi::jiff::Timestamp;
use pinhole_crds::{EnrolmentMethod, HealthMode, NetworkAccess, VPNClient, VPNClientPool, VPNGateway};
use pinhole_proto::{HostPort, v1};

use super::{endpoint::Replica, keepalive, keys::parse_public, reach, unusable::search_domains};
use crate::{fleet::object_ref, ipam::gateway_address};

/// A pool that its gateway serves.
#[derive(Clone, Copy, Debug)]
pub struct PoolInputs<'a> {
    /// The pool.
    pub pool: &'a VPNClientPool,
    /// Its clients that may connect, see [`peer`].
    pub peers: &'a [PeerInputs],
}

/// A client that may connect.
#[derive(Clone, Debug, PartialEq)]
pub struct PeerInputs {
    /// The client.
    pub client: v1::ObjectRef,
    /// Its WireGuard public key.
    pub public_key: [u8; 32],
    /// Its addresses, those that its status and the allocator agree on.
    pub addresses: Vec<IpAddr>,
    /// Whether it is a sidecar.
    pub in_cluster: bool,
    /// Keepalive written into its configuration, where it has no agent.
    pub stock_keepalive: Option<std::time::Duration>,
    /// Keepalive policy of its own.
    pub keepalive: Option<v1::KeepalivePolicy>,
    /// When its right to connect ends.
    pub not_after: Option<Timestamp>,
}

/// All that a gateway's desired state is made of.
#[derive(Clone, Copy, Debug)]
pub struct DesiredInputs<'a> {
    /// The gateway.
    pub gateway: &'a VPNGateway,
    /// Its replicas.
    pub replicas: &'a [Replica],
    /// The pools that it serves.
    pub pools: &'a [PoolInputs<'a>],
    /// UIDs of clients whose keys are on two machines, of which each talks to a replica of its own.
    pub shared_keys: &'a BTreeSet<String>,
    /// Trust bundle.
    pub ca_pem: &'a str,
}

/// What each replica should run, by its name. The revision is the fleet's to set.
pub fn desired_states(inputs: &DesiredInputs<'_>) -> BTreeMap<String, v1::DesiredState> {
    let (gateway, spec) = (inputs.gateway, &inputs.gateway.spec);
    let prefixes = || inputs.pools.iter().flat_map(|p| &p.pool.spec.cidrs);
    let inner: Vec<IpNet> = prefixes()
        .map(|cidr| IpNet::new(gateway_address(cidr), cidr.prefix_len()).unwrap_or_else(|_| cidr.trunc()))
        .collect();
    let hosts: Vec<String> = inner.iter().map(|net| net.addr().to_string()).collect();
    let shared = v1::DesiredState {
        gateway: Some(object_ref(gateway)),
        replicas: entries(inputs.replicas, &hosts, |r| (&r.tunnel_endpoints, &r.session_endpoints)),
        cluster_replicas: entries(inputs.replicas, &hosts, |r| {
            (&r.cluster_tunnel_endpoints, &r.cluster_session_endpoints)
        }),
        tunnel_addresses: inner.iter().map(ToString::to_string).collect(),
        mtu: spec.mtu_or_default().into(),
        access: access(spec.network_access.unwrap_or_default()).into(),
        pools: inputs.pools.iter().map(|p| pool(gateway, p.pool)).collect(),
        peers: inputs
            .pools
            .iter()
            .zip(0_u32..)
            .flat_map(|(p, n)| p.peers.iter().map(move |x| wire(x, n, inputs.shared_keys)))
            .collect(),
        ca_pem: inputs.ca_pem.to_owned(),
        ..v1::DesiredState::default()
    };
    let own = |r: &Replica| (r.name.clone(), v1::DesiredState { replica: r.name.clone(), ..shared.clone() });
    inputs.replicas.iter().map(own).collect()
}

/// The client as a peer of its gateway, if it may connect at `now`: it has a key, holds the addresses that its
/// status says, and is neither suspended nor expired nor on its way out.
pub fn peer(
    gateway: &VPNGateway,
    pool: &VPNClientPool,
    client: &VPNClient,
    held: &[IpAddr],
    now: Timestamp,
) -> Option<PeerInputs> {
    let spec = &client.spec;
    let ended = spec.expires_at.as_ref().is_some_and(|end| end.0 <= now);
    if ended || spec.suspended == Some(true) || client.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let status = client.status.as_ref()?;
    let key = spec.public_key.as_deref().or(status.public_key.as_deref())?;
    let addresses: Vec<IpAddr> = status.addresses.iter().copied().filter(|a| held.contains(a)).collect();
    if addresses.is_empty() {
        return None;
    }
    let policy = keepalive::in_force(&gateway.spec, Some(&pool.spec), Some(spec));
    let is_sidecar = |e: &pinhole_crds::ClientEnrolment| e.method == EnrolmentMethod::ServiceAccount;
    Some(PeerInputs {
        client: object_ref(client),
        public_key: parse_public(key)?,
        addresses,
        in_cluster: spec.enrolment.as_ref().is_some_and(is_sidecar),
        // The configuration that the client runs may be an older one: the longer of the two is what to expect.
        stock_keepalive: spec.is_stock().then(|| {
            keepalive::stock_interval(policy)
                .max(keepalive::stock_in_force(policy, status.keepalive.as_ref()))
        }),
        keepalive: spec.keepalive.as_ref().map(|own| keepalive::policy(Some(own))),
        not_after: spec.expires_at.as_ref().map(|end| end.0),
    })
}

fn entries<'a>(
    replicas: &'a [Replica],
    inner: &[String],
    endpoints: impl Fn(&'a Replica) -> (&'a Vec<HostPort>, &'a Vec<HostPort>),
) -> Vec<v1::GatewayReplica> {
    let entry = |replica: &'a Replica| {
        let (tunnel, session) = endpoints(replica);
        Some(v1::GatewayReplica {
            name: replica.name.clone(),
            public_key: replica.public_key?.to_vec(),
            tunnel_endpoints: tunnel.iter().map(ToString::to_string).collect(),
            session_endpoints: session.iter().map(ToString::to_string).collect(),
            tunnel_addresses: inner.to_vec(),
        })
    };
    replicas.iter().filter_map(entry).collect()
}

fn pool(gateway: &VPNGateway, pool: &VPNClientPool) -> v1::Pool {
    let spec = &pool.spec;
    let servers = spec.dns.as_ref().map(|dns| dns.servers.as_slice()).unwrap_or_default();
    v1::Pool {
        pool: Some(object_ref(pool)),
        cidrs: spec.cidrs.iter().map(ToString::to_string).collect(),
        routes: reach::routes(spec).iter().map(ToString::to_string).collect(),
        dns_servers: servers.iter().map(ToString::to_string).collect(),
        dns_search: search_domains(pool).0.iter().map(ToString::to_string).collect(),
        keepalive: Some(keepalive::policy(keepalive::in_force(&gateway.spec, Some(spec), None))),
        client_to_client: Some(reach::client_to_client(spec)),
        health: health(spec.health_mode.or(gateway.spec.health_mode).unwrap_or_default()).into(),
    }
}

fn wire(peer: &PeerInputs, pool: u32, shared_keys: &BTreeSet<String>) -> v1::Peer {
    v1::Peer {
        client: Some(peer.client.clone()),
        pool,
        public_key: peer.public_key.to_vec(),
        preshared_key: Vec::new(),
        addresses: peer.addresses.iter().map(|a| IpNet::from(*a).to_string()).collect(),
        in_cluster: peer.in_cluster,
        stock_keepalive: peer.stock_keepalive.map(keepalive::wire),
        keepalive: peer.keepalive,
        not_after: peer
            .not_after
            .map(|end| prost_types::Timestamp { seconds: end.as_second(), nanos: end.subsec_nanosecond() }),
        key_shared: shared_keys.contains(&peer.client.uid),
    }
}

fn access(access: NetworkAccess) -> v1::NetworkAccess {
    match access {
        NetworkAccess::Masquerade => v1::NetworkAccess::Masquerade,
        NetworkAccess::Routed => v1::NetworkAccess::Routed,
    }
}

fn health(mode: HealthMode) -> v1::HealthMode {
    match mode {
        HealthMode::Loopback => v1::HealthMode::Loopback,
        HealthMode::LinkStatus => v1::HealthMode::LinkStatus,
    }
}
