//! What the chart renders, what it refuses, and whether its documentation is whole. Needs no cluster.

#![allow(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a test may panic; without the usual harness clippy does not know it as one"
)]

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context as _, ensure};
use libtest_mimic::{Arguments, Failed, Trial};
use pinhole_crds::{ChurnCause, ClientCounts};
use pinhole_operator::{fleet::GatewayKey, plan::summary::Tally, telemetry::Metrics};
use serde_json::{Value, json};

#[path = "../../operator/src/plan/tests/traffic.rs"]
mod traffic;

use traffic::{Direction, Flow, Labels, Peer, Prefixes, admits};

type Outcome = anyhow::Result<()>;
type WithHelm = fn(&Helm) -> Outcome;

const POLICY_API: &str = "admissionregistration.k8s.io/v1/MutatingAdmissionPolicy";
const DASHBOARD: &str = "files/dashboards/nat.json";
const KINDS: [&str; 3] = ["VPNGateway", "VPNClientPool", "VPNClient"];

fn main() -> ExitCode {
    let helm = program(&["helm"]);
    let lua = program(&["lua5.1", "lua5.4", "lua"]);
    let with_helm: [(&str, WithHelm); 24] = [
        ("the_chart_lints", the_chart_lints),
        ("the_crds_are_those_of_the_types_and_are_kept", the_crds_are_those_of_the_types_and_are_kept),
        ("crds_can_be_left_out_or_not_kept", crds_can_be_left_out_or_not_kept),
        ("no_container_can_gain_privileges", no_container_can_gain_privileges),
        ("a_digest_wins_over_a_tag", a_digest_wins_over_a_tag),
        ("the_operator_is_told_the_name_of_its_service", the_operator_is_told_the_name_of_its_service),
        ("sidecars_are_injected_where_the_cluster_can", sidecars_are_injected_where_the_cluster_can),
        ("sidecars_use_the_older_version_of_the_api", sidecars_use_the_older_version_of_the_api),
        (
            "pods_on_the_host_network_are_refused_where_sidecars_are_injected",
            pods_on_the_host_network_are_refused_where_sidecars_are_injected,
        ),
        (
            "admission_policies_are_written_as_the_api_server_fills_them_in",
            admission_policies_are_written_as_the_api_server_fills_them_in,
        ),
        (
            "events_are_read_where_gateways_are_and_nowhere_else",
            events_are_read_where_gateways_are_and_nowhere_else,
        ),
        ("pods_are_deleted_only_where_that_is_wanted", pods_are_deleted_only_where_that_is_wanted),
        ("a_single_replica_has_no_disruption_budget", a_single_replica_has_no_disruption_budget),
        ("watched_namespaces_bound_what_may_be_read", watched_namespaces_bound_what_may_be_read),
        (
            "the_operators_policy_lets_gateways_in_and_scrapers",
            the_operators_policy_lets_gateways_in_and_scrapers,
        ),
        (
            "gateways_get_network_policies_unless_they_are_off",
            gateways_get_network_policies_unless_they_are_off,
        ),
        ("the_operator_writes_no_secrets_but_its_own", the_operator_writes_no_secrets_but_its_own),
        ("roles_for_people_and_gateways_reach_no_secrets", roles_for_people_and_gateways_reach_no_secrets),
        ("no_rule_uses_a_wildcard", no_rule_uses_a_wildcard),
        ("every_flag_of_the_values_renders", every_flag_of_the_values_renders),
        ("values_that_do_not_exist_are_refused", values_that_do_not_exist_are_refused),
        ("alerts_on_reachability_follow_the_objective", alerts_on_reachability_follow_the_objective),
        ("selectors_match_the_pods", selectors_match_the_pods),
        (
            "the_snippet_for_older_clusters_is_what_is_injected",
            the_snippet_for_older_clusters_is_what_is_injected,
        ),
    ];
    let mut trials: Vec<Trial> = with_helm
        .into_iter()
        .map(|(name, test)| {
            let helm = helm.clone();
            let missing = helm.is_none();
            trial(name, missing.then_some("no helm"), move || test(&Helm(helm.context("helm is missing")?)))
        })
        .collect();
    trials.push(trial(
        "every_value_is_documented_and_nothing_else",
        None,
        every_value_is_documented_and_nothing_else,
    ));
    trials.push(trial(
        "every_metric_that_is_shown_or_alerted_on_exists",
        None,
        every_metric_that_is_shown_or_alerted_on_exists,
    ));
    trials.push(trial("the_schema_knows_every_value", None, the_schema_knows_every_value));
    trials.push(trial("samples_are_of_served_kinds", None, samples_are_of_served_kinds));
    let no_lua = lua.is_none().then_some("no lua");
    trials.push(trial("argo_cd_reads_the_conditions", no_lua, move || {
        argo_cd_reads_the_conditions(&lua.context("lua is missing")?)
    }));
    for (program, what) in [(helm.is_none(), "helm"), (no_lua.is_some(), "lua5.1")] {
        if program {
            eprintln!("Tests that need {what} are ignored: `make test` installs it.");
        }
    }
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

fn trial(
    name: &str,
    ignored: Option<&'static str>,
    test: impl FnOnce() -> Outcome + Send + 'static,
) -> Trial {
    let trial = Trial::test(name, move || test().map_err(|error| Failed::from(format!("{error:#}"))));
    match ignored {
        Some(reason) => trial.with_ignored_flag(true).with_kind(reason),
        None => trial,
    }
}

/// The first of these programs that the lab's cache or the path holds.
fn program(names: &[&str]) -> Option<PathBuf> {
    let cache =
        pinhole_e2e::setup::cache_dir().ok().and_then(|cache| std::fs::read_dir(cache.join("tools")).ok());
    let cached = cache.into_iter().flatten().flatten().map(|dir| dir.path().join("bin"));
    let on_path = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).collect::<Vec<_>>();
    cached
        .chain(on_path)
        .flat_map(|dir| names.iter().map(move |name| dir.join(name)))
        .find(|file| file.is_file())
}

