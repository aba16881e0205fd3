//! When which object is looked at: each at a time once, again when something changed meanwhile, later after a
//! failure, and never in a hot loop; those that somebody waits for before those that nobody does. Pure.

use std::{
    collections::{BTreeMap, HashMap},
    hash::Hash,
    time::{Duration, Instant},
};

/// First delay after a failure.
const FIRST_RETRY: Duration = Duration::from_millis(500);

/// Longest delay after failures.
const LAST_RETRY: Duration = Duration::from_mins(2);

/// While others wait, one of them is looked at after so many that go first.
const IN_A_ROW: u32 = 8;

/// What came of a look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// All is as it should be; look again after a while, or when something changes.
    Done(Option<Duration>),
    /// It did not work.
    Failed,
}

/// Who is looked at before whom.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Lane {
    /// Somebody waits for it, or there are few of the kind.
    First,
    /// In its turn.
    #[default]
    Usual,
}

/// How often an object of a kind is looked at, at most.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Pace {
    /// The lane that it is in by itself.
    pub(crate) lane: Lane,
    /// Time in which further changes may come before the first look.
    pub(crate) settle: Duration,
    /// Least time between the end of a look and the next.
    pub(crate) rest: Duration,
}

#[derive(Debug, Default)]
struct Entry {
    queued: Option<(Lane, Slot)>,
    running: bool,
    /// Something changed meanwhile.
    again: Option<Lane>,
    /// The lane of the look that runs, for the one that it may ask for.
    lane: Lane,
    failures: u32,
    not_before: Option<Instant>,
}

type Slot = (Instant, u64);

/// The schedule of all keys.
#[derive(Debug)]
pub(crate) struct Schedule<K> {
    first: BTreeMap<Slot, K>,
    usual: BTreeMap<Slot, K>,
    /// Looks out of the first lane since one out of the other.
    in_a_row: u32,
    entries: HashMap<K, Entry>,
    sequence: u64,
    pace: fn(&K) -> Pace,
}

impl<K: Clone + Eq + Hash> Schedule<K> {
    pub(crate) fn new(pace: fn(&K) -> Pace) -> Self {
        let (first, usual) = (BTreeMap::new(), BTreeMap::new());
        Self { first, usual, in_a_row: 0, entries: HashMap::new(), sequence: 0, pace }
    }

    /// Something about `key` changed.
    pub(crate) fn add(&mut self, key: K, now: Instant) {
        let lane = (self.pace)(&key).lane;
        self.add_to(lane, key, now);
    }

    /// The same, in a lane that is not its own.
    pub(crate) fn add_to(&mut self, lane: Lane, key: K, now: Instant) {
        let pace = (self.pace)(&key);
        let entry = self.entries.entry(key.clone()).or_default();
        if entry.running {
            entry.again = Some(entry.again.map_or(lane, |before| before.min(lane)));
            return;
        }
        let settled = now + pace.settle;
        let at = entry.not_before.map_or(settled, |rested| rested.max(settled));
        self.queue(lane, key, at);
    }

