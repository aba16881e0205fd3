//! TLS connections to one of several endpoints: not one after the other, but staggered as in RFC 8305.

use std::{
    collections::HashSet,
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{StreamExt as _, future::join_all, stream::FuturesUnordered};
use hyper_util::rt::TokioIo;
use nix::sys::socket::{setsockopt, sockopt};
use rustls::{ClientConfig, crypto::ring, pki_types::ServerName};
use tokio::net::{TcpSocket, TcpStream, lookup_host};
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint, Uri};
use zeroize::Zeroizing;

use super::{IdentityError, Objection, SessionKey, certificate, judge::Judge, names::Names, tapped::Tapped};
use crate::{clock::Skew, nat::Radio};

const CONNECT: Duration = Duration::from_secs(5);
/// How long an attempt has for itself before the next one starts (RFC 8305, section 5).
const STAGGER: Duration = Duration::from_millis(250);
/// Protocol of gRPC, to be agreed in the handshake.
const HTTP2: &[u8] = b"h2";
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
    /// The server's certificate is over by this machine's clock, and right otherwise.
    #[error(
        "the certificate of {endpoint} is over: {skew} at least, or the gateway could not renew it; set the clock"
    )]
    ClockSkew {
        /// `host:port`.
        endpoint: String,
        /// By how much the clock would be ahead.
        skew: Skew,
    },
    /// There is no endpoint to try.
    #[error("no endpoint is known")]
    NoEndpoint,
    /// Each of several endpoints failed, for a reason of its own.
    #[error("{}", .0.iter().map(Self::to_string).collect::<Vec<_>>().join("; "))]
    Several(Vec<DialError>),
}

