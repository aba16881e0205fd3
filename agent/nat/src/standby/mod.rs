//! Decides how an idle client stays reachable, by its UDP binding or by its session alone, and learns how long the
//! session's TCP mapping lives.
//!
//! A rest tells the gateway to send a wake once the session was silent for so long. A wake that comes proves that
//! age inbound; the next rest answers it and refreshes the mapping outbound. The first proof is made while UDP still
//! carries, in step with its bursts. From then on UDP rests, and canaries, extra connections whose wakes fall into
//! the session's own, try longer ages.
//!
//! A wake that does not come is a suspected loss: UDP is kept again at once, the session is asked whether it lives, and nothing
//! that was proven counts until it is proven again, first by a canary of the full age.

mod canary;
mod cycle;
mod lifetime;
mod message;
mod policy;
mod suspected_loss;

#[cfg(test)]
mod tests;

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use self::{
    canary::Canary,
    cycle::{Live, Udp},
    lifetime::Lifetime,
    suspected_loss::{Growth, Hint, SuspectedLosses},
};
pub use self::{
    message::{Action, Ended, Event, Line, Mode, Prior, Reason, Stats, UdpCost},
    policy::{Policy, Preference},
};
use super::{Binding, Confidence, Promotion};
use crate::health::Jitter;

/// The longest silence after which a gateway sends a wake.
pub const LONGEST_WAKE: Duration = Duration::from_mins(150);

/// A wake that is late by more does not come any more: round trips, four retransmissions of TCP (3 s), and a radio
/// that is paged.
const GRACE: Duration = Duration::from_millis(4500);
/// The session has to be cheaper than UDP by this factor.
const CHEAPER: f64 = 1.9;
/// Where the session is preferred, it has to last so long at a time.
const LEAST: Duration = Duration::from_secs(25);
/// Who does not know the lifetime of its UDP binding by then compares with the interval in force.
const LEARN_TIMEOUT: Duration = Duration::from_mins(75);
/// Share of the UDP interval after which traffic is over: just before the keeper would send.
const OVER: f64 = 0.9;
/// The same where the interval is not known.
const OVER_UNKNOWN: Duration = Duration::from_secs(20);

/// The state machine. Times are monotonic.
#[derive(Debug)]
pub struct Standby {
    policy: Policy,
    life: Lifetime,
    hint: Option<Hint>,
    live: Live,
    udp: Udp,
    mode: Mode,
    reason: Reason,
    canaries: Vec<Canary>,
    /// No canary is opened before.
    canaries_after: Option<Instant>,
    suspected_losses: SuspectedLosses,
    /// What suspected losses leave of the longest interval.
    bound: Option<Duration>,
    growth: Growth,
    /// When the session's wake did not come at which unproven age.
    doubt: Option<(Instant, Duration)>,
    /// UDP is kept for the time in which data flows only.
    naps: bool,
    /// Until when data is taken to flow.
    busy: Option<Instant>,
    poked: Option<Instant>,
    /// When this network was entered.
    since: Instant,
    /// Wakes in a row that came on the session as expected.
    cycles: u64,
    next_seq: u64,
    next_canary: u32,
    jitter: Jitter,
    stats: Stats,
    actions: VecDeque<Action>,
}

impl Standby {
    /// A machine for a client that keeps its UDP binding and has no session yet. `seed` drives its jitter only.
    pub fn new(now: Instant, policy: Policy, prior: Option<Prior>, seed: u64) -> Self {
        let mut standby = Self {
            policy,
            life: Lifetime::default(),
            hint: prior.map(Hint::from),
            live: Live::default(),
            udp: Udp::default(),
            mode: Mode::Udp,
            reason: Reason::SessionClosed,
            canaries: Vec::new(),
            canaries_after: None,
            suspected_losses: SuspectedLosses::default(),
            bound: None,
            growth: Growth::default(),
            doubt: None,
            naps: false,
            busy: None,
            poked: None,
            since: now,
            cycles: 0,
            next_seq: 1,
            next_canary: 0,
            jitter: Jitter::new(seed),
            stats: Stats::default(),
            actions: VecDeque::new(),
        };
        standby.choose(now);
        standby
    }

    /// The session is there, over a connection that is new.
    pub fn handle_attached(&mut self, now: Instant) {
        self.live = Live::attached(now);
        self.settle_doubt(now);
        self.proceed(now);
    }

    /// The session's connection ended.
    pub fn handle_detached(&mut self, now: Instant, ended: Ended) {
        let live = std::mem::take(&mut self.live);
        if !live.is_asked() && ended != Ended::Closed {
            self.ended_unasked(now, live.idle(now), ended);
        }
        self.choose(now);
    }

