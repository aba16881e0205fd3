//! Which namespaces the operator serves. Nothing is read or written elsewhere but its own.

use kube::{Api, Client, Resource, core::NamespaceResourceScope};

/// The namespaces that the operator serves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scope(Vec<String>);

impl Scope {
    /// Those that are named; all of them when none is.
    pub fn new(namespaces: Vec<String>) -> Self {
        Self(namespaces.into_iter().filter(|n| !n.is_empty()).collect())
    }

    /// Whether objects of the namespace are served.
    pub fn serves(&self, namespace: &str) -> bool {
        self.0.is_empty() || self.0.iter().any(|served| served == namespace)
    }

    /// Where to look for objects of a kind.
    pub(crate) fn apis<K>(&self, client: &Client) -> Vec<Api<K>>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        if self.0.is_empty() {
            return vec![Api::all(client.clone())];
        }
        self.0.iter().map(|namespace| Api::namespaced(client.clone(), namespace)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_namespaces_are_served_unless_some_are_named() {
        let named = |names: &[&str]| Scope::new(names.iter().map(|&n| n.to_owned()).collect());
        assert!(named(&[]).serves("vpn") && named(&[""]).serves("vpn"));
        assert!(named(&["ops", "vpn"]).serves("vpn"));
        assert!(!named(&["ops", "vpn"]).serves("web") && !named(&["vpn"]).serves("vpn-2"));
    }
}
