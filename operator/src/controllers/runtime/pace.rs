//! How fast clients' statuses are written. Pure, but for its lock.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// How many statuses may be written without delay after a quiet time.
const BURST: u32 = 200;

/// Time between two statuses in the long run: 50 a second.
const INTERVAL: Duration = Duration::from_millis(20);

/// What a status is written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// The client connected, or its spec was changed: somebody watches for that.
    Awaited,
    /// Anything else.
    Other,
}

/// Spreads the writing of many clients' statuses over time: a gateway that falls silent changes all of them at once. One that
/// connects does not wait for them.
#[derive(Debug, Default)]
pub(crate) struct WritePace(Mutex<Paces>);

#[derive(Debug, Default)]
struct Paces {
    awaited: Bucket,
    other: Bucket,
}

/// Refills as time passes.
#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    next: Option<Instant>,
    /// When the last one that was refused asks again.
    asks: Option<Instant>,
}

impl WritePace {
    /// Whether one may be written at `now`; if not, how long to wait before asking again. Those that wait ask one after the other.
    pub(crate) fn take(&self, cause: Cause, now: Instant) -> Result<(), Duration> {
        let mut paces = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match cause {
            Cause::Awaited => paces.awaited.take(now),
            Cause::Other => paces.other.take(now),
        }
    }
}

impl Bucket {
    fn take(&mut self, now: Instant) -> Result<(), Duration> {
        let earliest = now.checked_sub(INTERVAL * BURST).unwrap_or(now);
        let slot = self.next.map_or(earliest, |next| next.max(earliest));
        if slot > now {
            let asks = self.asks.map_or(slot, |last| slot.max(last + INTERVAL));
            self.asks = Some(asks);
            return Err(asks - now);
        }
        self.next = Some(slot + INTERVAL);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_burst_passes_and_then_fifty_a_second() {
        let (pace, now) = (WritePace::default(), Instant::now() + Duration::from_hours(1));
        let burst = (0..10_000).take_while(|_| pace.take(Cause::Other, now).is_ok()).count();
        assert_eq!(burst, usize::try_from(BURST).unwrap() + 1);
        let second = (0..1000_u32)
            .filter(|n| pace.take(Cause::Other, now + Duration::from_millis(u64::from(*n))).is_ok());
        assert!((49..=51).contains(&second.count()));
    }

    #[test]
    fn ten_thousand_that_wait_ask_about_once_each_and_one_that_connects_does_not_wait_for_them() {
        let (pace, start) = (WritePace::default(), Instant::now() + Duration::from_hours(1));
        let mut waiting: BTreeSet<(Instant, u32)> = (0..10_000).map(|n| (start, n)).collect();
        let (mut asked, mut last) = (0, start);
        while let Some((now, n)) = waiting.pop_first() {
            asked += 1;
            last = now;
            if let Err(wait) = pace.take(Cause::Other, now) {
                waiting.insert((now + wait, n));
            }
            if asked == 9_000 {
                assert_eq!(pace.take(Cause::Awaited, now), Ok(()));
            }
        }
        assert!(asked < 21_000, "{asked} questions");
        let took = (last - start).as_secs();
        assert!((190..=200).contains(&took), "{took} s");
    }
}
