//! What a gateway is attacked with.

use std::{
    fmt,
    net::{Ipv4Addr, UdpSocket},
    time::{Duration, Instant},
};

use boringtun::noise::TunnResult;
use clap::ValueEnum;
use ring::rand::{SecureRandom, SystemRandom};
use serde::Serialize;

use super::sender::Ammunition;
use crate::{
    error::{Doing, Error, Result},
    speed::{keys::Key, pair::Pair, peer},
};

/// The attacker's own address, and its address in the tunnel.
const HERE: Ipv4Addr = Ipv4Addr::new(198, 18, 255, 1);
const INNER: Ipv4Addr = Ipv4Addr::new(10, 65, 0, 1);
/// Of its session, at its own side.
const INDEX: u32 = 1;
/// Different datagrams of one attack.
const VARIETY: usize = 256;
const PATIENCE: Duration = Duration::from_secs(2);

/// A kind of flood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Attack {
    /// Random bytes, from forged addresses.
    Random,
    /// Initiations of nobody with a right first MAC, from forged addresses.
    ForgedInitiations,
    /// Initiations of a peer, with the cookie where it got one, from its own address.
    Initiations,
    /// An initiation and data of a peer that were there before, from forged addresses.
    Replays,
    /// Messages too short and too long for what they claim to be.
    Misshapen,
    /// Data for sessions that are none, from forged addresses.
    WrongIndex,
    /// Data for a session, but not of its peer, from forged addresses.
    ForgedData,
}

impl fmt::Display for Attack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.to_possible_value().as_ref().map_or("", clap::builder::PossibleValue::get_name))
    }
}

/// A peer of the gateway that turns against it.
pub(super) struct Insider {
    key: Key,
    initiation: Vec<u8>,
    data: Vec<u8>,
}

impl Insider {
    /// Becomes a peer, and has a session.
    pub(super) async fn join(pair: &Pair) -> Result<Self> {
        let key = Key::generate()?;
        pair.far.add_configuration(peer::section(&key, Some(INNER))).await?;
        let socket = socket(pair)?;
        let mut tunn = peer::tunn(pair, &key, INDEX)?;
        let initiation = peer::initiation(&mut tunn)?.to_vec();
        let exchange = || {
            socket.send(&initiation)?;
            let mut answer = [0; 2048];
            let length = socket.recv(&mut answer)?;
            Ok(answer.get(..length).unwrap_or_default().to_vec())
        };
        let exchanged: std::io::Result<Vec<u8>> = exchange();
        let answer = exchanged.doing(|| "waiting for a session".to_owned())?;
        let mut room = [0; 2048];
        let TunnResult::WriteToNetwork(data) = tunn.decapsulate(None, &answer, &mut room) else {
            return Err(Error::Invalid("the gateway's answer is wrong".to_owned()));
        };
        socket.send(data).doing(|| "confirming a session".to_owned())?;
        Ok(Self { key, initiation, data: data.to_vec() })
    }

    /// The datagrams of an attack.
    pub(super) fn ammunition(&self, pair: &Pair, attack: Attack) -> Result<Ammunition> {
        let various = |make: &dyn Fn(usize) -> Result<Vec<u8>>| (0..VARIETY).map(make).collect::<Result<_>>();
        let forged = |datagrams| Ammunition::Forged(datagrams);
        Ok(match attack {
            Attack::Random => forged(various(&|n| random(1 + n * 5))?),
            Attack::ForgedInitiations => {
                let stranger = || peer::tunn(pair, &Key::generate()?, INDEX);
                forged(various(&|_| Ok(peer::initiation(&mut stranger()?)?.to_vec()))?)
            }
            Attack::Initiations => Ammunition::Honest(self.initiations(pair)?, socket(pair)?),
            Attack::Replays => forged(vec![self.initiation.clone(), self.data.clone()]),
            Attack::Misshapen => Ammunition::Honest(various(&misshapen)?, socket(pair)?),
            Attack::WrongIndex => forged(various(&|_| data(&random(4)?))?),
            Attack::ForgedData => {
                let index = self.data.get(4..8).unwrap_or_default();
                forged(various(&|_| data(index))?)
            }
        })
    }

    /// Initiations with the best proof that the gateway gives.
    fn initiations(&self, pair: &Pair) -> Result<Vec<Vec<u8>>> {
        let (socket, mut tunn) = (socket(pair)?, peer::tunn(pair, &self.key, INDEX)?);
        let begun = Instant::now();
        let mut room = [0; 2048];
        socket.set_read_timeout(Some(Duration::from_millis(1))).doing(|| "setting a timeout".to_owned())?;
        while begun.elapsed() < PATIENCE {
            // It may be full for a moment.
            let _ = socket.send(&peer::initiation(&mut tunn)?);
            if let Ok(64) = socket.recv(&mut room) {
                tunn.decapsulate(None, room.get(..64).unwrap_or_default(), &mut [0; 256]);
                break;
            }
        }
        (0..VARIETY).map(|_| Ok(peer::initiation(&mut tunn)?.to_vec())).collect()
    }
}

fn socket(pair: &Pair) -> Result<UdpSocket> {
    let sockets = peer::sockets(pair, std::iter::once(HERE))?;
    let socket = sockets.into_iter().next().ok_or_else(|| Error::Invalid("no socket".to_owned()))?;
    socket.set_read_timeout(Some(PATIENCE)).doing(|| "setting a timeout".to_owned())?;
    Ok(socket)
}

fn random(length: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    let filled = SystemRandom::new().fill(&mut bytes);
    filled.map_err(|_| Error::Unsupported("it gives no random numbers".to_owned()))?;
    Ok(bytes)
}

/// A data message of 1400 bytes with this receiver, a small counter and nonsense.
fn data(receiver: &[u8]) -> Result<Vec<u8>> {
    let mut message = vec![4, 0, 0, 0];
    message.extend(receiver);
    message.extend([random(2)?, vec![0; 6], random(1384)?].concat());
    Ok(message)
}

fn misshapen(n: usize) -> Result<Vec<u8>> {
    let kind = u8::try_from(1 + n % 4).unwrap_or(1);
    let length = if n.is_multiple_of(2) { 4 + n % 28 } else { 1473 + n * 25 };
    let mut message = random(length)?;
    message.splice(..4, [kind, 0, 0, 0]);
    Ok(message)
}
