//! How many experiments at a time a NAT's table has room for.

use std::time::Instant;

use super::{Keeper, Stage};

/// Of fewer than these, as many get lost where one in ten packets does.
const FEW: usize = 8;
/// What is left of a ladder that did not fit.
const SHARE: usize = 4;
const LEAST: usize = 2;

/// What the first beats of a ladder show. Where a table is full the next mapping is refused, or takes the place of
/// another one: many are not answered at once, although the path works: more than two in five, as packets that get lost would
/// not do.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Room {
    /// So many, as more did not fit. `None`: no table was full yet.
    most: Option<usize>,
    opened: usize,
    unanswered: usize,
    answered: bool,
}

impl Room {
    /// So many search steps can go out together.
    pub(super) fn most(&self) -> usize {
        self.most.unwrap_or(usize::MAX)
    }

    /// A ladder goes out.
    pub(super) fn opened(&mut self, steps: usize) {
        (self.opened, self.unanswered, self.answered) = (steps, 0, false);
    }

    /// The first beat of a search step was not answered at once.
    pub(super) fn unanswered(&mut self) {
        self.unanswered += 1;
    }

    /// Something was answered.
    pub(super) fn answered(&mut self) {
        self.answered = true;
    }

    fn is_short(&self) -> bool {
        self.answered && self.opened >= FEW && self.unanswered * 5 > self.opened * 2
    }

    /// The ladder that went out was too much for it.
    fn shrink(&mut self) {
        self.most = Some((self.opened / SHARE).max(LEAST));
        self.opened(0);
    }
}

impl Keeper {
    /// Begins a ladder anew that a table has no room for, with fewer search steps at a time.
    pub(super) fn make_do_with_less(&mut self, now: Instant) {
        if self.stage == Stage::Climbing && self.room.is_short() {
            self.room.shrink();
            self.climb_from_the_ground(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(steps: usize, unanswered: usize, answered: bool) -> usize {
        let mut room = Room::default();
        room.opened(steps);
        (0..unanswered).for_each(|_| room.unanswered());
        if answered {
            room.answered();
        }
        if room.is_short() {
            room.shrink();
        }
        room.most()
    }

    #[test]
    fn a_table_is_full_where_many_rungs_are_ignored_and_not_all() {
        assert_eq!(after(32, 13, true), 8);
        assert_eq!(after(32, 12, true), usize::MAX, "packets get lost");
        assert_eq!(after(32, 32, false), usize::MAX, "the path does not work");
        assert_eq!(after(7, 7, true), usize::MAX, "too few to tell it from loss");
        assert_eq!(after(8, 4, true), LEAST);
    }
}
