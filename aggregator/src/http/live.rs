//! The running fleet behind the door: the one implementation of [`FleetRead`] outside tests.

use std::{borrow::Cow, sync::Arc, time::Duration};

use muster_proto::{
    id::HostId,
    time::Timestamp,
    v1::{HostFacts, HostState as State, RejectReason as Reason, SilenceCause},
};

use super::{
    page::whole,
    source::{
        FleetRead, Gathered, HostView, IngestTotals, OpenIncidents, Ratios, Reading, UnitView,
        state_word,
    },
};
use crate::{
    fleet::{Fleet, HostState, Liveness, ReadContext, Unit, UnitState},
    journal::JournalHealth,
    selector::{NumberField, Selector, Subject, TextField},
};

/// Gives the open incidents of a host at once, from memory.
pub type IncidentsOf = dyn Fn(HostId) -> OpenIncidents + Send + Sync;

/// Handles to what the pages are made of.
#[derive(Clone)]
pub struct LiveFleet {
    /// Hosts.
    pub fleet: Fleet,
    /// The log's writer.
    pub journal: Arc<JournalHealth>,
    /// Incidents.
    pub incidents: Arc<IncidentsOf>,
}

impl FleetRead for LiveFleet {
    type Host = HostState;

    async fn each<T, F>(&self, read: F) -> Gathered<T>
    where
        T: Send + 'static,
        F: Fn(&HostState, Timestamp) -> Option<T> + Clone + Send + Sync + 'static,
    {
        let answer = self
            .fleet
            .each(move |host, context| read(host, context.now))
            .await;
        Gathered {
            items: answer.items,
            missing: answer.missing,
        }
    }

    async fn host<T, F>(&self, name_or_id: &str, read: F) -> Option<T>
    where
        T: Send + 'static,
        F: FnOnce(&HostState, Timestamp) -> T + Send + 'static,
    {
        let read = move |host: &HostState, context: &ReadContext| read(host, context.now);
        self.fleet.host(name_or_id, read).await
    }

    fn totals(&self) -> IngestTotals {
        let totals = self.fleet.totals();
        let rejected = self.fleet.counters().rejected_by_reason();
        IngestTotals {
            frames_stored: totals.frames_stored,
            frames_duplicate: totals.frames_duplicate,
            frames_lost: totals.frames_lost,
            frames_rejected: rejected
                .map(|(reason, count)| (reason_word(reason), count))
                .collect(),
            agents_connected: totals.connected,
            queue_bytes: self.journal.queued_bytes(),
        }
    }

    fn open_incidents(&self, host: HostId) -> OpenIncidents {
        (self.incidents)(host)
    }
}

/// The message's own word without its prefix, as label values are written.
fn reason_word(reason: Reason) -> &'static str {
    match reason {
        Reason::Malformed => "malformed",
        Reason::Checksum => "checksum",
        Reason::Future => "future",
        Reason::SeqConflict => "seq_conflict",
        Reason::Quota => "quota",
        Reason::NoKeyFrame => "no_key_frame",
        Reason::Unspecified => "unspecified",
    }
}

impl HostView for HostState {
    fn id(&self) -> HostId {
        self.id()
    }

    fn name(&self) -> &str {
        self.name()
    }

    fn labels(&self) -> impl Iterator<Item = (&str, &str)> {
        let labels = self.labels().iter();
        labels.map(|(key, value)| (key.as_str(), value.as_str()))
    }

    fn facts(&self) -> &HostFacts {
        self.facts()
    }

    fn interval(&self) -> Duration {
        self.interval()
    }

    fn state(&self) -> State {
        match self.liveness() {
            Liveness::Joined => State::Joined,
            Liveness::Live => State::Live,
            Liveness::Late => State::Late,
            Liveness::Silent(_) => State::Silent,
        }
    }

    fn silence_cause(&self) -> SilenceCause {
        match self.liveness() {
            Liveness::Silent(silence) => silence.to_wire(),
            Liveness::Joined | Liveness::Live | Liveness::Late => SilenceCause::Unspecified,
        }
    }

    fn last_seen(&self) -> Option<Timestamp> {
        self.last_seen()
    }

    fn last_tick(&self) -> Option<Timestamp> {
        self.last_tick()
    }

    fn clock_offset_ms(&self) -> Option<i64> {
        self.clock_offset_ms()
    }

    fn certificate_not_after(&self) -> Option<Timestamp> {
        self.certificate_not_after()
    }

    fn readings(&self) -> impl Iterator<Item = Reading<'_>> {
        self.series().map(|series| Reading {
            family: series.family,
            labels: series.labels,
            value: series.value,
        })
    }

    fn units(&self) -> Option<impl Iterator<Item = UnitView<'_>>> {
        let units = self.has_units().then(|| self.units())?;
        Some(units.iter().map(|unit| UnitView {
            name: &unit.name,
            state: unit.state.as_str(),
            restarts: unit.restarts,
        }))
    }

    fn anomaly_score(&self) -> Option<f64> {
        self.detection().score()
    }

    fn ratios(&self) -> Ratios {
        let derived = self.derived();
        Ratios {
            cpu: derived.cpu_ratio,
            memory: derived.memory_ratio,
            filesystem: derived.disk_ratio,
            pressure: derived.pressure_ratio,
        }
    }

    fn matches(&self, selector: &Selector, incidents: OpenIncidents) -> bool {
        let incidents = incidents.count();
        selector.matches(&Asked {
            host: self,
            incidents,
        })
    }
}

/// A host as selectors ask it.
struct Asked<'a> {
    host: &'a HostState,
    incidents: u64,
}

impl Subject for Asked<'_> {
    fn name(&self) -> &str {
        self.host.name()
    }

    fn label(&self, key: &str) -> Option<&str> {
        self.host.labels().get(key).map(String::as_str)
    }

    fn text(&self, field: TextField) -> Option<Cow<'_, str>> {
        let facts = self.host.facts();
        let os = || format!("{} {}", facts.os_id, facts.os_version);
        let text = match field {
            TextField::Name => return None,
            TextField::State => Cow::Borrowed(state_word(self.host.state())),
            TextField::Os => Cow::Owned(os().trim().to_owned()),
            TextField::Agent => Cow::Borrowed(facts.agent_version.as_str()),
            TextField::Kernel => Cow::Borrowed(facts.kernel.as_str()),
        };
        (!text.is_empty()).then_some(text)
    }

    fn number(&self, field: NumberField) -> Option<f64> {
        let derived = self.host.derived();
        let failed = |units: &[Unit]| {
            let failed = units.iter().filter(|unit| unit.state == UnitState::Failed);
            whole(failed.count() as u64)
        };
        match field {
            NumberField::Cpu => derived.cpu_ratio,
            NumberField::Mem => derived.memory_ratio,
            NumberField::Disk => derived.disk_ratio,
            NumberField::Load => derived.load1,
            NumberField::Io => derived.io_ratio,
            NumberField::Psi => derived.pressure_ratio,
            NumberField::Net => derived
                .network_receive_bytes_per_second
                .zip(derived.network_transmit_bytes_per_second)
                .map(|(received, sent)| received + sent),
            NumberField::Anomaly => self.host.detection().score(),
            NumberField::Incidents => Some(whole(self.incidents)),
            NumberField::Failed => self.host.has_units().then(|| failed(self.host.units())),
        }
    }
}
