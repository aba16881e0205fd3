//! A pool's objects and status.

use k8s_openapi::jiff::Timestamp;
use pinhole_crds::{
    ClientCounts, NatSummary, PoolCapacity, READY, RECONCILING, STALLED, TokenStatus, Unread, VPNClientPool,
    VPNClientPoolStatus, VPNGateway,
};

use super::{
    condition::{Conditions, ready_of},
    object::Object,
    overlap::Overlap,
    ownership::{Foreign, remedy},
    reach, service,
    sidecar_trust::{SidecarTrustObstacle, takes_sidecars},
    unusable::{fields, search_domains},
};
use crate::ipam::Denied;

/// Condition of a pool: the next client would get addresses.
pub const ADDRESSES_AVAILABLE: &str = "AddressesAvailable";

/// All that should exist for a pool whose gateway exists, but for its tokens' Secrets.
pub fn objects(pool: &VPNClientPool) -> Vec<Object> {
    vec![Object::Service(Box::new(service::join(pool)))]
}

/// What a pool's status is made of.
#[derive(Clone, Debug)]
pub struct StatusInputs<'a> {
    /// The pool, with the status that it has.
    pub pool: &'a VPNClientPool,
    /// Its gateway, if there is one of that name.
    pub gateway: Option<&'a VPNGateway>,
    /// The older pool that it overlaps, if it does.
    pub overlap: Option<&'a Overlap>,
    /// What is given and what is left.
    pub capacity: PoolCapacity,
    /// Why the next client would be turned away, if it would be.
    pub shortage: Option<Denied>,
    /// Its clients by phase.
    pub clients: ClientCounts,
    /// What NATs they are behind.
    pub nat: Option<NatSummary>,
    /// Its join tokens.
    pub tokens: Vec<TokenStatus>,
    /// What others have under the names of its objects.
    pub foreign: &'a [Foreign],
    /// Why pods get no sidecar that trusts this operator.
    pub sidecar_trust: Option<&'a SidecarTrustObstacle>,
    /// What of the pool is not understood.
    pub unread: &'a [Unread],
    /// The time.
    pub now: Timestamp,
}

/// The status to write.
pub fn status(inputs: StatusInputs<'_>) -> VPNClientPoolStatus {
    let pool = inputs.pool;
    let before = pool.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
    let mut conditions = Conditions::new(before, pool.metadata.generation, inputs.now);
    match &inputs.shortage {
        None => {
            conditions.set(ADDRESSES_AVAILABLE, Some(true), "AddressesFree", "there is room for more clients")
        }
        Some(denied) => {
            conditions.set(ADDRESSES_AVAILABLE, Some(false), denied.category(), &denied.to_string())
        }
    };
    judge(&inputs, &mut conditions);
    // It serves all the same: those who have their addresses do not come by its own objects, nor as new sidecars.
    let of_sidecars = inputs.sidecar_trust.filter(|_| takes_sidecars(pool));
    let of_sidecars = of_sidecars.map(|obstacle| (obstacle.category(), obstacle.to_string()));
    let taken = (!inputs.foreign.is_empty()).then(|| (Foreign::CATEGORY, remedy(inputs.foreign)));
    // More is lost by an overlap, of which it was said.
    if let Some((reason, text)) = taken.or(of_sidecars).filter(|_| inputs.overlap.is_none()) {
        conditions.set(STALLED, Some(true), reason, &text);
    }
    if let Some(unusable) = fields(inputs.unread).or(search_domains(pool).1) {
        unusable.tell(&mut conditions);
    }
    VPNClientPoolStatus {
        observed_generation: pool.metadata.generation,
        conditions: conditions.finish(),
        capacity: Some(inputs.capacity),
        reachable: reach::reachable(&pool.spec),
        clients: Some(inputs.clients),
        nat: inputs.nat,
        tokens: inputs.tokens,
        in_force: Some((&pool.spec).into()),
    }
}

fn judge(inputs: &StatusInputs<'_>, conditions: &mut Conditions<'_>) {
    let name = &inputs.pool.spec.gateway_ref.name;
    let Some(gateway) = inputs.gateway else {
        let text = format!(
            "there is no VPNGateway {name} in this namespace: create it, or make the pool anew with another \
             gatewayRef"
        );
        conditions.reconciling("GatewayNotFound", &text);
        return;
    };
    if let Some(overlap) = inputs.overlap {
        let text = format!(
            "{} overlaps {} of the older pool {}, which the same gateway serves: make this pool anew with other \
             cidrs, or on another gateway",
            overlap.own, overlap.other, overlap.with
        );
        conditions.stalled("OverlappingPool", &text);
        return;
    }
    let gateway_conditions = gateway.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
    let ready = ready_of(gateway_conditions);
    if ready == Some(true) {
        conditions.ready("Serving", "the gateway is Ready and serves this pool");
        return;
    }
    let text = format!("VPNGateway {name} is not Ready: see its conditions");
    conditions.set(READY, ready, "GatewayNotReady", &text);
    conditions.set(RECONCILING, Some(true), "GatewayNotReady", &text);
}
