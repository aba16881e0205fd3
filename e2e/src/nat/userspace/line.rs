//! What happens to packets on their way: delay and jitter, in order.

use std::{collections::VecDeque, time::Duration};

use super::random::Random;
use crate::nat::model::Time;

/// One direction of a way with a delay. Holds a bounded number of packets.
#[derive(Debug, Default)]
pub(crate) struct Line {
    packets: VecDeque<(Time, Vec<u8>)>,
}

impl Line {
    /// A hundred milliseconds at several hundred Mbit/s.
    const CAPACITY: usize = 8192;

    /// Puts a packet in; false when it had no room.
    pub(crate) fn push(
        &mut self,
        now: Time,
        delay: Duration,
        jitter: Duration,
        random: &mut Random,
        packet: Vec<u8>,
    ) -> bool {
        if self.packets.len() >= Self::CAPACITY {
            return false;
        }
        let due = now + delay + jitter.mul_f64(random.fraction());
        // A packet does not overtake the one before it.
        let due = self.packets.back().map_or(due, |(last, _)| due.max(*last));
        self.packets.push_back((due, packet));
        true
    }

    /// The next packet that has arrived.
    pub(crate) fn pop(&mut self, now: Time) -> Option<Vec<u8>> {
        self.packets.pop_front_if(|(due, _)| *due <= now).map(|(_, packet)| packet)
    }

    /// When the next packet arrives.
    pub(crate) fn next(&self) -> Option<Time> {
        self.packets.front().map(|(due, _)| *due)
    }
}
