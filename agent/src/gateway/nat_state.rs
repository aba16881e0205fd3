//! What a replica knows of one client's NAT: its agent's own word, and what is seen from here. Pure.
//!
//! Both see the same moves: the gateway where packets come from, the agent why. Each is counted once, under the cause
//! that is known best.

use std::{
    net::SocketAddr,
    time::{Duration, SystemTime},
};

use pinhole_proto::v1;

use super::told::{BindingTold, ChurnTold, EventTold, KeepaliveTold, NatTold, StandbyTold, Told, plain};
use crate::{
    health::Phase,
    nat::{Cause, Class},
    wire,
};

/// How far apart the gateway's and the agent's news of one move may come.
const SAME_MOVE_TIMEOUT: Duration = Duration::from_mins(1);
/// For so long a cause may still turn out to be another.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(10);
/// Moves that wait for their cause to settle; more are counted at once.
const MAX_UNSETTLED: usize = 8;

/// So many of one cause are believed at a time.
const MAX_NEWS: u64 = 1000;
/// The agent's word and the tunnel's take different ways here.
const OVERTAKES: Duration = Duration::from_secs(2);

/// One move or loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Move {
    /// When it was noticed.
    pub at: SystemTime,
    /// Where packets came from before.
    pub from: Option<SocketAddr>,
    /// Where they come from since.
    pub to: Option<SocketAddr>,
    /// Silence before it.
    pub idle: Option<Duration>,
}

/// What one cause came to.
#[derive(Debug, Clone, PartialEq, Eq)]
struct CauseCount {
    cause: Cause,
    count: u64,
    last: Move,
}

/// Who knows of a move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Observer {
    /// This gateway, which guesses at the cause.
    Gateway,
    /// The client's agent.
    Agent,
    /// Both, or the gateway and the neighbours: there is nothing more to learn.
    Both,
}

/// A move of which more may be heard.
#[derive(Debug, Clone, PartialEq, Eq)]
struct RecentMove {
    at: SystemTime,
    cause: Cause,
    to: Option<SocketAddr>,
    observer: Observer,
}

/// Whether a client is there, as its agent says. One that left comes back from another port of its own, which is not
/// the NAT's doing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Presence {
    /// It was connected, and has not left since.
    here: bool,
    /// When it had left, and nothing of it was to come any more.
    left: Option<SystemTime>,
}

impl Presence {
    fn handle_told(&mut self, now: SystemTime, phase: Phase) {
        match phase {
            Phase::Disconnected if self.here => *self = Presence { here: false, left: Some(now + OVERTAKES) },
            Phase::Connected => self.here = true,
            // Disconnected also while it has only begun, which its first packets may overtake.
            Phase::Disconnected | Phase::Dormant | Phase::WaitingToReconnect | Phase::Standby => {}
        }
    }

    /// Whether this move is its return: nothing was heard of it since it left.
    fn returns(&mut self, moved: &Move) -> bool {
        let heard = moved.idle.and_then(|idle| moved.at.checked_sub(idle));
        self.left.take().is_some_and(|left| heard.is_none_or(|heard| heard <= left))
    }
}

/// What is known of one client.
#[derive(Debug, Clone, PartialEq)]
pub struct NatState {
    since: SystemTime,
    presence: Presence,
    /// Grows with the facts that [`news`](pinhole_proto::news) tells from measurements, which go along with a heartbeat.
    version: u64,
    nat: Option<NatTold>,
    binding: Option<BindingTold>,
    keepalive: Option<KeepaliveTold>,
    standby: Option<StandbyTold>,
    impairments: Vec<v1::Impairment>,
    recommended: Option<Duration>,
    /// At most one of each cause.
    tales: Vec<CauseCount>,
    /// At most [`MAX_UNSETTLED`].
    fresh: Vec<RecentMove>,
    settled: Settled,
    /// What the agent told last, to see what is new.
    told: Option<ChurnTold>,
}

/// Causes that will not turn out to be others any more, each with how often it was one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Settled([u64; Cause::COUNT]);

