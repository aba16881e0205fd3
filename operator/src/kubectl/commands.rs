//! What each command of `kubectl pinhole` does.

use std::io::IsTerminal as _;

use k8s_openapi::{api::core::v1::Secret, jiff::Timestamp};
use kube::ResourceExt as _;
use pinhole_crds::{VPNClient, VPNClientPool};
use serde::Serialize;

use super::{
    Args, PluginError,
    args::{Command, Output},
    client_row::{ClientRow, behind, clients_table, peers_table},
    cluster::Cluster,
    nat_row::{NatRow, address_table, by_address, nat_table},
    qr::qr_code,
};
use crate::{enrolment::token_secret_name, plan::wgquick::CONFIG_ENTRY};

/// Does what was asked; what is to be printed.
pub(super) async fn run(args: Args) -> Result<String, PluginError> {
    let cluster = Cluster::connect(&args).await?;
    match args.command {
        Command::Config { name, qr } => {
            let text = config(&cluster, &name).await?;
            if !qr {
                return Ok(text);
            }
            check_private_key(&name, &text)?;
            qr_code(&text, std::io::stdout().is_terminal())
        }
        Command::Clients { all_namespaces, pool, output } => {
            let mut rows = rows(&cluster, all_namespaces, pool.as_deref()).await?;
            rows.sort_by(|a, b| a.order().cmp(&b.order()));
            if output == Output::Json {
                return json(&rows);
            }
            Ok(if rows.is_empty() { "No clients.\n".into() } else { clients_table(&rows, all_namespaces) })
        }
        Command::Nat { all_namespaces, pool, by_address: grouped, output } => {
            let mut rows = nats(&cluster, all_namespaces, pool.as_deref()).await?;
            rows.sort_by(NatRow::order);
            let groups = grouped.then(|| by_address(&rows));
            match (output, groups) {
                (Output::Json, Some(groups)) => json(&groups),
                (Output::Json, None) => json(&rows),
                _ if rows.is_empty() => Ok("No clients.\n".into()),
                (Output::Table, Some(groups)) if groups.is_empty() => {
                    Ok("No client was heard by a gateway yet.\n".into())
                }
                (Output::Table, Some(groups)) => Ok(address_table(&groups)),
                (Output::Table, None) => Ok(nat_table(&rows, all_namespaces)),
            }
        }
        Command::Peers { behind: address, all_namespaces, output } => {
            let rows = behind(rows(&cluster, all_namespaces, None).await?, address);
            if output == Output::Json {
                return json(&rows);
            }
            Ok(if rows.is_empty() { format!("No clients behind {address}.\n") } else { peers_table(&rows) })
        }
        Command::Token { pool, name } => token(&cluster, &pool, &name).await,
        Command::Suspend { name } => suspend(&cluster, &name, true).await,
        Command::Resume { name } => suspend(&cluster, &name, false).await,
    }
}

async fn clients(cluster: &Cluster, all: bool, pool: Option<&str>) -> Result<Vec<VPNClient>, PluginError> {
    let namespace = (!all).then_some(cluster.namespace.as_str());
    let mut clients = cluster.clients(namespace).await?;
    clients.retain(|c| pool.is_none_or(|pool| c.spec.pool_ref.name == pool));
    Ok(clients)
}

async fn rows(cluster: &Cluster, all: bool, pool: Option<&str>) -> Result<Vec<ClientRow>, PluginError> {
    let now = Timestamp::now();
    Ok(clients(cluster, all, pool).await?.iter().map(|c| ClientRow::new(c, now)).collect())
}

async fn nats(cluster: &Cluster, all: bool, pool: Option<&str>) -> Result<Vec<NatRow>, PluginError> {
    let now = Timestamp::now();
    Ok(clients(cluster, all, pool).await?.iter().map(|c| NatRow::new(c, now)).collect())
}

async fn config(cluster: &Cluster, name: &str) -> Result<String, PluginError> {
    let client = cluster.client(name).await?;
    let secret = cluster.secret(config_secret(&client)?).await?;
    let config = entry(&secret, CONFIG_ENTRY).ok_or_else(|| {
        PluginError::NotReady(format!("the configuration of VPNClient {name} is not written yet; try again"))
    })?;
    check_text(&secret, &config)?;
    Ok(config)
}

/// Whether a Secret's text is one that the operator writes: lines of plain ASCII.
fn check_text(secret: &Secret, text: &str) -> Result<(), PluginError> {
    if text.bytes().all(|b| b == b'\n' || b == b' ' || b.is_ascii_graphic()) {
        return Ok(());
    }
    Err(PluginError::Unsuitable(format!(
        "Secret {} holds characters that the operator does not write: somebody else changed it; delete it, and the \
         operator makes it anew with another key",
        secret.name_any()
    )))
}

/// Name of the Secret with the client's configuration.
fn config_secret(client: &VPNClient) -> Result<&str, PluginError> {
    let name = client.name_any();
    if !client.spec.is_stock() {
        return Err(PluginError::Unsuitable(format!(
            "VPNClient {name} runs the pinhole agent, which needs no configuration; make a VPNClient without spec.enrolment \
             for a stock WireGuard client"
        )));
    }
    let secret = client.status.as_ref().and_then(|s| s.config_secret.as_deref());
    secret.ok_or_else(|| {
        PluginError::NotReady(format!("VPNClient {name} has no configuration yet{}", why(client)))
    })
}

/// What the client's conditions say is missing.
fn why(client: &VPNClient) -> String {
    let conditions = client.status.iter().flat_map(|s| &s.conditions);
    let stalled = conditions.filter(|c| c.status != "True" || c.type_ == pinhole_crds::STALLED);
    let messages: Vec<&str> = stalled.map(|c| c.message.as_str()).filter(|m| !m.is_empty()).take(1).collect();
    messages.first().map_or_else(|| "; try again".to_owned(), |message| format!(": {message}"))
}

