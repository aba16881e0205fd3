//! Keeps one live binding with the fewest wake-ups, and learns meanwhile how few are enough.
//!
//! Boot: a [`ladder`] of [`experiment`]s, each on a socket of its own with a promoted binding, asks the gateway to
//! wake it at rising ages. What lived is certain; what did not come is believed once the live path answered
//! afterwards. The first missing search step brackets the [`lifetime`]; a few more experiments narrow it.
//!
//! Then: one [`burst`] an interval. The gateway's wake begins it, the only proof that the inbound path lived so long;
//! a beat answers; a companion 2.5 s later promotes what may be a new binding, and is what the next interval counts
//! from. All of it lies within the three seconds that a radio stays awake anyway, and so do canaries: sockets of
//! the full proven age, which die before the live binding does.
//!
//! A missing wake or a moved mapping is a [suspected loss](suspected_loss): the next interval is halved, while a confirmation probe of the full age
//! finds out whether the binding was lost or the lifetime shrank.

mod burst;
mod climb;
mod experiment;
mod ladder;
mod lifetime;
mod link;
mod live;
mod room;
mod sequence;
mod suspected_loss;

#[cfg(test)]
mod tests;

use std::{
    collections::VecDeque,
    fmt,
    net::SocketAddr,
    time::{Duration, Instant},
};

use self::{
    climb::{Growth, Stage},
    experiment::{Experiment, Purpose, Step},
    lifetime::Lifetime,
    link::Link,
    live::{Activity, Live},
    room::Room,
    sequence::Plan,
    suspected_loss::SuspectedLosses,
};
use super::{Beat, Binding, Bursts, Channel, Churn, Confidence, Mode, Policy, RADIO, Reply, Wake};
use crate::health::Jitter;

/// What the shell has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Send this beat on its channel. A probe channel is opened by its first beat.
    Send(Beat),
    /// The channel's socket is not needed any more. Late packets may still come for a second.
    Close(Channel),
    /// The gateway does not send the tunnel's traffic to where the beats come from: send it an authenticated tunnel
    /// packet now.
    Prove,
    /// The live path does not answer: look for another. It is tried again meanwhile, ever less often.
    Lost,
    /// The live path carried a beat and its answer.
    Confirmed {
        /// Between the two.
        rtt: Duration,
    },
    /// The binding moved, was lost, or changed its lifetime.
    Event(Churn),
}

/// What became of the path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Path {
    /// There is one, to another gateway or from another network than before: what was learnt does not hold for it.
    Fresh {
        /// What is known of it from elsewhere.
        prior: Option<Prior>,
    },
    /// The live channel has a new socket in the same network.
    Rebound,
    /// There is none.
    Down,
    /// It is back as it was.
    Up,
}

/// What is known of a NAT before it was measured: from a cache, or from a neighbour behind the same NAT. It is
/// believed once experiments of one's own agree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prior {
    /// The lifetime.
    pub binding: Binding,
}

/// What the gateway, which sees a NAT's other clients too, advises.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Guidance {
    /// What neighbours behind the same NAT learnt.
    pub prior: Option<Prior>,
    /// Others are measuring this NAT, and their experiments fill its table: wait for what they learn.
    pub wait: bool,
}

/// Why the interval is what it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Reason {
    /// Configured, or bounded by what is configured.
    Policy,
    /// Nothing was learnt yet.
    #[default]
    Initial,
    /// Experiments are under way; it grows with what they show.
    Learning,
    /// It follows from the measured lifetime.
    Learnt,
    /// It follows from what was measured earlier or by a neighbour, and agreed with an own experiment.
    Cached,
    /// The binding was lost at what was thought safe: shorter until it is clear why.
    Backoff,
}

