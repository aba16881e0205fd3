//! Counts wake-ups: how often packets of any kind would have woken a sleeping radio.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// A radio stays awake for about so long after the first packet of a burst. A packet later than that begins another.
pub const RADIO: Duration = Duration::from_secs(3);

/// The count. A burst begins with a packet sent or received more than [`RADIO`] after the *start* of the one before, so
/// that bursts do not chain.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Bursts {
    began: Option<Instant>,
    count: u64,
}

impl Bursts {
    /// A packet that is part of the cost.
    pub fn note(&mut self, at: Instant) {
        if self.begin(at) {
            self.count += 1;
        }
    }

    /// A packet that somebody else wanted, such as the user's data: what goes along with it costs nothing.
    pub fn note_foreign(&mut self, at: Instant) {
        self.begin(at);
    }

    /// How many there were.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// How long ago the present one began; `None` where the radio sleeps by now.
    pub fn age(&self, now: Instant) -> Option<Duration> {
        self.began.map(|began| now.saturating_duration_since(began)).filter(|age| *age <= RADIO)
    }

    fn begin(&mut self, at: Instant) -> bool {
        let is_new = self.began.is_none_or(|began| at.saturating_duration_since(began) > RADIO);
        if is_new {
            self.began = Some(at);
        }
        is_new
    }
}

/// One count that several parts of a process add to: tunnel, experiments, session, name resolution.
#[derive(Debug, Default)]
pub struct Radio(Mutex<Bursts>);

impl Radio {
    /// A packet left or came.
    pub fn packet(&self, at: Instant) {
        self.with(|bursts| bursts.note(at));
    }

    /// The user's own data went by.
    pub fn foreign(&self, at: Instant) {
        self.with(|bursts| bursts.note_foreign(at));
    }

    /// Bursts so far.
    pub fn bursts(&self) -> u64 {
        self.with(|bursts| bursts.count())
    }

    /// How long ago the present burst began; `None` where the radio sleeps by now.
    pub fn age(&self, now: Instant) -> Option<Duration> {
        self.with(|bursts| bursts.age(now))
    }

    fn with<T>(&self, act: impl FnOnce(&mut Bursts) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bursts(own: &[f64], foreign: &[f64]) -> u64 {
        let start = Instant::now();
        let at = |seconds: &f64| start + Duration::from_secs_f64(*seconds);
        let mut all: Vec<_> =
            own.iter().map(|s| (at(s), true)).chain(foreign.iter().map(|s| (at(s), false))).collect();
        all.sort_unstable();
        let mut bursts = Bursts::default();
        for (at, own) in all {
            if own { bursts.note(at) } else { bursts.note_foreign(at) }
        }
        bursts.count()
    }

    #[test]
    fn packets_within_three_seconds_of_the_first_are_one_burst_and_bursts_do_not_chain() {
        assert_eq!(bursts(&[], &[]), 0);
        assert_eq!(bursts(&[0.0, 0.1, 2.9, 3.0], &[]), 1);
        assert_eq!(bursts(&[0.0, 2.0, 4.0, 6.0], &[]), 2);
    }

    #[test]
    fn what_goes_along_with_the_users_data_costs_nothing() {
        assert_eq!(bursts(&[1.0], &[0.0]), 0);
        assert_eq!(bursts(&[1.0, 5.0], &[0.0]), 1);
    }

    #[test]
    fn a_burst_has_an_age_until_the_radio_sleeps() {
        let (radio, start) = (Radio::default(), Instant::now());
        assert_eq!(radio.age(start), None);
        radio.packet(start);
        assert_eq!(radio.age(start + RADIO), Some(RADIO));
        assert_eq!(radio.age(start + RADIO + Duration::from_millis(1)), None);
        assert_eq!(radio.bursts(), 1);
    }
}
