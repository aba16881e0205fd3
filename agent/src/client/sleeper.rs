//! Carries out what [`Standby`] decides: rests on the session, canaries, and whether the keeper of the UDP binding rests.

mod canaries;
mod kept;

#[cfg(test)]
mod tests;

use std::{
    collections::VecDeque,
    net::SocketAddr,
    time::{Duration, Instant, SystemTime},
};

use pinhole_proto::v1;
use tokio::sync::mpsc;

pub(super) use self::canaries::{News, Whereto};
use self::{
    canaries::{Canaries, Connect},
    kept::Kept,
};
use super::memory::SAVE_PAUSE;
use crate::{
    identity::Store,
    nat::standby::{Action, Ended, Event, Line, Mode, Policy, Reason, Standby, UdpCost},
    tunnel::PublicKey,
    wire,
};

/// Share of the UDP interval after whose silence packets are held: when [`Standby`] takes data to be over.
const OVER: f64 = 0.9;
/// So long after a poke something has to come through the tunnel, or the path is asked.
const WOKEN: Duration = Duration::from_millis(2500);

/// Where the client is, as far as what was learnt of its session's mapping depends on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// The gateway.
    pub(super) replica: PublicKey,
    /// From which local network, as [`local_network`](super::network::local_network) names it.
    pub(super) network: String,
}

/// What the keeper of the UDP binding does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Keeping {
    /// It keeps it.
    Always,
    /// It opens it for data, which keeps it afterwards: the gateway is not asked for wakes.
    Opened,
    /// It rests.
    Never,
}

/// What the owner has to do.
#[derive(Debug, PartialEq)]
pub(super) enum Step {
    /// Tell the gateway on the session.
    Rest(v1::Rest),
    /// What the keeper of the UDP binding does from now on.
    Keep(Keeping),
    /// The gateway holds something, and nothing came: ask whether the path works.
    Doubt,
}

/// Times are monotonic, and come from outside. How canaries connect is `C`.
pub(super) struct Sleeper<C = Whereto> {
    machine: Standby,
    place: Option<Place>,
    /// The session stands with whom the tunnel leads to, and the tunnel works.
    ready: bool,
    keeping: Keeping,
    /// Why it last slept, and how long a silence it left.
    asleep: Option<(Reason, Duration)>,
    cost: Option<UdpCost>,
    data: Option<Instant>,
    poked: Option<Instant>,
    canaries: Canaries<C>,
    store: Store,
    kept: Kept,
    unsaved: Option<Instant>,
    steps: VecDeque<Step>,
}

impl<C: Connect> Sleeper<C> {
    /// For a client that keeps its binding. What becomes of canaries goes to `news`, for [`Self::handle_news`].
    pub(super) fn new(
        now: Instant,
        policy: Policy,
        seed: u64,
        store: Store,
        whereto: C,
        news: mpsc::Sender<News>,
    ) -> Self {
        Sleeper {
            machine: Standby::new(now, policy, None, seed),
            place: None,
            ready: false,
            keeping: Keeping::Always,
            asleep: None,
            cost: None,
            data: None,
            poked: None,
            canaries: Canaries::new(whereto, news),
            kept: Kept::load(&store),
            store,
            unsaved: None,
            steps: VecDeque::new(),
        }
    }

    pub(super) fn handle_policy(&mut self, now: Instant, policy: Policy) {
        self.machine.handle_policy(now, policy);
    }

    /// Whether the client could be woken by its session: that stands at `session`, with the replica to which the tunnel
    /// leads and works.
    pub(super) fn handle_ready(
        &mut self,
        now: Instant,
        place: Option<Place>,
        session: Option<SocketAddr>,
        ended: Ended,
    ) {
        if let Some(place) = place
            && self.place.as_ref() != Some(&place)
        {
            let prior = self.kept.prior(SystemTime::now(), &place.network);
            self.place = Some(place);
            self.cost = None;
            self.machine.handle_network(now, prior);
            self.ready = false;
        }
        self.canaries.lead_to(session);
        match (session.is_some(), std::mem::replace(&mut self.ready, session.is_some())) {
            (true, false) => self.machine.handle_attached(now),
            (false, true) => self.machine.handle_detached(now, ended),
            _ => {}
        }
    }

