//! The gateway's side: which clients are there, judged by authenticated receives alone.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use super::{
    LONGEST_CERTAINTY, PROBE_GIVE_UP, Phase,
    reach::{Ledger, Reach},
};
use crate::PeerId;

/// A client that does not hear tries this often in vain before that is said: of an exchange of three messages one is lost often
/// enough, at 10 % loss with one attempt in five.
const VAIN: u32 = 4;
/// And over so long a time.
const VAIN_FOR: Duration = PROBE_GIVE_UP;
/// The last attempt may still succeed until then.
const CONFIRMATION: Duration = Duration::from_secs(2);

/// What one client promised to do while it has nothing to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expectation {
    /// A packet at least this often.
    Every(Duration),
    /// Nothing.
    Nothing,
}

impl Expectation {
    /// How long a receive proves that the client is there.
    pub fn certainty(self) -> Duration {
        match self {
            Expectation::Every(interval) => interval + PROBE_GIVE_UP,
            Expectation::Nothing => LONGEST_CERTAINTY,
        }
    }
}

/// What the data plane counted for one client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// Last authenticated packet.
    pub last_receive: Option<Instant>,
    /// When a handshake last ended with a session that the client has proven to have as well.
    pub last_handshake: Option<Instant>,
    /// Its handshakes since then that were answered, and that it did not finish.
    pub unconfirmed: Option<Unconfirmed>,
}

/// Handshakes of a client that were answered, and of which it finished none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unconfirmed {
    /// How many.
    pub count: u32,
    /// When the first was answered.
    pub first: Instant,
    /// When the last was.
    pub last: Instant,
}

impl Unconfirmed {
    /// One more was answered, after those `before`.
    pub fn and_another(before: Option<Self>, now: Instant) -> Self {
        before.map_or(Self { count: 1, first: now, last: now }, |before| Self {
            count: before.count.saturating_add(1),
            last: now,
            ..before
        })
    }

    /// Whether they show that nothing reaches the client: its packets prove only its own direction.
    fn shows_deafness(&self, now: Instant) -> bool {
        let lasts = self.last.saturating_duration_since(self.first) >= VAIN_FOR;
        lasts && self.count >= VAIN && (self.count > VAIN || now >= self.last + CONFIRMATION)
    }
}

#[derive(Debug)]
struct Peer {
    expectation: Expectation,
    sample: Sample,
    /// What the client's own agent says, and when it said it.
    told: Option<(Instant, Phase)>,
    /// It sleeps: when it last said so, and until when that is believed.
    rests: Option<(Instant, Instant)>,
    phase: Phase,
    deadline: Option<Instant>,
    ledger: Ledger,
}

impl Peer {
    fn is_deaf(&self, now: Instant) -> bool {
        self.sample.unconfirmed.is_some_and(|attempts| attempts.shows_deafness(now))
    }

    fn judge(&self, now: Instant) -> (Phase, Option<Instant>) {
        let Some(last) = self.sample.last_receive else { return (Phase::Disconnected, None) };
        let until = last + self.expectation.certainty();
        let heard = now < until;
        // What the client says of itself counts until it is heard again on the tunnel.
        match self.told {
            Some((_, phase @ (Phase::WaitingToReconnect | Phase::Dormant))) => {
                return (phase, heard.then_some(until));
            }
            Some((at, Phase::Disconnected)) if last <= at => return (Phase::Disconnected, None),
            _ => {}
        }
        let rests = self.rests.map(|(_, until)| until).filter(|until| now < *until);
        match (heard, self.sample.last_handshake) {
            (true, Some(_)) if !self.is_deaf(now) => (Phase::Connected, Some(until)),
            (true, _) => (Phase::WaitingToReconnect, Some(until)),
            (false, _) if rests.is_some() => (Phase::Standby, rests),
            (false, _) => (Phase::Dormant, None),
        }
    }
}

