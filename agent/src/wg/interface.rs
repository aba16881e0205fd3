//! A device as `wg` sees it: its settings, and the tunnel that follows them.

use std::collections::HashMap;

use super::configuration::{Configuration, Plan};
use crate::{
    tunnel::{PeerStats, PublicKey, Tunnel, TunnelError},
    uapi::{Change, Device, HandshakeClock, Question, Refusal},
};

/// Settings and tunnel, always in step.
pub(super) struct Interface {
    tunnel: Tunnel,
    configuration: Configuration,
    handshakes: HandshakeClock,
}

impl Interface {
    /// A device without settings.
    pub(super) fn new(tunnel: Tunnel) -> Self {
        Self { tunnel, configuration: Configuration::default(), handshakes: HandshakeClock::default() }
    }

    /// Answers whoever asks. Who asked may be gone by then.
    pub(super) fn answer(&mut self, question: Question) {
        match question {
            Question::Get(answer) => {
                let _ = answer.send(self.device());
            }
            Question::Set(change, answer) => {
                let result = self.set(change).map_err(|error| {
                    tracing::error!(%error, category = error.category(), device = self.tunnel.name(), "not set");
                    match error {
                        TunnelError::PortInUse { .. } => Refusal::PortInUse,
                        _ => Refusal::Failed,
                    }
                });
                let _ = answer.send(result);
            }
        }
    }

    /// What may fail comes first, so that then nothing has changed.
    fn set(&mut self, change: Change) -> Result<(), TunnelError> {
        if let Some(port) = change.listen_port {
            self.tunnel.listen(port)?;
        }
        let Plan { fwmark, identity, renewed, endpoints, keepalives } = self.configuration.apply(change);
        if let Some(mark) = fwmark {
            self.tunnel.set_fwmark((mark != 0).then_some(mark))?;
        }
        if let Some(key) = identity {
            self.tunnel.set_private_key(&key);
        }
        let peers = self.configuration.tunnel_peers();
        if !renewed.is_empty() {
            let others = peers.iter().filter(|peer| !renewed.contains(&peer.public_key));
            self.tunnel.set_peers(others.cloned().collect());
        }
        self.tunnel.set_peers(peers);
        for (peer, endpoint) in endpoints {
            self.tunnel.set_endpoint(&peer, endpoint);
        }
        for (peer, interval) in keepalives {
            self.tunnel.set_persistent_keepalive(&peer, interval);
        }
        Ok(())
    }

    fn device(&mut self) -> Device {
        let stats: HashMap<PublicKey, PeerStats> =
            self.tunnel.stats().into_iter().map(|stats| (stats.public_key, stats)).collect();
        self.handshakes.retain(|peer| stats.contains_key(peer));
        let mut device = self.configuration.device(self.tunnel.local_port());
        for peer in &mut device.peers {
            if let Some(stats) = stats.get(&peer.public_key) {
                *peer = peer.clone().with_stats(stats, &mut self.handshakes);
            }
        }
        device
    }
}
