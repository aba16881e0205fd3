//! Which peer an inner address belongs to: WireGuard's cryptokey routing, longest prefix first.

use std::{
    cell::Cell,
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use prefix_trie::PrefixMap;

/// The place of a peer in its shard.
pub(super) type Slot = u16;

/// One table for all peers. Most clients have one address each, and those are found without a walk.
#[derive(Debug, Default)]
pub(super) struct RoutingTable {
    hosts_v4: HashMap<Ipv4Addr, Slot>,
    hosts_v6: HashMap<Ipv6Addr, Slot>,
    nets_v4: PrefixMap<Ipv4Net, Slot>,
    nets_v6: PrefixMap<Ipv6Net, Slot>,
    /// What was found last: packets come in runs.
    recent: Cell<Option<(IpAddr, Slot)>>,
}

impl RoutingTable {
    /// Gives the prefix to the peer, whoever had it.
    pub(super) fn insert(&mut self, net: IpNet, slot: Slot) {
        self.recent.set(None);
        match net.trunc() {
            IpNet::V4(net) if net.prefix_len() == 32 => drop(self.hosts_v4.insert(net.addr(), slot)),
            IpNet::V6(net) if net.prefix_len() == 128 => drop(self.hosts_v6.insert(net.addr(), slot)),
            IpNet::V4(net) => drop(self.nets_v4.insert(net, slot)),
            IpNet::V6(net) => drop(self.nets_v6.insert(net, slot)),
        }
    }

    /// The peer that has the address.
    pub(super) fn peer_of(&self, address: IpAddr) -> Option<Slot> {
        if let Some((_, slot)) = self.recent.get().filter(|&(recent, _)| recent == address) {
            return Some(slot);
        }
        let slot = self.look_up(address)?;
        self.recent.set(Some((address, slot)));
        Some(slot)
    }

    fn look_up(&self, address: IpAddr) -> Option<Slot> {
        match address {
            IpAddr::V4(address) => self
                .hosts_v4
                .get(&address)
                .copied()
                .or_else(|| self.nets_v4.get_lpm(&Ipv4Net::from(address)).map(|(_, slot)| *slot)),
            IpAddr::V6(address) => self
                .hosts_v6
                .get(&address)
                .copied()
                .or_else(|| self.nets_v6.get_lpm(&Ipv6Net::from(address)).map(|(_, slot)| *slot)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn nets() -> impl Strategy<Value = Vec<(IpNet, Slot)>> {
        // Few bits, so that prefixes nest and repeat.
        let v4 = (0_u8..8, 24_u8..=32)
            .prop_map(|(last, length)| IpNet::new(Ipv4Addr::new(10, 0, 0, last).into(), length).unwrap());
        let v6 = (0_u16..8, 112_u8..=128).prop_map(|(last, length)| {
            IpNet::new(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last).into(), length).unwrap()
        });
        prop::collection::vec((prop_oneof![v4, v6], 0_u16..5), 0..20)
    }

    proptest! {
        #[test]
        fn the_longest_prefix_wins_and_of_equals_the_latest(nets in nets(), last in 0_u8..9) {
            let mut table = RoutingTable::default();
            for &(net, slot) in &nets {
                table.insert(net, slot);
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
                    .map(|(_, &(_, slot))| slot);
                prop_assert_eq!(table.peer_of(address), expected);
                prop_assert_eq!(table.peer_of(address), expected, "again");
            }
        }
    }
}
