//! How long a session is to be silent, and the wake that ends it.

use std::time::{Duration, Instant};

use pinhole_proto::v1;

use crate::nat::standby::LONGEST_WAKE;

#[derive(Debug, Clone, Copy)]
struct Asked {
    seq: u64,
    wake_after: Duration,
    since: Instant,
}

/// What the client of one session asked for last.
#[derive(Debug, Default)]
pub(super) struct Rest(Option<Asked>);

impl Rest {
    /// The client rests. For how long, within bounds.
    pub(super) fn take(&mut self, now: Instant, rest: &v1::Rest) -> Duration {
        let wake_after = rest.wake_after.and_then(|after| Duration::try_from(after).ok());
        let wake_after = wake_after.unwrap_or(LONGEST_WAKE).min(LONGEST_WAKE);
        self.0 = Some(Asked { seq: rest.seq, wake_after, since: now });
        wake_after
    }

    /// Something went either way: the silence begins anew. How long it is to be, where the client rests.
    pub(super) fn passed(&mut self, now: Instant) -> Option<Duration> {
        let asked = self.0.as_mut()?;
        asked.since = now;
        Some(asked.wake_after)
    }

    /// When the wake is due.
    pub(super) fn due(&self) -> Option<Instant> {
        self.0.map(|asked| asked.since + asked.wake_after)
    }

    /// The number of the wake that is due.
    pub(super) fn wake(&mut self, now: Instant) -> Option<u64> {
        self.due().filter(|due| *due <= now)?;
        self.0.take().map(|asked| asked.seq)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asks(seq: u64, seconds: i64) -> v1::Rest {
        let wake_after = Some(prost_types::Duration { seconds, nanos: 0 });
        v1::Rest { seq, wake_after, hold_after: None }
    }

    #[test]
    fn a_wake_comes_once_after_the_silence_that_was_asked_for() {
        let (mut rest, now) = (Rest::default(), Instant::now());
        let minute = Duration::from_mins(1);
        assert_eq!((rest.due(), rest.take(now, &asks(1, 60))), (None, minute));
        assert_eq!(rest.passed(now + minute / 2), Some(minute));
        assert_eq!(rest.wake(now + minute), None);
        assert_eq!(rest.wake(now + minute * 3 / 2), Some(1));
        assert_eq!((rest.wake(now + minute * 9), rest.due()), (None, None));
    }

    #[test]
    fn whatever_is_asked_for_is_within_bounds() {
        let (mut rest, now) = (Rest::default(), Instant::now());
        for (asked, given) in [(0, Duration::ZERO), (-5, LONGEST_WAKE), (i64::MAX, LONGEST_WAKE)] {
            assert_eq!(rest.take(now, &asks(1, asked)), given, "{asked}");
        }
    }
}
