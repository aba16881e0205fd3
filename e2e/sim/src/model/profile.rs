//! What a profile file says about a NAT.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Hours, Load, Loss, Pressure, ProfileError, Quota, worlds::Fault};

/// On what a mapping or a filter depends (RFC 4787, sections 4.1 and 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Dependence {
    /// On the inner address and port alone.
    EndpointIndependent,
    /// On the peer's address too.
    AddressDependent,
    /// On the peer's address and port too.
    AddressAndPortDependent,
}

/// How the external port of a new mapping is picked (RFC 4787, section 4.2).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PortAllocation {
    /// The client's own port, where it is free.
    #[default]
    Preserve,
    /// The next one.
    Sequential,
    /// Any.
    Random,
}

/// How long a mapping lives without traffic, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Timeouts {
    /// Until it is promoted.
    pub unreplied: f64,
    /// Once it is promoted.
    pub replied: f64,
}

/// Which packets restart a mapping's timer (RFC 4787, section 4.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Refresh {
    /// Those from the inside.
    pub outbound: bool,
    /// Those from the outside.
    pub inbound: bool,
}

impl Default for Refresh {
    fn default() -> Self {
        Self { outbound: true, inbound: true }
    }
}

/// What a NAT does with a packet of a TCP connection whose mapping it has forgotten.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TcpClose {
    /// Drops it.
    #[default]
    Silent,
    /// Answers with RST.
    Reset,
}

/// Times in which most packets get lost, both ways (Gilbert 1960, Elliott 1963).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LossBursts {
    /// How long they last in the mean, in seconds.
    pub mean_s: f64,
    /// How long it is until the next in the mean, in seconds.
    pub every_s: f64,
    /// How many packets are lost in them, unless more are at all times.
    pub loss: Loss,
}

impl LossBursts {
    /// The probability of loss in one, where it is `usual` at other times.
    pub fn loss_beside(self, usual: f64) -> f64 {
        usual.max(self.loss.probability())
    }
}

/// How long the first packet to a sleeping radio takes beyond its way: anything between the two, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Paging {
    /// At least.
    pub least_s: f64,
    /// At most.
    pub most_s: f64,
}

/// One kind of NAT. All but name and timeouts can be left out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// What people call it.
    pub name: String,
    /// Its share of the fleet, relative to the others' weights. 1 unless told.
    #[serde(default = "one")]
    pub weight: f64,
    /// Endpoint-independent unless told.
    #[serde(default = "endpoint_independent")]
    pub mapping: Dependence,
    /// Address-and-port-dependent unless told.
    #[serde(default = "address_and_port_dependent")]
    pub filtering: Dependence,
    /// Preserved unless told.
    #[serde(default)]
    pub port: PortAllocation,
    /// The two lifetimes.
    pub timeout_s: Timeouts,
    /// A mapping is promoted by the first outbound packet seen once a reply has passed and so many seconds have gone
    /// by since its first packet. 0 unless told; Linux has 2.
    #[serde(default)]
    pub promote_after_s: f64,
    /// Both directions unless told.
    #[serde(default)]
    pub refresh: Refresh,
    /// Mappings past their deadline go at the next multiple of so many seconds (counted from anywhere). 0, the
    /// default: at their deadline.
    #[serde(default)]
    pub sweep_s: f64,
    /// How often a day it loses all mappings, in the mean (Poisson). 0 unless told.
    #[serde(default)]
    pub flush_per_day: f64,
    /// Once, at a random time, `timeout_s.replied` becomes so many seconds, and `unreplied` at most that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shrink_to: Option<f64>,
    /// A TCP mapping lives for so many seconds without traffic. `None`, the default: the client has no session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp_timeout_s: Option<f64>,
    /// What becomes of packets after that. Silent unless told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp_close: Option<TcpClose>,
    /// Packets lost on the way to the NAT, from either side.
    #[serde(default)]
    pub loss: Loss,
    /// Bursts of more. `None`, the default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_bursts: Option<LossBursts>,
    /// The client's radio sleeps 11.6 s after the last packet, and is paged for the next. `None`, the default: it never sleeps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paging: Option<Paging>,
    /// Hours of the day with other lifetimes. `None`, the default: all hours are alike.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hours: Option<Hours>,
    /// Lifetimes that follow the load. `None`, the default: they are steady.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load: Option<Load>,
    /// Each mapping's lifetime is multiplied by something of its own, between 1 less this and 1 and this; up to 0.5.
    /// `None`, the default: all live alike.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scatter: Option<f64>,
    /// Mappings go because others need the room. `None`, the default: they do not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pressure: Option<Pressure>,
    /// How many mappings the client may have. `None`, the default: as many as it likes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quota: Option<Quota>,
    /// Round trip between client and gateway, in milliseconds. 40 unless told.
    #[serde(default = "forty")]
    pub rtt_ms: f64,
}

