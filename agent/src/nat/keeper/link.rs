//! Round trips and losses, as the beats show them.

use std::time::Duration;

const SHORTEST_RESEND: Duration = Duration::from_millis(100);
const LONGEST_RESEND: Duration = Duration::from_secs(1);
const UNKNOWN_RESEND: Duration = Duration::from_millis(500);
/// Samples over which a loss is remembered.
const MEMORY: f64 = 256.0;

/// What is known of the path's quality.
#[derive(Debug, Clone, Default)]
pub(super) struct Link {
    rtt: Option<Duration>,
    deviation: Duration,
    samples: f64,
    unanswered: f64,
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
