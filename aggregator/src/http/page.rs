//! The page of one host: what its agent gave, and what the aggregator knows of it.
//!
//! Lines of a family stand together under one `# HELP` and `# TYPE`, families of the agent sorted by name,
//! the aggregator's after them in a fixed order. There are no timestamps: series with their own are not
//! marked stale when they vanish. Whether a host may have a page at all is [`freshness`]: old values are
//! never given as if they were new.

use std::time::Duration;

use muster_proto::{
    catalog, exposition,
    series::{Family, Kind},
    time::Timestamp,
    v1::HostState,
};

use crate::fleet::Silence;

use super::{
    negotiate::Format,
    source::{HostView, OpenIncidents, Reading},
};

/// Bytes a page starts with: 460 series take about 51 kB.
const PAGE_BYTES: usize = 64 * 1024;

/// A host is stale after this many intervals without a sample ...
const STALE_INTERVALS: u32 = 3;

/// ... but not before this, so that an agent at one second survives a reconnect.
const STALE_AT_LEAST: Duration = Duration::from_secs(15);

/// Families that the aggregator adds to a host's page. An agent's family of the same name is left out: it
/// would be the host speaking of itself in the aggregator's name.
const OWN: [Own; 9] = [
    UP,
    INFO,
    AGE,
    CLOCK,
    CERTIFICATE,
    SERVICE_UP,
    RESTARTS,
    ANOMALY,
    INCIDENTS,
];

const UP: Own = Own(
    "muster_host_up",
    Kind::Gauge,
    "1 while the host's samples arrive; a host whose samples do not has no page.",
);
const INFO: Own = Own(
    "muster_host_info",
    Kind::Gauge,
    "The host as its agent describes it, in labels.",
);
const AGE: Own = Own(
    "muster_sample_age_seconds",
    Kind::Gauge,
    "Time since the aggregator received the sample on this page.",
);
const CLOCK: Own = Own(
    "muster_host_clock_offset_seconds",
    Kind::Gauge,
    "The host's clock less the aggregator's.",
);
const CERTIFICATE: Own = Own(
    "muster_host_certificate_expiry_timestamp_seconds",
    Kind::Gauge,
    "When the certificate of the host's agent ends, in seconds since 1970.",
);
const SERVICE_UP: Own = Own(
    "muster_service_up",
    Kind::Gauge,
    "1 while the unit is active, 0 in every other state.",
);
const RESTARTS: Own = Own(
    "muster_service_restarts_total",
    Kind::Counter,
    "Automatic restarts of the unit as its manager counts them.",
);
const ANOMALY: Own = Own(
    "muster_anomaly_score",
    Kind::Gauge,
    "How unusual the host is as a whole; 1 is the most a normal hour reaches. Absent while too little is known.",
);
const INCIDENTS: Own = Own(
    "muster_incident_open",
    Kind::Gauge,
    "Open incidents of the host by severity.",
);

/// A family the aggregator makes itself: name, type and help.
pub(super) struct Own(pub &'static str, pub Kind, pub &'static str);

/// Whether a host's values are current.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Freshness {
    /// The last sample was received this long ago.
    Fresh(Duration),
    /// The values are old; the text says since when and why, in one line.
    Stale(String),
}

/// Judges by when the aggregator received, and by the host's own time only against a backlog.
pub fn freshness(host: &impl HostView, now: Timestamp) -> Freshness {
    let name = host.name();
    let limit = host
        .interval()
        .saturating_mul(STALE_INTERVALS)
        .max(STALE_AT_LEAST);
    let Some(last_seen) = host.last_seen() else {
        return Freshness::Stale(format!(
            "host {name:?} is enrolled but has sent nothing yet"
        ));
    };
    let age = now.since(last_seen);
    let seconds = age.as_secs();
    if host.state() == HostState::Silent {
        let cause = Silence::words(host.silence_cause());
        return Freshness::Stale(format!(
            "host {name:?} is silent, {cause}; last sample {seconds} s ago"
        ));
    }
    if age > limit {
        return Freshness::Stale(format!(
            "host {name:?} is late; last sample {seconds} s ago, stale after {} s",
            limit.as_secs()
        ));
    }
    // Generous by the clock's offset, whichever of the two clocks the tick was corrected to.
    let offset = host.clock_offset_ms().unwrap_or(0).unsigned_abs();
    let behind = host
        .last_tick()
        .map_or(Duration::ZERO, |tick| now.since(tick));
    if behind > limit + Duration::from_millis(offset) {
        return Freshness::Stale(format!(
            "host {name:?} is sending what it held back; its latest values are {} s old",
            behind.as_secs()
        ));
    }
    Freshness::Fresh(age)
}

/// Writes the page. `age` is that of the sample, from [`freshness`].
pub fn render(
    host: &impl HostView,
    age: Duration,
    incidents: OpenIncidents,
    format: Format,
) -> Vec<u8> {
    let mut page = Writer::new(format);
    readings(&mut page, host);
    page.own(&UP).sample([], 1.0);
    let facts = host.facts();
    let id = host.id().to_string();
    page.own(&INFO).sample(
        [
            ("id", id.as_str()),
            ("version", &facts.agent_version),
            ("os", &facts.os_pretty),
            ("kernel", &facts.kernel),
            ("architecture", &facts.architecture),
        ],
        1.0,
    );
    page.own(&AGE).sample([], age.as_secs_f64());
    if let Some(offset) = host.clock_offset_ms() {
        // The same arithmetic as for any other number of milliseconds.
        let seconds = Timestamp::from_millis(offset).as_seconds_f64();
        page.own(&CLOCK).sample([], seconds);
    }
    if let Some(end) = host.certificate_not_after() {
        page.own(&CERTIFICATE).sample([], end.as_seconds_f64());
    }
    services(&mut page, host);
    if let Some(score) = host.anomaly_score() {
        page.own(&ANOMALY).sample([], score);
    }
    incident_samples(&mut page.own(&INCIDENTS), &[], incidents);
    page.finish()
}

