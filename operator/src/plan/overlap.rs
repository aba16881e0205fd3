//! Pools that cannot both have their addresses.

use ipnet::IpNet;
use kube::ResourceExt as _;
use pinhole_crds::VPNClientPool;

/// Two pools of one gateway that cannot both have their addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overlap {
    /// Name of the older pool.
    pub with: String,
    /// A prefix of the younger one.
    pub own: IpNet,
    /// The prefix of the older one that it overlaps.
    pub other: IpNet,
}

/// For each of one gateway's `pools`, the first overlap with an older one (by creation, then UID). An overlap with a
/// pool that is itself held up counts as well: what works today does not stop when that one is let go on.
pub fn overlaps<'a>(pools: &[&'a VPNClientPool]) -> Vec<(&'a VPNClientPool, Option<Overlap>)> {
    let mut by_age: Vec<&VPNClientPool> =
        pools.iter().copied().filter(|p| p.metadata.deletion_timestamp.is_none()).collect();
    by_age.sort_by_key(|pool| (pool.creation_timestamp().map(|t| t.0), pool.uid()));
    let older = |n: usize| by_age.iter().take(n);
    by_age
        .iter()
        .enumerate()
        .map(|(n, pool)| (*pool, older(n).find_map(|older| overlap(pool, older))))
        .collect()
}

fn overlap(pool: &VPNClientPool, older: &VPNClientPool) -> Option<Overlap> {
    let pairs = pool.spec.cidrs.iter().flat_map(|own| older.spec.cidrs.iter().map(move |other| (own, other)));
    let (own, other) = pairs.into_iter().find(|(own, other)| own.contains(*other) || other.contains(*own))?;
    Some(Overlap { with: older.name_any(), own: *own, other: *other })
}
