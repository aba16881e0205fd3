//! When the operator is told what, and how much of it. Pure.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use pinhole_proto::{bounds::Word, news::Seen, v1};

use super::{
    nat_state::{NatState, canonical},
    shared_keys::Shared,
    stale::Fate,
    told::Instance,
};
use crate::{
    clock::{Offset, Skew},
    health::{Phase, Reach},
    tunnel::PublicKey,
    wire::phase_to_wire,
};

/// Changes within this time go up together.
pub const COALESCE: Duration = Duration::from_millis(250);
/// Everything goes up this often; it is the heartbeat as well.
pub const HEARTBEAT: Duration = Duration::from_secs(5);
/// Clients in one message, about 2 MB.
pub const MAX_CLIENTS: usize = 10_000;

/// A clock that is wrong by less troubles nobody, and a message may be on its way for some seconds.
const MIN_SKEW: Duration = Duration::from_mins(1);

/// One client as it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Observation {
    /// The client.
    pub client: v1::ObjectRef,
    /// Judged by receives.
    pub phase: Phase,
    /// Source of its last authenticated packet.
    pub endpoint: String,
    /// Whether its agent holds a session stream here.
    pub session: bool,
    /// Which process of its agent holds it, where that says so.
    pub(super) instance: Option<Instance>,
    /// How often its mapping moved.
    pub endpoint_changes: u64,
    /// The last move.
    pub last_change: Option<v1::EndpointChange>,
    /// When a handshake last ended well.
    pub last_handshake: Option<SystemTime>,
    /// When it was last heard.
    pub last_receive: Option<SystemTime>,
    /// Inner bytes received.
    pub rx_bytes: u64,
    /// Inner bytes sent.
    pub tx_bytes: u64,
    /// What is known of its NAT.
    pub nat_state: Option<Arc<NatState>>,
    /// When it last spoke on its session, where it sleeps.
    pub last_rest: Option<SystemTime>,
    /// For how long it was proven reachable.
    pub reach: Reach,
    /// How far its clock is from this machine's, as its agent said.
    pub(super) skew: Option<Skew>,
    /// What becomes of its handshakes that are not new.
    pub(super) fate: Option<Fate>,
    /// What is sent to it does not arrive.
    pub(super) hears_nothing: bool,
    /// Its key is on two machines, since then.
    pub(super) shared: Option<(SystemTime, Shared)>,
}

/// What is worth a report of its own when it changes: facts. What is only measured goes along with the next heartbeat, which is
/// seconds away.
#[derive(Debug, PartialEq)]
struct Facts {
    seen: Seen<String, Option<(SocketAddr, SocketAddr)>>,
    /// Not of two machines with one key, which move all the time.
    endpoint_changes: u64,
    /// [`NatState::version`]: a client in thousands is compared several times a second, and not word by word.
    nat_state: u64,
}

impl Observation {
    fn facts(&self) -> Facts {
        let seen = Seen {
            phase: Word::Known(phase_to_wire(self.phase)),
            session: self.session,
            endpoint: self.endpoint.clone(),
            key_on_two_machines: self.shared.map(|(_, shared)| shared.places),
            clock: Some(self.clock()),
            hears_nothing: self.hears_nothing,
        };
        Facts {
            seen,
            endpoint_changes: if self.shared.is_none() { self.endpoint_changes } else { 0 },
            nat_state: self.nat_state.as_ref().map_or(0, |nat_state| nat_state.version()),
        }
    }

    /// What is wrong with its clock. Of two machines with one key it would be of the one or of the other.
    fn clock(&self) -> v1::ClockReport {
        if self.shared.is_some() {
            return v1::ClockReport::default();
        }
        let seconds = |size: Duration| i64::try_from(size.as_secs()).unwrap_or(i64::MAX);
        let ahead_seconds = match self.skew.filter(|skew| skew.0.size() >= MIN_SKEW).map(|skew| skew.0) {
            Some(Offset::Ahead(size)) => seconds(size),
            Some(Offset::Behind(size)) => -seconds(size),
            None => 0,
        };
        let handshakes = match self.fate {
            Some(Fate::Dropped) => v1::HandshakeFate::Dropped,
            Some(Fate::CalledBack) => v1::HandshakeFate::CalledBack,
            None => v1::HandshakeFate::Unspecified,
        };
        v1::ClockReport { ahead_seconds, handshakes: handshakes.into() }
    }

