//! The lab: a real one-node Kubernetes cluster and real NATs in network namespaces of one machine.
//!
//! ```no_run
//! # async fn example() -> pinhole_e2e::error::Result<()> {
//! use pinhole_e2e::{Lab, nat::NatProfile};
//!
//! let lab = Lab::find_or_start().await?;
//! println!("{}", lab.kubectl(["get", "nodes"]).await?);
//! let laptop = lab.nat_host("laptop", NatProfile::symmetric()).await?;
//! println!("{}", laptop.exec("ip", ["-brief", "address"]).await?);
//! # Ok(())
//! # }
//! ```
//!
//! Everything goes when the [`Lab`] is dropped; `lab::down` also clears away what a killed process left.

pub mod bench;
pub mod capture;
pub mod cluster;
pub mod demo;
pub mod device;
pub mod error;
pub mod host;
pub mod image;
pub mod installation;
pub mod lab;
mod machine;
pub mod nat;
pub mod netns;
pub mod node;
pub mod passage;
pub mod ping;
pub mod playground;
pub mod pods;
pub mod process;
pub mod progress;
pub mod project;
pub mod segment;
pub mod setup;
pub mod speed;
pub mod state;
pub mod strangers;
pub mod vpn;
pub mod wait;

pub use error::{Error, Result};
pub use lab::Lab;
