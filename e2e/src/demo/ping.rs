//! Pings from a client to a pod, through the tunnel and nothing else.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use tokio::{sync::mpsc::UnboundedSender, task::JoinHandle, time::MissedTickBehavior};

use super::view::Ping;
use crate::host::Host;

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

/// The round trip that `ping` printed for an answer.
fn round_trip(said: &str) -> Option<Duration> {
    let answer = said.lines().find(|line| line.contains("bytes from"))?;
    let (_, rest) = answer.split_once("time=")?;
    let (number, unit) = rest.split_once(' ')?;
    let milliseconds: f64 = number.parse().ok()?;
    if unit.trim() != "ms" {
        return None;
    }
    Duration::try_from_secs_f64(milliseconds / 1000.0).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_round_trip_is_read_from_an_answer_and_nothing_else() {
        let said = "PING 10.0.0.1 (10.0.0.1) 56(84) bytes of data.\n64 bytes from 10.0.0.1: icmp_seq=1 ttl=63 time=0.842 ms\n";
        assert_eq!(round_trip(said), Some(Duration::from_micros(842)));
        let lost =
            "PING 10.0.0.1 (10.0.0.1) 56(84) bytes of data.\n\n1 packets transmitted, 0 received, time 0ms\n";
        assert_eq!(round_trip(lost), None);
        assert_eq!(round_trip("64 bytes from 10.0.0.1: icmp_seq=1 ttl=63 time=-1 ms"), None);
    }
}
