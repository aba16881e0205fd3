//! Keeps the mapping of a UDP socket alive with the fewest packets, against an echo of a few lines:
//!
//! ```sh
//! cargo run -p pinhole-nat --example keep -- echo 0.0.0.0:7007       # on a machine with a public address
//! cargo run -p pinhole-nat --example keep -- keep 203.0.113.7:7007   # behind the NAT
//! ```
//!
//! All that an echo has to do: say where a datagram came from, and send another one later where that is asked for.
//! Nothing is authenticated here; [`pinhole_nat::wire`] has a format that is.

#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "here are the clock and the sockets")]

use std::{
    collections::{BTreeMap, HashMap, hash_map::Entry},
    error::Error,
    io,
    net::{SocketAddr, ToSocketAddrs, UdpSocket},
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, RecvTimeoutError, Sender},
    },
    thread,
    time::{Duration, Instant},
};

use pinhole_nat::{Action, Beat, Channel, Keeper, Policy, Reply, Wake};

/// Longer than any message here.
const MESSAGE: usize = 128;
/// Sleeping echoes at most, so that nobody can fill its memory.
const MAX_WAKES: usize = 10_000;
/// How often a thread looks whether its socket is still needed.
const LOOK: Duration = Duration::from_millis(200);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["echo", at] => UdpSocket::bind(at).and_then(|socket| echo(&socket)).map_err(Into::into),
        ["keep", echo] => keep(echo),
        _ => Err("usage: keep echo LISTEN:PORT | keep keep ECHO:PORT".into()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("keep: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Answers `SEQ [MILLISECONDS]` with `reply SEQ ADDRESS`, and after those milliseconds with `wake SEQ`, unless
/// something else comes from that address before.
fn echo(socket: &UdpSocket) -> io::Result<()> {
    let mut wakes: BTreeMap<(Instant, SocketAddr), u64> = BTreeMap::new();
    let mut buffer = [0; MESSAGE];
    loop {
        let now = Instant::now();
        while let Some(entry) = wakes.first_entry().filter(|entry| entry.key().0 <= now) {
            let ((_, to), seq) = entry.remove_entry();
            socket.send_to(format!("wake {seq}").as_bytes(), to)?;
        }
        let due = wakes
            .keys()
            .next()
            .map(|(due, _)| due.saturating_duration_since(now).max(Duration::from_millis(1)));
        socket.set_read_timeout(due)?;
        let (size, from) = match socket.recv_from(&mut buffer) {
            Ok(received) => received,
            Err(error) if is_nothing(&error) => continue,
            Err(error) => return Err(error),
        };
        let text = buffer.get(..size).and_then(|bytes| std::str::from_utf8(bytes).ok()).unwrap_or_default();
        let mut words = text.split(' ');
        let Some(seq) = words.next().and_then(|word| word.parse::<u64>().ok()) else { continue };
        socket.send_to(format!("reply {seq} {from}").as_bytes(), from)?;
        wakes.retain(|(_, to), _| *to != from);
        let after = words.next().and_then(|word| word.parse().ok()).map(Duration::from_millis);
        if let Some(after) = after.filter(|after| *after <= Beat::LONGEST_WAKE && wakes.len() < MAX_WAKES) {
            wakes.insert((Instant::now() + after, from), seq);
        }
    }
}

/// What came for one of our sockets.
enum Heard {
    Reply { seq: u64, observed: SocketAddr },
    Wake { seq: u64 },
}

/// A socket, and a thread that hears it until it is dropped.
struct Socket {
    socket: UdpSocket,
    closed: Arc<AtomicBool>,
}

impl Socket {
    fn open(echo: SocketAddr, channel: Channel, heard: Sender<(Channel, Heard)>) -> io::Result<Self> {
        let socket = UdpSocket::bind(if echo.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
        socket.connect(echo)?;
        socket.set_read_timeout(Some(LOOK))?;
        let (listener, closed) = (socket.try_clone()?, Arc::new(AtomicBool::new(false)));
        let over = closed.clone();
        thread::spawn(move || {
            let mut buffer = [0; MESSAGE];
            while !over.load(Ordering::Relaxed) {
                let Ok(size) = listener.recv(&mut buffer) else { continue };
                let text = buffer.get(..size).and_then(|bytes| std::str::from_utf8(bytes).ok());
                if let Some(message) = text.and_then(parse)
                    && heard.send((channel, message)).is_err()
                {
                    return;
                }
            }
        });
        Ok(Self { socket, closed })
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.closed.store(true, Ordering::Relaxed);
    }
}

fn parse(text: &str) -> Option<Heard> {
    let mut words = text.split(' ');
    match (words.next()?, words.next()?.parse().ok()?) {
        ("reply", seq) => Some(Heard::Reply { seq, observed: words.next()?.parse().ok()? }),
        ("wake", seq) => Some(Heard::Wake { seq }),
        _ => None,
    }
}

fn keep(echo: &str) -> Result<(), Box<dyn Error>> {
    let echo = echo.to_socket_addrs()?.next().ok_or("the echo's name has no address")?;
    let (sender, heard) = mpsc::channel();
    let mut sockets: HashMap<Channel, Socket> = HashMap::new();
    // The seed spreads what many clients do; any number will do for one.
    let seed = u64::from(std::process::id());
    let mut keeper = Keeper::new(Instant::now(), Policy::default(), None, seed);
    let mut said = None;
    loop {
        while let Some(action) = keeper.poll_action() {
            match action {
                Action::Send(beat) => {
                    let socket = match sockets.entry(beat.channel) {
                        Entry::Occupied(open) => open.into_mut(),
                        Entry::Vacant(place) => {
                            place.insert(Socket::open(echo, beat.channel, sender.clone())?)
                        }
                    };
                    let wake = beat.wake.map(|after| format!(" {}", after.as_millis())).unwrap_or_default();
                    if let Err(error) = socket.socket.send(format!("{}{wake}", beat.seq).as_bytes()) {
                        eprintln!("a beat could not be sent: {error}");
                    }
                }
                Action::Close(channel) => drop(sockets.remove(&channel)),
                Action::Lost => eprintln!("the echo does not answer; tried again"),
                Action::Event(change) => eprintln!("the mapping changed: {change:?}"),
                Action::Prove | Action::Confirmed { .. } => {}
            }
        }
        let now = (keeper.interval(), keeper.reason(), keeper.binding());
        if said != Some(now) {
            let (interval, reason, binding) = now;
            println!(
                "a packet every {:.1} s ({reason}); a mapping lives {}",
                interval.as_secs_f64(),
                span(&binding)
            );
            said = Some(now);
        }
        let timeout = keeper
            .poll_timeout()
            .map_or(Duration::from_hours(1), |due| due.saturating_duration_since(Instant::now()));
        match heard.recv_timeout(timeout) {
            Ok((channel, Heard::Reply { seq, observed })) => {
                keeper.handle_reply(Instant::now(), Reply { channel, seq, observed, is_endpoint: true });
            }
            Ok((channel, Heard::Wake { seq })) => keeper.handle_wake(Instant::now(), Wake { channel, seq }),
            Err(RecvTimeoutError::Timeout) => keeper.handle_timeout(Instant::now()),
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
        }
    }
}

fn span(binding: &pinhole_nat::Binding) -> String {
    let at_least = binding.at_least.as_secs_f64();
    match binding.less_than {
        Some(less_than) => format!("{at_least:.1} to {:.1} s", less_than.as_secs_f64()),
        None => format!("at least {at_least:.1} s"),
    }
}

fn is_nothing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock
            | io::ErrorKind::TimedOut
            | io::ErrorKind::Interrupted
            // The one we answered is gone.
            | io::ErrorKind::ConnectionRefused
    )
}
