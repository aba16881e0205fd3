//! The installed product, shared by the tests: most use it side by side, some want it for themselves.

use pinhole_e2e::{Lab, installation::Installation};
use tokio::sync::{OnceCell, RwLock, RwLockReadGuard, RwLockWriteGuard};

static INSTALLED: OnceCell<Result<Installation, String>> = OnceCell::const_new();
static ORDER: RwLock<()> = RwLock::const_new(());

async fn once(lab: &Lab) -> anyhow::Result<&'static Installation> {
    let installed = INSTALLED.get_or_init(|| async {
        Installation::install(lab, &["sidecars.startupTimeoutSeconds=60"])
            .await
            .map_err(|error| error.to_string())
    });
    installed.await.as_ref().map_err(|error| anyhow::anyhow!("{error}"))
}

/// The product for tests that run side by side.
pub(crate) async fn installed(lab: &Lab) -> anyhow::Result<RwLockReadGuard<'static, ()>> {
    once(lab).await?;
    Ok(ORDER.read().await)
}

/// The product for a test that disturbs it: no other test of the product runs meanwhile. It leaves the product
/// as it was.
pub(crate) async fn alone(
    lab: &Lab,
) -> anyhow::Result<(RwLockWriteGuard<'static, ()>, &'static Installation)> {
    let installation = once(lab).await?;
    Ok((ORDER.write().await, installation))
}
