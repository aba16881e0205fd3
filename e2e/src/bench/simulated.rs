//! What the simulator says of a NAT of the lab.

use std::{num::NonZero, time::Duration};

use pinhole_sim::{
    fleet::{Fleet, Kind},
    model::{Loss, Profile},
};

use super::lifetime;
use crate::nat::Truth;

/// Clients of the mean.
const CLIENTS: usize = 40;
const SEED: u64 = 11;

/// How many bursts a client has behind it on average, in the `span` that begins `since` after its first packet.
pub(super) fn bursts(name: &str, truth: &Truth, since: Duration, span: Duration) -> f64 {
    let until = |duration| {
        let fleet = Fleet {
            profiles: vec![profile(name, truth)],
            clients: CLIENTS,
            duration,
            loss: Loss::NONE,
            seed: SEED,
            threads: NonZero::<usize>::MIN,
        };
        fleet.run(Kind::Pinhole, &|_| ()).iter().map(|outcome| outcome.wakes).sum::<u64>()
    };
    #[expect(clippy::cast_precision_loss, reason = "they are few")]
    let mean = until(since + span).saturating_sub(until(since)) as f64 / CLIENTS as f64;
    mean
}

fn profile(name: &str, truth: &Truth) -> Profile {
    let (replied, _) = lifetime(truth);
    let unreplied = truth.unreplied.min(replied);
    Profile {
        mapping: truth.mapping,
        filtering: truth.filtering,
        port: truth.port,
        promote_after_s: truth.promote_after.as_secs_f64(),
        refresh: truth.refresh,
        sweep_s: truth.sweep.as_secs_f64(),
        loss: truth.loss,
        rtt_ms: (truth.round_trip.as_secs_f64() * 1e3).max(1.0),
        ..Profile::new(name, unreplied.as_secs_f64(), replied.as_secs_f64())
    }
}
