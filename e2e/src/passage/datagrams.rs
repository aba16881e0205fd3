//! A thousand numbered datagrams a second, each way, between two sockets.

use std::{
    io::{Error as IoError, ErrorKind, IoSliceMut},
    net::{SocketAddr, UdpSocket},
    os::fd::{AsFd, AsRawFd},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use nix::{
    cmsg_space,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        socket::{ControlMessageOwned, MsgFlags, recvmsg, setsockopt, sockopt},
        time::TimeSpec,
    },
};

use super::{BothWays, End, Moment, Record};
use crate::{
    error::{Doing, Error, Result},
    wait,
};

/// From one datagram to the next.
const EVERY: Duration = Duration::from_millis(1);
/// Bytes of each: a call's.
const LENGTH: usize = 200;
/// When so much was silent at the end, nothing is on its way any more.
const SILENCE: u16 = 300;
/// Until the first datagram of all is there.
const PATIENCE: Duration = Duration::from_secs(15);
/// What came so recently flows.
const RECENT: Duration = Duration::from_millis(20);

/// A stream each way, from its beginning to [`Streams::end`]. Its threads end when it is dropped.
#[derive(Debug)]
pub struct Streams {
    stop: Arc<AtomicBool>,
    last: BothWays<Arc<AtomicU64>>,
    threads: Option<BothWays<Threads>>,
    begun: Instant,
}

#[derive(Debug)]
struct Threads {
    sender: JoinHandle<Vec<Moment>>,
    receiver: JoinHandle<std::io::Result<Vec<(usize, Moment)>>>,
}

impl Streams {
    /// Begins to send. The near end speaks first, as there may be a NAT in between.
    ///
    /// # Errors
    /// When a socket cannot be had, or nothing from the near end arrives at the far end.
    pub async fn begin(near: End<'_>, far: End<'_>) -> Result<Self> {
        let (near, far) = (socket(near)?, socket(far)?);
        let to = far.local_addr().doing(|| "asking a stream's socket".to_owned())?;
        connect(&near, to)?;
        let heard = wait::until("the near end of a stream to be heard", PATIENCE, || async {
            // Neither waits: both are asked again and again.
            let sent = near.send(&[]);
            far.recv_from(&mut []).map_err(|error| format!("{error}, sent {sent:?}"))
        });
        connect(&far, heard.await?.1)?;
        let (near, far) = (Arc::new(near), Arc::new(far));
        let stop = Arc::new(AtomicBool::new(false));
        let begun = Instant::now();
        let last = BothWays::<Arc<AtomicU64>>::default();
        let one_way = |from: &Arc<UdpSocket>, to: &Arc<UdpSocket>, last: &Arc<AtomicU64>| {
            let (from, stops) = (Arc::clone(from), Arc::clone(&stop));
            let sender = spawn("stream-sender", move || send(&from, &stops))?;
            let (to, stops, last) = (Arc::clone(to), Arc::clone(&stop), Arc::clone(last));
            let receiver = spawn("stream-receiver", move || receive(&to, &stops, (&last, begun)))?;
            Ok::<_, Error>(Threads { sender, receiver })
        };
        let up = one_way(&near, &far, &last.up)?;
        let down = one_way(&far, &near, &last.down)?;
        Ok(Self { stop, last, threads: Some(BothWays { up, down }), begun })
    }

    /// Waits until both directions flow.
    ///
    /// # Errors
    /// When they do not in `limit`.
    pub async fn flow(&self, limit: Duration) -> Result<()> {
        wait::until("both streams to flow", limit, || async {
            let silent = self.last.map(|last| self.silent_for(last));
            let flows = |silent: &Option<Duration>| silent.is_some_and(|silent| silent < RECENT);
            if flows(&silent.up) && flows(&silent.down) { Ok(()) } else { Err(format!("{silent:?}")) }
        })
        .await
    }

    /// Waits until neither direction has carried anything for so long.
    ///
    /// # Errors
    /// When that does not happen in `limit`.
    pub async fn are_silent_for(&self, span: Duration, limit: Duration) -> Result<()> {
        wait::until("both streams to be silent", limit, || async {
            let silent = self.last.map(|last| self.silent_for(last));
            let is_silent = |silent: &Option<Duration>| silent.is_none_or(|silent| silent >= span);
            if is_silent(&silent.up) && is_silent(&silent.down) { Ok(()) } else { Err(format!("{silent:?}")) }
        })
        .await
    }

    /// Stops sending, lets what is on its way arrive, and yields what became of it.
    ///
    /// # Errors
    /// When a socket failed.
    pub async fn end(mut self) -> Result<BothWays<Record>> {
        self.stop.store(true, Ordering::SeqCst);
        let Some(threads) = self.threads.take() else { return Ok(BothWays::default()) };
        threads.join(Threads::record).await
    }

    fn silent_for(&self, last: &AtomicU64) -> Option<Duration> {
        let came = last.load(Ordering::SeqCst);
        (came > 0).then(|| self.begun.elapsed().saturating_sub(Duration::from_micros(came)))
    }
}

impl Drop for Streams {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}

impl Threads {
    fn record(self) -> Result<Record> {
        let lost = |_| Error::Invalid("a stream's thread panicked".to_owned());
        let arrived = self.receiver.join().map_err(lost)?;
        Ok(Record::new(self.sender.join().map_err(lost)?, arrived.doing(|| "receiving a stream".to_owned())?))
    }
}

