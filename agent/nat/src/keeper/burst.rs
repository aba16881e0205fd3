//! One keepalive: a beat, its companion, and what the answers say about the live binding.

use std::time::{Duration, Instant};

use super::{
    Action, Activity, Channel, Keeper, Mode, Purpose, RADIO, Stage,
    sequence::{GRACE, ONCE, Sequence, Want},
};
use crate::{Beat, Cause, Churn, Promotion, Reply};

/// A missing wake costs the share of an interval that it comes early by; it is not asked for more often than this
/// makes good.
const WAKE_SHARE: f64 = 0.005;
const RAREST_WAKE: u64 = 8;
/// The wake comes so much before the own timer where packets do not get lost, and where they do.
const LEAD: Duration = Duration::from_millis(250);
const LEAD_WHERE_LOSSY: Duration = Duration::from_millis(600);
const LOSSY: f64 = 0.005;
/// The end of a burst is kept free for the answer to the companion.
const BURST: Duration = Duration::from_millis(2900);
/// Largest share by which an interval is shortened at random, so that a fleet does not beat in step.
const JITTER: f64 = 0.01;
const LARGEST_JITTER: Duration = Duration::from_secs(1);
/// A newly learnt lifetime is accompanied by a canary in each of so many bursts, later in every eighth.
pub(super) const CLOSE_WATCH: u64 = 16;
const LOOSE_WATCH: u64 = 8;
/// One canary is still out when the next burst begins.
const SCOUTS: usize = 2;
/// As long as the interval is shorter than what was learnt, so many canaries in turn have one that goes to the full age
/// and is woken between bursts.
const FULL_AGE: u64 = 2;
/// A search step's burst takes the live channel along when it has been silent this long.
const WORTH_A_RIDE: Duration = Duration::from_secs(1);
/// While hardly anything is proven, the next burst comes before a companion could matter.
const WORTH_A_COMPANION: Duration = Duration::from_secs(4);

impl Keeper {
    /// Begins a keepalive now.
    pub(super) fn begin_burst(&mut self, now: Instant) {
        self.retry_blind(now);
        self.live.wake_missed =
            self.live.wake_due.is_some_and(|due| now >= due + Beat::WAKES[1]) && self.live.is_resting();
        self.live.missed = self.live.asked.zip(self.live.wake_due).filter(|_| self.live.wake_missed);
        self.live.wake_due = None;
        self.live.asked = None;
        self.live.interval = self.jittered(self.interval());
        self.live.wants_wake = self.wants_wake();
        let sequence = if self.live.needs_promotion && self.policy.mode == Mode::Adaptive {
            Sequence::new(self.life.promotion.plan(), now)
        } else if self.interval() < WORTH_A_COMPANION {
            Sequence::new(ONCE, now)
        } else {
            Sequence::with_companion(now, self.companion())
        };
        self.live.activity = Activity::Burst(sequence);
        self.cycles += 1;
        if self.stage == Stage::Settled && self.policy.mode == Mode::Adaptive {
            self.send_canary(now);
            self.look_for_growth(now);
        }
        self.live_timeout(now);
    }

    /// Takes the live channel along with a burst that happens anyway.
    pub(super) fn ride(&mut self, now: Instant) {
        let worth = match self.stage {
            Stage::Climbing => WORTH_A_RIDE,
            Stage::Refining | Stage::Settled | Stage::Blind { .. } | Stage::Waiting { .. } => {
                self.interval() / 2
            }
        };
        if self.live.is_resting() && self.live.age(now).is_some_and(|age| age >= worth) {
            self.begin_burst(now);
        }
    }

    /// An experiment's verdict needs a live exchange.
    pub(super) fn ask_for_proof(&mut self, now: Instant, purpose: Purpose) {
        // Canaries are due within a burst; growth can wait for one.
        let urgent = !matches!(purpose, Purpose::Canary | Purpose::Growth);
        if urgent && self.live.is_resting() {
            self.begin_burst(now);
        }
    }

