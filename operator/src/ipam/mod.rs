//! Addresses of one pool: which client holds which, and who gets what next. Pure: the durable record is each
//! client's status, from which this is rebuilt.
//!
//! A client holds one address of every family that its pool has, from its first assignment to its deletion. The
//! first address after each prefix's network address is the gateway's; all replicas of a gateway share it, for a
//! client speaks to one at a time. Addresses that were freed are given again last.

mod denied;
mod space;

use std::{collections::HashMap, net::IpAddr};

use ipnet::IpNet;
use k8s_openapi::jiff::Timestamp;
use pinhole_crds::{AddressRange, PoolCapacity};

pub use denied::Denied;
pub use space::{Family, gateway_address};

use space::Space;

/// Counts in status stop here, at what JSON numbers carry exactly.
const COUNT_LIMIT: u128 = 1 << 53;

/// Slot of a client that holds nothing yet.
const NO_SLOT: u64 = 0;

/// What a pool may give out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shape {
    /// Its prefixes.
    pub cidrs: Vec<IpNet>,
    /// What is not given out of them.
    pub reserved: Vec<AddressRange>,
    /// Most clients at a time.
    pub max_clients: Option<u64>,
}

/// A client as the allocator knows it: its UID, and its age, which decides between two that hold one address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Holder {
    /// When the client was created. The older one keeps a contested address.
    pub created: Timestamp,
    /// Its UID.
    pub uid: String,
}

/// What came of [`Ipam::adopt`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Adoption {
    /// Addresses that the client may not keep: another, older client holds them, or they are not the pool's.
    pub refused: Vec<IpAddr>,
    /// UIDs of younger clients that lost an address to this one.
    pub displaced: Vec<String>,
}

/// The allocator of one pool.
#[derive(Clone, Debug)]
pub struct Ipam {
    shape: Shape,
    v4: Space,
    v6: Space,
    slots: HashMap<String, u64>,
    holdings: HashMap<u64, Holding>,
    next_slot: u64,
}

#[derive(Clone, Debug)]
struct Holding {
    holder: Holder,
    v4: Option<IpAddr>,
    v6: Option<IpAddr>,
}

impl Ipam {
    /// An allocator that has given nothing yet.
    pub fn new(shape: Shape) -> Self {
        Self {
            v4: Space::new(Family::V4, &shape.cidrs, &shape.reserved),
            v6: Space::new(Family::V6, &shape.cidrs, &shape.reserved),
            shape,
            slots: HashMap::new(),
            holdings: HashMap::new(),
            next_slot: NO_SLOT,
        }
    }

    /// An allocator that knows what the listed clients hold. Where two hold one address the older keeps it; the
    /// UIDs of the clients that do not keep all they had are returned.
    pub fn rebuild(shape: Shape, clients: Vec<(Holder, Vec<IpAddr>)>) -> (Self, Vec<String>) {
        let mut ipam = Self::new(shape);
        let mut clients = clients;
        clients.sort_by(|a, b| a.0.cmp(&b.0));
        let mut losers = Vec::new();
        for (holder, addresses) in clients {
            if addresses.is_empty() {
                continue;
            }
            let uid = holder.uid.clone();
            if !ipam.adopt(&holder, &addresses).refused.is_empty() {
                losers.push(uid);
            }
            // The youngest client's address is about the last one given.
            for address in addresses {
                let space = ipam.space_mut(Family::of(address));
                if space.may_keep(address) {
                    space.resume_after(address);
                }
            }
        }
        (ipam, losers)
    }

    /// What the pool may give out changed; what clients hold stays theirs.
    pub fn reshape(&mut self, shape: Shape) {
        if shape == self.shape {
            return;
        }
        self.v4.reshape(&shape.cidrs, &shape.reserved);
        self.v6.reshape(&shape.cidrs, &shape.reserved);
        self.shape = shape;
    }

    /// Learns that a client's status says that it holds `addresses`.
    pub fn adopt(&mut self, holder: &Holder, addresses: &[IpAddr]) -> Adoption {
        let mut adoption = Adoption::default();
        for address in addresses {
            self.adopt_one(holder, *address, &mut adoption);
        }
        adoption
    }

    fn adopt_one(&mut self, holder: &Holder, address: IpAddr, adoption: &mut Adoption) {
        let family = Family::of(address);
        if !self.space(family).may_keep(address) {
            adoption.refused.push(address);
            return;
        }
        let other = self.space(family).holder(address).and_then(|slot| self.holdings.get(&slot));
        match other.map(|h| h.holder.clone()) {
            Some(other) if other.uid == holder.uid => return,
            Some(other) if other <= *holder => {
                adoption.refused.push(address);
                return;
            }
            Some(other) => {
                self.drop_address(&other.uid, family);
                adoption.displaced.push(other.uid);
            }
            None => {}
        }
        // What this allocator gave it is newer than what a cached status says.
        if self.address_of(&holder.uid, family).is_some() {
            adoption.refused.push(address);
            return;
        }
        self.give(holder, address);
    }