impl Settled {
    fn add(&mut self, cause: Cause, times: u64) {
        if let Some((_, count)) = Cause::ALL.iter().zip(&mut self.0).find(|(known, _)| **known == cause) {
            *count = count.saturating_add(times);
        }
    }

    /// Those that there were.
    pub fn list(&self) -> impl Iterator<Item = (Cause, u64)> {
        Cause::ALL.into_iter().zip(self.0).filter(|(_, count)| *count > 0)
    }
}

/// What keepalives cost, as agents count it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Costs {
    /// Bursts of keepalive traffic.
    pub wakes: u64,
    /// Bursts that a static keepalive of 25 s would have had more.
    pub wakes_saved: i64,
    /// Keepalives on live bindings.
    pub beats: u64,
    /// Messages on bindings made for an experiment.
    pub probes: u64,
}

impl NatState {
    /// Of a client that this replica knows since `now`.
    pub fn new(now: SystemTime) -> Self {
        NatState {
            since: now,
            presence: Presence::default(),
            version: 0,
            nat: None,
            binding: None,
            keepalive: None,
            standby: None,
            impairments: Vec::new(),
            recommended: None,
            tales: Vec::new(),
            fresh: Vec::new(),
            settled: Settled::default(),
            told: None,
        }
    }

    /// An authenticated packet came from elsewhere. Without the agent's word, the address tells a moved client from a
    /// moved mapping. Returns whether it is a move at all, and not the return of a client that had left.
    pub fn handle_move(&mut self, moved: Move) -> bool {
        if self.presence.returns(&moved) {
            return false;
        }
        let moved = Move { from: moved.from.map(plain), to: moved.to.map(plain), ..moved };
        let address = |place: Option<SocketAddr>| place.map(|place| place.ip());
        let cause =
            if address(moved.from) == address(moved.to) { Cause::MappingChanged } else { Cause::Roam };
        if let Some(cause) = self.told_before(&moved) {
            // The agent was faster.
            if let Some(counted) = self.tales.iter_mut().find(|counted| counted.cause == cause) {
                counted.last = moved;
            }
            return true;
        }
        self.count(cause, moved, 1, Observer::Gateway);
        true
    }

    /// The agent tells of itself. Returns what keepalives cost since the last time.
    pub fn handle_told(&mut self, now: SystemTime, told: &Told) -> Costs {
        if let Some(phase) = told.phase {
            self.presence.handle_told(now, phase);
        }
        if self.impairments != told.impairments {
            self.version += 1;
            self.impairments.clone_from(&told.impairments);
        }
        if told.nat.is_some() {
            self.version += u64::from(self.nat != told.nat);
            self.nat = told.nat;
        }
        self.binding = told.binding.or(self.binding);
        let costs = told.keepalive.map(|keepalive| self.spent(&keepalive)).unwrap_or_default();
        self.keepalive = told.keepalive.or(self.keepalive);
        self.standby = told.standby.or(self.standby);
        if let Some(churn) = &told.churn {
            self.handle_churn(now, churn);
        }
        costs
    }

    /// What is seen from here alone of a client without an agent.
    pub fn handle_observed(
        &mut self,
        nat: Option<NatTold>,
        binding: Option<BindingTold>,
        recommended: Option<Duration>,
    ) {
        self.version += u64::from(self.nat != nat || self.recommended != recommended);
        (self.nat, self.binding, self.recommended) = (nat, binding, recommended);
    }

    /// Whether that is known already.
    pub fn is_observed(
        &self,
        nat: Option<&NatTold>,
        binding: Option<&BindingTold>,
        recommended: Option<Duration>,
    ) -> bool {
        self.nat.as_ref() == nat && self.binding.as_ref() == binding && self.recommended == recommended
    }

    /// A mapping was lost and came back as the same ip:port, as seen from here alone of a client without an agent.
    pub fn handle_lost(&mut self, lost: Move) {
        self.count(Cause::MappingLost, lost, 1, Observer::Agent);
    }

