//! A series of acknowledged beats on one channel, which makes a NAT take its binding for a real conversation.

use std::time::{Duration, Instant};

use super::link::Link;

/// When the beats of a series are due, counted from its start.
pub(super) type Plan = &'static [Duration];

/// One beat.
pub(super) const ONCE: Plan = &[Duration::ZERO];
/// Covers bindings that are promoted at once or, as in Linux, when they are two seconds old.
pub(super) const SHORT: Plan = &[Duration::ZERO, Duration::from_millis(2500)];
/// Covers promotion up to twelve seconds, with gaps that the shortest unpromoted lifetimes (5 s) survive.
pub(super) const LONG: Plan = &[
    Duration::ZERO,
    Duration::from_millis(2500),
    Duration::from_secs(5),
    Duration::from_millis(8500),
    Duration::from_secs(12),
];

/// An unanswered beat is given up so long after its first transmission, or the last sign of life since.
const GIVE_UP: Duration = Duration::from_secs(7);
/// So many transmissions follow one another at the pace of the round trip, later ones at twice the pause each.
const QUICK_TRIES: u32 = 4;
const SLOW_PAUSE: Duration = Duration::from_millis(500);
/// Linux promotes a binding that is more than two seconds old (measured: 2.0 is too early, 2.1 is not).
pub(super) const GRACE: Duration = Duration::from_millis(2150);
const REMEMBERED: usize = 8;

/// The transmissions of one beat and its repetitions.
#[derive(Debug, Clone, Copy, Default)]
struct Tries {
    sent: [Option<(u64, Instant)>; REMEMBERED],
    count: u32,
}

impl Tries {
    fn record(&mut self, seq: u64, now: Instant) {
        if let Some(slot) = self.sent.get_mut(self.count as usize % REMEMBERED) {
            *slot = Some((seq, now));
        }
        self.count += 1;
    }

    fn sent_at(&self, seq: u64) -> Option<Instant> {
        self.sent.iter().flatten().find(|(sent, _)| *sent == seq).map(|(_, at)| *at)
    }
}

#[derive(Debug, Clone, Copy)]
enum Waiting {
    /// For the time of the next beat.
    Turn(Instant),
    /// For the answer to the one that was sent.
    Reply {
        first: Instant,
        resend: Instant,
    },
    Over,
}

/// What a series wants now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Want {
    /// Send its beat; tell it by [`Sequence::sent`].
    Send,
    /// Nobody answers.
    Failed,
}

/// An answer that belongs to the series.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Answered {
    /// When the answered transmission was made.
    pub(super) sent: Instant,
    /// It was the first answer of the series.
    pub(super) first: bool,
    /// The series is complete.
    pub(super) complete: bool,
}

/// The state of a series.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sequence {
    plan: Plan,
    step: usize,
    begun: Instant,
    /// The last offset of a two-step plan may be moved within the burst.
    companion: Option<Duration>,
    tries: Tries,
    waiting: Waiting,
    last_sent: Option<Instant>,
    last_answered: Option<Instant>,
    /// The last authenticated packet that is no answer.
    last_heard: Option<Instant>,
}

impl Sequence {
    pub(super) fn new(plan: Plan, begun: Instant) -> Self {
        Self {
            plan,
            step: 0,
            begun,
            companion: None,
            tries: Tries::default(),
            waiting: Waiting::Turn(begun),
            last_sent: None,
            last_answered: None,
            last_heard: None,
        }
    }

    /// A short series whose second beat comes at this offset.
    pub(super) fn with_companion(begun: Instant, offset: Duration) -> Self {
        Self { companion: Some(offset.max(GRACE)), ..Self::new(SHORT, begun) }
    }

    /// Goes on until even the slowest NAT has promoted the binding.
    pub(super) fn lengthen(&mut self) {
        self.plan = LONG;
        self.companion = None;
    }

    pub(super) fn begun(&self) -> Instant {
        self.begun
    }

