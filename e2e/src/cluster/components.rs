//! The programs that make the cluster, with their configurations.

use std::{fmt::Write as _, path::Path};

use serde_json::{Value, json};

use super::{
    API_PORT, API_V4, API_V6, CLUSTER_DOMAIN, DNS_PORT, DNS_V4, PAUSE_IMAGE, PODS_V4, PODS_V6, SERVICES_V4,
    SERVICES_V6,
    pki::{Authority, Identity, write_private},
};
use crate::{
    error::{Doing, Result},
    node::{self, ADDRESS, ADDRESS_V6, MANAGEMENT},
    process::Command,
    setup::{packages::cni_plugins, tools::Tools},
    state,
};

/// A component: its name, and how it is started.
pub(crate) type Component = (&'static str, Command);

/// Everything that the components read, written into the lab's directory.
pub(crate) struct Components<'a> {
    tools: &'a Tools,
    dir: &'a Path,
}

impl<'a> Components<'a> {
    /// Writes certificates, kubeconfigs and configurations below `dir`.
    pub(crate) fn write(tools: &'a Tools, dir: &'a Path) -> Result<Self> {
        let components = Self { tools, dir };
        for part in ["pki", "conf", "etcd", "containerd", "kubelet", "cni/conf", "cni/ipam", "bin", "images"]
        {
            let path = dir.join(part);
            std::fs::create_dir_all(&path).doing(|| format!("making {}", path.display()))?;
        }
        components.write_identities()?;
        components.write_configurations()?;
        components.link_tools()?;
        Ok(components)
    }

    /// What the API server needs first.
    pub(crate) fn storage(&self) -> Result<Vec<Component>> {
        Ok(vec![("etcd", self.etcd()?), ("containerd", self.containerd())])
    }

    /// The API server.
    pub(crate) fn api_server(&self) -> Result<Component> {
        Ok(("kube-apiserver", self.kube_apiserver()?))
    }

    /// What talks to the API server.
    pub(crate) fn rest(&self) -> Result<Vec<Component>> {
        Ok(vec![
            ("kubelet", self.kubelet()?),
            ("kube-controller-manager", self.controller_manager()?),
            ("kube-scheduler", self.scheduler()?),
            ("kube-proxy", self.proxy()?),
            ("coredns", self.coredns()?),
        ])
    }

    fn path(&self, part: &str) -> String {
        self.dir.join(part).display().to_string()
    }

    fn write_identities(&self) -> Result<()> {
        let pki = self.dir.join("pki");
        let authority = Authority::new()?;
        authority.identity().write(&pki, "ca")?;
        Identity::signing_key()?.write(&pki, "service-accounts")?;

        let (node, node_v6, management) =
            (ADDRESS.to_string(), ADDRESS_V6.to_string(), MANAGEMENT.to_string());
        let (service, service_v6) = (API_V4.to_string(), API_V6.to_string());
        let in_cluster = format!("kubernetes.default.svc.{CLUSTER_DOMAIN}");
        let names =
            ["localhost", "127.0.0.1", "::1", "kubernetes", "kubernetes.default", "kubernetes.default.svc"];
        let more: [&str; 6] = [&in_cluster, &service, &service_v6, &node, &node_v6, &management];
        authority
            .server("kube-apiserver", &[&names[..], &more[..]].concat())?
            .write(&pki, "kube-apiserver")?;
        authority.server(node::NAME, &[node::NAME, &node, &node_v6])?.write(&pki, "kubelet")?;
        authority.client("kube-apiserver", Some("system:masters"))?.write(&pki, "kubelet-client")?;

        let server = format!("https://{ADDRESS}:{API_PORT}");
        let node_user = format!("system:node:{}", node::NAME);
        for (file, user, group) in [
            ("kubelet", node_user.as_str(), Some("system:nodes")),
            ("kube-controller-manager", "system:kube-controller-manager", None),
            ("kube-scheduler", "system:kube-scheduler", None),
            ("kube-proxy", "system:kube-proxy", None),
            ("coredns", "system:coredns", None),
        ] {
            let kubeconfig = authority.kubeconfig(&server, user, &authority.client(user, group)?);
            self.write_json(&format!("conf/{file}.kubeconfig"), &kubeconfig)?;
        }
        let admin = authority.client("pinhole-lab-admin", Some("system:masters"))?;
        let server = format!("https://{MANAGEMENT}:{API_PORT}");
        write_private(&state::kubeconfig(), &pretty(&authority.kubeconfig(&server, "admin", &admin)))
    }

