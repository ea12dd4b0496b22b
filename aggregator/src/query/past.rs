//! The `Past` service at the operators' door: the fleet as it was at a moment.
//!
//! Who was there comes from the control store, what was open from the record of incidents, what was measured from
//! history ([`crate::history::then`]), and what had happened from the events. A question has a place among those that
//! history works on and the same bounds; whoever goes away ends the work. What is not kept over time is named in the
//! answer and left out, never filled with what is now: names and labels alone are those of now, and said to be.

use std::{
    borrow::Cow,
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use muster_proto::{
    id::HostId,
    limits::MAX_OPERATOR_MESSAGE_BYTES,
    time::Timestamp,
    v1::{
        self,
        past_server::{Past, PastServer},
    },
};
use tonic::{Request, Response, Status};

use super::{
    ask::{count, limit, parse_names, parse_selector, parse_severity, store_failed},
    glance::{HostUnits, group_services, state_counts, version_counts, worst, worst_of},
    history::{BEHIND, HistoryService, Labelled, refused},
    order::{self, Order},
    rows,
    service::incident_row,
};
use crate::{
    chain,
    control::{Host, INCIDENTS_KEPT_FOR, Incident},
    events::{Choice, Events},
    fleet::{Derived, host::RECENT_FIELDS},
    history::{
        GiveUp, HistoryError, SampleStore as _, StoreStats, Tier,
        then::{self, Found, Heard, Question, Seen, What},
    },
    notify::Told,
    selector::{NumberField, Subject, TextField, pattern::Pattern},
};

/// Longest work for one question: the door waits for no answer longer than a minute.
const WORK: Duration = Duration::from_secs(50);

/// Largest question: a few thousand names.
const MAX_QUESTION_BYTES: usize = 4 * 1024 * 1024;

/// An operator's clock may be this far ahead.
const AHEAD: Duration = Duration::from_secs(60);

/// How far before the moment hosts are looked for, by the tier that is kept of then: long enough for two points.
const BACK_MS: [i64; 3] = [5 * 60_000, 15 * 60_000, 46 * 60_000];

/// A host that has joined this lately need not have been heard.
const JOINING: Duration = Duration::from_secs(60);

/// Events of a host that are shown with it.
const EVENTS: usize = 5;

/// The rule whose incidents tell that a host was silent.
const SILENT: &str = "host_silent";

/// What of a host is not kept over time.
const UNKNOWN_OF_ROW: &[&str] = &["anomaly_score", "silence_cause"];
const UNKNOWN_OF_HOST: &[&str] = &[
    "anomaly_score",
    "silence_cause",
    "books",
    "certificate_expires_ms",
    "checks",
    "clock_offset_ms",
];
const UNKNOWN_OF_SUMMARY: &[&str] = &["frames_dropped", "told_per_host_week"];
const UNKNOWN_OF_INCIDENT: &[&str] = &["page", "hosts", "quiet", "flapping", "told_ms"];
const UNKNOWN_OF_SERVICE: &[&str] = &["since_ms"];
/// What is only known as it is now.
const OF_NOW: &[&str] = &["name", "labels"];

/// Answers operators about moments.
#[derive(Clone)]
pub struct PastService {
    history: HistoryService,
    events: Events,
    fleet_name: String,
}

/// A moment that can be asked about.
struct Moment {
    at: Timestamp,
    back_ms: i64,
}

/// Who was there and what was open.
struct Fleet {
    hosts: Vec<Host>,
    open: Vec<Incident>,
    missing: Vec<String>,
}

/// A host at a moment.
struct Was {
    host: Host,
    row: v1::HostRow,
    seen: Option<Seen>,
}

/// Tells whoever works that nobody waits any more.
struct Waiting(GiveUp);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.now();
    }
}

impl PastService {
    /// Reads what this service reads, and these events.
    #[must_use]
    pub fn new(history: HistoryService, events: Events, fleet_name: String) -> Self {
        Self {
            history,
            events,
            fleet_name,
        }
    }

    /// As a tonic service with its limits. The transport must give each request its [`crate::listen::Peer`].
    #[must_use]
    pub fn into_server(self) -> PastServer<Self> {
        PastServer::new(self)
            .max_decoding_message_size(MAX_QUESTION_BYTES)
            .max_encoding_message_size(MAX_OPERATOR_MESSAGE_BYTES)
    }

