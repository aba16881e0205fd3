//! How connections of clients begin: TLS, and a name for those with a certificate.

use std::{io, sync::Arc, time::Duration};

use pinhole_reception::{Capacity, House, Residents, Welcome};
use tokio::net::TcpStream;
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
        let stream = TlsAcceptor::from(config).accept(stream).await?;
        let leaf = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let client = leaf.and_then(|leaf| certificate::client_of(leaf).ok());
        Ok((stream, client.map(|client| client.uid.into())))
    }
}
