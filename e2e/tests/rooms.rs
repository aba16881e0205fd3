//! Rooms know each other in one direction, and those that decide do nothing else.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod tree;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use tree::{files, root};

/// Crates whose rooms must not know each other in a circle.
const CRATES: [&str; 6] =
    ["agent/src", "agent/nat/src", "operator/src", "crds/src", "proto/src", "e2e/sim/src"];
/// Rooms that only decide.
const PURE: [&str; 2] = ["operator/src/plan", "operator/src/ipam"];
/// Rooms that are told the time, and what they draw lots with.
const CLOCKLESS: [&str; 3] = ["operator/src/plan", "operator/src/ipam", "operator/src/fleet"];
const CLOCKS: [&str; 4] = ["Instant::now()", "SystemTime::now()", "Timestamp::now()", "SystemRandom"];
/// What waits, or asks the system or the cluster.
const NOT_PURE: [&str; 9] = [
    "tokio::",
    "async fn",
    ".await",
    "std::fs",
    "std::env",
    "TcpStream",
    "UdpSocket",
    "kube::Api",
    "kube::Client",
];

/// The sources below a folder that are no tests, each with its path in there and its code without comments and without the
/// tests at its end.
fn sources(under: &Path) -> Vec<(PathBuf, String)> {
    let is_test = |path: &Path| {
        let mut names = path.ancestors().filter_map(|part| part.file_stem()?.to_str());
        names.any(|name| name.ends_with("tests") || name == "hostile")
    };
    let inside = files(under, ".rs").into_iter().map(|path| path.strip_prefix(under).unwrap().to_owned());
    let code = |path: PathBuf| {
        let text = std::fs::read_to_string(under.join(&path)).unwrap();
        let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
        let lines = code.lines().map(|line| line.split("//").next().unwrap_or_default());
        (path, lines.collect::<Vec<_>>().join("\n"))
    };
    inside.filter(|path| !is_test(path)).map(code).collect()
}

/// The first part of each path that begins in the crate's root: of `crate::{a::b, c}` these are `a` and `c`.
fn named(code: &str) -> BTreeSet<String> {
    let mut rooms = BTreeSet::new();
    for path in code.split("crate::").skip(1) {
        let Some(group) = path.strip_prefix('{') else {
            rooms.extend(word(path));
            continue;
        };
        let mut depth = 0;
        let mut starts = true;
        for (at, letter) in group.char_indices() {
            match letter {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => starts = true,
                _ if letter.is_whitespace() => {}
                _ if starts => {
                    rooms.extend(word(&group[at..]));
                    starts = false;
                }
                _ => {}
            }
        }
    }
    rooms
}

fn word(text: &str) -> Option<String> {
    let word: String = text.chars().take_while(|letter| letter.is_alphanumeric() || *letter == '_').collect();
    (!word.is_empty()).then_some(word)
}

/// Which room knows which others.
fn knows(under: &Path) -> BTreeMap<String, BTreeSet<String>> {
    let mut knows: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (path, code) in sources(under) {
        let room = path.components().next().unwrap().as_os_str().to_str().unwrap();
        let room = room.trim_end_matches(".rs").to_owned();
        // The root names everybody, and `bin` is a crate of its own.
        if !["lib", "main", "bin"].contains(&room.as_str()) {
            let others = named(&code).into_iter().filter(|other| *other != room);
            knows.entry(room.clone()).or_default().extend(others);
        }
    }
    knows
}

/// Takes away who knows nobody that is left, again and again. What stays goes in circles, or leads to one.
fn circles(mut knows: BTreeMap<String, BTreeSet<String>>) -> BTreeMap<String, BTreeSet<String>> {
    loop {
        let left: BTreeSet<String> = knows.keys().cloned().collect();
        let before = knows.len();
        knows.retain(|_, others| others.iter().any(|other| left.contains(other)));
        if knows.len() == before {
            return knows;
        }
    }
}

#[test]
fn no_rooms_know_each_other_in_a_circle() {
    for krate in CRATES {
        let knows = knows(&root().join(krate));
        let circles = circles(knows);
        assert!(circles.is_empty(), "{krate}: of these some know each other in a circle: {circles:?}");
    }
}

#[test]
fn rooms_that_decide_wait_for_nothing_and_read_no_clock() {
    for (rooms, words) in [(PURE.as_slice(), NOT_PURE.as_slice()), (CLOCKLESS.as_slice(), CLOCKS.as_slice())]
    {
        for room in rooms {
            for (path, code) in sources(&root().join(room)) {
                for word in words {
                    assert!(!code.contains(word), "{room}/{} has {word}", path.display());
                }
            }
        }
    }
}

#[test]
fn every_file_says_in_its_first_line_what_it_is_for() {
    for krate in ["agent", "crds", "e2e", "operator", "proto"] {
        for path in files(&root().join(krate), ".rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            assert!(text.starts_with("//! "), "{} does not", path.display());
        }
    }
}

#[test]
fn a_circle_is_found_where_there_is_one() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    write("outer.rs", "use crate::{inner::{Deep, Deeper}, other};\n");
    write(
        "inner.rs",
        "// crate::outer\nuse crate::other::Thing;\n#[cfg(test)]\nmod tests { use crate::outer; }\n",
    );
    write("other.rs", "pub struct Thing;\n");
    assert_eq!(circles(knows(folder.path())), BTreeMap::new());
    write("other.rs", "use std::fmt;\nuse crate::{\n    outer,\n};\n");
    assert_eq!(circles(knows(folder.path())).keys().collect::<Vec<_>>(), ["inner", "other", "outer"]);
}
