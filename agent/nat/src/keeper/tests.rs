//! The keeper against a model of a NAT and a gateway, in virtual time.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
};

use proptest::prelude::*;

use super::{lifetime::NARROWEST, *};
use crate::{Cause, Promotion};

/// Bursts before a new lifetime is used up to its margin.
const PROBATION: u32 = 16;
const RTT: Duration = Duration::from_millis(40);

/// How a NAT treats its bindings.
#[derive(Debug, Clone, Copy)]
struct Behaviour {
    unpromoted: Duration,
    promoted: Duration,
    promoted_after: Duration,
    /// A binding that comes back gets another port.
    moves: bool,
    sweep: Option<Sweep>,
}

/// A NAT that looks at its timers once in a while: what has run out goes at the next look.
#[derive(Debug, Clone, Copy)]
struct Sweep {
    every: Duration,
    /// The first look, after the start.
    phase: Duration,
}

impl Behaviour {
    fn one_class(lifetime: u64) -> Self {
        let lifetime = Duration::from_secs(lifetime);
        Self {
            unpromoted: lifetime,
            promoted: lifetime,
            promoted_after: Duration::ZERO,
            moves: false,
            sweep: None,
        }
    }

    fn two_class(unpromoted: u64, promoted: u64, promoted_after: u64) -> Self {
        Self {
            unpromoted: Duration::from_secs(unpromoted),
            promoted: Duration::from_secs(promoted),
            promoted_after: Duration::from_secs(promoted_after),
            moves: false,
            sweep: None,
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Mapping {
    born: Instant,
    replied: bool,
    promoted: bool,
    refreshed: Instant,
    port: u16,
}

enum Event {
    Request(Beat, u16),
    Reply(Reply, u16),
    Wake(Channel, u64, usize, u16),
    Woken(Wake, u16),
}

/// Keeper, NAT and gateway.
struct World {
    now: Instant,
    start: Instant,
    nat: Behaviour,
    mappings: HashMap<Channel, Mapping>,
    next_port: u16,
    events: BTreeMap<(Instant, u64), Event>,
    order: u64,
    /// The beat that the wake of a channel belongs to.
    pending: HashMap<Channel, u64>,
    endpoint: u16,
    keeper: Keeper,
    /// Drops everything.
    broken: bool,
    churn: Vec<Churn>,
    lost: u32,
    jitter: Jitter,
    loss: f64,
    live_beats: Vec<Instant>,
    /// Steps without any progress of time.
    spins: u32,
}

impl World {
    fn new(nat: Behaviour) -> Self {
        let now = Instant::now();
        Self {
            now,
            start: now,
            nat,
            mappings: HashMap::new(),
            next_port: 1000,
            events: BTreeMap::new(),
            order: 0,
            pending: HashMap::new(),
            endpoint: 0,
            keeper: Keeper::new(now, Policy::default(), None, 7),
            broken: false,
            churn: Vec::new(),
            lost: 0,
            jitter: Jitter::new(3),
            loss: 0.0,
            live_beats: Vec::new(),
            spins: 0,
        }
    }

    fn lossy(mut self, loss: f64) -> Self {
        self.loss = loss;
        self
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            self.act();
            let event = self.events.first_key_value().map(|(&(at, _), _)| at);
            let next = event.into_iter().chain(self.keeper.poll_timeout()).min().unwrap_or(end + RTT);
            if next > end {
                self.now = end;
                return;
            }
            assert!(next > self.now || self.spins < 1000, "{:?}", self.keeper);
            self.spins = if next > self.now { 0 } else { self.spins + 1 };
            self.now = self.now.max(next);
            if event.is_some_and(|at| at <= self.now) {
                let (_, event) = self.events.pop_first().unwrap();
                self.handle(&event);
            } else {
                self.keeper.handle_timeout(self.now);
            }
        }
    }

    fn act(&mut self) {
        while let Some(action) = self.keeper.poll_action() {
            match action {
                Action::Send(beat) => {
                    if beat.channel == Channel::Live {
                        self.live_beats.push(self.now);
                    }
                    if !self.drops()
                        && let Some(port) = self.outbound(beat.channel)
                    {
                        self.after(RTT / 2, Event::Request(beat, port));
                    }
                }
                Action::Prove => self.endpoint = self.mappings[&Channel::Live].port,
                Action::Event(churn) => self.churn.push(churn),
                Action::Lost => self.lost += 1,
                Action::Close(channel) => {
                    self.pending.remove(&channel);
                }
                Action::Confirmed { .. } => {}
            }
        }
    }

    fn drops(&mut self) -> bool {
        #[expect(clippy::cast_precision_loss, reason = "a share")]
        let drawn = self.jitter.next_u64() as f64 / u64::MAX as f64;
        self.broken || drawn < self.loss
    }

    fn after(&mut self, delay: Duration, event: Event) {
        self.order += 1;
        self.events.insert((self.now + delay, self.order), event);
    }

    fn handle(&mut self, event: &Event) {
        match *event {
            Event::Request(beat, port) => {
                let observed = SocketAddr::from(([192, 0, 2, 1], port));
                if beat.channel == Channel::Live && self.endpoint == 0 {
                    self.endpoint = port;
                }
                let is_endpoint = port == self.endpoint;
                let reply = Reply { channel: beat.channel, seq: beat.seq, observed, is_endpoint };
                self.after(RTT / 2, Event::Reply(reply, port));
                self.pending.insert(beat.channel, beat.seq);
                if let Some(delay) = beat.wake {
                    self.after(delay, Event::Wake(beat.channel, beat.seq, 0, port));
                }
            }
            Event::Reply(reply, port) => {
                if !self.drops() && self.inbound(reply.channel, port) {
                    self.keeper.handle_reply(self.now, reply);
                }
            }
            Event::Wake(channel, seq, count, port) => {
                if self.pending.get(&channel) == Some(&seq) {
                    self.after(RTT / 2, Event::Woken(Wake { channel, seq }, port));
                    if let Some(&next) = Beat::WAKES.get(count + 1) {
                        self.after(
                            next.saturating_sub(Beat::WAKES[count]),
                            Event::Wake(channel, seq, count + 1, port),
                        );
                    }
                }
            }
            Event::Woken(wake, port) => {
                if !self.drops() && self.inbound(wake.channel, port) {
                    self.keeper.handle_wake(self.now, wake);
                }
            }
        }
    }

    fn is_alive(&self, mapping: &Mapping) -> bool {
        let lifetime = if mapping.promoted { self.nat.promoted } else { self.nat.unpromoted };
        let runs_out = mapping.refreshed + lifetime;
        self.now < self.nat.sweep.map_or(runs_out, |sweep| self.next_look(sweep, runs_out))
    }

    fn next_look(&self, sweep: Sweep, runs_out: Instant) -> Instant {
        let first = self.start + sweep.phase;
        let looks = runs_out.saturating_duration_since(first).div_duration_f64(sweep.every).ceil();
        first + sweep.every.mul_f64(looks)
    }

    fn outbound(&mut self, channel: Channel) -> Option<u16> {
        let alive = self.mappings.get(&channel).is_some_and(|mapping| self.is_alive(mapping));
        if !alive {
            let old = self.mappings.get(&channel).map(|mapping| mapping.port).filter(|_| !self.nat.moves);
            self.next_port += 1;
            let port = old.unwrap_or(self.next_port);
            let mapping =
                Mapping { born: self.now, replied: false, promoted: false, refreshed: self.now, port };
            self.mappings.insert(channel, mapping);
        }
        let (now, nat) = (self.now, self.nat);
        let mapping = self.mappings.get_mut(&channel)?;
        mapping.refreshed = now;
        mapping.promoted |= mapping.replied && now >= mapping.born + nat.promoted_after;
        Some(mapping.port)
    }

    fn inbound(&mut self, channel: Channel, port: u16) -> bool {
        let alive = self.mappings.get(&channel).is_some_and(|mapping| self.is_alive(mapping));
        let now = self.now;
        let Some(mapping) = self.mappings.get_mut(&channel).filter(|mapping| alive && mapping.port == port)
        else {
            return false;
        };
        mapping.replied = true;
        mapping.refreshed = now;
        true
    }

    fn flush(&mut self) {
        // The port of the live mapping is remembered for the case that it is preserved.
        for mapping in self.mappings.values_mut() {
            mapping.refreshed = self.start.checked_sub(Duration::from_hours(1)).unwrap();
            mapping.promoted = false;
        }
    }

    /// Whether the gateway could reach the client now.
    fn is_reachable(&self) -> bool {
        self.mappings
            .get(&Channel::Live)
            .is_some_and(|mapping| self.is_alive(mapping) && mapping.port == self.endpoint)
    }

    /// Share of the time in which the client could be reached.
    fn reachable_for(&mut self, time: Duration) -> f64 {
        let step = Duration::from_millis(500);
        let mut reachable = 0_u32;
        let steps = u32::try_from(time.as_millis() / step.as_millis()).unwrap();
        for _ in 0..steps {
            self.run(step);
            reachable += u32::from(self.is_reachable());
        }
        f64::from(reachable) / f64::from(steps)
    }
}

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

#[test]
fn every_lifetime_is_bracketed_in_time_and_used_to_nearly_its_end() {
    for lifetime in [6, 7, 10, 15, 24, 30, 45, 60, 90, 120, 180, 240, 350, 690] {
        let mut world = World::new(Behaviour::one_class(lifetime));
        let limit = seconds(lifetime).mul_f64(1.3) + seconds(30);
        while world.keeper.binding().confidence < Confidence::Bracketed {
            assert!(world.now < world.start + limit, "{lifetime} s: {:?}", world.keeper.binding());
            world.run(Duration::from_millis(500));
            assert!(world.is_reachable() || world.now < world.start + seconds(1), "{lifetime} s");
        }
        world.run(seconds(lifetime) * 6 + seconds(120));
        let binding = world.keeper.binding();
        assert!(binding.at_least <= seconds(lifetime) + RTT, "{lifetime} s: {binding:?}");
        assert!(binding.at_least >= seconds(lifetime).mul_f64(0.9), "{lifetime} s: {binding:?}");
        assert_eq!(binding.promotion, Promotion::None, "{lifetime} s");
        let interval = world.keeper.interval();
        assert!(interval >= seconds(lifetime).mul_f64(0.7), "{lifetime} s: {interval:?}");
        assert_eq!(world.keeper.stats().suspected_losses, 0, "{lifetime} s");
        let reachable = world.reachable_for(seconds(lifetime) * 40);
        assert!((reachable - 1.0).abs() < 1e-9, "{lifetime} s: {reachable}");
    }
}

#[test]
fn a_steady_burst_has_at_most_six_packets() {
    let one_class = [10, 30, 60, 180, 690].map(Behaviour::one_class);
    let others =
        [Behaviour::two_class(30, 120, 2), Behaviour::two_class(10, 60, 0), Behaviour::two_class(30, 180, 2)];
    for nat in one_class.into_iter().chain(others) {
        let mut world = World::new(nat);
        world.run(Duration::from_hours(6));
        let before = world.keeper.stats();
        world.run(Duration::from_hours(18));
        let after = world.keeper.stats();
        let (packets, bursts) = (after.packets - before.packets, after.bursts - before.bursts);
        assert!(bursts > 50, "{nat:?}: nothing is kept");
        assert!(packets <= bursts * 6, "{nat:?}: {packets} packets in {bursts} bursts");
    }
}

#[test]
fn who_waits_for_others_to_measure_is_not_out_of_reach_meanwhile() {
    for lifetime in [6, 10, 20, 24] {
        let mut world = World::new(Behaviour::one_class(lifetime));
        world.keeper.handle_guidance(world.now, Guidance { prior: None, wait: true });
        world.run(seconds(120));
        let reachable = world.reachable_for(seconds(300));
        assert!((reachable - 1.0).abs() < 1e-9, "{lifetime} s: {reachable}");
        assert_eq!(world.keeper.binding().confidence, Confidence::Unknown, "it waits");
        world.run(seconds(600));
        assert!(world.keeper.binding().confidence >= Confidence::Bracketed, "but not for ever");
    }
}

#[test]
fn a_binding_that_is_promoted_late_is_kept_at_its_promoted_lifetime() {
    for (unpromoted, promoted, after, expected) in [
        (30, 120, 2, Promotion::Short),
        (30, 300, 0, Promotion::Short),
        (10, 60, 5, Promotion::Long),
        (30, 300, 10, Promotion::Long),
        (30, 30, 0, Promotion::None),
    ] {
        let mut world = World::new(Behaviour::two_class(unpromoted, promoted, after));
        world.run(seconds(promoted) * 8 + seconds(120));
        let binding = world.keeper.binding();
        assert_eq!(binding.promotion, expected, "{unpromoted}/{promoted} after {after}");
        assert!(binding.at_least >= seconds(promoted).mul_f64(0.98), "{unpromoted}/{promoted}: {binding:?}");
        let reachable = world.reachable_for(seconds(promoted) * 40);
        assert!((reachable - 1.0).abs() < 1e-9, "{unpromoted}/{promoted}: {reachable}");
    }
}

#[test]
fn an_invisible_flush_is_healed_in_one_cycle_and_stays_healed() {
    for (unpromoted, promoted, after) in [(30, 120, 2), (10, 60, 5), (30, 300, 10), (20, 20, 0), (5, 15, 2)] {
        let mut world = World::new(Behaviour::two_class(unpromoted, promoted, after));
        world.run(seconds(promoted) * (8 + PROBATION) + seconds(120));
        for n in 1..4 {
            world.flush();
            world.run(world.keeper.interval() + seconds(1));
            assert!(world.is_reachable(), "{unpromoted}/{promoted}");
            let reachable = world.reachable_for(seconds(promoted) * 6);
            assert!((reachable - 1.0).abs() < 1e-9, "{unpromoted}/{promoted} flush {n}: {reachable}");
            assert_eq!(world.keeper.stats().shrinks, 0);
        }
        let lost = world.churn.iter().filter(|churn| churn.cause == Cause::MappingLost).count();
        // Where wakes are rare, some flushes heal before anybody notices.
        assert!(lost >= 1 || promoted < 60, "{unpromoted}/{promoted}: {:?}", world.churn);
        assert!(world.keeper.binding().at_least >= seconds(promoted).mul_f64(0.95), "{promoted}");
    }
}

#[test]
fn a_visible_flush_is_told_with_both_endpoints_and_the_idle_gap() {
    let mut world = World::new(Behaviour { moves: true, ..Behaviour::two_class(30, 120, 2) });
    world.run(seconds(1200));
    let before = world.keeper.observed();
    world.flush();
    world.run(world.keeper.interval() + seconds(1));
    assert!(world.is_reachable());
    let churn = world.churn.last().unwrap();
    assert_eq!((churn.cause, churn.from), (Cause::MappingChanged, before));
    assert_eq!(churn.to, world.keeper.observed());
    assert!(churn.from != churn.to && churn.idle > seconds(100));
}

#[test]
fn a_lifetime_that_shrinks_is_noticed_within_two_cycles() {
    for (from, to) in [(120, 60), (120, 20), (300, 200), (60, 50), (690, 30)] {
        let mut world = World::new(Behaviour::one_class(from));
        world.run(seconds(from) * 10);
        world.nat = Behaviour::one_class(to);
        world.run(seconds(from));
        let blind_until = world.reachable_for(seconds(from));
        assert!(blind_until > 0.5, "{from} to {to}: {blind_until}");
        world.run(seconds(to) * 6 + seconds(200));
        let reachable = world.reachable_for(seconds(to) * 40);
        assert!((reachable - 1.0).abs() < 1e-9, "{from} to {to}: {reachable}");
        let learnt = world.keeper.binding().at_least;
        assert!(
            learnt >= seconds(to).mul_f64(0.9) && learnt <= seconds(to) + RTT,
            "{from} to {to}: {learnt:?}"
        );
        assert_eq!(world.keeper.stats().shrinks, 1, "{from} to {to}");
    }
}

#[test]
fn a_nat_that_looks_at_its_timers_each_quarter_of_a_lifetime_loses_nothing_while_it_is_learnt() {
    const PHASES: u32 = 32;
    for (lifetime, every) in [(10, 2), (20, 5), (30, 5)] {
        for n in 0..PHASES {
            let sweep = Sweep { every: seconds(every), phase: seconds(every) * n / PHASES };
            let behaviour = Behaviour::two_class(lifetime / 2, lifetime, 2);
            let mut world = World::new(Behaviour { sweep: Some(sweep), ..behaviour });
            world.run(seconds(2));
            let reachable = world.reachable_for(seconds(lifetime) * 30);
            assert!((reachable - 1.0).abs() < 1e-9, "{lifetime} s, {sweep:?}: {reachable}");
        }
    }
}

#[test]
fn a_tenth_of_all_packets_may_get_lost() {
    let mut world = World::new(Behaviour::two_class(30, 120, 2)).lossy(0.1);
    world.run(seconds(3000));
    let reachable = world.reachable_for(seconds(120) * 200);
    assert!(reachable > 0.9999, "{reachable}");
    assert!(world.keeper.interval() > seconds(100), "{:?}", world.keeper);
    assert_eq!(world.lost, 0);
}

#[test]
fn a_path_that_is_gone_is_told_within_eight_seconds_of_its_interval() {
    let mut world = World::new(Behaviour::two_class(30, 120, 2));
    world.run(seconds(1200));
    world.broken = true;
    world.run(world.keeper.interval() + seconds(8));
    assert_eq!(world.lost, 1);
    world.run(seconds(300));
    assert_eq!(world.lost, 1, "told once");
    world.broken = false;
    world.run(seconds(31));
    assert!(world.is_reachable());
}

#[test]
fn a_path_that_never_answers_costs_little() {
    let mut world = World::new(Behaviour::one_class(120));
    world.broken = true;
    world.run(seconds(60));
    let before = world.keeper.stats();
    world.run(seconds(3600));
    let after = world.keeper.stats();
    assert_eq!(after.probe_beats, before.probe_beats);
    let beats = after.live_beats - before.live_beats;
    assert!((100..1200).contains(&beats), "{beats}");
    world.broken = false;
    world.run(seconds(1000));
    assert!(world.keeper.interval() > seconds(100));
    world.run(seconds(120) * PROBATION);
    assert!(world.keeper.interval() > seconds(110));
}

#[test]
fn data_in_both_directions_takes_the_place_of_beats() {
    let mut world = World::new(Behaviour::two_class(30, 120, 2));
    world.run(seconds(1200));
    let before = world.live_beats.len();
    for _ in 0..600 {
        world.run(seconds(1));
        world.outbound(Channel::Live);
        let sent = world.now;
        world.run(RTT);
        world.keeper.handle_traffic(world.now, Some(sent), Some(world.now));
    }
    // The one that was under way, and its companion.
    assert!(world.live_beats.len() <= before + 2, "{}", world.live_beats.len() - before);
    world.run(seconds(125));
    assert!(world.live_beats.len() > before);
    assert!(world.is_reachable());
}

#[test]
fn data_stands_for_answers_that_get_lost_and_only_for_as_long_as_it_comes() {
    let policy = Policy { mode: Mode::Fixed, interval: seconds(2), ..Policy::default() };
    for both_ways in [true, false] {
        let mut world = World::new(Behaviour::one_class(60));
        world.keeper.handle_policy(world.now, policy);
        world.run(seconds(60));
        world.broken = true;
        // A beat is under way before there is any data.
        world.run(seconds(3));
        let before = world.live_beats.len();
        for _ in 0..300 {
            let sent = both_ways.then_some(world.now);
            world.run(Duration::from_millis(100));
            world.keeper.handle_traffic(world.now, sent, Some(world.now));
        }
        assert_eq!(world.lost, 0, "data comes in");
        if both_ways {
            let sent = world.live_beats.len() - before;
            assert!(sent <= 8, "{sent} beats beside data");
        }
        world.run(seconds(7));
        assert_eq!(world.lost, u32::from(!both_ways), "nothing does any more");
        world.run(seconds(3));
        assert_eq!(world.lost, 1);
    }
}

#[test]
fn what_a_neighbour_learnt_is_adopted_with_few_experiments_once_it_agrees() {
    let mut first = World::new(Behaviour::two_class(30, 120, 2));
    first.run(seconds(2000));
    let prior = Prior { binding: first.keeper.binding() };
    let mut second = World::new(Behaviour::two_class(30, 120, 2));
    let now = second.now;
    second.keeper.handle_guidance(now, Guidance { prior: Some(prior), wait: false });
    second.run(seconds(2000));
    assert_eq!(second.keeper.reason(), Reason::Cached);
    assert!(second.keeper.binding().at_least >= seconds(118));
    let (few, many) = (second.keeper.stats().probe_beats, first.keeper.stats().probe_beats);
    assert!(few * 3 < many * 2, "{few} of {many}");
}

#[test]
fn what_a_neighbour_learnt_is_not_believed_where_it_is_wrong() {
    for lifetime in [20, 60, 300] {
        let mut first = World::new(Behaviour::one_class(120));
        first.run(seconds(2000));
        let prior = Prior { binding: first.keeper.binding() };
        let mut second = World::new(Behaviour::one_class(lifetime));
        let now = second.now;
        second.keeper.handle_guidance(now, Guidance { prior: Some(prior), wait: false });
        second.run(seconds(1));
        let reachable = second.reachable_for(seconds(3000));
        assert!((reachable - 1.0).abs() < 1e-9, "{lifetime}: {reachable}");
        let learnt = second.keeper.binding().at_least;
        assert!(
            learnt <= seconds(lifetime) + RTT && learnt >= seconds(lifetime).mul_f64(0.95),
            "{lifetime}: {learnt:?}"
        );
    }
}

#[test]
fn a_client_that_is_told_to_wait_sends_no_experiments() {
    let mut world = World::new(Behaviour::two_class(30, 120, 2));
    let now = world.now;
    world.keeper.handle_guidance(now, Guidance { prior: None, wait: true });
    let before = world.keeper.stats().probe_beats;
    world.run(seconds(300));
    assert_eq!(world.keeper.stats().probe_beats, before);
    assert_eq!(world.keeper.interval(), seconds(25));
    let now = world.now;
    world.keeper.handle_guidance(now, Guidance::default());
    world.run(seconds(600));
    assert!(world.keeper.interval() > seconds(100));
    world.run(seconds(120) * PROBATION);
    assert!(world.keeper.interval() > seconds(110));
}

#[derive(Debug, Clone, Copy)]
enum Fault {
    Flush,
    Shrink(u64),
    Break,
    Mend,
    Rebound,
    Fresh,
    Down,
    Up,
}

fn faults() -> impl Strategy<Value = Vec<(u64, Fault)>> {
    let fault = prop_oneof![
        Just(Fault::Flush),
        (6_u64..300).prop_map(Fault::Shrink),
        Just(Fault::Break),
        Just(Fault::Mend),
        Just(Fault::Rebound),
        Just(Fault::Fresh),
        Just(Fault::Down),
        Just(Fault::Up),
    ];
    prop::collection::vec((1_u64..2000, fault), 0..12)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn whatever_happens_it_comes_back_to_a_kept_binding_at_a_bounded_cost(
        unpromoted in 6_u64..100,
        longer in 0_u64..300,
        after in 0_u64..12,
        moves: bool,
        loss in 0.0..0.15,
        faults in faults(),
    ) {
        let behaviour = Behaviour { moves, ..Behaviour::two_class(unpromoted, unpromoted + longer, after) };
        let mut world = World::new(behaviour).lossy(loss);
        for (time, fault) in faults {
            world.run(seconds(time));
            let now = world.now;
            match fault {
                Fault::Flush => world.flush(),
                Fault::Shrink(to) => {
                    world.nat.promoted = world.nat.promoted.min(seconds(to));
                    world.nat.unpromoted = world.nat.unpromoted.min(world.nat.promoted);
                }
                Fault::Break => world.broken = true,
                Fault::Mend => world.broken = false,
                Fault::Rebound => {
                    world.mappings.remove(&Channel::Live);
                    world.keeper.handle_path(now, Path::Rebound);
                }
                Fault::Fresh => world.keeper.handle_path(now, Path::Fresh { prior: None }),
                Fault::Down => world.keeper.handle_path(now, Path::Down),
                Fault::Up => world.keeper.handle_path(now, Path::Up),
            }
        }
        world.broken = false;
        let now = world.now;
        world.keeper.handle_path(now, Path::Fresh { prior: None });
        world.run(seconds(6000));
        let before = world.keeper.stats();
        let reachable = world.reachable_for(seconds(6000));
        prop_assert!(reachable > 0.99, "{}: {:?}", reachable, world.keeper);
        let bursts = world.keeper.stats().bursts - before.bursts;
        // A bracket of half a second is narrow enough, which is a twelfth of the shortest lifetime.
        let shortest = world.nat.promoted.saturating_sub(NARROWEST + RTT).mul_f64(0.8);
        let most = seconds(6000).div_duration_f64(shortest) + 80.0;
        prop_assert!(f64::from(u32::try_from(bursts)?) <= most, "{} bursts, not {}: {:?}", bursts, most, world.keeper);
        prop_assert!(world.keeper.binding().at_least <= world.nat.promoted + RTT);
    }
}
