//! Names in certificates. The caller's identity decides them, never its request.

use std::collections::BTreeSet;

use pinhole_proto::{OPERATOR_SERVER_NAME, gateway_server_name};

/// Names of the operator's link service: the fixed one and those of its Service.
pub fn operator_names(namespace: &str, service: &str) -> Vec<String> {
    vec![
        OPERATOR_SERVER_NAME.to_owned(),
        service.to_owned(),
        format!("{service}.{namespace}"),
        format!("{service}.{namespace}.svc"),
        format!("{service}.{namespace}.svc.cluster.local"),
    ]
}

/// Names of a gateway's client session service: its own, and one for each of its pools, which is all that a
/// sidecar knows. In ascending order after the gateway's own.
pub fn gateway_names<'a>(
    namespace: &str,
    gateway: &str,
    pools: impl IntoIterator<Item = &'a str>,
) -> Vec<String> {
    let pools: BTreeSet<&str> = pools.into_iter().collect();
    let pool_names = pools.into_iter().map(|pool| format!("{pool}.{namespace}.pool.pinhole.dev"));
    std::iter::once(gateway_server_name(namespace, gateway)).chain(pool_names).collect()
}

/// The URI that a client's certificate carries: namespace, name and UID of its VPNClient.
pub fn client_uri(namespace: &str, name: &str, uid: &str) -> String {
    format!("pinhole://{namespace}/{name}/{uid}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gateway_is_named_after_itself_and_after_each_of_its_pools_once() {
        assert_eq!(
            gateway_names("vpn", "edge", ["staff", "boxes", "staff"]),
            ["edge.vpn.gateway.pinhole.dev", "boxes.vpn.pool.pinhole.dev", "staff.vpn.pool.pinhole.dev"]
        );
    }

    #[test]
    fn the_operator_is_found_by_its_fixed_name_and_by_its_service() {
        let names = operator_names("pinhole-system", "pinhole-operator");
        assert!(names.contains(&"operator.pinhole.dev".to_owned()));
        assert!(names.contains(&"pinhole-operator.pinhole-system.svc".to_owned()));
    }
}
