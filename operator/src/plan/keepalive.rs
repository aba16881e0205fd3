//! Whose keepalive policy is in force, and what a stock client is given.

use std::time::Duration;

use pinhole_crds::{
    Interval, Keepalive, KeepaliveInForce, KeepaliveMode, StandbyMode, VPNClientPoolSpec, VPNClientSpec,
    VPNGatewaySpec,
};
use pinhole_proto::{
    bounds::{NEWER, Word},
    v1::{
        KeepalivePolicy, KeepaliveReason, KeepaliveReport,
        keepalive_policy::{Mode, Standby},
    },
};

use super::nat;

/// Longest interval that wg-quick takes.
const STOCK_MAX: Duration = Duration::from_secs(65_535);

/// Reason of an interval that is configured.
const POLICY: &str = "Policy";

/// Reason of an interval that the gateway recommends from its side alone.
const GATEWAY_OBSERVED: &str = "GatewayObserved";

/// The policy in force for a client: its own, else its pool's, else its gateway's, each as a whole.
pub fn in_force<'a>(
    gateway: &'a VPNGatewaySpec,
    pool: Option<&'a VPNClientPoolSpec>,
    client: Option<&'a VPNClientSpec>,
) -> Option<&'a Keepalive> {
    let pool = pool.and_then(|p| p.keepalive.as_ref());
    client.and_then(|c| c.keepalive.as_ref()).or(pool).or(gateway.keepalive.as_ref())
}

/// The policy on the wire.
pub fn policy(keepalive: Option<&Keepalive>) -> KeepalivePolicy {
    let default = Keepalive::default();
    let keepalive = keepalive.unwrap_or(&default);
    KeepalivePolicy {
        mode: wire_mode(keepalive.mode_or_default()).into(),
        interval: Some(wire(initial(keepalive))),
        min: Some(wire(keepalive.min_or_default())),
        max: Some(wire(keepalive.max_or_default())),
        longest_blind: keepalive.longest_blind.map(|blind| wire(blind.0)),
        standby: match keepalive.standby_or_default() {
            StandbyMode::UDP => Standby::Udp,
            StandbyMode::Auto => Standby::Auto,
            StandbyMode::Session => Standby::Session,
        }
        .into(),
    }
}

/// `PersistentKeepalive` of a client without an agent: whole seconds.
pub fn stock_interval(keepalive: Option<&Keepalive>) -> Duration {
    let interval = initial(keepalive.unwrap_or(&Keepalive::default()));
    Duration::from_secs(interval.min(STOCK_MAX).as_secs().max(1))
}

/// Keepalive of a client without an agent, as written in its configuration: what its gateway recommends, where that
/// is in force, within the policy.
pub fn stock_in_force(keepalive: Option<&Keepalive>, status: Option<&KeepaliveInForce>) -> Duration {
    let recommended = status.filter(|s| s.reason == GATEWAY_OBSERVED).map(|s| s.interval.0);
    within(keepalive, recommended).unwrap_or_else(|| stock_interval(keepalive))
}

/// What status says of a client's agent: its own word, once it follows the policy's mode.
pub(super) fn agent_status(
    keepalive: Option<&Keepalive>,
    before: Option<&KeepaliveInForce>,
    report: Option<&KeepaliveReport>,
    heard: bool,
) -> KeepaliveInForce {
    let configured = configured(keepalive, initial(keepalive.unwrap_or(&Keepalive::default())));
    let same_mode = |k: &&KeepaliveInForce| k.mode == configured.mode;
    let Some(report) = report else {
        // A gateway that is not heard does not take back what it said.
        return before.filter(same_mode).filter(|_| !heard).cloned().unwrap_or(configured);
    };
    let interval = report.interval.and_then(nat::duration).filter(|i| !i.is_zero());
    let (Some(interval), Some(reason)) = (interval, reason(report.reason.into())) else { return configured };
    if Word::from(report.mode) != Word::Known(wire_mode(configured.mode)) {
        return configured;
    }
    let before = before.filter(same_mode);
    let known = before.filter(|b| b.reason == reason && reason != POLICY).map(|b| b.interval);
    KeepaliveInForce {
        interval: nat::steady(known, interval),
        mode: configured.mode,
        reason: reason.to_owned(),
        wakes_saved: Some(nat::saved(before.and_then(|b| b.wakes_saved), report.wakes_saved)),
    }
}