    /// The moment that is asked about, if anything is kept of then.
    fn moment(&self, at_ms: i64) -> Result<Moment, Status> {
        let store = &self.history.history()?.store;
        let now = self.history.clock.now();
        let at = self.past(at_ms)?;
        let stats = store.stats();
        let kept = Tier::ALL.map(|tier| store.config().keep_ms(tier));
        let kept = kept.into_iter().max().unwrap_or(0);
        let begins = begin(&stats).max(now.as_millis().saturating_sub(kept));
        if at.as_millis() < begins {
            return Err(Status::failed_precondition(format!(
                "nothing is kept of {at}: history begins at {} (see muster history --status)",
                Timestamp::from_millis(begins)
            )));
        }
        Ok(Moment {
            at,
            back_ms: BACK_MS[tier_of(&stats, at.as_millis()) as usize],
        })
    }

    /// A moment that has been.
    fn past(&self, at_ms: i64) -> Result<Timestamp, Status> {
        let now = self.history.clock.now();
        let asked = Timestamp::from_millis(at_ms);
        if asked > now.plus(AHEAD) {
            return Err(Status::invalid_argument(format!(
                "{asked} is still to come: only what was can be told"
            )));
        }
        Ok(asked.min(now))
    }

    async fn fleet(&self, at: Timestamp) -> Result<Fleet, Status> {
        let hosts = self.history.control.hosts().await;
        let mut hosts = hosts.map_err(|error| store_failed(&error))?;
        hosts.retain(|host| host.was_there(at));
        let mut missing = Vec::new();
        let open = match self.history.control.incidents_at(at).await {
            Ok(open) => open,
            Err(error) => {
                // What was measured is known all the same.
                let _said = store_failed(&error);
                missing.push("incidents".to_owned());
                Vec::new()
            }
        };
        Ok(Fleet {
            hosts,
            open,
            missing,
        })
    }

    /// Works on a question for as long as somebody waits for it, and not too long.
    async fn read(&self, moment: &Moment, hosts: Vec<HostId>, what: What) -> Result<Found, Status> {
        let history = self.history.history()?;
        let place = self.history.place().await?;
        let store = Arc::clone(&history.store);
        let waiting = Waiting(GiveUp::default());
        let give_up = waiting.0.clone();
        let (at, back_ms) = (moment.at.as_millis(), moment.back_ms);
        let work = tokio::task::spawn_blocking(move || {
            // Others wait until the work is over, not until nobody waits for it.
            let _place = place;
            then::then(&Question {
                store: &*store,
                hosts: &hosts,
                at,
                back_ms,
                what,
                max_points: store.config().max_points,
                give_up,
            })
        });
        let found = match tokio::time::timeout(WORK, work).await {
            Err(_) | Ok(Ok(Err(HistoryError::GivenUp))) => {
                return Err(Status::deadline_exceeded(format!(
                    "the question takes longer than {} s; ask for fewer hosts",
                    WORK.as_secs()
                )));
            }
            Ok(Err(_)) => return Err(Status::internal("the history did not answer")),
            Ok(Ok(Err(error))) => return Err(refused(&error)),
            Ok(Ok(Ok(found))) => found,
        };
        let mut found = found;
        let age = self.history.clock.now().since(moment.at);
        if self.history.is_behind(history) && age < Duration::from_secs(86_400) {
            found.missing.push(BEHIND.to_owned());
        }
        Ok(found)
    }

    /// The hosts that a selector and names choose, as they were.
    async fn hosts(
        &self,
        moment: &Moment,
        selector: &str,
        names: &[String],
        what: What,
    ) -> Result<(Vec<Was>, Fleet, v1::PastReach), Status> {
        let selector = parse_selector(selector)?;
        let names = parse_names(names)?;
        let mut fleet = self.fleet(moment.at).await?;
        let lasting = selector.of_labels();
        let chosen = |host: &Host| named(&names, host) && lasting.matches(&Labelled(host));
        let chosen: Vec<Host> = fleet
            .hosts
            .iter()
            .filter(|host| chosen(host))
            .cloned()
            .collect();
        // What is asked of a quantity needs the row, whatever else is.
        let what = match what {
            What::Units if lasting != selector => What::RowAndUnits,
            what => what,
        };
        let ids = chosen.iter().map(|host| host.host_id).collect();
        let mut found = self.read(moment, ids, what).await?;
        let whole = found.missing.is_empty();
        let mut reach = reach(&found, UNKNOWN_OF_ROW);
        fleet.missing.append(&mut found.missing);
        let mut was = Vec::with_capacity(chosen.len());
        let open = by_host(&fleet.open);
        for host in chosen {
            let seen = found.hosts.remove(&host.host_id);
            let open = open.get(&host.host_id).map_or(&[][..], |open| &open[..]);
            let row = row(&host, seen.as_ref(), open, moment.at, whole);
            if !selector.matches(&Then {
                row: &row,
                host: &host,
            }) {
                continue;
            }
            if seen.is_none() {
                reach.hosts_without_samples += 1;
            }
            was.push(Was { host, row, seen });
        }
        Ok((was, fleet, reach))
    }

