//! Identity and enrolment against the real API server, from within this process: what it takes of conflicts,
//! token reviews and stored objects to count each use once. No gateway is declared, so that the operator which
//! runs has no part in it but to make the Secrets of tokens.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, bail, ensure};
use futures::{StreamExt as _, future::join_all, pin_mut};
use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec},
        core::v1::{Namespace, Pod, Secret, ServiceAccount},
    },
};
use kube::{
    Api, Client, ResourceExt as _,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use pinhole_crds::{TokenState, TokenStatus, VPNClient, VPNClientPool};
use pinhole_e2e::{Lab, vpn::PATIENCE, wait};
use pinhole_operator::{
    enrolment::{
        ApiRecords, Enroller, EnrolmentError, JoinTarget, PENDING_ANNOTATION, USED_ANNOTATION, ensure_tokens,
    },
    fleet::{Fleet, GatewayKey, object_ref},
    identity::{
        ApiTokenReviewer, Authorities, Authority, AuthorityStore, CachedReviewer, Identity, ReplicaIdentity,
        TokenReviewer as _,
    },
};
use pinhole_proto::{
    GATEWAY_AUDIENCE, OPERATOR_AUDIENCE,
    v1::{self, EnrolRequest, JoinCredential, RelayEnrolRequest, enrol_request::Credential},
};
use rcgen::{CertificateParams, KeyPair};
use serde_json::{Value, from_value, json};

use crate::{Outcome, product, tests};

tests![
    of_operators_that_start_at_once_one_makes_the_authority_and_all_use_it,
    token_secrets_are_made_once_follow_the_endpoints_and_go_when_revoked,
    a_pods_token_is_good_for_its_audience_and_as_long_as_the_pod_lives,
    machines_and_pods_enrol_and_uses_are_counted,
];

/// A namespace of the test's own.
struct Cluster {
    client: Client,
    namespace: String,
}

impl Cluster {
    async fn new(lab: &Lab) -> anyhow::Result<Self> {
        let client = lab.cluster().client();
        let namespace: Namespace = from_value(json!({ "metadata": { "generateName": "enrolment-" } }))?;
        let namespaces: Api<Namespace> = Api::all(client.clone());
        let namespace = namespaces.create(&PostParams::default(), &namespace).await?.name_any();
        Ok(Self { client, namespace })
    }

    fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    async fn pool(&self, tokens: Value) -> anyhow::Result<VPNClientPool> {
        let pool: VPNClientPool = from_value(json!({
            "apiVersion": "pinhole.dev/v1alpha1", "kind": "VPNClientPool",
            "metadata": { "name": "staff" },
            "spec": {
                "gatewayRef": { "name": "edge" }, "cidrs": ["10.77.0.0/24"],
                "enrolment": { "tokens": tokens, "sidecars": {} },
            },
        }))?;
        Ok(self.api().create(&PostParams::default(), &pool).await?)
    }

    /// The status of the pool's one token, after its Secret was brought up to date.
    async fn token(&self, pool: &VPNClientPool, endpoint: &str) -> anyhow::Result<TokenStatus> {
        let endpoints = [endpoint.to_owned()];
        let target = JoinTarget { server_name: "edge.gateway.test", endpoints: &endpoints, ca_pem: "CA" };
        let statuses = ensure_tokens(&self.client, pool, target).await?;
        statuses.into_iter().next().context("the pool's token has no status")
    }

    /// A pod that no node runs, and a token of its ServiceAccount that is bound to it.
    async fn bound_token(
        &self,
        service_account: &str,
        pod: &str,
        audience: &str,
        labels: Value,
    ) -> anyhow::Result<String> {
        let accounts: Api<ServiceAccount> = self.api();
        let account: ServiceAccount = from_value(json!({ "metadata": { "name": service_account } }))?;
        accounts.create(&PostParams::default(), &account).await?;
        let made: Pod = from_value(json!({
            "metadata": { "name": pod, "labels": labels },
            "spec": {
                "serviceAccountName": service_account, "automountServiceAccountToken": false,
                "schedulerName": "nobody", "containers": [{ "name": "c", "image": "none" }],
            },
        }))?;
        let made = self.api::<Pod>().create(&PostParams::default(), &made).await?;
        let request = TokenRequest {
            spec: Some(TokenRequestSpec {
                audiences: Some(vec![audience.to_owned()]),
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".into()),
                    kind: Some("Pod".into()),
                    name: Some(pod.into()),
                    uid: made.uid(),
                }),
                expiration_seconds: Some(600),
            }),
            ..TokenRequest::default()
        };
        let answer = accounts.create_token_request(service_account, &PostParams::default(), &request).await?;
        answer.status.and_then(|status| status.token).context("the API server gave no token")
    }

    async fn end(self) -> Outcome {
        let namespaces: Api<Namespace> = Api::all(self.client);
        namespaces.delete(&self.namespace, &DeleteParams::default()).await?;
        Ok(())
    }
}

