//! The live binding was not there any more: was it lost, or does it not live as long as it did?

use std::time::{Duration, Instant};

use super::{Keeper, Purpose, Stage, lifetime::DOUBT, sequence::SHORT};
use crate::{Cause, Churn, Promotion};

/// Two suspected losses within so many bursts, or three within as many more, are no flushes, unless they are so far apart that
/// they may be.
const CLOSE: (u64, Duration) = (12, Duration::from_hours(1));
const RECENT: (u64, Duration) = (48, Duration::from_hours(2));
const REMEMBERED: usize = 5;
/// A lifetime that shrank twice within so long is a coarse one.
const SHRINKS_APART: Duration = Duration::from_hours(48);
/// After a canary died, one goes out in each of so many bursts.
const WATCHFUL: u64 = 8;
/// Intervals from here on are confirmed by shorter ones.
const LONG: Duration = Duration::from_mins(1);
/// Everything is measured anew at most this often.
const RELEARN: Duration = Duration::from_mins(1);

#[derive(Debug, Clone, Copy)]
struct ConfirmationProbe {
    /// The proven age that is in doubt.
    age: Duration,
    /// The age that the live binding reached meanwhile.
    heard: Option<Duration>,
    /// The mapping came back under the same port.
    invisible: Option<(Instant, Duration)>,
}

/// The suspected losses so far.
#[derive(Debug, Clone, Default)]
pub(super) struct SuspectedLosses {
    confirmation: Option<ConfirmationProbe>,
    /// In which bursts there were suspected losses, the latest first.
    at: [Option<(u64, Instant)>; REMEMBERED],
    /// The NAT loses its bindings that often, whatever their age.
    forgetful: bool,
    canary_died: Option<u64>,
    relearnt: Option<Instant>,
    shrank: Option<Instant>,
}

impl SuspectedLosses {
    pub(super) fn is_confirming(&self) -> bool {
        self.confirmation.is_some()
    }

    /// Whether the gateway should wake in every burst.
    pub(super) fn is_watchful(&self, cycle: u64) -> bool {
        self.is_confirming() || self.canary_died.is_some_and(|died| cycle.saturating_sub(died) < WATCHFUL)
    }

    /// The gateway's wake found the live binding at this age.
    pub(super) fn heard(&mut self, age: Duration) {
        if let Some(confirmation) = &mut self.confirmation {
            confirmation.heard = confirmation.heard.max(Some(age));
        }
    }

    pub(super) fn canary_lived(&mut self, cycle: u64) {
        if self.canary_died.is_some_and(|died| cycle.saturating_sub(died) >= WATCHFUL) {
            self.canary_died = None;
        }
    }

    /// What was counted does not concern the lifetime any more that is in force now.
    pub(super) fn forget(&mut self) {
        let Self { forgetful, relearnt, shrank, .. } = *self;
        *self = Self { forgetful, relearnt, shrank, ..Self::default() };
    }

    fn record(&mut self, cycle: u64, now: Instant) {
        self.at.rotate_right(1);
        self.at[0] = Some((cycle, now));
    }

    /// Whether the lifetime in force is doubtful, although confirmation probes of that age lived.
    fn are_many(&self, cycle: u64, now: Instant) -> bool {
        let within = |(bursts, time): (u64, Duration)| {
            let recent = |(at, when): (u64, Instant)| {
                cycle.saturating_sub(at) <= bursts && now.saturating_duration_since(when) <= time
            };
            self.at.iter().filter(|at| at.is_some_and(recent)).count()
        };
        let all = within(RECENT) >= REMEMBERED;
        all || (!self.forgetful && (within(CLOSE) >= 2 || within(RECENT) >= 3))
    }
}

/// The interval while a proven age is in doubt: the longer it was, the more a shrink would cost.
pub(super) fn shortened(interval: Duration) -> Duration {
    interval / if interval < LONG { 2 } else { 4 }
}

