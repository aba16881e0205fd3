//! For tests and benches: strangers at a port, with connections that shake hands, begin calls and never end them. Each that is
//! sent away comes again.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::Request;
use rustls::{
    ClientConfig, DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, ring, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use tokio::{
    net::{TcpSocket, TcpStream},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_rustls::TlsConnector;

/// How long a stranger waits for a handshake, and before it comes again.
const PATIENCE: Duration = Duration::from_secs(15);
const AGAIN: Duration = Duration::from_millis(200);
/// What a call says of its message: as much as any may have.
const CLAIMED: u32 = 16 << 10;
/// What of it is sent. Sixteen of them fill a connection's first window.
const SENT: usize = 4000;

/// What strangers do.
#[derive(Debug, Clone, Copy)]
pub struct Conduct {
    /// The port.
    pub to: SocketAddr,
    /// The method that they begin to call, with its service.
    pub path: &'static str,
    /// Calls on each connection.
    pub calls: usize,
}

/// Strangers that are there until this is dropped.
#[derive(Debug)]
pub struct Strangers {
    _tasks: JoinSet<()>,
    counts: Arc<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    connections: AtomicU64,
    handshakes: AtomicU64,
    calls: AtomicU64,
}

/// Makes a socket that is bound to an address, in whichever namespace.
pub type Bind = dyn Fn(IpAddr) -> io::Result<TcpSocket> + Send + Sync;

impl Strangers {
    /// So many, from these addresses in turn. They are there at once.
    ///
    /// # Errors
    /// None that can come up.
    pub fn come(bind: &Arc<Bind>, from: &[IpAddr], count: usize, conduct: Conduct) -> io::Result<Self> {
        let (counts, connector) = (Arc::new(Counts::default()), connector()?);
        let mut tasks = JoinSet::new();
        for from in from.iter().cycle().take(count).copied() {
            let (bind, counts, connector) = (Arc::clone(bind), Arc::clone(&counts), connector.clone());
            tasks.spawn(Stranger { bind, from, conduct, connector, counts }.stay());
        }
        Ok(Self { _tasks: tasks, counts })
    }

    /// Connections, handshakes and calls that were begun so far.
    pub fn begun(&self) -> (u64, u64, u64) {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        (read(&self.counts.connections), read(&self.counts.handshakes), read(&self.counts.calls))
    }
}

struct Stranger {
    bind: Arc<Bind>,
    from: IpAddr,
    conduct: Conduct,
    connector: TlsConnector,
    counts: Arc<Counts>,
}

impl Stranger {
    async fn stay(self) {
        loop {
            // Whatever ends it, it comes again.
            let _ = self.visit().await;
            sleep(AGAIN).await;
        }
    }

    async fn visit(&self) -> io::Result<()> {
        let stream = self.connect().await?;
        self.counts.connections.fetch_add(1, Ordering::Relaxed);
        let name = ServerName::try_from("stranger.invalid").map_err(io::Error::other)?;
        let shaken = timeout(PATIENCE, self.connector.connect(name, stream)).await;
        let stream = shaken??;
        self.counts.handshakes.fetch_add(1, Ordering::Relaxed);
        let (sender, connection) = h2::client::handshake(stream).await.map_err(io::Error::other)?;
        let calls = async {
            let mut begun = Vec::new();
            for _ in 0..self.conduct.calls {
                let mut sender = sender.clone().ready().await?;
                let (answer, mut body) = sender.send_request(self.request()?, false)?;
                body.send_data(half_sent(), false)?;
                self.counts.calls.fetch_add(1, Ordering::Relaxed);
                begun.push((answer, body));
            }
            // Never ended, until the connection is.
            std::future::pending::<()>().await;
            drop(begun);
            Ok::<(), h2::Error>(())
        };
        tokio::select! {
            ended = connection => ended.map_err(io::Error::other),
            failed = calls => failed.map_err(io::Error::other),
        }
    }

    fn request(&self) -> Result<Request<()>, h2::Error> {
        let request = Request::post(format!("https://stranger.invalid{}", self.conduct.path))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(());
        request.map_err(|_| h2::Reason::INTERNAL_ERROR.into())
    }

    async fn connect(&self) -> io::Result<TcpStream> {
        let socket = (self.bind)(self.from)?;
        timeout(PATIENCE, socket.connect(self.conduct.to)).await?
    }
}

/// The beginning of a gRPC message.
fn half_sent() -> Bytes {
    let mut bytes = vec![0];
    bytes.extend(CLAIMED.to_be_bytes());
    bytes.resize(SENT, 0x0a);
    bytes.into()
}

fn connector() -> io::Result<TlsConnector> {
    let provider = Arc::new(ring::default_provider());
    let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(io::Error::other)?;
    let mut config = config
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody(provider)))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(TlsConnector::from(Arc::new(config)))
}

/// A stranger does not ask whom it calls.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("only TLS 1.3 is spoken".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
