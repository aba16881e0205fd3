//! Which Secrets of join tokens a pool should have. Pure.

use k8s_openapi::{
    ByteString, api::core::v1::Secret, apimachinery::pkg::apis::meta::v1::ObjectMeta, jiff::Timestamp,
};
use kube::ResourceExt as _;
use pinhole_crds::{JoinToken, TokenState, TokenStatus, VPNClientPool};

use super::{
    JoinTarget,
    client::{labels, owner},
    join::JoinString,
    token::{Ledger, is_of},
};

/// Type of the Secrets.
pub const TOKEN_SECRET_TYPE: &str = "pinhole.dev/join-token";

/// Label of the Secrets: the pool's name.
pub(super) const POOL_OF_TOKEN_LABEL: &str = "pinhole.dev/token-of";

/// Key of the secret part.
pub(super) const TOKEN_KEY: &str = "token";

/// Key of the join string.
pub(super) const JOIN_KEY: &str = "join";

/// Name of the Secret of a pool's token.
pub fn token_secret_name(pool: &str, token: &str) -> String {
    format!("{pool}-token-{token}")
}

/// A write that brings the Secrets nearer to what they should be.
#[derive(Debug)]
pub(super) enum Write {
    /// Make this one.
    Create(Box<Secret>),
    /// Give this one another join string, provided that nobody changed it.
    Join { name: String, resource_version: String, join: String },
    /// Remove this one.
    Delete { name: String, uid: String },
}

/// The writes for `existing`, the Secrets that carry the pool's label. A secret part is made once, by `draw`; the
/// join string follows the gateway's endpoints and the trust bundle, and is left as it is while there are none.
pub(super) fn plan(
    pool: &VPNClientPool,
    existing: &[Secret],
    target: &JoinTarget<'_>,
    mut draw: impl FnMut() -> String,
) -> Result<Vec<Write>, serde_json::Error> {
    let mut writes = vec![];
    for token in live_tokens(pool) {
        let name = token_secret_name(&pool.name_any(), &token.name);
        let found = existing.iter().find(|s| s.name_any() == name && is_usable(s, pool));
        let Some(secret) = found else {
            writes.push(Write::Create(Box::new(new_secret(pool, token, &name, target, &draw())?)));
            continue;
        };
        let Some(part) = text(secret, TOKEN_KEY) else { continue };
        let join = join_string(pool, token, part, target)?;
        if let Some(join) = join.filter(|join| text(secret, JOIN_KEY) != Some(join)) {
            let resource_version = secret.resource_version().unwrap_or_default();
            writes.push(Write::Join { name, resource_version, join });
        }
    }
    let unwanted = existing.iter().filter(|s| {
        let is_wanted = |t: &JoinToken| token_secret_name(&pool.name_any(), &t.name) == s.name_any();
        !is_usable(s, pool) || !live_tokens(pool).any(is_wanted)
    });
    // First, so that the name is free for the new one.
    let deletes = unwanted.map(|s| Write::Delete { name: s.name_any(), uid: s.uid().unwrap_or_default() });
    Ok(deletes.chain(writes).collect())
}

/// What people should know of each token.
pub(super) fn statuses(pool: &VPNClientPool, secrets: &[Secret], now: Timestamp) -> Vec<TokenStatus> {
    let tokens = pool.spec.enrolment.iter().flat_map(|e| &e.tokens);
    let status = |token: &JoinToken| {
        let name = token_secret_name(&pool.name_any(), &token.name);
        let secret = secrets.iter().find(|s| s.name_any() == name);
        let before = known(pool, token);
        let ledger = match secret {
            Some(secret) => Ledger::read(secret.metadata.annotations.as_ref()),
            None => Ledger::starting(before.map_or(0, |b| b.used)),
        };
        let state = ledger.state(token, now);
        TokenStatus {
            name: token.name.clone(),
            state,
            used: ledger.used,
            secret: (state != TokenState::Revoked).then_some(name),
            last_used: match ledger.last_used {
                Some(at) => Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at)),
                None => before.and_then(|b| b.last_used.clone()),
            },
        }
    };
    tokens.map(status).collect()
}

