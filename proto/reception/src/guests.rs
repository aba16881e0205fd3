//! Connections of whom nobody knows: how many there may be, who waits, and who has to go. Pure.
//!
//! Whoever reaches the port can open connections, and each costs memory once TLS and HTTP/2 run on it. So only some may do that
//! at a time, few of one source; the others wait, and cost a socket. After a while undisturbed a guest goes when somebody waits
//! for its place: what it came for takes less, and what takes longer is tried again. Sources that have fewer guests come first,
//! so that nobody keeps others out by coming often.

use std::{
    collections::{HashMap, VecDeque},
    net::IpAddr,
    time::{Duration, Instant},
};

use crate::place;

/// How many guests there may be, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// Guests at a time.
    pub inside: usize,
    /// Those of one source.
    pub inside_of_one: usize,
    /// Connections that wait, and cost a socket each.
    pub waiting: usize,
    /// Those of one source.
    pub waiting_of_one: usize,
    /// A guest has its place for so long, whoever waits.
    pub undisturbed: Duration,
    /// And no longer than that if nobody does.
    pub longest_stay: Duration,
    /// Who waits for longer is refused: its own patience has ended.
    pub longest_wait: Duration,
}

/// A connection.
pub type Id = u64;

/// What is to become of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// It has a place.
    Enter(Id),
    /// It had one, and has to go.
    End(Id),
    /// It waited, and has to go.
    Refuse(Id),
}

#[derive(Debug, Clone, Copy)]
struct Guest {
    id: Id,
    since: Instant,
}

/// The connections of one source, the oldest first.
#[derive(Debug, Default)]
struct Source {
    inside: VecDeque<Guest>,
    waiting: VecDeque<Guest>,
}

/// All connections of whom nobody knows.
#[derive(Debug)]
pub struct Guests {
    capacity: Capacity,
    sources: HashMap<IpAddr, Source>,
    inside: usize,
    waiting: usize,
}

impl Guests {
    /// Room for so many.
    pub fn new(capacity: Capacity) -> Self {
        Self { capacity, sources: HashMap::new(), inside: 0, waiting: 0 }
    }

    /// A connection came. What becomes of it is told by [`settle`](Self::settle), unless there is no room to wait: `false`.
    pub fn arrive(&mut self, now: Instant, id: Id, from: IpAddr) -> bool {
        let source = self.sources.entry(place(from)).or_default();
        if self.waiting >= self.capacity.waiting || source.waiting.len() >= self.capacity.waiting_of_one {
            return false;
        }
        source.waiting.push_back(Guest { id, since: now });
        self.waiting += 1;
        true
    }

    /// A guest is gone, or none any more, as it is known.
    pub fn leave(&mut self, id: Id, from: IpAddr) {
        let Some(source) = self.sources.get_mut(&place(from)) else { return };
        let before = source.inside.len();
        source.inside.retain(|guest| guest.id != id);
        self.inside -= before - source.inside.len();
    }

    /// Who enters, and who goes.
    pub fn settle(&mut self, now: Instant) -> Vec<Action> {
        let (mut actions, capacity) = (Vec::new(), self.capacity);
        self.expire(now, &mut actions);
        while let Some(from) = self.next_in_line(now) {
            if let Some(crowd) = self.makes_room_for(from) {
                let Some(source) = self.sources.get_mut(&crowd) else { break };
                let Some(guest) = source.inside.pop_front_if(|guest| age(guest, now) >= capacity.undisturbed)
                else {
                    break;
                };
                self.inside -= 1;
                actions.push(Action::End(guest.id));
            }
            let Some(source) = self.sources.get_mut(&from) else { break };
            let Some(guest) = source.waiting.pop_front() else { break };
            self.waiting -= 1;
            source.inside.push_back(Guest { since: now, ..guest });
            self.inside += 1;
            actions.push(Action::Enter(guest.id));
        }
        self.sources.retain(|_, source| !source.inside.is_empty() || !source.waiting.is_empty());
        actions
    }

