//! Connections that are there only to be silent: whether their NAT still knows them after so long.

use std::{collections::HashMap, net::SocketAddr, sync::Arc};

use pinhole_proto::v1;
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
};

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

/// With what they connect: as the session does.
#[derive(Clone)]
pub(in crate::client) struct Whereto {
    pub(in crate::client) target: watch::Receiver<Target>,
    pub(in crate::client) proof: watch::Receiver<Proof>,
    pub(in crate::client) radio: Arc<Radio>,
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

pub(super) struct Canaries {
    whereto: Whereto,
    address: Option<SocketAddr>,
    news: mpsc::Sender<News>,
    all: HashMap<u32, Canary>,
}

impl Canaries {
    pub(super) fn new(whereto: Whereto, news: mpsc::Sender<News>) -> Self {
        Self { whereto, address: None, news, all: HashMap::new() }
    }

    /// Where the session is, so that they pass the same NATs.
    pub(super) fn lead_to(&mut self, session: Option<SocketAddr>) {
        self.address = session.or(self.address);
    }

    pub(super) fn open(&mut self, number: u32) {
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
}

async fn run(
    number: u32,
    whereto: Whereto,
    address: SocketAddr,
    resting: oneshot::Receiver<v1::Rest>,
    news: &mpsc::Sender<News>,
) -> Option<News> {
    let target = whereto.target.borrow().clone();
    let dialer = Dialer {
        server_name: target.server_name,
        ca_pem: target.ca_pem,
        proof: Some(whereto.proof.borrow().clone()),
        fwmark: target.fwmark,
        liveness: Liveness::Quiet(whereto.radio),
    };
    let Ok(gateway) = dialer.connect(&[address.to_string()]).await else {
        return Some(News::Ended(number, Ended::TimedOut));
    };
    news.send(News::Attached(number)).await.ok()?;
    let rest = resting.await.ok()?;
    Some(match heard::client(gateway.channel).scout(rest).await {
        Ok(wake) => News::Woken(number, wake.into_inner().seq),
        Err(status) => News::Ended(number, ended(&status)),
    })
}
