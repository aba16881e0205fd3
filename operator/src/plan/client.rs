//! A client's status.

use std::{net::IpAddr, time::Duration};

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
use pinhole_crds::{
    CLOCK_SKEW, CONNECTED, Churn, ClientCounts, ClientPhase, DEGRADED, Interval, KEY_ON_TWO_MACHINES, READY,
    Unread, VPNClient, VPNClientPool, VPNClientStatus, VPNGateway,
};
use pinhole_proto::{
    Span,
    bounds::Word,
    v1::{HandshakeFate, KeyOnTwoMachines, Phase},
};

use super::{
    condition::Conditions, keepalive, keys::KeyError, nat, overlap::Overlap, standby, unusable::fields,
};
use crate::{
    fleet::{ClientView, HANDSHAKE_GRAIN_SECONDS, Hearing, Place, Sighting, timestamp},
    ipam::Denied,
};

/// What was measured anew is written at most this often, when nothing else is.
pub const MEASUREMENTS_REST: Duration = Duration::from_secs(15);

/// What stands behind a client.
#[derive(Clone, Copy, Debug)]
pub enum Backing<'a> {
    /// There is no pool of that name.
    PoolNotFound,
    /// The pool's gateway does not exist.
    GatewayNotFound(&'a VPNClientPool),
    /// The pool is held up by an older one.
    Overlapping(&'a VPNClientPool, &'a Overlap),
    /// All is there.
    Served(&'a VPNClientPool, &'a VPNGateway),
}

/// What a client's status is made of.
#[derive(Clone, Copy, Debug)]
pub struct StatusInputs<'a> {
    /// The client, with the status that it has.
    pub client: &'a VPNClient,
    /// What stands behind it.
    pub backing: Backing<'a>,
    /// The addresses that it holds.
    pub addresses: &'a [IpAddr],
    /// Why it does not get the addresses that it should have.
    pub denied: Option<&'a Denied>,
    /// Its public key, base64, once it has one.
    pub public_key: Option<&'a str>,
    /// Why its key cannot be used.
    pub key_error: Option<&'a KeyError>,
    /// An older client of the same gateway with the same key.
    pub key_twin: Option<&'a str>,
    /// Secret with its configuration, once that is complete. Only for stock clients.
    pub config_secret: Option<&'a str>,
    /// What the gateway's replicas say of it.
    pub view: Option<&'a ClientView>,
    /// Moves that its replica had counted when the status was last written, if that is known.
    pub moves_seen: Option<u64>,
    /// How long ago the status was last written, if that is known.
    pub written_ago: Option<Duration>,
    /// What of it is not understood.
    pub unread: &'a [Unread],
    /// The time.
    pub now: Timestamp,
}