/// All clients of one gateway replica. Times are monotonic.
#[derive(Debug)]
pub struct GatewayHealth<K> {
    peers: HashMap<K, Peer>,
    deadlines: BTreeSet<(Instant, K)>,
    silent: Vec<K>,
    missing: BTreeSet<K>,
}

impl<K> Default for GatewayHealth<K> {
    fn default() -> Self {
        Self {
            peers: HashMap::new(),
            deadlines: BTreeSet::new(),
            silent: Vec::new(),
            missing: BTreeSet::new(),
        }
    }
}

impl<K: PeerId> GatewayHealth<K> {
    /// Nobody is known yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The clients that may connect: one that stays keeps what is known of it.
    pub fn handle_peers(&mut self, now: Instant, peers: &HashMap<K, Expectation>) {
        self.peers.retain(|key, _| peers.contains_key(key));
        self.silent.retain(|key| peers.contains_key(key));
        self.missing.retain(|key| peers.contains_key(key));
        self.deadlines.retain(|(_, key)| peers.contains_key(key));
        for (key, &expectation) in peers {
            let peer = self.peers.entry(*key).or_insert_with(|| Peer {
                expectation,
                sample: Sample::default(),
                told: None,
                rests: None,
                phase: Phase::Disconnected,
                deadline: None,
                ledger: Ledger::default(),
            });
            peer.expectation = expectation;
            self.settle(now, key);
        }
    }

    /// One client promises something else. A connected one is judged by it at its next deadline, which may be now.
    pub fn handle_expectation(&mut self, now: Instant, key: &K, expectation: Expectation) {
        let Some(peer) = self.peers.get_mut(key) else { return };
        peer.expectation = expectation;
        let (Some(old), Some(last)) = (peer.deadline, peer.sample.last_receive) else { return };
        let deadline = (last + expectation.certainty()).max(now);
        peer.deadline = Some(deadline);
        self.deadlines.remove(&(old, *key));
        self.deadlines.insert((deadline, *key));
    }

    /// What the data plane counted. Returns whether the client's phase changed.
    pub fn handle_sample(&mut self, now: Instant, key: &K, sample: Sample) -> bool {
        let Some(peer) = self.peers.get_mut(key) else { return false };
        let before = std::mem::replace(&mut peer.sample, sample);
        let is_found_deaf = peer.phase == Phase::Connected && peer.is_deaf(now);
        if before == sample && !is_found_deaf {
            return false;
        }
        if let (Phase::Connected, Some(at)) = (peer.judge(now).0, sample.last_receive) {
            peer.ledger.heard(at);
            self.missing.remove(key);
        }
        // A deadline that is still ahead is looked at again when it is due, which spares the set a change for
        // every packet.
        if peer.phase == Phase::Connected && !is_found_deaf && peer.deadline.is_some_and(|at| at > now) {
            return false;
        }
        self.settle(now, key)
    }

    /// What the client's own agent says of its path. Returns whether the client's phase changed.
    pub fn handle_told(&mut self, now: Instant, key: &K, phase: Phase) -> bool {
        let Some(peer) = self.peers.get_mut(key) else { return false };
        peer.told = Some((now, phase));
        self.settle(now, key)
    }

    /// The client lets its binding go and says so on its session, where it speaks again within `wake_after` and
    /// [`PROBE_GIVE_UP`]. Returns whether its phase changed.
    pub fn handle_rest(&mut self, now: Instant, key: &K, wake_after: Duration) -> bool {
        let Some(peer) = self.peers.get_mut(key) else { return false };
        peer.rests = Some((now, now + wake_after + PROBE_GIVE_UP));
        if peer.judge(now).0 == Phase::Standby {
            peer.ledger.heard(now);
            self.missing.remove(key);
        }
        self.settle(now, key)
    }

    /// Something passed on the session of a client that may sleep: it speaks again within `wake_after` of that.
    pub fn handle_stir(&mut self, now: Instant, key: &K, wake_after: Duration) {
        let Some(peer) = self.peers.get_mut(key) else { return };
        if let Some((_, until)) = &mut peer.rests {
            *until = now + wake_after + PROBE_GIVE_UP;
            self.settle(now, key);
        }
    }

