use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures::future::BoxFuture;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use kube::{Api, Client, api::PostParams};
use tokio::{sync::Semaphore, time::timeout};

use super::{
    CredentialError, PodIdentity,
    credential::is_plausible,
    reviews::{Reviews, TokenHash},
};

/// How long the API server may take to review a token.
const REVIEW_TIMEOUT: Duration = Duration::from_secs(5);

/// Most reviews under way at a time.
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
            let answer = timeout(REVIEW_TIMEOUT, self.api.create(&params, &review))
                .await
                .map_err(|_| CredentialError::Unavailable(format!("no answer within {REVIEW_TIMEOUT:?}")))?
                .map_err(|e| CredentialError::Unavailable(e.to_string()))?;
            PodIdentity::from_review(&answer.status.unwrap_or_default(), audience)
        })
    }
}

/// Asks another reviewer, and remembers the answer for about a minute.
pub struct CachedReviewer {
    reviewer: Box<dyn TokenReviewer>,
    reviews: Mutex<Reviews>,
    under_way: Semaphore,
}

impl CachedReviewer {
    /// Remembers what `reviewer` says.
    pub fn new(reviewer: impl TokenReviewer) -> Self {
        Self {
            reviewer: Box::new(reviewer),
            reviews: Mutex::default(),
            under_way: Semaphore::new(CONCURRENT_REVIEWS),
        }
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
        let _permit =
            self.under_way.acquire().await.map_err(|e| CredentialError::Unavailable(e.to_string()))?;
        let verdict = self.reviewer.review(token, audience).await;
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
