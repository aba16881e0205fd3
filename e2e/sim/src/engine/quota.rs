//! A table with room for few of one subscriber's mappings.

use super::mapping::Mapping;
use crate::{
    model::{Full, Quota, Time, Timers},
    rng::Rng,
};

/// Whether there is room, and who has to make it.
#[derive(Debug)]
pub(super) struct Room {
    quota: Quota,
    rng: Rng,
}

impl Room {
    pub(super) fn new(quota: Quota, rng: Rng) -> Self {
        Self { quota, rng }
    }

    /// A mapping is to be made beside these; one may have to go for it. `false`: it must not be made.
    pub(super) fn make(&mut self, now: Time, mut mappings: Vec<(&mut Mapping, Timers)>) -> bool {
        mappings.retain(|(mapping, timers)| mapping.is_alive(now, timers));
        if mappings.len() < usize::try_from(self.quota.mappings).unwrap_or(usize::MAX) {
            return true;
        }
        let victim = match self.quota.full {
            Full::Refuse => None,
            Full::EvictOldest => mappings.iter_mut().min_by_key(|(mapping, _)| mapping.used()),
            Full::EvictRandom => {
                let place = self.rng.next_u64() % (mappings.len() as u64).max(1);
                usize::try_from(place).ok().and_then(|place| mappings.get_mut(place))
            }
        };
        let Some((mapping, _)) = victim else { return false };
        mapping.evict(now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{engine::mapping::Maker, model::Profile};

    /// Which of three mappings, used at 3, 1 and 2 s, live on when a fourth is made, in a table of three.
    fn survivors(full: Full, seed: u64) -> (bool, [bool; 3]) {
        let timers = Timers::new(&Profile::new("plain", 100.0, 100.0), 0.0);
        let mut maker = Maker::new(None, None, Rng::new(1));
        let mut all = [3, 1, 2].map(|second| {
            let mut mapping = maker.open(Time::ZERO);
            mapping.outbound(Time::from_secs(second), &timers);
            mapping
        });
        let mut room = Room::new(Quota { mappings: 3, full }, Rng::new(seed));
        let now = Time::from_secs(10);
        let made = room.make(now, all.iter_mut().map(|mapping| (mapping, timers)).collect());
        (made, all.map(|mapping| mapping.is_alive(now, &timers)))
    }

    #[test]
    fn a_full_table_refuses_or_lets_the_least_recently_used_go() {
        assert_eq!(survivors(Full::Refuse, 1), (false, [true; 3]));
        assert_eq!(survivors(Full::EvictOldest, 1), (true, [true, false, true]));
    }

    #[test]
    fn any_of_them_may_go_at_random() {
        let mut went = [false; 3];
        for seed in 0..50 {
            let (made, alive) = survivors(Full::EvictRandom, seed);
            assert!(made && alive.iter().filter(|alive| !**alive).count() == 1);
            for (went, alive) in went.iter_mut().zip(alive) {
                *went |= !alive;
            }
        }
        assert_eq!(went, [true; 3]);
    }

    #[test]
    fn what_has_ended_takes_no_room() {
        let timers = Timers::new(&Profile::new("plain", 100.0, 100.0), 0.0);
        let mut mapping = Maker::new(None, None, Rng::new(1)).open(Time::ZERO);
        let mut room = Room::new(Quota { mappings: 1, full: Full::Refuse }, Rng::new(1));
        assert!(!room.make(Time::from_secs(99), vec![(&mut mapping, timers)]));
        assert!(room.make(Time::from_secs(100), vec![(&mut mapping, timers)]));
    }
}
