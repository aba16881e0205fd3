//! May this join token be used, and what is written down when it is. Pure.
//!
//! The uses of a token are counted in annotations of its Secret, before the client is made. With a use, the hash of
//! the key that took it is written down: when the operator dies before it made the client, the same machine goes on
//! with that use instead of being told that the token is used up.

use std::collections::BTreeMap;

use k8s_openapi::{api::core::v1::Secret, jiff::Timestamp};
use pinhole_crds::{JoinToken, TokenState, VPNClientPool};
use subtle::ConstantTimeEq as _;

use super::{EnrolmentError, KeyHash};

/// Annotation of a token's Secret: how many uses were made.
pub const USED_ANNOTATION: &str = "pinhole.dev/used";

/// Annotation of a token's Secret: when the last use was made, RFC 3339.
pub const LAST_USED_ANNOTATION: &str = "pinhole.dev/last-used";

/// Annotation of a token's Secret: keys that took a use and whose client may not have been made,
/// `HASH@UNIX-SECONDS`, comma-separated, the oldest first.
pub const PENDING_ANNOTATION: &str = "pinhole.dev/pending";

/// Most keys that are written down.
const MOST_PENDING: usize = 32;

/// How long a key that took a use may go on with it, in seconds.
const PENDING_SECONDS: i64 = 3600;

/// Finds the token that `name` and `secret_part` prove to be held.
pub(super) fn verify<'a>(
    pool: &'a VPNClientPool,
    name: &str,
    secret_part: &str,
    secret: Option<&Secret>,
) -> Result<&'a JoinToken, EnrolmentError> {
    let tokens = pool.spec.enrolment.iter().flat_map(|e| &e.tokens);
    let token = tokens.into_iter().find(|t| t.name == name).ok_or(EnrolmentError::TokenInvalid)?;
    if token.revoked == Some(true) {
        return Err(EnrolmentError::TokenRevoked(token.name.clone()));
    }
    let expected = secret
        .filter(|s| is_of(s, pool))
        .and_then(|s| s.data.as_ref())
        .and_then(|data| data.get(super::secrets::TOKEN_KEY))
        .filter(|bytes| !bytes.0.is_empty())
        .ok_or(EnrolmentError::TokenInvalid)?;
    if !bool::from(expected.0.ct_eq(secret_part.as_bytes())) {
        return Err(EnrolmentError::TokenInvalid);
    }
    Ok(token)
}

/// Whether the Secret is of this incarnation of the pool.
pub(super) fn is_of(secret: &Secret, pool: &VPNClientPool) -> bool {
    let uid = pool.metadata.uid.as_deref().unwrap_or_default();
    secret.metadata.owner_references.iter().flatten().any(|owner| owner.uid == uid)
}

/// What the annotations of a token's Secret say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Ledger {
    pub(super) used: i64,
    pub(super) last_used: Option<Timestamp>,
    pending: Vec<(KeyHash, i64)>,
}

/// What an admitted key has to do.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Admission {
    /// It took its use before.
    Taken,
    /// Write this ledger, provided that nobody wrote another.
    Take(Ledger),
}

impl Ledger {
    /// Of a Secret that is made when `used` uses were made already.
    pub(super) fn starting(used: i64) -> Self {
        Self { used, ..Self::default() }
    }

    pub(super) fn read(annotations: Option<&BTreeMap<String, String>>) -> Self {
        let value = |key: &str| annotations.and_then(|a| a.get(key)).map(String::as_str);
        let pending = value(PENDING_ANNOTATION).unwrap_or_default().split(',').filter_map(|entry| {
            let (hash, at) = entry.split_once('@')?;
            Some((KeyHash::parse(hash)?, at.parse().ok()?))
        });
        Self {
            // What cannot be read was tampered with: then no limited use is left.
            used: value(USED_ANNOTATION).map_or(0, |v| v.parse().unwrap_or(i64::MAX)),
            last_used: value(LAST_USED_ANNOTATION).and_then(|v| v.parse().ok()),
            pending: pending.take(MOST_PENDING).collect(),
        }
    }

