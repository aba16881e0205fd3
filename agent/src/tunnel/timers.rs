//! When a peer next needs attention: the timers of WireGuard (whitepaper, section 6), as exact deadlines.
//!
//! `Tunn` expects to be polled and keeps its timers to itself, so this keeps the same ones beside it. Two of
//! them are better here than there: silence counts from the first unanswered packet (there from the last
//! received one, so that any packet after a pause starts a handshake), and a keepalive that is owed is not
//! forgotten when sending and receiving fall between two polls.

use std::time::{Duration, Instant};

pub(super) const REKEY_AFTER_TIME: Duration = Duration::from_mins(2);
pub(super) const REJECT_AFTER_TIME: Duration = Duration::from_mins(3);
pub(super) const REKEY_ATTEMPT_TIME: Duration = Duration::from_secs(90);
pub(super) const REKEY_TIMEOUT: Duration = Duration::from_secs(5);
pub(super) const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Where data waits, so many retries come sooner. The paper has none of these: it gives up the first five seconds of a
/// conversation to one lost packet, and an idle peer's session is always too old to be used.
const SOONER: u32 = 3;
/// The first of them, at the least. Each later one waits twice as long.
const SOONEST: Duration = Duration::from_millis(300);
/// The first of them to a peer that never answered (RFC 6298, section 2.1).
const UNMEASURED: Duration = Duration::from_secs(1);
/// Retries are spread over this much beyond [`REKEY_TIMEOUT`], so that thousands do not retry in step.
pub(super) const RETRY_JITTER: Duration = Duration::from_millis(333);

/// What is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Due {
    /// The initiation found no answer yet.
    RetryHandshake,
    /// It found none for [`REKEY_ATTEMPT_TIME`].
    GiveUpHandshake,
    /// Data was sent, and nothing came back.
    Silence,
    /// Data was received, and nothing was sent back.
    Keepalive,
    /// No message was sent or received for the interval of the persistent keepalive.
    PersistentKeepalive,
    /// The keys are past [`REJECT_AFTER_TIME`], and later past three times that: drop them, then wipe the rest.
    DropKeys,
}

#[derive(Debug, Clone, Copy)]
struct Attempt {
    since: Instant,
    retry_at: Instant,
    /// Retries that came sooner.
    sooner: u32,
}

#[derive(Debug, Clone, Copy)]
struct Session {
    since: Instant,
    initiator: bool,
}

/// The timers of one peer.
#[derive(Debug, Default)]
pub(super) struct Timers {
    attempt: Option<Attempt>,
    session: Option<Session>,
    unanswered_since: Option<Instant>,
    owing_since: Option<Instant>,
    keys_since: Option<Instant>,
    keys_dropped: bool,
    /// How long the last handshake took from this end's message to the other's. A lost packet adds to it, so no retry is sent
    /// where the answer is only slow.
    answered_in: Option<Duration>,
    persistent: Option<Duration>,
    /// When a message last went either way, authenticated.
    traversed: Option<Instant>,
}

impl Timers {
    /// Those of a peer with other keys: nothing is under way, and the persistent keepalive stays.
    pub(super) fn anew(&self) -> Self {
        let &Self { answered_in, persistent, traversed, .. } = self;
        Self { answered_in, persistent, traversed, ..Self::default() }
    }

    /// Asks for a message at least this often. Whether it was not asked for before.
    pub(super) fn keep_alive(&mut self, now: Instant, interval: Option<Duration>) -> bool {
        let before = std::mem::replace(&mut self.persistent, interval);
        self.traversed.get_or_insert(now);
        before.is_none() && interval.is_some()
    }

    /// A message went either way.
    pub(super) const fn traversed(&mut self, now: Instant) {
        self.traversed = Some(now);
    }

    /// An initiation was sent, for data that waits where it is `urgent`. `jitter` is at most [`RETRY_JITTER`].
    pub(super) fn initiation_sent(&mut self, now: Instant, jitter: Duration, urgent: bool) {
        let (since, sooner) = self.attempt.map_or((now, 0), |attempt| (attempt.since, attempt.sooner));
        let patience =
            self.answered_in.map_or(UNMEASURED, |took| (took * 2).max(SOONEST)) * 2_u32.pow(sooner);
        let hurries = urgent && sooner < SOONER && patience < REKEY_TIMEOUT;
        // A third of it at most.
        let spread = jitter.mul_f64(patience.as_secs_f64().min(1.0));
        let after = if hurries { patience + spread } else { REKEY_TIMEOUT + jitter };
        self.attempt = Some(Attempt { since, retry_at: now + after, sooner: sooner + u32::from(hurries) });
        self.unanswered_since = None;
        self.traversed(now);
    }

    /// There is no attempt any more; the next initiation begins one, with its full time.
    pub(super) const fn abandon_attempt(&mut self) {
        self.attempt = None;
    }

    pub(super) const fn handshaking(&self) -> bool {
        self.attempt.is_some()
    }

    /// Keys were derived, but only as responder: the session can be used once the initiator has used it.
    ///
    /// An attempt of our own goes on meanwhile: where two initiations cross and both answers are lost, somebody
    /// has to try again.
    pub(super) fn keys_derived(&mut self, now: Instant) {
        self.keys_since = Some(now);
        self.keys_dropped = false;
    }