    /// The next key that is due, to be looked at until [`finish`](Self::finish).
    pub(crate) fn take(&mut self, now: Instant) -> Option<K> {
        let is_due = |lane: &BTreeMap<Slot, K>| lane.first_key_value().is_some_and(|((at, _), _)| *at <= now);
        let (first, usual) = (is_due(&self.first), is_due(&self.usual));
        let lane = match (first, usual) {
            (false, false) => return None,
            (true, true) if self.in_a_row >= IN_A_ROW => Lane::Usual,
            (true, _) => Lane::First,
            (false, true) => Lane::Usual,
        };
        self.in_a_row = if lane == Lane::First { self.in_a_row.saturating_add(1) } else { 0 };
        let (_, key) = self.lane(lane).pop_first()?;
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.queued = None;
            entry.running = true;
            entry.lane = lane;
        }
        Some(key)
    }

    /// The look at `key` ended. `jitter` is a random number of [0, 1).
    pub(crate) fn finish(&mut self, key: K, outcome: Outcome, now: Instant, jitter: f64) {
        let rest = (self.pace)(&key).rest;
        let Some(entry) = self.entries.get_mut(&key) else { return };
        entry.running = false;
        entry.not_before = (!rest.is_zero()).then(|| now + rest);
        let again = entry.again.take();
        let lane = again.unwrap_or(entry.lane);
        let wait = match outcome {
            Outcome::Failed => {
                entry.failures = entry.failures.saturating_add(1);
                Some(retry(entry.failures, jitter))
            }
            Outcome::Done(wait) => {
                entry.failures = 0;
                let jittered = wait.map(|w| w.mul_f64(1.0 + jitter * 0.1));
                if again.is_some() { Some(Duration::ZERO) } else { jittered }
            }
        };
        match wait {
            Some(wait) => self.queue(lane, key, now + wait.max(rest)),
            None if rest.is_zero() => drop(self.entries.remove(&key)),
            None => {}
        }
    }

    /// When [`take`](Self::take) gives the next key.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let lanes = [&self.first, &self.usual];
        lanes.into_iter().filter_map(|lane| lane.first_key_value()).map(|((at, _), _)| *at).min()
    }

    /// Keys that wait.
    pub(crate) fn waiting(&self) -> usize {
        self.first.len() + self.usual.len()
    }

    /// Forgets keys that have rested.
    pub(crate) fn sweep(&mut self, now: Instant) {
        self.entries.retain(|_, e| e.running || e.queued.is_some() || e.not_before.is_some_and(|t| t > now));
    }

    fn lane(&mut self, lane: Lane) -> &mut BTreeMap<Slot, K> {
        match lane {
            Lane::First => &mut self.first,
            Lane::Usual => &mut self.usual,
        }
    }

    /// Queues it, but never later or in a later lane than it is.
    fn queue(&mut self, lane: Lane, key: K, at: Instant) {
        let Some(queued) = self.entries.get(&key).map(|entry| entry.queued) else { return };
        let (lane, at) =
            queued.map_or((lane, at), |(before, (earliest, _))| (lane.min(before), at.min(earliest)));
        if let Some((before, slot)) = queued {
            if (before, slot.0) == (lane, at) {
                return;
            }
            self.lane(before).remove(&slot);
        }
        self.sequence += 1;
        let slot = (at, self.sequence);
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.queued = Some((lane, slot));
        }
        self.lane(lane).insert(slot, key);
    }
}

