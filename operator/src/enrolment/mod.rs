//! Enrolment: a machine or a pod asks, with a credential, to become a client of a pool.
//!
//! Deciding is pure: [`Ask`] (is the request well-formed), `token` (may this token be used), `sidecar` (may this
//! pod join), `capacity` (is there room), `secrets` (which token Secrets should exist). [`Enroller`] does what
//! was decided, in an order that a crash cannot turn against anybody; [`ensure_tokens`] keeps the Secrets.

mod ask;
mod binding;
mod capacity;
mod client;
mod config;
mod enroller;
mod error;
mod join;
mod limit;
mod lookups;
#[cfg(test)]
pub(crate) mod memory;
mod name;
mod records;
mod secrets;
mod sidecar;
mod token;
mod tokens;

pub use ask::{Ask, Credential, PublicKey};
pub use binding::SESSION_ANNOTATION;
pub use client::TOKENS_ANNOTATION;
pub use config::{client_config, find_peer};
pub use enroller::Enroller;
pub use error::EnrolmentError;
pub use join::JoinString;
pub use name::{Hostname, KEY_LABEL, KeyHash};
pub use records::{ApiRecords, Records, RecordsError};
pub use secrets::{TOKEN_SECRET_TYPE, token_secret_name};
pub use token::{LAST_USED_ANNOTATION, PENDING_ANNOTATION, USED_ANNOTATION};
pub use tokens::{JoinTarget, ensure_tokens};
