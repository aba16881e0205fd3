//! Keepalive policy, and the keepalive in force.

use std::time::Duration;

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Interval, StandbyMode};

/// How keepalive intervals are chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum KeepaliveMode {
    /// Stay just below what each NAT was seen to allow, between `min` and `max`.
    #[default]
    Adaptive,
    /// Always `interval`.
    Fixed,
}

/// Keepalive policy. On a pool it overrides the gateway's, on a client the pool's, each as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.mode) || self.mode != 'Fixed' || has(self.interval)")
        .message("interval: is required when mode is Fixed: add one, such as 25s, or use mode Adaptive"),
    validation = Rule::new("!has(self.interval) || (duration(self.interval) >= duration('5s') && duration(self.interval) <= duration('1h'))")
        .message("interval: is out of range: use 5s to 1h"),
    validation = Rule::new("!has(self.min) || (duration(self.min) >= duration('5s') && duration(self.min) <= duration('1h'))")
        .message("min: is out of range: use 5s to 1h"),
    validation = Rule::new("!has(self.max) || (duration(self.max) >= duration('5s') && duration(self.max) <= duration('1h'))")
        .message("max: is out of range: use 5s to 1h"),
    validation = Rule::new("!has(self.min) || !has(self.max) || duration(self.min) <= duration(self.max)")
        .message("min: is greater than max: lower min or raise max"),
    validation = Rule::new("!has(self.longestBlind) || (duration(self.longestBlind) >= duration('5s') && duration(self.longestBlind) <= duration('1h'))")
        .message("longestBlind: is out of range: use 5s to 1h"),
    validation = Rule::new("!has(self.longestBlind) || !has(self.min) || duration(self.min) <= duration(self.longestBlind)")
        .message("longestBlind: is less than min, which would win: lower min or raise longestBlind"),
    validation = Rule::new("!has(self.longestBlind) || !has(self.mode) || self.mode != 'Fixed' || !has(self.interval) || duration(self.interval) <= duration(self.longestBlind)")
        .message("longestBlind: is less than the fixed interval: lower interval, raise longestBlind, or use mode Adaptive"),
)]
pub struct Keepalive {
    /// Adaptive (the default) or Fixed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<KeepaliveMode>,
    /// Fixed: the interval. Adaptive: the interval until something was learnt. 5s to 1h, 25s when unset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<Interval>,
    /// Adaptive: never more often than this. 5s to 1h, 5s when unset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<Interval>,
    /// Adaptive: never less often than this. 5s to 1h, 1h when unset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<Interval>,
    /// The longest time for which a client may stay unreachable unnoticed, when its NAT drops the mapping in silence:
    /// keepalives are never further apart. 5s to 1h; as long as the NAT and `max` allow when unset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub longest_blind: Option<Interval>,
    /// By what an idle client is reached: UDP, Auto or Session; when unset, Auto where the mode is Adaptive and UDP where
    /// it is Fixed. By its session, its gateway holds the first packets and wakes it. Agents only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub standby: Option<StandbyMode>,
}

impl Keepalive {
    /// The mode in force.
    pub fn mode_or_default(&self) -> KeepaliveMode {
        self.mode.unwrap_or_default()
    }

    /// By what an idle client is to be reached. Who fixes an interval means that something is sent so often.
    pub fn standby_or_default(&self) -> StandbyMode {
        self.standby.unwrap_or(match self.mode_or_default() {
            KeepaliveMode::Adaptive => StandbyMode::Auto,
            KeepaliveMode::Fixed => StandbyMode::UDP,
        })
    }

    /// The configured or safe interval: 25 s, as WireGuard recommends for unknown NATs.
    pub fn interval_or_default(&self) -> Duration {
        self.interval.map_or(Duration::from_secs(25), |i| i.0)
    }

    /// Lower bound of what may be chosen.
    pub fn min_or_default(&self) -> Duration {
        self.min.map_or(Duration::from_secs(5), |i| i.0)
    }

    /// Upper bound of what may be chosen.
    pub fn max_or_default(&self) -> Duration {
        self.max.map_or(Duration::from_hours(1), |i| i.0)
    }

    /// The longest interval that all limits allow in Adaptive mode.
    pub fn longest(&self) -> Duration {
        let max = self.max_or_default();
        self.longest_blind.map_or(max, |blind| max.min(blind.0)).max(self.min_or_default())
    }
}
