//! The role client: enrols, runs the tunnel, and keeps it alive whatever happens to the networks in between.

pub mod control;
mod dns;
pub mod enrolment;
mod error;
mod heard;
mod keepalive;
mod kill_switch;
mod left_out;
mod memory;
mod network;
mod routes;
mod runner;
mod session;
pub mod settings;
mod sleeper;
mod status_publisher;
mod tried_ways;
mod udp_block;
mod uplinks;

use std::{
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use ipnet::IpNet;
use tokio::{sync::mpsc, time::Instant};
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

pub use control::{Question, Status};
pub use enrolment::{Credential, Invitation, Membership, hostname};
pub use error::ClientError;
pub use left_out::LeftOut;
pub use routes::{Accepted, Choice, Impairment, Overlap};
pub use uplinks::Uplink;

use self::{
    control::Socket,
    enrolment::{Enrolment, enrol},
    runner::{FWMARK, Setup, usable},
};
use crate::{
    clock, entropy,
    health::Phase,
    identity::{Names, Store},
    kernel::{TunDevice, remove_table},
    tunnel::PrivateKey,
};

const QUESTIONS: usize = 8;
/// A join token that was not used yet, in the tunnel's state directory.
const TOKEN: &str = "join.token";
/// The first retry comes within this, each further one within double: most often a gateway is only just starting.
const RETRY: Duration = Duration::from_millis(200);
const RETRY_CAP: Duration = Duration::from_secs(15);

/// How a tunnel is brought up.
#[derive(Clone)]
pub struct Options {
    /// Its name, and that of its device.
    pub name: String,
    /// Directory of all tunnels' state.
    pub state_root: PathBuf,
    /// By which right to join, when this machine is not enrolled yet.
    pub invitation: Option<Invitation>,
    /// Joins with a new key, though this machine has one. The one that it has stays until it has joined.
    pub new_key: bool,
    /// Whether name servers are set.
    pub dns: bool,
    /// Which routes are made, and what becomes of those that others have.
    pub routes: Choice,
    /// Whether what is to go through the tunnel is kept in while there is none, until [`down`].
    pub kill_switch: bool,
    /// UDP port of the tunnel on this machine, 0 for any.
    pub listen_port: u16,
    /// How long enrolment and the first connection may take, each; `None` for ever.
    pub patience: Option<Duration>,
}

/// What a person is told while a tunnel comes up, one line each.
#[derive(Debug, Clone)]
pub enum Progress {
    /// Asking a gateway to become its client.
    Enrolling(String),
    /// Not yet, but it may be different in a moment.
    Retrying(String),
    /// A client now.
    Enrolled {
        /// `namespace/name`.
        client: String,
    },
    /// Looking for the gateway's tunnel.
    Connecting,
    /// Traffic flows.
    Connected {
        /// The replica.
        replica: String,
        /// Its endpoint.
        endpoint: SocketAddr,
        /// Own inner addresses.
        addresses: Vec<IpNet>,
        /// Round trip, where it was measured.
        rtt: Option<Duration>,
        /// What is not as the pool says.
        impairments: Vec<Impairment>,
    },
    /// The path is in doubt, or gone.
    Phase(Phase),
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Enrolling(gateway) => write!(f, "enrolling with {gateway} ..."),
            Self::Retrying(why) => write!(f, "not yet: {why}; trying again ..."),
            Self::Enrolled { client } => write!(f, "enrolled as {client}"),
            Self::Connecting => f.write_str("connecting ..."),
            Self::Connected { replica, endpoint, addresses, rtt, impairments } => {
                let addresses: Vec<_> = addresses.iter().map(|address| address.addr().to_string()).collect();
                let is_whole = impairments.iter().all(|impairment| impairment.accepted);
                f.write_str(if is_whole { "" } else { "degraded: " })?;
                write!(f, "connected to {replica} at {endpoint} as {}", addresses.join(", "))?;
                if let Some(rtt) = rtt {
                    write!(f, " (round trip {:.1} ms)", rtt.as_secs_f64() * 1000.0)?;
                }
                impairments.iter().try_for_each(|impairment| write!(f, "; {impairment}"))
            }
            Self::Phase(Phase::Dormant) => f.write_str("no network: waiting for one ..."),
            Self::Phase(_) => f.write_str("reconnecting ..."),
        }
    }
}