/// What status says of a client without an agent. A recommendation changes only by as much as is worth making its
/// configuration anew: sooner downwards, since a keepalive that is too long costs the connection.
pub(super) fn stock_status(
    keepalive: Option<&Keepalive>,
    before: Option<&KeepaliveInForce>,
    recommended: Option<Duration>,
) -> KeepaliveInForce {
    let configured = configured(keepalive, stock_interval(keepalive));
    if configured.mode == KeepaliveMode::Fixed {
        return configured;
    }
    let known = before.filter(|b| b.reason == GATEWAY_OBSERVED).map(|b| b.interval.0);
    let chosen = match (within(keepalive, known), within(keepalive, recommended)) {
        (Some(known), Some(new)) if new < known.mul_f64(1.25) && new > known.mul_f64(0.9) => known,
        (known, new) => match new.or(known) {
            Some(chosen) => chosen,
            None => return configured,
        },
    };
    KeepaliveInForce { interval: Interval(chosen), reason: GATEWAY_OBSERVED.to_owned(), ..configured }
}

/// What the policy alone says.
fn configured(keepalive: Option<&Keepalive>, interval: Duration) -> KeepaliveInForce {
    let mode = keepalive.map_or_else(KeepaliveMode::default, Keepalive::mode_or_default);
    let reason = match mode {
        KeepaliveMode::Fixed => POLICY,
        KeepaliveMode::Adaptive => "Initial",
    };
    KeepaliveInForce { interval: Interval(interval), mode, reason: reason.to_owned(), wakes_saved: None }
}

/// A recommendation in whole seconds, within the policy. None in mode Fixed.
fn within(keepalive: Option<&Keepalive>, recommended: Option<Duration>) -> Option<Duration> {
    let default = Keepalive::default();
    let keepalive = keepalive.unwrap_or(&default);
    if keepalive.mode_or_default() == KeepaliveMode::Fixed {
        return None;
    }
    let bounded = recommended?.min(keepalive.longest()).max(keepalive.min_or_default()).min(STOCK_MAX);
    Some(Duration::from_secs(bounded.as_secs().max(1)))
}

fn wire_mode(mode: KeepaliveMode) -> Mode {
    match mode {
        KeepaliveMode::Adaptive => Mode::Adaptive,
        KeepaliveMode::Fixed => Mode::Fixed,
    }
}

/// How status names a reason. None: it was not given.
fn reason(wire: Word<KeepaliveReason>) -> Option<&'static str> {
    let Word::Known(wire) = wire else { return Some(NEWER) };
    match wire {
        KeepaliveReason::Unspecified => None,
        KeepaliveReason::Policy => Some(POLICY),
        KeepaliveReason::Initial => Some("Initial"),
        KeepaliveReason::Learning => Some("Learning"),
        KeepaliveReason::Learnt => Some("Learnt"),
        KeepaliveReason::Cached => Some("Cached"),
        KeepaliveReason::Backoff => Some("Backoff"),
        KeepaliveReason::GatewayObserved => Some(GATEWAY_OBSERVED),
    }
}

/// The fixed interval, or the one until something was learnt, within the policy's own bounds.
fn initial(keepalive: &Keepalive) -> Duration {
    let interval = keepalive.interval_or_default();
    match keepalive.mode_or_default() {
        KeepaliveMode::Fixed => interval,
        KeepaliveMode::Adaptive => interval.min(keepalive.longest()).max(keepalive.min_or_default()),
    }
}

pub(super) fn wire(duration: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(duration.subsec_nanos()).unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_says_nothing_may_sleep_and_who_fixes_an_interval_may_not() {
        let of = |mode, standby| policy(Some(&Keepalive { mode, standby, ..Keepalive::default() })).standby();
        let (fixed, adaptive) = (Some(KeepaliveMode::Fixed), Some(KeepaliveMode::Adaptive));
        assert_eq!(policy(None).standby(), Standby::Auto);
        assert_eq!(
            [None, adaptive, fixed].map(|mode| of(mode, None)),
            [Standby::Auto, Standby::Auto, Standby::Udp]
        );
        for mode in [None, adaptive, fixed] {
            let all = [StandbyMode::UDP, StandbyMode::Auto, StandbyMode::Session];
            let told = all.map(|standby| of(mode, Some(standby)));
            assert_eq!(told, [Standby::Udp, Standby::Auto, Standby::Session]);
        }
    }
}