impl Reason {
    /// A stable, low-cardinality name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Policy => "Policy",
            Self::Initial => "Initial",
            Self::Learning => "Learning",
            Self::Learnt => "Learnt",
            Self::Cached => "Cached",
            Self::Backoff => "Backoff",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Counted since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Beats sent on the live channel.
    pub live_beats: u64,
    /// Beats sent by experiments.
    pub probe_beats: u64,
    /// Wakes that came.
    pub wakes: u64,
    /// Times that something was sent or received more than three seconds after the last such time began: what
    /// wakes a radio.
    pub bursts: u64,
    /// Packets in them: beats, replies and wakes.
    pub packets: u64,
    /// Missing wakes and moved mappings.
    pub suspected_losses: u64,
    /// Live bindings that were lost while their lifetime stayed what it was.
    pub losses: u64,
    /// Times that the lifetime turned out shorter than before.
    pub shrinks: u64,
}

/// Interval while nothing at all is proven.
const UNPROVEN: Duration = Duration::from_millis(2500);
/// Share of a new lifetime's interval that is in force while it is cut and canaries try it: enough for NATs that look at
/// their timers every quarter of a lifetime, of which the canaries learn meanwhile.
const PROBATION: f64 = 0.91;

/// The state machine. Times are monotonic.
#[derive(Debug)]
pub struct Keeper {
    policy: Policy,
    link: Link,
    life: Lifetime,
    confidence: Confidence,
    stage: Stage,
    prior: Option<Prior>,
    live: Live,
    experiments: Vec<Experiment>,
    suspected_losses: SuspectedLosses,
    growth: Growth,
    room: Room,
    /// Bursts of the live channel since the lifetime was settled.
    cycles: u64,
    observed: Option<SocketAddr>,
    /// When the last answered live beat was sent.
    proof: Option<Instant>,
    next_seq: u64,
    next_probe: u32,
    bursts: Bursts,
    jitter: Jitter,
    stats: Stats,
    actions: VecDeque<Action>,
}

impl Keeper {
    /// A machine for a path that is there. `seed` drives its jitter only.
    pub fn new(now: Instant, policy: Policy, prior: Option<Prior>, seed: u64) -> Self {
        let mut keeper = Self {
            policy,
            link: Link::default(),
            life: Lifetime::default(),
            confidence: Confidence::Unknown,
            stage: Stage::Settled,
            prior: None,
            live: Live::new(),
            experiments: Vec::new(),
            suspected_losses: SuspectedLosses::default(),
            growth: Growth::default(),
            room: Room::default(),
            cycles: 0,
            observed: None,
            proof: None,
            next_seq: 1,
            next_probe: 0,
            bursts: Bursts::default(),
            jitter: Jitter::new(seed),
            stats: Stats::default(),
            actions: VecDeque::new(),
        };
        keeper.begin_path(now, prior);
        keeper
    }

    /// Another policy is in force.
    pub fn handle_policy(&mut self, now: Instant, policy: Policy) {
        if self.policy == policy {
            return;
        }
        let before = std::mem::replace(&mut self.policy, policy);
        if before.mode == policy.mode {
            self.reschedule(now);
        } else {
            self.begin_path(now, None);
        }
    }

    /// The path changed.
    pub fn handle_path(&mut self, now: Instant, path: Path) {
        match path {
            Path::Fresh { prior } => self.begin_path(now, prior),
            Path::Rebound | Path::Up => {
                self.observed = None;
                self.live = Live::new();
                self.resume_learning(now);
                self.begin_burst(now);
            }
            Path::Down => {
                self.close_all();
                self.suspected_losses = SuspectedLosses::default();
                self.live = Live::new();
            }
        }
    }

    /// The gateway advises. What was measured here counts for more.
    pub fn handle_guidance(&mut self, now: Instant, guidance: Guidance) {
        let measured = self.confidence >= Confidence::Bracketed;
        if self.policy.mode == Mode::Fixed || measured || self.prior.is_some() {
            return;
        }
        if guidance.prior.is_some() {
            self.prior = guidance.prior;
            self.climb_from_the_ground(now);
        } else if guidance.wait {
            self.wait_for_guidance(now);
        } else if matches!(self.stage, Stage::Blind { .. } | Stage::Waiting { .. }) {
            self.climb_from_the_ground(now);
        }
    }

