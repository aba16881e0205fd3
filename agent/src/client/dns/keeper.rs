//! Has the tunnel's name servers be in force, on a thread of its own: each program that is asked for that may take its time.

use std::{
    sync::mpsc::{Receiver, RecvTimeoutError},
    time::{Duration, Instant},
};

use tokio::sync::watch;

use super::{
    Order, Outcome, RESOLV_CONF, Wanted, call, file,
    machine::{self, networks, read_file},
    manager::Manager,
    policy::Policy,
};
use crate::identity::{Names, Store};

/// Who changes something often changes more of it.
const SETTLE: Duration = Duration::from_millis(50);

/// The name servers of one tunnel.
pub(super) struct Keeper {
    device: String,
    store: Store,
    /// Those of gateways: they are asked of the network's own servers while ours are in force.
    names: Names,
    wanted: Wanted,
    applied: Option<(Manager, Wanted)>,
    policy: Policy,
    /// Why what is wanted is not in force.
    missing: Option<String>,
}

impl Keeper {
    pub(super) fn new(device: &str, store: Store, names: Names) -> Self {
        Keeper {
            device: device.to_owned(),
            store,
            names,
            wanted: Wanted::default(),
            applied: None,
            policy: Policy::default(),
            missing: None,
        }
    }

    /// Does what it is told until nobody can tell it anything any more, and takes them back then.
    pub(super) fn run(mut self, orders: &Receiver<Order>, outcome: &watch::Sender<Outcome>) {
        let mut settled = 0;
        while let Some(given) = self.next(orders) {
            let mut is_changed = false;
            for order in given {
                match order {
                    Order::Set(number, wanted) => (settled, self.wanted) = (number, wanted),
                    Order::Path(there) => self.policy.handle_path(Instant::now(), there),
                    Order::Changed => is_changed = true,
                }
            }
            if is_changed {
                std::thread::sleep(SETTLE);
                self.handle_changed(Instant::now());
            }
            self.act(Instant::now());
            outcome.send_if_modified(|outcome| {
                let newer = Outcome { settled, missing: self.missing.clone(), network: self.names.network() };
                let changed = *outcome != newer;
                *outcome = newer;
                changed
            });
        }
        self.remove();
    }

    /// All orders that there are, or none when something is due. `None` where there will be no other.
    fn next(&self, orders: &Receiver<Order>) -> Option<Vec<Order>> {
        let now = Instant::now();
        let first = match self.poll_timeout(now) {
            Some(due) => orders.recv_timeout(due.saturating_duration_since(now)),
            None => orders.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        match first {
            Ok(first) => Some([first].into_iter().chain(orders.try_iter()).collect()),
            Err(RecvTimeoutError::Timeout) => Some(Vec::new()),
            Err(RecvTimeoutError::Disconnected) => None,
        }
    }

    /// Somebody has set the name servers of this machine.
    fn handle_changed(&mut self, now: Instant) {
        let manager = self.applied.as_ref().map_or_else(machine::manager, |(manager, _)| *manager);
        self.look_at_network(manager);
        let Some((_, wanted)) = &self.applied else { return };
        if let Some(why) = self.absent(manager, wanted) {
            tracing::warn!(why, "the tunnel's name servers were taken away");
            self.missing = Some(why);
            self.policy.handle_missing(now);
        }
    }

    /// When there is something to do without being told.
    fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        (!self.wanted.servers.is_empty()).then(|| self.policy.poll_timeout(now))?
    }

    /// Takes them back.
    fn remove(&mut self) {
        self.missing = None;
        if self.applied.take().is_none() {
            return;
        }
        self.names.set_asked(false);
        if let Err(error) = machine::mend(&self.device, &self.store) {
            tracing::warn!(error, "the tunnel's name servers stay behind");
        }
    }

    fn act(&mut self, now: Instant) {
        if self.wanted.servers.is_empty() || !self.policy.wants(now) {
            if self.applied.is_some() {
                tracing::info!("names are asked of the network's own name servers");
            }
            return self.remove();
        }
        let is_set = self.applied.as_ref().is_some_and(|(_, applied)| *applied == self.wanted);
        if (is_set && self.missing.is_none()) || !self.policy.may_set(now) {
            return;
        }
        let manager = machine::manager();
        if self.applied.as_ref().is_some_and(|(former, _)| *former != manager) {
            self.remove();
        }
        self.missing = self.apply(manager).err();
        match &self.missing {
            None => self.policy.handle_set(now),
            Some(error) => {
                tracing::warn!(error, "the tunnel's name servers are not in use");
                self.policy.handle_missing(now);
            }
        }
    }

    fn apply(&mut self, manager: Manager) -> Result<(), String> {
        machine::keep(&self.store, manager)?;
        self.look_at_network(manager);
        self.applied = Some((manager, self.wanted.clone()));
        self.names.set_asked(true);
        if manager == Manager::File {
            self.write_file()?;
        }
        for call in manager.set(&self.device, &self.wanted) {
            call::run(&call)?;
        }
        self.absent(manager, &self.wanted).map_or(Ok(()), Err)
    }

    /// What the network's own servers are may have changed. Where nothing names any, those of before are better than none.
    fn look_at_network(&self, manager: Manager) {
        let mut servers = networks(manager, &self.device, &self.store);
        servers.retain(|server| !self.wanted.servers.contains(server));
        if !servers.is_empty() {
            self.names.set_network(servers);
        }
    }

    fn write_file(&self) -> Result<(), String> {
        let former = read_file();
        if !file::is_marked(&former) {
            machine::save(&self.store, &former)?;
        }
        machine::write(&file::marked(&self.wanted))
    }

    /// Why what was set is not in force.
    fn absent(&self, manager: Manager, wanted: &Wanted) -> Option<String> {
        let content = read_file();
        let others = || Some(format!("somebody else has set {RESOLV_CONF}"));
        match manager {
            Manager::File => (content != file::marked(wanted)).then(others)?,
            Manager::Openresolv | Manager::DebianResolvconf => {
                let first = file::servers(&content).first().copied();
                // A server of this machine's own asks ours.
                let is_ours = first.is_some_and(|first| first.is_loopback())
                    || (first.is_some() && first == wanted.servers.first().copied());
                if is_ours { None } else { others() }
            }
            Manager::Resolved if machine::manager() != Manager::Resolved => others(),
            Manager::Resolved => match manager.list().map(|call| call::ask(&call)) {
                Some(Ok(listed)) if file::of_links(&listed, &self.device, true) == wanted.servers => None,
                Some(Err(error)) => Some(error),
                _ => Some("systemd-resolved does not have them".to_owned()),
            },
        }
    }
}
