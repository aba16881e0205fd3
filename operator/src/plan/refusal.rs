//! What the cluster refuses a gateway: who refused, why in its own words, and what to do. Pure.

use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodStatus, Service};
use pinhole_proto::printable;

/// Longest text of others that is quoted, characters.
const QUOTE: usize = 600;

/// The device that every gateway needs.
const TUN: &str = "/dev/net/tun";

/// Reasons of a kubelet that cannot get an image.
const IMAGE_REASONS: [&str; 7] = [
    "ErrImagePull",
    "ImagePullBackOff",
    "ErrImageNeverPull",
    "InvalidImageName",
    "ImageInspectError",
    "RegistryUnavailable",
    "SignatureValidationFailed",
];

/// Reasons of a kubelet whose runtime cannot make or start a container.
const CONTAINER_REASONS: [&str; 5] = [
    "CreateContainerConfigError",
    "CreateContainerError",
    "RunContainerError",
    "StartError",
    "PostStartHookError",
];

/// What kind of refusal it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// Pod Security admission.
    PodSecurity,
    /// A ResourceQuota.
    Quota,
    /// A LimitRange.
    LimitRange,
    /// An admission policy, a webhook or another admission plugin said no.
    AdmissionDenied,
    /// A webhook does not answer.
    AdmissionUnavailable,
    /// A fixed node port is another Service's.
    NodePortTaken,
    /// No pod can be made, for another reason.
    Creation,
    /// The scheduler finds no node.
    Unschedulable,
    /// The kubelet does not allow a sysctl.
    Sysctl,
    /// The kubelet needed room for others.
    Evicted,
    /// The kubelet turned the pod away or ended it, for another reason.
    PodFailed,
    /// The image cannot be had.
    Image,
    /// The node has no TUN device.
    TunMissing,
    /// The device must not be opened.
    TunForbidden,
    /// A volume cannot be mounted.
    Mount,
    /// The pod's sandbox cannot be made: its network, mostly.
    Sandbox,
    /// The container cannot be made or started.
    Container,
    /// The container ends again and again.
    Crash,
    /// Nobody hears of the node any more.
    NodeLost,
    /// The load balancer's controller does not give what the Service asks for.
    LoadBalancer,
}

