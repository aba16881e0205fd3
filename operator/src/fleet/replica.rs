//! One replica: what it was told, what it said, and whether it can be heard.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use pinhole_crds::PathProof;
use pinhole_proto::{
    bounds::{self, LONGEST_SPAN, Word},
    v1::{self, Ack, DesiredState, GatewayReport, NatRestart},
};
use tokio::sync::watch;

use super::{
    Change, ClientKey, GatewayKey, Hearing, PROOF_FRESH, SILENT_AFTER, Sighting,
    shared_key::{Heard, Place, Process},
    timestamp,
};

/// A proof of a replica's data path, at the time of the view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proof {
    /// How it was proven.
    pub kind: PathProof,
    /// How long ago.
    pub age: Duration,
}

/// What the fleet knows of one replica.
#[derive(Clone, Debug, PartialEq)]
pub struct ReplicaView {
    /// Whether it holds a stream to this operator.
    pub attached: bool,
    /// Whether it can be heard.
    pub hearing: Hearing,
    /// Time since it last said anything. None: never, to this operator.
    pub silent_for: Option<Duration>,
    /// Its strongest fresh proof; the last one when none is fresh.
    pub proof: Option<Proof>,
    /// What it could not set up: category and text, sorted.
    pub impairments: Vec<(String, String)>,
    /// Address translators in front of its clients that lost their state, as it last saw.
    pub nat_restarts: Vec<NatRestart>,
    /// Revision that it was last told to run, 0 for none.
    pub published: u64,
    /// Revision that it runs, 0 for none.
    pub applied: u64,
    /// Why it does not run a newer one: category and text.
    pub refusal: Option<(String, String)>,
}

/// Clients of which a replica may speak before anything was planned for it, as when the lead changed: the most that one has.
const MOST_UNPLANNED: usize = 100_000;

/// Clients of which it may speak beyond those that it was told of last.
pub(crate) const JUST_GONE: usize = 1024;

/// What it last said of one client.
#[derive(Debug)]
struct Said {
    sighting: Sighting,
    /// When the client's last authenticated packet came, by this operator's clock. `None`: none did, or the replica does not say.
    at: Option<Instant>,
    process: Option<Process>,
}

/// A client of which an authenticated packet came since the last one that was told.
#[derive(Debug)]
pub(super) struct HeardAnew {
    pub(super) uid: String,
    /// When that one had come.
    pub(super) since: Instant,
}

#[derive(Debug)]
pub(super) struct Replica {
    desired: watch::Sender<Option<Arc<DesiredState>>>,
    /// Never publish a revision up to this one: the replica has seen it from an operator before.
    floor: u64,
    attachment: Option<u64>,
    heard: Option<Instant>,
    was_live: bool,
    /// The last proof of each kind, the strongest kind first.
    proofs: [(PathProof, Option<Instant>); 3],
    told_proof: Option<PathProof>,
    impairments: Vec<(String, String)>,
    nat_restarts: Vec<NatRestart>,
    applied: u64,
    refusal: Option<(String, String)>,
    clients: HashMap<String, Said>,
}

impl Default for Replica {
    fn default() -> Self {
        let kinds = [PathProof::ClientTraffic, PathProof::PublishedEndpoint, PathProof::PodAddress];
        Self {
            desired: watch::Sender::default(),
            floor: 0,
            attachment: None,
            heard: None,
            was_live: false,
            proofs: kinds.map(|kind| (kind, None)),
            told_proof: None,
            impairments: Vec::new(),
            nat_restarts: Vec::new(),
            applied: 0,
            refusal: None,
            clients: HashMap::new(),
        }
    }
}

