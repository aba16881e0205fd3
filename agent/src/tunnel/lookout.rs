//! A thread that follows the host's addresses and routes, and tells the shards when a peer is to be answered from another
//! address. The packet path never waits for it.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::eventfd::{EfdFlags, EventFd},
};

use super::{
    TunnelError,
    sources::{Notices, Routes, Sources, Verdict},
};
use crate::kernel::{KernelError, RouteChanges, RouteSocket, Way};

/// The least time between two looks, and how many times as long as the last look it is: a host whose routes change all the
/// time, or a crowd of peers that move, takes a tenth of a processor at most.
const REST: Duration = Duration::from_millis(10);
const RESTS: u32 = 9;

/// The thread, as its owner has it. Ends when dropped.
#[derive(Debug)]
pub(super) struct Lookout {
    orders: Arc<Orders>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Orders {
    stop: AtomicBool,
    fwmark: AtomicU32,
    is_other_mark: AtomicBool,
    wake: EventFd,
}

impl Lookout {
    /// Follows the network namespace of the calling thread, for datagrams with this mark.
    pub(super) fn start(
        notices: Notices,
        fwmark: Option<u32>,
        tell: impl Fn(Verdict) + Send + 'static,
    ) -> Result<Self, TunnelError> {
        let failed = |error: io::Error| TunnelError::Thread(error);
        let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
        let wake = EventFd::from_flags(flags).map_err(|errno| failed(errno.into()))?;
        let orders = Arc::new(Orders {
            stop: AtomicBool::new(false),
            fwmark: AtomicU32::new(fwmark.unwrap_or_default()),
            is_other_mark: AtomicBool::new(false),
            wake,
        });
        let watch = Watch {
            changes: RouteChanges::open().map_err(failed)?,
            routes: Marked { socket: RouteSocket::open()?, mark: 0 },
            sources: Sources::default(),
            notices,
            orders: Arc::clone(&orders),
        };
        let run = move || {
            if let Err(error) = watch.run(tell) {
                tracing::warn!(%error, "peers stay with addresses of this machine when its routes change");
            }
        };
        let thread = thread::Builder::new().name("tunnel-lookout".to_owned()).spawn(run).map_err(failed)?;
        Ok(Self { orders, thread: Some(thread) })
    }

    /// Datagrams have another mark now, which may lead them another way.
    pub(super) fn set_fwmark(&self, mark: Option<u32>) {
        self.orders.fwmark.store(mark.unwrap_or_default(), Ordering::Relaxed);
        self.orders.is_other_mark.store(true, Ordering::Release);
        let _ = self.orders.wake.write(1);
    }
}

impl Drop for Lookout {
    fn drop(&mut self) {
        self.orders.stop.store(true, Ordering::Release);
        let _ = self.orders.wake.write(1);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

struct Watch {
    changes: RouteChanges,
    routes: Marked,
    sources: Sources,
    notices: Notices,
    orders: Arc<Orders>,
}

impl Watch {
    fn run(mut self, tell: impl Fn(Verdict)) -> io::Result<()> {
        loop {
            await_any(&[&self.changes, self.notices.wake(), &self.orders.wake], None)?;
            let _ = self.orders.wake.read();
            if self.orders.stop.load(Ordering::Acquire) {
                return Ok(());
            }
            let began = Instant::now();
            self.look()?.into_iter().for_each(&tell);
            let rest = (began.elapsed() * RESTS).max(REST);
            await_any(&[&self.orders.wake], Some(rest))?;
        }
    }

    fn look(&mut self) -> io::Result<Vec<Verdict>> {
        let is_other_mark = self.orders.is_other_mark.swap(false, Ordering::Acquire);
        self.routes.mark = self.orders.fwmark.load(Ordering::Relaxed);
        // What changes from here on is seen by the next look.
        let has_changed = self.changes.drain()? || is_other_mark;
        let mut verdicts = self.sources.note(self.notices.take(), &mut self.routes);
        if has_changed {
            verdicts.extend(self.sources.review(&mut self.routes));
        }
        Ok(verdicts)
    }
}

/// The routes of datagrams with a mark.
struct Marked {
    socket: RouteSocket,
    mark: u32,
}

impl Routes for Marked {
    fn way(&mut self, to: SocketAddr, from: Option<IpAddr>) -> Result<Option<Way>, KernelError> {
        self.socket.way(to, from, self.mark)
    }

    fn device_of(&mut self, own: IpAddr) -> Result<Option<u32>, KernelError> {
        self.socket.device_of(own)
    }
}

/// Waits until one of them can be read, or for so long.
fn await_any(all: &[&dyn AsFd], patience: Option<Duration>) -> io::Result<()> {
    let mut ready: Vec<_> = all.iter().map(|one| PollFd::new(one.as_fd(), PollFlags::POLLIN)).collect();
    let timeout = match patience {
        Some(patience) => PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX),
        None => PollTimeout::NONE,
    };
    match poll(&mut ready, timeout) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}