    fn write_json(&self, part: &str, content: &Value) -> Result<()> {
        write_private(&self.dir.join(part), &pretty(content))
    }

    fn write_configurations(&self) -> Result<()> {
        self.write_json("conf/kubelet.yaml", &self.kubelet_configuration())?;
        self.write_json("conf/kube-proxy.yaml", &self.proxy_configuration())?;
        self.write_json("conf/audit.yaml", &audit_policy())?;
        self.write_json("cni/conf/10-lab.conflist", &self.cni_configuration())?;
        for (part, text) in [
            ("conf/containerd.toml", self.containerd_configuration()),
            ("conf/Corefile", self.corefile()),
            // Pods that ask for the node's resolver get none: the lab has no way out.
            ("conf/resolv.conf", String::new()),
        ] {
            write_private(&self.dir.join(part), &text)?;
        }
        Ok(())
    }

    /// `DIR/bin` holds the tools under their plain names, for a person's PATH.
    fn link_tools(&self) -> Result<()> {
        for (name, path) in self.tools.iter() {
            let link = self.dir.join("bin").join(name);
            std::os::unix::fs::symlink(path, &link).doing(|| format!("linking {}", link.display()))?;
        }
        Ok(())
    }

    fn etcd(&self) -> Result<Command> {
        // Durability is of no use to a cluster that goes with its machine; speed is.
        Ok(self
            .tools
            .command("etcd")?
            .args(["--name", "lab", "--unsafe-no-fsync", "--log-level", "warn"])
            .args([
                "--data-dir",
                &self.path("etcd"),
                "--listen-client-urls",
                "http://127.0.0.1:2379",
                "--advertise-client-urls",
                "http://127.0.0.1:2379",
                "--listen-peer-urls",
                "http://127.0.0.1:2380",
            ]))
    }

    fn containerd(&self) -> Command {
        Command::new("containerd").args(["--config", &self.path("conf/containerd.toml")])
    }

    fn kube_apiserver(&self) -> Result<Command> {
        let pki = |name: &str| self.path(&format!("pki/{name}"));
        let mut command = self.tools.command("kube-apiserver")?;
        for (flag, value) in [
            ("etcd-servers", "http://127.0.0.1:2379".to_owned()),
            ("secure-port", API_PORT.to_string()),
            ("bind-address", "0.0.0.0".to_owned()),
            ("advertise-address", ADDRESS.to_string()),
            ("service-cluster-ip-range", format!("{SERVICES_V4},{SERVICES_V6}")),
            ("client-ca-file", pki("ca.crt")),
            ("tls-cert-file", pki("kube-apiserver.crt")),
            ("tls-private-key-file", pki("kube-apiserver.key")),
            ("kubelet-certificate-authority", pki("ca.crt")),
            ("kubelet-client-certificate", pki("kubelet-client.crt")),
            ("kubelet-client-key", pki("kubelet-client.key")),
            ("kubelet-preferred-address-types", "InternalIP".to_owned()),
            ("service-account-issuer", format!("https://kubernetes.default.svc.{CLUSTER_DOMAIN}")),
            ("service-account-key-file", pki("service-accounts.crt")),
            ("service-account-signing-key-file", pki("service-accounts.key")),
            ("authorization-mode", "Node,RBAC".to_owned()),
            ("enable-admission-plugins", "NodeRestriction".to_owned()),
            ("allow-privileged", "true".to_owned()),
            ("audit-policy-file", self.path("conf/audit.yaml")),
            ("audit-log-path", self.path("logs/audit.jsonl")),
            ("profiling", "false".to_owned()),
        ] {
            command = command.arg(format!("--{flag}={value}"));
        }
        Ok(command)
    }

