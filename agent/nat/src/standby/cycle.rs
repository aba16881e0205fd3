//! The session's own cycle: rest, silence, wake; and in step with what.

use std::time::{Duration, Instant};

use super::{
    Action, GRACE, LONGEST_WAKE, Line, Mode, Preference, Standby,
    lifetime::{enough_for, worth_trying},
};

/// The session's wake comes so long before a canary's, in the same burst.
const AHEAD: Duration = Duration::from_millis(500);
/// The session's wake comes so long after the beginning of a UDP burst.
const INSIDE: Duration = Duration::from_secs(1);
/// UDP bursts closer than this are one.
const SAME_BURST: Duration = Duration::from_secs(3);
/// Without a lifetime of UDP to compare with, a session is not tried beyond so many UDP intervals.
const FAR: u32 = 16;

#[derive(Debug, Clone, Copy)]
struct Resting {
    seq: u64,
    after: Duration,
    /// Since when the session has been silent.
    since: Instant,
}

/// The session's connection.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Live {
    attached: Option<Instant>,
    rest: Option<Resting>,
    asked: bool,
    heard: Option<Instant>,
}

impl Live {
    pub(super) fn attached(now: Instant) -> Self {
        Self { attached: Some(now), heard: Some(now), ..Self::default() }
    }

    pub(super) fn is_attached(&self) -> bool {
        self.attached.is_some()
    }

    pub(super) fn is_asked(&self) -> bool {
        self.asked
    }

    pub(super) fn proven(&self) -> Option<Instant> {
        self.heard.filter(|_| self.is_attached() && !self.asked)
    }

    /// For how long it has been silent, if it rests.
    pub(super) fn idle(&self, now: Instant) -> Option<Duration> {
        self.rest.map(|rest| now.saturating_duration_since(rest.since))
    }

    /// When the wake is not waited for any longer.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.rest.filter(|_| !self.asked).map(|rest| rest.since + rest.after + GRACE)
    }

    /// Something came.
    pub(super) fn heard(&mut self, now: Instant) {
        if !self.is_attached() {
            return;
        }
        self.heard = Some(now);
        if std::mem::take(&mut self.asked) {
            // What it had rested for is over, one way or the other.
            self.rest = None;
        }
        if let Some(rest) = &mut self.rest {
            rest.since = now;
        }
    }

    /// The wake that was waited for. Returns the age that it proves.
    pub(super) fn take_rest(&mut self, now: Instant, seq: u64) -> Option<Duration> {
        let rest = self.rest.filter(|rest| rest.seq == seq && !self.asked)?;
        self.rest = None;
        self.heard = Some(now);
        Some(rest.after.min(now.saturating_duration_since(rest.since)))
    }

    /// For how long it was to be silent.
    pub(super) fn rested_for(&self) -> Duration {
        self.rest.map_or(Duration::ZERO, |rest| rest.after)
    }

    /// Whether it lives is being asked.
    pub(super) fn ask(&mut self) {
        self.asked = true;
    }

    pub(super) fn forget_rest(&mut self) {
        self.rest = None;
    }

    fn may_rest(&self) -> bool {
        self.is_attached() && self.rest.is_none() && !self.asked
    }
}

/// What is known of UDP's keepalive.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Udp {
    pub(super) cost: Option<super::UdpCost>,
    last: Option<Instant>,
    period: Option<Duration>,
}

impl Udp {
    pub(super) fn burst(&mut self, now: Instant) {
        let gap = self.last.map(|last| now.saturating_duration_since(last));
        if gap.is_some_and(|gap| gap < SAME_BURST) {
            return;
        }
        self.last = Some(now);
        let interval = self.cost.map_or(Duration::MAX, |cost| cost.interval);
        self.period = gap.filter(|gap| *gap < interval.saturating_mul(2)).or(self.period);
    }

    pub(super) fn restart(&mut self) {
        self.last = None;
        self.period = None;
    }

    pub(super) fn last(&self) -> Option<Instant> {
        self.last
    }

    /// The silence, from now on, that ends in the first burst after `at_least`, if that is before `end`.
    fn in_step(&self, now: Instant, at_least: Duration, end: Option<Duration>) -> Duration {
        let (Some(last), Some(cost)) = (self.last, self.cost) else { return at_least };
        let period = self.period.unwrap_or(cost.interval).max(SAME_BURST);
        let since = now.saturating_duration_since(last);
        let bursts = (since + at_least).saturating_sub(INSIDE).div_duration_f64(period).ceil();
        let after = (period.mul_f64(bursts.clamp(1.0, 1e4)) + INSIDE).saturating_sub(since);
        let fits = after >= at_least && end.is_none_or(|end| after < end);
        if fits { after } else { at_least }
    }
}

