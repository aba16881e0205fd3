//! The client's side: keeps one path to one gateway replica proven, and finds another when it is not.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::{Jitter, Mode, PROBE_GIVE_UP, PROBE_RESENDS, Phase};
use crate::PeerId;

/// How long a handshake may take before the next candidate is tried.
const ATTEMPT: Duration = Duration::from_millis(1500);
/// How long the old session may prove itself over a changed local network before a handshake is made.
const SESSION_GRACE: Duration = Duration::from_millis(700);
/// Traffic goes out and nothing comes back for so long: the path is asked at once.
const STALL: Duration = Duration::from_secs(5);
/// The same without probes: KEEPALIVE_TIMEOUT + REKEY_TIMEOUT, when WireGuard itself begins to doubt.
const STALL_WITHOUT_PROBES: Duration = Duration::from_secs(15);
/// How often the counters of a connected tunnel are looked at.
const SAMPLE: Duration = Duration::from_secs(5);
const ROUND_BACKOFF: Duration = Duration::from_millis(500);
const ROUND_BACKOFF_CAP: Duration = Duration::from_secs(30);
/// How often a path is tried although no route exists.
const DORMANT_RETRY: Duration = Duration::from_mins(1);
/// After so many rounds without an answer the source port is changed, and again after as many more.
const ROUNDS_TO_REBIND: u32 = 3;
/// A hint that the path may be gone reaches a whole fleet at once: the probes are spread over this.
const HINT_SPREAD: Duration = Duration::from_millis(500);

/// One way to one replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Candidate<K> {
    /// The replica, by its key.
    pub replica: K,
    /// Where its tunnel is reached.
    pub endpoint: SocketAddr,
}

/// What the shell has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action<K> {
    /// Route inner traffic to this replica at this endpoint and begin a handshake.
    Try(Candidate<K>),
    /// Send an in-tunnel probe to this replica.
    Probe {
        /// Whom to ask.
        replica: K,
        /// Comes back with the answer.
        id: u64,
    },
    /// Resolve the endpoints' names again and hand in the candidates.
    Resolve,
    /// Continue from a new local port: the mapping of the old one may be stuck.
    Rebind,
    /// Tell user and gateway.
    Phase(Phase),
}

/// What the data plane counted for the active replica.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sample {
    /// Last authenticated packet.
    pub last_receive: Option<Instant>,
    /// Last answered beat. It proves the path, not the session over it.
    pub last_beat: Option<Instant>,
    /// Last datagram sent.
    pub last_send: Option<Instant>,
    /// Last datagram sent that carried something, and so is owed a sign of life.
    pub last_data_send: Option<Instant>,
}

/// What the local network looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// No route leads to any endpoint.
    Unreachable,
    /// There is a route, as before: only something else changed.
    Unchanged,
    /// There is a route, from another local address than before.
    Changed,
}

#[derive(Clone, Copy, Debug)]
struct Outstanding {
    first: Instant,
    first_id: u64,
    resends: usize,
}

impl Outstanding {
    fn next(&self) -> Instant {
        self.first + PROBE_RESENDS.get(self.resends).copied().unwrap_or(PROBE_GIVE_UP)
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    /// Between rounds.
    Pause { until: Instant },
    /// A handshake was begun.
    Handshake { until: Instant },
    /// A session exists; a probe must prove it, or data over it when `fresh`: made on this very path.
    Prove { since: Instant, fresh: bool, outstanding: Outstanding, until: Instant },
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// No candidates yet.
    Idle,
    Connected {
        since: Instant,
        outstanding: Option<Outstanding>,
        hint: Option<Instant>,
    },
    Searching {
        step: Step,
        next: usize,
        rounds: u32,
    },
    Stopped,
}

/// The state machine. Times are monotonic.
#[derive(Debug)]
pub struct ClientHealth<K> {
    mode: Mode,
    interval: Duration,
    candidates: Vec<Candidate<K>>,
    active: Option<Candidate<K>>,
    tried: Vec<Candidate<K>>,
    state: State,
    routed: bool,
    phase: Phase,
    sample: Sample,
    sampled: Option<Instant>,
    stalled_since: Option<Instant>,
    next_id: u64,
    rtt: Option<Duration>,
    confirmed: Option<Instant>,
    beats: Option<Beats>,
    jitter: Jitter,
    actions: VecDeque<Action<K>>,
}

/// The path is proven by beats, which somebody else sends.
#[derive(Clone, Copy, Debug)]
struct Beats {
    interval: Duration,
    /// When it was last shortened.
    since: Instant,
}

impl<K: PeerId> ClientHealth<K> {
    /// A machine that has no candidates yet.
    pub fn new(mode: Mode, interval: Duration, mut jitter: Jitter) -> Self {
        ClientHealth {
            mode,
            interval,
            candidates: Vec::new(),
            active: None,
            tried: Vec::new(),
            state: State::Idle,
            routed: true,
            phase: Phase::Disconnected,
            sample: Sample::default(),
            sampled: None,
            stalled_since: None,
            next_id: jitter.next_u64(),
            rtt: None,
            confirmed: None,
            beats: None,
            jitter,
            actions: VecDeque::new(),
        }
    }

