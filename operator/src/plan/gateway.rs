//! A gateway's objects and status.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::{ByteString, api::core::v1::Secret, jiff::Timestamp};
use kube::ResourceExt as _;
use pinhole_crds::{
    ClientCounts, ExposureType, NatSummary, PathProof, READY, RECONCILING, ReplicaStatus, STALLED, Unread,
    VPNGateway, VPNGatewayStatus,
};
use pinhole_proto::printable;

use super::{
    condition::Conditions,
    endpoint::{PodFacts, Replica},
    name::{gateway_labels, keys_secret, owned},
    object::{Object, ObjectKind},
    ownership::Foreign,
    refusal::Refusal,
    service,
    settings::Settings,
    unusable::{exposure, fields, pool},
    workload,
};
use crate::fleet::{GatewayView, Hearing, PROOF_FRESH, ReplicaView};

/// A replica that sent no report for this long proves nothing any more.
pub const REPORTS_STALE: Duration = Duration::from_secs(30);

/// Longest text of others that is copied into a condition's message, characters.
const QUOTE: usize = 400;

/// All that should exist for the gateway, but for its private keys, which are made once and never applied.
pub fn objects(gateway: &VPNGateway, settings: &Settings, ca_pem: &str) -> Vec<Object> {
    let mut objects = vec![
        Object::ServiceAccount(workload::service_account(gateway)),
        Object::ConfigMap(workload::ca(gateway, ca_pem)),
    ];
    objects.extend(service::gateway_services(gateway).into_iter().map(|s| Object::Service(Box::new(s))));
    objects.push(Object::StatefulSet(Box::new(workload::stateful_set(gateway, settings))));
    objects.push(Object::PodDisruptionBudget(workload::disruption_budget(gateway)));
    objects
}

/// Whether the gateway's pods run as this object or mount it.
pub fn is_of_pods(object: &Foreign) -> bool {
    matches!(object.kind, ObjectKind::ServiceAccount | ObjectKind::ConfigMap | ObjectKind::Secret)
}

/// The Secret with the private keys of the gateway's replicas, when it is made.
pub fn keys(gateway: &VPNGateway, data: BTreeMap<String, ByteString>) -> Secret {
    let name = gateway.name_any();
    Secret {
        metadata: owned(gateway, keys_secret(&name), gateway_labels(&name)),
        type_: Some("Opaque".into()),
        data: Some(data),
        ..Secret::default()
    }
}

/// What a gateway's status is made of.
#[derive(Clone, Copy, Debug)]
pub struct StatusInputs<'a> {
    /// The gateway, with the status that it has.
    pub gateway: &'a VPNGateway,
    /// Its replicas.
    pub replicas: &'a [Replica],
    /// Its pods, by name.
    pub pods: &'a BTreeMap<String, PodFacts>,
    /// Why its replicas do not run, by name, as far as the cluster says it.
    pub refused: &'a BTreeMap<String, Refusal>,
    /// Why they get no load balancer, likewise.
    pub unbalanced: &'a BTreeMap<String, Refusal>,
    /// Replicas whose pods were evicted lately, by name. They may run again.
    pub evicted: &'a BTreeMap<String, Refusal>,
    /// What its replicas report.
    pub view: &'a GatewayView,
    /// Its clients by phase.
    pub clients: ClientCounts,
    /// What NATs they are behind.
    pub nat: Option<&'a NatSummary>,
    /// Why what it needs cannot be made, if that will not change by itself: reason and message.
    pub obstacle: Option<(&'a str, &'a str)>,
    /// What of the gateway is not understood.
    pub unread: &'a [Unread],
    /// A pool that is not understood at all, is or may be one of its own, and has clients that must not be cut.
    pub frozen_pool: Option<&'a str>,
    /// The time.
    pub now: Timestamp,
}

/// What is known of one replica's data path.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Evidence {
    Proven(PathProof),
    /// It reports, and has no fresh proof.
    Unproven,
    /// Its reports stopped.
    Silent,
    /// Its pod does not run.
    NotRunning,
    /// The cluster does not let it run, or it does not get what it needs there.
    Refused(Refusal),
    /// It runs and was never heard.
    NeverHeard,
    /// This operator has not listened for long enough to tell.
    Waiting,
}