    /// Whether the beat that is sent or waited for is the last one.
    pub(super) fn at_last_step(&self) -> bool {
        self.step + 1 >= self.plan.len()
    }

    pub(super) fn at_first_step(&self) -> bool {
        self.step == 0
    }

    /// When anything was last sent on the channel.
    pub(super) fn last_sent(&self) -> Option<Instant> {
        self.last_sent
    }

    /// The last transmission that is known to have arrived.
    pub(super) fn last_answered(&self) -> Option<Instant> {
        self.last_answered
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        match self.waiting {
            Waiting::Turn(at) => Some(at),
            Waiting::Reply { first, resend } => Some(resend.min(self.give_up(first))),
            Waiting::Over => None,
        }
    }

    pub(super) fn handle_timeout(&mut self, now: Instant, link: &mut Link) -> Option<Want> {
        match self.waiting {
            Waiting::Turn(at) if now >= at => Some(Want::Send),
            Waiting::Reply { first, .. } if now >= self.give_up(first) => {
                self.waiting = Waiting::Over;
                Some(Want::Failed)
            }
            Waiting::Reply { resend, .. } if now >= resend => {
                link.unanswered();
                Some(Want::Send)
            }
            _ => None,
        }
    }

    pub(super) fn sent(&mut self, now: Instant, seq: u64, link: &Link) {
        self.tries.record(seq, now);
        self.last_sent = Some(now);
        let first = match self.waiting {
            Waiting::Reply { first, .. } => first,
            Waiting::Turn(_) | Waiting::Over => now,
        };
        self.waiting = Waiting::Reply { first, resend: now + pause(self.tries.count, link) };
    }

    /// Takes an answer; `None` where it is to another beat than the one waited for.
    pub(super) fn handle_reply(&mut self, now: Instant, seq: u64, link: &mut Link) -> Option<Answered> {
        let Waiting::Reply { .. } = self.waiting else { return None };
        let sent = self.tries.sent_at(seq)?;
        link.answered(now.saturating_duration_since(sent));
        let first = self.last_answered.is_none();
        self.last_answered = Some(sent);
        self.step += 1;
        self.tries = Tries::default();
        let Some(&offset) = self.plan.get(self.step) else {
            self.waiting = Waiting::Over;
            return Some(Answered { sent, first, complete: true });
        };
        let planned = self.begun + self.companion.unwrap_or(offset);
        self.waiting = Waiting::Turn(planned.max(sent + GRACE));
        Some(Answered { sent, first, complete: false })
    }

    /// Something authenticated came that is no answer: answers get lost, but not everything does.
    pub(super) fn handle_sign_of_life(&mut self, at: Option<Instant>) {
        self.last_heard = self.last_heard.max(at);
    }

    /// How often the beat waited for was sent.
    pub(super) fn tries(&self) -> u32 {
        self.tries.count
    }

    /// Whether all transmissions that could hope for a quick answer were in vain.
    pub(super) fn is_ignored(&self) -> bool {
        self.tries.count > QUICK_TRIES
    }

    fn give_up(&self, first: Instant) -> Instant {
        self.last_heard.map_or(first, |heard| first.max(heard)) + GIVE_UP
    }
}

/// How long to wait after the `count`th transmission.
fn pause(count: u32, link: &Link) -> Duration {
    let quick = link.resend_after();
    match count.checked_sub(QUICK_TRIES) {
        None => quick,
        Some(slow) => quick.max(SLOW_PAUSE) * (1 << slow.min(2)),
    }
}

/// How long it takes until a beat has been sent so often that all transmissions are lost less than once in 100 000.
pub(super) fn time_to_get_through(link: &Link) -> Duration {
    let loss = link.loss().clamp(0.01, 0.3);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 3 and 10")]
    let tries = (1e-5_f64.ln() / loss.ln()).ceil() as u32;
    (1..tries).map(|count| pause(count, link)).sum()
}
