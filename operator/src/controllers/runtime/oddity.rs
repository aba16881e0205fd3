//! Objects of which something is not understood: read as far as they are, or held as they are. Pure.

use std::net::IpAddr;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use pinhole_crds::{Lenient, Raw, Reading, Unread, Unreadable};

use crate::fleet::GatewayKey;

/// What is not understood of an object.
#[derive(Clone, Debug)]
pub(crate) enum Oddity {
    /// Parts of it.
    Partly(Vec<Unread>),
    /// Too much to go by it, and it was not known before: what runs for it goes on as it is.
    Frozen(Box<Frozen>),
}

/// An object that is not understood.
#[derive(Clone, Debug)]
pub(crate) struct Frozen {
    /// What is read of it in any case.
    pub(crate) metadata: ObjectMeta,
    /// Why it is not understood.
    pub(crate) why: Unreadable,
    /// The gateway of a pool, if that can be told.
    pub(crate) gateway: Option<GatewayKey>,
    /// Addresses that a client's status says it holds.
    pub(crate) addresses: Vec<IpAddr>,
}

/// What became of an object.
pub(crate) enum Resolved<K> {
    /// To be gone by.
    Object(Box<K>, Vec<Unread>),
    /// The one that is known stays in force.
    Kept(Unreadable),
    /// There is nothing to go by.
    Frozen(Box<Frozen>),
}

/// Reads what a watch shows. `known` is what is in force under that name.
pub(crate) fn resolve<K: Lenient>(new: Raw<K>, known: Option<&K>) -> Resolved<K> {
    let known = known.filter(|known| known.meta().uid == new.meta().uid);
    let frozen = Frozen {
        metadata: new.meta().clone(),
        why: Unreadable { path: String::new(), why: String::new() },
        gateway: new
            .text("/spec/gatewayRef/name")
            .map(|name| GatewayKey::new(new.meta().namespace.clone().unwrap_or_default(), name)),
        addresses: new.list("/status/addresses"),
    };
    match (new.read(known), known) {
        (Ok(Reading { object, unread }), _) => Resolved::Object(Box::new(object), unread),
        (Err(why), Some(_)) => Resolved::Kept(why),
        (Err(why), None) => Resolved::Frozen(Box::new(Frozen { why, ..frozen })),
    }
}

impl Oddity {
    /// Of an object that is understood but for these parts. None: all of it is.
    pub(crate) fn partly(unread: Vec<Unread>) -> Option<Self> {
        (!unread.is_empty()).then_some(Self::Partly(unread))
    }

    /// Of an object whose last known version stays in force.
    pub(crate) fn kept(why: Unreadable) -> Self {
        Self::Partly(vec![Unread { path: why.path, why: why.why, kept: true }])
    }

    pub(crate) fn unread(&self) -> &[Unread] {
        if let Self::Partly(unread) = self { unread } else { &[] }
    }

    pub(crate) fn frozen(&self) -> Option<&Frozen> {
        if let Self::Frozen(frozen) = self { Some(frozen) } else { None }
    }
}

#[cfg(test)]
#[path = "oddity_tests.rs"]
mod tests;
