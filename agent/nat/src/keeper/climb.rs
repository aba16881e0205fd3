//! From nothing to a narrow bracket, and on when lifetimes grow.

use std::time::{Duration, Instant};

use super::{
    Action, Channel, Confidence, Keeper, Purpose, ladder,
    lifetime::Lifetime,
    sequence::{ONCE, SHORT},
};
use crate::Promotion;

/// Rungs above a missing one that are waited for: if one of them lives, the missing one was lost on the way.
const NEIGHBOURS: usize = 2;
/// So many search steps without a single wake mean that wakes do not get through at all.
const HOPELESS: usize = 6;
const RETRY_BLIND: Duration = Duration::from_mins(10);
/// Lifetimes are tested for growth soon after the first verdict, which may have been wrong, later about daily.
const GROWTH: [Duration; 4] =
    [Duration::from_mins(15), Duration::from_hours(2), Duration::from_hours(8), Duration::from_hours(24)];
/// What became shorter may become longer again: for so long it is looked for at the second of these paces at least.
const RESTLESS: Duration = Duration::from_hours(48);
/// Coarse sweepers let a binding live longer once in a while: believe in growth when it happened so often.
const GROWN: u32 = 3;
/// And only if it is by that much.
const COARSE_STEP: f64 = 1.1;
/// Bursts in which a bracket held before it is called confirmed.
const CONFIRMED: u64 = 8;

/// What is going on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// Rungs are out; the lifetime's end was not seen yet.
    Climbing,
    /// The bracket is being narrowed.
    Refining,
    /// The lifetime is known.
    Settled,
    /// No wake ever came: nothing can be learnt here now.
    Blind {
        /// When to try again.
        until: Instant,
    },
    /// Others are measuring.
    Waiting {
        /// When not to wait any longer.
        until: Instant,
        /// The shortest silence that the binding did not survive meanwhile.
        lost_after: Option<Duration>,
    },
}

/// The search for longer lifetimes.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Growth {
    due: Option<Instant>,
    rounds: usize,
    seen: u32,
    shrank: Option<Instant>,
}

impl Growth {
    /// Lifetimes became shorter.
    pub(super) fn begin_anew(&mut self, now: Instant) {
        self.rounds = 0;
        self.shrank = Some(now);
    }

    /// How long it is until the next look. What a coarse NAT keeps once in a while is no growth.
    fn pace(&self, now: Instant, coarse: bool) -> Duration {
        let [_, second, .., daily] = GROWTH;
        let pace = GROWTH.get(self.rounds).copied().unwrap_or(daily);
        let restless = !coarse && self.shrank.is_some_and(|at| now.saturating_duration_since(at) < RESTLESS);
        if restless { pace.min(second) } else { pace }
    }
}

impl Keeper {
    /// Measures without believing anything that was learnt before.
    pub(super) fn climb_from_the_ground(&mut self, now: Instant) {
        self.life.forget();
        let longest = self.top();
        let ages = match self.prior {
            Some(prior) => {
                let expected = Lifetime {
                    at_least: prior.binding.at_least,
                    less_than: prior.binding.less_than,
                    ..Lifetime::default()
                };
                ladder::rungs_around(&expected, longest)
            }
            None => ladder::search_steps(Duration::ZERO, longest),
        };
        self.climb(now, ages);
    }

    /// Goes on with what the loss of the path had interrupted.
    pub(super) fn resume_learning(&mut self, now: Instant) {
        match self.stage {
            Stage::Climbing if !self.has(Purpose::SearchStep) => self.climb_from_the_ground(now),
            Stage::Refining if !self.has(Purpose::SearchStep) => self.refine(now),
            _ => {}
        }
    }

    fn climb(&mut self, now: Instant, ages: Vec<Duration>) {
        self.close_all();
        self.suspected_losses.forget();
        self.stage = Stage::Climbing;
        let plan = self.life.promotion.plan();
        let ages = ages.into_iter().take(self.room.most());
        self.room.opened(ages.len());
        for age in ages {
            self.open(now, Purpose::SearchStep, age, plan);
        }
    }

