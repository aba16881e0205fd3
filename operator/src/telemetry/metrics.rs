//! The operator's metrics.

use std::{fmt, sync::Mutex, sync::PoisonError, time::Duration};

use pinhole_crds::{ChurnCause, ClientCounts, NatClass};
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};

use crate::{fleet::GatewayKey, plan::summary::Tally};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Result {
    kind: &'static str,
    category: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Clients {
    namespace: String,
    gateway: String,
    phase: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct NatClients {
    namespace: String,
    gateway: String,
    class: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Churn {
    namespace: String,
    gateway: String,
    cause: &'static str,
}

type Durations = Family<Kind, Histogram, fn() -> Histogram>;

/// The operator's metrics. Labels have few values: kinds, categories, gateways, phases; never a client.
pub struct Metrics {
    registry: Mutex<Registry>,
    reconciles: Family<Result, Counter>,
    durations: Durations,
    writes: Family<Kind, Counter>,
    watch_failures: Family<Kind, Counter>,
    unreadable: Family<Kind, Counter>,
    clients: Family<Clients, Gauge>,
    nat_clients: Family<NatClients, Gauge>,
    churn: Family<Churn, Counter>,
    leader: Gauge,
    waiting: Gauge,
}

impl Metrics {
    /// All of them, at zero.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("pinhole_operator");
        let buckets = || Histogram::new([0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0]);
        let metrics = Self {
            registry: Mutex::default(),
            reconciles: Family::default(),
            durations: Family::new_with_constructor(buckets),
            writes: Family::default(),
            watch_failures: Family::default(),
            unreadable: Family::default(),
            clients: Family::default(),
            nat_clients: Family::default(),
            churn: Family::default(),
            leader: Gauge::default(),
            waiting: Gauge::default(),
        };
        registry.register("reconciles", "Looks at objects, by kind and result", metrics.reconciles.clone());
        registry.register_with_unit(
            "reconcile_duration",
            "Time that looks at objects took",
            Unit::Seconds,
            metrics.durations.clone(),
        );
        registry.register("writes", "Writes to the API server, by kind written", metrics.writes.clone());
        registry.register("watch_failures", "Failures of watches, by kind", metrics.watch_failures.clone());
        registry.register(
            "unreadable_objects",
            "Objects that were not understood, by kind",
            metrics.unreadable.clone(),
        );
        registry.register("clients", "Clients by gateway and phase", metrics.clients.clone());
        registry.register(
            "nat_clients",
            "Clients by gateway and by class of their NAT, as statuses say",
            metrics.nat_clients.clone(),
        );
        registry.register(
            "churn",
            "Moves and losses of clients' mappings that statuses tell of, by gateway and cause",
            metrics.churn.clone(),
        );
        registry.register("leader", "1 while this operator leads", metrics.leader.clone());
        registry.register("queue_waiting", "Objects that wait to be looked at", metrics.waiting.clone());
        Self { registry: Mutex::new(registry), ..metrics }
    }

    /// A look at an object of `kind` ended; `category` is `Ok` or that of the error.
    pub fn reconciled(&self, kind: &'static str, category: &'static str, took: Duration) {
        self.reconciles.get_or_create(&Result { kind, category }).inc();
        self.durations.get_or_create(&Kind { kind }).observe(took.as_secs_f64());
    }

    /// Something of `kind` was written.
    pub fn wrote(&self, kind: &'static str) {
        self.writes.get_or_create(&Kind { kind }).inc();
    }

    /// The watch of `kind` failed.
    pub fn watch_failed(&self, kind: &'static str) {
        self.watch_failures.get_or_create(&Kind { kind }).inc();
    }

    /// An object of `kind` was not understood.
    pub fn unreadable(&self, kind: &'static str) {
        self.unreadable.get_or_create(&Kind { kind }).inc();
    }

    /// The gateway's clients by phase. None: the gateway is gone.
    pub fn clients(&self, gateway: &GatewayKey, counts: Option<ClientCounts>) {
        let given = counts.unwrap_or_default();
        for (phase, n) in [
            ("Connected", given.connected),
            ("Standby", given.standby),
            ("WaitingToReconnect", given.waiting_to_reconnect),
            ("Dormant", given.dormant),
            ("Disconnected", given.disconnected),
            ("Suspended", given.suspended),
        ] {
            let labels =
                Clients { namespace: gateway.namespace.clone(), gateway: gateway.name.clone(), phase };
            if counts.is_some() {
                self.clients.get_or_create(&labels).set(n);
            } else {
                self.clients.remove(&labels);
            }
        }
    }

    /// The gateway's clients by the class of their NAT. None: the gateway is gone.
    pub fn nats(&self, gateway: &GatewayKey, tally: Option<&Tally>) {
        for class in NatClass::ALL {
            let labels = NatClients {
                namespace: gateway.namespace.clone(),
                gateway: gateway.name.clone(),
                class: class.name(),
            };
            match tally {
                Some(tally) => {
                    let n = tally.classes.get(&class).copied().unwrap_or_default();
                    self.nat_clients.get_or_create(&labels).set(n);
                }
                None => drop(self.nat_clients.remove(&labels)),
            }
        }
    }

    /// The gateway is gone, and what was counted of it.
    pub fn forget_churn(&self, gateway: &GatewayKey) {
        for cause in ChurnCause::ALL {
            self.churn.remove(&churn_labels(gateway, cause));
        }
    }

    /// So many moves or losses of a mapping of the gateway's clients were written to a status.
    pub fn churned(&self, gateway: &GatewayKey, cause: ChurnCause, news: u64) {
        self.churn.get_or_create(&churn_labels(gateway, cause)).inc_by(news);
    }

    /// Whether this operator leads.
    pub fn leading(&self, leads: bool) {
        self.leader.set(leads.into());
    }

    /// How many objects wait to be looked at.
    pub fn waiting(&self, n: usize) {
        self.waiting.set(i64::try_from(n).unwrap_or(i64::MAX));
    }

    /// All metrics, as Prometheus reads them.
    pub fn text(&self) -> std::result::Result<String, fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry.lock().unwrap_or_else(PoisonError::into_inner))?;
        Ok(text)
    }
}

fn churn_labels(gateway: &GatewayKey, cause: ChurnCause) -> Churn {
    Churn { namespace: gateway.namespace.clone(), gateway: gateway.name.clone(), cause: cause.name() }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gateway_that_is_gone_leaves_no_series() {
        let metrics = Metrics::new();
        let gateway = GatewayKey::new("vpn", "edge");
        metrics.clients(&gateway, Some(ClientCounts { total: 3, connected: 3, ..ClientCounts::default() }));
        metrics.reconciled("VPNGateway", "Ok", Duration::from_millis(3));
        let text = metrics.text().unwrap();
        assert!(
            text.contains(r#"pinhole_operator_clients{namespace="vpn",gateway="edge",phase="Connected"} 3"#)
        );
        assert!(text.contains(r#"pinhole_operator_reconciles_total{kind="VPNGateway",category="Ok"} 1"#));
        metrics.nats(&gateway, Some(&Tally::default()));
        metrics.churned(&gateway, ChurnCause::MappingChanged, 2);
        let text = metrics.text().unwrap();
        let churn =
            r#"pinhole_operator_churn_total{namespace="vpn",gateway="edge",cause="MappingChanged"} 2"#;
        assert!(text.contains(churn), "{text}");
        metrics.clients(&gateway, None);
        metrics.nats(&gateway, None);
        metrics.forget_churn(&gateway);
        assert!(!metrics.text().unwrap().contains("edge"));
    }
}
