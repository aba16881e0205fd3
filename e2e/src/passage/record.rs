//! What became of a stream of numbered packets: how many were lost, how long nothing came, and when. Pure.

use std::{collections::BTreeSet, fmt, ops::Range, time::Duration};

use super::moment::Moment;

/// A time in which nothing came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gap {
    /// When the last thing before it came.
    pub began: Moment,
    /// How long nothing came, without the time in which nothing was sent either.
    pub lasted: Duration,
}

/// Both ends' view of one direction.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Record {
    /// When each packet was sent: their numbers are their places.
    sent: Vec<Moment>,
    /// Which packets came, in this order, and when.
    arrived: Vec<(usize, Moment)>,
}

/// What became of the packets sent in a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Passage {
    /// How many were sent.
    pub sent: usize,
    /// How many of them never came.
    pub lost: usize,
    /// How many came that had come before.
    pub repeated: usize,
    /// The longest time in which nothing came.
    pub longest: Gap,
}

impl Record {
    /// Between two packets there is no more than this when all is well: what a sender waits beyond it is its own pause.
    const PACE: Duration = Duration::from_millis(2);

    /// What both ends took down.
    pub fn new(sent: Vec<Moment>, arrived: Vec<(usize, Moment)>) -> Self {
        Self { sent, arrived }
    }

    /// What became of what was sent, and came, in this time.
    pub fn passage(&self, window: Range<Moment>) -> Passage {
        let is_within = |at: &Moment| window.contains(at);
        let mut seen = BTreeSet::new();
        let mut repeated = 0;
        for (number, at) in &self.arrived {
            let is_first = seen.insert(*number);
            repeated += usize::from(!is_first && is_within(at));
        }
        let numbers = self.sent.iter().enumerate().filter(|(_, at)| is_within(at)).map(|(number, _)| number);
        let (mut sent, mut lost) = (0, 0);
        for number in numbers {
            sent += 1;
            lost += usize::from(!seen.contains(&number));
        }
        Passage { sent, lost, repeated, longest: self.longest_gap(window) }
    }

    fn longest_gap(&self, window: Range<Moment>) -> Gap {
        let before = self.arrived.partition_point(|(_, at)| *at < window.start);
        let came = self.arrived.get(before..).unwrap_or_default();
        let came = came.iter().take_while(|(_, at)| *at < window.end);
        let mut longest = Gap { began: window.start, lasted: Duration::ZERO };
        let (mut last, mut last_number) = (window.start, None);
        let edge = (None, window.end);
        for (number, at) in came.map(|(number, at)| (Some(*number), *at)).chain([edge]) {
            let pauses = self.pauses(last_number, number, last..at);
            let lasted = at.since(last).saturating_sub(pauses);
            if lasted > longest.lasted {
                longest = Gap { began: last, lasted };
            }
            (last, last_number) = (at, number);
        }
        longest
    }

    /// For how long the sender paused between two packets; beside the edges of a time, in that time.
    fn pauses(&self, from: Option<usize>, to: Option<usize>, within: Range<Moment>) -> Duration {
        let place = |moment| self.sent.partition_point(|at| *at < moment);
        let from = from.unwrap_or_else(|| place(within.start).saturating_sub(1));
        let to = to.unwrap_or_else(|| place(within.end));
        let sent = self.sent.get(from..self.sent.len().min(to.saturating_add(1))).unwrap_or_default();
        let pairs = sent.iter().zip(sent.iter().skip(1));
        pairs.map(|(one, next)| next.since(*one).saturating_sub(Self::PACE)).sum()
    }
}

impl fmt::Display for Passage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { sent, lost, repeated, longest } = self;
        write!(
            f,
            "{lost} of {sent} lost, {repeated} repeated, longest gap {:.1} ms",
            milliseconds(longest.lasted)
        )
    }
}

/// The longest time in which nothing of a transfer came.
pub fn longest_stall(came: &[Moment], window: Range<Moment>) -> Gap {
    let came = came.iter().copied().filter(|at| window.contains(at));
    let mut longest = Gap { began: window.start, lasted: Duration::ZERO };
    let mut last = window.start;
    for at in came.chain([window.end]) {
        let lasted = at.since(last);
        if lasted > longest.lasted {
            longest = Gap { began: last, lasted };
        }
        last = at;
    }
    longest
}

