//! Where the time goes: stacks of this very process, over HTTP and only on its own machine. In builds with the feature
//! `profile`, for every role.
//!
//! A timer of the process's CPU time interrupts whichever thread runs, and the stack that it finds there is one sample.
//! That takes no `perf`, no privilege and no second container. Time in the kernel shows as the system call's wrapper.

use std::{
    collections::BTreeMap,
    env,
    fmt::Write,
    fs::{self, DirBuilder},
    io,
    net::{Ipv4Addr, SocketAddr},
    os::unix::fs::DirBuilderExt,
    path::PathBuf,
    time::Duration,
};

use axum::{
    Router,
    extract::{RawQuery, State},
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::get,
};
use nix::sys::signal::{Signal, raise};
use pprof::{ProfilerGuard, ProfilerGuardBuilder, Report, flamegraph};
use tokio::{
    net::TcpListener,
    sync::{Mutex, MutexGuard},
    task::spawn_blocking,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

/// Where to listen, `ADDRESS:PORT`.
const VARIABLE: &str = "PINHOLE_PROFILE";
const DEFAULT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 6061);
/// Samples in a second of CPU time, next to a round number so as not to keep step with anything.
const FREQUENCY: i32 = 199;
const SECONDS: u64 = 10;
const MAX_SECONDS: u64 = 60;
/// What the process's end waits for at most.
const LEAVE: Duration = Duration::from_secs(1);
/// Memory, also where a container has no other place that can be written to.
const ALWAYS_WRITABLE: &str = "/dev/shm";

/// Why there is no profile.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// The question makes no sense.
    #[error("seconds={0}: not a whole number from 1 to {MAX_SECONDS}")]
    Seconds(String),
    /// One at a time.
    #[error("somebody takes a profile already: try again when it is over")]
    Busy,
    /// The process used less CPU time than there is between two samples.
    #[error("the process did nothing meanwhile")]
    Idle,
    /// The sampler failed.
    #[error("no profile: {0}")]
    Failed(String),
}