    /// One host that was there, by name or id.
    async fn host(&self, moment: &Moment, name: &str) -> Result<v1::HostAtResponse, Status> {
        let mut fleet = self.fleet(moment.at).await?;
        let is = |host: &Host| host.called() == name || host.host_id.to_string() == name;
        let Some(place) = fleet.hosts.iter().position(is) else {
            return Err(not_there(name, moment.at));
        };
        let host = fleet.hosts.swap_remove(place);
        let id = host.host_id;
        let mut found = self.read(moment, vec![id], What::Close).await?;
        let whole = found.missing.is_empty();
        let mut reach = reach(&found, UNKNOWN_OF_HOST);
        let mut missing = fleet.missing;
        missing.append(&mut found.missing);
        let open = fleet.open.iter().filter(|incident| incident.host_id == id);
        let open: Vec<&Incident> = open.collect();
        let seen = found.hosts.remove(&id);
        reach.hosts_without_samples = u32::from(seen.is_none());
        let row = row(&host, seen.as_ref(), &open, moment.at, whole);
        let mut detail = match &seen {
            Some(seen) if seen.heard != Heard::Silent => close(seen),
            _ => v1::HostDetail::default(),
        };
        detail.facts = seen.as_ref().map(facts);
        detail.incidents = open
            .into_iter()
            .map(|open| incident_row(open.clone(), &row.name, moment.at, &Told::default()))
            .collect();
        let events = Choice {
            hosts: Some(vec![id]),
            until: Some(moment.at),
            limit: EVENTS,
            newest: true,
            ..Choice::default()
        };
        match self.events.find(events).await {
            Ok(found) => {
                let events = found.events.into_iter().map(|kept| kept.event);
                detail.events = events.collect();
            }
            Err(error) => {
                tracing::error!(error = chain(&error), "the store of events cannot be read");
                missing.push("events".to_owned());
            }
        }
        let then = (moment.at, moment.at);
        match self.history.control.doubts(Some(id), then).await {
            Ok(doubts) => detail.doubts = doubts.into_iter().map(Into::into).collect(),
            Err(error) => {
                let _said = store_failed(&error);
                missing.push("whether data is of two machines".to_owned());
            }
        }
        detail.row = Some(row);
        detail.meta = Some(meta(moment.at, missing));
        Ok(v1::HostAtResponse {
            answer: Some(detail),
            reach: Some(reach),
            removed_ms: host.removed.map(Timestamp::as_millis),
        })
    }

    async fn summary(
        &self,
        moment: &Moment,
        selector: &str,
    ) -> Result<v1::SummaryAtResponse, Status> {
        let (was, fleet, mut reach) = self.hosts(moment, selector, &[], What::Row).await?;
        reach.unknown = words(UNKNOWN_OF_SUMMARY);
        let chosen: HashSet<HostId> = was.iter().map(|was| was.host.host_id).collect();
        let of = |severity| {
            let of = fleet.open.iter().filter(|incident| {
                incident.severity == severity && chosen.contains(&incident.host_id)
            });
            count(of.count())
        };
        let newest = was.iter().filter_map(|was| was.row.last_seen_ms).max();
        let heard = || was.iter().filter_map(|was| Some((was, was.heard()?)));
        let hosts_without_services = was.len() - heard().filter(|(_, seen)| seen.has_units).count();
        let answer = v1::Summary {
            fleet_name: self.fleet_name.clone(),
            states: state_counts(was.iter().map(|was| was.row.state())),
            agent_versions: version_counts(was.iter().map(|was| was.row.agent_version.as_str())),
            incidents_critical: of(v1::Severity::Critical),
            incidents_warning: of(v1::Severity::Warning),
            incidents_info: of(v1::Severity::Info),
            newest_sample_ms: newest.map(|newest| (moment.at.as_millis() - newest).max(0)),
            worst: worst(
                heard()
                    .filter_map(|(was, seen)| worst_of(&was.row.name, &seen.derived))
                    .collect(),
            ),
            failing_services: group_services(heard().map(|(was, seen)| HostUnits {
                host: was.row.name.clone(),
                units: seen.listed.clone(),
            })),
            hosts_without_services: count(hosts_without_services),
            meta: Some(meta(moment.at, fleet.missing)),
            ..v1::Summary::default()
        };
        Ok(v1::SummaryAtResponse {
            answer: Some(answer),
            reach: Some(reach),
        })
    }

