//! The running fleet behind the door: the one implementation of [`FleetRead`] outside tests.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering},
    time::Duration,
};

use muster_proto::{
    id::HostId,
    time::{Clock, Timestamp},
    v1::{HostFacts, HostState as State, RejectReason as Reason, SilenceCause},
};

use super::source::{
    FleetRead, Gathered, HostView, IngestTotals, OpenIncidents, Ratios, Reading, UnitView,
};
use super::{history_page::HistoryTotals, telling_page::TellingTotals};
use crate::{
    detect::Severity,
    events::EventsHealth,
    fleet::{Fleet, HostState, Liveness, ReadContext, start::History},
    incident::Incidents,
    journal::JournalHealth,
    listen::DoorCounters,
    notify::{Books, Told},
    peers::PeerWatch,
    query::rows::Asked,
    selector::Selector,
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
    /// What the accept loops did.
    pub doors: DoorCounters,
    /// The past, if it is kept.
    pub history: Option<History>,
    /// What people were told.
    pub told: Told,
    /// How the channels stand.
    pub books: Books,
    /// How the store of events is doing.
    pub events: Arc<EventsHealth>,
    /// Groups of hosts.
    pub peers: PeerWatch,
    /// Dates.
    pub clock: Arc<dyn Clock>,
    /// Hosts by name, as far as they were asked for.
    pub names: Names,
}

/// Remembers which host bears a name. Every host is scraped by name a few times a minute: without this,
/// each scrape would go through the whole fleet.
#[derive(Debug, Clone, Default)]
pub struct Names(Arc<Mutex<HashMap<String, HostId>>>);

/// Names kept: as many as the largest fleet has hosts. Beyond, hosts have come and gone, and it starts anew.
const MAX_NAMES: usize = 100_000;

impl Names {
    fn get(&self, name: &str) -> Option<HostId> {
        self.lock().get(name).copied()
    }

    fn insert(&self, name: &str, id: HostId) {
        let mut names = self.lock();
        if names.len() >= MAX_NAMES {
            names.clear();
        }
        names.insert(name.to_owned(), id);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, HostId>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
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
        if let Some(id) = self.find_again(name_or_id).await {
            let read = move |host: &HostState, context: &ReadContext| read(host, context.now);
            return self.fleet.host(&id.to_string(), read).await;
        }
        let read = |host: &HostState, context: &ReadContext| (host.id(), read(host, context.now));
        let (id, answer) = self.fleet.host(name_or_id, read).await?;
        if name_or_id.parse::<HostId>().is_err() {
            self.names.insert(name_or_id, id);
        }
        Some(answer)
    }