fn new_secret(
    pool: &VPNClientPool,
    token: &JoinToken,
    name: &str,
    target: &JoinTarget<'_>,
    part: &str,
) -> Result<Secret, serde_json::Error> {
    let mut labels = labels(pool);
    labels.insert(POOL_OF_TOKEN_LABEL.into(), pool.name_any());
    // A Secret that somebody removed comes back with another secret part, but its uses were made.
    let ledger = Ledger::starting(known(pool, token).map_or(0, |k| k.used));
    let annotations = ledger.annotations().into_iter().filter_map(|(key, value)| Some((key, value?)));
    let join = join_string(pool, token, part, target)?.map(|join| (JOIN_KEY, join));
    let data = [(TOKEN_KEY, part.to_owned())].into_iter().chain(join);
    Ok(Secret {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: pool.namespace(),
            labels: Some(labels),
            annotations: Some(annotations.collect()),
            owner_references: Some(vec![owner(pool)]),
            ..ObjectMeta::default()
        },
        type_: Some(TOKEN_SECRET_TYPE.into()),
        data: Some(data.map(|(key, value)| (key.to_owned(), ByteString(value.into_bytes()))).collect()),
        ..Secret::default()
    })
}

fn join_string(
    pool: &VPNClientPool,
    token: &JoinToken,
    part: &str,
    target: &JoinTarget<'_>,
) -> Result<Option<String>, serde_json::Error> {
    if target.endpoints.is_empty() {
        return Ok(None);
    }
    let join = JoinString {
        v: 1,
        ns: &pool.namespace().unwrap_or_default(),
        pool: &pool.name_any(),
        token: &token.name,
        secret: part,
        server_name: target.server_name,
        endpoints: target.endpoints,
        ca: target.ca_pem,
    };
    join.encode().map(Some)
}

fn live_tokens(pool: &VPNClientPool) -> impl Iterator<Item = &JoinToken> {
    pool.spec.enrolment.iter().flat_map(|e| &e.tokens).filter(|t| t.revoked != Some(true))
}

fn known<'a>(pool: &'a VPNClientPool, token: &JoinToken) -> Option<&'a TokenStatus> {
    pool.status.as_ref()?.tokens.iter().find(|t| t.name == token.name)
}

fn is_usable(secret: &Secret, pool: &VPNClientPool) -> bool {
    is_of(secret, pool) && text(secret, TOKEN_KEY).is_some_and(|part| !part.is_empty())
}