/// Brings a tunnel up and runs it until `stop`, or until somebody ends it.
pub async fn up(
    options: Options,
    progress: &(dyn Fn(Progress) + Sync),
    stop: CancellationToken,
) -> Result<(), ClientError> {
    check_name(&options.name)?;
    let store = Store::open(options.state_root.join(&options.name))?;
    let (asked, mut questions) = mpsc::channel(QUESTIONS);
    let _socket = Socket::open(&options.name, store.directory(), asked).await?;
    // What a process that was killed left behind, whatever this one sets.
    if let Err(error) = dns::mend(&options.name, &store) {
        tracing::warn!(error, "the former name servers could not be restored");
    }
    sweep(&options);
    let names = Names::new(Some(FWMARK));
    if options.dns || options.kill_switch {
        dns::find_network(&options.name, &store, &names);
    }
    if options.kill_switch {
        // That of the last process may be in force, and systemd-resolved is not root.
        names.set_shut();
    }
    // A token may be good for one use: find out before it is spent whether a tunnel can be had at all.
    drop(TunDevice::create(&options.name)?);
    let key = if options.new_key { Store::new_key()? } else { store.tunnel_key()? };
    let kept = if options.new_key { None } else { Enrolment::load(&store)? };
    let enrolment = if let Some(kept) = usable(kept, options.invitation.as_ref()) {
        kept
    } else {
        let joining = join(&options, &store, (&key, &names), progress);
        tokio::select! {
            enrolment = joining => enrolment?,
            () = stop.cancelled() => return Ok(()),
            () = answer_meanwhile(&options, &mut questions) => return Ok(()),
        }
    };
    progress(Progress::Connecting);
    let setup = Setup {
        name: options.name,
        store,
        key,
        names,
        enrolment,
        invitation: options.invitation,
        dns: options.dns,
        routes: options.routes,
        kill_switch: options.kill_switch,
        listen_port: options.listen_port,
        patience: options.patience,
        progress,
    };
    runner::run(setup, questions, stop).await
}

/// Begins where the last process of this tunnel may have been killed.
fn sweep(options: &Options) {
    match network::sweep(&options.name) {
        Ok(true) => tracing::warn!("the last process of this tunnel was killed: what it left is removed"),
        Ok(false) => {}
        Err(error) => tracing::warn!(%error, category = error.category(), "what a killed process left stays"),
    }
    if !options.kill_switch
        && let Err(error) = remove_table(&kill_switch::table(&options.name))
    {
        tracing::debug!(%error, "no kill switch is looked for");
    }
}

/// Answers while there is no tunnel yet, until somebody wants it to end.
async fn answer_meanwhile(options: &Options, questions: &mut mpsc::Receiver<control::Asked>) {
    while let Some((question, answer)) = questions.recv().await {
        let membership = options.invitation.as_ref().map(|invitation| &invitation.membership);
        let status = Status {
            name: options.name.clone(),
            phase: Phase::Disconnected.to_string(),
            pool: membership.map(|of| format!("{}/{}", of.namespace, of.pool)).unwrap_or_default(),
            gateway: membership.map(|of| of.server_name.clone()).unwrap_or_default(),
            last_error: Some("not enrolled yet: the gateway has not answered".to_owned()),
            ..Status::default()
        };
        if question == Question::Down {
            return answer.give(status).await;
        }
        answer.send(status);
    }
}

