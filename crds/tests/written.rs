//! The definitions that users apply are those of the types.

#![allow(clippy::unwrap_used)]

use std::{
    path::Path,
    process::{Command, Output},
};

fn check(directory: &str) -> Output {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(directory);
    Command::new(env!("CARGO_BIN_EXE_crdgen")).arg("--check").arg(directory).output().unwrap()
}

#[test]
fn the_written_definitions_are_those_of_the_types() {
    for directory in ["crds", "charts/pinhole/files/crds"] {
        let output = check(directory);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn a_definition_that_is_missing_is_told() {
    let output = check("crds/src");
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("vpnclients.yaml"), "{output:?}");
}
