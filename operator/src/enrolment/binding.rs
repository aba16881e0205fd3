//! What a client's renewals are bound to. Pure.

use std::fmt;

use kube::ResourceExt as _;
use pinhole_crds::VPNClient;
use rcgen::PublicKeyData as _;
use ring::digest::{Context, SHA256};

use super::PublicKey;
use crate::identity::RequestedKey;

/// Annotation of a VPNClient: the `SessionBinding` of its last enrolment.
pub const SESSION_ANNOTATION: &str = "pinhole.dev/session";

/// The WireGuard key that an enrolment proved to hold, and the session key that its first certificate is for: SHA-256 of both, cut
/// to 160 bits.
///
/// A certificate is renewed for this session key alone, for as long as the client has this WireGuard key. So neither a gateway, which
/// vouches for who asks, nor anybody who got hold of a connection turns the right to renew into a certificate for a key of his own.
/// Enrolling again writes another one: certificates from before are then not renewed any more, and end by themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SessionBinding([u8; 20]);

impl SessionBinding {
    /// Of a WireGuard key and the key of a certificate.
    pub(super) fn new(tunnel: &PublicKey, session: &RequestedKey) -> Self {
        let mut context = Context::new(&SHA256);
        context.update(tunnel.as_bytes());
        context.update(session.der_bytes());
        let mut hash = [0; 20];
        hash.iter_mut().zip(context.finish().as_ref()).for_each(|(to, from)| *to = *from);
        Self(hash)
    }

    /// Whether it is the one that the client was enrolled with.
    pub(super) fn is_of(&self, client: &VPNClient) -> bool {
        client.annotations().get(SESSION_ANNOTATION).is_some_and(|bound| *bound == self.to_string())
    }
}

impl fmt::Display for SessionBinding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}
