//! One client, its NAT and its gateway in virtual time.
//!
//! The NAT sits next to the client: a packet from the client passes it when it is sent, one to the client when it
//! arrives. Packets get lost before the NAT, from either side.

mod lifetimes;
mod mapping;
mod nat;
mod pager;
mod queue;
mod quota;
pub(crate) mod run;
mod weather;

#[cfg(test)]
mod tests;

use std::time::Duration;

use self::lifetimes::Course;
pub use self::lifetimes::{Change, Lifetimes};
pub use self::run::{Observed, Trace, run};
use crate::{
    metrics,
    model::{LossBursts, Paging, PortAllocation, Pressure, Profile, Quota, TcpClose, Time, Timers},
    rng::Rng,
};

/// A packet at the very end of a lifetime is too late for a NAT. For the oracle it is just right.
const MOMENT: Duration = Duration::from_micros(1);

/// What one client goes through. The same for each algorithm.
#[derive(Debug, Clone)]
pub struct Scenario {
    /// Timers at the beginning.
    pub timers: Timers,
    /// How external ports are picked.
    pub port: PortAllocation,
    /// Round trip between client and gateway.
    pub rtt: Duration,
    /// The probability that a packet gets lost.
    pub loss: f64,
    /// Times in which more do.
    pub bursts: Option<LossBursts>,
    /// What it takes to reach the radio while it sleeps.
    pub paging: Option<Paging>,
    /// When the NAT loses all its mappings.
    pub flushes: Vec<Time>,
    /// When its lifetimes change, and to what.
    pub changes: Vec<Change>,
    /// How far lifetimes scatter.
    pub scatter: Option<f64>,
    /// Who else wants room in its table.
    pub pressure: Option<Pressure>,
    /// How much of it the client may have.
    pub quota: Option<Quota>,
    /// Timers of TCP mappings, and what becomes of packets after their end. `None`: the client has no session.
    pub tcp: Option<(Timers, TcpClose)>,
    /// When the observation ends.
    pub end: Time,
    /// What else is left to chance.
    pub seed: u64,
    /// Spares the client what an oracle does not have to deal with: loss.
    pub ideal: bool,
}

impl Scenario {
    /// Draws what a client behind such a NAT goes through until `end`. `loss` adds to the profile's own.
    pub fn draw(profile: &Profile, loss: crate::model::Loss, end: Time, seed: u64) -> Self {
        let mut rng = Rng::stream(seed, 0);
        let phase = rng.unit();
        let shrink_at = Time::from_secs_f64(rng.between(0.0, end.as_secs_f64()));
        let shrink = profile.shrink_to.map(|to| (shrink_at, Duration::from_secs_f64(to)));
        let mut timers = Timers::new(profile, phase);
        let tcp = profile.tcp_timeout_s;
        let told = Lifetimes {
            unreplied: timers.unreplied(),
            replied: timers.replied(),
            tcp: tcp.map(Duration::from_secs_f64),
        };
        let course = Course::new(profile, told, Rng::stream(seed, 6));
        let first = course.at(Time::ZERO);
        timers.set(Time::ZERO, first.unreplied, first.replied);
        Self {
            timers,
            port: profile.port,
            rtt: profile.rtt(),
            loss: profile.loss.and(loss).probability(),
            bursts: profile.loss_bursts,
            paging: profile.paging,
            flushes: flushes(profile.flush_per_day, end, &mut rng),
            changes: course.changes(shrink, end),
            scatter: profile.scatter,
            pressure: profile.pressure,
            quota: profile.quota,
            tcp: first.tcp.map(|lifetime| (Timers::of(lifetime), profile.tcp_close.unwrap_or_default())),
            end,
            seed,
            ideal: false,
        }
    }

    /// The same for the oracle. Nobody knows when others need room, so mappings are evicted from it too.
    #[must_use]
    pub fn for_the_oracle(&self, profile: &Profile) -> Self {
        let replied = self.timers.replied() + MOMENT;
        let plain = Profile::new(profile.name.clone(), replied.as_secs_f64(), replied.as_secs_f64());
        Self {
            timers: Timers::new(&plain, 0.0),
            ideal: true,
            tcp: None,
            bursts: None,
            paging: None,
            scatter: None,
            quota: None,
            ..self.clone()
        }
    }

    /// The fewest wake-ups that keep the binding.
    pub fn oracle(&self) -> metrics::Oracle {
        metrics::Oracle::new(
            self.timers.replied(),
            self.changes.iter().map(|change| (change.at, change.to.replied)).collect(),
        )
    }
}

fn flushes(per_day: f64, end: Time, rng: &mut Rng) -> Vec<Time> {
    let mut flushes = Vec::new();
    if per_day <= 0.0 {
        return flushes;
    }
    let mut now = 0.0;
    loop {
        now += rng.exponential(86_400.0 / per_day);
        let at = Time::from_secs_f64(now);
        if at >= end {
            return flushes;
        }
        flushes.push(at);
    }
}
