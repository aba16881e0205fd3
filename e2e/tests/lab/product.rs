//! The installed product, shared by the tests: most use it side by side, some want it for themselves.

use std::{
    ops::Range,
    sync::{Mutex, PoisonError},
};

use pinhole_e2e::{Lab, installation::Installation};
use tokio::sync::{OnceCell, RwLock, RwLockReadGuard, RwLockWriteGuard};

static INSTALLED: OnceCell<Result<Installation, String>> = OnceCell::const_new();
static ORDER: RwLock<()> = RwLock::const_new(());
/// Which of the cluster's refusals came while the release was on its way in or out.
static IN_TRANSIT: Mutex<Vec<Range<usize>>> = Mutex::new(Vec::new());

/// The time in which the release is on its way in or out. Helm takes the operator's permissions before its pods, and
/// the API server learns of new ones a moment after they were made: what is refused meanwhile says nothing about the
/// chart.
#[must_use]
pub(crate) struct Transit(usize);

impl Transit {
    pub(crate) fn begin(lab: &Lab) -> anyhow::Result<Self> {
        Ok(Self(lab.cluster().forbidden()?.len()))
    }

    pub(crate) fn end(self, lab: &Lab) -> anyhow::Result<()> {
        let range = self.0..lab.cluster().forbidden()?.len();
        IN_TRANSIT.lock().unwrap_or_else(PoisonError::into_inner).push(range);
        Ok(())
    }
}

/// Requests of the product that the API server refused for want of a permission: all tests together prove the
/// chart's.
pub(crate) fn refused(lab: &Lab) -> Vec<String> {
    let refused = lab.cluster().forbidden().unwrap_or_else(|error| vec![error.to_string()]);
    let in_transit = IN_TRANSIT.lock().unwrap_or_else(PoisonError::into_inner);
    let counts = |(n, request): &(usize, String)| {
        request.contains("pinhole") && !in_transit.iter().any(|range| range.contains(n))
    };
    let mut refused: Vec<_> =
        refused.into_iter().enumerate().filter(counts).map(|(_, request)| request).collect();
    refused.sort();
    refused.dedup();
    refused
}

async fn once(lab: &Lab) -> anyhow::Result<&'static Installation> {
    let installed = INSTALLED.get_or_init(|| async {
        let install = async {
            let transit = Transit::begin(lab)?;
            let values = ["sidecars.startupTimeoutSeconds=60", "rbac.removeLostPods=true"];
            let installation = Installation::install(lab, &values).await?;
            transit.end(lab)?;
            anyhow::Ok(installation)
        };
        install.await.map_err(|error| format!("{error:#}"))
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