impl Cause {
    /// The reason's name, for conditions: Kubernetes' own where it has one.
    pub fn category(self) -> &'static str {
        match self {
            Self::PodSecurity => "PodSecurityForbidden",
            Self::Quota => "QuotaExceeded",
            Self::LimitRange => "LimitRangeViolated",
            Self::AdmissionDenied => "AdmissionDenied",
            Self::AdmissionUnavailable => "AdmissionUnavailable",
            Self::NodePortTaken => "NodePortTaken",
            Self::Creation => "FailedCreate",
            Self::Unschedulable => "Unschedulable",
            Self::Sysctl => "SysctlForbidden",
            Self::Evicted => "Evicted",
            Self::PodFailed => "PodFailed",
            Self::Image => "ImageUnavailable",
            Self::TunMissing => "TunDeviceMissing",
            Self::TunForbidden => "TunDeviceForbidden",
            Self::Mount => "FailedMount",
            Self::Sandbox => "FailedCreatePodSandBox",
            Self::Container => "ContainerNotStarted",
            Self::Crash => "CrashLoopBackOff",
            Self::NodeLost => "NodeLost",
            Self::LoadBalancer => "LoadBalancerRefused",
        }
    }

    /// Whether it stays until somebody acts. The rest may pass by itself: a node comes back, a cluster grows, a
    /// registry is mended.
    pub fn is_lasting(self) -> bool {
        matches!(
            self,
            Self::PodSecurity
                | Self::Quota
                | Self::LimitRange
                | Self::AdmissionDenied
                | Self::NodePortTaken
                | Self::Sysctl
                | Self::TunMissing
                | Self::TunForbidden
                | Self::LoadBalancer
        )
    }

    /// Who refuses.
    fn who(self) -> &'static str {
        match self {
            Self::PodSecurity => "Pod Security admission",
            Self::Quota => "a ResourceQuota of the namespace",
            Self::LimitRange => "a LimitRange of the namespace",
            Self::AdmissionDenied | Self::AdmissionUnavailable => "admission to the cluster",
            Self::NodePortTaken | Self::Creation => "the API server",
            Self::Unschedulable => "the scheduler",
            Self::Sysctl | Self::Evicted | Self::PodFailed | Self::Image | Self::TunMissing | Self::Mount => {
                "the kubelet of its node"
            }
            Self::Sandbox | Self::Container => "the container runtime of its node",
            Self::TunForbidden | Self::Crash => "its container",
            Self::NodeLost => "the node controller",
            Self::LoadBalancer => "the load balancer's controller",
        }
    }

    /// What to do.
    fn remedy(self) -> &'static str {
        match self {
            Self::PodSecurity => {
                "label the namespace pod-security.kubernetes.io/enforce=privileged: a gateway needs NET_ADMIN and \
                 the node's /dev/net/tun"
            }
            Self::Quota => "raise the quota, or set in spec.pod.resources what it asks for",
            Self::LimitRange => "set spec.pod.resources within the limits of the namespace's LimitRange",
            Self::AdmissionDenied => {
                "change what it names in the VPNGateway, or exempt the gateway's objects there"
            }
            Self::AdmissionUnavailable => "mend the webhook: it is tried again by itself",
            Self::NodePortTaken => "choose other spec.exposure.nodePorts, or unset them",
            Self::Creation => "change what it names: it is tried again by itself",
            Self::Unschedulable => {
                "make room, or change nodeSelector, tolerations, affinity or resources in spec.pod"
            }
            Self::Sysctl => {
                "allow it by the kubelet's --allowed-unsafe-sysctls, or unset spec.pod.ipv6Forwarding"
            }
            Self::Evicted => {
                "free that resource on the node, or set resources (limits, requests) and priorityClassName in spec.pod"
            }
            Self::PodFailed => {
                "change what it names, on the node or in spec.pod: the pod is made anew by itself"
            }
            Self::Image => "check the image's name (spec.pod.image) and that the nodes may pull it",
            Self::TunMissing => {
                "load the kernel module there (modprobe tun, at every boot), or keep gateways off it by \
                 spec.pod.nodeSelector"
            }
            Self::TunForbidden => {
                "let the node's container runtime allow the device /dev/net/tun (c 10:200 rwm) and NET_ADMIN; runc 1.2.0 to 1.2.3 \
                 does not allow it to anybody: update it"
            }
            Self::Mount | Self::Sandbox | Self::Container => {
                "mend what it names on the node, or keep gateways off it by spec.pod.nodeSelector"
            }
            Self::Crash => "see the log of the pod (kubectl logs --previous)",
            Self::NodeLost => {
                "bring the node back; if it is off for good, delete the Node or taint it \
                 node.kubernetes.io/out-of-service=nodeshutdown:NoExecute, for before that its pod is not replaced, unless \
                 spec.pod.removeAfterNodeLoss says so"
            }
            Self::LoadBalancer => {
                "a gateway needs UDP and TCP: set exposure.servicePerProtocol where only one of them goes, give it what it \
                 wants by exposure.annotations, use another loadBalancerClass, or expose it by NodePort or HostPort"
            }
        }
    }
}

/// Something that the cluster refuses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What kind it is.
    pub cause: Cause,
    /// The words of whoever refuses, bounded and [`printable`].
    pub quote: String,
}

impl Refusal {
    fn new(cause: Cause, quote: &str) -> Self {
        Self { cause, quote: printable(quote.trim().trim_end_matches('.'), QUOTE) }
    }

    /// What a condition says: who refuses, why, and what to do.
    pub fn text(&self) -> String {
        format!("{} says: {}. To do: {}", self.cause.who(), self.quote, self.cause.remedy())
    }

