//! The addresses of one family: which are free, which are held.

use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;
use pinhole_crds::AddressRange;

use super::Denied;

/// Freed addresses that are remembered in order to be given again last. Beyond, the oldest is an ordinary free
/// address again: the search goes on from the last address given, so it still comes late.
const REMEMBERED: usize = 65_536;

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of an address.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// A run of addresses as numbers, both ends included.
type Run = (u128, u128);

/// The addresses of one family: which may be given, which are held and by whom (as a client's slot number).
#[derive(Clone, Debug)]
pub(super) struct Space {
    family: Family,
    prefixes: Vec<IpNet>,
    /// Ascending, disjoint, never empty runs.
    usable: Vec<Run>,
    held: BTreeMap<u128, u64>,
    held_usable: u128,
    /// The search for a free address starts after this one.
    cursor: u128,
    freed: VecDeque<u128>,
    freed_set: HashSet<u128>,
}

impl Space {
    pub(super) fn new(family: Family, cidrs: &[IpNet], reserved: &[AddressRange]) -> Self {
        let mut space = Self {
            family,
            prefixes: Vec::new(),
            usable: Vec::new(),
            held: BTreeMap::new(),
            held_usable: 0,
            cursor: 0,
            freed: VecDeque::new(),
            freed_set: HashSet::new(),
        };
        space.reshape(cidrs, reserved);
        space
    }

    pub(super) fn reshape(&mut self, cidrs: &[IpNet], reserved: &[AddressRange]) {
        let own = |a: IpAddr| Family::of(a) == self.family;
        self.prefixes = cidrs.iter().map(IpNet::trunc).filter(|c| own(c.network())).collect();
        let mut taken: Vec<Run> = reserved
            .iter()
            .filter(|r| own(r.first()))
            .map(|r| (number(r.first()), number(r.last())))
            .chain(self.prefixes.iter().flat_map(infrastructure))
            .collect();
        taken.sort_unstable();
        let mut runs: Vec<Run> =
            self.prefixes.iter().map(|c| (number(c.network()), number(c.broadcast()))).collect();
        runs.sort_unstable();
        self.usable = runs.into_iter().flat_map(|run| without(run, &taken)).collect();
        self.held_usable = self.held.keys().filter(|a| self.is_usable(**a)).count() as u128;
        let usable = &self.usable;
        self.freed_set.retain(|a| contains(usable, *a));
        let freed_set = &self.freed_set;
        self.freed.retain(|a| freed_set.contains(a));
    }

    pub(super) fn exists(&self) -> bool {
        !self.prefixes.is_empty()
    }

    pub(super) fn total(&self) -> u128 {
        self.usable.iter().map(|(first, last)| last - first + 1).sum()
    }

    pub(super) fn free(&self) -> u128 {
        self.total() - self.held_usable
    }

    /// Whether a client may keep the address: any of the prefixes but what belongs to the infrastructure. Ranges
    /// that were reserved after it was given do not take it away.
    pub(super) fn may_keep(&self, address: IpAddr) -> bool {
        let number = number(address);
        Family::of(address) == self.family
            && self.prefixes.iter().any(|p| p.contains(&address))
            && !self.prefixes.iter().flat_map(infrastructure).any(|(a, b)| a <= number && number <= b)
    }

    pub(super) fn holder(&self, address: IpAddr) -> Option<u64> {
        self.held.get(&number(address)).copied()
    }

    /// Whether `slot` could have exactly this address.
    pub(super) fn check(&self, address: IpAddr, slot: u64) -> Result<(), Denied> {
        match self.holder(address) {
            Some(holder) if holder == slot => return Ok(()),
            Some(_) => return Err(Denied::Taken(address)),
            None => {}
        }
        if !self.prefixes.iter().any(|p| p.contains(&address)) {
            return Err(Denied::OutsidePool(address));
        }
        if self.is_usable(number(address)) { Ok(()) } else { Err(Denied::Reserved(address)) }
    }

    /// Gives the address to `slot`, whoever held it before.
    pub(super) fn hold(&mut self, address: IpAddr, slot: u64) {
        let number = number(address);
        self.freed_set.remove(&number);
        if self.held.insert(number, slot).is_none() && self.is_usable(number) {
            self.held_usable += 1;
        }
    }