    /// A wake arrived. One that nobody waits for is a sign of life.
    pub fn handle_wake(&mut self, now: Instant, line: Line, seq: u64) {
        match line {
            Line::Live => match self.live.take_rest(now, seq) {
                Some(age) => self.woken(now, age),
                None => self.handle_session_packet(now),
            },
            Line::Canary(id) => self.canary_woken(now, id, seq),
        }
    }

    /// Anything else arrived on the session, or was sent and acknowledged: the silence begins anew, at the gateway too.
    pub fn handle_session_packet(&mut self, now: Instant) {
        self.live.heard(now);
        self.settle_doubt(now);
        self.proceed(now);
    }

    /// A canary's connection is there.
    pub fn handle_canary_attached(&mut self, now: Instant, canary: u32) {
        let seq = self.next_seq;
        let found = self.canaries.iter_mut().find(|own| own.id == canary && own.is_dialling());
        let Some(own) = found else { return };
        own.rest(now, seq);
        let wake_after = own.age;
        self.next_seq += 1;
        self.actions.push_back(Action::Rest { line: Line::Canary(canary), seq, wake_after });
    }

    /// A canary's connection ended, or could not be dialled.
    pub fn handle_canary_ended(&mut self, now: Instant, canary: u32, ended: Ended) {
        self.canary_ended(now, canary, ended);
        self.choose(now);
    }

    /// What UDP costs.
    pub fn handle_udp(&mut self, now: Instant, cost: UdpCost) {
        self.udp.cost = Some(cost);
        self.choose(now);
    }

    /// The keeper's burst begins: the radio is awake.
    pub fn handle_udp_burst(&mut self, now: Instant) {
        self.udp.burst(now);
        if self.waits_for_a_fresh_rest(now) {
            self.live.forget_rest();
        }
        self.proceed(now);
    }

    /// User data flows.
    pub fn handle_busy(&mut self, now: Instant) {
        self.busy = Some(now + self.udp.cost.map_or(OVER_UNKNOWN, |cost| cost.interval.mul_f64(OVER)));
        self.choose(now);
    }

    /// The gateway holds data for the client, and said so on the session.
    pub fn handle_poke(&mut self, now: Instant) {
        self.stats.pokes += 1;
        self.poked = self.poked.or(Some(now));
        self.live.heard(now);
        self.handle_busy(now);
        self.proceed(now);
    }

    /// An authenticated packet came through the tunnel.
    pub fn handle_reached(&mut self, now: Instant) {
        let Some(poked) = self.poked.take() else { return };
        let after = now.saturating_duration_since(poked);
        self.stats.last_wake = Some(after);
        self.stats.worst_wake = self.stats.worst_wake.max(Some(after));
        self.tell(Event::Woken { after });
    }

    /// The client is in another network, or talks to another gateway: nothing that was learnt holds. `prior` is what is
    /// known of that one. A session that lives on there is attached once more.
    pub fn handle_network(&mut self, now: Instant, prior: Option<Prior>) {
        self.close_canaries();
        self.life = Lifetime::default();
        self.hint = prior.map(Hint::from);
        self.live = Live::default();
        self.udp = Udp::default();
        self.suspected_losses = SuspectedLosses::default();
        self.growth = Growth::default();
        self.canaries_after = None;
        self.doubt = None;
        self.busy = None;
        self.poked = None;
        self.since = now;
        self.cycles = 0;
        self.choose(now);
    }

    /// Another policy is in force.
    pub fn handle_policy(&mut self, now: Instant, policy: Policy) {
        if self.policy == policy {
            return;
        }
        self.policy = policy;
        if policy.preference == Preference::UdpOnly {
            self.close_canaries();
            self.live.forget_rest();
        }
        self.proceed(now);
    }

