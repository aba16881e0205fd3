//! A hash that never changes: between builds, machines and versions.

/// 64-bit FNV-1a. Not for secrets and not against an adversary.
pub(super) fn fnv1a(parts: &[&[u8]]) -> u64 {
    let separated = parts.iter().flat_map(|part| part.iter().copied().chain([0xff]));
    separated
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// The one of `candidates` that `key` belongs to: rendezvous hashing, so that adding or removing a candidate moves
/// as few keys as possible.
pub(super) fn choose<'a>(key: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    candidates.into_iter().max_by_key(|name| (mix(fnv1a(&[key.as_bytes(), name.as_bytes()])), *name))
}

/// FNV's high bits depend little on the last bytes; this spreads them (the finaliser of SplitMix64).
fn mix(hash: u64) -> u64 {
    let hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_that_of_the_book() {
        assert_eq!(fnv1a(&[]), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a(&[b"a"]), (0xaf63_dc4c_8601_ec8c_u64 ^ 0xff).wrapping_mul(0x0100_0000_01b3));
    }

    #[test]
    fn keys_spread_evenly_and_move_only_to_the_new_candidate() {
        let keys: Vec<String> = (0..3000).map(|n| format!("uid-{n}")).collect();
        let three = ["edge-0", "edge-1", "edge-2"];
        for name in three {
            let share = keys.iter().filter(|k| choose(k, three) == Some(name)).count();
            assert!((800..1200).contains(&share), "{name}: {share}");
        }
        let moved = keys.iter().filter(|k| {
            let (before, after) = (choose(k, three), choose(k, three.into_iter().chain(["edge-3"])));
            assert!(before == after || after == Some("edge-3"));
            before != after
        });
        assert!((500..1000).contains(&moved.count()));
    }
}
