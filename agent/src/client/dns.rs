//! Name servers of the tunnel: handed to whatever manages them on this machine, put back when somebody takes them away, and
//! taken back at the end, also at that of a process that was killed.

mod call;
mod file;
mod keeper;
mod machine;
mod manager;
mod policy;
mod watch;

use std::{
    net::IpAddr,
    sync::mpsc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use ipnet::IpNet;
use pinhole_proto::DomainName;
use tokio::sync::watch as state;

use self::keeper::Keeper;
pub(super) use self::{
    machine::{find_network, is_asked_by_link, mend},
    watch::{Watch, changed},
};
use super::{ClientError, Impairment, settings::Settings};
use crate::identity::{Names, Store};

const RESOLV_CONF: &str = "/etc/resolv.conf";
/// How long they may take to be in force before something is said to be missing. A healthy systemd-resolved takes some tens of
/// milliseconds.
const SETTING_TIMEOUT: Duration = Duration::from_secs(3);

/// What a tunnel wants.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) servers: Vec<IpAddr>,
    pub(super) search: Vec<DomainName>,
    /// Whether they are asked for all names, where that can be chosen.
    pub(super) all: bool,
}

impl Wanted {
    /// All names are theirs in a full tunnel, and where there is nothing to tell the tunnel's own by.
    pub(super) fn of(settings: &Settings) -> Self {
        Wanted {
            servers: settings.dns_servers.clone(),
            search: settings.dns_search.clone(),
            all: settings.dns_search.is_empty() || is_everything(&settings.routes),
        }
    }
}

/// Whether they lead all addresses of a family into the tunnel, also in parts.
pub(super) fn is_everything(routes: &[IpNet]) -> bool {
    IpNet::aggregate(&routes.to_vec()).iter().any(|net| net.prefix_len() == 0)
}

/// What the thread that keeps them is told.
enum Order {
    /// Which are wanted, each time under a higher number, as long as there is a path to them.
    Set(u64, Wanted),
    /// Whether there is a path to them.
    Path(bool),
    /// Somebody has set the name servers of this machine.
    Changed,
}

/// What it tells.
#[derive(Debug, Default, PartialEq, Eq)]
struct Outcome {
    /// The number of what is wanted that this is about.
    settled: u64,
    /// Why it is not in force.
    missing: Option<String>,
    /// The network's own.
    network: Vec<IpAddr>,
}

/// The name servers of one tunnel, for who must not wait until they are set.
pub(super) struct Dns {
    orders: mpsc::Sender<Order>,
    outcome: state::Receiver<Outcome>,
    keeper: JoinHandle<()>,
    wanted: Wanted,
    /// How often something else was wanted, and since when this is.
    asked: (u64, Option<Instant>),
    path: Option<bool>,
}

impl Dns {
    /// After [`mend`] and [`find_network`]. The names of gateways are asked of the network's own servers while the tunnel's are in
    /// force.
    ///
    /// # Errors
    /// Where the system has no thread left.
    pub(super) fn open(device: &str, store: Store, names: Names) -> Result<Self, ClientError> {
        let (orders, taken) = mpsc::channel();
        let (told, outcome) = state::channel(Outcome::default());
        let keeper = Keeper::new(device, store, names);
        let thread = std::thread::Builder::new().name("name servers".to_owned());
        let keeper = thread
            .spawn(move || keeper.run(&taken, &told))
            .map_err(|error| ClientError::Setting(format!("cannot look after name servers: {error}")))?;
        Ok(Dns { orders, outcome, keeper, wanted: Wanted::default(), asked: (0, None), path: None })
    }

    /// Makes the tunnel's name servers exactly these, as long as there is a path to them.
    pub(super) fn set(&mut self, now: Instant, wanted: Wanted) {
        if wanted == self.wanted {
            return;
        }
        self.asked = (self.asked.0 + 1, Some(now));
        self.wanted = wanted.clone();
        self.tell(Order::Set(self.asked.0, wanted));
    }

    /// Whether there is a path to the tunnel's name servers.
    pub(super) fn handle_path(&mut self, there: bool) {
        if self.path.replace(there) != Some(there) {
            self.tell(Order::Path(there));
        }
    }

    /// Somebody has set the name servers of this machine.
    pub(super) fn handle_changed(&self) {
        self.tell(Order::Changed);
    }

