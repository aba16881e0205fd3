//! The lab as a whole: a cluster, a public segment, NATs and hosts on it.

use std::{path::PathBuf, time::Instant};

use crate::{
    cluster::{self, Cluster},
    error::{Doing, Error, Result},
    host::{Host, Wiring},
    image::Image,
    nat::{Behaviour, Nat},
    node, progress,
    segment::Segment,
    setup::{packages, rust, tools::Tools},
    state,
};

/// A lab that is up. Dropping it takes down what this process brought up.
#[derive(Debug)]
pub struct Lab {
    // Fields drop in this order: the cluster, then every trace of it, then the right to have a lab.
    cluster: Cluster,
    public: Segment,
    ground: Option<Ground>,
}

/// The right to a lab, and the duty to leave nothing behind.
#[derive(Debug)]
struct Ground {
    _lock: state::Lock,
}

impl Ground {
    /// Takes the lock and clears away what a lab that was killed left.
    fn take() -> Result<Self> {
        let lock = state::Lock::take()?;
        let ground = Self { _lock: lock };
        state::sweep()?;
        let directory = state::directory();
        for hidden in node::BLANK {
            if directory.starts_with(hidden) {
                return Err(Error::Invalid(format!(
                    "PINHOLE_LAB_DIR={} cannot be below {hidden}, which the node has a blank of",
                    directory.display()
                )));
            }
        }
        std::fs::create_dir_all(&directory).doing(|| format!("making {}", directory.display()))?;
        Ok(ground)
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        keep_logs();
        if let Err(error) = state::sweep() {
            progress::say(&format!("the lab is not swept clean; `pinhole-lab down` tries again: {error}"));
        }
    }
}

/// Copies the logs to `$PINHOLE_LAB_LOGS`, when set, before they go.
fn keep_logs() {
    let Some(target) = std::env::var_os("PINHOLE_LAB_LOGS").filter(|target| !target.is_empty()) else {
        return;
    };
    let logs = state::directory().join("logs");
    let copy = std::process::Command::new("cp").arg("-rT").arg(logs).arg(&target).output();
    if !copy.is_ok_and(|copy| copy.status.success()) {
        progress::say(&format!("the logs could not be kept in {}", PathBuf::from(target).display()));
    }
}

/// The cluster to work with, from the environment.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Source {
    /// Bring up one of our own.
    New,
    /// The lab that is open already.
    Open,
    /// Somebody else's, by kubeconfig.
    Existing(PathBuf),
}

impl Source {
    fn from_environment() -> Self {
        match std::env::var_os("KUBECONFIG").filter(|path| !path.is_empty()).map(PathBuf::from) {
            Some(path) if path == state::kubeconfig() => Self::Open,
            Some(path) => Self::Existing(path),
            None if state::holder().is_some() => Self::Open,
            None => Self::New,
        }
    }
}

impl Lab {
    /// A lab to work with: the cluster that `KUBECONFIG` names, else the open lab, else one of our own, which
    /// ends with this value.
    ///
    /// # Errors
    /// [`Error::NotRoot`] and [`Error::Unsupported`] where a lab is not possible; anything else is a failure.
    pub async fn find_or_start() -> Result<Self> {
        match Source::from_environment() {
            Source::New => Self::start().await,
            Source::Open => Self::open().await,
            Source::Existing(kubeconfig) => Self::around(kubeconfig).await,
        }
    }

    /// Brings up a lab of our own.
    ///
    /// # Errors
    /// As [`Lab::find_or_start`], and [`Error::AlreadyUp`].
    pub async fn start() -> Result<Self> {
        must_be_possible()?;
        packages::install().await?;
        let tools = Tools::build().await?;
        let toolbox = rust::toolbox().await?;
        let begun = Instant::now();
        let ground = Ground::take()?;
        let cluster = Cluster::up(tools, &toolbox).await?;
        let public = cluster.node().map(|node| node.public().clone()).ok_or(Error::NotUp)?;
        progress::say(&format!("The cluster stands after {:.1} s.", begun.elapsed().as_secs_f32()));
        Ok(Self { cluster, public, ground: Some(ground) })
    }

