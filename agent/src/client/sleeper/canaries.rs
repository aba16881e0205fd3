//! Connections that are there only to be silent: whether their NAT still knows them after so long.

use std::{collections::HashMap, net::SocketAddr, sync::Arc};

use pinhole_proto::v1;
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
};
use tonic::transport::Channel;

use crate::{
    client::{
        heard,
        session::{Target, ended},
    },
    identity::dial::{Dialer, Liveness, Proof},
    nat::{Radio, standby::Ended},
};

/// What became of one.
#[derive(Debug)]
pub(in crate::client) enum News {
    /// It is there.
    Attached(u32),
    /// It was woken, by the wake of this number.
    Woken(u32, u64),
    /// It ended, or could not be had.
    Ended(u32, Ended),
}

/// How one reaches the gateway.
pub(in crate::client) trait Connect: Clone + Send + 'static {
    /// A connection of its own to this address. `None`: it could not be had.
    fn connect(self, to: SocketAddr) -> impl Future<Output = Option<Channel>> + Send;
}

/// With what they connect: as the session does.
#[derive(Clone)]
pub(in crate::client) struct Whereto {
    pub(in crate::client) target: watch::Receiver<Target>,
    pub(in crate::client) proof: watch::Receiver<Proof>,
    pub(in crate::client) radio: Arc<Radio>,
}

impl Connect for Whereto {
    async fn connect(self, to: SocketAddr) -> Option<Channel> {
        let target = self.target.borrow().clone();
        let dialer = Dialer {
            server_name: target.server_name,
            ca_pem: target.ca_pem,
            proof: Some(self.proof.borrow().clone()),
            fwmark: target.fwmark,
            liveness: Liveness::Quiet(self.radio),
        };
        Some(dialer.connect(&[to.to_string()]).await.ok()?.channel)
    }
}

/// Ends with its connection when it is dropped.
struct Canary {
    task: JoinHandle<()>,
    rest: Option<oneshot::Sender<v1::Rest>>,
}

impl Drop for Canary {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub(super) struct Canaries<C> {
    whereto: C,
    address: Option<SocketAddr>,
    news: mpsc::Sender<News>,
    all: HashMap<u32, Canary>,
}

impl<C: Connect> Canaries<C> {
    pub(super) fn new(whereto: C, news: mpsc::Sender<News>) -> Self {
        Self { whereto, address: None, news, all: HashMap::new() }
    }

    /// Where the session is, so that they pass the same NATs.
    pub(super) fn lead_to(&mut self, session: Option<SocketAddr>) {
        self.address = session.or(self.address);
    }

    pub(super) fn open(&mut self, number: u32) {
        // Nobody asks to close one that ended by itself.
        self.all.retain(|_, canary| !canary.task.is_finished());
        let Some(address) = self.address else { return };
        let (rest, resting) = oneshot::channel();
        let (whereto, news) = (self.whereto.clone(), self.news.clone());
        let task = tokio::spawn(async move {
            if let Some(said) = run(number, whereto, address, resting, &news).await {
                let _ = news.send(said).await;
            }
        });
        self.all.insert(number, Canary { task, rest: Some(rest) });
    }

    pub(super) fn rest(&mut self, number: u32, rest: v1::Rest) {
        if let Some(waiting) = self.all.get_mut(&number).and_then(|canary| canary.rest.take()) {
            let _ = waiting.send(rest);
        }
    }

    pub(super) fn close(&mut self, number: u32) {
        self.all.remove(&number);
    }

    /// How many are remembered.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.all.len()
    }
}

async fn run(
    number: u32,
    whereto: impl Connect,
    address: SocketAddr,
    resting: oneshot::Receiver<v1::Rest>,
    news: &mpsc::Sender<News>,
) -> Option<News> {
    let Some(gateway) = whereto.connect(address).await else {
        return Some(News::Ended(number, Ended::TimedOut));
    };
    news.send(News::Attached(number)).await.ok()?;
    let rest = resting.await.ok()?;
    Some(match heard::client(gateway).scout(rest).await {
        Ok(wake) => News::Woken(number, wake.into_inner().seq),
        Err(status) => News::Ended(number, ended(&status)),
    })
}
