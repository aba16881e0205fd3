//! NATs as they are in the wild: homes (Hätönen et al., IMC 2010), carriers (Richter et al., IMC 2016), and what vendors
//! of clouds and enterprise gear document.

use super::{lognormal, make_symmetric, pick, tenths};
use crate::{
    model::{Dependence, Loss, PortAllocation, Profile},
    rng::Rng,
};

const HOMES: usize = 152;
const CARRIERS: usize = 107;
const OTHERS: usize = 61;
const SHORTEST: f64 = 6.0;
const LONGEST: f64 = 690.0;

/// 320 NATs: nearly half of them homes, a third carriers, the rest clouds and enterprises.
pub fn published(seed: u64) -> Vec<Profile> {
    let mut rng = Rng::stream(seed, 0x7075_626C);
    let homes = (0..HOMES).map(|number| (number, home as fn(&mut Rng) -> Profile));
    let carriers = (0..CARRIERS).map(|number| (number, carrier as fn(&mut Rng) -> Profile));
    let others = (0..OTHERS).map(|number| (number, managed as fn(&mut Rng) -> Profile));
    homes
        .chain(carriers)
        .chain(others)
        .map(|(number, draw)| {
            let mut profile = draw(&mut rng);
            vary(&mut profile, &mut rng);
            let (first, then) = (profile.timeout_s.unreplied, profile.timeout_s.replied);
            profile.name = format!("{}-{:03} {first}/{then}", profile.name, number + 1);
            profile
        })
        .collect()
}

/// Lifetimes from 30 s on, with medians of 90 s where only outbound packets refresh and twice that elsewhere; many of
/// them Linux.
fn home(rng: &mut Rng) -> Profile {
    const USUAL: [f64; 9] = [30.0, 60.0, 60.0, 90.0, 120.0, 180.0, 180.0, 300.0, 600.0];
    let outbound_only = rng.chance(0.2);
    let median = if outbound_only { 90.0 } else { 170.0 };
    let lifetime = if rng.chance(0.35) {
        pick(rng, &USUAL, 180.0)
    } else {
        tenths(lognormal(rng, median, 0.7, 30.0, LONGEST))
    };
    let mut profile = Profile::new("home", lifetime, lifetime);
    if rng.chance(0.3) {
        // Linux: 180 s until 2018, 120 s since.
        let replied = if rng.chance(0.7) { 120.0 } else { 180.0 };
        profile = Profile::new("home-linux", 30.0, replied);
        profile.promote_after_s = 2.0;
    } else if rng.chance(0.25) {
        profile.timeout_s.unreplied = tenths(lifetime * rng.between(0.15, 0.6)).max(SHORTEST);
        profile.promote_after_s = pick(rng, &[0.0, 0.0, 1.0, 2.0], 0.0);
    }
    profile.refresh.inbound = !outbound_only;
    if !outbound_only && rng.chance(0.05) {
        profile.refresh.outbound = false;
    }
    profile.filtering = pick(
        rng,
        &[Dependence::AddressAndPortDependent, Dependence::AddressDependent, Dependence::EndpointIndependent],
        Dependence::AddressAndPortDependent,
    );
    profile.port = if rng.chance(0.85) { PortAllocation::Preserve } else { PortAllocation::Sequential };
    if rng.chance(0.02) {
        make_symmetric(&mut profile);
    }
    profile.rtt_ms = lognormal(rng, 30.0, 0.6, 5.0, 250.0).round();
    profile
}

