//! Between the API server and the plan: watches that feed a world, a schedule that says what to look at, and looks that
//! write what was planned.

mod allocation;
mod apply;
mod client;
mod context;
mod error;
mod events;
mod gateway;
mod hub;
mod keys;
mod lead;
mod loss;
mod marker;
mod network;
mod notes;
mod observe;
mod oddity;
mod pace;
mod peers;
mod pool;
mod queue;
mod sidecars;
mod stock;
mod watch;
mod work;
mod world;

pub use error::ControlError;
pub use hub::Hub;
pub use lead::{Leader, LeaderError};
pub use watch::{Watch, watches};
pub use work::Work;