impl Standby {
    /// Something came while the radio is awake: does what can be done now.
    pub(super) fn proceed(&mut self, now: Instant) {
        self.decide(now, true);
        self.send_canaries(now);
        self.rest(now);
    }

    /// A wake came as it should.
    pub(super) fn woken(&mut self, now: Instant, age: Duration) {
        self.stats.wakes += 1;
        self.cycles += 1;
        self.life.alive(age);
        self.proceed(now);
    }

    /// Whether the session must not be relied on before it rests anew: it is silent for longer than was proven, or was
    /// so long silent while nobody depended on it that its mapping may have been lost since.
    pub(super) fn is_stale(&self, now: Instant, can_rest: bool) -> bool {
        let Some(idle) = self.live.idle(now) else { return !can_rest };
        let unwatched = self.mode == Mode::Udp && !self.naps;
        self.live.rested_for() > self.life.at_least || (unwatched && idle > GRACE)
    }

    /// Whether that is all that keeps UDP up. What is tried can be tried later for less.
    pub(super) fn waits_for_a_fresh_rest(&self, now: Instant) -> bool {
        let proven = self.life.interval(self.longest());
        self.mode == Mode::Udp
            && self.busy.is_none()
            && !self.live.is_asked()
            && self.is_stale(now, true)
            && (self.policy.preference == Preference::Session || self.knows_udp(now))
            && self.needed().is_some_and(|needed| proven >= needed)
    }

    fn rest(&mut self, now: Instant) {
        if !self.live.may_rest() {
            return;
        }
        let Some(wake_after) = self.silence(now) else { return };
        let after = wake_after.clamp(Duration::from_secs(1), LONGEST_WAKE);
        let seq = self.next_seq;
        self.next_seq += 1;
        self.stats.rests += 1;
        self.live.rest = Some(Resting { seq, after, since: now });
        self.actions.push_back(Action::Rest { line: Line::Live, seq, wake_after: after });
    }

    /// For how long the session may be silent now. `None`: it concerns nobody.
    fn silence(&mut self, now: Instant) -> Option<Duration> {
        let longest = self.longest();
        if self.policy.preference == Preference::UdpOnly || self.suspected_losses.has_given_up(now) {
            return None;
        }
        let interval = self.life.interval(longest);
        if self.mode == Mode::Session {
            return Some(self.in_step_with_canaries(now, interval));
        }
        let needed = self.needed()?;
        if longest < needed {
            return None;
        }
        let enough = enough_for(needed);
        if interval < needed {
            if self.life.less_than.is_some_and(|end| end <= worth_trying(needed)) {
                if !self.growth.is_due(now, &mut self.jitter) {
                    return None;
                }
                self.life.less_than = None;
            }
            return Some(self.udp.in_step(now, enough, self.life.less_than));
        }
        let next = self.life.at_least.mul_f64(2.0).min(enough_for(longest));
        let tryable = next > self.life.at_least
            && next <= needed * FAR
            && self.life.less_than.is_none_or(|end| next < end)
            && !self.naps
            && !self.knows_udp(now);
        Some(if tryable { self.udp.in_step(now, next, self.life.less_than) } else { interval })
    }

    /// The interval, or as much less that a later one ends where a canary's wake is due.
    fn in_step_with_canaries(&self, now: Instant, interval: Duration) -> Duration {
        let dues = self.canaries.iter().map(|canary| canary.due().saturating_duration_since(now));
        let Some(rest) = dues.filter(|due| *due > SAME_BURST * 2).min() else { return interval };
        let rest = rest.saturating_sub(AHEAD);
        let cycles = rest.div_duration_f64(interval.max(Duration::from_secs(1))).ceil().max(1.0);
        rest.div_f64(cycles).min(interval)
    }

    /// Whether the path worked when something should have come at `due`.
    pub(super) fn path_worked(&self, due: Instant) -> bool {
        let from = due.checked_sub(Duration::from_secs(10)).unwrap_or(due);
        let heard = [self.live.proven(), self.udp.last(), self.busy];
        heard.into_iter().flatten().any(|at| at >= from)
    }
}