/// Lifetimes of 10 to 200 s, three quarters of them a minute at most; one AFTR in twelve at 6 to 10 s. Cellular networks
/// have longer ones than fixed ones, and are symmetric far more often.
fn carrier(rng: &mut Rng) -> Profile {
    let cellular = rng.chance(0.5);
    let median = if cellular { 45.0 } else { 30.0 };
    let lifetime = if rng.chance(0.3) {
        pick(rng, &[20.0, 30.0, 30.0, 60.0, 60.0, 120.0], 60.0)
    } else {
        tenths(lognormal(rng, median, 0.75, 10.0, 200.0))
    };
    let mut profile =
        Profile::new(if cellular { "carrier-cellular" } else { "carrier-fixed" }, lifetime, lifetime);
    match rng.unit() {
        0.0..0.08 => {
            let lifetime = tenths(rng.between(SHORTEST, 10.0));
            profile = Profile::new("carrier-aftr", lifetime, lifetime);
        }
        0.08..0.12 => profile = Profile::new("carrier-nokia", 15.0, 300.0),
        0.12..0.27 => {
            profile.timeout_s.unreplied = tenths(lifetime * rng.between(0.3, 0.6)).max(SHORTEST);
        }
        _ => {}
    }
    profile.refresh.inbound = !rng.chance(0.3);
    profile.port = pick(rng, &[PortAllocation::Random, PortAllocation::Sequential], PortAllocation::Random);
    if rng.chance(if cellular { 0.4 } else { 0.11 }) {
        make_symmetric(&mut profile);
    } else if rng.chance(0.3) {
        profile.port = PortAllocation::Preserve;
    }
    profile.rtt_ms = lognormal(rng, if cellular { 60.0 } else { 30.0 }, 0.5, 8.0, 300.0).round();
    profile
}

/// What clouds and vendors document.
fn managed(rng: &mut Rng) -> Profile {
    const DOCUMENTED: [(&str, f64, f64); 15] = [
        ("aws-security-group", 30.0, 180.0),
        ("aws-nlb", 120.0, 120.0),
        ("aws-nat-gateway", 350.0, 350.0),
        ("gcp-cloud-nat", 30.0, 30.0),
        ("azure", 240.0, 240.0),
        ("cisco-ios", 300.0, 300.0),
        ("cisco-asa", 120.0, 120.0),
        ("fortinet", 180.0, 180.0),
        ("draytek", 180.0, 180.0),
        ("huawei", 120.0, 120.0),
        ("pf", 30.0, 60.0),
        ("einat", 300.0, 300.0),
        ("d-link", 130.0, 130.0),
        ("linux-flowtable", 30.0, 30.0),
        ("linux", 30.0, 120.0),
    ];
    let (name, unreplied, replied) = pick(rng, &DOCUMENTED, ("rfc4787", 120.0, 120.0));
    let mut profile = Profile::new(format!("managed-{name}"), unreplied, replied);
    profile.refresh.inbound = !matches!(name, "einat" | "d-link");
    if name == "linux" {
        profile.promote_after_s = 2.0;
    }
    if rng.chance(0.3) {
        // An administrator had another opinion.
        let scale = rng.between(0.5, 2.0);
        profile.timeout_s.unreplied = tenths((unreplied * scale).clamp(SHORTEST, LONGEST));
        profile.timeout_s.replied = tenths((replied * scale).clamp(SHORTEST, LONGEST));
    }
    profile.port = pick(
        rng,
        &[PortAllocation::Preserve, PortAllocation::Sequential, PortAllocation::Random],
        PortAllocation::Preserve,
    );
    profile.rtt_ms = lognormal(rng, 20.0, 0.7, 2.0, 200.0).round();
    profile
}

/// What any NAT may do to its clients.
fn vary(profile: &mut Profile, rng: &mut Rng) {
    profile.weight = tenths(rng.between(0.6, 1.4));
    // A restart every other month; one NAT in twelve does so far more often.
    profile.flush_per_day = 0.02;
    if rng.chance(0.08) {
        profile.flush_per_day = tenths(rng.between(0.5, 6.0));
    }
    if rng.chance(0.12) {
        profile.sweep_s = pick(rng, &[1.0, 5.0, 5.0, 10.0, 15.0, 30.0], 5.0);
    }
    if rng.chance(0.05) {
        profile.shrink_to = Some(tenths(profile.timeout_s.replied * rng.between(0.3, 0.8)).max(SHORTEST));
    }
    if rng.chance(0.06) {
        profile.loss = Loss::try_from(rng.between(1.0, 15.0).round() / 1000.0).unwrap_or_default();
    }
}
