//! The gateway's figures in the Prometheus text format. Labels are bounded: phases, categories, never clients.

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Write,
    time::Duration,
};

use pinhole_proto::{
    bounds::{NEWER, Word},
    v1,
};

use super::{
    desired::Desired,
    nat_state::{Costs, NatState},
};
use crate::{
    health::{Phase, Reach},
    nat::{Cause, Class},
    tunnel::{BeatCounts, Discards, Offloads, PeerStats, PublicKey, Refusal, Refused, Work},
};

/// Upper edges of the buckets of lifetimes and intervals, seconds: the timeouts that NATs are known to have.
const EDGES: [f64; 15] =
    [5.0, 10.0, 15.0, 20.0, 30.0, 45.0, 60.0, 90.0, 120.0, 180.0, 240.0, 300.0, 600.0, 1200.0, 3600.0];

const PHASES: [Phase; 5] =
    [Phase::Connected, Phase::Standby, Phase::Dormant, Phase::WaitingToReconnect, Phase::Disconnected];

/// Counters that only grow, also when clients come and go.
#[derive(Debug, Default)]
pub(super) struct Counters {
    seen: HashMap<PublicKey, Seen>,
    rx_bytes: u64,
    tx_bytes: u64,
    dropped: u64,
    endpoint_changes: u64,
    pub(super) handshakes: u64,
    pub(super) reports: u64,
    pub(super) desired_applied: u64,
    pub(super) send_failures: BTreeMap<&'static str, u64>,
    pub(super) desired_errors: BTreeMap<&'static str, u64>,
    pub(super) proofs_failed: u64,
    /// Times that a client whose clock went back had its handshakes begin anew.
    pub(super) begun_anew: u64,
    /// Clients called as their handshakes were not new.
    pub(super) called_back: u64,
    pub(super) pokes: u64,
    pub(super) recalls: u64,
    /// The longest that waking a client took, by pool.
    pub(super) worst_wakes: BTreeMap<String, Duration>,
    pub(super) session_wakes: u64,
    pub(super) not_woken: u64,
    pub(super) stock_wakes: u64,
    pub(super) nat_restarts: u64,
    pub(super) churn: BTreeMap<Cause, u64>,
    /// By pool; a gateway's pools are all in its namespace.
    reach: BTreeMap<String, Reach>,
    /// By pool.
    refused: BTreeMap<String, Refused>,
    costs: Costs,
}

/// What the data plane had counted of a peer the last time.
#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    rx_bytes: u64,
    tx_bytes: u64,
    dropped: u64,
    endpoint_changes: u64,
    refused: Refused,
}

impl Counters {
    /// Adds what came to the account of one of the pool's clients.
    pub(super) fn reached(&mut self, pool: &str, added: &Reach) {
        self.reach.entry(pool.to_owned()).or_default().add(added);
    }

    /// Forgets what was counted by pools that are gone.
    pub(super) fn keep_pools(&mut self, desired: &Desired) {
        let stays = |name: &String| {
            let names = desired.pools.iter().filter_map(|pool| pool.wire.pool.as_ref());
            names.into_iter().any(|pool| pool.name == *name)
        };
        self.worst_wakes.retain(|name, _| stays(name));
        self.reach.retain(|name, _| stays(name));
    }

    /// Adds what agents spent on keepalives.
    pub(super) fn spent(&mut self, costs: Costs) {
        self.costs.wakes = self.costs.wakes.saturating_add(costs.wakes);
        self.costs.wakes_saved = self.costs.wakes_saved.saturating_add(costs.wakes_saved);
        self.costs.beats = self.costs.beats.saturating_add(costs.beats);
        self.costs.probes = self.costs.probes.saturating_add(costs.probes);
    }