fn csr() -> anyhow::Result<Vec<u8>> {
    let key = KeyPair::generate()?;
    Ok(CertificateParams::default().serialize_request(&key)?.der().to_vec())
}

/// A value of a Secret, as text.
fn text(secret: &Secret, key: &str) -> anyhow::Result<String> {
    let value = secret.data.as_ref().and_then(|data| data.get(key));
    let value = value.with_context(|| format!("Secret {} has no {key}", secret.name_any()))?;
    Ok(String::from_utf8(value.0.clone())?)
}

async fn of_operators_that_start_at_once_one_makes_the_authority_and_all_use_it(lab: &Lab) -> Outcome {
    let _product = product::installed(lab).await?;
    let cluster = Cluster::new(lab).await?;
    let store = || AuthorityStore::new(cluster.client.clone(), &cluster.namespace);
    let starts = (0..8).map(|_| {
        let store = store();
        async move { store.load_or_create(SystemTime::now()).await.map(|made| made.bundle_pem().to_owned()) }
    });
    let bundles = join_all(starts).await.into_iter().collect::<Result<Vec<_>, _>>()?;
    let first = bundles.first().context("nobody started")?;
    ensure!(first.contains("BEGIN CERTIFICATE"), "the bundle is {first:?}");
    ensure!(bundles.iter().all(|bundle| bundle == first), "they use several: {bundles:?}");
    let later = SystemTime::now() + Duration::from_hours(3 * 365 * 24 - 100 * 24);
    let rotated = store().rotate(later).await?;
    ensure!(rotated.iter().count() == 2, "rotation leaves the old authority beside the new one");
    let loaded = store().load_or_create(later).await?;
    ensure!(loaded.bundle_pem() == rotated.bundle_pem(), "what was rotated is not what is loaded");
    cluster.end().await
}

async fn token_secrets_are_made_once_follow_the_endpoints_and_go_when_revoked(lab: &Lab) -> Outcome {
    let _product = product::installed(lab).await?;
    let cluster = Cluster::new(lab).await?;
    // The API server's pool has no tokens: the operator has nothing to do, and all is done here.
    let mut pool = cluster.pool(json!([])).await?;
    let here = "192.0.2.1:51821";
    wanted(&mut pool, json!({ "name": "first", "uses": 1 }))?;
    let status = cluster.token(&pool, here).await?;
    ensure!((status.state, status.used) == (TokenState::Active, 0), "{status:?}");
    let secrets: Api<Secret> = cluster.api();
    let made = secrets.get("staff-token-first").await?;
    cluster.token(&pool, here).await?;
    ensure!(secrets.get("staff-token-first").await? == made, "it was written without need");
    cluster.token(&pool, "198.51.100.1:51821").await?;
    let moved = secrets.get("staff-token-first").await?;
    ensure!(text(&made, "token")? == text(&moved, "token")?, "the secret part changed with the endpoint");
    ensure!(text(&made, "join")? != text(&moved, "join")?, "the join string names the old endpoint");
    wanted(&mut pool, json!({ "name": "first", "uses": 1, "revoked": true }))?;
    let status = cluster.token(&pool, here).await?;
    ensure!(status.state == TokenState::Revoked && status.secret.is_none(), "{status:?}");
    let left = secrets.get_opt("staff-token-first").await?;
    ensure!(left.is_none(), "the Secret of a revoked token is still there");
    let foreign: Secret = from_value(json!({ "metadata": { "name": "staff-token-other" } }))?;
    secrets.create(&PostParams::default(), &foreign).await?;
    wanted(&mut pool, json!({ "name": "other" }))?;
    let target = JoinTarget { server_name: "x", endpoints: &[], ca_pem: "CA" };
    let taken = ensure_tokens(&cluster.client, &pool, target).await;
    ensure!(taken.as_ref().is_err_and(|error| error.category() == "SecretTaken"), "{taken:?}");
    cluster.end().await
}

/// Makes `token` the only one that the pool wants.
fn wanted(pool: &mut VPNClientPool, token: Value) -> Outcome {
    let enrolment = pool.spec.enrolment.as_mut().context("the pool lets nobody enrol")?;
    enrolment.tokens = vec![from_value(token)?];
    Ok(())
}

