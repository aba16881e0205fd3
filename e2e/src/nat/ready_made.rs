//! Ready-made NATs for tests in real time: scaled down to seconds, and with the values of stock systems.

use std::time::Duration;

use super::{
    Behaviour, Mapping, Nat, NatProfile, Truth, UserspaceProfile,
    model::{Dependence, Loss, PortAllocation, Profile, Refresh},
};
use crate::{error::Result, host::Host, lab::Lab};

/// One or more NATs with a name, and what holds behind them.
#[derive(Debug, Clone, PartialEq)]
pub struct LabProfile {
    /// Of lower-case letters, digits and dashes.
    pub name: &'static str,
    /// The NATs, the one nearest to the public segment first.
    nats: Vec<Behaviour>,
}

impl LabProfile {
    fn one(name: &'static str, behaviour: impl Into<Behaviour>) -> Self {
        Self { name, nats: vec![behaviour.into()] }
    }

    /// The NATs, the one nearest to the public segment first.
    pub fn nats(&self) -> &[Behaviour] {
        &self.nats
    }

    /// What holds of bindings behind all its NATs.
    pub fn truth(&self) -> Truth {
        let mut truths = self.nats.iter().map(Truth::of);
        let first = truths.next().unwrap_or_else(|| Truth::of(&NatProfile::home().into()));
        truths.fold(first, Truth::and)
    }

    /// Makes the NATs; yields the one nearest to the client, which takes hosts. Names start with `name`, which is
    /// the test's own and at most 24 bytes long.
    ///
    /// # Errors
    /// When a name is taken.
    pub async fn build(&self, lab: &Lab, name: &str) -> Result<Nat> {
        let mut nearest: Option<Nat> = None;
        for (depth, behaviour) in self.nats.iter().enumerate() {
            let name = format!("{name}-{depth}");
            nearest = Some(match nearest {
                None => lab.nat(&name, behaviour.clone()).await?,
                Some(outer) => outer.nat(&name, behaviour.clone()).await?,
            });
        }
        match nearest {
            Some(nat) => Ok(nat),
            None => lab.nat(name, NatProfile::home()).await,
        }
    }

    /// Makes the NATs and a host of this name behind them.
    ///
    /// # Errors
    /// When a name is taken.
    pub async fn host(&self, lab: &Lab, name: &str) -> Result<Host> {
        self.build(lab, name).await?.host(name).await
    }
}

/// NATs whose lifetimes are scaled down to 6 to 30 s. Names are stable.
pub fn lab_profiles() -> Vec<LabProfile> {
    let refresh = Refresh { outbound: true, inbound: false };
    let carrier = NatProfile::carrier().timeouts(seconds(12), seconds(20));
    vec![
        LabProfile::one("home", NatProfile::home().timeouts(seconds(8), seconds(20))),
        LabProfile::one("symmetric", NatProfile::symmetric().timeouts(seconds(10), seconds(24))),
        LabProfile::one("one-class", NatProfile::home().timeouts(seconds(12), seconds(12))),
        LabProfile::one("outbound-only", userspace(15, 15, |nat| nat.refresh = refresh)),
        LabProfile::one(
            "inbound-ignored",
            userspace(6, 24, |nat| (nat.refresh, nat.port) = (refresh, PortAllocation::Sequential)),
        ),
        LabProfile::one("late-promotion", userspace(10, 30, |nat| nat.promote_after_s = 5.0)),
        LabProfile::one("coarse-sweep", userspace(10, 20, |nat| nat.sweep_s = 5.0)),
        LabProfile::one("lossy-carrier", userspace(15, 25, lossy_carrier)),
        LabProfile { name: "double", nats: vec![carrier.into(), home_behind(8, 30).into()] },
        LabProfile::one("random-symmetric", userspace(8, 16, random_symmetric)),
        LabProfile::one(
            "full-cone",
            userspace(7, 28, |nat| nat.filtering = Dependence::EndpointIndependent).hairpin().parity(),
        ),
    ]
}

/// NATs with the values of stock systems: for benchmarks that have minutes.
pub fn stock_profiles() -> Vec<LabProfile> {
    let refresh = Refresh { outbound: true, inbound: false };
    vec![
        LabProfile::one("linux", NatProfile::home()),
        LabProfile::one("linux-symmetric", NatProfile::symmetric()),
        LabProfile::one("linux-flowtable", NatProfile::home().timeouts(seconds(30), seconds(30))),
        LabProfile::one("security-group", NatProfile::home().timeouts(seconds(30), seconds(180))),
        LabProfile::one("load-balancer", NatProfile::home().timeouts(seconds(120), seconds(120))),
        LabProfile::one("pf", NatProfile::home().timeouts(seconds(60), seconds(60))),
        LabProfile::one("d-link", userspace(130, 130, |nat| nat.refresh = refresh)),
        LabProfile::one("carrier", userspace(15, 60, lossy_carrier)),
        LabProfile {
            name: "linux-behind-carrier",
            nats: vec![NatProfile::carrier().into(), NatProfile::home().into()],
        },
    ]
}

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn userspace(unreplied: u32, replied: u32, change: impl FnOnce(&mut Profile)) -> UserspaceProfile {
    let mut nat = Profile::new("ready-made", unreplied.into(), replied.into());
    nat.rtt_ms = 10.0;
    change(&mut nat);
    UserspaceProfile::new(nat)
}

fn lossy_carrier(nat: &mut Profile) {
    (nat.port, nat.loss, nat.rtt_ms) = (PortAllocation::Random, Loss::percent(10.0), 80.0);
}

fn random_symmetric(nat: &mut Profile) {
    (nat.mapping, nat.port) = (Dependence::AddressAndPortDependent, PortAllocation::Random);
}

fn home_behind(unreplied: u64, replied: u64) -> NatProfile {
    NatProfile::home().mapping(Mapping::PortPreserving).timeouts(seconds(unreplied), seconds(replied))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_unique_and_there_are_both_kinds_of_nat_and_both_kinds_of_class() {
        for profiles in [lab_profiles(), stock_profiles()] {
            let names: BTreeSet<_> = profiles.iter().map(|profile| profile.name).collect();
            assert_eq!(names.len(), profiles.len());
            let userspace = |profile: &LabProfile| matches!(profile.nats[..], [Behaviour::Userspace(_)]);
            assert!(profiles.iter().any(userspace) && !profiles.iter().all(userspace));
            assert!(profiles.iter().any(|profile| profile.truth().is_two_class()));
            assert!(!profiles.iter().all(|profile| profile.truth().is_two_class()));
        }
        assert!(lab_profiles().len() >= 8);
    }

    #[test]
    fn behind_two_nats_the_shorter_lifetimes_hold() {
        let double = lab_profiles().into_iter().find(|profile| profile.name == "double").unwrap().truth();
        assert_eq!((double.unreplied, double.replied), (seconds(8), seconds(20)));
        assert_eq!(double.port, PortAllocation::Random);
    }
}
