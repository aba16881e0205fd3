//! Services of a gateway and of a pool's sidecars.

use k8s_openapi::{
    api::core::v1::{Service, ServicePort, ServiceSpec},
    apimachinery::pkg::util::intstr::IntOrString,
};
use kube::ResourceExt as _;
use pinhole_crds::{ExposureType, VPNClientPool, VPNGateway};

use super::name::{
    POD_NAME_LABEL, POOL_OBJECT_LABEL, gateway_labels, join_service, labels, owned, replica_names, selector,
};

/// Name of the tunnel's port in Services and pods.
pub(super) const TUNNEL_PORT: &str = "tunnel";

/// Name of the session's port in Services and pods.
pub(super) const SESSION_PORT: &str = "session";

/// Port at which a pool's sidecars enrol.
const JOIN_PORT: u16 = 443;

/// The headless Service that names the pods, and those of each replica.
pub(super) fn gateway_services(gateway: &VPNGateway) -> Vec<Service> {
    let mut services = vec![headless(gateway)];
    services.extend(replica_names(gateway).into_iter().flat_map(|name| for_replica(gateway, &name)));
    services
}

/// Names of the Services by which clients reach the gateway's replicas.
pub fn replica_services(gateway: &VPNGateway) -> Vec<String> {
    let of_replica = |replica: String| {
        let session = session_service(gateway, &replica);
        let further = (session != replica).then_some(session);
        [Some(replica), further].into_iter().flatten()
    };
    replica_names(gateway).into_iter().flat_map(of_replica).collect()
}

/// Name of the Service that has the replica's session: the tunnel's too, unless each protocol has one of its own.
pub fn session_service(gateway: &VPNGateway, replica: &str) -> String {
    if gateway.spec.exposure.service_per_protocol == Some(true) {
        format!("{replica}-session")
    } else {
        replica.to_owned()
    }
}

/// The Service at which sidecars of `pool` find any replica of its gateway.
pub(super) fn join(pool: &VPNClientPool) -> Service {
    let gateway = &pool.spec.gateway_ref.name;
    let mut all = gateway_labels(gateway);
    all.extend(labels([(POOL_OBJECT_LABEL, &pool.name_any())]));
    Service {
        metadata: owned(pool, join_service(&pool.name_any()), all),
        spec: Some(ServiceSpec {
            type_: Some("ClusterIP".into()),
            selector: Some(selector(gateway)),
            ports: Some(vec![port(SESSION_PORT, "TCP", JOIN_PORT, None)]),
            // A gateway is not Ready before somebody reached it.
            publish_not_ready_addresses: Some(true),
            ip_family_policy: Some("PreferDualStack".into()),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

fn headless(gateway: &VPNGateway) -> Service {
    let name = gateway.name_any();
    Service {
        metadata: owned(gateway, name.clone(), gateway_labels(&name)),
        spec: Some(ServiceSpec {
            cluster_ip: Some("None".into()),
            selector: Some(selector(&name)),
            ports: Some(vec![port(SESSION_PORT, "TCP", gateway.spec.session_port(), None)]),
            publish_not_ready_addresses: Some(true),
            ip_family_policy: Some("PreferDualStack".into()),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

fn for_replica(gateway: &VPNGateway, replica: &str) -> Vec<Service> {
    let fixed = gateway.spec.exposure.node_ports.as_ref();
    let tunnel = port(TUNNEL_PORT, "UDP", gateway.spec.tunnel_port(), fixed.map(|f| f.tunnel));
    let session = port(SESSION_PORT, "TCP", gateway.spec.session_port(), fixed.map(|f| f.session));
    let of_session = session_service(gateway, replica);
    if of_session == replica {
        vec![outer(gateway, replica, of_session, vec![tunnel, session])]
    } else {
        vec![
            outer(gateway, replica, replica.to_owned(), vec![tunnel]),
            outer(gateway, replica, of_session, vec![session]),
        ]
    }
}

/// A Service by which clients outside of the cluster reach the replica.
fn outer(gateway: &VPNGateway, replica: &str, name: String, ports: Vec<ServicePort>) -> Service {
    let exposure = &gateway.spec.exposure;
    let (type_, outside) = match exposure.type_ {
        ExposureType::LoadBalancer => ("LoadBalancer", true),
        ExposureType::NodePort => ("NodePort", true),
        ExposureType::HostPort => ("ClusterIP", false),
    };
    let mut select = selector(&gateway.name_any());
    select.extend(labels([(POD_NAME_LABEL, replica)]));
    let mut metadata = owned(gateway, name, gateway_labels(&gateway.name_any()));
    metadata.annotations = Some(exposure.annotations.clone()).filter(|a| !a.is_empty());
    Service {
        metadata,
        spec: Some(ServiceSpec {
            type_: Some(type_.into()),
            selector: Some(select),
            ports: Some(ports),
            // Clients' own addresses must arrive: without them no NAT can be told from another.
            external_traffic_policy: outside.then(|| "Local".into()),
            load_balancer_class: exposure.load_balancer_class.clone(),
            publish_not_ready_addresses: Some(true),
            ip_family_policy: Some("PreferDualStack".into()),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

fn port(name: &str, protocol: &str, port: u16, node_port: Option<u16>) -> ServicePort {
    ServicePort {
        name: Some(name.into()),
        protocol: Some(protocol.into()),
        port: port.into(),
        target_port: Some(IntOrString::String(name.into())),
        node_port: node_port.map(Into::into),
        ..ServicePort::default()
    }
}
