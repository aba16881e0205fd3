//! What the API server refuses, and how it says so: `kubectl apply` by a user who made a mistake.

use anyhow::{bail, ensure};
use pinhole_e2e::Lab;

use crate::{Outcome, hostile, product, tests};

tests![
    bad_input_is_refused_with_the_field_the_problem_and_the_remedy,
    nothing_hostile_is_stored_that_would_end_in_a_configuration,
    sound_objects_of_every_family_are_accepted,
    fields_that_cannot_change_do_not,
    kubectl_explains_every_field,
];

const API: &str = "apiVersion: pinhole.dev/v1alpha1";

/// Applies without storing anything.
async fn dry_run(lab: &Lab, object: &str) -> Result<String, String> {
    let command =
        lab.cluster().kubectl(["apply", "--dry-run=server", "-f", "-"]).map_err(|e| e.to_string())?;
    command.stdin(format!("{API}\n{object}")).run().await.map_err(|error| error.to_string())
}

fn gateway(spec: &str) -> String {
    format!("kind: VPNGateway\nmetadata: {{ name: dry, namespace: default }}\nspec: {spec}")
}

fn pool(spec: &str) -> String {
    format!(
        "kind: VPNClientPool\nmetadata: {{ name: dry, namespace: default }}\nspec: {{ gatewayRef: {{ name: edge }}, {spec} }}"
    )
}

fn client(spec: &str) -> String {
    format!(
        "kind: VPNClient\nmetadata: {{ name: dry, namespace: default }}\nspec: {{ poolRef: {{ name: staff }}, {spec} }}"
    )
}

async fn bad_input_is_refused_with_the_field_the_problem_and_the_remedy(lab: &Lab) -> Outcome {
    let _product = product::installed(lab).await?;
    let cases = [
        (gateway("{ exposure: { type: Carrier } }"), vec!["spec.exposure.type", "LoadBalancer"]),
        (gateway("{ exposure: { type: NodePort }, replicas: 17 }"), vec!["spec.replicas", "16"]),
        (
            gateway("{ exposure: { type: NodePort }, keepalive: { min: 60s, max: 30s } }"),
            vec!["spec.keepalive", "min: is greater than max", "raise max"],
        ),
        (
            gateway("{ exposure: { type: NodePort }, keepalive: { min: 30s, longestBlind: 20s } }"),
            vec!["spec.keepalive", "longestBlind: is less than min", "raise longestBlind"],
        ),
        (
            gateway("{ exposure: { type: NodePort }, keepalive: { interval: 25 } }"),
            vec!["spec.keepalive.interval"],
        ),
        (
            gateway("{ exposure: { type: NodePort }, ports: { tunnel: 443, session: 443 } }"),
            vec!["spec.ports", "same number", "choose another"],
        ),
        (
            gateway("{ exposure: { type: HostPort, nodePorts: { tunnel: 30001, session: 30002 } } }"),
            vec!["exposure.nodePorts", "no meaning", "remove it"],
        ),
        (pool("cidrs: [10.77.0.0/16, 10.77.3.0/24]"), vec!["spec.cidrs", "overlap", "remove the one"]),
        (pool("cidrs: [10.77.0.1/16]"), vec!["spec.cidrs", "host bits", "network address"]),
        (pool("cidrs: [ten]"), vec!["spec.cidrs"]),
        (pool("cidrs: []"), vec!["spec.cidrs"]),
        (pool("cidrs: [fd00::/16]"), vec!["spec.cidrs", "too large", "/48"]),
        (pool("cidrs: [10.77.0.0/16], routes: [10.96.0.1/12]"), vec!["spec.routes", "host bits"]),
        (pool("cidrs: [10.77.0.0/16], reserved: [10.77.0.1-fd00::1]"), vec!["spec.reserved", "FIRST-LAST"]),
        (
            pool("cidrs: [10.77.0.0/16], enrolment: { tokens: [{ name: a }, { name: a }] }"),
            vec!["spec.enrolment.tokens", "Duplicate"],
        ),
        (client("publicKey: short"), vec!["spec.publicKey"]),
        (client("addresses: [10.77.0.9, 10.77.0.10]"), vec!["spec.addresses", "more than one", "keep one"]),
    ];
    for (object, words) in cases {
        let Err(said) = dry_run(lab, &object).await else { bail!("accepted: {object}") };
        for word in words {
            ensure!(said.contains(word), "{word:?} is not in the refusal of {object}: {said}");
        }
    }
    Ok(())
}