    /// Works in the lab that another process has up.
    ///
    /// # Errors
    /// [`Error::NotUp`] when there is none.
    pub async fn open() -> Result<Self> {
        must_be_possible()?;
        if state::holder().is_none() {
            return Err(Error::NotUp);
        }
        let cluster = Cluster::existing(state::kubeconfig(), Tools::build().await?).await?;
        let public = node::public_segment(&node::open_netns()?);
        Ok(Self { cluster, public, ground: None })
    }

    /// Puts NATs and hosts around a cluster that is not the lab's: their public segment is a bridge of the
    /// machine, behind the machine's own address.
    ///
    /// # Errors
    /// As [`Lab::start`].
    pub async fn around(kubeconfig: PathBuf) -> Result<Self> {
        must_be_possible()?;
        packages::install().await?;
        let tools = Tools::build().await?;
        let ground = Ground::take()?;
        let cluster = Cluster::existing(kubeconfig, tools).await?;
        let public = crate::machine::public_segment().await?;
        Ok(Self { cluster, public, ground: Some(ground) })
    }

    /// The cluster.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// Whether the cluster is the lab's own, which alone can load images and has the lab's addresses.
    pub fn is_own(&self) -> bool {
        self.cluster.kubeconfig() == state::kubeconfig()
    }

    /// Whether this process brought the lab up, and takes it down again.
    pub fn is_mine(&self) -> bool {
        self.ground.is_some()
    }

    /// A client with all permissions on the cluster.
    pub fn client(&self) -> kube::Client {
        self.cluster.client()
    }

    /// Runs `kubectl` to a successful end; yields what it printed.
    ///
    /// # Errors
    /// What `kubectl` says.
    pub async fn kubectl<S: AsRef<std::ffi::OsStr>>(
        &self,
        args: impl IntoIterator<Item = S>,
    ) -> Result<String> {
        self.cluster.kubectl(args)?.run().await
    }

    /// Applies manifests, as `kubectl apply -f -` does.
    ///
    /// # Errors
    /// What `kubectl` says.
    pub async fn apply(&self, manifests: &str) -> Result<String> {
        self.cluster.kubectl(["apply", "-f", "-"])?.stdin(manifests).run().await
    }

    /// Runs `helm` to a successful end; yields what it printed.
    ///
    /// # Errors
    /// What `helm` says.
    pub async fn helm<S: AsRef<std::ffi::OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Result<String> {
        self.cluster.helm(args)?.run().await
    }

    /// Loads an image into the lab's own cluster. Does nothing for another cluster, which pulls its images.
    ///
    /// # Errors
    /// When the image cannot be read or loaded.
    pub async fn load(&self, image: &Image) -> Result<()> {
        if !self.is_own() {
            return Ok(());
        }
        progress::step(&format!("loading the image {}", image.reference), cluster::import(image)).await
    }

    /// Makes a NAT on the public segment.
    ///
    /// # Errors
    /// When the name is taken.
    pub async fn nat(&self, name: &str, behaviour: impl Into<Behaviour>) -> Result<Nat> {
        Nat::create(name, &self.public, None, behaviour.into()).await
    }

    /// Makes a NAT on the public segment with one host, of the same name, behind it.
    ///
    /// # Errors
    /// When the name is taken.
    pub async fn nat_host(&self, name: &str, behaviour: impl Into<Behaviour>) -> Result<Host> {
        self.nat(name, behaviour).await?.host(name).await
    }

    /// Makes a host behind a home router behind a carrier's NAT.
    ///
    /// # Errors
    /// When the name is taken.
    pub async fn carrier_host(
        &self,
        name: &str,
        carrier: impl Into<Behaviour>,
        home: impl Into<Behaviour>,
    ) -> Result<Host> {
        let outer = self.nat(&format!("{name}-carrier"), carrier).await?;
        outer.nat(name, home).await?.host(name).await
    }

    /// Makes a host without any IPv4, behind a stateful firewall of IPv6 with the lifetimes of a netfilter NAT.
    ///
    /// # Errors
    /// When the name is taken, or the public segment has no IPv6, as around a cluster that is not the lab's.
    pub async fn ipv6_host(&self, name: &str, behaviour: impl Into<Behaviour>) -> Result<Host> {
        self.nat(name, behaviour).await?.ipv6_host(name).await
    }

