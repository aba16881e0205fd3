//! What a batch makes, on its way out: datagrams gathered into runs, packets to the TUN device, events.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::sync::mpsc::Sender;

use super::{
    SendFailure, TunnelEvent,
    coalesce::Coalescer,
    output::Output,
    path::Path,
    shards::{Misdelivered, Number, Shards},
    socket::{LARGEST_DATAGRAM, LONGEST_RUN, UdpEndpoint},
    stats::Work,
    tun_queues::TunQueues,
};

const NOBODY: Path =
    Path { remote: SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0), local: None };

/// The owner's channel for events. Never waited for.
#[derive(Debug, Clone)]
pub(super) struct Events {
    sender: Sender<TunnelEvent>,
    lost: Arc<AtomicU64>,
}

impl Events {
    pub(super) const fn new(sender: Sender<TunnelEvent>, lost: Arc<AtomicU64>) -> Self {
        Self { sender, lost }
    }

    pub(super) fn send(&self, event: TunnelEvent) {
        if self.sender.try_send(event).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// A run of datagrams to one address, of one size but for the last.
#[derive(Debug)]
struct Run {
    bytes: Vec<u8>,
    to: Path,
    length: usize,
    segment: usize,
    count: usize,
    /// Its last datagram is shorter, so no other can follow.
    sealed: bool,
    /// Within this batch.
    grew: bool,
    /// Whom the room behind it was asked for.
    next_to: Path,
}

/// Takes what a shard makes, and sends it.
#[derive(Debug)]
pub(super) struct Transmit {
    pub(super) socket: UdpEndpoint,
    pub(super) lanes: TunQueues,
    events: Events,
    team: Shards,
    pub(super) work: Work,
    run: Run,
    packets: Coalescer,
    failures: Vec<(SocketAddr, SendFailure)>,
}

impl Transmit {
    pub(super) fn new(socket: UdpEndpoint, lanes: TunQueues, events: Events, team: Shards) -> Self {
        let run = Run {
            bytes: vec![0; LARGEST_DATAGRAM],
            to: NOBODY,
            length: 0,
            segment: 0,
            count: 0,
            sealed: false,
            grew: false,
            next_to: NOBODY,
        };
        let packets = Coalescer::new(lanes.offload());
        Self { socket, lanes, events, team, work: Work::default(), run, packets, failures: Vec::new() }
    }

    /// Sends and delivers what is gathered.
    pub(super) fn flush(&mut self) {
        self.end_batch(false, false);
    }

    /// Sends what is gathered, unless more packets may come in at once to go with it, and delivers it, unless more
    /// datagrams may; but not if nothing came to it this time. What is held then must not wait for anything.
    pub(super) fn end_batch(&mut self, more_packets: bool, more_datagrams: bool) {
        if !std::mem::take(&mut self.run.grew) || !more_packets {
            self.flush_run();
        }
        if !self.packets.grew() || !more_datagrams {
            let (lanes, work) = (&self.lanes, &mut self.work);
            self.packets.flush(|frame| write(lanes, frame, work));
        }
        self.team.wake();
    }

    /// Whether something is gathered that is neither sent nor delivered.
    pub(super) const fn holds_some(&self) -> bool {
        self.run.count > 0 || self.packets.is_open()
    }

    fn flush_run(&mut self) {
        let run = &mut self.run;
        let bytes = run.bytes.get(..run.length).unwrap_or_default();
        if run.count > 0
            && let Err(error) = self.socket.send_run(run.to, bytes, run.segment)
        {
            self.failures.push((run.to.remote, SendFailure::from(&error)));
        }
        self.work.sends += u64::from(run.count > 0);
        self.work.datagrams_sent += run.count as u64;
        run.length = 0;
        run.count = 0;
        run.sealed = false;
    }

    /// What the kernel refused since the last call.
    pub(super) fn failures(&mut self) -> Vec<(SocketAddr, SendFailure)> {
        std::mem::take(&mut self.failures)
    }
}

impl Output for Transmit {
    fn datagram(&mut self, to: Path, size: usize) -> &mut [u8] {
        let run = &self.run;
        if run.to != to || run.sealed || run.count == LONGEST_RUN || run.length + size > LARGEST_DATAGRAM {
            self.flush_run();
        }
        let run = &mut self.run;
        run.next_to = to;
        room(&mut run.bytes, run.length, size)
    }

    fn send(&mut self, length: usize) {
        if self.run.count > 0 && length > self.run.segment {
            // Larger than those before: it begins a run of its own.
            let start = self.run.length;
            self.flush_run();
            self.run.bytes.copy_within(start..start + length, 0);
        }
        let run = &mut self.run;
        if run.count == 0 {
            run.to = run.next_to;
            run.segment = length;
        }
        run.sealed = length < run.segment;
        run.grew = true;
        run.length += length;
        run.count += 1;
    }

    fn packet(&mut self, size: usize) -> &mut [u8] {
        self.packets.room(size)
    }

    fn deliver(&mut self, length: usize) {
        let (lanes, work) = (&self.lanes, &mut self.work);
        self.packets.push(length, |frame| write(lanes, frame, work));
    }

    fn event(&mut self, event: TunnelEvent) {
        self.events.send(event);
    }

    fn hand_over(&mut self, to: Number, stray: Misdelivered) {
        let count = if self.team.hand_over(to, stray) {
            &mut self.work.handed_over
        } else {
            &mut self.work.lost_between
        };
        *count += 1;
    }
}

fn write(lanes: &TunQueues, frame: &[u8], work: &mut Work) {
    work.frames_written += 1;
    if let Err(error) = lanes.write(frame) {
        // The device is down, or has no room: the packet is lost as on any link.
        if error.kind() != io::ErrorKind::WouldBlock {
            tracing::debug!(%error, "the TUN device refused a packet");
        }
    }
}

fn room(bytes: &mut Vec<u8>, start: usize, size: usize) -> &mut [u8] {
    let end = start + size;
    if bytes.len() < end {
        bytes.resize(end, 0);
    }
    bytes.get_mut(start..end).unwrap_or_default()
}
