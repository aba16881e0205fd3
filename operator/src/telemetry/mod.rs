//! What the operator says of itself: metrics, health, logs.

mod health;
mod logs;
mod metrics;
mod serve;

pub use health::{Health, WatchId};
pub use logs::{LogFormat, init_logs};
pub use metrics::Metrics;
pub use serve::serve;
