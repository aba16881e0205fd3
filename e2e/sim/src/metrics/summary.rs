//! The figures of one algorithm over a fleet.

use serde::Serialize;

use super::{Fault, FaultKind, Outcome, Reached, Spent};
use crate::model::{Profile, Time};

/// One row of the comparison. Times are in seconds, shares and ratios plain numbers. `None`: there was nothing to take
/// it from.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// The algorithm.
    pub name: String,
    /// Share of wake tests that reached the client.
    pub wake_success: f64,
    /// Wake-ups per client and day.
    pub wakes_per_client_day: f64,
    /// The same if only what clients send counted.
    pub sent_wakes_per_client_day: f64,
    /// Wake-ups over those of the oracle, mean over clients.
    pub oracle_ratio: f64,
    /// The same after convergence, without re-validation probes.
    pub oracle_ratio_converged: Option<f64>,
    /// Packets sent or received, per client and day.
    pub packets_per_client_day: f64,
    /// Their bytes.
    pub bytes_per_client_day: f64,
    /// What they cost an LTE radio.
    pub lte: Energy,
    /// What they cost a Wi-Fi radio.
    pub wifi: Energy,
    /// When the interval in force came to 90 % of its median over hours 6 to 24.
    pub converge_s_p50: Option<f64>,
    /// The same for 99 of 100 clients.
    pub converge_s_p99: Option<f64>,
    /// The first verdict on the lifetime.
    pub verdict_s_p50: Option<f64>,
    /// The same for 99 of 100 clients.
    pub verdict_s_p99: Option<f64>,
    /// Share of clients with a verdict within 1.3 lifetimes and 30 s.
    pub verdict_in_time: f64,
    /// Blind time for each fault of any kind.
    pub blind_s_p50: Option<f64>,
    /// The same for 99 of 100 faults.
    pub blind_s_p99: Option<f64>,
    /// By kind of fault.
    pub faults: Faults,
    /// The profile with the lowest wake success.
    pub worst_profile: String,
    /// Its figures.
    pub worst: Option<ByProfile>,
    /// All profiles that had clients.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub profiles: Vec<ByProfile>,
}

/// What packets cost one kind of radio, per client and day.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Energy {
    /// Seconds that it is on.
    pub on_s: f64,
    /// Joules beyond those of a radio that sleeps.
    pub joules: f64,
    /// Share of that which a static keepalive of 25 s would have cost more, where it was run as well.
    pub saved_of_static_25s: Option<f64>,
}

impl Energy {
    fn new(spent: impl Iterator<Item = Spent> + Clone, per_day: impl Fn(f64) -> f64) -> Self {
        Self {
            on_s: per_day(spent.clone().map(|spent| spent.on.as_secs_f64()).sum()),
            joules: per_day(spent.map(|spent| spent.joules).sum()),
            saved_of_static_25s: None,
        }
    }

    fn compare(&mut self, other: Self) {
        self.saved_of_static_25s = (other.joules > 0.0).then(|| 1.0 - self.joules / other.joules);
    }
}

/// Tells each row what it saves against a static keepalive, where there is a row of one.
pub fn compare(rows: &mut [Summary]) {
    let Some((lte, wifi)) = rows.iter().find(|row| row.name == "static-25s").map(|row| (row.lte, row.wifi))
    else {
        return;
    };
    for row in rows {
        row.lte.compare(lte);
        row.wifi.compare(wifi);
    }
}

/// Blind times by kind of fault.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Faults {
    /// All mappings lost, other ports after.
    pub visible_flush: Blind,
    /// All mappings lost, the same ports after.
    pub invisible_flush: Blind,
    /// The lifetime shrank.
    pub shrink: Blind,
}

