//! Waiting for a condition instead of sleeping.

use std::{future::Future, time::Duration};

use crate::error::{Error, Result};

const EVERY: Duration = Duration::from_millis(50);

/// Asks `probe` again and again until it yields a value. `Err` holds what was seen instead.
///
/// # Errors
/// [`Error::Timeout`] with the last thing seen, after `limit`.
pub async fn until<T, E, F>(what: &str, limit: Duration, mut probe: impl FnMut() -> F) -> Result<T>
where
    F: Future<Output = Result<T, E>>,
    E: std::fmt::Display,
{
    let deadline = tokio::time::Instant::now() + limit;
    let mut last = String::from("no answer yet");
    loop {
        match tokio::time::timeout_at(deadline, probe()).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(seen)) => last = seen.to_string(),
            Err(_) => {}
        }
        if tokio::time::Instant::now() + EVERY > deadline {
            return Err(Error::Timeout { what: what.to_owned(), waited: limit, last });
        }
        tokio::time::sleep(EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn gives_the_value_once_the_condition_holds() {
        let mut left = 3;
        let value = until("zero", Duration::from_secs(5), || {
            left -= 1;
            let now = left;
            async move { if now == 0 { Ok("there") } else { Err(format!("{now} left")) } }
        })
        .await;
        assert_eq!(value.unwrap(), "there");
    }

    #[tokio::test]
    async fn says_what_was_seen_last() {
        let outcome: Result<()> =
            until("rain", Duration::from_millis(120), || async { Err::<(), _>("sunshine") }).await;
        let text = outcome.unwrap_err().to_string();
        assert!(text.contains("rain") && text.contains("sunshine"), "{text}");
    }
}