    /// The last move was one of many behind the same address: the NAT's doing. Returns whether there was one.
    pub fn handle_restart(&mut self, now: SystemTime) -> bool {
        let recent = |fresh: &&mut RecentMove| {
            apart(fresh.at, now) < SAME_MOVE_TIMEOUT
                && matches!(fresh.cause, Cause::MappingChanged | Cause::MappingLost)
        };
        let Some(fresh) = self.fresh.iter_mut().rev().find(recent) else { return false };
        let from = std::mem::replace(&mut fresh.cause, Cause::NatRestart);
        fresh.observer = Observer::Both;
        self.rename(from, Cause::NatRestart);
        true
    }

    /// Another number: there is something worth a report of its own.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// What kind of NAT it is behind, in one word.
    pub fn class(&self) -> Class {
        self.nat.map_or(Class::Unknown, |nat| nat.class())
    }

    /// How often the mapping moved or went.
    pub fn churn_count(&self) -> u64 {
        self.tales.iter().fold(0, |sum: u64, counted| sum.saturating_add(counted.count))
    }

    /// Causes of moves that will not turn out to be others any more, each time once.
    pub fn take_settled(&mut self, now: SystemTime) -> Settled {
        let mut settled = std::mem::take(&mut self.settled);
        self.fresh.retain(|fresh| {
            let keep = apart(fresh.at, now) < SETTLE_TIMEOUT;
            if !keep {
                settled.add(fresh.cause, 1);
            }
            keep
        });
        settled
    }

    /// Whether [`Self::take_settled`] has or will have something to give.
    pub fn is_settling(&self) -> bool {
        !self.fresh.is_empty() || self.settled != Settled::default()
    }

    /// How many things are remembered, of which each is of a fixed size.
    #[cfg(test)]
    pub(super) fn entries(&self) -> usize {
        self.tales.len() + self.fresh.len() + self.told.as_ref().map_or(0, |told| told.causes().len())
    }

    /// How long its NAT keeps a mapping.
    pub fn binding(&self) -> Option<&BindingTold> {
        self.binding.as_ref()
    }

    /// The keepalive in force.
    pub fn keepalive(&self) -> Option<&KeepaliveTold> {
        self.keepalive.as_ref()
    }

    /// The longest that waking it over its session ever took.
    pub fn worst_wake(&self) -> Option<Duration> {
        self.standby?.worst_wake
    }

    /// All of it, as the operator is told.
    pub fn report(&self, report: v1::ClientReport) -> v1::ClientReport {
        v1::ClientReport {
            nat: self.nat.map(NatTold::to_wire),
            binding: self.binding.map(BindingTold::to_wire),
            keepalive: self.keepalive.map(KeepaliveTold::to_wire),
            standby: self.standby.map(StandbyTold::to_wire),
            impairments: self.impairments.clone(),
            churn: Some(self.churn()),
            recommended_keepalive: self.recommended.and_then(|interval| interval.try_into().ok()),
            ..report
        }
    }

    fn churn(&self) -> v1::ChurnReport {
        let cause = |counted: &CauseCount| v1::ChurnOfCause {
            cause: wire::cause_to_wire(counted.cause).into(),
            count: counted.count,
            last: Some(counted.last.to_wire()),
        };
        let told = self.tales.iter().filter(|counted| counted.count > 0);
        v1::ChurnReport {
            since: Some(self.since.into()),
            count: self.churn_count(),
            causes: told.map(cause).collect(),
        }
    }

    /// What the agent counts of churn since it started.
    fn handle_churn(&mut self, now: SystemTime, told: &ChurnTold) {
        let before = self.told.take().filter(|before| before.since == told.since);
        for of_cause in told.causes() {
            let Some(last) = of_cause.last else { continue };
            let last = Move::told(&last, self.since, now);
            let news = match before.as_ref().map(|before| before.count(of_cause.cause).unwrap_or_default()) {
                Some(known) => of_cause.count.saturating_sub(known),
                // Counted while another replica listened, or before this one started.
                None => u64::from(last.at > self.since),
            };
            if news > 0 {
                self.handle_named(of_cause.cause, last, news.min(MAX_NEWS));
            }
        }
        self.told = Some(told.clone());
    }

