//! What the HTTP door asks of the fleet: the seam between its pages and the shards.
//!
//! The fleet's handle is one implementation, the tests' fleet of plain values the other. Pages are written
//! inside a shard's task from a borrowed host, so nothing of a host is copied to be printed.

use std::{future::Future, time::Duration};

use muster_proto::{
    id::HostId,
    series::Family,
    time::Timestamp,
    v1::{HostFacts, HostState, SilenceCause},
};

use super::{history_page::HistoryTotals, telling_page::TellingTotals};
use crate::selector::Selector;

/// One series of a host with its value now.
#[derive(Debug, Clone, Copy)]
pub struct Reading<'a> {
    /// Metric, type and label names, as the agent declared them.
    pub family: &'a Family,
    /// One value for each label name.
    pub labels: &'a [String],
    /// Value in base units.
    pub value: f64,
}

/// One unit of a host's service manager.
#[derive(Debug, Clone, Copy)]
pub struct UnitView<'a> {
    /// Name, e.g. `nginx.service`.
    pub name: &'a str,
    /// `active`, `activating`, `deactivating`, `inactive` or `failed`: one of [`UNIT_STATES`].
    pub state: &'static str,
    /// Automatic restarts as the service manager counts them.
    pub restarts: u64,
}

/// Every state a unit can be in.
pub const UNIT_STATES: [&str; 5] = ["active", "activating", "deactivating", "failed", "inactive"];

/// Ratios of a host that the fleet's page sums up, 0 to 1; `None` where the host does not say.
#[derive(Debug, Clone, Copy, Default)]
pub struct Ratios {
    /// Share of CPU time busy.
    pub cpu: Option<f64>,
    /// Share of memory in use.
    pub memory: Option<f64>,
    /// Share in use of the fullest filesystem.
    pub filesystem: Option<f64>,
    /// Worst pressure stall.
    pub pressure: Option<f64>,
}

/// A host as its pages need it.
pub trait HostView {
    /// Identity.
    fn id(&self) -> HostId;
    /// Name for people.
    fn name(&self) -> &str;
    /// All labels, sorted by key.
    fn labels(&self) -> impl Iterator<Item = (&str, &str)>;
    /// What the agent said of its host on connecting.
    fn facts(&self) -> &HostFacts;
    /// Interval between ticks.
    fn interval(&self) -> Duration;
    /// Liveness as the aggregator judges it.
    fn state(&self) -> HostState;
    /// Why it is silent, as far as that is known.
    fn silence_cause(&self) -> SilenceCause;
    /// When the aggregator received the last frame, by the aggregator's clock.
    fn last_seen(&self) -> Option<Timestamp>;
    /// The host's own time of the values: a host that sends what it held back is heard now and tells of
    /// then.
    fn last_tick(&self) -> Option<Timestamp>;
    /// Host's clock less the aggregator's.
    fn clock_offset_ms(&self) -> Option<i64>;
    /// End of the validity of the agent's certificate.
    fn certificate_not_after(&self) -> Option<Timestamp>;
    /// Series that have a value now, in any order.
    fn readings(&self) -> impl Iterator<Item = Reading<'_>>;
    /// Units; `None` when the host reports no service manager.
    fn units(&self) -> Option<impl Iterator<Item = UnitView<'_>>>;
    /// Host score: from 1 on it is an anomaly. `None` while the score is unknown.
    fn anomaly_score(&self) -> Option<f64>;
    /// Alerts of the host score, and weeks in which there was one, of late.
    fn anomalies_told(&self) -> (f64, f64);
    /// What the fleet's page sums up.
    fn ratios(&self) -> Ratios;
    /// Whether the selector chooses this host, which has so many open incidents.
    fn matches(&self, selector: &Selector, incidents: OpenIncidents) -> bool;
}

/// Open incidents by severity.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OpenIncidents {
    /// Someone must act now.
    pub critical: u64,
    /// Someone must act in working hours.
    pub warning: u64,
    /// Good to know.
    pub info: u64,
}

impl OpenIncidents {
    /// All of them.
    #[must_use]
    pub const fn count(self) -> u64 {
        self.critical + self.warning + self.info
    }
}

/// Figures of the aggregator's own work; counters since it started.
#[derive(Debug, Clone, Default)]
pub struct IngestTotals {
    /// Frames durable in the log.
    pub frames_stored: u64,
    /// Frames that came more than once.
    pub frames_duplicate: u64,
    /// Frames agents said they had to give up.
    pub frames_lost: u64,
    /// Of these, and of those before its start, frames that came after all.
    pub frames_found: u64,
    /// Frames refused, by reason. Reasons are a closed set, all of them present.
    pub frames_rejected: Vec<(&'static str, u64)>,
    /// Agents connected now.
    pub agents_connected: u64,
    /// Series held of all hosts.
    pub series: u64,
    /// Bytes received and not yet durable.
    pub queue_bytes: u64,
    /// Size of the log on disk.
    pub log_bytes: u64,
    /// Commits to the log that failed.
    pub log_failures: u64,
    /// Times in which it stood still, or its clock jumped.
    pub stalls: u64,
    /// Incidents whose last change waits for the store.
    pub incident_changes_waiting: u64,
    /// Connections by door and outcome, both closed sets.
    pub connections: Vec<(&'static str, &'static str, u64)>,
    /// History, if there is one.
    pub history: Option<HistoryTotals>,
    /// Telling people, events, groups of hosts.
    pub telling: TellingTotals,
}

/// Answers of all shards together.
#[derive(Debug, Clone)]
pub struct Gathered<T> {
    /// In no order.
    pub items: Vec<T>,
    /// Shards that did not answer.
    pub missing: Vec<String>,
}

/// A fleet that can be read. Cloning gives another handle to the same fleet.
pub trait FleetRead: Clone + Send + Sync + 'static {
    /// Its hosts.
    type Host: HostView;

    /// Runs `read` on every host with the aggregator's wall clock; hosts for which it gives `None` are
    /// left out.
    fn each<T, F>(&self, read: F) -> impl Future<Output = Gathered<T>> + Send
    where
        T: Send + 'static,
        F: Fn(&Self::Host, Timestamp) -> Option<T> + Clone + Send + Sync + 'static;

    /// Runs `read` on the host of this name, or of this id in 32 digits. `None` if there is none.
    fn host<T, F>(&self, name_or_id: &str, read: F) -> impl Future<Output = Option<T>> + Send
    where
        T: Send + 'static,
        F: FnOnce(&Self::Host, Timestamp) -> T + Send + 'static;

    /// Counters of ingest.
    fn totals(&self) -> IngestTotals;

    /// Open incidents of a host. Called inside shards: must not wait.
    fn open_incidents(&self, host: HostId) -> OpenIncidents;
}

/// The word for a state, on pages and in selectors.
#[must_use]
pub fn state_word(state: HostState) -> &'static str {
    match state {
        HostState::Joined => "joined",
        HostState::Live => "live",
        HostState::Late => "late",
        HostState::Silent => "silent",
        HostState::Unspecified => "unknown",
    }
}
