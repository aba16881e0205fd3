//! What is known of the NAT, in the protocol's words.

use std::time::{Duration, SystemTime};

use pinhole_proto::v1;

use crate::{
    nat::{Behaviour, Binding, Filtering, Finding, Mapping, Mode, PortAllocation, Reason, Stats},
    wire::binding_to_wire,
};

/// What a static keepalive would be: WireGuard's own advice.
const STATIC: Duration = Duration::from_secs(25);

pub(super) fn nat(behaviour: &Behaviour) -> v1::NatReport {
    v1::NatReport {
        natted: finding(behaviour.natted),
        mapping: match behaviour.mapping {
            Mapping::EndpointIndependent => v1::NatMapping::EndpointIndependent,
            Mapping::NotPortDependent => v1::NatMapping::NotPortDependent,
            Mapping::AddressDependent => v1::NatMapping::AddressDependent,
            Mapping::AddressAndPortDependent => v1::NatMapping::AddressAndPortDependent,
            Mapping::EndpointDependent => v1::NatMapping::EndpointDependent,
            Mapping::Unknown => v1::NatMapping::Unknown,
        }
        .into(),
        filtering: match behaviour.filtering {
            Filtering::EndpointIndependent => v1::NatFiltering::EndpointIndependent,
            Filtering::NotPortDependent => v1::NatFiltering::NotPortDependent,
            Filtering::AddressDependent => v1::NatFiltering::AddressDependent,
            Filtering::AddressAndPortDependent => v1::NatFiltering::AddressAndPortDependent,
            Filtering::EndpointDependent => v1::NatFiltering::EndpointDependent,
            Filtering::Unknown => v1::NatFiltering::Unknown,
        }
        .into(),
        port_allocation: match behaviour.port_allocation {
            PortAllocation::Unknown => v1::PortAllocation::Unknown,
            PortAllocation::Preserved => v1::PortAllocation::Preserved,
            PortAllocation::Sequential => v1::PortAllocation::Sequential,
            PortAllocation::Random => v1::PortAllocation::Random,
        }
        .into(),
        port_parity: finding(behaviour.port_parity),
        port_delta: behaviour.port_delta.unwrap_or_default(),
        hairpin: finding(behaviour.hairpin),
        refresh_outbound: finding(behaviour.refresh_outbound),
        refresh_inbound: finding(behaviour.refresh_inbound),
        two_class: finding(behaviour.two_class),
        helper_interference: finding(behaviour.helper_interference),
        double_nat: finding(behaviour.double_nat),
        public_address: behaviour.public_address.map(|address| address.to_string()).unwrap_or_default(),
        vantage: v1::Vantage::Client.into(),
    }
}

fn finding(finding: Finding) -> i32 {
    match finding {
        Finding::Unknown => v1::Finding::Unknown,
        Finding::Yes => v1::Finding::Yes,
        Finding::No => v1::Finding::No,
    }
    .into()
}

pub(super) fn binding(binding: &Binding, since: SystemTime) -> v1::BindingReport {
    binding_to_wire(binding, Some(since), v1::Vantage::Client)
}

pub(super) fn keepalive(
    interval: Duration,
    (mode, reason): (Mode, Reason),
    stats: &Stats,
    (since, elapsed): (SystemTime, Duration),
) -> v1::KeepaliveReport {
    v1::KeepaliveReport {
        interval: interval.try_into().ok(),
        mode: match mode {
            Mode::Adaptive => v1::keepalive_policy::Mode::Adaptive,
            Mode::Fixed => v1::keepalive_policy::Mode::Fixed,
        }
        .into(),
        reason: match reason {
            Reason::Policy => v1::KeepaliveReason::Policy,
            Reason::Initial => v1::KeepaliveReason::Initial,
            Reason::Learning => v1::KeepaliveReason::Learning,
            Reason::Learnt => v1::KeepaliveReason::Learnt,
            Reason::Cached => v1::KeepaliveReason::Cached,
            Reason::Backoff => v1::KeepaliveReason::Backoff,
        }
        .into(),
        since: Some(since.into()),
        wakes: stats.bursts,
        wakes_saved: wakes_saved(stats.bursts, elapsed),
        beats: stats.live_beats,
        probes: stats.probe_beats,
    }
}

/// How many wake-ups a static keepalive would have cost beyond these.
pub(super) fn wakes_saved(bursts: u64, elapsed: Duration) -> i64 {
    let without = elapsed.as_secs() / STATIC.as_secs();
    i64::try_from(without).unwrap_or(i64::MAX).saturating_sub_unsigned(bursts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_half_known_is_told_as_that() {
        let half = Behaviour {
            mapping: Mapping::EndpointDependent,
            filtering: Filtering::EndpointDependent,
            ..Behaviour::default()
        };
        let wire = nat(&half);
        assert_eq!(wire.mapping(), v1::NatMapping::EndpointDependent);
        assert_eq!(wire.filtering(), v1::NatFiltering::EndpointDependent);
    }

    #[test]
    fn wakes_are_saved_or_spent_against_a_static_keepalive() {
        assert_eq!(wakes_saved(10, Duration::from_secs(1000)), 30);
        assert_eq!(wakes_saved(50, Duration::from_secs(1000)), -10);
    }
}