impl ProfileError {
    /// Stable name of what went wrong.
    pub const fn category(&self) -> &'static str {
        match self {
            Self::Seconds(_) => "QuestionInvalid",
            Self::Busy => "ProfileRunning",
            Self::Idle => "ProcessIdle",
            Self::Failed(_) => "SamplerFailed",
        }
    }

    const fn status(&self) -> StatusCode {
        match self {
            Self::Seconds(_) => StatusCode::BAD_REQUEST,
            Self::Busy => StatusCode::CONFLICT,
            Self::Idle | Self::Failed(_) => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

impl From<pprof::Error> for ProfileError {
    fn from(error: pprof::Error) -> Self {
        match error {
            pprof::Error::Running => Self::Busy,
            error => Self::Failed(error.to_string()),
        }
    }
}

impl IntoResponse for ProfileError {
    fn into_response(self) -> Response {
        (self.status(), format!("{self} [{}]\n", self.category())).into_response()
    }
}

/// Does the work of a process, and answers meanwhile. Whoever samples when it ends gets what there is until then.
pub async fn beside<T>(stop: &CancellationToken, work: impl Future<Output = T>) -> T {
    let serving = tokio::spawn(serve(stop.clone()));
    let done = work.await;
    stop.cancel();
    let _ = timeout(LEAVE, serving).await;
    done
}

/// Answers until `stop`. A process that cannot listen works on without.
async fn serve(stop: CancellationToken) {
    let address = env::var(VARIABLE).ok();
    let address = address.map_or(Ok(DEFAULT), |address| address.parse());
    let listener = match address {
        Ok(address) => TcpListener::bind(address).await.map_err(|error| format!("{address}: {error}")),
        Err(error) => Err(format!("{VARIABLE}: {error}")),
    };
    let served = match listener {
        Ok(listener) => {
            let address = listener.local_addr().unwrap_or(DEFAULT);
            tracing::info!(%address, "profiles are at /debug/flamegraph");
            let serving = axum::serve(listener, routes(stop.clone()));
            let serving = serving.with_graceful_shutdown(stop.cancelled_owned());
            serving.await.map_err(|error| error.to_string())
        }
        Err(error) => Err(error),
    };
    if let Err(error) = served {
        tracing::warn!(error, "no profiles of this process");
    }
}

fn routes(stop: CancellationToken) -> Router {
    Router::new().route("/debug/flamegraph", get(picture)).route("/debug/stacks", get(text)).with_state(stop)
}

/// A picture to open in a browser.
async fn picture(
    State(stop): State<CancellationToken>,
    RawQuery(query): RawQuery,
) -> Result<impl IntoResponse, ProfileError> {
    let stacks = Stacks::sample(duration(query.as_deref())?, &stop).await?;
    Ok(([(CONTENT_TYPE, "image/svg+xml")], stacks.flamegraph()?))
}

/// For other tools: a line `thread;outermost;…;innermost count` for each stack.
async fn text(
    State(stop): State<CancellationToken>,
    RawQuery(query): RawQuery,
) -> Result<String, ProfileError> {
    Ok(Stacks::sample(duration(query.as_deref())?, &stop).await?.lines().collect())
}

/// What the query asks for.
fn duration(query: Option<&str>) -> Result<Duration, ProfileError> {
    let fields = query.unwrap_or_default().split('&');
    let Some(asked) = fields.filter_map(|field| field.strip_prefix("seconds=")).next_back() else {
        return Ok(Duration::from_secs(SECONDS));
    };
    let seconds = asked.parse().ok().filter(|seconds| (1..=MAX_SECONDS).contains(seconds));
    seconds.map(Duration::from_secs).ok_or_else(|| ProfileError::Seconds(asked.to_owned()))
}

/// How often each stack was found.
#[derive(Debug)]
struct Stacks(BTreeMap<String, isize>);

impl Stacks {
    /// Samples this process for so long, or until `stop`. Dropped meanwhile, it ends at once.
    async fn sample(duration: Duration, stop: &CancellationToken) -> Result<Self, ProfileError> {
        let room = Room::take()?;
        // Reads debug information, before and after.
        let sampler = blocking(|| Sampler::start(room)).await??;
        let _ = timeout(duration, stop.cancelled()).await;
        let report = blocking(move || sampler.guard.report().build()).await??;
        let stacks = Self::of(&report);
        if stacks.0.is_empty() { Err(ProfileError::Idle) } else { Ok(stacks) }
    }

    fn of(report: &Report) -> Self {
        let mut stacks = BTreeMap::new();
        for (found, count) in &report.data {
            let mut stack = found.thread_name_or_id();
            for symbol in found.frames.iter().rev().flat_map(|inlined| inlined.iter().rev()) {
                // Both end a name where these lines are read.
                let name = symbol.name().replace([';', '\n'], ":");
                let _ = write!(stack, ";{name}");
            }
            *stacks.entry(stack).or_default() += count;
        }
        Self(stacks)
    }

    fn lines(&self) -> impl Iterator<Item = String> {
        self.0.iter().map(|(stack, count)| format!("{stack} {count}\n"))
    }

    fn flamegraph(&self) -> Result<Vec<u8>, ProfileError> {
        let mut options = flamegraph::Options::default();
        "pinhole: CPU time".clone_into(&mut options.title);
        let lines: Vec<String> = self.lines().collect();
        let mut picture = Vec::new();
        flamegraph::from_lines(&mut options, lines.iter().map(|line| line.trim_end()), &mut picture)
            .map_err(|error| ProfileError::Failed(error.to_string()))?;
        Ok(picture)
    }
}

/// Samples until it is dropped.
struct Sampler {
    guard: ProfilerGuard<'static>,
    // After the guard, whose end makes another file.
    _room: Room,
}

impl Sampler {
    /// No library is left out, as `pprof` suggests: without the C library all of the kernel's time would be missing. What
    /// it fears there are locks of the C library's unwinder, which has none since glibc 2.35, as framehop has none.
    fn start(room: Room) -> Result<Self, ProfileError> {
        // The first sample of all allocates and reads files, which could hang a thread that was interrupted in the
        // allocator. So it is taken here, long before the timer would take it, and thrown away.
        let first = ProfilerGuardBuilder::default().frequency(1).build()?;
        raise(Signal::SIGPROF).map_err(|errno| ProfileError::Failed(errno.to_string()))?;
        drop(first);
        let guard = ProfilerGuardBuilder::default().frequency(FREQUENCY).build()?;
        Ok(Self { guard, _room: room })
    }
}

/// A directory for the sampler, which keeps in a file what overflows, and never removes that. Who has it is the one who
/// samples.
struct Room(MutexGuard<'static, Option<PathBuf>>);

impl Room {
    fn take() -> Result<Self, ProfileError> {
        // Files can be sent to another directory than the usual one only once: it has the same name each time.
        static PATH: Mutex<Option<PathBuf>> = Mutex::const_new(None);
        let mut path = PATH.try_lock().map_err(|_| ProfileError::Busy)?;
        let made = match &*path {
            Some(path) => DirBuilder::new().mode(0o700).create(path),
            None => Self::make().map(|made| *path = Some(made)),
        };
        made.map_err(|error| ProfileError::Failed(format!("no directory for samples: {error}")))?;
        Ok(Self(path))
    }

    fn make() -> io::Result<PathBuf> {
        let directory = || {
            let mut directory = tempfile::Builder::new();
            directory.prefix("pinhole-profile-");
            directory
        };
        let made = directory().tempdir().or_else(|_| directory().tempdir_in(ALWAYS_WRITABLE))?.keep();
        let _ = tempfile::env::override_temp_dir(&made);
        Ok(made)
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        if let Some(path) = &*self.0 {
            let _ = fs::remove_dir_all(path);
        }
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, ProfileError> {
    spawn_blocking(work).await.map_err(|error| ProfileError::Failed(error.to_string()))
}

#[cfg(test)]
mod tests {
    use std::{
        hint::black_box,
        process::Command,
        sync::{
            Arc,
            atomic::{AtomicBool, Ordering},
        },
        thread,
    };

    use axum::{
        body::{Body, to_bytes},
        http::Request,
    };
    use tower::ServiceExt;

    use super::*;

    /// In words of its own, so that nothing else in a picture can be meant.
    #[inline(never)]
    fn burn_for_the_flamegraph(stop: &AtomicBool) {
        while !stop.load(Ordering::Relaxed) {
            black_box(0);
        }
    }

    async fn ask(target: &str) -> (StatusCode, String) {
        let question = Request::get(target).body(Body::empty()).unwrap();
        let answer = routes(CancellationToken::new()).oneshot(question).await.unwrap();
        let status = answer.status();
        let body = to_bytes(answer.into_body(), usize::MAX).await.unwrap();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    /// The timer, its signal and the directory for files are the whole process's.
    #[test]
    fn one_profile_at_a_time_names_what_is_busy_and_leaves_no_file() {
        let directory = tempfile::tempdir().unwrap();
        let test = "profile::tests::in_a_process_of_its_own";
        let mut command = Command::new(env::current_exe().unwrap());
        command.args([test, "--exact", "--ignored"]).env("TMPDIR", directory.path());
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains("1 passed"), "{said}");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[tokio::test]
    #[ignore = "the test above runs it"]
    async fn in_a_process_of_its_own() {
        let stop = Arc::new(AtomicBool::new(false));
        let burner = thread::spawn({
            let stop = Arc::clone(&stop);
            move || burn_for_the_flamegraph(&stop)
        });
        let ((one, picture), (other, why)) =
            tokio::join!(ask("/debug/flamegraph?seconds=1"), ask("/debug/flamegraph?seconds=1"));
        let stacks = ask("/debug/stacks?seconds=1").await;
        stop.store(true, Ordering::Relaxed);
        burner.join().unwrap();

        let (picture, status, why) =
            if one == StatusCode::OK { (picture, other, why) } else { (why, one, picture) };
        assert!(picture.contains("<svg") && picture.contains("burn_for_the_flamegraph"), "{picture:.500}");
        assert_eq!(status, StatusCode::CONFLICT);
        assert!(why.contains("[ProfileRunning]"), "{why}");
        assert_eq!(stacks.0, StatusCode::OK, "{}", stacks.1);
        let burnt = stacks.1.lines().find(|line| line.contains("burn_for_the_flamegraph")).unwrap();
        let (stack, count) = burnt.rsplit_once(' ').unwrap();
        assert!(stack.split(';').count() > 3 && count.parse::<u32>().unwrap() > 0, "{burnt}");
    }

    #[tokio::test]
    async fn a_profile_takes_a_second_to_a_minute() {
        for query in
            ["seconds=0", "seconds=61", "seconds=-1", "seconds=1.5", "seconds=", "seconds=1&seconds=x"]
        {
            let (status, why) = ask(&format!("/debug/flamegraph?{query}")).await;
            assert_eq!(status, StatusCode::BAD_REQUEST, "{query}");
            assert!(why.contains("from 1 to 60"), "{why}");
        }
        assert_eq!(duration(Some("seconds=60")).unwrap(), Duration::from_mins(1));
        assert_eq!(duration(Some("other=1&seconds=1")).unwrap(), Duration::from_secs(1));
        assert_eq!(duration(None).unwrap(), Duration::from_secs(10));
    }
}
