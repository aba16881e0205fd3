//! One socket that is opened to learn one thing: whether a binding still lives at a certain age.

use std::time::{Duration, Instant};

use super::{
    link::Link,
    sequence::{Plan, Sequence, Want},
};
use crate::Beat;

/// What an experiment is to tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// A search step of the ladder.
    SearchStep,
    /// Whether bindings live longer than they did.
    Growth,
    /// Whether the proven age still holds, in step with the live channel.
    Canary,
    /// The same, because the live binding was lost.
    Confirmation,
    /// Whether one exchange is enough to promote a binding.
    OnceIsEnough,
    /// Whether a short series is.
    ShortIsEnough,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Promoting,
    Aging,
    /// No wake came; whether the path works is not proven yet.
    Suspect,
}

/// What has to be done for an experiment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Send a beat, with this request for a wake.
    Send(Option<Duration>),
    /// The wake is missing.
    Missing,
    /// Nothing was learnt.
    Void,
}

#[derive(Debug, Clone)]
pub(super) struct Experiment {
    pub(super) id: u32,
    pub(super) purpose: Purpose,
    /// The age to be tested.
    pub(super) age: Duration,
    sequence: Sequence,
    state: State,
}

impl Experiment {
    pub(super) fn new(id: u32, purpose: Purpose, age: Duration, plan: Plan, begun: Instant) -> Self {
        Self { id, purpose, age, sequence: Sequence::new(plan, begun), state: State::Promoting }
    }

    /// Promotes its binding in step with a burst of the live channel.
    pub(super) fn in_burst(mut self, companion: Duration) -> Self {
        self.sequence = Sequence::with_companion(self.sequence.begun(), companion);
        self
    }

    /// Its first beat is about to be sent for the second time.
    pub(super) fn was_ignored_at_first(&self) -> bool {
        self.sequence.at_first_step() && self.sequence.tries() == 1
    }

    pub(super) fn deadline(&self, link: &Link) -> Option<Instant> {
        match self.state {
            State::Promoting => self.sequence.deadline(),
            State::Aging => self.expected().map(|expected| expected + patience(link) + link.paging(expected)),
            State::Suspect => None,
        }
    }

    /// When the binding has the age to be tested.
    fn expected(&self) -> Option<Instant> {
        self.sequence.last_sent().map(|sent| sent + self.age)
    }

    pub(super) fn handle_timeout(&mut self, now: Instant, link: &mut Link) -> Option<Step> {
        match self.state {
            State::Promoting => match self.sequence.handle_timeout(now, link)? {
                Want::Send => {
                    let wake = self.sequence.at_last_step().then(|| self.age.saturating_sub(link.rtt()));
                    Some(Step::Send(wake.map(|delay| delay.min(Beat::LONGEST_WAKE))))
                }
                Want::Failed => Some(Step::Void),
            },
            State::Aging if self.deadline(link).is_some_and(|at| now >= at) => {
                self.state = State::Suspect;
                Some(Step::Missing)
            }
            State::Aging | State::Suspect => None,
        }
    }

    pub(super) fn sent(&mut self, now: Instant, seq: u64, link: &Link) {
        self.sequence.sent(now, seq, link);
    }

    pub(super) fn handle_reply(&mut self, now: Instant, seq: u64, link: &mut Link) {
        if self.sequence.handle_reply(now, seq, link).is_some_and(|answered| answered.complete) {
            self.state = State::Aging;
        }
    }

    /// The age that a wake proves: not more than was asked for, as it may have waited for the radio behind the NAT.
    pub(super) fn age_at(&self, now: Instant) -> Option<Duration> {
        self.sequence.last_sent().map(|sent| now.saturating_duration_since(sent).min(self.age))
    }

    /// By how much a wake that comes now is late.
    pub(super) fn late_at(&self, now: Instant) -> Duration {
        self.expected().map(|expected| now.saturating_duration_since(expected)).unwrap_or_default()
    }

    /// Whether a live exchange begun at `proof` shows that the path worked when the wake did not come.
    pub(super) fn is_dead_given(&self, proof: Instant) -> bool {
        matches!(self.state, State::Suspect) && self.expected().is_some_and(|expected| proof >= expected)
    }
}

/// How long after the expected time a wake may still come to a radio that is awake.
fn patience(link: &Link) -> Duration {
    let [.., last] = Beat::WAKES;
    last + link.rtt() / 2 + link.deviation() * 4 + Duration::from_millis(150)
}