    /// When [`settle`](Self::settle) is next to be called, if nobody comes or goes.
    pub fn next(&self) -> Option<Instant> {
        let after = |guest: Option<&Guest>, span| guest.map(|guest: &Guest| guest.since + span);
        let ends = self.sources.values().flat_map(|source| {
            [
                after(source.inside.front(), self.capacity.longest_stay),
                after(source.waiting.front(), self.capacity.longest_wait),
            ]
        });
        let crowd = self.crowd().and_then(|crowd| self.sources.get(&crowd));
        let waiting = self.sources.values().filter(|source| !source.waiting.is_empty());
        let makes_room = |source| if self.is_full(source) { Some(source) } else { crowd };
        let rooms = waiting
            .filter_map(makes_room)
            .map(|source| after(source.inside.front(), self.capacity.undisturbed));
        ends.chain(rooms).flatten().min()
    }

    fn is_full(&self, source: &Source) -> bool {
        source.inside.len() >= self.capacity.inside_of_one
    }

    fn expire(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let capacity = self.capacity;
        for source in self.sources.values_mut() {
            while let Some(guest) =
                source.inside.pop_front_if(|guest| age(guest, now) >= capacity.longest_stay)
            {
                self.inside -= 1;
                actions.push(Action::End(guest.id));
            }
            while let Some(guest) =
                source.waiting.pop_front_if(|guest| age(guest, now) >= capacity.longest_wait)
            {
                self.waiting -= 1;
                actions.push(Action::Refuse(guest.id));
            }
        }
    }

    /// Of the sources of which somebody waits and can have a place, the one that has the fewest inside, and has waited longest.
    fn next_in_line(&self, now: Instant) -> Option<IpAddr> {
        let waits = |(from, source): (&IpAddr, &Source)| {
            let first = source.waiting.front()?;
            let has_room = !self.is_full(source)
                || source.inside.front().is_some_and(|guest| age(guest, now) >= self.capacity.undisturbed);
            has_room.then_some((source.inside.len(), first.since, *from))
        };
        self.sources.iter().filter_map(waits).min().map(|(_, _, from)| from)
    }

    /// The source whose oldest guest has to go before another of this source can enter.
    fn makes_room_for(&self, from: IpAddr) -> Option<IpAddr> {
        if self.sources.get(&from).is_some_and(|source| self.is_full(source)) {
            return Some(from);
        }
        self.crowd()
    }

    /// The source that has the most inside, where all places are taken.
    fn crowd(&self) -> Option<IpAddr> {
        if self.inside < self.capacity.inside {
            return None;
        }
        let oldest = |source: &Source| source.inside.front().map(|guest| std::cmp::Reverse(guest.since));
        self.sources
            .iter()
            .max_by_key(|(_, source)| (source.inside.len(), oldest(source)))
            .map(|(from, _)| *from)
    }
}

