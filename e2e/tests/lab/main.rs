//! Tests on the real thing: one lab serves all of them.
//!
//! A module holds related tests: `async fn name(lab: &Lab) -> Outcome`, listed with `tests!`, and the module
//! is listed in [`all`]. Names of hosts and of Kubernetes namespaces are a test's own: tests run side by side.

#![expect(
    clippy::indexing_slicing,
    reason = "serde_json yields Null for what is not there, and a test may panic"
)]

mod access;
mod cluster;
mod drift;
mod enrolment;
mod first_tunnel;
mod foreign;
#[path = "../../../proto/tests/hostile/mod.rs"]
mod hostile;
mod hosts;
mod insight;
mod keepalive_under_load;
mod keys;
mod kinds;
#[path = "../../../agent/tests/wg/machine.rs"]
#[allow(clippy::unwrap_used, clippy::expect_used, reason = "a machine that does not boot is a failed test")]
mod machine;
mod many_clients;
mod mobility;
mod nats;
mod newer;
mod phases;
mod product;
mod quiet;
mod reach;
mod refused;
mod refused_by_node;
mod resilience;
mod sidecars;
mod stale_mapping;
mod standby;
mod stock;
mod uninstall;
mod userspace_nat;
mod watched;

use std::{
    pin::Pin,
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::anyhow;
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use pinhole_e2e::{Lab, lab, state};
use tokio::{runtime::Runtime, sync::OnceCell};

/// Why a test cannot run here.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct CannotRun(pub(crate) &'static str);

/// What a test yields.
pub(crate) type Outcome = anyhow::Result<()>;
type Run = for<'a> fn(&'a Lab) -> Pin<Box<dyn Future<Output = Outcome> + Send + 'a>>;

/// A test: its name and what it does.
pub(crate) struct Test {
    pub(crate) name: &'static str,
    pub(crate) run: Run,
}

/// Lists the tests of a module.
macro_rules! tests {
    ($($name:ident),+ $(,)?) => {
        pub(crate) fn tests() -> Vec<crate::Test> {
            vec![$(crate::Test {
                name: concat!(module_path!(), "::", stringify!($name)),
                run: |lab| Box::pin($name(lab)),
            }),+]
        }
    };
}
pub(crate) use tests;

fn all() -> Vec<Test> {
    [
        cluster::tests(),
        nats::tests(),
        userspace_nat::tests(),
        insight::tests(),
        quiet::tests(),
        standby::tests(),
        kinds::tests(),
        enrolment::tests(),
        first_tunnel::tests(),
        access::tests(),
        foreign::tests(),
        refused::tests(),
        refused_by_node::tests(),
        drift::tests(),
        stock::tests(),
        reach::tests(),
        many_clients::tests(),
        keys::tests(),
        sidecars::tests(),
        resilience::tests(),
        stale_mapping::tests(),
        keepalive_under_load::tests(),
        mobility::tests(),
        hosts::tests(),
        watched::tests(),
        newer::tests(),
        uninstall::tests(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// No test of the lab takes longer than this unless it hangs: some wait for one another.
fn patience() -> Duration {
    Duration::from_mins(20) + 4 * keepalive_under_load::soak() + mobility::trials() * Duration::from_mins(1)
}

/// The one lab, started by the first test that needs it.
struct Shared {
    runtime: Runtime,
    lab: OnceCell<Result<Lab, String>>,
    /// How long each test took, with what it waited for others.
    took: Mutex<Vec<(Duration, &'static str)>>,
}

impl Shared {
    fn run(&self, test: &Test) -> Result<Completion, Failed> {
        if let Err(error) = lab::must_be_possible() {
            return Ok(Completion::ignored_with(error));
        }
        let begun = Instant::now();
        let outcome = self.within_the_lab(test.run);
        self.took.lock().unwrap_or_else(PoisonError::into_inner).push((begun.elapsed(), test.name));
        outcome
    }

    fn within_the_lab(&self, test: Run) -> Result<Completion, Failed> {
        let outcome = self.runtime.block_on(async {
            let lab = self.lab.get_or_init(start).await.as_ref().map_err(|error| anyhow!("{error}"))?;
            let patience = patience();
            let outcome = tokio::time::timeout(patience, test(lab)).await;
            outcome.map_err(|_| anyhow!("still not done after {patience:?}"))??;
            anyhow::Ok(lab.cluster().must_run()?)
        });
        match outcome {
            Ok(()) => Ok(Completion::Completed),
            Err(error) => match error.downcast_ref() {
                Some(CannotRun(why)) => Ok(Completion::ignored_with(why)),
                None => Err(format!("{error:#}").into()),
            },
        }
    }

    /// Where the time went.
    fn slowest(&self) -> String {
        let mut took = self.took.lock().unwrap_or_else(PoisonError::into_inner);
        took.sort_unstable_by(|a, b| b.cmp(a));
        let line = |(took, name): &(Duration, &str)| format!("{:>6.0} s  {name}", took.as_secs_f64());
        took.iter().take(12).map(line).collect::<Vec<_>>().join("\n")
    }
}

async fn start() -> Result<Lab, String> {
    // Signals first: they may come while the lab is on its way up.
    lab::end_on_signals().map_err(|error| error.to_string())?;
    Lab::find_or_start().await.map_err(|error| error.to_string())
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // They wait more than they work.
    arguments.test_threads = arguments.test_threads.or(Some(4));
    let Ok(runtime) = Runtime::new() else { return ExitCode::FAILURE };
    let shared = Arc::new(Shared { runtime, lab: OnceCell::new(), took: Mutex::default() });
    let trials = all().into_iter().map(|test| {
        let shared = Arc::clone(&shared);
        Trial::ignorable_test(test.name, move || shared.run(&test))
    });
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    eprintln!("The slowest tests:\n{}", shared.slowest());
    let lab = shared.lab.get().and_then(|lab| lab.as_ref().ok());
    let mine = lab.is_some_and(Lab::is_mine);
    // An open lab's log also tells of what others did in it.
    let refused = lab.filter(|_| mine).map(product::refused).unwrap_or_default();
    drop(shared);
    let traces = if mine { state::traces() } else { Vec::new() };
    if !traces.is_empty() {
        eprintln!("The lab left something behind: {traces:#?}");
        return ExitCode::FAILURE;
    }
    if !refused.is_empty() {
        eprintln!("The chart's permissions do not suffice: {refused:#?}");
        return ExitCode::FAILURE;
    }
    conclusion.exit_code()
}