    fn controller_manager(&self) -> Result<Command> {
        let kubeconfig = self.path("conf/kube-controller-manager.kubeconfig");
        let pki = |name: &str| self.path(&format!("pki/{name}"));
        Ok(self
            .tools
            .command("kube-controller-manager")?
            .args(credentials(&kubeconfig))
            .args(["--bind-address=127.0.0.1", "--leader-elect=false", "--use-service-account-credentials"])
            // A node that becomes ready loses its taint at the next look.
            .args(["--node-monitor-period=1s", "--allocate-node-cidrs=false"])
            .arg(format!("--cluster-cidr={PODS_V4},{PODS_V6}"))
            .arg(format!("--service-cluster-ip-range={SERVICES_V4},{SERVICES_V6}"))
            .arg(format!("--root-ca-file={}", pki("ca.crt")))
            .arg(format!("--cluster-signing-cert-file={}", pki("ca.crt")))
            .arg(format!("--cluster-signing-key-file={}", pki("ca.key")))
            .arg(format!("--service-account-private-key-file={}", pki("service-accounts.key"))))
    }

    fn scheduler(&self) -> Result<Command> {
        let kubeconfig = self.path("conf/kube-scheduler.kubeconfig");
        Ok(self
            .tools
            .command("kube-scheduler")?
            .args(credentials(&kubeconfig))
            .args(["--bind-address=127.0.0.1", "--leader-elect=false"]))
    }

    fn kubelet(&self) -> Result<Command> {
        Ok(self
            .tools
            .command("kubelet")?
            .arg(format!("--config={}", self.path("conf/kubelet.yaml")))
            .arg(format!("--kubeconfig={}", self.path("conf/kubelet.kubeconfig")))
            .arg(format!("--root-dir={}", self.path("kubelet")))
            .arg(format!("--hostname-override={}", node::NAME))
            .arg(format!("--node-ip={ADDRESS},{ADDRESS_V6}")))
    }