fn one() -> f64 {
    1.0
}

fn forty() -> f64 {
    40.0
}

fn endpoint_independent() -> Dependence {
    Dependence::EndpointIndependent
}

fn address_and_port_dependent() -> Dependence {
    Dependence::AddressAndPortDependent
}

/// The longest time that a profile may name: a year.
const LONGEST_S: f64 = 366.0 * 86_400.0;

impl Profile {
    /// A NAT with these lifetimes, in seconds, and all else as if left out.
    pub fn new(name: impl Into<String>, unreplied: f64, replied: f64) -> Self {
        Self {
            name: name.into(),
            weight: one(),
            mapping: endpoint_independent(),
            filtering: address_and_port_dependent(),
            port: PortAllocation::default(),
            timeout_s: Timeouts { unreplied, replied },
            promote_after_s: 0.0,
            refresh: Refresh::default(),
            sweep_s: 0.0,
            flush_per_day: 0.0,
            shrink_to: None,
            tcp_timeout_s: None,
            tcp_close: None,
            loss: Loss::NONE,
            loss_bursts: None,
            paging: None,
            hours: None,
            load: None,
            scatter: None,
            pressure: None,
            quota: None,
            rtt_ms: forty(),
        }
    }

    /// Reads a profile file: a JSON array of profiles.
    pub fn parse_file(json: &str) -> Result<Vec<Self>, ProfileError> {
        let values: Vec<serde_json::Value> = serde_json::from_str(json).map_err(ProfileError::NotAnArray)?;
        let profiles = values
            .into_iter()
            .zip(1..)
            .map(|(value, position)| Self::parse(value, position))
            .collect::<Result<Vec<_>, _>>()?;
        if profiles.iter().all(|profile| profile.weight <= 0.0) {
            return Err(ProfileError::Empty);
        }
        Ok(profiles)
    }

    fn parse(value: serde_json::Value, position: usize) -> Result<Self, ProfileError> {
        let name = value.get("name").and_then(|name| name.as_str()).map(str::to_owned);
        let profile: Self =
            serde_json::from_value(value).map_err(|source| ProfileError::Field { position, name, source })?;
        match profile.fault() {
            None => Ok(profile),
            Some((field, demand, value)) => {
                Err(ProfileError::Value { position, name: profile.name, field, demand, value })
            }
        }
    }

    /// The first field that makes no sense, what it must be, and what it is.
    fn fault(&self) -> Option<Fault> {
        if self.name.is_empty() {
            return Some(("name", "must say something", "empty".to_owned()));
        }
        if !self.refresh.outbound && !self.refresh.inbound {
            return Some(("refresh", "must be true for one direction", "false for both".to_owned()));
        }
        if let Some(paging) = self.paging.filter(|paging| paging.least_s > paging.most_s) {
            return Some(("paging", "must be least_s up to most_s", format!("{paging:?}")));
        }
        let worlds = [
            self.hours.and_then(Hours::fault),
            self.load.and_then(Load::fault),
            self.pressure.and_then(Pressure::fault),
            self.quota.and_then(Quota::fault),
        ];
        if let Some(fault) = worlds.into_iter().flatten().next() {
            return Some(fault);
        }
        let lifetime = 0.001..=LONGEST_S;
        let bursts = self.loss_bursts.unwrap_or(LossBursts { mean_s: 1.0, every_s: 1.0, loss: Loss::NONE });
        let paging = self.paging.unwrap_or(Paging { least_s: 0.0, most_s: 0.0 });
        let span = 0.0..=LONGEST_S;
        let checks = [
            ("weight", self.weight, 0.0..=1e9, "must be a number from 0 on"),
            (
                "timeout_s.unreplied",
                self.timeout_s.unreplied,
                lifetime.clone(),
                "must be seconds, above zero and up to a year",
            ),
            (
                "timeout_s.replied",
                self.timeout_s.replied,
                lifetime.clone(),
                "must be seconds, above zero and up to a year",
            ),
            (
                "loss_bursts.mean_s",
                bursts.mean_s,
                lifetime.clone(),
                "must be seconds, above zero and up to a year",
            ),
            (
                "loss_bursts.every_s",
                bursts.every_s,
                lifetime.clone(),
                "must be seconds, above zero and up to a year",
            ),
            ("paging.least_s", paging.least_s, 0.0..=60.0, "must be seconds, up to a minute"),
            ("paging.most_s", paging.most_s, 0.0..=60.0, "must be seconds, up to a minute"),
            ("scatter", self.scatter.unwrap_or(0.0), 0.0..=0.5, "must be from 0 to 0.5"),
            ("promote_after_s", self.promote_after_s, span.clone(), "must be seconds, up to a year"),
            ("sweep_s", self.sweep_s, span, "must be seconds, up to a year"),
            ("flush_per_day", self.flush_per_day, 0.0..=86_400.0, "must be from 0 to 86400"),
            (
                "shrink_to",
                self.shrink_to.unwrap_or(1.0),
                lifetime,
                "must be seconds, above zero and up to a year",
            ),
            (
                "tcp_timeout_s",
                self.tcp_timeout_s.unwrap_or(1.0),
                0.001..=LONGEST_S,
                "must be seconds, above zero and up to a year",
            ),
            ("rtt_ms", self.rtt_ms, 0.0..=60_000.0, "must be milliseconds, up to a minute"),
        ];
        checks
            .into_iter()
            .find(|(_, value, range, _)| !range.contains(value))
            .map(|(field, value, _, demand)| (field, demand, value.to_string()))
    }