fn chart() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/pinhole")
}

fn read(file: impl AsRef<Path>) -> anyhow::Result<String> {
    let path = chart().join(file);
    std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
}

fn documents(yaml: &str) -> anyhow::Result<Vec<Value>> {
    let parsed = serde_yaml::Deserializer::from_str(yaml).map(<Value as serde::Deserialize>::deserialize);
    let parsed = parsed.collect::<Result<Vec<_>, _>>()?;
    Ok(parsed.into_iter().filter(|document| !document.is_null()).collect())
}

struct Helm(PathBuf);

impl Helm {
    fn run(&self, args: &[&str]) -> anyhow::Result<String> {
        let output = Command::new(&self.0).args(args).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "helm {}: {said}", args.join(" "));
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Renders with `values`, as the release `test` in the namespace `pinhole-system` of a Kubernetes 1.36.
    fn render_with(&self, values: &Value, further: &[&str]) -> anyhow::Result<Objects> {
        let file = tempfile::NamedTempFile::new()?;
        std::fs::write(&file, values.to_string())?;
        let (chart, file) = (chart(), file.path().to_owned());
        let mut args =
            vec!["template", "test", path(&chart), "--namespace", "pinhole-system", "-f", path(&file)];
        args.extend(["--kube-version", "1.36.0"]);
        args.extend(further);
        Ok(Objects(documents(&self.run(&args)?)?))
    }

    fn render(&self, values: &Value) -> anyhow::Result<Objects> {
        self.render_with(values, &["--api-versions", POLICY_API])
    }
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

struct Objects(Vec<Value>);

impl Objects {
    fn of(&self, kind: &str) -> Vec<&Value> {
        self.0.iter().filter(|object| object["kind"] == kind).collect()
    }

    fn one(&self, kind: &str) -> anyhow::Result<&Value> {
        let found = self.of(kind);
        ensure!(found.len() == 1, "{} objects of kind {kind}", found.len());
        Ok(found[0])
    }

    fn named(&self, kind: &str, name: &str) -> anyhow::Result<&Value> {
        let found = self.of(kind).into_iter().find(|object| object["metadata"]["name"] == name);
        found.with_context(|| format!("no {kind} {name}"))
    }

