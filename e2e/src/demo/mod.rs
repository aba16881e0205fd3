//! The demo: Pinhole in a real cluster, three clients behind three real NATs, and what becomes of them, live.

mod error;
mod memory;
mod ping;
mod screen;
mod script;
mod stage;
mod summary;
mod table;
mod view;

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use kube::{Api, api::ListParams};
use pinhole_crds::VPNClient;
use tokio::{
    sync::mpsc::{UnboundedReceiver, unbounded_channel},
    time::MissedTickBehavior,
};

pub use self::error::Error;
use self::{
    ping::Pinger,
    screen::Screen,
    script::{Cue, Move, Script},
    stage::Stage,
    summary::{Memory, Summary},
    table::{BOLD, DIM},
    view::{Client, Ping},
};
use crate::{
    device::Device,
    error::Doing,
    host::Host,
    installation::{self, Installation},
    lab::{Lab, until_signal},
    nat::NatProfile,
    progress, state,
};

/// Namespace of the demo's gateway and pool.
const NAMESPACE: &str = "pinhole-demo";
/// The gateway's first pod.
const GATEWAY_POD: &str = "edge-0";
/// How often the picture is drawn anew.
const FRAME: Duration = Duration::from_millis(250);
/// How long a client may take to say good-bye.
const FAREWELL: Duration = Duration::from_secs(5);

/// Name of a client, what it is behind, and the name of its host.
const CAST: [(&str, &str, &str); 3] = [
    ("home", "port-preserving home NAT", "demo-home"),
    ("office", "symmetric NAT", "demo-office"),
    ("mobile", "carrier NAT behind home NAT", "demo-mobile"),
];

/// Whom the results are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// A person.
    Text,
    /// A machine: JSON on standard output, all else on standard error.
    Json,
}

/// All that has to go at the end, whatever the end is.
#[derive(Default)]
struct Theatre {
    devices: Vec<Device>,
    stage: Stage,
    lab: Option<Lab>,
}

/// Runs the demo to its end, and takes down what it made.
///
/// # Errors
/// Whatever kept it from its end, and whatever could not be taken down.
pub async fn run(output: Output) -> Result<(), Error> {
    let mut screen = Screen::open(output == Output::Json);
    let mut theatre = Theatre::default();
    let played = until_signal(play(&mut theatre, &mut screen)).await;
    let cleared = clear(theatre).await;
    let summary = played?.unwrap_or(Err(Error::Interrupted));
    let summary = match (summary, cleared) {
        (Ok(summary), cleared) => cleared.map(|()| summary)?,
        (Err(error), Ok(())) => return Err(error),
        (Err(error), Err(left)) => {
            progress::say(&left.to_string());
            return Err(error);
        }
    };
    if output == Output::Json {
        println!("{}", summary.json().map_err(|error| Error::Results(error.to_string()))?);
    } else {
        screen.say(&summary.text(screen.style()));
    }
    Ok(())
}

async fn clear(theatre: Theatre) -> Result<(), Error> {
    let Theatre { devices, mut stage, lab } = theatre;
    let Some(lab) = lab else { return Ok(()) };
    let mine = lab.is_mine();
    progress::say("Taking everything down again.");
    let work = async {
        for device in devices {
            leave(device).await;
        }
        stage.clear(&lab).await
    };
    let cleared = until_signal(work).await;
    drop(lab);
    match cleared? {
        Some(cleared) => cleared.map_err(|error| Error::LeftInCluster(error.to_string()))?,
        None => return Err(Error::LeftInCluster(format!("see the namespace {NAMESPACE}"))),
    }
    let traces = if mine { state::traces() } else { Vec::new() };
    if traces.is_empty() { Ok(()) } else { Err(Error::LeftBehind(traces.join(", "))) }
}

/// Ends a client, and forgets who it was: its `VPNClient` goes, too.
async fn leave(mut device: Device) {
    // One that does not go by itself is killed when dropped.
    let _ = tokio::time::timeout(FAREWELL, device.down()).await;
    let directory = state::directory().join("devices").join(device.host().name());
    drop(device);
    let _ = std::fs::remove_dir_all(directory);
}

async fn play(theatre: &mut Theatre, screen: &mut Screen) -> Result<Summary, Error> {
    let Theatre { devices, stage, lab } = theatre;
    let lab: &Lab = lab.insert(Lab::find_or_start().await?);
    tokio::select! {
        played = perform(lab, stage, devices, screen) => played,
        error = lab.cluster().ended() => Err(error.into()),
    }
}

async fn perform(
    lab: &Lab,
    stage: &mut Stage,
    devices: &mut Vec<Device>,
    screen: &mut Screen,
) -> Result<Summary, Error> {
    let images = stage.install(lab).await?;
    let target = stage.prepare(lab).await?;
    for host in hosts(lab).await? {
        devices.push(Device::new(host).await?);
    }
    // So that the figures tell of the operator that is measured, not of an election.
    let leader = Installation::leader(lab).await?;

    let sample = stage::sample(target);
    screen.say(&announcement(&sample, screen));
    let mut show = Show::open(lab, devices, target, screen);
    let applied = async {
        lab.apply(&sample).await?;
        stage::join_string(lab).await
    };
    let join = show.meanwhile(applied).await?;
    for device in show.devices.iter_mut() {
        device.start(&join, &[]).await?;
    }
    let moved = show.run().await?;
    let clients = show.clients;
    let memory = memory(lab, &leader).await?;
    let images = images.sizes.map(|(agent, operator)| summary::Images { operator, agent });
    Ok(Summary::new(&clients, moved, memory, images))
}

