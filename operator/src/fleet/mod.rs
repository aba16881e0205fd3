//! What the gateways' replicas should do and what they report: in memory, without I/O, shared by the link (which
//! carries both over the wire) and the controllers (which decide the one and read the other).
//!
//! Nothing here is durable. Whoever becomes leader starts with an empty fleet, publishes what it plans, and hears
//! the replicas within seconds; until then [`Hearing::Waiting`] says that silence means nothing yet.

mod key;
mod replica;
mod shared_key;
mod sighting;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use pinhole_proto::v1::{Ack, DesiredState, GatewayReport};
use tokio::sync::{Notify, watch};

pub use key::{ClientKey, GatewayKey, PoolKey, object_ref};
pub use replica::{Proof, ReplicaView};
use shared_key::SharedKeys;
pub use shared_key::{Place, SharedKey};
pub(crate) use sighting::unproven;
pub use sighting::{HANDSHAKE_GRAIN_SECONDS, Sighting, timestamp};

#[cfg(test)]
pub(crate) use replica::JUST_GONE;
use replica::{HeardAnew, Replica};

/// A replica that sent nothing for this long is silent: what it said of its clients is not known any more.
/// Replicas report at least every 10 s, if only an empty report; a status must say so within 15 s.
pub const SILENT_AFTER: Duration = Duration::from_secs(12);

/// A proof of a data path that is older than this proves nothing any more, however fresh the report of it.
pub const PROOF_FRESH: Duration = Duration::from_secs(90);

/// Something of which the controllers should look again at the fleet's view.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Change {
    /// A replica of the gateway came, went, fell silent, or its proof or impairments changed.
    Gateway(GatewayKey),
    /// A client's phase, endpoint or moves changed, or the replica that spoke of it fell silent.
    Client(ClientKey),
    /// The same of one that was heard: there is somebody at the other end.
    Heard(ClientKey),
    /// A client's key turned out to be on two machines at two replicas of the gateway, or is not any more: they are to be told.
    Peers(GatewayKey),
}

/// Whether a replica can be heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hearing {
    /// Not yet, and this operator has not listened for long enough to draw a conclusion.
    Waiting,
    /// It reported within [`SILENT_AFTER`].
    Live,
    /// It did not.
    Silent,
}

/// What the fleet knows of one client.
#[derive(Clone, Debug, PartialEq)]
pub struct ClientView {
    /// The sighting with the most recent authenticated receive, and the replica that made it.
    pub sighting: Option<(String, Sighting)>,
    /// Whether that replica can be heard. Without a sighting: whether the replica that was asked for can.
    pub hearing: Hearing,
    /// Its key is on two machines, of which each talks to a replica of its own.
    pub shared: Option<SharedKey>,
}

/// What the fleet knows of one gateway.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GatewayView {
    /// Replicas by name, of which something was planned or heard.
    pub replicas: BTreeMap<String, ReplicaView>,
}

/// The registry.
#[derive(Debug)]
pub struct Fleet {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug)]
struct State {
    since: Instant,
    gateways: BTreeMap<GatewayKey, BTreeMap<String, Replica>>,
    shared_keys: BTreeMap<GatewayKey, SharedKeys>,
    changes: BTreeSet<Change>,
    next_attachment: u64,
}

impl Fleet {
    /// An empty fleet that listens from `now` on.
    pub fn new(now: Instant) -> Arc<Self> {
        let state = State {
            since: now,
            gateways: BTreeMap::new(),
            shared_keys: BTreeMap::new(),
            changes: BTreeSet::new(),
            next_attachment: 0,
        };
        Arc::new(Self { state: Mutex::new(state), changed: Notify::new() })
    }

    /// Silence means something only from `now` on: whoever takes the lead has not been spoken to before.
    pub fn listen_from(&self, now: Instant) {
        self.lock().since = now;
    }

    /// Makes `desired` what the replica should run. The revision is set here; it grows only when the content
    /// differs from what was published before, and also across restarts of the operator, for it starts from the
    /// clock: `wall` is the time.
    pub fn publish(&self, wall: SystemTime, gateway: &GatewayKey, replica: &str, desired: DesiredState) {
        self.lock().replica(gateway, replica).publish(desired, unix_millis(wall));
    }

    /// The newest desired state of the replica, now and whenever it changes. None until something was published.
    pub fn desired(&self, gateway: &GatewayKey, replica: &str) -> watch::Receiver<Option<Arc<DesiredState>>> {
        self.lock().replica(gateway, replica).subscribe()
    }

