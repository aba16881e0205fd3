//! How long a radio is on: from each packet until its tail is over, and what that costs.

use std::time::Duration;

use crate::model::Time;

/// A kind of radio. It stays on for a while after each packet, and costs something to be woken.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Radio {
    /// After the last packet.
    pub tail: Duration,
    /// While it is on, in watts.
    pub watts: f64,
    /// Each time it is switched on, in joules.
    pub promotion: f64,
}

/// LTE: a tail of 11.576 s at 1060 mW, promoted in 260 ms at 1211 mW (Huang et al., "A Close Examination of Performance
/// and Power Characteristics of 4G LTE Networks", MobiSys 2012, table 3; from memory).
pub const LTE: Radio = Radio { tail: Duration::from_millis(11_576), watts: 1.06, promotion: 0.2601 * 1.2107 };

/// Wi-Fi in power save mode: a tail of 238 ms at 119 mW, promoted in 79 ms at 124 mW (the same table).
pub const WIFI: Radio = Radio { tail: Duration::from_millis(238), watts: 0.1193, promotion: 0.0791 * 0.1244 };

/// Adds up.
#[derive(Debug, Clone, Copy)]
pub struct Awake {
    radio: Radio,
    /// Until when it is on.
    until: Option<Time>,
    on: Duration,
    times: u64,
}

/// What one radio came to.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Spent {
    /// How long it was on.
    pub on: Duration,
    /// In joules.
    pub joules: f64,
}

impl Awake {
    /// A radio that sleeps.
    pub fn new(radio: Radio) -> Self {
        Self { radio, until: None, on: Duration::ZERO, times: 0 }
    }

    /// A packet was sent or received. Times do not decrease.
    pub fn note(&mut self, now: Time) {
        let until = now + self.radio.tail;
        if let Some(on) = self.until.filter(|on| now <= *on) {
            self.on += until.since(on);
        } else {
            self.on += self.radio.tail;
            self.times += 1;
        }
        self.until = Some(until);
    }

    /// All of it, tails included.
    #[expect(clippy::cast_precision_loss, reason = "far fewer than 2^52")]
    pub fn spent(&self) -> Spent {
        let joules = self.on.as_secs_f64() * self.radio.watts + self.times as f64 * self.radio.promotion;
        Spent { on: self.on, joules }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spent(seconds: &[f64]) -> Spent {
        let radio = Radio { tail: Duration::from_secs(10), watts: 2.0, promotion: 1.0 };
        let mut awake = Awake::new(radio);
        for second in seconds {
            awake.note(Time::from_secs_f64(*second));
        }
        awake.spent()
    }

    #[test]
    fn tails_that_overlap_count_once_and_each_awakening_has_its_price() {
        assert_eq!(spent(&[]), Spent::default());
        assert_eq!(spent(&[5.0]), Spent { on: Duration::from_secs(10), joules: 21.0 });
        assert_eq!(spent(&[5.0, 8.0, 15.0]), Spent { on: Duration::from_secs(20), joules: 41.0 });
        assert_eq!(spent(&[5.0, 16.0]), Spent { on: Duration::from_secs(20), joules: 42.0 });
    }
}