/// `text` in double quotes, as YAML reads it back: with escapes, as no file may hold some of these characters.
fn quoted(text: &str) -> String {
    let escaped = text.encode_utf16().map(|unit| match u8::try_from(unit).map(char::from) {
        Ok(c) if c.is_ascii_alphanumeric() => c.to_string(),
        _ => format!("\\u{unit:04x}"),
    });
    format!("\"{}\"", escaped.collect::<String>())
}

async fn nothing_hostile_is_stored_that_would_end_in_a_configuration(lab: &Lab) -> Outcome {
    let _product = product::installed(lab).await?;
    for text in hostile::strings() {
        let text = quoted(&text);
        for (object, field) in [
            (
                pool(&format!("cidrs: [10.77.0.0/16], dns: {{ search: [cluster.local, {text}] }}")),
                "spec.dns.search",
            ),
            (
                gateway(&format!("{{ exposure: {{ type: NodePort, addresses: [{text}] }} }}")),
                "spec.exposure.addresses",
            ),
            (client(&format!("group: {text}")), "spec.group"),
        ] {
            let Err(said) = dry_run(lab, &object).await else { bail!("accepted: {object}") };
            ensure!(said.contains(field), "{field} is not in the refusal of {object}: {said}");
        }
    }
    Ok(())
}

async fn sound_objects_of_every_family_are_accepted(lab: &Lab) -> Outcome {
    let _product = product::installed(lab).await?;
    for object in [
        gateway("{ exposure: { type: LoadBalancer }, replicas: 2 }"),
        pool("cidrs: [10.77.0.0/16]"),
        pool("cidrs: ['fd77::/64']"),
        pool("cidrs: [10.77.0.0/16], dns: { search: [svc.cluster.local, Corp.Example., _x.example] }"),
        gateway("{ exposure: { type: HostPort, addresses: [vpn.example.org, '2001:db8::1'] } }"),
        pool("cidrs: [10.77.0.0/16, 'fd77::/64'], reserved: [10.77.0.2-10.77.0.9, 'fd77::1/127']"),
        client("addresses: [10.77.0.9, 'fd77::9']"),
    ] {
        if let Err(said) = dry_run(lab, &object).await {
            bail!("refused: {object}: {said}");
        }
    }
    Ok(())
}

async fn fields_that_cannot_change_do_not(lab: &Lab) -> Outcome {
    let _product = product::installed(lab).await?;
    let namespace = "kinds-fixed";
    lab.apply(&format!(
        r#"{{ "apiVersion": "v1", "kind": "Namespace", "metadata": {{ "name": "{namespace}" }} }}"#
    ))
    .await?;
    let object = |spec: &str| {
        format!(
            "{API}\nkind: VPNClientPool\nmetadata: {{ name: p, namespace: {namespace} }}\nspec: {{ {spec} }}"
        )
    };
    lab.apply(&object("gatewayRef: { name: a }, cidrs: [10.77.0.0/16]")).await?;
    for (spec, words) in [
        ("gatewayRef: { name: b }, cidrs: [10.77.0.0/16]", "make a new pool"),
        ("gatewayRef: { name: a }, cidrs: [10.78.0.0/16]", "a prefix was removed"),
    ] {
        let Err(error) = lab.apply(&object(spec)).await else { bail!("accepted: {spec}") };
        ensure!(error.to_string().contains(words), "{words:?} is not in {error}");
    }
    lab.apply(&object("gatewayRef: { name: a }, cidrs: [10.77.0.0/16, 'fd77::/64']")).await?;
    lab.kubectl(["delete", "namespace", namespace, "--timeout=60s"]).await?;
    Ok(())
}

async fn kubectl_explains_every_field(lab: &Lab) -> Outcome {
    let _product = product::installed(lab).await?;
    for kind in ["vpngateway", "vpnclientpool", "vpnclient"] {
        let text = lab.kubectl(["explain", kind, "--recursive"]).await?;
        ensure!(text.contains("FIELDS"), "{text}");
        let spec = lab.kubectl(["explain", &format!("{kind}.spec")]).await?;
        ensure!(!spec.contains("<no description>"), "{spec}");
    }
    Ok(())
}
