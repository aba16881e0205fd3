//! A userspace WireGuard like any other: a TUN device that `wg` and `wg-quick` configure over the standard socket.
//!
//! `configuration` decides what a change means for the tunnel, without touching it; `interface` does it.

mod configuration;
mod error;
mod interface;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

pub use error::WgError;

use self::interface::Interface;
use crate::{
    kernel::{RouteSocket, TunDevice, TunOffload},
    tunnel::{PrivateKey, Threads, Tunnel, TunnelEvent},
    uapi::Socket,
};

/// What fits a path of 1500 bytes over IPv6, as other implementations have it at first.
const MTU: u32 = 1420;
const EVENTS: usize = 256;

/// Runs a device of this name until `stop`, or until the device or its socket is removed. Calls `ready` once it
/// can be configured.
pub async fn run(
    name: &str,
    threads: Threads,
    ready: impl FnOnce(),
    stop: CancellationToken,
) -> Result<(), WgError> {
    // Before there is a device: one of this name with a living socket is somebody else's.
    let socket = Socket::open(name)?;
    let device = TunDevice::create_offloading(name, TunOffload::TcpAndUdp)?;
    let mut route = RouteSocket::open()?;
    route.set_mtu(device.index(), MTU)?;
    route.leave_out_link_local(device.index())?;
    let (sender, mut events) = mpsc::channel(EVENTS);
    let mut interface = Interface::new(Tunnel::start_on(device, PrivateKey::generate()?, threads, sender)?);
    let mut removal = socket.removal()?;
    let mut questions = socket.serve()?;
    tracing::debug!(device = name, "ready to be configured");
    ready();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            Ok(()) = &mut removal => {
                tracing::debug!(device = name, "the socket was removed");
                break;
            }
            Some(question) = questions.recv() => interface.answer(question),
            Some(event) = events.recv() => match event {
                TunnelEvent::Stopped { reason } => {
                    tracing::debug!(device = name, reason, "the device was removed");
                    break;
                }
                event => tracing::debug!(device = name, ?event),
            },
        }
    }
    Ok(())
}