/// One sample for each severity, 0 for those that have none.
pub(super) fn incident_samples(
    family: &mut FamilyWriter<'_>,
    before: &[(&str, &str)],
    open: OpenIncidents,
) {
    for (severity, count) in [
        ("critical", open.critical),
        ("warning", open.warning),
        ("info", open.info),
    ] {
        let labels = before.iter().copied().chain([("severity", severity)]);
        family.sample(labels, whole(count));
    }
}

fn services(page: &mut Writer, host: &impl HostView) {
    let Some(units) = host.units() else {
        return;
    };
    // The manager is named so that another than systemd needs no other metric.
    const MANAGER: (&str, &str) = ("manager", "systemd");
    let mut family = page.own(&SERVICE_UP);
    for unit in units {
        let up = f64::from(u8::from(unit.state == "active"));
        family.sample([("name", unit.name), MANAGER], up);
    }
    let mut family = page.own(&RESTARTS);
    for unit in host.units().into_iter().flatten() {
        family.sample([("name", unit.name), MANAGER], whole(unit.restarts));
    }
}

/// Writes what the agent gave. Series come in runs of one family, in the order of the agent's dictionary;
/// sorting the runs instead of the series keeps this cheap.
fn readings(page: &mut Writer, host: &impl HostView) {
    let mut all: Vec<Reading<'_>> = Vec::with_capacity(512);
    all.extend(host.readings());
    let mut runs: Vec<&[Reading<'_>]> = all
        .chunk_by(|a, b| std::ptr::eq(a.family, b.family))
        .filter(|run| !OWN.iter().any(|own| own.0 == run[0].family.name))
        .collect();
    // Stable: runs of one name keep the dictionary's order.
    runs.sort_by(|a, b| a[0].family.name.cmp(&b[0].family.name));

    for group in runs.chunk_by(|a, b| a[0].family.name == b[0].family.name) {
        let Family { name, kind, .. } = group[0][0].family;
        // OpenMetrics names a counter's family without `_total`: that must not be another family's name.
        let taken = name.strip_suffix("_total").is_some_and(|base| {
            runs.binary_search_by(|run| run[0].family.name.as_str().cmp(base))
                .is_ok()
        });
        let kind = if taken { Kind::Untyped } else { *kind };
        let mut family = page.family(name, kind, catalog::help(name));
        for reading in group.iter().copied().flatten() {
            let names = reading.family.labels.iter().map(String::as_str);
            let values = reading.labels.iter().map(String::as_str);
            family.sample(names.zip(values), reading.value);
        }
    }
}

/// A count as a value; above 2^53 the last bits are lost, as in every Prometheus client.
#[expect(clippy::cast_precision_loss, reason = "values are f64")]
pub(super) fn whole(count: u64) -> f64 {
    count as f64
}

/// Appends families to a page in one of the text formats.
pub(super) struct Writer {
    out: Vec<u8>,
    format: Format,
}

impl Writer {
    pub(super) fn new(format: Format) -> Self {
        let out = Vec::with_capacity(PAGE_BYTES);
        Self { out, format }
    }

    /// Starts a family the aggregator makes.
    pub(super) fn own(&mut self, &Own(name, kind, help): &Own) -> FamilyWriter<'_> {
        self.family(name, kind, help)
    }

    /// Starts a family; a page has each name once.
    fn family<'w>(&'w mut self, name: &'w str, kind: Kind, help: &str) -> FamilyWriter<'w> {
        let open_metrics = self.format == Format::OpenMetrics;
        let (title, word) = match (kind, name.strip_suffix("_total")) {
            (Kind::Counter, Some(base)) if open_metrics => (base, "counter"),
            // A counter without the suffix is no counter in OpenMetrics.
            (Kind::Counter, None) | (Kind::Untyped, _) if open_metrics => (name, "unknown"),
            (Kind::Counter, _) => (name, "counter"),
            (Kind::Untyped, _) => (name, "untyped"),
            (Kind::Gauge, _) => (name, "gauge"),
        };
        let out = &mut self.out;
        out.extend_from_slice(b"# HELP ");
        out.extend_from_slice(title.as_bytes());
        out.push(b' ');
        exposition::write_help(out, help);
        out.extend_from_slice(b"\n# TYPE ");
        out.extend_from_slice(title.as_bytes());
        out.push(b' ');
        out.extend_from_slice(word.as_bytes());
        out.push(b'\n');
        FamilyWriter { out, name }
    }

    /// Ends the page.
    pub(super) fn finish(mut self) -> Vec<u8> {
        if self.format == Format::OpenMetrics {
            self.out.extend_from_slice(b"# EOF\n");
        }
        self.out
    }
}

/// Appends the samples of one family.
pub(super) struct FamilyWriter<'w> {
    out: &'w mut Vec<u8>,
    name: &'w str,
}

impl FamilyWriter<'_> {
    pub(super) fn sample<'l>(
        &mut self,
        labels: impl IntoIterator<Item = (&'l str, &'l str)>,
        value: f64,
    ) {
        let out = &mut *self.out;
        out.extend_from_slice(self.name.as_bytes());
        let mut before = b'{';
        for (name, value) in labels {
            out.push(before);
            before = b',';
            out.extend_from_slice(name.as_bytes());
            out.extend_from_slice(b"=\"");
            exposition::write_label_value(out, value);
            out.push(b'"');
        }
        if before == b',' {
            out.push(b'}');
        }
        out.push(b' ');
        exposition::write_value(out, value);
        out.push(b'\n');
    }
}
