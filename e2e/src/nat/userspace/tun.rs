//! The TUN device that a userspace NAT sits on.

use std::{
    fs::{File, OpenOptions},
    io::{Read, Write},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd},
        unix::fs::OpenOptionsExt,
    },
};

use nix::errno::Errno;

/// A TUN device for whole IPv4 packets. It is gone when this is dropped.
#[derive(Debug)]
pub(crate) struct Tun {
    file: File,
}

impl Tun {
    /// Makes a device, down and without address, in the namespace of the calling thread.
    pub(crate) fn create(name: &str) -> std::io::Result<Self> {
        let mut options = OpenOptions::new();
        let flags = libc::O_NONBLOCK | libc::O_CLOEXEC;
        let file = options.read(true).write(true).custom_flags(flags).open("/dev/net/tun")?;
        attach(&file, name)?;
        Ok(Self { file })
    }

    /// Reads one packet. `WouldBlock` when there is none.
    pub(crate) fn receive<'a>(&self, buffer: &'a mut [u8]) -> std::io::Result<&'a [u8]> {
        let length = (&self.file).read(buffer)?;
        Ok(buffer.get(..length).unwrap_or_default())
    }

    /// Writes one packet.
    pub(crate) fn send(&self, packet: &[u8]) -> std::io::Result<()> {
        (&self.file).write(packet).map(drop)
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[allow(unsafe_code)]
fn attach(file: &File, name: &str) -> nix::Result<()> {
    // SAFETY: `ifreq` is plain data, for which all zeros are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays zero.
    let room = request.ifr_name.len() - 1;
    if name.len() > room {
        return Err(Errno::ENAMETOOLONG);
    }
    for (place, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *place = libc::c_char::from_ne_bytes([byte]);
    }
    let flags = libc::IFF_TUN | libc::IFF_NO_PI;
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).map_err(|_| Errno::EINVAL)?;
    // SAFETY: TUNSETIFF reads and writes one `ifreq`, which `request` is and which outlives the call; the
    // descriptor is open as long as `file`.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    Errno::result(result).map(drop)
}