    /// The phase as last told.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// The way in use or being tried.
    pub fn active(&self) -> Option<Candidate<K>> {
        self.active
    }

    /// Round trip of the last answered probe.
    pub fn rtt(&self) -> Option<Duration> {
        self.rtt
    }

    /// When a bidirectional exchange was last confirmed.
    pub fn confirmed(&self) -> Option<Instant> {
        self.confirmed
    }

    /// The keepalive interval in force, `None` when no probes are sent.
    pub fn interval(&self) -> Option<Duration> {
        let interval = self.beats.map_or(self.interval, |beats| beats.interval);
        (self.mode == Mode::Loopback).then_some(interval)
    }

    /// Beats prove the active path while it is quiet, at least once in this interval, and
    /// [`handle_beat_lost`](Self::handle_beat_lost) will be told when they do not. `None`: probes have to.
    pub fn handle_beats(&mut self, now: Instant, interval: Option<Duration>) {
        let before = self.beats;
        self.beats = interval.map(|interval| {
            let since =
                before.filter(|before| interval >= before.interval).map_or(now, |before| before.since);
            Beats { interval, since }
        });
    }

    /// A beat was answered.
    pub fn handle_beat(&mut self, now: Instant, rtt: Duration) {
        match &mut self.state {
            State::Connected { outstanding, .. } => {
                self.rtt = Some(rtt);
                self.sample.last_beat = self.sample.last_beat.max(Some(now));
                // Whoever is asked through the session has to answer through it.
                if outstanding.is_none() {
                    self.confirmed = Some(now);
                }
            }
            // The path is back, and the handshake need not wait for its turn.
            State::Searching { step: Step::Pause { .. }, .. } => self.try_next(now),
            _ => {}
        }
    }

    /// The session woke the client, which is all that it is reached by now: as good as an answered beat.
    pub fn handle_woken(&mut self, now: Instant) {
        self.sample.last_beat = self.sample.last_beat.max(Some(now));
    }

    /// Beats stay unanswered. Hand in a fresh [`Sample`] first: while data comes, the path is not to blame.
    pub fn handle_beat_lost(&mut self, now: Instant) {
        if self.sample.last_receive.is_some_and(|at| now < at + PROBE_GIVE_UP) {
            return;
        }
        if matches!(self.state, State::Connected { .. }) && self.mode == Mode::Loopback {
            self.search(now, 0);
        }
    }

    /// A policy came or changed.
    pub fn handle_policy(&mut self, mode: Mode, interval: Duration) {
        self.mode = mode;
        self.interval = interval;
    }

    /// The ways there are, the best first. The one in use stays while its replica is among them.
    pub fn handle_candidates(&mut self, now: Instant, candidates: Vec<Candidate<K>>) {
        if !self.same_candidates(&candidates) {
            self.candidates = candidates;
        }
        match self.state {
            State::Idle if !self.candidates.is_empty() => self.search(now, 0),
            State::Connected { .. } if !self.knows_active() => self.search(now, 0),
            // Without a route to any of them it is the route that will tell.
            State::Searching { step: Step::Pause { .. }, rounds: 0, .. } if self.routed => self.try_next(now),
            _ => {}
        }
    }

    /// What the data plane counted for the active replica, before [`Self::handle_timeout`].
    pub fn handle_sample(&mut self, now: Instant, sample: Sample) {
        self.sampled = Some(now);
        let received = sample.last_receive > self.sample.last_receive;
        self.sample.last_receive = self.sample.last_receive.max(sample.last_receive);
        self.sample.last_beat = self.sample.last_beat.max(sample.last_beat);
        self.sample.last_send = self.sample.last_send.max(sample.last_send);
        self.sample.last_data_send = self.sample.last_data_send.max(sample.last_data_send);
        if received || self.sample.last_data_send <= self.sample.last_receive {
            self.stalled_since = None;
        }
        if self.sample.last_data_send > self.sample.last_receive && self.stalled_since.is_none() {
            self.stalled_since = self.sample.last_data_send;
        }
        match &mut self.state {
            // Data counts as liveness: an answer that is late behind it tears nothing down.
            State::Connected { outstanding, .. }
                if outstanding.is_some_and(|probe| sample.last_receive > Some(probe.first)) =>
            {
                *outstanding = None;
                self.confirmed = sample.last_receive;
            }
            State::Searching { step: Step::Prove { since, fresh: true, .. }, .. }
                if sample.last_receive > Some(*since) =>
            {
                self.connect(now);
            }
            _ => {}
        }
    }

    /// A handshake that was begun here came to its end: both directions of this path carried a packet.
    pub fn handle_handshake(&mut self, now: Instant, replica: K) {
        let State::Searching { next, rounds, .. } = self.state else { return };
        let Some(candidate) = self.tried.iter().rev().find(|tried| tried.replica == replica).copied() else {
            return;
        };
        self.active = Some(candidate);
        match self.mode {
            Mode::LinkStatus => self.connect(now),
            Mode::Loopback => {
                let outstanding = self.probe(now, replica);
                let step = Step::Prove { since: now, fresh: true, outstanding, until: now + PROBE_GIVE_UP };
                self.state = State::Searching { step, next, rounds };
            }
        }
    }

