//! Types of the conditions that statuses have.

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};

/// Condition: does what its spec says, proven by traffic. Always present.
pub const READY: &str = "Ready";

/// Condition: on its way to what the spec says. Present only when True (kstatus).
pub const RECONCILING: &str = "Reconciling";

/// Condition: will not get there without somebody's help. Present only when True (kstatus).
pub const STALLED: &str = "Stalled";

/// Condition of a client: a bidirectional exchange was confirmed recently enough to know.
pub const CONNECTED: &str = "Connected";

/// Condition of a client: its machine lacks something that the pool promises, such as a route that somebody else has. Present
/// only when True.
pub const DEGRADED: &str = "Degraded";

/// Condition: some of what the spec says cannot be used and is left out, and the rest is in force. Present only when
/// True (as the Gateway API has it).
pub const PARTIALLY_INVALID: &str = "PartiallyInvalid";

/// Condition of a client: two machines use its key at the same time, so that each takes the other's packets. Present only when
/// True.
pub const KEY_ON_TWO_MACHINES: &str = "KeyOnTwoMachines";

/// Condition of a client: its clock is wrong by a minute or more, or went back. Present only when True.
pub const CLOCK_SKEW: &str = "ClockSkew";

/// Puts `new` in the list, in place of the one of its type; the transition time moves only when the status does.
/// The list stays sorted by type, so that the same conditions are always the same bytes.
pub fn set_condition(conditions: &mut Vec<Condition>, mut new: Condition, now: Timestamp) {
    new.last_transition_time = Time(now);
    match conditions.iter_mut().find(|c| c.type_ == new.type_) {
        Some(old) => {
            if old.status == new.status {
                new.last_transition_time = old.last_transition_time.clone();
            }
            *old = new;
        }
        None => conditions.push(new),
    }
    conditions.sort_by(|a, b| a.type_.cmp(&b.type_));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn condition(status: &str, reason: &str) -> Condition {
        Condition {
            type_: READY.into(),
            status: status.into(),
            reason: reason.into(),
            message: String::new(),
            observed_generation: None,
            last_transition_time: Time(Timestamp::UNIX_EPOCH),
        }
    }

    #[test]
    fn the_transition_time_moves_only_when_the_status_does() {
        let at = |s| Timestamp::from_second(s).unwrap();
        let mut conditions = vec![];
        set_condition(&mut conditions, condition("False", "A"), at(1));
        set_condition(&mut conditions, condition("False", "B"), at(2));
        assert_eq!(conditions[0].last_transition_time.0, at(1));
        assert_eq!(conditions[0].reason, "B");
        set_condition(&mut conditions, condition("True", "C"), at(3));
        assert_eq!(conditions[0].last_transition_time.0, at(3));
        assert_eq!(conditions.len(), 1);
    }
}
