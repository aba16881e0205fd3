//! NATs that simple ladders get wrong.

use super::{lognormal, tenths};
use crate::{
    model::{PortAllocation, Profile},
    rng::Rng,
};

/// 80 NATs: half of them promote only after 5 s, half keep their mappings for 700 to 3600 s.
pub fn hard(seed: u64) -> Vec<Profile> {
    let mut rng = Rng::stream(seed, 0x6861_7264);
    let late = (0..40).map(|_| "late-promotion").chain((0..40).map(|_| "long-lived"));
    late.zip(1..)
        .map(|(family, number)| {
            let mut profile =
                if family == "long-lived" { long_lived(&mut rng) } else { late_promotion(&mut rng) };
            profile.flush_per_day = 0.02;
            profile.port = if rng.chance(0.6) { PortAllocation::Preserve } else { PortAllocation::Random };
            profile.refresh.inbound = rng.chance(0.8);
            profile.rtt_ms = lognormal(&mut rng, 35.0, 0.6, 5.0, 250.0).round();
            let (first, then) = (profile.timeout_s.unreplied, profile.timeout_s.replied);
            profile.name = format!("{family}-{number:03} {first}/{then}");
            profile
        })
        .collect()
}

fn late_promotion(rng: &mut Rng) -> Profile {
    let unreplied = tenths(rng.between(10.0, 40.0));
    let replied = tenths(lognormal(rng, 150.0, 0.5, unreplied * 1.5, 690.0));
    let mut profile = Profile::new("", unreplied, replied);
    profile.promote_after_s = 5.0;
    profile
}

fn long_lived(rng: &mut Rng) -> Profile {
    let replied = tenths(rng.between(700.0, 3600.0));
    let two_classes = rng.chance(0.3);
    let mut profile = Profile::new("", if two_classes { 30.0 } else { replied }, replied);
    profile.promote_after_s = if two_classes { 2.0 } else { 0.0 };
    profile
}