impl Keeper {
    /// The live binding was gone after `idle`: its mapping moved, or the gateway's wake did not come.
    pub(super) fn suspect_loss(&mut self, now: Instant, visible: bool, idle: Duration) {
        self.stats.suspected_losses += 1;
        self.live.needs_promotion = true;
        if !self.life.promotion.heals_by_itself() {
            self.lengthen_burst();
        }
        if self.stage == Stage::Climbing {
            if visible {
                // What the search steps waited on is gone, too.
                self.climb_from_the_ground(now);
            }
            return;
        }
        if let Stage::Waiting { lost_after, .. } = &mut self.stage {
            // Not to measure does not mean to be out of reach meanwhile.
            *lost_after = Some(lost_after.map_or(idle, |before| before.min(idle)));
            self.live.interval = self.interval();
            return;
        }
        // After a late repetition of our own it is no wonder, and no evidence.
        let proven = self.life.at_least;
        if proven.is_zero() || (visible && idle > proven) {
            return;
        }
        self.suspected_losses.record(self.cycles, now);
        if let Some(confirmation) = self.suspected_losses.confirmation {
            return self.shrank(now, confirmation.heard, confirmation.age);
        }
        if self.suspected_losses.are_many(self.cycles, now) {
            return self.doubt(now);
        }
        let invisible = (!visible).then_some((now, idle));
        self.suspected_losses.confirmation = Some(ConfirmationProbe { age: proven, heard: None, invisible });
        self.live.interval = self.interval();
        let plan = match self.life.promotion {
            Promotion::None => SHORT,
            other => other.plan(),
        };
        self.open(now, Purpose::Confirmation, proven, plan);
    }

    pub(super) fn confirmation_lived(&mut self, now: Instant) {
        let Some(confirmation) = self.suspected_losses.confirmation.take() else { return };
        self.stats.losses += 1;
        if let Some((at, idle)) = confirmation.invisible {
            let observed = self.observed;
            self.tell(Churn { at, cause: Cause::MappingLost, from: observed, to: observed, idle });
        }
        self.reschedule(now);
    }

    pub(super) fn confirmation_died(&mut self, now: Instant) {
        let Some(confirmation) = self.suspected_losses.confirmation.take() else { return };
        self.shrank(now, confirmation.heard, confirmation.age);
    }

    /// Proven ages die now and then.
    fn doubt(&mut self, now: Instant) {
        self.suspected_losses.forget();
        if !self.life.doubt() {
            self.suspected_losses.forgetful = true;
        }
        self.cycles = 0;
        self.reschedule(now);
    }

    /// Bindings do not live as long as they did. `heard`: an age that they still reached since.
    fn shrank(&mut self, now: Instant, heard: Option<Duration>, before: Duration) {
        let again =
            self.suspected_losses.shrank.is_some_and(|at| now.saturating_duration_since(at) < SHRINKS_APART);
        self.life.coarse |= again;
        self.stats.shrinks += 1;
        self.suspected_losses.forget();
        self.suspected_losses.forgetful = false;
        self.suspected_losses.shrank = Some(now);
        self.growth.begin_anew(now);
        let observed = self.observed;
        self.tell(Churn {
            at: now,
            cause: Cause::LifetimeShrank,
            from: observed,
            to: observed,
            idle: before,
        });
        // What a coarse NAT kept once is not measured again up to where it died.
        let end = if self.life.coarse { before.mul_f64(DOUBT) } else { before };
        match heard.filter(|heard| *heard < end) {
            Some(heard) => {
                self.close_all();
                self.life.shrank(heard, end);
                self.stage = Stage::Refining;
                self.refine(now);
            }
            None => self.relearn(now),
        }
        self.reschedule(now);
    }

    /// Measures everything anew, unless that was done a moment ago.
    fn relearn(&mut self, now: Instant) {
        if self.suspected_losses.relearnt.is_some_and(|at| now.saturating_duration_since(at) < RELEARN) {
            let half = self.life.at_least / 2;
            self.life.shrank(half, self.life.at_least);
            return;
        }
        self.suspected_losses.relearnt = Some(now);
        self.prior = None;
        self.climb_from_the_ground(now);
    }

    /// A canary did not live as long as is thought safe.
    pub(super) fn canary_died(&mut self, now: Instant) {
        // Whatever killed the live binding killed the canary.
        if self.suspected_losses.is_confirming() || self.stage != Stage::Settled {
            return;
        }
        let again = self
            .suspected_losses
            .canary_died
            .is_some_and(|died| self.cycles.saturating_sub(died) <= WATCHFUL);
        self.suspected_losses.canary_died = Some(self.cycles);
        if again {
            self.suspected_losses.forget();
            self.life.give_way();
            self.cycles = 0;
            self.reschedule(now);
        }
    }
}
