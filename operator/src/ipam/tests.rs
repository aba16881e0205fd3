//! Allocation by examples, and against a simple model.

use std::collections::{BTreeMap, HashSet};

use proptest::prelude::*;

use super::*;

fn shape(cidrs: &[&str]) -> Shape {
    Shape { cidrs: cidrs.iter().map(|c| c.parse().unwrap()).collect(), ..Shape::default() }
}

fn holder(n: i64) -> Holder {
    Holder { created: Timestamp::from_second(n).unwrap(), uid: format!("uid-{n}") }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn the_smallest_prefix_holds_one_client() {
    let mut ipam = Ipam::new(shape(&["10.0.0.0/30"]));
    assert_eq!(ipam.assign(&holder(1), &[]), Ok(vec![ip("10.0.0.2")]));
    assert_eq!(ipam.assign(&holder(2), &[]), Err(Denied::Exhausted(Family::V4)));
    assert_eq!(ipam.shortage(), Some(Denied::Exhausted(Family::V4)));
    assert_eq!(ipam.capacity(), PoolCapacity { total: 1, allocated: 1, free: 0 });
}

#[test]
fn a_client_gets_one_address_of_each_family_and_keeps_them() {
    let mut ipam = Ipam::new(shape(&["10.0.0.0/24", "fd77::/64"]));
    let first = ipam.assign(&holder(1), &[]).unwrap();
    assert_eq!(first, vec![ip("10.0.0.2"), ip("fd77::2")]);
    ipam.assign(&holder(2), &[]).unwrap();
    assert_eq!(ipam.assign(&holder(1), &[]).unwrap(), first);
}

#[test]
fn reserved_ranges_are_not_given_out() {
    let mut pool = shape(&["10.0.0.0/29"]);
    pool.reserved = vec!["10.0.0.2-10.0.0.4".parse().unwrap(), "10.0.0.6".parse().unwrap()];
    let mut ipam = Ipam::new(pool);
    assert_eq!(ipam.assign(&holder(1), &[]), Ok(vec![ip("10.0.0.5")]));
    assert!(ipam.assign(&holder(2), &[]).is_err());
    assert_eq!(ipam.assign(&holder(2), &[ip("10.0.0.3")]), Err(Denied::Reserved(ip("10.0.0.3"))));
}

#[test]
fn a_fixed_address_is_given_or_refused_with_its_reason() {
    let mut ipam = Ipam::new(shape(&["10.0.0.0/24"]));
    assert_eq!(ipam.assign(&holder(1), &[ip("10.0.0.9")]), Ok(vec![ip("10.0.0.9")]));
    for (address, category) in [
        ("10.0.0.9", "AddressConflict"),
        ("10.0.1.9", "AddressOutsidePool"),
        ("fd77::9", "AddressOutsidePool"),
        ("10.0.0.1", "AddressReserved"),
        ("10.0.0.0", "AddressReserved"),
        ("10.0.0.255", "AddressReserved"),
    ] {
        assert_eq!(ipam.assign(&holder(2), &[ip(address)]).unwrap_err().category(), category, "{address}");
    }
    assert!(ipam.addresses("uid-2").is_empty());
}

#[test]
fn a_client_whose_wish_is_refused_keeps_what_it_has() {
    let mut ipam = Ipam::new(shape(&["10.0.0.0/24"]));
    ipam.assign(&holder(1), &[ip("10.0.0.9")]).unwrap();
    let own = ipam.assign(&holder(2), &[]).unwrap();
    assert!(ipam.assign(&holder(2), &[ip("10.0.0.9")]).is_err());
    assert_eq!(ipam.addresses("uid-2"), own);
}

#[test]
fn a_client_moves_to_a_fixed_address_and_frees_its_old_one() {
    let mut ipam = Ipam::new(shape(&["10.0.0.0/24"]));
    ipam.assign(&holder(1), &[]).unwrap();
    assert_eq!(ipam.assign(&holder(1), &[ip("10.0.0.77")]), Ok(vec![ip("10.0.0.77")]));
    assert_eq!(ipam.capacity().allocated, 1);
    assert_eq!(ipam.assign(&holder(2), &[ip("10.0.0.2")]), Ok(vec![ip("10.0.0.2")]));
}

#[test]
fn the_address_freed_first_is_given_again_first_but_only_when_all_others_were() {
    let mut ipam = Ipam::new(shape(&["10.0.0.0/29"]));
    for n in 1..=3 {
        ipam.assign(&holder(n), &[]).unwrap();
    }
    ipam.release("uid-2");
    ipam.release("uid-1");
    let next: Vec<_> = (4..=7).map(|n| ipam.assign(&holder(n), &[]).unwrap()[0].to_string()).collect();
    assert_eq!(next, ["10.0.0.5", "10.0.0.6", "10.0.0.3", "10.0.0.2"]);
}

#[test]
fn max_clients_bounds_a_pool_that_has_addresses_left() {
    let mut ipam = Ipam::new(Shape { max_clients: Some(1), ..shape(&["fd77::/48"]) });
    ipam.assign(&holder(1), &[]).unwrap();
    assert_eq!(ipam.assign(&holder(2), &[]), Err(Denied::PoolFull(1)));
    assert!(ipam.assign(&holder(1), &[]).is_ok(), "who is in stays in");
    assert_eq!(ipam.capacity(), PoolCapacity { total: 1, allocated: 1, free: 0 });
}

#[test]
fn counts_of_huge_prefixes_stop_at_two_to_the_53() {
    assert_eq!(Ipam::new(shape(&["fd77::/48"])).capacity().free, 1 << 53);
}

#[test]
fn of_two_clients_with_one_address_the_older_keeps_it_in_any_order() {
    let both = |order: [i64; 2]| {
        let clients = order.map(|n| (holder(n), vec![ip("10.0.0.9")])).to_vec();
        Ipam::rebuild(shape(&["10.0.0.0/24"]), clients)
    };
    for order in [[1, 2], [2, 1]] {
        let (mut ipam, losers) = both(order);
        assert_eq!(losers, ["uid-2"]);
        assert_eq!(ipam.addresses("uid-1"), [ip("10.0.0.9")]);
        assert_eq!(ipam.assign(&holder(2), &[]), Ok(vec![ip("10.0.0.10")]));
    }
}

#[test]
fn an_older_client_that_appears_late_takes_its_address_back() {
    let mut ipam = Ipam::new(shape(&["10.0.0.0/24"]));
    ipam.assign(&holder(5), &[ip("10.0.0.9")]).unwrap();
    let adoption = ipam.adopt(&holder(1), &[ip("10.0.0.9")]);
    assert_eq!(adoption, Adoption { refused: vec![], displaced: vec!["uid-5".into()] });
    assert!(ipam.addresses("uid-5").is_empty());
}

#[test]
fn a_status_that_claims_the_gateways_address_or_a_foreign_one_is_not_believed() {
    let mut ipam = Ipam::new(shape(&["10.0.0.0/24"]));
    for claim in ["10.0.0.1", "192.168.0.9", "fd77::9"] {
        assert_eq!(ipam.adopt(&holder(1), &[ip(claim)]).refused, [ip(claim)]);
    }
    assert_eq!(ipam.capacity().allocated, 0);
}

#[test]
fn an_address_that_was_reserved_later_stays_with_its_client() {
    let mut ipam = Ipam::new(shape(&["10.0.0.0/24"]));
    let own = ipam.assign(&holder(1), &[]).unwrap();
    let reserved = Shape { reserved: vec!["10.0.0.0/28".parse().unwrap()], ..shape(&["10.0.0.0/24"]) };
    ipam.reshape(reserved.clone());
    assert_eq!(ipam.assign(&holder(1), &[]), Ok(own.clone()));
    let (ipam, losers) = Ipam::rebuild(reserved, vec![(holder(1), own.clone())]);
    assert!(losers.is_empty());
    assert_eq!(ipam.addresses("uid-1"), own);
}

#[test]
fn a_full_pool_takes_clients_again_when_a_prefix_is_added() {
    let mut ipam = Ipam::new(shape(&["10.0.0.0/30"]));
    ipam.assign(&holder(1), &[]).unwrap();
    assert!(ipam.assign(&holder(2), &[]).is_err());
    ipam.reshape(shape(&["10.0.0.0/30", "10.9.0.0/30"]));
    assert_eq!(ipam.assign(&holder(2), &[]), Ok(vec![ip("10.9.0.2")]));
}

#[derive(Clone, Debug)]
enum Step {
    Assign(i64),
    Fix(i64, u8),
    Release(i64),
    Restart,
    Reserve(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..40_i64).prop_map(Step::Assign),
        2 => (0..40_i64, any::<u8>()).prop_map(|(n, a)| Step::Fix(n, a % 34)),
        3 => (0..40_i64).prop_map(Step::Release),
        1 => Just(Step::Restart),
        1 => any::<u8>().prop_map(|a| Step::Reserve(a % 32)),
    ]
}