/// Why a client may not connect, or not yet, with what the Ready condition says of it.
enum Provision {
    Ready,
    Suspended,
    Reconciling { reason: &'static str, message: String },
    Stalled { reason: &'static str, message: String },
}

/// The status to write, and when to look again though nothing happens.
pub fn status(inputs: &StatusInputs<'_>) -> (VPNClientStatus, Option<Duration>) {
    let client = inputs.client;
    let default = VPNClientStatus::default();
    let before = client.status.as_ref().unwrap_or(&default);
    let mut conditions = Conditions::new(&before.conditions, client.metadata.generation, inputs.now);
    let provision = provision(inputs);
    match &provision {
        Provision::Ready => conditions.ready("Provisioned", "has its key and addresses, and may connect"),
        Provision::Suspended => conditions.ready("Suspended", "suspended as its spec says"),
        Provision::Reconciling { reason, message } => conditions.reconciling(reason, message),
        Provision::Stalled { reason, message } => conditions.stalled(reason, message),
    };
    if let Some(unusable) = fields(inputs.unread) {
        unusable.tell(&mut conditions);
    }
    let phase = phase(inputs, before, &provision);
    connected(inputs, before, phase, &mut conditions);
    degraded(inputs, phase, &mut conditions);
    key_on_two_machines(inputs, &mut conditions);
    clock_skew(inputs, &mut conditions);
    let mut status = VPNClientStatus {
        observed_generation: client.metadata.generation,
        conditions: conditions.finish(),
        phase: Some(phase),
        public_key: inputs.public_key.map(str::to_owned).or_else(|| before.public_key.clone()),
        addresses: inputs.addresses.to_vec(),
        keepalive: keepalive_in_force(inputs, before),
        config_secret: config_secret(inputs, before),
        ..seen(inputs, before)
    };
    calm_handshake(&mut status, before);
    let calm = calm_measurements(&mut status, before, inputs.written_ago);
    let expiry = client.spec.expires_at.as_ref().and_then(|end| until(inputs.now, end.0));
    let waiting = inputs.view.filter(|v| v.hearing == Hearing::Waiting).map(|_| Duration::from_secs(3));
    (status, expiry.into_iter().chain(waiting).chain(calm).min())
}

/// Adds one client's phase to `counts`.
pub fn count(counts: &mut ClientCounts, phase: Option<ClientPhase>) {
    counts.total += 1;
    let field = match phase {
        Some(ClientPhase::Connected | ClientPhase::Degraded) => &mut counts.connected,
        Some(ClientPhase::Standby) => &mut counts.standby,
        Some(ClientPhase::WaitingToReconnect) => &mut counts.waiting_to_reconnect,
        Some(ClientPhase::Dormant) => &mut counts.dormant,
        Some(ClientPhase::Suspended) => &mut counts.suspended,
        Some(ClientPhase::Disconnected | ClientPhase::Pending | ClientPhase::Unknown) | None => {
            &mut counts.disconnected
        }
    };
    *field += 1;
}

fn provision(inputs: &StatusInputs<'_>) -> Provision {
    let spec = &inputs.client.spec;
    let pool = &spec.pool_ref.name;
    let reconciling = |reason, message| Provision::Reconciling { reason, message };
    let stalled = |reason, message| Provision::Stalled { reason, message };
    match inputs.backing {
        Backing::PoolNotFound => {
            let text = format!(
                "there is no VPNClientPool {pool} in this namespace: create it, or delete this client"
            );
            return reconciling("PoolNotFound", text);
        }
        Backing::GatewayNotFound(p) => {
            let name = &p.spec.gateway_ref.name;
            return reconciling(
                "GatewayNotFound",
                format!("the pool's VPNGateway {name} does not exist: create it"),
            );
        }
        Backing::Overlapping(_, overlap) => {
            let text =
                format!("pool {pool} overlaps the older pool {}: see the pool's conditions", overlap.with);
            return stalled("OverlappingPool", text);
        }
        Backing::Served(..) => {}
    }
    if expired(inputs) {
        return stalled(
            "Expired",
            "its time is over: set spec.expiresAt to a later time, or delete it".into(),
        );
    }
    if let Some(twin) = inputs.key_twin {
        let text =
            format!("client {twin} is older and has the same public key: give this one a key of its own");
        return stalled("KeyConflict", text);
    }
    if let Some(error) = inputs.key_error {
        return stalled(error.category(), error.to_string());
    }
    if let Some(denied) = inputs.denied {
        return stalled(denied.category(), denied.to_string());
    }
    if spec.suspended == Some(true) {
        return Provision::Suspended;
    }
    if inputs.public_key.is_none() || inputs.addresses.is_empty() {
        return reconciling("Provisioning", "its key and addresses are being made".into());
    }
    if spec.is_stock() && inputs.config_secret.is_none() {
        return reconciling(
            "GatewayAddressPending",
            "the gateway has no endpoint yet to write into the configuration: see the gateway's conditions"
                .into(),
        );
    }
    Provision::Ready
}

fn expired(inputs: &StatusInputs<'_>) -> bool {
    inputs.client.spec.expires_at.as_ref().is_some_and(|end| end.0 <= inputs.now)
}

fn phase(inputs: &StatusInputs<'_>, before: &VPNClientStatus, provision: &Provision) -> ClientPhase {
    if inputs.client.spec.suspended == Some(true) || expired(inputs) {
        return ClientPhase::Suspended;
    }
    let served = matches!(inputs.backing, Backing::Served(..));
    if !served || inputs.addresses.is_empty() || inputs.public_key.is_none() || inputs.key_twin.is_some() {
        return ClientPhase::Pending;
    }
    let Some(view) = inputs.view else { return ClientPhase::Pending };
    match (view.hearing, &view.sighting) {
        (Hearing::Silent, _) if never_served(inputs, before) => ClientPhase::Pending,
        (Hearing::Silent, _) => ClientPhase::Unknown,
        (Hearing::Waiting, _) => match before.phase {
            None | Some(ClientPhase::Suspended) if before.replica.is_some() => ClientPhase::Disconnected,
            None | Some(ClientPhase::Suspended) => ClientPhase::Pending,
            Some(known) => known,
        },
        (Hearing::Live, Some((_, sighting))) => match sighting.phase {
            Word::Known(Phase::Connected) if !sighting.impairments.is_empty() => ClientPhase::Degraded,
            Word::Known(Phase::Connected) => ClientPhase::Connected,
            Word::Known(Phase::Standby) => ClientPhase::Standby,
            Word::Known(Phase::Dormant) => ClientPhase::Dormant,
            Word::Known(Phase::WaitingToReconnect) => ClientPhase::WaitingToReconnect,
            Word::Known(Phase::Disconnected | Phase::Unspecified) => ClientPhase::Disconnected,
            // A phase that is newer than this operator is none that it could show: the last one that it knew stays.
            Word::Newer(_) => before.phase.unwrap_or(ClientPhase::Pending),
        },
        (Hearing::Live, None) if matches!(provision, Provision::Reconciling { .. }) => ClientPhase::Pending,
        // The gateway speaks, and not of this client: it has not been told of it yet.
        (Hearing::Live, None) if before.replica.is_none() => ClientPhase::Pending,
        (Hearing::Live, None) => ClientPhase::Disconnected,
    }
}

/// Neither has the client ever been heard, nor does its gateway serve anybody yet.
fn never_served(inputs: &StatusInputs<'_>, before: &VPNClientStatus) -> bool {
    let Backing::Served(_, gateway) = inputs.backing else { return true };
    let conditions = gateway.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
    let ready = conditions.iter().find(|c| c.type_ == READY);
    before.replica.is_none() && ready.is_none_or(|c| c.status == "False")
}

fn connected(
    inputs: &StatusInputs<'_>,
    before: &VPNClientStatus,
    phase: ClientPhase,
    conditions: &mut Conditions<'_>,
) {
    let (status, reason, message) = match phase {
        ClientPhase::Connected => {
            (Some(true), "ExchangeConfirmed", "packets were exchanged in both directions lately")
        }
        ClientPhase::Degraded => (
            Some(false),
            "Degraded",
            "packets are exchanged in both directions, but its machine lacks something that its pool promises: see Degraded",
        ),
        ClientPhase::Standby => (
            Some(false),
            "Standby",
            "asleep, and reachable: its gateway wakes it over its session, proven lately (see status.standby)",
        ),
        ClientPhase::Dormant => (Some(false), "Dormant", "no usable path; its session and address are kept"),
        ClientPhase::WaitingToReconnect if live(inputs).is_some_and(|(_, seen)| seen.hears_nothing) => (
            Some(false),
            "HearsNothing",
            "its packets arrive, and it finishes none of its handshakes: what its gateway sends does not reach it. Look for a firewall, \
             or another VPN that takes the way back, on its machine, and for what lets UDP out but not in on its network",
        ),
        ClientPhase::WaitingToReconnect => {
            (Some(false), "WaitingToReconnect", "it was heard again; the exchange is not confirmed yet")
        }
        ClientPhase::Disconnected if before.last_handshake.is_none() => (
            Some(false),
            "NeverConnected",
            "no gateway has heard of it yet: check that it runs, and that UDP reaches the gateway",
        ),
        ClientPhase::Disconnected => (Some(false), "Disconnected", "no gateway hears it at present"),
        ClientPhase::Pending => (
            Some(false),
            "Pending",
            "it, or its gateway, has not got all yet that it needs: see Ready, and the gateway's conditions",
        ),
        ClientPhase::Suspended if expired(inputs) => (Some(false), "Expired", "its time is over"),
        ClientPhase::Suspended => {
            (Some(false), "Suspended", "it may not connect: set spec.suspended to false to let it")
        }
        ClientPhase::Unknown => (
            None,
            "GatewaySilent",
            "the gateway that served it stopped reporting, so nobody knows: check the gateway's pods",
        ),
    };
    conditions.set(CONNECTED, status, reason, message);
}

/// What its machine lacks of what the pool promises.
fn degraded(inputs: &StatusInputs<'_>, phase: ClientPhase, conditions: &mut Conditions<'_>) {
    let Some((_, sighting)) = live(inputs) else {
        conditions.keep(DEGRADED);
        return;
    };
    let Some(first) = sighting.impairments.first().filter(|_| phase == ClientPhase::Degraded) else { return };
    conditions.set(DEGRADED, Some(true), &first.category, &first.message);
}

/// Whether two machines use its key. What a replica that cannot be heard now said of that stays.
fn key_on_two_machines(inputs: &StatusInputs<'_>, conditions: &mut Conditions<'_>) {
    let Some((_, sighting)) = live(inputs) else {
        conditions.keep(KEY_ON_TWO_MACHINES);
        return;
    };
    let seen_by_two = inputs.view.and_then(|view| view.shared.as_ref());
    let effect = match (&sighting.key_on_two_machines, seen_by_two) {
        (Some(shared), _) => format!("{}, and each takes the other's packets", at_one_replica(shared)),
        (None, Some(shared)) => format!(
            ", {}, and what is sent to their address may reach the other one",
            shared.places.each_ref().map(at_its_replica).join(" and ")
        ),
        (None, None) => return,
    };
    let remedy = if inputs.client.spec.is_stock() {
        "make a VPNClient for each machine, and use each configuration on one machine only"
    } else {
        "on the one that is to be another client, run `pinhole down` and then `pinhole up --new-key` with a join token"
    };
    let text = format!(
        "two machines use this client's key at the same time{effect}: {remedy}; nothing is learnt of their NATs meanwhile"
    );
    conditions.set(KEY_ON_TWO_MACHINES, Some(true), "BothConnect", &text);
}

fn at_one_replica(shared: &KeyOnTwoMachines) -> String {
    let places = [shared.first.as_str(), shared.second.as_str()];
    let places: Vec<&str> = places.into_iter().filter(|place| !place.is_empty()).collect();
    if places.is_empty() { String::new() } else { format!(", at {}", places.join(" and ")) }
}

fn at_its_replica(place: &Place) -> String {
    let endpoint = place.endpoint.as_deref().unwrap_or("somewhere");
    format!("one at {endpoint} with gateway replica {}", place.replica)
}

/// What is wrong with its clock. What a replica that cannot be heard now said of that stays.
fn clock_skew(inputs: &StatusInputs<'_>, conditions: &mut Conditions<'_>) {
    let Some((_, sighting)) = live(inputs) else {
        conditions.keep(CLOCK_SKEW);
        return;
    };
    let Some(clock) = sighting.clock else { return };
    let name = inputs.client.metadata.name.as_deref().unwrap_or("NAME");
    let (reason, text) = match (clock.handshakes.into(), clock.ahead_seconds) {
        (Word::Known(HandshakeFate::Dropped), _) => (
            "HandshakesDropped",
            format!(
                "its gateway drops its handshakes, as they are dated no later than one before, and it does not answer when it is \
                 called instead: its clock went back, or somebody plays old handshakes back. Set its clock; where that cannot be, \
                 `kubectl pinhole suspend {name}`, and once its phase is Suspended `kubectl pinhole resume {name}`: by that the \
                 gateway forgets the date of the last one"
            ),
        ),
        (_, 1..) => ("Ahead", wrong_by(clock.ahead_seconds, "ahead of")),
        (_, ..=-1) => ("Behind", wrong_by(clock.ahead_seconds, "behind")),
        (Word::Known(HandshakeFate::CalledBack), 0) => (
            "WentBack",
            "its handshakes are dated before one that it made earlier: its clock went back. Its gateway drops them, and calls it \
             instead, which works for as long as it is the first to speak: set its clock"
                .to_owned(),
        ),
        (Word::Known(HandshakeFate::Unspecified) | Word::Newer(_), 0) => return,
    };
    conditions.set(CLOCK_SKEW, Some(true), reason, &text);
}

fn wrong_by(seconds: i64, way: &str) -> String {
    format!(
        "its clock is about {} {way} its gateway's: set it. Whatever is dated on that machine is wrong, and it may not know its \
         gateway by its certificate",
        Span(Duration::from_secs(seconds.unsigned_abs()))
    )
}

/// A configuration that was made is not taken away because its gateway is gone for a while.
fn config_secret(inputs: &StatusInputs<'_>, before: &VPNClientStatus) -> Option<String> {
    let made = inputs.config_secret.map(str::to_owned);
    made.or_else(|| before.config_secret.clone().filter(|_| inputs.client.spec.is_stock()))
}

fn keepalive_in_force(
    inputs: &StatusInputs<'_>,
    before: &VPNClientStatus,
) -> Option<pinhole_crds::KeepaliveInForce> {
    let Backing::Served(pool, gateway) = inputs.backing else { return None };
    let spec = &inputs.client.spec;
    let policy = keepalive::in_force(&gateway.spec, Some(&pool.spec), Some(spec));
    let (before, sighting) = (before.keepalive.as_ref(), live(inputs).map(|(_, sighting)| sighting));
    if spec.is_stock() {
        let recommended = sighting.and_then(|s| s.recommended_keepalive);
        return Some(keepalive::stock_status(policy, before, recommended));
    }
    let heard = inputs.view.is_some_and(|v| v.hearing == Hearing::Live);
    Some(keepalive::agent_status(policy, before, sighting.and_then(|s| s.keepalive.as_ref()), heard))
}

fn live<'a>(inputs: &StatusInputs<'a>) -> Option<&'a (String, Sighting)> {
    inputs.view.filter(|v| v.hearing == Hearing::Live)?.sighting.as_ref()
}

