//! Carries out what the classifier wants to know of the NATs here.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Instant,
};

use super::{
    ledger::{Ledger, Read},
    sockets::{Arrival, FIRST_SOCKET, Sockets},
};
use crate::{
    client::network::default_router,
    entropy,
    nat::{
        Answer, Beat, Behaviour, Channel, Classifier, Experiment, Finding, Promotion, Timers, Vantage,
        wire::{self, BeatKey},
    },
};

/// The one that asks the router.
const ROUTER_SOCKET: u32 = u32::MAX;
/// NAT-PMP, RFC 6886.
const ROUTER_PORT: u16 = 5351;
const ROUTER_REQUEST: [u8; 2] = [0, 0];

/// One survey of one network.
pub(super) struct NatDiscovery {
    classifier: Classifier,
    source: IpAddr,
    /// What is sent to oneself.
    token: [u8; 16],
    seq: u64,
}

impl NatDiscovery {
    /// Begins. The first of `gateways` is where the tunnel goes.
    pub(super) fn new(now: Instant, source: IpAddr, gateways: &[SocketAddr]) -> Self {
        let vantage = |&address: &SocketAddr| Vantage { address, answers_from: Vec::new() };
        let classifier = Classifier::new(now, gateways.iter().map(vantage).collect());
        // Without randomness there is no tunnel either.
        let token = entropy::secret().map_or([0; 16], |token| *token);
        NatDiscovery { classifier, source, token, seq: 0 }
    }

    pub(super) fn behaviour(&self) -> Behaviour {
        self.classifier.behaviour()
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.classifier.poll_timeout()
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) {
        self.classifier.handle_timeout(now);
    }

    /// What the keeper's experiments have shown.
    pub(super) fn handle_promotion(&mut self, promotion: Promotion) {
        let two_class = match promotion {
            Promotion::Short | Promotion::Long => Finding::Yes,
            // That one exchange is enough does not say that there is but one lifetime.
            Promotion::None | Promotion::Unknown => Finding::Unknown,
        };
        self.classifier.handle_timers(Timers { two_class, ..Timers::default() });
    }

    /// Does what the classifier wants.
    pub(super) fn act(&mut self, key: &BeatKey, ledger: &mut Ledger, sockets: &mut Sockets) {
        while let Some(experiment) = self.classifier.poll_experiment() {
            match experiment {
                Experiment::Ask { socket, to, .. } => {
                    let number = FIRST_SOCKET + socket;
                    let Some(port) = sockets.port(number, to) else { continue };
                    self.seq += 1;
                    let beat = Beat { channel: Channel::Probe(number), seq: self.seq, wake: None };
                    let datagram = ledger.write(key, &beat, SocketAddr::new(self.source, port));
                    sockets.send(number, to, &datagram);
                }
                Experiment::Hairpin { socket, to } => {
                    let number = FIRST_SOCKET + socket;
                    if sockets.port(number, to).is_some() {
                        sockets.send(number, to, &self.token);
                    }
                }
                Experiment::AskRouter => {
                    let Some(router) = default_router() else { continue };
                    let to = SocketAddr::from((router, ROUTER_PORT));
                    if sockets.port(ROUTER_SOCKET, to).is_some() {
                        sockets.send(ROUTER_SOCKET, to, &ROUTER_REQUEST);
                    }
                }
                Experiment::Close { socket } => {
                    sockets.close(FIRST_SOCKET + socket);
                    ledger.close(Channel::Probe(FIRST_SOCKET + socket));
                }
            }
        }
        if self.classifier.is_done() {
            sockets.close(ROUTER_SOCKET);
        }
    }

    /// Takes what came to one of its sockets.
    pub(super) fn handle_arrival(
        &mut self,
        now: Instant,
        arrival: &Arrival,
        keys: &[BeatKey],
        ledger: &mut Ledger,
    ) {
        if arrival.socket == ROUTER_SOCKET {
            let is_router =
                default_router().is_some_and(|router| arrival.from == (router, ROUTER_PORT).into());
            if let Some(public) = public_address(&arrival.datagram).filter(|_| is_router) {
                self.classifier.handle_router(now, public.into());
            }
            return;
        }
        let socket = arrival.socket - FIRST_SOCKET;
        if arrival.datagram == self.token {
            return self.classifier.handle_hairpin(now, socket);
        }
        let Some(answer) = keys.iter().find_map(|key| wire::decode_answer(key, &arrival.datagram)) else {
            return;
        };
        let channel = Channel::Probe(arrival.socket);
        let local = ledger.local(channel);
        let read = ledger.read(channel, answer);
        if let (Some(local), Some((Read::Reply { reply, payload }, _))) = (local, read) {
            let answer = Answer { local, observed: reply.observed, payload };
            self.classifier.handle_answer(now, socket, arrival.from, answer);
        }
    }
}

/// A router's answer (RFC 6886, section 3.2): version 0, opcode 128, result 0, an epoch, the address.
fn public_address(answer: &[u8]) -> Option<Ipv4Addr> {
    let [0, 128, 0, 0, _, _, _, _, a, b, c, d] = *answer else { return None };
    Some(Ipv4Addr::new(a, b, c, d))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_routers_answer_is_one() {
        let answer = [0, 128, 0, 0, 0, 0, 0, 9, 203, 0, 113, 7];
        assert_eq!(public_address(&answer), Some(Ipv4Addr::new(203, 0, 113, 7)));
        for wrong in [&answer[..11], &[0, 128, 0, 2, 0, 0, 0, 9, 203, 0, 113, 7], &ROUTER_REQUEST] {
            assert_eq!(public_address(wrong), None);
        }
    }
}