    fn operator(&self) -> anyhow::Result<&Value> {
        Ok(&self.one("Deployment")?["spec"]["template"]["spec"]["containers"][0])
    }
}

fn the_chart_lints(helm: &Helm) -> Outcome {
    let chart = chart();
    let said = helm.run(&["lint", "--strict", path(&chart)])?;
    ensure!(said.contains("0 chart(s) failed"), "{said}");
    Ok(())
}

fn the_crds_are_those_of_the_types_and_are_kept(helm: &Helm) -> Outcome {
    let objects = helm.render(&json!({}))?;
    let rendered = objects.of("CustomResourceDefinition");
    ensure!(rendered.len() == 4, "{} CRDs", rendered.len());
    for wanted in pinhole_crds::definitions()? {
        let name = &wanted["metadata"]["name"];
        let found =
            rendered.iter().find(|crd| crd["metadata"]["name"] == *name).context("a CRD is missing")?;
        ensure!(found["spec"] == wanted["spec"], "{name} differs from its type: run `make crds`");
        ensure!(found["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep", "{name} is not kept");
    }
    Ok(())
}

fn crds_can_be_left_out_or_not_kept(helm: &Helm) -> Outcome {
    let without = helm.render(&json!({ "crds": { "enabled": false } }))?;
    ensure!(without.of("CustomResourceDefinition").is_empty());
    let removed = helm.render(&json!({ "crds": { "keep": false } }))?;
    for crd in removed.of("CustomResourceDefinition") {
        ensure!(crd["metadata"]["annotations"]["helm.sh/resource-policy"].is_null());
    }
    Ok(())
}

fn no_container_can_gain_privileges(helm: &Helm) -> Outcome {
    let objects = helm.render(&json!({}))?;
    let operator = objects.operator()?;
    let context = &operator["securityContext"];
    ensure!(
        context["allowPrivilegeEscalation"] == false && context["readOnlyRootFilesystem"] == true,
        "{context}"
    );
    ensure!(context["capabilities"] == json!({ "drop": ["ALL"] }), "{context}");
    let pod = &objects.one("Deployment")?["spec"]["template"]["spec"]["securityContext"];
    ensure!(pod["runAsNonRoot"] == true && pod["runAsUser"] == 65532, "{pod}");
    ensure!(pod["seccompProfile"]["type"] == "RuntimeDefault", "{pod}");
    Ok(())
}

fn a_digest_wins_over_a_tag(helm: &Helm) -> Outcome {
    let digest = format!("sha256:{}", "0123456789abcdef".repeat(4));
    let values = json!({
        "operator": { "image": { "repository": "localhost:5000/operator", "tag": "1.2", "digest": digest } },
        "agent": { "image": { "repository": "example.com/agent", "tag": "7" } },
    });
    let objects = helm.render(&values)?;
    let operator = objects.operator()?;
    ensure!(operator["image"] == format!("localhost:5000/operator@{digest}"), "{}", operator["image"]);
    let args = operator["args"].to_string();
    ensure!(args.contains("--gateway-image=example.com/agent:7"), "{args}");
    let policy = objects.one("MutatingAdmissionPolicy")?.to_string();
    ensure!(policy.contains("example.com/agent:7"), "the sidecar's image is another");
    let default = helm.render(&json!({}))?;
    let version =
        documents(&read("Chart.yaml")?)?[0]["appVersion"].as_str().context("no appVersion")?.to_owned();
    let image = &default.operator()?["image"];
    ensure!(image.as_str().is_some_and(|image| image.ends_with(&format!(":{version}"))), "{image}");
    Ok(())
}

fn the_operator_is_told_the_name_of_its_service(helm: &Helm) -> Outcome {
    let objects = helm.render(&json!({}))?;
    let name = objects.one("Service")?["metadata"]["name"].as_str().context("a Service without a name")?;
    let args = &objects.operator()?["args"];
    let told = args.as_array().is_some_and(|args| args.contains(&json!(format!("--service-name={name}"))));
    ensure!(told, "{name} is not in {args}");
    Ok(())
}

fn sidecars_are_injected_where_the_cluster_can(helm: &Helm) -> Outcome {
    for (values, apis, wanted) in [
        (json!({}), vec!["--api-versions", POLICY_API], true),
        (json!({}), vec![], false),
        (json!({ "sidecars": { "enabled": false } }), vec!["--api-versions", POLICY_API], false),
        (json!({ "sidecars": { "enabled": true } }), vec![], true),
    ] {
        let objects = helm.render_with(&values, &apis)?;
        for kind in ["MutatingAdmissionPolicy", "MutatingAdmissionPolicyBinding"] {
            ensure!(objects.of(kind).len() == usize::from(wanted), "{values} {apis:?}: {kind}");
        }
    }
    let objects = helm.render(&json!({}))?;
    let binding = &objects.one("MutatingAdmissionPolicyBinding")?["spec"];
    ensure!(binding["paramRef"]["namespace"] == "pinhole-system", "{binding}");
    ensure!(binding["paramRef"]["parameterNotFoundAction"] == "Deny", "{binding}");
    let policy = &objects.one("MutatingAdmissionPolicy")?["spec"];
    ensure!(policy["failurePolicy"] == "Fail");
    // Fail may only ever meet pods that asked for a sidecar.
    let selector = &policy["matchConstraints"]["objectSelector"]["matchExpressions"];
    ensure!(*selector == json!([{ "key": pinhole_crds::POOL_LABEL, "operator": "Exists" }]), "{selector}");
    let namespaces = &policy["matchConstraints"]["namespaceSelector"]["matchExpressions"][0]["values"];
    ensure!(*namespaces == json!(["pinhole-system", "kube-system"]), "{namespaces}");
    Ok(())
}

/// The lab's API server shows that it holds; here, that the two policies are about the same pods.
fn pods_on_the_host_network_are_refused_where_sidecars_are_injected(helm: &Helm) -> Outcome {
    let objects = helm.render(&json!({ "sidecars": { "excludeNamespaces": ["kube-system", "edge"] } }))?;
    let injects = &objects.one("MutatingAdmissionPolicy")?["spec"];
    let refuses = &objects.named("ValidatingAdmissionPolicy", "pinhole-sidecar")?["spec"];
    ensure!(injects["matchConstraints"] == refuses["matchConstraints"], "{refuses}");
    ensure!(refuses["failurePolicy"] == "Fail");
    let rule = &refuses["validations"][0]["expression"];
    ensure!(rule == "!has(object.spec.hostNetwork) || !object.spec.hostNetwork", "{rule}");
    let conditions = injects["matchConditions"].as_array().context("no conditions")?;
    ensure!(conditions.iter().any(|condition| condition["expression"] == *rule), "{injects}");
    let off = helm.render(&json!({ "sidecars": { "enabled": false } }))?;
    ensure!(off.named("ValidatingAdmissionPolicy", "pinhole-sidecar").is_err());
    Ok(())
}

/// Argo CD compares what was applied with what there is: what the API server adds to a list differs for ever. The lab
/// compares everything; here, what was forgotten before.
fn admission_policies_are_written_as_the_api_server_fills_them_in(helm: &Helm) -> Outcome {
    let objects = helm.render(&json!({}))?;
    let kinds = ["ValidatingAdmissionPolicy", "MutatingAdmissionPolicy"];
    let policies: Vec<_> = kinds.iter().flat_map(|kind| objects.of(kind)).collect();
    ensure!(policies.len() == 3, "{} policies", policies.len());
    for policy in policies {
        let name = &policy["metadata"]["name"];
        ensure!(policy["spec"]["failurePolicy"].is_string(), "{name}: failurePolicy");
        let constraints = &policy["spec"]["matchConstraints"];
        for field in ["matchPolicy", "namespaceSelector", "objectSelector"] {
            ensure!(!constraints[field].is_null(), "{name}: {field}");
        }
        for rule in constraints["resourceRules"].as_array().context("no rules")? {
            ensure!(rule["scope"] == "*", "{name}: scope of {rule}");
        }
    }
    Ok(())
}

/// In the namespaces that it serves, which is what `watchNamespaces` binds, and to read only.
fn events_are_read_where_gateways_are_and_nowhere_else(helm: &Helm) -> Outcome {
    let objects = helm.render(&json!({}))?;
    let mut rules = Vec::new();
    for role in objects.of("ClusterRole").into_iter().chain(objects.of("Role")) {
        let all = role["rules"].as_array().context("no rules")?.iter();
        let core = all.filter(|rule| {
            rule["apiGroups"] == json!([""]) && rule["resources"].to_string().contains("\"events\"")
        });
        rules.extend(core.map(|rule| (&role["metadata"]["name"], &rule["resources"], &rule["verbs"])));
    }
    let wanted = [(&json!("pinhole-operator"), &json!(["events"]), &json!(["list", "watch"]))];
    ensure!(rules == wanted, "{rules:?}");
    Ok(())
}

fn pods_are_deleted_only_where_that_is_wanted(helm: &Helm) -> Outcome {
    for wanted in [false, true] {
        let objects = helm.render(&json!({ "rbac": { "removeLostPods": wanted } }))?;
        let roles = objects.of("ClusterRole").into_iter().chain(objects.of("Role"));
        let all = roles.filter_map(|role| role["rules"].as_array()).flatten();
        let deletes = |rule: &&Value| {
            rule["resources"].to_string().contains("\"pods\"") && rule["verbs"].to_string().contains("delete")
        };
        ensure!(all.filter(deletes).count() == usize::from(wanted), "{wanted}");
    }
    Ok(())
}

fn sidecars_use_the_older_version_of_the_api(helm: &Helm) -> Outcome {
    let beta = "admissionregistration.k8s.io/v1beta1/MutatingAdmissionPolicy";
    for (apis, wanted) in [(vec![beta], "v1beta1"), (vec![beta, POLICY_API], "v1")] {
        let further: Vec<_> = apis.iter().flat_map(|api| ["--api-versions", api]).collect();
        let objects = helm.render_with(&json!({}), &further)?;
        let version = &objects.one("MutatingAdmissionPolicy")?["apiVersion"];
        ensure!(*version == format!("admissionregistration.k8s.io/{wanted}"), "{version}");
    }
    Ok(())
}

fn a_single_replica_has_no_disruption_budget(helm: &Helm) -> Outcome {
    let count = |values: Value| Ok::<_, anyhow::Error>(helm.render(&values)?.of("PodDisruptionBudget").len());
    ensure!(count(json!({}))? == 1);
    ensure!(count(json!({ "operator": { "replicas": 1 } }))? == 0);
    ensure!(count(json!({ "operator": { "podDisruptionBudget": { "enabled": false } } }))? == 0);
    Ok(())
}

fn watched_namespaces_bound_what_may_be_read(helm: &Helm) -> Outcome {
    let objects = helm.render(&json!({ "operator": { "watchNamespaces": ["one", "two"] } }))?;
    let secrets = |role: &&Value| role["rules"].to_string().contains("\"secrets\"");
    let reads_secrets: BTreeSet<_> = objects
        .of("ClusterRole")
        .into_iter()
        .filter(secrets)
        .map(|role| role["metadata"]["name"].clone().to_string())
        .collect();
    for binding in objects.of("ClusterRoleBinding") {
        let role = binding["roleRef"]["name"].to_string();
        ensure!(!reads_secrets.contains(&role), "{role} is bound in the whole cluster");
    }
    let bound: Vec<_> = objects
        .of("RoleBinding")
        .into_iter()
        .filter(|binding| binding["roleRef"]["kind"] == "ClusterRole")
        .map(|binding| binding["metadata"]["namespace"].as_str().unwrap_or_default())
        .collect();
    ensure!(bound == ["one", "two"], "{bound:?}");
    let args = objects.operator()?["args"].to_string();
    ensure!(args.contains("--watch-namespaces=one,two"), "{args}");
    Ok(())
}

fn pod(namespace: &str, app: &str) -> Peer {
    let labels = |key: &str, value: &str| Labels::from([(key.to_owned(), value.to_owned())]);
    Peer::Pod {
        address: [10, 244, 0, 9].into(),
        labels: labels("app.kubernetes.io/name", app),
        namespace: labels("kubernetes.io/metadata.name", namespace),
        ports: BTreeMap::new(),
    }
}

fn the_operators_policy_lets_gateways_in_and_scrapers(helm: &Helm) -> Outcome {
    let monitoring =
        json!([{ "namespaceSelector": { "matchLabels": { "kubernetes.io/metadata.name": "monitoring" } } }]);
    let narrow =
        json!({ "metricsFrom": monitoring, "operatorEgress": { "enabled": true, "apiServerPorts": [6443] } });
    let (outside, node) = (Peer::Outside([198, 51, 100, 7].into()), Peer::Node([10, 0, 0, 7].into()));
    let (gateway, scraper, other) =
        (pod("vpn", "pinhole-gateway"), pod("monitoring", "prometheus"), pod("web", "shop"));
    for (values, strict) in [(json!({}), false), (narrow, true)] {
        let objects = helm.render(&json!({ "networkPolicy": values }))?;
        let policy = serde_json::from_value(objects.one("NetworkPolicy")?.clone())?;
        let ports = objects.operator()?["ports"].as_array().context("no ports")?.clone();
        let port = |port: &Value| {
            let number = port["containerPort"].as_u64().and_then(|number| u16::try_from(number).ok());
            Some((port["name"].as_str()?.to_owned(), number?))
        };
        let own: BTreeMap<String, u16> = ports.iter().filter_map(port).collect();
        let passes = |direction, peer: &Peer, protocol, port| {
            let flow = Flow { direction, peer: peer.clone(), protocol, port };
            [Prefixes::Addresses, Prefixes::Outside].map(|reading| admits(&policy, &own, &flow, reading))
        };
        for (peer, link, metrics) in [
            (&gateway, true, !strict),
            (&scraper, false, true),
            (&other, false, !strict),
            (&outside, false, false),
        ] {
            ensure!(passes(Direction::Ingress, peer, "TCP", 8443) == [link; 2], "{peer:?}: the link");
            ensure!(passes(Direction::Ingress, peer, "TCP", 8080) == [metrics; 2], "{peer:?}: metrics");
        }
        for peer in [&outside, &node, &other] {
            ensure!(passes(Direction::Egress, peer, "TCP", 6443) == [true; 2], "{peer:?}: the API server");
            ensure!(passes(Direction::Egress, peer, "UDP", 53) == [true; 2], "{peer:?}: DNS");
            ensure!(passes(Direction::Egress, peer, "TCP", 80) == [!strict; 2], "{peer:?}: anything else");
        }
    }
    Ok(())
}

fn gateways_get_network_policies_unless_they_are_off(helm: &Helm) -> Outcome {
    let args = |values: Value| {
        anyhow::Ok(helm.render(&json!({ "networkPolicy": values }))?.operator()?["args"].clone())
    };
    let has = |args: &Value, wanted: &str| args.as_array().is_some_and(|args| args.contains(&json!(wanted)));
    let default = args(json!({}))?;
    ensure!(has(&default, "--gateway-network-policy=Any"), "{default}");
    ensure!(has(&default, r#"--metrics-from=[{"namespaceSelector":{}}]"#), "{default}");
    let strict = args(json!({ "gatewayEgress": "Routes", "metricsFrom": [] }))?;
    ensure!(has(&strict, "--gateway-network-policy=Routes") && has(&strict, "--metrics-from=[]"), "{strict}");
    let off = args(json!({ "enabled": false }))?;
    ensure!(!off.to_string().contains("network-policy"), "{off}");
    ensure!(helm.render(&json!({ "networkPolicy": { "enabled": false } }))?.of("NetworkPolicy").is_empty());
    ensure!(args(json!({ "gatewayEgress": "None" })).is_err(), "an egress that does not exist was taken");
    Ok(())
}

/// The API server evaluates the expressions; here they must be there, and be about whom the chart installs.
fn the_operator_writes_no_secrets_but_its_own(helm: &Helm) -> Outcome {
    let objects = helm.render(&json!({ "serviceAccount": { "name": "other" } }))?;
    let name = "pinhole-operator-secrets";
    let spec = &objects.named("ValidatingAdmissionPolicy", name)?["spec"];
    ensure!(spec["failurePolicy"] == "Fail", "{spec}");
    let rule = &spec["matchConstraints"]["resourceRules"][0];
    ensure!(rule["resources"] == json!(["secrets"]), "{rule}");
    ensure!(rule["operations"] == json!(["CREATE", "UPDATE", "DELETE"]), "{rule}");
    let who = &spec["matchConditions"][0]["expression"];
    ensure!(who == "request.userInfo.username == 'system:serviceaccount:pinhole-system:other'", "{who}");
    let types = spec["validations"].to_string();
    for known in ["Opaque", pinhole_operator::enrolment::TOKEN_SECRET_TYPE] {
        ensure!(types.contains(&format!("'{known}'")), "Secrets of type {known} are refused");
    }
    let binding = &objects.named("ValidatingAdmissionPolicyBinding", name)?["spec"];
    ensure!(binding["validationActions"] == json!(["Deny"]), "{binding}");
    let off = helm.render(&json!({ "rbac": { "restrictSecretWrites": false } }))?;
    ensure!(off.named("ValidatingAdmissionPolicy", name).is_err());
    ensure!(off.named("ValidatingAdmissionPolicyBinding", name).is_err());
    Ok(())
}

/// Gateways have no role at all: what is bound is bound to the operator.
fn roles_for_people_and_gateways_reach_no_secrets(helm: &Helm) -> Outcome {
    let objects = helm.render(&json!({}))?;
    let mut people = 0;
    for role in objects.of("ClusterRole") {
        let name = role["metadata"]["name"].as_str().unwrap_or_default();
        if ["pinhole-view", "pinhole-edit"].contains(&name) {
            ensure!(!role["rules"].to_string().contains("secrets"), "{name}");
            people += 1;
        }
    }
    ensure!(people == 2, "{people} roles for people");
    for binding in objects.of("ClusterRoleBinding").into_iter().chain(objects.of("RoleBinding")) {
        let subjects = binding["subjects"].as_array().context("a binding without subjects")?;
        ensure!(subjects.len() == 1 && subjects[0]["name"] == "pinhole-operator", "{binding}");
    }
    Ok(())
}

fn no_rule_uses_a_wildcard(helm: &Helm) -> Outcome {
    let objects = helm.render(&json!({}))?;
    let roles: Vec<_> = objects.of("ClusterRole").into_iter().chain(objects.of("Role")).collect();
    ensure!(roles.len() >= 3);
    for role in roles {
        ensure!(!role["rules"].to_string().contains('*'), "{}", role["metadata"]["name"]);
    }
    Ok(())
}

fn every_flag_of_the_values_renders(helm: &Helm) -> Outcome {
    let values = json!({
        "operator": {
            "logFormat": "text",
            "extraArgs": ["--one", "--two=2"],
            "nodeSelector": { "a": "b" },
            "tolerations": [{ "operator": "Exists" }],
            "affinity": { "nodeAffinity": {} },
            "topologySpreadConstraints": [{ "maxSkew": 2, "topologyKey": "rack", "whenUnsatisfiable": "DoNotSchedule" }],
            "priorityClassName": "system-cluster-critical",
            "podAnnotations": { "c": "d" },
            "podLabels": { "e": "f" },
            "service": { "annotations": { "g": "h" } },
        },
        "imagePullSecrets": [{ "name": "pull" }],
        "serviceAccount": { "name": "other", "annotations": { "i": "j" } },
        "sidecars": { "readinessProbe": true, "resources": { "requests": { "cpu": 1 }, "limits": {} } },
        "networkPolicy": { "enabled": true, "metricsFrom": [{ "namespaceSelector": {} }] },
        "monitoring": {
            "labels": { "release": "prometheus" },
            "serviceMonitor": { "enabled": true },
            "podMonitor": { "enabled": true },
            "prometheusRule": { "enabled": true },
            "grafanaDashboard": { "enabled": true, "annotations": { "grafana_folder": "VPN" } },
        },
    });
    let objects = helm.render(&values)?;
    for kind in ["NetworkPolicy", "ServiceMonitor", "PodMonitor", "PrometheusRule"] {
        objects.one(kind)?;
    }
    for kind in ["ServiceMonitor", "PodMonitor", "PrometheusRule"] {
        ensure!(objects.one(kind)?["metadata"]["labels"]["release"] == "prometheus", "{kind}");
    }
    let dashboard = &objects.one("ConfigMap")?;
    ensure!(dashboard["metadata"]["labels"]["grafana_dashboard"] == "1", "{}", dashboard["metadata"]);
    ensure!(dashboard["metadata"]["annotations"]["grafana_folder"] == "VPN", "{}", dashboard["metadata"]);
    let rendered: Value = serde_json::from_str(dashboard["data"]["pinhole-nat.json"].as_str().unwrap_or(""))?;
    ensure!(
        rendered == serde_json::from_str::<Value>(&read(DASHBOARD)?)?,
        "the dashboard is not what it was"
    );
    let template = &objects.one("Deployment")?["spec"]["template"];
    let pod = &template["spec"];
    ensure!(pod["topologySpreadConstraints"].as_array().is_some_and(|all| all.len() == 1), "{pod}");
    ensure!(pod["serviceAccountName"] == "other" && pod["imagePullSecrets"][0]["name"] == "pull", "{pod}");
    ensure!(
        pod["nodeSelector"]["a"] == "b" && pod["priorityClassName"] == "system-cluster-critical",
        "{pod}"
    );
    ensure!(template["metadata"]["labels"]["e"] == "f" && template["metadata"]["annotations"]["c"] == "d");
    let args = pod["containers"][0]["args"].as_array().context("no args")?;
    ensure!(args.ends_with(&[json!("--one"), json!("--two=2")]), "{args:?}");
    let policy = objects.one("MutatingAdmissionPolicy")?.to_string();
    ensure!(
        policy.contains("readinessProbe: ")
            && policy.contains(r#"requests: {\"cpu\": \"1\", \"memory\": \"16Mi\"}"#),
        "{policy}"
    );
    for binding in objects.of("ClusterRoleBinding").into_iter().chain(objects.of("RoleBinding")) {
        ensure!(binding["subjects"][0]["name"] == "other", "{binding}");
    }
    let plain = helm.render(&json!({}))?;
    for kind in ["ServiceMonitor", "PodMonitor", "PrometheusRule"] {
        ensure!(plain.of(kind).is_empty(), "{kind} without being asked for");
    }
    Ok(())
}

fn values_that_do_not_exist_are_refused(helm: &Helm) -> Outcome {
    for values in [
        json!({ "replicas": 3 }),
        json!({ "operator": { "replica": 3 } }),
        json!({ "operator": { "replicas": "3" } }),
        json!({ "operator": { "logFormat": "xml" } }),
        json!({ "operator": { "image": { "digest": "latest" } } }),
        json!({ "operator": { "watchNamespaces": ["Not A Name"] } }),
        json!({ "operator": { "priorityClassName": "a\nhostNetwork: true" } }),
        json!({ "serviceAccount": { "name": "--help" } }),
        json!({ "imagePullSecrets": [{ "name": "a b" }] }),
        json!({ "monitoring": { "grafanaDashboard": { "label": "a: b\nc" } } }),
        json!({ "sidecars": { "enabled": "yes" } }),
        json!({ "monitoring": { "podMonitor": { "interval": "often" } } }),
        json!({ "monitoring": { "prometheusRule": { "reachabilityObjective": 100 } } }),
    ] {
        ensure!(helm.render(&values).is_err(), "{values} was taken");
    }
    Ok(())
}

/// The factors are those of the SRE workbook, times what the objective leaves.
fn alerts_on_reachability_follow_the_objective(helm: &Helm) -> Outcome {
    for (objective, page) in [(json!(99.9), "> 0.0144 "), (json!(99), "> 0.144 ")] {
        let rule = json!({ "enabled": true, "reachabilityObjective": objective });
        let objects = helm.render(&json!({ "monitoring": { "prometheusRule": rule } }))?;
        let group = &objects.one("PrometheusRule")?["spec"]["groups"][0]["rules"];
        let rules = group.as_array().context("no rules")?;
        let recorded: BTreeSet<_> = rules.iter().filter_map(|rule| rule["record"].as_str()).collect();
        let alerts: Vec<_> = rules.iter().filter(|rule| rule["alert"].is_string()).collect();
        ensure!((recorded.len(), alerts.len()) == (5, 3), "{rules:?}");
        for alert in &alerts {
            let expression = alert["expr"].as_str().context("no expression")?;
            let named = expression.split(' ').filter(|word| word.contains(":pinhole_"));
            ensure!(named.clone().count() == 2, "{expression}");
            ensure!(named.clone().all(|name| recorded.contains(name)), "not recorded: {expression}");
        }
        ensure!(alerts[0]["expr"].as_str().is_some_and(|it| it.contains(page)), "{objective}: {}", alerts[0]);
    }
    Ok(())
}

fn selectors_match_the_pods(helm: &Helm) -> Outcome {
    let values = json!({
        "networkPolicy": { "enabled": true },
        "monitoring": { "serviceMonitor": { "enabled": true } },
    });
    let objects = helm.render(&values)?;
    let labels = &objects.one("Deployment")?["spec"]["template"]["metadata"]["labels"];
    let matched = |selector: &Value, of: &Value| {
        selector
            .as_object()
            .is_some_and(|s| !s.is_empty() && s.iter().all(|(name, value)| of[name] == *value))
    };
    ensure!(matched(&objects.one("Deployment")?["spec"]["selector"]["matchLabels"], labels));
    ensure!(matched(&objects.one("Service")?["spec"]["selector"], labels));
    ensure!(matched(&objects.one("PodDisruptionBudget")?["spec"]["selector"]["matchLabels"], labels));
    ensure!(matched(&objects.one("NetworkPolicy")?["spec"]["podSelector"]["matchLabels"], labels));
    let service = &objects.one("Service")?["metadata"]["labels"];
    ensure!(matched(&objects.one("ServiceMonitor")?["spec"]["selector"]["matchLabels"], service));
    Ok(())
}

/// The two are written down twice, so that what the policy's expression says is compared word by word.
fn the_snippet_for_older_clusters_is_what_is_injected(helm: &Helm) -> Outcome {
    let readme = read("README.md")?;
    let snippet =
        readme.split("```yaml\n").nth(1).and_then(|rest| rest.split("```").next()).context("no snippet")?;
    let snippet = &documents(snippet)?[0];
    let container = &snippet["spec"]["initContainers"][0];
    let objects = helm.render(&json!({}))?;
    let policy = objects.one("MutatingAdmissionPolicy")?;
    let expression =
        policy["spec"]["mutations"][0]["jsonPatch"]["expression"].as_str().context("no patch")?;
    let mut words = BTreeSet::new();
    for part in [container, &snippet["spec"]["volumes"]] {
        scalars(part, &mut words);
    }
    // Filled in by the reader, or by the policy from the pod.
    let filled = [
        "STAFF",
        "VPN",
        "IMAGE",
        "STAFF-join.VPN.svc:443",
        "STAFF.VPN.pool.pinhole.dev",
        "pinhole-ca",
        "ca.crt",
    ];
    for word in words.iter().filter(|word| !filled.contains(&word.as_str())) {
        ensure!(expression.contains(word.as_str()), "{word} is in the snippet only");
    }
    let environment = expression.matches("initContainers.env{").count();
    ensure!(container["env"].as_array().map(Vec::len) == Some(environment), "another number of variables");
    let mounts = expression.matches("initContainers.volumeMounts{").count();
    ensure!(container["volumeMounts"].as_array().map(Vec::len) == Some(mounts), "another number of mounts");
    Ok(())
}

fn scalars(value: &Value, into: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => fields.values().for_each(|field| scalars(field, into)),
        Value::Array(items) => items.iter().for_each(|item| scalars(item, into)),
        Value::String(text) => drop(into.insert(text.clone())),
        other => drop(into.insert(other.to_string())),
    }
}

/// Paths of the values and their defaults; what has no fixed keys is one value, and so are resources.
fn leaves(value: &Value, path: &str, into: &mut BTreeMap<String, Value>) {
    match value {
        Value::Object(fields) if !fields.is_empty() && !path.ends_with("resources") => {
            for (name, field) in fields {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                leaves(field, &path, into);
            }
        }
        leaf => drop(into.insert(path.to_owned(), leaf.clone())),
    }
}

fn values() -> anyhow::Result<BTreeMap<String, Value>> {
    let mut found = BTreeMap::new();
    leaves(&documents(&read("values.yaml")?)?[0], "", &mut found);
    Ok(found)
}

fn every_value_is_documented_and_nothing_else() -> Outcome {
    let readme = read("README.md")?;
    let mut documented = BTreeMap::new();
    for row in readme.lines().filter(|line| line.starts_with("| `")) {
        let mut cells = row.trim_matches('|').split(" | ");
        let (name, default) =
            (cells.next().unwrap_or_default(), cells.next().context("a row without a default")?);
        let default: Value = serde_json::from_str(default.trim().trim_matches('`'))
            .with_context(|| format!("the default in: {row}"))?;
        ensure!(cells.next().is_some_and(|text| text.trim().len() > 3), "no description: {row}");
        documented.insert(name.trim().trim_matches('`').to_owned(), default);
    }
    let values = values()?;
    for (name, default) in &values {
        ensure!(
            documented.get(name) == Some(default),
            "README.md should have `{name}` with default `{default}`"
        );
    }
    for name in documented.keys() {
        ensure!(values.contains_key(name), "README.md has `{name}`, which is no value");
    }
    Ok(())
}

/// What monitoring names must exist where it is measured.
fn every_metric_that_is_shown_or_alerted_on_exists() -> Outcome {
    let exposed = exposed_metrics()?;
    let dashboard = expressions(&serde_json::from_str(&read(DASHBOARD)?)?);
    ensure!(dashboard.len() > 20, "only {} expressions", dashboard.len());
    let alerts = read("templates/monitoring.yaml")?;
    let alerts = alerts.lines().filter_map(|line| line.trim().strip_prefix("expr: ")).map(str::to_owned);
    for expression in dashboard.into_iter().chain(alerts) {
        for name in metric_names(&expression) {
            ensure!(exposed.contains(&name), "nobody exposes {name}, in {expression}");
        }
    }
    Ok(())
}

/// The names of all samples: the operator's page, and the families that the gateway's page is made of.
fn exposed_metrics() -> anyhow::Result<BTreeSet<String>> {
    let (metrics, gateway) = (Metrics::new(), GatewayKey::new("vpn", "edge"));
    metrics.clients(&gateway, Some(ClientCounts::default()));
    metrics.nats(&gateway, Some(&Tally::default()));
    metrics.churned(&gateway, ChurnCause::MappingChanged, 1);
    let page = metrics.text()?;
    let mut names = BTreeSet::new();
    for line in page.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let (name, kind) = line.split_once(' ').context("a family without a type")?;
        names.extend(samples_of(name, kind));
    }
    let source = std::fs::read_to_string(chart().join("../../agent/src/gateway/metrics.rs"))?;
    let pieces: Vec<&str> = source.split('"').collect();
    for call in pieces.windows(4).filter(|call| call[1].starts_with("pinhole_")) {
        if call[0].trim_end().ends_with("page.spread(") {
            names.extend(samples_of(call[1], "histogram"));
        } else if ["gauge", "counter"].contains(&call[3]) {
            names.insert(call[1].to_owned());
        }
    }
    Ok(names)
}

fn samples_of(family: &str, kind: &str) -> Vec<String> {
    match kind {
        "counter" => vec![format!("{family}_total")],
        "histogram" => ["_bucket", "_sum", "_count"].map(|suffix| format!("{family}{suffix}")).into(),
        _ => vec![family.to_owned()],
    }
}

fn expressions(dashboard: &Value) -> Vec<String> {
    match dashboard {
        Value::Object(map) => {
            let own = map.iter().filter(|(key, _)| ["expr", "definition"].contains(&key.as_str()));
            let own = own.filter_map(|(_, value)| value.as_str().map(str::to_owned));
            own.chain(map.values().flat_map(expressions)).collect()
        }
        Value::Array(items) => items.iter().flat_map(expressions).collect(),
        _ => Vec::new(),
    }
}

fn metric_names(expression: &str) -> Vec<String> {
    let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("pinhole_")).map(str::to_owned).collect()
}

fn the_schema_knows_every_value() -> Outcome {
    let schema: Value = serde_json::from_str(&read("values.schema.json")?)?;
    for name in values()?.keys() {
        let known = name.split('.').try_fold(&schema, |at, part| at.get("properties")?.get(part));
        ensure!(known.is_some(), "values.schema.json lacks {name}");
    }
    Ok(())
}

fn samples_are_of_served_kinds() -> Outcome {
    let mut seen = BTreeSet::new();
    for entry in std::fs::read_dir(chart().join("examples"))? {
        let file = entry?.path();
        for object in documents(&std::fs::read_to_string(&file)?)? {
            let kind = object["kind"].as_str().unwrap_or_default().to_owned();
            let read = match kind.as_str() {
                "VPNGateway" => serde_json::from_value::<pinhole_crds::VPNGateway>(object).map(drop),
                "VPNClientPool" => serde_json::from_value::<pinhole_crds::VPNClientPool>(object).map(drop),
                "VPNClient" => serde_json::from_value::<pinhole_crds::VPNClient>(object).map(drop),
                _ => Ok(()),
            };
            read.with_context(|| format!("{} in {}", kind, file.display()))?;
            seen.insert(kind);
        }
    }
    ensure!(KINDS.iter().all(|kind| seen.contains(*kind)), "{seen:?}");
    Ok(())
}

fn condition(kind: &str, status: &str) -> Value {
    json!({ "type": kind, "status": status, "reason": "Because", "message": "it is so" })
}

fn argo_cd_reads_the_conditions(lua: &Path) -> Outcome {
    let script = read("gitops/argocd-health.lua")?;
    let object = |kind: &str, status: Value| json!({ "kind": kind, "metadata": { "name": "a", "generation": 2 }, "spec": {}, "status": status });
    let observed = |conditions: Value| json!({ "observedGeneration": 2, "conditions": conditions });
    let (ready, unready) = (condition("Ready", "True"), condition("Ready", "False"));
    let mut cases = Vec::new();
    for kind in KINDS {
        cases.extend([
            (object(kind, Value::Null), "Progressing"),
            (object(kind, json!({ "observedGeneration": 1, "conditions": [ready] })), "Progressing"),
            (object(kind, observed(json!([ready]))), "Healthy"),
            (object(kind, observed(json!([unready]))), "Degraded"),
            (object(kind, observed(json!([condition("Ready", "Unknown")]))), "Unknown"),
            (object(kind, observed(json!([unready, condition("Reconciling", "True")]))), "Progressing"),
            (object(kind, observed(json!([unready, condition("Stalled", "True")]))), "Degraded"),
            (object(kind, observed(json!([]))), "Progressing"),
        ]);
        let mut leaving = object(kind, observed(json!([ready])));
        leaving["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        cases.push((leaving, "Progressing"));
    }
    let mut suspended = object("VPNClient", observed(json!([unready])));
    suspended["spec"]["suspended"] = json!(true);
    cases.push((suspended, "Suspended"));
    for (object, wanted) in cases {
        let program = format!(
            "obj = {}\nlocal health = (function()\n{script}\nend)()\n\
             assert(type(health.message) == 'string' and health.message ~= '')\nio.write(health.status)",
            lua_literal(&object)
        );
        let file = tempfile::NamedTempFile::new()?;
        std::fs::write(&file, program)?;
        let output = Command::new(lua).arg(file.path()).output()?;
        ensure!(output.status.success(), "{object}: {}", String::from_utf8_lossy(&output.stderr));
        let said = String::from_utf8(output.stdout)?;
        ensure!(said == wanted, "{object}: {said} instead of {wanted}");
    }
    Ok(())
}

fn lua_literal(value: &Value) -> String {
    match value {
        Value::Null => "nil".into(),
        Value::Array(items) => {
            format!("{{{}}}", items.iter().map(lua_literal).collect::<Vec<_>>().join(", "))
        }
        Value::Object(fields) => {
            let fields: Vec<_> =
                fields.iter().map(|(name, v)| format!("[{name:?}] = {}", lua_literal(v))).collect();
            format!("{{{}}}", fields.join(", "))
        }
        Value::String(text) => format!("{text:?}"),
        other => other.to_string(),
    }
}
