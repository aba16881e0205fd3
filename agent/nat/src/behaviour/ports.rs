//! How a NAT chooses ports, from what became of a few sockets.

use super::{Finding, PortAllocation};

/// Steps up to this between ports given one after the other: other machines take ports in between.
const LARGEST_STEP: i32 = 32;
/// Ports given otherwise than preserved are judged from this many.
const ENOUGH: usize = 4;
/// With so many the odds are below 1 in 50 that parity was kept by chance.
const ENOUGH_FOR_PARITY: usize = 6;

/// One socket: its own port and the public one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pair {
    pub(super) local: u16,
    pub(super) public: u16,
}

/// What a few sockets, in the order in which their mappings were made, tell.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Ports {
    pub(super) allocation: PortAllocation,
    pub(super) parity: Finding,
    pub(super) delta: Option<i32>,
}

impl Ports {
    pub(super) fn of(pairs: &[Pair]) -> Self {
        let preserved = pairs.iter().filter(|pair| pair.local == pair.public).count();
        let parity = parity(pairs);
        if preserved * 2 > pairs.len() {
            return Self { allocation: PortAllocation::Preserved, parity, delta: None };
        }
        if pairs.len() < ENOUGH {
            return Self { parity, ..Self::default() };
        }
        let delta = common_step(pairs);
        let allocation = if delta.is_some() { PortAllocation::Sequential } else { PortAllocation::Random };
        Self { allocation, parity, delta }
    }
}

fn parity(pairs: &[Pair]) -> Finding {
    if pairs.iter().any(|pair| pair.local % 2 != pair.public % 2) {
        return Finding::No;
    }
    let odd = pairs.iter().filter(|pair| pair.local % 2 == 1).count();
    let both = odd > 0 && odd < pairs.len();
    if both && pairs.len() >= ENOUGH_FOR_PARITY { Finding::Yes } else { Finding::Unknown }
}

/// The most common of the small steps, where most steps are small and in one direction. The range may wrap around
/// once, or a port may be taken.
fn common_step(pairs: &[Pair]) -> Option<i32> {
    let steps: Vec<i32> = pairs
        .iter()
        .zip(pairs.iter().skip(1))
        .map(|(one, next)| i32::from(next.public) - i32::from(one.public))
        .collect();
    let small = |sign: i32| {
        let in_range = move |step: &&i32| (1..=LARGEST_STEP).contains(&(**step * sign));
        steps.iter().filter(in_range).copied().collect::<Vec<_>>()
    };
    let up = small(1);
    let down = small(-1);
    let main = if up.len() >= down.len() { up } else { down };
    if main.len() * 4 < steps.len() * 3 {
        return None;
    }
    let times = |step: i32| main.iter().filter(|&&other| other == step).count();
    main.iter().copied().max_by_key(|&step| (times(step), -step.abs()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pairs(ports: &[(u16, u16)]) -> Vec<Pair> {
        ports.iter().map(|&(local, public)| Pair { local, public }).collect()
    }

    #[test]
    fn ports_that_stay_are_preserved_even_if_one_was_taken() {
        let ports = Ports::of(&pairs(&[(5001, 5001), (5004, 5004), (5007, 1024), (6000, 6000)]));
        assert_eq!(ports.allocation, PortAllocation::Preserved);
        assert_eq!(ports.delta, None);
    }

    #[test]
    fn ports_given_one_after_the_other_show_their_step_through_the_gaps() {
        let ports =
            Ports::of(&pairs(&[(5001, 2000), (7004, 2002), (5107, 2004), (6000, 2010), (6100, 2012)]));
        assert_eq!((ports.allocation, ports.delta), (PortAllocation::Sequential, Some(2)));
        let falling = Ports::of(&pairs(&[(1, 900), (2, 899), (3, 898), (4, 897), (5, 65_000)]));
        assert_eq!((falling.allocation, falling.delta), (PortAllocation::Sequential, Some(-1)));
    }

    #[test]
    fn ports_without_a_pattern_are_random_and_few_ports_tell_nothing() {
        let wild = [(1, 40_000), (2, 1_024), (3, 60_001), (4, 9_999), (5, 30_000)];
        assert_eq!(Ports::of(&pairs(&wild)).allocation, PortAllocation::Random);
        assert_eq!(Ports::of(&pairs(&wild[..3])).allocation, PortAllocation::Unknown);
        assert_eq!(Ports::of(&[]), Ports::default());
    }

    #[test]
    fn parity_is_kept_only_when_both_kinds_of_ports_were_seen_to_keep_it() {
        let kept: Vec<_> = (0..8).map(|n| (n, 1000 + n * 301)).collect();
        assert_eq!(Ports::of(&pairs(&kept)).parity, Finding::Yes);
        let even: Vec<_> = (0..8).map(|n| (n * 2, 1000 + n * 302)).collect();
        assert_eq!(Ports::of(&pairs(&even)).parity, Finding::Unknown);
        assert_eq!(Ports::of(&pairs(&[(1, 2)])).parity, Finding::No);
    }

    proptest! {
        #[test]
        fn a_step_of_an_undisturbed_sequence_is_found(start in 1024u16..40_000, step in 1u16..=32, n in 4usize..12) {
            let ports: Vec<_> = (0..n).map(|i| Pair {
                local: 50_000 + u16::try_from(i * 7 % 5).unwrap(),
                public: start + step * u16::try_from(i).unwrap(),
            }).collect();
            prop_assert_eq!(Ports::of(&ports).delta, Some(i32::from(step)));
        }
    }
}