    /// An age that no interval will need.
    fn top(&self) -> Duration {
        let longest = self.policy.longest();
        longest + longest.mul_f64(0.02) + Duration::from_secs(3)
    }

    /// A binding of this age took a wake.
    pub(super) fn lived(&mut self, now: Instant, purpose: Purpose, age: Duration) {
        match purpose {
            Purpose::SearchStep => {
                self.life.alive(age);
                self.confidence = self.confidence.max(Confidence::Growing);
                self.reschedule(now);
                self.ride(now);
                self.advance(now);
            }
            Purpose::Growth => {
                self.growth.seen += 1;
                self.ride(now);
                if self.growth.seen >= GROWN {
                    self.growth.seen = 0;
                    if self.life.coarse {
                        self.life.regain(age);
                        self.growth.rounds = 0;
                        return self.settle(now);
                    }
                    self.life.alive(age);
                    let ages = ladder::search_steps(age, self.top());
                    self.climb(now, ages);
                }
            }
            Purpose::Canary => self.suspected_losses.canary_lived(self.cycles),
            Purpose::Confirmation => self.confirmation_lived(now),
            Purpose::OnceIsEnough => self.life.promotion = Promotion::None,
            Purpose::ShortIsEnough => {
                if self.life.promotion != Promotion::None {
                    self.life.promotion = Promotion::Short;
                }
            }
        }
    }

    /// A binding of this age did not take a wake, although the path works.
    pub(super) fn died(&mut self, now: Instant, purpose: Purpose, age: Duration) {
        match purpose {
            Purpose::SearchStep => {
                self.life.dead(age);
                self.rung_missing(now, age);
            }
            Purpose::Growth => {
                self.growth.seen = 0;
                self.schedule_growth(now);
            }
            Purpose::Canary => self.canary_died(now),
            Purpose::Confirmation => self.confirmation_died(now),
            Purpose::OnceIsEnough => {}
            Purpose::ShortIsEnough => {
                if self.life.promotion == Promotion::Unknown {
                    self.life.promotion = Promotion::Long;
                }
            }
        }
    }

    /// An experiment's beats were not answered.
    pub(super) fn void(&mut self, now: Instant, purpose: Purpose) {
        match purpose {
            Purpose::SearchStep => self.advance(now),
            Purpose::Confirmation => self.confirmation_lived(now),
            Purpose::Growth => self.schedule_growth(now),
            Purpose::Canary | Purpose::OnceIsEnough | Purpose::ShortIsEnough => {}
        }
    }

    fn rung_missing(&mut self, now: Instant, age: Duration) {
        // What lived longer shows that this one was lost on the way.
        if age <= self.life.at_least {
            return self.advance(now);
        }
        if self.stage == Stage::Climbing {
            let below =
                self.experiments.iter().any(|step| step.purpose == Purpose::SearchStep && step.age < age);
            if below {
                return;
            }
            if self.life.at_least.is_zero() {
                if self.experiments.iter().filter(|step| step.purpose == Purpose::SearchStep).count()
                    < HOPELESS
                {
                    self.close_all();
                    self.stage = Stage::Blind { until: now + RETRY_BLIND };
                    self.reschedule(now);
                }
                return;
            }
            self.keep_neighbours(age);
            self.bracketed(now);
        }
        self.advance(now);
    }

    /// Closes the search steps that would tell nothing new.
    fn keep_neighbours(&mut self, age: Duration) {
        let mut above: Vec<_> = self
            .experiments
            .iter()
            .filter(|step| step.purpose == Purpose::SearchStep && step.age > age)
            .map(|step| step.age)
            .collect();
        above.sort_unstable();
        let Some(&limit) = above.get(NEIGHBOURS) else { return };
        let actions = &mut self.actions;
        self.experiments.retain(|step| {
            let keep = step.purpose != Purpose::SearchStep || step.age < limit;
            if !keep {
                actions.push_back(Action::Close(Channel::Probe(step.id)));
            }
            keep
        });
    }