/// The status to write, and when to look again though nothing happens.
pub fn status(inputs: &StatusInputs<'_>) -> (VPNGatewayStatus, Option<Duration>) {
    let gateway = inputs.gateway;
    let evidence: Vec<(&Replica, Evidence)> =
        inputs.replicas.iter().map(|r| (r, evidence(inputs, &r.name))).collect();
    let before = gateway.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
    let mut conditions = Conditions::new(before, gateway.metadata.generation, inputs.now);
    judge(inputs, &evidence, &mut conditions);
    judge_evicted(inputs, &evidence, &mut conditions);
    if let Some(unusable) =
        fields(inputs.unread).or_else(|| pool(inputs.frozen_pool)).or_else(|| exposure(gateway))
    {
        unusable.tell(&mut conditions);
    }
    let mut addresses: Vec<String> = Vec::new();
    for host in inputs.replicas.iter().flat_map(|r| &r.hosts).map(ToString::to_string) {
        if !addresses.contains(&host) {
            addresses.push(host);
        }
    }
    let proven = evidence.iter().filter(|(_, e)| matches!(e, Evidence::Proven(_))).count();
    let status = VPNGatewayStatus {
        observed_generation: gateway.metadata.generation,
        conditions: conditions.finish(),
        addresses,
        ready_replicas: i32::try_from(proven).ok(),
        replicas: evidence.iter().map(|(r, e)| replica_status(r, e, inputs.view)).collect(),
        clients: Some(inputs.clients),
        nat: inputs.nat.cloned(),
    };
    (status, look_again(inputs.view))
}

fn evidence(inputs: &StatusInputs<'_>, replica: &str) -> Evidence {
    let seen = inputs.view.replicas.get(replica);
    let found = found(inputs, replica);
    let refusal = match found {
        // While it is heard, whatever is said of its pod or node is no harm.
        Evidence::NotRunning | Evidence::NeverHeard | Evidence::Silent => {
            inputs.refused.get(replica).or_else(|| inputs.evicted.get(replica)).cloned()
        }
        Evidence::Unproven => {
            seen.and_then(|view| view.impairments.iter().find_map(|(c, m)| Refusal::of_impairment(c, m)))
        }
        _ => None,
    };
    refusal.map_or(found, Evidence::Refused)
}

fn found(inputs: &StatusInputs<'_>, replica: &str) -> Evidence {
    if !inputs.pods.get(replica).is_some_and(|pod| pod.running) {
        return Evidence::NotRunning;
    }
    let Some(view) = inputs.view.replicas.get(replica) else { return Evidence::NeverHeard };
    match (view.silent_for, view.hearing) {
        (None, Hearing::Waiting) => Evidence::Waiting,
        (None, _) => Evidence::NeverHeard,
        (Some(silence), _) if silence >= REPORTS_STALE => Evidence::Silent,
        _ => match view.proof {
            Some(proof) if proof.age < PROOF_FRESH => Evidence::Proven(proof.kind),
            _ => Evidence::Unproven,
        },
    }
}

fn judge(inputs: &StatusInputs<'_>, evidence: &[(&Replica, Evidence)], conditions: &mut Conditions<'_>) {
    if let Some((reason, message)) = inputs.obstacle {
        conditions.stalled(reason, message);
        return;
    }
    let proven: Vec<(&Replica, PathProof)> = evidence
        .iter()
        .filter_map(|(r, e)| if let Evidence::Proven(kind) = e { Some((*r, *kind)) } else { None })
        .collect();
    if proven.is_empty() {
        judge_unproven(evidence, conditions);
        return;
    }
    if proven.iter().all(|(r, _)| r.tunnel_endpoints.is_empty()) {
        match told(proven.iter().filter_map(|(r, _)| Some((*r, inputs.unbalanced.get(&r.name)?)))) {
            Some((refusal, text)) => refuse(conditions, refusal, &text),
            None => conditions.reconciling("AddressPending", address_pending(inputs.gateway)),
        };
        return;
    }
    if proven.iter().any(|(_, kind)| *kind != PathProof::PodAddress) {
        conditions
            .ready("PathProven", "an authenticated exchange through the gateway's endpoint was seen lately");
    } else {
        conditions.ready(
            "PathProvenInsideCluster",
            "the gateway answers at its pod's address; nothing came through its published endpoint yet: when \
             clients cannot connect, check firewalls and the load balancer in front of it",
        );
    }
    if proven.len() < evidence.len() {
        judge_missing(evidence, conditions);
        return;
    }
    let unaddressed: Vec<&Replica> =
        proven.iter().map(|(replica, _)| *replica).filter(|r| r.tunnel_endpoints.is_empty()).collect();
    if !unaddressed.is_empty() {
        judge_unaddressed(inputs, &unaddressed, conditions);
    }
}