    fn totals(&self) -> IngestTotals {
        let totals = self.fleet.totals();
        let rejected = self.fleet.counters().rejected_by_reason();
        IngestTotals {
            frames_stored: totals.frames_stored,
            frames_duplicate: totals.frames_duplicate,
            frames_lost: totals.frames_lost,
            frames_found: totals.frames_found,
            frames_rejected: rejected
                .map(|(reason, count)| (reason_word(reason), count))
                .collect(),
            agents_connected: totals.connected,
            series: totals.series,
            queue_bytes: self.journal.queued_bytes(),
            log_bytes: self.journal.disk_bytes.load(Ordering::Relaxed),
            log_failures: self.journal.failures.load(Ordering::Relaxed),
            stalls: totals.stalls,
            incident_changes_waiting: self.incidents.totals().waiting,
            connections: self.doors.connections(),
            history: self.history.as_ref().map(HistoryTotals::of),
            telling: TellingTotals::of(
                &self.told,
                &self.books,
                &self.events,
                &self.peers,
                self.clock.now(),
            ),
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

impl LiveFleet {
    /// The host that bore this name when it was last asked for, if it still does.
    async fn find_again(&self, name: &str) -> Option<HostId> {
        let id = self.names.get(name)?;
        let expected = name.to_owned();
        let bears = move |host: &HostState, _: &ReadContext| host.name() == expected;
        (self.fleet.host(&id.to_string(), bears).await == Some(true)).then_some(id)
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

    fn anomalies_told(&self) -> (f64, f64) {
        self.detection().told()
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
        selector.matches(&Asked {
            host: self,
            open_incidents: u32::try_from(incidents.count()).unwrap_or(u32::MAX),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use muster_proto::time::FakeClock;
    use tokio::sync::mpsc;

    use super::*;
    use crate::{
        fleet::{host::Enrolled, shard::Message},
        http::page::{Freshness, freshness},
    };

    const NOW: Timestamp = Timestamp::from_millis(1_700_000_000_000);

    fn enrolled(name: &str, number: u8) -> HostState {
        let facts = HostFacts {
            os_id: "debian".into(),
            os_version: "12".into(),
            ..HostFacts::default()
        };
        let who = Enrolled {
            id: HostId::from_bytes([number; 16]),
            name: name.into(),
            labels: BTreeMap::from([("role".into(), "web".into())]),
            facts,
            certificate_not_after: None,
        };
        HostState::new(who, NOW)
    }

    #[test]
    fn an_enrolled_host_is_chosen_by_what_is_known_of_it_and_has_no_page_yet() {
        let host = enrolled("web-01", 7);
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
            let chosen = HostView::matches(&host, &parsed, incidents);
            assert_eq!(chosen, expected, "{selector}");
        }
        assert!(matches!(freshness(&host, NOW), Freshness::Stale(_)));
        assert!(HostView::units(&host).is_none());
    }

    /// A shard that answers readers; an `Upsert` replaces all of its hosts by one.
    fn shard(mut hosts: HashMap<HostId, HostState>) -> mpsc::Sender<Message> {
        let (sender, mut inbox) = mpsc::channel(8);
        tokio::spawn(async move {
            while let Some(message) = inbox.recv().await {
                match message {
                    Message::Read(reader) => reader(&hosts, &ReadContext { now: NOW }),
                    Message::Upsert(who) => {
                        hosts = HashMap::from([(who.id, HostState::new(*who, NOW))]);
                    }
                    _ => {}
                }
            }
        });
        sender
    }

    #[tokio::test]
    async fn a_name_that_was_found_once_is_not_taken_for_granted() {
        let old = enrolled("web-01", 1);
        let fleet = LiveFleet {
            fleet: Fleet::new(
                vec![shard(HashMap::from([(old.id(), old)]))],
                Arc::default(),
            ),
            journal: Arc::default(),
            incidents: Incidents::default(),
            history: None,
            doors: DoorCounters::default(),
            told: Told::default(),
            books: Books::default(),
            events: Arc::default(),
            peers: PeerWatch::default(),
            clock: Arc::new(FakeClock::at(NOW)),
            names: Names::default(),
        };
        let id_of = async |name: &str| {
            let found = fleet.host(name, |host, now| (host.id(), now)).await;
            found.map(|(id, now)| {
                assert_eq!(now, NOW);
                id.as_bytes()[0]
            })
        };
        assert_eq!(id_of("web-01").await, Some(1));
        assert_eq!(id_of("web-01").await, Some(1));
        assert_eq!(id_of(&"01".repeat(16)).await, Some(1));
        assert_eq!(id_of("web-02").await, None);
        assert_eq!(
            fleet.names.lock().len(),
            1,
            "ids and unknown names are not kept"
        );

        // The host was replaced by another one under the same name.
        let id = HostId::from_bytes([2; 16]);
        let who = Enrolled {
            id,
            name: "web-01".into(),
            labels: BTreeMap::new(),
            facts: HostFacts::default(),
            certificate_not_after: None,
        };
        assert!(fleet.fleet.upsert(who).await);
        assert_eq!(id_of("web-01").await, Some(2));
        assert_eq!(id_of("web-01").await, Some(2));
    }
}
