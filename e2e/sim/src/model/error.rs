//! What can be wrong with a profile file.

use thiserror::Error;

/// Why a profile was refused.
#[derive(Debug, Error)]
pub enum ProfileError {
    /// The file is not a JSON array.
    #[error("not a JSON array of NAT profiles: {0}")]
    NotAnArray(#[source] serde_json::Error),
    /// The array has nothing in it, or nothing that weighs.
    #[error("no NAT profile with a weight above zero")]
    Empty,
    /// A field is missing, unknown, or not of its type.
    #[error("NAT profile {position}{}: {source}", named(.name.as_deref()))]
    Field {
        /// Place in the array, from 1.
        position: usize,
        /// Its name, where it has one.
        name: Option<String>,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// A value makes no sense.
    #[error("NAT profile {position} ({name:?}): {field} {demand}, but it is {value}")]
    Value {
        /// Place in the array, from 1.
        position: usize,
        /// Its name.
        name: String,
        /// Which field.
        field: &'static str,
        /// What it must be.
        demand: &'static str,
        /// What it is.
        value: String,
    },
}

impl ProfileError {
    /// A name for metrics and logs.
    pub fn category(&self) -> &'static str {
        match self {
            Self::NotAnArray(_) => "NotAnArray",
            Self::Empty => "Empty",
            Self::Field { .. } => "Field",
            Self::Value { .. } => "Value",
        }
    }
}

fn named(name: Option<&str>) -> String {
    name.map(|name| format!(" ({name:?})")).unwrap_or_default()
}
