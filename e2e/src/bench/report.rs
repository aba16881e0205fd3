//! What came out: a row for each NAT.

use std::{fmt, time::Duration};

use pinhole_crds::BindingLifetime;
use serde_json::{Value, json};

use super::{agree, lifetime};
use crate::{
    capture::{Burst, Kind},
    device::Status,
    nat::Truth,
};

/// What became of one client.
#[derive(Debug, Clone)]
pub struct Kept {
    /// Times that it was woken.
    pub wakes: u32,
    /// Those that would not have reached it: how long after it connected, and why not.
    pub missed: Vec<(Duration, String)>,
    /// Wake-ups, as its interface saw them: times that anything was sent or received more than three seconds after the last
    /// such time began.
    pub bursts: Vec<Burst>,
    /// The same by the agent's own count.
    pub told: u64,
    /// How long it had been connected when the count began.
    pub since: Duration,
    /// For how long it was watched.
    pub span: Duration,
    /// What it said at the end.
    pub status: Status,
    /// Whether it answered real packets at the end, and whether the NATs had said that these would reach it.
    pub really: Option<(bool, bool)>,
}

impl Kept {
    pub(super) fn really(mut self, answered_and_expected: (bool, bool)) -> Self {
        self.really = Some(answered_and_expected);
        self
    }

    /// Wake-ups a minute.
    #[expect(clippy::cast_precision_loss, reason = "they are few")]
    pub fn bursts_per_minute(&self) -> f64 {
        self.bursts.len() as f64 * 60.0 / self.span.as_secs_f64().max(1.0)
    }

    /// Wakes that reached it.
    pub fn reached(&self) -> usize {
        usize::try_from(self.wakes).unwrap_or_default().saturating_sub(self.missed.len())
    }

    /// Wake-ups that a packet of this kind began.
    pub fn begun_by(&self, kind: Kind) -> usize {
        self.bursts.iter().filter(|burst| burst.begun_by == kind).count()
    }

    fn success(&self) -> String {
        format!("{}/{}", self.reached(), self.wakes)
    }

    fn json(&self) -> Value {
        json!({
            "wakes": self.wakes,
            "reached": self.reached(),
            "bursts": self.bursts.len(),
            "burstsBegunByTCP": self.begun_by(Kind::Tcp),
            "burstsBegunByDNS": self.begun_by(Kind::Dns),
            "burstsAgent": self.told,
            "burstsPerMinute": self.bursts_per_minute(),
            "intervalSeconds": self.status.keepalive.interval_seconds,
            "missedAtSeconds": self.missed.iter().map(|(at, _)| at.as_secs_f64()).collect::<Vec<_>>(),
        })
    }
}

/// Two clients behind the same kind of NAT.
#[derive(Debug, Clone)]
pub struct Row {
    /// The NAT.
    pub name: &'static str,
    /// What holds behind it.
    pub truth: Truth,
    /// The client that learns.
    pub adaptive: Kept,
    /// The client with a static keepalive.
    pub fixed: Kept,
    /// Bursts of a client that learns, by the simulator.
    pub simulated: f64,
    /// What the API server says of the adaptive client.
    pub told: Option<BindingLifetime>,
}

/// Timers of NATs count in whole seconds, and what is measured was on its way for a while.
const TOLERANCE: Duration = Duration::from_millis(1500);

/// From here on a lifetime is a long one.
const LONG: Duration = Duration::from_mins(2);