fn text<'a>(secret: &'a Secret, key: &str) -> Option<&'a str> {
    std::str::from_utf8(&secret.data.as_ref()?.get(key)?.0).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::enrolment::{memory, token::USED_ANNOTATION};

    const ENDPOINTS: &[&str] = &["192.0.2.1:51821"];

    fn token(name: &str) -> JoinToken {
        JoinToken { name: name.into(), uses: Some(2), expires_at: None, revoked: None, group: None }
    }

    fn planned(pool: &VPNClientPool, existing: &[Secret], endpoints: &[&str]) -> Vec<Write> {
        let endpoints: Vec<String> = endpoints.iter().map(|&e| e.into()).collect();
        let target =
            JoinTarget { server_name: "edge.vpn.gateway.pinhole.dev", endpoints: &endpoints, ca_pem: "CA" };
        plan(pool, existing, &target, || "drawn".into()).unwrap()
    }

    fn created(writes: Vec<Write>) -> Secret {
        match writes.into_iter().next() {
            Some(Write::Create(secret)) => *secret,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn each_token_gets_a_secret_of_its_own_that_goes_with_the_pool() {
        let pool = memory::pool("staff", vec![token("a"), token("b")]);
        let writes = planned(&pool, &[], ENDPOINTS);
        assert_eq!(writes.len(), 2);
        let secret = created(writes);
        assert_eq!(secret.name_any(), "staff-token-a");
        assert_eq!(text(&secret, TOKEN_KEY), Some("drawn"));
        assert!(text(&secret, JOIN_KEY).unwrap().starts_with("pinhole:"));
        assert!(is_of(&secret, &pool));
    }

    #[test]
    fn what_is_as_it_should_be_is_not_written() {
        let pool = memory::pool("staff", vec![token("a")]);
        let secret = created(planned(&pool, &[], ENDPOINTS));
        assert!(planned(&pool, &[secret], ENDPOINTS).is_empty());
    }

    #[test]
    fn the_join_string_follows_the_endpoints_and_the_secret_part_stays() {
        let pool = memory::pool("staff", vec![token("a")]);
        let mut secret = created(planned(&pool, &[], ENDPOINTS));
        secret.metadata.resource_version = Some("7".into());
        let writes = planned(&pool, &[secret], &["198.51.100.1:51821"]);
        let [Write::Join { resource_version, join, .. }] = writes.as_slice() else { panic!("{writes:?}") };
        assert_eq!(resource_version, "7");
        let mut same = memory::pool("staff", vec![token("a")]);
        same.metadata = pool.metadata.clone();
        let fresh = created(planned(&same, &[], &["198.51.100.1:51821"]));
        assert_eq!(text(&fresh, JOIN_KEY), Some(join.as_str()));
    }

    #[test]
    fn without_endpoints_the_join_string_waits_or_stays() {
        let pool = memory::pool("staff", vec![token("a")]);
        assert_eq!(text(&created(planned(&pool, &[], &[])), JOIN_KEY), None);
        let secret = created(planned(&pool, &[], ENDPOINTS));
        assert!(planned(&pool, &[secret], &[]).is_empty());
    }

    #[test]
    fn the_secret_of_a_revoked_or_removed_token_goes() {
        let pool = memory::pool("staff", vec![token("a"), token("b")]);
        let secrets: Vec<Secret> = planned(&pool, &[], ENDPOINTS)
            .into_iter()
            .map(|w| match w {
                Write::Create(s) => *s,
                other => panic!("{other:?}"),
            })
            .collect();
        let mut changed = pool.clone();
        changed.spec.enrolment.as_mut().unwrap().tokens =
            vec![JoinToken { revoked: Some(true), ..token("a") }];
        let names: Vec<String> = planned(&changed, &secrets, ENDPOINTS)
            .into_iter()
            .map(|w| match w {
                Write::Delete { name, .. } => name,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(names, ["staff-token-a", "staff-token-b"]);
    }

    #[test]
    fn the_secret_of_a_pool_that_was_deleted_is_replaced() {
        let pool = memory::pool("staff", vec![token("a")]);
        let secret = created(planned(&pool, &[], ENDPOINTS));
        let mut anew = pool;
        anew.metadata.uid = Some("another".into());
        let writes = planned(&anew, &[secret], ENDPOINTS);
        assert!(matches!(writes.as_slice(), [Write::Delete { .. }, Write::Create(_)]), "{writes:?}");
    }

    #[test]
    fn a_secret_that_somebody_removed_comes_back_with_its_uses_counted() {
        let mut pool = memory::pool("staff", vec![token("a")]);
        let mut used = created(planned(&pool, &[], ENDPOINTS));
        used.annotations_mut().insert(USED_ANNOTATION.into(), "2".into());
        let now = Timestamp::from_second(0).unwrap();
        let statuses = statuses(&pool, &[used], now);
        assert_eq!((statuses[0].state, statuses[0].used), (TokenState::UsedUp, 2));
        pool.status = Some(pinhole_crds::VPNClientPoolStatus { tokens: statuses, ..Default::default() });
        assert_eq!(created(planned(&pool, &[], ENDPOINTS)).annotations()[USED_ANNOTATION], "2");
    }
}
