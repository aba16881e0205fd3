//! What a VPN changes of a host's network and name servers, and has to give back.

use std::collections::BTreeSet;

use super::Host;
use crate::error::Result;

/// Links, routes, rules, nftables and name servers of a host, a line each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Footprint(BTreeSet<String>);

/// Each with the words before its lines.
const ASKED: [(&str, &[&str]); 6] = [
    ("link", &["ip", "-oneline", "-brief", "link"]),
    ("route", &["ip", "-4", "route", "show", "table", "all"]),
    ("route6", &["ip", "-6", "route", "show", "table", "all"]),
    ("rule", &["ip", "-4", "rule"]),
    ("rule6", &["ip", "-6", "rule"]),
    ("nft", &["nft", "list", "ruleset"]),
];

impl Footprint {
    /// What is there now.
    ///
    /// # Errors
    /// When `ip` or `nft` fails.
    pub async fn of(host: &Host) -> Result<Self> {
        let mut lines = BTreeSet::new();
        for (name, words) in ASKED {
            let [program, args @ ..] = words else { continue };
            let shown = host.exec(program, args).await?;
            lines.extend(shown.lines().filter_map(settled).map(|line| format!("{name}: {line}")));
        }
        if host.has_own_files() {
            let shown = host.exec("sh", ["-c", "readlink /etc/resolv.conf; cat /etc/resolv.conf"]).await;
            lines.extend(shown.unwrap_or_default().lines().map(|line| format!("resolv.conf: {line}")));
        }
        Ok(Self(lines))
    }

    /// The lines that only one of both has, with `-` those that are gone and with `+` those that came.
    #[must_use]
    pub fn differences(&self, later: &Self) -> Vec<String> {
        let gone = self.0.difference(&later.0).map(|line| format!("-{line}"));
        gone.chain(later.0.difference(&self.0).map(|line| format!("+{line}"))).collect()
    }
}

/// The line as it is until somebody changes it; none of what the kernel makes by itself when it gets round to it.
fn settled(line: &str) -> Option<String> {
    let by_itself = ["fe80:", "ff00::/8", "multicast"];
    let words: Vec<&str> = line.split_whitespace().collect();
    let is_settled = !words.is_empty() && !by_itself.iter().any(|part| line.contains(part));
    let countdown = words.iter().position(|word| *word == "expires");
    let until = countdown.unwrap_or(words.len());
    is_settled.then(|| words.get(..until).unwrap_or_default().join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_does_by_itself_is_left_out() {
        assert_eq!(settled("local fe80::1 dev eth0 table local proto kernel metric 0 pref medium"), None);
        assert_eq!(settled("  "), None);
        let route = settled("default via 10.0.0.1 dev eth0  expires 1797sec pref high");
        assert_eq!(route.as_deref(), Some("default via 10.0.0.1 dev eth0"));
    }

    #[test]
    fn differences_are_told_both_ways() {
        let print = |lines: &[&str]| Footprint(lines.iter().map(|&line| line.to_owned()).collect());
        let (before, after) = (print(&["rule: a", "rule: b"]), print(&["rule: b", "rule: c"]));
        assert_eq!(before.differences(&after), ["-rule: a", "+rule: c"]);
        assert_eq!(before.differences(&before.clone()), Vec::<String>::new());
    }
}
