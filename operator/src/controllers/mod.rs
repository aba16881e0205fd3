//! Between the API server and the plan: watches that feed an index, a schedule of what to reconcile, and reconcilers that write
//! what was planned.

mod leader;
mod reconcile;
mod runtime;

pub use leader::{Leader, LeaderError};
pub use runtime::{
    error::ControlError,
    request::Request,
    shared_state::SharedState,
    watch::{Watch, watches},
};