    /// Makes a host with several uplinks, each behind a NAT of its own, `NAME-INTERFACE`.
    ///
    /// # Errors
    /// When the name is taken, there is no uplink, or one is to have IPv6 where the public segment has none.
    pub async fn roaming_host(&self, name: &str, wirings: &[Wiring]) -> Result<Host> {
        Host::roaming(name, &self.public, wirings).await
    }

    /// Makes a host on the public segment, behind no NAT; on the lab's own cluster it has IPv6, too.
    ///
    /// # Errors
    /// When the name is taken.
    pub async fn public_host(&self, name: &str) -> Result<Host> {
        Host::create(name, &self.public, Vec::new()).await
    }
}

/// Ends this process, and everything that it brought up, on SIGINT, SIGTERM and SIGHUP: for programs that
/// cannot drop their [`Lab`] in the middle of their work, as a test harness.
///
/// # Errors
/// When signals cannot be received.
pub fn end_on_signals() -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    for kind in [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()] {
        let mut signals = signal(kind).doing(|| "receiving signals".to_owned())?;
        tokio::spawn(async move {
            if signals.recv().await.is_some() {
                let names: Vec<String> = crate::netns::made_here().iter().cloned().collect();
                let mine = state::is_mine();
                let swept = if mine { state::sweep() } else { state::sweep_namespaces(&names) };
                if let Err(error) = swept {
                    progress::say(&format!("the lab is not swept clean: {error}"));
                }
                std::process::exit(128 + kind.as_raw_value());
            }
        });
    }
    Ok(())
}

/// Finds out whether this machine can run a lab, before anything is built or changed.
///
/// # Errors
/// [`Error::NotRoot`] or [`Error::Unsupported`] with the reason.
pub fn must_be_possible() -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        return Err(Error::NotRoot);
    }
    let try_namespaces = || {
        use nix::sched::{CloneFlags, unshare};
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)
    };
    // On a thread of its own, whose namespaces end with it.
    match std::thread::spawn(try_namespaces).join() {
        Ok(Ok(())) => Ok(()),
        Ok(Err(errno)) => Err(Error::Unsupported(format!("it gives root no new namespaces ({errno})"))),
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// Takes down the lab that is up, and clears away what a killed one left.
///
/// # Errors
/// When something of it cannot be removed.
pub async fn down() -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        return Err(Error::NotRoot);
    }
    if let Some(pid) = state::holder() {
        progress::step("ending the lab", end_holder(pid)).await?;
    }
    let _lock = state::Lock::take()?;
    state::sweep()
}

async fn end_holder(pid: i32) -> Result<()> {
    use std::time::Duration;

    use nix::{sys::signal::Signal, unistd::Pid};
    let gone = || async { if state::holder() == Some(pid) { Err("it still runs") } else { Ok(()) } };
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        // It may be gone by itself.
        let _ = nix::sys::signal::kill(Pid::from_raw(pid), signal);
        if crate::wait::until("the lab's process to end", Duration::from_secs(30), gone).await.is_ok() {
            return Ok(());
        }
    }
    Err(Error::AlreadyUp { pid: pid.to_string() })
}

/// Ends this process in good order on SIGINT and SIGTERM while `work` runs: the lab, held by `work`, is then
/// dropped and swept. Yields none when a signal came first.
///
/// # Errors
/// When signals cannot be received.
pub async fn until_signal<T>(work: impl Future<Output = T>) -> Result<Option<T>> {
    use tokio::signal::unix::{SignalKind, signal};
    let doing = || "receiving signals".to_owned();
    let mut interrupt = signal(SignalKind::interrupt()).doing(doing)?;
    let mut terminate = signal(SignalKind::terminate()).doing(doing)?;
    let mut hangup = signal(SignalKind::hangup()).doing(doing)?;
    tokio::select! {
        outcome = work => Ok(Some(outcome)),
        _ = interrupt.recv() => Ok(None),
        _ = terminate.recv() => Ok(None),
        _ = hangup.recv() => Ok(None),
    }
}
