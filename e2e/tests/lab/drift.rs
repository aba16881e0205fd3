//! What the chart applies is what there is afterwards: Argo CD and their like see no difference.

use anyhow::{Context, ensure};
use pinhole_e2e::{
    Lab,
    installation::{NAMESPACE, RELEASE},
};
use serde_json::Value;

use crate::{Outcome, product, tests};

tests![the_api_server_adds_nothing_to_what_the_chart_applies];

const POLICY_API: &str = "admissionregistration.k8s.io/v1/MutatingAdmissionPolicy";

/// What only a cluster can choose, and says in the object's spec.
const CHOSEN: [&str; 4] = [
    "Service.spec.clusterIP",
    "Service.spec.clusterIPs",
    "Service.spec.ipFamilies",
    "Service.spec.ipFamilyPolicy",
];

async fn the_api_server_adds_nothing_to_what_the_chart_applies(lab: &Lab) -> Outcome {
    // The namespace and the kinds must be there; nothing is changed.
    let _product = product::installed(lab).await?;
    let chart = concat!(env!("CARGO_MANIFEST_DIR"), "/../charts/pinhole");
    let args = ["template", RELEASE, chart, "--namespace", NAMESPACE, "--kube-version", "1.36.0"];
    let rendered = lab.helm(args.iter().chain(&["--api-versions", POLICY_API])).await?;
    let documents =
        serde_yaml::Deserializer::from_str(&rendered).map(<Value as serde::Deserialize>::deserialize);
    let documents = documents.collect::<Result<Vec<_>, _>>()?;
    let mut differences = Vec::new();
    let mut seen = 0;
    for desired in documents.iter().filter(|document| !document.is_null()) {
        let stored = dry_run(lab, desired).await?;
        let kind = desired["kind"].as_str().context("an object without a kind")?;
        compare(desired, &stored, kind, &mut differences);
        seen += 1;
    }
    ensure!(seen > 15, "only {seen} objects");
    ensure!(differences.is_empty(), "{differences:#?}");
    Ok(())
}

/// The object as the API server would store it.
async fn dry_run(lab: &Lab, desired: &Value) -> anyhow::Result<Value> {
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), desired.to_string())?;
    let path = file.path().display().to_string();
    let flags = ["apply", "--server-side", "--force-conflicts", "--field-manager=drift", "--dry-run=server"];
    let stored = lab.kubectl(flags.iter().chain(&["-o", "json", "-f", path.as_str()])).await?;
    Ok(serde_json::from_str(&stored)?)
}

/// What differs outside of an object's metadata and status.
fn compare(desired: &Value, stored: &Value, path: &str, differences: &mut Vec<String>) {
    match (desired, stored) {
        (Value::Object(desired), Value::Object(stored)) => {
            let is_object = !path.contains('.');
            let concerns = |name: &str| !(is_object && ["metadata", "status"].contains(&name));
            for (name, value) in stored.iter().filter(|(name, value)| concerns(name) && !value.is_null()) {
                let path = format!("{path}.{name}");
                match desired.get(name) {
                    Some(desired) => compare(desired, value, &path, differences),
                    None if CHOSEN.contains(&path.as_str()) => {}
                    None => differences.push(format!("{path} was added: {value}")),
                }
            }
            let lost = desired.iter().filter(|(name, value)| concerns(name) && !value.is_null());
            let lost = lost.filter(|(name, _)| stored.get(*name).is_none_or(Value::is_null));
            differences.extend(lost.map(|(name, _)| format!("{path}.{name} was dropped")));
        }
        (Value::Array(desired), Value::Array(stored)) if desired.len() == stored.len() => {
            for (n, (desired, stored)) in desired.iter().zip(stored).enumerate() {
                compare(desired, stored, &format!("{path}.{n}"), differences);
            }
        }
        (Value::Number(desired), Value::Number(stored)) if desired.as_f64() == stored.as_f64() => {}
        _ if desired == stored => {}
        _ => differences.push(format!("{path} is {stored} in place of {desired}")),
    }
}