fn announcement(sample: &str, screen: &Screen) -> Vec<String> {
    let style = screen.style();
    let mut lines = vec![String::new(), style.paint(BOLD, "$ kubectl apply -f -")];
    lines.extend(sample.lines().map(|line| style.paint(DIM, &format!("  {line}"))));
    lines
}

async fn hosts(lab: &Lab) -> crate::Result<[Host; 3]> {
    let [home, office, mobile] = CAST.map(|(_, _, host)| host);
    Ok([
        lab.nat_host(home, NatProfile::home()).await?,
        lab.nat_host(office, NatProfile::symmetric()).await?,
        lab.carrier_host(mobile, NatProfile::carrier(), NatProfile::home()).await?,
    ])
}

async fn memory(lab: &Lab, leader: &str) -> crate::Result<Memory> {
    let operator = |pod: &str| memory::of_pod("pinhole-operator", installation::NAMESPACE, pod);
    let pods = Installation::operators(lab).await?;
    let standby = pods.iter().find(|pod| *pod != leader);
    Ok(Memory {
        operator_leader: operator(leader),
        operator_standby: standby.and_then(|pod| operator(pod)),
        gateway: memory::of_pod("pinhole", NAMESPACE, GATEWAY_POD),
    })
}

/// The part that is watched: from `kubectl apply` to the end.
struct Show<'a> {
    epoch: Instant,
    clients: Vec<Client>,
    devices: &'a mut Vec<Device>,
    objects: Api<VPNClient>,
    pings: UnboundedReceiver<(usize, Ping)>,
    _pingers: Vec<Pinger>,
    script: Script,
    screen: &'a mut Screen,
}

impl<'a> Show<'a> {
    fn open(lab: &Lab, devices: &'a mut Vec<Device>, target: IpAddr, screen: &'a mut Screen) -> Self {
        let epoch = Instant::now();
        let (report, pings) = unbounded_channel();
        let ping = |(tag, device): (usize, &Device)| {
            Pinger::start(device.host(), target, epoch, tag, report.clone())
        };
        Self {
            epoch,
            clients: CAST.map(|(name, behind, _)| Client::new(name, behind)).into(),
            _pingers: devices.iter().enumerate().map(ping).collect(),
            devices,
            objects: Api::namespaced(lab.client(), NAMESPACE),
            pings,
            script: Script::new(),
            screen,
        }
    }

    /// Draws while `work` is done.
    async fn meanwhile<T>(&mut self, work: impl Future<Output = crate::Result<T>>) -> Result<T, Error> {
        let mut work = std::pin::pin!(work);
        let mut frames = frames();
        loop {
            tokio::select! {
                done = &mut work => return Ok(done?),
                _ = frames.tick() => self.draw(),
            }
        }
    }

    /// Goes through the script.
    async fn run(&mut self) -> Result<Move, Error> {
        let mut frames = frames();
        loop {
            frames.tick().await;
            self.look().await?;
            let cue = self.script.next(&self.clients, self.epoch.elapsed())?;
            self.draw();
            match cue {
                None => {}
                Some(Cue::Restart) => self.restart_nat().await?,
                Some(Cue::End(moved)) => return Ok(moved),
            }
        }
    }

    async fn restart_nat(&mut self) -> Result<(), Error> {
        let device = self.devices.get(Script::MOVES);
        if let Some(nat) = device.and_then(|device| device.host().nat()) {
            nat.rebind().await?;
        }
        self.script.restarted(self.epoch.elapsed());
        Ok(())
    }

    /// Takes in what the API server, the pings and the clients' processes say.
    async fn look(&mut self) -> Result<(), Error> {
        while let Ok((tag, ping)) = self.pings.try_recv() {
            if let Some(client) = self.clients.get_mut(tag) {
                client.pings.note(ping);
            }
        }
        for (device, client) in self.devices.iter().zip(&self.clients) {
            must_run(device, client.name)?;
        }
        let listed = self.objects.list(&ListParams::default()).await;
        for object in listed.doing(|| "listing VPNClients".to_owned())? {
            let enrolment = object.spec.enrolment.as_ref();
            let hostname = enrolment.and_then(|enrolment| enrolment.hostname.as_deref());
            let place = CAST.iter().position(|(_, _, host)| hostname == Some(host));
            if let Some(client) = place.and_then(|place| self.clients.get_mut(place)) {
                client.see(&object);
            }
        }
        Ok(())
    }

    fn draw(&mut self) {
        self.screen.show(&self.script.title(), &self.clients, self.epoch.elapsed());
    }
}

fn frames() -> tokio::time::Interval {
    let mut frames = tokio::time::interval(FRAME);
    frames.set_missed_tick_behavior(MissedTickBehavior::Delay);
    frames
}

fn must_run(device: &Device, client: &'static str) -> Result<(), Error> {
    let Some(process) = device.process() else { return Ok(()) };
    match process.must_run() {
        Err(crate::Error::Ended { status, .. }) => {
            Err(Error::ClientEnded { client, status, said: process.tail(1) })
        }
        other => Ok(other?),
    }
}
