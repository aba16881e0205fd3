//! `pinhole gateway`.

use std::{
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
};

use clap::Args;

use super::{Failure, Log};
use crate::{
    gateway::{GatewayError, OperatorAccess, Options},
    tunnel::{PrivateKey, Threads},
};

#[derive(Args, Debug)]
pub(super) struct Gateway {
    /// Where the operator is
    #[arg(long, env = "PINHOLE_OPERATOR", value_name = "https://HOST:PORT")]
    operator: String,
    /// CA bundle of the operator (PEM)
    #[arg(long, env = "PINHOLE_OPERATOR_CA", value_name = "FILE", default_value = "/etc/pinhole/ca/ca.crt")]
    operator_ca: PathBuf,
    /// ServiceAccount token for the operator, read again on each call
    #[arg(
        long,
        env = "PINHOLE_TOKEN_FILE",
        value_name = "FILE",
        default_value = "/var/run/secrets/pinhole/token"
    )]
    token_file: PathBuf,
    /// WireGuard key of this replica, or the directory with a POD.key for each replica
    #[arg(long, env = "PINHOLE_KEYS", value_name = "PATH", default_value = "/etc/pinhole/keys")]
    keys: PathBuf,
    /// Name of this pod
    #[arg(long, env = "POD_NAME")]
    pod_name: Option<String>,
    /// Address of this pod
    #[arg(long, env = "POD_IP", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    pod_ip: IpAddr,
    /// Where the last desired state and the session certificate are kept
    #[arg(long, env = "PINHOLE_STATE_DIR", default_value = "/var/lib/pinhole")]
    state_dir: PathBuf,
    /// UDP port of the tunnel
    #[arg(long, env = "PINHOLE_LISTEN_PORT", default_value_t = 51820)]
    listen_port: u16,
    /// TCP port of client sessions
    #[arg(long, env = "PINHOLE_SESSION_PORT", default_value_t = 51821)]
    session_port: u16,
    /// TCP port of /livez, /readyz and /metrics
    #[arg(long, env = "PINHOLE_HEALTH_PORT", default_value_t = 9090)]
    health_port: u16,
    /// Name of the tunnel's network device
    #[arg(long, env = "PINHOLE_TUN", default_value = "pinhole0")]
    tun: String,
    /// Threads that carry packets, each with its own clients
    #[arg(long, env = "PINHOLE_THREADS", value_name = "1-8", default_value_t = Threads::suited())]
    threads: Threads,
    /// Network device towards the cluster, by default that of the default route
    #[arg(long, env = "PINHOLE_UPLINK")]
    uplink: Option<String>,
    #[command(flatten)]
    log: Log,
}

impl Gateway {
    pub(super) fn run(self) -> Result<(), Failure> {
        self.log.start("info");
        let options = Options {
            operator: OperatorAccess {
                endpoint: endpoint(&self.operator)?,
                ca_file: self.operator_ca,
                token_file: self.token_file,
            },
            private_key: load_key(&self.keys, self.pod_name.as_deref())?,
            state_directory: self.state_dir,
            listen_port: self.listen_port,
            session_port: self.session_port,
            health_port: self.health_port,
            pod_ip: self.pod_ip,
            tun_name: self.tun,
            threads: self.threads,
            uplink: self.uplink.filter(|uplink| !uplink.is_empty()),
        };
        super::run(2, async |stop| crate::gateway::run(options, stop).await)
    }
}

/// `host:port` of a URL. Without the `https` nobody should think that anything else would do.
fn endpoint(url: &str) -> Result<String, GatewayError> {
    let wrong =
        || GatewayError::Setting(format!("PINHOLE_OPERATOR: {url:?} is not of the form https://HOST:PORT"));
    let uri: tonic::transport::Uri = url.parse().map_err(|_| wrong())?;
    let authority = uri.authority().filter(|_| uri.scheme_str() == Some("https")).ok_or_else(wrong)?;
    Ok(format!("{}:{}", authority.host(), authority.port_u16().unwrap_or(443)))
}

fn load_key(path: &Path, pod: Option<&str>) -> Result<PrivateKey, GatewayError> {
    let path = if path.is_dir() {
        let pod = pod.filter(|pod| !pod.contains('/')).ok_or_else(|| {
            GatewayError::ReplicaKey(format!(
                "{} is a directory: POD_NAME must say which key",
                path.display()
            ))
        })?;
        path.join(format!("{pod}.key"))
    } else {
        path.to_owned()
    };
    PrivateKey::load(&path).map_err(|error| GatewayError::ReplicaKey(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_operator_is_named_by_an_https_url_alone() {
        assert_eq!(endpoint("https://op.ns.svc:8443").unwrap(), "op.ns.svc:8443");
        assert_eq!(endpoint("https://[fd00::1]").unwrap(), "[fd00::1]:443");
        for url in ["http://op:1", "op:1", ""] {
            assert_eq!(endpoint(url).unwrap_err().category(), "SettingInvalid", "{url}");
        }
    }

    #[test]
    fn a_replica_finds_its_key_by_the_name_of_its_pod() {
        let directory = tempfile::tempdir().unwrap();
        let key = PrivateKey::generate().unwrap();
        std::fs::write(directory.path().join("edge-1.key"), key.to_base64().as_bytes()).unwrap();
        assert_eq!(load_key(directory.path(), Some("edge-1")).unwrap().public(), key.public());
        for pod in [Some("edge-0"), Some("../edge-1"), None] {
            assert_eq!(load_key(directory.path(), pod).unwrap_err().category(), "ReplicaKeyMissing");
        }
    }
}
