//! Proves that this gateway's data path works when no client does: a WireGuard peer of its own, in this process
//! but with a socket of its own, shakes hands with the gateway the way a client would.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use boringtun::noise::{Tunn, TunnResult};
use tokio::{net::UdpSocket, time::timeout};

use crate::{
    identity::dial::resolve,
    tunnel::{PrivateKey, PublicKey},
};

/// Time for one answer.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(800);
/// Initiations sent to one endpoint.
const TRIES: u32 = 2;
/// Larger than any handshake message.
const MESSAGE: usize = 256;

/// How a proof was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// Through an endpoint that clients use.
    PublishedEndpoint,
    /// Through the address of the pod only.
    PodAddress,
}

/// The peer. Its key lives as long as the process.
#[derive(Debug, Clone)]
pub(super) struct Prober {
    key: PrivateKey,
    gateway: PublicKey,
}

impl Prober {
    /// A prober of the gateway with this public key.
    pub(super) fn new(key: PrivateKey, gateway: PublicKey) -> Self {
        Prober { key, gateway }
    }

    /// As which peer the gateway must know it. It needs no address.
    pub(super) fn public_key(&self) -> PublicKey {
        self.key.public()
    }

    /// Shakes hands through the first published endpoint that answers, else through the pod's address. `None`
    /// when neither does.
    pub(super) async fn prove(&self, published: &[String], pod: SocketAddr) -> Option<Way> {
        for endpoint in published {
            for address in resolve(endpoint, None).await.unwrap_or_default() {
                if self.shake_hands(address).await {
                    return Some(Way::PublishedEndpoint);
                }
            }
        }
        self.shake_hands(pod).await.then_some(Way::PodAddress)
    }

    async fn shake_hands(&self, gateway: SocketAddr) -> bool {
        let unspecified: SocketAddr = match gateway {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let Ok(socket) = UdpSocket::bind(unspecified).await else { return false };
        if socket.connect(gateway).await.is_err() {
            return false;
        }
        let secret = self.key.secret().clone();
        let mut tunn = Tunn::new(secret, self.gateway.to_x25519(), None, None, 0, None);
        for _ in 0..TRIES {
            let mut message = [0; MESSAGE];
            let TunnResult::WriteToNetwork(initiation) = tunn.format_handshake_initiation(&mut message, true)
            else {
                return false;
            };
            if socket.send(initiation).await.is_err() {
                return false;
            }
            if timeout(ANSWER_TIMEOUT, answered(&socket, &mut tunn)).await == Ok(true) {
                return true;
            }
        }
        false
    }
}

/// Waits for the gateway's authenticated response, and finishes the handshake as a client does.
async fn answered(socket: &UdpSocket, tunn: &mut Tunn) -> bool {
    let (mut datagram, mut message) = ([0; MESSAGE], [0; MESSAGE]);
    loop {
        // A datagram that is larger than the buffer is cut by the kernel, and then no handshake message.
        let Ok(length) = socket.recv(&mut datagram).await else { return false };
        let Some(datagram) = datagram.get(..length) else { return false };
        if let TunnResult::WriteToNetwork(confirmation) = tunn.decapsulate(None, datagram, &mut message) {
            // Four zero bytes after the type 4: a data message, so the session stands.
            let established = confirmation.starts_with(&[4, 0, 0, 0]);
            let _ = socket.send(confirmation).await;
            if established {
                return true;
            }
        }
    }
}
