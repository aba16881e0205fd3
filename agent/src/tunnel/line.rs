//! Initiations that wait for their answers, and how much of the thread's time these may take.
//!
//! An answer costs some 200 µs, a datagram of data one. So data never waits for more than a few handshakes; but when
//! ten thousand clients come back to a gateway that was restarted, they are answered as fast as the processor can.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::{PublicKey, message::INITIATION, path::Path};

/// Places for those whose turn comes first, and for the others: 4 MB when all are taken.
const FIRST: usize = 4096;
const SPARE: usize = 16_384;
/// By then the initiator has sent another one (`REKEY_TIMEOUT`), and does not take an answer to this.
const FRESH: Duration = Duration::from_secs(5);
/// Handshakes get one part in so many of the time that data takes.
const SHARE: u32 = 8;
/// Where there is no data: how long until it is looked for again.
const SLICE: Duration = Duration::from_millis(2);

/// Who is answered before whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// Those who proved their address and do not ask too often.
    First,
    /// All others, as time allows.
    Spare,
}

/// An initiation that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Caller {
    pub(super) from: Path,
    pub(super) turn: Turn,
    /// Whose it claims to be, where that was found out.
    pub(super) initiator: Option<PublicKey>,
    pub(super) initiation: [u8; INITIATION],
}

/// The initiations that wait, oldest first within each turn.
#[derive(Debug, Default)]
pub(super) struct Line {
    first: VecDeque<(Instant, Caller)>,
    spare: VecDeque<(Instant, Caller)>,
}

impl Line {
    pub(super) fn has_room(&self, turn: Turn) -> bool {
        match turn {
            Turn::First => self.first.len() < FIRST,
            Turn::Spare => self.spare.len() < SPARE,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.first.is_empty() && self.spare.is_empty()
    }

    /// Puts an initiation in line.
    pub(super) fn join(&mut self, now: Instant, caller: Caller) {
        match caller.turn {
            Turn::First => self.first.push_back((now, caller)),
            Turn::Spare => self.spare.push_back((now, caller)),
        }
    }

    /// Takes the next one whose initiator still waits for the answer.
    pub(super) fn next(&mut self, now: Instant) -> Option<Caller> {
        while let Some((since, caller)) = self.first.pop_front().or_else(|| self.spare.pop_front()) {
            if now.saturating_duration_since(since) < FRESH {
                return Some(caller);
            }
        }
        // A storm is rare: its memory goes with it.
        *self = Self::default();
        None
    }
}

/// How long handshakes may be answered now.
#[derive(Debug)]
pub(super) struct Budget {
    saved: Duration,
    /// Of the last answer.
    cost: Duration,
}

impl Default for Budget {
    fn default() -> Self {
        Self { saved: Duration::ZERO, cost: Duration::from_micros(200) }
    }
}

impl Budget {
    /// The time for answers, after data took so much; `None` where there was none.
    pub(super) fn grant(&mut self, data: Option<Duration>) -> Duration {
        let Some(data) = data else { return SLICE };
        self.saved = (self.saved + data / SHARE).min(SLICE);
        // Short turns must not each get an answer for the little that they saved.
        if self.saved < self.cost { Duration::ZERO } else { self.saved }
    }

    /// So many answers took so long.
    pub(super) fn spend(&mut self, answers: u32, spent: Duration) {
        self.saved = self.saved.saturating_sub(spent);
        if let Some(cost) = spent.checked_div(answers) {
            self.cost = cost.min(SLICE);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    fn caller(n: u16, turn: Turn) -> Caller {
        let from = SocketAddr::from(([192, 0, 2, 1], n)).into();
        Caller { from, turn, initiator: None, initiation: [0; INITIATION] }
    }

    fn ports(line: &mut Line, now: Instant) -> Vec<u16> {
        std::iter::from_fn(|| line.next(now)).map(|caller| caller.from.remote.port()).collect()
    }

    #[test]
    fn those_with_a_proof_come_first_and_all_in_their_order() {
        let (now, mut line) = (Instant::now(), Line::default());
        for (n, turn) in [(1, Turn::Spare), (2, Turn::First), (3, Turn::Spare), (4, Turn::First)] {
            line.join(now, caller(n, turn));
        }
        assert_eq!(ports(&mut line, now), [2, 4, 1, 3]);
        assert!(line.is_empty());
    }

    #[test]
    fn who_waited_too_long_has_called_again() {
        let (now, mut line) = (Instant::now(), Line::default());
        line.join(now, caller(1, Turn::Spare));
        line.join(now + Duration::from_secs(1), caller(2, Turn::Spare));
        assert_eq!(ports(&mut line, now + FRESH), [2]);
    }

    #[test]
    fn the_places_are_bounded_and_their_memory_is_given_back() {
        let (now, mut line) = (Instant::now(), Line::default());
        let mut taken = 0;
        while line.has_room(Turn::Spare) {
            line.join(now, caller(1, Turn::Spare));
            taken += 1;
        }
        assert_eq!(taken, SPARE);
        assert!(line.has_room(Turn::First));
        assert_eq!(ports(&mut line, now).len(), SPARE);
        assert_eq!(line.spare.capacity(), 0);
    }

    #[test]
    fn beside_data_answers_get_an_eighth_however_short_the_turns_are() {
        let cost = Duration::from_micros(200);
        for turn in [20, 400, 5000].map(Duration::from_micros) {
            let (mut budget, mut data, mut answers) = (Budget::default(), Duration::ZERO, 0);
            while data < Duration::from_secs(1) {
                data += turn;
                let granted = budget.grant(Some(turn));
                let mut spent = Duration::ZERO;
                let mut count = 0;
                while spent < granted {
                    spent += cost;
                    count += 1;
                }
                budget.spend(count, spent);
                answers += count;
            }
            let share = (cost * answers).as_secs_f64() / data.as_secs_f64();
            assert!((0.11..=0.16).contains(&share), "{share} with turns of {turn:?}");
        }
        assert_eq!(Budget::default().grant(None), SLICE);
    }
}
