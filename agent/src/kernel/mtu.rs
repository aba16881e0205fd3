//! A TUN device's MTU, wherever the device is: others may rename it, move it to another network namespace, and give it
//! another MTU there.

use std::{
    fs::File,
    os::{
        fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    thread,
};

use nix::{
    errno::Errno,
    sched::{CloneFlags, setns},
    sys::socket::{AddressFamily, SockFlag, SockType, socket},
};

use super::{KernelError, TunDevice};

const OWN_NAMESPACE: &str = "/proc/thread-self/ns/net";
const WHAT: &str = "read the MTU of the tunnel's device";

/// Reads it again and again.
#[derive(Debug, Default)]
pub struct DeviceMtu {
    /// A socket in the namespace where the device last was.
    there: Option<(NamespaceId, OwnedFd)>,
}

/// Device and inode of a namespace's file; none where the kernel does not tell (before Linux 5.10), which is then taken
/// for the own one.
type NamespaceId = Option<(u64, u64)>;

impl DeviceMtu {
    /// The MTU that the device has now, in bytes.
    ///
    /// # Errors
    /// Where the device is in another network namespace, which only `CAP_SYS_ADMIN` may enter.
    pub fn read(&mut self, device: &TunDevice) -> Result<u16, KernelError> {
        self.ask(device).map_err(|errno| KernelError::new(WHAT, errno))
    }

    fn ask(&mut self, device: &TunDevice) -> Result<u16, Errno> {
        let namespace = namespace_of(device);
        let id = namespace.as_ref().and_then(id_of);
        if self.there.as_ref().is_none_or(|(known, _)| *known != id) {
            self.there = Some((id, open_in(namespace, id)?));
        }
        let (_, socket) = self.there.as_ref().ok_or(Errno::ENODEV)?;
        let mut request = name_of(device)?;
        // SAFETY: SIOCGIFMTU reads and writes one `ifreq`, which `request` is and which outlives the call; the descriptor
        // is open as long as `socket`.
        Errno::result(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFMTU, &raw mut request) })?;
        // SAFETY: SIOCGIFMTU has written this member, and any bytes are a number.
        let mtu = unsafe { request.ifr_ifru.ifru_mtu };
        Ok(u16::try_from(mtu).unwrap_or(u16::MAX))
    }
}

/// The device's name now, as a request has it.
fn name_of(device: &TunDevice) -> Result<libc::ifreq, Errno> {
    // SAFETY: `ifreq` is plain data, for which all zeros are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // SAFETY: TUNGETIFF writes one `ifreq`, which `request` is and which outlives the call; the descriptor is open as long
    // as `device`.
    let result = unsafe { libc::ioctl(device.as_fd().as_raw_fd(), libc::TUNGETIFF, &raw mut request) };
    Errno::result(result).map(|_| request)
}

fn namespace_of(device: &TunDevice) -> Option<File> {
    // SAFETY: TUNGETDEVNETNS takes no argument; the descriptor is open as long as `device`.
    let result = unsafe { libc::ioctl(device.as_fd().as_raw_fd(), libc::TUNGETDEVNETNS) };
    let fd = Errno::result(result).ok()?;
    // SAFETY: it is a descriptor that the kernel has just opened for us, and nobody else knows it.
    Some(File::from(unsafe { OwnedFd::from_raw_fd(fd) }))
}

fn id_of(namespace: &File) -> Option<(u64, u64)> {
    namespace.metadata().ok().map(|file| (file.dev(), file.ino()))
}

/// A socket in a namespace. A thread of its own enters it, where it is not the one of the caller.
fn open_in(namespace: Option<File>, id: NamespaceId) -> Result<OwnedFd, Errno> {
    let open = || socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, None);
    let own = File::open(OWN_NAMESPACE).ok().as_ref().and_then(id_of);
    match namespace {
        Some(namespace) if id != own => thread::spawn(move || {
            setns(namespace, CloneFlags::CLONE_NEWNET)?;
            open()
        })
        .join()
        .unwrap_or(Err(Errno::EAGAIN)),
        _ => open(),
    }
}
