//! How many packets get lost.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// The probability that a packet is lost, each one on its own.
///
/// Read from a number: from 1 to 100 it is percent, below 1 a probability (`5` and `0.05` are the same). As text it
/// may carry a percent sign, which makes it percent whatever its size (`0.5%`).
#[derive(Debug, Clone, Copy, Default, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(try_from = "f64", into = "f64")]
pub struct Loss(f64);

impl Loss {
    /// No loss.
    pub const NONE: Self = Self(0.0);

    /// A loss of `percent`, kept between 0 and 100.
    pub fn percent(percent: f64) -> Self {
        Self((percent / 100.0).clamp(0.0, 1.0))
    }

    /// Between 0 and 1.
    pub fn probability(self) -> f64 {
        self.0
    }

    /// Of two independent losses, one after the other.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self(1.0 - (1.0 - self.0) * (1.0 - other.0))
    }
}

impl TryFrom<f64> for Loss {
    type Error = &'static str;

    fn try_from(number: f64) -> Result<Self, Self::Error> {
        match number {
            0.0..1.0 => Ok(Self(number)),
            1.0..=100.0 => Ok(Self::percent(number)),
            _ => Err("loss must be a probability below 1, or percent from 1 to 100"),
        }
    }
}

impl From<Loss> for f64 {
    fn from(loss: Loss) -> Self {
        // A certain loss as a number would be read as one percent.
        if loss.0 < 1.0 { loss.0 } else { 100.0 }
    }
}

impl FromStr for Loss {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (number, percent) = text.strip_suffix('%').map_or((text, false), |number| (number, true));
        let number: f64 = number.trim().parse().map_err(|_| format!("{text:?} is not a number"))?;
        if percent && (0.0..=100.0).contains(&number) {
            return Ok(Self::percent(number));
        }
        Self::try_from(number).map_err(str::to_owned)
    }
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Five digits hide what the division by a hundred left.
        write!(f, "{} %", (self.0 * 1e7).round() / 1e5)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_percent_from_one_on_and_a_probability_below() {
        for (text, probability) in [("0", 0.0), ("5", 0.05), ("0.05", 0.05), ("1", 0.01), ("100", 1.0)] {
            let loss: Loss = text.parse().unwrap();
            assert!((loss.probability() - probability).abs() < 1e-12, "{text}: {loss:?}");
        }
    }

    #[test]
    fn a_percent_sign_settles_what_is_meant() {
        assert_eq!("0.5%".parse::<Loss>().unwrap(), Loss::percent(0.5));
        assert_eq!("0.5%".parse::<Loss>().unwrap().to_string(), "0.5 %");
    }

    #[test]
    fn what_is_no_loss_is_refused() {
        for text in ["-1", "101", "NaN", "five", "200%", ""] {
            text.parse::<Loss>().unwrap_err();
        }
    }

    #[test]
    fn one_loss_after_another_adds_up_but_for_what_was_lost_already() {
        let both = Loss::percent(50.0).and(Loss::percent(50.0));
        assert!((both.probability() - 0.75).abs() < 1e-12);
    }
}