    fn kubelet_configuration(&self) -> Value {
        json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {
                "anonymous": { "enabled": false },
                "webhook": { "enabled": true },
                "x509": { "clientCAFile": self.path("pki/ca.crt") },
            },
            "authorization": { "mode": "Webhook" },
            "tlsCertFile": self.path("pki/kubelet.crt"),
            "tlsPrivateKeyFile": self.path("pki/kubelet.key"),
            "containerRuntimeEndpoint": format!("unix://{}", self.path("containerd/containerd.sock")),
            "clusterDomain": CLUSTER_DOMAIN,
            "clusterDNS": [DNS_V4.to_string()],
            "resolvConf": self.path("conf/resolv.conf"),
            // Machines with the old or the hybrid cgroup layout are welcome, too.
            "failCgroupV1": false,
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": format!("/{}", state::CGROUP),
            "cgroupsPerQOS": false,
            "enforceNodeAllocatable": [],
            "failSwapOn": false,
            // The machine may be one where nobody can lower an OOM score.
            "oomScoreAdj": 0,
            "makeIPTablesUtilChains": false,
            "volumePluginDir": self.path("kubelet/volume-plugins"),
            // The images are the lab's own: none is ever collected, no pod is evicted for a full disk.
            "imageGCHighThresholdPercent": 100,
            "imageGCLowThresholdPercent": 99,
            "evictionHard": {
                "memory.available": "50Mi", "nodefs.available": "1%", "imagefs.available": "1%",
                "nodefs.inodesFree": "1%", "imagefs.inodesFree": "1%",
            },
            "eventRecordQPS": 100,
            "syncFrequency": "10s",
        })
    }

    fn proxy(&self) -> Result<Command> {
        Ok(self
            .tools
            .command("kube-proxy")?
            .arg(format!("--config={}", self.path("conf/kube-proxy.yaml")))
            .arg(format!("--hostname-override={}", node::NAME)))
    }

    fn proxy_configuration(&self) -> Value {
        json!({
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "clientConnection": { "kubeconfig": self.path("conf/kube-proxy.kubeconfig") },
            "mode": "nftables",
            "clusterCIDR": format!("{PODS_V4},{PODS_V6}"),
            "conntrack": { "maxPerCore": 0 },
            "healthzBindAddress": "127.0.0.1:10256",
            "metricsBindAddress": "127.0.0.1:10249",
            "nftables": { "minSyncPeriod": "100ms" },
        })
    }

    fn coredns(&self) -> Result<Command> {
        Ok(self.tools.command("coredns")?.arg("-conf").arg(self.path("conf/Corefile")))
    }

    fn corefile(&self) -> String {
        format!(
            ".:{DNS_PORT} {{
    bind {ADDRESS} {ADDRESS_V6}
    errors
    ready 127.0.0.1:8181
    kubernetes {CLUSTER_DOMAIN} in-addr.arpa ip6.arpa {{
        kubeconfig {}
        pods insecure
        ttl 5
    }}
    cache 5
    loadbalance
}}
",
            self.path("conf/coredns.kubeconfig")
        )
    }

    fn cni_configuration(&self) -> Value {
        // Routed pods, not bridged ones: then every packet passes the node's connection tracking once, and
        // nothing depends on bridge netfilter.
        json!({
            "cniVersion": "1.0.0",
            "name": "lab",
            "plugins": [
                {
                    "type": "ptp",
                    "ipMasq": true,
                    "ipam": {
                        "type": "host-local",
                        "dataDir": self.path("cni/ipam"),
                        "ranges": [[{ "subnet": PODS_V4 }], [{ "subnet": PODS_V6 }]],
                        "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }],
                    },
                },
                { "type": "portmap", "capabilities": { "portMappings": true }, "snat": true },
            ],
        })
    }

    fn containerd_configuration(&self) -> String {
        let mut text = format!(
            "version = 2
root = \"{root}\"
state = \"{state}\"
disabled_plugins = [\"io.containerd.snapshotter.v1.aufs\", \"io.containerd.snapshotter.v1.btrfs\", \
 \"io.containerd.snapshotter.v1.devmapper\", \"io.containerd.snapshotter.v1.zfs\", \
 \"io.containerd.internal.v1.tracing\", \"io.containerd.tracing.processor.v1.otlp\"]
[grpc]
address = \"{socket}\"
[plugins.\"io.containerd.internal.v1.opt\"]
path = \"{opt}\"
",
            root = self.path("containerd/root"),
            state = self.path("containerd/state"),
            socket = self.path("containerd/containerd.sock"),
            opt = self.path("containerd/opt"),
        );
        let _ = write!(
            text,
            "[plugins.\"io.containerd.grpc.v1.cri\"]
sandbox_image = \"{PAUSE_IMAGE}\"
restrict_oom_score_adj = true
netns_mounts_under_state_dir = true
disable_apparmor = true
[plugins.\"io.containerd.grpc.v1.cri\".cni]
bin_dir = \"{plugins}\"
conf_dir = \"{conf}\"
[plugins.\"io.containerd.grpc.v1.cri\".containerd]
snapshotter = \"overlayfs\"
default_runtime_name = \"runc\"
[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc]
runtime_type = \"io.containerd.runc.v2\"
[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc.options]
SystemdCgroup = false
",
            plugins = cni_plugins(),
            conf = self.path("cni/conf"),
        );
        text
    }
}

/// Records what service accounts were refused, so that missing permissions show.
fn audit_policy() -> Value {
    json!({
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "omitStages": ["RequestReceived", "ResponseStarted"],
        "rules": [
            { "level": "None", "namespaces": ["kube-system"] },
            { "level": "None", "userGroups": ["system:serviceaccounts:kube-system"] },
            { "level": "Metadata", "userGroups": ["system:serviceaccounts"] },
            { "level": "None" },
        ],
    })
}

fn credentials(kubeconfig: &str) -> [String; 3] {
    ["kubeconfig", "authentication-kubeconfig", "authorization-kubeconfig"]
        .map(|flag| format!("--{flag}={kubeconfig}"))
}

fn pretty(content: &Value) -> String {
    format!("{content:#}\n")
}
