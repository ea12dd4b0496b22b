//! A fleet of plain values for the tests of this door.

use std::{borrow::Cow, sync::Arc, time::Duration};

use muster_proto::{
    id::HostId,
    series::{Family, Kind, Scale},
    time::Timestamp,
    v1::{HostFacts, HostState, SilenceCause},
};

use super::{
    source::{
        FleetRead, Gathered, HostView, IngestTotals, OpenIncidents, Ratios, Reading, UnitView,
    },
    telling_page::{ChannelTotals, TellingTotals},
};
use crate::selector::{NumberField, Selector, Subject, TextField};

/// The aggregator's clock in these tests.
pub(super) const NOW: Timestamp = Timestamp::from_millis(1_700_000_000_000);

/// A host with everything in the open.
#[derive(Debug, Clone)]
pub(super) struct FakeHost {
    pub(super) id: HostId,
    pub(super) name: String,
    pub(super) labels: Vec<(String, String)>,
    pub(super) facts: HostFacts,
    pub(super) interval: Duration,
    pub(super) state: HostState,
    pub(super) cause: SilenceCause,
    pub(super) last_seen: Option<Timestamp>,
    pub(super) last_tick: Option<Timestamp>,
    pub(super) families: Vec<Family>,
    /// Index into `families`, label values, value.
    pub(super) series: Vec<(usize, Vec<String>, f64)>,
    pub(super) units: Option<Vec<(String, &'static str, u64)>>,
    pub(super) ratios: Ratios,
}

impl FakeHost {
    /// A live host of this name whose last sample came 2 s ago, with few series.
    pub(super) fn live(name: &str, number: u8) -> Self {
        let text = str::to_owned;
        Self {
            id: HostId::from_bytes([number; 16]),
            name: text(name),
            labels: vec![(text("role"), text("web")), (text("site"), text("fra"))],
            facts: HostFacts {
                os_id: text("debian"),
                os_version: text("12"),
                os_pretty: text("Debian GNU/Linux 12 (bookworm)"),
                kernel: text("6.1.0-18-amd64"),
                architecture: text("x86_64"),
                agent_version: text("0.1.0"),
                ..HostFacts::default()
            },
            interval: Duration::from_secs(10),
            state: HostState::Live,
            cause: SilenceCause::Unspecified,
            last_seen: Some(NOW.minus(Duration::from_secs(2))),
            last_tick: Some(NOW.minus(Duration::from_secs(3))),
            families: vec![
                family("node_load1", Kind::Gauge, &[]),
                family("node_cpu_seconds_total", Kind::Counter, &["cpu", "mode"]),
                family("node_vmstat_pgfault", Kind::Untyped, &[]),
            ],
            series: vec![
                (0, vec![], 0.25),
                (1, vec![text("0"), text("idle")], 12_345.67),
                (1, vec![text("0"), text("user")], 8.5),
                (2, vec![], 1e15),
            ],
            units: Some(vec![
                (text("nginx.service"), "active", 1),
                (text("backup.service"), "failed", 0),
            ]),
            ratios: Ratios {
                cpu: Some(0.5),
                memory: Some(0.25),
                filesystem: Some(0.75),
                pressure: None,
            },
        }
    }
}

/// A family whose raw values are its values.
pub(super) fn family(name: &str, kind: Kind, labels: &[&str]) -> Family {
    Family {
        name: name.to_owned(),
        kind,
        scale: Scale::Float,
        labels: labels.iter().copied().map(str::to_owned).collect(),
    }
}

/// What selectors are asked of: a host and the number of its incidents.
struct Asked<'a>(&'a FakeHost, u64);

impl Subject for Asked<'_> {
    fn name(&self) -> &str {
        &self.0.name
    }

    fn label(&self, key: &str) -> Option<&str> {
        let found = self.0.labels.iter().find(|(own, _)| own == key);
        found.map(|(_, value)| value.as_str())
    }

    fn text(&self, field: TextField) -> Option<Cow<'_, str>> {
        let state = super::source::state_word(self.0.state);
        (field == TextField::State).then_some(Cow::Borrowed(state))
    }

    fn number(&self, field: NumberField) -> Option<f64> {
        (field == NumberField::Incidents).then(|| super::page::whole(self.1))
    }
}

