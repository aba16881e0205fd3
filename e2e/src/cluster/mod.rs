//! A real one-node Kubernetes cluster, or one that exists already.

mod components;
mod loadbalancer;
mod objects;
mod pki;

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    time::Duration,
};

use futures::future::select_all;
use k8s_openapi::api::core::v1::{ConfigMap, Node as NodeObject, ServiceAccount};
use kube::{Api, Client, config::KubeConfigOptions};

pub use self::loadbalancer::{LOAD_BALANCERS, LOAD_BALANCERS_V6};
use self::{
    components::{Component, Components},
    loadbalancer::LoadBalancers,
};
use crate::{
    error::{Doing, Error, Result},
    image::Image,
    node::{self, ADDRESS, Node},
    process::{Command, Process},
    progress::step,
    setup::{sha256_hex, tools::Tools},
    state, wait,
};

/// Addresses of pods.
pub const PODS_V4: &str = "10.244.0.0/24";
/// IPv6 addresses of pods.
pub const PODS_V6: &str = "fd00:244::/64";
/// Addresses of Services.
pub const SERVICES_V4: &str = "10.96.0.0/16";
/// IPv6 addresses of Services.
pub const SERVICES_V6: &str = "fd00:96::/112";
/// Address of the API server's Service.
pub const API_V4: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
/// IPv6 address of the API server's Service, should it have one.
pub const API_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, 1);
/// Address of the cluster's DNS.
pub const DNS_V4: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
/// IPv6 address of the cluster's DNS.
pub const DNS_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, 0xa);
/// Domain of cluster names.
pub const CLUSTER_DOMAIN: &str = "cluster.local";
/// Image that every pod's sandbox runs, and tests may run: the toolbox.
pub const PAUSE_IMAGE: &str = "docker.io/pinhole/toolbox:lab";

const API_PORT: u16 = 6443;
/// Where CoreDNS listens on the node; its Service has the usual 53.
const DNS_PORT: u16 = 1053;
/// A cold page cache on a busy machine is slow; a healthy start takes a fraction of it.
const PATIENCE: Duration = Duration::from_mins(3);

/// The cluster that the lab works with.
pub struct Cluster {
    client: Client,
    kubeconfig: PathBuf,
    tools: Tools,
    own: Option<Own>,
}

/// What belongs to a cluster of the lab's own. Fields drop in this order.
#[derive(Debug)]
struct Own {
    _load_balancers: LoadBalancers,
    processes: Vec<Process>,
    node: Node,
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster")
            .field("kubeconfig", &self.kubeconfig)
            .field("own", &self.own)
            .finish_non_exhaustive()
    }
}

impl Cluster {
    /// Brings up the cluster and waits until pods can run and resolve names.
    pub(crate) async fn up(tools: Tools, toolbox: &Path) -> Result<Self> {
        let dir = state::directory();
        let node = step("starting the node", Node::start(toolbox)).await?;
        let components = Components::write(&tools, &dir)?;
        let mut starting = Starting { node: &node, processes: Vec::new() };

        starting.spawn(components.storage()?).await?;
        starting.ready("etcd to answer", Probe::Connect(2379)).await?;
        starting.spawn([components.api_server()?]).await?;
        let client = client(&state::kubeconfig()).await?;
        let api = starting.until("the API server to be ready", || answers(&client, "/readyz"));
        step("starting the API server", api).await?;
        starting.spawn(components.rest()?).await?;
        step("setting up cluster DNS", objects::apply(&client)).await?;
        let socket = containerd_socket();
        let listening = || async { tokio::net::UnixStream::connect(&socket).await.map(drop) };
        starting.until("containerd to listen", listening).await?;
        let toolbox = Image { files: toolbox_files(toolbox), ..Image::of_binary(PAUSE_IMAGE, toolbox)? };
        step("importing the toolbox image", import(&toolbox)).await?;

        let ready = starting.until("the node to be ready", || node_ready(&client));
        step("waiting for the node", ready).await?;
        let proxied = starting.ready("Services to be in force", Probe::Service);
        step("waiting for kube-proxy", proxied).await?;
        step("waiting for CoreDNS", starting.ready("CoreDNS to be ready", Probe::Http(8181, "/ready")))
            .await?;
        let defaults = starting.until("the controller manager", || defaults_exist(&client));
        step("waiting for the controller manager", defaults).await?;

        let processes = starting.processes;
        let load_balancers = LoadBalancers::start(client.clone(), node.netns().clone());
        let own = Own { _load_balancers: load_balancers, processes, node };
        Ok(Self { client, kubeconfig: state::kubeconfig(), tools, own: Some(own) })
    }

    /// Works with a cluster that runs already: the open lab's, or any other.
    pub(crate) async fn existing(kubeconfig: PathBuf, tools: Tools) -> Result<Self> {
        let client = client(&kubeconfig).await?;
        answers(&client, "/readyz").await?;
        Ok(Self { client, kubeconfig, tools, own: None })
    }