    /// The agent names the cause of a move that may have been seen here.
    fn handle_named(&mut self, cause: Cause, last: Move, news: u64) {
        let same = |fresh: &&mut RecentMove| {
            fresh.observer == Observer::Gateway
                && apart(fresh.at, last.at) < SAME_MOVE_TIMEOUT
                && (last.to.is_none() || fresh.to == last.to)
        };
        let seen = self.fresh.iter_mut().rev().find(same).filter(|_| is_visible(cause));
        let Some(fresh) = seen else {
            self.count(cause, last, news, Observer::Agent);
            return;
        };
        let guess = std::mem::replace(&mut fresh.cause, cause);
        fresh.observer = Observer::Both;
        self.rename(guess, cause);
        if news > 1 {
            self.count(cause, last, news - 1, Observer::Agent);
        }
    }

    /// The cause that the agent told already of what is seen here now.
    fn told_before(&mut self, moved: &Move) -> Option<Cause> {
        let same = |fresh: &&mut RecentMove| {
            fresh.observer == Observer::Agent
                && is_visible(fresh.cause)
                && fresh.to == moved.to
                && apart(fresh.at, moved.at) < SAME_MOVE_TIMEOUT
        };
        let fresh = self.fresh.iter_mut().find(same)?;
        fresh.observer = Observer::Both;
        Some(fresh.cause)
    }

    fn count(&mut self, cause: Cause, last: Move, news: u64, observer: Observer) {
        if self.fresh.len() >= MAX_UNSETTLED {
            self.settled.add(self.fresh.remove(0).cause, 1);
        }
        self.settled.add(cause, news.saturating_sub(1));
        self.fresh.push(RecentMove { at: last.at, cause, to: last.to, observer });
        self.add(cause, news, last);
    }

    fn add(&mut self, cause: Cause, news: u64, last: Move) {
        self.version += 1;
        match self.tales.iter_mut().find(|counted| counted.cause == cause) {
            Some(counted) => {
                counted.count = counted.count.saturating_add(news);
                if last.at >= counted.last.at {
                    counted.last = last;
                }
            }
            None => self.tales.push(CauseCount { cause, count: news, last }),
        }
    }

    /// One of `guess` turns out to be of `cause`.
    fn rename(&mut self, guess: Cause, cause: Cause) {
        if guess == cause {
            return;
        }
        let Some(counted) = self.tales.iter_mut().find(|counted| counted.cause == guess) else { return };
        counted.count = counted.count.saturating_sub(1);
        let last = counted.last;
        self.add(cause, 1, last);
    }

    fn spent(&self, now: &KeepaliveTold) -> Costs {
        let before = match &self.keepalive {
            Some(before) if before.since == now.since => *before,
            _ if now.since >= Some(self.since) => KeepaliveTold::default(),
            // Counted in part before this replica knew the client.
            _ => return Costs::default(),
        };
        Costs {
            wakes: now.wakes.saturating_sub(before.wakes),
            wakes_saved: now.wakes_saved.saturating_sub(before.wakes_saved),
            beats: now.beats.saturating_sub(before.beats),
            probes: now.probes.saturating_sub(before.probes),
        }
    }
}

impl Move {
    fn to_wire(self) -> v1::ChurnEvent {
        let text = |place: Option<SocketAddr>| place.map(|place| place.to_string()).unwrap_or_default();
        v1::ChurnEvent {
            at: Some(self.at.into()),
            from: text(self.from),
            to: text(self.to),
            idle: self.idle.and_then(|idle| idle.try_into().ok()),
        }
    }

    /// By a clock that is not ours: it is neither before this replica knew the client nor in the future.
    fn told(told: &EventTold, since: SystemTime, now: SystemTime) -> Self {
        let at = told.at.unwrap_or(now).clamp(since.min(now), now);
        Move { at, from: told.from, to: told.to, idle: told.idle }
    }
}

/// `ip:port` without the IPv4-in-IPv6 form that a dual-stack socket sees.
pub fn canonical(address: SocketAddr) -> String {
    plain(address).to_string()
}

