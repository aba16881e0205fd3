//! Conditions of an object while its status is made.

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};
use pinhole_crds::{READY, RECONCILING, STALLED, set_condition};
use pinhole_proto::printable;

/// Longest message, characters: far below what the API takes, and what a person reads.
const MESSAGE: usize = 2048;

/// The conditions of an object while its status is made: those that are not set again disappear, those that stay
/// keep their transition time.
#[derive(Debug)]
pub struct Conditions<'a> {
    before: &'a [Condition],
    after: Vec<Condition>,
    generation: Option<i64>,
    now: Timestamp,
}

impl<'a> Conditions<'a> {
    /// `before` are those that the status holds, `generation` that of the spec which was looked at.
    pub fn new(before: &'a [Condition], generation: Option<i64>, now: Timestamp) -> Self {
        Self { before, after: Vec::new(), generation, now }
    }

    /// Sets a condition. `status` is None for Unknown. The message is shown in terminals and may quote others: it is
    /// made [`printable`].
    pub fn set(&mut self, type_: &str, status: Option<bool>, reason: &str, message: &str) -> &mut Self {
        let new = Condition {
            type_: type_.to_owned(),
            status: match status {
                Some(true) => "True",
                Some(false) => "False",
                None => "Unknown",
            }
            .to_owned(),
            reason: reason.to_owned(),
            message: printable(message, MESSAGE),
            observed_generation: self.generation,
            last_transition_time: Time(self.now),
        };
        if !self.after.iter().any(|c| c.type_ == type_) {
            self.after.extend(self.before.iter().find(|c| c.type_ == type_).cloned());
        }
        set_condition(&mut self.after, new, self.now);
        self
    }

    /// Ready.
    pub fn ready(&mut self, reason: &str, message: &str) -> &mut Self {
        self.set(READY, Some(true), reason, message)
    }

    /// Not Ready, and on the way to it.
    pub fn reconciling(&mut self, reason: &str, message: &str) -> &mut Self {
        self.set(READY, Some(false), reason, message).set(RECONCILING, Some(true), reason, message)
    }

    /// Not Ready, and not getting there without somebody's help.
    pub fn stalled(&mut self, reason: &str, message: &str) -> &mut Self {
        self.set(READY, Some(false), reason, message).set(STALLED, Some(true), reason, message)
    }

    /// Leaves a condition as it was written, when nothing new is known of it. False when it was never written.
    pub fn keep(&mut self, type_: &str) -> bool {
        let Some(old) = self.before.iter().find(|c| c.type_ == type_) else { return false };
        self.after.retain(|c| c.type_ != type_);
        self.after.push(Condition { observed_generation: self.generation, ..old.clone() });
        self.after.sort_by(|a, b| a.type_.cmp(&b.type_));
        true
    }

    /// The finished list.
    pub fn finish(self) -> Vec<Condition> {
        self.after
    }
}

/// What a list of conditions says of Ready. None for Unknown or unset.
pub fn ready_of(conditions: &[Condition]) -> Option<bool> {
    match conditions.iter().find(|c| c.type_ == READY)?.status.as_str() {
        "True" => Some(true),
        "False" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn reconciling_and_stalled_are_there_only_while_true() {
        let mut first = Conditions::new(&[], Some(1), at(1));
        first.reconciling("Starting", "wait");
        let first = first.finish();
        assert_eq!(first.iter().map(|c| c.type_.as_str()).collect::<Vec<_>>(), [READY, RECONCILING]);
        let mut second = Conditions::new(&first, Some(1), at(2));
        second.ready("PathProven", "");
        assert_eq!(second.finish().iter().map(|c| c.type_.as_str()).collect::<Vec<_>>(), [READY]);
    }

    #[test]
    fn the_same_conditions_later_are_the_same_bytes() {
        let made = |before: &[Condition], second| {
            let mut conditions = Conditions::new(before, Some(1), at(second));
            conditions.stalled("OverlappingPool", "choose another prefix");
            conditions.finish()
        };
        let first = made(&[], 1);
        assert_eq!(made(&first, 99), first);
    }
}
