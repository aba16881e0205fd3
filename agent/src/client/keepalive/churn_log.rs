//! What happened to the client's path, as it is told: counted by cause, the last of each in full.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, SystemTime},
};

use pinhole_proto::v1;

use crate::{
    nat::{Cause, Churn},
    wire,
};

/// One change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::client) struct Change {
    pub(in crate::client) at: SystemTime,
    pub(in crate::client) cause: Cause,
    pub(in crate::client) from: Option<SocketAddr>,
    pub(in crate::client) to: Option<SocketAddr>,
    pub(in crate::client) idle: Duration,
}

/// All changes since the start.
#[derive(Debug)]
pub(super) struct ChurnLog {
    since: SystemTime,
    causes: BTreeMap<Cause, (u64, Change)>,
    last: Option<Change>,
}

impl ChurnLog {
    pub(super) fn new(since: SystemTime) -> Self {
        ChurnLog { since, causes: BTreeMap::new(), last: None }
    }

    /// Takes note of one.
    pub(super) fn push(&mut self, at: SystemTime, churn: &Churn) {
        let Churn { cause, from, to, idle, .. } = *churn;
        let change = Change { at, cause, from, to, idle };
        self.last = Some(change);
        let entry = self.causes.entry(cause).or_insert((0, change));
        *entry = (entry.0.saturating_add(1), change);
    }

    /// How many there were.
    pub(super) fn count(&self) -> u64 {
        self.causes.values().map(|(count, _)| count).sum()
    }

    /// The last one.
    pub(super) fn last(&self) -> Option<Change> {
        self.last
    }

    pub(super) fn to_wire(&self) -> v1::ChurnReport {
        let cause = |(cause, (count, last)): (&Cause, &(u64, Change))| v1::ChurnOfCause {
            cause: wire::cause_to_wire(*cause).into(),
            count: *count,
            last: Some(v1::ChurnEvent {
                at: Some(last.at.into()),
                from: last.from.map(|at| at.to_string()).unwrap_or_default(),
                to: last.to.map(|at| at.to_string()).unwrap_or_default(),
                idle: last.idle.try_into().ok(),
            }),
        };
        v1::ChurnReport {
            since: Some(self.since.into()),
            count: self.count(),
            causes: self.causes.iter().map(cause).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn changes_are_counted_by_cause_and_the_last_of_each_is_kept() {
        let (now, mut churn_log) = (SystemTime::now(), ChurnLog::new(SystemTime::now()));
        assert_eq!((churn_log.count(), churn_log.last()), (0, None));
        let churn = |cause, port| Churn {
            at: Instant::now(),
            cause,
            from: None,
            to: Some(([192, 0, 2, 1], port).into()),
            idle: Duration::from_secs(9),
        };
        churn_log.push(now, &churn(Cause::MappingLost, 1));
        churn_log.push(now, &churn(Cause::MappingLost, 2));
        churn_log.push(now, &churn(Cause::Roam, 3));
        let wire = churn_log.to_wire();
        assert_eq!((wire.count, wire.causes.len()), (3, 2));
        let lost = wire.causes.iter().find(|cause| cause.cause() == v1::ChurnCause::MappingLost).unwrap();
        assert_eq!((lost.count, lost.last.as_ref().unwrap().to.as_str()), (2, "192.0.2.1:2"));
        assert_eq!(churn_log.last().unwrap().cause, Cause::Roam);
    }
}
