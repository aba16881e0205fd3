//! Clients whose right to connect ends at a time of the calendar, whether or not anybody is there to say so. Pure.
//!
//! Goes by the wall clock as it is, which may be set at any time, either way: a client whose end has passed is out, and one whose
//! end is to come again is in, as its spec says. No timer follows a clock that is set, so it is looked at every [`LOOK`] at least.

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use super::desired::Desired;
use crate::tunnel::PublicKey;

/// How long a clock that was set goes unnoticed at most.
const LOOK: Duration = Duration::from_secs(10);

/// What of a snapshot is in force.
#[derive(Debug, Default)]
pub(super) struct Ends {
    /// The snapshot as it came.
    told: Option<Arc<Desired>>,
    /// Its ends, the first one first.
    by_time: Vec<(SystemTime, PublicKey)>,
    /// How many of them have passed.
    passed: usize,
    look: Option<Instant>,
}

impl Ends {
    /// Another snapshot came: what of it is in force.
    pub(super) fn take(&mut self, now: Instant, wall: SystemTime, told: Desired) -> Arc<Desired> {
        let told = Arc::new(told);
        self.by_time = told.peers.iter().filter_map(|(key, peer)| Some((peer.not_after?, *key))).collect();
        self.by_time.sort_unstable();
        self.told = Some(Arc::clone(&told));
        self.judge(now, wall);
        self.in_force(&told)
    }

    /// What is in force from now on, where it is something else than before.
    pub(super) fn handle_timeout(&mut self, now: Instant, wall: SystemTime) -> Option<Arc<Desired>> {
        self.look.filter(|at| now >= *at)?;
        let before = self.passed;
        self.judge(now, wall);
        let told = self.told.as_ref().filter(|_| self.passed != before)?;
        Some(self.in_force(told))
    }

    /// What is in force of the snapshot that came last, for whoever begins anew.
    pub(super) fn again(&mut self, now: Instant, wall: SystemTime) -> Option<Arc<Desired>> {
        self.judge(now, wall);
        self.told.as_ref().map(|told| self.in_force(told))
    }

