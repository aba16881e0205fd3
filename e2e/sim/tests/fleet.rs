//! Whole fleets, small and short: all algorithms against one another.

use std::{num::NonZero, process::Command, time::Duration};

use clap::ValueEnum;
use pinhole_sim::{
    fleet::{Fleet, Kind},
    metrics::Summary,
    model::{Loss, Profile},
    profiles,
};

fn fleet(profiles: Vec<Profile>, clients: usize, loss: f64) -> Fleet {
    Fleet {
        profiles,
        clients,
        duration: Duration::from_hours(24),
        loss: Loss::percent(loss),
        seed: 11,
        threads: NonZero::<usize>::MIN.saturating_add(1),
    }
}

fn run(fleet: &Fleet, kind: Kind) -> Summary {
    let outcomes = fleet.run(kind, &|_| {});
    assert_eq!(outcomes.len(), fleet.clients);
    Summary::new(kind.name(), 1.0, &fleet.profiles, &outcomes)
}

#[test]
fn the_keeper_beats_every_baseline_on_success_and_all_that_come_near_on_wakes() {
    let fleet = fleet(profiles::published(11), 48, 0.0);
    let ours = run(&fleet, Kind::Pinhole);
    assert!(ours.wake_success > 0.9995, "{ours:?}");
    assert!(ours.oracle_ratio < 1.25, "{ours:?}");
    for kind in Kind::value_variants().iter().filter(|kind| !matches!(kind, Kind::Pinhole | Kind::Oracle)) {
        let other = run(&fleet, *kind);
        assert!(other.wake_success < ours.wake_success, "{other:?}");
        assert!(other.oracle_ratio > ours.oracle_ratio, "{other:?}");
    }
}

#[test]
fn the_oracle_wakes_as_often_as_itself() {
    let oracle = run(&fleet(profiles::published(11), 48, 5.0), Kind::Oracle);
    assert!((oracle.oracle_ratio - 1.0).abs() < 1e-9, "{oracle:?}");
    assert!(oracle.oracle_ratio_converged.is_some_and(|ratio| (ratio - 1.0).abs() < 1e-9), "{oracle:?}");
    assert!(oracle.wake_success > 0.999_999, "{oracle:?}");
}

#[test]
fn results_follow_from_the_seed_not_from_the_threads() {
    let mut fleet = fleet(profiles::published(3), 20, 5.0);
    let both = run(&fleet, Kind::Pinhole);
    fleet.threads = NonZero::<usize>::MIN;
    assert_eq!(run(&fleet, Kind::Pinhole), both);
    fleet.seed += 1;
    assert_ne!(run(&fleet, Kind::Pinhole), both);
}

#[test]
fn clients_are_shared_out_by_weight() {
    let mut nats: Vec<Profile> =
        ["a", "b", "c"].map(|name| Profile::new(name, 60.0, 60.0)).into_iter().collect();
    nats[0].weight = 3.0;
    nats[1].weight = 0.0;
    let summary = run(&fleet(nats, 40, 0.0), Kind::Static25);
    let shares: Vec<(&str, usize)> =
        summary.profiles.iter().map(|profile| (profile.name.as_str(), profile.clients)).collect();
    assert_eq!(shares, [("a", 30), ("c", 10)]);
}

#[test]
fn the_binary_prints_what_was_agreed_as_json() {
    let directory = tempfile::tempdir().unwrap();
    let picture = directory.path().join("picture.svg");
    let output = Command::new(env!("CARGO_BIN_EXE_pinhole-sim"))
        .args(["--clients", "7", "--days", "0.1", "--loss", "5", "--seed", "4", "--json", "--svg"])
        .arg(&picture)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let results: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let algorithms = results["algorithms"].as_array().unwrap();
    let names: Vec<&str> = algorithms.iter().filter_map(|row| row["name"].as_str()).collect();
    let expected =
        ["pinhole", "static-25s", "static-15s", "rfc5780-half", "tailscale-like", "mars-like", "oracle"];
    assert_eq!(names, expected);
    for row in algorithms {
        for field in [
            "wake_success",
            "wakes_per_client_day",
            "oracle_ratio",
            "oracle_ratio_converged",
            "converge_s_p50",
            "converge_s_p99",
        ] {
            assert!(row[field].is_number(), "{field} of {row}");
        }
        for field in ["blind_s_p50", "blind_s_p99"] {
            assert!(row.get(field).is_some(), "{field} of {row}");
        }
        assert!(row["worst_profile"].is_string());
    }
    let picture = std::fs::read_to_string(picture).unwrap();
    assert!(names.iter().all(|name| picture.contains(&format!(">{name} (x "))), "{picture}");
}

#[test]
fn the_binary_reads_profiles_and_says_what_is_wrong_with_them() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("nats.json");
    let run = |json: &str| {
        std::fs::write(&file, json).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_pinhole-sim"));
        command.args(["--clients", "2", "--days", "0.01", "--algorithm", "static-15s", "--profiles"]);
        command.arg(&file).output().unwrap()
    };
    let good = run(r#"[{"name": "mine", "timeout_s": {"unreplied": 30, "replied": 120}}]"#);
    assert!(good.status.success(), "{good:?}");
    assert!(String::from_utf8_lossy(&good.stdout).contains("mine"), "{good:?}");

    let bad = run(r#"[{"name": "mine", "timeout_s": {"unreplied": 30}}]"#);
    assert_eq!(bad.status.code(), Some(1));
    let error = String::from_utf8_lossy(&bad.stderr);
    assert!(error.contains("nats.json: NAT profile 1 (\"mine\"): missing field `replied`"), "{error}");
    assert!(bad.stdout.is_empty());
}

#[test]
fn the_binary_traces_a_single_client() {
    let trace = |name: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pinhole-sim"));
        command.args(["--clients", "320", "--days", "0.01", "--algorithm", "static-25s", "--trace", name]);
        command.output().unwrap()
    };
    let output = trace("home");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("> keepalive") && text.contains("% of wake tests succeeded"), "{output:?}");
    let output = trace("nowhere");
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("no client's NAT has a name that begins with \"nowhere\""), "{error}");
}