    /// The gateway answered a beat.
    pub fn handle_reply(&mut self, now: Instant, reply: Reply) {
        self.count_packet(now);
        self.room.answered();
        match reply.channel {
            Channel::Live => self.live_reply(now, &reply),
            Channel::Probe(id) => {
                if let Some(at) = self.experiments.iter().position(|experiment| experiment.id == id)
                    && let Some(experiment) = self.experiments.get_mut(at)
                {
                    experiment.handle_reply(now, reply.seq, &mut self.link);
                }
            }
        }
    }

    /// The gateway sent a packet by itself, as it was asked to.
    pub fn handle_wake(&mut self, now: Instant, wake: Wake) {
        let slept = self.link.may_sleep(now);
        self.count_packet(now);
        self.stats.wakes += 1;
        match wake.channel {
            Channel::Live => self.live_wake(now, wake.seq, slept),
            Channel::Probe(id) => {
                let found = self.experiments.iter().position(|experiment| experiment.id == id);
                if let Some(at) = found {
                    let experiment = self.experiments.swap_remove(at);
                    self.actions.push_back(Action::Close(wake.channel));
                    let age = experiment.age_at(now).unwrap_or_default();
                    self.link.woken(experiment.late_at(now), slept);
                    self.lived(now, experiment.purpose, age);
                }
            }
        }
    }

    /// Data went over the live channel: `answered` left before something authenticated came in, at `received` the last.
    /// Hand this in before [`Self::handle_timeout`]: what data keeps alive needs no beats.
    pub fn handle_traffic(&mut self, now: Instant, answered: Option<Instant>, received: Option<Instant>) {
        self.live_heard(received, answered);
        if let Some(at) = received.max(answered) {
            self.link.passed(at);
        }
        if answered <= self.live.anchor || !self.live.is_resting() {
            return;
        }
        self.live.anchor = answered;
        self.live.last_sent = self.live.last_sent.max(answered);
        // The wake was to come at an age that the binding does not have any more.
        self.live.wake_due = None;
        self.reschedule(now);
    }