/// What the reports say; what they do not say stays as it was.
fn seen(inputs: &StatusInputs<'_>, before: &VPNClientStatus) -> VPNClientStatus {
    let kept = VPNClientStatus {
        endpoint: before.endpoint.clone(),
        replica: before.replica.clone(),
        last_handshake: before.last_handshake.clone(),
        nat: before.nat.clone(),
        binding: before.binding.clone(),
        churn: before.churn.clone(),
        standby: before.standby.clone(),
        reachability: before.reachability.clone(),
        ..VPNClientStatus::default()
    };
    let Some((replica, sighting)) = live(inputs) else { return kept };
    // With one key on two machines it would be of the one and of the other in turn.
    let seen_by_two = inputs.view.is_some_and(|view| view.shared.is_some());
    if (sighting.key_on_two_machines.is_some() || seen_by_two) && kept.replica.is_some() {
        return VPNClientStatus {
            replica: kept.replica.clone().filter(|_| seen_by_two).or_else(|| Some(replica.clone())),
            last_handshake: sighting.last_handshake.map(seconds).or(kept.last_handshake.clone()),
            ..kept
        };
    }
    let heard = sighting.last_receive.is_some();
    VPNClientStatus {
        endpoint: sighting.endpoint.clone().or(kept.endpoint),
        replica: if heard { Some(replica.clone()) } else { kept.replica },
        last_handshake: sighting.last_handshake.map(seconds).or(kept.last_handshake),
        nat: nat::behaviour(kept.nat.as_ref(), sighting),
        binding: nat::lifetime(kept.binding.as_ref(), sighting),
        churn: churn(kept.churn, sighting, inputs.moves_seen),
        standby: standby::in_force(kept.standby.as_ref(), sighting),
        reachability: nat::reachability(kept.reachability, sighting),
        ..VPNClientStatus::default()
    }
}

