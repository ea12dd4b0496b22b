//! The running fleet behind the door: the one implementation of [`FleetRead`] outside tests.

use std::{
    borrow::Cow,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

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
    detect::Severity,
    fleet::{Fleet, HostState, Liveness, ReadContext, Unit, UnitState},
    incident::Incidents,
    journal::JournalHealth,
    selector::{NumberField, Selector, Subject, TextField},
};

/// Handles to what the pages are made of.
#[derive(Clone)]
pub struct LiveFleet {
    /// Hosts.
    pub fleet: Fleet,
    /// The log's writer.
    pub journal: Arc<JournalHealth>,
    /// Incidents.
    pub incidents: Incidents,
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
            log_bytes: self.journal.disk_bytes.load(Ordering::Relaxed),
            log_failures: self.journal.failures.load(Ordering::Relaxed),
            incident_changes_waiting: self.incidents.totals().waiting,
        }
    }

    fn open_incidents(&self, host: HostId) -> OpenIncidents {
        let mut open = OpenIncidents::default();
        for (severity, count) in self.incidents.open_by_severity(host) {
            let of_severity = match severity {
                Severity::Critical => &mut open.critical,
                Severity::Warning => &mut open.warning,
                Severity::Info => &mut open.info,
            };
            *of_severity = u64::from(count);
        }
        open
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::{
        fleet::host::Enrolled,
        http::page::{Freshness, freshness},
    };

    #[test]
    fn an_enrolled_host_is_chosen_by_what_is_known_of_it_and_has_no_page_yet() {
        let now = Timestamp::from_millis(1_700_000_000_000);
        let facts = HostFacts {
            os_id: "debian".into(),
            os_version: "12".into(),
            ..HostFacts::default()
        };
        let who = Enrolled {
            id: HostId::from_bytes([7; 16]),
            name: "web-01".into(),
            labels: BTreeMap::from([("role".into(), "web".into())]),
            facts,
            certificate_not_after: None,
        };
        let host = HostState::new(who, now);
        for (selector, expected) in [
            ("", true),
            ("role=web,state=joined", true),
            ("name=web-01", true),
            ("os=debian*", true),
            ("state=live", false),
            ("agent", false),
            ("cpu>=0", false),
            ("failed>=0", false),
            ("incidents>1", true),
            ("incidents>2", false),
        ] {
            let parsed = Selector::parse(selector).expect("a selector");
            let incidents = OpenIncidents {
                warning: 2,
                ..OpenIncidents::default()
            };
            assert_eq!(
                HostView::matches(&host, &parsed, incidents),
                expected,
                "{selector}"
            );
        }
        assert!(matches!(freshness(&host, now), Freshness::Stale(_)));
        assert!(HostView::units(&host).is_none());
    }
}
