//! Many clients, each behind a NAT of its own.

use std::{
    num::NonZero,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use clap::ValueEnum;

use crate::{
    algorithm::{Cliffs, Fixed, Growth, HalfOfSearch, Oracle, Pinhole, Sleeper},
    engine::{self, Observed, Scenario, Trace},
    metrics::Outcome,
    model::{Loss, Profile, Time},
    rng::Rng,
};

/// The algorithms to compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// The state machine of the agent
    #[value(name = "pinhole")]
    Pinhole,
    /// WireGuard's persistent keepalive every 25 s
    #[value(name = "static-25s")]
    Static25,
    /// The same every 15 s
    #[value(name = "static-15s")]
    Static15,
    /// Half of what an RFC 5780 binding lifetime search finds
    #[value(name = "rfc5780-half")]
    HalfOfSearch,
    /// Cliffs of 10, 30 and 60 s tested on the live path once a day, as Tailscale does
    #[value(name = "tailscale-like")]
    Cliffs,
    /// A heartbeat that grows until it fails, as Tencent's Mars has it
    #[value(name = "mars-like")]
    Growth,
    /// Knows the true lifetime
    #[value(name = "oracle")]
    Oracle,
}

impl Kind {
    /// Its name on the command line and in results.
    pub fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }
}

/// A fleet and what it goes through. Everything in it is decided by `seed`.
#[derive(Debug, Clone)]
pub struct Fleet {
    /// What its clients are behind, by weight.
    pub profiles: Vec<Profile>,
    /// How many clients.
    pub clients: usize,
    /// For how long.
    pub duration: Duration,
    /// Adds to each profile's loss.
    pub loss: Loss,
    /// Decides everything that is left to chance.
    pub seed: u64,
    /// How many to run at a time. Results do not depend on it.
    pub threads: NonZero<usize>,
}

impl Fleet {
    /// Runs all clients, in the order of their numbers. `progress` is told how many are done.
    pub fn run(&self, kind: Kind, progress: &(dyn Fn(usize) + Sync)) -> Vec<Outcome> {
        let assignment = self.assignment();
        let (next, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let work = || {
            let mut outcomes = Vec::new();
            loop {
                let client = next.fetch_add(1, Ordering::Relaxed);
                let Some(profile) = assignment.get(client) else { return outcomes };
                if let Some(outcome) = self.client(kind, client, *profile, None) {
                    outcomes.push((client, outcome));
                }
                progress(done.fetch_add(1, Ordering::Relaxed) + 1);
            }
        };
        let mut outcomes: Vec<(usize, Outcome)> = thread::scope(|scope| {
            let workers: Vec<_> = (0..self.threads.get()).map(|_| scope.spawn(work)).collect();
            let joined = workers.into_iter().map(|worker| match worker.join() {
                Ok(outcomes) => outcomes,
                Err(panic) => std::panic::resume_unwind(panic),
            });
            joined.flatten().collect()
        });
        outcomes.sort_unstable_by_key(|(client, _)| *client);
        outcomes.into_iter().map(|(_, outcome)| outcome).collect()
    }

    /// Which profile each client has: evenly spread over the weights, so that shares are as exact as they can be.
    #[expect(clippy::cast_precision_loss, reason = "clients are far fewer than 2^52")]
    fn assignment(&self) -> Vec<usize> {
        let total: f64 = self.profiles.iter().map(|profile| profile.weight).sum();
        let step = total / self.clients as f64;
        let offset = Rng::stream(self.seed, u64::MAX).unit();
        let mut assignment = Vec::with_capacity(self.clients);
        let mut passed = 0.0;
        for (place, profile) in self.profiles.iter().enumerate() {
            passed += profile.weight;
            while assignment.len() < self.clients && (assignment.len() as f64 + offset) * step < passed {
                assignment.push(place);
            }
        }
        let last = self.profiles.iter().rposition(|profile| profile.weight > 0.0).unwrap_or_default();
        assignment.resize(self.clients, last);
        assignment
    }

    /// Runs the first client whose NAT's name begins with `name`, and tells all that happens. `None`: there is none.
    pub fn trace(&self, kind: Kind, name: &str, trace: Trace<'_>) -> Option<Outcome> {
        let named = |place: &usize| self.profiles.get(*place).is_some_and(|nat| nat.name.starts_with(name));
        let assignment = self.assignment();
        let client = assignment.iter().position(named)?;
        self.client(kind, client, *assignment.get(client)?, Some(trace))
    }

    fn client(&self, kind: Kind, client: usize, place: usize, trace: Option<Trace<'_>>) -> Option<Outcome> {
        let profile = self.profiles.get(place)?;
        let end = Time::from(self.duration);
        let seed = Rng::stream(self.seed, client as u64).next_u64();
        let scenario = Scenario::draw(profile, self.loss, end, seed);
        let observed = match kind {
            Kind::Pinhole if scenario.tcp.is_some() => {
                engine::run(&scenario, trace, |_, now| Sleeper::new(now, seed))
            }
            Kind::Pinhole => engine::run(&scenario, trace, |_, now| Pinhole::new(now, seed)),
            Kind::Static25 => {
                engine::run(&scenario, trace, |_, now| Fixed::new(now, Duration::from_secs(25)))
            }
            Kind::Static15 => {
                engine::run(&scenario, trace, |_, now| Fixed::new(now, Duration::from_secs(15)))
            }
            Kind::HalfOfSearch => engine::run(&scenario, trace, |_, now| HalfOfSearch::new(now)),
            Kind::Cliffs => engine::run(&scenario, trace, |_, now| Cliffs::new(now)),
            Kind::Growth => engine::run(&scenario, trace, |_, now| Growth::new(now)),
            Kind::Oracle => engine::run(&scenario.for_the_oracle(profile), trace, |first, _| {
                Oracle::new(first, scenario.timers.replied())
            }),
        };
        Some(outcome(place, &scenario, observed))
    }
}

fn outcome(profile: usize, scenario: &Scenario, observed: Observed) -> Outcome {
    let oracle = scenario.oracle();
    let converged = observed
        .convergence
        .map(|convergence| (observed.wakes_converged, oracle.wakes_between(convergence.at, scenario.end)));
    Outcome {
        profile,
        reached: observed.reached,
        wakes: observed.wakes,
        wakes_sent: observed.wakes_sent,
        wakes_oracle: oracle.wakes(scenario.end),
        converged,
        converge: observed.convergence.map(|convergence| convergence.at),
        verdict: observed.verdict,
        lifetime: scenario.timers.replied(),
        packets: observed.packets,
        bytes: observed.bytes,
        lte: observed.lte,
        wifi: observed.wifi,
        faults: observed.faults,
    }
}
