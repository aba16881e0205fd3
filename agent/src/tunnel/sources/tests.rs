//! Hosts whose ways change, and by which address answers go out then.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

const WIFI: u32 = 2;
const CABLE: u32 = 3;
const LOOPBACK: u32 = 1;

/// A host whose way to everybody is one, or another by source.
#[derive(Default)]
struct Host {
    way: Option<Way>,
    by_source: HashMap<IpAddr, Way>,
    homes: HashMap<IpAddr, u32>,
}

impl Host {
    fn leaves_by(device: u32) -> Self {
        let homes = [(WIFI, 2), (CABLE, 3), (LOOPBACK, 1)].map(|(device, n)| (address(n), device));
        Self { way: Some(way(device)), by_source: HashMap::new(), homes: homes.into() }
    }
}

impl Routes for Host {
    fn way(&mut self, _: SocketAddr, from: Option<IpAddr>) -> Result<Option<Way>, KernelError> {
        Ok(from.and_then(|from| self.by_source.get(&from).copied()).or(self.way))
    }

    fn device_of(&mut self, own: IpAddr) -> Result<Option<u32>, KernelError> {
        Ok(self.homes.get(&own).copied())
    }
}

fn address(n: u8) -> IpAddr {
    [192, 0, 2, n].into()
}

fn way(device: u32) -> Way {
    Way { device, gateway: None, source: None }
}

fn peer(n: u8) -> PublicKey {
    PublicKey::from_bytes([n; 32])
}

fn learnt(own: u8, device: u32, is_told: bool) -> Learnt {
    let local = Local { address: address(own), device };
    Learnt { remote: ([198, 51, 100, 1], 9).into(), local, is_told }
}

/// What becomes of one address that was learnt at this host.
struct Case {
    host: Host,
    learnt: Learnt,
    sources: Sources,
}

impl Case {
    fn new(mut host: Host, learnt: Learnt) -> Self {
        let mut sources = Sources::default();
        let verdicts = sources.note(HashMap::from([(peer(1), Some(learnt))]), &mut host);
        assert_eq!(verdicts, []);
        Self { host, learnt, sources }
    }

    fn review(&mut self) -> Option<Standing> {
        let verdicts = self.sources.review(&mut self.host);
        assert!(verdicts.iter().all(|(key, path, _)| (*key, *path) == (peer(1), self.learnt.path())));
        assert!(verdicts.len() <= 1);
        verdicts.first().map(|(.., standing)| *standing)
    }
}

#[test]
fn an_address_is_kept_as_long_as_nothing_of_it_changes() {
    for is_told in [true, false] {
        let mut case = Case::new(Host::leaves_by(WIFI), learnt(2, WIFI, is_told));
        assert_eq!(case.review(), None);
        // Another address's matter.
        case.host.homes.insert(address(77), CABLE);
        case.host.by_source.insert(address(77), way(CABLE));
        assert_eq!(case.review(), None);
    }
}

#[test]
fn an_address_that_the_host_has_no_more_is_forgotten_once() {
    for is_told in [true, false] {
        let mut case = Case::new(Host::leaves_by(WIFI), learnt(2, WIFI, is_told));
        case.host.homes.remove(&address(2));
        assert_eq!([case.review(), case.review()], [Some(Standing::Forgotten), None]);
    }
}

#[test]
fn who_asks_follows_the_way_to_another_device_and_is_not_called_back() {
    let mut case = Case::new(Host::leaves_by(WIFI), learnt(2, WIFI, true));
    case.host.way = Some(way(CABLE));
    // Its own rules may keep the old address on the old device.
    case.host.by_source.insert(address(2), way(WIFI));
    assert_eq!([case.review(), case.review()], [Some(Standing::Unfit), None]);
    case.host.way = Some(way(WIFI));
    assert_eq!([case.review(), case.review()], [Some(Standing::Fit), None]);
}

#[test]
fn what_comes_late_by_a_device_that_was_left_is_not_learnt() {
    let mut sources = Sources::default();
    let late = learnt(2, WIFI, true);
    let verdicts = sources.note(HashMap::from([(peer(1), Some(late))]), &mut Host::leaves_by(CABLE));
    assert_eq!(verdicts, [(peer(1), late.path(), Standing::Unfit)]);
    let mut without = Host::leaves_by(CABLE);
    without.homes.clear();
    assert_eq!(sources.review(&mut without), [(peer(1), late.path(), Standing::Fit)], "it may come again");
}