    /// A probe came back.
    pub fn handle_answer(&mut self, now: Instant, replica: K, id: u64, rtt: Duration) {
        if self.active.is_none_or(|active| active.replica != replica) {
            return;
        }
        let asked =
            |outstanding: &Outstanding| id.wrapping_sub(outstanding.first_id) <= outstanding.resends as u64;
        match &mut self.state {
            State::Connected { outstanding, .. } => {
                if outstanding.as_ref().is_some_and(asked) {
                    *outstanding = None;
                }
                self.rtt = Some(rtt);
                self.confirmed = Some(now);
                self.sample.last_receive = self.sample.last_receive.max(Some(now));
                self.stalled_since = None;
            }
            State::Searching { step: Step::Prove { outstanding, .. }, .. } if asked(outstanding) => {
                self.rtt = Some(rtt);
                self.connect(now);
            }
            _ => {}
        }
    }

    /// Something suggests that the path is gone, such as the end of the session stream.
    pub fn handle_hint(&mut self, now: Instant) {
        let delay = self.jitter.up_to(HINT_SPREAD);
        match &mut self.state {
            State::Connected { outstanding: None, hint: hint @ None, .. } if self.mode == Mode::Loopback => {
                *hint = Some(now + delay);
            }
            _ => {}
        }
    }

    /// A replica says that it is going away: another one is tried while it still answers.
    pub fn handle_draining(&mut self, now: Instant, replica: K) {
        let is_active = self.active.is_some_and(|active| active.replica == replica);
        let others = self.candidates.iter().any(|candidate| candidate.replica != replica);
        if !is_active || !others || !matches!(self.state, State::Connected { .. }) {
            return;
        }
        self.candidates.sort_by_key(|candidate| candidate.replica == replica);
        self.active = None;
        self.search(now, 0);
    }

    /// An address or a route of this machine changed.
    pub fn handle_network(&mut self, now: Instant, network: Network) {
        if matches!(self.state, State::Idle | State::Stopped) {
            self.routed = network != Network::Unreachable;
            return;
        }
        let was_routed = std::mem::replace(&mut self.routed, network != Network::Unreachable);
        match (network, was_routed) {
            (Network::Unreachable, true) => self.pause(now, 0, 0),
            (Network::Unreachable, false) | (Network::Unchanged, true) => {}
            (Network::Changed, _) | (Network::Unchanged, false) => self.prove_or_try(now),
        }
    }

    /// The machine looked around: these are the ways there are, the best first, from a network that is or is not another.
    pub fn handle_surroundings(&mut self, now: Instant, candidates: Vec<Candidate<K>>, network: Network) {
        if matches!(self.state, State::Idle) {
            // The first network is no change of it, for which what was just begun would be begun again.
            self.handle_network(now, network);
            self.handle_candidates(now, candidates);
        } else {
            self.handle_candidates(now, candidates);
            self.handle_network(now, network);
        }
    }

    /// The user or the gateway ended it.
    pub fn handle_stop(&mut self) {
        self.state = State::Stopped;
        self.tell(Phase::Disconnected);
    }