fn retry(failures: u32, jitter: f64) -> Duration {
    let doubled = FIRST_RETRY.saturating_mul(2_u32.saturating_pow(failures.saturating_sub(1).min(16)));
    doubled.min(LAST_RETRY).mul_f64(0.5 + jitter * 0.5)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn schedule() -> Schedule<u8> {
        Schedule::new(|_| Pace::default())
    }

    #[test]
    fn a_change_during_a_look_leads_to_one_more_look() {
        let now = Instant::now();
        let mut queue = schedule();
        queue.add(1, now);
        assert_eq!(queue.take(now), Some(1));
        queue.add(1, now);
        queue.add(1, now);
        assert_eq!(queue.take(now), None, "never twice at a time");
        queue.finish(1, Outcome::Done(None), now, 0.0);
        assert_eq!(queue.take(now), Some(1));
        queue.finish(1, Outcome::Done(None), now, 0.0);
        assert_eq!((queue.take(now), queue.poll_timeout()), (None, None));
        assert!(queue.entries.is_empty());
    }

    #[test]
    fn failures_wait_longer_each_time_and_a_success_forgets_them() {
        let mut now = Instant::now();
        let mut queue = schedule();
        queue.add(1, now);
        let mut waits = Vec::new();
        for _ in 0..12 {
            assert_eq!(queue.take(now), Some(1));
            queue.finish(1, Outcome::Failed, now, 0.999);
            let next = queue.poll_timeout().unwrap();
            waits.push(next - now);
            now = next;
        }
        assert!(waits.is_sorted());
        assert!(waits[0] < FIRST_RETRY && waits[11] > LAST_RETRY.mul_f64(0.99));
        assert_eq!(queue.take(now), Some(1));
        queue.finish(1, Outcome::Done(None), now, 0.0);
        queue.add(1, now);
        queue.take(now);
        queue.finish(1, Outcome::Failed, now, 0.999);
        assert!(queue.poll_timeout().unwrap() - now < FIRST_RETRY);
    }

    #[test]
    fn a_change_brings_a_waiting_retry_forward() {
        let now = Instant::now();
        let mut queue = schedule();
        queue.add(1, now);
        queue.take(now);
        queue.finish(1, Outcome::Failed, now, 0.5);
        queue.add(1, now);
        assert_eq!(queue.take(now), Some(1));
    }

    #[test]
    fn a_key_settles_and_rests() {
        let start = Instant::now();
        let mut queue = Schedule::new(|_: &u8| Pace {
            lane: Lane::Usual,
            settle: Duration::from_millis(100),
            rest: Duration::from_millis(500),
        });
        queue.add(1, start);
        queue.add(1, start + Duration::from_millis(50));
        assert_eq!(queue.poll_timeout(), Some(start + Duration::from_millis(100)), "not put off for ever");
        let now = start + Duration::from_millis(100);
        queue.take(now);
        queue.finish(1, Outcome::Done(None), now, 0.0);
        queue.add(1, now);
        assert_eq!(queue.poll_timeout(), Some(now + Duration::from_millis(500)));
        queue.take(now + Duration::from_millis(500));
        queue.finish(1, Outcome::Done(None), now + Duration::from_millis(500), 0.0);
        queue.sweep(now + Duration::from_secs(2));
        assert!(queue.entries.is_empty());
    }

    #[test]
    fn one_that_somebody_waits_for_is_looked_at_before_a_crowd_that_came_earlier_wherever_it_stands_in_it() {
        let now = Instant::now();
        let mut queue = Schedule::new(|_: &u16| Pace::default());
        for key in 0..10_000 {
            queue.add(key, now);
        }
        queue.add_to(Lane::First, 10_000, now);
        queue.add_to(Lane::First, 9_999, now);
        assert_eq!((queue.take(now), queue.take(now), queue.take(now)), (Some(10_000), Some(9_999), Some(0)));
        assert_eq!(queue.waiting(), 9_998, "each once");
        // What a look asks for, and what changes meanwhile, stays in the lane.
        queue.add(10_000, now);
        queue.finish(10_000, Outcome::Done(None), now, 0.0);
        queue.add_to(Lane::First, 0, now);
        queue.finish(0, Outcome::Done(None), now, 0.0);
        queue.finish(9_999, Outcome::Done(Some(Duration::from_secs(1))), now, 0.0);
        assert_eq!(queue.take(now), Some(0));
        assert_eq!(queue.take(now + Duration::from_secs(2)), Some(9_999));
    }

    #[test]
    fn a_crowd_that_goes_first_holds_nobody_up_for_ever() {
        let now = Instant::now();
        let mut queue = Schedule::new(|_: &u16| Pace::default());
        queue.add(10_000, now);
        for key in 0..100 {
            queue.add_to(Lane::First, key, now);
        }
        let before = std::iter::from_fn(|| queue.take(now)).position(|key| key == 10_000);
        assert_eq!(before, Some(usize::try_from(IN_A_ROW).unwrap()));
    }

    proptest! {
        #[test]
        fn no_change_is_ever_lost(steps in prop::collection::vec((0..5_u8, 0..5_u8), 1..200)) {
            let mut now = Instant::now();
            let mut queue = schedule();
            let mut running: Vec<u8> = Vec::new();
            let mut changed = std::collections::HashSet::new();
            for (key, step) in steps {
                now += Duration::from_millis(10);
                match step {
                    0 | 1 => { queue.add(key, now); changed.insert(key); }
                    4 => { queue.add_to(Lane::First, key, now); changed.insert(key); }
                    2 => if let Some(key) = queue.take(now) {
                        prop_assert!(!running.contains(&key));
                        running.push(key);
                        changed.remove(&key);
                    },
                    _ => if let Some(key) = running.pop() {
                        queue.finish(key, Outcome::Done(None), now, 0.0);
                    },
                }
            }
            for key in running.drain(..) {
                queue.finish(key, Outcome::Done(None), now, 0.0);
            }
            while let Some(key) = queue.take(now) {
                changed.remove(&key);
                queue.finish(key, Outcome::Done(None), now, 0.0);
            }
            prop_assert!(changed.is_empty());
        }
    }
}
