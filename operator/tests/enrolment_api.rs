//! Identity and enrolment against a real API server: `KUBECONFIG=… cargo test -p pinhole-operator --test
//! enrolment_api -- --ignored`. No node and no controller is needed. Each test has a namespace of its own.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use futures::future::join_all;
use k8s_openapi::{
    api::{
        authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec},
        core::v1::{Namespace, Pod, Secret, ServiceAccount},
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, Client, Config, ResourceExt as _,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
    runtime::{conditions::is_crd_established, wait::await_condition},
};
use pinhole_crds::{TokenState, VPNClient, VPNClientPool};
use pinhole_operator::{
    enrolment::{ApiRecords, Enroller, JoinTarget, USED_ANNOTATION, ensure_tokens},
    fleet::{Fleet, GatewayKey, object_ref},
    identity::{
        ApiTokenReviewer, Authorities, Authority, AuthorityStore, CachedReviewer, Identity, ReplicaIdentity,
        TokenReviewer as _,
    },
};
use pinhole_proto::{
    GATEWAY_AUDIENCE, OPERATOR_AUDIENCE,
    v1::{self, EnrolRequest, JoinCredential, enrol_request::Credential},
};
use rcgen::{CertificateParams, KeyPair};
use serde::de::DeserializeOwned;
use serde_json::json;

const ENDPOINTS: [&str; 1] = ["192.0.2.1:51821"];

struct Cluster {
    client: Client,
    namespace: String,
}

impl Cluster {
    async fn connect() -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let config = Config::infer().await.expect("KUBECONFIG of an API server");
        let client = Client::try_from(config).unwrap();
        let crds: Api<CustomResourceDefinition> = Api::all(client.clone());
        for crd in pinhole_crds::definitions().unwrap() {
            let params = PatchParams::apply("enrolment-test").force();
            let name = crd["metadata"]["name"].as_str().unwrap();
            crds.patch(name, &params, &Patch::Apply(&crd)).await.unwrap();
            let established = await_condition(crds.clone(), name, is_crd_established());
            tokio::time::timeout(Duration::from_secs(30), established).await.unwrap().unwrap();
        }
        let namespaces: Api<Namespace> = Api::all(client.clone());
        let namespace: Namespace = from(json!({ "metadata": { "generateName": "enrolment-test-" } }));
        let namespace = namespaces.create(&PostParams::default(), &namespace).await.unwrap().name_any();
        Self { client, namespace }
    }

    fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    async fn pool(&self, tokens: serde_json::Value) -> VPNClientPool {
        let pool: VPNClientPool = from(json!({
            "apiVersion": "pinhole.dev/v1alpha1", "kind": "VPNClientPool",
            "metadata": { "name": "staff" },
            "spec": {
                "gatewayRef": { "name": "edge" }, "cidrs": ["10.77.0.0/24"],
                "enrolment": { "tokens": tokens, "sidecars": {} },
            },
        }));
        self.api().create(&PostParams::default(), &pool).await.unwrap()
    }

    async fn tokens(&self, pool: &VPNClientPool, endpoint: &str) -> Vec<pinhole_crds::TokenStatus> {
        let endpoints = [endpoint.to_owned()];
        let target = JoinTarget { server_name: "edge.gateway.test", endpoints: &endpoints, ca_pem: "CA" };
        ensure_tokens(&self.client, pool, target).await.unwrap()
    }

    async fn part(&self, name: &str) -> String {
        let secret = self.api::<Secret>().get(name).await.unwrap();
        String::from_utf8(secret.data.unwrap()["token"].0.clone()).unwrap()
    }

    /// A pod, and a token of its ServiceAccount that is bound to it.
    async fn bound_token(
        &self,
        service_account: &str,
        pod: &str,
        audience: &str,
        labels: serde_json::Value,
    ) -> String {
        let accounts: Api<ServiceAccount> = self.api();
        let account: ServiceAccount = from(json!({ "metadata": { "name": service_account } }));
        let _ = accounts.create(&PostParams::default(), &account).await;
        let made: Pod = from(json!({
            "metadata": { "name": pod, "labels": labels },
            "spec": {
                "serviceAccountName": service_account, "automountServiceAccountToken": false,
                "containers": [{ "name": "c", "image": "none" }],
            },
        }));
        let made = self.api::<Pod>().create(&PostParams::default(), &made).await.unwrap();
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
        let answer =
            accounts.create_token_request(service_account, &PostParams::default(), &request).await.unwrap();
        answer.status.unwrap().token.unwrap()
    }

    async fn end(self) {
        let namespaces: Api<Namespace> = Api::all(self.client);
        namespaces.delete(&self.namespace, &DeleteParams::default()).await.unwrap();
    }
}