    /// It is not to be woken by its session any more: it keeps its binding again, or was called and did not come. Returns
    /// whether its phase changed.
    pub fn handle_awake(&mut self, now: Instant, key: &K) -> bool {
        let Some(peer) = self.peers.get_mut(key) else { return false };
        peer.rests = None;
        self.settle(now, key)
    }

    /// When a sleeping client was last proven to be there, by its session.
    pub fn rested(&self, key: &K) -> Option<Instant> {
        self.peers.get(key).and_then(|peer| peer.rests).map(|(at, _)| at)
    }

    /// The client's session stream ended without a word: what it said last is no longer known to be so.
    pub fn handle_session_end(&mut self, now: Instant, key: &K) -> bool {
        let Some(peer) = self.peers.get_mut(key) else { return false };
        peer.rests = None;
        if peer.told.is_some_and(|(_, phase)| phase == Phase::Disconnected) {
            return false;
        }
        peer.told = None;
        self.settle(now, key)
    }

    /// When a client may stop being connected. Hand in fresh samples before [`Self::handle_timeout`].
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.deadlines.first().map(|(at, _)| *at)
    }

    /// Time passed. Returns whether any client's phase changed.
    pub fn handle_timeout(&mut self, now: Instant) -> bool {
        let mut changed = false;
        while let Some((at, key)) = self.deadlines.first().copied().filter(|(at, _)| *at <= now) {
            self.deadlines.remove(&(at, key));
            changed |= self.settle(now, &key);
        }
        changed
    }

    /// Clients that are not heard any more, since the last call.
    pub fn take_silent(&mut self) -> Vec<K> {
        std::mem::take(&mut self.silent)
    }

    /// The phase of a client, [`Phase::Disconnected`] for one that is not known.
    pub fn phase(&self, key: &K) -> Phase {
        self.peers.get(key).map_or(Phase::Disconnected, |peer| peer.phase)
    }

    /// Whether a client is not connected as it finishes none of its handshakes: what is sent to it does not arrive.
    pub fn hears_nothing(&self, now: Instant, key: &K) -> bool {
        let waiting = self.peers.get(key).filter(|peer| peer.phase == Phase::WaitingToReconnect);
        waiting.is_some_and(|peer| peer.is_deaf(now))
    }

    /// For how long a client was proven reachable, and for how long it was not, up to now.
    pub fn reach(&self, key: &K) -> Reach {
        self.peers.get(key).map(|peer| peer.ledger.reach()).unwrap_or_default()
    }

    /// Brings the accounts of those who are missing up to date.
    pub fn account(&mut self, now: Instant) {
        let peers = &mut self.peers;
        self.missing.retain(|key| {
            let Some(peer) = peers.get_mut(key) else { return false };
            peer.ledger.missed(now);
            peer.ledger.is_missing()
        });
    }

    /// How many clients are in each phase.
    pub fn count(&self) -> HashMap<Phase, usize> {
        let mut counts = HashMap::new();
        for peer in self.peers.values() {
            *counts.entry(peer.phase).or_default() += 1;
        }
        counts
    }

    fn settle(&mut self, now: Instant, key: &K) -> bool {
        let Some(peer) = self.peers.get_mut(key) else { return false };
        let (phase, deadline) = peer.judge(now);
        if let Some(old) = std::mem::replace(&mut peer.deadline, deadline) {
            self.deadlines.remove(&(old, *key));
        }
        if let Some(deadline) = deadline {
            self.deadlines.insert((deadline, *key));
        }
        let before = std::mem::replace(&mut peer.phase, phase);
        match phase {
            Phase::Disconnected => {
                peer.ledger.left();
                self.missing.remove(key);
            }
            // What the client says of itself, or silence, beyond what the last packet proves.
            Phase::Dormant | Phase::WaitingToReconnect
                if matches!(before, Phase::Connected | Phase::Standby) =>
            {
                peer.ledger.missed(now);
                self.missing.insert(*key);
            }
            Phase::Connected | Phase::Standby | Phase::Dormant | Phase::WaitingToReconnect => {}
        }
        if matches!(before, Phase::Connected | Phase::Standby) && phase == Phase::Dormant {
            self.silent.push(*key);
        }
        before != phase
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const INTERVAL: Duration = Duration::from_secs(25);
    const SECOND: Duration = Duration::from_secs(1);

    fn key() -> u8 {
        3
    }

    fn with(expectation: Expectation) -> (GatewayHealth<u8>, Instant) {
        let now = Instant::now();
        let mut health = GatewayHealth::new();
        health.handle_peers(now, &HashMap::from([(key(), expectation)]));
        (health, now)
    }

    fn heard(at: Instant) -> Sample {
        Sample { last_receive: Some(at), last_handshake: Some(at), unconfirmed: None }
    }

    #[test]
    fn a_client_that_was_never_heard_is_disconnected() {
        let (health, _) = with(Expectation::Every(INTERVAL));
        assert_eq!(health.phase(&key()), Phase::Disconnected);
    }

    #[test]
    fn a_handshake_that_the_client_has_not_finished_is_not_a_connection() {
        let (mut health, now) = with(Expectation::Every(INTERVAL));
        health.handle_sample(now, &key(), Sample { last_handshake: None, ..heard(now) });
        assert_eq!(health.phase(&key()), Phase::WaitingToReconnect);
        assert!(health.handle_sample(now, &key(), heard(now)));
        assert_eq!(health.phase(&key()), Phase::Connected);
    }

    #[test]
    fn silence_of_an_interval_and_eight_seconds_ends_a_connection() {
        let (mut health, now) = with(Expectation::Every(INTERVAL));
        health.handle_sample(now, &key(), heard(now));
        let end = now + INTERVAL + PROBE_GIVE_UP;
        assert_eq!(health.poll_timeout(), Some(end));
        assert!(!health.handle_timeout(now + INTERVAL));
        assert_eq!(health.phase(&key()), Phase::Connected);
        assert!(health.handle_timeout(end));
        assert_eq!(health.phase(&key()), Phase::Dormant);
        assert_eq!((health.take_silent(), health.take_silent()), (vec![key()], vec![]));
    }

    #[test]
    fn a_sleeper_is_standby_once_its_packets_prove_nothing_any_more_and_for_as_long_as_its_session_does() {
        let (mut health, now) = with(Expectation::Every(INTERVAL));
        health.handle_sample(now, &key(), heard(now));
        let hour = Duration::from_hours(1);
        assert!(!health.handle_rest(now, &key(), hour));
        assert_eq!(health.phase(&key()), Phase::Connected);
        assert!(health.handle_timeout(now + INTERVAL + PROBE_GIVE_UP));
        assert_eq!((health.phase(&key()), health.rested(&key())), (Phase::Standby, Some(now)));
        // It spoke again, and then did not.
        health.handle_rest(now + hour, &key(), hour);
        let end = now + hour * 2 + PROBE_GIVE_UP;
        assert_eq!(health.poll_timeout(), Some(end));
        assert!(health.handle_timeout(end));
        assert_eq!((health.phase(&key()), health.take_silent()), (Phase::Dormant, vec![key()]));
        health.account(end);
        let reach = health.reach(&key());
        assert_eq!(
            (reach.proven, reach.unproven),
            (hour, Duration::from_mins(15)),
            "of a gap no more counts"
        );
    }

    #[test]
    fn a_sleeper_is_lost_with_its_session_or_when_it_does_not_come() {
        type Fault = fn(&mut GatewayHealth<u8>, Instant) -> bool;
        let ended: Fault = |health, now| health.handle_session_end(now, &key());
        let called: Fault = |health, now| health.handle_awake(now, &key());
        for fault in [ended, called] {
            let (mut health, now) = with(Expectation::Every(INTERVAL));
            health.handle_sample(now, &key(), heard(now));
            health.handle_rest(now, &key(), Duration::from_hours(1));
            let later = now + INTERVAL * 2;
            health.handle_timeout(later);
            assert_eq!(health.phase(&key()), Phase::Standby);
            assert!(fault(&mut health, later));
            assert_eq!(health.phase(&key()), Phase::Dormant);
            assert!(health.handle_sample(later, &key(), heard(later)));
            assert_eq!(health.phase(&key()), Phase::Connected);
        }
    }

    #[test]
    fn another_promise_is_judged_by_fresh_figures() {
        let (mut health, now) = with(Expectation::Every(INTERVAL * 4));
        health.handle_sample(now, &key(), heard(now));
        let later = now + INTERVAL * 3;
        health.handle_expectation(later, &key(), Expectation::Every(INTERVAL));
        assert_eq!((health.phase(&key()), health.poll_timeout()), (Phase::Connected, Some(later)));
        health.handle_sample(later, &key(), heard(later));
        health.handle_timeout(later);
        assert_eq!(health.phase(&key()), Phase::Connected);
        assert_eq!(health.poll_timeout(), Some(later + INTERVAL + PROBE_GIVE_UP));
        health.handle_expectation(later, &key(), Expectation::Every(INTERVAL * 8));
        assert_eq!(health.poll_timeout(), Some(later + INTERVAL * 8 + PROBE_GIVE_UP));
    }

    #[test]
    fn a_long_interval_has_its_eight_seconds_as_well() {
        let (mut health, now) = with(Expectation::Every(INTERVAL * 40));
        health.handle_sample(now, &key(), heard(now));
        assert_eq!(health.poll_timeout(), Some(now + INTERVAL * 40 + PROBE_GIVE_UP));
    }

    #[test]
    fn nothing_promised_is_never_trusted_longer_than_three_minutes() {
        let (mut health, now) = with(Expectation::Nothing);
        health.handle_sample(now, &key(), heard(now));
        assert_eq!(health.poll_timeout(), Some(now + LONGEST_CERTAINTY));
    }

    #[test]
    fn a_goodbye_counts_at_once_and_until_the_client_is_heard_again() {
        let (mut health, now) = with(Expectation::Every(INTERVAL));
        health.handle_sample(now, &key(), heard(now));
        assert!(health.handle_told(now + SECOND, &key(), Phase::Disconnected));
        assert_eq!(health.phase(&key()), Phase::Disconnected);
        health.handle_session_end(now + SECOND, &key());
        assert_eq!(health.phase(&key()), Phase::Disconnected);
        health.handle_sample(now + SECOND * 2, &key(), heard(now + SECOND * 2));
        assert_eq!(health.phase(&key()), Phase::Connected);
    }

    #[test]
    fn a_client_that_hears_nothing_is_not_connected_however_much_it_sends() {
        let (mut health, now) = with(Expectation::Every(INTERVAL));
        health.handle_sample(now, &key(), heard(now));
        health.handle_told(now, &key(), Phase::WaitingToReconnect);
        health.handle_sample(now + SECOND, &key(), heard(now + SECOND));
        assert_eq!(health.phase(&key()), Phase::WaitingToReconnect);
        health.handle_told(now + SECOND, &key(), Phase::Connected);
        assert_eq!(health.phase(&key()), Phase::Connected);
    }

    /// What is counted of a client whose handshakes, begun every five seconds, it never finishes.
    fn in_vain(since: Instant, count: u32) -> Sample {
        let last = since + SECOND * 5 * (count - 1);
        let unconfirmed = Some(Unconfirmed { count, first: since, last });
        Sample { last_receive: Some(last), last_handshake: Some(since), unconfirmed }
    }

    #[test]
    fn a_client_whose_handshakes_come_to_nothing_is_not_connected_until_one_does() {
        let (mut health, now) = with(Expectation::Every(INTERVAL));
        health.handle_sample(now, &key(), heard(now));
        for count in 1..=4 {
            let sample = in_vain(now, count);
            assert!(!health.handle_sample(sample.last_receive.unwrap(), &key(), sample));
            assert_eq!(health.phase(&key()), Phase::Connected, "{count}: it may hear the next answer");
        }
        let fourth = now + SECOND * 15;
        assert!(health.handle_sample(fourth + CONFIRMATION, &key(), in_vain(now, 4)), "nothing new came");
        assert_eq!(health.phase(&key()), Phase::WaitingToReconnect);
        assert!(!health.handle_sample(now + SECOND * 20, &key(), in_vain(now, 5)));
        assert_eq!(health.phase(&key()), Phase::WaitingToReconnect, "an attempt more is no reason for hope");
        assert!(health.hears_nothing(now + SECOND * 20, &key()));
        assert!(health.handle_sample(now + SECOND * 21, &key(), heard(now + SECOND * 21)));
        assert_eq!(health.phase(&key()), Phase::Connected);
    }

    #[test]
    fn attempts_in_vain_within_seconds_or_few_of_them_show_nothing() {
        for (count, lasts) in [(3, SECOND * 60), (40, SECOND * 7)] {
            let (mut health, now) = with(Expectation::Every(INTERVAL));
            let unconfirmed = Some(Unconfirmed { count, first: now, last: now + lasts });
            let sample = Sample { unconfirmed, ..heard(now + lasts) };
            health.handle_sample(now + lasts + CONFIRMATION, &key(), sample);
            assert_eq!(health.phase(&key()), Phase::Connected, "{count} within {lasts:?}");
        }
    }

    #[test]
    fn a_client_that_is_taken_away_leaves_no_deadline_behind() {
        let (mut health, now) = with(Expectation::Every(INTERVAL));
        health.handle_sample(now, &key(), heard(now));
        health.handle_peers(now, &HashMap::new());
        assert_eq!(health.poll_timeout(), None);
        assert_eq!(health.phase(&key()), Phase::Disconnected);
    }

    #[test]
    fn reach_is_accounted_from_the_last_packet_before_a_gap_and_a_goodbye_is_none() {
        let (mut health, now) = with(Expectation::Every(INTERVAL));
        health.handle_sample(now, &key(), heard(now));
        health.handle_sample(now + INTERVAL, &key(), heard(now + INTERVAL));
        health.handle_timeout(now + INTERVAL * 2 + PROBE_GIVE_UP);
        assert_eq!(health.reach(&key()).unproven, INTERVAL + PROBE_GIVE_UP);
        health.account(now + INTERVAL * 3 + PROBE_GIVE_UP);
        assert_eq!(health.reach(&key()).unproven, INTERVAL * 2 + PROBE_GIVE_UP);
        let back = now + INTERVAL * 4;
        health.handle_sample(back, &key(), heard(back));
        health.handle_told(back + SECOND, &key(), Phase::Disconnected);
        health.account(back + INTERVAL);
        let reach = health.reach(&key());
        assert_eq!((reach.proven, reach.unproven, reach.longest_gap), (INTERVAL, INTERVAL * 3, INTERVAL * 3));
    }

    proptest! {
        #[test]
        fn connected_means_heard_within_the_certainty(gaps in proptest::collection::vec(0u64..120, 1..60)) {
            let (mut health, mut now) = with(Expectation::Every(INTERVAL));
            for gap in gaps {
                health.handle_sample(now, &key(), heard(now));
                prop_assert_eq!(health.phase(&key()), Phase::Connected);
                now += Duration::from_secs(gap);
                health.handle_timeout(now);
                let expected = Duration::from_secs(gap) < INTERVAL + PROBE_GIVE_UP;
                prop_assert_eq!(health.phase(&key()) == Phase::Connected, expected);
            }
        }
    }
}
