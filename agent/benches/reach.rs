//! What it costs that a gateway forwards to what the pool names only: the same client, gateway and flow, with the limits and
//! without them in turns. Needs root and `ip`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "what cannot be measured is no result"
)]

#[path = "../tests/lab/mod.rs"]
mod lab;

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream, UdpSocket},
    time::{Duration, Instant},
};

use lab::{Lab, Stock, eventually};

const ROUNDS: usize = 9;
const EACH: Duration = Duration::from_secs(2);
const SOON: Duration = Duration::from_secs(15);
const SERVER: &str = "10.50.0.2:8080";
/// Prefixes that do not hold the server, as a pool may have.
const OTHERS: u8 = 50;

fn main() {
    let lab = Lab::new("cost");
    let _gateway = lab.gateway();
    eventually(SOON, "the gateway is ready", || lab.readyz());
    lab.operator.change(|desired| {
        let others = (0..OTHERS).map(|n| format!("10.{n}.128.0/24"));
        desired.pools[0].routes = others.chain(["10.50.0.0/16".to_owned()]).collect();
    });
    let stock = Stock {
        addresses: &["10.77.0.20/32"],
        endpoint: "192.0.2.1:51820",
        allowed: "10.0.0.0/8",
        routes: &["10.0.0.0/8"],
    };
    let _stock = lab.stock_client(&format!("b{}", std::process::id()), &stock);
    eventually(SOON, "the client reaches the host", || lab.client_pings("10.50.0.2"));
    for (name, unit, measure) in [
        ("TCP, one stream", "Mbit/s", tcp as fn(&Lab) -> f64),
        ("UDP, 64 bytes", "packets/s", udp as fn(&Lab) -> f64),
    ] {
        let mut limited = Vec::new();
        let mut unlimited = Vec::new();
        for _ in 0..ROUNDS {
            limit(&lab, true);
            limited.push(measure(&lab));
            limit(&lab, false);
            unlimited.push(measure(&lab));
        }
        let mut ratios: Vec<_> =
            limited.iter().zip(&unlimited).map(|(with, without)| with / without).collect();
        let (with, without, ratio) = (median(&mut limited), median(&mut unlimited), median(&mut ratios));
        println!(
            "{name}: {with:.0} {unit} with limits, {without:.0} without; median of {ROUNDS} ratios {ratio:.3}"
        );
    }
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

/// An operator that says nothing of clients among themselves limits nothing.
fn limit(lab: &Lab, limited: bool) {
    lab.operator.change(|desired| desired.pools[0].client_to_client = limited.then_some(false));
    let unlimited = "pinhole_gateway_impairments{category=\"ReachUnlimited\"} 1";
    eventually(SOON, "the gateway follows", || lab.metrics().contains(unlimited) != limited);
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
fn per_second(count: u64, begun: Instant) -> f64 {
    count as f64 / begun.elapsed().as_secs_f64()
}

fn tcp(lab: &Lab) -> f64 {
    let listener = lab.within_host(|| TcpListener::bind(SERVER).unwrap());
    let mut near = lab.within_client(|| TcpStream::connect(SERVER).unwrap());
    let (mut far, _) = listener.accept().unwrap();
    let sender = std::thread::spawn(move || {
        let begun = Instant::now();
        let block = vec![0; 1 << 17];
        while begun.elapsed() < EACH && near.write_all(&block).is_ok() {}
    });
    let (begun, mut block, mut bytes) = (Instant::now(), vec![0; 1 << 17], 0);
    while let Ok(count @ 1..) = far.read(&mut block) {
        bytes += u64::try_from(count).unwrap();
    }
    sender.join().unwrap();
    per_second(bytes, begun) * 8.0 / 1e6
}

fn udp(lab: &Lab) -> f64 {
    let far = lab.within_host(|| UdpSocket::bind(SERVER).unwrap());
    far.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let near = lab.within_client(|| UdpSocket::bind("10.77.0.20:0").unwrap());
    near.connect(SERVER).unwrap();
    let sender = std::thread::spawn(move || {
        let begun = Instant::now();
        // More than the tunnel carries: some find no room in a buffer.
        while begun.elapsed() < EACH {
            let _ = near.send(&[0; 64]);
        }
    });
    let begun = Instant::now();
    let mut packets = 0;
    while begun.elapsed() < EACH {
        packets += u64::from(far.recv(&mut [0; 64]).is_ok());
    }
    let rate = per_second(packets, begun);
    sender.join().unwrap();
    rate
}
