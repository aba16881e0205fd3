//! How long a session is to be silent, and the wake that ends it.

use std::time::{Duration, Instant};

use super::told::Asked;

/// What the client of one session asked for last, and since when it is silent.
#[derive(Debug, Default)]
pub(super) struct Rest(Option<(Asked, Instant)>);

impl Rest {
    /// The client rests.
    pub(super) fn take(&mut self, now: Instant, asked: Asked) {
        self.0 = Some((asked, now));
    }

    /// Something went either way: the silence begins anew. How long it is to be, where the client rests.
    pub(super) fn passed(&mut self, now: Instant) -> Option<Duration> {
        let (asked, since) = self.0.as_mut()?;
        *since = now;
        Some(asked.wake_after)
    }

    /// When the wake is due.
    pub(super) fn due(&self) -> Option<Instant> {
        self.0.map(|(asked, since)| since + asked.wake_after)
    }

    /// The number of the wake that is due.
    pub(super) fn wake(&mut self, now: Instant) -> Option<u64> {
        self.due().filter(|due| *due <= now)?;
        self.0.take().map(|(asked, _)| asked.seq)
    }
}

#[cfg(test)]
mod tests {
    use pinhole_proto::v1;

    use super::*;
    use crate::nat::standby::LONGEST_WAKE;

    fn asks(seq: u64, seconds: i64) -> Asked {
        let wake_after = Some(prost_types::Duration { seconds, nanos: 0 });
        Asked::from(&v1::Rest { seq, wake_after, hold_after: wake_after })
    }

    #[test]
    fn a_wake_comes_once_after_the_silence_that_was_asked_for() {
        let (mut rest, now) = (Rest::default(), Instant::now());
        let minute = Duration::from_mins(1);
        assert_eq!(rest.due(), None);
        rest.take(now, asks(1, 60));
        assert_eq!(rest.passed(now + minute / 2), Some(minute));
        assert_eq!(rest.wake(now + minute), None);
        assert_eq!(rest.wake(now + minute * 3 / 2), Some(1));
        assert_eq!((rest.wake(now + minute * 9), rest.due()), (None, None));
    }

    #[test]
    fn whatever_is_asked_for_is_within_bounds() {
        let second = Duration::from_secs(1);
        let held = [(0, Some(second * 2)), (-5, None), (i64::MAX, Some(LONGEST_WAKE))];
        for ((asked, hold), given) in held.into_iter().zip([Duration::ZERO, LONGEST_WAKE, LONGEST_WAKE]) {
            let asked = asks(1, asked);
            assert_eq!((asked.wake_after, asked.hold_after), (given, hold));
        }
    }
}