    /// The client's addresses, one of each family of the pool. Gives what is missing, moves it to `fixed` addresses,
    /// and changes nothing at all when something is denied. The same question gets the same answer.
    pub fn assign(&mut self, holder: &Holder, fixed: &[IpAddr]) -> Result<Vec<IpAddr>, Denied> {
        let is_new = !self.slots.contains_key(&holder.uid);
        if let Some(max) = self.shape.max_clients.filter(|max| is_new && self.clients() >= *max) {
            return Err(Denied::PoolFull(max));
        }
        let slot = self.slots.get(&holder.uid).copied().unwrap_or(NO_SLOT);
        for address in fixed {
            self.space(Family::of(*address)).check(*address, slot)?;
        }
        let chosen = [self.choose(holder, fixed, Family::V4)?, self.choose(holder, fixed, Family::V6)?];
        for address in chosen.into_iter().flatten() {
            if self.address_of(&holder.uid, Family::of(address)) != Some(address) {
                self.drop_address(&holder.uid, Family::of(address));
                self.give(holder, address);
            }
        }
        Ok(self.addresses(&holder.uid))
    }

    fn choose(
        &mut self,
        holder: &Holder,
        fixed: &[IpAddr],
        family: Family,
    ) -> Result<Option<IpAddr>, Denied> {
        let wanted = fixed.iter().copied().find(|a| Family::of(*a) == family);
        let held = self.address_of(&holder.uid, family);
        match wanted.or(held) {
            Some(address) => Ok(Some(address)),
            None if self.space(family).exists() => self.space_mut(family).next().map(Some),
            None => Ok(None),
        }
    }

    /// The client is gone: its addresses are free.
    pub fn release(&mut self, uid: &str) {
        self.drop_address(uid, Family::V4);
        self.drop_address(uid, Family::V6);
    }

    /// What the client holds, IPv4 first.
    pub fn addresses(&self, uid: &str) -> Vec<IpAddr> {
        self.holding(uid).into_iter().flat_map(|h| [h.v4, h.v6]).flatten().collect()
    }

    /// UIDs of all clients that hold an address.
    pub fn holders(&self) -> impl Iterator<Item = &str> {
        self.slots.keys().map(String::as_str)
    }

    /// What is given and what is left, in the family that has fewest.
    pub fn capacity(&self) -> PoolCapacity {
        let families = [&self.v4, &self.v6].into_iter().filter(|space| space.exists());
        let max = self.shape.max_clients.map(u128::from);
        let allocated = u128::from(self.clients());
        let free = families.clone().map(Space::free).chain(max.map(|m| m.saturating_sub(allocated))).min();
        let total = families.map(Space::total).chain(max).min();
        PoolCapacity {
            total: count(total.unwrap_or_default()),
            allocated: count(allocated),
            free: count(free.unwrap_or_default()),
        }
    }

    /// Why the next client would be turned away, if it would be.
    pub fn shortage(&self) -> Option<Denied> {
        if let Some(max) = self.shape.max_clients.filter(|max| self.clients() >= *max) {
            return Some(Denied::PoolFull(max));
        }
        [(Family::V4, &self.v4), (Family::V6, &self.v6)]
            .into_iter()
            .find(|(_, space)| space.exists() && space.free() == 0)
            .map(|(family, _)| Denied::Exhausted(family))
    }

    fn clients(&self) -> u64 {
        self.slots.len() as u64
    }

    fn holding(&self, uid: &str) -> Option<&Holding> {
        self.holdings.get(self.slots.get(uid)?)
    }

    fn address_of(&self, uid: &str, family: Family) -> Option<IpAddr> {
        let holding = self.holding(uid)?;
        match family {
            Family::V4 => holding.v4,
            Family::V6 => holding.v6,
        }
    }

    fn give(&mut self, holder: &Holder, address: IpAddr) {
        let slot = self.slots.get(&holder.uid).copied().unwrap_or_else(|| {
            self.next_slot += 1;
            self.slots.insert(holder.uid.clone(), self.next_slot);
            self.next_slot
        });
        let family = Family::of(address);
        self.space_mut(family).hold(address, slot);
        let holding = self.holdings.entry(slot).or_insert_with(|| Holding {
            holder: holder.clone(),
            v4: None,
            v6: None,
        });
        match family {
            Family::V4 => holding.v4 = Some(address),
            Family::V6 => holding.v6 = Some(address),
        }
    }

    fn drop_address(&mut self, uid: &str, family: Family) {
        let Some(slot) = self.slots.get(uid).copied() else { return };
        let Some(holding) = self.holdings.get_mut(&slot) else { return };
        let address = match family {
            Family::V4 => holding.v4.take(),
            Family::V6 => holding.v6.take(),
        };
        if holding.v4.is_none() && holding.v6.is_none() {
            self.holdings.remove(&slot);
            self.slots.remove(uid);
        }
        if let Some(address) = address {
            self.space_mut(family).free_address(address);
        }
    }

    fn space(&self, family: Family) -> &Space {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }

    fn space_mut(&mut self, family: Family) -> &mut Space {
        match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        }
    }
}

fn count(n: u128) -> i64 {
    i64::try_from(n.min(COUNT_LIMIT)).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
