//! When the gateway is told how the client is. Each message may wake a radio. Pure.

use std::time::{Duration, Instant};

use pinhole_proto::v1;

/// Between two messages about what is being learnt.
const PAUSE: Duration = Duration::from_secs(1);
/// Counters go along when the radio is awake anyway, this long after they last went.
const REFRESH: Duration = Duration::from_mins(5);

/// Decides it.
#[derive(Debug, Default)]
pub(super) struct Bulletin {
    told: Option<(Instant, v1::ClientState)>,
    waiting: bool,
}

impl Bulletin {
    /// What is to be told of this state now. `awake`: packets are under way at the moment.
    pub(super) fn offer(
        &mut self,
        now: Instant,
        state: v1::ClientState,
        awake: bool,
    ) -> Option<v1::ClientState> {
        self.waiting = false;
        if let Some((at, told)) = &self.told {
            let news = meaning(told) != meaning(&state);
            let counts = awake && now >= *at + REFRESH && *told != state;
            if !news && !counts {
                return None;
            }
            if news && is_calm(told, &state) && now < *at + PAUSE {
                self.waiting = true;
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

/// Whether the difference can wait a moment.
fn is_calm(told: &v1::ClientState, state: &v1::ClientState) -> bool {
    (told.phase, &told.local_endpoint) == (state.phase, &state.local_endpoint)
}

/// What is worth a message: no counters, no round trip, and lifetimes to the second.
fn meaning(state: &v1::ClientState) -> v1::ClientState {
    let mut state = v1::ClientState { rtt: None, ..state.clone() };
    if let Some(keepalive) = &mut state.keepalive {
        (keepalive.wakes, keepalive.wakes_saved) = (0, 0);
        (keepalive.beats, keepalive.probes) = (0, 0);
    }
    if let Some(binding) = &mut state.binding {
        for span in [&mut binding.at_least, &mut binding.less_than].into_iter().flatten() {
            span.nanos = 0;
        }
    }
    state
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(phase: v1::Phase, interval: i64, wakes: u64) -> v1::ClientState {
        let interval = Some(prost_types::Duration { seconds: interval, nanos: 0 });
        let keepalive = v1::KeepaliveReport { interval, wakes, ..Default::default() };
        v1::ClientState { phase: phase.into(), keepalive: Some(keepalive), ..Default::default() }
    }

    #[test]
    fn a_phase_is_told_at_once_and_what_is_learnt_once_a_second() {
        let (now, mut bulletin) = (Instant::now(), Bulletin::default());
        let connected = |interval| state(v1::Phase::Connected, interval, 0);
        assert!(bulletin.offer(now, connected(2), false).is_some());
        assert!(bulletin.offer(now, connected(2), false).is_none());
        assert!(bulletin.offer(now, connected(3), false).is_none());
        assert_eq!(bulletin.poll_timeout(), Some(now + PAUSE));
        assert!(bulletin.offer(now, state(v1::Phase::Dormant, 3, 0), false).is_some());
        assert_eq!(bulletin.poll_timeout(), None);
        assert!(bulletin.offer(now + PAUSE, connected(4), false).is_some());
    }

    #[test]
    fn counters_travel_only_with_what_is_under_way_anyway() {
        let (now, mut bulletin) = (Instant::now(), Bulletin::default());
        let counted = |wakes| state(v1::Phase::Connected, 2, wakes);
        bulletin.offer(now, counted(1), true);
        assert!(bulletin.offer(now + REFRESH / 2, counted(2), true).is_none());
        assert!(bulletin.offer(now + REFRESH, counted(3), false).is_none());
        assert_eq!(bulletin.poll_timeout(), None);
        assert!(bulletin.offer(now + REFRESH, counted(3), true).is_some());
    }
}
