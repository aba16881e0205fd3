//! Which peer an inner address belongs to: WireGuard's cryptokey routing, longest prefix first.

use std::{
    cell::Cell,
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use prefix_trie::PrefixMap;

use super::shards::Number;

/// The place of a peer in its shard.
pub(super) type Slot = u16;

/// Whose an address is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Holder {
    /// The peer at this place of the own shard.
    Here(Slot),
    /// A peer of another shard.
    At(Number),
}

/// One table for all peers, also those of other shards. Most clients have one address each, and those are found without a walk.
#[derive(Debug, Default)]
pub(super) struct RoutingTable {
    hosts_v4: HashMap<Ipv4Addr, Holder>,
    hosts_v6: HashMap<Ipv6Addr, Holder>,
    nets_v4: PrefixMap<Ipv4Net, Holder>,
    nets_v6: PrefixMap<Ipv6Net, Holder>,
    /// What was found last: packets come in runs.
    recent: Cell<Option<(IpAddr, Holder)>>,
}

impl RoutingTable {
    /// Gives the prefix to the peer, whoever had it.
    pub(super) fn insert(&mut self, net: IpNet, holder: Holder) {
        self.recent.set(None);
        match net.trunc() {
            IpNet::V4(net) if net.prefix_len() == 32 => drop(self.hosts_v4.insert(net.addr(), holder)),
            IpNet::V6(net) if net.prefix_len() == 128 => drop(self.hosts_v6.insert(net.addr(), holder)),
            IpNet::V4(net) => drop(self.nets_v4.insert(net, holder)),
            IpNet::V6(net) => drop(self.nets_v6.insert(net, holder)),
        }
    }

    /// The peer that has the address.
    pub(super) fn peer_of(&self, address: IpAddr) -> Option<Holder> {
        if let Some((_, holder)) = self.recent.get().filter(|&(recent, _)| recent == address) {
            return Some(holder);
        }
        let holder = self.look_up(address)?;
        self.recent.set(Some((address, holder)));
        Some(holder)
    }

    fn look_up(&self, address: IpAddr) -> Option<Holder> {
        match address {
            IpAddr::V4(address) => self
                .hosts_v4
                .get(&address)
                .copied()
                .or_else(|| self.nets_v4.get_lpm(&Ipv4Net::from(address)).map(|(_, holder)| *holder)),
            IpAddr::V6(address) => self
                .hosts_v6
                .get(&address)
                .copied()
                .or_else(|| self.nets_v6.get_lpm(&Ipv6Net::from(address)).map(|(_, holder)| *holder)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn nets() -> impl Strategy<Value = Vec<(IpNet, Holder)>> {
        // Few bits, so that prefixes nest and repeat.
        let v4 = (0_u8..8, 24_u8..=32)
            .prop_map(|(last, length)| IpNet::new(Ipv4Addr::new(10, 0, 0, last).into(), length).unwrap());
        let v6 = (0_u16..8, 112_u8..=128).prop_map(|(last, length)| {
            IpNet::new(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last).into(), length).unwrap()
        });
        let holder = prop_oneof![(0_u16..4).prop_map(Holder::Here), (0_u8..2).prop_map(Holder::At)];
        prop::collection::vec((prop_oneof![v4, v6], holder), 0..20)
    }

    proptest! {
        #[test]
        fn the_longest_prefix_wins_and_of_equals_the_latest(nets in nets(), last in 0_u8..9) {
            let mut table = RoutingTable::default();
            for &(net, holder) in &nets {
                table.insert(net, holder);
                // What is found meanwhile is not kept.
                table.peer_of(Ipv4Addr::new(10, 0, 0, last).into());
            }
            let addresses: [IpAddr; 2] = [
                Ipv4Addr::new(10, 0, 0, last).into(),
                Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last.into()).into(),
            ];
            for address in addresses {
                let expected = nets
                    .iter()
                    .enumerate()
                    .filter(|(_, (net, _))| net.contains(&address))
                    .max_by_key(|(order, (net, _))| (net.prefix_len(), *order))
                    .map(|(_, &(_, holder))| holder);
                prop_assert_eq!(table.peer_of(address), expected);
                prop_assert_eq!(table.peer_of(address), expected, "again");
            }
        }
    }
}
