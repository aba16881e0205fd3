//! The kernel's side of a tunnel: TUN device, addresses, routes, policy rules, forwarding and masquerading.
//! Everything can be repeated without harm and taken back, and acts in the caller's network namespace.

mod error;

pub use error::KernelError;
