//! Round trips and losses, as the beats show them.

use std::time::{Duration, Instant};

use crate::Beat;

const SHORTEST_RESEND: Duration = Duration::from_millis(100);
const LONGEST_RESEND: Duration = Duration::from_secs(1);
const UNKNOWN_RESEND: Duration = Duration::from_millis(500);
/// Samples over which a loss is remembered.
const MEMORY: f64 = 256.0;
/// A radio of LTE sleeps no sooner after a packet: its tail takes 10 to 11.6 s.
const TAIL: Duration = Duration::from_secs(10);
/// What it then takes to hear of the next at most: the longest paging cycle is 2.56 s (3GPP TS 36.331,
/// `defaultPagingCycle`).
const PAGED: Duration = Duration::from_millis(2600);
/// After so many wakes that came on time there is no radio that has to be paged.
const PUNCTUAL: u32 = 3;
/// Nobody waits longer for a radio.
const LATEST: Duration = Duration::from_secs(3);
/// Lateness is forgotten by this part with each wake that comes sooner.
const FADES: u32 = 64;

/// What is known of the path's quality.
#[derive(Debug, Clone, Default)]
pub(super) struct Link {
    rtt: Option<Duration>,
    deviation: Duration,
    samples: f64,
    unanswered: f64,
    late: Duration,
    /// Wakes in a row that a sleeping radio heard on time.
    punctual: u32,
    passed: Option<Instant>,
}

impl Link {
    /// A beat was answered. The estimator is that of RFC 6298, section 2.
    pub(super) fn answered(&mut self, rtt: Duration) {
        self.count(0.0);
        let Some(smooth) = self.rtt else {
            self.rtt = Some(rtt);
            self.deviation = rtt / 2;
            return;
        };
        self.deviation = (self.deviation * 3 + smooth.abs_diff(rtt)) / 4;
        self.rtt = Some((smooth * 7 + rtt) / 8);
    }

    /// A beat had to be sent again.
    pub(super) fn unanswered(&mut self) {
        self.count(1.0);
    }

    /// A packet left or came.
    pub(super) fn passed(&mut self, at: Instant) {
        self.passed = self.passed.max(Some(at));
    }

    /// Whether a radio would sleep at this time.
    pub(super) fn may_sleep(&self, at: Instant) -> bool {
        self.passed.is_none_or(|passed| at.saturating_duration_since(passed) >= TAIL)
    }

    /// How long a packet of this time may take to get a radio's attention.
    pub(super) fn paging(&self, at: Instant) -> Duration {
        if self.may_sleep(at) && self.punctual < PUNCTUAL { PAGED } else { Duration::ZERO }
    }

    /// A wake came so much after it was due. What it took to be repeated does not count. Only one to a radio that `slept` shows
    /// that wakes come sooner than they did.
    pub(super) fn woken(&mut self, late: Duration, slept: bool) {
        let [.., last] = Beat::WAKES;
        let late = late.saturating_sub(last + self.deviation * 4).min(LATEST);
        let less = if slept { self.late.saturating_sub(late) / FADES } else { Duration::ZERO };
        self.late = self.late.saturating_sub(less).max(late);
        match (late.is_zero(), slept) {
            (true, true) => self.punctual = self.punctual.saturating_add(1),
            (true, false) => {}
            (false, _) => self.punctual = 0,
        }
    }

    /// The path is another, and so may be the radio.
    pub(super) fn forget_radio(&mut self) {
        (self.late, self.punctual, self.passed) = (Duration::ZERO, 0, None);
    }

    /// How late wakes may be: a radio that sleeps has to be paged first.
    pub(super) fn late(&self) -> Duration {
        self.late
    }

    /// Smoothed round trip; zero before the first.
    pub(super) fn rtt(&self) -> Duration {
        self.rtt.unwrap_or_default()
    }

    /// How far round trips stray.
    pub(super) fn deviation(&self) -> Duration {
        self.deviation
    }

    /// When an unanswered beat is worth sending again.
    pub(super) fn resend_after(&self) -> Duration {
        let Some(rtt) = self.rtt else { return UNKNOWN_RESEND };
        (rtt * 5 / 4 + self.deviation * 4).clamp(SHORTEST_RESEND, LONGEST_RESEND)
    }

    /// Share of packets lost in one direction, taken as the same in both.
    pub(super) fn loss(&self) -> f64 {
        1.0 - (1.0 - self.unanswered).sqrt()
    }

    fn count(&mut self, unanswered: f64) {
        self.samples = (self.samples + 1.0).min(MEMORY);
        self.unanswered += (unanswered - self.unanswered) / self.samples;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_steady_path_is_asked_again_after_little_more_than_a_round_trip() {
        let mut link = Link::default();
        assert_eq!(link.resend_after(), UNKNOWN_RESEND);
        for _ in 0..100 {
            link.answered(Duration::from_millis(200));
        }
        assert_eq!(link.rtt(), Duration::from_millis(200));
        assert!(link.resend_after() < Duration::from_millis(260));
        assert!(link.loss() < 1e-9);
    }

    #[test]
    fn one_way_loss_is_half_of_what_round_trips_show() {
        let mut link = Link::default();
        for n in 0..2000 {
            if n % 10 == 0 { link.unanswered() } else { link.answered(Duration::from_millis(20)) }
        }
        assert!((0.04..0.065).contains(&link.loss()), "{}", link.loss());
    }
}