    pub(super) fn free_address(&mut self, address: IpAddr) {
        let number = number(address);
        if self.held.remove(&number).is_none() || !self.is_usable(number) {
            return;
        }
        self.held_usable -= 1;
        if self.freed_set.insert(number) {
            self.freed.push_back(number);
        }
        while self.freed.len() > REMEMBERED {
            self.pop_freed();
        }
    }

    /// The address to give next: one that was not given lately if there is any, else the one that has been free for
    /// the longest. The caller [`hold`](Self::hold)s it.
    pub(super) fn next(&mut self) -> Result<IpAddr, Denied> {
        if self.free() == 0 {
            return Err(Denied::Exhausted(self.family));
        }
        let fresh = if self.free() > self.freed_set.len() as u128 { self.search() } else { None };
        let number = fresh.or_else(|| self.pop_freed()).ok_or(Denied::Exhausted(self.family))?;
        self.cursor = number;
        Ok(self.address(number))
    }

    /// Lets the search go on after `address`.
    pub(super) fn resume_after(&mut self, address: IpAddr) {
        self.cursor = number(address);
    }

    fn search(&self) -> Option<u128> {
        let from = self.cursor.saturating_add(1);
        let ahead = self.usable.iter().filter(|(_, last)| *last >= from).map(|(a, b)| ((*a).max(from), *b));
        let behind = self.usable.iter().filter(|(first, _)| *first < from).map(|(a, b)| (*a, (*b).min(from)));
        ahead.chain(behind).find_map(|run| self.search_run(run))
    }

    fn search_run(&self, (first, last): Run) -> Option<u128> {
        let mut candidate = first;
        let mut held = self.held.range(first..=last).map(|(a, _)| *a).peekable();
        loop {
            let is_held = held.next_if_eq(&candidate).is_some();
            if !is_held && !self.freed_set.contains(&candidate) {
                return Some(candidate);
            }
            if candidate == last {
                return None;
            }
            candidate += 1;
        }
    }

    fn pop_freed(&mut self) -> Option<u128> {
        while let Some(number) = self.freed.pop_front() {
            if self.freed_set.remove(&number) {
                return Some(number);
            }
        }
        None
    }

    fn is_usable(&self, number: u128) -> bool {
        contains(&self.usable, number)
    }

    fn address(&self, number: u128) -> IpAddr {
        match (self.family, u32::try_from(number)) {
            (Family::V4, Ok(bits)) => Ipv4Addr::from_bits(bits).into(),
            _ => Ipv6Addr::from_bits(number).into(),
        }
    }
}

/// The gateway's own address within a prefix: the first one after the network address.
pub fn gateway_address(prefix: &IpNet) -> IpAddr {
    match prefix.network() {
        IpAddr::V4(network) => Ipv4Addr::from_bits(network.to_bits().saturating_add(1)).into(),
        IpAddr::V6(network) => Ipv6Addr::from_bits(network.to_bits().saturating_add(1)).into(),
    }
}

/// Network address (the subnet-router anycast address of IPv6), the gateway's, and IPv4's broadcast address.
fn infrastructure(prefix: &IpNet) -> impl Iterator<Item = Run> + use<> {
    let low = (number(prefix.network()), number(gateway_address(prefix)));
    let high = number(prefix.broadcast());
    [Some(low), prefix.network().is_ipv4().then_some((high, high))].into_iter().flatten()
}

fn contains(runs: &[Run], number: u128) -> bool {
    let after = runs.partition_point(|(first, _)| *first <= number);
    after.checked_sub(1).and_then(|i| runs.get(i)).is_some_and(|(_, last)| number <= *last)
}

/// `run` less the ascending `taken` runs.
fn without((first, last): Run, taken: &[Run]) -> Vec<Run> {
    let mut rest = Vec::new();
    let mut from = Some(first);
    for (a, b) in taken.iter().filter(|(a, b)| *b >= first && *a <= last) {
        let Some(start) = from else { break };
        if *a > start {
            rest.push((start, a - 1));
        }
        from = if *b >= last { None } else { Some(start.max(b + 1)) };
    }
    rest.extend(from.map(|start| (start, last)));
    rest
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_bits().into(),
        IpAddr::V6(address) => address.to_bits(),
    }
}