impl Row {
    /// Whether the lifetime that the client learnt is the true one, and the API server knows the same.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn verdict(&self) -> Result<(), String> {
        let learnt = &self.adaptive.status.binding;
        let (least, most) = lifetime(&self.truth);
        if !["Bracketed", "Confirmed"].contains(&learnt.confidence.as_str()) {
            return Err(format!("{}: no verdict, but {learnt:?}", self.name));
        }
        let at_least = seconds(learnt.at_least_seconds);
        if at_least > most + TOLERANCE {
            return Err(format!("{}: it lives for {most:?} at most, not for {at_least:?}", self.name));
        }
        let less_than = learnt.less_than_seconds.map(seconds);
        if less_than.is_some_and(|less_than| less_than + TOLERANCE < least) {
            return Err(format!(
                "{}: it lives for {least:?}, and not for less than {less_than:?}",
                self.name
            ));
        }
        let told = self.told.as_ref().and_then(|told| told.at_least).map(|told| told.0);
        // Status is written anew where a lifetime changed by an eighth, and not for every narrower bracket.
        let close = TOLERANCE.max(at_least / 8);
        if told.is_none_or(|told| told.abs_diff(at_least) > close) {
            return Err(format!(
                "{}: the client says {at_least:?}, the API server {:?}",
                self.name, self.told
            ));
        }
        Ok(())
    }

    /// All that is wrong with the learning client and with what was measured of either.
    pub fn faults(&self) -> Vec<String> {
        let mut faults: Vec<String> = self.verdict().err().into_iter().collect();
        if !self.adaptive.missed.is_empty() {
            faults.push(format!("{}: out of reach at {:?}", self.name, self.adaptive.missed));
        }
        for (kind, kept) in [("adaptive", &self.adaptive), ("static", &self.fixed)] {
            let name = format!("{}, {kind}", self.name);
            faults.extend(agree(&name, &kept.bursts, kept.told).err().map(|error| error.to_string()));
            match kept.really {
                Some((answered, expected)) if answered == expected => {}
                Some((answered, expected)) => {
                    faults
                        .push(format!("{name}: answered real packets: {answered}, by the NATs: {expected}"));
                }
                None => faults.push(format!("{name}: never woken by a real packet")),
            }
        }
        faults
    }

    /// Wake-ups on the wire over what the simulator says.
    #[expect(clippy::cast_precision_loss, reason = "they are few")]
    pub fn over_simulated(&self) -> f64 {
        self.adaptive.bursts.len() as f64 / self.simulated.max(1.0)
    }

    /// Whether that is no more than it may be: a tenth, half of that where the lifetime is two minutes or longer.
    pub fn is_quiet(&self) -> bool {
        let (lifetime, _) = lifetime(&self.truth);
        self.over_simulated() <= if lifetime >= LONG { 1.05 } else { 1.1 }
    }

    fn cells(&self) -> [String; 11] {
        let learnt = &self.adaptive.status.binding;
        let (least, most) = lifetime(&self.truth);
        let span = |from: f64, to: Option<f64>| match to {
            Some(to) => format!("{from:.1}-{to:.1}"),
            None => format!("{from:.1}-"),
        };
        let (least, most) = (least.as_secs_f64(), most.as_secs_f64());
        [
            self.name.to_owned(),
            format!("{:.0}", self.truth.unreplied.as_secs_f64()),
            if least < most { format!("{least:.0}-{most:.0}") } else { format!("{least:.0}") },
            span(learnt.at_least_seconds, learnt.less_than_seconds),
            self.adaptive.status.keepalive.interval_seconds.map_or("-".to_owned(), |k| format!("{k:.1}")),
            self.adaptive.success(),
            format!("{:.1}", self.adaptive.bursts_per_minute()),
            format!("{:.2}", self.over_simulated()),
            format!("{}/{}", self.adaptive.begun_by(Kind::Tcp), self.adaptive.begun_by(Kind::Dns)),
            self.fixed.success(),
            format!("{:.1}", self.fixed.bursts_per_minute()),
        ]
    }

    fn json(&self) -> Value {
        let learnt = &self.adaptive.status.binding;
        json!({
            "name": self.name,
            "truth": {
                "unrepliedSeconds": self.truth.unreplied.as_secs_f64(),
                "repliedSeconds": self.truth.replied.as_secs_f64(),
                "sweepSeconds": self.truth.sweep.as_secs_f64(),
            },
            "learnt": {
                "atLeastSeconds": learnt.at_least_seconds,
                "lessThanSeconds": learnt.less_than_seconds,
                "confidence": learnt.confidence,
                "promotion": learnt.promotion,
            },
            "burstsSimulated": self.simulated,
            "burstsOverSimulated": self.over_simulated(),
            "adaptive": self.adaptive.json(),
            "static": self.fixed.json(),
        })
    }
}

fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or_default()
}

/// All rows; as text, a table.
#[derive(Debug, Clone)]
pub struct Report {
    /// One for each NAT, in the order of the plan.
    pub rows: Vec<Row>,
}

const HEADINGS: [&str; 11] = [
    "NAT",
    "NEW",
    "LIFETIME",
    "LEARNT",
    "INTERVAL",
    "WAKES REACHED",
    "BURSTS/MIN",
    "x SIMULATED",
    "BEGUN BY TCP/DNS",
    "STATIC 25 S",
    "BURSTS/MIN",
];

impl Report {
    /// Those whose client woke more often than it may.
    pub fn loud(&self) -> Vec<&'static str> {
        self.rows.iter().filter(|row| !row.is_quiet()).map(|row| row.name).collect()
    }

    /// Seconds throughout.
    pub fn json(&self) -> Value {
        self.rows.iter().map(Row::json).collect()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows: Vec<_> =
            std::iter::once(HEADINGS.map(str::to_owned)).chain(self.rows.iter().map(Row::cells)).collect();
        let mut widths = [0; HEADINGS.len()];
        for row in &rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.len());
            }
        }
        for row in &rows {
            let cells: Vec<_> =
                row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
            writeln!(f, "{}", cells.join("  ").trim_end())?;
        }
        match self.loud().as_slice() {
            [] => writeln!(
                f,
                "On the wire nobody woke more often than the simulator says, within its tolerance."
            ),
            loud => writeln!(f, "More wake-ups on the wire than they may be: {}.", loud.join(", ")),
        }
    }
}