/// Blind times of one kind of fault.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Blind {
    /// How many faults.
    pub count: usize,
    /// Time that is excluded from wake tests.
    pub blind_s_p50: Option<f64>,
    /// The same for 99 of 100.
    pub blind_s_p99: Option<f64>,
    /// The longest blind time as a multiple of the interval in force and a round trip.
    pub blind_intervals_max: Option<f64>,
    /// Time until the path was open again.
    pub recovery_s_p50: Option<f64>,
    /// The same for 99 of 100.
    pub recovery_s_p99: Option<f64>,
}

/// The figures of one profile.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ByProfile {
    /// Its name.
    pub name: String,
    /// Clients behind it.
    pub clients: usize,
    /// Share of wake tests that reached the client.
    pub wake_success: f64,
    /// Wake-ups over those of the oracle.
    pub oracle_ratio: f64,
    /// The same after convergence, without re-validation probes.
    pub oracle_ratio_converged: Option<f64>,
    /// Wake-ups per client and day.
    pub wakes_per_client_day: f64,
}

impl Summary {
    /// Sums up what became of a fleet in so many days.
    pub fn new(name: String, days: f64, profiles: &[Profile], outcomes: &[Outcome]) -> Self {
        let per_day = |total: f64| total / (count(outcomes) * days);
        let whole = Group::of(outcomes.iter());
        let faults = || outcomes.iter().flat_map(|outcome| &outcome.faults);
        let (blind_s_p50, blind_s_p99) = percentiles(faults().map(|fault| fault.blind.as_secs_f64()));
        let seconds = |time: fn(&Outcome) -> Option<Time>| {
            let times =
                outcomes.iter().map(move |outcome| time(outcome).map_or(f64::INFINITY, Time::as_secs_f64));
            percentiles(times)
        };
        let (converge_s_p50, converge_s_p99) = seconds(|outcome| outcome.converge);
        let (verdict_s_p50, verdict_s_p99) = seconds(|outcome| outcome.verdict);
        let by_profile = by_profile(days, profiles, outcomes);
        let worst =
            by_profile.iter().min_by(|left, right| left.wake_success.total_cmp(&right.wake_success)).cloned();
        Self {
            name,
            wake_success: whole.reached.success(),
            wakes_per_client_day: per_day(sum(outcomes, |outcome| outcome.wakes)),
            sent_wakes_per_client_day: per_day(sum(outcomes, |outcome| outcome.wakes_sent)),
            oracle_ratio: whole.ratio,
            oracle_ratio_converged: whole.ratio_converged,
            packets_per_client_day: per_day(sum(outcomes, |outcome| outcome.packets)),
            bytes_per_client_day: per_day(sum(outcomes, |outcome| outcome.bytes)),
            lte: Energy::new(outcomes.iter().map(|outcome| outcome.lte), per_day),
            wifi: Energy::new(outcomes.iter().map(|outcome| outcome.wifi), per_day),
            converge_s_p50,
            converge_s_p99,
            verdict_s_p50,
            verdict_s_p99,
            verdict_in_time: sum(outcomes, |outcome| u64::from(in_time(outcome))) / count(outcomes),
            blind_s_p50,
            blind_s_p99,
            faults: Faults {
                visible_flush: Blind::of(FaultKind::VisibleFlush, faults()),
                invisible_flush: Blind::of(FaultKind::InvisibleFlush, faults()),
                shrink: Blind::of(FaultKind::Shrink, faults()),
            },
            worst_profile: worst.as_ref().map(|worst| worst.name.clone()).unwrap_or_default(),
            worst,
            profiles: by_profile,
        }
    }
}

impl Blind {
    fn of<'a>(kind: FaultKind, faults: impl Iterator<Item = &'a Fault>) -> Self {
        let faults: Vec<&Fault> = faults.filter(|fault| fault.kind == kind).collect();
        let (blind_s_p50, blind_s_p99) = percentiles(faults.iter().map(|fault| fault.blind.as_secs_f64()));
        let recoveries = faults.iter().filter_map(|fault| fault.recovery);
        let (recovery_s_p50, recovery_s_p99) = percentiles(recoveries.map(|recovery| recovery.as_secs_f64()));
        let intervals = faults.iter().map(|fault| fault.blind.as_secs_f64() / fault.allowed.as_secs_f64());
        let blind_intervals_max = intervals.max_by(f64::total_cmp);
        let count = faults.len();
        Self { count, blind_s_p50, blind_s_p99, blind_intervals_max, recovery_s_p50, recovery_s_p99 }
    }
}

