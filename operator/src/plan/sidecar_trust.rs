//! The SidecarTrust that the sidecar policy reads: what is said where it is not the operator's. Pure.

use pinhole_crds::VPNClientPool;
use pinhole_proto::printable;

use super::ownership::Foreign;

/// Longest text of the API server that is quoted, characters.
const QUOTE: usize = 400;

/// Why pods get no sidecar that trusts this operator's gateways. It does not pass before somebody acts.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SidecarTrustObstacle {
    /// Somebody else has its name.
    #[error(
        "{foreign}, in namespace {namespace}: the operator leaves it alone, and pods of this pool get no sidecar, or one that \
         trusts what stands there and no gateway of this operator. It reads no other name: delete that SidecarTrust, and it is made anew"
    )]
    Taken {
        /// What is there.
        foreign: Foreign,
        /// Where.
        namespace: String,
    },
    /// The API server does not take it.
    #[error(
        "the SidecarTrust of namespace {namespace} cannot be written, and pods of this pool get no sidecar, or one that trusts what \
         was written before: {}. Check that the chart's definitions and roles are those of this operator", printable(.said, QUOTE)
    )]
    Refused {
        /// The reason's name.
        reason: &'static str,
        /// The API server's answer.
        said: String,
        /// Where.
        namespace: String,
    },
}

impl SidecarTrustObstacle {
    /// The reason's name, for conditions and Events.
    pub fn category(&self) -> &'static str {
        match self {
            Self::Taken { .. } => Foreign::CATEGORY,
            Self::Refused { reason, .. } => reason,
        }
    }
}

/// What came of writing the SidecarTrust.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SidecarTrustWrite {
    /// It is there as it should be.
    Done,
    /// It is not, and will not be by itself.
    Obstacle(SidecarTrustObstacle),
    /// It was tried in vain, and may work the next time.
    Failed,
}

/// What is in the way after a write, where this was in the way before it. A failure that may pass changes nothing of what is known.
pub fn obstacle_after(
    before: Option<SidecarTrustObstacle>,
    write: SidecarTrustWrite,
) -> Option<SidecarTrustObstacle> {
    match write {
        SidecarTrustWrite::Done => None,
        SidecarTrustWrite::Obstacle(obstacle) => Some(obstacle),
        SidecarTrustWrite::Failed => before,
    }
}

/// Whether pods may carry a sidecar client of the pool.
pub fn takes_sidecars(pool: &VPNClientPool) -> bool {
    pool.spec.enrolment.as_ref().is_some_and(|enrolment| enrolment.sidecars.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::ObjectKind;

    #[test]
    fn an_obstacle_stays_known_over_a_failure_that_may_pass_and_goes_with_the_next_write() {
        let foreign = Foreign { kind: ObjectKind::SidecarTrust, name: "pinhole".into(), controller: None };
        let taken = SidecarTrustObstacle::Taken { foreign, namespace: "ops".into() };
        let known = obstacle_after(None, SidecarTrustWrite::Obstacle(taken.clone()));
        assert_eq!(known.as_ref(), Some(&taken));
        let known = obstacle_after(known, SidecarTrustWrite::Failed);
        assert_eq!(known, Some(taken));
        assert_eq!(obstacle_after(known, SidecarTrustWrite::Done), None);
        assert_eq!(obstacle_after(None, SidecarTrustWrite::Failed), None);
    }
}
