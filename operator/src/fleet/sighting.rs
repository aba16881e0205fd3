use k8s_openapi::jiff::Timestamp;
use pinhole_proto::v1::{ClientReport, EndpointChange, Phase};

/// A handshake time is news only when the last one that was told is this much older: sessions re-key every two
/// minutes, and the API server need not hear of each.
pub const HANDSHAKE_GRAIN_SECONDS: i64 = 600;

/// What one replica last said of a client.
#[derive(Clone, Debug, PartialEq)]
pub struct Sighting {
    /// Namespace and name of the client.
    pub client: super::ClientKey,
    /// Its phase.
    pub phase: Phase,
    /// Public `ip:port` that its packets come from.
    pub endpoint: Option<String>,
    /// Last completed handshake.
    pub last_handshake: Option<Timestamp>,
    /// Last authenticated receive.
    pub last_receive: Option<Timestamp>,
    /// Whether its agent holds a session stream to the replica.
    pub session: bool,
    /// Moves of its NAT mapping since the replica started.
    pub endpoint_changes: u64,
    /// The last move.
    pub last_change: Option<EndpointChange>,
}

impl Sighting {
    pub(super) fn new(report: ClientReport) -> Option<Self> {
        let phase = report.phase();
        Some(Self {
            client: super::ClientKey::from(report.client.as_ref()?),
            phase,
            endpoint: Some(report.endpoint).filter(|e| !e.is_empty()),
            last_handshake: report.last_handshake.and_then(timestamp),
            last_receive: report.last_receive.and_then(timestamp),
            session: report.session,
            endpoint_changes: report.endpoint_changes,
            last_change: report.last_change,
        })
    }

    /// Orders sightings of one client by different replicas: the most recent receive wins.
    pub(super) fn recency(&self) -> (Option<Timestamp>, Option<Timestamp>) {
        (self.last_receive, self.last_handshake)
    }

    /// Whether a person, or the object's status, would want to know of the step from `old` to `self`.
    pub(super) fn is_news(&self, old: &Self) -> bool {
        self.phase != old.phase
            || self.endpoint != old.endpoint
            || self.session != old.session
            || self.endpoint_changes != old.endpoint_changes
            || self.last_receive.is_some() != old.last_receive.is_some()
            || grain(self.last_handshake) != grain(old.last_handshake)
    }
}

fn grain(time: Option<Timestamp>) -> Option<i64> {
    time.map(|t| t.as_second().div_euclid(HANDSHAKE_GRAIN_SECONDS))
}

/// A time of the wire. None when it is out of range, as a hostile or broken replica could send.
pub fn timestamp(time: prost_types::Timestamp) -> Option<Timestamp> {
    Timestamp::new(time.seconds, time.nanos).ok()
}