    /// The session stands over a connection that is new.
    pub(super) fn handle_attached(&mut self, now: Instant) {
        if self.ready {
            self.machine.handle_attached(now);
        }
    }

    /// Something came on the session, or was sent there.
    pub(super) fn handle_session_packet(&mut self, now: Instant) {
        if self.ready {
            self.machine.handle_session_packet(now);
        }
    }

    /// The session was silent for as long as was asked for.
    pub(super) fn handle_wake(&mut self, now: Instant, seq: u64) {
        tracing::debug!(seq, "standby: woken by the session");
        if self.ready {
            self.machine.handle_wake(now, Line::Live, seq);
        }
    }

    /// The gateway holds packets.
    pub(super) fn handle_poke(&mut self, now: Instant) {
        self.poked = self.poked.or(Some(now));
        self.machine.handle_poke(now);
    }

    /// An authenticated packet came through the tunnel.
    pub(super) fn handle_reached(&mut self, now: Instant) {
        if self.poked.take().is_some() {
            self.machine.handle_reached(now);
        }
    }

    /// When user data last went by, as far as is known, and when an authenticated packet last came.
    pub(super) fn handle_traffic(&mut self, now: Instant, data: Option<Instant>, received: Option<Instant>) {
        if let Some(received) = received.filter(|at| self.poked.is_some_and(|poked| *at > poked)) {
            self.handle_reached(received);
        }
        // What was there before is not new.
        let before = self.data;
        self.data = before.max(data);
        if before.is_some() && self.data > before {
            self.machine.handle_busy(now);
        }
    }

    /// A beat left, or a wake of the live binding came.
    pub(super) fn handle_burst(&mut self, now: Instant) {
        self.machine.handle_udp_burst(now);
    }

    /// What keeping the binding costs, where that is known.
    pub(super) fn handle_cost(&mut self, now: Instant, cost: UdpCost) {
        if self.keeping == Keeping::Always && self.cost.replace(cost) != Some(cost) {
            self.machine.handle_udp(now, cost);
        }
    }

