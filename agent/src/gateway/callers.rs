//! How connections of clients begin: TLS, and a name for those with a certificate.

use std::{io, sync::Arc, time::Duration};

use pinhole_reception::{Capacity, House, Residents, Welcome};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::tls::ServerTls;
use crate::identity::{certificate, dial::end_unacknowledged};

/// Without a certificate. Each costs up to about 150 KiB. As many clients behind one NAT can enrol at a time as one source may
/// have; a stay is as long as an enrolment can take while the operator is away. Who is alone at its address is hardly ever
/// disturbed, as the place of somebody in a crowd is given away first.
const GUESTS: Capacity = Capacity {
    inside: 128,
    inside_of_one: 32,
    waiting: 4096,
    waiting_of_one: 1024,
    undisturbed: Duration::from_secs(1),
    longest_stay: Duration::from_secs(30),
    longest_wait: Duration::from_secs(10),
};
/// With one: 10 000 clients that have a session, and a few connections more while they move or try how long one lives.
const CONNECTIONS: usize = 32_768;
/// Those of one client. It has a session and tries another connection, and has left some behind where it was before.
const CONNECTIONS_OF_ONE: usize = 8;

/// How long who is refused has to read why.
const FAREWELL: Duration = Duration::from_secs(1);
/// Bytes that it may say meanwhile: a client has sent its first call already.
const LAST_WORDS: u64 = 64 << 10;

/// Ends a connection so that what was told last, the alert of TLS, arrives: a socket that is closed before all is read resets
/// the connection, and the other end may meet that first.
async fn see_off(mut stream: TcpStream) -> io::Result<()> {
    stream.shutdown().await?;
    tokio::io::copy(&mut stream.take(LAST_WORDS), &mut tokio::io::sink()).await?;
    Ok(())
}

/// Who may have how many connections.
pub(super) fn house() -> House {
    House { guests: GUESTS, residents: Residents::new(CONNECTIONS, CONNECTIONS_OF_ONE) }
}

/// Shakes hands as a gateway does.
#[derive(Clone)]
pub(super) struct Greeter(pub(super) Arc<ServerTls>);

impl Welcome for Greeter {
    type Stream = TlsStream<TcpStream>;

    async fn welcome(&self, stream: TcpStream) -> io::Result<(Self::Stream, Option<Arc<str>>)> {
        let config = self.0.current().ok_or(io::ErrorKind::NotConnected)?;
        // Nothing asks whether an idle session lives. One that takes nothing any more ends, so that what it was told and
        // did not hear can be told otherwise.
        if let Err(error) = end_unacknowledged(&stream) {
            tracing::debug!(%error, "a session that is gone is noticed late");
        }
        let stream = match TlsAcceptor::from(config).accept(stream).into_fallible().await {
            Ok(stream) => stream,
            Err((error, stream)) => {
                let _ = timeout(FAREWELL, see_off(stream)).await;
                return Err(error);
            }
        };
        let leaf = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let client = leaf.and_then(|leaf| certificate::client_of(leaf).ok());
        Ok((stream, client.map(|client| client.uid.into())))
    }
}

#[cfg(test)]
mod tests {
    use std::{net::SocketAddr, time::SystemTime};

    use futures::StreamExt as _;
    use pinhole_proto::v1;
    use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};

    use super::*;
    use crate::{
        gateway::tls::server_config,
        identity::{
            SessionKey,
            dial::{Dialer, Liveness, Proof},
        },
    };

    const NAME: &str = "edge.branch.gateway.pinhole.dev";
    const DAY: Duration = Duration::from_hours(24);

    struct Authority(Issuer<'static, KeyPair>, String);

    impl Authority {
        fn new() -> Self {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::default();
            params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
            let pem = params.self_signed(&key).unwrap().pem();
            Self(Issuer::new(params, key), pem)
        }

        fn proof(&self, usage: ExtendedKeyUsagePurpose, ends: SystemTime) -> Proof {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::new(vec![NAME.to_owned()]).unwrap();
            params.not_before = (ends - DAY).into();
            params.not_after = ends.into();
            params.extended_key_usages = vec![usage];
            let chain_pem = params.signed_by(&key, &self.0).unwrap().pem();
            Proof { chain_pem, key_pem: key.serialize_pem().into() }
        }
    }

    fn gateway(authority: &Authority) -> SocketAddr {
        let proof = authority.proof(ExtendedKeyUsagePurpose::ServerAuth, SystemTime::now() + DAY / 2);
        let tls = ServerTls::default();
        let key = SessionKey::from_pem(&proof.key_pem).unwrap();
        tls.set(server_config(&key, &proof.chain_pem, &authority.1).unwrap());
        let listener = pinhole_reception::bind(([127, 0, 0, 1], 0).into()).unwrap();
        let address = listener.local_addr().unwrap();
        let mut connections = Box::pin(pinhole_reception::receive(listener, house(), Greeter(Arc::new(tls))));
        tokio::spawn(async move {
            while let Some(connection) = connections.next().await {
                drop(connection);
            }
        });
        address
    }

    /// A machine that was off for longer than its certificate lives, with a clock that says otherwise: only the gateway can tell it.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn whose_certificate_is_over_hears_of_it_every_time() {
        let authority = Authority::new();
        let address = gateway(&authority).to_string();
        let ended = authority.proof(ExtendedKeyUsagePurpose::ClientAuth, SystemTime::now() - DAY);
        let mut unheard = 0;
        for _ in 0..300 {
            let dialer = Dialer {
                server_name: NAME.to_owned(),
                ca_pem: authority.1.clone(),
                proof: Some(ended.clone()),
                fwmark: None,
                liveness: Liveness::Pinged,
            };
            let Ok(gateway) = dialer.connect(std::slice::from_ref(&address)).await else {
                unheard += 1;
                continue;
            };
            let mut client = v1::client_session_client::ClientSessionClient::new(gateway.channel);
            let refused = client.challenge(v1::ChallengeRequest {}).await.unwrap_err();
            if !gateway.objection.is_expired() {
                eprintln!("{refused:?}");
                unheard += 1;
            }
        }
        assert_eq!(unheard, 0, "of 300");
    }
}
