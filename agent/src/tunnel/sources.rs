//! How long a peer is answered from the address of ours that it asked. Pure.
//!
//! It is learnt from what comes in, and forgotten when somebody says where the peer is; both are the peer's own affair. Here
//! it is forgotten for what changes on this machine: the address is taken away, or the way to the peer is another one.
//!
//! Whoever was told where a peer is may be the one who asks, and then follows the routes to another network at once. What is
//! still on its way to the address that it had there must not take it back. Who was not told can only answer, and where he is
//! asked: he leaves the address when the device that has it is left by the way to the peer.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use nix::{
    errno::Errno,
    sys::eventfd::{EfdFlags, EventFd},
};

use super::{
    PublicKey,
    path::{Local, Path},
};
use crate::kernel::{KernelError, Way};

/// An address of ours from which a peer is answered now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Learnt {
    /// Where the peer is.
    pub(super) remote: SocketAddr,
    pub(super) local: Local,
    /// Whether we were told where the peer is, and did not only learn it.
    pub(super) is_told: bool,
}

impl Learnt {
    pub(super) const fn path(&self) -> Path {
        Path { remote: self.remote, local: Some(self.local) }
    }
}

/// What an address is worth from now on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// Until the peer asks there again.
    Forgotten,
    /// Also if the peer asks there again.
    Unfit,
    /// It may be learnt again.
    Fit,
}

/// A change of an address's standing.
pub(super) type Verdict = (PublicKey, Path, Standing);

/// Where to look.
pub(super) trait Routes {
    /// The way to a peer, from this address or whichever the system chooses.
    fn way(&mut self, to: SocketAddr, from: Option<IpAddr>) -> Result<Option<Way>, KernelError>;

    /// The device that has an address, if this machine has it.
    fn device_of(&mut self, own: IpAddr) -> Result<Option<u32>, KernelError>;
}

/// The addresses from which peers are answered.
#[derive(Debug, Default)]
pub(super) struct Sources(HashMap<PublicKey, Entry>);

#[derive(Debug)]
struct Entry {
    learnt: Learnt,
    /// As it was when this was learnt.
    way: Option<Way>,
    is_unfit: bool,
}

impl Sources {
    /// Takes note of what peers have learnt, or that they are gone.
    pub(super) fn note(
        &mut self,
        notices: HashMap<PublicKey, Option<Learnt>>,
        routes: &mut impl Routes,
    ) -> Vec<Verdict> {
        let mut verdicts = Vec::new();
        for (peer, learnt) in notices {
            let Some(learnt) = learnt else {
                self.0.remove(&peer);
                continue;
            };
            // What cannot be looked up is not judged.
            let Ok(way) = way_of(&learnt, routes) else { continue };
            let is_unfit = learnt.is_told && way.is_some_and(|way| way.device != learnt.local.device);
            if is_unfit {
                verdicts.push((peer, learnt.path(), Standing::Unfit));
            }
            self.0.insert(peer, Entry { learnt, way, is_unfit });
        }
        verdicts
    }

    /// Looks at all again, because something has changed.
    pub(super) fn review(&mut self, routes: &mut impl Routes) -> Vec<Verdict> {
        let mut homes = HashMap::new();
        let mut verdicts = Vec::new();
        self.0.retain(|peer, entry| {
            let address = entry.learnt.local.address;
            let home = match homes.get(&address) {
                Some(home) => *home,
                None => match routes.device_of(address) {
                    Ok(home) => *homes.entry(address).or_insert(home),
                    Err(_) => return true,
                },
            };
            let Some(standing) = entry.review(home, routes) else { return true };
            verdicts.push((*peer, entry.learnt.path(), standing));
            entry.is_unfit = standing == Standing::Unfit;
            entry.is_unfit
        });
        verdicts
    }
}

impl Entry {
    /// Its new standing. `home` is the device that has the address.
    fn review(&self, home: Option<u32>, routes: &mut impl Routes) -> Option<Standing> {
        let Some(home) = home else {
            return Some(if self.is_unfit { Standing::Fit } else { Standing::Forgotten });
        };
        // Without any way nothing is sent; the next one decides.
        let way = way_of(&self.learnt, routes).ok().flatten()?;
        let Learnt { local, is_told, .. } = self.learnt;
        if is_told {
            return match (self.is_unfit, way.device == local.device) {
                (false, false) => Some(Standing::Unfit),
                (true, true) => Some(Standing::Fit),
                (false, true) if self.way != Some(way) => Some(Standing::Forgotten),
                _ => None,
            };
        }
        let has_left = self.way.is_some_and(|before| before.device == home) && way.device != home;
        has_left.then_some(Standing::Forgotten)
    }
}

/// Who asks leaves the choice to the system; who answers does not.
fn way_of(learnt: &Learnt, routes: &mut impl Routes) -> Result<Option<Way>, KernelError> {
    routes.way(learnt.remote, (!learnt.is_told).then_some(learnt.local.address))
}

/// What the shards have to tell of their peers: the last of each, so that it cannot grow beyond them.
#[derive(Debug, Clone)]
pub(super) struct Notices(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    notices: Mutex<HashMap<PublicKey, Option<Learnt>>>,
    wake: EventFd,
}

impl Notices {
    pub(super) fn new() -> Result<Self, Errno> {
        let wake = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        Ok(Self(Arc::new(Shared { notices: Mutex::default(), wake })))
    }

    /// Tells that a peer is answered from another address, or is gone. Rare: only when a peer moves.
    pub(super) fn put(&self, peer: PublicKey, learnt: Option<Learnt>) {
        let mut notices = self.lock();
        let is_first = notices.is_empty();
        notices.insert(peer, learnt);
        drop(notices);
        if is_first {
            // Full is as good as woken.
            let _ = self.0.wake.write(1);
        }
    }

    /// All that was told.
    pub(super) fn take(&self) -> HashMap<PublicKey, Option<Learnt>> {
        let _ = self.0.wake.read();
        std::mem::take(&mut self.lock())
    }

    /// Can be read once there is something to take.
    pub(super) fn wake(&self) -> &EventFd {
        &self.0.wake
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<PublicKey, Option<Learnt>>> {
        self.0.notices.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
