//! What is measured.

use std::{collections::BTreeMap, fmt};

use clap::ValueEnum;
use serde::Serialize;

use super::{
    handshakes,
    pair::{Pair, TUNNEL_MTU},
    traffic,
    usage::Usage,
};
use crate::error::Result;

/// A kind of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
#[value(rename_all = "kebab-case")]
pub enum Scenario {
    /// One TCP stream.
    #[value(name = "tcp-1-up")]
    Tcp1Up,
    /// One, the other way.
    #[value(name = "tcp-1-down")]
    Tcp1Down,
    /// One each way.
    #[value(name = "tcp-1-both")]
    Tcp1Both,
    /// Four TCP streams.
    #[value(name = "tcp-4-up")]
    Tcp4Up,
    /// Four, the other way.
    #[value(name = "tcp-4-down")]
    Tcp4Down,
    /// Four each way.
    #[value(name = "tcp-4-both")]
    Tcp4Both,
    /// Eight TCP streams.
    #[value(name = "tcp-8-up")]
    Tcp8Up,
    /// Eight, the other way.
    #[value(name = "tcp-8-down")]
    Tcp8Down,
    /// Eight each way.
    #[value(name = "tcp-8-both")]
    Tcp8Both,
    /// One TCP stream where the tunnel's MTU is the least that IPv6 allows.
    #[value(name = "tcp-1-mtu-1280")]
    Tcp1Mtu1280,
    /// One where it fits a network of 9000 bytes, but the cable's own is 1500: each datagram is fragmented.
    #[value(name = "tcp-1-mtu-8920")]
    Tcp1Mtu8920,
    /// One where it is about the largest that a datagram carries, over the same cable.
    #[value(name = "tcp-1-mtu-65455")]
    Tcp1Mtu65455,
    /// Datagrams of 64 bytes, as many as go.
    #[value(name = "udp-64")]
    Udp64,
    /// Datagrams of 1372 bytes, which fill a packet of 1400, as many as go.
    #[value(name = "udp-1372")]
    Udp1372,
    /// Round trips while four TCP streams fill the tunnel.
    Ping,
    /// Handshakes of many peers, as many as are answered.
    Handshakes,
}

/// Which way traffic goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    Up,
    Down,
    Both,
}

/// The work of a scenario.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    Tcp(u32, Way),
    Udp(u32),
    Ping,
    Handshakes,
}

/// What is read from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Metric {
    /// Gbit/s of payload that arrived.
    Throughput,
    /// CPU seconds of both ends' processes for 10⁹ bytes that arrived.
    CpuPerGigabyte,
    /// Segments that TCP sent again, for 10⁹ bytes that arrived.
    Retransmits,
    /// Datagrams per second that arrived, in thousands.
    PacketRate,
    /// Percent of datagrams, or of round trips, that did not.
    Loss,
    /// Milliseconds that half of all round trips stayed below.
    PingMedian,
    /// Milliseconds that 99 of 100 round trips stayed below.
    PingP99,
    /// Handshakes per second.
    Handshakes,
    /// Handshakes per CPU second of who answers.
    HandshakesPerCpu,
    /// Memory of the larger end, in MB.
    Memory,
}

impl Metric {
    /// Name and unit.
    pub(super) const fn title(self) -> &'static str {
        match self {
            Self::Throughput => "Gbit/s",
            Self::CpuPerGigabyte => "CPU-s/GB",
            Self::Retransmits => "resent/GB",
            Self::PacketRate => "kpackets/s",
            Self::Loss => "loss %",
            Self::PingMedian => "p50 ms",
            Self::PingP99 => "p99 ms",
            Self::Handshakes => "per s",
            Self::HandshakesPerCpu => "per CPU-s",
            Self::Memory => "MB",
        }
    }

    /// Whether ratios of it say something.
    pub(super) const fn is_a_quantity(self) -> bool {
        !matches!(self, Self::Retransmits | Self::Loss)
    }
}

impl Scenario {
    const fn work(self) -> Work {
        match self {
            Self::Tcp1Up | Self::Tcp1Mtu1280 | Self::Tcp1Mtu8920 | Self::Tcp1Mtu65455 => {
                Work::Tcp(1, Way::Up)
            }
            Self::Tcp1Down => Work::Tcp(1, Way::Down),
            Self::Tcp1Both => Work::Tcp(1, Way::Both),
            Self::Tcp4Up => Work::Tcp(4, Way::Up),
            Self::Tcp4Down => Work::Tcp(4, Way::Down),
            Self::Tcp4Both => Work::Tcp(4, Way::Both),
            Self::Tcp8Up => Work::Tcp(8, Way::Up),
            Self::Tcp8Down => Work::Tcp(8, Way::Down),
            Self::Tcp8Both => Work::Tcp(8, Way::Both),
            Self::Udp64 => Work::Udp(64),
            Self::Udp1372 => Work::Udp(1372),
            Self::Ping => Work::Ping,
            Self::Handshakes => Work::Handshakes,
        }
    }