proptest! {
    #[test]
    fn no_address_is_held_twice_or_lies_outside_and_a_restart_changes_nothing(
        steps in prop::collection::vec(step(), 1..200), six in any::<bool>()
    ) {
        let cidrs: &[&str] = if six { &["10.0.0.0/28", "10.0.0.16/28", "fd77::/123"] } else { &["10.0.0.0/27"] };
        let mut pool = shape(cidrs);
        let mut ipam = Ipam::new(pool.clone());
        let mut model: BTreeMap<i64, Vec<IpAddr>> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Assign(n) => if let Ok(got) = ipam.assign(&holder(n), &[]) {
                    if let Some(before) = model.get(&n) {
                        prop_assert_eq!(before, &got, "addresses are stable");
                    }
                    prop_assert!(got.iter().all(|a| model.contains_key(&n) || !pool.reserved.iter().any(|r| r.contains(*a))));
                    model.insert(n, got);
                },
                Step::Fix(n, last) => {
                    let wish = ip(&format!("10.0.0.{last}"));
                    if let Ok(got) = ipam.assign(&holder(n), &[wish]) {
                        prop_assert!(got.contains(&wish));
                        model.insert(n, got);
                    }
                }
                Step::Release(n) => { ipam.release(&holder(n).uid); model.remove(&n); }
                Step::Restart => {
                    let listed = model.iter().rev().map(|(n, a)| (holder(*n), a.clone())).collect();
                    let (rebuilt, losers) = Ipam::rebuild(pool.clone(), listed);
                    prop_assert!(losers.is_empty());
                    ipam = rebuilt;
                }
                Step::Reserve(last) => {
                    pool.reserved = vec![format!("10.0.0.{last}").parse().unwrap()];
                    ipam.reshape(pool.clone());
                }
            }
            let held: Vec<IpAddr> = model.values().flatten().copied().collect();
            prop_assert_eq!(held.iter().collect::<HashSet<_>>().len(), held.len(), "never twice");
            prop_assert!(held.iter().all(|a| pool.cidrs.iter().any(|c| c.contains(a)
                && *a != c.network() && *a != gateway_address(c) && (a.is_ipv6() || *a != c.broadcast()))));
            prop_assert!(model.iter().all(|(n, a)| ipam.addresses(&holder(*n).uid) == *a));
            prop_assert_eq!(ipam.capacity().allocated, i64::try_from(model.len()).unwrap());
        }
    }

    #[test]
    fn exactly_the_usable_addresses_are_given_out(bits in 24_u8..=30, reserve in 0_u32..300) {
        let net: IpNet = format!("10.0.0.0/{bits}").parse().unwrap();
        let reserved: IpAddr = std::net::Ipv4Addr::from_bits(0x0a00_0000 + reserve).into();
        let mut pool = shape(&[&net.to_string()]);
        pool.reserved = vec![AddressRange::from(IpNet::from(reserved))];
        let usable = (1_i64 << (32 - bits)) - 3
            - i64::from(net.contains(&reserved) && reserve > 1 && reserved != net.broadcast());
        let mut ipam = Ipam::new(pool);
        prop_assert_eq!(ipam.capacity().total, usable);
        let given = (0..1000).take_while(|n| ipam.assign(&holder(*n), &[]).is_ok()).count();
        prop_assert_eq!(i64::try_from(given).unwrap(), usable);
    }
}