    pub(super) fn live_timeout(&mut self, now: Instant) {
        match &mut self.live.activity {
            Activity::Rest { due } if now >= *due => self.begin_burst(now),
            Activity::Lost { retry } if now >= *retry => self.begin_burst(now),
            Activity::Off | Activity::Rest { .. } | Activity::Lost { .. } => {}
            Activity::Burst(sequence) => {
                let is_companion = !sequence.at_first_step();
                // Within a burst a companion costs nothing. Beyond it, it is only worth its price where the binding
                // has to be promoted.
                let too_late = is_companion
                    && !self.live.needs_promotion
                    && sequence.tries() > 0
                    && now.saturating_duration_since(sequence.begun()) >= BURST;
                if too_late {
                    return self.rest(now);
                }
                match sequence.handle_timeout(now, &mut self.link) {
                    Some(Want::Send) => self.send_live(now),
                    Some(Want::Failed) if is_companion => self.rest(now),
                    Some(Want::Failed) => self.lose(now),
                    None => {}
                }
            }
        }
    }

    /// The path does not answer: nothing can be learnt before it does.
    fn lose(&mut self, now: Instant) {
        if self.live.lose(now) {
            self.close_all();
            self.suspected_losses.forget();
            self.actions.push_back(Action::Lost);
        }
    }

    fn recover(&mut self, now: Instant) {
        if self.live.lost.take().is_some() {
            self.resume_learning(now);
        }
    }

    pub(super) fn live_reply(&mut self, now: Instant, reply: &Reply) {
        let Activity::Burst(sequence) = &mut self.live.activity else { return };
        let Some(answered) = sequence.handle_reply(now, reply.seq, &mut self.link) else { return };
        let rtt = now.saturating_duration_since(answered.sent);
        let idle = self.live.anchor.map(|anchor| answered.sent.saturating_duration_since(anchor));
        self.live.anchor = Some(answered.sent);
        self.proof = Some(answered.sent);
        self.recover(now);
        self.actions.push_back(Action::Confirmed { rtt });
        if !reply.is_endpoint {
            self.actions.push_back(Action::Prove);
        }
        let before = self.observed.replace(reply.observed);
        let moved = before.filter(|before| *before != reply.observed);
        if let Some(from) = moved {
            let idle = idle.unwrap_or_default();
            self.tell(Churn {
                at: now,
                cause: Cause::MappingChanged,
                from: Some(from),
                to: Some(reply.observed),
                idle,
            });
        }
        if answered.first && (moved.is_some() || self.live.wake_missed) {
            self.suspect_loss(now, moved.is_some(), idle.unwrap_or_default());
        }
        self.live.wake_missed = false;
        if answered.complete {
            self.live.needs_promotion = false;
            self.rest(now);
        }
        self.bury(now);
    }

    /// Data came in, and some that was sent at `arrived` has left: where beats stay unanswered all the same, the data
    /// stands for their answers.
    pub(super) fn live_heard(&mut self, last_received: Option<Instant>, arrived: Option<Instant>) {
        let Activity::Burst(sequence) = &mut self.live.activity else { return };
        sequence.handle_sign_of_life(last_received);
        if sequence.is_ignored()
            && let Some(anchor) = arrived.filter(|arrived| *arrived > sequence.begun())
        {
            self.live.anchor = Some(anchor);
            self.live.activity = Activity::Rest { due: anchor + self.live.interval };
        }
    }

    pub(super) fn live_wake(&mut self, now: Instant, seq: u64, slept: bool) {
        if let Some((_, due)) = self.live.missed.take_if(|(missed, _)| *missed == seq) {
            return self.wake_came_late(now, due);
        }
        if !self.live.is_resting() || self.live.asked.is_none_or(|asked| seq > asked) {
            return;
        }
        let Some(due) = self.live.wake_due.take() else { return };
        self.link.woken(now.saturating_duration_since(due), slept);
        if let Some(sent) = self.live.last_sent {
            // It may have waited for the radio, behind the NAT.
            let age = now.min(due).saturating_duration_since(sent);
            self.life.alive(age);
            self.suspected_losses.heard(age);
        }
        self.begin_burst(now);
    }

    /// The wake came after our own timer had begun the burst: it was on its way to a radio that slept.
    fn wake_came_late(&mut self, now: Instant, due: Instant) {
        self.link.woken(now.saturating_duration_since(due), false);
        let Activity::Burst(sequence) = &self.live.activity else { return };
        let [.., last] = Beat::WAKES;
        // Unless what came is a repetition that our own beat let in.
        if sequence.begun() >= due + last {
            self.live.wake_missed = false;
        }
    }