    /// A session can be used whose keys were derived at `since`. The initiator's first message with them answers the response.
    pub(super) fn session_ready(&mut self, now: Instant, since: Instant, initiator: bool) {
        self.keys_derived(since);
        let attempt = self.attempt.take().map(|attempt| attempt.since);
        let asked = if initiator { attempt } else { Some(since) };
        self.answered_in = asked.map(|asked| now.saturating_duration_since(asked)).or(self.answered_in);
        self.session = Some(Session { since, initiator });
    }

    /// No session any more.
    pub(super) const fn session_gone(&mut self) {
        self.session = None;
        self.unanswered_since = None;
        self.owing_since = None;
    }

    pub(super) fn sent(&mut self, now: Instant, data: bool) {
        self.traversed(now);
        self.owing_since = None;
        if data && self.unanswered_since.is_none() {
            self.unanswered_since = Some(now);
        }
    }

    pub(super) fn received(&mut self, now: Instant, data: bool) {
        self.traversed(now);
        self.unanswered_since = None;
        if data && self.owing_since.is_none() {
            self.owing_since = Some(now);
        }
    }

    /// Whether sending now calls for fresh keys: only the initiator renews, so that both do not at once.
    pub(super) fn renew_on_send(&self, now: Instant) -> bool {
        self.older_than(now, REKEY_AFTER_TIME)
    }

    /// Whether receiving now calls for fresh keys, as the session would end before an answer could go out.
    pub(super) fn renew_on_receive(&self, now: Instant) -> bool {
        self.older_than(now, REJECT_AFTER_TIME.saturating_sub(KEEPALIVE_TIMEOUT + REKEY_TIMEOUT))
    }

    fn older_than(&self, now: Instant, age: Duration) -> bool {
        let Some(session) = self.session else { return false };
        session.initiator && self.attempt.is_none() && now.saturating_duration_since(session.since) >= age
    }

    /// The first thing due and when. `None`: nothing, however long it takes.
    pub(super) fn next(&self) -> Option<(Instant, Due)> {
        let attempt = self.attempt.map(|attempt| {
            let end = attempt.since + REKEY_ATTEMPT_TIME;
            if end <= attempt.retry_at {
                (end, Due::GiveUpHandshake)
            } else {
                (attempt.retry_at, Due::RetryHandshake)
            }
        });
        let silence = self
            .unanswered_since
            .filter(|_| self.attempt.is_none())
            .map(|since| (since + KEEPALIVE_TIMEOUT + REKEY_TIMEOUT, Due::Silence));
        let keepalive = self.owing_since.map(|since| (since + KEEPALIVE_TIMEOUT, Due::Keepalive));
        let keys = self.keys_since.map(|since| {
            let age = if self.keys_dropped { REJECT_AFTER_TIME * 3 } else { REJECT_AFTER_TIME };
            // `Tunn` wants to be past the age, not at it.
            (since + age + Duration::from_millis(1), Due::DropKeys)
        });
        let persistent = self.persistent.zip(self.traversed);
        let persistent = persistent.map(|(interval, at)| (at + interval, Due::PersistentKeepalive));
        [attempt, silence, keepalive, persistent, keys].into_iter().flatten().min_by_key(|&(at, _)| at)
    }