/// As people read it.
pub(crate) fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    fn at(milliseconds: u64) -> Moment {
        Moment::since_1970(Duration::from_secs(1) + ms(milliseconds))
    }

    /// One packet a millisecond for a hundred of them, each on its way for five; none of `lost` come.
    fn lossy(lost: impl IntoIterator<Item = usize>) -> Record {
        let sent: Vec<_> = (0..100).map(at).collect();
        let lost: BTreeSet<_> = lost.into_iter().collect();
        let came = (0..100).filter(|number| !lost.contains(number));
        let arrived = came.map(|number| (number, sent[number] + ms(5))).collect();
        Record::new(sent, arrived)
    }

    #[test]
    fn a_whole_stream_lost_nothing_and_paused_for_its_pace_alone() {
        let passage = lossy([]).passage(at(10)..at(90));
        assert_eq!((passage.sent, passage.lost, passage.repeated), (80, 0, 0));
        assert_eq!(passage.longest.lasted, ms(1));
    }

    #[test]
    fn what_never_came_is_lost_and_the_longest_gap_is_told_with_its_beginning() {
        let passage = lossy((20..25).chain(40..60)).passage(at(0)..at(100));
        assert_eq!((passage.sent, passage.lost), (100, 25));
        assert_eq!(passage.longest, Gap { began: at(44), lasted: ms(21) });
    }

    #[test]
    fn only_the_packets_of_the_time_in_question_count() {
        let passage = lossy((20..25).chain(40..60)).passage(at(10)..at(35));
        assert_eq!((passage.sent, passage.lost), (25, 5));
        assert_eq!(passage.longest, Gap { began: at(24), lasted: ms(6) });
    }

    #[test]
    fn nothing_at_the_edges_is_a_gap_as_well() {
        let tail = lossy(40..100).passage(at(0)..at(90));
        assert_eq!(tail.longest, Gap { began: at(44), lasted: ms(46) });
        let head = lossy(0..60).passage(at(10)..at(90));
        assert_eq!(head.longest, Gap { began: at(10), lasted: ms(55) });
        let all = lossy(0..100).passage(at(10)..at(90));
        assert_eq!((all.lost, all.longest), (80, Gap { began: at(10), lasted: ms(80) }));
    }

    #[test]
    fn late_packets_are_not_lost_but_the_gap_that_they_leave_is_one() {
        let mut record = lossy(30..50);
        record.arrived.extend((30..50).map(|number| (number, at(130))));
        let passage = record.passage(at(0)..at(100));
        assert_eq!((passage.lost, passage.longest.lasted), (0, ms(21)));
    }

    #[test]
    fn a_packet_that_comes_twice_is_repeated_and_not_more_than_all() {
        let mut record = lossy([]);
        record.arrived.insert(11, (10, at(15)));
        let passage = record.passage(at(0)..at(100));
        assert_eq!((passage.lost, passage.repeated), (0, 1));
    }

    #[test]
    fn while_the_sender_pauses_nothing_is_missed() {
        let sent: Vec<_> = (0..50).chain(90..140).map(at).collect();
        let arrived = sent.iter().enumerate().map(|(number, sent)| (number, *sent + ms(5))).collect();
        let passage = Record::new(sent.clone(), arrived).passage(at(0)..at(140));
        // The silence of 41 ms, less the pause beyond the pace.
        assert_eq!((passage.lost, passage.longest.lasted), (0, ms(5)), "the first packet's way");
        let lost = sent.iter().enumerate().filter(|(number, _)| !(40..60).contains(number));
        let arrived = lost.map(|(number, sent)| (number, *sent + ms(5))).collect();
        let passage = Record::new(sent, arrived).passage(at(0)..at(140));
        assert_eq!((passage.lost, passage.longest.lasted), (20, ms(22)));
    }

    #[test]
    fn a_transfer_stalls_between_two_arrivals_and_at_the_edges() {
        let came = [at(10), at(20), at(70), at(80)];
        assert_eq!(longest_stall(&came, at(10)..at(90)), Gap { began: at(20), lasted: ms(50) });
        assert_eq!(longest_stall(&came, at(10)..at(200)), Gap { began: at(80), lasted: ms(120) });
        assert_eq!(longest_stall(&[], at(0)..at(9)), Gap { began: at(0), lasted: ms(9) });
    }
}