    /// Of an object that the API server did not take, by its answer.
    pub fn of_answer(message: &str) -> Self {
        let any = |parts: &[&str]| parts.iter().any(|part| message.contains(part));
        // Policies and webhooks first: their messages are anybody's.
        let cause = if any(&["denied request", "denied the request"]) {
            Cause::AdmissionDenied
        } else if any(&["failed calling webhook", "failed to call webhook"]) {
            Cause::AdmissionUnavailable
        } else if any(&["violates PodSecurity"]) {
            Cause::PodSecurity
        } else if any(&["exceeded quota:", "failed quota:", "status unknown for quota:"]) {
            Cause::Quota
        } else if any(&[" usage per ", " limit to request ratio per "]) {
            Cause::LimitRange
        } else if any(&["provided port is already allocated"]) {
            Cause::NodePortTaken
        } else if any(&[" is forbidden: "]) && !any(&[" is forbidden: User "]) {
            Cause::AdmissionDenied
        } else {
            Cause::Creation
        };
        Self::new(cause, message)
    }

    /// Of a pod, as its status says.
    pub fn of_pod(pod: &Pod) -> Option<Self> {
        let status = pod.status.as_ref()?;
        let reason = status.reason.as_deref().unwrap_or_default();
        if status.phase.as_deref() == Some("Failed") && !reason.is_empty() {
            let cause = match reason {
                "SysctlForbidden" => Cause::Sysctl,
                "Evicted" => Cause::Evicted,
                _ => Cause::PodFailed,
            };
            return Some(Self::new(cause, &said(reason, status.message.as_deref())));
        }
        unscheduled(status).or_else(|| containers(status).find_map(Self::of_container))
    }

    fn of_container(container: &ContainerStatus) -> Option<Self> {
        let state = container.state.as_ref()?;
        let last = container.last_state.as_ref().and_then(|last| last.terminated.as_ref());
        let ended = state.terminated.as_ref().or(last);
        if let Some(waiting) = &state.waiting {
            let (reason, message) =
                (waiting.reason.as_deref().unwrap_or_default(), waiting.message.as_deref());
            let cause = if IMAGE_REASONS.contains(&reason) {
                Cause::Image
            } else if CONTAINER_REASONS.contains(&reason) {
                of_device(message).unwrap_or(Cause::Container)
            } else if reason == "CrashLoopBackOff" {
                Cause::Crash
            } else {
                return None;
            };
            if cause != Cause::Crash {
                return Some(Self::new(cause, &said(reason, message)));
            }
        }
        let ended = ended.filter(|_| state.running.is_none())?;
        let reason = ended.reason.as_deref().unwrap_or_default();
        let message = ended.message.as_deref();
        if CONTAINER_REASONS.contains(&reason) {
            return Some(Self::new(of_device(message).unwrap_or(Cause::Container), &said(reason, message)));
        }
        let told = said(&format!("{reason}, exit code {}", ended.exit_code), message);
        Some(Self::new(Cause::Crash, &told))
    }

    /// Of a Service of type LoadBalancer, as its status says: its conditions, and the errors of its ports.
    pub fn of_service(service: &Service) -> Option<Self> {
        let status = service.status.as_ref()?;
        let ingress = status.load_balancer.as_ref().and_then(|balancer| balancer.ingress.as_ref());
        let ports = ingress.into_iter().flatten().flat_map(|ingress| ingress.ports.iter().flatten());
        let errors = ports.filter_map(|port| {
            Some(format!("port {}/{}: {}", port.port, port.protocol, port.error.as_deref()?))
        });
        // LoadBalancerPortsError is True when something is wrong, IPAMRequestSatisfied is False then.
        let conditions = status.conditions.iter().flatten().filter(|c| {
            let names_a_fault = ["Error", "Fail", "Conflict"].iter().any(|word| c.type_.contains(word));
            c.status == if names_a_fault { "True" } else { "False" }
        });
        let conditions = conditions.map(|c| said(&c.reason, Some(&c.message)));
        let all: Vec<String> = conditions.chain(errors).collect();
        (!all.is_empty()).then(|| Self::new(Cause::LoadBalancer, &all.join("; ")))
    }

