//! How connections to the link begin, and how many there may be of whom.

use std::{io, sync::Arc, time::Duration};

use pinhole_reception::{Capacity, House, Residents, Welcome};
use rustls::ServerConfig;
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, server::TlsStream};

/// Without a proven token. Each costs up to about 150 KiB. Replicas prove theirs in their first call; a stay is as long as the
/// review of a token may take. Handshakes are what strangers that come again and again cost: as many a second as there are places.
const STRANGERS: Capacity = Capacity {
    inside: 64,
    inside_of_one: 8,
    waiting: 2048,
    waiting_of_one: 256,
    undisturbed: Duration::from_secs(1),
    longest_stay: Duration::from_secs(15),
    longest_wait: Duration::from_secs(10),
};
/// With one: more than there are replicas, as one that comes again has left its former connection behind.
const CONNECTIONS: usize = 8192;
const CONNECTIONS_OF_ONE: usize = 4;

/// Who may have how many connections. One that has proven its token is known by the UID of its pod.
pub(super) fn house() -> House {
    House { guests: STRANGERS, residents: Residents::new(CONNECTIONS, CONNECTIONS_OF_ONE) }
}

/// Shakes hands. Nobody is known by that.
#[derive(Clone)]
pub(super) struct Greeter(TlsAcceptor);

impl Greeter {
    pub(super) fn new(tls: ServerConfig) -> Self {
        Self(TlsAcceptor::from(Arc::new(tls)))
    }
}

impl Welcome for Greeter {
    type Stream = TlsStream<TcpStream>;

    async fn welcome(&self, stream: TcpStream) -> io::Result<(Self::Stream, Option<Arc<str>>)> {
        Ok((self.0.accept(stream).await?, None))
    }
}
