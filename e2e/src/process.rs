//! Programs: one-off commands, and long-running processes with a log that end with the lab.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io::Write,
    os::fd::AsFd,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::{Arc, OnceLock, mpsc},
    time::{Duration, Instant},
};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, setns},
    sys::{
        prctl,
        signal::{Signal, killpg},
    },
    unistd::Pid,
};
use tokio::{
    io::AsyncWriteExt,
    sync::{oneshot, watch},
};

use crate::{
    error::{Doing, Error, Result},
    netns::Netns,
    wait,
};

/// A command line: what to run, in which network namespace.
#[derive(Debug, Clone)]
pub struct Command {
    program: OsString,
    args: Vec<OsString>,
    env: Vec<(OsString, Option<OsString>)>,
    dir: Option<PathBuf>,
    netns: Option<Netns>,
    mounts: Option<Arc<File>>,
    stdin: Option<Vec<u8>>,
    own_proc: bool,
}

/// What a finished command said.
#[derive(Debug, Clone)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// Standard output, as text.
    pub stdout: String,
    /// Standard error, as text.
    pub stderr: String,
}

impl Command {
    /// A command in the machine's own network namespace.
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        Self {
            program: program.as_ref().to_owned(),
            args: Vec::new(),
            env: Vec::new(),
            dir: None,
            netns: None,
            mounts: None,
            stdin: None,
            own_proc: false,
        }
    }

    /// Mounts a `/proc` of its own first: for the first process of a process-id namespace.
    #[must_use]
    pub(crate) fn with_own_proc(mut self) -> Self {
        self.own_proc = true;
        self
    }

    /// Runs in this network namespace.
    #[must_use]
    pub fn netns(mut self, netns: &Netns) -> Self {
        self.netns = Some(netns.clone());
        self
    }

    /// Runs in the mount namespace of this handle (`/proc/PID/ns/mnt`).
    #[must_use]
    pub(crate) fn mounts(mut self, mounts: &Arc<File>) -> Self {
        self.mounts = Some(Arc::clone(mounts));
        self
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env.push((name.as_ref().to_owned(), Some(value.as_ref().to_owned())));
        self
    }

    /// Removes an inherited environment variable.
    #[must_use]
    pub fn env_remove(mut self, name: impl AsRef<OsStr>) -> Self {
        self.env.push((name.as_ref().to_owned(), None));
        self
    }

    /// Runs in this directory.
    #[must_use]
    pub fn dir(mut self, dir: impl AsRef<Path>) -> Self {
        self.dir = Some(dir.as_ref().to_owned());
        self
    }

    /// Gives this as standard input, which is empty otherwise.
    #[must_use]
    pub fn stdin(mut self, input: impl Into<Vec<u8>>) -> Self {
        self.stdin = Some(input.into());
        self
    }

    /// Runs to the end, whatever the end is. A dropped future kills the command.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub async fn output(&self) -> Result<Output> {
        let mut command = self.build(Lifetime::OneOff);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        command.stdin(if self.stdin.is_some() { Stdio::piped() } else { Stdio::null() });
        let mut child = command.spawn().doing(|| format!("starting `{self}`"))?;
        let feed = async {
            if let (Some(mut pipe), Some(input)) = (child.stdin.take(), &self.stdin) {
                // A command that does not read its input to the end says why in its own words.
                let _ = pipe.write_all(input).await;
            }
        };
        feed.await;
        let output = child.wait_with_output().await.doing(|| format!("running `{self}`"))?;
        Ok(Output {
            status: output.status,
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Runs to a successful end and yields standard output.
    ///
    /// # Errors
    /// [`Error::Command`] with the end of what it wrote, when it fails.
    pub async fn run(&self) -> Result<String> {
        let output = self.output().await?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        let said = if output.stderr.trim().is_empty() { &output.stdout } else { &output.stderr };
        Err(Error::Command { command: self.to_string(), status: output.status, output: last_lines(said, 15) })
    }

    /// Runs attached to this terminal.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub async fn attached(&self) -> Result<ExitStatus> {
        self.build(Lifetime::OneOff).status().await.doing(|| format!("running `{self}`"))
    }

    fn build(&self, lifetime: Lifetime) -> tokio::process::Command {
        let mut command = tokio::process::Command::new(&self.program);
        command.args(&self.args);
        for (name, value) in &self.env {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        if let Some(dir) = &self.dir {
            command.current_dir(dir);
        }
        if lifetime == Lifetime::WithLab {
            command.process_group(0);
        }
        before_exec(&mut command, (self.netns.clone(), self.mounts.clone()), self.own_proc, lifetime);
        command
    }
}

impl std::fmt::Display for Command {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", Path::new(&self.program).display())?;
        for arg in &self.args {
            write!(f, " {}", Path::new(arg).display())?;
        }
        match self.netns.as_ref().and_then(Netns::name) {
            Some(name) => write!(f, " (in {name})"),
            None => Ok(()),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lifetime {
    OneOff,
    WithLab,
}

/// Moves the child into its namespaces and ties its life to the lab's.
#[allow(unsafe_code)]
fn before_exec(
    command: &mut tokio::process::Command,
    (netns, mounts): (Option<Netns>, Option<Arc<File>>),
    own_proc: bool,
    lifetime: Lifetime,
) {
    let prepare = move || {
        if own_proc {
            mount(Some("proc"), "/proc", Some("proc"), MsFlags::empty(), None::<&str>)?;
        }
        if let Some(netns) = &netns {
            setns(netns.as_fd(), CloneFlags::CLONE_NEWNET)?;
        }
        if let Some(mounts) = &mounts {
            setns(mounts.as_fd(), CloneFlags::CLONE_NEWNS)?;
        }
        if lifetime == Lifetime::WithLab {
            prctl::set_pdeathsig(Signal::SIGKILL)?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec only async-signal-safe calls are allowed; these are plain system calls on
    // constant paths and descriptors that are already open, without allocation or locks.
    unsafe {
        command.pre_exec(prepare);
    }
}

type Job = Box<dyn FnOnce() + Send>;

/// A thread that starts processes. Their parent-death signal follows the *thread* that forked them, so it
/// must live as long as they may; and what the thread entered (mounts, process ids), they are born into.
#[derive(Debug)]
pub struct Spawner {
    jobs: mpsc::Sender<Job>,
}

impl Spawner {
    /// The spawner of ordinary processes of the lab.
    pub fn machine() -> &'static Self {
        static MACHINE: OnceLock<Spawner> = OnceLock::new();
        MACHINE.get_or_init(|| Self::start("lab-spawner").0)
    }

    /// A spawner whose thread first runs `enter`, and ends when the spawner is dropped.
    pub(crate) async fn entered<T: Send + 'static>(
        name: &str,
        enter: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<(Self, T, std::thread::JoinHandle<()>)> {
        let (spawner, thread) = Self::start(name);
        let entered = spawner.call(enter).await??;
        Ok((spawner, entered, thread))
    }

    fn start(name: &str) -> (Self, std::thread::JoinHandle<()>) {
        let (jobs, inbox) = mpsc::channel::<Job>();
        let run = move || inbox.into_iter().for_each(|job| job());
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(run);
        match thread {
            Ok(thread) => (Self { jobs }, thread),
            // The standard library treats this as fatal in `thread::spawn`, too.
            Err(error) => panic!("the system gives no thread: {error}"),
        }
    }

    async fn call<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> Result<T> {
        let (answer, answered) = oneshot::channel();
        let gone = || std::io::Error::other("its thread is gone");
        self.jobs
            .send(Box::new(move || drop(answer.send(job()))))
            .map_err(|_| gone())
            .doing(|| "starting a process".to_owned())?;
        answered.await.map_err(|_| gone()).doing(|| "starting a process".to_owned())
    }

    /// Starts a process that logs to `log` and ends with the lab.
    ///
    /// # Errors
    /// When the program cannot be started or the log not be written.
    pub async fn spawn(&self, name: &str, command: &Command, log: &Path) -> Result<Process> {
        let mut output = log_file(log)?;
        let _ = writeln!(output, "$ {command}");
        let errors = output.try_clone().doing(|| format!("opening {}", log.display()))?;
        let mut built = command.build(Lifetime::WithLab);
        built.stdin(Stdio::null()).stdout(output).stderr(errors);
        let mut built = built.into_std();
        let child = self.call(move || built.spawn()).await?;
        let mut child = child.doing(|| format!("starting `{command}`"))?;
        let pid = i32::try_from(child.id()).unwrap_or_default();
        let (tell, status) = watch::channel(None);
        // A thread, not a task: a process is reaped even while the runtime is busy or gone.
        let reap = move || drop(tell.send_replace(Some(child.wait().map_err(|error| error.to_string()))));
        let reaper = std::thread::Builder::new().name(format!("reap-{name}")).spawn(reap);
        reaper.doing(|| format!("watching over {name}"))?;
        Ok(Process { name: name.to_owned(), pid: Pid::from_raw(pid), log: log.to_owned(), status })
    }
}

fn log_file(log: &Path) -> Result<File> {
    if let Some(dir) = log.parent() {
        std::fs::create_dir_all(dir).doing(|| format!("making {}", dir.display()))?;
    }
    File::options().create(true).append(true).open(log).doing(|| format!("opening {}", log.display()))
}

/// A long-running process of the lab, in its own process group. Dropping it kills the group.
#[derive(Debug)]
pub struct Process {
    name: String,
    pid: Pid,
    log: PathBuf,
    status: watch::Receiver<Option<Result<ExitStatus, String>>>,
}

impl Process {
    /// Process id, as the machine sees it.
    pub fn pid(&self) -> i32 {
        self.pid.as_raw()
    }

    /// Name in the lab.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where its output goes.
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// All that it wrote so far.
    pub fn log(&self) -> String {
        std::fs::read(&self.log).map(|raw| String::from_utf8_lossy(&raw).into_owned()).unwrap_or_default()
    }

    /// Whether it has not ended yet.
    pub fn is_running(&self) -> bool {
        self.status.borrow().is_none()
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When the system lost track of it.
    pub async fn wait(&self) -> Result<ExitStatus> {
        let mut status = self.status.clone();
        let lost = |why: String| Error::Io {
            what: format!("waiting for {}", self.name),
            source: std::io::Error::other(why),
        };
        let ended = status.wait_for(Option::is_some).await.map_err(|e| lost(e.to_string()))?.clone();
        match ended {
            Some(Ok(status)) => Ok(status),
            Some(Err(why)) => Err(lost(why)),
            None => Err(lost("no status".to_owned())),
        }
    }

    /// Sends a signal to its process group; nothing happens when it has ended.
    pub fn signal(&self, signal: Signal) {
        if self.is_running() && self.pid.as_raw() > 1 {
            // It may end between the question and the signal; then there is nothing to signal.
            let _ = killpg(self.pid, signal);
        }
    }

    /// Asks it to end, and makes it end after `grace`.
    ///
    /// # Errors
    /// When the system lost track of it.
    pub async fn stop(&self, grace: Duration) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM);
        if let Ok(ended) = tokio::time::timeout(grace, self.wait()).await {
            return ended;
        }
        self.kill().await
    }

    /// Ends it at once.
    ///
    /// # Errors
    /// When the system lost track of it.
    pub async fn kill(&self) -> Result<ExitStatus> {
        self.signal(Signal::SIGKILL);
        self.wait().await
    }

    /// The last `lines` lines of its log.
    pub fn tail(&self, lines: usize) -> String {
        last_lines(&self.log(), lines)
    }

    /// Says that it ended by itself, if it did.
    ///
    /// # Errors
    /// [`Error::Ended`] with the end of its log.
    pub fn must_run(&self) -> Result<()> {
        let status = match &*self.status.borrow() {
            None => return Ok(()),
            Some(Ok(status)) => status.to_string(),
            Some(Err(why)) => why.clone(),
        };
        Err(Error::Ended { name: self.name.clone(), status, log: self.log.clone(), tail: self.tail(25) })
    }

    /// Waits until its log has a line that contains `text`, and yields that line.
    ///
    /// # Errors
    /// [`Error::Timeout`] with the end of the log.
    pub async fn wait_for_line(&self, text: &str, limit: Duration) -> Result<String> {
        wait::until(&format!("\"{text}\" in the log of {}", self.name), limit, || async {
            let log = self.log();
            match log.lines().find(|line| line.contains(text)) {
                Some(line) => Ok(line.to_owned()),
                None => Err(format!("the log ends with:\n{}", last_lines(&log, 15))),
            }
        })
        .await
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.signal(Signal::SIGKILL);
        let deadline = Instant::now() + Duration::from_secs(2);
        // Not even a dead process is left behind; one that the kernel does not let go of is not waited for.
        while self.is_running() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// The last `count` lines of a text.
pub(crate) fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.trim_end().lines().rev().take(count).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_command_gets_its_input_and_yields_its_output() {
        let said = Command::new("tr").args(["a-z", "A-Z"]).stdin("pinhole").run().await.unwrap();
        assert_eq!(said, "PINHOLE");
    }

    #[tokio::test]
    async fn a_failing_command_says_what_it_wrote() {
        let error = Command::new("sh").args(["-c", "echo no luck >&2; exit 3"]).run().await.unwrap_err();
        assert_eq!(error.category(), "CommandFailed");
        assert!(error.to_string().contains("no luck"), "{error}");
    }

    #[tokio::test]
    async fn a_process_is_stopped_and_its_log_kept() {
        let dir = tempfile::tempdir().unwrap();
        let command = Command::new("sh").args(["-c", "echo ready; exec sleep 1000"]);
        let process =
            Spawner::machine().spawn("sleeper", &command, &dir.path().join("sleeper.log")).await.unwrap();
        process.wait_for_line("ready", Duration::from_secs(10)).await.unwrap();
        assert!(process.is_running());
        process.must_run().unwrap();
        process.stop(Duration::from_secs(10)).await.unwrap();
        let error = process.must_run().unwrap_err();
        assert!(error.to_string().contains("ready"), "{error}");
    }

    #[tokio::test]
    async fn a_process_dies_with_its_handle() {
        let dir = tempfile::tempdir().unwrap();
        let command = Command::new("sleep").arg("1000");
        let process = Spawner::machine().spawn("sleeper", &command, &dir.path().join("log")).await.unwrap();
        let stat = format!("/proc/{}/stat", process.pid());
        assert!(std::fs::exists(&stat).unwrap());
        drop(process);
        assert!(!std::fs::exists(&stat).unwrap());
    }

    #[test]
    fn the_last_lines_are_in_order() {
        assert_eq!(last_lines("a\nb\nc\n", 2), "b\nc");
        assert_eq!(last_lines("a", 5), "a");
    }
}