/// A pod that was evicted is made anew at once, and evicted again at the next look of its kubelet if nobody acts.
fn judge_evicted(
    inputs: &StatusInputs<'_>,
    evidence: &[(&Replica, Evidence)],
    conditions: &mut Conditions<'_>,
) {
    let all_serve = evidence.iter().all(|(_, e)| matches!(e, Evidence::Proven(_)));
    let evicted = evidence.iter().filter_map(|(r, _)| Some((*r, inputs.evicted.get(&r.name)?)));
    let Some((refusal, text)) = told(evicted).filter(|_| all_serve && inputs.obstacle.is_none()) else {
        return;
    };
    let text = format!("{text}. It was made anew and serves at present");
    conditions.set(RECONCILING, Some(true), refusal.cause.category(), &text);
}

/// Some replicas serve, others are not proven.
fn judge_missing(evidence: &[(&Replica, Evidence)], conditions: &mut Conditions<'_>) {
    if let Some((refusal, text)) = told(refusals(evidence)) {
        let text = format!("{text}. The others serve");
        conditions.set(RECONCILING, Some(true), refusal.cause.category(), &text);
        return;
    }
    let missing = evidence.iter().filter(|(_, e)| !matches!(e, Evidence::Proven(_)));
    let missing: Vec<&str> = missing.map(|(r, _)| r.name.as_str()).collect();
    let text = format!("no fresh proof of the data path of {}; the others serve", missing.join(", "));
    conditions.set(RECONCILING, Some(true), "ReplicasPending", &text);
}

/// All replicas run, and no client can be told of these.
fn judge_unaddressed(inputs: &StatusInputs<'_>, unaddressed: &[&Replica], conditions: &mut Conditions<'_>) {
    let refused = unaddressed.iter().filter_map(|r| Some((*r, inputs.unbalanced.get(&r.name)?)));
    let names: Vec<&str> = unaddressed.iter().map(|r| r.name.as_str()).collect();
    let why = match (told(refused), inputs.gateway.spec.exposure.type_) {
        (Some((_, text)), _) => text,
        (None, ExposureType::LoadBalancer) => {
            "a load balancer with one address, such as that of k3s, serves one replica: \
             set replicas to 1, use another load balancer, or type NodePort"
                .to_owned()
        }
        (None, _) => address_pending(inputs.gateway).to_owned(),
    };
    let text = format!("{} got no address of their own, and clients use the others: {why}", names.join(", "));
    conditions.set(RECONCILING, Some(true), "ReplicasWithoutAddress", &text);
}

fn judge_unproven(evidence: &[(&Replica, Evidence)], conditions: &mut Conditions<'_>) {
    let has = |wanted: &Evidence| evidence.iter().any(|(_, e)| e == wanted);
    if has(&Evidence::Unproven) {
        conditions.reconciling(
            "PathNotProven",
            "the gateway reports, but no authenticated packet arrived lately, not even its own: see the log of \
             its pods",
        );
    } else if has(&Evidence::Waiting) && conditions.keep(READY) {
        conditions.keep(RECONCILING);
        conditions.keep(STALLED);
    } else if let Some((refusal, text)) = told(refusals(evidence)) {
        refuse(conditions, refusal, &text);
    } else if has(&Evidence::Silent) {
        conditions.set(
            READY,
            None,
            "ReportsStopped",
            "the gateway's reports stopped, so nobody knows whether it serves: check its pods, and their way to \
             the operator",
        );
    } else if let Some((replica, _)) = evidence.iter().find(|(_, e)| *e == Evidence::NotRunning) {
        let text = format!("pod {} does not run yet", replica.name);
        conditions.reconciling("PodsNotRunning", &text);
    } else {
        conditions.reconciling(
            "AwaitingReports",
            "the gateway's pods run, but none has reported yet: when this lasts, see their log and check that they \
             reach the operator's Service",
        );
    }
}

