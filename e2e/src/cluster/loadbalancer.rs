//! What a cloud does for Services of type LoadBalancer: gives each an address of the public segment.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use futures::TryStreamExt;
use k8s_openapi::api::core::v1::Service;
use kube::{
    Api, Client, ResourceExt,
    api::{Patch, PatchParams},
    runtime::{WatchStreamExt, watcher},
};
use serde_json::json;
use tokio::task::AbortHandle;

use crate::{
    error::{Doing, Error, Result},
    netns::Netns,
    node::{BRIDGE, PUBLIC_V4, PUBLIC_V6},
    progress,
};

/// Numbers on the public segment that load balancers get.
const NUMBERS: std::ops::RangeInclusive<u8> = 200..=250;
/// First and last address of a load balancer.
pub const LOAD_BALANCERS: (Ipv4Addr, Ipv4Addr) =
    (Ipv4Addr::new(203, 0, 113, 200), Ipv4Addr::new(203, 0, 113, 250));
/// First and last IPv6 address of a load balancer.
pub const LOAD_BALANCERS_V6: (Ipv6Addr, Ipv6Addr) = (
    Ipv6Addr::new(0x2001, 0xdb8, 0x113, 0, 0, 0, 0, 200),
    Ipv6Addr::new(0x2001, 0xdb8, 0x113, 0, 0, 0, 0, 250),
);

/// The controller; ends when dropped.
#[derive(Debug)]
pub(crate) struct LoadBalancers {
    task: AbortHandle,
}

impl LoadBalancers {
    /// Starts the controller for the node that kube-proxy serves the addresses on.
    pub(crate) fn start(client: Client, node: Netns) -> Self {
        let controller = Controller { client, node, given: BTreeMap::new() };
        Self { task: tokio::spawn(controller.run()).abort_handle() }
    }
}

impl Drop for LoadBalancers {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Controller {
    client: Client,
    node: Netns,
    /// Number by uid of the Service.
    given: BTreeMap<String, u8>,
}

impl Controller {
    async fn run(mut self) {
        let services: Api<Service> = Api::all(self.client.clone());
        let mut events = std::pin::pin!(watcher(services, watcher::Config::default()).default_backoff());
        loop {
            let outcome = match events.try_next().await {
                Ok(Some(event)) => self.handle(event).await,
                Ok(None) => return,
                // The watcher has taken note and tries again.
                Err(_) => continue,
            };
            if let Err(error) = outcome {
                progress::say(&format!("the lab's load balancers: {error}"));
            }
        }
    }

    async fn handle(&mut self, event: watcher::Event<Service>) -> Result<()> {
        match event {
            watcher::Event::Apply(service) | watcher::Event::InitApply(service) => {
                if wants_address(&service) { self.give(&service).await } else { self.take(&service).await }
            }
            watcher::Event::Delete(service) => self.take(&service).await,
            watcher::Event::Init | watcher::Event::InitDone => Ok(()),
        }
    }

    async fn give(&mut self, service: &Service) -> Result<()> {
        let uid = service.uid().unwrap_or_default();
        let number = match self.given.get(&uid) {
            Some(number) => *number,
            None => self.free().ok_or_else(|| Error::Invalid("no address is left".to_owned()))?,
        };
        let addresses = addresses(service, number);
        if has_addresses(service, &addresses) {
            return Ok(());
        }
        if self.given.insert(uid, number).is_none() {
            self.node.ip(lines("add", &addresses)).await?;
        }
        let ingress: Vec<_> = addresses.iter().map(|address| json!({ "ip": address })).collect();
        let status = json!({ "status": { "loadBalancer": { "ingress": ingress } } });
        let services: Api<Service> =
            Api::namespaced(self.client.clone(), &service.namespace().unwrap_or_default());
        let name = service.name_any();
        match services.patch_status(&name, &PatchParams::default(), &Patch::Merge(&status)).await {
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            other => other.map(drop).doing(|| format!("giving the Service {name} an address")),
        }
    }

    async fn take(&mut self, service: &Service) -> Result<()> {
        let Some(number) = self.given.remove(&service.uid().unwrap_or_default()) else { return Ok(()) };
        self.node.ip(lines("del", &addresses(service, number))).await
    }

    fn free(&self) -> Option<u8> {
        NUMBERS.into_iter().find(|number| !self.given.values().any(|given| given == number))
    }
}

fn wants_address(service: &Service) -> bool {
    let Some(spec) = &service.spec else { return false };
    spec.type_.as_deref() == Some("LoadBalancer")
        // With a class it is another controller's.
        && spec.load_balancer_class.is_none()
        && service.metadata.deletion_timestamp.is_none()
}

fn addresses(service: &Service, number: u8) -> Vec<IpAddr> {
    let families = service.spec.as_ref().and_then(|spec| spec.ip_families.clone()).unwrap_or_default();
    let address = |family: &String| match family.as_str() {
        "IPv6" => IpAddr::V6(Ipv6Addr::from(u128::from(PUBLIC_V6.network()) + u128::from(number))),
        _ => IpAddr::V4(Ipv4Addr::from(u32::from(PUBLIC_V4.network()) + u32::from(number))),
    };
    families.iter().map(address).collect()
}

fn has_addresses(service: &Service, addresses: &[IpAddr]) -> bool {
    let balancer = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let ingress = balancer.and_then(|balancer| balancer.ingress.clone()).unwrap_or_default();
    let given: Vec<_> = ingress.iter().filter_map(|ingress| ingress.ip.clone()).collect();
    given == addresses.iter().map(ToString::to_string).collect::<Vec<_>>()
}

fn lines(verb: &str, addresses: &[IpAddr]) -> Vec<String> {
    let line = |address: &IpAddr| match address {
        IpAddr::V4(_) => format!("address {verb} {address}/32 dev {BRIDGE}"),
        IpAddr::V6(_) if verb == "add" => format!("address {verb} {address}/128 dev {BRIDGE} nodad"),
        IpAddr::V6(_) => format!("address {verb} {address}/128 dev {BRIDGE}"),
    };
    addresses.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(spec: &serde_json::Value) -> Service {
        serde_json::from_value(json!({ "metadata": { "name": "x", "uid": "1" }, "spec": spec })).unwrap()
    }

    #[test]
    fn only_services_that_ask_for_a_cloud_get_an_address() {
        assert!(wants_address(&service(&json!({ "type": "LoadBalancer" }))));
        assert!(!wants_address(&service(&json!({ "type": "NodePort" }))));
        assert!(!wants_address(&service(&json!({ "type": "LoadBalancer", "loadBalancerClass": "a/b" }))));
    }

    #[test]
    fn a_dual_stack_service_gets_one_address_of_each_family() {
        let both = service(&json!({ "type": "LoadBalancer", "ipFamilies": ["IPv4", "IPv6"] }));
        let given = addresses(&both, 200);
        assert_eq!(given, [IpAddr::V4(LOAD_BALANCERS.0), IpAddr::V6(LOAD_BALANCERS_V6.0)]);
        assert!(lines("add", &given)[1].contains("2001:db8:113::c8/128"));
    }
}