fn check_private_key(name: &str, config: &str) -> Result<(), PluginError> {
    let has_key = config.lines().any(|line| line.trim_start().starts_with("PrivateKey"));
    if has_key {
        return Ok(());
    }
    Err(PluginError::Unsuitable(format!(
        "the private key of VPNClient {name} is its owner's alone, so that a QR code would lack it; print the \
         configuration without --qr and add the key"
    )))
}

async fn token(cluster: &Cluster, pool: &str, name: &str) -> Result<String, PluginError> {
    check_token(&cluster.pool(pool).await?, name)?;
    let secret = cluster.secret(&token_secret_name(pool, name)).await?;
    let join = entry(&secret, "join").ok_or_else(|| {
        PluginError::NotReady(format!(
            "the gateway of pool {pool} has no address yet, so that its join strings lead nowhere; see `kubectl get vpngateways`"
        ))
    })?;
    check_text(&secret, &join)?;
    Ok(format!("{join}\n"))
}

fn check_token(pool: &VPNClientPool, name: &str) -> Result<(), PluginError> {
    let tokens = || pool.spec.enrolment.iter().flat_map(|e| &e.tokens);
    let Some(token) = tokens().find(|t| t.name == name) else {
        let names: Vec<&str> = tokens().map(|t| t.name.as_str()).collect();
        let hint = if names.is_empty() {
            "it has none: add one to spec.enrolment.tokens".into()
        } else {
            format!("it has: {}", names.join(", "))
        };
        return Err(PluginError::NotFound {
            kind: "join token",
            namespace: pool.name_any(),
            name: name.to_owned(),
            hint,
        });
    };
    if token.revoked == Some(true) {
        return Err(PluginError::Unsuitable(format!(
            "join token {name} of pool {} was revoked",
            pool.name_any()
        )));
    }
    Ok(())
}

async fn suspend(cluster: &Cluster, name: &str, suspended: bool) -> Result<String, PluginError> {
    let client = cluster.client(name).await?;
    if client.spec.suspended.unwrap_or(false) != suspended {
        cluster.suspend(name, suspended).await?;
    }
    Ok(format!("vpnclient/{name} {}\n", if suspended { "suspended" } else { "resumed" }))
}

fn entry(secret: &Secret, key: &str) -> Option<String> {
    String::from_utf8(secret.data.as_ref()?.get(key)?.0.clone()).ok()
}

fn json(rows: &impl Serialize) -> Result<String, PluginError> {
    let text = serde_json::to_string_pretty(rows).map_err(|e| PluginError::Refused(e.to_string()))?;
    Ok(text + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(spec: &serde_json::Value, status: &serde_json::Value) -> VPNClient {
        serde_json::from_value(serde_json::json!({
            "apiVersion": "pinhole.dev/v1alpha1", "kind": "VPNClient",
            "metadata": { "name": "phone", "namespace": "vpn" },
            "spec": spec, "status": status,
        }))
        .unwrap()
    }

    #[test]
    fn the_configuration_of_a_client_with_an_agent_is_not_asked_for() {
        let enrolled =
            serde_json::json!({ "poolRef": { "name": "staff" }, "enrolment": { "method": "Token" } });
        let client = client(&enrolled, &serde_json::json!({}));
        let error = config_secret(&client).unwrap_err();
        assert_eq!((error.category(), error.exit_code()), ("Unsuitable", 1));
    }

    #[test]
    fn a_configuration_that_is_not_there_yet_says_why() {
        let stock = serde_json::json!({ "poolRef": { "name": "staff" } });
        let status = serde_json::json!({ "conditions": [{
            "type": "Ready", "status": "False", "reason": "PoolExhausted", "message": "pool staff has no free address",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }] });
        let client = client(&stock, &status);
        let error = config_secret(&client).unwrap_err();
        assert_eq!(error.exit_code(), 4);
        assert!(error.to_string().ends_with(": pool staff has no free address"), "{error}");
    }

    #[test]
    fn a_secret_that_would_act_on_the_terminal_is_not_printed() {
        let secret = Secret::default();
        assert!(check_text(&secret, "[Interface]\nAddress = 10.77.0.9/32\n").is_ok());
        for text in ["\u{1b}[2J", "a\rb", "a\0b", "é", "\u{9b}1m"] {
            assert_eq!(check_text(&secret, text).unwrap_err().category(), "Unsuitable", "{text:?}");
        }
    }

    #[test]
    fn a_qr_code_without_the_private_key_is_not_made() {
        assert!(check_private_key("phone", "[Interface]\nPrivateKey = x\n").is_ok());
        assert!(check_private_key("phone", "[Interface]\n# PrivateKey = put it here\n").is_err());
    }

    #[test]
    fn an_unknown_token_is_answered_with_the_names_of_those_that_there_are() {
        let pool: VPNClientPool = serde_json::from_value(serde_json::json!({
            "apiVersion": "pinhole.dev/v1alpha1", "kind": "VPNClientPool",
            "metadata": { "name": "staff", "namespace": "vpn" },
            "spec": { "gatewayRef": { "name": "edge" }, "cidrs": ["10.77.0.0/24"],
                "enrolment": { "tokens": [{ "name": "first" }, { "name": "old", "revoked": true }] } },
        }))
        .unwrap();
        assert!(check_token(&pool, "first").is_ok());
        let error = check_token(&pool, "frist").unwrap_err();
        assert_eq!(error.exit_code(), 3);
        assert!(error.to_string().contains("first, old"), "{error}");
        assert_eq!(check_token(&pool, "old").unwrap_err().category(), "Unsuitable");
    }
}
