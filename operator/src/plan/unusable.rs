//! What of a spec cannot be handed on. Objects that were written before the schema forbade it may hold such a thing: it
//! is left out and said, and the rest is in force.

use pinhole_crds::{ExposureType, PARTIALLY_INVALID, Unread, VPNClientPool, VPNGateway};
use pinhole_proto::{DomainName, Host, parted, quoted};

use super::condition::Conditions;

/// Texts of one field that are left out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// Search domains of a pool.
    #[error(
        "spec.dns.search: {} is no domain name, and is left out: write each as svc.cluster.local", quoted(.0)
    )]
    SearchDomains(Vec<String>),
    /// Addresses that a gateway's clients are told.
    #[error(
        "spec.exposure.addresses: {} is neither an address nor a domain name, and is left out: write each as \
         192.0.2.1, 2001:db8::1 or vpn.example.org", quoted(.0)
    )]
    ExposureAddresses(Vec<String>),
    /// Hosts that would lead to several replicas, of which each has a key of its own.
    #[error(
        "spec.exposure.addresses: {} cannot lead to {} replicas on the same ports, and is that of the first alone: set \
         replicas to 1, use type NodePort, or make a VPNGateway for each address", .0.join(", "), .1
    )]
    SharedAddresses(Vec<String>, i32),
    /// Fields that this version of the operator does not understand.
    #[error(
        "{}: this operator is older than that, or somebody wrote past the schema: upgrade the operator, or write what \
         its version knows (`kubectl explain`)", told(.0)
    )]
    Fields(Vec<Unread>),
    /// A pool that has clients, and of which too little is understood, and too little was written down, to go by it.
    #[error(
        "VPNClientPool {0} is not understood, its status.inForce does not say how it was before, and it is or may be one of this \
         gateway's: so that none of its clients is cut off, the gateway goes on with what it was told last, and hears of no change \
         to any pool or client; upgrade the operator, or change that pool"
    )]
    Pool(String),
}

impl Unusable {
    /// The reason's name, for conditions and events.
    pub fn category(&self) -> &'static str {
        match self {
            Self::SearchDomains(_) => "SearchDomainInvalid",
            Self::ExposureAddresses(_) => "ExposureAddressInvalid",
            Self::SharedAddresses(..) => "ExposureAddressShared",
            Self::Fields(_) => "FieldNotUnderstood",
            Self::Pool(_) => "PoolNotUnderstood",
        }
    }

    /// Says so in a status.
    pub(super) fn tell(&self, conditions: &mut Conditions<'_>) {
        conditions.set(PARTIALLY_INVALID, Some(true), self.category(), &self.to_string());
    }
}

/// What of a spec is not understood.
pub fn fields(unread: &[Unread]) -> Option<Unusable> {
    let of_spec: Vec<Unread> = unread.iter().filter(|unread| unread.is_of_spec()).cloned().collect();
    (!of_spec.is_empty()).then_some(Unusable::Fields(of_spec))
}

/// Of a gateway that is held by a pool which is not understood at all.
pub(super) fn pool(frozen: Option<&str>) -> Option<Unusable> {
    frozen.map(|name| Unusable::Pool(name.to_owned()))
}

/// What is not understood, and what is in force in its place.
fn told(unread: &[Unread]) -> String {
    let one = |u: &Unread| {
        let instead = if u.kept { "stays as it was" } else { "is left out" };
        format!("{} is not understood ({}) and {instead}", u.path, u.why)
    };
    unread.iter().map(one).collect::<Vec<_>>().join("; ")
}

/// The pool's search domains, and those that are none.
pub fn search_domains(pool: &VPNClientPool) -> (Vec<DomainName>, Option<Unusable>) {
    let dns = pool.spec.dns.as_ref();
    let (good, bad) = parted(dns.map(|dns| dns.search.as_slice()).unwrap_or_default());
    (good, bad.map(Unusable::SearchDomains))
}

/// The hosts that the gateway's user wants clients to be told, and those that are none.
pub fn exposure_hosts(gateway: &VPNGateway) -> (Vec<Host>, Option<Unusable>) {
    let (good, bad) = parted(&gateway.spec.exposure.addresses);
    (good, bad.map(Unusable::ExposureAddresses))
}

/// What of the gateway's exposure is not in force.
pub fn exposure(gateway: &VPNGateway) -> Option<Unusable> {
    let (hosts, unusable) = exposure_hosts(gateway);
    let replicas = gateway.spec.replicas_or_default();
    let shared = replicas > 1 && gateway.spec.exposure.type_ != ExposureType::NodePort && !hosts.is_empty();
    let shared =
        shared.then(|| Unusable::SharedAddresses(hosts.iter().map(ToString::to_string).collect(), replicas));
    unusable.or(shared)
}