    /// A client with all permissions. It does not retry by itself.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// The kubeconfig behind the client.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// The Go-built programs.
    pub fn tools(&self) -> &Tools {
        &self.tools
    }

    /// The node, when this process brought it up.
    pub fn node(&self) -> Option<&Node> {
        self.own.as_ref().map(|own| &own.node)
    }

    /// A `kubectl` command for this cluster.
    ///
    /// # Errors
    /// Never while the tools are what they are.
    pub fn kubectl<S: AsRef<std::ffi::OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Result<Command> {
        Ok(self.client_tool("kubectl")?.args(args))
    }

    /// A `helm` command for this cluster.
    ///
    /// # Errors
    /// Never while the tools are what they are.
    pub fn helm<S: AsRef<std::ffi::OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Result<Command> {
        Ok(self.client_tool("helm")?.args(args))
    }

    /// What it caches stays with the lab: the next one at this address knows other things.
    fn client_tool(&self, name: &str) -> Result<Command> {
        let cache = state::directory().join("cache");
        let command = self.tools.command(name)?.env("KUBECONFIG", &self.kubeconfig);
        Ok(command
            .env("KUBECACHEDIR", cache.join("kubectl"))
            .env("HELM_CACHE_HOME", cache.join("helm"))
            .env("HELM_CONFIG_HOME", cache.join("helm-config"))
            .env("HELM_DATA_HOME", cache.join("helm-data")))
    }

    /// Says that a part of the cluster ended by itself, if one did.
    ///
    /// # Errors
    /// [`Error::Ended`] with the end of its log.
    pub fn must_run(&self) -> Result<()> {
        let Some(own) = &self.own else { return Ok(()) };
        own.node.must_run()?;
        own.processes.iter().try_for_each(Process::must_run)
    }

    /// Waits until a part of the cluster ends by itself, and says which.
    pub async fn ended(&self) -> Error {
        match &self.own {
            Some(own) => first_end(&own.processes).await,
            None => std::future::pending().await,
        }
    }

    /// The requests of service accounts that the API server refused for want of a permission, as
    /// `user verb resource`. Empty for a cluster that is not the lab's.
    ///
    /// # Errors
    /// When the audit log cannot be read.
    pub fn forbidden(&self) -> Result<Vec<String>> {
        let path = state::directory().join("logs/audit.jsonl");
        if self.kubeconfig != state::kubeconfig() || !path.exists() {
            return Ok(Vec::new());
        }
        let log = std::fs::read_to_string(&path).doing(|| format!("reading {}", path.display()))?;
        Ok(log.lines().filter_map(forbidden_request).collect())
    }
}

fn forbidden_request(line: &str) -> Option<String> {
    let event: serde_json::Value = serde_json::from_str(line).ok()?;
    let text = |pointer: &str| event.pointer(pointer).and_then(|v| v.as_str()).unwrap_or("-").to_owned();
    let refused = event.pointer("/responseStatus/code").and_then(serde_json::Value::as_u64) == Some(403);
    // A quota or an admission policy also answers 403; only the authoriser's word counts here.
    let by_authoriser = text("/annotations/authorization.k8s.io~1decision") == "forbid";
    (refused && by_authoriser).then(|| {
        let (user, verb) = (text("/user/username"), text("/verb"));
        format!("{user} {verb} {}", text("/requestURI"))
    })
}

/// Loads an image into the lab's own container runtime, unless it has the same content already.
///
/// # Errors
/// What `ctr` says.
pub(crate) async fn import(image: &Image) -> Result<()> {
    let archive = image.archive()?;
    let digest = sha256_hex(&archive);
    let loaded = state::directory().join("images").join(image.reference.replace('/', "_"));
    if std::fs::read_to_string(&loaded).is_ok_and(|last| last == digest) {
        return Ok(());
    }
    let ctr = Command::new("ctr").arg("--address").arg(containerd_socket());
    ctr.args(["--namespace", "k8s.io", "images", "import", "-"]).stdin(archive).run().await?;
    std::fs::write(&loaded, digest).doing(|| format!("writing {}", loaded.display()))
}

fn containerd_socket() -> PathBuf {
    state::directory().join("containerd/containerd.sock")
}

fn toolbox_files(toolbox: &Path) -> Vec<crate::image::ImageFile> {
    vec![crate::image::ImageFile { source: toolbox.to_owned(), target: "/toolbox".to_owned() }]
}

async fn client(kubeconfig: &Path) -> Result<Client> {
    // The first caller in a process wins, whoever that is; they all want `ring`.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let unusable =
        |why: String| Error::Invalid(format!("the kubeconfig {} is of no use: {why}", kubeconfig.display()));
    let read =
        kube::config::Kubeconfig::read_from(kubeconfig).map_err(|error| unusable(error.to_string()))?;
    let config = kube::Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await;
    let mut config = config.map_err(|error| unusable(error.to_string()))?;
    // Its own retries take minutes; the lab waits for conditions instead.
    config.default_retry = false;
    config.connect_timeout = Some(Duration::from_secs(5));
    Client::try_from(config).map_err(|error| unusable(error.to_string()))
}

