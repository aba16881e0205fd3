//! Decides when the gateway is told how the client is: news that can wait goes along when the radio is awake anyway. Pure.

use std::time::{Duration, Instant};

use pinhole_proto::{
    news::{Account, Grain, Scale, Weight},
    v1,
};

/// Between two messages about what is being learnt.
const PAUSE: Duration = Duration::from_secs(1);
/// Counters go along when the radio is awake anyway, this long after they last went.
const REFRESH: Duration = Duration::from_mins(5);
/// What is said so early in a burst is acknowledged, and repeated where it got lost, before the radio would sleep.
const EARLY: Duration = Duration::from_millis(1500);

/// So long after the user's data the radio is awake for certain.
const AWAKE_AFTER_DATA: Duration = Duration::from_secs(1);
/// Intervals and wakes exactly, as the gateway's timers follow them; lifetimes to the second, which it only passes on.
const GRAIN: Grain = Grain { interval: Scale::Exact, lifetime: Scale::Seconds, wake: Scale::Exact };

/// What wakes the radio, beside what is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Occasion {
    /// Keepalives do, and it has been awake for so long.
    Awake(Duration),
    /// Keepalives will, later.
    Asleep,
    /// Nothing does that could be waited for.
    Never,
}

impl Occasion {
    /// What there is. `keeps`: keepalives are trusted to keep the binding. `data` and `radio` are how long ago the user's data last
    /// went by and the radio last awoke, the latter only while it still is.
    pub(super) fn new(keeps: bool, data: Option<Duration>, radio: Option<Duration>) -> Self {
        let by_data = data.filter(|age| *age < AWAKE_AFTER_DATA).map(|_| Duration::ZERO);
        match by_data.or(radio) {
            _ if !keeps => Self::Never,
            Some(age) => Self::Awake(age),
            None => Self::Asleep,
        }
    }

    fn is_now(self) -> bool {
        matches!(self, Self::Awake(age) if age <= EARLY)
    }
}

/// What was told last, and what waits.
#[derive(Debug, Default)]
pub(super) struct StatusPublisher {
    told: Option<(Instant, v1::ClientState)>,
    waiting: bool,
}

impl StatusPublisher {
    /// What is to be told of this state now.
    pub(super) fn offer(
        &mut self,
        now: Instant,
        state: v1::ClientState,
        occasion: Occasion,
    ) -> Option<v1::ClientState> {
        self.waiting = false;
        if let Some((at, told)) = &self.told {
            let news = is_news(told, &state);
            let counts = occasion.is_now() && now >= *at + REFRESH && *told != state;
            if !news && !counts {
                return None;
            }
            let lacks_other = lacks(told) != lacks(&state);
            let may_speak = lacks_other || occasion.is_now() || occasion == Occasion::Never;
            if news && can_wait(told, &state) && !(may_speak && now >= *at + PAUSE) {
                self.waiting = may_speak;
                return None;
            }
        }
        self.told = Some((now, state.clone()));
        Some(state)
    }

    /// When to offer again, whatever happens.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.told.as_ref().filter(|_| self.waiting).map(|(at, _)| *at + PAUSE)
    }
}

/// Whether anything is missing that the pool promises.
fn lacks(state: &v1::ClientState) -> bool {
    !state.impairments.is_empty()
}

/// Whether the difference can wait for the next occasion. A path that changed cannot; nor can a longer interval, before
/// whose end the gateway would miss the client.
fn can_wait(told: &v1::ClientState, state: &v1::ClientState) -> bool {
    (told.phase, &told.local_endpoint) == (state.phase, &state.local_endpoint)
        && interval(told) >= interval(state)
}

/// The promised interval. Without one the policy's is in force, which is what is promised at first.
fn interval(state: &v1::ClientState) -> Option<Duration> {
    state.keepalive.as_ref()?.interval.and_then(|interval| Duration::try_from(interval).ok())
}

/// Whether the step is worth a message at all. The tunnel's socket is the agent's own to tell of; the round trip goes along.
fn is_news(told: &v1::ClientState, state: &v1::ClientState) -> bool {
    (told.phase, &told.local_endpoint) != (state.phase, &state.local_endpoint)
        || Account::from(state).weigh(&told.into(), GRAIN) > Weight::Nothing
}

#[cfg(test)]
mod tests {
    use super::*;

    const AWAKE: Occasion = Occasion::Awake(Duration::ZERO);
    const LATE: Occasion = Occasion::Awake(Duration::from_millis(2500));

    fn state(phase: v1::Phase, interval: i64, wakes: u64) -> v1::ClientState {
        let interval = Some(prost_types::Duration { seconds: interval, nanos: 0 });
        let keepalive = v1::KeepaliveReport { interval, wakes, ..Default::default() };
        v1::ClientState { phase: phase.into(), keepalive: Some(keepalive), ..Default::default() }
    }

    fn connected(interval: i64) -> v1::ClientState {
        state(v1::Phase::Connected, interval, 0)
    }