/// Moves are counted by replicas, each since it started; status counts them all.
fn churn(before: Option<Churn>, sighting: &Sighting, seen: Option<u64>) -> Option<Churn> {
    let Some((cause, event)) = sighting.last_churn() else { return before };
    let Some(at) = event.at.and_then(timestamp).map(seconds) else { return before };
    let last = before.as_ref().and_then(|b| b.last_change.clone());
    let counted = sighting.churn.count;
    let news = match seen {
        Some(seen) if seen <= counted => counted - seen,
        Some(_) => counted,
        None => 1,
    };
    let count = before.as_ref().map_or(0, |b| b.count);
    let told = Churn {
        count,
        last_cause: Some(nat::cause(cause)),
        last_change: Some(at.clone()),
        from: Some(event.from.clone()).filter(|f| !f.is_empty()),
        to: Some(event.to.clone()).filter(|t| !t.is_empty()),
        idle: event
            .idle
            .and_then(nat::duration)
            .map(|idle| Interval(Duration::from_secs(idle.as_secs().min(99_999)))),
    };
    match last {
        // The same one again, of which the cause may be known better now.
        Some(last) if last == at && (seen.is_none() || news == 0) => Some(told),
        Some(last) if last > at => before,
        _ => {
            let news = i64::try_from(news.max(1)).unwrap_or(i64::MAX);
            Some(Churn { count: count.saturating_add(news), ..told })
        }
    }
}

