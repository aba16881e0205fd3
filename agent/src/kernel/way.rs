//! Which way the kernel sends what goes to an address, and which device has an own one.

use std::net::{IpAddr, SocketAddr};

use nix::errno::Errno;

use super::{
    KernelError, RouteSocket,
    netlink::{self, Message},
    route::{ROUTE_HEADER, RTA_DST, RTA_GATEWAY, RTA_OIF, UNICAST, address, family_of, octets},
};

const RTA_SRC: u16 = 2;
const RTA_PREFSRC: u16 = 7;
const RTA_MARK: u16 = 16;
/// `RTN_LOCAL`: an address of this machine.
const LOCAL: u8 = 2;
/// `RTM_F_FIB_MATCH`: the route itself, which of an own address names the device that has it (Linux 4.13).
const MATCHED: u32 = 0x2000;
/// No route, one that refuses, or a source or a device that is none.
const NO_WAY: [Errno; 6] =
    [Errno::ENETUNREACH, Errno::EHOSTUNREACH, Errno::EPERM, Errno::EACCES, Errno::EINVAL, Errno::ENODEV];

/// The way by which packets leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Way {
    /// Index of the device.
    pub device: u32,
    /// The next router, where it is not the destination itself.
    pub gateway: Option<IpAddr>,
    /// The address that they come from, where the system chose it.
    pub source: Option<IpAddr>,
}

impl RouteSocket {
    /// The way of packets with this mark (0: none) from one own address, or from whichever the system chooses. `None`
    /// where there is none now.
    pub fn way(
        &mut self,
        to: SocketAddr,
        from: Option<IpAddr>,
        mark: u32,
    ) -> Result<Option<Way>, KernelError> {
        let mut message = ask(to.ip(), from, 0).attribute(RTA_MARK, &mark.to_ne_bytes());
        if let SocketAddr::V6(to) = to
            && to.scope_id() != 0
        {
            message = message.attribute(RTA_OIF, &to.scope_id().to_ne_bytes());
        }
        Ok(self.find(&message)?.as_deref().and_then(way_of))
    }

    /// The way of packets with this mark (0: none) by one device, whatever metric its routes have. `None` where no route
    /// leads there by it now, or there is no such device.
    pub fn way_by(&mut self, to: SocketAddr, device: u32, mark: u32) -> Result<Option<Way>, KernelError> {
        let ask = |flags| {
            let message = ask(to.ip(), None, flags).attribute(RTA_MARK, &mark.to_ne_bytes());
            message.attribute(RTA_OIF, &device.to_ne_bytes())
        };
        // Where no route leads there by the device, the kernel takes whatever is asked for to be its neighbour (IPv4). It has
        // no such route to show, only an answer.
        if self.find(&ask(MATCHED))?.is_none() {
            return Ok(None);
        }
        let way = self.find(&ask(0))?.as_deref().and_then(way_of);
        // To an own address it leads by the loopback device, whatever was asked for.
        Ok(way.filter(|way| way.device == device))
    }

    /// The device that has an address, or the loopback device for one without any. `None` where it is not this machine's.
    pub fn device_of(&mut self, own: IpAddr) -> Result<Option<u32>, KernelError> {
        let answer = self.find(&ask(own, None, MATCHED))?;
        Ok(answer.filter(|answer| kind_of(answer) == Some(LOCAL)).as_deref().and_then(device_of))
    }

    fn find(&mut self, message: &Message) -> Result<Option<Vec<u8>>, KernelError> {
        match self.0.get("look up a route", message) {
            Ok(answer) => Ok(Some(answer)),
            Err(error) if error.errno().is_some_and(|errno| NO_WAY.contains(&errno)) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn ask(to: IpAddr, from: Option<IpAddr>, flags: u32) -> Message {
    let bits = |address: IpAddr| if address.is_ipv4() { 32 } else { 128 };
    let [a, b, c, d] = flags.to_ne_bytes();
    let header = [family_of(to), bits(to), from.map_or(0, bits), 0, 0, 0, 0, 0, a, b, c, d];
    let message = Message::new(libc::RTM_GETROUTE, 0, &header).attribute(RTA_DST, &octets(to));
    match from {
        Some(from) => message.attribute(RTA_SRC, &octets(from)),
        None => message,
    }
}

fn way_of(answer: &[u8]) -> Option<Way> {
    let is_way = matches!(kind_of(answer), Some(UNICAST | LOCAL));
    let there = |kind| attribute(answer, kind).and_then(address);
    device_of(answer).filter(|_| is_way).map(|device| Way {
        device,
        gateway: there(RTA_GATEWAY),
        source: there(RTA_PREFSRC),
    })
}

fn kind_of(route: &[u8]) -> Option<u8> {
    route.get(7).copied()
}

fn attribute(route: &[u8], kind: u16) -> Option<&[u8]> {
    netlink::attribute(route.get(ROUTE_HEADER..)?, kind)
}

fn device_of(route: &[u8]) -> Option<u32> {
    netlink::u32_at(attribute(route, RTA_OIF)?, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOBODYS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(203, 0, 113, 9));

    #[test]
    fn the_way_to_oneself_is_the_loopback_device() {
        let mut socket = RouteSocket::open().unwrap();
        let loopback = RouteSocket::index_of("lo").unwrap();
        let own = IpAddr::from([127, 0, 0, 1]);
        let way = socket.way((own, 9).into(), None, 0).unwrap().unwrap();
        assert_eq!(way, Way { device: loopback, gateway: None, source: Some(own) });
        assert_eq!(socket.device_of(own).unwrap(), Some(loopback));
        assert_eq!(socket.device_of(NOBODYS).unwrap(), None);
        assert_eq!(socket.way((own, 9).into(), Some(NOBODYS), 0).unwrap(), None);
    }
}
