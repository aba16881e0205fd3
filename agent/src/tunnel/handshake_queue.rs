//! Initiations that wait for their answers, and how much of the thread's time these may take.
//!
//! An answer costs some 200 µs, a datagram of data one. So data never waits for more than a few handshakes; but when
//! ten thousand clients come back to a gateway that was restarted, they are answered as fast as the processor can.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::{PublicKey, message::INITIATION, path::Path};

/// Places for those of each priority: 8 MB when all are taken.
const FIRST: usize = 4096;
const NEWCOMERS: usize = 16_384;
const SPARE: usize = 16_384;
/// Places for those of each priority beside much data: who comes last waits for two or three seconds.
const NARROW: usize = 768;
/// By then the initiator has sent another one (`REKEY_TIMEOUT`), and does not take an answer to this.
const QUEUE_TIMEOUT: Duration = Duration::from_secs(5);
/// Beside much data, handshakes get one part in so many of the time: some 300 a second.
const SHARE: u32 = 12;
/// Bytes in one priority that are much: what single packets of many peers do not come to.
const MAX_IDLE_BYTES: usize = 32 << 10;
/// How long after much data handshakes get no more than their share.
pub(super) const LULL: Duration = Duration::from_millis(1);
/// How long after much data there are few places.
const LATELY: Duration = Duration::from_secs(1);
/// Where there is not much data: how long until it is looked for again.
const SLICE: Duration = Duration::from_millis(1);

/// Who is answered before whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Priority {
    /// Those who proved their address and do not ask too often.
    First,
    /// Those who did not prove it, and do not ask too often either.
    Newcomer,
    /// Those who proved it and ask often, as ten thousand behind one address do.
    Spare,
}

impl Priority {
    const ALL: [Self; 3] = [Self::First, Self::Newcomer, Self::Spare];

    const fn places(self) -> usize {
        match self {
            Self::First => FIRST,
            Self::Newcomer => NEWCOMERS,
            Self::Spare => SPARE,
        }
    }
}

/// An initiation that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PendingInitiation {
    pub(super) from: Path,
    pub(super) priority: Priority,
    /// Whose it claims to be, where that was found out.
    pub(super) initiator: Option<PublicKey>,
    pub(super) initiation: [u8; INITIATION],
}

/// The initiations that wait, oldest first within each priority.
#[derive(Debug, Default)]
pub(super) struct HandshakeQueue {
    first: VecDeque<(Instant, PendingInitiation)>,
    newcomers: VecDeque<(Instant, PendingInitiation)>,
    spare: VecDeque<(Instant, PendingInitiation)>,
    is_narrow: bool,
}

impl HandshakeQueue {
    /// Whether there are few places: where time is short, whoever comes last would wait in vain.
    pub(super) const fn set_narrow(&mut self, is_narrow: bool) {
        self.is_narrow = is_narrow;
    }

    pub(super) fn has_room(&self, priority: Priority) -> bool {
        let places = if self.is_narrow { NARROW } else { priority.places() };
        self.those_of(priority).len() < places
    }

    pub(super) fn is_empty(&self) -> bool {
        Priority::ALL.iter().all(|&priority| self.those_of(priority).is_empty())
    }

    /// Puts an initiation in line.
    pub(super) fn join(&mut self, now: Instant, caller: PendingInitiation) {
        self.those_of_mut(caller.priority).push_back((now, caller));
    }

    /// Takes the next one whose initiator still waits for the answer.
    pub(super) fn next(&mut self, now: Instant) -> Option<PendingInitiation> {
        for priority in Priority::ALL {
            while let Some((since, caller)) = self.those_of_mut(priority).pop_front() {
                if now.saturating_duration_since(since) < QUEUE_TIMEOUT {
                    return Some(caller);
                }
            }
        }
        // A storm is rare: its memory goes with it.
        *self = Self { is_narrow: self.is_narrow, ..Self::default() };
        None
    }

    const fn those_of(&self, priority: Priority) -> &VecDeque<(Instant, PendingInitiation)> {
        match priority {
            Priority::First => &self.first,
            Priority::Newcomer => &self.newcomers,
            Priority::Spare => &self.spare,
        }
    }

    const fn those_of_mut(&mut self, priority: Priority) -> &mut VecDeque<(Instant, PendingInitiation)> {
        match priority {
            Priority::First => &mut self.first,
            Priority::Newcomer => &mut self.newcomers,
            Priority::Spare => &mut self.spare,
        }
    }
}

/// How long handshakes may be answered now.
#[derive(Debug)]
pub(super) struct Budget {
    saved: Duration,
    /// The last answer took longer than was left for it.
    owed: Duration,
    /// Whether the last grant was of what was saved.
    is_saved: bool,
    counted: Option<Instant>,
    /// When there last was much data.
    busy: Option<Instant>,
    /// Of the last answer.
    cost: Duration,
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            saved: Duration::ZERO,
            owed: Duration::ZERO,
            is_saved: false,
            counted: None,
            busy: None,
            cost: Duration::from_micros(200),
        }
    }
}

impl Budget {
    /// A priority carried so many bytes of data.
    pub(super) fn saw(&mut self, now: Instant, data: usize) {
        if data >= MAX_IDLE_BYTES {
            self.busy = Some(now);
        }
    }

    /// Whether there was much data lately.
    pub(super) fn is_short(&self, now: Instant) -> bool {
        self.busy.is_some_and(|busy| now.saturating_duration_since(busy) < LATELY)
    }

