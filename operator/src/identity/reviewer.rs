//! Reviews ServiceAccount tokens, and bounds how many at a time.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures::future::BoxFuture;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use kube::{Api, Client, api::PostParams};
use pinhole_proto::OPERATOR_AUDIENCE;
use tokio::{sync::Semaphore, time::timeout};

use super::{
    CredentialError, PodIdentity,
    credential::is_plausible,
    reviews::{Reviews, TokenHash},
};

/// How long a review may take, the wait for its turn included: less than the 10 s that a gateway waits for an answer.
const REVIEW_TIMEOUT: Duration = Duration::from_secs(8);

/// Most reviews under way at a time, of each audience: sidecars never keep gateways waiting.
const CONCURRENT_REVIEWS: usize = 16;

/// Whoever can say what pod a ServiceAccount token is bound to.
pub trait TokenReviewer: Send + Sync + 'static {
    /// Reviews `token` for `audience`.
    fn review<'a>(
        &'a self,
        token: &'a str,
        audience: &'static str,
    ) -> BoxFuture<'a, Result<PodIdentity, CredentialError>>;
}

/// Asks the API server (`TokenReview`).
pub struct ApiTokenReviewer {
    api: Api<TokenReview>,
}

impl ApiTokenReviewer {
    /// A reviewer that uses `client`.
    pub fn new(client: Client) -> Self {
        Self { api: Api::all(client) }
    }
}

impl TokenReviewer for ApiTokenReviewer {
    fn review<'a>(
        &'a self,
        token: &'a str,
        audience: &'static str,
    ) -> BoxFuture<'a, Result<PodIdentity, CredentialError>> {
        Box::pin(async move {
            let review = TokenReview {
                spec: TokenReviewSpec { audiences: Some(vec![audience.to_owned()]), token: token.to_owned() },
                ..TokenReview::default()
            };
            let params = PostParams::default();
            let answer = self.api.create(&params, &review).await;
            let answer = answer.map_err(|e| CredentialError::Unavailable(e.to_string()))?;
            PodIdentity::from_review(&answer.status.unwrap_or_default(), audience)
        })
    }
}

/// Asks another reviewer, and remembers the answer for about a minute.
pub struct CachedReviewer {
    reviewer: Box<dyn TokenReviewer>,
    reviews: Mutex<Reviews>,
    of_gateways: Semaphore,
    of_others: Semaphore,
}

impl CachedReviewer {
    /// Remembers what `reviewer` says.
    pub fn new(reviewer: impl TokenReviewer) -> Self {
        Self {
            reviewer: Box::new(reviewer),
            reviews: Mutex::default(),
            of_gateways: Semaphore::new(CONCURRENT_REVIEWS),
            of_others: Semaphore::new(CONCURRENT_REVIEWS),
        }
    }

    /// Whether a review would ask nobody.
    pub fn remembers(&self, token: &str, audience: &'static str) -> bool {
        !is_plausible(token)
            || self.with(|reviews| reviews.get(TokenHash::of(token, audience), Instant::now())).is_some()
    }

    /// The pod that `token` is bound to.
    pub async fn review(&self, token: &str, audience: &'static str) -> Result<PodIdentity, CredentialError> {
        if !is_plausible(token) {
            return Err(CredentialError::Missing);
        }
        let hash = TokenHash::of(token, audience);
        if let Some(verdict) = self.with(|reviews| reviews.get(hash, Instant::now())) {
            return verdict;
        }
        let asked = async {
            let turns = if audience == OPERATOR_AUDIENCE { &self.of_gateways } else { &self.of_others };
            let turn = turns.acquire().await;
            let _permit = turn.map_err(|e| CredentialError::Unavailable(e.to_string()))?;
            self.reviewer.review(token, audience).await
        };
        let verdict = timeout(REVIEW_TIMEOUT, asked).await.unwrap_or_else(|_| {
            let seconds = REVIEW_TIMEOUT.as_secs();
            Err(CredentialError::Unavailable(format!("no answer of the API server within {seconds} s")))
        });
        self.with(|reviews| reviews.put(hash, &verdict, Instant::now()));
        verdict
    }

    /// Asks again, whatever is remembered.
    pub async fn review_anew(
        &self,
        token: &str,
        audience: &'static str,
    ) -> Result<PodIdentity, CredentialError> {
        self.with(|reviews| reviews.forget(TokenHash::of(token, audience)));
        self.review(token, audience).await
    }

    fn with<T>(&self, act: impl FnOnce(&mut Reviews) -> T) -> T {
        act(&mut self.reviews.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use futures::future::{join_all, pending};

    use super::*;

    struct Silent;

    impl TokenReviewer for Silent {
        fn review<'a>(
            &'a self,
            _: &'a str,
            _: &'static str,
        ) -> BoxFuture<'a, Result<PodIdentity, CredentialError>> {
            Box::pin(pending())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_an_api_server_that_is_silent_for_longer_than_a_gateway_does() {
        let reviewer = CachedReviewer::new(Silent);
        let began = tokio::time::Instant::now();
        let tokens: Vec<_> = (0..CONCURRENT_REVIEWS * 3).map(|n| format!("token-{n}")).collect();
        let verdicts = join_all(tokens.iter().map(|token| reviewer.review(token, "a"))).await;
        assert!(verdicts.iter().all(|verdict| matches!(verdict, Err(CredentialError::Unavailable(_)))));
        assert!(began.elapsed() < Duration::from_secs(10));
    }
}