fn refusals<'e>(
    evidence: &'e [(&'e Replica, Evidence)],
) -> impl Iterator<Item = (&'e Replica, &'e Refusal)> + Clone {
    evidence.iter().filter_map(|(replica, found)| match found {
        Evidence::Refused(refusal) => Some((*replica, refusal)),
        _ => None,
    })
}

/// The first refusal, and what to say of it: of which replicas, who refuses what, and what to do.
fn told<'e>(
    mut refusals: impl Iterator<Item = (&'e Replica, &'e Refusal)> + Clone,
) -> Option<(&'e Refusal, String)> {
    let same = refusals.clone();
    let (_, first) = refusals.next()?;
    let names: Vec<&str> =
        same.filter(|(_, refusal)| refusal.cause == first.cause).map(|(r, _)| r.name.as_str()).collect();
    Some((first, format!("{}: {}", names.join(", "), first.text())))
}

fn refuse<'c, 'b>(
    conditions: &'c mut Conditions<'b>,
    refusal: &Refusal,
    text: &str,
) -> &'c mut Conditions<'b> {
    let reason = refusal.cause.category();
    if refusal.cause.is_lasting() {
        conditions.stalled(reason, text)
    } else {
        conditions.reconciling(reason, text)
    }
}

fn address_pending(gateway: &VPNGateway) -> &'static str {
    match gateway.spec.exposure.type_ {
        ExposureType::LoadBalancer => {
            "the load balancer gave no address yet: check that the cluster has an implementation of LoadBalancer \
             Services, or set exposure.addresses"
        }
        ExposureType::NodePort | ExposureType::HostPort => {
            "no address of the node is known yet: check that it reports an ExternalIP or InternalIP, or set \
             exposure.addresses"
        }
    }
}

fn replica_status(replica: &Replica, evidence: &Evidence, view: &GatewayView) -> ReplicaStatus {
    let view = view.replicas.get(&replica.name);
    ReplicaStatus {
        name: replica.name.clone(),
        public_key: replica
            .public_key
            .map(|k| base64::Engine::encode(&base64::engine::general_purpose::STANDARD, k)),
        tunnel_endpoints: replica.tunnel_endpoints.iter().map(ToString::to_string).collect(),
        session_endpoints: replica.session_endpoints.iter().map(ToString::to_string).collect(),
        attached: view.is_some_and(|v| v.attached),
        path_proof: if let Evidence::Proven(kind) = evidence { Some(*kind) } else { None },
        impairments: view.map(impairments).unwrap_or_default(),
    }
}

fn impairments(view: &ReplicaView) -> Vec<String> {
    let mut all: Vec<String> = view.impairments.iter().map(|(category, _)| quote(category)).collect();
    all.extend(view.refusal.as_ref().map(|(category, _)| quote(category)));
    all.sort();
    all.dedup();
    all
}

fn look_again(view: &GatewayView) -> Option<Duration> {
    let next = |view: &ReplicaView| {
        let silence = view.silent_for.and_then(|s| REPORTS_STALE.checked_sub(s));
        let proof = view.proof.and_then(|p| PROOF_FRESH.checked_sub(p.age));
        let waiting = (view.hearing == Hearing::Waiting).then_some(Duration::from_secs(2));
        silence.into_iter().chain(proof).chain(waiting).min()
    };
    view.replicas.values().filter_map(next).min().map(|wait| wait + Duration::from_millis(200))
}

fn quote(text: &str) -> String {
    printable(text, QUOTE)
}