    async fn services(
        &self,
        moment: &Moment,
        question: v1::ListServicesRequest,
    ) -> Result<v1::ServicesAtResponse, Status> {
        let units = parse_names(&question.names)?;
        let host = one(question.host);
        let (was, fleet, mut reach) = self
            .hosts(moment, &question.selector, &host, What::Units)
            .await?;
        if let ([name], []) = (&host[..], &was[..]) {
            return Err(not_there(name, moment.at));
        }
        reach.unknown = words(UNKNOWN_OF_SERVICE);
        let wanted = |unit: &crate::fleet::Unit| {
            (!question.failed_only || unit.is_failing())
                && (units.is_empty() || units.iter().any(|name| name.matches(&unit.name)))
        };
        let told = was.iter().filter_map(|was| {
            let seen = was.heard().filter(|seen| seen.has_units)?;
            Some(HostUnits {
                host: was.row.name.clone(),
                units: seen
                    .listed
                    .iter()
                    .filter(|unit| wanted(unit))
                    .cloned()
                    .collect(),
            })
        });
        let without = was.len() - told.clone().count();
        Ok(v1::ServicesAtResponse {
            answer: Some(v1::ListServicesResponse {
                meta: Some(meta(moment.at, fleet.missing)),
                services: group_services(told),
                hosts_without_services: count(without),
            }),
            reach: Some(reach),
        })
    }

    async fn incidents(
        &self,
        at: Timestamp,
        question: v1::ListIncidentsRequest,
    ) -> Result<v1::IncidentsAtResponse, Status> {
        let begins = self.history.clock.now().minus(INCIDENTS_KEPT_FOR);
        if at < begins {
            return Err(Status::failed_precondition(format!(
                "nothing is kept of {at}: the record of incidents begins at {begins} at the earliest"
            )));
        }
        let severity = parse_severity(&question.severity)?;
        let selector = parse_selector(&question.selector)?;
        let host = one(question.host);
        let patterns = parse_names(&host)?;
        let (mut names, mut reach) = (HashMap::new(), v1::PastReach::default());
        let mut fleet = if selector.of_labels() == selector {
            // Who is meant does not hang on samples.
            let mut fleet = self.fleet(at).await?;
            fleet
                .hosts
                .retain(|host| named(&patterns, host) && selector.matches(&Labelled(host)));
            for host in &fleet.hosts {
                names.insert(host.host_id, host.called().to_owned());
            }
            fleet
        } else {
            let moment = self.moment(at.as_millis())?;
            let (was, fleet, of_rows) = self
                .hosts(&moment, &question.selector, &host, What::Row)
                .await?;
            reach = of_rows;
            names.extend(
                was.iter()
                    .map(|was| (was.host.host_id, was.row.name.clone())),
            );
            fleet
        };
        reach.unknown = words(UNKNOWN_OF_INCIDENT);
        reach.of_now = words(OF_NOW);
        if !fleet.missing.is_empty() && fleet.open.is_empty() {
            return Err(Status::unavailable(
                "the control store cannot be read, see the aggregator's log",
            ));
        }
        let open = std::mem::take(&mut fleet.open);
        let mut incidents: Vec<v1::IncidentRow> = open
            .into_iter()
            .filter(|incident| severity.is_none_or(|severity| severity == incident.severity))
            .filter_map(|incident| {
                let name = names.get(&incident.host_id)?;
                Some(incident_row(incident, name, at, &Told::default()))
            })
            .collect();
        let matched = count(incidents.len());
        incidents.truncate(limit(question.limit));
        Ok(v1::IncidentsAtResponse {
            answer: Some(v1::ListIncidentsResponse {
                meta: Some(meta(at, fleet.missing)),
                incidents,
                matched,
            }),
            reach: Some(reach),
        })
    }
}

