//! By what an idle client is reached.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Interval, gateway::Moment};

/// By what a client is to be reached while it is idle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum StandbyMode {
    /// By its UDP mapping, which keepalives keep.
    UDP,
    /// By whichever costs clearly fewer wake-ups: its UDP mapping, or its session's TCP mapping alone.
    Auto,
    /// By its session, as soon as that is proven to last for half a minute.
    Session,
}

/// By what a client is reached while it is idle.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum ReachableBy {
    /// By its UDP mapping.
    #[default]
    UDP,
    /// It sleeps: its gateway holds the first packets and wakes it over its session.
    Session,
}

/// How an idle client is reached, and how well.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct StandbyInForce {
    /// By what.
    pub reachable_by: ReachableBy,
    /// Why by that: `Policy` (configured), `Learning` (lifetimes are being measured), `CheaperBySession`, `CheaperByUDP`,
    /// `Busy` (data flows), `SessionLost` (its mapping was lost lately), `SessionClosed` (there is none), `TooShort`.
    pub reason: String,
    /// By session: the longest silence before it is proven again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<Interval>,
    /// By session: when the client last spoke there. Renewed only now and then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_proven: Moment,
    /// How long the last wake took, from the call over the session to the first packet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_wake: Option<Interval>,
    /// The longest of them since the agent started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worst_wake: Option<Interval>,
    /// Silence that the session's TCP mapping survives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_at_least: Option<Interval>,
    /// Silence that it does not survive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_less_than: Option<Interval>,
}
