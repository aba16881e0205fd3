//! The operator of Pinhole: decides what gateways, pools and clients should be (`plan`, `ipam`: pure), writes it to
//! the Kubernetes API (`controllers`), and tells the gateways' replicas and hears their reports (`link`, `fleet`).

pub mod controllers;
pub mod enrolment;
pub mod fleet;
pub mod identity;
pub mod ipam;
pub mod kubectl;
pub mod link;
pub mod plan;
pub mod scope;
pub mod telemetry;

#[cfg(test)]
#[path = "../../proto/tests/hostile/mod.rs"]
mod hostile;