    /// Adds what the data plane counted since the last time. `pool_of` names a peer's pool.
    pub(super) fn add<'a>(&mut self, stats: &[PeerStats], pool_of: impl Fn(&PublicKey) -> Option<&'a str>) {
        let mut seen = HashMap::with_capacity(stats.len());
        for peer in stats {
            let now = Seen {
                rx_bytes: peer.received.bytes,
                tx_bytes: peer.sent.bytes,
                dropped: peer.dropped,
                endpoint_changes: peer.endpoint_changes,
                refused: peer.refused,
            };
            let before = self.seen.get(&peer.public_key).copied().unwrap_or_default();
            self.rx_bytes += since(now.rx_bytes, before.rx_bytes);
            self.tx_bytes += since(now.tx_bytes, before.tx_bytes);
            self.dropped += since(now.dropped, before.dropped);
            self.endpoint_changes += since(now.endpoint_changes, before.endpoint_changes);
            if now.refused != before.refused
                && let Some(pool) = pool_of(&peer.public_key)
            {
                let sum = self.refused.entry(pool.to_owned()).or_default();
                for why in Refusal::ALL {
                    sum.add(why, since(now.refused.of(why), before.refused.of(why)));
                }
            }
            seen.insert(peer.public_key, now);
        }
        self.seen = seen;
    }
}

/// A peer that was taken away and came back counts from zero again.
const fn since(now: u64, before: u64) -> u64 {
    if now >= before { now - before } else { now }
}

/// What is so now.
#[derive(Debug, Default)]
pub(super) struct Gauges {
    pub(super) clients: HashMap<Phase, usize>,
    pub(super) sessions: usize,
    pub(super) revision: u64,
    pub(super) attached: bool,
    pub(super) ready: bool,
    pub(super) proof_age_seconds: Option<f64>,
    pub(super) impairments: Vec<String>,
    pub(super) events_lost: u64,
    /// Panics of parts of the gateway, all of them survived.
    pub(super) faults: u64,
    pub(super) discards: Discards,
    pub(super) beats: BeatCounts,
    /// None where there is no tunnel yet.
    pub(super) offloads: Option<Offloads>,
    pub(super) work: Work,
    pub(super) nats: Nats,
}

/// The NATs of the clients at present.
#[derive(Debug, Default)]
pub(super) struct Nats {
    classes: BTreeMap<Class, u64>,
    reasons: BTreeMap<&'static str, u64>,
    lifetimes: Spread,
    intervals: Spread,
}

impl Nats {
    pub(super) fn of<'a>(nat_states: impl Iterator<Item = &'a NatState>) -> Self {
        let mut nats = Self::default();
        for nat_state in nat_states {
            *nats.classes.entry(nat_state.class()).or_default() += 1;
            let binding = nat_state.binding().and_then(|binding| binding.at_least);
            nats.lifetimes.add(binding);
            if let Some(keepalive) = nat_state.keepalive() {
                *nats.reasons.entry(reason_name(keepalive.reason)).or_default() += 1;
                nats.intervals.add(keepalive.interval);
            }
        }
        nats
    }
}

/// A histogram of what is so at present.
#[derive(Debug, Default)]
struct Spread {
    counts: [u64; EDGES.len()],
    count: u64,
    sum: f64,
}

impl Spread {
    fn add(&mut self, span: Option<Duration>) {
        let span = span.filter(|span| !span.is_zero());
        let Some(seconds) = span.map(|span| span.as_secs_f64()) else { return };
        for (count, _) in self.counts.iter_mut().zip(EDGES).filter(|(_, edge)| seconds <= *edge) {
            *count += 1;
        }
        self.count += 1;
        self.sum += seconds;
    }
}

fn reason_name(reason: Word<v1::KeepaliveReason>) -> &'static str {
    let Word::Known(reason) = reason else { return NEWER };
    match reason {
        v1::KeepaliveReason::Unspecified => "Unknown",
        v1::KeepaliveReason::Policy => "Policy",
        v1::KeepaliveReason::Initial => "Initial",
        v1::KeepaliveReason::Learning => "Learning",
        v1::KeepaliveReason::Learnt => "Learnt",
        v1::KeepaliveReason::Cached => "Cached",
        v1::KeepaliveReason::Backoff => "Backoff",
        v1::KeepaliveReason::GatewayObserved => "GatewayObserved",
    }
}

