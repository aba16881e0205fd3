use kube::{Api, Client, Resource, core::NamespaceResourceScope};

/// The namespaces that the operator serves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scope(Vec<String>);

impl Scope {
    /// Those that are named; all of them when none is.
    pub fn new(namespaces: Vec<String>) -> Self {
        Self(namespaces.into_iter().filter(|n| !n.is_empty()).collect())
    }

    /// Where to look for objects of a kind.
    pub(super) fn apis<K>(&self, client: &Client) -> Vec<Api<K>>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        if self.0.is_empty() {
            return vec![Api::all(client.clone())];
        }
        self.0.iter().map(|namespace| Api::namespaced(client.clone(), namespace)).collect()
    }
}
