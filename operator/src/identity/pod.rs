//! What a reviewed ServiceAccount token says of the pod that it is bound to. Pure.

use k8s_openapi::api::authentication::v1::{TokenReviewStatus, UserInfo};

use super::CredentialError;

/// Most replicas of a gateway, as in the schema of `VPNGateway.spec.replicas`.
const MAX_REPLICAS: u8 = 16;

/// The pod that a token is bound to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodIdentity {
    /// Namespace of the pod and of its ServiceAccount.
    pub namespace: String,
    /// Name of the ServiceAccount.
    pub service_account: String,
    /// Name of the pod.
    pub pod: String,
    /// UID of the pod.
    pub pod_uid: String,
    /// Node that it runs on.
    pub node: Option<String>,
}

/// A replica of a gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaIdentity {
    /// Namespace of the gateway.
    pub namespace: String,
    /// Name of the gateway.
    pub gateway: String,
    /// Name of the replica, which is its pod's.
    pub replica: String,
    /// UID of the pod: another one under the same name is another process.
    pub pod_uid: String,
    /// Node that it runs on.
    pub node: Option<String>,
}

impl PodIdentity {
    /// Reads the API server's answer to a review for `audience`.
    pub fn from_review(status: &TokenReviewStatus, audience: &'static str) -> Result<Self, CredentialError> {
        let refused = |reason: &str| CredentialError::Refused { audience, reason: reason.to_owned() };
        if status.authenticated != Some(true) {
            return Err(refused(status.error.as_deref().unwrap_or("not authenticated")));
        }
        // An API server that does not know audiences answers without any: then nothing was checked.
        if !status.audiences.iter().flatten().any(|a| a == audience) {
            return Err(refused("the API server did not confirm the audience"));
        }
        let user = status.user.as_ref().ok_or(CredentialError::NotOfPod)?;
        let (namespace, service_account) = user
            .username
            .as_deref()
            .and_then(|name| name.strip_prefix("system:serviceaccount:"))
            .and_then(|name| name.split_once(':'))
            .ok_or(CredentialError::NotOfPod)?;
        let pod = extra(user, "authentication.kubernetes.io/pod-name").ok_or(CredentialError::NotOfPod)?;
        let pod_uid = extra(user, "authentication.kubernetes.io/pod-uid").ok_or(CredentialError::NotOfPod)?;
        Ok(Self {
            namespace: namespace.to_owned(),
            service_account: service_account.to_owned(),
            pod,
            pod_uid,
            node: extra(user, "authentication.kubernetes.io/node-name"),
        })
    }

    /// The replica that the pod is: its ServiceAccount is named after the gateway, and the pod `GATEWAY-N`.
    pub fn into_replica(self) -> Result<ReplicaIdentity, CredentialError> {
        let ordinal = self.pod.strip_prefix(&self.service_account).and_then(|rest| rest.strip_prefix('-'));
        if !ordinal.is_some_and(is_ordinal) {
            return Err(CredentialError::NotOfGateway {
                namespace: self.namespace,
                pod: self.pod,
                service_account: self.service_account,
            });
        }
        Ok(ReplicaIdentity {
            namespace: self.namespace,
            gateway: self.service_account,
            replica: self.pod,
            pod_uid: self.pod_uid,
            node: self.node,
        })
    }
}

fn is_ordinal(text: &str) -> bool {
    text.parse::<u8>().is_ok_and(|n| n < MAX_REPLICAS && n.to_string() == text)
}

fn extra(user: &UserInfo, key: &str) -> Option<String> {
    let values = user.extra.as_ref()?.get(key)?;
    values.first().filter(|value| !value.is_empty() && values.len() == 1).cloned()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    const AUDIENCE: &str = "pinhole.dev/operator";

    pub(crate) fn review(username: &str, pod: &str) -> TokenReviewStatus {
        let extra = [("pod-name", pod), ("pod-uid", "uid-1"), ("node-name", "node-a")];
        TokenReviewStatus {
            authenticated: Some(true),
            audiences: Some(vec![AUDIENCE.into()]),
            user: Some(UserInfo {
                username: Some(username.into()),
                extra: Some(
                    extra.map(|(k, v)| (format!("authentication.kubernetes.io/{k}"), vec![v.into()])).into(),
                ),
                ..UserInfo::default()
            }),
            error: None,
        }
    }

    fn replica(username: &str, pod: &str) -> Result<ReplicaIdentity, CredentialError> {
        PodIdentity::from_review(&review(username, pod), AUDIENCE)?.into_replica()
    }

    #[test]
    fn a_gateway_pod_is_the_replica_that_it_is_named_after() {
        let identity = replica("system:serviceaccount:vpn:edge", "edge-3").unwrap();
        assert_eq!((identity.namespace.as_str(), identity.gateway.as_str()), ("vpn", "edge"));
        assert_eq!((identity.replica.as_str(), identity.pod_uid.as_str()), ("edge-3", "uid-1"));
        assert_eq!(identity.node.as_deref(), Some("node-a"));
    }

    #[test]
    fn a_pod_that_is_not_named_as_a_replica_is_none() {
        for pod in
            ["edge", "edge-", "edge-x", "edge-03", "edge-16", "edge-0-0", "other-0", "edge2-0", "edge-+1"]
        {
            let error = replica("system:serviceaccount:vpn:edge", pod).unwrap_err();
            assert_eq!(error.category(), "CredentialNotOfGateway", "{pod}");
        }
    }

    #[test]
    fn users_that_are_no_service_accounts_are_refused() {
        for user in ["admin", "system:node:a", "system:serviceaccount:vpn", "xsystem:serviceaccount:vpn:edge"]
        {
            assert!(replica(user, "edge-0").is_err(), "{user}");
        }
    }

    #[test]
    fn a_token_of_no_pod_is_refused() {
        let mut status = review("system:serviceaccount:vpn:edge", "edge-0");
        status.user.as_mut().unwrap().extra = None;
        assert_eq!(PodIdentity::from_review(&status, AUDIENCE), Err(CredentialError::NotOfPod));
    }

    #[test]
    fn a_review_that_did_not_confirm_the_audience_is_refused() {
        for audiences in [None, Some(vec!["https://kubernetes.default.svc".to_owned()])] {
            let status =
                TokenReviewStatus { audiences, ..review("system:serviceaccount:vpn:edge", "edge-0") };
            assert_eq!(
                PodIdentity::from_review(&status, AUDIENCE).unwrap_err().category(),
                "CredentialInvalid"
            );
        }
    }

    #[test]
    fn an_unauthenticated_review_is_refused_with_the_api_servers_reason() {
        let status =
            TokenReviewStatus { error: Some("token expired".into()), ..TokenReviewStatus::default() };
        assert!(
            PodIdentity::from_review(&status, AUDIENCE).unwrap_err().to_string().contains("token expired")
        );
    }
}