/// The page that a scrape gets.
pub(super) fn render(counters: &Counters, gauges: &Gauges) -> String {
    let mut page = Page::default();
    page.family("pinhole_build_info", "gauge", "The running version.");
    page.sample("pinhole_build_info", &[("version", env!("CARGO_PKG_VERSION"))], 1);
    page.family("pinhole_gateway_clients", "gauge", "Clients by phase.");
    for phase in PHASES {
        let count = gauges.clients.get(&phase).copied().unwrap_or_default();
        page.sample("pinhole_gateway_clients", &[("phase", &phase.to_string())], count);
    }
    page.one("pinhole_gateway_sessions", "gauge", "Session streams of client agents.", gauges.sessions);
    page.one(
        "pinhole_gateway_desired_revision",
        "gauge",
        "Revision of the desired state in force.",
        gauges.revision,
    );
    page.one(
        "pinhole_gateway_operator_attached",
        "gauge",
        "Whether a stream to the operator stands.",
        u8::from(gauges.attached),
    );
    page.one(
        "pinhole_gateway_ready",
        "gauge",
        "Whether the data path was proven lately.",
        u8::from(gauges.ready),
    );
    if let Some(age) = gauges.proof_age_seconds {
        page.one(
            "pinhole_gateway_path_proof_age_seconds",
            "gauge",
            "Time since the data path was last proven.",
            age,
        );
    }
    page.family("pinhole_gateway_impairments", "gauge", "What could not be set up, by category.");
    for category in &gauges.impairments {
        page.sample("pinhole_gateway_impairments", &[("category", category)], 1);
    }
    page.family("pinhole_gateway_offload", "gauge", "Whether the tunnel uses this offload of the kernel.");
    for (name, used) in gauges.offloads.map(Offloads::list).into_iter().flatten() {
        page.sample("pinhole_gateway_offload", &[("offload", name)], u8::from(used));
    }
    page.family("pinhole_gateway_packet_path_total", "counter", "What the tunnel's threads did, by step.");
    for (step, count) in gauges.work.list() {
        page.sample("pinhole_gateway_packet_path_total", &[("step", step)], count);
    }
    page.one(
        "pinhole_gateway_received_bytes_total",
        "counter",
        "Inner bytes from clients.",
        counters.rx_bytes,
    );
    page.one("pinhole_gateway_sent_bytes_total", "counter", "Inner bytes to clients.", counters.tx_bytes);
    page.one("pinhole_gateway_dropped_packets_total", "counter", "Packets dropped.", counters.dropped);
    page.one(
        "pinhole_gateway_endpoint_changes_total",
        "counter",
        "Times that a client's mapping moved.",
        counters.endpoint_changes,
    );
    page.one(
        "pinhole_gateway_handshakes_total",
        "counter",
        "Handshakes that ended with a session.",
        counters.handshakes,
    );
    page.family(
        "pinhole_gateway_handshakes_dropped_total",
        "counter",
        "Handshakes of clients that led to nothing; stale: not newer than one before, by a clock that went back or a replay.",
    );
    page.sample("pinhole_gateway_handshakes_dropped_total", &[("reason", "stale")], gauges.discards.stale);
    page.one(
        "pinhole_gateway_handshakes_begun_anew_total",
        "counter",
        "Times that a client whose clock went back asked over its session for its handshakes to be taken all the same.",
        counters.begun_anew,
    );
    page.one(
        "pinhole_gateway_handshakes_called_back_total",
        "counter",
        "Times that a client whose handshake was not new was sent an initiation instead, which it answers if its clock went back.",
        counters.called_back,
    );
    page.one("pinhole_gateway_reports_total", "counter", "Reports sent to the operator.", counters.reports);
    page.one(
        "pinhole_gateway_desired_applied_total",
        "counter",
        "Snapshots applied.",
        counters.desired_applied,
    );
    page.one(
        "pinhole_gateway_path_proofs_failed_total",
        "counter",
        "Own path proofs nobody answered.",
        counters.proofs_failed,
    );
    page.one(
        "pinhole_gateway_events_lost_total",
        "counter",
        "Data plane events that found no room.",
        gauges.events_lost,
    );
    let beats = &gauges.beats;
    page.family("pinhole_gateway_beats_total", "counter", "Beats of clients, by what became of them.");
    let results = [
        ("answered", beats.answered),
        ("malformed", beats.malformed),
        ("unknown-key", beats.unknown_key),
        ("forged", beats.forged),
        ("replayed", beats.replayed),
        ("limited", beats.limited),
        ("crowded", beats.crowded),
    ];
    for (result, count) in results {
        page.sample("pinhole_gateway_beats_total", &[("result", result)], count);
    }
    page.one("pinhole_gateway_wakes_total", "counter", "Wakes sent to clients' sockets.", beats.wakes);
    page.one(
        "pinhole_gateway_wakes_unanswered_total",
        "counter",
        "Times that waking a client's tunnel led to nothing.",
        beats.wakes_unanswered,
    );
    page.one(
        "pinhole_gateway_wakes_unproven_total",
        "counter",
        "Wakes not taken on since the client had not shown yet that it receives there.",
        beats.unproven,
    );
    page.one(
        "pinhole_gateway_stock_wakes_total",
        "counter",
        "Handshakes begun to learn how long a mapping of a client without an agent lives.",
        counters.stock_wakes,
    );
    page.one(
        "pinhole_gateway_nat_restarts_total",
        "counter",
        "Times that several clients behind one public address lost their mappings together.",
        counters.nat_restarts,
    );
    page.one(
        "pinhole_gateway_panics_total",
        "counter",
        "Times that a part of the gateway panicked and began anew, while the tunnels went on.",
        gauges.faults,
    );
    page.one(
        "pinhole_gateway_pokes_total",
        "counter",
        "Clients asked over their session for a sign of life on the tunnel.",
        counters.pokes,
    );
    page.one(
        "pinhole_gateway_recalls_total",
        "counter",
        "Clients asked over UDP to make their session anew, as it did not carry what they were to be told.",
        counters.recalls,
    );
    page.one(
        "pinhole_gateway_session_wakes_total",
        "counter",
        "Initiations brought over the session to clients that sleep, as packets were held for them.",
        counters.session_wakes,
    );
    page.one(
        "pinhole_gateway_not_woken_total",
        "counter",
        "Times that such a client did not come within two seconds.",
        counters.not_woken,
    );
    render_nats(&mut page, counters, &gauges.nats);
    render_reach(&mut page, counters);
    render_refused(&mut page, counters);
    render_wakes(&mut page, counters);
    page.family("pinhole_gateway_send_failures_total", "counter", "Datagrams that the kernel refused.");
    for (category, count) in &counters.send_failures {
        page.sample("pinhole_gateway_send_failures_total", &[("category", category)], count);
    }
    page.family("pinhole_gateway_desired_errors_total", "counter", "Snapshots not applied in full.");
    for (category, count) in &counters.desired_errors {
        page.sample("pinhole_gateway_desired_errors_total", &[("category", category)], count);
    }
    if let Some(bytes) = resident_bytes() {
        page.one("process_resident_memory_bytes", "gauge", "Resident memory size in bytes.", bytes);
    }
    page.text
}

