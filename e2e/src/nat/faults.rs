//! What goes wrong on the way beyond a NAT, whatever the NAT is made of: packets of any kind vanish, each way by itself.

use super::profile::{LAN, Loss, WAN};

/// How much is lost of each direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Faults {
    /// What is lost of what leaves.
    pub outbound: Loss,
    /// What is lost of what comes.
    pub inbound: Loss,
}

impl Faults {
    /// All is well.
    pub const NONE: Self = Self { outbound: Loss::NONE, inbound: Loss::NONE };
    /// Nothing passes, and nobody is told.
    pub const SILENCE: Self = Self { outbound: Loss::percent(100), inbound: Loss::percent(100) };

    /// So much is lost of each direction.
    pub const fn each_way(loss: Loss) -> Self {
        Self { outbound: loss, inbound: loss }
    }
}

const TABLE: &str = "inet pinhole_faults";
pub(super) const METER: &str = "pinhole_meter";

/// The complete ruleset, which replaces the one before in one transaction. Only what is forwarded is lost: the NAT itself answers
/// as before, as a router does whose line is dead. By where packets come in, those are found once that pass through the device of a
/// userspace NAT.
pub(super) fn ruleset(faults: Faults) -> String {
    let outbound = faults.outbound.verdict().map(|verdict| format!("    iifname \"{LAN}\" {verdict}\n"));
    let inbound = faults.inbound.verdict().map(|verdict| format!("    iifname \"{WAN}\" {verdict}\n"));
    let rules = [outbound, inbound].into_iter().flatten().collect::<String>();
    format!(
        "table {TABLE}\ndelete table {TABLE}\ntable {TABLE} {{
  chain forward {{
    type filter hook forward priority filter - 10;
{rules}  }}
}}
"
    )
}

/// Counts from now on what hosts inside send to the world, also what is lost on the way.
pub(super) fn meter() -> String {
    format!(
        "table inet {METER}\ndelete table inet {METER}\ntable inet {METER} {{
  counter outbound {{ }}
  chain forward {{
    type filter hook forward priority filter - 20;
    iifname \"{LAN}\" counter name outbound
  }}
}}
"
    )
}

/// What `nft -j list counter` tells.
pub(super) fn packets(text: &str) -> Option<u64> {
    let told: serde_json::Value = serde_json::from_str(text).ok()?;
    let objects = told.get("nftables")?.as_array()?;
    objects.iter().find_map(|object| object.get("counter")?.get("packets")?.as_u64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_direction_is_lost_by_itself() {
        let rules = ruleset(Faults { outbound: Loss::percent(5), inbound: Loss::per_mille(15) });
        assert!(rules.contains("iifname \"lan0\" numgen random mod 1000 < 50 drop\n"), "{rules}");
        assert!(rules.contains("iifname \"wan0\" numgen random mod 1000 < 15 drop\n"), "{rules}");
        let one = ruleset(Faults { outbound: Loss::NONE, inbound: Loss::percent(100) });
        assert!(!one.contains("lan0") && one.contains("iifname \"wan0\" drop\n"), "{one}");
    }

    #[test]
    fn a_count_is_read_from_what_nft_prints() {
        let text = r#"{"nftables": [{"metainfo": {"version": "1.0.6"}}, {"counter": {"name": "outbound", "packets": 17, "bytes": 9}}]}"#;
        assert_eq!(packets(text), Some(17));
        assert_eq!(packets(r#"{"nftables": []}"#), None);
    }

    #[test]
    fn without_faults_nothing_is_dropped() {
        assert!(!ruleset(Faults::NONE).contains("drop"));
        assert_eq!(ruleset(Faults::SILENCE).matches(" drop\n").count(), 2);
    }
}