impl HostView for FakeHost {
    fn id(&self) -> HostId {
        self.id
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn labels(&self) -> impl Iterator<Item = (&str, &str)> {
        self.labels
            .iter()
            .map(|(key, value)| (key.as_str(), value.as_str()))
    }

    fn facts(&self) -> &HostFacts {
        &self.facts
    }

    fn interval(&self) -> Duration {
        self.interval
    }

    fn state(&self) -> HostState {
        self.state
    }

    fn silence_cause(&self) -> SilenceCause {
        self.cause
    }

    fn last_seen(&self) -> Option<Timestamp> {
        self.last_seen
    }

    fn last_tick(&self) -> Option<Timestamp> {
        self.last_tick
    }

    fn clock_offset_ms(&self) -> Option<i64> {
        Some(-125)
    }

    fn certificate_not_after(&self) -> Option<Timestamp> {
        Some(NOW.plus(Duration::from_secs(86_400)))
    }

    fn readings(&self) -> impl Iterator<Item = Reading<'_>> {
        self.series.iter().map(|(family, labels, value)| Reading {
            family: &self.families[*family],
            labels,
            value: *value,
        })
    }

    fn units(&self) -> Option<impl Iterator<Item = UnitView<'_>>> {
        let view = |unit: &'static str, name, restarts| UnitView {
            name,
            state: unit,
            restarts,
        };
        let units = self.units.as_ref()?;
        Some(
            units
                .iter()
                .map(move |(name, state, restarts)| view(state, name, *restarts)),
        )
    }

    fn anomaly_score(&self) -> Option<f64> {
        Some(0.125)
    }

    fn anomalies_told(&self) -> (f64, f64) {
        (3.0, 2.0)
    }

    fn ratios(&self) -> Ratios {
        self.ratios
    }

    fn matches(&self, selector: &Selector, incidents: OpenIncidents) -> bool {
        selector.matches(&Asked(self, incidents.count()))
    }
}

/// The fleet.
#[derive(Debug, Clone, Default)]
pub(super) struct FakeFleet {
    pub(super) hosts: Arc<Vec<FakeHost>>,
    pub(super) missing: Vec<String>,
}

impl FakeFleet {
    pub(super) fn of(hosts: impl IntoIterator<Item = FakeHost>) -> Self {
        Self {
            hosts: Arc::new(hosts.into_iter().collect()),
            missing: Vec::new(),
        }
    }
}

impl FleetRead for FakeFleet {
    type Host = FakeHost;

    async fn each<T, F>(&self, read: F) -> Gathered<T>
    where
        T: Send + 'static,
        F: Fn(&FakeHost, Timestamp) -> Option<T> + Clone + Send + Sync + 'static,
    {
        Gathered {
            items: self
                .hosts
                .iter()
                .filter_map(|host| read(host, NOW))
                .collect(),
            missing: self.missing.clone(),
        }
    }

    async fn host<T, F>(&self, name_or_id: &str, read: F) -> Option<T>
    where
        T: Send + 'static,
        F: FnOnce(&FakeHost, Timestamp) -> T + Send + 'static,
    {
        let is_meant =
            |host: &&FakeHost| host.name == name_or_id || host.id.to_string() == name_or_id;
        self.hosts.iter().find(is_meant).map(|host| read(host, NOW))
    }

    fn totals(&self) -> IngestTotals {
        IngestTotals {
            frames_stored: 1_000,
            connections: vec![("uplink", "certificate", 3)],
            frames_rejected: vec![("future", 2), ("damaged", 0)],
            telling: TellingTotals {
                works: true,
                channels: vec![ChannelTotals {
                    name: "oncall".to_owned(),
                    waiting: 3,
                    oldest_seconds: 90.5,
                    ended: [("delivered", 12), ("held_back", 0), ("given_up", 1)],
                }],
                events_left_out: [("unsound", 0), ("too_many", 4), ("overflow", 0)],
                groups_shifted: 1,
                ..TellingTotals::default()
            },
            ..IngestTotals::default()
        }
    }

    fn open_incidents(&self, _: HostId) -> OpenIncidents {
        OpenIncidents {
            warning: 1,
            ..OpenIncidents::default()
        }
    }
}