    /// Time has come to what [`poll_timeout`](Self::poll_timeout) said.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.busy.is_some_and(|until| until <= now) {
            self.busy = None;
            self.choose(now);
        }
        if self.live.deadline().is_some_and(|at| at <= now) {
            self.missed(now);
        }
        while let Some(at) = self.canaries.iter().position(|canary| canary.deadline() <= now) {
            let canary = self.canaries.swap_remove(at);
            self.actions.push_back(Action::Close { canary: canary.id });
            self.canary_missed(now, &canary);
        }
        self.choose(now);
    }

    /// When it wants to be called next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let canaries = self.canaries.iter().map(Canary::deadline);
        canaries.chain(self.live.deadline()).chain(self.busy).min()
    }

    /// What the shell has to do now, one thing at a time.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// By what the client is reached while it is idle.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Why by that.
    pub fn reason(&self) -> Reason {
        self.reason
    }

    /// The longest silence that the way in force leaves. `None`: by UDP, and its interval was not told.
    pub fn interval(&self) -> Option<Duration> {
        match self.mode {
            Mode::Session => Some(self.life.interval(self.longest())),
            Mode::Udp => self.udp.cost.map(|cost| cost.interval),
        }
    }

    /// When a packet last came over the session, as it does while the client can be woken by it.
    pub fn proven(&self) -> Option<Instant> {
        self.live.proven()
    }

    /// What is known of the lifetime of TCP mappings.
    pub fn lifetime(&self) -> Binding {
        let confidence = match self.life.less_than {
            _ if self.life.at_least.is_zero() => Confidence::Unknown,
            None => Confidence::Growing,
            Some(_) if self.life.is_narrow() && self.cycles >= 8 => Confidence::Confirmed,
            Some(_) => Confidence::Bracketed,
        };
        Binding {
            at_least: self.life.at_least,
            less_than: self.life.less_than,
            promotion: Promotion::None,
            confidence,
        }
    }

    /// What to remember for this network.
    pub fn prior(&self) -> Option<Prior> {
        let hint = self.hint.map(|hint| hint.age);
        let at_least = hint.unwrap_or_default().max(self.life.at_least);
        (!at_least.is_zero()).then_some(Prior { at_least })
    }

    /// Counted since the start.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// The shortest session interval that is worth it. `None`: UDP's cost is not known.
    fn needed(&self) -> Option<Duration> {
        match self.policy.preference {
            Preference::Session => Some(LEAST),
            Preference::Auto | Preference::UdpOnly => {
                self.udp.cost.map(|cost| cost.interval.mul_f64(CHEAPER).max(LEAST))
            }
        }
    }

    /// The longest interval that may be chosen.
    fn longest(&self) -> Duration {
        let longest = self.policy.longest();
        self.bound.map_or(longest, |bound| longest.min(bound))
    }

    /// Picks the way that should be in force now, but does not begin to rely on a session that does not rest.
    fn choose(&mut self, now: Instant) {
        self.decide(now, false);
    }

    /// The same; `can_rest`: the session's rest follows at once.
    fn decide(&mut self, now: Instant, can_rest: bool) {
        self.bound = self.suspected_losses.bound(now);
        let (mode, reason) = self.best(now, can_rest);
        if mode != self.mode {
            self.actions.push_back(match mode {
                Mode::Session => Action::LetUdpGo,
                Mode::Udp => Action::KeepUdp,
            });
            self.udp.restart();
            self.tell(Event::Switched { mode, reason });
        }
        self.naps = reason == Reason::Busy && (self.naps || self.mode == Mode::Session);
        (self.mode, self.reason) = (mode, reason);
    }

    fn best(&self, now: Instant, can_rest: bool) -> (Mode, Reason) {
        let preference = self.policy.preference;
        if preference == Preference::UdpOnly {
            return (Mode::Udp, Reason::Policy);
        }
        if self.live.is_asked() || self.suspected_losses.has_given_up(now) {
            return (Mode::Udp, Reason::SessionLost);
        }
        if !self.live.is_attached() {
            return (Mode::Udp, Reason::SessionClosed);
        }
        if self.busy.is_some() {
            return (Mode::Udp, Reason::Busy);
        }
        let Some(needed) = self.needed() else { return (Mode::Udp, Reason::Learning) };
        let longest = self.longest();
        if self.policy.longest() < needed {
            return (Mode::Udp, Reason::CheaperByUdp);
        }
        if longest < needed {
            return (Mode::Udp, Reason::SessionLost);
        }
        if self.life.interval(longest) >= needed {
            return match preference {
                _ if self.is_stale(now, can_rest) => (Mode::Udp, Reason::Learning),
                Preference::Session => (Mode::Session, Reason::Policy),
                _ if self.knows_udp(now) => (Mode::Session, Reason::CheaperBySession),
                _ => (Mode::Udp, Reason::Learning),
            };
        }
        if self.life.less_than.is_some_and(|end| end <= lifetime::worth_trying(needed)) {
            return (Mode::Udp, Reason::TooShort);
        }
        let lost = self.hint.is_some_and(|hint| hint.struck);
        (Mode::Udp, if lost { Reason::SessionLost } else { Reason::Learning })
    }

    fn knows_udp(&self, now: Instant) -> bool {
        let learnt = self.udp.cost.is_some_and(|cost| cost.learnt);
        learnt || now.saturating_duration_since(self.since) >= LEARN_TIMEOUT
    }

    fn close_canaries(&mut self) {
        for canary in self.canaries.drain(..) {
            self.actions.push_back(Action::Close { canary: canary.id });
        }
    }

    fn tell(&mut self, event: Event) {
        self.actions.push_back(Action::Event(event));
    }
}