    /// Of a node that nobody hears of, in the words of its condition Ready.
    pub fn of_node(node: &str, said: &str) -> Self {
        Self::new(Cause::NodeLost, &format!("node {node}: {said}"))
    }

    /// Of what a replica that runs could not set up.
    pub fn of_impairment(category: &str, message: &str) -> Option<Self> {
        let cause = match category {
            "NoTunDevice" => Cause::TunMissing,
            "NotPermitted" => Cause::TunForbidden,
            _ => return None,
        };
        Some(Self::new(cause, message))
    }
}

/// An object that Events are read about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NoteKind {
    /// A StatefulSet whose pods cannot be made.
    StatefulSet,
    /// A pod that does not start.
    Pod,
    /// A Service that gets no load balancer.
    Service,
}

/// What an Event says, as far as it is a refusal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// UID of the object that it is about.
    pub uid: String,
    /// The pod that a StatefulSet could not make.
    pub pod: Option<String>,
    /// When it was last said, seconds since 1970.
    pub at: i64,
    /// What was refused.
    pub refusal: Refusal,
}

impl Note {
    /// Reads an Event: None when it is no refusal.
    pub fn read(kind: NoteKind, reason: &str, message: &str, uid: String, at: i64) -> Option<Self> {
        // The recorder of Events puts this in front when there are many.
        let message = message.strip_prefix("(combined from similar events): ").unwrap_or(message);
        let (pod, refusal) = match (kind, reason) {
            (NoteKind::StatefulSet, "FailedCreate") => {
                let (pod, answer) = of_stateful_set(message);
                (pod, Refusal::of_answer(answer))
            }
            (NoteKind::Pod, "FailedMount") => {
                let cause = if message.contains(TUN) { Cause::TunMissing } else { Cause::Mount };
                (None, Refusal::new(cause, message))
            }
            (NoteKind::Pod, "Evicted") => (None, Refusal::new(Cause::Evicted, &said(reason, Some(message)))),
            (NoteKind::Pod, "FailedCreatePodSandBox") => (None, Refusal::new(Cause::Sandbox, message)),
            // Of endpoints, others take care.
            (NoteKind::Service, _) if !reason.contains("Endpoint") => {
                (None, Refusal::new(Cause::LoadBalancer, &said(reason, Some(message))))
            }
            _ => return None,
        };
        Some(Self { uid, pod, at, refusal })
    }
}

/// The pod that could not be made, and why: `create Pod edge-0 in StatefulSet edge failed error: …`.
fn of_stateful_set(message: &str) -> (Option<String>, &str) {
    let parts = message.split_once(" failed error: ");
    let named = parts.and_then(|(head, answer)| {
        let pod = head.strip_prefix("create Pod ")?.split(' ').next()?;
        Some((Some(pod.to_owned()), answer))
    });
    named.unwrap_or((None, message))
}

fn unscheduled(status: &PodStatus) -> Option<Refusal> {
    let condition =
        status.conditions.iter().flatten().find(|c| c.type_ == "PodScheduled" && c.status == "False")?;
    let reason = condition.reason.as_deref().unwrap_or("Unschedulable");
    Some(Refusal::new(Cause::Unschedulable, &said(reason, condition.message.as_deref())))
}

/// Those that others put beside the gateway's hold it up as well.
fn containers(status: &PodStatus) -> impl Iterator<Item = &ContainerStatus> {
    status.init_container_statuses.iter().chain(&status.container_statuses).flatten()
}

fn of_device(message: Option<&str>) -> Option<Cause> {
    let message = message.filter(|message| message.contains(TUN))?;
    let forbidden = message.contains("not permitted") || message.contains("ermission denied");
    Some(if forbidden { Cause::TunForbidden } else { Cause::TunMissing })
}

fn said(reason: &str, message: Option<&str>) -> String {
    match message.map(str::trim).filter(|message| !message.is_empty()) {
        Some(message) => format!("{reason}: {message}"),
        None => reason.to_owned(),
    }
}