    #[test]
    fn a_phase_is_told_at_once_and_what_is_learnt_in_a_burst() {
        let (now, mut publisher) = (Instant::now(), StatusPublisher::default());
        assert!(publisher.offer(now, connected(20), Occasion::Asleep).is_some());
        assert!(publisher.offer(now, connected(20), AWAKE).is_none());
        let later = now + PAUSE * 30;
        for occasion in [Occasion::Asleep, LATE] {
            assert!(publisher.offer(later, connected(15), occasion).is_none());
            assert_eq!(publisher.poll_timeout(), None, "the next burst calls");
        }
        assert!(publisher.offer(later, state(v1::Phase::Dormant, 15, 0), Occasion::Asleep).is_some());
        assert!(publisher.offer(later + PAUSE, state(v1::Phase::Dormant, 12, 0), AWAKE).is_some());
    }

    #[test]
    fn within_a_burst_and_where_there_are_none_news_come_once_a_second() {
        for occasion in [AWAKE, Occasion::Never] {
            let (now, mut publisher) = (Instant::now(), StatusPublisher::default());
            publisher.offer(now, connected(20), occasion);
            assert!(publisher.offer(now, connected(15), occasion).is_none());
            assert_eq!(publisher.poll_timeout(), Some(now + PAUSE));
            assert!(publisher.offer(now + PAUSE, connected(15), occasion).is_some());
            assert_eq!(publisher.poll_timeout(), None);
        }
    }

    #[test]
    fn what_is_missing_is_told_without_an_occasion_once_a_second_and_holds_up_no_phase() {
        let (now, mut publisher) = (Instant::now(), StatusPublisher::default());
        let lacking = |phase| {
            let impairments =
                vec![v1::Impairment { category: "RouteConflict".into(), message: String::new() }];
            v1::ClientState { impairments, ..state(phase, 20, 0) }
        };
        publisher.offer(now, connected(20), Occasion::Asleep);
        assert!(publisher.offer(now, lacking(v1::Phase::Connected), Occasion::Asleep).is_none());
        assert_eq!(publisher.poll_timeout(), Some(now + PAUSE));
        assert!(publisher.offer(now, lacking(v1::Phase::Dormant), Occasion::Asleep).is_some());
        assert!(publisher.offer(now + PAUSE, connected(20), Occasion::Asleep).is_some());
        assert!(publisher.offer(now + PAUSE * 2, lacking(v1::Phase::Connected), Occasion::Asleep).is_some());
    }

    #[test]
    fn a_longer_silence_is_announced_before_it_begins() {
        let (now, mut publisher) = (Instant::now(), StatusPublisher::default());
        publisher.offer(now, connected(20), AWAKE);
        assert!(publisher.offer(now, connected(30), LATE).is_some());
    }

    #[test]
    fn user_data_keeps_the_radio_awake_and_nothing_does_without_keepalives() {
        let millis = |millis| Some(Duration::from_millis(millis));
        for (data, radio, expected) in [
            (None, None, Occasion::Asleep),
            (None, millis(2500), LATE),
            (millis(999), millis(2500), AWAKE),
            (millis(999), None, AWAKE),
            (millis(1000), None, Occasion::Asleep),
            (millis(1000), millis(2500), LATE),
        ] {
            assert_eq!(Occasion::new(true, data, radio), expected, "{data:?} {radio:?}");
            assert_eq!(Occasion::new(false, data, radio), Occasion::Never);
        }
    }

    #[test]
    fn lifetimes_are_told_to_the_second_and_what_timers_follow_exactly() {
        let span = |nanos| Some(prost_types::Duration { seconds: 20, nanos });
        let lives = |nanos| {
            let binding = Some(v1::BindingReport { at_least: span(nanos), ..Default::default() });
            v1::ClientState { binding, ..connected(20) }
        };
        let kept = |nanos| {
            let keepalive = Some(v1::KeepaliveReport { interval: span(nanos), ..Default::default() });
            v1::ClientState { keepalive, ..connected(20) }
        };
        let woke = |nanos| {
            let standby = Some(v1::StandbyReport { worst_wake: span(nanos), ..Default::default() });
            v1::ClientState { standby, ..connected(20) }
        };
        let is_told = |first, then| {
            let (now, mut publisher) = (Instant::now(), StatusPublisher::default());
            publisher.offer(now, first, AWAKE);
            publisher.offer(now + PAUSE, then, AWAKE).is_some()
        };
        assert!(!is_told(lives(1), lives(999_999_999)));
        assert!(is_told(kept(2), kept(1)) && is_told(woke(1), woke(2)));
    }

    #[test]
    fn counters_travel_only_with_what_is_under_way_anyway() {
        let (now, mut publisher) = (Instant::now(), StatusPublisher::default());
        let counted = |wakes| state(v1::Phase::Connected, 2, wakes);
        publisher.offer(now, counted(1), AWAKE);
        assert!(publisher.offer(now + REFRESH / 2, counted(2), AWAKE).is_none());
        assert!(publisher.offer(now + REFRESH, counted(3), Occasion::Asleep).is_none());
        assert!(publisher.offer(now + REFRESH, counted(3), LATE).is_none());
        assert_eq!(publisher.poll_timeout(), None);
        assert!(publisher.offer(now + REFRESH, counted(3), AWAKE).is_some());
    }
}
