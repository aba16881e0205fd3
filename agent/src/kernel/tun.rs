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

/// A TUN device of our own making. It is gone when this is dropped.
#[derive(Debug)]
pub struct TunDevice {
    file: File,
    name: String,
    index: u32,
}

impl TunDevice {
    /// Makes a device with this name, for raw IP packets, down and without address. Reading and writing do not
    /// wait.
    pub fn create(name: &str) -> Result<Self, KernelError> {
        let valid = (1..libc::IFNAMSIZ).contains(&name.len())
            && !matches!(name, "." | "..")
            && name.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'/' | b':' | b'%'));
        if !valid {
            return Err(KernelError::BadName(name.to_owned()));
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open(PATH)
            .map_err(|error| open_failed(&error))?;
        attach(&file, name).map_err(|errno| match errno {
            Errno::EBUSY | Errno::EEXIST | Errno::EINVAL => KernelError::NameInUse { name: name.to_owned() },
            Errno::ENODEV | Errno::ENXIO => KernelError::NoTunDevice,
            _ => KernelError::new(format!("make the TUN device {name}"), errno),
        })?;
        let index = RouteSocket::index_of(name)?;
        Ok(Self { file, name: name.to_owned(), index })
    }

    /// The device's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The device's interface index.
    pub const fn index(&self) -> u32 {
        self.index
    }

    /// Reads one packet. `WouldBlock` when there is none.
    pub fn receive(&self, packet: &mut [u8]) -> io::Result<usize> {
        (&self.file).read(packet)
    }

    /// Writes one packet. `WouldBlock` when the kernel has no room.
    pub fn send(&self, packet: &[u8]) -> io::Result<()> {
        (&self.file).write(packet).map(drop)
    }
}

impl AsFd for TunDevice {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn open_failed(error: &io::Error) -> KernelError {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENOENT | Errno::ENODEV | Errno::ENXIO) | None => KernelError::NoTunDevice,
        Some(errno) => KernelError::new(format!("open {PATH}"), errno),
    }
}

fn attach(file: &File, name: &str) -> Result<(), Errno> {
    // SAFETY: `ifreq` is plain data, for which all zeros are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (place, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *place = libc::c_char::from_ne_bytes([byte]);
    }
    let flags = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_TUN_EXCL;
    // The kernel reads 16 bits, the highest of which the type counts as a sign.
    request.ifr_ifru.ifru_flags = u16::try_from(flags).map_err(|_| Errno::EINVAL)?.cast_signed();
    // SAFETY: TUNSETIFF reads and writes one `ifreq`, which `request` is and which outlives the call; the
    // descriptor is open as long as `file`.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    Errno::result(result).map(drop)
}