    /// When to look again.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.look
    }

    /// UIDs of the clients whose end has passed.
    pub(super) fn passed(&self) -> Vec<String> {
        let told = self.told.iter();
        told.flat_map(|told| self.over().filter_map(|key| Some(told.peers.get(key)?.client.uid.clone())))
            .collect()
    }

    fn judge(&mut self, now: Instant, wall: SystemTime) {
        self.passed = self.by_time.partition_point(|(end, _)| *end <= wall);
        let next = self.by_time.get(self.passed).and_then(|(end, _)| end.duration_since(wall).ok());
        self.look = (!self.by_time.is_empty()).then(|| now + next.unwrap_or(LOOK).min(LOOK));
    }

    fn over(&self) -> impl Iterator<Item = &PublicKey> {
        self.by_time.iter().take(self.passed).map(|(_, key)| key)
    }

    fn in_force(&self, told: &Arc<Desired>) -> Arc<Desired> {
        if self.passed == 0 {
            return Arc::clone(told);
        }
        let over: HashSet<&PublicKey> = self.over().collect();
        Arc::new(told.without(|key| over.contains(key)))
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use pinhole_proto::v1;
    use proptest::prelude::*;

    use super::*;
    use crate::gateway::desired::tests::{peer, state};

    /// A monotonic clock and one that can be set.
    struct World {
        ends: Ends,
        now: Instant,
        wall: SystemTime,
        in_force: Arc<Desired>,
    }

    fn at(second: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_800_000_000 + second)
    }

    /// Clients 1, 2 and so on with these ends, in seconds.
    fn snapshot(ends: &[Option<u64>]) -> Desired {
        let peer = |(n, end): (u8, &Option<u64>)| v1::Peer {
            not_after: end.map(|end| at(end).into()),
            ..peer(&n.to_string(), n)
        };
        Desired::parse(state((1..).zip(ends).map(peer).collect())).unwrap().0
    }

    impl World {
        fn new(ends: &[Option<u64>]) -> Self {
            let (mut world, now, wall) = (Ends::default(), Instant::now(), at(0));
            let in_force = world.take(now, wall, snapshot(ends));
            Self { ends: world, now, wall, in_force }
        }

        /// Time passes, and all timers go off when they are due.
        fn pass(&mut self, seconds: u64) {
            let until = self.now + Duration::from_secs(seconds);
            while let Some(due) = self.ends.poll_timeout().filter(|due| *due <= until) {
                self.wall += due.saturating_duration_since(self.now);
                self.now = self.now.max(due);
                self.look();
            }
            self.wall += until - self.now;
            self.now = until;
        }

        fn look(&mut self) {
            if let Some(in_force) = self.ends.handle_timeout(self.now, self.wall) {
                self.in_force = in_force;
            }
        }

        fn clients(&self) -> Vec<u8> {
            let mut clients: Vec<u8> = self.in_force.peers.keys().map(|key| key.as_bytes()[0]).collect();
            clients.sort_unstable();
            clients
        }
    }

    #[test]
    fn an_end_bites_to_the_second_without_a_word_of_the_operator() {
        let mut world = World::new(&[None, Some(100), Some(3_600)]);
        world.pass(99);
        assert_eq!(world.clients(), [1, 2, 3]);
        world.pass(1);
        assert_eq!(world.clients(), [1, 3]);
        assert_eq!(world.ends.passed(), ["uid-2"]);
        assert!(!world.in_force.knows("uid-2") && world.in_force.knows("uid-3"));
        world.pass(3_500);
        assert_eq!(world.clients(), [1]);
    }

    #[test]
    fn a_clock_that_jumps_ahead_is_noticed_within_ten_seconds() {
        let mut world = World::new(&[Some(100_000), Some(200_000)]);
        world.pass(3);
        world.wall = at(150_000);
        world.pass(10);
        assert_eq!(world.clients(), [2]);
    }

    #[test]
    fn a_clock_that_is_set_back_gives_back_what_it_took_too_early() {
        let mut world = World::new(&[Some(100_000), Some(50)]);
        world.pass(50);
        world.wall = at(150_000);
        world.pass(10);
        assert_eq!(world.clients(), [] as [u8; 0]);
        world.wall = at(60);
        world.pass(10);
        assert_eq!(world.clients(), [1]);
    }

    #[test]
    fn a_snapshot_that_was_kept_is_judged_by_the_time_at_which_it_is_read() {
        let mut ends = Ends::default();
        let in_force = ends.take(Instant::now(), at(500), snapshot(&[None, Some(499), Some(501)]));
        assert_eq!((in_force.peers.len(), ends.passed()), (2, vec!["uid-2".to_owned()]));
    }

    #[test]
    fn a_snapshot_with_a_later_end_or_none_lets_a_client_in_again() {
        let mut world = World::new(&[Some(10)]);
        world.pass(20);
        assert_eq!(world.clients(), [] as [u8; 0]);
        for later in [Some(1_000), None] {
            world.in_force = world.ends.take(world.now, world.wall, snapshot(&[later]));
            assert_eq!((world.clients(), world.ends.passed()), (vec![1], vec![]));
        }
        assert_eq!(world.ends.poll_timeout(), None, "nobody's right ends");
    }

    proptest! {
        #[test]
        fn whatever_becomes_of_the_clock_within_ten_seconds_those_are_in_whose_end_is_to_come(
            ends in proptest::collection::vec(proptest::option::of(0u64..100_000), 0..20),
            jumps in proptest::collection::vec((0u64..120_000, 0u64..500), 1..30),
        ) {
            let mut world = World::new(&ends);
            for (to, passes) in jumps {
                world.wall = at(to);
                world.pass(10);
                world.pass(passes);
                let due = (1u8..).zip(&ends).filter(|(_, end)| end.is_none_or(|end| at(end) > world.wall));
                prop_assert_eq!(world.clients(), due.map(|(n, _)| n).collect::<Vec<_>>());
                prop_assert!(world.ends.poll_timeout().is_none_or(|due| due > world.now && due <= world.now + LOOK));
            }
        }
    }
}