    /// Takes note that what was due has been seen to, whether or not it led to a packet.
    pub(super) const fn done(&mut self, due: Due) {
        match due {
            Due::RetryHandshake | Due::PersistentKeepalive => {}
            Due::GiveUpHandshake => self.attempt = None,
            Due::Silence => self.unanswered_since = None,
            Due::Keepalive => self.owing_since = None,
            Due::DropKeys if self.keys_dropped => self.keys_since = None,
            Due::DropKeys => self.keys_dropped = true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn a_peer_that_never_spoke_has_no_deadline() {
        assert_eq!(Timers::default().next(), None);
    }

    #[test]
    fn an_initiation_is_retried_after_five_seconds_and_given_up_after_ninety() {
        let start = Instant::now();
        let mut timers = Timers::default();
        let mut now = start;
        let mut sent = 0;
        loop {
            timers.initiation_sent(now, RETRY_JITTER, false);
            sent += 1;
            let (at, due) = timers.next().unwrap();
            if due == Due::GiveUpHandshake {
                assert_eq!(at, start + seconds(90));
                break;
            }
            assert_eq!((at, due), (now + REKEY_TIMEOUT + RETRY_JITTER, Due::RetryHandshake));
            now = at;
        }
        assert_eq!(sent, 17);
        timers.done(Due::GiveUpHandshake);
        assert_eq!(timers.next(), None);
    }

    /// When the initiations of an attempt go out, in milliseconds, until the sixth.
    fn attempt(timers: &mut Timers, start: Instant, urgent: bool) -> Vec<u128> {
        let mut at = start;
        let mut sent = Vec::new();
        while sent.len() < 6 {
            sent.push(at.saturating_duration_since(start).as_millis());
            timers.initiation_sent(at, Duration::ZERO, urgent);
            at = timers.next().unwrap().0;
        }
        sent
    }

    #[test]
    fn for_data_that_waits_three_retries_come_sooner_by_what_the_last_answer_took() {
        let start = Instant::now();
        let mut timers = Timers::default();
        assert_eq!(attempt(&mut timers, start, true), [0, 1000, 3000, 7000, 12_000, 17_000]);
        for (took, expected) in [
            (40, [0, 300, 900, 2100, 7100, 12_100]),
            (600, [0, 1200, 3600, 8400, 13_400, 18_400]),
            (1500, [0, 3000, 8000, 13_000, 18_000, 23_000]),
            (4000, [0, 5000, 10_000, 15_000, 20_000, 25_000]),
        ] {
            let mut timers = Timers::default();
            timers.initiation_sent(start, Duration::ZERO, false);
            let answered = start + Duration::from_millis(took);
            timers.session_ready(answered, answered, true);
            assert_eq!(attempt(&mut timers, start, true), expected, "{took}");
            timers.abandon_attempt();
            assert_eq!(attempt(&mut timers, start, false), [0, 5000, 10_000, 15_000, 20_000, 25_000]);
        }
    }

    #[test]
    fn who_responds_learns_from_the_first_message_with_the_new_keys_how_long_answers_take() {
        let start = Instant::now();
        let mut timers = Timers::default();
        timers.keys_derived(start + seconds(4));
        timers.session_ready(start + seconds(5), start + seconds(4), false);
        assert_eq!(attempt(&mut timers, start + seconds(9), true)[1], 2000);
    }

    #[test]
    fn an_answered_exchange_leaves_only_the_end_of_the_keys() {
        let start = Instant::now();
        let mut timers = Timers::default();
        timers.session_ready(start, start, true);
        timers.sent(start, true);
        timers.received(start, true);
        timers.sent(start, false);
        assert_eq!(
            timers.next().unwrap(),
            (start + REJECT_AFTER_TIME + Duration::from_millis(1), Due::DropKeys)
        );
        timers.done(Due::DropKeys);
        assert_eq!(timers.next().unwrap().0, start + seconds(540) + Duration::from_millis(1));
        timers.done(Due::DropKeys);
        assert_eq!(timers.next(), None);
    }

    #[test]
    fn silence_counts_from_the_first_unanswered_packet() {
        let start = Instant::now();
        let mut timers = Timers::default();
        timers.session_ready(start, start, true);
        timers.received(start, false);
        for at in [60, 61, 70] {
            timers.sent(start + seconds(at), true);
        }
        assert_eq!(timers.next(), Some((start + seconds(75), Due::Silence)));
        timers.received(start + seconds(71), false);
        assert_eq!(timers.next().unwrap().1, Due::DropKeys);
    }

    #[test]
    fn data_received_is_owed_a_keepalive_after_ten_seconds_and_a_keepalive_is_owed_nothing() {
        let start = Instant::now();
        let mut timers = Timers::default();
        timers.received(start, false);
        assert_eq!(timers.next(), None);
        timers.received(start + seconds(1), true);
        timers.received(start + seconds(2), true);
        assert_eq!(timers.next(), Some((start + seconds(11), Due::Keepalive)));
        timers.sent(start + seconds(3), false);
        assert_eq!(timers.next(), None);
    }

    #[test]
    fn a_persistent_keepalive_is_due_an_interval_after_the_last_message_of_either_way() {
        let start = Instant::now();
        let mut timers = Timers::default();
        assert!(timers.keep_alive(start, Some(seconds(5))));
        assert!(!timers.keep_alive(start, Some(seconds(7))), "it was on before");
        assert_eq!(timers.next(), Some((start + seconds(7), Due::PersistentKeepalive)));
        timers.received(start + seconds(2), false);
        assert_eq!(timers.next(), Some((start + seconds(9), Due::PersistentKeepalive)));
        timers.sent(start + seconds(3), false);
        assert_eq!(timers.next(), Some((start + seconds(10), Due::PersistentKeepalive)));
        timers.initiation_sent(start + seconds(4), Duration::ZERO, false);
        timers.abandon_attempt();
        let mut timers = timers.anew();
        assert_eq!(timers.next(), Some((start + seconds(11), Due::PersistentKeepalive)));
        timers.keep_alive(start, None);
        assert_eq!(timers.next(), None);
    }

    #[test]
    fn only_the_initiator_renews_and_only_one_attempt_runs() {
        let start = Instant::now();
        let mut initiator = Timers::default();
        initiator.session_ready(start, start, true);
        assert!(!initiator.renew_on_send(start + seconds(119)));
        assert!(initiator.renew_on_send(start + seconds(120)));
        assert!(!initiator.renew_on_receive(start + seconds(164)));
        assert!(initiator.renew_on_receive(start + seconds(165)));
        initiator.initiation_sent(start + seconds(120), Duration::ZERO, false);
        assert!(!initiator.renew_on_send(start + seconds(121)));
        let mut responder = Timers::default();
        responder.session_ready(start, start, false);
        assert!(!responder.renew_on_send(start + seconds(170)));
    }
}
