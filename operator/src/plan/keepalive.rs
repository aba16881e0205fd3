use std::time::Duration;

use pinhole_crds::{
    Interval, Keepalive, KeepaliveInForce, KeepaliveMode, VPNClientPoolSpec, VPNClientSpec, VPNGatewaySpec,
};
use pinhole_proto::v1::{KeepalivePolicy, keepalive_policy::Mode};

/// Longest interval that wg-quick takes.
const STOCK_MAX: Duration = Duration::from_secs(65_535);

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
    let mode = match keepalive.mode_or_default() {
        KeepaliveMode::Adaptive => Mode::Adaptive,
        KeepaliveMode::Fixed => Mode::Fixed,
    };
    KeepalivePolicy {
        mode: mode.into(),
        interval: Some(wire(initial(keepalive))),
        min: Some(wire(keepalive.min_or_default())),
        max: Some(wire(keepalive.max_or_default())),
        longest_blind: keepalive.longest_blind.map(|blind| wire(blind.0)),
    }
}

/// `PersistentKeepalive` of a client without an agent: whole seconds.
pub fn stock_interval(keepalive: Option<&Keepalive>) -> Duration {
    let interval = initial(keepalive.unwrap_or(&Keepalive::default()));
    Duration::from_secs(interval.min(STOCK_MAX).as_secs().max(1))
}

/// What status says of the interval in force.
pub(super) fn status(keepalive: Option<&Keepalive>, stock: bool) -> KeepaliveInForce {
    let default = Keepalive::default();
    let policy = keepalive.unwrap_or(&default);
    let mode = policy.mode_or_default();
    let interval = if stock { stock_interval(keepalive) } else { initial(policy) };
    let reason = match mode {
        KeepaliveMode::Fixed => "Policy",
        KeepaliveMode::Adaptive => "Initial",
    };
    KeepaliveInForce { interval: Interval(interval), mode, reason: reason.to_owned() }
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
