//! NAT intelligence: how long a binding really lives, how to keep it with the fewest wake-ups, and why it moved.
//!
//! Pure: time, replies, wakes and traffic go in; beats and verdicts come out. The same code runs in the agent,
//! in the virtual-time fleet and under property tests. Deadlines are exact; nothing is polled.
//!
//! Terms are those of RFC 4787. A *binding* is a NAT's mapping with its timer; its *lifetime* is how long it
//! stays without traffic. Many NATs give a new binding a short lifetime and *promote* it to a longer one when it
//! has seen traffic both ways for a while.

mod behaviour;
mod binding;
mod churn;
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
