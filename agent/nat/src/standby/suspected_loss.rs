//! A wake that did not come, and what canaries find out.

use std::time::{Duration, Instant};

use super::{
    Action, Ended, Event, Mode, Prior, Standby,
    canary::{Canary, Purpose},
    lifetime::{Lifetime, enough_for},
};
use crate::health::Jitter;

/// At most so many extra connections at a time.
const SCOUTS: usize = 2;
/// After one that told nothing, the next waits so long.
const PAUSE: Duration = Duration::from_mins(10);
/// So many suspected losses within so long mean that a session is not to be relied on here.
const MANY: usize = 6;
const RECENT: Duration = Duration::from_hours(6);
/// How long UDP is used alone then; doubled each time.
const GIVEN_UP: Duration = Duration::from_hours(2);
const LONGEST_GIVEN_UP: Duration = Duration::from_hours(24);
/// So many suspected losses within a day, and the lifetime is believed for this share only.
const REPEATED: usize = 3;
const DAY: Duration = Duration::from_hours(24);
const DOUBT: f64 = 0.85;
/// A lost mapping leaves the client unreachable for half an interval in the mean: at most this share of all time.
const BLIND: f64 = 0.005;
/// When a verdict is doubted for once, and longer ages are tried again.
const GROWTH: [Duration; 3] = [Duration::from_hours(2), Duration::from_hours(8), Duration::from_hours(24)];
const STEP: f64 = 1.25;
/// A session that is dialled again within this shows that the path works.
const SOON: Duration = Duration::from_secs(30);
/// An end by RST after less says nothing of a lifetime.
const FRESH: Duration = Duration::from_secs(10);

/// An age that held once, or elsewhere.
#[derive(Debug, Clone, Copy)]
pub(super) struct Hint {
    pub(super) age: Duration,
    /// What was known of the end.
    pub(super) less_than: Option<Duration>,
    /// It was proven here, until the session's mapping was gone.
    pub(super) struck: bool,
}

impl From<Prior> for Hint {
    fn from(prior: Prior) -> Self {
        Self { age: prior.at_least, less_than: None, struck: false }
    }
}

/// The suspected losses so far.
#[derive(Debug, Clone, Default)]
pub(super) struct SuspectedLosses {
    /// The latest first.
    at: [Option<Instant>; MANY],
    given_up: Option<Instant>,
    times: u32,
}

impl SuspectedLosses {
    pub(super) fn has_given_up(&self, now: Instant) -> bool {
        self.given_up.is_some_and(|until| now < until)
    }

    fn within(&self, now: Instant, time: Duration) -> usize {
        self.at.iter().flatten().filter(|at| now.saturating_duration_since(**at) <= time).count()
    }

    /// The longest interval at which mappings that are lost as often as lately cost no more than [`BLIND`].
    /// `None`: they are not lost often enough to tell.
    pub(super) fn bound(&self, now: Instant) -> Option<Duration> {
        let count = u32::try_from(self.at.iter().flatten().count()).ok().filter(|count| *count >= 2)?;
        let first = self.at.iter().flatten().min()?;
        let apart = now.saturating_duration_since(*first) / count;
        Some(apart.mul_f64(2.0 * BLIND))
    }

    fn record(&mut self, now: Instant) {
        self.at.rotate_right(1);
        if let Some(first) = self.at.first_mut() {
            *first = Some(now);
        }
        if self.within(now, RECENT) >= MANY {
            let pause = GIVEN_UP.saturating_mul(1 << self.times.min(4)).min(LONGEST_GIVEN_UP);
            self.times += 1;
            self.given_up = Some(now + pause);
            self.at = [None; MANY];
        }
    }
}

/// When a verdict is looked at again.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Growth {
    due: Option<Instant>,
    rounds: usize,
}

impl Growth {
    /// Whether it is time. The first question starts the clock.
    pub(super) fn is_due(&mut self, now: Instant, jitter: &mut Jitter) -> bool {
        match self.due {
            Some(due) if now >= due => {
                self.due = None;
                self.rounds += 1;
                true
            }
            Some(_) => false,
            None => {
                let after = GROWTH.get(self.rounds.min(GROWTH.len() - 1)).copied().unwrap_or(DAY);
                self.due = Some(now + after + jitter.up_to(after / 8));
                false
            }
        }
    }
}

impl Standby {
    /// The session's wake did not come.
    pub(super) fn missed(&mut self, now: Instant) {
        let (age, idle) = (self.live.rested_for(), self.live.idle(now).unwrap_or_default());
        self.live.ask();
        self.cycles = 0;
        if self.mode == Mode::Session || age <= self.life.at_least {
            self.suspect_loss(now, idle);
        } else {
            // The session's answer, or the next one, shows that it was not the path.
            self.doubt = Some((now, age));
        }
        // Reachability comes first.
        self.choose(now);
        self.actions.push_back(Action::Ask);
    }

    /// The session ended although nobody had missed anything.
    pub(super) fn ended_unasked(&mut self, now: Instant, idle: Option<Duration>, ended: Ended) {
        self.cycles = 0;
        let idle = idle.unwrap_or_default();
        if self.mode == Mode::Session {
            self.suspect_loss(now, idle);
        } else if ended == Ended::Reset && idle >= FRESH {
            self.session_died(idle);
        }
    }

