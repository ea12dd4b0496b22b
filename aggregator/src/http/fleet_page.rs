//! The aggregator's own page, `/metrics`: its process, its work, and the fleet rolled up.
//!
//! Its size does not depend on the size of the fleet: no series carries a host's name. Numbers of one host
//! are on that host's page.

use std::collections::BTreeMap;

use muster_proto::{
    series::Kind,
    time::Timestamp,
    v1::{HostState, SilenceCause},
};

use crate::fleet::Silence;

use super::{
    negotiate::Format,
    page::{Own, Writer, incident_samples, whole},
    process::Process,
    source::{Gathered, HostView, IngestTotals, OpenIncidents, Ratios, UNIT_STATES, state_word},
};

/// What the page needs of one host: about 150 bytes, held only while the page is written.
#[derive(Debug, Clone)]
pub(super) struct HostPoint {
    state: HostState,
    silence: SilenceCause,
    ratios: Ratios,
    age_seconds: Option<f64>,
    clock_offset_seconds: Option<f64>,
    certificate_end: Option<Timestamp>,
    units: [u32; UNIT_STATES.len()],
    incidents: OpenIncidents,
    /// Alerts of its score and weeks with one.
    told: (f64, f64),
}

impl HostPoint {
    pub(super) fn of(host: &impl HostView, now: Timestamp, incidents: OpenIncidents) -> Self {
        let mut units = [0; UNIT_STATES.len()];
        for unit in host.units().into_iter().flatten() {
            if let Some(at) = UNIT_STATES.iter().position(|&state| state == unit.state) {
                units[at] += 1;
            }
        }
        let state = host.state();
        // A silent host's last values say nothing of now.
        let current = matches!(state, HostState::Live | HostState::Late);
        let offset = host.clock_offset_ms().map(Timestamp::from_millis);
        Self {
            state,
            silence: host.silence_cause(),
            ratios: if current {
                host.ratios()
            } else {
                Ratios::default()
            },
            age_seconds: host
                .last_seen()
                .filter(|_| current)
                .map(|seen| now.since(seen).as_secs_f64()),
            clock_offset_seconds: offset
                .filter(|_| current)
                .map(|offset| offset.as_seconds_f64().abs()),
            certificate_end: host.certificate_not_after(),
            units: if current { units } else { Default::default() },
            incidents,
            told: host.anomalies_told(),
        }
    }
}