/// Measurements that were just written are left as they are for a while, when all else is as it was. When to look
/// again.
fn calm_measurements(
    status: &mut VPNClientStatus,
    before: &VPNClientStatus,
    written_ago: Option<Duration>,
) -> Option<Duration> {
    let rest = MEASUREMENTS_REST.checked_sub(written_ago?)?;
    let held = VPNClientStatus {
        nat: before.nat.clone(),
        binding: before.binding.clone(),
        keepalive: before.keepalive.clone(),
        standby: before.standby.clone(),
        ..status.clone()
    };
    if held != *before || *status == *before {
        return None;
    }
    // What a user configured, and the first word on a NAT, are no measurements that grow.
    let class = |s: &VPNClientStatus| s.nat.as_ref().map(|n| n.class);
    let reason = |s: &VPNClientStatus| s.keepalive.as_ref().map(|k| (k.mode, k.reason.clone()));
    if class(status) != class(before) || reason(status) != reason(before) {
        return None;
    }
    *status = held;
    Some(rest + Duration::from_millis(50))
}

/// A newer handshake alone is no reason to write.
fn calm_handshake(status: &mut VPNClientStatus, before: &VPNClientStatus) {
    let (Some(new), Some(old)) = (&status.last_handshake, &before.last_handshake) else { return };
    let is_coarse_step = new.0.as_second() - old.0.as_second() >= HANDSHAKE_GRAIN_SECONDS;
    let unchanged =
        VPNClientStatus { last_handshake: before.last_handshake.clone(), ..status.clone() } == *before;
    if unchanged && !is_coarse_step {
        status.last_handshake.clone_from(&before.last_handshake);
    }
}

fn seconds(time: Timestamp) -> Time {
    Time(Timestamp::from_second(time.as_second()).unwrap_or(time))
}

fn until(now: Timestamp, end: Timestamp) -> Option<Duration> {
    let millis = end.as_millisecond() - now.as_millisecond();
    u64::try_from(millis).ok().filter(|m| *m > 0).map(|m| Duration::from_millis(m + 50))
}
