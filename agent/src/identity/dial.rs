//! TLS connections to one of several endpoints.

use std::{io, net::SocketAddr, time::Duration};

use hyper_util::rt::TokioIo;
use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::{TcpSocket, TcpStream, lookup_host};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity, Uri};
use zeroize::Zeroizing;

const CONNECT: Duration = Duration::from_secs(5);
const KEEPALIVE: Duration = Duration::from_secs(20);
const KEEPALIVE_ANSWER: Duration = Duration::from_secs(10);

/// Why no endpoint could be reached.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The name is unknown, or the name server is silent.
    #[error("cannot resolve {endpoint}: {reason}")]
    Unresolved {
        /// `host:port`.
        endpoint: String,
        /// What the resolver said.
        reason: String,
    },
    /// Nobody answers, or TLS failed.
    #[error("cannot reach {endpoint}: {reason}")]
    Unreachable {
        /// `host:port`.
        endpoint: String,
        /// What failed.
        reason: String,
    },
    /// The CA, the certificate or the key is malformed.
    #[error("cannot set up TLS: {0}")]
    Tls(String),
    /// There is no endpoint to try.
    #[error("no endpoint is known")]
    NoEndpoint,
}

impl DialError {
    /// A stable, low-cardinality name for metric labels, events and condition reasons.
    pub fn category(&self) -> &'static str {
        match self {
            Self::Unresolved { .. } => "NameUnresolved",
            Self::Unreachable { .. } | Self::NoEndpoint => "GatewayUnreachable",
            Self::Tls(_) => "TlsConfigInvalid",
        }
    }
}

/// What a certificate proves: its chain and its key, PEM.
#[derive(Clone)]
pub struct Proof {
    /// The leaf and its issuers.
    pub chain_pem: String,
    /// The private key.
    pub key_pem: Zeroizing<String>,
}

/// How to connect.
#[derive(Clone)]
pub struct Dialer {
    /// TLS name of the other end.
    pub server_name: String,
    /// What its certificate chains to, PEM.
    pub ca_pem: String,
    /// The own certificate, where one is shown.
    pub proof: Option<Proof>,
    /// Mark of the connection's packets, so that a route through the tunnel can leave them out.
    pub fwmark: Option<u32>,
}

impl Dialer {
    /// Connects to the first of the endpoints (`host:port`) that answers with the right certificate.
    pub async fn connect(&self, endpoints: &[String]) -> Result<(Channel, SocketAddr), DialError> {
        let mut last = DialError::NoEndpoint;
        for endpoint in endpoints {
            match self.connect_to(endpoint).await {
                Ok(connected) => return Ok(connected),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    async fn connect_to(&self, endpoint: &str) -> Result<(Channel, SocketAddr), DialError> {
        let addresses = resolve(endpoint).await?;
        let mut last = None;
        for address in addresses {
            match self.connect_address(address).await {
                Ok(channel) => return Ok((channel, address)),
                Err(error @ DialError::Tls(_)) => return Err(error),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| unreachable(endpoint, "the name has no address")))
    }

    async fn connect_address(&self, address: SocketAddr) -> Result<Channel, DialError> {
        let mut tls = ClientTlsConfig::new()
            .domain_name(self.server_name.clone())
            .ca_certificate(Certificate::from_pem(&self.ca_pem));
        if let Some(proof) = &self.proof {
            tls = tls.identity(Identity::from_pem(&proof.chain_pem, proof.key_pem.as_bytes()));
        }
        let invalid = |error: tonic::transport::Error| DialError::Tls(reason(&error));
        let uri = Uri::builder()
            .scheme("https")
            .authority(address.to_string())
            .path_and_query("/")
            .build()
            .map_err(|error| DialError::Tls(error.to_string()))?;
        let channel = Endpoint::from(uri)
            .tls_config(tls)
            .map_err(invalid)?
            .connect_timeout(CONNECT)
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE_ANSWER)
            .keep_alive_while_idle(true);
        let fwmark = self.fwmark;
        let connector =
            tower::service_fn(move |_: Uri| async move { open(address, fwmark).await.map(TokioIo::new) });
        channel
            .connect_with_connector(connector)
            .await
            .map_err(|error| unreachable(&address.to_string(), &reason(&error)))
    }
}

async fn open(address: SocketAddr, fwmark: Option<u32>) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_nodelay(true)?;
    if let Some(mark) = fwmark {
        setsockopt(&socket, sockopt::Mark, &mark)?;
    }
    let connect = socket.connect(address);
    tokio::time::timeout(CONNECT, connect).await.map_err(|_| io::ErrorKind::TimedOut)?
}

/// The addresses of `host:port`.
pub async fn resolve(endpoint: &str) -> Result<Vec<SocketAddr>, DialError> {
    let unresolved = |reason: String| DialError::Unresolved { endpoint: endpoint.to_owned(), reason };
    if let Ok(address) = endpoint.parse() {
        return Ok(vec![address]);
    }
    let lookup = tokio::time::timeout(CONNECT, lookup_host(endpoint)).await;
    let addresses = lookup.map_err(|_| unresolved("the name server does not answer".into()))?;
    Ok(addresses.map_err(|error| unresolved(error.to_string()))?.collect())
}

fn unreachable(endpoint: &str, reason: &str) -> DialError {
    DialError::Unreachable { endpoint: endpoint.to_owned(), reason: reason.to_owned() }
}

/// The innermost cause, which names what happened where the outer ones say "transport error".
fn reason(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}