async fn a_pods_token_is_good_for_its_audience_and_as_long_as_the_pod_lives(lab: &Lab) -> Outcome {
    let _product = product::installed(lab).await?;
    let cluster = Cluster::new(lab).await?;
    let token = cluster.bound_token("edge", "edge-0", OPERATOR_AUDIENCE, json!({})).await?;
    let reviewer = ApiTokenReviewer::new(cluster.client.clone());
    let replica = reviewer.review(&token, OPERATOR_AUDIENCE).await?.into_replica()?;
    ensure!((&replica.namespace, replica.gateway.as_str()) == (&cluster.namespace, "edge"), "{replica:?}");
    let (signed, signature) = token.rsplit_once('.').context("the token is no JWT")?;
    let forged = format!("{signed}.{}", signature.chars().rev().collect::<String>());
    for (token, audience) in [(&token, GATEWAY_AUDIENCE), (&forged, OPERATOR_AUDIENCE)] {
        let review = reviewer.review(token, audience).await;
        let invalid = review.as_ref().is_err_and(|error| error.category() == "CredentialInvalid");
        ensure!(invalid, "for {audience}: {review:?}");
    }
    cluster.api::<Pod>().delete("edge-0", &DeleteParams::default().grace_period(0)).await?;
    wait::until("the token of a pod that is gone to be refused", PATIENCE, || async {
        match reviewer.review(&token, OPERATOR_AUDIENCE).await {
            Err(error) if error.category() == "CredentialInvalid" => Ok(()),
            review => Err(format!("{review:?}")),
        }
    })
    .await?;
    cluster.end().await
}

/// Gives every client of the namespace an address, as the controllers do, each time one is made.
async fn controllers(cluster: &Cluster, fleet: &Fleet) -> Outcome {
    let api: Api<VPNClient> = cluster.api();
    let pool: VPNClientPool = cluster.api().get("staff").await?;
    let changes = kube::runtime::watcher(api.clone(), kube::runtime::watcher::Config::default());
    pin_mut!(changes);
    while changes.next().await.is_some() {
        let clients = api.list(&ListParams::default()).await?.items;
        let peers = clients.iter().enumerate().map(|(n, client)| peer(n, client));
        let desired = v1::DesiredState {
            pools: vec![v1::Pool { pool: Some(object_ref(&pool)), ..v1::Pool::default() }],
            peers: peers.collect::<anyhow::Result<_>>()?,
            ..v1::DesiredState::default()
        };
        fleet.publish(
            std::time::SystemTime::now(),
            &GatewayKey::new(&cluster.namespace, "edge"),
            "edge-0",
            desired,
        );
    }
    bail!("the watch ended")
}

fn peer(n: usize, client: &VPNClient) -> anyhow::Result<v1::Peer> {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let key = client.spec.public_key.as_ref().context("an enrolled client has no key")?;
    Ok(v1::Peer {
        client: Some(object_ref(client)),
        public_key: STANDARD.decode(key)?,
        addresses: vec![format!("10.77.0.{}/32", n + 2)],
        ..v1::Peer::default()
    })
}

/// What enrols, and for whom it is asked.
struct Desk {
    enroller: Enroller<ApiRecords>,
    caller: ReplicaIdentity,
}

impl Desk {
    fn new(cluster: &Cluster, fleet: Arc<Fleet>) -> anyhow::Result<Self> {
        let authorities = Authorities::new(vec![Authority::generate(SystemTime::now())?]);
        let identity = Identity::new(authorities, "pinhole-system", "pinhole-operator")?;
        let reviewer = Arc::new(CachedReviewer::new(ApiTokenReviewer::new(cluster.client.clone())));
        let records = ApiRecords::new(cluster.client.clone());
        let caller = ReplicaIdentity {
            namespace: cluster.namespace.clone(),
            gateway: "edge".into(),
            replica: "edge-0".into(),
            pod_uid: "u".into(),
            node: None,
        };
        Ok(Self { enroller: Enroller::new(records, fleet, identity, reviewer), caller })
    }

    /// Enrols with a WireGuard key of 32 times `key`; yields the client's namespace and name.
    async fn enrol(
        &self,
        key: u8,
        credential: Credential,
    ) -> anyhow::Result<Result<v1::ObjectRef, EnrolmentError>> {
        let request = EnrolRequest {
            credential: Some(credential),
            pool_namespace: self.caller.namespace.clone(),
            pool: "staff".into(),
            public_key: vec![key; 32],
            csr: csr()?,
            hostname: "laptop".into(),
            proof: None,
        };
        let relayed = RelayEnrolRequest { request: Some(request), key_proven: true };
        let response = match self.enroller.enrol(&self.caller, relayed).await {
            Ok(response) => response,
            Err(error) => return Ok(Err(error)),
        };
        Ok(Ok(response.config.and_then(|config| config.client).context("the answer names no client")?))
    }
}