    /// When [`Self::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let experiments = self.experiments.iter().filter_map(|experiment| experiment.deadline(&self.link));
        experiments.chain(self.live.deadline()).min()
    }

    /// Time passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.live_timeout(now);
        self.make_do_with_less(now);
        let mut at = 0;
        while let Some(experiment) = self.experiments.get_mut(at) {
            match experiment.handle_timeout(now, &mut self.link) {
                Some(Step::Send(wake)) => {
                    if experiment.purpose == Purpose::SearchStep && experiment.was_ignored_at_first() {
                        self.room.unanswered();
                    }
                    self.send_probe(now, at, wake);
                    at += 1;
                }
                Some(Step::Missing) => {
                    let purpose = experiment.purpose;
                    at += 1;
                    self.ask_for_proof(now, purpose);
                }
                Some(Step::Void) => {
                    let experiment = self.experiments.swap_remove(at);
                    self.actions.push_back(Action::Close(Channel::Probe(experiment.id)));
                    self.void(now, experiment.purpose);
                }
                None => at += 1,
            }
        }
        self.bury(now);
    }

    /// The next thing to do.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// A new lifetime was proven at one phase of the NAT's own timers; canaries try others first.
    fn is_on_probation(&self) -> bool {
        match self.stage {
            Stage::Refining => true,
            Stage::Settled => {
                self.cycles < burst::CLOSE_WATCH && !self.life.coarse && self.life.promotion.heals_by_itself()
            }
            Stage::Blind { .. } | Stage::Waiting { .. } | Stage::Climbing => false,
        }
    }

    /// The longest silence that the live channel is left in now.
    pub fn interval(&self) -> Duration {
        let longest = self.policy.longest();
        if self.policy.mode == Mode::Fixed {
            return self.policy.interval;
        }
        match self.stage {
            Stage::Blind { .. } | Stage::Waiting { lost_after: None, .. } => {
                return self.policy.interval.clamp(self.policy.min, longest);
            }
            Stage::Waiting { lost_after: Some(lost), .. } => {
                return self.policy.interval.min(lost / 2).clamp(self.policy.min, longest);
            }
            Stage::Climbing | Stage::Refining | Stage::Settled => {}
        }
        let Some(learnt) = self.life.interval(&self.link) else {
            return UNPROVEN.min(self.policy.interval).max(self.policy.min.min(UNPROVEN));
        };
        let interval = if self.suspected_losses.is_confirming() {
            suspected_loss::shortened(learnt)
        } else if self.is_on_probation() {
            learnt.mul_f64(PROBATION)
        } else {
            learnt
        };
        interval.clamp(self.policy.min, longest)
    }

    /// Why it is that long.
    pub fn reason(&self) -> Reason {
        let learnt = self.life.interval(&self.link);
        match (self.policy.mode, learnt) {
            (Mode::Fixed, _) => Reason::Policy,
            (Mode::Adaptive, None) => Reason::Initial,
            _ if self.suspected_losses.is_confirming() => Reason::Backoff,
            (Mode::Adaptive, Some(learnt)) if learnt > self.policy.longest() => Reason::Policy,
            _ if self.stage == Stage::Climbing => Reason::Learning,
            _ if self.prior.is_some() => Reason::Cached,
            _ => Reason::Learnt,
        }
    }

    /// What is known of the NAT's bindings.
    pub fn binding(&self) -> Binding {
        Binding {
            at_least: self.life.at_least,
            less_than: self.life.less_than,
            promotion: self.life.promotion,
            confidence: self.confidence,
        }
    }

    /// The public address of the live channel, as the gateway sees it.
    pub fn observed(&self) -> Option<SocketAddr> {
        self.observed
    }

    /// What was counted.
    pub fn stats(&self) -> Stats {
        Stats { bursts: self.bursts.count(), ..self.stats }
    }

    fn begin_path(&mut self, now: Instant, prior: Option<Prior>) {
        self.close_all();
        self.link.forget_radio();
        self.life = Lifetime::default();
        self.confidence = Confidence::Unknown;
        self.suspected_losses = SuspectedLosses::default();
        self.growth = Growth::default();
        self.room = Room::default();
        self.prior = prior;
        self.observed = None;
        self.live = Live::new();
        self.cycles = 0;
        self.stage = Stage::Settled;
        if self.policy.mode == Mode::Adaptive {
            self.climb_from_the_ground(now);
        }
        self.begin_burst(now);
    }

    fn close_all(&mut self) {
        for experiment in self.experiments.drain(..) {
            self.actions.push_back(Action::Close(Channel::Probe(experiment.id)));
        }
    }

    fn open(&mut self, now: Instant, purpose: Purpose, age: Duration, plan: Plan) -> &mut Experiment {
        let id = self.next_probe;
        self.next_probe += 1;
        let at = self.experiments.len();
        self.experiments.push(Experiment::new(id, purpose, age, plan, now));
        #[expect(clippy::indexing_slicing, reason = "it was pushed just now")]
        &mut self.experiments[at]
    }

    fn has(&self, purpose: Purpose) -> bool {
        self.experiments.iter().any(|experiment| experiment.purpose == purpose)
    }

    fn send_probe(&mut self, now: Instant, at: usize, wake: Option<Duration>) {
        let seq = self.take_seq();
        let Some(experiment) = self.experiments.get_mut(at) else { return };
        experiment.sent(now, seq, &self.link);
        let channel = Channel::Probe(experiment.id);
        self.actions.push_back(Action::Send(Beat { channel, seq, wake }));
        self.stats.probe_beats += 1;
        self.count_packet(now);
        self.ride(now);
    }

    /// Decides on the experiments whose wake is missing, once the path is proven to work.
    fn bury(&mut self, now: Instant) {
        let Some(proof) = self.proof else { return };
        while let Some(at) = self.experiments.iter().position(|experiment| experiment.is_dead_given(proof)) {
            let experiment = self.experiments.swap_remove(at);
            self.actions.push_back(Action::Close(Channel::Probe(experiment.id)));
            self.died(now, experiment.purpose, experiment.age);
        }
    }

    fn take_seq(&mut self) -> u64 {
        let seq = self.next_seq;
        self.next_seq += 1;
        seq
    }

    fn count_packet(&mut self, now: Instant) {
        self.bursts.note(now);
        self.link.passed(now);
        self.stats.packets += 1;
    }
}
