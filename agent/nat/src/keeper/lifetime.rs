//! What the experiments said about the lifetime of promoted bindings, and the interval that follows from it.

use std::time::Duration;

use super::{
    link::Link,
    sequence::{LONG, ONCE, Plan, SHORT, time_to_get_through},
};
use crate::Promotion;

/// A keepalive has this long to get through, however good the path is.
const MARGIN: Duration = Duration::from_millis(1500);
/// Clocks and timers of NATs are coarse.
const COARSENESS: f64 = 0.005;
/// Never give away more of a short lifetime than this.
const LARGEST_SHARE: f64 = 0.25;
/// What is left of a lifetime of which a canary died, and of one that turned out to be coarse.
const GIVE_WAY: f64 = 0.97;
pub(super) const DOUBT: f64 = 0.85;
/// A NAT looks at its timers at least this often, and no lifetime was ever overestimated beyond this share.
const COARSEST: Duration = Duration::from_secs(75);
const LEAST: f64 = 0.12;
/// A bracket this narrow is not worth another experiment.
const NARROW: f64 = 0.0075;
pub(super) const NARROWEST: Duration = Duration::from_millis(500);

impl Promotion {
    /// The series that promotes a binding.
    pub(super) fn plan(self) -> Plan {
        match self {
            Self::None => ONCE,
            Self::Short => SHORT,
            Self::Unknown | Self::Long => LONG,
        }
    }

    /// Whether every keepalive with its companion promotes a binding that was lost meanwhile.
    pub(super) fn heals_by_itself(self) -> bool {
        matches!(self, Self::None | Self::Short)
    }
}

/// The bracket of the lifetime.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Lifetime {
    /// Bindings lived so long.
    pub(super) at_least: Duration,
    /// A binding was gone after so long.
    pub(super) less_than: Option<Duration>,
    pub(super) promotion: Promotion,
    /// Proven ages died again and again: the NAT looks at its timers only once in a while, so that an age that one
    /// binding reached proves little for the next.
    pub(super) coarse: bool,
    /// What was believed before the first doubt.
    pub(super) trusted: Duration,
}

impl Lifetime {
    pub(super) fn alive(&mut self, age: Duration) {
        if self.coarse && self.less_than.is_some_and(|end| age >= end) {
            return;
        }
        self.at_least = self.at_least.max(age);
        if self.less_than.is_some_and(|end| end <= self.at_least) {
            self.less_than = None;
        }
    }

    pub(super) fn dead(&mut self, age: Duration) {
        if age > self.at_least && self.less_than.is_none_or(|end| age < end) {
            self.less_than = Some(age);
        }
    }

    /// Gives way a little: an age died that is slightly above what is in use.
    pub(super) fn give_way(&mut self) {
        self.lower(GIVE_WAY);
    }

    /// Gives way for good: proven ages died again, though not each time. `false`: it has given way for more than any
    /// NAT is coarse, so age is not what they died of.
    pub(super) fn doubt(&mut self) -> bool {
        self.trusted = self.trusted.max(self.at_least);
        self.coarse = true;
        self.lower(DOUBT);
        let plausible = self.trusted.saturating_sub(COARSEST).max(self.trusted.mul_f64(LEAST));
        if self.at_least >= plausible {
            return true;
        }
        self.at_least = self.trusted.mul_f64(GIVE_WAY);
        self.coarse = false;
        self.trusted = Duration::ZERO;
        false
    }

    fn lower(&mut self, share: f64) {
        self.less_than = Some(self.at_least);
        self.at_least = self.at_least.mul_f64(share).min(self.at_least.saturating_sub(NARROWEST));
    }

    /// A coarse NAT kept bindings of this age repeatedly.
    pub(super) fn regain(&mut self, age: Duration) {
        self.at_least = age;
        self.less_than = Some(age.mul_f64(1.0 + 2.0 * (1.0 - GIVE_WAY)));
    }

    /// It ends between these now, whatever was thought before.
    pub(super) fn shrank(&mut self, at_least: Duration, less_than: Duration) {
        self.at_least = at_least;
        self.less_than = Some(less_than);
        self.trusted = Duration::ZERO;
    }

    /// Nothing is known any more but what promotes a binding.
    pub(super) fn forget(&mut self) {
        *self = Self { promotion: self.promotion, coarse: self.coarse, ..Self::default() };
    }

    pub(super) fn is_narrow(&self) -> bool {
        self.less_than.is_some_and(|end| {
            end.saturating_sub(self.at_least) <= self.at_least.mul_f64(NARROW).max(NARROWEST)
        })
    }

    /// How long before its proven age a binding is refreshed.
    pub(super) fn margin(&self, link: &Link) -> Duration {
        let through = time_to_get_through(link) + Duration::from_millis(500);
        let margin = MARGIN.max(through) + self.at_least.mul_f64(COARSENESS);
        margin.min(self.at_least.mul_f64(LARGEST_SHARE))
    }

    /// How long the live channel may be silent. `None`: nothing is known.
    pub(super) fn interval(&self, link: &Link) -> Option<Duration> {
        (!self.at_least.is_zero()).then(|| self.at_least.saturating_sub(self.margin(link)))
    }
}