    /// What became of a canary.
    pub(super) fn handle_news(&mut self, now: Instant, news: &News) {
        tracing::debug!(?news, "standby");
        match *news {
            News::Attached(canary) => self.machine.handle_canary_attached(now, canary),
            News::Woken(canary, seq) => self.machine.handle_wake(now, Line::Canary(canary), seq),
            News::Ended(canary, ended) => self.machine.handle_canary_ended(now, canary, ended),
        }
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) {
        if self.machine.poll_timeout().is_some_and(|at| at <= now) {
            self.machine.handle_timeout(now);
        }
        if self.unsaved.is_some_and(|at| at <= now) {
            self.save();
        }
        if self.poked.is_some_and(|at| now >= at + WOKEN) {
            self.poked = None;
            self.steps.push_back(Step::Doubt);
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let doubt = self.poked.map(|at| at + WOKEN);
        [self.machine.poll_timeout(), doubt, self.unsaved].into_iter().flatten().min()
    }

    /// Keeps what was learnt and not written yet.
    pub(super) fn save(&mut self) {
        if self.unsaved.take().is_some() {
            self.kept.save(&self.store);
        }
    }

    fn learn(&mut self, now: Instant) {
        let (Some(place), Some(prior)) = (&self.place, self.machine.prior()) else { return };
        if self.kept.note(SystemTime::now(), &place.network, prior) {
            self.unsaved.get_or_insert(now + SAVE_PAUSE);
        }
    }

    /// The next thing to do.
    pub(super) fn poll_step(&mut self, now: Instant) -> Option<Step> {
        while let Some(action) = self.machine.poll_action() {
            self.act(action);
            self.learn(now);
        }
        let keeping = match self.machine.mode() {
            Mode::Session => Keeping::Never,
            Mode::Udp if self.rests() && self.is_busy() => Keeping::Opened,
            Mode::Udp => Keeping::Always,
        };
        if keeping == Keeping::Never {
            self.asleep = self.machine.interval().map(|interval| (self.machine.reason(), interval));
        }
        if std::mem::replace(&mut self.keeping, keeping) != keeping {
            tracing::debug!(?keeping, reason = %self.machine.reason(), "by what this client is reached");
            // Before the rest that tells the gateway.
            self.steps.push_front(Step::Keep(keeping));
        }
        self.steps.pop_front()
    }

    /// The longest silence on the session while it is relied on. `None`: the binding is kept.
    pub(super) fn patience(&self) -> Option<Duration> {
        self.rests().then(|| self.machine.lifetime().at_least)
    }

    /// Whether the session is relied on, be it that data flows for a while.
    pub(super) fn rests(&self) -> bool {
        self.keeping != Keeping::Always
    }

    /// Whether the client is reached by its session alone.
    pub(super) fn sleeps(&self) -> bool {
        self.keeping == Keeping::Never
    }

    /// By what the client is reached, in the protocol's words. That data flows for a while is not worth a message.
    pub(super) fn report(&self) -> v1::StandbyReport {
        use v1::keepalive_policy::Standby as By;
        let span = |span: Option<Duration>| span.and_then(|span| span.try_into().ok());
        let (stats, lifetime) = (self.machine.stats(), self.machine.lifetime());
        let asleep = self.asleep.filter(|_| self.rests());
        let reason = asleep.map_or(self.machine.reason(), |(reason, _)| reason);
        v1::StandbyReport {
            reachable_by: if asleep.is_some() { By::Session } else { By::Udp }.into(),
            reason: wire::reason_to_wire(reason).into(),
            interval: span(asleep.map(|(_, interval)| interval)),
            last_wake: span(stats.last_wake),
            worst_wake: span(stats.worst_wake),
            session_at_least: span(Some(lifetime.at_least).filter(|age| !age.is_zero())),
            session_less_than: span(lifetime.less_than),
        }
    }

    /// The machine, to be looked at.
    pub(super) fn standby(&self) -> &Standby {
        &self.machine
    }

    fn is_busy(&self) -> bool {
        self.ready && self.machine.reason() == Reason::Busy
    }

    fn act(&mut self, action: Action) {
        tracing::debug!(?action, mode = ?self.machine.mode(), "standby");
        match action {
            Action::Rest { line: Line::Live, seq, wake_after } => {
                let held = self.cost.filter(|_| self.machine.mode() == Mode::Session);
                let hold_after = held.and_then(|cost| cost.interval.mul_f64(OVER).try_into().ok());
                let wake_after = wake_after.try_into().ok();
                self.steps.push_back(Step::Rest(v1::Rest { seq, wake_after, hold_after }));
            }
            Action::Rest { line: Line::Canary(canary), seq, wake_after } => {
                let wake_after = wake_after.try_into().ok();
                self.canaries.rest(canary, v1::Rest { seq, wake_after, hold_after: None });
            }
            Action::Open { canary } => self.canaries.open(canary),
            Action::Close { canary } => self.canaries.close(canary),
            // A rest of no time is answered at once.
            Action::Ask => {
                let now = Some(prost_types::Duration::default());
                self.steps.push_back(Step::Rest(v1::Rest { seq: 0, wake_after: now, hold_after: None }));
            }
            // What is in force is seen from the mode.
            Action::LetUdpGo | Action::KeepUdp => {}
            Action::Event(event) => tell(event),
        }
    }
}

fn tell(event: Event) {
    match event {
        Event::Switched { .. } | Event::Woken { .. } => {}
        Event::MappingLost { idle } => {
            tracing::info!(idle = idle.as_secs(), "the session's mapping was lost");
        }
        Event::LifetimeShrank { from } => {
            tracing::info!(from = from.as_secs(), "mappings of sessions live shorter than they did");
        }
    }
}