    /// The time for answers at the end of a priority.
    pub(super) fn grant(&mut self, now: Instant) -> Duration {
        let counted = self.counted.replace(now).unwrap_or(now);
        // A stream that fills the tunnel pauses for less: without data for a moment there is no time to spare yet.
        self.is_saved = self.busy.is_some_and(|busy| now.saturating_duration_since(busy) < LULL);
        if !self.is_saved {
            return SLICE;
        }
        let share = now.saturating_duration_since(counted) / SHARE;
        self.saved = (self.saved + share.saturating_sub(self.owed)).min(SLICE);
        self.owed = self.owed.saturating_sub(share);
        if self.saved < self.cost { Duration::ZERO } else { self.saved }
    }

    /// So many answers took so long.
    pub(super) fn spend(&mut self, answers: u32, spent: Duration) {
        if self.is_saved {
            self.owed += spent.saturating_sub(self.saved);
            self.saved = self.saved.saturating_sub(spent);
        }
        if let Some(cost) = spent.checked_div(answers) {
            self.cost = cost.min(SLICE);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    fn caller(n: u16, priority: Priority) -> PendingInitiation {
        let from = SocketAddr::from(([192, 0, 2, 1], n)).into();
        PendingInitiation { from, priority, initiator: None, initiation: [0; INITIATION] }
    }

    fn ports(queue: &mut HandshakeQueue, now: Instant) -> Vec<u16> {
        std::iter::from_fn(|| queue.next(now)).map(|caller| caller.from.remote.port()).collect()
    }

    #[test]
    fn those_with_a_proof_come_first_and_all_in_their_order() {
        let (now, mut queue) = (Instant::now(), HandshakeQueue::default());
        let turns = [
            Priority::Spare,
            Priority::First,
            Priority::Newcomer,
            Priority::Spare,
            Priority::First,
            Priority::Newcomer,
        ];
        for (n, priority) in (1..).zip(turns) {
            queue.join(now, caller(n, priority));
        }
        assert_eq!(ports(&mut queue, now), [2, 5, 3, 6, 1, 4]);
        assert!(queue.is_empty());
    }

    #[test]
    fn who_waited_too_long_has_called_again() {
        let (now, mut queue) = (Instant::now(), HandshakeQueue::default());
        queue.join(now, caller(1, Priority::Spare));
        queue.join(now + Duration::from_secs(1), caller(2, Priority::Spare));
        assert_eq!(ports(&mut queue, now + QUEUE_TIMEOUT), [2]);
    }

    #[test]
    fn the_places_are_bounded_and_their_memory_is_given_back() {
        let (now, mut queue) = (Instant::now(), HandshakeQueue::default());
        let mut taken = 0;
        while queue.has_room(Priority::Spare) {
            queue.join(now, caller(1, Priority::Spare));
            taken += 1;
        }
        assert_eq!(taken, SPARE);
        assert!(queue.has_room(Priority::First));
        assert_eq!(ports(&mut queue, now).len(), SPARE);
        assert_eq!(queue.spare.capacity(), 0);
    }

    /// What part of a second answers get, beside turns of this length with so much data.
    fn share(priority: Duration, data: impl Fn(u32) -> usize) -> f64 {
        let cost = Duration::from_micros(200);
        let from = Instant::now();
        let (mut budget, mut now, mut answered, mut turns) = (Budget::default(), from, Duration::ZERO, 0);
        while now - from < Duration::from_secs(1) {
            now += priority;
            budget.saw(now, data(turns));
            let granted = budget.grant(now);
            let (mut spent, mut count) = (Duration::ZERO, 0);
            while spent < granted {
                spent += cost;
                count += 1;
            }
            budget.spend(count, spent);
            now += spent;
            answered += spent;
            turns += 1;
        }
        answered.as_secs_f64() / (now - from).as_secs_f64()
    }

    #[test]
    fn places_are_few_where_time_is_short() {
        let (now, mut queue) = (Instant::now(), HandshakeQueue::default());
        for _ in 0..NARROW {
            queue.join(now, caller(1, Priority::Newcomer));
        }
        assert!(queue.has_room(Priority::Newcomer));
        queue.set_narrow(true);
        assert!(!queue.has_room(Priority::Newcomer));
        assert!(
            queue.has_room(Priority::First) && queue.has_room(Priority::Spare),
            "each priority has its own"
        );
        let mut budget = Budget::default();
        budget.saw(now, 1500);
        assert!(!budget.is_short(now));
        budget.saw(now, MAX_IDLE_BYTES);
        assert!(budget.is_short(now + LATELY / 2) && !budget.is_short(now + LATELY));
    }

    #[test]
    fn beside_much_data_answers_get_their_share_however_short_the_turns_are_and_however_the_data_comes() {
        let wanted = 1.0 / f64::from(SHARE);
        let wanted = 0.8 * wanted..1.2 * wanted;
        for priority in [20, 400, 5000].map(Duration::from_micros) {
            let share = share(priority, |_| MAX_IDLE_BYTES);
            assert!(wanted.contains(&share), "{priority:?}: {share}");
        }
        let share = share(
            Duration::from_micros(50),
            |priority| if priority % 8 == 0 { 8 * MAX_IDLE_BYTES } else { 0 },
        );
        assert!(wanted.contains(&share), "in bursts: {share}");
    }

    #[test]
    fn beside_single_packets_and_none_answers_get_nearly_all() {
        for data in [0, 1500] {
            assert!(share(Duration::from_micros(20), |_| data) > 0.95);
        }
    }
}
