//! A userspace NAT at work: the translator on a TUN device, in a thread of this process.
//!
//! A thread, and not a process of its own: it can be told to behave differently at any time, its log of the truth
//! can be asked, and it leaves nothing behind however this process ends, as the device goes with its descriptor.
//!
//! One device serves both sides. Routing rules lead to it what comes from the inside and is not for the NAT itself,
//! and what comes from the outside for the NAT's address; what it writes is forwarded by the main table.

use std::{
    fs::File,
    io::{ErrorKind, Write},
    net::{IpAddr, Ipv4Addr},
    os::fd::AsFd,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use nix::{
    poll::{PollFd, PollFlags, ppoll},
    sys::{
        eventfd::{EfdFlags, EventFd},
        time::TimeSpec,
    },
};

use super::{Oracle, Translator, UserspaceProfile, tun::Tun};
use crate::{
    error::{Doing, Error, Result},
    nat::{LAN, WAN, first_address, model::Time},
    netns::Netns,
    progress,
};

/// The device of a userspace NAT.
const DEVICE: &str = "nat0";
/// The routing table with nothing but the device.
const TABLE: u32 = 100;
/// Packets read before others get their turn.
const BATCH: usize = 64;

/// A userspace NAT at work. Dropping it ends it.
#[derive(Debug)]
pub struct Running {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    nat: Mutex<Translator>,
    begun: Instant,
    wake: EventFd,
    ends: AtomicBool,
}

impl Running {
    /// Starts a NAT in a namespace with the interfaces of a NAT, and `address` on the outside. The log of the truth
    /// goes to `log`, too, as JSON lines.
    pub(crate) async fn start(
        netns: &Netns,
        profile: UserspaceProfile,
        address: Ipv4Addr,
        log: &Path,
    ) -> Result<Self> {
        let tun = netns
            .within(|| Tun::create(DEVICE))?
            .doing(|| format!("making the TUN device of a NAT in {netns}"))?;
        // Without these it does not take packets from its own address, which are all that leave.
        for (key, value) in [("accept_local", 1), ("rp_filter", 0)] {
            netns.sysctl(&format!("net/ipv4/conf/{DEVICE}/{key}"), value)?;
        }
        netns.sysctl("net/ipv4/conf/all/rp_filter", 0)?;
        let gateway = first_address(profile.inside)
            .ok_or_else(|| Error::Invalid(format!("{} has no room for a NAT", profile.inside)))?;
        netns.ip(routing(gateway.addr())).await?;
        let shared = Arc::new(Shared {
            nat: Mutex::new(Translator::new(profile, address)),
            begun: Instant::now(),
            wake: EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
                .doing(|| "making an eventfd".to_owned())?,
            ends: AtomicBool::new(false),
        });
        let journal = Journal::create(log)?;
        let (worker, name) = (Arc::clone(&shared), netns.to_string());
        let run = move || {
            if let Err(error) = worker.run(&tun, journal) {
                progress::say(&format!("the NAT in {name} ended: {error}"));
            }
        };
        let thread = std::thread::Builder::new().name("nat".to_owned()).spawn(run);
        Ok(Self { shared, thread: Some(thread.doing(|| "starting a NAT".to_owned())?) })
    }

    /// Tells the NAT to do or be something else, at the time given to `change`.
    pub fn change<T>(&self, change: impl FnOnce(&mut Translator, Time) -> T) -> T {
        let outcome = change(&mut self.shared.nat(), self.now());
        self.shared.wake();
        outcome
    }

    /// The truth about its mappings, until now.
    pub fn oracle(&self) -> Oracle {
        self.change(|nat, now| {
            nat.handle_timeout(now);
            nat.oracle().clone()
        })
    }

    /// The time in the log of the truth.
    pub fn now(&self) -> Time {
        self.time_of(Instant::now())
    }

    /// A point in time as the log of the truth has it.
    pub fn time_of(&self, instant: Instant) -> Time {
        Time::from(instant.saturating_duration_since(self.shared.begun))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shared.ends.store(true, Ordering::SeqCst);
        self.shared.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn nat(&self) -> MutexGuard<'_, Translator> {
        self.nat.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        // Full means that it is about to wake up anyway.
        let _ = self.wake.write(1);
    }

    fn run(&self, tun: &Tun, mut journal: Journal) -> std::io::Result<()> {
        let mut buffer = vec![0; usize::from(u16::MAX)];
        while !self.ends.load(Ordering::SeqCst) {
            self.wait(tun)?;
            let now = Time::from(self.begun.elapsed());
            let mut nat = self.nat();
            nat.handle_timeout(now);
            for _ in 0..BATCH {
                match tun.receive(&mut buffer) {
                    Ok(packet) => nat.handle_packet(now, packet),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error),
                }
            }
            while let Some(packet) = nat.poll_transmit(now) {
                // What the kernel does not take is lost, as on any link.
                let _ = tun.send(&packet);
            }
            journal.write(nat.oracle())?;
        }
        Ok(())
    }

    /// Waits for a packet, a change, or the next thing to do.
    fn wait(&self, tun: &Tun) -> std::io::Result<()> {
        let next = self.nat().poll_timeout();
        let timeout = next.map(|due| due.since(Time::from(self.begun.elapsed())));
        let mut sources =
            [PollFd::new(tun.as_fd(), PollFlags::POLLIN), PollFd::new(self.wake.as_fd(), PollFlags::POLLIN)];
        // A moment more, or it would wake up just before.
        let timeout = timeout.map(|timeout| TimeSpec::from(timeout + Duration::from_micros(50)));
        match ppoll(&mut sources, timeout, None) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        // Nothing there is no error: it was a packet or the time.
        let _ = self.wake.read();
        Ok(())
    }
}

/// The log of the truth on disk.
struct Journal {
    file: File,
    written: u64,
}

impl Journal {
    fn create(path: &Path) -> Result<Self> {
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory).doing(|| format!("making {}", directory.display()))?;
        }
        let file = File::create(path).doing(|| format!("making {}", path.display()))?;
        Ok(Self { file, written: 0 })
    }

    fn write(&mut self, oracle: &Oracle) -> std::io::Result<()> {
        if oracle.written() == self.written {
            return Ok(());
        }
        let mut lines = Vec::new();
        for entry in oracle.since(self.written) {
            serde_json::to_writer(&mut lines, entry)?;
            lines.push(b'\n');
        }
        self.written = oracle.written();
        self.file.write_all(&lines)
    }
}

/// Leads through the device what is to be translated.
///
/// The rules for the outside go before the one for local addresses, of which the NAT's is one. They name protocols
/// so that ARP, which asks the same rules, still finds that address local.
fn routing(gateway: IpAddr) -> Vec<String> {
    let mut lines = vec![
        // Room for a burst: other threads have their turns, too.
        format!("link set {DEVICE} txqueuelen 4096 up"),
        format!("route add default dev {DEVICE} table {TABLE}"),
        "rule add pref 20 lookup local".to_owned(),
        "rule del pref 0".to_owned(),
        format!("rule add pref 10 iif {LAN} to {gateway} lookup local"),
        format!("rule add pref 11 iif {LAN} lookup {TABLE}"),
    ];
    lines.extend(
        ["udp", "tcp", "icmp"]
            .map(|protocol| format!("rule add pref 12 iif {WAN} ipproto {protocol} lookup {TABLE}")),
    );
    lines
}