    fn bracketed(&mut self, now: Instant) {
        self.stage = Stage::Refining;
        self.confidence = self.confidence.max(Confidence::Bracketed);
        self.reschedule(now);
        if self.life.promotion == Promotion::Unknown {
            let age = self.life.at_least;
            self.open(now, Purpose::OnceIsEnough, age, ONCE);
            self.open(now, Purpose::ShortIsEnough, age, SHORT);
        }
        self.refine(now);
    }

    /// Goes on when the outstanding search steps have spoken.
    fn advance(&mut self, now: Instant) {
        // What lives above a bracket shows that its end was lost on the way; a search step may say so after all was settled.
        let open_ended = self.life.less_than.is_none();
        let settled_too_low = self.stage == Stage::Settled && self.life.at_least < self.policy.longest();
        if open_ended && (settled_too_low || self.stage == Stage::Refining) {
            let ages = ladder::search_steps(self.life.at_least, self.top());
            return self.climb(now, ages);
        }
        if self.has(Purpose::SearchStep) {
            let pending = self.stage == Stage::Climbing
                || self
                    .experiments
                    .iter()
                    .any(|step| step.purpose == Purpose::SearchStep && self.is_inside(step.age));
            if pending {
                return;
            }
        }
        match self.stage {
            Stage::Climbing if self.life.less_than.is_some() => self.bracketed(now),
            Stage::Climbing if self.life.at_least < self.policy.longest() => {
                let ages = ladder::search_steps(self.life.at_least, self.top());
                self.climb(now, ages);
            }
            Stage::Climbing => self.settle(now),
            Stage::Refining => self.refine(now),
            Stage::Settled | Stage::Blind { .. } | Stage::Waiting { .. } => {}
        }
    }

    fn is_inside(&self, age: Duration) -> bool {
        age > self.life.at_least && self.life.less_than.is_none_or(|end| age < end)
    }

    /// Narrows the bracket by one more round, or ends it.
    pub(super) fn refine(&mut self, now: Instant) {
        let Some(end) = self.life.less_than else { return self.settle(now) };
        if self.life.is_narrow() || self.life.at_least >= self.policy.longest() {
            return self.settle(now);
        }
        let plan = self.life.promotion.plan();
        for age in ladder::parts(self.life.at_least, end) {
            self.open(now, Purpose::SearchStep, age, plan);
        }
    }

    fn settle(&mut self, now: Instant) {
        self.stage = Stage::Settled;
        self.cycles = 0;
        self.suspected_losses.forget();
        self.schedule_growth(now);
        self.reschedule(now);
    }

    fn schedule_growth(&mut self, now: Instant) {
        let delay = self.growth.pace(now, self.life.coarse);
        // Spread by a fifth either way.
        let delay = delay * 4 / 5 + self.jitter.up_to(delay * 2 / 5);
        self.growth.rounds += 1;
        self.growth.due = Some(now + delay);
    }

    /// Sends out an experiment beyond the bracket in step with a burst, when it is time.
    pub(super) fn look_for_growth(&mut self, now: Instant) {
        if self.cycles >= CONFIRMED && self.life.is_narrow() {
            self.confidence = Confidence::Confirmed;
        }
        let due = self.growth.seen > 0 || self.growth.due.is_some_and(|due| now >= due);
        let Some(end) = self.life.less_than.filter(|end| *end < self.top()) else { return };
        if due && !self.has(Purpose::Growth) && !self.suspected_losses.is_confirming() {
            let plan = self.life.promotion.plan();
            let age = if self.life.coarse { end.mul_f64(COARSE_STEP) } else { ladder::beyond(end) };
            self.open(now, Purpose::Growth, age, plan);
        }
    }

    /// Leaves the measuring to others, but not for ever.
    pub(super) fn wait_for_guidance(&mut self, now: Instant) {
        self.close_all();
        self.stage = Stage::Waiting { until: now + RETRY_BLIND, lost_after: None };
        self.reschedule(now);
    }

    /// Learns anew where nothing could be learnt.
    pub(super) fn retry_blind(&mut self, now: Instant) {
        if let Stage::Blind { until } | Stage::Waiting { until, .. } = self.stage
            && now >= until
        {
            self.climb_from_the_ground(now);
        }
    }
}