    /// The path works: whatever was in doubt was gone.
    pub(super) fn settle_doubt(&mut self, now: Instant) {
        let Some((at, age)) = self.doubt.take() else { return };
        if now.saturating_duration_since(at) <= SOON {
            self.session_died(age);
        }
    }

    /// A session did not live for so long, at a time at which nothing rested on it.
    fn session_died(&mut self, age: Duration) {
        let contradicts = self.hint.is_some_and(|hint| age <= hint.age);
        self.canary_died(if contradicts { Purpose::Hint } else { Purpose::Growth }, age);
    }

    /// The mapping was gone at an age that was thought safe: nothing that was proven holds until it is proven again.
    fn suspect_loss(&mut self, now: Instant, idle: Duration) {
        self.stats.suspected_losses += 1;
        self.suspected_losses.record(now);
        self.close_canaries();
        self.canaries_after = None;
        let Lifetime { at_least, less_than } = std::mem::take(&mut self.life);
        let before = self.hint.take().filter(|hint| hint.age > at_least);
        let mut hint = before.unwrap_or(Hint { age: at_least, less_than, struck: true });
        hint.struck = true;
        if self.suspected_losses.within(now, DAY) >= REPEATED {
            hint.less_than = Some(hint.age);
            hint.age = hint.age.mul_f64(DOUBT);
        }
        self.hint = Some(hint);
        self.tell(Event::MappingLost { idle });
    }

    /// Opens what canaries are worth it. The radio is awake.
    pub(super) fn send_canaries(&mut self, now: Instant) {
        let waits = self.canaries_after.is_some_and(|after| now < after);
        if self.mode != Mode::Session || waits {
            return;
        }
        if self.hint.is_some_and(|hint| hint.age <= self.life.at_least) {
            self.hint_lived();
        }
        if let Some(hint) = self.hint {
            self.send_canary(now, Purpose::Hint, hint.age.min(enough_for(self.longest())));
        }
        if let Some(age) = self.age_to_try(now) {
            self.send_canary(now, Purpose::Growth, age);
        }
    }

    fn age_to_try(&mut self, now: Instant) -> Option<Duration> {
        if self.canaries.iter().any(|canary| canary.purpose == Purpose::Growth) {
            return None;
        }
        let longest = self.longest();
        let next = self.life.next_age(longest).filter(|age| self.hint.is_none_or(|hint| *age < hint.age));
        if next.is_some() {
            return next;
        }
        let worth = self.hint.is_none() && !self.life.is_enough(longest);
        if !worth || !self.growth.is_due(now, &mut self.jitter) {
            return None;
        }
        Some(self.life.at_least.mul_f64(STEP).min(enough_for(longest)))
    }

    fn send_canary(&mut self, now: Instant, purpose: Purpose, age: Duration) {
        let there = self.canaries.iter().any(|canary| canary.purpose == purpose);
        if there || self.canaries.len() >= SCOUTS || age <= self.life.at_least {
            return;
        }
        let id = self.next_canary;
        self.next_canary = self.next_canary.wrapping_add(1);
        self.stats.canaries += 1;
        self.canaries.push(Canary::new(now, id, purpose, age));
        self.actions.push_back(Action::Open { canary: id });
    }

    pub(super) fn canary_woken(&mut self, now: Instant, id: u32, seq: u64) {
        let at = self.canaries.iter().position(|canary| canary.id == id && canary.expects(seq));
        let Some(at) = at else { return };
        let canary = self.canaries.swap_remove(at);
        self.stats.wakes += 1;
        self.actions.push_back(Action::Close { canary: id });
        self.life.alive(canary.age.min(canary.idle(now).unwrap_or_default()));
        if canary.purpose == Purpose::Hint {
            self.hint_lived();
        }
        self.choose(now);
    }

    fn hint_lived(&mut self) {
        let Some(hint) = self.hint.take() else { return };
        self.stats.losses += u64::from(hint.struck);
        if let Some(end) = hint.less_than {
            self.life.dead(end);
        }
    }

    /// A canary's wake did not come.
    pub(super) fn canary_missed(&mut self, now: Instant, canary: &Canary) {
        if canary.is_dialling() || !self.path_worked(canary.due()) {
            self.canaries_after = Some(now + PAUSE);
            return;
        }
        self.canary_died(canary.purpose, canary.age);
    }

    fn canary_died(&mut self, purpose: Purpose, age: Duration) {
        self.life.dead(age);
        if purpose == Purpose::Hint
            && let Some(hint) = self.hint.take()
            && hint.struck
        {
            self.stats.shrinks += 1;
            self.tell(Event::LifetimeShrank { from: hint.age });
        }
    }

    pub(super) fn canary_ended(&mut self, now: Instant, id: u32, ended: Ended) {
        let Some(at) = self.canaries.iter().position(|canary| canary.id == id) else { return };
        let canary = self.canaries.swap_remove(at);
        match canary.idle(now).filter(|idle| ended == Ended::Reset && *idle >= FRESH) {
            Some(idle) if idle > self.life.at_least => self.canary_died(canary.purpose, idle),
            _ => self.canaries_after = Some(now + PAUSE),
        }
    }
}
