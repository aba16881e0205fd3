//! What was measured of bindings, and phases, in the protocol's words, which client and gateway share.

use std::time::{Duration, SystemTime};

use pinhole_proto::v1;

use crate::{
    health::Phase,
    nat::{Binding, Confidence, Promotion},
};

/// When a Linux NAT promotes a binding.
const SHORT_PROMOTION: Duration = Duration::from_secs(2);
/// Any longer time is a long promotion.
const LONG_PROMOTION: Duration = Duration::from_secs(12);

/// A binding as the protocol has it, known so well since then.
pub(crate) fn binding_to_wire(
    binding: &Binding,
    since: Option<SystemTime>,
    vantage: v1::Vantage,
) -> v1::BindingReport {
    let confidence = match binding.confidence {
        Confidence::Unknown => v1::BindingConfidence::Unknown,
        Confidence::Growing => v1::BindingConfidence::Growing,
        Confidence::Bracketed => v1::BindingConfidence::Bracketed,
        Confidence::Confirmed => v1::BindingConfidence::Confirmed,
    };
    let promoted_after = match binding.promotion {
        Promotion::Unknown | Promotion::None => None,
        Promotion::Short => Some(SHORT_PROMOTION),
        Promotion::Long => Some(LONG_PROMOTION),
    };
    v1::BindingReport {
        at_least: binding.at_least.try_into().ok(),
        less_than: binding.less_than.and_then(|end| end.try_into().ok()),
        unpromoted: None,
        promoted_after: promoted_after.and_then(|after| after.try_into().ok()),
        confidence: confidence.into(),
        since: since.map(Into::into),
        vantage: vantage.into(),
    }
}

/// The binding that is meant; `None` where it makes no sense.
pub(crate) fn binding_from_wire(wire: &v1::BindingReport) -> Option<Binding> {
    let at_least = wire.at_least.and_then(|at_least| Duration::try_from(at_least).ok())?;
    let less_than = wire.less_than.and_then(|end| Duration::try_from(end).ok());
    if less_than.is_some_and(|end| end <= at_least) {
        return None;
    }
    let confidence = match wire.confidence() {
        v1::BindingConfidence::Unknown => Confidence::Unknown,
        v1::BindingConfidence::Growing => Confidence::Growing,
        v1::BindingConfidence::Bracketed => Confidence::Bracketed,
        v1::BindingConfidence::Confirmed => Confidence::Confirmed,
    };
    // "Not known" and "nothing needed" are one on the wire: the first is the cautious reading.
    let promotion = match wire.promoted_after.and_then(|after| Duration::try_from(after).ok()) {
        None => Promotion::Unknown,
        Some(after) if after <= SHORT_PROMOTION => Promotion::Short,
        Some(_) => Promotion::Long,
    };
    Some(Binding { at_least, less_than, promotion, confidence })
}

/// A phase as the protocol names it.
pub(crate) fn phase_to_wire(phase: Phase) -> v1::Phase {
    match phase {
        Phase::Connected => v1::Phase::Connected,
        Phase::Dormant => v1::Phase::Dormant,
        Phase::WaitingToReconnect => v1::Phase::WaitingToReconnect,
        Phase::Standby => v1::Phase::Standby,
        Phase::Disconnected => v1::Phase::Disconnected,
    }
}

/// What the protocol's phase means here.
pub(crate) fn phase_from_wire(phase: v1::Phase) -> Phase {
    match phase {
        v1::Phase::Connected => Phase::Connected,
        v1::Phase::Dormant => Phase::Dormant,
        v1::Phase::WaitingToReconnect => Phase::WaitingToReconnect,
        v1::Phase::Standby => Phase::Standby,
        v1::Phase::Disconnected | v1::Phase::Unspecified => Phase::Disconnected,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_binding_survives_the_wire_and_one_without_sense_does_not() {
        for promotion in [Promotion::Unknown, Promotion::Short, Promotion::Long] {
            let binding = Binding {
                at_least: Duration::from_secs(30),
                less_than: Some(Duration::from_secs(33)),
                promotion,
                confidence: Confidence::Bracketed,
            };
            let wire = binding_to_wire(&binding, None, v1::Vantage::Gateway);
            assert_eq!(binding_from_wire(&wire), Some(binding));
            let swapped = v1::BindingReport { at_least: wire.less_than, less_than: wire.at_least, ..wire };
            assert_eq!(binding_from_wire(&swapped), None);
        }
        assert_eq!(binding_from_wire(&v1::BindingReport::default()), None);
    }
}