/// Means over clients.
struct Group {
    reached: Reached,
    ratio: f64,
    ratio_converged: Option<f64>,
}

impl Group {
    fn of<'a>(outcomes: impl Iterator<Item = &'a Outcome>) -> Self {
        let mut reached = Reached::default();
        let (mut ratios, mut converged) = (Mean::default(), Mean::default());
        for outcome in outcomes {
            reached += outcome.reached;
            ratios.add(outcome.wakes, outcome.wakes_oracle);
            if let Some((wakes, oracle)) = outcome.converged {
                converged.add(wakes, oracle);
            }
        }
        Self { reached, ratio: ratios.mean().unwrap_or(f64::NAN), ratio_converged: converged.mean() }
    }
}

#[derive(Default)]
struct Mean {
    total: f64,
    count: f64,
}

impl Mean {
    #[expect(clippy::cast_precision_loss, reason = "far fewer than 2^52")]
    fn add(&mut self, wakes: u64, oracle: u64) {
        if oracle > 0 {
            self.total += wakes as f64 / oracle as f64;
            self.count += 1.0;
        }
    }

    fn mean(&self) -> Option<f64> {
        (self.count > 0.0).then(|| self.total / self.count)
    }
}

fn by_profile(days: f64, profiles: &[Profile], outcomes: &[Outcome]) -> Vec<ByProfile> {
    let mut groups: Vec<Vec<&Outcome>> = vec![Vec::new(); profiles.len()];
    for outcome in outcomes {
        if let Some(group) = groups.get_mut(outcome.profile) {
            group.push(outcome);
        }
    }
    let filled = profiles.iter().zip(groups).filter(|(_, group)| !group.is_empty());
    filled
        .map(|(profile, group)| {
            let means = Group::of(group.iter().copied());
            let wakes = sum(group.iter().copied(), |outcome| outcome.wakes);
            ByProfile {
                name: profile.name.clone(),
                clients: group.len(),
                wake_success: means.reached.success(),
                oracle_ratio: means.ratio,
                oracle_ratio_converged: means.ratio_converged,
                wakes_per_client_day: wakes / (count(&group) * days),
            }
        })
        .collect()
}

/// Whether the first verdict came within 1.3 lifetimes and 30 s.
fn in_time(outcome: &Outcome) -> bool {
    let limit = outcome.lifetime.as_secs_f64() * 1.3 + 30.0;
    outcome.verdict.is_some_and(|verdict| verdict.as_secs_f64() <= limit)
}

#[expect(clippy::cast_precision_loss, reason = "far fewer than 2^52")]
fn sum<'a>(outcomes: impl IntoIterator<Item = &'a Outcome>, of: impl Fn(&Outcome) -> u64) -> f64 {
    outcomes.into_iter().map(of).sum::<u64>() as f64
}

#[expect(clippy::cast_precision_loss, reason = "far fewer than 2^52")]
fn count<T>(outcomes: &[T]) -> f64 {
    outcomes.len() as f64
}

