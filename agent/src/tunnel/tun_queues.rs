//! A thread's two queues of the TUN device: one for flows that fill it, and one whose packets are read before those,
//! so that nobody's few packets wait behind somebody's many.
//!
//! The kernel puts a flow's packets into the queue through which one of its other direction was last written, and those
//! of a flow that nobody answers into any.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    time::Instant,
};

use super::{flow_classifier::FlowClassifier, virtio};
use crate::kernel::{TunDevice, TunOffload};

/// Bytes read in one go before the socket has its turn: one of the largest frames.
const TURN: usize = 64 << 10;
/// What a frame counts for at least.
const LEAST: usize = TURN / 128;
/// So far the sparse flows are served before the others, if there are always packets of them: flows that nobody answers
/// may be there, too, and flows that were sparse until now, whose later packets must not overtake these.
const LEAD: usize = 2 << 20;

/// Both queues.
#[derive(Debug)]
pub(super) struct TunQueues {
    bulk: TunDevice,
    sparse: TunDevice,
    flows: FlowClassifier,
    turn: Turn,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TunQueue {
    Bulk,
    Sparse,
}

impl TunQueues {
    pub(super) fn new(bulk: TunDevice, sparse: TunDevice, now: Instant) -> Self {
        Self { bulk, sparse, flows: FlowClassifier::new(now), turn: Turn::default() }
    }

    /// What the device offloads.
    pub(super) const fn offload(&self) -> TunOffload {
        self.bulk.offload()
    }

    /// The device's name.
    pub(super) fn name(&self) -> &str {
        self.bulk.name()
    }

    /// The device.
    pub(super) const fn device(&self) -> &TunDevice {
        &self.bulk
    }

    /// What to wait for.
    pub(super) fn files(&self) -> [BorrowedFd<'_>; 2] {
        [self.bulk.as_fd(), self.sparse.as_fd()]
    }

    /// From now on there may be something to read.
    pub(super) const fn begin_turn(&mut self) {
        self.turn.begin();
    }

    /// Whether this turn ended before there was nothing left.
    pub(super) const fn has_more(&self) -> bool {
        self.turn.is_over()
    }

    /// Reads the next frame of a turn. `None` where there is nothing left, or enough for one turn.
    pub(super) fn read(&mut self, now: Instant, frame: &mut [u8]) -> io::Result<Option<usize>> {
        while let Some(lane) = self.turn.next() {
            let device = match lane {
                TunQueue::Bulk => &self.bulk,
                TunQueue::Sparse => &self.sparse,
            };
            match device.receive(frame) {
                Ok(length) => {
                    self.turn.took(lane, length);
                    self.flows.count(now, self.packet(frame.get(..length).unwrap_or_default()));
                    return Ok(Some(length));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.turn.is_empty(lane),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// Writes a frame.
    pub(super) fn write(&self, frame: &[u8]) -> io::Result<()> {
        let device = if self.flows.is_bulk(self.packet(frame)) { &self.bulk } else { &self.sparse };
        device.send(frame)
    }

    /// The packet of a frame.
    pub(super) fn packet<'a>(&self, frame: &'a [u8]) -> &'a [u8] {
        let header = if self.offload() == TunOffload::None { 0 } else { virtio::HEADER };
        frame.get(header..).unwrap_or_default()
    }
}

/// What is read in one go, and from which queue next.
#[derive(Debug, Default)]
struct Turn {
    taken: usize,
    bulk_is_empty: bool,
    sparse_is_empty: bool,
    /// Bytes by which the sparse flows were served before others since their queue was last empty.
    lead: usize,
}

impl Turn {
    const fn begin(&mut self) {
        *self = Self { taken: 0, bulk_is_empty: false, sparse_is_empty: false, lead: self.lead };
    }

    /// Whether it ended before the queues did.
    const fn is_over(&self) -> bool {
        self.taken >= TURN
    }

    fn next(&self) -> Option<TunQueue> {
        if self.is_over() {
            None
        } else if !self.sparse_is_empty && (self.lead < LEAD || self.bulk_is_empty) {
            Some(TunQueue::Sparse)
        } else if self.bulk_is_empty {
            None
        } else {
            Some(TunQueue::Bulk)
        }
    }

    fn took(&mut self, lane: TunQueue, length: usize) {
        let counted = length.max(LEAST);
        self.taken += counted;
        self.lead = match lane {
            TunQueue::Sparse => (self.lead + counted).min(LEAD + TURN),
            TunQueue::Bulk => self.lead.saturating_sub(counted),
        };
    }

    const fn is_empty(&mut self, lane: TunQueue) {
        match lane {
            TunQueue::Bulk => self.bulk_is_empty = true,
            TunQueue::Sparse => {
                self.sparse_is_empty = true;
                self.lead = 0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads a turn from queues that hold so many frames of so many bytes.
    fn read(
        turn: &mut Turn,
        (mut bulk, large): (usize, usize),
        (mut sparse, small): (usize, usize),
    ) -> Vec<TunQueue> {
        let mut read = Vec::new();
        turn.begin();
        while let Some(lane) = turn.next() {
            let (left, length) = match lane {
                TunQueue::Bulk => (&mut bulk, large),
                TunQueue::Sparse => (&mut sparse, small),
            };
            if *left == 0 {
                turn.is_empty(lane);
                continue;
            }
            *left -= 1;
            turn.took(lane, length);
            read.push(lane);
        }
        read
    }

    #[test]
    fn the_few_are_read_before_the_many() {
        let mut turn = Turn::default();
        let few_first = [[TunQueue::Sparse; 2].as_slice(), &[TunQueue::Bulk; 3]].concat();
        assert_eq!(read(&mut turn, (3, 1400), (2, 84)), few_first);
        assert!(!turn.is_over());
        assert_eq!(read(&mut turn, (0, 1400), (2, 84)), [TunQueue::Sparse; 2]);
        assert_eq!(read(&mut turn, (0, 1400), (0, 84)), []);
    }

    #[test]
    fn a_turn_ends_after_one_large_frame_or_some_small_ones() {
        for (frame, count) in [(65_546, 1), (1400, 47), (64, 128)] {
            let mut turn = Turn::default();
            assert_eq!(read(&mut turn, (1000, frame), (0, 64)), vec![TunQueue::Bulk; count]);
            assert!(turn.is_over());
        }
    }

    #[test]
    fn a_flow_that_is_found_to_be_bulk_is_not_overtaken_by_its_later_packets() {
        let mut turn = Turn::default();
        let mut sparse = LEAD / 1400;
        while sparse > 0 {
            let read = read(&mut turn, (1000, 1400), (sparse, 1400));
            let of_sparse = read.iter().filter(|lane| **lane == TunQueue::Sparse).count();
            assert!(of_sparse == read.len() || of_sparse == sparse);
            sparse -= of_sparse;
        }
    }

    #[test]
    fn whoever_fills_the_queue_that_is_read_first_gets_half_in_the_end() {
        for (large, small) in [(65_000, 65_000), (1400, 64), (64, 1400), (65_000, 64)] {
            let (mut turn, mut of_sparse, mut of_bulk) = (Turn::default(), 0, 0);
            for n in 0..1000 {
                for lane in read(&mut turn, (10_000, large), (10_000, small)) {
                    match lane {
                        _ if n < 100 => {}
                        TunQueue::Sparse => of_sparse += small.max(LEAST),
                        TunQueue::Bulk => of_bulk += large.max(LEAST),
                    }
                }
            }
            assert!(of_sparse.abs_diff(of_bulk) <= 2 * 65_536, "{of_sparse} and {of_bulk}");
        }
    }
}