    /// Round trip between client and gateway.
    pub fn rtt(&self) -> Duration {
        Duration::from_secs_f64(self.rtt_ms / 1e3)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Full, Victim};

    #[test]
    fn a_name_and_two_timeouts_are_enough() {
        let profiles =
            Profile::parse_file(r#"[{"name": "a", "timeout_s": {"unreplied": 30, "replied": 120}}]"#)
                .unwrap();
        assert_eq!(profiles, [Profile::new("a", 30.0, 120.0)]);
        let profile = &profiles[0];
        assert_eq!(profile.mapping, Dependence::EndpointIndependent);
        assert_eq!(profile.filtering, Dependence::AddressAndPortDependent);
        assert_eq!(profile.port, PortAllocation::Preserve);
        assert_eq!(profile.refresh, Refresh { outbound: true, inbound: true });
    }

    #[test]
    fn every_field_is_read() {
        let profiles = Profile::parse_file(
            r#"[{"name": "b", "weight": 2, "mapping": "address-and-port-dependent",
                 "filtering": "address-dependent", "port": "sequential",
                 "timeout_s": {"unreplied": 10, "replied": 20.5}, "promote_after_s": 2,
                 "refresh": {"inbound": false}, "sweep_s": 7, "flush_per_day": 0.5, "shrink_to": 12,
                 "tcp_timeout_s": 1800, "tcp_close": "reset", "loss": 5, "rtt_ms": 80,
                 "loss_bursts": {"mean_s": 3, "every_s": 300, "loss": 80},
                 "paging": {"least_s": 0.3, "most_s": 2},
                 "hours": {"from_h": 18, "until_h": 23, "times": 0.5}, "load": {"every_s": 1800, "least": 0.5},
                 "scatter": 0.2, "pressure": {"mean_s": 3600, "evicts": "oldest"},
                 "quota": {"mappings": 8, "full": "evict-random"}}]"#,
        )
        .unwrap();
        let mut expected = Profile::new("b", 10.0, 20.5);
        expected.weight = 2.0;
        expected.mapping = Dependence::AddressAndPortDependent;
        expected.filtering = Dependence::AddressDependent;
        expected.port = PortAllocation::Sequential;
        expected.promote_after_s = 2.0;
        expected.refresh.inbound = false;
        expected.sweep_s = 7.0;
        expected.flush_per_day = 0.5;
        expected.shrink_to = Some(12.0);
        expected.tcp_timeout_s = Some(1800.0);
        expected.tcp_close = Some(TcpClose::Reset);
        expected.loss = Loss::percent(5.0);
        expected.rtt_ms = 80.0;
        expected.loss_bursts = Some(LossBursts { mean_s: 3.0, every_s: 300.0, loss: Loss::percent(80.0) });
        expected.paging = Some(Paging { least_s: 0.3, most_s: 2.0 });
        expected.hours = Some(Hours { from_h: 18.0, until_h: 23.0, times: 0.5 });
        expected.load = Some(Load { every_s: 1800.0, least: 0.5 });
        expected.scatter = Some(0.2);
        expected.pressure = Some(Pressure { mean_s: 3600.0, evicts: Victim::Oldest });
        expected.quota = Some(Quota { mappings: 8, full: Full::EvictRandom });
        assert_eq!(profiles, [expected]);
    }

    #[test]
    fn what_is_written_is_read_back() {
        let mut profile = Profile::new("c", 10.0, 20.0);
        profile.loss = Loss::percent(2.0);
        profile.shrink_to = Some(15.0);
        let json = serde_json::to_string(&[&profile]).unwrap();
        assert_eq!(Profile::parse_file(&json).unwrap(), [profile]);
    }

    #[test]
    fn a_mistake_is_told_with_its_profile_and_field() {
        let cases = [
            ("{}", "not a JSON array"),
            ("[]", "no NAT profile with a weight above zero"),
            (
                r#"[{"name": "a", "weight": 0, "timeout_s": {"unreplied": 1, "replied": 1}}]"#,
                "no NAT profile with a weight above zero",
            ),
            (
                r#"[{"name": "a", "timeout_s": {"unreplied": 1}}]"#,
                "NAT profile 1 (\"a\"): missing field `replied`",
            ),
            (r#"[{"timeout_s": {"unreplied": 1, "replied": 1}}]"#, "NAT profile 1: missing field `name`"),
            (
                r#"[{"name": "a", "timeout_s": {"unreplied": 1, "replied": 1}, "sweeps": 3}]"#,
                "NAT profile 1 (\"a\"): unknown field `sweeps`",
            ),
            (
                r#"[{"name": "a", "timeout_s": {"unreplied": 1, "replied": 1}, "port": "odd"}]"#,
                "unknown variant `odd`, expected one of `preserve`, `sequential`, `random`",
            ),
            (
                r#"[{"name": "a", "timeout_s": {"unreplied": 1, "replied": -2}}]"#,
                "NAT profile 1 (\"a\"): timeout_s.replied must be seconds, above zero and up to a year, but it is -2",
            ),
            (
                r#"[{"name": "a", "timeout_s": {"unreplied": 1, "replied": 1},
                     "refresh": {"outbound": false, "inbound": false}}]"#,
                "refresh must be true for one direction",
            ),
            (
                r#"[{"name": "a", "timeout_s": {"unreplied": 1, "replied": 1}, "loss": 120}]"#,
                "loss must be a probability below 1, or percent",
            ),
            (
                r#"[{"name": "a", "timeout_s": {"unreplied": 1, "replied": 1}, "paging": {"least_s": 2, "most_s": 1}}]"#,
                "paging must be least_s up to most_s",
            ),
            (
                r#"[{"name": "a", "timeout_s": {"unreplied": 1, "replied": 1},
                     "loss_bursts": {"mean_s": 0, "every_s": 9, "loss": 50}}]"#,
                "loss_bursts.mean_s must be seconds, above zero",
            ),
        ];
        for (json, expected) in cases {
            let error = Profile::parse_file(json).unwrap_err().to_string();
            assert!(error.contains(expected), "{json}: {error}");
        }
    }

    #[test]
    fn a_world_that_makes_no_sense_is_refused() {
        for (field, expected) in [
            (r#""hours": {"from_h": 24, "until_h": 3, "times": 1}"#, "hours.from_h must be an hour"),
            (r#""hours": {"from_h": 1, "until_h": 3, "times": 0}"#, "hours.times must be from 0.05"),
            (r#""load": {"every_s": 1, "least": 0.5}"#, "load.every_s must be seconds"),
            (r#""load": {"every_s": 600, "least": 2}"#, "load.least must be from 0.05"),
            (r#""scatter": 0.6"#, "scatter must be from 0 to 0.5"),
            (r#""pressure": {"mean_s": 0, "evicts": "random"}"#, "pressure.mean_s must be seconds"),
            (r#""pressure": {"mean_s": 60, "evicts": "mine"}"#, "unknown variant `mine`"),
            (r#""quota": {"mappings": 0, "full": "refuse"}"#, "quota.mappings must be one at least"),
        ] {
            let json =
                format!(r#"[{{"name": "a", "timeout_s": {{"unreplied": 1, "replied": 1}}, {field}}}]"#);
            let error = Profile::parse_file(&json).unwrap_err().to_string();
            assert!(error.contains(expected), "{json}: {error}");
        }
    }
}