    /// When [`Self::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        match self.state {
            State::Idle | State::Stopped => None,
            State::Connected { since, outstanding, hint } => {
                let sample = self.sampled.unwrap_or(since).max(since) + SAMPLE;
                let probe = match (self.mode, outstanding) {
                    (Mode::LinkStatus, _) => None,
                    (Mode::Loopback, Some(outstanding)) => Some(outstanding.next()),
                    (Mode::Loopback, None) if self.beats.is_some() => self.doubtful(since),
                    (Mode::Loopback, None) => Some(self.due(since)),
                };
                [Some(sample), probe, hint].into_iter().flatten().min()
            }
            State::Searching { step, .. } => Some(match step {
                Step::Pause { until } | Step::Handshake { until } => until,
                Step::Prove { outstanding, until, .. } => outstanding.next().min(until),
            }),
        }
    }

    /// Time passed. Hand in a fresh [`Sample`] first.
    pub fn handle_timeout(&mut self, now: Instant) {
        match self.state {
            State::Idle | State::Stopped => {}
            State::Connected { since, outstanding, hint } => self.watch(now, since, outstanding, hint),
            State::Searching { step, next, rounds } => self.continue_search(now, step, next, rounds),
        }
    }

    /// The next thing to do.
    pub fn poll_action(&mut self) -> Option<Action<K>> {
        self.actions.pop_front()
    }

    fn watch(
        &mut self,
        now: Instant,
        since: Instant,
        outstanding: Option<Outstanding>,
        hint: Option<Instant>,
    ) {
        if self.mode == Mode::LinkStatus {
            if self.stalled_since.is_some_and(|start| now >= start + STALL_WITHOUT_PROBES) {
                self.search(now, 0);
            }
            return;
        }
        let Some(active) = self.active else { return self.search(now, 0) };
        if self.doubtful(since).is_some_and(|at| now >= at) {
            return self.search(now, 0);
        }
        let Some(mut waiting) = outstanding else {
            let hinted = hint.is_some_and(|at| now >= at);
            // Who beats has its own clock, and needs no answer to the last packet of every exchange.
            let patience = if self.beats.is_some() { STALL_WITHOUT_PROBES } else { STALL };
            let stalled = self.stalled_since.is_some_and(|start| now >= start + patience);
            let due = self.beats.is_none() && now >= self.due(since);
            if hinted || stalled || due {
                let probe = self.probe(now, active.replica);
                self.state = State::Connected { since, outstanding: Some(probe), hint: None };
            }
            return;
        };
        if now >= waiting.first + PROBE_GIVE_UP {
            return self.search(now, 0);
        }
        if now >= waiting.next() {
            self.resend(&mut waiting, active.replica);
            self.state = State::Connected { since, outstanding: Some(waiting), hint: None };
        }
    }

    fn continue_search(&mut self, now: Instant, step: Step, next: usize, rounds: u32) {
        match step {
            Step::Pause { until } | Step::Handshake { until } if now < until => {}
            Step::Pause { .. } | Step::Handshake { .. } => self.try_next(now),
            Step::Prove { until, .. } if now >= until => self.try_next(now),
            Step::Prove { since, fresh, mut outstanding, until } => {
                let Some(active) = self.active else { return self.try_next(now) };
                if now >= outstanding.next() {
                    self.resend(&mut outstanding, active.replica);
                    let step = Step::Prove { since, fresh, outstanding, until };
                    self.state = State::Searching { step, next, rounds };
                }
            }
        }
    }

    /// When both directions will have been quiet for an interval.
    fn due(&self, since: Instant) -> Instant {
        let received = self.sample.last_receive.unwrap_or(since);
        let sent = self.sample.last_send.unwrap_or(since);
        received.min(sent).max(since) + self.interval
    }

    /// When nothing will have come for so long that beats would have told. They do first, unless something is wrong
    /// with them.
    fn doubtful(&self, since: Instant) -> Option<Instant> {
        let beats = self.beats?;
        let heard = self.sample.last_receive.max(self.sample.last_beat);
        let received = heard.unwrap_or(since).max(since);
        Some((received + beats.interval).max(beats.since) + PROBE_GIVE_UP)
    }

    /// Whether only the order differs: the own order, with the way last used first, is then kept.
    fn same_candidates(&self, other: &[Candidate<K>]) -> bool {
        self.candidates.len() == other.len()
            && other.iter().all(|candidate| self.candidates.contains(candidate))
    }

    fn knows_active(&self) -> bool {
        let Some(active) = self.active else { return false };
        self.candidates.iter().any(|candidate| candidate.replica == active.replica)
    }

    fn connect(&mut self, now: Instant) {
        self.state = State::Connected { since: now, outstanding: None, hint: None };
        let last = Some(now);
        self.sample = Sample { last_receive: last, last_send: last, last_data_send: last, ..self.sample };
        self.sampled = Some(now);
        self.stalled_since = None;
        self.confirmed = Some(now);
        self.tried.clear();
        self.tell(Phase::Connected);
    }

    /// Starts to look for a path, with the way that was in use first.
    fn search(&mut self, now: Instant, rounds: u32) {
        let first = self.active.and_then(|active| self.candidates.iter().position(|&c| c == active));
        if let Some(first) = first {
            self.candidates.rotate_left(first);
        }
        self.state = State::Searching { step: Step::Pause { until: now }, next: 0, rounds };
        self.tell_searching();
        if rounds == 0 {
            self.actions.push_back(Action::Resolve);
        }
        self.try_next(now);
    }

    /// The local network changed: the session still stands, and a probe over the new path proves it in one
    /// round trip.
    fn prove_or_try(&mut self, now: Instant) {
        let connected = matches!(self.state, State::Connected { .. });
        let Some(active) = self.active.filter(|_| connected && self.mode == Mode::Loopback) else {
            return self.search(now, 0);
        };
        let outstanding = self.probe(now, active.replica);
        let step = Step::Prove { since: now, fresh: false, outstanding, until: now + SESSION_GRACE };
        self.tried = vec![active];
        self.state = State::Searching { step, next: 0, rounds: 0 };
        self.tell_searching();
    }

    fn try_next(&mut self, now: Instant) {
        let State::Searching { next, rounds, .. } = self.state else { return };
        if self.candidates.is_empty() {
            return self.pause(now, 0, rounds);
        }
        let Some(candidate) = self.candidates.get(next).copied() else {
            return self.end_round(now, rounds + 1);
        };
        self.active = Some(candidate);
        self.tried.retain(|tried| tried.replica != candidate.replica);
        self.tried.push(candidate);
        self.actions.push_back(Action::Try(candidate));
        let step = Step::Handshake { until: now + ATTEMPT };
        self.state = State::Searching { step, next: next + 1, rounds };
    }

    fn end_round(&mut self, now: Instant, rounds: u32) {
        if rounds.is_multiple_of(ROUNDS_TO_REBIND) {
            self.actions.push_back(Action::Rebind);
        }
        self.actions.push_back(Action::Resolve);
        self.pause(now, 0, rounds);
    }

    fn pause(&mut self, now: Instant, next: usize, rounds: u32) {
        let delay = if self.routed {
            self.jitter.backoff(ROUND_BACKOFF, ROUND_BACKOFF_CAP, rounds)
        } else {
            DORMANT_RETRY / 4 * 3 + self.jitter.up_to(DORMANT_RETRY / 4)
        };
        self.state = State::Searching { step: Step::Pause { until: now + delay }, next, rounds };
        self.tell_searching();
    }

    fn probe(&mut self, now: Instant, replica: K) -> Outstanding {
        let id = self.take_id();
        self.actions.push_back(Action::Probe { replica, id });
        self.sample.last_send = self.sample.last_send.max(Some(now));
        Outstanding { first: now, first_id: id, resends: 0 }
    }

    fn resend(&mut self, outstanding: &mut Outstanding, replica: K) {
        outstanding.resends += 1;
        let id = self.take_id();
        self.actions.push_back(Action::Probe { replica, id });
    }

    fn take_id(&mut self) -> u64 {
        let id = self.next_id;
        self.next_id = id.wrapping_add(1);
        id
    }

    fn tell_searching(&mut self) {
        // Before the first path was found there is nothing to wait back to, but the phase is the same: the
        // exchange is not confirmed yet.
        self.tell(if self.routed { Phase::WaitingToReconnect } else { Phase::Dormant });
    }

    fn tell(&mut self, phase: Phase) {
        if self.phase != phase {
            self.phase = phase;
            self.actions.push_back(Action::Phase(phase));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    const INTERVAL: Duration = Duration::from_secs(25);
    const RTT: Duration = Duration::from_millis(40);

    fn key(n: u8) -> u8 {
        n
    }

    fn way(replica: u8, port: u16) -> Candidate<u8> {
        Candidate { replica: key(replica), endpoint: SocketAddr::from(([192, 0, 2, replica], port)) }
    }

    /// A world in virtual time: some ways carry packets, each after half a round trip.
    struct World {
        now: Instant,
        health: ClientHealth<u8>,
        alive: HashSet<Candidate<u8>>,
        current: Option<Candidate<u8>>,
        pending: Vec<(Instant, Event)>,
        last_exchange: Option<Instant>,
        sample: Sample,
        tries: Vec<Candidate<u8>>,
        probes: u32,
        rebinds: u32,
    }

    #[derive(Clone, Copy)]
    enum Event {
        Handshake(Candidate<u8>),
        Answer(Candidate<u8>, u64),
    }

    impl World {
        fn new(mode: Mode, seed: u64) -> Self {
            World {
                now: Instant::now(),
                health: ClientHealth::new(mode, INTERVAL, Jitter::new(seed)),
                alive: HashSet::new(),
                current: None,
                pending: Vec::new(),
                last_exchange: None,
                sample: Sample::default(),
                tries: Vec::new(),
                probes: 0,
                rebinds: 0,
            }
        }

        fn with(mode: Mode, ways: &[Candidate<u8>]) -> Self {
            let mut world = World::new(mode, 7);
            world.alive.extend(ways);
            world.health.handle_candidates(world.now, ways.to_vec());
            world.act();
            world
        }

        fn act(&mut self) {
            while let Some(action) = self.health.poll_action() {
                match action {
                    Action::Try(candidate) => {
                        self.current = Some(candidate);
                        self.tries.push(candidate);
                        self.sample.last_send = Some(self.now);
                        if self.alive.contains(&candidate) {
                            self.pending.push((self.now + RTT, Event::Handshake(candidate)));
                        }
                    }
                    Action::Probe { replica, id } => {
                        self.probes += 1;
                        self.sample.last_send = Some(self.now);
                        let Some(current) = self.current.filter(|current| current.replica == replica) else {
                            continue;
                        };
                        if self.alive.contains(&current) {
                            self.pending.push((self.now + RTT, Event::Answer(current, id)));
                        }
                    }
                    Action::Rebind => self.rebinds += 1,
                    Action::Resolve | Action::Phase(_) => {}
                }
            }
        }

        fn run_for(&mut self, span: Duration) {
            let end = self.now + span;
            loop {
                self.pending.sort_by_key(|(at, _)| *at);
                let event = self.pending.first().map(|(at, _)| *at);
                let timer = self.health.poll_timeout();
                let Some(next) = [event, timer].into_iter().flatten().min().filter(|at| *at <= end) else {
                    break;
                };
                self.now = self.now.max(next);
                if event == Some(next) {
                    let (_, event) = self.pending.remove(0);
                    self.deliver(event);
                } else {
                    self.health.handle_sample(self.now, self.sample);
                    self.health.handle_timeout(self.now);
                }
                self.act();
            }
            self.now = end;
        }

        fn deliver(&mut self, event: Event) {
            let (Event::Handshake(way) | Event::Answer(way, _)) = event;
            if !self.alive.contains(&way) {
                return;
            }
            self.last_exchange = Some(self.now);
            self.sample.last_receive = Some(self.now);
            match event {
                Event::Handshake(way) => self.health.handle_handshake(self.now, way.replica),
                Event::Answer(way, id) => self.health.handle_answer(self.now, way.replica, id, RTT),
            }
        }

        fn exchanges_data(&mut self) {
            let last = Some(self.now);
            self.sample =
                Sample { last_receive: last, last_send: last, last_data_send: last, last_beat: None };
        }

        fn phase(&self) -> Phase {
            self.health.phase()
        }
    }

    #[test]
    fn a_handshake_and_an_answered_probe_connect_in_two_round_trips() {
        let mut world = World::with(Mode::Loopback, &[way(1, 1)]);
        world.run_for(RTT);
        assert_eq!(world.phase(), Phase::WaitingToReconnect);
        world.run_for(RTT);
        assert_eq!(world.phase(), Phase::Connected);
        assert_eq!(world.health.rtt(), Some(RTT));
    }

    #[test]
    fn an_idle_path_is_probed_once_per_interval() {
        let mut world = World::with(Mode::Loopback, &[way(1, 1)]);
        world.run_for(Duration::from_secs(1));
        let before = world.probes;
        world.run_for(INTERVAL * 10 + Duration::from_secs(2));
        assert_eq!(world.probes - before, 10);
    }

    #[test]
    fn traffic_in_both_directions_suppresses_probes() {
        let mut world = World::with(Mode::Loopback, &[way(1, 1)]);
        world.run_for(Duration::from_secs(1));
        let before = world.probes;
        for _ in 0..100 {
            world.exchanges_data();
            world.run_for(Duration::from_secs(1));
        }
        assert_eq!(world.probes, before);
    }

    #[test]
    fn traffic_in_one_direction_alone_does_not_suppress_probes() {
        let mut world = World::with(Mode::Loopback, &[way(1, 1)]);
        world.run_for(Duration::from_secs(1));
        let before = world.probes;
        for _ in 0..60 {
            world.sample.last_receive = Some(world.now);
            world.run_for(Duration::from_secs(1));
        }
        assert!(world.probes > before, "an outbound packet must keep the mapping open");
    }

    fn beating(interval: Duration) -> World {
        let mut world = World::with(Mode::Loopback, &[way(1, 1)]);
        world.run_for(Duration::from_secs(1));
        world.health.handle_beats(world.now, Some(interval));
        world.health.handle_beat(world.now, RTT);
        world
    }

    #[test]
    fn where_beats_prove_the_path_there_are_no_probes() {
        let interval = INTERVAL * 4;
        let mut world = beating(interval);
        let before = world.probes;
        for _ in 0..10 {
            world.run_for(interval);
            world.health.handle_beat(world.now, RTT);
            assert_eq!(world.phase(), Phase::Connected);
        }
        assert_eq!(world.probes, before);
        world.health.handle_beats(world.now, None);
        world.run_for(INTERVAL * 3 + Duration::from_secs(2));
        assert!(world.probes > before, "without beats the path is probed again");
    }

    #[test]
    fn lost_beats_end_a_connection_at_once_and_silence_of_an_interval_and_eight_seconds_does_too() {
        let mut world = beating(INTERVAL);
        world.run_for(PROBE_GIVE_UP);
        world.health.handle_beat_lost(world.now);
        assert_eq!(world.phase(), Phase::WaitingToReconnect);

        let mut world = beating(INTERVAL);
        world.alive.clear();
        world.run_for((INTERVAL + PROBE_GIVE_UP).saturating_sub(Duration::from_millis(1)));
        assert_eq!(world.phase(), Phase::Connected);
        world.run_for(Duration::from_millis(1));
        assert_eq!(world.phase(), Phase::WaitingToReconnect);
    }

    #[test]
    fn a_shorter_interval_gives_the_beats_time_to_follow() {
        let mut world = beating(INTERVAL * 4);
        world.run_for(INTERVAL * 3);
        world.health.handle_beats(world.now, Some(INTERVAL));
        world.run_for(PROBE_GIVE_UP.saturating_sub(Duration::from_millis(1)));
        assert_eq!(world.phase(), Phase::Connected);
    }

    #[test]
    fn data_alone_keeps_a_beating_client_connected() {
        let mut world = beating(INTERVAL);
        for _ in 0..100 {
            world.exchanges_data();
            world.run_for(Duration::from_secs(1));
        }
        assert_eq!(world.phase(), Phase::Connected);
    }

    #[test]
    fn a_beat_proves_the_path_and_not_the_session_over_it() {
        let mut world = beating(INTERVAL);
        world.alive.clear();
        world.health.handle_hint(world.now);
        for _ in 0..20 {
            world.run_for(HINT_SPREAD);
            world.health.handle_beat(world.now, RTT);
            world.sample.last_beat = Some(world.now);
        }
        assert_eq!(world.phase(), Phase::WaitingToReconnect, "the probe was not answered");

        let mut world = beating(INTERVAL);
        world.alive.clear();
        let began = world.now;
        while world.phase() == Phase::Connected {
            world.health.handle_beat(world.now, RTT);
            world.sample.last_data_send = Some(world.now);
            world.run_for(Duration::from_secs(1));
            assert!(world.now < began + STALL_WITHOUT_PROBES + SAMPLE + PROBE_GIVE_UP + SAMPLE);
        }
    }

    #[test]
    fn lost_beats_tear_nothing_down_while_data_comes() {
        let mut world = beating(INTERVAL);
        for _ in 0..100 {
            world.exchanges_data();
            world.health.handle_sample(world.now, world.sample);
            world.health.handle_beat_lost(world.now);
            assert_eq!(world.phase(), Phase::Connected);
            world.run_for(Duration::from_secs(1));
        }
    }

    #[test]
    fn an_answered_beat_brings_the_next_attempt_forward() {
        let mut world = beating(INTERVAL);
        world.alive.clear();
        world.run_for(PROBE_GIVE_UP);
        world.health.handle_beat_lost(world.now);
        world.run_for(Duration::from_secs(40));
        world.alive.insert(way(1, 1));
        let began = world.now;
        while world.phase() != Phase::Connected {
            world.health.handle_beat(world.now, RTT);
            world.act();
            world.run_for(RTT);
            assert!(world.now < began + ATTEMPT + RTT * 3);
        }
    }

    #[test]
    fn a_dead_path_is_named_within_an_interval_and_eight_seconds() {
        let mut world = World::with(Mode::Loopback, &[way(1, 1)]);
        world.run_for(Duration::from_secs(1));
        world.alive.clear();
        world.run_for(INTERVAL + PROBE_GIVE_UP);
        assert_eq!(world.phase(), Phase::WaitingToReconnect);
    }

    #[test]
    fn an_unanswered_probe_is_sent_again_after_one_two_and_four_seconds() {
        let mut world = World::with(Mode::Loopback, &[way(1, 1)]);
        world.run_for(Duration::from_secs(1));
        world.alive.clear();
        let connected = world.probes;
        world.run_for(INTERVAL);
        assert_eq!(world.probes - connected, 1);
        for resends in 1..=2 {
            world.run_for(Duration::from_secs(1));
            assert_eq!(world.probes - connected, 1 + resends);
        }
        world.run_for(Duration::from_secs(2));
        assert_eq!(world.probes - connected, 4);
    }

    #[test]
    fn unanswered_probes_tear_nothing_down_while_data_comes_in() {
        let mut world = World::with(Mode::Loopback, &[way(1, 1)]);
        world.run_for(Duration::from_secs(1));
        world.alive.clear();
        for _ in 0..120 {
            world.sample.last_receive = Some(world.now);
            world.run_for(Duration::from_secs(1));
            assert_eq!(world.phase(), Phase::Connected);
        }
    }

    #[test]
    fn sending_into_silence_is_noticed_before_the_interval_ends() {
        let mut world = World::with(Mode::Loopback, &[way(1, 1)]);
        world.run_for(Duration::from_secs(1));
        world.alive.clear();
        for _ in 0..20 {
            world.sample.last_send = Some(world.now);
            world.sample.last_data_send = Some(world.now);
            world.run_for(Duration::from_secs(1));
        }
        assert_eq!(world.phase(), Phase::WaitingToReconnect);
    }

    #[test]
    fn another_replica_takes_over_without_being_told() {
        let mut world = World::with(Mode::Loopback, &[way(1, 1), way(2, 1)]);
        world.run_for(Duration::from_secs(1));
        assert_eq!(world.health.active(), Some(way(1, 1)));
        world.alive.remove(&way(1, 1));
        world.run_for(INTERVAL + PROBE_GIVE_UP + ATTEMPT * 2);
        assert_eq!((world.phase(), world.health.active()), (Phase::Connected, Some(way(2, 1))));
    }

    #[test]
    fn the_end_of_the_session_stream_makes_a_dead_path_known_in_seconds() {
        let mut world = World::with(Mode::Loopback, &[way(1, 1), way(2, 1)]);
        world.run_for(Duration::from_secs(1));
        world.alive.remove(&way(1, 1));
        world.health.handle_hint(world.now);
        world.run_for(HINT_SPREAD + PROBE_GIVE_UP + ATTEMPT * 2);
        assert_eq!(world.health.active(), Some(way(2, 1)));
        assert_eq!(world.phase(), Phase::Connected);
    }

    #[test]
    fn a_replica_that_drains_is_left_at_once() {
        let mut world = World::with(Mode::Loopback, &[way(1, 1), way(2, 1)]);
        world.run_for(Duration::from_secs(1));
        world.health.handle_draining(world.now, key(1));
        world.act();
        world.run_for(RTT * 2);
        assert_eq!((world.phase(), world.health.active()), (Phase::Connected, Some(way(2, 1))));
    }

    #[test]
    fn the_only_replica_is_not_left_because_it_drains() {
        let mut world = World::with(Mode::Loopback, &[way(1, 1)]);
        world.run_for(Duration::from_secs(1));
        world.health.handle_draining(world.now, key(1));
        assert_eq!(world.phase(), Phase::Connected);
    }

    #[test]
    fn a_changed_local_network_is_proven_in_one_round_trip() {
        let mut world = World::with(Mode::Loopback, &[way(1, 1)]);
        world.run_for(Duration::from_secs(1));
        let tries = world.tries.len();
        world.health.handle_network(world.now, Network::Changed);
        assert_eq!(world.phase(), Phase::WaitingToReconnect);
        world.act();
        world.run_for(RTT);
        assert_eq!(world.phase(), Phase::Connected);
        assert_eq!(world.tries.len(), tries, "the session is kept");
    }

    #[test]
    fn without_a_route_a_client_is_dormant_and_comes_back_with_the_route() {
        let mut world = World::with(Mode::Loopback, &[way(1, 1)]);
        world.run_for(Duration::from_secs(1));
        world.alive.clear();
        world.health.handle_network(world.now, Network::Unreachable);
        assert_eq!(world.phase(), Phase::Dormant);
        world.run_for(Duration::from_mins(5));
        assert_eq!(world.phase(), Phase::Dormant);
        world.alive.insert(way(1, 1));
        world.health.handle_network(world.now, Network::Changed);
        world.act();
        world.run_for(RTT * 2);
        assert_eq!(world.phase(), Phase::Connected);
    }

    #[test]
    fn ways_that_are_found_without_a_route_wait_for_it_and_are_tried_once_with_it() {
        let mut world = World::with(Mode::Loopback, &[way(1, 1)]);
        world.run_for(Duration::from_secs(1));
        world.alive.clear();
        world.health.handle_network(world.now, Network::Unreachable);
        world.act();
        let tries = world.tries.len();
        world.alive.insert(way(1, 2));
        world.health.handle_candidates(world.now, vec![way(1, 2)]);
        world.act();
        assert_eq!((world.phase(), world.tries.len()), (Phase::Dormant, tries));
        world.health.handle_network(world.now, Network::Changed);
        world.act();
        world.run_for(RTT * 2);
        assert_eq!((world.phase(), world.tries.len()), (Phase::Connected, tries + 1));
    }

    #[test]
    fn the_first_way_is_tried_once_and_another_familys_at_once_with_its_network() {
        let mut world = World::with(Mode::Loopback, &[]);
        let look = |world: &mut World, candidates: &[Candidate<u8>], network| {
            world.alive = candidates.iter().copied().collect();
            world.health.handle_surroundings(world.now, candidates.to_vec(), network);
            world.act();
            world.run_for(RTT * 2);
            (world.phase(), world.tries.len())
        };
        assert_eq!(look(&mut world, &[way(1, 1)], Network::Changed), (Phase::Connected, 1));
        world.alive.clear();
        world.health.handle_network(world.now, Network::Unreachable);
        assert_eq!(look(&mut world, &[way(1, 2)], Network::Changed), (Phase::Connected, 2));
    }

    #[test]
    fn a_path_that_stays_dead_is_tried_from_another_port() {
        let mut world = World::with(Mode::Loopback, &[way(1, 1)]);
        world.run_for(Duration::from_secs(1));
        world.alive.clear();
        world.run_for(Duration::from_mins(2));
        assert!(world.rebinds > 0);
    }

    #[test]
    fn link_status_sends_no_probe_and_still_leaves_a_stalled_path() {
        let mut world = World::with(Mode::LinkStatus, &[way(1, 1)]);
        world.run_for(Duration::from_hours(1));
        assert_eq!((world.phase(), world.probes), (Phase::Connected, 0));
        world.alive.clear();
        world.sample.last_send = Some(world.now);
        world.sample.last_data_send = Some(world.now);
        world.run_for(STALL_WITHOUT_PROBES + SAMPLE);
        assert_eq!(world.phase(), Phase::WaitingToReconnect);
    }

    #[test]
    fn a_replica_that_is_no_longer_offered_is_left() {
        let mut world = World::with(Mode::Loopback, &[way(1, 1), way(2, 1)]);
        world.run_for(Duration::from_secs(1));
        world.health.handle_candidates(world.now, vec![way(2, 1)]);
        world.act();
        world.run_for(RTT * 2);
        assert_eq!((world.phase(), world.health.active()), (Phase::Connected, Some(way(2, 1))));
    }

    #[test]
    fn an_answer_to_nothing_that_was_asked_connects_nobody() {
        let mut world = World::with(Mode::Loopback, &[way(1, 1)]);
        world.pending.clear();
        world.health.handle_answer(world.now, key(1), 12345, RTT);
        assert_ne!(world.phase(), Phase::Connected);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn connected_always_rests_on_a_recent_exchange_and_comes_back_with_the_path(
            seed: u64,
            changes in proptest::collection::vec((0u8..4, 1u64..90, any::<bool>()), 1..40),
        ) {
            let ways = [way(1, 1), way(1, 2), way(2, 1)];
            let mut world = World::new(Mode::Loopback, seed);
            world.health.handle_candidates(world.now, ways.to_vec());
            world.act();
            for (which, seconds, roam) in changes {
                world.alive.clear();
                world.alive.extend(ways.get(usize::from(which)));
                if roam {
                    world.health.handle_network(world.now, Network::Changed);
                    world.act();
                }
                for _ in 0..seconds {
                    world.run_for(Duration::from_secs(1));
                    if world.phase() == Phase::Connected {
                        let age = world.now - world.last_exchange.expect("connected without any exchange");
                        prop_assert!(age <= INTERVAL + PROBE_GIVE_UP + Duration::from_secs(1), "{age:?}");
                    }
                }
            }
            world.alive.extend(ways);
            world.run_for(INTERVAL + PROBE_GIVE_UP + ROUND_BACKOFF_CAP + Duration::from_secs(10));
            prop_assert_eq!(world.phase(), Phase::Connected);
        }
    }
}
