//! Join strings as the operator writes them.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::Serialize;

/// All that a new machine needs, in one line: `pinhole:` and base64url without padding of JSON with these fields
/// in this order. The agent reads it.
#[derive(Serialize)]
pub struct JoinString<'a> {
    /// Version of the format, 1.
    pub v: u32,
    /// Namespace of the pool.
    pub ns: &'a str,
    /// Name of the pool.
    pub pool: &'a str,
    /// Name of the token in the pool.
    pub token: &'a str,
    /// Secret part of the token.
    pub secret: &'a str,
    /// TLS name of the gateway.
    pub server_name: &'a str,
    /// `host:port` of the gateway's client sessions, the best first.
    pub endpoints: &'a [String],
    /// The trust bundle, PEM.
    pub ca: &'a str,
}

impl JoinString<'_> {
    /// The line.
    pub fn encode(&self) -> serde_json::Result<String> {
        Ok(format!("pinhole:{}", URL_SAFE_NO_PAD.encode(serde_json::to_vec(self)?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The agent's reader has the same line in its tests.
    const GOLDEN: &str = "pinhole:eyJ2IjoxLCJucyI6ImJyYW5jaCIsInBvb2wiOiJsYXB0b3BzIiwidG9rZW4iOiJmaXJzdCIsInNlY3JldCI6InMzY3IzdC12YWx1ZSIsInNlcnZlcl9uYW1lIjoiZWRnZS5icmFuY2guZ2F0ZXdheS5waW5ob2xlLmRldiIsImVuZHBvaW50cyI6WyIxOTIuMC4yLjE6NTE4MjEiLCJbMjAwMTpkYjg6OjFdOjUxODIxIl0sImNhIjoiLS0tLS1CRUdJTiBDRVJUSUZJQ0FURS0tLS0tXG5NSUlCXG4tLS0tLUVORCBDRVJUSUZJQ0FURS0tLS0tXG4ifQ";

    #[test]
    fn the_golden_line_is_what_operator_and_agent_agree_on() {
        let join = JoinString {
            v: 1,
            ns: "branch",
            pool: "laptops",
            token: "first",
            secret: "s3cr3t-value",
            server_name: "edge.branch.gateway.pinhole.dev",
            endpoints: &["192.0.2.1:51821".to_owned(), "[2001:db8::1]:51821".to_owned()],
            ca: "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n",
        };
        assert_eq!(join.encode().unwrap(), GOLDEN);
    }
}
