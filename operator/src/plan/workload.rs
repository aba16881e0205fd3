//! A gateway's StatefulSet and what belongs to its pods.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::{
        apps::v1::{StatefulSet, StatefulSetSpec},
        core::v1::{
            Affinity, Capabilities, ConfigMap, ConfigMapVolumeSource, Container, ContainerPort,
            EmptyDirVolumeSource, EnvVar, EnvVarSource, HTTPGetAction, HostPathVolumeSource,
            ObjectFieldSelector, PodAffinityTerm, PodAntiAffinity, PodSecurityContext, PodSpec,
            PodTemplateSpec, Probe, ProjectedVolumeSource, SeccompProfile, SecretVolumeSource,
            SecurityContext, ServiceAccount, ServiceAccountTokenProjection, Sysctl, Volume, VolumeMount,
            VolumeProjection, WeightedPodAffinityTerm,
        },
        policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec},
    },
    apimachinery::pkg::{apis::meta::v1::ObjectMeta, util::intstr::IntOrString},
};
use kube::ResourceExt as _;
use pinhole_crds::{ExposureType, GatewayPod, VPNGateway};
use pinhole_proto::OPERATOR_AUDIENCE;

use super::{
    name::{ca_config_map, gateway_labels, keys_secret, match_labels, owned, selector},
    service::{SESSION_PORT, TUNNEL_PORT},
    settings::Settings,
};

/// UDP port that the agent listens on inside of its pod.
pub(super) const POD_TUNNEL_PORT: i32 = 51820;
/// TCP port of the session service inside of the pod.
pub(super) const POD_SESSION_PORT: i32 = 51821;
/// TCP port of health and metrics inside of the pod.
pub(super) const POD_HEALTH_PORT: i32 = 9090;

const KEYS_DIR: &str = "/etc/pinhole/keys";
const CA_DIR: &str = "/etc/pinhole/ca";
const TOKEN_DIR: &str = "/var/run/secrets/pinhole";
const STATE_DIR: &str = "/var/lib/pinhole";
/// Where `wg` looks for sockets.
const WG_DIR: &str = "/var/run/wireguard";
const TUN: &str = "/dev/net/tun";

/// Kubelets renew a projected token at 80 % of this, seconds.
const TOKEN_SECONDS: i64 = 600;

/// The trust bundle, where the pods mount it.
pub(super) fn ca(gateway: &VPNGateway, bundle_pem: &str) -> ConfigMap {
    let name = gateway.name_any();
    ConfigMap {
        metadata: owned(gateway, ca_config_map(&name), gateway_labels(&name)),
        data: Some(BTreeMap::from([("ca.crt".to_owned(), bundle_pem.to_owned())])),
        ..ConfigMap::default()
    }
}

/// The pods' identity towards the operator. It needs no right in the API, hence no Role.
pub(super) fn service_account(gateway: &VPNGateway) -> ServiceAccount {
    let name = gateway.name_any();
    ServiceAccount {
        metadata: owned(gateway, name.clone(), gateway_labels(&name)),
        automount_service_account_token: Some(false),
        ..ServiceAccount::default()
    }
}

/// At most one replica is taken away at a time by drains.
pub(super) fn disruption_budget(gateway: &VPNGateway) -> PodDisruptionBudget {
    let name = gateway.name_any();
    PodDisruptionBudget {
        metadata: owned(gateway, name.clone(), gateway_labels(&name)),
        spec: Some(PodDisruptionBudgetSpec {
            max_unavailable: Some(IntOrString::Int(1)),
            selector: Some(match_labels(selector(&name))),
            // A pod that is not Ready for want of a proof must not block a drain.
            unhealthy_pod_eviction_policy: Some("AlwaysAllow".into()),
            ..PodDisruptionBudgetSpec::default()
        }),
        ..PodDisruptionBudget::default()
    }
}

