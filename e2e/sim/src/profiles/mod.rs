//! Sets of NATs drawn from what was published about NATs in the wild. Each seed draws others.

mod hard;
mod published;

pub use self::{hard::hard, published::published};
use crate::{
    model::{Dependence, PortAllocation, Profile},
    rng::Rng,
};

/// Draws from a log-normal distribution of this median, again until it lies between `low` and `high`.
fn lognormal(rng: &mut Rng, median: f64, sigma: f64, low: f64, high: f64) -> f64 {
    loop {
        let value = median * (sigma * rng.normal()).exp();
        if (low..=high).contains(&value) {
            return value;
        }
    }
}

fn pick<T: Copy>(rng: &mut Rng, from: &[T], otherwise: T) -> T {
    let place = rng.next_u64() % (from.len() as u64).max(1);
    usize::try_from(place).ok().and_then(|place| from.get(place)).copied().unwrap_or(otherwise)
}

/// Makes a NAT symmetric: another mapping for each peer, on any port.
fn make_symmetric(profile: &mut Profile) {
    profile.mapping = Dependence::AddressAndPortDependent;
    profile.filtering = Dependence::AddressAndPortDependent;
    profile.port = PortAllocation::Random;
}

fn tenths(seconds: f64) -> f64 {
    (seconds * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(profiles: &[Profile], of: impl Fn(&Profile) -> bool) -> f64 {
        let total: f64 = profiles.iter().map(|profile| profile.weight).sum();
        profiles.iter().filter(|profile| of(profile)).map(|profile| profile.weight).sum::<f64>() / total
    }

    type Trait = fn(&Profile) -> bool;

    const SEEDS: u32 = 5;

    #[test]
    fn the_published_set_has_the_shares_that_were_published() {
        let mut short_carriers = 0.0;
        for seed in 0..u64::from(SEEDS) {
            let profiles = published(seed);
            assert!(profiles.len() >= 300);
            let family = |name: &'static str| share(&profiles, |profile| profile.name.starts_with(name));
            assert!((0.45..0.5).contains(&family("home")), "{}", family("home"));
            assert!((0.3..0.37).contains(&family("carrier")), "{}", family("carrier"));

            let lifetimes = || profiles.iter().map(|profile| profile.timeout_s.replied);
            assert!(lifetimes().all(|lifetime| (6.0..=690.0).contains(&lifetime)));
            let carriers: Vec<Profile> =
                profiles.iter().filter(|profile| profile.name.starts_with("carrier")).cloned().collect();
            let short = share(&carriers, |profile| profile.timeout_s.replied <= 60.0);
            short_carriers += short / f64::from(SEEDS);

            let traits: [(&str, Trait); 7] = [
                ("two classes", |profile| profile.timeout_s.unreplied < profile.timeout_s.replied),
                ("refreshed by outbound only", |profile| !profile.refresh.inbound),
                ("refreshed by inbound only", |profile| !profile.refresh.outbound),
                ("sweeps", |profile| profile.sweep_s > 0.0),
                ("flushes", |profile| profile.flush_per_day >= 0.5),
                ("shrinks", |profile| profile.shrink_to.is_some()),
                ("loses", |profile| profile.loss.probability() > 0.0),
            ];
            for (name, of) in traits {
                assert!((0.005..0.6).contains(&share(&profiles, of)), "{name}: {}", share(&profiles, of));
            }
        }
        assert!((0.7..0.8).contains(&short_carriers), "{short_carriers} are a minute at most");
    }

    #[test]
    fn a_seed_draws_its_own_nats_and_the_same_ones_again() {
        assert_eq!(published(1), published(1));
        assert_ne!(published(1), published(2));
        assert_eq!(hard(1), hard(1));
        assert_ne!(hard(1), hard(2));
    }

    #[test]
    fn every_drawn_profile_can_be_written_and_read() {
        for profiles in [published(3), hard(3)] {
            let json = serde_json::to_string(&profiles).unwrap();
            let read = Profile::parse_file(&json).unwrap();
            assert!(read == profiles);
        }
    }
}
