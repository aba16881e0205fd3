//! What should exist and what status should say, decided from what was observed. Pure: no clock, no API, no socket.

mod condition;
mod desired;
mod endpoint;
mod hash;
mod keepalive;
mod keys;
mod loss;
mod name;
mod nat;
mod network;
mod object;
mod overlap;
mod ownership;
mod reach;
mod refusal;
mod service;
mod settings;
mod sidecar_trust;
mod standby;
mod unusable;
mod workload;

pub mod churn_events;
pub mod client;
pub mod gateway;
pub mod pool;
pub mod summary;
pub mod wgquick;

pub use condition::{Conditions, ready_of};
pub use desired::{DesiredInputs, PeerInputs, PoolInputs, desired_states, peer};
pub use endpoint::{Lost, NodeFacts, Observed, PodFacts, Replica, replicas};
pub use keepalive::{in_force, policy, stock_in_force, stock_interval};
pub(crate) use keys::parse_public;
pub use keys::{KeyError, PrivateKey, check_owner, key_entry, public_keys};
pub use loss::{LostPod, lost_pods};
pub use name::{
    GATEWAY_LABEL, MANAGED_BY, MANAGED_BY_LABEL, POOL_OBJECT_LABEL, config_secret, gateway_objects_selector,
    join_service, keys_secret, network_policy_name, replica_names,
};
pub use network::{GatewayEgress, network_policy};
pub use object::{Object, ObjectKind};
pub use overlap::{Overlap, overlaps};
pub use ownership::{CREATOR, Foreign, adopted, check, is_controlled_by, remedy};
pub use refusal::{Cause, Note, NoteKind, Refusal};
pub use service::{replica_services, session_service};
pub use settings::Settings;
pub use sidecar_trust::{SidecarTrustObstacle, SidecarTrustWrite, obstacle_after, takes_sidecars};
pub use unusable::{Unusable, exposure, exposure_hosts, fields, search_domains};

#[cfg(test)]
mod tests;