async fn join(
    options: &Options,
    store: &Store,
    (key, names): (&PrivateKey, &Names),
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<Enrolment, ClientError> {
    let Some(invitation) = &options.invitation else {
        return Err(if options.new_key {
            let text = "a new key has to be enrolled: give a join token with --token-file or PINHOLE_TOKEN";
            ClientError::Setting(text.to_owned())
        } else {
            ClientError::NotEnrolled(options.name.clone())
        });
    };
    progress(Progress::Enrolling(invitation.membership.server_name.clone()));
    let enrolment = enrol_patiently(invitation, key, names, options.patience, progress).await?;
    if options.new_key {
        // A crash in between leaves a machine that is not enrolled, not one with another's certificate.
        Enrolment::forget(store)?;
        store.keep_tunnel_key(key)?;
    }
    enrolment.save(store)?;
    store.remove(TOKEN)?;
    let client = enrolment.config.client.clone().unwrap_or_default();
    progress(Progress::Enrolled { client: format!("{}/{}", client.namespace, client.name) });
    Ok(enrolment)
}

async fn enrol_patiently(
    invitation: &Invitation,
    key: &PrivateKey,
    names: &Names,
    patience: Option<Duration>,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<Enrolment, ClientError> {
    let began = Instant::now();
    let mut jitter = entropy::jitter();
    let mut failures = 0;
    loop {
        let error = match enrol(invitation, key, Some(FWMARK), names).await {
            Ok(enrolment) => return Ok(enrolment),
            Err(error) => error,
        };
        let patient = patience.is_none_or(|patience| began.elapsed() < patience);
        if !error.is_transient() || !patient {
            return Err(error);
        }
        if failures % 5 == 0 {
            progress(Progress::Retrying(error.to_string()));
        }
        tokio::select! {
            () = tokio::time::sleep(jitter.backoff(RETRY, RETRY_CAP, failures)) => {}
            () = clock::until_set(), if error.category() == "ClockSkew" => {}
        }
        failures += 1;
    }
}

/// The join token that [`keep_token`] has kept.
///
/// # Errors
/// Where it cannot be read.
pub fn kept_token(name: &str, state_root: &Path) -> Result<Option<Zeroizing<String>>, ClientError> {
    check_name(name)?;
    let directory = state_root.join(name);
    if !directory.is_dir() {
        return Ok(None);
    }
    Ok(Store::open(directory)?.read_text(TOKEN)?.map(Zeroizing::new))
}

/// Keeps a join token for a tunnel that enrols once it has a network. It is gone when it has enrolled.
///
/// # Errors
/// Where it cannot be written.
pub fn keep_token(name: &str, state_root: &Path, token: &str) -> Result<(), ClientError> {
    check_name(name)?;
    Ok(Store::open(state_root.join(name))?.write(TOKEN, token.as_bytes())?)
}

/// A name becomes a device, a directory and a socket.
///
/// # Errors
/// What is wrong with it.
pub fn check_name(name: &str) -> Result<(), ClientError> {
    let fine = (1..=15).contains(&name.len())
        && !name.starts_with(['.', '-'])
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'));
    if fine {
        return Ok(());
    }
    Err(ClientError::Setting(format!(
        "{name:?} cannot name a tunnel: use 1 to 15 letters, digits, '-', '_' and '.'"
    )))
}

/// Ends a tunnel, or takes away what one left that was killed.
///
/// # Errors
/// [`ClientError::NotRunning`] when there was nothing of it either.
pub async fn down(name: &str, state_root: &Path) -> Result<(), ClientError> {
    match ask(name, state_root, Question::Down).await {
        Err(not_running @ ClientError::NotRunning(_)) => {
            let kept_in = remove_table(&kill_switch::table(name)).unwrap_or_default();
            if mend(name, state_root)? || kept_in { Ok(()) } else { Err(not_running) }
        }
        result => result.map(drop),
    }
}

/// Takes back what a tunnel whose process was killed left on this machine, but for a kill switch. Whether there was something.
///
/// # Errors
/// What stays behind, and why.
pub fn mend(name: &str, state_root: &Path) -> Result<bool, ClientError> {
    check_name(name)?;
    let swept = network::sweep(name)?;
    let directory = state_root.join(name);
    if !directory.is_dir() {
        return Ok(swept);
    }
    let stays = |why| ClientError::Setting(format!("the former name servers are not back: {why}"));
    Ok(dns::mend(name, &Store::open(directory)?).map_err(stays)? || swept)
}

/// Asks a running tunnel.
pub async fn ask(name: &str, state_root: &Path, question: Question) -> Result<Status, ClientError> {
    check_name(name)?;
    control::ask(name, &state_root.join(name), question).await
}