impl Was {
    /// What was told of it, if it was heard.
    fn heard(&self) -> Option<&Seen> {
        self.seen
            .as_ref()
            .filter(|seen| seen.heard != Heard::Silent)
    }
}

/// A host as selectors ask it: what it was, by the labels that it has now.
struct Then<'a> {
    row: &'a v1::HostRow,
    host: &'a Host,
}

impl Subject for Then<'_> {
    fn name(&self) -> &str {
        self.host.called()
    }

    fn label(&self, key: &str) -> Option<&str> {
        self.host.labels.get(key).map(String::as_str)
    }

    fn text(&self, field: TextField) -> Option<Cow<'_, str>> {
        let text = match field {
            TextField::Name => self.host.called(),
            TextField::State => match self.row.state() {
                v1::HostState::Unspecified => "",
                v1::HostState::Joined => "joined",
                v1::HostState::Live => "live",
                v1::HostState::Late => "late",
                v1::HostState::Silent => "silent",
            },
            TextField::Os => &self.row.os,
            TextField::Agent => &self.row.agent_version,
            TextField::Kernel => &self.row.kernel,
        };
        (!text.is_empty()).then(|| text.into())
    }

    fn number(&self, field: NumberField) -> Option<f64> {
        let row = self.row;
        match field {
            NumberField::Cpu => row.cpu_ratio,
            NumberField::Mem => row.memory_ratio,
            NumberField::Disk => row.disk_ratio,
            NumberField::Load => row.load1,
            NumberField::Io => row.io_ratio,
            NumberField::Psi => row.pressure_ratio,
            NumberField::Net => order::network(row),
            NumberField::Anomaly => None,
            NumberField::Incidents => Some(f64::from(row.open_incidents)),
            NumberField::Failed => row.services_failed.map(f64::from),
        }
    }
}

fn named(names: &[Pattern], host: &Host) -> bool {
    names.is_empty()
        || names.iter().any(|name| {
            name.matches(host.called()) || name.as_literal() == Some(&host.host_id.to_string())
        })
}

/// A host that may be named or not, as a list of patterns.
fn one(host: String) -> Vec<String> {
    Some(host)
        .filter(|host| !host.is_empty())
        .into_iter()
        .collect()
}

