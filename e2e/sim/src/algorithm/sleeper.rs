//! Ours, for a client that also has a session: UDP is kept, or let go, as the agent's `Standby` decides.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use pinhole_nat::{
    self, Channel, Confidence, Keeper, Path, Policy, Reply, Wake,
    standby::{self, Ended, Line, Standby, UdpCost},
};

use super::{Action, Algorithm};

/// The production [`Keeper`] and [`Standby`] with their default policies and without priors.
#[derive(Debug)]
pub struct Sleeper {
    keeper: Keeper,
    standby: Standby,
    /// UDP was let go.
    rests: bool,
    cost: Option<UdpCost>,
    now: Instant,
    actions: VecDeque<Action>,
}

impl Sleeper {
    /// Right after a handshake.
    pub fn new(now: Instant, seed: u64) -> Self {
        Self {
            keeper: Keeper::new(now, Policy::default(), None, seed),
            standby: Standby::new(now, standby::Policy::default(), None, seed),
            rests: false,
            cost: None,
            now,
            actions: VecDeque::new(),
        }
    }

    /// Tells each what the other does, and gathers what both want.
    fn settle(&mut self, now: Instant) {
        self.now = now;
        loop {
            while let Some(action) = self.keeper.poll_action() {
                self.keeper_wants(now, action);
            }
            if !self.rests && self.keeper.reason() != pinhole_nat::Reason::Backoff {
                let learnt = self.keeper.binding().confidence >= Confidence::Bracketed;
                let cost = UdpCost { interval: self.keeper.interval(), learnt };
                if self.cost.replace(cost) != Some(cost) {
                    self.standby.handle_udp(now, cost);
                }
            }
            let Some(action) = self.standby.poll_action() else { return };
            self.standby_wants(now, action);
        }
    }

    fn keeper_wants(&mut self, now: Instant, action: pinhole_nat::Action) {
        match action {
            pinhole_nat::Action::Send(beat) => {
                if beat.channel == Channel::Live {
                    self.standby.handle_udp_burst(now);
                }
                self.actions.push_back(Action::Beat(beat));
            }
            pinhole_nat::Action::Close(channel) => self.actions.push_back(Action::Close(channel)),
            pinhole_nat::Action::Prove => self.actions.push_back(Action::Keepalive),
            pinhole_nat::Action::Lost
            | pinhole_nat::Action::Confirmed { .. }
            | pinhole_nat::Action::Event(_) => {}
        }
    }

    fn standby_wants(&mut self, now: Instant, action: standby::Action) {
        match action {
            standby::Action::Rest { line, seq, wake_after } => {
                self.actions.push_back(Action::Rest { line, seq, wake_after });
            }
            standby::Action::Open { canary } => self.actions.push_back(Action::Dial(Line::Canary(canary))),
            standby::Action::Close { canary } => self.actions.push_back(Action::HangUp(Line::Canary(canary))),
            standby::Action::Ask => self.actions.push_back(Action::Ask),
            standby::Action::LetUdpGo => {
                self.rests = true;
                self.keeper.handle_path(now, Path::Down);
            }
            standby::Action::KeepUdp => {
                self.rests = false;
                self.keeper.handle_path(now, Path::Up);
            }
            standby::Action::Event(_) => {}
        }
    }
}

impl Algorithm for Sleeper {
    fn handle_reply(&mut self, now: Instant, reply: Reply) {
        if !self.rests {
            self.keeper.handle_reply(now, reply);
            self.settle(now);
        }
    }

    fn handle_wake(&mut self, now: Instant, wake: Wake) {
        if !self.rests {
            self.keeper.handle_wake(now, wake);
            if wake.channel == Channel::Live {
                self.standby.handle_udp_burst(now);
            }
            self.settle(now);
        }
    }

    fn handle_attached(&mut self, now: Instant, line: Line) {
        match line {
            Line::Live => self.standby.handle_attached(now),
            Line::Canary(canary) => self.standby.handle_canary_attached(now, canary),
        }
        self.settle(now);
    }

    fn handle_ended(&mut self, now: Instant, line: Line, ended: Ended) {
        match line {
            Line::Live => self.standby.handle_detached(now, ended),
            Line::Canary(canary) => self.standby.handle_canary_ended(now, canary, ended),
        }
        self.settle(now);
    }

    fn handle_session_wake(&mut self, now: Instant, line: Line, seq: u64) {
        self.standby.handle_wake(now, line, seq);
        self.settle(now);
    }

    fn handle_session_packet(&mut self, now: Instant) {
        self.standby.handle_session_packet(now);
        self.settle(now);
    }

    fn handle_timeout(&mut self, now: Instant) {
        if self.keeper.poll_timeout().is_some_and(|at| at <= now) {
            self.keeper.handle_timeout(now);
        }
        if self.standby.poll_timeout().is_some_and(|at| at <= now) {
            self.standby.handle_timeout(now);
        }
        self.settle(now);
    }

    fn poll_timeout(&self) -> Option<Instant> {
        self.keeper.poll_timeout().into_iter().chain(self.standby.poll_timeout()).min()
    }

    fn poll_action(&mut self) -> Option<Action> {
        if self.actions.is_empty() {
            self.settle(self.now);
        }
        self.actions.pop_front()
    }

    fn interval(&self) -> Duration {
        self.standby.interval().filter(|_| self.rests).unwrap_or_else(|| self.keeper.interval())
    }

    fn has_verdict(&self) -> bool {
        self.keeper.binding().confidence >= Confidence::Bracketed
    }
}