    /// The tunnel's MTU meanwhile, in bytes.
    const fn mtu(self) -> u32 {
        match self {
            Self::Tcp1Mtu1280 => 1280,
            Self::Tcp1Mtu8920 => 8920,
            Self::Tcp1Mtu65455 => 65_455,
            _ => TUNNEL_MTU,
        }
    }
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.to_possible_value().as_ref().map_or("", clap::builder::PossibleValue::get_name))
    }
}

/// Does the work of a scenario for so many seconds, and reads what it gave and cost.
pub(super) async fn measure(pair: &Pair, scenario: Scenario, seconds: u32) -> Result<BTreeMap<Metric, f64>> {
    pair.set_mtu(scenario.mtu()).await?;
    let before = [pair.near.usage()?, pair.far.usage()?];
    let mut readings = BTreeMap::new();
    let mut gigabytes = None;
    match scenario.work() {
        Work::Tcp(streams, way) => {
            let carried = traffic::tcp(pair, (streams, way), seconds).await?;
            readings.insert(Metric::Throughput, carried.rate());
            readings.insert(Metric::Retransmits, carried.resent / carried.gigabytes());
            gigabytes = Some(carried.gigabytes());
        }
        Work::Udp(size) => {
            let carried = traffic::udp(pair, size, seconds).await?;
            readings.insert(Metric::Throughput, carried.rate());
            readings.insert(Metric::PacketRate, carried.packet_rate(size) / 1e3);
            readings.insert(Metric::Loss, carried.loss);
            gigabytes = Some(carried.gigabytes());
        }
        Work::Ping => {
            let (times, lost) = traffic::ping_under_load(pair, seconds).await?;
            readings.insert(Metric::Loss, lost);
            readings.extend(quantile(&times, 0.5).map(|time| (Metric::PingMedian, time)));
            readings.extend(quantile(&times, 0.99).map(|time| (Metric::PingP99, time)));
        }
        Work::Handshakes => {
            let Some(done) = handshakes::answered(pair, seconds).await? else { return Ok(readings) };
            let after = pair.far.usage()?;
            readings.insert(Metric::Handshakes, done / f64::from(seconds));
            if let (Some(before), Some(after)) = (before[1], after) {
                let cpu = after.cpu.saturating_sub(before.cpu).as_secs_f64();
                readings.insert(Metric::HandshakesPerCpu, done / cpu.max(0.01));
            }
        }
    }
    let after = [pair.near.usage()?, pair.far.usage()?];
    let used: Vec<(Usage, Usage)> = before.into_iter().flatten().zip(after.into_iter().flatten()).collect();
    if let (Some(gigabytes), false) = (gigabytes, used.is_empty()) {
        let cpu: f64 =
            used.iter().map(|(before, after)| after.cpu.saturating_sub(before.cpu).as_secs_f64()).sum();
        readings.insert(Metric::CpuPerGigabyte, cpu / gigabytes);
    }
    #[expect(clippy::cast_precision_loss, reason = "nobody has that much memory")]
    let resident = used.iter().map(|(_, after)| after.resident as f64 / 1e6).reduce(f64::max);
    readings.extend(resident.map(|resident| (Metric::Memory, resident)));
    Ok(readings)
}

/// The value below which this share of them lies; none of none.
pub(super) fn quantile(values: &[f64], share: f64) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().checked_sub(1)?;
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "few values"
    )]
    let (below, part) = {
        let place = share.clamp(0.0, 1.0) * last as f64;
        (place as usize, place.fract())
    };
    let (low, high) = (sorted.get(below)?, sorted.get((below + 1).min(last))?);
    Some(low + (high - low) * part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_lie_between_the_values_beside_them() {
        assert_eq!(quantile(&[], 0.5), None);
        assert_eq!(quantile(&[7.0], 0.99), Some(7.0));
        assert_eq!(quantile(&[3.0, 1.0, 2.0], 0.5), Some(2.0));
        assert_eq!(quantile(&[4.0, 1.0, 2.0, 3.0], 0.5), Some(2.5));
        assert_eq!(quantile(&[1.0, 2.0], 1.0), Some(2.0));
    }

    #[test]
    fn every_mtu_of_interest_is_measured() {
        let one_stream = |scenario: &&Scenario| scenario.work() == Work::Tcp(1, Way::Up);
        let mut mtus: Vec<u32> =
            Scenario::value_variants().iter().filter(one_stream).map(|scenario| scenario.mtu()).collect();
        mtus.sort_unstable();
        assert_eq!(mtus, [1280, TUNNEL_MTU, 8920, 65_455]);
    }

    #[test]
    fn every_scenario_has_a_name_to_type() {
        let names: Vec<String> = Scenario::value_variants().iter().map(ToString::to_string).collect();
        assert!(
            names.contains(&"tcp-1-up".to_owned()) && names.contains(&"handshakes".to_owned()),
            "{names:?}"
        );
    }
}