/// Whether a gateway sees such a thing too, as packets from elsewhere.
fn is_visible(cause: Cause) -> bool {
    matches!(
        cause,
        Cause::MappingChanged | Cause::LifetimeShrank | Cause::NatRestart | Cause::Roam | Cause::GatewayMoved
    )
}

fn apart(a: SystemTime, b: SystemTime) -> Duration {
    a.duration_since(b).or_else(|_| b.duration_since(a)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use pinhole_proto::{
        hostile::Hostile,
        news::{Account, Grain, Scale, Weight},
    };
    use proptest::prelude::*;

    use super::*;

    const EXACT: Grain = Grain { interval: Scale::Exact, lifetime: Scale::Exact, wake: Scale::Exact };
    const SECOND: Duration = Duration::from_secs(1);

    fn start() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_hours(500_000)
    }

    fn place(last: u8, port: u16) -> SocketAddr {
        SocketAddr::from(([198, 51, 100, last], port))
    }

    fn moved(at: SystemTime, from: SocketAddr, to: SocketAddr) -> Move {
        Move { at, from: Some(from), to: Some(to), idle: Some(SECOND * 40) }
    }

    fn state(since: SystemTime, causes: &[(Cause, u64, &Move)]) -> Told {
        let of_cause = |(cause, count, last): &(Cause, u64, &Move)| v1::ChurnOfCause {
            cause: wire::cause_to_wire(*cause).into(),
            count: *count,
            last: Some(last.to_wire()),
        };
        let churn = v1::ChurnReport {
            since: Some(since.into()),
            count: causes.iter().map(|(_, count, _)| count).sum(),
            causes: causes.iter().map(of_cause).collect(),
        };
        v1::ClientState { churn: Some(churn), ..v1::ClientState::default() }.into()
    }

    fn counts(nat_state: &NatState) -> Vec<(v1::ChurnCause, u64)> {
        nat_state.churn().causes.iter().map(|c| (c.cause(), c.count)).collect()
    }

    #[test]
    fn a_move_that_both_saw_is_counted_once_under_the_agents_cause_whoever_is_first() {
        let at = start() + SECOND * 30;
        let seen = moved(at, place(9, 1), place(9, 2));
        let told = state(start(), &[(Cause::LifetimeShrank, 1, &seen)]);
        let mut gateway_first = NatState::new(start());
        gateway_first.handle_move(seen);
        assert_eq!(counts(&gateway_first), [(v1::ChurnCause::MappingChanged, 1)]);
        gateway_first.handle_told(at + SECOND, &told);
        assert_eq!(counts(&gateway_first), [(v1::ChurnCause::LifetimeShrank, 1)]);
        let mut agent_first = NatState::new(start());
        agent_first.handle_told(at, &told);
        agent_first.handle_move(moved(at + SECOND, place(9, 1), place(9, 2)));
        assert_eq!(counts(&agent_first), [(v1::ChurnCause::LifetimeShrank, 1)]);
    }

    #[test]
    fn a_client_that_left_and_comes_back_has_not_moved() {
        let says = |phase| Told { phase: Some(phase), ..Told::default() };
        for word_is_faster in [false, true] {
            let mut nat_state = NatState::new(start());
            nat_state.handle_told(start(), &says(Phase::Connected));
            nat_state.handle_told(start() + SECOND, &says(Phase::Disconnected));
            let back = start() + SECOND * 60;
            nat_state.handle_told(back, &says(Phase::WaitingToReconnect));
            if word_is_faster {
                nat_state.handle_told(back, &says(Phase::Connected));
            }
            let idle = Some(SECOND * 59);
            assert!(!nat_state.handle_move(Move { idle, ..moved(back, place(9, 1), place(9, 2)) }));
            nat_state.handle_told(back + SECOND, &says(Phase::Connected));
            assert!(nat_state.handle_move(moved(back + SECOND * 30, place(9, 2), place(9, 3))));
            assert_eq!(counts(&nat_state), [(v1::ChurnCause::MappingChanged, 1)]);
        }
    }

    #[test]
    fn a_client_that_moves_as_soon_as_it_is_there_has_moved() {
        let says = |phase| Told { phase: Some(phase), ..Told::default() };
        let step = SECOND / 10;
        let mut nat_state = NatState::new(start());
        nat_state.handle_told(start() + step * 2, &says(Phase::Disconnected));
        nat_state.handle_told(start() + step * 2, &says(Phase::Connected));
        let idle = Some(step);
        assert!(nat_state.handle_move(Move { idle, ..moved(start() + step * 3, place(9, 1), place(9, 2)) }));
    }

    #[test]
    fn a_dual_stack_socket_sees_the_same_places_as_an_agent() {
        let mapped = |port| format!("[::ffff:198.51.100.9]:{port}").parse().unwrap();
        let mut nat_state = NatState::new(start());
        nat_state.handle_move(moved(start() + SECOND, mapped(1), mapped(2)));
        let told = moved(start() + SECOND, place(9, 1), place(9, 2));
        nat_state.handle_told(start() + SECOND * 2, &state(start(), &[(Cause::MappingChanged, 1, &told)]));
        assert_eq!(counts(&nat_state), [(v1::ChurnCause::MappingChanged, 1)]);
        assert_eq!(nat_state.churn().causes[0].last.as_ref().unwrap().to, "198.51.100.9:2");
    }

    #[test]
    fn the_same_word_again_is_no_news() {
        let lost = moved(start() + SECOND, place(9, 1), place(9, 1));
        let mut nat_state = NatState::new(start());
        for _ in 0..3 {
            nat_state.handle_told(start() + SECOND * 2, &state(start(), &[(Cause::MappingLost, 1, &lost)]));
        }
        assert_eq!(counts(&nat_state), [(v1::ChurnCause::MappingLost, 1)]);
    }

    #[test]
    fn what_an_agent_counted_elsewhere_before_is_not_counted_again_here() {
        let early = moved(start() - SECOND * 600, place(9, 1), place(9, 2));
        let late = moved(start() + SECOND, place(9, 2), place(9, 3));
        let mut nat_state = NatState::new(start());
        let causes = [(Cause::MappingChanged, 40, &early), (Cause::GatewayMoved, 3, &late)];
        nat_state.handle_told(start() + SECOND * 2, &state(start() - SECOND * 900, &causes));
        assert_eq!(counts(&nat_state), [(v1::ChurnCause::GatewayMoved, 1)]);
    }

    #[test]
    fn without_an_agent_another_port_is_a_changed_mapping_and_another_address_a_roam() {
        let mut nat_state = NatState::new(start());
        nat_state.handle_move(moved(start(), place(9, 1), place(9, 2)));
        nat_state.handle_move(moved(start() + SECOND * 300, place(9, 2), place(77, 2)));
        assert_eq!(counts(&nat_state), [(v1::ChurnCause::MappingChanged, 1), (v1::ChurnCause::Roam, 1)]);
    }

    #[test]
    fn a_restarted_nat_takes_the_blame_and_causes_settle_once() {
        let mut nat_state = NatState::new(start());
        nat_state.handle_move(moved(start(), place(9, 1), place(9, 2)));
        let nothing = Settled::default();
        assert_eq!(nat_state.take_settled(start() + SECOND), nothing);
        assert!(nat_state.handle_restart(start() + SECOND * 5));
        assert_eq!(counts(&nat_state), [(v1::ChurnCause::NatRestart, 1)]);
        let settled: Vec<_> = nat_state.take_settled(start() + SECOND * 20).list().collect();
        assert_eq!(settled, [(Cause::NatRestart, 1)]);
        assert_eq!(nat_state.take_settled(start() + SECOND * 40), nothing);
        assert!(!nat_state.handle_restart(start() + SECOND * 400));
    }

    #[test]
    fn a_clock_that_is_wrong_neither_dates_ahead_nor_before_this_replica() {
        let wild = moved(start() + SECOND * 86_400, place(9, 1), place(9, 1));
        let mut nat_state = NatState::new(start());
        nat_state.handle_told(start() + SECOND * 5, &state(start(), &[(Cause::MappingLost, 1, &wild)]));
        let last = nat_state.churn().causes[0].last.clone().unwrap().at;
        assert_eq!(last, Some((start() + SECOND * 5).into()));
    }

    #[test]
    fn costs_are_those_since_the_last_word() {
        let told = |since, wakes| {
            let keepalive = KeepaliveTold { since: Some(since), wakes, ..KeepaliveTold::default() };
            Told { keepalive: Some(keepalive), ..Told::default() }
        };
        let mut nat_state = NatState::new(start());
        let mut spent = |since, wakes| nat_state.handle_told(start(), &told(since, wakes)).wakes;
        assert_eq!(spent(start() - SECOND * 900, 500), 0, "spent elsewhere");
        assert_eq!(spent(start() - SECOND * 900, 503), 3);
        assert_eq!(spent(start() + SECOND, 2), 2, "the agent started anew");
    }

    /// What the agent's word weighs in what the operator is told, and whether that is to be told before its time.
    fn tells(nat_state: &mut NatState, now: SystemTime, told: &Told) -> (Weight, bool) {
        let report = |nat_state: &NatState| nat_state.report(v1::ClientReport::default());
        let (before, version) = (report(nat_state), nat_state.version());
        nat_state.handle_told(now, told);
        let after = report(nat_state);
        let weight = Account::from(&after).weigh(&Account::from(&before), EXACT);
        (weight, nat_state.version() != version)
    }

    #[test]
    fn what_is_measured_waits_for_the_heartbeat_and_what_nats_do_does_not() {
        let mut nat_state = NatState::new(start());
        let measured = Told {
            binding: Some(BindingTold { at_least: Some(SECOND * 30), ..BindingTold::default() }),
            keepalive: Some(KeepaliveTold { interval: Some(SECOND * 25), ..KeepaliveTold::default() }),
            standby: Some(StandbyTold::default()),
            ..Told::default()
        };
        assert_eq!(tells(&mut nat_state, start(), &measured), (Weight::Measurement, false));
        assert_eq!(tells(&mut nat_state, start(), &measured), (Weight::Nothing, false));
        let nat = Some(NatTold { port_delta: 1, ..NatTold::default() });
        assert_eq!(tells(&mut nat_state, start(), &Told { nat, ..measured }), (Weight::Fact, true));
    }

    proptest! {
        #[test]
        fn a_word_is_told_before_its_time_where_a_fact_is_another(seeds in proptest::collection::vec(any::<u64>(), 1..8)) {
            let (mut nat_state, mut now) = (NatState::new(start()), start());
            for seed in seeds {
                now += SECOND * 20;
                let told = Told::from(Hostile::new(seed).readable::<v1::ClientState>("ClientState"));
                let (weight, is_told) = tells(&mut nat_state, now, &told);
                prop_assert_eq!(weight == Weight::Fact, is_told);
            }
        }

        #[test]
        fn every_count_settles_under_one_cause(
            steps in proptest::collection::vec((any::<bool>(), 0..Cause::COUNT, 1u16..4, 0u64..50), 0..40),
        ) {
            let (mut nat_state, mut now, mut told) = (NatState::new(start()), start(), [0; Cause::COUNT]);
            let mut settled = 0;
            let sum = |settled: Settled| settled.list().map(|(_, times)| times).sum::<u64>();
            for (by_agent, cause, port, wait) in steps {
                now += SECOND * u32::try_from(wait).unwrap();
                let seen = moved(now, place(9, port), place(9, port + 1));
                if by_agent {
                    told[cause] += 1;
                    let all: Vec<_> = Cause::ALL.iter().zip(told).filter(|(_, n)| *n > 0)
                        .map(|(cause, n)| (*cause, n, &seen)).collect();
                    nat_state.handle_told(now, &state(start(), &all));
                } else {
                    nat_state.handle_move(seen);
                }
                settled += sum(nat_state.take_settled(now));
            }
            settled += sum(nat_state.take_settled(now + SECOND * 60));
            prop_assert_eq!(settled, nat_state.churn_count());
        }
    }
}