impl DialError {
    /// A stable, low-cardinality name for metric labels, events and condition reasons.
    pub fn category(&self) -> &'static str {
        match self {
            Self::Unresolved { .. } => "NameUnresolved",
            Self::Several(errors) if errors.iter().all(|e| matches!(e, Self::Unresolved { .. })) => {
                "NameUnresolved"
            }
            Self::Unreachable { .. } | Self::NoEndpoint | Self::Several(_) => "GatewayUnreachable",
            Self::ClockSkew { .. } => "ClockSkew",
            Self::Tls(_) => "TlsConfigInvalid",
        }
    }

    /// What is to say when these were all attempts that there were.
    pub fn of_all(errors: Vec<DialError>) -> Self {
        let flat = errors.into_iter().flat_map(|error| match error {
            Self::Several(errors) => errors,
            error => vec![error],
        });
        let mut flat: Vec<_> = flat.collect();
        // All else may be due to it.
        if let Some(at) = flat.iter().position(|error| matches!(error, Self::ClockSkew { .. })) {
            return flat.swap_remove(at);
        }
        // The same endpoint may be known from several sides.
        let mut said = HashSet::new();
        flat.retain(|error| said.insert(error.to_string()));
        match flat.len() {
            0 | 1 => flat.pop().unwrap_or(Self::NoEndpoint),
            _ => Self::Several(flat),
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

/// How an end learns that its connection is gone.
#[derive(Debug, Clone)]
pub enum Liveness {
    /// It asks, each 20 s: for machines that have power and no NAT in between.
    Pinged,
    /// It says nothing of its own. What is sent is the question: unless TCP acknowledges it within
    /// [`UNACKNOWLEDGED`], the connection ends. So a connection over a mapping that was lost costs nothing until there
    /// is something to say. All that passes is counted as wake-ups.
    Quiet(Arc<Radio>),
}

impl Liveness {
    /// Where wake-ups are counted.
    fn radio(&self) -> Option<&Arc<Radio>> {
        match self {
            Self::Pinged => None,
            Self::Quiet(radio) => Some(radio),
        }
    }
}

/// How long something may stay unacknowledged until a quiet connection is given up, at either end (`TCP_USER_TIMEOUT`,
/// RFC 5482): four retransmissions at a round trip of 100 ms. What must arrive within five seconds has the rest for a new
/// connection.
pub const UNACKNOWLEDGED: Duration = Duration::from_secs(3);

/// Has the kernel end a connection that is not acknowledged for [`UNACKNOWLEDGED`].
///
/// # Errors
/// Where the kernel does not know the option.
pub fn end_unacknowledged(stream: &TcpStream) -> io::Result<()> {
    let milliseconds = u32::try_from(UNACKNOWLEDGED.as_millis()).unwrap_or(u32::MAX);
    Ok(setsockopt(stream, sockopt::TcpUserTimeout, &milliseconds)?)
}

/// A connection that stands as far as this end can tell.
pub struct Dialed {
    /// Calls over it.
    pub channel: Channel,
    /// Where it leads.
    pub address: SocketAddr,
    /// What the other end has against our certificate, which it may say after this end has shaken hands.
    pub objection: Objection,
}

/// TLS with one server, whichever its address.
struct Tls {
    connector: TlsConnector,
    name: ServerName<'static>,
    judge: Arc<Judge>,
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
    /// How its end is noticed.
    pub liveness: Liveness,
}

impl Dialer {
    /// Connects to one of the endpoints (`host:port`, the best first) that answers with the right certificate.
    /// Addresses that this machine has no route to come last.
    pub async fn connect(&self, endpoints: &[String]) -> Result<Dialed, DialError> {
        self.connect_by(&Names::default(), endpoints).await
    }

    /// The same with names that are resolved this way.
    pub async fn connect_by(&self, names: &Names, endpoints: &[String]) -> Result<Dialed, DialError> {
        let (mut addresses, mut failures) = (Vec::new(), Vec::new());
        let radio = self.liveness.radio().map(Arc::as_ref);
        for resolved in join_all(endpoints.iter().map(|endpoint| names.resolve(endpoint, radio))).await {
            match resolved {
                Ok(found) => addresses.extend(found),
                Err(error) => failures.push(error),
            }
        }
        let ordered = routed_first(addresses, |address| has_route(address, self.fwmark));
        let tls = self.tls().map_err(|error| DialError::Tls(error.to_string()))?;
        match race(ordered, |address| self.connect_address(address, &tls)).await {
            Ok(((channel, objection), address)) => Ok(Dialed { channel, address, objection }),
            Err(mut refused) => {
                if let Some(at) = refused.iter().position(|error| matches!(error, DialError::Tls(_))) {
                    return Err(refused.swap_remove(at));
                }
                failures.extend(refused);
                Err(DialError::of_all(failures))
            }
        }
    }

    /// TLS as it is spoken with all endpoints.
    fn tls(&self) -> Result<Tls, IdentityError> {
        let malformed = |error: &dyn std::error::Error| IdentityError::Certificate(error.to_string());
        let provider = Arc::new(ring::default_provider());
        let judge = Arc::new(Judge::new(&self.ca_pem, Arc::clone(&provider))?);
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| malformed(&error))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::<Judge>::clone(&judge));
        let mut config = match &self.proof {
            None => config.with_no_client_auth(),
            Some(proof) => {
                let (chain, key) =
                    (certificate::chain(&proof.chain_pem)?, SessionKey::from_pem(&proof.key_pem)?);
                config.with_client_auth_cert(chain, key.to_der()).map_err(|error| malformed(&error))?
            }
        };
        config.alpn_protocols = vec![HTTP2.to_vec()];
        let name = ServerName::try_from(self.server_name.clone()).map_err(|error| malformed(&error))?;
        Ok(Tls { connector: TlsConnector::from(Arc::new(config)), name, judge })
    }

    async fn connect_address(
        &self,
        address: SocketAddr,
        tls: &Tls,
    ) -> Result<(Channel, Objection), DialError> {
        let uri = |scheme: &str| {
            let uri = Uri::builder().scheme(scheme).authority(address.to_string()).path_and_query("/");
            uri.build().map_err(|error| DialError::Tls(error.to_string()))
        };
        // The connector below speaks TLS; the library would do so itself, with a verifier of its own.
        let channel = Endpoint::from(uri("http")?).origin(uri("https")?).connect_timeout(CONNECT);
        let channel = match self.liveness {
            Liveness::Pinged => channel
                .http2_keep_alive_interval(KEEPALIVE)
                .keep_alive_timeout(KEEPALIVE_ANSWER)
                .keep_alive_while_idle(true),
            Liveness::Quiet(_) => channel,
        };
        let (fwmark, radio) = (self.fwmark, self.liveness.radio().cloned());
        let is_quiet = radio.is_some();
        let (connector, name) = (tls.connector.clone(), tls.name.clone());
        let objection = Objection::default();
        let heard = objection.clone();
        let connector = tower::service_fn(move |_: Uri| {
            let (radio, connector, name) = (radio.clone(), connector.clone(), name.clone());
            let heard = heard.clone();
            async move {
                let count = move || {
                    if let Some(radio) = &radio {
                        radio.packet(Instant::now());
                    }
                };
                count();
                let stream = open(address, fwmark).await?;
                count();
                if is_quiet {
                    end_unacknowledged(&stream)?;
                }
                let stream = connector.connect(name, Tapped::new(stream, move |_| count())).await?;
                if stream.get_ref().1.alpn_protocol() != Some(HTTP2) {
                    return Err(io::Error::other("the other end does not speak HTTP/2"));
                }
                let heed = move |ended: Result<(), &io::Error>| {
                    if let Err(error) = ended {
                        heard.hear(error);
                    }
                };
                io::Result::Ok(TokioIo::new(Tapped::new(stream, heed)))
            }
        });
        match channel.connect_with_connector(connector).await {
            Ok(channel) => Ok((channel, objection)),
            Err(error) => Err(match tls.judge.skew() {
                Some(skew) => DialError::ClockSkew { endpoint: address.to_string(), skew },
                None => unreachable(&address.to_string(), &reason(&error)),
            }),
        }
    }
}

