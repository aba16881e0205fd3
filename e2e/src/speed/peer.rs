//! Peers of a gateway whose other end is here: their part of a configuration, sockets, and handshakes.

use std::{
    net::{Ipv4Addr, UdpSocket},
    sync::Arc,
};

use boringtun::noise::{Tunn, TunnResult, rate_limiter::RateLimiter};

use super::{
    keys::{Key, key_text},
    pair::Pair,
};
use crate::error::{Doing, Error, Result};

/// Bytes of a handshake initiation.
pub(super) const INITIATION: usize = 148;
/// Where peers are: addresses that the near end routes to itself.
const FIRST: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);

/// The address of the `n`th peer.
pub(super) fn address(n: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(FIRST) + n)
}

/// What tells a gateway of a peer, and of its address in the tunnel.
pub(super) fn section(key: &Key, inner: Option<Ipv4Addr>) -> String {
    let allowed = inner.map(|inner| format!("AllowedIPs = {inner}/32\n")).unwrap_or_default();
    format!("[Peer]\nPublicKey = {}\n{allowed}", key_text(&key.public()))
}

/// Sockets towards the gateway, one from each of these addresses.
pub(super) fn sockets(
    pair: &Pair,
    addresses: impl Iterator<Item = Ipv4Addr> + Send,
) -> Result<Vec<UdpSocket>> {
    let open = |address| {
        let socket = UdpSocket::bind((address, 0))?;
        socket.connect(Pair::endpoint())?;
        Ok(socket)
    };
    let sockets: std::io::Result<Vec<UdpSocket>> =
        pair.near.netns().within(|| addresses.map(open).collect())?;
    sockets.doing(|| "opening sockets towards a gateway".to_owned())
}

/// The same, to be waited for.
pub(super) fn awaitable(socket: UdpSocket) -> Result<tokio::net::UdpSocket> {
    let socket = socket.set_nonblocking(true).and_then(|()| tokio::net::UdpSocket::from_std(socket));
    socket.doing(|| "waiting at a socket towards a gateway".to_owned())
}

/// This side of a peer.
pub(super) fn tunn(pair: &Pair, key: &Key, index: u32) -> Result<Tunn> {
    let gateway = pair.identity().ok_or_else(|| Error::Invalid("a cable has no peers".to_owned()))?;
    // Without one of its own it would refuse all answers but the first ten.
    let limiter = Arc::new(RateLimiter::new(&key.public(), u64::MAX));
    Ok(Tunn::new(key.secret().clone(), gateway, None, None, index, Some(limiter)))
}

/// The next initiation, with the proof of the last cookie that it heard.
pub(super) fn initiation(tunn: &mut Tunn) -> Result<[u8; INITIATION]> {
    let mut room = [0; INITIATION];
    match tunn.format_handshake_initiation(&mut room, true) {
        TunnResult::WriteToNetwork(message) if message.len() == INITIATION => Ok(room),
        _ => Err(Error::Invalid("boringtun makes no initiation".to_owned())),
    }
}
