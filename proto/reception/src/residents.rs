//! Connections of those who are known: how many one may have, and all together. Pure.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use crate::Id;

/// The connections of all who are known. One that has more than it may have loses its oldest: whoever moves from network to
/// network leaves such behind. Where all have too many, the one with the most loses its oldest; where each has but one, the
/// newcomer goes.
#[derive(Debug)]
pub struct Residents {
    most: usize,
    most_of_one: usize,
    /// The oldest first.
    connections: HashMap<Arc<str>, VecDeque<Id>>,
    all: usize,
}

impl Residents {
    /// At most `most` connections in all, and `most_of_one` of one; both at least 1.
    pub fn new(most: usize, most_of_one: usize) -> Self {
        Self { most, most_of_one, connections: HashMap::new(), all: 0 }
    }

    /// A connection of `name` came. Yields the one that has to go for it.
    #[must_use]
    pub fn arrive(&mut self, id: Id, name: &Arc<str>) -> Option<Id> {
        let own = self.connections.entry(Arc::clone(name)).or_default();
        own.push_back(id);
        self.all += 1;
        let count = own.len();
        if count > self.most_of_one {
            return self.take_oldest(&Arc::clone(name));
        }
        if self.all <= self.most {
            return None;
        }
        let crowd = self.connections.iter().max_by_key(|(_, connections)| connections.len());
        let crowd =
            crowd.filter(|(_, connections)| connections.len() > count).map(|(name, _)| Arc::clone(name));
        self.take_oldest(&crowd.unwrap_or_else(|| Arc::clone(name)))
    }

    /// A connection of `name` is gone.
    pub fn leave(&mut self, id: Id, name: &Arc<str>) {
        let Some(connections) = self.connections.get_mut(name) else { return };
        let before = connections.len();
        connections.retain(|connection| *connection != id);
        self.all -= before - connections.len();
        if connections.is_empty() {
            self.connections.remove(name);
        }
    }

    fn take_oldest(&mut self, name: &Arc<str>) -> Option<Id> {
        let oldest = self.connections.get(name)?.front().copied()?;
        self.leave(oldest, name);
        Some(oldest)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(n: u32) -> Arc<str> {
        n.to_string().into()
    }

    #[test]
    fn one_that_comes_again_and_again_loses_its_oldest_and_nobody_else_does() {
        let mut residents = Residents::new(100, 4);
        assert_eq!(residents.arrive(1000, &name(2)), None);
        let gone: Vec<_> = (0..10).map(|id| residents.arrive(id, &name(1))).collect();
        assert_eq!(gone[..4], [None; 4]);
        assert_eq!(gone[4..], (0..6).map(Some).collect::<Vec<_>>());
    }

    #[test]
    fn in_a_full_house_whoever_has_the_most_makes_room_and_one_of_each_stays() {
        let mut residents = Residents::new(6, 4);
        for id in 0..4 {
            assert_eq!(residents.arrive(id, &name(1)), None);
        }
        assert_eq!((residents.arrive(10, &name(2)), residents.arrive(11, &name(3))), (None, None));
        let gone: Vec<_> = (20..24).map(|id| residents.arrive(id.into(), &name(id))).collect();
        assert_eq!(gone, [Some(0), Some(1), Some(2), Some(23)]);
    }

    #[test]
    fn ten_thousand_clients_with_a_session_and_a_canary_each_have_room() {
        let mut residents = Residents::new(32_768, 8);
        for id in 0..20_000_u32 {
            assert_eq!(residents.arrive(id.into(), &name(id / 2)), None);
        }
    }

    proptest! {
        #[test]
        fn there_are_never_more_than_there_may_be_and_nobody_is_lost(
            steps in prop::collection::vec((0_u32..12, any::<bool>()), 1..400),
        ) {
            let mut residents = Residents::new(10, 3);
            let mut known: Vec<(Id, u32)> = Vec::new();
            for (id, (who, leaves)) in (0..).zip(steps) {
                if leaves {
                    if let Some((id, who)) = known.pop() {
                        residents.leave(id, &name(who));
                        residents.leave(id, &name(who));
                    }
                } else {
                    known.push((id, who));
                    if let Some(gone) = residents.arrive(id, &name(who)) {
                        known.retain(|(id, _)| *id != gone);
                    }
                }
                prop_assert_eq!(residents.all, known.len());
                prop_assert_eq!(residents.all, residents.connections.values().map(VecDeque::len).sum::<usize>());
                prop_assert!(residents.all <= 10);
                prop_assert!(residents.connections.values().all(|own| !own.is_empty() && own.len() <= 3));
            }
        }
    }
}
