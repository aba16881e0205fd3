//! The control begins anew after a panic. The tunnel, what it was told last and the sums stay; all that was known of single
//! clients is learnt again, and their sessions and the operator's stream are made anew.

use std::{
    panic::AssertUnwindSafe,
    time::{Duration, Instant, SystemTime},
};

use futures::FutureExt as _;
use pinhole_proto::v1;
use tokio::{sync::mpsc, time::timeout};
use tokio_util::sync::CancellationToken;

use super::{Control, Inputs};
use crate::gateway::{
    GatewayError,
    command::{Command, Readiness},
    faults::Backoff,
    metrics::render,
};

/// For how long the operator hears of a restart: longer than any report takes to get there.
const TOLD_TIMEOUT: Duration = Duration::from_mins(10);

/// What the operator makes an Event of.
const CATEGORY: &str = "ControlRestarted";

/// Restarts of the control.
#[derive(Debug, Default)]
pub(super) struct Restarts {
    backoff: Backoff,
    count: u64,
    last: Option<Instant>,
}

impl Restarts {
    pub(super) fn impairment(&self, now: Instant) -> Option<v1::Impairment> {
        let last = self.last.filter(|last| now.saturating_duration_since(*last) < TOLD_TIMEOUT)?;
        let message = format!(
            "the gateway's control panicked and began anew, {} s ago ({} times since the gateway started); tunnels went on: \
             please report what its log says",
            now.saturating_duration_since(last).as_secs(),
            self.count
        );
        Some(v1::Impairment { category: CATEGORY.to_owned(), message })
    }
}

impl Control {
    /// Runs until `stop`, or until the data plane ends. A panic ends neither.
    pub(in crate::gateway) async fn run(
        &mut self,
        mut inputs: Inputs,
        stop: CancellationToken,
    ) -> Result<(), GatewayError> {
        let mut begins = false;
        loop {
            // What a panic may leave half done is thrown away in `begin_anew`, but for the tunnel, which has its own
            // threads, and the sums.
            let work = async {
                if begins {
                    self.begin_anew(Instant::now());
                }
                self.turn(&mut inputs, &stop).await
            };
            if let Ok(ended) = AssertUnwindSafe(work).catch_unwind().await {
                return ended;
            }
            begins = true;
            let now = Instant::now();
            let pause = self.restarts.backoff.handle_panic(now);
            self.restarts.count += 1;
            self.restarts.last = Some(now);
            self.setup.faults.add();
            tracing::error!(begins_in = ?pause, "the control panicked and begins anew; the tunnels go on");
            self.let_go();
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = self.rest(&mut inputs.commands, pause) => {}
            }
        }
    }

    /// Ends what hangs on the control: those at the other ends come again.
    fn let_go(&mut self) {
        self.sessions.clear();
        self.operator = None;
        self.setup.served.send_modify(|served| served.attached = None);
    }

    /// Answers health probes while nothing else is done: a gateway that forwards is not to be killed. Whoever else asks
    /// something hears that it is not there.
    async fn rest(&self, commands: &mut mpsc::Receiver<Command>, pause: Duration) {
        let answer = async {
            while let Some(command) = commands.recv().await {
                match command {
                    Command::Ready(answer) => {
                        let reason =
                            "the control panicked and begins anew in a moment; tunnels go on".to_owned();
                        let _ = answer.send(Readiness { ready: false, reason });
                    }
                    Command::Metrics(answer) => {
                        let faults = self.setup.faults.count();
                        let _ = answer
                            .send(render(&self.counters, &super::Gauges { faults, ..Default::default() }));
                    }
                    _ => {}
                }
            }
        };
        let _ = timeout(pause, answer).await;
    }

    /// Forgets all that was known of clients, and goes by the last snapshot again.
    fn begin_anew(&mut self, now: Instant) {
        // Only now: of a stream that came up during the pause nobody took note.
        self.lives += 1;
        let lives = self.lives;
        self.setup.running.send_modify(|running| running.lives = lives);
        let sleepers = std::mem::take(&mut self.sleepers);
        if let Some(tunnel) = &self.tunnel {
            // Nobody could wake them before their sessions are back.
            for peer in sleepers.keys() {
                tunnel.hold_after(peer, None);
            }
        }
        self.health = super::GatewayHealth::new();
        self.neighbours = super::Neighbours::new(self.setup.listen_port);
        self.shared_keys = super::SharedKeys::default();
        self.agents.clear();
        self.changes.clear();
        self.accounted.clear();
        self.nat_states.clear();
        self.stats.clear();
        self.sampled = None;
        self.proving = false;
        self.next_proof = self.tunnel.is_some().then_some(now);
        let Some(desired) = self.ends.again(now, SystemTime::now()) else { return };
        self.adopt(now, &desired);
        self.serve(&desired);
        // Peers that stay keep their sessions: it is the same set again, whatever became of the last one.
        let _ = self.apply_tunnel(&desired);
    }
}