    /// The number of the process that holds the session. Of two in turn it says nothing.
    fn process(&self) -> Vec<u8> {
        let instance = self.instance.filter(|_| self.shared.is_none());
        instance.map(|instance| instance.0.to_vec()).unwrap_or_default()
    }

    fn to_wire(&self) -> v1::ClientReport {
        let report = v1::ClientReport {
            client: Some(self.client.clone()),
            phase: phase_to_wire(self.phase).into(),
            endpoint: self.endpoint.clone(),
            last_handshake: self.last_handshake.map(Into::into),
            last_receive: self.last_receive.map(Into::into),
            rx_bytes: self.rx_bytes,
            tx_bytes: self.tx_bytes,
            session: self.session,
            instance: self.process(),
            clock: Some(self.clock()).filter(|clock| *clock != v1::ClockReport::default()),
            hears_nothing: self.hears_nothing,
            endpoint_changes: self.endpoint_changes,
            last_change: self.last_change.clone(),
            last_rest: self.last_rest.map(Into::into),
            reach: self.reach.share().is_some().then(|| reach_to_wire(&self.reach)),
            key_on_two_machines: self.shared.map(|(since, shared)| shared_to_wire(since, shared)),
            ..v1::ClientReport::default()
        };
        match &self.nat_state {
            Some(nat_state) => nat_state.report(report),
            None => report,
        }
    }
}

fn shared_to_wire(since: SystemTime, shared: Shared) -> v1::KeyOnTwoMachines {
    let (first, second) = shared.places.unzip();
    let text = |place: Option<SocketAddr>| place.map(canonical).unwrap_or_default();
    v1::KeyOnTwoMachines { since: Some(since.into()), first: text(first), second: text(second) }
}

fn reach_to_wire(reach: &Reach) -> v1::ReachReport {
    v1::ReachReport {
        proven: reach.proven.try_into().ok(),
        unproven: reach.unproven.try_into().ok(),
        longest_gap: reach.longest_gap.try_into().ok(),
    }
}

/// Decides when a report is due. One per stream to the operator.
#[derive(Debug)]
pub struct Reporter {
    sent: HashMap<PublicKey, Facts>,
    full_due: Instant,
    dirty_since: Option<Instant>,
    own_changed: bool,
}

impl Reporter {
    /// A new stream: everything is due at once.
    pub fn new(now: Instant) -> Self {
        Reporter { sent: HashMap::new(), full_due: now, dirty_since: None, own_changed: false }
    }

    /// Something changed that the operator should know soon.
    pub fn handle_change(&mut self, now: Instant) {
        self.dirty_since.get_or_insert(now);
    }

    /// The gateway itself changed: a report goes up also when none of its clients did.
    pub fn handle_own_change(&mut self, now: Instant) {
        self.own_changed = true;
        self.handle_change(now);
    }

    /// When [`Self::take`] is due.
    pub fn poll_timeout(&self) -> Instant {
        self.dirty_since.map_or(self.full_due, |since| self.full_due.min(since + COALESCE))
    }

