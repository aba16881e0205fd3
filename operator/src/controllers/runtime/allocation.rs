//! The allocators of all pools.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    sync::{Mutex, MutexGuard, PoisonError},
};

use kube::ResourceExt as _;
use pinhole_crds::{PoolCapacity, VPNClient, VPNClientPool};

use super::index::{Index, pool_of};
use crate::{
    fleet::PoolKey,
    ipam::{Denied, Holder, Ipam, Shape},
};

/// Clients and what their statuses say that they hold.
type Records = HashMap<String, (Holder, Vec<IpAddr>)>;

/// The allocators. The durable record is the clients' statuses.
#[derive(Debug, Default)]
pub(crate) struct Allocations(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    pools: HashMap<PoolKey, (String, Ipam)>,
    /// What was listed when this operator took the lead, until the pool is first asked for.
    listed: HashMap<PoolKey, Records>,
    /// Holders that were missing at the last sweep.
    missing: HashSet<String>,
}

/// What a client has after [`Allocations::assign`].
#[derive(Debug, Default)]
pub(crate) struct Assignment {
    /// Its addresses.
    pub(crate) addresses: Vec<IpAddr>,
    /// Why it has not got those that it should have.
    pub(crate) denied: Option<Denied>,
    /// Addresses of its status that belong to an older client.
    pub(crate) refused: Vec<IpAddr>,
    /// Younger clients that lost an address to it, by UID.
    pub(crate) displaced: Vec<String>,
}

impl Allocations {
    /// Takes in what a fresh list says, before anything is given out.
    pub(crate) fn load(&self, clients: &[VPNClient]) {
        let mut state = self.lock();
        for client in clients {
            let record = record(client);
            state.listed.entry(pool_of(client)).or_default().insert(record.0.uid.clone(), record);
        }
    }

    /// Brings the allocator of the pool up to its spec.
    pub(crate) fn refresh(&self, index: &Index, pool: &VPNClientPool) {
        self.with(index, pool, |_| ());
    }

    /// What the pool has given and has left, and why the next client would be turned away.
    pub(crate) fn capacity(&self, index: &Index, pool: &VPNClientPool) -> (PoolCapacity, Option<Denied>) {
        self.with(index, pool, |ipam| (ipam.capacity(), ipam.shortage()))
    }

    /// Gives the client its addresses, or says why not.
    pub(crate) fn assign(&self, index: &Index, pool: &VPNClientPool, client: &VPNClient) -> Assignment {
        let (holder, claimed) = record(client);
        self.with(index, pool, |ipam| {
            let adoption = ipam.adopt(&holder, &claimed);
            let denied = ipam.assign(&holder, &client.spec.addresses).err();
            Assignment {
                addresses: ipam.addresses(&holder.uid),
                denied,
                refused: adoption.refused,
                displaced: adoption.displaced,
            }
        })
    }

    /// What the client holds.
    pub(crate) fn held(&self, pool: &PoolKey, uid: &str) -> Vec<IpAddr> {
        self.lock().pools.get(pool).map(|(_, ipam)| ipam.addresses(uid)).unwrap_or_default()
    }

    /// The client is gone.
    pub(crate) fn release(&self, pool: &PoolKey, uid: &str) {
        let mut state = self.lock();
        if let Some((_, ipam)) = state.pools.get_mut(pool) {
            ipam.release(uid);
        }
        if let Some(listed) = state.listed.get_mut(pool) {
            listed.remove(uid);
        }
    }

    /// The pool is gone.
    pub(crate) fn remove(&self, pool: &PoolKey) {
        self.lock().pools.remove(pool);
    }

    /// Releases what is held by clients that do not exist, now and at the last sweep: a deletion that happened while
    /// this operator took the lead, or whose event was lost.
    pub(crate) fn sweep(&self, exists: impl Fn(&str) -> bool) {
        let mut state = self.lock();
        let missing_before = std::mem::take(&mut state.missing);
        let mut missing = HashSet::new();
        for (_, ipam) in state.pools.values_mut() {
            let absent: Vec<String> = ipam.holders().filter(|uid| !exists(uid)).map(str::to_owned).collect();
            for uid in absent {
                if missing_before.contains(&uid) {
                    ipam.release(&uid);
                } else {
                    missing.insert(uid);
                }
            }
        }
        state.missing = missing;
    }

    fn with<T>(&self, index: &Index, pool: &VPNClientPool, act: impl FnOnce(&mut Ipam) -> T) -> T {
        let key = PoolKey::from(pool);
        let uid = pool.uid().unwrap_or_default();
        let shape = shape(pool);
        let mut state = self.lock();
        let State { pools, listed, .. } = &mut *state;
        if pools.get(&key).is_none_or(|(known, _)| *known != uid) {
            let mut records: Records =
                index.clients_of(&key).iter().map(|c| record(c)).map(|r| (r.0.uid.clone(), r)).collect();
            records.extend(listed.remove(&key).unwrap_or_default());
            records.extend(held_blindly(index, pool));
            let (ipam, _) = Ipam::rebuild(shape.clone(), records.into_values().collect());
            pools.insert(key.clone(), (uid.clone(), ipam));
        }
        let (_, ipam) = pools.entry(key).or_insert_with(|| (uid, Ipam::new(shape.clone())));
        ipam.reshape(shape);
        act(ipam)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Addresses of the pool that clients hold of which nothing else is understood, or not even the pool is.
fn held_blindly(index: &Index, pool: &VPNClientPool) -> Records {
    let of_pool = |address: &IpAddr| pool.spec.cidrs.iter().any(|cidr| cidr.contains(address));
    let namespace = pool.namespace().unwrap_or_default();
    let holders = index.frozen_clients_in(&namespace).filter_map(|client| {
        let held: Vec<IpAddr> = client.addresses.iter().copied().filter(of_pool).collect();
        let uid = client.metadata.uid.clone().filter(|_| !held.is_empty())?;
        let created = client.metadata.creation_timestamp.as_ref().map(|t| t.0).unwrap_or_default();
        Some((uid.clone(), (Holder { created, uid }, held)))
    });
    let frozen_pools = index.frozen_pools_in(&namespace);
    let clients = frozen_pools.flat_map(|(frozen, _)| index.clients_of(frozen)).filter_map(|client| {
        let (holder, mut held) = record(&client);
        held.retain(of_pool);
        (!held.is_empty()).then(|| (holder.uid.clone(), (holder, held)))
    });
    holders.chain(clients).collect()
}

fn record(client: &VPNClient) -> (Holder, Vec<IpAddr>) {
    let created = client.creation_timestamp().map(|t| t.0).unwrap_or_default();
    let holder = Holder { created, uid: client.uid().unwrap_or_default() };
    (holder, client.status.as_ref().map(|s| s.addresses.clone()).unwrap_or_default())
}

fn shape(pool: &VPNClientPool) -> Shape {
    Shape {
        cidrs: pool.spec.cidrs.clone(),
        reserved: pool.spec.reserved.clone(),
        max_clients: pool.spec.max_clients.and_then(|max| u64::try_from(max).ok()),
    }
}

#[cfg(test)]
#[path = "allocation_tests.rs"]
mod tests;
