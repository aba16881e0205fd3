//! Pings from a client to a pod, through the tunnel and nothing else.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use tokio::{sync::mpsc::UnboundedSender, task::JoinHandle, time::MissedTickBehavior};

use super::view::Ping;
use crate::{host::Host, ping::round_trip};

/// The tunnel's network device on every client.
const DEVICE: &str = "vpn0";
const EVERY: Duration = Duration::from_millis(200);
/// Seconds to wait for an answer.
const PATIENCE: &str = "0.5";

/// Pings until dropped.
#[derive(Debug)]
pub(crate) struct Pinger(JoinHandle<()>);

impl Pinger {
    /// Starts to ping from `host`, and reports each ping together with `tag`. Times count from `epoch`.
    pub(crate) fn start(
        host: &Host,
        target: IpAddr,
        epoch: Instant,
        tag: usize,
        report: UnboundedSender<(usize, Ping)>,
    ) -> Self {
        // Bound to the device: without a tunnel no ping gets anywhere, whatever else leads to the pod.
        let command = host.command("ping").args(["-n", "-c", "1", "-W", PATIENCE, "-I", DEVICE]);
        let command = command.arg(target.to_string());
        let task = async move {
            let mut pace = tokio::time::interval(EVERY);
            pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                pace.tick().await;
                let sent = epoch.elapsed();
                let rtt = command.output().await.ok().and_then(|output| round_trip(&output.stdout));
                if report.send((tag, Ping { sent, rtt })).is_err() {
                    return;
                }
            }
        };
        Self(tokio::spawn(task))
    }
}

impl Drop for Pinger {
    fn drop(&mut self) {
        self.0.abort();
    }
}