fn render_reach(page: &mut Page, counters: &Counters) {
    page.family(
        "pinhole_gateway_reachability_seconds_total",
        "counter",
        "Time of clients, added up: in which each was proven reachable, and in which it was not although it should have been.",
    );
    for (pool, reach) in &counters.reach {
        for (state, time) in [("proven", reach.proven), ("unproven", reach.unproven)] {
            let labels = [("pool", pool.as_str()), ("state", state)];
            page.sample("pinhole_gateway_reachability_seconds_total", &labels, time.as_secs_f64());
        }
    }
    page.family(
        "pinhole_gateway_longest_gap_seconds",
        "gauge",
        "The longest time that a client of the pool was not proven reachable, since the gateway started.",
    );
    for (pool, reach) in &counters.reach {
        let gap = reach.longest_gap.as_secs_f64();
        page.sample("pinhole_gateway_longest_gap_seconds", &[("pool", pool)], gap);
    }
}

fn render_refused(page: &mut Page, counters: &Counters) {
    page.family(
        "pinhole_gateway_refused_packets_total",
        "counter",
        "Packets of clients that were to go where those of the pool may not, by where that is.",
    );
    for (pool, refused) in &counters.refused {
        for why in Refusal::ALL {
            let labels = [("pool", pool.as_str()), ("reason", why.name())];
            page.sample("pinhole_gateway_refused_packets_total", &labels, refused.of(why));
        }
    }
}

