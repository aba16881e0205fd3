//! The join string: all that a new client needs, in one line to copy.

use std::{fmt, str::FromStr};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::IdentityError;

const PREFIX: &str = "pinhole:";
const VERSION: u32 = 1;
/// Far above what a join string with two CA certificates needs.
const MAX_BYTES: usize = 64 * 1024;

/// `pinhole:` and, in base64url without padding, JSON of these fields, in this order. Holds a secret: it cannot
/// be printed, only written out with [`Self::encode`].
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinString {
    /// The format's version, 1.
    pub v: u32,
    /// The pool's namespace.
    pub ns: String,
    /// The pool's name.
    pub pool: String,
    /// The token's name in the pool.
    pub token: String,
    /// The secret part of the token.
    pub secret: String,
    /// TLS name of the gateway.
    pub server_name: String,
    /// `host:port` of the gateway's client sessions, the best first.
    pub endpoints: Vec<String>,
    /// The CA bundle that the gateway's certificate chains to, PEM.
    pub ca: String,
}

impl JoinString {
    /// The one line to copy.
    pub fn encode(&self) -> Result<Zeroizing<String>, IdentityError> {
        let json =
            serde_json::to_vec(self).map_err(|error| IdentityError::TokenMalformed(error.to_string()))?;
        Ok(Zeroizing::new(format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(Zeroizing::new(json)))))
    }
}

impl fmt::Debug for JoinString {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinString")
            .field("pool", &format_args!("{}/{}", self.ns, self.pool))
            .field("token", &self.token)
            .finish_non_exhaustive()
    }
}

impl FromStr for JoinString {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        let malformed = |why: &str| IdentityError::TokenMalformed(why.to_owned());
        let text = text.trim();
        if text.len() > MAX_BYTES {
            return Err(malformed("it is too long"));
        }
        let body = text.strip_prefix(PREFIX).ok_or_else(|| malformed("it does not begin with `pinhole:`"))?;
        let json = URL_SAFE_NO_PAD.decode(body).map(Zeroizing::new);
        let json = json.map_err(|_| malformed("it is cut off, or something was added to it"))?;
        let join: JoinString = serde_json::from_slice(&json)
            .map_err(|_| malformed("its content is not that of a join token"))?;
        if join.v != VERSION {
            return Err(malformed("it is of a newer version than this program understands"));
        }
        if join.endpoints.is_empty() || join.server_name.is_empty() {
            return Err(malformed("it names no gateway"));
        }
        Ok(join)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The operator's writer has the same line in its tests.
    const GOLDEN: &str = "pinhole:eyJ2IjoxLCJucyI6ImJyYW5jaCIsInBvb2wiOiJsYXB0b3BzIiwidG9rZW4iOiJmaXJzdCIsInNlY3JldCI6InMzY3IzdC12YWx1ZSIsInNlcnZlcl9uYW1lIjoiZWRnZS5icmFuY2guZ2F0ZXdheS5waW5ob2xlLmRldiIsImVuZHBvaW50cyI6WyIxOTIuMC4yLjE6NTE4MjEiLCJbMjAwMTpkYjg6OjFdOjUxODIxIl0sImNhIjoiLS0tLS1CRUdJTiBDRVJUSUZJQ0FURS0tLS0tXG5NSUlCXG4tLS0tLUVORCBDRVJUSUZJQ0FURS0tLS0tXG4ifQ";

    fn golden() -> JoinString {
        JoinString {
            v: 1,
            ns: "branch".into(),
            pool: "laptops".into(),
            token: "first".into(),
            secret: "s3cr3t-value".into(),
            server_name: "edge.branch.gateway.pinhole.dev".into(),
            endpoints: vec!["192.0.2.1:51821".into(), "[2001:db8::1]:51821".into()],
            ca: "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n".into(),
        }
    }

    #[test]
    fn the_golden_line_is_what_operator_and_agent_agree_on() {
        assert_eq!(golden().encode().unwrap().as_str(), GOLDEN);
        assert_eq!(GOLDEN.parse::<JoinString>().unwrap(), golden());
    }

    #[test]
    fn white_space_around_a_copied_line_does_no_harm() {
        assert_eq!(format!("  {GOLDEN}\n").parse::<JoinString>().unwrap(), golden());
    }

    #[test]
    fn what_is_not_a_join_string_is_refused_as_an_invalid_token() {
        let cut = &GOLDEN[..GOLDEN.len() - 9];
        for text in ["", "pinhole:", "hello", "pinhole:!!", cut, "pinhole:e30"] {
            let error = text.parse::<JoinString>().unwrap_err();
            assert_eq!(error.category(), "TokenInvalid", "{text}");
        }
    }

    #[test]
    fn the_secret_is_not_printed() {
        assert!(!format!("{:?}", golden()).contains("s3cr3t"));
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_or_refused_without_a_panic(text in ".{0,200}") {
            let _ = text.parse::<JoinString>();
            let _ = format!("pinhole:{text}").parse::<JoinString>();
        }
    }
}