/// The median and the 99th percentile, by nearest rank. `None` where nothing, or never, is at that rank.
fn percentiles(values: impl Iterator<Item = f64>) -> (Option<f64>, Option<f64>) {
    let mut values: Vec<f64> = values.collect();
    values.sort_unstable_by(f64::total_cmp);
    let rank = |percent: usize| {
        let place = (values.len() * percent).div_ceil(100).saturating_sub(1);
        values.get(place).copied().filter(|value| value.is_finite())
    };
    (rank(50), rank(99))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn outcome(profile: usize, wakes: u64, wakes_oracle: u64) -> Outcome {
        Outcome {
            profile,
            reached: Reached { tested_s: 100.0, failed_s: 1.0 },
            wakes,
            wakes_sent: wakes / 2,
            wakes_oracle,
            converged: Some((wakes / 10, wakes_oracle / 10)),
            converge: Some(Time::from_secs(60)),
            verdict: Some(Time::from_secs(wakes)),
            lifetime: Duration::from_secs(100),
            packets: 3 * wakes,
            bytes: 300 * wakes,
            lte: Spent::default(),
            wifi: Spent::default(),
            faults: Vec::new(),
        }
    }

    fn summary(outcomes: &[Outcome]) -> Summary {
        let nats = ["a", "b"].map(|name| Profile::new(name, 100.0, 100.0));
        Summary::new("mine".to_owned(), 2.0, &nats, outcomes)
    }

    fn close(left: f64, right: f64) {
        assert!((left - right).abs() < 1e-9, "{left} is not {right}");
    }

    #[test]
    fn ratios_are_means_over_clients_not_over_wakes() {
        let summary = summary(&[outcome(0, 100, 100), outcome(0, 300, 100), outcome(1, 1000, 1000)]);
        close(summary.oracle_ratio, 5.0 / 3.0);
        close(summary.oracle_ratio_converged.unwrap(), 5.0 / 3.0);
        close(summary.wakes_per_client_day, 1400.0 / 6.0);
        close(summary.sent_wakes_per_client_day, 700.0 / 6.0);
        close(summary.packets_per_client_day, 700.0);
    }

    #[test]
    fn a_client_that_did_not_converge_counts_as_never() {
        let mut never = outcome(0, 100, 100);
        (never.converge, never.converged, never.verdict) = (None, None, None);
        let summary = summary(&[outcome(0, 100, 100), never]);
        assert_eq!((summary.converge_s_p50, summary.converge_s_p99), (Some(60.0), None));
        assert_eq!(summary.oracle_ratio_converged, Some(1.0));
        close(summary.verdict_in_time, 0.5);
    }

    #[test]
    fn a_verdict_is_in_time_within_1_3_lifetimes_and_30_s() {
        close(summary(&[outcome(0, 160, 100), outcome(0, 161, 100)]).verdict_in_time, 0.5);
    }

    #[test]
    fn the_worst_profile_has_the_lowest_success() {
        let mut failing = outcome(1, 100, 100);
        failing.reached.failed_s = 20.0;
        let summary = summary(&[outcome(0, 100, 100), outcome(0, 100, 100), failing]);
        assert_eq!(summary.worst_profile, "b");
        close(summary.worst.unwrap().wake_success, 0.8);
        close(summary.wake_success, 1.0 - 22.0 / 300.0);
    }

    #[test]
    fn blind_times_are_told_by_kind_of_fault() {
        let fault = |kind, secs| Fault {
            kind,
            blind: Duration::from_secs(secs),
            recovery: (kind != FaultKind::Shrink).then_some(Duration::from_secs(secs + 1)),
            allowed: Duration::from_secs(50),
        };
        let mut blinded = outcome(0, 100, 100);
        blinded.faults = vec![
            fault(FaultKind::InvisibleFlush, 20),
            fault(FaultKind::InvisibleFlush, 40),
            fault(FaultKind::Shrink, 9),
        ];
        let summary = summary(&[blinded]);
        let invisible = &summary.faults.invisible_flush;
        assert_eq!(
            (invisible.count, invisible.blind_s_p50, invisible.blind_s_p99),
            (2, Some(20.0), Some(40.0))
        );
        assert_eq!(invisible.recovery_s_p99, Some(41.0));
        close(invisible.blind_intervals_max.unwrap(), 0.8);
        assert_eq!(summary.faults.visible_flush.count, 0);
        assert_eq!(summary.faults.shrink.recovery_s_p50, None);
        assert_eq!((summary.blind_s_p50, summary.blind_s_p99), (Some(20.0), Some(40.0)));
    }
}
