//! The TUN device: inner packets to and from the kernel.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd},
        unix::fs::OpenOptionsExt,
    },
};

use nix::errno::Errno;

use super::{KernelError, RouteSocket};

const PATH: &str = "/dev/net/tun";

/// What the kernel leaves to the reader of a device, and takes from its writer: packets with unfinished
/// checksums, and super-packets of up to 64 KB. Frames have a `virtio_net_hdr` of 10 bytes in front, but with
/// `None`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum TunOffload {
    /// Whole packets with right checksums, as they are.
    None,
    /// TCP over IPv4 and IPv6.
    Tcp,
    /// TCP and UDP (Linux 6.2 and later).
    TcpAndUdp,
}

impl TunOffload {
    /// The next that an older kernel may have. `None` behind the last.
    const fn less(self) -> Option<Self> {
        match self {
            Self::TcpAndUdp => Some(Self::Tcp),
            Self::Tcp => Some(Self::None),
            Self::None => None,
        }
    }

    /// For `TUNSETOFFLOAD`.
    const fn features(self) -> libc::c_uint {
        let tcp = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6;
        match self {
            Self::None => 0,
            Self::Tcp => tcp,
            Self::TcpAndUdp => tcp | libc::TUN_F_USO4 | libc::TUN_F_USO6,
        }
    }
}

/// A TUN device of our own making, or a queue of it. It is gone when all of these are dropped.
#[derive(Debug)]
pub struct TunDevice {
    file: File,
    name: String,
    index: u32,
    offload: TunOffload,
}

impl TunDevice {
    /// Makes a device with this name, for raw IP packets, down and without address. Reading and writing do not
    /// wait. A name is what wg-quick takes for one, and no option of the tools that it is given to.
    pub fn create(name: &str) -> Result<Self, KernelError> {
        Self::create_offloading(name, TunOffload::None)
    }

    /// Makes a device that offloads as much as the kernel can, and as is wanted.
    pub fn create_offloading(name: &str, wanted: TunOffload) -> Result<Self, KernelError> {
        let valid = (1..libc::IFNAMSIZ).contains(&name.len())
            && !name.starts_with(['.', '-'])
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_=+.-".contains(&byte));
        if !valid {
            return Err(KernelError::BadName(name.to_owned()));
        }
        let mut offload = wanted;
        loop {
            let file = open()?;
            attach(&file, name, offload, libc::IFF_TUN_EXCL).map_err(|errno| match errno {
                Errno::EBUSY | Errno::EEXIST | Errno::EINVAL => {
                    KernelError::NameInUse { name: name.to_owned() }
                }
                Errno::ENODEV | Errno::ENXIO => KernelError::NoTunDevice,
                _ => KernelError::new(format!("make the TUN device {name}"), errno),
            })?;
            if set_offload(&file, offload).is_err()
                && let Some(less) = offload.less()
            {
                offload = less;
                continue;
            }
            let index = RouteSocket::index_of(name)?;
            return Ok(Self { file, name: name.to_owned(), index, offload });
        }
    }

    /// Another queue of the same device. The kernel gives the packets of a flow to the queue that last had a packet
    /// of its other direction, and those of a new flow to any.
    pub fn another_queue(&self) -> Result<Self, KernelError> {
        let file = open()?;
        let failed =
            |errno| KernelError::new(format!("make another queue of the TUN device {}", self.name), errno);
        attach(&file, &self.name, self.offload, 0).map_err(failed)?;
        Ok(Self { file, name: self.name.clone(), ..*self })
    }

    /// The device's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The device's interface index.
    pub const fn index(&self) -> u32 {
        self.index
    }

    /// What it offloads.
    pub const fn offload(&self) -> TunOffload {
        self.offload
    }

    /// Reads one frame. `WouldBlock` when there is none.
    pub fn receive(&self, frame: &mut [u8]) -> io::Result<usize> {
        (&self.file).read(frame)
    }

    /// Writes one frame. `WouldBlock` when the kernel has no room.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        (&self.file).write(frame).map(drop)
    }
}

impl AsFd for TunDevice {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn open() -> Result<File, KernelError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(PATH)
        .map_err(|error| open_failed(&error))
}

fn open_failed(error: &io::Error) -> KernelError {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENOENT | Errno::ENODEV | Errno::ENXIO) | None => KernelError::NoTunDevice,
        Some(errno) => KernelError::new(format!("open {PATH}"), errno),
    }
}

fn attach(file: &File, name: &str, offload: TunOffload, more: libc::c_int) -> Result<(), Errno> {
    // SAFETY: `ifreq` is plain data, for which all zeros are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (place, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *place = libc::c_char::from_ne_bytes([byte]);
    }
    let header = if offload == TunOffload::None { 0 } else { libc::IFF_VNET_HDR };
    let flags = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_MULTI_QUEUE | header | more;
    // The kernel reads 16 bits, the highest of which the type counts as a sign.
    request.ifr_ifru.ifru_flags = u16::try_from(flags).map_err(|_| Errno::EINVAL)?.cast_signed();
    // SAFETY: TUNSETIFF reads and writes one `ifreq`, which `request` is and which outlives the call; the
    // descriptor is open as long as `file`.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    Errno::result(result).map(drop)
}

fn set_offload(file: &File, offload: TunOffload) -> Result<(), Errno> {
    let features = libc::c_ulong::from(offload.features());
    // SAFETY: TUNSETOFFLOAD takes its argument by value; the descriptor is open as long as `file`.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETOFFLOAD, features) };
    Errno::result(result).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hostile;

    #[test]
    fn a_hostile_name_is_refused_before_the_kernel_is_asked() {
        // wg-quick takes these for names, and they are harmless.
        let harmless = ["x-", "x=y"];
        for name in hostile::strings().into_iter().filter(|name| !harmless.contains(&name.as_str())) {
            match TunDevice::create(&name) {
                Err(KernelError::BadName(bad)) => assert_eq!(bad, name),
                other => panic!("{name:?}: {other:?}"),
            }
        }
    }
}