fn not_there(name: &str, at: Timestamp) -> Status {
    Status::not_found(format!("no host that is called {name} was there at {at}"))
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn meta(at: Timestamp, missing: Vec<String>) -> v1::AnswerMeta {
    v1::AnswerMeta {
        complete: missing.is_empty(),
        missing,
        as_of_ms: at.as_millis(),
    }
}

/// The first millisecond of anything in files; 0 without files.
fn begin(stats: &StoreStats) -> i64 {
    let tiers = Tier::ALL.into_iter();
    tiers
        .filter(|tier| stats.files[*tier as usize] > 0)
        .map(|tier| stats.oldest_ms[tier as usize])
        .min()
        .unwrap_or(0)
}

/// The finest that is kept of a moment. What is in no file yet is in memory.
fn tier_of(stats: &StoreStats, at: i64) -> Tier {
    let kept = |tier: &Tier| {
        let tier = *tier as usize;
        stats.files[tier] == 0 || at >= stats.oldest_ms[tier]
    };
    match Tier::ALL.into_iter().find(kept) {
        // No samples in files, and yet roll-ups that reach further: samples are kept for a shorter time than it takes.
        Some(Tier::Raw) if stats.files[0] == 0 && begin(stats) > 0 => Tier::Minute,
        Some(tier) => tier,
        None => Tier::Quarter,
    }
}

fn by_host(open: &[Incident]) -> HashMap<HostId, Vec<&Incident>> {
    let mut by_host: HashMap<HostId, Vec<&Incident>> = HashMap::new();
    for incident in open {
        by_host.entry(incident.host_id).or_default().push(incident);
    }
    by_host
}

fn reach(found: &Found, unknown: &[&str]) -> v1::PastReach {
    v1::PastReach {
        resolution_ms: found.hosts.values().filter_map(rolled).max().unwrap_or(0),
        unknown: words(unknown),
        of_now: words(OF_NOW),
        hosts_without_samples: 0,
        points_read: found.points,
    }
}

/// The span of the roll-ups that a host's answer is made of, if it is made of such: they stand at whole minutes.
fn rolled(seen: &Seen) -> Option<i64> {
    let spacing = seen.spacing_ms()?;
    let steps = [Tier::Quarter, Tier::Minute].into_iter();
    steps
        .filter_map(Tier::step_ms)
        .find(|step| seen.tick % step == 0 && seen.before % step == 0 && spacing >= *step)
}

/// How a host stood. Silence that nobody had announced is an incident; else what its samples say counts, if all that is
/// kept could be read.
fn state(
    host: &Host,
    seen: Option<&Seen>,
    silent: Option<&Incident>,
    at: Timestamp,
    whole: bool,
) -> v1::HostState {
    if silent.is_some() {
        return v1::HostState::Silent;
    }
    match seen.map(|seen| seen.heard) {
        Some(Heard::Live) => v1::HostState::Live,
        Some(Heard::Late) => v1::HostState::Late,
        None if at.since(host.created) < JOINING => v1::HostState::Joined,
        None if !whole => v1::HostState::Unspecified,
        Some(Heard::Silent) | None => v1::HostState::Silent,
    }
}

fn row(
    host: &Host,
    seen: Option<&Seen>,
    open: &[&Incident],
    at: Timestamp,
    whole: bool,
) -> v1::HostRow {
    let silent = open.iter().find(|incident| incident.rule == SILENT);
    let mut row = v1::HostRow {
        name: host.called().to_owned(),
        host_id: host.host_id.as_bytes().to_vec(),
        state: state(host, seen, silent.copied(), at, whole).into(),
        state_since_ms: silent.map_or(0, |incident| incident.since.as_millis()),
        labels: host.labels.clone(),
        open_incidents: count(open.len()),
        ..v1::HostRow::default()
    };
    let Some(seen) = seen else { return row };
    row.last_seen_ms = Some(seen.tick);
    if seen.heard == Heard::Silent {
        return row;
    }
    let Derived {
        cpu_ratio,
        memory_ratio,
        disk_ratio,
        load1,
        io_ratio,
        network_receive_bytes_per_second,
        network_transmit_bytes_per_second,
        pressure_ratio,
        ..
    } = seen.derived;
    let failing = seen.listed.iter().filter(|unit| unit.is_failing());
    v1::HostRow {
        cpu_ratio,
        memory_ratio,
        disk_ratio,
        disk_mountpoint: seen.derived.disk_mountpoint.clone(),
        load1,
        io_ratio,
        network_receive_bytes_per_second,
        network_transmit_bytes_per_second,
        pressure_ratio,
        services: seen.has_units.then_some(seen.units),
        services_failed: seen.has_units.then(|| count(failing.count())),
        agent_version: seen.agent.clone(),
        os: seen.os.clone(),
        kernel: seen.kernel.clone(),
        interval_ms: match rolled(seen) {
            Some(_) => 0,
            None => seen
                .spacing_ms()
                .map_or(0, |ms| u32::try_from(ms).unwrap_or(0)),
        },
        series: seen.series.unwrap_or(0),
        ..row
    }
}

/// What its samples told of the machine.
fn facts(seen: &Seen) -> v1::HostFacts {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "bytes of memory, from a whole number; one beyond saturates"
    )]
    let memory_bytes = seen.memory_bytes.map_or(0, |bytes| bytes as u64);
    v1::HostFacts {
        cpus: seen.cpus,
        memory_bytes,
        kernel: seen.kernel.clone(),
        agent_version: seen.agent.clone(),
        ..v1::HostFacts::default()
    }
}