fn render_wakes(page: &mut Page, counters: &Counters) {
    page.family(
        "pinhole_gateway_worst_wake_seconds",
        "gauge",
        "The longest time from a call over its session to the first packet of a client of the pool that slept.",
    );
    for (pool, wake) in &counters.worst_wakes {
        page.sample("pinhole_gateway_worst_wake_seconds", &[("pool", pool)], wake.as_secs_f64());
    }
}

fn render_nats(page: &mut Page, counters: &Counters, nats: &Nats) {
    page.family("pinhole_gateway_nat_clients", "gauge", "Clients by the class of the NAT they are behind.");
    for class in Class::ALL {
        let count = nats.classes.get(&class).copied().unwrap_or_default();
        page.sample("pinhole_gateway_nat_clients", &[("class", class.name())], count);
    }
    page.family(
        "pinhole_gateway_keepalive_clients",
        "gauge",
        "Clients by why their keepalive is what it is.",
    );
    for (reason, count) in &nats.reasons {
        page.sample("pinhole_gateway_keepalive_clients", &[("reason", reason)], count);
    }
    page.spread(
        "pinhole_gateway_binding_lifetime_seconds",
        "Measured lifetimes of the mappings of the clients at present.",
        &nats.lifetimes,
    );
    page.spread(
        "pinhole_gateway_keepalive_interval_seconds",
        "Keepalive intervals of the clients at present.",
        &nats.intervals,
    );
    page.family("pinhole_gateway_churn_total", "counter", "Moves and losses of clients' mappings, by cause.");
    for cause in Cause::ALL {
        let count = counters.churn.get(&cause).copied().unwrap_or_default();
        page.sample("pinhole_gateway_churn_total", &[("cause", cause.name())], count);
    }
    let costs = &counters.costs;
    page.one(
        "pinhole_gateway_client_wakes_total",
        "counter",
        "Bursts of keepalive traffic, as clients' agents count them.",
        costs.wakes,
    );
    page.one(
        "pinhole_gateway_client_wakes_saved",
        "gauge",
        "Bursts that a static keepalive of 25 s would have had more.",
        costs.wakes_saved,
    );
    page.one("pinhole_gateway_client_beats_total", "counter", "Keepalives of clients' agents.", costs.beats);
    page.one(
        "pinhole_gateway_client_probes_total",
        "counter",
        "Messages of clients' agents on mappings made for an experiment.",
        costs.probes,
    );
}

#[derive(Default)]
struct Page {
    text: String,
}

impl Page {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        let labels: Vec<_> =
            labels.iter().map(|(label, value)| format!("{label}=\"{}\"", escaped(value))).collect();
        let _ = writeln!(self.text, "{name}{{{}}} {value}", labels.join(","));
    }

    fn spread(&mut self, name: &str, help: &str, spread: &Spread) {
        self.family(name, "histogram", help);
        let bucket = format!("{name}_bucket");
        for (edge, count) in EDGES.iter().zip(spread.counts) {
            self.sample(&bucket, &[("le", &edge.to_string())], count);
        }
        self.sample(&bucket, &[("le", "+Inf")], spread.count);
        let _ = writeln!(self.text, "{name}_sum {}\n{name}_count {}", spread.sum, spread.count);
    }

    fn one(&mut self, name: &str, kind: &str, help: &str, value: impl std::fmt::Display) {
        self.family(name, kind, help);
        let _ = writeln!(self.text, "{name} {value}");
    }
}