impl Replica {
    pub(super) fn publish(&mut self, mut desired: DesiredState, clock: u64) {
        let current = self.desired.borrow().clone();
        desired.revision = match &current {
            Some(current) => current.revision,
            None => clock.max(self.floor + 1),
        };
        match current {
            Some(current) if *current == desired => return,
            Some(_) => desired.revision += 1,
            None => {}
        }
        self.desired.send_replace(Some(Arc::new(desired)));
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<Option<Arc<DesiredState>>> {
        self.desired.subscribe()
    }

    pub(super) fn attach(&mut self, id: u64, running: u64, now: Instant) {
        // No clock and no number of changes leads beyond; keeps arithmetic on what a replica claims from overflowing.
        let running = running.min(u64::MAX / 2);
        self.attachment = Some(id);
        self.heard = Some(now);
        self.was_live = true;
        self.applied = running;
        self.refusal = None;
        self.floor = self.floor.max(running);
        // A clock that went back must not leave a replica on an older operator's snapshot.
        self.desired.send_if_modified(|current| match current {
            Some(state) if state.revision < running => {
                Arc::make_mut(state).revision = running + 1;
                true
            }
            _ => false,
        });
    }

    pub(super) fn detach(&mut self) {
        self.attachment = None;
    }

    pub(super) fn is_attached_as(&self, id: u64) -> bool {
        self.attachment == Some(id)
    }

    pub(super) fn report(
        &mut self,
        gateway: &GatewayKey,
        report: GatewayReport,
        now: Instant,
    ) -> (BTreeSet<Change>, Vec<HeardAnew>) {
        let mut changes = BTreeSet::new();
        self.prove(proof_of(&report, now));
        let proof = self.proof(now).filter(|p| p.age < PROOF_FRESH).map(|p| p.kind);
        let impairments = impairments_of(report.impairments);
        let revived = !self.was_live;
        let is_known = |new: &NatRestart| self.nat_restarts.iter().any(|old| same(old, new));
        let restarted = report.nat_restarts.iter().any(|new| !is_known(new));
        if revived || restarted || proof != self.told_proof || impairments != self.impairments {
            changes.insert(Change::Gateway(gateway.clone()));
        }
        self.heard = Some(now);
        self.was_live = true;
        self.told_proof = proof;
        self.impairments = impairments;
        self.nat_restarts = report.nat_restarts;
        let ago =
            |at: Option<prost_types::Timestamp>| age(report.sent_at, at).and_then(|age| now.checked_sub(age));
        let heard = self.see((report.clients, report.full), ago, &mut changes);
        if revived {
            changes.extend(self.clients().map(Change::Client));
        }
        (changes, heard)
    }

    fn prove(&mut self, proof: Option<(PathProof, Instant)>) {
        let Some((kind, at)) = proof else { return };
        if let Some((_, last)) = self.proofs.iter_mut().find(|(k, _)| *k == kind) {
            *last = (*last).max(Some(at));
        }
    }

    fn proof(&self, now: Instant) -> Option<Proof> {
        let made = self.proofs.iter().filter_map(|(kind, at)| {
            at.map(|at| Proof { kind: *kind, age: now.saturating_duration_since(at) })
        });
        made.clone().find(|p| p.age < PROOF_FRESH).or_else(|| made.min_by_key(|p| p.age))
    }

    fn see(
        &mut self,
        (reports, full): (Vec<v1::ClientReport>, bool),
        when: impl Fn(Option<prost_types::Timestamp>) -> Option<Instant>,
        changes: &mut BTreeSet<Change>,
    ) -> Vec<HeardAnew> {
        let mut anew = Vec::new();
        let most = self.most_clients();
        let mut old = if full { std::mem::take(&mut self.clients) } else { HashMap::new() };
        for report in reports {
            let Some(uid) = report.client.as_ref().map(|c| c.uid.clone()) else { continue };
            let (at, process) = (when(report.last_receive), report.instance.as_slice().try_into().ok());
            let Some(sighting) = Sighting::new(report) else { continue };
            let before = old.remove(&uid).or_else(|| self.clients.remove(&uid));
            if before.is_none() && self.clients.len() >= most {
                continue;
            }
            if let (Some(since), Some(at)) = (before.as_ref().and_then(|before| before.at), at)
                && since < at
            {
                anew.push(HeardAnew { uid: uid.clone(), since });
            }
            if before.is_none_or(|before| sighting.is_news(&before.sighting)) {
                let is_there = sighting.last_receive.is_some();
                let change = if is_there { Change::Heard } else { Change::Client };
                changes.insert(change(sighting.client.clone()));
            }
            self.clients.insert(uid, Said { sighting, at, process });
        }
        changes.extend(old.into_values().map(|said| Change::Client(said.sighting.client)));
        anew
    }

    /// Of so many clients a replica may speak: those that it was told of, and some that were just taken away.
    fn most_clients(&self) -> usize {
        let told = self.desired.borrow().as_ref().map(|desired| desired.peers.len());
        told.map_or(MOST_UNPLANNED, |told| told + JUST_GONE)
    }

    pub(super) fn acked(&mut self, gateway: &GatewayKey, ack: Ack, now: Instant) -> BTreeSet<Change> {
        self.heard = Some(now);
        let refusal = Some((ack.category, ack.error))
            .filter(|(category, error)| !category.is_empty() || !error.is_empty());
        if refusal.is_none() {
            self.applied = ack.revision;
        }
        if refusal == self.refusal {
            return BTreeSet::new();
        }
        self.refusal = refusal;
        BTreeSet::from([Change::Gateway(gateway.clone())])
    }

    pub(super) fn hearing(&self, since: Instant, now: Instant) -> Hearing {
        if self.heard.is_some_and(|heard| now.saturating_duration_since(heard) < SILENT_AFTER) {
            Hearing::Live
        } else if self.heard.is_none() && now.saturating_duration_since(since) < SILENT_AFTER {
            Hearing::Waiting
        } else {
            Hearing::Silent
        }
    }

    /// True once, when the replica was heard until lately and is not any more.
    pub(super) fn crossed_silence(&mut self, since: Instant, now: Instant) -> bool {
        let crossed = self.was_live && self.hearing(since, now) == Hearing::Silent;
        self.was_live &= !crossed;
        crossed
    }

    pub(super) fn view(&self, since: Instant, now: Instant) -> ReplicaView {
        ReplicaView {
            attached: self.attachment.is_some(),
            hearing: self.hearing(since, now),
            silent_for: self.heard.map(|heard| now.saturating_duration_since(heard)),
            proof: self.proof(now),
            impairments: self.impairments.clone(),
            nat_restarts: self.nat_restarts.clone(),
            published: self.desired.borrow().as_ref().map_or(0, |d| d.revision),
            applied: self.applied,
            refusal: self.refusal.clone(),
        }
    }

    pub(super) fn sighting(&self, uid: &str) -> Option<&Sighting> {
        self.clients.get(uid).map(|said| &said.sighting)
    }

    /// The client as it was heard last by this replica, which is called `name`.
    pub(super) fn heard(&self, name: &str, uid: &str) -> Option<Heard> {
        let said = self.clients.get(uid)?;
        let place = Place { replica: name.to_owned(), endpoint: said.sighting.endpoint.clone() };
        Some(Heard { place, at: said.at?, session: said.sighting.session, process: said.process })
    }

    pub(super) fn clients(&self) -> impl Iterator<Item = ClientKey> {
        self.clients.values().map(|said| said.sighting.client.clone())
    }

    pub(super) fn forget(&mut self, uid: &str) {
        self.clients.remove(uid);
    }
}

/// How exactly a replica dates what it saw.
const DATE_SECONDS: u64 = 60;

/// Whether two words on an address translator are of one restart of it.
fn same(old: &NatRestart, new: &NatRestart) -> bool {
    let second = |restart: &NatRestart| restart.at.map_or(0, |at| at.seconds);
    old.public_address == new.public_address
        && (old.changed, old.clients) == (new.changed, new.clients)
        && second(old).abs_diff(second(new)) < DATE_SECONDS
}

/// How long before a report something was, both by the replica's clock.
fn age(sent: Option<prost_types::Timestamp>, at: Option<prost_types::Timestamp>) -> Option<Duration> {
    let (sent, at) = (timestamp(sent?)?, timestamp(at?)?);
    Duration::try_from(sent.duration_since(at)).ok().filter(|age| *age <= LONGEST_SPAN)
}

fn proof_of(report: &GatewayReport, now: Instant) -> Option<(PathProof, Instant)> {
    let kind = match Word::from(report.path_proof) {
        Word::Known(v1::PathProof::ClientTraffic) => PathProof::ClientTraffic,
        Word::Known(v1::PathProof::PublishedEndpoint) => PathProof::PublishedEndpoint,
        Word::Known(v1::PathProof::PodAddress) => PathProof::PodAddress,
        // What a newer way of proving proves is not known.
        Word::Known(v1::PathProof::Unspecified) | Word::Newer(_) => return None,
    };
    let age = bounds::span(report.path_proof_age, LONGEST_SPAN)?;
    Some((kind, now.checked_sub(age)?))
}

fn impairments_of(impairments: Vec<v1::Impairment>) -> Vec<(String, String)> {
    let mut all: Vec<_> = impairments.into_iter().map(|i| (i.category, i.message)).collect();
    all.sort();
    all.dedup();
    all
}
