//! Bearer tokens of calls, before anybody reviews them.

use tonic::metadata::MetadataMap;

use super::CredentialError;

/// Bytes of the longest token that is looked at; projected tokens have about 1200.
const MAX_TOKEN_BYTES: usize = 8192;

/// The bearer token of a call.
pub fn bearer_token(metadata: &MetadataMap) -> Result<&str, CredentialError> {
    metadata
        .get("authorization")
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.strip_prefix("Bearer "))
        .filter(|token| is_plausible(token))
        .ok_or(CredentialError::Missing)
}

/// Whether a text can be a token at all: of sane length and of the characters of a JWT (RFC 7515).
pub(crate) fn is_plausible(token: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    !token.is_empty() && token.len() <= MAX_TOKEN_BYTES && token.bytes().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata(value: &str) -> MetadataMap {
        let mut metadata = MetadataMap::new();
        metadata.insert("authorization", value.parse().unwrap());
        metadata
    }

    #[test]
    fn the_token_is_what_follows_bearer() {
        assert_eq!(bearer_token(&metadata("Bearer a.b-c_d.e")).unwrap(), "a.b-c_d.e");
    }

    #[test]
    fn what_is_no_token_is_missing() {
        let long = format!("Bearer {}", "a".repeat(MAX_TOKEN_BYTES + 1));
        for value in ["", "Bearer ", "Basic abc", "Bearer a b", "Bearer a\"b", &long] {
            assert_eq!(bearer_token(&metadata(value)), Err(CredentialError::Missing), "{value:.20}");
        }
        assert_eq!(bearer_token(&MetadataMap::new()), Err(CredentialError::Missing));
    }
}