#[test]
fn who_asks_follows_another_router_or_source_on_the_same_device() {
    for changed in
        [Way { gateway: Some(address(254)), ..way(WIFI) }, Way { source: Some(address(20)), ..way(WIFI) }]
    {
        let mut case = Case::new(Host::leaves_by(WIFI), learnt(2, WIFI, true));
        case.host.way = Some(changed);
        assert_eq!([case.review(), case.review()], [Some(Standing::Forgotten), None]);
    }
}

#[test]
fn who_answers_leaves_an_address_with_the_device_that_has_it() {
    let mut case = Case::new(Host::leaves_by(WIFI), learnt(2, WIFI, false));
    case.host.way = Some(Way { gateway: Some(address(254)), ..way(WIFI) });
    assert_eq!(case.review(), None, "another router there");
    case.host.way = Some(way(CABLE));
    assert_eq!(case.review(), Some(Standing::Forgotten));
    // The peer still asks there, so nothing else can be right.
    let again = HashMap::from([(peer(1), Some(case.learnt))]);
    assert_eq!(case.sources.note(again, &mut case.host), []);
    assert_eq!(case.review(), None);
}

#[test]
fn who_answers_keeps_an_address_that_is_of_no_device_on_the_way() {
    // One that is announced by a routing protocol, over two links.
    let mut case = Case::new(Host::leaves_by(WIFI), learnt(1, CABLE, false));
    case.host.way = Some(way(CABLE));
    assert_eq!(case.review(), None);
    // One whose way is its own, whatever the others' is.
    let mut host = Host::leaves_by(WIFI);
    host.by_source.insert(address(3), way(CABLE));
    let mut case = Case::new(host, learnt(3, CABLE, false));
    case.host.way = Some(way(LOOPBACK));
    assert_eq!(case.review(), None);
}

#[test]
fn without_any_way_the_next_one_decides() {
    for (is_told, standing) in [(true, Standing::Unfit), (false, Standing::Forgotten)] {
        let mut case = Case::new(Host::leaves_by(WIFI), learnt(2, WIFI, is_told));
        case.host.way = None;
        assert_eq!(case.review(), None);
        case.host.way = Some(way(CABLE));
        assert_eq!(case.review(), Some(standing));
    }
}

#[test]
fn a_peer_that_is_gone_is_forgotten() {
    let mut case = Case::new(Host::leaves_by(WIFI), learnt(2, WIFI, true));
    case.sources.note(HashMap::from([(peer(1), None)]), &mut case.host);
    assert!(case.sources.0.is_empty());
}

#[test]
fn of_many_notices_the_last_of_each_peer_is_taken() {
    let notices = Notices::new().unwrap();
    for n in 0..100 {
        notices.put(peer(n % 2), Some(learnt(n, WIFI, true)));
    }
    notices.put(peer(1), None);
    assert_eq!(notices.take(), HashMap::from([(peer(0), Some(learnt(98, WIFI, true))), (peer(1), None)]));
    assert_eq!(notices.wake().read(), Err(Errno::EAGAIN), "nothing is left to wake for");
    notices.put(peer(1), None);
    assert_eq!(notices.wake().read(), Ok(1));
}

proptest! {
    /// Whatever happens: what nothing changes for is told nothing, and memory is bounded by the peers.
    #[test]
    fn any_changes_end_in_quiet(
        steps in prop::collection::vec((0..3_u8, 0..4_u8, 1..4_u32, any::<bool>(), prop::option::of(1..4_u32)), 1..40),
    ) {
        let (mut host, mut sources) = (Host::leaves_by(WIFI), Sources::default());
        for (who, own, device, is_told, leaves_by) in steps {
            sources.note(HashMap::from([(peer(who), Some(learnt(own, device, is_told)))]), &mut host);
            host.way = leaves_by.map(way);
            sources.review(&mut host);
            prop_assert_eq!(sources.review(&mut host), []);
            prop_assert!(sources.0.len() <= 3);
        }
    }
}
