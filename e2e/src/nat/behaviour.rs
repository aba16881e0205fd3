//! Either kind of NAT.

use ipnet::Ipv4Net;

use super::{NatProfile, UserspaceProfile};

/// What a NAT is made of, and how it behaves.
#[derive(Debug, Clone, PartialEq)]
pub enum Behaviour {
    /// The kernel's.
    Netfilter(NatProfile),
    /// Ours, for what netfilter lacks, with a log of the truth.
    Userspace(Box<UserspaceProfile>),
}

impl Behaviour {
    /// Network on the inside.
    pub fn inside(&self) -> Ipv4Net {
        match self {
            Self::Netfilter(profile) => profile.inside,
            Self::Userspace(profile) => profile.inside,
        }
    }
}

impl From<NatProfile> for Behaviour {
    fn from(profile: NatProfile) -> Self {
        Self::Netfilter(profile)
    }
}

impl From<UserspaceProfile> for Behaviour {
    fn from(profile: UserspaceProfile) -> Self {
        Self::Userspace(Box::new(profile))
    }
}