    /// The annotations; None says that there shall be none of that name.
    pub(super) fn annotations(&self) -> BTreeMap<String, Option<String>> {
        let pending: Vec<String> = self.pending.iter().map(|(hash, at)| format!("{hash}@{at}")).collect();
        BTreeMap::from([
            (USED_ANNOTATION.to_owned(), Some(self.used.to_string())),
            (LAST_USED_ANNOTATION.to_owned(), self.last_used.map(|t| t.to_string())),
            (PENDING_ANNOTATION.to_owned(), Some(pending.join(",")).filter(|p| !p.is_empty())),
        ])
    }

    /// State of the token, for people.
    pub(super) fn state(&self, token: &JoinToken, now: Timestamp) -> TokenState {
        if token.revoked == Some(true) {
            TokenState::Revoked
        } else if token.expires_at.as_ref().is_some_and(|at| at.0 <= now) {
            TokenState::Expired
        } else if token.uses.is_some_and(|uses| self.used >= uses) {
            TokenState::UsedUp
        } else {
            TokenState::Active
        }
    }

    /// Whether a new client with this key may be made with the token.
    pub(super) fn admit(
        &self,
        token: &JoinToken,
        key: KeyHash,
        now: Timestamp,
    ) -> Result<Admission, EnrolmentError> {
        let is_live = |at: i64| now.as_second().saturating_sub(at) < PENDING_SECONDS;
        match self.state(token, now) {
            TokenState::Revoked => return Err(EnrolmentError::TokenRevoked(token.name.clone())),
            TokenState::Expired => return Err(EnrolmentError::TokenExpired(token.name.clone())),
            _ if self.pending.iter().any(|(hash, at)| *hash == key && is_live(*at)) => {
                return Ok(Admission::Taken);
            }
            TokenState::UsedUp => return Err(EnrolmentError::TokenUsedUp(token.name.clone())),
            TokenState::Active => {}
        }
        let mut pending: Vec<_> = self.pending.iter().copied().filter(|(_, at)| is_live(*at)).collect();
        if pending.len() >= MOST_PENDING {
            pending.remove(0);
        }
        pending.push((key, now.as_second()));
        Ok(Admission::Take(Self { used: self.used.saturating_add(1), last_used: Some(now), pending }))
    }