/// The pods.
pub(super) fn stateful_set(gateway: &VPNGateway, settings: &Settings) -> StatefulSet {
    let name = gateway.name_any();
    let default = GatewayPod::default();
    let knobs = gateway.spec.pod.as_ref().unwrap_or(&default);
    let mut pod_labels = knobs.labels.clone();
    pod_labels.extend(gateway_labels(&name));
    StatefulSet {
        metadata: owned(gateway, name.clone(), gateway_labels(&name)),
        spec: Some(StatefulSetSpec {
            replicas: Some(gateway.spec.replicas_or_default()),
            service_name: Some(name.clone()),
            pod_management_policy: Some("Parallel".into()),
            selector: match_labels(selector(&name)),
            template: PodTemplateSpec {
                metadata: Some(ObjectMeta {
                    labels: Some(pod_labels),
                    annotations: Some(knobs.annotations.clone()).filter(|a| !a.is_empty()),
                    ..ObjectMeta::default()
                }),
                spec: Some(pod(gateway, knobs, settings)),
            },
            ..StatefulSetSpec::default()
        }),
        ..StatefulSet::default()
    }
}

fn pod(gateway: &VPNGateway, knobs: &GatewayPod, settings: &Settings) -> PodSpec {
    let name = gateway.name_any();
    PodSpec {
        service_account_name: Some(name.clone()),
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        termination_grace_period_seconds: Some(10),
        node_selector: Some(knobs.node_selector.clone()).filter(|s| !s.is_empty()),
        tolerations: Some(knobs.tolerations.clone()).filter(|t| !t.is_empty()),
        priority_class_name: knobs.priority_class_name.clone(),
        affinity: Some(knobs.affinity.clone().unwrap_or_else(|| spread(gateway))),
        security_context: Some(PodSecurityContext {
            seccomp_profile: Some(SeccompProfile {
                type_: "RuntimeDefault".into(),
                ..SeccompProfile::default()
            }),
            sysctls: (knobs.ipv6_forwarding == Some(true))
                .then(|| vec![Sysctl { name: "net.ipv6.conf.all.forwarding".into(), value: "1".into() }]),
            ..PodSecurityContext::default()
        }),
        containers: vec![container(gateway, knobs, settings)],
        volumes: Some(volumes(&name)),
        ..PodSpec::default()
    }
}

/// Replicas on different nodes: where they must, because two cannot share a host port, else where they can.
fn spread(gateway: &VPNGateway) -> Affinity {
    let term = PodAffinityTerm {
        label_selector: Some(match_labels(selector(&gateway.name_any()))),
        topology_key: "kubernetes.io/hostname".into(),
        ..PodAffinityTerm::default()
    };
    let anti = if gateway.spec.exposure.type_ == ExposureType::HostPort {
        PodAntiAffinity {
            required_during_scheduling_ignored_during_execution: Some(vec![term]),
            ..PodAntiAffinity::default()
        }
    } else {
        let preferred = WeightedPodAffinityTerm { weight: 100, pod_affinity_term: term };
        PodAntiAffinity {
            preferred_during_scheduling_ignored_during_execution: Some(vec![preferred]),
            ..PodAntiAffinity::default()
        }
    };
    Affinity { pod_anti_affinity: Some(anti), ..Affinity::default() }
}

fn container(gateway: &VPNGateway, knobs: &GatewayPod, settings: &Settings) -> Container {
    Container {
        name: "gateway".into(),
        image: Some(knobs.image.clone().unwrap_or_else(|| settings.gateway_image.clone())),
        args: Some(vec!["gateway".into()]),
        env: Some(environment(settings)),
        ports: Some(ports(gateway)),
        resources: knobs.resources.clone(),
        // What it said last is the reason that the gateway's condition gives.
        termination_message_policy: Some("FallbackToLogsOnError".into()),
        security_context: Some(SecurityContext {
            run_as_user: Some(0),
            allow_privilege_escalation: Some(false),
            read_only_root_filesystem: Some(true),
            capabilities: Some(Capabilities {
                add: Some(vec!["NET_ADMIN".into()]),
                drop: Some(vec!["ALL".into()]),
            }),
            ..SecurityContext::default()
        }),
        liveness_probe: Some(probe("/livez", 10)),
        readiness_probe: Some(probe("/readyz", 2)),
        volume_mounts: Some(vec![
            mount("keys", KEYS_DIR, true),
            mount("ca", CA_DIR, true),
            mount("token", TOKEN_DIR, true),
            mount("state", STATE_DIR, false),
            mount("wg", WG_DIR, false),
            mount("tun", TUN, false),
        ]),
        ..Container::default()
    }
}

