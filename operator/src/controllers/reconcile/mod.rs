//! One file for each kind: what is planned for it is written, what is seen of it is told.

mod client;
pub(crate) mod context;
mod gateway;
pub(crate) mod keys;
mod loss;
mod network;
mod peers;
mod pool;
mod sidecars;
pub(crate) mod stock;
