//! One key on two machines of which each talks to a replica of its own. Pure.
//!
//! A machine talks to one replica at a time. One that moves is heard by the other from then on, and one whose gateway fails comes
//! back once or twice. So what shows two of them is that they are heard in turn, again and again. Of agents, which move by
//! themselves, it takes more than that: a process has a number, and two that are heard in turn run on two machines.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use super::ClientKey;

/// So many returns show two machines where each is another process;
const RETURNS_OF_PROCESSES: usize = 2;
/// so many where nothing is known of processes: somebody may try two configurations on one machine.
const RETURNS: usize = 3;
/// The first absence begins so long before the last return: a network that loses most of what is sent lasts no longer.
const LASTING: Duration = Duration::from_secs(4);
/// Returns that are farther apart are none of a series: longer than a stock client's usual keepalive takes twice.
const WINDOW: Duration = Duration::from_mins(1);
/// It is over when nothing showed it for so long.
const OVER: Duration = Duration::from_mins(5);

/// A process of an agent, by the number that it chose.
pub(super) type Process = [u8; 16];

/// Where one of the machines is heard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// By which replica.
    pub replica: String,
    /// From which public `ip:port`.
    pub endpoint: Option<String>,
}

/// One key on two machines, each at a replica of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedKey {
    /// Where the two were when it was certain first, by the replicas' names.
    pub places: [Place; 2],
}

/// A client as a replica heard it last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Heard {
    /// By whom, and from where.
    pub(super) place: Place,
    /// When its last authenticated packet came.
    pub(super) at: Instant,
    /// Its agent holds a session there.
    pub(super) session: bool,
    /// The process that holds it, where it says so.
    pub(super) process: Option<Process>,
}

#[derive(Debug)]
struct Series {
    client: ClientKey,
    count: usize,
    since: Instant,
    last: Instant,
    shared: Option<SharedKey>,
}

/// All clients of one gateway that were heard by one replica, by another one, and by the first again.
#[derive(Debug, Default)]
pub(super) struct SharedKeys(HashMap<String, Series>);

impl SharedKeys {
    /// The client with this UID was heard by one replica, then by `away`, then by the first one again: `back`. Whether it is
    /// news that two machines use its key.
    pub(super) fn handle_return(
        &mut self,
        uid: &str,
        client: &ClientKey,
        away: &Heard,
        back: &Heard,
    ) -> bool {
        let Some(needed) = returns_needed(away, back) else { return false };
        let new = || Series { client: client.clone(), count: 0, since: away.at, last: back.at, shared: None };
        let series = self.0.entry(uid.to_owned()).or_insert_with(new);
        if series.shared.is_none() && back.at.saturating_duration_since(series.last) > WINDOW {
            *series = new();
        }
        series.count = series.count.saturating_add(1);
        series.last = series.last.max(back.at);
        let lasts = series.last.saturating_duration_since(series.since) >= LASTING;
        if series.shared.is_some() || series.count < needed || !lasts {
            return false;
        }
        let mut places = [away.place.clone(), back.place.clone()];
        places.sort_by(|one, other| one.replica.cmp(&other.replica));
        series.shared = Some(SharedKey { places });
        true
    }

    /// Where the client's machines are, if there are two.
    pub(super) fn of(&self, uid: &str) -> Option<&SharedKey> {
        self.0.get(uid)?.shared.as_ref()
    }

    /// UIDs of the clients of which there are two.
    pub(super) fn clients(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter(|(_, series)| series.shared.is_some()).map(|(uid, _)| uid.as_str())
    }

    /// Forgets what is over. The clients of which that is news.
    pub(super) fn handle_timeout(&mut self, now: Instant) -> Vec<ClientKey> {
        let mut over = Vec::new();
        self.0.retain(|_, series| {
            let lasting = if series.shared.is_some() { OVER } else { WINDOW };
            let goes_on = now.saturating_duration_since(series.last) <= lasting;
            if !goes_on && series.shared.is_some() {
                over.push(series.client.clone());
            }
            goes_on
        });
        over
    }

    /// Forgets a client.
    pub(super) fn forget(&mut self, uid: &str) {
        self.0.remove(uid);
    }

    /// How many clients are remembered.
    #[cfg(test)]
    pub(super) fn entries(&self) -> usize {
        self.0.len()
    }
}

/// How many returns show that what is heard at the two places are two machines. `None`: they may be one, however often.
fn returns_needed(one: &Heard, other: &Heard) -> Option<usize> {
    if one.place.endpoint.is_some() && one.place.endpoint == other.place.endpoint {
        return None;
    }
    match (one.process, other.process) {
        (Some(one), Some(other)) => (one != other).then_some(RETURNS_OF_PROCESSES),
        // An agent that tries its gateways in turn has a session with one of them at most.
        _ if one.session || other.session => None,
        _ => Some(RETURNS),
    }
}
