//! Brings datagrams to the shard of their peer, wherever they come from: a classic BPF program at the group of sockets
//! that share the tunnel's port, which needs no rights (Linux 4.5).

use std::os::fd::AsFd;

use nix::{
    errno::Errno,
    sys::socket::{setsockopt, sockopt::AttachReusePortCbpf},
};

const LOAD_BYTE: u32 = libc::BPF_LD | libc::BPF_B | libc::BPF_ABS;
const IF_EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
const RETURN_LOADED: u32 = libc::BPF_RET | libc::BPF_A;
/// There is no such socket, so the kernel goes by a hash of the addresses.
const BY_ADDRESS: u32 = u32::MAX;

/// A message that answers one of ours carries our index, in which the shard's number is the second byte (see
/// [`Message`](super::message::Message)). Whose an initiation or a beat is shows only later, so these are spread.
const PROGRAM: [libc::sock_filter; 9] = [
    step(LOAD_BYTE, 0, 0, 0),
    step(IF_EQUAL, 4, 3, 0), // data: receiver at 4
    step(IF_EQUAL, 3, 2, 0), // cookie reply: receiver at 4
    step(IF_EQUAL, 2, 3, 0), // response: receiver at 8
    step(RETURN, BY_ADDRESS, 0, 0),
    step(LOAD_BYTE, 5, 0, 0),
    step(RETURN_LOADED, 0, 0, 0),
    step(LOAD_BYTE, 9, 0, 0),
    step(RETURN_LOADED, 0, 0, 0),
];

#[expect(clippy::cast_possible_truncation, reason = "all codes have 16 bits")]
const fn step(code: u32, k: u32, jt: u8, jf: u8) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt, jf, k }
}

/// Steers what comes to the group of this socket. The first socket that was bound is that of shard 0, and so on.
pub(super) fn attach(socket: &impl AsFd) -> Result<(), Errno> {
    let mut steps = PROGRAM;
    let len = u16::try_from(steps.len()).map_err(|_| Errno::EINVAL)?;
    let program = libc::sock_fprog { len, filter: steps.as_mut_ptr() };
    setsockopt(socket, AttachReusePortCbpf, &program)
}

#[cfg(test)]
mod tests {
    use std::{
        net::{Ipv4Addr, UdpSocket},
        num::NonZeroU8,
        os::fd::AsFd,
    };

    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use crate::tunnel::{Offloads, recv_batch::RecvBatch, socket::UdpEndpoint};

    /// At which of the sockets something has come in.
    fn arrived(sockets: &[UdpEndpoint]) -> usize {
        let mut ready: Vec<_> =
            sockets.iter().map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN)).collect();
        assert_eq!(poll(&mut ready, PollTimeout::from(1000_u16)), Ok(1));
        let at = ready.iter().position(|ready| ready.any() == Some(true)).unwrap();
        RecvBatch::new(false).receive(&sockets[at]).unwrap();
        at
    }

    #[test]
    fn datagrams_come_to_the_shard_whose_number_they_carry_wherever_they_come_from() {
        let count = NonZeroU8::new(3).unwrap();
        let sockets = UdpEndpoint::bind_group(count, 0, None, Offloads::NONE).unwrap();
        let to = (Ipv4Addr::LOCALHOST, sockets[0].local_port());
        for _ in 0..4 {
            let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            for (kind, at) in [(4, 5), (3, 5), (2, 9)] {
                for shard in [0, 1, 2, 1, 0] {
                    let mut message = [0; 32];
                    message[0] = kind;
                    message[at] = shard;
                    client.send_to(&message, to).unwrap();
                    assert_eq!(arrived(&sockets), usize::from(shard), "a message of type {kind}");
                }
            }
            // An initiation, a number that nobody has, and nothing at all: always the same one.
            let mut strange = [0; 32];
            (strange[0], strange[5]) = (4, 3);
            let hashed = [&[1; 148][..], &strange].map(|message| {
                client.send_to(message, to).unwrap();
                arrived(&sockets)
            });
            assert_eq!(hashed[0], hashed[1]);
            client.send_to(&[], to).unwrap();
            arrived(&sockets);
        }
    }
}
