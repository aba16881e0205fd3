//! Who counts as one source.

use std::net::{IpAddr, Ipv6Addr};

/// Who counts as one source: an IPv4 address, or the /64 that an IPv6 host can pick addresses from.
pub fn place(source: IpAddr) -> IpAddr {
    match source.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_of_one_ipv6_network_and_both_forms_of_an_ipv4_address_are_one_source() {
        let same = |a: &str, b: &str| place(a.parse().unwrap()) == place(b.parse().unwrap());
        assert!(same("2001:db8:1:2:3::4", "2001:db8:1:2:ffff::"));
        assert!(!same("2001:db8:1:2::", "2001:db8:1:3::"));
        assert!(same("::ffff:192.0.2.1", "192.0.2.1"));
        assert!(!same("::ffff:192.0.2.1", "::ffff:192.0.2.2"));
    }
}
