//! NAT intelligence: how long a binding really lives, how to keep it with the fewest wake-ups, and why it moved.
//!
//! Pure: time, replies, wakes and traffic go in; beats and verdicts come out. Nothing here reads a clock, opens a
//! socket, waits or asks for random numbers; a lint holds that wall. The same code runs in Pinhole's agent, in its
//! virtual-time fleet and under property tests. Deadlines are exact; nothing is polled.
//!
//! Terms are those of RFC 4787. A *binding* is a NAT's mapping with its timer; its *lifetime* is how long it
//! stays without traffic. Many NATs give a new binding a short lifetime and *promote* it to a longer one when it
//! has seen traffic both ways for a while.
//!
//! | what | where |
//! |---|---|
//! | keep one UDP binding, and learn its lifetime meanwhile | [`Keeper`] |
//! | the same for a TCP session that is slept on | [`standby`] |
//! | what kind of NAT it is | [`Classifier`] |
//! | the other end: neighbours' results, NATs that restart, peers that cannot be asked | [`prior`], [`restart`], [`stock`] |
//! | is the path alive, and what may be called connected | [`health`] |
//! | how beats look on the wire | [`wire`] |
//!
//! # A loop around it
//!
//! Whatever moves packets hands in what arrived and the time, then does what [`Keeper::poll_action`] says, then
//! sleeps until [`Keeper::poll_timeout`]. Here is all of it, with the other end and a NAT that forgets a mapping
//! after a minute, in virtual time; `examples/keep.rs` has it with sockets.
//!
//! ```
//! use std::{collections::HashMap, net::SocketAddr, time::{Duration, Instant}};
//! use pinhole_nat::{Action, Channel, Keeper, Policy, Reply, Wake};
//!
//! const LIFETIME: Duration = Duration::from_secs(60);
//! const ROUND_TRIP: Duration = Duration::from_millis(20);
//! let observed = SocketAddr::from(([198, 51, 100, 7], 4242));
//!
//! let mut now = Instant::now();
//! let end = now + Duration::from_secs(2 * 3600);
//! let mut keeper = Keeper::new(now, Policy::default(), None, 1);
//! // Of each socket: when its last beat was sent, and when the other end shall send a wake, if at all.
//! let mut sockets: HashMap<Channel, (Instant, Option<Instant>, u64)> = HashMap::new();
//! while now < end {
//!     while let Some(action) = keeper.poll_action() {
//!         match action {
//!             Action::Send(beat) => {
//!                 now += ROUND_TRIP;
//!                 sockets.insert(beat.channel, (now, beat.wake.map(|after| now + after), beat.seq));
//!                 let reply = Reply { channel: beat.channel, seq: beat.seq, observed, is_endpoint: true };
//!                 keeper.handle_reply(now, reply);
//!             }
//!             Action::Close(channel) => drop(sockets.remove(&channel)),
//!             // There is no other path here, and nobody to tell.
//!             Action::Prove | Action::Lost | Action::Confirmed { .. } | Action::Event(_) => {}
//!         }
//!     }
//!     let wakes = sockets.iter().filter_map(|(channel, (sent, wake, seq))| Some((*wake.as_ref()?, *sent, *channel, *seq)));
//!     let wake = wakes.min_by_key(|(due, ..)| *due);
//!     let timeout = keeper.poll_timeout().unwrap_or(end);
//!     match wake {
//!         Some((due, sent, channel, seq)) if due <= timeout => {
//!             now = now.max(due);
//!             sockets.insert(channel, (sent, None, seq));
//!             // Where the NAT has forgotten the mapping, nothing arrives.
//!             if due - sent < LIFETIME {
//!                 keeper.handle_wake(now, Wake { channel, seq });
//!             }
//!         }
//!         _ => {
//!             now = now.max(timeout);
//!             keeper.handle_timeout(now);
//!         }
//!     }
//! }
//! let binding = keeper.binding();
//! assert!(binding.at_least <= LIFETIME && binding.less_than.is_some_and(|less| less >= LIFETIME));
//! assert!(keeper.interval() < LIFETIME && keeper.interval() > LIFETIME * 9 / 10);
//! ```

#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "a test begins at some time"))]

mod behaviour;
mod binding;
mod churn;
pub mod health;
mod keeper;
mod message;
mod policy;
pub mod prior;
mod radio;
pub mod restart;
pub mod standby;
pub mod stock;
pub mod wire;

pub use behaviour::{
    Answer, Behaviour, Class, Classifier, Experiment, Filtering, Finding, Mapping, PortAllocation, Timers,
    Vantage,
};
pub use binding::{Binding, Confidence, Promotion};
pub use churn::{Cause, Churn, ChurnLog, Ends, Evidence, Payload, WakeTest};
pub use keeper::{Action, Guidance, Keeper, Path, Prior, Reason, Stats};
pub use message::{Beat, Channel, Reply, Wake};
pub use policy::{Mode, Policy};
pub use radio::{Bursts, RADIO, Radio};

use std::{fmt, hash::Hash};

/// What tells peers apart for whoever uses this: a public key, a number.
pub trait PeerId: Copy + Ord + Hash + fmt::Debug {}

impl<T: Copy + Ord + Hash + fmt::Debug> PeerId for T {}
