//! Bindings, phases, causes and reasons in the protocol's words, for client and gateway alike.

use std::time::{Duration, SystemTime};

use pinhole_proto::{
    bounds::{self, LONGEST_SPAN, Word},
    v1,
};

use crate::{
    health::Phase,
    nat::{Binding, Cause, Confidence, Promotion, standby::Reason},
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

/// The binding that is meant; `None` where it makes no sense. No lifetime is longer than [`LONGEST_SPAN`].
pub(crate) fn binding_from_wire(wire: &v1::BindingReport) -> Option<Binding> {
    let span = |wire| bounds::span(wire, LONGEST_SPAN);
    let lifetime = (span(wire.at_least)?, span(wire.less_than));
    binding(lifetime, span(wire.promoted_after), wire.confidence.into())
}

/// The same of what was read already.
pub(crate) fn binding(
    (at_least, less_than): (Duration, Option<Duration>),
    promoted_after: Option<Duration>,
    confidence: Word<v1::BindingConfidence>,
) -> Option<Binding> {
    if less_than.is_some_and(|end| end <= at_least) {
        return None;
    }
    let confidence = match confidence {
        Word::Known(v1::BindingConfidence::Growing) => Confidence::Growing,
        Word::Known(v1::BindingConfidence::Bracketed) => Confidence::Bracketed,
        Word::Known(v1::BindingConfidence::Confirmed) => Confidence::Confirmed,
        // What a newer word promises is not known: nobody builds on it.
        Word::Known(v1::BindingConfidence::Unknown) | Word::Newer(_) => Confidence::Unknown,
    };
    // "Not known" and "nothing needed" are one on the wire: the first is the cautious reading.
    let promotion = match promoted_after {
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

/// What the protocol's phase means here. `None`: nothing was said, or in a word that is newer.
pub(crate) fn phase_from_wire(phase: Word<v1::Phase>) -> Option<Phase> {
    match phase {
        Word::Known(v1::Phase::Connected) => Some(Phase::Connected),
        Word::Known(v1::Phase::Dormant) => Some(Phase::Dormant),
        Word::Known(v1::Phase::WaitingToReconnect) => Some(Phase::WaitingToReconnect),
        Word::Known(v1::Phase::Standby) => Some(Phase::Standby),
        Word::Known(v1::Phase::Disconnected) => Some(Phase::Disconnected),
        Word::Known(v1::Phase::Unspecified) | Word::Newer(_) => None,
    }
}

/// A cause as the protocol names it.
pub(crate) fn cause_to_wire(cause: Cause) -> v1::ChurnCause {
    match cause {
        Cause::MappingChanged => v1::ChurnCause::MappingChanged,
        Cause::MappingLost => v1::ChurnCause::MappingLost,
        Cause::LifetimeShrank => v1::ChurnCause::LifetimeShrank,
        Cause::NatRestart => v1::ChurnCause::NatRestart,
        Cause::Roam => v1::ChurnCause::Roam,
        Cause::UdpBlocked => v1::ChurnCause::UdpBlocked,
        Cause::HelperInterference => v1::ChurnCause::HelperInterference,
        Cause::GatewayMoved => v1::ChurnCause::GatewayMoved,
    }
}

/// What the protocol's cause means here. `None`: nobody could tell.
pub(crate) fn cause_from_wire(cause: v1::ChurnCause) -> Option<Cause> {
    Some(match cause {
        v1::ChurnCause::Unknown => return None,
        v1::ChurnCause::MappingChanged => Cause::MappingChanged,
        v1::ChurnCause::MappingLost => Cause::MappingLost,
        v1::ChurnCause::LifetimeShrank => Cause::LifetimeShrank,
        v1::ChurnCause::NatRestart => Cause::NatRestart,
        v1::ChurnCause::Roam => Cause::Roam,
        v1::ChurnCause::UdpBlocked => Cause::UdpBlocked,
        v1::ChurnCause::HelperInterference => Cause::HelperInterference,
        v1::ChurnCause::GatewayMoved => Cause::GatewayMoved,
    })
}

/// Why a client is reached as it is, as the protocol names it.
pub(crate) fn reason_to_wire(reason: Reason) -> v1::StandbyReason {
    match reason {
        Reason::Policy => v1::StandbyReason::Policy,
        Reason::Learning => v1::StandbyReason::Learning,
        Reason::CheaperByUdp => v1::StandbyReason::CheaperByUdp,
        Reason::CheaperBySession => v1::StandbyReason::CheaperBySession,
        Reason::Busy => v1::StandbyReason::Busy,
        Reason::SessionLost => v1::StandbyReason::SessionLost,
        Reason::SessionClosed => v1::StandbyReason::SessionClosed,
        Reason::TooShort => v1::StandbyReason::TooShort,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_comes_back_as_it_was() {
        for number in 0..100 {
            if let Ok(cause) = v1::ChurnCause::try_from(number)
                && cause != v1::ChurnCause::Unknown
            {
                assert_eq!(cause_from_wire(cause).map(cause_to_wire), Some(cause));
            }
            if let Ok(phase) = v1::Phase::try_from(number)
                && phase != v1::Phase::Unspecified
            {
                assert_eq!(phase_from_wire(Word::Known(phase)).map(phase_to_wire), Some(phase));
            }
        }
        assert_eq!(cause_from_wire(v1::ChurnCause::Unknown), None);
        assert_eq!(phase_from_wire(Word::Newer(77)), None);
    }

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
