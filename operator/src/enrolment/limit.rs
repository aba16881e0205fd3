//! How many enrolments a gateway may ask for. Pure.

use std::{collections::HashMap, time::Instant};

use crate::fleet::GatewayKey;

/// Enrolments at once, after a rest.
const BURST: f64 = 64.0;

/// Enrolments a second, for good.
const RATE: f64 = 16.0;

/// Gateways that are remembered; beyond it, rested ones are forgotten first.
const MOST_GATEWAYS: usize = 4096;

/// A token bucket for each gateway.
#[derive(Debug, Default)]
pub(super) struct Limits {
    buckets: HashMap<GatewayKey, (f64, Instant)>,
}

impl Limits {
    /// Whether the gateway may ask once more at `now`; if so, that is counted.
    pub(super) fn take(&mut self, gateway: &GatewayKey, now: Instant) -> bool {
        if self.buckets.len() >= MOST_GATEWAYS {
            self.buckets.retain(|_, bucket| level(*bucket, now) < BURST);
        }
        let bucket = self.buckets.entry(gateway.clone()).or_insert((BURST, now));
        let level = level(*bucket, now);
        let allowed = level >= 1.0;
        *bucket = (if allowed { level - 1.0 } else { level }, now);
        allowed
    }
}

fn level((level, at): (f64, Instant), now: Instant) -> f64 {
    (level + now.saturating_duration_since(at).as_secs_f64() * RATE).min(BURST)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_flood_through_one_gateway_is_cut_to_the_rate_and_leaves_others_alone() {
        let (mut limits, start) = (Limits::default(), Instant::now());
        let (one, other) = (GatewayKey::new("vpn", "edge"), GatewayKey::new("vpn", "other"));
        let allowed =
            (0..10_000u32).filter(|n| limits.take(&one, start + Duration::from_millis(1) * *n)).count();
        // 10 s: the burst and 16 a second.
        assert!((64 + 159..=64 + 161).contains(&allowed), "{allowed}");
        assert!(limits.take(&other, start + Duration::from_secs(10)));
    }
}
