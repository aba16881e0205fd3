//! What a watch makes of its stream: whatever comes, and however it breaks off, the index ends with what there is.

use std::collections::{BTreeMap, BTreeSet};

use futures::stream;
use k8s_openapi::api::core::v1::ConfigMap;
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::telemetry::Health;

fn shared() -> Arc<SharedState> {
    SharedState::new(Arc::new(Health::default()), Arc::new(Metrics::new()))
}

fn map(n: u8) -> ConfigMap {
    let meta = json!({
        "name": format!("m{n}"), "namespace": "vpn", "managedFields": [{ "manager": "kubectl" }],
    });
    serde_json::from_value(json!({ "metadata": meta })).unwrap()
}

/// What the index was told of, in order: name, and whether it is there.
type Told = Arc<std::sync::Mutex<Vec<(String, bool)>>>;

/// Shows the stream to a watch, to its end.
async fn shown(
    shared: &Arc<SharedState>,
    events: Vec<watcher::Result<Event<ConfigMap>>>,
) -> Vec<(String, bool)> {
    let told = Told::default();
    let write = Arc::clone(&told);
    let put = move |_: &mut Index, (_, name): Name, new: Option<ConfigMap>| {
        assert!(new.as_ref().is_none_or(|new| new.metadata.managed_fields.is_none()), "it is pruned");
        write.lock().unwrap().push((name, new.is_some()));
        Effects::default()
    };
    pump("ConfigMap", stream::iter(events), Arc::clone(shared), put).await;
    std::mem::take(&mut *told.lock().unwrap())
}

/// What the index holds after it was told that.
fn held(told: &[(String, bool)]) -> BTreeSet<String> {
    let last: BTreeMap<_, _> = told.iter().cloned().collect();
    last.into_iter().filter(|(_, there)| *there).map(|(name, _)| name).collect()
}

#[tokio::test(start_paused = true)]
async fn what_went_while_the_watch_was_broken_is_gone_once_it_has_listed_again() {
    let list = |maps: &[u8]| {
        let maps: Vec<_> = maps.iter().map(|n| Ok(Event::InitApply(map(*n)))).collect();
        [Ok(Event::Init)].into_iter().chain(maps).chain([Ok(Event::InitDone)])
    };
    let failed = || [Err(watcher::Error::NoResourceVersion)];
    let events = list(&[1, 2, 3]).chain(failed()).chain(list(&[2])).collect();
    let told = shown(&shared(), events).await;
    assert_eq!(told[..4], [1, 2, 3, 2].map(|n| (format!("m{n}"), true)));
    assert_eq!(told.len(), 6, "each that is gone is told once: {told:?}");
    assert_eq!(held(&told), ["m2".to_owned()].into());
}

#[tokio::test(start_paused = true)]
async fn nothing_is_gone_for_a_list_that_broke_off() {
    let events = vec![
        Ok(Event::Init),
        Ok(Event::InitApply(map(1))),
        Ok(Event::InitApply(map(2))),
        Ok(Event::InitDone),
        Ok(Event::Init),
        Ok(Event::InitApply(map(1))),
        Err(watcher::Error::NoResourceVersion),
    ];
    assert_eq!(held(&shown(&shared(), events).await).len(), 2);
}

#[tokio::test(start_paused = true)]
async fn the_operator_is_ready_when_the_list_is_whole_and_ill_when_the_watch_keeps_failing() {
    let shared = shared();
    shown(&shared, vec![Ok(Event::Init), Ok(Event::InitApply(map(1)))]).await;
    assert_eq!(shared.health.unready().as_deref(), Some("not listed yet: ConfigMap"));
    let long = std::time::Duration::from_hours(1);
    let failing = self::shared();
    shown(&failing, vec![Ok(Event::Init), Ok(Event::InitDone), Err(watcher::Error::NoResourceVersion)]).await;
    assert_eq!(failing.health.unready(), None, "what it listed it still knows");
    assert!(failing.health.illness(Instant::now() + long).is_some());
    let mended = self::shared();
    shown(&mended, vec![Err(watcher::Error::NoResourceVersion), Ok(Event::Apply(map(1)))]).await;
    assert_eq!(mended.health.illness(Instant::now() + long), None);
}

/// What happens to the cluster, or to the watch of it.
#[derive(Clone, Debug)]
enum Step {
    Made(u8),
    Gone(u8),
    /// The watch breaks off, this happens unseen, and it lists anew; the first list breaks off after so many.
    Broken(Vec<(u8, bool)>, usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let unseen = prop::collection::vec((0..5_u8, any::<bool>()), 0..4);
    let step = prop_oneof![
        3 => (0..5_u8).prop_map(Step::Made),
        2 => (0..5_u8).prop_map(Step::Gone),
        2 => (unseen, 0..4_usize).prop_map(|(unseen, listed)| Step::Broken(unseen, listed)),
    ];
    prop::collection::vec(step, 1..20)
}

/// The stream that a watch gets of these steps, and what there is in the end.
fn stream_of(steps: &[Step]) -> (Vec<watcher::Result<Event<ConfigMap>>>, BTreeSet<String>) {
    let mut there: BTreeSet<u8> = BTreeSet::new();
    let mut events = vec![Ok(Event::Init), Ok(Event::InitDone)];
    for step in steps {
        match step {
            Step::Made(n) => {
                there.insert(*n);
                events.push(Ok(Event::Apply(map(*n))));
            }
            Step::Gone(n) => {
                if there.remove(n) {
                    events.push(Ok(Event::Delete(map(*n))));
                }
            }
            Step::Broken(unseen, listed) => {
                events.extend([Err(watcher::Error::NoResourceVersion), Ok(Event::Init)]);
                events.extend(there.iter().take(*listed).map(|n| Ok(Event::InitApply(map(*n)))));
                for (n, made) in unseen {
                    if *made {
                        there.insert(*n);
                    } else {
                        there.remove(n);
                    }
                }
                events.push(Ok(Event::Init));
                events.extend(there.iter().map(|n| Ok(Event::InitApply(map(*n)))));
                events.push(Ok(Event::InitDone));
            }
        }
    }
    (events, there.iter().map(|n| format!("m{n}")).collect())
}

proptest! {
    #[test]
    fn however_often_it_breaks_off_a_watch_ends_with_what_there_is(steps in steps()) {
        let (events, there) = stream_of(&steps);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let told = runtime.block_on(shown(&shared(), events));
        prop_assert_eq!(held(&told), there);
    }
}