/// What one host is shown by, besides its row.
fn close(seen: &Seen) -> v1::HostDetail {
    let derived = &seen.derived;
    let recent = |field: &&str| v1::RecentSeries {
        field: (*field).to_owned(),
        values: seen
            .recent
            .iter()
            .map(|at| recent_value(at, field))
            .collect(),
    };
    let mut detail = v1::HostDetail {
        boot_time_ms: seen.boot_time.map(Timestamp::as_millis),
        filesystems: derived.filesystems.iter().map(rows::filesystem).collect(),
        cpu_modes: rows::cpu_modes(derived),
        failing_collectors: seen.failing_collectors.clone(),
        failing_services: seen
            .listed
            .iter()
            .filter(|unit| unit.is_failing())
            .map(rows::service)
            .collect(),
        recent: RECENT_FIELDS.iter().map(recent).collect(),
        ..v1::HostDetail::default()
    };
    let rates = seen.rates.iter();
    let rates = rates.map(|rated| (&*rated.metric, &*rated.device, rated.rate));
    rows::devices(rates, &mut detail);
    detail
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "seven digits are plenty for a line of bars"
)]
fn recent_value(derived: &Derived, field: &str) -> f32 {
    let value = match field {
        "cpu_ratio" => derived.cpu_ratio,
        "memory_ratio" => derived.memory_ratio,
        "disk_ratio" => derived.disk_ratio,
        "network_receive_bytes_per_second" => derived.network_receive_bytes_per_second,
        _ => derived.network_transmit_bytes_per_second,
    };
    value.unwrap_or(f64::NAN) as f32
}

/// Names without wildcards that no host had.
fn unknown_names(names: &[String], fleet: &[Host]) -> Result<Vec<String>, Status> {
    let patterns = parse_names(names)?;
    let literals = patterns.iter().filter_map(Pattern::as_literal);
    let mut unknown: BTreeSet<String> = literals.map(ToOwned::to_owned).collect();
    for host in fleet {
        unknown.remove(host.called());
        unknown.remove(&host.host_id.to_string());
    }
    Ok(unknown.into_iter().collect())
}

#[tonic::async_trait]
impl Past for PastService {
    async fn hosts_at(
        &self,
        request: Request<v1::HostsAtRequest>,
    ) -> Result<Response<v1::HostsAtResponse>, Status> {
        self.history.access.admit(&request, "HostsAt").await?;
        let request = request.into_inner();
        let moment = self.moment(request.at_ms)?;
        let question = request.question.unwrap_or_default();
        let order = Order::parse(&question.sort).map_err(Status::invalid_argument)?;
        let (was, fleet, reach) = self
            .hosts(&moment, &question.selector, &question.names, What::Row)
            .await?;
        let mut hosts: Vec<v1::HostRow> = was.into_iter().map(|was| was.row).collect();
        order.sort(&mut hosts);
        let matched = count(hosts.len());
        hosts.truncate(limit(question.limit));
        Ok(Response::new(v1::HostsAtResponse {
            answer: Some(v1::ListHostsResponse {
                unknown_names: unknown_names(&question.names, &fleet.hosts)?,
                meta: Some(meta(moment.at, fleet.missing)),
                hosts,
                matched,
            }),
            reach: Some(reach),
        }))
    }

    async fn host_at(
        &self,
        request: Request<v1::HostAtRequest>,
    ) -> Result<Response<v1::HostAtResponse>, Status> {
        self.history.access.admit(&request, "HostAt").await?;
        let request = request.into_inner();
        let moment = self.moment(request.at_ms)?;
        self.host(&moment, &request.name).await.map(Response::new)
    }

    async fn summary_at(
        &self,
        request: Request<v1::SummaryAtRequest>,
    ) -> Result<Response<v1::SummaryAtResponse>, Status> {
        self.history.access.admit(&request, "SummaryAt").await?;
        let request = request.into_inner();
        let moment = self.moment(request.at_ms)?;
        let selector = request.question.unwrap_or_default().selector;
        self.summary(&moment, &selector).await.map(Response::new)
    }

    async fn services_at(
        &self,
        request: Request<v1::ServicesAtRequest>,
    ) -> Result<Response<v1::ServicesAtResponse>, Status> {
        self.history.access.admit(&request, "ServicesAt").await?;
        let request = request.into_inner();
        let moment = self.moment(request.at_ms)?;
        let question = request.question.unwrap_or_default();
        self.services(&moment, question).await.map(Response::new)
    }

    async fn incidents_at(
        &self,
        request: Request<v1::IncidentsAtRequest>,
    ) -> Result<Response<v1::IncidentsAtResponse>, Status> {
        self.history.access.admit(&request, "IncidentsAt").await?;
        let request = request.into_inner();
        let at = self.past(request.at_ms)?;
        let question = request.question.unwrap_or_default();
        self.incidents(at, question).await.map(Response::new)
    }
}