/// A label's value as the text format wants it.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// From `/proc/self/statm`, whose second field is in pages.
fn resident_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = text.split(' ').nth(1)?.parse().ok()?;
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok()??;
    Some(pages * u64::try_from(page).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sample_belongs_to_a_family_and_every_phase_is_there() {
        let page = render(&Counters::default(), &Gauges::default());
        for line in page.lines().filter(|line| !line.starts_with('#')) {
            let name = line.split(['{', ' ']).next().unwrap();
            let name =
                ["_bucket", "_sum", "_count"].iter().find_map(|s| name.strip_suffix(s)).unwrap_or(name);
            assert!(page.contains(&format!("# TYPE {name} ")), "{line}");
        }
        for phase in PHASES {
            assert!(page.contains(&format!("pinhole_gateway_clients{{phase=\"{phase}\"}} 0")));
        }
    }

    #[test]
    fn a_label_cannot_end_its_line_nor_its_quotes() {
        let impairments = vec!["a\\\"} 1\nforged{ö".to_owned()];
        let page = render(&Counters::default(), &Gauges { impairments, ..Gauges::default() });
        assert!(page.contains(r#"pinhole_gateway_impairments{category="a\\\"} 1\nforged{ö"} 1"#), "{page}");
    }

    #[test]
    fn offloads_are_there_once_there_is_a_tunnel() {
        let offloads = Some(Offloads { udp_gro: false, ..Offloads::ALL });
        let page = render(&Counters::default(), &Gauges { offloads, ..Gauges::default() });
        assert!(page.contains("pinhole_gateway_offload{offload=\"tun-tso\"} 1"));
        assert!(page.contains("pinhole_gateway_offload{offload=\"udp-gro\"} 0"));
        assert!(!render(&Counters::default(), &Gauges::default()).contains("pinhole_gateway_offload{"));
    }

    #[test]
    fn how_many_datagrams_go_with_one_call_can_be_told() {
        let work = Work { sends: 3, datagrams_sent: 120, ..Work::default() };
        let page = render(&Counters::default(), &Gauges { work, ..Gauges::default() });
        assert!(page.contains("pinhole_gateway_packet_path_total{step=\"send\"} 3"));
        assert!(page.contains("pinhole_gateway_packet_path_total{step=\"datagram-sent\"} 120"));
    }

    #[test]
    fn refused_packets_are_counted_by_pool_and_reason_also_when_clients_come_and_go() {
        let mut counters = Counters::default();
        let key = PublicKey::from_bytes([2; 32]);
        let mut stats = PeerStats::new(key);
        let mut refuse = |counters: &mut Counters, pool, so_far| {
            stats.refused = Refused::default();
            stats.refused.add(Refusal::NoRoute, so_far);
            counters.add(std::slice::from_ref(&stats), |_| pool);
        };
        // It goes, and comes back.
        for so_far in [3, 5, 1] {
            refuse(&mut counters, Some("staff"), so_far);
        }
        refuse(&mut counters, Some("guests"), 2);
        refuse(&mut counters, None, 9);
        let page = render(&counters, &Gauges::default());
        let line = |pool: &str, why: &str, count: u64| {
            let name = "pinhole_gateway_refused_packets_total";
            page.contains(&format!("{name}{{pool=\"{pool}\",reason=\"{why}\"}} {count}\n"))
        };
        assert!(line("staff", "no-route", 6) && line("staff", "metadata", 0), "{page}");
        assert!(line("guests", "no-route", 1), "{page}");
    }
}
