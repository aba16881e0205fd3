//! How a NAT picks the public port of a new mapping (RFC 4787, section 4.2).

use std::{collections::HashSet, ops::RangeInclusive};

use super::random::Random;
use crate::nat::model::PortAllocation;

/// The public ports of one protocol.
#[derive(Debug, Clone)]
pub(crate) struct Ports {
    range: RangeInclusive<u16>,
    allocation: PortAllocation,
    parity: bool,
    next: u16,
    /// Ports from before a restart, taken only when there are no others.
    stale: HashSet<u16>,
}

impl Ports {
    pub(crate) fn new(range: RangeInclusive<u16>, allocation: PortAllocation, parity: bool) -> Self {
        let next = *range.start();
        Self { range, allocation, parity, next, stale: HashSet::new() }
    }

    /// Changes how ports are picked from now on.
    pub(crate) fn set_allocation(&mut self, range: RangeInclusive<u16>, allocation: PortAllocation) {
        *self = Self::new(range, allocation, self.parity);
    }

    /// From now on these ports are not taken again while there are others.
    pub(crate) fn avoid(&mut self, used: impl IntoIterator<Item = u16>) {
        self.stale.extend(used);
    }

    /// A free port for a client's port `inside`; none when all are taken.
    pub(crate) fn pick(
        &mut self,
        inside: u16,
        random: &mut Random,
        taken: impl Fn(u16) -> bool,
    ) -> Option<u16> {
        let port = self
            .fresh(inside, random, &|port| taken(port) || self.stale.contains(&port))
            .or_else(|| self.fresh(inside, random, &taken))?;
        if self.allocation == PortAllocation::Sequential {
            self.next = port.checked_add(1).unwrap_or(*self.range.start());
        }
        Some(port)
    }

    fn fresh(&self, inside: u16, random: &mut Random, taken: &impl Fn(u16) -> bool) -> Option<u16> {
        let fits = |port: u16| {
            self.range.contains(&port) && !taken(port) && !(self.parity && (port ^ inside) & 1 == 1)
        };
        let start = match self.allocation {
            PortAllocation::Preserve if fits(inside) => return Some(inside),
            PortAllocation::Preserve => inside,
            PortAllocation::Sequential => self.next,
            PortAllocation::Random => {
                let drawn = random.below(u32::try_from(self.range.len()).unwrap_or_default());
                self.range.start().wrapping_add(u16::try_from(drawn).unwrap_or_default())
            }
        };
        let start = if self.range.contains(&start) { start } else { *self.range.start() };
        (start..=*self.range.end()).chain(*self.range.start()..start).find(|port| fits(*port))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ports(allocation: PortAllocation) -> Ports {
        Ports::new(50_000..=50_009, allocation, false)
    }

    #[test]
    fn the_clients_port_is_kept_where_it_is_free() {
        let mut ports = ports(PortAllocation::Preserve);
        let mut random = Random::seeded(1);
        assert_eq!(ports.pick(50_004, &mut random, |_| false), Some(50_004));
        assert_eq!(ports.pick(50_004, &mut random, |port| port == 50_004), Some(50_005));
        assert_eq!(ports.pick(4500, &mut random, |_| false), Some(50_000));
    }

    #[test]
    fn sequential_ports_go_round() {
        let mut ports = ports(PortAllocation::Sequential);
        let mut random = Random::seeded(1);
        let picked: Vec<_> = (0..12).filter_map(|_| ports.pick(4500, &mut random, |_| false)).collect();
        assert_eq!(picked[..3], [50_000, 50_001, 50_002]);
        assert_eq!(picked[9..], [50_009, 50_000, 50_001]);
    }

    #[test]
    fn ports_of_before_a_restart_come_last() {
        let mut ports = ports(PortAllocation::Preserve);
        let mut random = Random::seeded(1);
        ports.avoid(50_000..=50_008);
        assert_eq!(ports.pick(50_004, &mut random, |_| false), Some(50_009));
        assert_eq!(ports.pick(50_004, &mut random, |port| port == 50_009), Some(50_004));
    }

    proptest! {
        #[test]
        fn a_port_is_free_in_range_and_of_the_right_parity(
            first: u16, width in 0_u16..400, seed: u64, inside: u16, parity: bool, taken in prop::collection::hash_set(any::<u16>(), 0..400),
            allocation in prop::sample::select(vec![PortAllocation::Preserve, PortAllocation::Sequential, PortAllocation::Random]),
        ) {
            let range = first..=first.saturating_add(width);
            let mut ports = Ports::new(range.clone(), allocation, parity);
            let free = |port: u16| !taken.contains(&port) && (!parity || port % 2 == inside % 2);
            match ports.pick(inside, &mut Random::seeded(seed), |port| taken.contains(&port)) {
                Some(port) => prop_assert!(range.contains(&port) && free(port)),
                None => prop_assert!(!range.clone().any(free)),
            }
        }
    }
}
