//! A client's configuration, cut out of what its gateway is told. Pure.

use pinhole_proto::v1::{ClientConfig, DesiredState, Peer};

/// The peer of the client with `uid`.
pub fn find_peer<'a>(desired: &'a DesiredState, uid: &str) -> Option<&'a Peer> {
    desired.peers.iter().find(|peer| peer.client.as_ref().is_some_and(|client| client.uid == uid))
}

/// What the client of `peer` needs. None when the peer's pool is not in the snapshot.
pub fn client_config(desired: &DesiredState, peer: &Peer) -> Option<ClientConfig> {
    let pool = desired.pools.get(usize::try_from(peer.pool).ok()?)?;
    let replicas = if peer.in_cluster { &desired.cluster_replicas } else { &desired.replicas };
    Some(ClientConfig {
        revision: desired.revision,
        client: peer.client.clone(),
        addresses: peer.addresses.clone(),
        routes: pool.routes.clone(),
        dns_servers: pool.dns_servers.clone(),
        dns_search: pool.dns_search.clone(),
        mtu: desired.mtu,
        replicas: replicas.clone(),
        keepalive: peer.keepalive.or(pool.keepalive),
        health: pool.health,
    })
}