    /// The ledger once the client of `key` was made: what is left to write. None when there is nothing.
    pub(super) fn settled(&self, key: KeyHash) -> Option<Self> {
        let pending: Vec<_> = self.pending.iter().copied().filter(|(hash, _)| *hash != key).collect();
        (pending.len() != self.pending.len()).then(|| Self { pending, ..self.clone() })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::enrolment::{
        PublicKey,
        memory::{pool, token_secret},
    };

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    fn key(n: u8) -> KeyHash {
        KeyHash::of(&PublicKey::new(&[n; 32]).unwrap())
    }

    fn token(uses: Option<i64>) -> JoinToken {
        JoinToken { name: "first".into(), uses, expires_at: None, revoked: None, group: None }
    }

    fn take(ledger: &Ledger, token: &JoinToken, n: u8, second: i64) -> Ledger {
        match ledger.admit(token, key(n), at(second)).unwrap() {
            Admission::Take(ledger) => {
                let written = ledger.annotations().into_iter().filter_map(|(k, v)| Some((k, v?))).collect();
                assert_eq!(Ledger::read(Some(&written)), ledger);
                ledger
            }
            Admission::Taken => panic!("was taken before"),
        }
    }

    #[test]
    fn a_single_use_is_one_use() {
        let token = token(Some(1));
        let ledger = take(&Ledger::default(), &token, 1, 0);
        assert_eq!(ledger.used, 1);
        assert_eq!(ledger.state(&token, at(0)), TokenState::UsedUp);
        assert_eq!(ledger.admit(&token, key(2), at(1)).unwrap_err().category(), "TokenUsedUp");
    }

    #[test]
    fn the_key_that_took_a_use_goes_on_with_it_for_an_hour() {
        let token = token(Some(1));
        let ledger = take(&Ledger::default(), &token, 1, 0);
        assert_eq!(ledger.admit(&token, key(1), at(3599)).unwrap(), Admission::Taken);
        assert_eq!(ledger.admit(&token, key(1), at(3600)).unwrap_err().category(), "TokenUsedUp");
    }

    #[test]
    fn once_its_client_was_made_a_key_cannot_use_its_use_again() {
        let token = token(Some(1));
        let ledger = take(&Ledger::default(), &token, 1, 0).settled(key(1)).unwrap();
        assert_eq!(ledger.used, 1);
        assert_eq!(ledger.admit(&token, key(1), at(1)).unwrap_err().category(), "TokenUsedUp");
        assert_eq!(ledger.settled(key(1)), None);
    }

    #[test]
    fn an_expired_or_revoked_token_admits_nobody_not_even_who_took_a_use() {
        let ledger = take(&Ledger::default(), &token(None), 1, 0);
        let expires_at = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(10)));
        let expired = JoinToken { expires_at, ..token(None) };
        assert!(ledger.admit(&expired, key(1), at(9)).is_ok());
        assert_eq!(ledger.admit(&expired, key(1), at(10)).unwrap_err().category(), "TokenExpired");
        let revoked = JoinToken { revoked: Some(true), ..token(None) };
        assert_eq!(ledger.admit(&revoked, key(1), at(0)).unwrap_err().category(), "TokenRevoked");
    }

    #[test]
    fn a_counter_that_cannot_be_read_leaves_no_limited_use() {
        let tampered = Ledger::read(Some(&BTreeMap::from([(USED_ANNOTATION.into(), "-x".into())])));
        assert_eq!(tampered.admit(&token(Some(5)), key(1), at(0)).unwrap_err().category(), "TokenUsedUp");
        assert!(tampered.admit(&token(None), key(1), at(0)).is_ok());
    }

    #[test]
    fn an_unknown_token_and_a_wrong_secret_cannot_be_told_apart() {
        let pool = pool("staff", vec![token(None)]);
        let secret = token_secret(&pool, "first", "right");
        assert!(verify(&pool, "first", "right", Some(&secret)).is_ok());
        let unknown = verify(&pool, "other", "right", None).unwrap_err();
        for (part, secret) in [("wrong", Some(&secret)), ("", Some(&secret)), ("right", None)] {
            let wrong = verify(&pool, "first", part, secret).unwrap_err();
            assert_eq!((wrong.category(), wrong.to_string()), (unknown.category(), unknown.to_string()));
        }
    }

    #[test]
    fn the_secret_of_a_pool_that_was_deleted_is_not_that_of_its_successor() {
        let old = pool("staff", vec![token(None)]);
        let secret = token_secret(&old, "first", "right");
        let mut new = old;
        new.metadata.uid = Some("another".into());
        assert_eq!(verify(&new, "first", "right", Some(&secret)).unwrap_err().category(), "TokenInvalid");
    }

    proptest! {
        /// Whoever asks how often in whatever order, and whether or not clients get made: never more keys
        /// than uses.
        #[test]
        fn no_more_keys_get_in_than_there_are_uses(
            uses in 1i64..6,
            asks in proptest::collection::vec((1u8..12, 0i64..2000, any::<bool>()), 1..80),
        ) {
            let token = token(Some(uses));
            let (mut ledger, mut second, mut admitted) = (Ledger::default(), 0, 0);
            for (n, wait, settle) in asks {
                second += wait;
                if let Ok(Admission::Take(next)) = ledger.admit(&token, key(n), at(second)) {
                    admitted += 1;
                    ledger = next;
                }
                if settle {
                    ledger = ledger.settled(key(n)).unwrap_or(ledger);
                }
            }
            prop_assert!(admitted <= uses);
            prop_assert_eq!(ledger.used, admitted);
        }

        #[test]
        fn no_annotation_makes_the_ledger_panic_or_grow(used in ".{0,40}", pending in "[0-9a-f@,-]{0,3000}") {
            let annotations = BTreeMap::from([(USED_ANNOTATION.into(), used), (PENDING_ANNOTATION.into(), pending)]);
            let ledger = Ledger::read(Some(&annotations));
            prop_assert!(ledger.pending.len() <= MOST_PENDING);
            let _ = ledger.admit(&token(Some(3)), key(1), at(0));
        }
    }
}
