//! Remembered reviews of tokens, by their hash. Pure.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use ring::digest::{SHA256, digest};

use super::{CredentialError, PodIdentity};

/// How long an accepted token is believed without asking again.
pub(crate) const ACCEPTED_FOR: Duration = Duration::from_mins(1);

/// How long a refused one is refused without asking again.
const REFUSED_FOR: Duration = Duration::from_secs(10);

/// Most reviews that are remembered.
const CAPACITY: usize = 4096;

/// The hash that a token is remembered by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct TokenHash([u8; 32]);

impl TokenHash {
    pub(crate) fn of(token: &str, audience: &str) -> Self {
        let mut hashed = [0; 32];
        let text = format!("{audience}\n{token}");
        hashed.copy_from_slice(digest(&SHA256, text.as_bytes()).as_ref());
        Self(hashed)
    }
}

type Verdict = Result<PodIdentity, CredentialError>;

/// The memory.
#[derive(Debug, Default)]
pub(crate) struct Reviews {
    verdicts: HashMap<TokenHash, (Instant, Verdict)>,
}

impl Reviews {
    pub(crate) fn get(&self, token: TokenHash, now: Instant) -> Option<Verdict> {
        self.verdicts.get(&token).filter(|(until, _)| now < *until).map(|(_, verdict)| verdict.clone())
    }

    /// Remembers a verdict. That the API server could not be asked is none.
    pub(crate) fn put(&mut self, token: TokenHash, verdict: &Verdict, now: Instant) {
        let believed = match verdict {
            Ok(_) => ACCEPTED_FOR,
            Err(CredentialError::Unavailable(_)) => return,
            Err(_) => REFUSED_FOR,
        };
        if self.verdicts.len() >= CAPACITY {
            self.verdicts.retain(|_, (until, _)| now < *until);
        }
        // Full of live ones: whoever comes is asked about each time.
        if self.verdicts.len() < CAPACITY {
            self.verdicts.insert(token, (now + believed, verdict.clone()));
        }
    }

    pub(crate) fn forget(&mut self, token: TokenHash) {
        self.verdicts.remove(&token);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod() -> PodIdentity {
        PodIdentity {
            namespace: "vpn".into(),
            service_account: "edge".into(),
            pod: "edge-0".into(),
            pod_uid: "u".into(),
            node: None,
        }
    }

    #[test]
    fn an_accepted_token_is_believed_for_a_minute() {
        let (mut reviews, token, now) = (Reviews::default(), TokenHash::of("t", "a"), Instant::now());
        reviews.put(token, &Ok(pod()), now);
        assert_eq!(reviews.get(token, now + ACCEPTED_FOR / 2), Some(Ok(pod())));
        assert_eq!(reviews.get(token, now + ACCEPTED_FOR), None);
    }

    #[test]
    fn a_token_is_remembered_for_one_audience_only() {
        let (mut reviews, now) = (Reviews::default(), Instant::now());
        reviews.put(TokenHash::of("t", "a"), &Ok(pod()), now);
        assert_eq!(reviews.get(TokenHash::of("t", "b"), now), None);
    }

    #[test]
    fn that_the_api_server_was_away_is_not_remembered() {
        let (mut reviews, token, now) = (Reviews::default(), TokenHash::of("t", "a"), Instant::now());
        reviews.put(token, &Err(CredentialError::Unavailable("timeout".into())), now);
        assert_eq!(reviews.get(token, now), None);
        reviews.put(token, &Err(CredentialError::NotOfPod), now);
        assert!(reviews.get(token, now).unwrap().is_err());
    }

    #[test]
    fn a_flood_of_tokens_does_not_grow_the_memory() {
        let (mut reviews, now) = (Reviews::default(), Instant::now());
        for n in 0..CAPACITY * 2 {
            reviews.put(TokenHash::of(&n.to_string(), "a"), &Err(CredentialError::NotOfPod), now);
        }
        assert_eq!(reviews.verdicts.len(), CAPACITY);
        let later = now + REFUSED_FOR;
        reviews.put(TokenHash::of("t", "a"), &Ok(pod()), later);
        assert_eq!(reviews.verdicts.len(), 1);
    }
}