fn from<T: DeserializeOwned>(value: serde_json::Value) -> T {
    serde_json::from_value(value).unwrap()
}

fn csr() -> Vec<u8> {
    let key = KeyPair::generate().unwrap();
    CertificateParams::default().serialize_request(&key).unwrap().der().to_vec()
}

#[tokio::test]
#[ignore = "needs an API server"]
async fn of_operators_that_start_at_once_one_makes_the_authority_and_all_use_it() {
    let cluster = Cluster::connect().await;
    let load = |_| async {
        let store = AuthorityStore::new(cluster.client.clone(), &cluster.namespace);
        store.load_or_create(SystemTime::now()).await.unwrap().bundle_pem().to_owned()
    };
    let bundles = join_all((0..8).map(load)).await;
    assert!(bundles.iter().all(|b| *b == bundles[0] && b.contains("BEGIN CERTIFICATE")));
    let store = AuthorityStore::new(cluster.client.clone(), &cluster.namespace);
    let later = SystemTime::now() + Duration::from_hours(3 * 365 * 24 - 100 * 24);
    let rotated = store.rotate(later).await.unwrap();
    assert_eq!(rotated.iter().count(), 2);
    assert_eq!(store.load_or_create(later).await.unwrap().bundle_pem(), rotated.bundle_pem());
    cluster.end().await;
}

#[tokio::test]
#[ignore = "needs an API server"]
async fn token_secrets_are_made_once_follow_the_endpoints_and_go_when_revoked() {
    let cluster = Cluster::connect().await;
    let mut pool = cluster.pool(json!([{ "name": "first", "uses": 1 }])).await;
    let statuses = cluster.tokens(&pool, ENDPOINTS[0]).await;
    assert_eq!((statuses[0].state, statuses[0].used), (TokenState::Active, 0));
    let secrets: Api<Secret> = cluster.api();
    let made = secrets.get("staff-token-first").await.unwrap();
    cluster.tokens(&pool, ENDPOINTS[0]).await;
    assert_eq!(secrets.get("staff-token-first").await.unwrap(), made);
    cluster.tokens(&pool, "198.51.100.1:51821").await;
    let moved = secrets.get("staff-token-first").await.unwrap();
    let (before, after) = (made.data.unwrap(), moved.data.unwrap());
    assert_eq!(before["token"], after["token"]);
    assert_ne!(before["join"], after["join"]);
    pool.spec.enrolment.as_mut().unwrap().tokens[0].revoked = Some(true);
    let statuses = cluster.tokens(&pool, ENDPOINTS[0]).await;
    assert_eq!((statuses[0].state, &statuses[0].secret), (TokenState::Revoked, &None));
    assert!(secrets.get_opt("staff-token-first").await.unwrap().is_none());
    let foreign: Secret = from(json!({ "metadata": { "name": "staff-token-other" } }));
    secrets.create(&PostParams::default(), &foreign).await.unwrap();
    pool.spec.enrolment.as_mut().unwrap().tokens[0].name = "other".into();
    pool.spec.enrolment.as_mut().unwrap().tokens[0].revoked = None;
    let target = JoinTarget { server_name: "x", endpoints: &[], ca_pem: "CA" };
    assert_eq!(ensure_tokens(&cluster.client, &pool, target).await.unwrap_err().category(), "SecretTaken");
    cluster.end().await;
}

#[tokio::test]
#[ignore = "needs an API server"]
async fn a_pods_token_is_good_for_its_audience_and_as_long_as_the_pod_lives() {
    let cluster = Cluster::connect().await;
    let token = cluster.bound_token("edge", "edge-0", OPERATOR_AUDIENCE, json!({})).await;
    let reviewer = ApiTokenReviewer::new(cluster.client.clone());
    let replica = reviewer.review(&token, OPERATOR_AUDIENCE).await.unwrap().into_replica().unwrap();
    assert_eq!((replica.namespace, replica.gateway.as_str()), (cluster.namespace.clone(), "edge"));
    let other = reviewer.review(&token, GATEWAY_AUDIENCE).await.unwrap_err();
    assert_eq!(other.category(), "CredentialInvalid");
    let (signed, signature) = token.rsplit_once('.').unwrap();
    let forged = format!("{signed}.{}", signature.chars().rev().collect::<String>());
    assert_eq!(
        reviewer.review(&forged, OPERATOR_AUDIENCE).await.unwrap_err().category(),
        "CredentialInvalid"
    );
    cluster.api::<Pod>().delete("edge-0", &DeleteParams::default().grace_period(0)).await.unwrap();
    let gone = tokio::time::timeout(Duration::from_secs(30), async {
        while reviewer.review(&token, OPERATOR_AUDIENCE).await.is_ok() {
            tokio::task::yield_now().await;
        }
    });
    gone.await.expect("the token of a pod that is gone is refused");
    cluster.end().await;
}