    /// The replica opened a stream and runs on `running` already (0 for nothing). A newer attachment of the same
    /// replica supersedes an older one, whose reports are then ignored.
    pub fn attached(
        self: &Arc<Self>,
        gateway: &GatewayKey,
        replica: &str,
        running: u64,
        now: Instant,
    ) -> Attachment {
        let mut state = self.lock();
        state.next_attachment += 1;
        let id = state.next_attachment;
        state.replica(gateway, replica).attach(id, running, now);
        state.changes.insert(Change::Gateway(gateway.clone()));
        drop(state);
        self.changed.notify_one();
        Attachment { fleet: Arc::clone(self), gateway: gateway.clone(), replica: replica.to_owned(), id }
    }

    /// All that is known of the gateway's replicas.
    pub fn view(&self, gateway: &GatewayKey, now: Instant) -> GatewayView {
        let state = self.lock();
        let since = state.since;
        let replicas = state.gateways.get(gateway).into_iter().flatten();
        GatewayView { replicas: replicas.map(|(name, r)| (name.clone(), r.view(since, now))).collect() }
    }

    /// What is known of the client with `uid`. `last_replica` is the one that spoke of it before this operator
    /// started to listen, as its status says.
    pub fn client(
        &self,
        gateway: &GatewayKey,
        uid: &str,
        last_replica: Option<&str>,
        now: Instant,
    ) -> ClientView {
        let state = self.lock();
        let empty = BTreeMap::new();
        let replicas = state.gateways.get(gateway).unwrap_or(&empty);
        let best = replicas
            .iter()
            .filter_map(|(name, replica)| replica.sighting(uid).map(|s| (name, replica, s)))
            .max_by_key(|(_, replica, s)| (s.recency(), replica.hearing(state.since, now) == Hearing::Live));
        let unseen = |name: Option<&str>| match name.and_then(|n| replicas.get(n)) {
            Some(replica) => replica.hearing(state.since, now),
            None if now.saturating_duration_since(state.since) < SILENT_AFTER => Hearing::Waiting,
            // No replica that exists has served it: any of them would know.
            None if replicas.values().any(|r| r.hearing(state.since, now) == Hearing::Live) => Hearing::Live,
            None => Hearing::Silent,
        };
        let shared = state.shared_keys.get(gateway).and_then(|keys| keys.of(uid)).cloned();
        match best {
            Some((name, replica, s)) if s.last_receive.is_some() || last_replica.is_none() => ClientView {
                hearing: replica.hearing(state.since, now),
                sighting: Some((name.clone(), s.clone())),
                shared,
            },
            // Only replicas that never saw it speak: the one that did may still be silent.
            Some((name, replica, s)) => match unseen(last_replica) {
                Hearing::Live => ClientView {
                    hearing: replica.hearing(state.since, now),
                    sighting: Some((name.clone(), s.clone())),
                    shared,
                },
                other => ClientView { sighting: None, hearing: other, shared },
            },
            None => ClientView { sighting: None, hearing: unseen(last_replica), shared },
        }
    }

    /// UIDs of the gateway's clients whose keys are on two machines, of which each talks to a replica of its own.
    pub fn shared_keys(&self, gateway: &GatewayKey) -> BTreeSet<String> {
        let state = self.lock();
        let keys = state.shared_keys.get(gateway);
        keys.into_iter().flat_map(SharedKeys::clients).map(str::to_owned).collect()
    }

    /// Forgets replicas that the gateway has no more.
    pub fn keep_replicas(&self, gateway: &GatewayKey, names: &BTreeSet<String>) {
        if let Some(replicas) = self.lock().gateways.get_mut(gateway) {
            replicas.retain(|name, _| names.contains(name));
        }
    }

    /// Forgets the gateway.
    pub fn remove(&self, gateway: &GatewayKey) {
        let mut state = self.lock();
        state.gateways.remove(gateway);
        state.shared_keys.remove(gateway);
    }

    /// Forgets what was said of a client that is gone.
    pub fn forget_client(&self, gateway: &GatewayKey, uid: &str) {
        let mut state = self.lock();
        state.gateways.get_mut(gateway).into_iter().flatten().for_each(|(_, r)| r.forget(uid));
        if let Some(keys) = state.shared_keys.get_mut(gateway) {
            keys.forget(uid);
        }
    }

    /// How many clients the gateway's replicas spoke of.
    #[cfg(test)]
    pub(crate) fn sightings(&self, gateway: &GatewayKey) -> usize {
        let state = self.lock();
        state.gateways.get(gateway).into_iter().flatten().map(|(_, replica)| replica.clients().count()).sum()
    }

