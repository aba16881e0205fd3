//! The names of gateways, asked of the network's own name servers: those of a tunnel cannot be asked the way to it.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, Instant},
};

use hickory_resolver::{
    Resolver,
    config::{NameServerConfig, ResolveHosts, ResolverConfig},
    net::runtime::{
        RuntimeProvider, TokioHandle, TokioRuntimeProvider, TokioTime, iocompat::AsyncIoTokioAsStd,
    },
};
use nix::sys::socket::{setsockopt, sockopt};
use pinhole_proto::{Host, HostPort};
use tokio::net::{TcpStream, UdpSocket};

use super::dial::{self, DialError};
use crate::nat::Radio;

/// How long one server may take, and all of them.
const SERVER: Duration = Duration::from_millis(1500);
const LOOKUP: Duration = Duration::from_secs(4);

/// How names are resolved now: a clone follows the others. By default, and wherever that finds nothing, the way of the system
/// is taken.
#[derive(Debug, Clone, Default)]
pub struct Names {
    servers: Arc<RwLock<Servers>>,
    fwmark: Option<u32>,
}

#[derive(Debug, Default)]
struct Servers {
    network: Vec<IpAddr>,
    /// The system asks others.
    asked: bool,
    /// The system's way may be shut.
    shut: bool,
}

impl Names {
    /// With a mark for the packets of questions, which keeps them out of a tunnel.
    pub fn new(fwmark: Option<u32>) -> Self {
        Names { servers: Arc::default(), fwmark }
    }

    /// What the network's own name servers are.
    pub fn set_network(&self, servers: Vec<IpAddr>) {
        self.servers.write().unwrap_or_else(PoisonError::into_inner).network = servers;
    }

    /// Whether the system asks others than the network's own, so that those have to be asked directly.
    pub fn set_asked(&self, asked: bool) {
        self.servers.write().unwrap_or_else(PoisonError::into_inner).asked = asked;
    }

    /// Says that whoever resolves for the system may not reach the network's servers, as behind a kill switch, where a question
    /// with the mark may. They are asked directly from now on.
    pub fn set_shut(&self) {
        self.servers.write().unwrap_or_else(PoisonError::into_inner).shut = true;
    }

    /// The network's own name servers, asked or not.
    pub fn network(&self) -> Vec<IpAddr> {
        self.servers.read().unwrap_or_else(PoisonError::into_inner).network.clone()
    }

    /// The addresses of `host:port`. Where a name server is asked, `radio` counts that.
    ///
    /// # Errors
    /// [`DialError::Unresolved`] where nobody knows the name, or answers.
    pub async fn resolve(&self, endpoint: &str, radio: Option<&Radio>) -> Result<Vec<SocketAddr>, DialError> {
        if let Some(found) = self.ask(endpoint, radio).await.filter(|found| !found.is_empty()) {
            return Ok(found);
        }
        dial::resolve(endpoint, radio).await
    }

    /// What the network's own servers say, where they are to be asked.
    async fn ask(&self, endpoint: &str, radio: Option<&Radio>) -> Option<Vec<SocketAddr>> {
        let HostPort { host: Host::Name(name), port } = endpoint.parse().ok()? else { return None };
        let servers = {
            let servers = self.servers.read().unwrap_or_else(PoisonError::into_inner);
            if servers.asked || servers.shut { servers.network.clone() } else { Vec::new() }
        };
        if servers.is_empty() {
            return None;
        }
        if let Some(radio) = radio {
            radio.packet(Instant::now());
        }
        let name = format!("{}.", name.as_str().trim_end_matches('.'));
        let found = tokio::time::timeout(LOOKUP, self.lookup(servers, &name)).await;
        let found = found.map_err(|_| "no answer".to_owned()).and_then(|found| found);
        if let Err(error) = &found {
            tracing::debug!(error, "the network's own name servers do not know the gateway's name");
        }
        Some(found.ok()?.into_iter().map(|ip| SocketAddr::new(ip, port)).collect())
    }

    async fn lookup(&self, servers: Vec<IpAddr>, name: &str) -> Result<Vec<IpAddr>, String> {
        let servers = servers.into_iter().map(NameServerConfig::udp_and_tcp).collect();
        let config = ResolverConfig::from_parts(None, Vec::new(), servers);
        let provider = Marked { tokio: TokioRuntimeProvider::default(), fwmark: self.fwmark };
        let mut resolver = Resolver::builder_with_config(config, provider);
        let options = resolver.options_mut();
        (options.timeout, options.cache_size) = (SERVER, 0);
        // Their way is the system's, which comes after.
        options.use_hosts_file = ResolveHosts::Never;
        let resolver = resolver.build().map_err(|error| error.to_string())?;
        let found = resolver.lookup_ip(name).await.map_err(|error| error.to_string())?;
        Ok(found.iter().collect())
    }
}

/// Sockets as of tokio, with a mark.
#[derive(Clone)]
struct Marked {
    tokio: TokioRuntimeProvider,
    fwmark: Option<u32>,
}

impl RuntimeProvider for Marked {
    type Handle = TokioHandle;
    type Timer = TokioTime;
    type Udp = UdpSocket;
    type Tcp = AsyncIoTokioAsStd<TcpStream>;

    fn create_handle(&self) -> TokioHandle {
        self.tokio.create_handle()
    }

    fn connect_tcp(
        &self,
        server: SocketAddr,
        _bind: Option<SocketAddr>,
        limit: Option<Duration>,
    ) -> Pin<Box<dyn Send + Future<Output = io::Result<Self::Tcp>>>> {
        let connect = dial::open(server, self.fwmark);
        Box::pin(async move {
            let limited = tokio::time::timeout(limit.unwrap_or(SERVER), connect).await;
            Ok(AsyncIoTokioAsStd(limited.map_err(|_| io::ErrorKind::TimedOut)??))
        })
    }

    fn bind_udp(
        &self,
        local: SocketAddr,
        _server: SocketAddr,
    ) -> Pin<Box<dyn Send + Future<Output = io::Result<UdpSocket>>>> {
        let fwmark = self.fwmark;
        Box::pin(async move {
            let socket = UdpSocket::bind(local).await?;
            if let Some(mark) = fwmark {
                setsockopt(&socket, sockopt::Mark, &mark)?;
            }
            Ok(socket)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nobody_is_asked_for_an_address() {
        let names = Names::default();
        // Nobody answers there.
        names.set_network(vec!["192.0.2.53".parse().unwrap()]);
        names.set_asked(true);
        let began = Instant::now();
        for endpoint in ["192.0.2.1:51821", "[2001:db8::1]:51821"] {
            assert_eq!(names.resolve(endpoint, None).await.unwrap(), [endpoint.parse().unwrap()]);
        }
        assert!(began.elapsed() < SERVER);
    }

    #[tokio::test]
    async fn what_the_networks_servers_do_not_know_is_asked_of_the_system() {
        let names = Names::default();
        // Refused at once: nobody listens there.
        names.set_network(vec!["127.0.0.53".parse().unwrap()]);
        names.set_asked(true);
        let found = names.resolve("localhost:9", None).await.unwrap();
        assert!(!found.is_empty() && found.iter().all(|address| address.ip().is_loopback()), "{found:?}");
    }
}
