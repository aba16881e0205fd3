//! Names of gateways, pools and clients, none of which can be taken for another's.

use std::fmt;

use kube::{Resource, ResourceExt as _};
use pinhole_crds::{VPNClient, VPNClientPool, VPNGateway};
use pinhole_proto::v1::ObjectRef;

macro_rules! namespaced_key {
    ($(#[$doc:meta])* $name:ident, $kind:ty) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name {
            /// Namespace of the object.
            pub namespace: String,
            /// Name of the object.
            pub name: String,
        }

        impl $name {
            /// The key of `name` in `namespace`.
            pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
                Self { namespace: namespace.into(), name: name.into() }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}/{}", self.namespace, self.name)
            }
        }

        impl From<&$kind> for $name {
            fn from(object: &$kind) -> Self {
                Self::new(object.namespace().unwrap_or_default(), object.name_any())
            }
        }

        impl From<&ObjectRef> for $name {
            fn from(object: &ObjectRef) -> Self {
                Self::new(object.namespace.clone(), object.name.clone())
            }
        }
    };
}

namespaced_key! {
    /// A `VPNGateway`.
    GatewayKey, VPNGateway
}
namespaced_key! {
    /// A `VPNClientPool`.
    PoolKey, VPNClientPool
}
namespaced_key! {
    /// A `VPNClient`.
    ClientKey, VPNClient
}

/// The reference to `object` that is spoken on the wire, pinned to its incarnation.
pub fn object_ref<K: Resource>(object: &K) -> ObjectRef {
    let meta = object.meta();
    ObjectRef {
        namespace: meta.namespace.clone().unwrap_or_default(),
        name: meta.name.clone().unwrap_or_default(),
        uid: meta.uid.clone().unwrap_or_default(),
    }
}
