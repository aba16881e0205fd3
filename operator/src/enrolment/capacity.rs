//! Is there room for one more. Pure.
//!
//! A first look at what the pool's status says, so that no use of a token is lost on a full pool. The word that
//! counts is the address allocation's, on the client itself.

use pinhole_crds::{VPNClient, VPNClientPool};

use super::EnrolmentError;
use crate::fleet::PoolKey;

/// Reason on a client for which there was no address.
const EXHAUSTED: &str = "PoolExhausted";

/// Reason on a client that is one too many for `spec.maxClients`.
const FULL: &str = "PoolFull";

/// Whether the pool can take one more.
pub(super) fn check(pool: &VPNClientPool) -> Result<(), EnrolmentError> {
    let Some(capacity) = pool.status.as_ref().and_then(|s| s.capacity) else {
        return Ok(());
    };
    let name = || PoolKey::from(pool).to_string();
    if pool.spec.max_clients.is_some_and(|most| capacity.allocated >= most) {
        return Err(EnrolmentError::PoolFull(name()));
    }
    if capacity.free <= 0 {
        return Err(EnrolmentError::PoolExhausted(name()));
    }
    Ok(())
}

/// Why the controllers will give this client no address, when they said so.
pub(super) fn refusal(client: &VPNClient, pool: &PoolKey) -> Option<EnrolmentError> {
    let conditions = client.status.iter().flat_map(|s| &s.conditions);
    let mut reasons = conditions.map(|c| c.reason.as_str());
    reasons.find_map(|reason| match reason {
        EXHAUSTED => Some(EnrolmentError::PoolExhausted(pool.to_string())),
        FULL => Some(EnrolmentError::PoolFull(pool.to_string())),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use pinhole_crds::{PoolCapacity, VPNClientPoolStatus};

    use super::*;
    use crate::enrolment::memory;

    fn verdict(free: i64, allocated: i64, max_clients: Option<i64>) -> &'static str {
        let mut pool = memory::pool("staff", vec![]);
        pool.spec.max_clients = max_clients;
        let capacity = Some(PoolCapacity { total: free + allocated, allocated, free });
        pool.status = Some(VPNClientPoolStatus { capacity, ..VPNClientPoolStatus::default() });
        check(&pool).err().map_or("room", |e| e.category())
    }

    #[test]
    fn a_pool_without_addresses_is_exhausted_and_one_with_too_many_clients_is_full() {
        assert_eq!(verdict(1, 9, None), "room");
        assert_eq!(verdict(0, 10, None), "PoolExhausted");
        assert_eq!(verdict(5, 5, Some(5)), "PoolFull");
        assert_eq!(verdict(0, 5, Some(5)), "PoolFull");
        assert!(check(&memory::pool("staff", vec![])).is_ok());
    }
}
