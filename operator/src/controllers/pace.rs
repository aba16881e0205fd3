use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// How many statuses may be written without delay after a quiet time.
const BURST: u32 = 200;

/// Time between two statuses in the long run: 50 a second.
const INTERVAL: Duration = Duration::from_millis(20);

/// Spreads the writing of many clients' statuses over time: a gateway that falls silent changes all of them at once.
#[derive(Debug, Default)]
pub(super) struct WritePace(Mutex<Option<Instant>>);

impl WritePace {
    /// Whether one may be written at `now`; if not, how long to wait before asking again.
    pub(super) fn take(&self, now: Instant) -> Result<(), Duration> {
        let mut next = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let earliest = now.checked_sub(INTERVAL * BURST).unwrap_or(now);
        let slot = next.map_or(earliest, |n| n.max(earliest));
        if slot > now {
            return Err(slot - now);
        }
        *next = Some(slot + INTERVAL);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_then_fifty_a_second() {
        let (pace, now) = (WritePace::default(), Instant::now() + Duration::from_hours(1));
        let burst = (0..10_000).take_while(|_| pace.take(now).is_ok()).count();
        assert_eq!(burst, usize::try_from(BURST).unwrap() + 1);
        let wait = pace.take(now).unwrap_err();
        assert!(wait <= INTERVAL);
        let second = (0..1000_u32).filter(|n| pace.take(now + Duration::from_millis(u64::from(*n))).is_ok());
        assert!((49..=51).contains(&second.count()));
    }
}
