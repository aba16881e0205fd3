//! `pinhole.dev/v1alpha1`: the kinds that a user of Pinhole writes and reads.
//!
//! Bounds live in the schema, rules within one object in CEL; the YAML made from these types by `crdgen` lies
//! beside this crate. Defaults are documented on the fields and applied where they are used (the `*_or_default`
//! methods): nothing here is ever written into a `spec`.

// KubeSchema copies each struct into a function body, where `pub` reaches nobody.
#![allow(unreachable_pub)]

mod addressing;
mod client;
mod conditions;
mod gateway;
mod interval;
mod keepalive;
mod lenient;
mod naming;
mod nat;
mod pool;
mod standby;
mod trust;

pub use addressing::{AddressRange, AddressRangeError};
pub use client::{
    Churn, ClientEnrolment, ClientPhase, ClientPod, EnrolmentMethod, KeepaliveInForce, PoolRef, VPNClient,
    VPNClientSpec, VPNClientStatus,
};
pub use conditions::{
    CLOCK_SKEW, CONNECTED, DEGRADED, KEY_ON_TWO_MACHINES, PARTIALLY_INVALID, READY, RECONCILING, STALLED,
    set_condition,
};
pub use gateway::{
    ClientCounts, Exposure, ExposureType, GatewayPod, GatewayPorts, HealthMode, NetworkAccess, NodePorts,
    PathProof, ReplicaStatus, VPNGateway, VPNGatewaySpec, VPNGatewayStatus,
};
pub use interval::{Interval, IntervalError};
pub use keepalive::{Keepalive, KeepaliveMode};
pub use lenient::{Lenient, Raw, Reading, Unread, Unreadable};
pub use nat::{
    BindingConfidence, BindingLifetime, ChurnCause, Finding, NatBehaviour, NatClass, NatFiltering,
    NatMapping, NatSummary, PortAllocation, Reachability, Vantage,
};
pub use pool::{
    Dns, Enrolment, GatewayRef, JoinToken, NamespaceSelector, PoolCapacity, PoolInForce, Reachable,
    ReachableScope, Sidecars, TokenState, TokenStatus, VPNClientPool, VPNClientPoolSpec, VPNClientPoolStatus,
};
pub use standby::{ReachableBy, StandbyInForce, StandbyMode};
pub use trust::{SidecarTrust, SidecarTrustSpec};

/// API group of every kind.
pub const GROUP: &str = "pinhole.dev";

/// Served and stored version.
pub const VERSION: &str = "v1alpha1";

/// Label on a pod: inject a client of the pool of this name.
pub const POOL_LABEL: &str = "pinhole.dev/pool";

/// Annotation on a pod: the pool's namespace, where it is not the pod's own.
pub const POOL_NAMESPACE_ANNOTATION: &str = "pinhole.dev/pool-namespace";

/// The custom resource definitions, in the order in which they should be applied, as the API server takes them.
///
/// # Errors
/// Never, unless a definition cannot be serialised.
pub fn definitions() -> Result<Vec<serde_json::Value>, serde_json::Error> {
    use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceConversion;
    use kube::CustomResourceExt as _;
    [VPNGateway::crd(), VPNClientPool::crd(), VPNClient::crd(), SidecarTrust::crd()]
        .into_iter()
        .map(|mut definition| {
            // As the API server would fill them in: who compares the two sees no difference then.
            let names = &mut definition.spec.names;
            names.list_kind = Some(format!("{}List", names.kind));
            definition.spec.conversion =
                Some(CustomResourceConversion { strategy: "None".to_owned(), webhook: None });
            let mut value = serde_json::to_value(definition)?;
            drop_rust_formats(&mut value);
            Ok(value)
        })
        .collect()
}

/// Takes away `format: uint16` and the like, which the API server does not know and warns about: the bounds say it.
fn drop_rust_formats(value: &mut serde_json::Value) {
    match value {
        serde_json::Value::Object(map) => {
            if map
                .get("format")
                .and_then(|format| format.as_str())
                .is_some_and(|format| format.starts_with("uint"))
            {
                map.remove("format");
            }
            map.values_mut().for_each(drop_rust_formats);
        }
        serde_json::Value::Array(items) => items.iter_mut().for_each(drop_rust_formats),
        _ => {}
    }
}
