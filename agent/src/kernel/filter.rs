//! Keeps from the tunnel's clients what they did not ask for, and from this host what they may not ask, by an nftables table of
//! our own. Where else they may go the tunnel itself decides.

use super::{
    KernelError,
    netlink::Attributes,
    nftables::{self, Chain, Hook, Is},
};

/// `NF_INET_LOCAL_IN` at `NF_IP_PRI_FILTER`.
const INPUT: Hook = Hook { number: 1, priority: 0, kind: "filter" };
/// `NF_INET_FORWARD` at `NF_IP_PRI_FILTER`.
const FORWARD: Hook = Hook { number: 2, priority: 0, kind: "filter" };
/// Protocol and type of an echo request (RFC 792, RFC 4443).
const ECHO_V4: (u8, u8) = (1, 8);
const ECHO_V6: (u8, u8) = (58, 128);

/// Of what others send to clients only answers get through, and errors about what clients sent. Of what clients send to this
/// host only echo requests do, and answers: no port of it is open to them, by whichever address. What this host itself sends is
/// left alone, as is what the tunnel sends back into the tunnel. Both families.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TunnelFilter {
    /// Name of the nftables table, of family `inet`.
    pub table: String,
    /// The tunnel's device, which need not be there yet.
    pub tunnel_device: String,
}

impl TunnelFilter {
    /// Makes the table exactly this, in one step.
    pub fn install(&self) -> Result<(), KernelError> {
        let input = Chain { name: "input", hook: INPUT, rules: self.input() };
        let forward = Chain { name: "forward", hook: FORWARD, rules: vec![self.unasked()] };
        nftables::replace("filter what the tunnel carries (nftables)", &self.table, &[input, forward])
    }

    /// Removes the table. One that is gone already is no error.
    pub fn remove(&self) -> Result<(), KernelError> {
        nftables::remove("remove the tunnel's filter (nftables)", &self.table)
    }

    fn input(&self) -> Vec<Vec<Attributes>> {
        let from_tunnel = || Vec::from(nftables::input_device(Is::The, &self.tunnel_device));
        let accepting = |what: &[Attributes]| [&from_tunnel(), what, &[nftables::accept()]].concat();
        let echo = |(protocol, kind)| accepting(&nftables::message_kind(protocol, kind));
        let rest = [from_tunnel(), nftables::drop_counted().into()].concat();
        vec![accepting(&nftables::of_known_flow(Is::The)), echo(ECHO_V4), echo(ECHO_V6), rest]
    }

    fn unasked(&self) -> Vec<Attributes> {
        let mut rule = Vec::from(nftables::output_device(Is::The, &self.tunnel_device));
        rule.extend(nftables::input_device(Is::Not, &self.tunnel_device));
        rule.extend(nftables::of_known_flow(Is::Not));
        rule.extend(nftables::drop_counted());
        rule
    }
}