/// Requests answered since the start, by handler and status code: both small sets.
pub(super) type Requests = BTreeMap<(&'static str, u16), u64>;

/// Writes the page.
pub(super) fn render(
    fleet: &Gathered<HostPoint>,
    totals: &IngestTotals,
    requests: &Requests,
    process: &Process,
    format: Format,
) -> Vec<u8> {
    let mut page = Writer::new(format);
    let version = env!("CARGO_PKG_VERSION");
    page.own(&BUILD).sample([("version", version)], 1.0);
    process.write(&mut page);
    ingest(&mut page, totals);
    if let Some(history) = &totals.history {
        history.write(&mut page);
    }
    totals.telling.write(&mut page);
    let mut family = page.own(&REQUESTS);
    for ((handler, code), count) in requests {
        let code = code.to_string();
        family.sample(
            [("handler", *handler), ("code", code.as_str())],
            whole(*count),
        );
    }
    page.own(&MISSING)
        .sample([], whole(fleet.missing.len() as u64));
    roll_up(&mut page, &fleet.items);
    page.finish()
}

fn ingest(page: &mut Writer, totals: &IngestTotals) {
    for (own, value) in [
        (&CONNECTED, totals.agents_connected),
        (&SERIES, totals.series),
        (&STORED, totals.frames_stored),
        (&DUPLICATE, totals.frames_duplicate),
        (&LOST, totals.frames_lost),
        (&FOUND, totals.frames_found),
        (&QUEUE, totals.queue_bytes),
        (&LOG, totals.log_bytes),
        (&LOG_FAILURES, totals.log_failures),
        (&STALLS, totals.stalls),
        (&INCIDENTS_WAITING, totals.incident_changes_waiting),
    ] {
        page.own(own).sample([], whole(value));
    }
    let mut family = page.own(&REJECTED);
    for (reason, count) in &totals.frames_rejected {
        family.sample([("reason", *reason)], whole(*count));
    }
    let mut family = page.own(&CONNECTIONS);
    for (door, outcome, count) in &totals.connections {
        family.sample([("door", *door), ("outcome", *outcome)], whole(*count));
    }
}

/// Reads one number of a host.
type Figure = fn(&HostPoint) -> Option<f64>;

fn roll_up(page: &mut Writer, hosts: &[HostPoint]) {
    let mut family = page.own(&HOSTS);
    for state in [
        HostState::Joined,
        HostState::Late,
        HostState::Live,
        HostState::Silent,
    ] {
        let count = hosts.iter().filter(|host| host.state == state).count();
        family.sample([("state", state_word(state))], whole(count as u64));
    }
    let mut family = page.own(&SILENCES);
    for cause in Silence::ALL {
        let cause = cause.to_wire();
        let count = hosts
            .iter()
            .filter(|host| host.state == HostState::Silent && host.silence == cause)
            .count();
        family.sample([("cause", Silence::word(cause))], whole(count as u64));
    }
    let mut family = page.own(&SERVICES);
    for (at, state) in UNIT_STATES.iter().enumerate() {
        let count = hosts.iter().map(|host| u64::from(host.units[at])).sum();
        family.sample([("state", *state)], whole(count));
    }
    let sum = |of: fn(&OpenIncidents) -> u64| hosts.iter().map(|host| of(&host.incidents)).sum();
    let open = OpenIncidents {
        critical: sum(|open| open.critical),
        warning: sum(|open| open.warning),
        info: sum(|open| open.info),
    };
    incident_samples(&mut page.own(&INCIDENTS), &[("state", "open")], open);

    let (told, weeks) = hosts.iter().fold((0.0, 0.0), |(told, weeks), host| {
        (told + host.told.0, weeks + host.told.1)
    });
    let mut family = page.own(&TOLD);
    // Of a few hours no rate can be told.
    if weeks >= 1.0 {
        family.sample([], told / weeks);
    }

    let spreads: [(&Own, Figure); 6] = [
        (&CPU, |host| host.ratios.cpu),
        (&MEMORY, |host| host.ratios.memory),
        (&FILESYSTEM, |host| host.ratios.filesystem),
        (&PRESSURE, |host| host.ratios.pressure),
        (&AGE, |host| host.age_seconds),
        (&CLOCK, |host| host.clock_offset_seconds),
    ];
    for (own, of) in spreads {
        let mut values: Vec<f64> = hosts
            .iter()
            .filter_map(of)
            .filter(|v| !v.is_nan())
            .collect();
        values.sort_unstable_by(f64::total_cmp);
        let mut family = page.own(own);
        for (stat, percent) in [("p50", 50), ("p95", 95), ("max", 100)] {
            if let Some(value) = nearest_rank(&values, percent) {
                family.sample([("stat", stat)], value);
            }
        }
    }
    let mut family = page.own(&CERTIFICATE);
    if let Some(end) = hosts.iter().filter_map(|host| host.certificate_end).min() {
        family.sample([("stat", "min")], end.as_seconds_f64());
    }
}

/// The smallest value that at least this share of the sorted values does not exceed.
fn nearest_rank(sorted: &[f64], percent: usize) -> Option<f64> {
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted.get(rank.checked_sub(1)?).copied()
}

const BUILD: Own = Own(
    "muster_build_info",
    Kind::Gauge,
    "Version of the aggregator, in a label.",
);
const CONNECTED: Own = Own(
    "muster_aggregator_agents_connected",
    Kind::Gauge,
    "Agents with an open stream.",
);
const SERIES: Own = Own(
    "muster_aggregator_series",
    Kind::Gauge,
    "Series of which the latest value is held, of all hosts.",
);
const STORED: Own = Own(
    "muster_aggregator_frames_stored_total",
    Kind::Counter,
    "Frames made durable in the log.",
);
const DUPLICATE: Own = Own(
    "muster_aggregator_frames_duplicate_total",
    Kind::Counter,
    "Frames that came more than once and changed nothing.",
);
const LOST: Own = Own(
    "muster_aggregator_frames_lost_total",
    Kind::Counter,
    "Frames that agents had to give up before they were durable.",
);
const FOUND: Own = Own(
    "muster_aggregator_frames_found_total",
    Kind::Counter,
    "Frames that came after all, after they had been counted as lost, now or before the start.",
);
const REJECTED: Own = Own(
    "muster_aggregator_frames_rejected_total",
    Kind::Counter,
    "Frames refused, by reason.",
);
const CONNECTIONS: Own = Own(
    "muster_aggregator_connections_total",
    Kind::Counter,
    "Connections by door and outcome: accepted, or why not.",
);
const QUEUE: Own = Own(
    "muster_aggregator_ingest_queue_bytes",
    Kind::Gauge,
    "Bytes of frames received and not yet durable.",
);
const LOG: Own = Own(
    "muster_aggregator_log_size_bytes",
    Kind::Gauge,
    "Size of the log of frames on disk.",
);
const LOG_FAILURES: Own = Own(
    "muster_aggregator_log_commit_failures_total",
    Kind::Counter,
    "Commits to the log that failed; agents keep the frames until one succeeds.",
);
const STALLS: Own = Own(
    "muster_aggregator_stalls_total",
    Kind::Counter,
    "Times in which a shard did not run for more than 2 s, or the clock jumped: nobody is called silent for them.",
);
const INCIDENTS_WAITING: Own = Own(
    "muster_aggregator_incident_changes_waiting",
    Kind::Gauge,
    "Incidents whose last change is not in the store yet.",
);
const REQUESTS: Own = Own(
    "muster_aggregator_http_requests_total",
    Kind::Counter,
    "Requests answered on this listener, by handler and status code.",
);
const MISSING: Own = Own(
    "muster_aggregator_shards_missing",
    Kind::Gauge,
    "Shards of the fleet state whose hosts are not in the numbers on this page.",
);
const HOSTS: Own = Own("muster_hosts", Kind::Gauge, "Hosts by liveness.");
const SILENCES: Own = Own(
    "muster_host_silence",
    Kind::Gauge,
    "Silent hosts by cause, as far as what was seen tells.",
);
const SERVICES: Own = Own(
    "muster_services",
    Kind::Gauge,
    "Units of all hosts whose samples arrive, by state.",
);
const INCIDENTS: Own = Own(
    "muster_incidents",
    Kind::Gauge,
    "Incidents by state and severity.",
);
const TOLD: Own = Own(
    "muster_fleet_anomalies_per_host_week",
    Kind::Gauge,
    "Anomalies listed a host-week of late, true ones included; budget_per_host_week bounds the false ones.",
);
const CPU: Own = Own(
    "muster_fleet_cpu_utilisation_ratio",
    Kind::Gauge,
    "Share of CPU time in use over the hosts whose samples arrive: median, 95th percentile, largest.",
);
const MEMORY: Own = Own(
    "muster_fleet_memory_utilisation_ratio",
    Kind::Gauge,
    "Share of memory in use over the hosts whose samples arrive: median, 95th percentile, largest.",
);
const FILESYSTEM: Own = Own(
    "muster_fleet_filesystem_utilisation_ratio",
    Kind::Gauge,
    "Share in use of each host's fullest filesystem: median, 95th percentile, largest.",
);
const PRESSURE: Own = Own(
    "muster_fleet_pressure_ratio",
    Kind::Gauge,
    "Each host's worst share of time in which tasks were stalled: median, 95th percentile, largest.",
);
const AGE: Own = Own(
    "muster_fleet_sample_age_seconds",
    Kind::Gauge,
    "Time since a host's last sample was received: median, 95th percentile, largest.",
);
const CLOCK: Own = Own(
    "muster_fleet_clock_offset_seconds",
    Kind::Gauge,
    "Distance between a host's clock and the aggregator's: median, 95th percentile, largest.",
);
const CERTIFICATE: Own = Own(
    "muster_fleet_certificate_expiry_timestamp_seconds",
    Kind::Gauge,
    "When the first of the agents' certificates ends, in seconds since 1970.",
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks() {
        let ten: Vec<f64> = (1..=10).map(f64::from).collect();
        for (values, percent, expected) in [
            (&[][..], 50, None),
            (&[7.0], 50, Some(7.0)),
            (&[7.0], 95, Some(7.0)),
            (&ten, 50, Some(5.0)),
            (&ten, 95, Some(10.0)),
            (&ten, 100, Some(10.0)),
        ] {
            assert_eq!(
                nearest_rank(values, percent),
                expected,
                "{values:?} {percent}"
            );
        }
    }
}
