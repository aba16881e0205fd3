//! A look at what a gateway's replicas are to run, and for whom.

use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
    time::{Duration, SystemTime},
};

use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt as _;
use pinhole_crds::{VPNClient, VPNClientPool, VPNGateway};

use super::context::{Context, Wait};
use crate::{
    fleet::{GatewayKey, PoolKey},
    plan::{DesiredInputs, PeerInputs, PoolInputs, Unusable, desired_states, overlaps, peer},
};

/// A pool that is served, with its clients.
type Served = (Arc<VPNClientPool>, Vec<Arc<VPNClient>>);

impl Context {
    /// Tells a gateway's replicas what to run. Waits for the next client whose time ends.
    pub(super) fn peers(&self, key: &GatewayKey) -> Wait {
        let gateway = self.shared.index().gateway(key)?;
        // Its replicas go on with what they were told: told of fewer pools, they would cut that one's clients.
        if let Some(pool) = self.shared.index().holding_pool_of(key).cloned() {
            let unusable = Unusable::Pool(pool.name);
            self.events.warn(gateway.as_ref(), unusable.category(), &unusable.to_string());
            return None;
        }
        // Without its keys a replica cannot run; they come first, and call for this again.
        let keys = self.keys.last(key)?;
        let now = Timestamp::now();
        let served = self.served(key);
        let peers = self.peers_of(&gateway, &served, now);
        let pools: Vec<PoolInputs<'_>> =
            served.iter().zip(&peers).map(|((pool, _), peers)| PoolInputs { pool, peers }).collect();
        let (replicas, _) = self.replicas(&gateway, &keys);
        let names: BTreeSet<String> = replicas.iter().map(|r| r.name.clone()).collect();
        let ca_pem = self.ca_pem();
        let inputs = DesiredInputs {
            gateway: &gateway,
            replicas: &replicas,
            pools: &pools,
            shared_keys: &self.fleet.shared_keys(key),
            ca_pem: &ca_pem,
        };
        for (replica, state) in desired_states(&inputs) {
            self.fleet.publish(SystemTime::now(), key, &replica, state);
        }
        self.fleet.keep_replicas(key, &names);
        next_end(&served, now)
    }

    fn served(&self, key: &GatewayKey) -> Vec<Served> {
        let index = self.shared.index();
        let pools = index.pools_of(key);
        let all: Vec<&VPNClientPool> = pools.iter().map(AsRef::as_ref).collect();
        let admitted: HashSet<PoolKey> =
            overlaps(&all).into_iter().filter(|(_, o)| o.is_none()).map(|(p, _)| PoolKey::from(p)).collect();
        let mut served: Vec<Served> = pools
            .into_iter()
            .map(|pool| (PoolKey::from(pool.as_ref()), pool))
            .filter(|(key, _)| admitted.contains(key))
            .map(|(key, pool)| (pool, index.clients_of(&key)))
            .collect();
        served.sort_by_key(|(pool, _)| pool.name_any());
        for (pool, _) in &served {
            self.allocations.refresh(&index, pool);
        }
        served
    }

    /// Of clients with one key the oldest is a peer.
    fn peers_of(&self, gateway: &VPNGateway, served: &[Served], now: Timestamp) -> Vec<Vec<PeerInputs>> {
        let mut made: Vec<(usize, &VPNClient, PeerInputs)> = Vec::new();
        for (n, (pool, clients)) in served.iter().enumerate() {
            let key = PoolKey::from(pool.as_ref());
            for client in clients {
                let held = self.allocations.held(&key, client.metadata.uid.as_deref().unwrap_or_default());
                made.extend(peer(gateway, pool, client, &held, now).map(|p| (n, client.as_ref(), p)));
            }
        }
        let age = |c: &VPNClient| (c.creation_timestamp().map(|t| t.0), c.uid());
        let mut oldest: std::collections::HashMap<[u8; 32], &VPNClient> = std::collections::HashMap::new();
        for (_, client, peer) in &made {
            let first = oldest.entry(peer.public_key).or_insert(client);
            if age(client) < age(first) {
                *first = client;
            }
        }
        let mut peers: Vec<Vec<PeerInputs>> = served.iter().map(|_| Vec::new()).collect();
        for (n, client, peer) in &made {
            if oldest.get(&peer.public_key).is_some_and(|first| first.uid() == client.uid())
                && let Some(list) = peers.get_mut(*n)
            {
                list.push(peer.clone());
            }
        }
        peers
    }
}

fn next_end(served: &[Served], now: Timestamp) -> Wait {
    let ends =
        served.iter().flat_map(|(_, clients)| clients).filter_map(|c| Some(c.spec.expires_at.as_ref()?.0));
    let millis = ends.filter(|end| *end > now).min()?.as_millisecond() - now.as_millisecond();
    Some(Duration::from_millis(u64::try_from(millis).ok()? + 20))
}