fn age(guest: &Guest, now: Instant) -> Duration {
    now.saturating_duration_since(guest.since)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;

    const INSIDE: usize = 256;
    const INSIDE_OF_ONE: usize = 64;
    const WAITING: usize = 4096;
    const WAITING_OF_ONE: usize = 1024;
    const UNDISTURBED: Duration = Duration::from_secs(2);
    const LONGEST_STAY: Duration = Duration::from_secs(30);
    const CAPACITY: Capacity = Capacity {
        inside: INSIDE,
        inside_of_one: INSIDE_OF_ONE,
        waiting: WAITING,
        waiting_of_one: WAITING_OF_ONE,
        undisturbed: UNDISTURBED,
        longest_stay: LONGEST_STAY,
        longest_wait: Duration::from_secs(10),
    };

    fn source(n: u32) -> IpAddr {
        Ipv4Addr::from(0x0a00_0000 + n).into()
    }

    const fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    fn entered(actions: &[Action]) -> Vec<Id> {
        let id = |action: &Action| if let Action::Enter(id) = action { Some(*id) } else { None };
        actions.iter().filter_map(id).collect()
    }

    #[test]
    fn a_guest_enters_at_once_and_goes_after_half_a_minute_though_nobody_waits() {
        let (mut guests, now) = (Guests::new(CAPACITY), Instant::now());
        assert!(guests.arrive(now, 1, source(1)));
        assert_eq!(guests.settle(now), [Action::Enter(1)]);
        assert_eq!(guests.next(), Some(now + seconds(30)));
        assert_eq!(guests.settle(now + seconds(29)), []);
        assert_eq!(guests.settle(now + seconds(30)), [Action::End(1)]);
        assert_eq!((guests.next(), guests.sources.len()), (None, 0));
    }

    #[test]
    fn who_comes_a_thousand_times_keeps_nobody_else_waiting() {
        let (mut guests, now) = (Guests::new(CAPACITY), Instant::now());
        let waits = (0..1200).filter(|id| guests.arrive(now, *id, source(1))).count();
        assert_eq!(waits, WAITING_OF_ONE);
        assert_eq!(entered(&guests.settle(now)).len(), INSIDE_OF_ONE);
        guests.arrive(now, 2000, source(2));
        assert_eq!(guests.settle(now), [Action::Enter(2000)]);
    }

    #[test]
    fn where_many_sources_fill_the_place_the_most_crowded_makes_room_and_not_before_two_seconds() {
        let (mut guests, now) = (Guests::new(CAPACITY), Instant::now());
        for id in 0..1000 {
            guests.arrive(now, id, source(u32::try_from(id % 5).unwrap()));
        }
        assert_eq!(entered(&guests.settle(now)).len(), INSIDE);
        guests.arrive(now, 2000, source(9));
        assert_eq!(guests.settle(now + seconds(1)), []);
        let next = guests.next().unwrap();
        assert_eq!(next, now + UNDISTURBED);
        let actions = guests.settle(next);
        assert_eq!(entered(&actions)[0], 2000, "the source with the fewest comes first");
        assert_eq!(guests.inside, INSIDE);
    }

    #[test]
    fn those_of_one_source_come_in_their_order_as_others_leave() {
        let (mut guests, now) = (Guests::new(CAPACITY), Instant::now());
        for id in 0..100 {
            guests.arrive(now, id, source(1));
        }
        guests.settle(now);
        guests.leave(7, source(1));
        guests.leave(7, source(1));
        guests.leave(8, source(1));
        assert_eq!(entered(&guests.settle(now)), [64, 65]);
        let later = guests.settle(now + UNDISTURBED);
        assert_eq!(entered(&later), (66..100).collect::<Vec<_>>());
        assert_eq!(later.len(), 34 * 2, "and the oldest went for them");
    }

    #[test]
    fn where_nobody_is_undisturbed_the_newest_always_enters_at_once() {
        let capacity = Capacity { inside: 4, inside_of_one: 2, undisturbed: Duration::ZERO, ..CAPACITY };
        let (mut guests, now) = (Guests::new(capacity), Instant::now());
        for id in 0..1000 {
            assert!(guests.arrive(now, id, source(u32::try_from(id % 3).unwrap())));
            assert!(guests.settle(now).contains(&Action::Enter(id)));
            assert!(guests.inside <= 4);
        }
        assert_eq!(guests.waiting, 0);
    }

    proptest! {
        #[test]
        fn nobody_is_lost_and_there_are_never_more_than_there_may_be(
            steps in prop::collection::vec((0_u32..6, 0_u64..400, 0_u32..4), 1..400),
        ) {
            let (mut guests, mut now) = (Guests::new(CAPACITY), Instant::now());
            let mut known: HashMap<Id, IpAddr> = HashMap::new();
            for (id, (from, ms, what)) in (0..).zip(steps) {
                now += Duration::from_millis(ms);
                if what == 0 {
                    if let Some((&id, &from)) = known.iter().next() {
                        guests.leave(id, from);
                    }
                } else {
                    for copy in 0..u64::from(what) * 20 {
                        let id = id * 1000 + copy;
                        if guests.arrive(now, id, source(from)) {
                            known.insert(id, source(from));
                        }
                    }
                }
                guests.settle(now);
                let count = |of: fn(&Source) -> usize| guests.sources.values().map(of).sum::<usize>();
                prop_assert_eq!(guests.inside, count(|source| source.inside.len()));
                prop_assert_eq!(guests.waiting, count(|source| source.waiting.len()));
                prop_assert!(guests.inside <= INSIDE && guests.waiting <= WAITING);
                prop_assert!(guests.sources.values().all(|source| source.inside.len() <= INSIDE_OF_ONE));
                prop_assert!(guests.next().is_none_or(|at| at > now), "it would be asked again and again");
            }
            guests.settle(now + LONGEST_STAY);
            guests.settle(now + LONGEST_STAY * 2);
            prop_assert_eq!((guests.inside, guests.waiting, guests.sources.len()), (0, 0, 0));
        }
    }
}