    /// Until when it is open whether they can be set.
    pub(super) fn pending_until(&self, now: Instant) -> Option<Instant> {
        let (number, since) = self.asked;
        let until = since? + SETTING_TIMEOUT;
        (self.outcome.borrow().settled < number && now < until).then_some(until)
    }

    /// What of the pool's promise does not hold here.
    pub(super) fn missing(&self, now: Instant) -> Option<Impairment> {
        let outcome = self.outcome.borrow();
        let why = match self.pending_until(now) {
            Some(_) => "they are about to be",
            None if outcome.settled < self.asked.0 => "who manages them on this machine does not answer",
            None => outcome.missing.as_deref()?,
        };
        let message = format!(
            "the pool's name servers are not in use: {why}; they are set again as soon as that can be"
        );
        Some(Impairment::failed("ResolverNotSet", &message))
    }

    /// Takes them back, and waits for that.
    pub(super) fn close(self) {
        drop(self.orders);
        let _ = self.keeper.join();
    }

    /// Somebody listens for as long as this lives: a panic ends the process.
    fn tell(&self, order: Order) {
        let _ = self.orders.send(order);
    }
}

/// Waits until something else is true of the tunnel's name servers; for ever where it has none.
pub(super) async fn settled(dns: Option<&mut Dns>) {
    if let Some(dns) = dns
        && dns.outcome.changed().await.is_ok()
    {
        return;
    }
    std::future::pending::<()>().await;
}

#[cfg(test)]
mod tests {
    use super::{
        manager::{Call, Manager},
        *,
    };
    use crate::hostile;
    use pinhole_proto::v1;
    use proptest::prelude::*;

    /// What a gateway sends, as far as it comes to be wanted.
    fn wanted(search: &[String]) -> Wanted {
        let config = v1::ClientConfig {
            client: Some(v1::ObjectRef { namespace: "vpn".into(), name: "laptop".into(), uid: "u".into() }),
            addresses: vec!["10.77.0.9/32".into()],
            dns_servers: vec!["10.96.0.10".into()],
            dns_search: search.to_vec(),
            ..v1::ClientConfig::default()
        };
        Wanted::of(&Settings::parse(config).unwrap())
    }

    fn assert_harmless(wanted: &Wanted) {
        let text = file::text(wanted);
        let lines: Vec<_> = text.lines().collect();
        assert!((1..=2).contains(&lines.len()) && lines[0] == "nameserver 10.96.0.10", "{text:?}");
        assert!(lines.iter().skip(1).all(|line| line.starts_with("search ")), "{text:?}");
        assert!(text.bytes().all(|b| b == b'\n' || b == b' ' || b.is_ascii_graphic()), "{text:?}");
        for Call { arguments, .. } in Manager::Resolved.set("pinhole0", wanted) {
            assert!(arguments.iter().all(|a| !a.is_empty() && !a.starts_with('-')), "{arguments:?}");
            assert!(arguments.iter().all(|a| a.bytes().all(|b| b.is_ascii_graphic())), "{arguments:?}");
        }
    }

    #[test]
    fn nothing_hostile_crosses_into_resolv_conf_or_onto_the_command_line_of_resolvectl() {
        for text in hostile::strings() {
            let wanted = wanted(&[text, "corp.example".to_owned()]);
            assert_harmless(&wanted);
            assert_eq!(file::text(&wanted), "nameserver 10.96.0.10\nsearch corp.example\n");
            let calls = Manager::Resolved.set("pinhole0", &wanted);
            assert_eq!(calls[1].arguments, ["domain", "pinhole0", "corp.example"]);
        }
    }

    proptest! {
        #[test]
        fn whatever_a_gateway_sends_is_words_of_one_line(search in proptest::collection::vec("[a-z.\n -]{0,12}|.*", 0..40)) {
            assert_harmless(&wanted(&search));
        }
    }

    #[test]
    fn a_full_tunnel_is_one_in_halves_too() {
        let all = |routes: &[&str]| {
            is_everything(&routes.iter().map(|route| route.parse().unwrap()).collect::<Vec<IpNet>>())
        };
        assert!(all(&["10.0.0.0/8", "0.0.0.0/0"]) && all(&["::/0"]) && all(&["128.0.0.0/1", "0.0.0.0/1"]));
        assert!(!all(&["0.0.0.0/1"]) && !all(&[]));
    }
}
