//! The live binding was not there any more: was it lost, or does it not live as long as it did?

use std::time::{Duration, Instant};

use super::{Keeper, Purpose, Stage, lifetime::DOUBT, sequence::SHORT};
use crate::{Cause, Churn, Promotion};

/// Two strikes within so many bursts, or three within as many more, are no flushes, unless they are so far apart that
/// they may be.
const CLOSE: (u64, Duration) = (12, Duration::from_hours(1));
const RECENT: (u64, Duration) = (48, Duration::from_hours(2));
const REMEMBERED: usize = 5;
/// A lifetime that shrank twice within so long is a coarse one.
const SHRINKS_APART: Duration = Duration::from_hours(48);
/// After a scout died, one goes out in each of so many bursts.
const WATCHFUL: u64 = 8;
/// Intervals from here on are hedged by shorter ones.
const LONG: Duration = Duration::from_mins(1);
/// Everything is measured anew at most this often.
const RELEARN: Duration = Duration::from_mins(1);

#[derive(Debug, Clone, Copy)]
struct Hedge {
    /// The proven age that is in doubt.
    age: Duration,
    /// The age that the live binding reached meanwhile.
    heard: Option<Duration>,
    /// The mapping came back under the same port.
    invisible: Option<(Instant, Duration)>,
}

/// The strikes so far.
#[derive(Debug, Clone, Default)]
pub(super) struct Strikes {
    hedge: Option<Hedge>,
    /// In which bursts there were strikes, the latest first.
    at: [Option<(u64, Instant)>; REMEMBERED],
    /// The NAT loses its bindings that often, whatever their age.
    forgetful: bool,
    scout_died: Option<u64>,
    relearnt: Option<Instant>,
    shrank: Option<Instant>,
}

impl Strikes {
    pub(super) fn is_hedging(&self) -> bool {
        self.hedge.is_some()
    }

    /// Whether the gateway should wake in every burst.
    pub(super) fn is_watchful(&self, cycle: u64) -> bool {
        self.is_hedging() || self.scout_died.is_some_and(|died| cycle.saturating_sub(died) < WATCHFUL)
    }

    /// The gateway's wake found the live binding at this age.
    pub(super) fn heard(&mut self, age: Duration) {
        if let Some(hedge) = &mut self.hedge {
            hedge.heard = hedge.heard.max(Some(age));
        }
    }

    pub(super) fn scout_lived(&mut self, cycle: u64) {
        if self.scout_died.is_some_and(|died| cycle.saturating_sub(died) >= WATCHFUL) {
            self.scout_died = None;
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

    /// Whether the lifetime in force is doubtful, although hedges of that age lived.
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
pub(super) fn hedged(interval: Duration) -> Duration {
    interval / if interval < LONG { 2 } else { 4 }
}

impl Keeper {
    /// The live binding was gone after `idle`: its mapping moved, or the gateway's wake did not come.
    pub(super) fn strike(&mut self, now: Instant, visible: bool, idle: Duration) {
        self.stats.strikes += 1;
        self.live.needs_promotion = true;
        if !self.life.promotion.heals_by_itself() {
            self.lengthen_burst();
        }
        if self.stage == Stage::Climbing {
            if visible {
                // What the rungs waited on is gone, too.
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
        self.strikes.record(self.cycles, now);
        if let Some(hedge) = self.strikes.hedge {
            return self.shrank(now, hedge.heard, hedge.age);
        }
        if self.strikes.are_many(self.cycles, now) {
            return self.doubt(now);
        }
        let invisible = (!visible).then_some((now, idle));
        self.strikes.hedge = Some(Hedge { age: proven, heard: None, invisible });
        self.live.interval = self.interval();
        let plan = match self.life.promotion {
            Promotion::None => SHORT,
            other => other.plan(),
        };
        self.open(now, Purpose::Hedge, proven, plan);
    }

    pub(super) fn hedge_lived(&mut self, now: Instant) {
        let Some(hedge) = self.strikes.hedge.take() else { return };
        self.stats.losses += 1;
        if let Some((at, idle)) = hedge.invisible {
            let observed = self.observed;
            self.tell(Churn { at, cause: Cause::MappingLost, from: observed, to: observed, idle });
        }
        self.reschedule(now);
    }

    pub(super) fn hedge_died(&mut self, now: Instant) {
        let Some(hedge) = self.strikes.hedge.take() else { return };
        self.shrank(now, hedge.heard, hedge.age);
    }

    /// Proven ages die now and then.
    fn doubt(&mut self, now: Instant) {
        self.strikes.forget();
        if !self.life.doubt() {
            self.strikes.forgetful = true;
        }
        self.cycles = 0;
        self.reschedule(now);
    }

    /// Bindings do not live as long as they did. `heard`: an age that they still reached since.
    fn shrank(&mut self, now: Instant, heard: Option<Duration>, before: Duration) {
        let again = self.strikes.shrank.is_some_and(|at| now.saturating_duration_since(at) < SHRINKS_APART);
        self.life.coarse |= again;
        self.stats.shrinks += 1;
        self.strikes.forget();
        self.strikes.forgetful = false;
        self.strikes.shrank = Some(now);
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
        if self.strikes.relearnt.is_some_and(|at| now.saturating_duration_since(at) < RELEARN) {
            let half = self.life.at_least / 2;
            self.life.shrank(half, self.life.at_least);
            return;
        }
        self.strikes.relearnt = Some(now);
        self.prior = None;
        self.climb_from_the_ground(now);
    }

    /// A scout did not live as long as is thought safe.
    pub(super) fn scout_died(&mut self, now: Instant) {
        // Whatever killed the live binding killed the scout.
        if self.strikes.is_hedging() || self.stage != Stage::Settled {
            return;
        }
        let again = self.strikes.scout_died.is_some_and(|died| self.cycles.saturating_sub(died) <= WATCHFUL);
        self.strikes.scout_died = Some(self.cycles);
        if again {
            self.strikes.forget();
            self.life.give_way();
            self.cycles = 0;
            self.reschedule(now);
        }
    }
}