/// The addresses once each, those with a route first, otherwise in their order.
fn routed_first(addresses: Vec<SocketAddr>, has_route: impl Fn(SocketAddr) -> bool) -> Vec<SocketAddr> {
    let (mut routed, mut others) = (Vec::new(), Vec::new());
    for address in addresses {
        if routed.contains(&address) || others.contains(&address) {
            continue;
        }
        if has_route(address) { routed.push(address) } else { others.push(address) }
    }
    routed.append(&mut others);
    routed
}

/// Asks the kernel, which looks up the route when a datagram socket is connected; nothing is sent.
fn has_route(address: SocketAddr, fwmark: Option<u32>) -> bool {
    let any = if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let lookup = || -> io::Result<()> {
        let socket = UdpSocket::bind(SocketAddr::new(any, 0))?;
        if let Some(mark) = fwmark {
            setsockopt(&socket, sockopt::Mark, &mark)?;
        }
        socket.connect(address)
    };
    lookup().is_ok()
}

/// Attempts one address after the other, each as soon as the one before has failed or had its [`STAGGER`]. The first
/// that succeeds ends the others; a malformed TLS setup fails with all of them, and so at once.
async fn race<T, F>(
    addresses: Vec<SocketAddr>,
    attempt: impl Fn(SocketAddr) -> F,
) -> Result<(T, SocketAddr), Vec<DialError>>
where
    F: Future<Output = Result<T, DialError>>,
{
    let attempt = |address| {
        let attempt = attempt(address);
        async move { attempt.await.map(|connected| (connected, address)) }
    };
    let mut waiting = addresses.into_iter();
    let mut under_way: FuturesUnordered<_> = waiting.next().map(&attempt).into_iter().collect();
    let mut failures = Vec::new();
    loop {
        let ended = tokio::select! {
            ended = under_way.next() => ended,
            () = tokio::time::sleep(STAGGER), if waiting.len() > 0 => {
                under_way.extend(waiting.next().map(&attempt));
                continue;
            }
        };
        match ended {
            Some(Ok(connected)) => return Ok(connected),
            Some(Err(error)) => {
                let is_hopeless = matches!(error, DialError::Tls(_));
                failures.push(error);
                if is_hopeless {
                    return Err(failures);
                }
                under_way.extend(waiting.next().map(&attempt));
            }
            None => return Err(failures),
        }
    }
}