    /// The clients of the reports that are due, each with whether it is full: the last report of a heartbeat that
    /// fits into one message says all, larger ones come in parts.
    pub fn take(
        &mut self,
        now: Instant,
        all: &[(PublicKey, Observation)],
    ) -> Vec<(Vec<v1::ClientReport>, bool)> {
        if now < self.poll_timeout() {
            return Vec::new();
        }
        self.dirty_since = None;
        let full = now >= self.full_due;
        if full {
            self.full_due = now + HEARTBEAT;
        }
        let mut due = Vec::new();
        let mut sent = HashMap::with_capacity(all.len());
        for (key, observation) in all {
            let facts = observation.facts();
            if full || self.sent.get(key) != Some(&facts) {
                due.push(observation.to_wire());
            }
            sent.insert(*key, facts);
        }
        self.sent = sent;
        let own = std::mem::take(&mut self.own_changed);
        if full && due.len() <= MAX_CLIENTS {
            return vec![(due, true)];
        }
        if own && due.is_empty() {
            return vec![(due, false)];
        }
        due.chunks(MAX_CLIENTS).map(|part| (part.to_vec(), false)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::{desired::tests::client, nat_state::Move};

    fn observation(name: &str, rx_bytes: u64) -> Observation {
        Observation {
            client: client(name),
            phase: Phase::Connected,
            endpoint: "192.0.2.1:1000".into(),
            session: true,
            instance: None,
            endpoint_changes: 0,
            last_change: None,
            last_handshake: None,
            last_receive: None,
            rx_bytes,
            tx_bytes: 0,
            nat_state: None,
            last_rest: None,
            reach: Reach::default(),
            skew: None,
            fate: None,
            hears_nothing: false,
            shared: None,
        }
    }

    fn key(n: u8) -> PublicKey {
        PublicKey::from_bytes([n; 32])
    }

    #[test]
    fn a_new_stream_hears_everything_at_once_and_then_at_every_heartbeat() {
        let now = Instant::now();
        let mut reporter = Reporter::new(now);
        let all = [(key(1), observation("a", 0)), (key(2), observation("b", 0))];
        let reports = reporter.take(now, &all);
        assert_eq!((reports[0].0.len(), reports[0].1), (2, true));
        assert!(reporter.take(now + HEARTBEAT.saturating_sub(Duration::from_millis(1)), &all).is_empty());
        assert_eq!(reporter.poll_timeout(), now + HEARTBEAT);
        assert_eq!(reporter.take(now + HEARTBEAT, &all).len(), 1);
    }

    #[test]
    fn a_change_goes_up_within_a_quarter_of_a_second_and_alone() {
        let now = Instant::now();
        let mut reporter = Reporter::new(now);
        let mut all = [(key(1), observation("a", 0)), (key(2), observation("b", 0))];
        reporter.take(now, &all);
        all[1].1.endpoint = "192.0.2.1:2000".into();
        let later = now + Duration::from_secs(1);
        reporter.handle_change(later);
        reporter.handle_change(later + Duration::from_millis(200));
        assert_eq!(reporter.poll_timeout(), later + COALESCE);
        let reports = reporter.take(later + COALESCE, &all);
        assert_eq!(reports.len(), 1);
        assert!(!reports[0].1);
        assert_eq!(reports[0].0[0].client.as_ref().unwrap().name, "b");
    }

    #[test]
    fn counters_alone_make_no_report() {
        let now = Instant::now();
        let mut reporter = Reporter::new(now);
        reporter.take(now, &[(key(1), observation("a", 0))]);
        reporter.handle_change(now);
        assert!(reporter.take(now + COALESCE, &[(key(1), observation("a", 99))]).is_empty());
    }

    #[test]
    fn a_cause_that_an_agent_told_goes_up_without_any_other_change() {
        let (now, wall) = (Instant::now(), SystemTime::now());
        let mut reporter = Reporter::new(now);
        let mut all =
            [(key(1), Observation { nat_state: Some(Arc::new(NatState::new(wall))), ..observation("a", 0) })];
        reporter.take(now, &all);
        let place = Some("192.0.2.1:1".parse().unwrap());
        let lost = Move { at: wall, from: place, to: place, idle: None };
        Arc::make_mut(all[0].1.nat_state.as_mut().unwrap()).handle_move(lost);
        reporter.handle_change(now);
        let reports = reporter.take(now + COALESCE, &all);
        assert_eq!(reports[0].0[0].churn.as_ref().map(|churn| churn.count), Some(1));
    }

    #[test]
    fn a_change_of_the_gateway_itself_goes_up_without_any_client() {
        let now = Instant::now();
        let mut reporter = Reporter::new(now);
        reporter.take(now, &[]);
        reporter.handle_own_change(now);
        assert_eq!(reporter.take(now + COALESCE, &[]).len(), 1);
        reporter.handle_change(now + COALESCE);
        assert!(reporter.take(now + COALESCE * 2, &[]).is_empty());
    }

    #[test]
    fn a_message_never_holds_more_than_fits() {
        let now = Instant::now();
        let mut reporter = Reporter::new(now);
        let all: Vec<_> = (0..=MAX_CLIENTS)
            .map(|n| {
                let mut bytes = [0; 32];
                bytes[..8].copy_from_slice(&n.to_be_bytes());
                (PublicKey::from_bytes(bytes), observation("a", 0))
            })
            .collect();
        let sizes: Vec<_> =
            reporter.take(now, &all).iter().map(|(clients, full)| (clients.len(), *full)).collect();
        assert_eq!(sizes, [(MAX_CLIENTS, false), (1, false)]);
    }
}
