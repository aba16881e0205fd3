//! The text of `resolv.conf(5)`, and of what lists the name servers of devices. Pure.

use std::net::IpAddr;

use pinhole_proto::DomainName;

use super::{Wanted, manager};

/// The first line of a file that is ours.
pub(super) const MARK: &str =
    "# Written by pinhole; the former content is kept and comes back when the tunnel ends.";

/// What is wanted.
pub(super) fn text(wanted: &Wanted) -> String {
    let mut lines: Vec<String> =
        wanted.servers.iter().map(|server| format!("nameserver {server}\n")).collect();
    if !wanted.search.is_empty() {
        let search: Vec<&str> = wanted.search.iter().map(DomainName::as_str).collect();
        lines.push(format!("search {}\n", search.join(" ")));
    }
    lines.concat()
}

/// The same as a file of ours.
pub(super) fn marked(wanted: &Wanted) -> String {
    format!("{MARK}\n{}", text(wanted))
}

/// Whether a file is ours.
pub(super) fn is_marked(text: &str) -> bool {
    text.starts_with(MARK)
}

/// The name servers that a file names.
pub(super) fn servers(text: &str) -> Vec<IpAddr> {
    text.lines().filter_map(server).collect()
}

fn server(line: &str) -> Option<IpAddr> {
    let mut words = line.split_ascii_whitespace();
    (words.next() == Some("nameserver")).then_some(())?;
    words.next()?.parse().ok()
}

/// The name servers of all but one device, as `resolvconf -l` lists them: one file after the other, each under its name.
pub(super) fn of_others(listed: &str, device: &str) -> Vec<IpAddr> {
    let ours = manager::record(device);
    let mut found = Vec::new();
    let mut is_ours = false;
    for line in listed.lines() {
        if let Some(name) = line.strip_prefix("# resolv.conf from ") {
            is_ours = name.trim() == ours;
        } else if !is_ours {
            found.extend(server(line));
        }
    }
    found
}

/// The name servers of one device (`true`), or of all others, as `resolvectl dns` lists them: `Link 2 (eth0): 192.0.2.53`,
/// also over several lines. Those of an address and a port, or of a link's own address, are left out.
pub(super) fn of_links(listed: &str, device: &str, own: bool) -> Vec<IpAddr> {
    let ours = format!("({device})");
    let mut found = Vec::new();
    let mut is_ours = false;
    for line in listed.lines() {
        let words = if line.starts_with([' ', '\t']) {
            line
        } else {
            let Some((link, words)) = line.split_once(": ").or_else(|| Some((line.strip_suffix(':')?, "")))
            else {
                continue;
            };
            is_ours = link.ends_with(&ours);
            words
        };
        if is_ours == own {
            // `address#name` is what TLS checks.
            let addresses = words.split_ascii_whitespace().filter_map(|word| word.split('#').next());
            found.extend(addresses.filter_map(|address| address.parse::<IpAddr>().ok()));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ips(list: &[&str]) -> Vec<IpAddr> {
        list.iter().map(|ip| ip.parse().unwrap()).collect()
    }

    #[test]
    fn servers_come_before_search_domains() {
        let wanted = Wanted {
            servers: ips(&["10.96.0.10", "fd00::a"]),
            search: vec!["cluster.local".parse().unwrap(), "example.com".parse().unwrap()],
            all: false,
        };
        assert_eq!(
            text(&wanted),
            "nameserver 10.96.0.10\nnameserver fd00::a\nsearch cluster.local example.com\n"
        );
        assert!(is_marked(&marked(&wanted)) && !is_marked(&text(&wanted)));
        assert_eq!(servers(&marked(&wanted)), wanted.servers);
    }

    #[test]
    fn junk_in_a_file_names_no_server() {
        let junk = "nameserver\nnameserver x\n#nameserver 192.0.2.1\nnameserver fe80::1%eth0\n nameserver 192.0.2.2 # x";
        assert_eq!(servers(junk), ips(&["192.0.2.2"]));
    }

    #[test]
    fn the_networks_own_servers_are_those_of_the_other_devices() {
        let listed = "# resolv.conf from tun.pinhole0\nnameserver 10.96.0.10\n\n\
                      # resolv.conf from eth0.dhcp\nnameserver 192.168.50.1\nsearch lan\n\n\
                      # resolv.conf from tun.pinhole01\nnameserver 192.168.50.2\n";
        assert_eq!(of_others(listed, "pinhole0"), ips(&["192.168.50.1", "192.168.50.2"]));
        let listed = "Global: 9.9.9.9#dns.quad9.net\nLink 2 (eth0): 192.168.50.1 fe80::1%2\n               2001:db8::53\n\
                      Link 3 (docker0):\nLink 7 (pinhole0): 10.96.0.10\n                    fd00::a\n";
        assert_eq!(of_links(listed, "pinhole0", true), ips(&["10.96.0.10", "fd00::a"]));
        assert_eq!(of_links(listed, "pinhole0", false), ips(&["9.9.9.9", "192.168.50.1", "2001:db8::53"]));
    }
}