pub(super) async fn open(address: SocketAddr, fwmark: Option<u32>) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_nodelay(true)?;
    if let Some(mark) = fwmark {
        setsockopt(&socket, sockopt::Mark, &mark)?;
    }
    let connect = socket.connect(address);
    tokio::time::timeout(CONNECT, connect).await.map_err(|_| io::ErrorKind::TimedOut)?
}

/// The addresses of `host:port`, as the system resolves them. Where a name server is asked, `radio` counts that.
pub async fn resolve(endpoint: &str, radio: Option<&Radio>) -> Result<Vec<SocketAddr>, DialError> {
    let unresolved = |reason: String| DialError::Unresolved { endpoint: endpoint.to_owned(), reason };
    if let Ok(address) = endpoint.parse() {
        return Ok(vec![address]);
    }
    if let Some(radio) = radio {
        radio.packet(Instant::now());
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

#[cfg(test)]
mod tests {
    use tokio::time::{Instant, sleep};

    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    const V4: &str = "192.0.2.1:1";
    const V6: &str = "[2001:db8::1]:1";

    #[test]
    fn addresses_without_a_route_come_last_and_none_comes_twice() {
        let given = [V6, V4, V6, "192.0.2.2:1"].map(address).to_vec();
        let ordered = routed_first(given, |address| address.is_ipv4());
        assert_eq!(ordered, [V4, "192.0.2.2:1", V6].map(address));
    }

    #[test]
    fn the_kernel_knows_a_route_to_this_machine() {
        assert!(has_route(address("127.0.0.1:9"), None));
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_endpoint_costs_a_quarter_of_a_second() {
        let began = Instant::now();
        let connected = race([V6, V4].map(address).to_vec(), async |to: SocketAddr| {
            sleep(if to.is_ipv6() { CONNECT } else { Duration::from_millis(20) }).await;
            Ok(to.is_ipv4())
        });
        assert_eq!(connected.await.unwrap(), (true, address(V4)));
        assert_eq!(began.elapsed(), STAGGER + Duration::from_millis(20));
    }

    #[tokio::test(start_paused = true)]
    async fn the_better_endpoint_wins_when_it_is_only_slow() {
        let connected = race([V4, V6].map(address).to_vec(), async |_| {
            sleep(STAGGER * 2).await;
            Ok(())
        });
        assert_eq!(connected.await.unwrap().1, address(V4));
    }

    #[tokio::test(start_paused = true)]
    async fn an_endpoint_that_refuses_costs_nothing_and_each_is_named_with_its_own_reason() {
        let began = Instant::now();
        let refused = race([V4, V6].map(address).to_vec(), async |to: SocketAddr| {
            let reason = if to.is_ipv4() { "connection refused" } else { "network is unreachable" };
            Err::<(), _>(unreachable(&to.to_string(), reason))
        });
        let twice = unreachable(V4, "connection refused");
        let error = DialError::of_all(refused.await.unwrap_err().into_iter().chain([twice]).collect());
        assert_eq!(began.elapsed(), Duration::ZERO);
        assert_eq!(
            error.to_string(),
            "cannot reach 192.0.2.1:1: connection refused; cannot reach [2001:db8::1]:1: network is unreachable"
        );
        assert_eq!(error.category(), "GatewayUnreachable");
    }

    #[tokio::test(start_paused = true)]
    async fn a_malformed_setup_is_not_tried_elsewhere() {
        let refused =
            race([V4, V6].map(address).to_vec(), async |_| Err::<(), _>(DialError::Tls("no PEM".into())));
        assert_eq!(refused.await.unwrap_err().len(), 1);
    }

    #[test]
    fn without_endpoints_it_says_so() {
        assert_eq!(DialError::of_all(Vec::new()).to_string(), "no endpoint is known");
    }
}
