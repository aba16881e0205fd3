//! What carries the reconcilers: what the API server said last, when what is looked at, and how things are written.

pub(crate) mod allocation;
#[cfg(test)]
pub(crate) mod api_tests;
pub(crate) mod apply;
pub(crate) mod error;
pub(crate) mod events;
pub(crate) mod index;
pub(crate) mod notes;
pub(crate) mod object_version;
pub(crate) mod observe;
pub(crate) mod oddity;
pub(crate) mod pace;
pub(crate) mod queue;
pub(crate) mod request;
pub(crate) mod shared_state;
pub(crate) mod watch;