    /// The interval or the anchor is another than before.
    pub(super) fn reschedule(&mut self, _now: Instant) {
        let Some(anchor) = self.live.anchor else { return };
        let interval = self.jittered(self.interval());
        if let Activity::Rest { due } = &mut self.live.activity {
            *due = anchor + interval;
            self.live.interval = interval;
        }
    }

    fn rest(&mut self, now: Instant) {
        let Activity::Burst(sequence) = &self.live.activity else { return };
        let anchor = sequence.last_answered().or(self.live.anchor).unwrap_or(now);
        self.live.anchor = Some(anchor);
        self.live.activity = Activity::Rest { due: anchor + self.live.interval };
    }

    pub(super) fn lengthen_burst(&mut self) {
        if let Activity::Burst(sequence) = &mut self.live.activity {
            sequence.lengthen();
        }
    }

    fn send_live(&mut self, now: Instant) {
        let wake = self.wake_request();
        let seq = self.take_seq();
        let Activity::Burst(sequence) = &mut self.live.activity else { return };
        sequence.sent(now, seq, &self.link);
        self.live.last_sent = Some(now);
        self.live.asked = wake.map(|_| seq);
        self.live.wake_due = wake.map(|delay| now + delay + self.link.rtt());
        self.actions.push_back(Action::Send(Beat { channel: Channel::Live, seq, wake }));
        self.stats.live_beats += 1;
        self.count_packet(now);
    }

    /// Whether the gateway is to begin the next burst. Left to chance: a rhythm could be that of the NAT's own sweeps.
    fn wants_wake(&mut self) -> bool {
        if self.policy.mode == Mode::Fixed || self.stage == Stage::Climbing {
            return false;
        }
        let lead = self.lead();
        let share = lead.as_secs_f64() / self.live.interval.as_secs_f64().max(1.0);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a few")]
        let every = ((share / WAKE_SHARE).ceil() as u64).clamp(1, RAREST_WAKE);
        self.suspected_losses.is_watchful(self.cycles)
            || !self.life.promotion.heals_by_itself()
            || self.jitter.next_u64().is_multiple_of(every)
    }

    fn wake_request(&self) -> Option<Duration> {
        let delay = self.live.interval.saturating_sub(self.lead() + self.link.rtt());
        (self.live.wants_wake && !delay.is_zero()).then(|| delay.min(Beat::LONGEST_WAKE))
    }

    /// How long before the own timer the wake is to come.
    fn lead(&self) -> Duration {
        let least = if self.link.loss() < LOSSY { LEAD } else { LEAD_WHERE_LOSSY };
        least + self.link.deviation() * 4 + self.link.late()
    }

    /// When the companion follows: as late as the burst allows, with room for repetitions where packets get lost.
    fn companion(&self) -> Duration {
        // Until then, a loss of the binding is noticed by nobody.
        if matches!(self.life.promotion, Promotion::Unknown | Promotion::Short) {
            return GRACE;
        }
        let repetitions = if self.link.loss() < LOSSY { 0 } else { 2 };
        BURST.saturating_sub(self.link.rtt() + self.link.resend_after() * repetitions)
    }

    fn send_canary(&mut self, now: Instant) {
        let wanted = self.cycles <= CLOSE_WATCH
            || self.suspected_losses.is_watchful(self.cycles)
            || self.cycles.is_multiple_of(LOOSE_WATCH);
        let out = self.experiments.iter().filter(|experiment| experiment.purpose == Purpose::Canary).count();
        if !wanted || !self.life.promotion.heals_by_itself() || out >= SCOUTS {
            return;
        }
        // Its wake falls into the burst that the live channel's begins, where that proves enough.
        let latest =
            self.live.interval + RADIO.saturating_sub(self.lead() + self.link.rtt() + LEAD_WHERE_LOSSY);
        let full = self.is_on_probation() && self.cycles.is_multiple_of(FULL_AGE);
        let age = if full { self.life.at_least } else { self.life.at_least.min(latest) };
        if age > self.policy.longest() + RADIO {
            return;
        }
        let companion = self.companion();
        let canary = self.open(now, Purpose::Canary, age, ONCE);
        *canary = canary.clone().in_burst(companion);
    }

    fn jittered(&mut self, interval: Duration) -> Duration {
        let most = interval.mul_f64(JITTER).min(LARGEST_JITTER);
        interval.saturating_sub(self.jitter.up_to(most))
    }

    pub(super) fn tell(&mut self, churn: Churn) {
        self.actions.push_back(Action::Event(churn));
    }
}