    /// Notices replicas that fell silent. To be called about every second.
    pub fn handle_timeout(&self, now: Instant) {
        let mut state = self.lock();
        let State { since, gateways, shared_keys, changes, .. } = &mut *state;
        for (gateway, keys) in shared_keys {
            changes.extend(news_of_shared(gateway, keys.handle_timeout(now)));
        }
        for (gateway, replicas) in gateways {
            for replica in replicas.values_mut() {
                if replica.crossed_silence(*since, now) {
                    changes.insert(Change::Gateway(gateway.clone()));
                    changes.extend(replica.clients().map(Change::Client));
                }
            }
        }
        let any = !state.changes.is_empty();
        drop(state);
        if any {
            self.changed.notify_one();
        }
    }

    /// Waits for changes and takes them, each once however often it occurred. One task at a time may wait.
    pub async fn changes(&self) -> BTreeSet<Change> {
        loop {
            let changes = std::mem::take(&mut self.lock().changes);
            if !changes.is_empty() {
                return changes;
            }
            self.changed.notified().await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with_attached(&self, attachment: &Attachment, act: impl FnOnce(&mut State) -> BTreeSet<Change>) {
        let mut state = self.lock();
        let replica = state.gateways.get(&attachment.gateway).and_then(|r| r.get(&attachment.replica));
        if !replica.is_some_and(|r| r.is_attached_as(attachment.id)) {
            return;
        }
        let changes = act(&mut state);
        if changes.is_empty() {
            return;
        }
        state.changes.extend(changes);
        drop(state);
        self.changed.notify_one();
    }
}

impl State {
    fn replica(&mut self, gateway: &GatewayKey, replica: &str) -> &mut Replica {
        self.gateways.entry(gateway.clone()).or_default().entry(replica.to_owned()).or_default()
    }

    fn report(&mut self, from: &Attachment, report: GatewayReport, now: Instant) -> BTreeSet<Change> {
        let (mut news, heard) = self.replica(&from.gateway, &from.replica).report(&from.gateway, report, now);
        let State { gateways, shared_keys, .. } = self;
        if let Some(replicas) = gateways.get(&from.gateway).filter(|replicas| replicas.len() > 1) {
            let keys = shared_keys.entry(from.gateway.clone()).or_default();
            let shared = on_two_replicas(keys, replicas, &from.replica, &heard);
            news.extend(news_of_shared(&from.gateway, shared));
        }
        news
    }
}

/// An open stream of a replica. Dropped: the stream ended.
#[derive(Debug)]
pub struct Attachment {
    fleet: Arc<Fleet>,
    gateway: GatewayKey,
    replica: String,
    id: u64,
}

impl Attachment {
    /// The replica reported.
    pub fn report(&self, report: GatewayReport, now: Instant) {
        self.fleet.with_attached(self, |state| state.report(self, report, now));
    }

    /// The replica runs on a revision now, or says why it cannot.
    pub fn acked(&self, ack: Ack, now: Instant) {
        let acked =
            |state: &mut State| state.replica(&self.gateway, &self.replica).acked(&self.gateway, ack, now);
        self.fleet.with_attached(self, acked);
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        self.fleet.with_attached(self, |state| {
            state.replica(&self.gateway, &self.replica).detach();
            BTreeSet::from([Change::Gateway(self.gateway.clone())])
        });
    }
}

/// What is to be looked at where it is news of these clients that their keys are on two machines, or that they are not any more.
fn news_of_shared(gateway: &GatewayKey, clients: Vec<ClientKey>) -> Vec<Change> {
    let told = (!clients.is_empty()).then(|| Change::Peers(gateway.clone()));
    clients.into_iter().map(Change::Client).chain(told).collect()
}

/// Clients of which `replica` heard anew after another one had heard them, and of which it follows now that they are two
/// machines each.
fn on_two_replicas(
    keys: &mut SharedKeys,
    replicas: &BTreeMap<String, Replica>,
    replica: &str,
    heard: &[HeardAnew],
) -> Vec<ClientKey> {
    let returned = |HeardAnew { uid, since }: &HeardAnew| {
        let back = replicas.get(replica)?.heard(replica, uid)?;
        let others = replicas.iter().filter(|(name, _)| *name != replica);
        let away = others.filter_map(|(name, other)| other.heard(name, uid));
        let away = away.filter(|other| (*since..back.at).contains(&other.at)).max_by_key(|other| other.at)?;
        Some((away, back))
    };
    let news = heard.iter().filter_map(|anew| {
        let (away, back) = returned(anew)?;
        let client = replicas.get(replica)?.sighting(&anew.uid)?.client.clone();
        keys.handle_return(&anew.uid, &client, &away, &back).then_some(client)
    });
    news.collect()
}

fn unix_millis(wall: SystemTime) -> u64 {
    let elapsed = wall.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(elapsed.as_millis()).unwrap_or_default()
}

#[cfg(test)]
mod shared_key_tests;
#[cfg(test)]
mod tests;