async fn machines_and_pods_enrol_and_uses_are_counted(lab: &Lab) -> Outcome {
    let _product = product::installed(lab).await?;
    let cluster = Cluster::new(lab).await?;
    cluster.pool(json!([{ "name": "first", "uses": 3, "group": "staff" }])).await?;
    let secrets: Api<Secret> = cluster.api();
    let secret = wait::until("the operator to make the token's Secret", PATIENCE, || async {
        let found = secrets.get_opt("staff-token-first").await.map_err(|error| error.to_string())?;
        found.ok_or_else(|| "there is none".to_owned())
    })
    .await?;
    let labels = json!({ "pinhole.dev/pool": "staff" });
    let pod_token = cluster.bound_token("web", "web-0", GATEWAY_AUDIENCE, labels).await?;
    let fleet = Fleet::new(Instant::now());
    let desk = Desk::new(&cluster, Arc::clone(&fleet))?;
    let part = text(&secret, "token")?;
    let enrolments = async {
        enrol_eight_machines_and_a_pod_twice(&desk, &part, pod_token).await?;
        a_suspended_client_holds_its_token(&cluster, &desk, &part).await
    };
    tokio::select! {
        ended = controllers(&cluster, &fleet) => ended?,
        enrolled = enrolments => enrolled?,
    }
    let clients = cluster.api::<VPNClient>().list(&ListParams::default()).await?.items;
    ensure!(clients.len() == 4, "{} clients were made of 3 uses and one pod", clients.len());
    let secret = secrets.get("staff-token-first").await?;
    let annotations = secret.annotations();
    ensure!(annotations.get(USED_ANNOTATION).is_some_and(|used| used == "3"), "{annotations:?}");
    ensure!(!annotations.contains_key(PENDING_ANNOTATION), "{annotations:?}");
    wait::until("the pool's status to say that the token is used up", PATIENCE, || async {
        let pool = cluster.api::<VPNClientPool>().get("staff").await.map_err(|error| error.to_string())?;
        let tokens = pool.status.unwrap_or_default().tokens;
        let told = tokens.iter().any(|token| token.state == TokenState::UsedUp && token.used == 3);
        if told { Ok(()) } else { Err(format!("{tokens:?}")) }
    })
    .await?;
    cluster.end().await
}

/// What the API server selects by is what enrolment goes by.
async fn a_suspended_client_holds_its_token(cluster: &Cluster, desk: &Desk, part: &str) -> Outcome {
    let join = || {
        let join = JoinCredential { token: "first".into(), secret: part.to_owned() };
        desk.enrol(200, Credential::Join(join))
    };
    let clients: Api<VPNClient> = cluster.api();
    let all = clients.list(&ListParams::default()).await?.items;
    let with_token = |client: &&VPNClient| client.spec.enrolment.as_ref().is_some_and(|e| e.token.is_some());
    let name = all.iter().find(with_token).context("no machine enrolled")?.name_any();
    for (suspended, category) in [(true, "TokenSuspended"), (false, "TokenUsedUp")] {
        let patch = json!({ "spec": { "suspended": suspended } });
        clients.patch(&name, &PatchParams::default(), &Patch::Merge(&patch)).await?;
        let refused = join().await?.err().map(|error| error.category());
        ensure!(refused == Some(category), "suspended: {suspended}, and enrolment says {refused:?}");
    }
    Ok(())
}

async fn enrol_eight_machines_and_a_pod_twice(desk: &Desk, part: &str, pod_token: String) -> Outcome {
    let machines = (1..=8).map(|key| {
        let join = JoinCredential { token: "first".into(), secret: part.to_owned() };
        desk.enrol(key, Credential::Join(join))
    });
    let results = join_all(machines).await.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
    let enrolled = results.iter().filter(|result| result.is_ok()).count();
    ensure!(enrolled == 3, "{enrolled} enrolled with 3 uses: {results:?}");
    let mut late = results.iter().filter_map(|result| result.as_ref().err());
    ensure!(late.all(|error| error.category() == "TokenUsedUp"), "{results:?}");
    let sidecar = desk.enrol(100, Credential::ServiceAccountToken(pod_token.clone())).await??;
    let again = desk.enrol(101, Credential::ServiceAccountToken(pod_token)).await??;
    ensure!(sidecar == again, "a pod that starts anew became another client: {sidecar:?}, {again:?}");
    Ok(())
}
