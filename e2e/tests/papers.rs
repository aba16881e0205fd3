//! What the papers say of the code, and what the code must not hold.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may panic")]

mod tree;

use std::path::Path;

use tree::{files, root};

fn read(file: impl AsRef<Path>) -> String {
    let path = root().join(file);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// What a paper writes in backquotes as `file.rs::test`.
fn named(paper: &str) -> Vec<(String, String)> {
    let quoted = paper.split('`').skip(1).step_by(2);
    let parts = quoted.filter_map(|text| text.split_once(".rs::"));
    parts.map(|(file, test)| (format!("{file}.rs"), test.to_owned())).collect()
}

#[test]
fn every_test_that_is_named_exists() {
    let named = named(&read("SECURITY.md"));
    assert!(named.len() > 40, "only {} tests are named", named.len());
    for (file, test) in named {
        let source = read(&file);
        let is_there = source.contains(&format!("fn {test}(")) || source.contains(&format!("\"{test}\""));
        assert!(is_there, "SECURITY.md names {file}::{test}");
    }
}

#[test]
fn make_test_runs_every_suite() {
    let makefile = read("Makefile");
    let (_, lists) = makefile.split_once("\nALONE").unwrap();
    let lists = lists.split("\ntest:").next().unwrap();
    let listed: Vec<&str> = lists.split_whitespace().chain(["lab"]).collect();
    for folder in ["agent", "agent/nat", "crds", "e2e", "e2e/sim", "operator", "proto", "proto/reception"] {
        let Ok(entries) = std::fs::read_dir(root().join(folder).join("tests")) else { continue };
        for path in entries.map(|entry| entry.unwrap().path()) {
            let is_suite = path.extension().is_some_and(|kind| kind == "rs") || path.join("main.rs").exists();
            let name = path.file_stem().unwrap().to_str().unwrap();
            assert!(!is_suite || listed.contains(&name), "{folder}/tests has {name}");
        }
    }
}

#[test]
fn base_images_are_pinned_by_digest() {
    let dockerfile = read("Dockerfile");
    let stages: Vec<&str> =
        dockerfile.lines().filter_map(|line| line.strip_prefix("FROM ")?.split_whitespace().next()).collect();
    assert!(!stages.is_empty());
    let syntax = dockerfile.lines().find_map(|line| line.strip_prefix("# syntax="));
    for image in stages.into_iter().filter(|image| *image != "scratch").chain(syntax) {
        let digest = image.split_once("@sha256:").map(|(_, digest)| digest).unwrap_or_default();
        let is_digest = digest.len() == 64 && digest.chars().all(|c| c.is_ascii_hexdigit());
        assert!(is_digest, "{image} may be another one tomorrow");
    }
}

#[test]
fn no_message_has_room_for_a_private_key() {
    for file in files(&root().join("proto/pinhole"), ".proto") {
        for line in std::fs::read_to_string(&file).unwrap().lines() {
            let field = line.split("//").next().unwrap_or_default().to_lowercase();
            assert!(!field.contains("private"), "{}: {line}", file.display());
        }
    }
    for object in pinhole_crds::definitions().unwrap() {
        let text = object.to_string().to_lowercase();
        assert!(!text.contains("\"privatekey\""), "{}", object["metadata"]["name"]);
    }
}

/// Whether 32 bytes or more of base64 are in the text, as keys are written.
fn has_key(text: &str) -> bool {
    let base64 = |c: char| c.is_ascii_alphanumeric() || c == '+' || c == '/' || c == '=';
    let is_key = |word: &str| {
        let body = word.trim_end_matches('=');
        word.len() == 44 && body.len() == 43 && body.chars().any(|c| c.is_ascii_digit())
    };
    text.contains("PRIVATE KEY-----\n") || text.split(|c| !base64(c)).any(is_key)
}

#[test]
fn no_key_is_written_in_the_source() {
    assert!(has_key("\"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\""), "a key looks like this");
    let crates = ["agent/src", "agent/nat/src", "operator/src", "proto/src", "crds/src"]
        .map(|folder| files(&root().join(folder), ".rs"));
    let shipped = crates.into_iter().flatten().filter(|file| {
        let path = file.to_str().unwrap();
        !path.contains("/tests") && !path.ends_with("tests.rs")
    });
    let installed = files(&root().join("charts/pinhole/templates"), ".yaml")
        .into_iter()
        .chain([root().join("charts/pinhole/values.yaml")]);
    for file in shipped.chain(installed) {
        let source = std::fs::read_to_string(&file).unwrap();
        let shipped = source.split("#[cfg(test)]").next().unwrap_or_default();
        assert!(!has_key(shipped), "{}", file.display());
    }
}
