//! Clients with a session, behind NATs that keep TCP mappings for longer than UDP's.

use std::{num::NonZero, time::Duration};

use pinhole_sim::{
    fleet::{Fleet, Kind},
    metrics::Outcome,
    model::{Loss, Profile, TcpClose},
};

fn run(profile: Profile, loss: f64) -> Vec<Outcome> {
    let fleet = Fleet {
        profiles: vec![profile],
        clients: 3,
        duration: Duration::from_hours(7 * 24),
        loss: Loss::percent(loss),
        seed: 5,
        threads: NonZero::<usize>::MIN,
    };
    fleet.run(Kind::Pinhole, &|_| {})
}

fn with_session(udp: f64, tcp: f64, close: TcpClose) -> Profile {
    let mut profile = Profile::new("nat", udp, udp);
    profile.tcp_timeout_s = Some(tcp);
    profile.tcp_close = Some(close);
    profile
}

#[test]
fn a_client_asleep_on_its_session_wakes_rarely_and_is_reached_as_well() {
    for (udp, tcp, close, most) in [
        (120.0, 1800.0, TcpClose::Silent, 60),
        (120.0, 7200.0, TcpClose::Reset, 20),
        (12.0, 7440.0, TcpClose::Silent, 20),
    ] {
        for (loss, least) in [(0.0, 0.9999), (5.0, 0.999)] {
            for outcome in run(with_session(udp, tcp, close), loss) {
                assert!(outcome.wakes <= most * 7, "{udp}/{tcp}: {} wake-ups a week", outcome.wakes);
                let success = outcome.reached.success();
                assert!(success >= least, "{udp}/{tcp}: {success}");
            }
        }
    }
}

#[test]
fn a_short_lived_session_changes_next_to_nothing() {
    let without = run(Profile::new("nat", 120.0, 120.0), 0.0);
    let with = run(with_session(120.0, 60.0, TcpClose::Silent), 0.0);
    for (without, with) in without.iter().zip(&with) {
        assert!(with.wakes <= without.wakes + without.wakes / 50, "{} and {}", with.wakes, without.wakes);
        assert!(with.reached.success() >= 0.9999);
    }
}
