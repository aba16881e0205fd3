//! What a pod of the lab runs: waits, answers, asks. Standard library only; see `setup::rust::toolbox`.
//!
//! ```text
//! toolbox pause                          wait for the end, reaping orphans (PID 1 of a pod)
//! toolbox udp-echo PORT                  answer every datagram with "ADDRESS TEXT", the sender as seen here
//! toolbox tcp-echo PORT                  the same for every line of every connection
//! toolbox udp-ask HOST:PORT TEXT [FROM]  send, print the answer; from local port FROM
//! toolbox tcp-ask HOST:PORT TEXT         the same over TCP
//! toolbox connect HOST:PORT              succeed when a TCP connection does
//! toolbox resolve NAME                   print the addresses of a name
//! toolbox tun                            succeed when the TUN device can be opened
//! ```

use std::{
    error::Error,
    fs::File,
    io::{BufRead, BufReader, ErrorKind, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs, UdpSocket},
    process::ExitCode,
    thread,
    time::Duration,
};

type Outcome = Result<(), Box<dyn Error>>;

const PATIENCE: Duration = Duration::from_secs(3);

fn main() -> ExitCode {
    signals::end_on_sigterm();
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("toolbox {}: {error}", args.join(" "));
            ExitCode::FAILURE
        }
    }
}

fn run(args: &[&str]) -> Outcome {
    match args {
        [] | ["pause"] => signals::reap_for_ever(),
        ["udp-echo", port] => udp_echo(port.parse()?),
        ["tcp-echo", port] => tcp_echo(port.parse()?),
        ["udp-ask", to, text] => udp_ask(to, text, 0),
        ["udp-ask", to, text, from] => udp_ask(to, text, from.parse()?),
        ["tcp-ask", to, text] => tcp_ask(to, text),
        ["connect", to] => connect(to).map(drop),
        ["resolve", name] => resolve(name),
        ["tun"] => File::options().read(true).write(true).open("/dev/net/tun").map(drop).map_err(Into::into),
        _ => Err("unknown command".into()),
    }
}

/// Any address, of both families where the machine has both.
fn any(port: u16) -> [SocketAddr; 2] {
    [(Ipv6Addr::UNSPECIFIED, port).into(), (Ipv4Addr::UNSPECIFIED, port).into()]
}

fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn udp_echo(port: u16) -> Outcome {
    let socket = UdpSocket::bind(any(port).as_slice())?;
    println!("listening on {}", socket.local_addr()?);
    let mut buffer = vec![0; 65536];
    loop {
        let (length, from) = socket.recv_from(&mut buffer)?;
        let text = String::from_utf8_lossy(buffer.get(..length).unwrap_or_default());
        let _ = socket.send_to(format!("{} {text}", plain(from)).as_bytes(), from);
    }
}

fn tcp_echo(port: u16) -> Outcome {
    let listener = TcpListener::bind(any(port).as_slice())?;
    println!("listening on {}", listener.local_addr()?);
    for connection in listener.incoming() {
        thread::spawn(move || connection.map_err(Into::into).and_then(|stream| answer_lines(&stream)).ok());
    }
    Ok(())
}

fn answer_lines(stream: &TcpStream) -> Outcome {
    let peer = plain(stream.peer_addr()?);
    for line in BufReader::new(stream).lines() {
        writeln!(&*stream, "{peer} {}", line?)?;
    }
    Ok(())
}

/// Sends up to ten times, for datagrams may be lost, and prints the first answer.
fn udp_ask(to: &str, text: &str, from: u16) -> Outcome {
    let to = first(to)?;
    let local: IpAddr =
        if to.is_ipv6() { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((local, from))?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(PATIENCE / 10))?;
    let mut buffer = vec![0; 65536];
    let mut failure = String::from("no answer");
    for _ in 0..10 {
        // A refusal of the datagram before may surface on either call; the next try is worth it all the same.
        match socket.send(text.as_bytes()).and_then(|_| socket.recv(&mut buffer)) {
            Ok(length) => {
                println!("{}", String::from_utf8_lossy(buffer.get(..length).unwrap_or_default()));
                return Ok(());
            }
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                failure = error.to_string();
                thread::sleep(PATIENCE / 10);
            }
            Err(error) => failure = error.to_string(),
        }
    }
    Err(format!("{to} gives no answer: {failure}").into())
}

fn tcp_ask(to: &str, text: &str) -> Outcome {
    let mut stream = connect(to)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    writeln!(stream, "{text}")?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    print!("{line}");
    Ok(())
}

fn connect(to: &str) -> Result<TcpStream, Box<dyn Error>> {
    Ok(TcpStream::connect_timeout(&first(to)?, PATIENCE)?)
}

fn resolve(name: &str) -> Outcome {
    for address in (name, 0).to_socket_addrs()? {
        println!("{}", address.ip());
    }
    Ok(())
}

fn first(name: &str) -> Result<SocketAddr, Box<dyn Error>> {
    name.to_socket_addrs()?.next().ok_or_else(|| format!("{name} has no address").into())
}

/// PID 1 gets no default signal actions and inherits every orphan. The standard library knows of neither, and
/// this file must build without a crate.
#[allow(unsafe_code)]
mod signals {
    unsafe extern "C" {
        fn signal(number: i32, handler: extern "C" fn(i32)) -> usize;
        fn waitpid(pid: i32, status: *mut i32, options: i32) -> i32;
        fn pause() -> i32;
        fn _exit(code: i32) -> !;
    }

    const SIGINT: i32 = 2;
    const SIGTERM: i32 = 15;
    const SIGCHLD: i32 = 17;

    extern "C" fn end(number: i32) {
        // SAFETY: _exit is async-signal-safe and takes any code.
        unsafe { _exit(if number == SIGTERM { 0 } else { 128 + number }) }
    }

    extern "C" fn reap(_: i32) {
        // SAFETY: waitpid is async-signal-safe; a null status pointer is allowed; WNOHANG (1) never blocks.
        while unsafe { waitpid(-1, std::ptr::null_mut(), 1) } > 0 {}
    }

    pub(crate) fn end_on_sigterm() {
        // SAFETY: the handlers only call async-signal-safe functions.
        unsafe {
            signal(SIGTERM, end);
            signal(SIGINT, end);
        }
    }

    pub(crate) fn reap_for_ever() -> ! {
        // SAFETY: as above; pause only waits for a signal.
        unsafe {
            signal(SIGCHLD, reap);
            loop {
                pause();
            }
        }
    }
}