/// Gives every client of the namespace an address, as the controllers do, each time one is made.
async fn controllers(cluster: &Cluster, fleet: &Fleet) {
    use futures::{StreamExt as _, pin_mut};
    let api: Api<VPNClient> = cluster.api();
    let pool: VPNClientPool = cluster.api().get("staff").await.unwrap();
    let changes = kube::runtime::watcher(api.clone(), kube::runtime::watcher::Config::default());
    pin_mut!(changes);
    while changes.next().await.is_some() {
        let clients = api.list(&ListParams::default()).await.unwrap().items;
        let peer = |(n, client): (usize, &VPNClient)| v1::Peer {
            client: Some(object_ref(client)),
            public_key: base64::Engine::decode(
                &base64::engine::general_purpose::STANDARD,
                client.spec.public_key.as_ref().unwrap(),
            )
            .unwrap(),
            addresses: vec![format!("10.77.0.{}/32", n + 2)],
            ..v1::Peer::default()
        };
        let desired = v1::DesiredState {
            pools: vec![v1::Pool { pool: Some(object_ref(&pool)), ..v1::Pool::default() }],
            peers: clients.iter().enumerate().map(peer).collect(),
            ..v1::DesiredState::default()
        };
        fleet.publish(&GatewayKey::new(&cluster.namespace, "edge"), "edge-0", desired);
    }
}

#[tokio::test]
#[ignore = "needs an API server"]
async fn machines_and_pods_enrol_and_uses_are_counted() {
    let cluster = Cluster::connect().await;
    let pool = cluster.pool(json!([{ "name": "first", "uses": 3, "group": "staff" }])).await;
    cluster.tokens(&pool, ENDPOINTS[0]).await;
    let part = cluster.part("staff-token-first").await;
    let pod_token =
        cluster.bound_token("web", "web-0", GATEWAY_AUDIENCE, json!({ "pinhole.dev/pool": "staff" })).await;
    let fleet = Fleet::new(Instant::now());
    let authorities = Authorities::new(vec![Authority::generate(SystemTime::now()).unwrap()]);
    let identity = Identity::new(authorities, "pinhole-system", "pinhole-operator").unwrap();
    let reviewer = Arc::new(CachedReviewer::new(ApiTokenReviewer::new(cluster.client.clone())));
    let records = ApiRecords::new(cluster.client.clone());
    let enroller = Enroller::new(records, Arc::clone(&fleet), identity, reviewer);
    let caller = ReplicaIdentity {
        namespace: cluster.namespace.clone(),
        gateway: "edge".into(),
        replica: "edge-0".into(),
        pod_uid: "u".into(),
        node: None,
    };
    let request = |key: u8, credential| EnrolRequest {
        credential: Some(credential),
        pool_namespace: cluster.namespace.clone(),
        pool: "staff".into(),
        public_key: vec![key; 32],
        csr: csr(),
        hostname: "laptop".into(),
    };
    let (enroller, caller, request) = (&enroller, &caller, &request);
    let join = || Credential::Join(JoinCredential { token: "first".into(), secret: part.clone() });
    let pod = || Credential::ServiceAccountToken(pod_token.clone());
    let run = async {
        let results = join_all((1..=8).map(|key| enroller.enrol(caller, request(key, join())))).await;
        assert_eq!(results.iter().filter(|r| r.is_ok()).count(), 3, "{results:?}");
        let refused = |r: &Result<_, pinhole_operator::enrolment::EnrolmentError>| {
            r.as_ref().err().is_none_or(|e| e.category() == "TokenUsedUp")
        };
        assert!(results.iter().all(refused), "{results:?}");
        let sidecar =
            enroller.enrol(caller, request(100, pod())).await.unwrap().config.unwrap().client.unwrap();
        let again =
            enroller.enrol(caller, request(101, pod())).await.unwrap().config.unwrap().client.unwrap();
        assert_eq!(sidecar, again);
    };
    tokio::select! {
        () = controllers(&cluster, &fleet) => panic!("the watch ended"),
        () = run => {}
    }
    let clients = cluster.api::<VPNClient>().list(&ListParams::default()).await.unwrap().items;
    assert_eq!(clients.len(), 4);
    let secret = cluster.api::<Secret>().get("staff-token-first").await.unwrap();
    assert_eq!(secret.annotations()[USED_ANNOTATION], "3");
    assert!(!secret.annotations().contains_key("pinhole.dev/pending"));
    let statuses = cluster.tokens(&pool, ENDPOINTS[0]).await;
    assert_eq!((statuses[0].state, statuses[0].used), (TokenState::UsedUp, 3));
    cluster.end().await;
}
