//! The gateway's figures in the Prometheus text format. Labels are bounded: phases, categories, never clients.

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Write,
};

use crate::{
    health::Phase,
    tunnel::{BeatCounts, PeerStats, PublicKey},
};

const PHASES: [Phase; 4] = [Phase::Connected, Phase::Dormant, Phase::WaitingToReconnect, Phase::Disconnected];

/// Counters that only grow, also when clients come and go.
#[derive(Debug, Default)]
pub(super) struct Counters {
    seen: HashMap<PublicKey, (u64, u64, u64, u64)>,
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
    pub(super) pokes: u64,
}

impl Counters {
    /// Adds what the data plane counted since the last time.
    pub(super) fn add(&mut self, stats: &[PeerStats]) {
        let mut seen = HashMap::with_capacity(stats.len());
        for peer in stats {
            let now = (peer.received.bytes, peer.sent.bytes, peer.dropped, peer.endpoint_changes);
            let before = self.seen.get(&peer.public_key).copied().unwrap_or_default();
            // A peer that was taken away and came back counts from zero again.
            let since = |now: u64, before: u64| if now >= before { now - before } else { now };
            self.rx_bytes += since(now.0, before.0);
            self.tx_bytes += since(now.1, before.1);
            self.dropped += since(now.2, before.2);
            self.endpoint_changes += since(now.3, before.3);
            seen.insert(peer.public_key, now);
        }
        self.seen = seen;
    }
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
    pub(super) beats: BeatCounts,
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
        "pinhole_gateway_pokes_total",
        "counter",
        "Clients asked over their session for a sign of life on the tunnel.",
        counters.pokes,
    );
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

#[derive(Default)]
struct Page {
    text: String,
}

impl Page {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        let labels: Vec<_> = labels.iter().map(|(label, value)| format!("{label}={value:?}")).collect();
        let _ = writeln!(self.text, "{name}{{{}}} {value}", labels.join(","));
    }

    fn one(&mut self, name: &str, kind: &str, help: &str, value: impl std::fmt::Display) {
        self.family(name, kind, help);
        let _ = writeln!(self.text, "{name} {value}");
    }
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
            assert!(page.contains(&format!("# TYPE {name} ")), "{line}");
        }
        for phase in PHASES {
            assert!(page.contains(&format!("pinhole_gateway_clients{{phase=\"{phase}\"}} 0")));
        }
    }
}