fn environment(settings: &Settings) -> Vec<EnvVar> {
    let value =
        |name: &str, value: String| EnvVar { name: name.into(), value: Some(value), ..EnvVar::default() };
    let field = |name: &str, path: &str| EnvVar {
        name: name.into(),
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector {
                field_path: path.into(),
                ..ObjectFieldSelector::default()
            }),
            ..EnvVarSource::default()
        }),
        ..EnvVar::default()
    };
    vec![
        value("PINHOLE_OPERATOR", settings.operator_url()),
        value("PINHOLE_OPERATOR_CA", format!("{CA_DIR}/ca.crt")),
        value("PINHOLE_TOKEN_FILE", format!("{TOKEN_DIR}/token")),
        value("PINHOLE_KEYS", KEYS_DIR.into()),
        value("PINHOLE_STATE_DIR", STATE_DIR.into()),
        field("POD_NAME", "metadata.name"),
        field("POD_NAMESPACE", "metadata.namespace"),
        field("POD_IP", "status.podIP"),
    ]
}

fn ports(gateway: &VPNGateway) -> Vec<ContainerPort> {
    let on_host = gateway.spec.exposure.type_ == ExposureType::HostPort;
    let port = |name: &str, protocol: &str, inside: i32, outside: Option<u16>| ContainerPort {
        name: Some(name.into()),
        protocol: Some(protocol.into()),
        container_port: inside,
        host_port: outside.filter(|_| on_host).map(Into::into),
        ..ContainerPort::default()
    };
    vec![
        port(TUNNEL_PORT, "UDP", POD_TUNNEL_PORT, Some(gateway.spec.tunnel_port())),
        port(SESSION_PORT, "TCP", POD_SESSION_PORT, Some(gateway.spec.session_port())),
        port("health", "TCP", POD_HEALTH_PORT, None),
    ]
}

fn probe(path: &str, period: i32) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.into()),
            port: IntOrString::String("health".into()),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(period),
        timeout_seconds: Some(2),
        failure_threshold: Some(3),
        ..Probe::default()
    }
}

fn mount(name: &str, path: &str, read_only: bool) -> VolumeMount {
    VolumeMount {
        name: name.into(),
        mount_path: path.into(),
        read_only: read_only.then_some(true),
        ..VolumeMount::default()
    }
}

fn volumes(gateway: &str) -> Vec<Volume> {
    let named = |name: &str| Volume { name: name.into(), ..Volume::default() };
    vec![
        Volume {
            secret: Some(SecretVolumeSource {
                secret_name: Some(keys_secret(gateway)),
                default_mode: Some(0o400),
                ..SecretVolumeSource::default()
            }),
            ..named("keys")
        },
        Volume {
            config_map: Some(ConfigMapVolumeSource {
                name: ca_config_map(gateway),
                ..ConfigMapVolumeSource::default()
            }),
            ..named("ca")
        },
        Volume {
            projected: Some(ProjectedVolumeSource {
                sources: Some(vec![VolumeProjection {
                    service_account_token: Some(ServiceAccountTokenProjection {
                        audience: Some(OPERATOR_AUDIENCE.into()),
                        expiration_seconds: Some(TOKEN_SECONDS),
                        path: "token".into(),
                    }),
                    ..VolumeProjection::default()
                }]),
                default_mode: Some(0o400),
            }),
            ..named("token")
        },
        Volume { empty_dir: Some(EmptyDirVolumeSource::default()), ..named("state") },
        Volume {
            empty_dir: Some(EmptyDirVolumeSource {
                medium: Some("Memory".into()),
                ..EmptyDirVolumeSource::default()
            }),
            ..named("wg")
        },
        Volume {
            host_path: Some(HostPathVolumeSource { path: TUN.into(), type_: Some("CharDevice".into()) }),
            ..named("tun")
        },
    ]
}
