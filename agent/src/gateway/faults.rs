//! Panics of the gateway's own parts: counted, and followed by another try after a pause. What carries packets is none of
//! these parts.

use std::{
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures::FutureExt as _;

/// The pause after the first panic. It doubles with each further one.
const MIN_PAUSE: Duration = Duration::from_millis(100);
/// The longest pause: a part that cannot run costs no more than a try in this time.
const MAX_PAUSE: Duration = Duration::from_secs(30);
/// After so long without a panic the next one is a first one again.
const CALM_TIMEOUT: Duration = Duration::from_mins(5);

/// How often parts of the gateway panicked, since it started.
#[derive(Debug, Clone, Default)]
pub(super) struct Faults(Arc<AtomicU64>);

impl Faults {
    pub(super) fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    pub(super) fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// How long to wait before a part that panicked runs again. Pure.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Backoff {
    last: Option<Instant>,
    in_a_row: u32,
}

impl Backoff {
    /// It panicked. The pause before it runs again.
    pub(super) fn handle_panic(&mut self, now: Instant) -> Duration {
        let calm = self.last.is_none_or(|last| now.saturating_duration_since(last) >= CALM_TIMEOUT);
        self.in_a_row = if calm { 0 } else { self.in_a_row.saturating_add(1) };
        self.last = Some(now);
        MIN_PAUSE.saturating_mul(2_u32.saturating_pow(self.in_a_row.min(16))).min(MAX_PAUSE)
    }
}

/// Runs a part until it yields how it ended: after a panic, or when it ended before its time, it is begun anew.
pub(super) async fn lasting<T>(
    what: &'static str,
    faults: Faults,
    mut part: impl AsyncFnMut() -> Option<T>,
) -> T {
    let mut backoff = Backoff::default();
    loop {
        // Whatever it was about is dropped with it.
        if let Ok(Some(ended)) = AssertUnwindSafe(part()).catch_unwind().await {
            return ended;
        }
        faults.add();
        let pause = backoff.handle_panic(Instant::now());
        tracing::error!(what, again_in = ?pause, "a part of the gateway panicked, or ended; the tunnels go on");
        tokio::time::sleep(pause).await;
    }
}

/// Panics on demand, for tests with a whole gateway: the control's on SIGUSR1, the data plane's on SIGUSR2.
#[cfg(debug_assertions)]
pub(super) async fn on_signals(control: tokio::sync::mpsc::Sender<super::command::Command>) {
    use super::command::Command;
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut first), Ok(mut second)) =
        (signal(SignalKind::user_defined1()), signal(SignalKind::user_defined2()))
    else {
        return;
    };
    loop {
        let fault = tokio::select! {
            _ = first.recv() => Command::Fault,
            _ = second.recv() => Command::FaultOfTunnel,
        };
        if control.send(fault).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_loop_becomes_a_try_in_half_a_minute_and_calm_forgives() {
        let (mut backoff, mut now) = (Backoff::default(), Instant::now());
        let mut pauses = Vec::new();
        for _ in 0..40 {
            let pause = backoff.handle_panic(now);
            pauses.push(pause);
            now += pause;
        }
        assert_eq!((pauses[0], pauses[1]), (MIN_PAUSE, MIN_PAUSE * 2));
        assert!(pauses.is_sorted() && pauses[39] == MAX_PAUSE);
        assert_eq!(backoff.handle_panic(now + CALM_TIMEOUT), MIN_PAUSE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_part_that_panics_runs_again_and_its_end_is_its_own() {
        let (faults, mut left) = (Faults::default(), 3_u32);
        let ended = lasting("a test", faults.clone(), async || {
            left = left.checked_sub(1).expect("out of tries");
            assert!(left != 2, "a fault");
            (left == 0).then_some("done")
        });
        assert_eq!(ended.await, "done");
        assert_eq!(faults.count(), 2);
    }
}
