//! Network namespaces that live as long as a thread, so that nothing is left behind.

use std::{
    process::Command,
    sync::mpsc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use nix::{
    sched::{CloneFlags, unshare},
    unistd::{Pid, gettid},
};

type Job = Box<dyn FnOnce() + Send>;

/// A network namespace, and the thread that lives in it. It has a loopback device, which is up.
pub(crate) struct Namespace {
    thread_id: Pid,
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Namespace {
    pub(crate) fn new() -> Self {
        let (jobs, queue) = mpsc::channel::<Job>();
        let (started, id) = mpsc::channel();
        let thread = thread::spawn(move || {
            started.send(unshare(CloneFlags::CLONE_NEWNET).map(|()| gettid())).unwrap();
            for job in queue {
                job();
            }
        });
        let thread_id = id.recv().unwrap().expect("a network namespace");
        let namespace = Self { thread_id, jobs: Some(jobs), thread: Some(thread) };
        namespace.ip("link set lo up");
        namespace
    }

    /// Runs something inside, and gives its result back, or its panic.
    pub(crate) fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, result) = mpsc::channel();
        let job = Box::new(move || {
            let _ = done.send(std::panic::catch_unwind(std::panic::AssertUnwindSafe(job)));
        });
        self.jobs.as_ref().unwrap().send(job).unwrap();
        match result.recv().expect("the namespace's thread") {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// Runs a command inside. Its output, or, where it fails, its complaint.
    pub(crate) fn command(&self, line: &str) -> Result<String, String> {
        let line = line.to_owned();
        self.run(move || {
            let mut words = line.split_whitespace();
            let output = Command::new(words.next().unwrap()).args(words).output();
            let output = output.map_err(|error| format!("{line}: {error}"))?;
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            if output.status.success() {
                return Ok(text);
            }
            Err(format!("{line}: {text}{}", String::from_utf8_lossy(&output.stderr)))
        })
    }

    /// Runs `ip` with these words, and expects it to succeed.
    pub(crate) fn ip(&self, words: &str) -> String {
        self.command(&format!("ip {words}")).unwrap()
    }

    /// Waits until the addresses of a device that is up are in use. The kernel takes those of IPv6 into use when it
    /// gets round to it, also without detection of duplicates, and drops what comes for them until then.
    pub(crate) fn await_addresses(&self, device: &str) {
        let end = Instant::now() + Duration::from_secs(10);
        let shown = self.ip(&format!("-6 -oneline address show dev {device} scope global"));
        let nets = shown.lines().filter_map(|line| line.split_whitespace().nth(3));
        for address in nets.filter_map(|net| net.split('/').next()) {
            let route = format!("ip -6 route get {address}");
            while !self.command(&route).is_ok_and(|route| route.starts_with("local")) {
                assert!(Instant::now() < end, "not in use after 10 s: {address}");
                thread::yield_now();
            }
        }
    }

    /// Joins two namespaces by a cable: `name` here with `address`, `peer` there with `peer_address`.
    pub(crate) fn join(
        &self,
        (name, address): (&str, &str),
        other: &Self,
        (peer, peer_address): (&str, &str),
    ) {
        let there = other.thread_id;
        self.ip(&format!("link add {name} type veth peer name {peer} netns {there}"));
        for (namespace, name, address) in [(self, name, address), (other, peer, peer_address)] {
            namespace.ip(&format!("address add {address} dev {name}"));
            namespace.ip(&format!("link set {name} up"));
        }
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        self.jobs.take();
        let _ = self.thread.take().map(JoinHandle::join);
    }
}
