//! Traffic by iperf3 and ping.

use std::time::Duration;

use serde::Deserialize;

use super::{pair::Pair, scenario::Way};
use crate::{
    error::{Error, Result},
    ping::milliseconds,
    process::Command,
    progress,
};

/// Round trips per second that are timed: so few that they cost nothing.
const PINGS: u32 = 100;
/// How often a load may fail to begin, and how long until it is tried again.
const ATTEMPTS: u32 = 5;
const PAUSE: Duration = Duration::from_millis(300);

/// What arrived of a load.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Carried {
    bytes: f64,
    seconds: f64,
    /// Segments that TCP sent again.
    pub(super) resent: f64,
    /// Percent of datagrams that were lost.
    pub(super) loss: f64,
}

impl Carried {
    /// Gbit/s.
    pub(super) fn rate(self) -> f64 {
        self.bytes * 8.0 / 1e9 / self.seconds.max(0.001)
    }

    /// Datagrams of this size per second.
    pub(super) fn packet_rate(self, size: u32) -> f64 {
        self.bytes / f64::from(size) / self.seconds.max(0.001)
    }

    /// 10⁹ bytes.
    pub(super) fn gigabytes(self) -> f64 {
        self.bytes.max(1.0) / 1e9
    }
}

/// What iperf3 says at the end, as far as it is of interest.
#[derive(Debug, Deserialize)]
struct Said {
    #[serde(default)]
    end: End,
    error: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
struct End {
    sum: Option<Sum>,
    sum_sent: Option<Sum>,
    sum_received: Option<Sum>,
    sum_sent_bidir_reverse: Option<Sum>,
    sum_received_bidir_reverse: Option<Sum>,
}

#[derive(Debug, Default, Deserialize)]
struct Sum {
    #[serde(default)]
    bytes: f64,
    #[serde(default)]
    seconds: f64,
    #[serde(default)]
    retransmits: f64,
    #[serde(default)]
    lost_percent: f64,
}

/// Sends TCP, as much as goes.
pub(super) async fn tcp(pair: &Pair, (streams, way): (u32, Way), seconds: u32) -> Result<Carried> {
    let direction: &[&str] = match way {
        Way::Up => &[],
        Way::Down => &["-R"],
        Way::Both => &["--bidir"],
    };
    carry(|| load(pair, seconds).args(["-P", &streams.to_string()]).args(direction)).await
}

/// Sends UDP datagrams with this many bytes, as many as go.
pub(super) async fn udp(pair: &Pair, size: u32, seconds: u32) -> Result<Carried> {
    carry(|| load(pair, seconds).args(["-u", "-b", "0", "-l", &size.to_string()])).await
}

/// Round trips while four TCP streams fill the way there: the times of those that came back, in milliseconds, and
/// how many percent did not.
pub(super) async fn ping_under_load(pair: &Pair, seconds: u32) -> Result<(Vec<f64>, f64)> {
    let count = PINGS * seconds;
    let ping = pair.near.netns().command("ping").args([
        "-n",
        "-i",
        &format!("{}", 1.0 / f64::from(PINGS)),
        "-c",
        &count.to_string(),
        "-W",
        "1",
        &pair.target(),
    ]);
    let load = carry(|| load(pair, seconds + 1).args(["-P", "4"]));
    let (load, ping) = tokio::join!(load, ping.output());
    load?;
    let times: Vec<f64> = ping?.stdout.lines().filter_map(milliseconds).collect();
    if times.is_empty() {
        return Err(Error::Invalid(format!("{}: no ping is answered under load", pair.contender())));
    }
    let answered = u32::try_from(times.len()).unwrap_or(count).min(count);
    Ok((times, 100.0 * (1.0 - f64::from(answered) / f64::from(count))))
}

fn load(pair: &Pair, seconds: u32) -> Command {
    let target = pair.target();
    pair.near.netns().command("iperf3").args(["-J", "-c", &target, "-t", &seconds.to_string()])
}

/// Runs a load. A server of iperf3 that still clears up after the last one resets the next one's connection.
async fn carry(load: impl Fn() -> Command) -> Result<Carried> {
    let mut attempts = 1..=ATTEMPTS;
    loop {
        match carried(&load().output().await?.stdout) {
            Err(error) if attempts.next().is_some() => {
                progress::say(&format!("{error}: once more"));
                tokio::time::sleep(PAUSE).await;
            }
            result => return result,
        }
    }
}

fn carried(json: &str) -> Result<Carried> {
    let said: Said =
        serde_json::from_str(json).map_err(|error| Error::Invalid(format!("iperf3: {error}")))?;
    if let Some(error) = said.error {
        return Err(Error::Invalid(format!("iperf3: {error}")));
    }
    let End { sum, sum_sent, sum_received, sum_sent_bidir_reverse, sum_received_bidir_reverse } = said.end;
    let received = sum_received.unwrap_or_default();
    let back = sum_received_bidir_reverse.unwrap_or_default();
    let resent = [sum_sent, sum_sent_bidir_reverse].into_iter().flatten().map(|sum| sum.retransmits).sum();
    let loss = sum.map_or(0.0, |sum| sum.lost_percent);
    Ok(Carried { bytes: received.bytes + back.bytes, seconds: received.seconds, resent, loss })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_count_together() {
        let json = r#"{"end": {
            "sum_sent": {"bytes": 9, "seconds": 2, "retransmits": 3},
            "sum_received": {"bytes": 1e9, "seconds": 2.0},
            "sum_sent_bidir_reverse": {"bytes": 1, "seconds": 2, "retransmits": 4},
            "sum_received_bidir_reverse": {"bytes": 5e8, "seconds": 2}}}"#;
        let carried = carried(json).unwrap();
        assert_eq!((carried.rate(), carried.gigabytes(), carried.resent), (6.0, 1.5, 7.0));
    }

    #[test]
    fn an_error_of_iperf3_is_an_error() {
        let error = carried(r#"{"start": {}, "end": {}, "error": "unable to connect"}"#).unwrap_err();
        assert!(error.to_string().contains("unable to connect"));
        assert!(carried("").is_err());
    }
}