async fn answers(client: &Client, path: &str) -> Result<()> {
    let request = http_get(path)?;
    client.request_text(request).await.map(drop).doing(|| format!("asking the API server for {path}"))
}

fn http_get(path: &str) -> Result<http::Request<Vec<u8>>> {
    http::Request::get(path).body(Vec::new()).map_err(|error| Error::Invalid(error.to_string()))
}

async fn node_ready(client: &Client) -> Result<(), String> {
    let nodes: Api<NodeObject> = Api::all(client.clone());
    let node = nodes.get(node::NAME).await.map_err(|error| error.to_string())?;
    let conditions = node.status.and_then(|status| status.conditions).unwrap_or_default();
    let ready = conditions.iter().find(|condition| condition.type_ == "Ready");
    if ready.is_none_or(|condition| condition.status != "True") {
        return Err(format!("its Ready condition is {ready:?}"));
    }
    match node.spec.and_then(|spec| spec.taints).unwrap_or_default().first() {
        Some(taint) => Err(format!("it still has the taint {}", taint.key)),
        None => Ok(()),
    }
}

async fn defaults_exist(client: &Client) -> Result<(), String> {
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), "default");
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
    accounts.get("default").await.map_err(|error| error.to_string())?;
    maps.get("kube-root-ca.crt").await.map_err(|error| error.to_string())?;
    Ok(())
}

/// What shows, seen from within the node, that a component works.
#[derive(Clone, Copy)]
enum Probe {
    /// A TCP connection to a port of the loopback.
    Connect(u16),
    /// A successful answer to an HTTP request to the loopback.
    Http(u16, &'static str),
    /// A TCP connection to the API server by way of its Service.
    Service,
}

impl Probe {
    fn check(self) -> std::io::Result<()> {
        use std::{
            io::{Read, Write},
            net::TcpStream,
        };
        let local = |port| (Ipv4Addr::LOCALHOST, port).into();
        let (target, request) = match self {
            Self::Connect(port) => (local(port), None),
            Self::Http(port, path) => (local(port), Some(path)),
            Self::Service => ((API_V4, 443).into(), None),
        };
        let mut stream = TcpStream::connect_timeout(&target, Duration::from_secs(1))?;
        let Some(path) = request else { return Ok(()) };
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let first = answer.lines().next().unwrap_or_default();
        if first.contains(" 200 ") { Ok(()) } else { Err(std::io::Error::other(first.to_owned())) }
    }
}

/// Components on their way up: waiting ends early when one of them does.
struct Starting<'a> {
    node: &'a Node,
    processes: Vec<Process>,
}

impl Starting<'_> {
    async fn spawn(&mut self, components: impl IntoIterator<Item = Component>) -> Result<()> {
        for (name, command) in components {
            self.processes.push(self.node.spawn(name, &command).await?);
        }
        Ok(())
    }

    async fn until<T, E, F>(&self, what: &str, probe: impl FnMut() -> F) -> Result<T>
    where
        F: Future<Output = Result<T, E>>,
        E: std::fmt::Display,
    {
        tokio::select! {
            outcome = wait::until(what, PATIENCE, probe) => outcome,
            error = first_end(&self.processes) => Err(error),
        }
    }

    async fn ready(&self, what: &str, probe: Probe) -> Result<()> {
        let netns = self.node.netns();
        let check = || {
            let netns = netns.clone();
            async move {
                let checked = tokio::task::spawn_blocking(move || netns.within(|| probe.check())).await;
                checked.map_err(|e| e.to_string())?.map_err(|e| e.to_string())?.map_err(|e| e.to_string())
            }
        };
        self.until(what, check).await
    }
}

async fn first_end(processes: &[Process]) -> Error {
    if processes.is_empty() {
        return std::future::pending().await;
    }
    let ends = processes.iter().map(|process| {
        Box::pin(async move {
            let _ = process.wait().await;
            process
        })
    });
    let (process, ..) = select_all(ends).await;
    match process.must_run() {
        Err(error) => error,
        Ok(()) => Error::Invalid(format!("{} is in an unclear state", process.name())),
    }
}

/// The address that serves NodePorts and hostPorts of the lab's own cluster.
pub const NODE_ADDRESS: Ipv4Addr = ADDRESS;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_authoriser_refused_counts_as_forbidden() {
        let event = |code: u16, decision: &str| {
            serde_json::json!({
                "user": { "username": "system:serviceaccount:pinhole:operator" },
                "verb": "list", "requestURI": "/api/v1/secrets",
                "responseStatus": { "code": code },
                "annotations": { "authorization.k8s.io/decision": decision },
            })
            .to_string()
        };
        assert_eq!(
            forbidden_request(&event(403, "forbid")).as_deref(),
            Some("system:serviceaccount:pinhole:operator list /api/v1/secrets")
        );
        assert_eq!(forbidden_request(&event(403, "allow")), None);
        assert_eq!(forbidden_request(&event(200, "allow")), None);
        assert_eq!(forbidden_request("not json"), None);
    }
}