fn socket(end: End<'_>) -> Result<UdpSocket> {
    let doing = || format!("binding a stream's socket to {} in {}", end.address, end.netns);
    let socket = end.netns.within(|| UdpSocket::bind((end.address, 0)))?.doing(doing)?;
    socket.set_nonblocking(true).doing(doing)?;
    // The time of arrival is the kernel's, not that at which a thread had its turn.
    setsockopt(&socket, sockopt::ReceiveTimestampns, &true).map_err(IoError::from).doing(doing)?;
    Ok(socket)
}

fn connect(socket: &UdpSocket, to: SocketAddr) -> Result<()> {
    socket.connect(to).doing(|| format!("connecting a stream's socket to {to}"))
}

fn spawn<T: Send + 'static>(name: &str, work: impl FnOnce() -> T + Send + 'static) -> Result<JoinHandle<T>> {
    let thread = std::thread::Builder::new().name(name.to_owned()).spawn(work);
    thread.doing(|| format!("starting {name}"))
}

/// Sends until it is to stop; yields when each was sent. One that the network refuses was sent in vain.
fn send(socket: &UdpSocket, stop: &AtomicBool) -> Vec<Moment> {
    let mut sent = Vec::new();
    let mut due = Instant::now();
    let mut packet = [0; LENGTH];
    while !stop.load(Ordering::SeqCst) {
        if let Some((number, _)) = packet.split_first_chunk_mut() {
            *number = u64::try_from(sent.len()).unwrap_or(u64::MAX).to_be_bytes();
        }
        sent.push(Moment::now());
        let _ = socket.send(&packet);
        due += EVERY;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    sent
}

/// Receives until nothing comes after the end.
fn receive(
    socket: &UdpSocket,
    stop: &AtomicBool,
    (last, begun): (&AtomicU64, Instant),
) -> std::io::Result<Vec<(usize, Moment)>> {
    let mut arrived = Vec::new();
    loop {
        let mut waits = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
        let ready = poll(&mut waits, PollTimeout::from(SILENCE))?;
        if ready == 0 && stop.load(Ordering::SeqCst) {
            return Ok(arrived);
        }
        while let Some(packet) = receive_one(socket)? {
            arrived.push(packet);
            last.store(u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX), Ordering::SeqCst);
        }
    }
}

/// The number of a packet that has come, and when it did.
fn receive_one(socket: &UdpSocket) -> std::io::Result<Option<(usize, Moment)>> {
    let mut buffer = [0; LENGTH];
    let mut control = cmsg_space!(TimeSpec);
    let (received, stamped) = {
        let mut slices = [IoSliceMut::new(&mut buffer)];
        match recvmsg::<()>(socket.as_raw_fd(), &mut slices, Some(&mut control), MsgFlags::MSG_DONTWAIT) {
            Ok(message) => {
                let stamped = message.cmsgs()?.find_map(|message| match message {
                    ControlMessageOwned::ScmTimestampns(at) => Some(Duration::from(at)),
                    _ => None,
                });
                (message.bytes, stamped)
            }
            Err(errno) => {
                let error = IoError::from(errno);
                return match error.kind() {
                    ErrorKind::WouldBlock
                    | ErrorKind::Interrupted
                    // What was sent in vain, told late.
                    | ErrorKind::ConnectionRefused
                    | ErrorKind::HostUnreachable
                    | ErrorKind::NetworkUnreachable => Ok(None),
                    _ => Err(error),
                };
            }
        }
    };
    if received < LENGTH {
        // One of those that the stream was opened with.
        return receive_one(socket);
    }
    let number = buffer.first_chunk().and_then(|number| usize::try_from(u64::from_be_bytes(*number)).ok());
    let at = stamped.map_or_else(Moment::now, Moment::since_1970);
    Ok(number.map(|number| (number, at)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{nat::OwnedNetns, netns::Netns};

    #[tokio::test]
    async fn a_stream_that_is_cut_for_a_while_has_a_gap_of_that_length_and_lost_its_packets() {
        let netns = OwnedNetns(Netns::create("streams").await.unwrap());
        let [near, far] = ["127.0.0.1", "127.0.0.2"]
            .map(|address| End { netns: &netns.0, address: address.parse().unwrap() });
        let streams = Streams::begin(near, far).await.unwrap();
        streams.flow(Duration::from_secs(5)).await.unwrap();
        let begun = Moment::now();
        let rules = "table inet cut { chain in { type filter hook input priority filter; ip daddr 127.0.0.2 drop; }; }";
        netns.0.command("nft").arg(rules).run().await.unwrap();
        let cut = Moment::now();
        streams.are_silent_for(Duration::from_millis(200), Duration::from_secs(1)).await.unwrap_err();
        netns.0.command("nft").arg("delete table inet cut").run().await.unwrap();
        let lasted = cut.elapsed();
        streams.flow(Duration::from_secs(5)).await.unwrap();
        let ended = Moment::now();
        let records = streams.end().await.unwrap();
        let [up, down] = [&records.up, &records.down].map(|record| record.passage(begun..ended));
        assert_eq!((down.lost, down.repeated), (0, 0), "{down}");
        assert!(down.longest.lasted < Duration::from_millis(200), "{down}");
        assert!(up.longest.lasted > Duration::from_millis(800) && up.lost > 800, "{up}");
        assert!(up.longest.lasted < lasted + Duration::from_millis(500), "{up}");
        assert!(up.longest.began.since(begun) < Duration::from_millis(500), "{up}");
    }
}
