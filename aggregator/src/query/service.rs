//! The `Operator` service: each method admits its caller, reads, orders and says how complete it is.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use muster_agent::suggest;
use muster_proto::{
    id::HostId,
    limits::MAX_OPERATOR_MESSAGE_BYTES,
    time::{Clock, Timestamp},
    v1::{
        self,
        operator_server::{Operator, OperatorServer},
    },
};
use tonic::{Request, Response, Status};

use super::{
    access::{Access, Caller},
    ask::{count, limit, not_written, parse_names, parse_selector, parse_severity, store_failed},
    glance::{Glance, HostUnits, group_services, state_counts, told_rate, version_counts, worst},
    order::Order,
    rows::{self, Asked},
};
use crate::{
    control::{AuditFilter, Control, Incident, IncidentFilter, Removal, Removed},
    detect::peers::Shift,
    fleet::{Answer, Fleet, HostState},
    incident::Incidents,
    notify::{Told, teller::Standing},
    peers::PeerWatch,
    selector::pattern::Pattern,
};

/// Largest question: a few thousand names.
const MAX_QUESTION_BYTES: usize = 4 * 1024 * 1024;
/// More keystrokes away than this is another host's name, not a slip.
const MOST_SLIPS: usize = 2;

/// Lines of the audit log unless the caller says otherwise, and at most.
const AUDIT_LINES: u32 = 100;
const MAX_AUDIT_LINES: u32 = 10_000;

/// What the aggregator says of itself.
pub struct About {
    /// The fleet's name for people.
    pub fleet_name: String,
    /// When this process started.
    pub started: Timestamp,
    /// End of life of the certificate it presents now.
    pub certificate_not_after: Box<dyn Fn() -> Option<Timestamp> + Send + Sync>,
    /// What is wrong with it, in words for people; empty when nothing is.
    pub problems: Box<dyn Fn() -> Vec<String> + Send + Sync>,
    /// How it is scraped.
    pub http: HttpDoor,
    /// False alerts a host-week that host scores may be listed for.
    pub budget_per_host_week: f64,
}

/// The door for scrapes and discovery, as those who configure Prometheus need to know it.
#[derive(Debug, Clone)]
pub struct HttpDoor {
    /// `host:port` as configured for readers, else as bound.
    pub address: String,
    /// Whether it speaks TLS.
    pub tls: bool,
    /// Whether readers present a bearer token.
    pub token_needed: bool,
}

/// Answers operators.
#[derive(Clone)]
pub struct OperatorService {
    fleet: Fleet,
    control: Control,
    access: Access,
    about: Arc<About>,
    told: Told,
    /// Hears of hosts that are removed.
    incidents: Incidents,
    peers: PeerWatch,
    clock: Arc<dyn Clock>,
}

/// Open incidents of each host that has some.
type OpenCounts = Arc<HashMap<HostId, u32>>;

/// What is open now.
struct Open {
    counts: OpenCounts,
    incidents: Vec<Incident>,
    /// What could not be read.
    missing: Vec<String>,
}

impl OperatorService {
    /// Reads from this fleet and this store.
    #[must_use]
    pub fn new(fleet: Fleet, control: Control, about: About, clock: Arc<dyn Clock>) -> Self {
        Self {
            access: Access::new(control.clone(), Arc::clone(&clock)),
            fleet,
            control,
            about: Arc::new(about),
            told: Told::default(),
            incidents: Incidents::default(),
            peers: PeerWatch::default(),
            clock,
        }
    }

    /// The same, which tells these incidents of hosts that are removed.
    #[must_use]
    pub fn with_incidents(self, incidents: Incidents) -> Self {
        Self { incidents, ..self }
    }

    /// The same, which knows also what people were told.
    #[must_use]
    pub fn with_told(self, told: Told) -> Self {
        Self { told, ..self }
    }

    /// The same, which knows also how groups of hosts stand.
    #[must_use]
    pub fn with_peers(self, peers: PeerWatch) -> Self {
        Self { peers, ..self }
    }

    /// As a tonic service with its limits. The transport must give each request its
    /// [`crate::listen::Peer`].
    #[must_use]
    pub fn into_server(self) -> OperatorServer<Self> {
        OperatorServer::new(self)
            .max_decoding_message_size(MAX_QUESTION_BYTES)
            .max_encoding_message_size(MAX_OPERATOR_MESSAGE_BYTES)
    }

    pub(super) fn meta(&self, missing: Vec<String>) -> v1::AnswerMeta {
        v1::AnswerMeta {
            complete: missing.is_empty(),
            missing,
            as_of_ms: self.clock.now().as_millis(),
        }
    }

    /// Runs `f` on the hosts that are chosen, with their open incidents.
    async fn each<T: Send + 'static>(
        &self,
        selector: &str,
        names: &[String],
        open: &OpenCounts,
        f: impl Fn(&HostState, u32) -> Option<T> + Send + Sync + Clone + 'static,
    ) -> Result<Answer<T>, Status> {
        let selector = parse_selector(selector)?;
        let names = parse_names(names)?;
        let open = Arc::clone(open);
        let answer = self
            .fleet
            .each(move |host, _| {
                let named = names.is_empty() || names.iter().any(|name| name.matches(host.name()));
                let open_incidents = open.get(&host.id()).copied().unwrap_or(0);
                let asked = Asked {
                    host,
                    open_incidents,
                };
                if named && selector.matches(&asked) {
                    return f(host, open_incidents);
                }
                None
            })
            .await;
        Ok(answer)
    }

    /// Judges callers.
    pub(super) fn access(&self) -> &Access {
        &self.access
    }

    /// Runs `f` on the hosts that a selector and a host's name or pattern choose, with these patterns. `None` of
    /// it stands for a host that has nothing to tell now.
    pub(super) async fn on_hosts<T: Send + 'static>(
        &self,
        selector: &str,
        host: &str,
        names: &[String],
        f: impl Fn(&HostState, &[Pattern]) -> Option<T> + Send + Sync + Clone + 'static,
    ) -> Result<Answer<Option<T>>, Status> {
        let names = parse_names(names)?;
        let wanted = self.only(host).await?;
        let Open {
            counts,
            mut missing,
            ..
        } = self.open().await;
        let mut answer = self
            .each(selector, &[], &counts, move |host, _| {
                among(wanted.as_deref(), host.id()).then(|| f(host, &names))
            })
            .await?;
        missing.append(&mut answer.missing);
        answer.missing = missing;
        Ok(answer)
    }

    /// What is open now. A store that cannot be read must not hide the hosts: it is named as missing.
    async fn open(&self) -> Open {
        match self.control.incidents(IncidentFilter::default()).await {
            Ok((incidents, _)) => {
                let mut counts = HashMap::new();
                for incident in &incidents {
                    *counts.entry(incident.host_id).or_insert(0) += 1;
                }
                Open {
                    counts: Arc::new(counts),
                    incidents,
                    missing: Vec::new(),
                }
            }
            Err(error) => {
                store_failed(&error);
                Open {
                    counts: OpenCounts::default(),
                    incidents: Vec::new(),
                    missing: vec!["incidents".to_owned()],
                }
            }
        }
    }

    /// The name of a host that must exist.
    async fn known_host(&self, name: &str) -> Result<HostId, Status> {
        match self.fleet.host(name, |host, _| host.id()).await {
            Some(id) => Ok(id),
            None => Err(self.unknown_host(name).await),
        }
    }

    async fn unknown_host(&self, name: &str) -> Status {
        let names = self
            .fleet
            .each(|host, _| Some(host.name().to_owned()))
            .await;
        if !names.missing.is_empty() {
            return Status::unavailable("part of the fleet did not answer");
        }
        let names = names.items.iter().map(String::as_str);
        let hint = suggest::nearest(name, names, MOST_SLIPS)
            .map_or_else(String::new, |near| format!(", did you mean {near}?"));
        Status::not_found(format!("no host is called {name}{hint}"))
    }

    async fn status(&self, caller: Caller) -> v1::Status {
        let totals = self.fleet.totals();
        let certificate = (self.about.certificate_not_after)();
        v1::Status {
            meta: Some(self.meta(Vec::new())),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            operator_name: caller.name,
            role: caller.role.to_string(),
            certificate_expires_ms: caller.peer.cert_not_after.map_or(0, Timestamp::as_millis),
            server_certificate_expires_ms: certificate.map_or(0, Timestamp::as_millis),
            server_wall_ms: self.clock.now().as_millis(),
            started_ms: self.about.started.as_millis(),
            hosts: totals.hosts,
            frames_stored: totals.frames_stored,
            frames_rejected: totals.frames_rejected,
            frames_duplicate: totals.frames_duplicate,
            // What came after all is not lost; some of it may have been told before the start.
            frames_lost: totals.frames_lost.saturating_sub(totals.frames_found),
            problems: (self.about.problems)(),
            fleet_name: self.about.fleet_name.clone(),
            http_address: self.about.http.address.clone(),
            http_tls: self.about.http.tls,
            http_token_needed: self.about.http.token_needed,
        }
    }

    async fn summary(&self, request: v1::GetSummaryRequest) -> Result<v1::Summary, Status> {
        let open = self.open().await;
        let answer = self
            .each(&request.selector, &[], &open.counts, |host, _| {
                Some(Glance::of(host))
            })
            .await?;
        let mut missing = open.missing;
        missing.extend(answer.missing);
        let chosen: HashSet<HostId> = answer.items.iter().map(|glance| glance.id).collect();
        let mut severities: BTreeMap<v1::Severity, u32> = BTreeMap::new();
        for incident in &open.incidents {
            if chosen.contains(&incident.host_id) {
                *severities.entry(incident.severity).or_default() += 1;
            }
        }
        let of = |severity| severities.get(&severity).copied().unwrap_or(0);
        let now = self.clock.now();
        let newest = answer
            .items
            .iter()
            .filter_map(|glance| glance.last_seen)
            .max();
        let most = answer
            .items
            .iter()
            .filter(|glance| glance.dropped > 0)
            .max_by_key(|glance| glance.dropped);
        let told_per_host_week = told_rate(answer.items.iter().map(|glance| glance.told));
        let without = answer.items.iter().filter(|glance| !glance.has_units);
        let hosts_without_services = count(without.count());
        Ok(v1::Summary {
            meta: Some(self.meta(missing)),
            fleet_name: self.about.fleet_name.clone(),
            states: state_counts(answer.items.iter().map(|glance| glance.state)),
            agent_versions: version_counts(
                answer.items.iter().map(|glance| glance.version.as_str()),
            ),
            incidents_critical: of(v1::Severity::Critical),
            incidents_warning: of(v1::Severity::Warning),
            incidents_info: of(v1::Severity::Info),
            newest_sample_ms: newest.map(|newest| now.millis_since(newest).max(0)),
            frames_dropped: answer.items.iter().map(|glance| glance.dropped).sum(),
            most_dropped_host: most.map_or_else(String::new, |glance| glance.failing.host.clone()),
            most_dropped: most.map_or(0, |glance| glance.dropped),
            worst: worst(
                answer
                    .items
                    .iter()
                    .filter_map(|glance| glance.worst.clone())
                    .collect(),
            ),
            failing_services: group_services(answer.items.into_iter().map(|glance| glance.failing)),
            hosts_without_services,
            budget_per_host_week: self.about.budget_per_host_week,
            told_per_host_week,
        })
    }

    async fn hosts(&self, request: v1::ListHostsRequest) -> Result<v1::ListHostsResponse, Status> {
        let order = Order::parse(&request.sort).map_err(Status::invalid_argument)?;
        let Open {
            counts,
            mut missing,
            ..
        } = self.open().await;
        let row = |host: &HostState, open| Some(rows::host_row(host, open));
        let answer = self
            .each(&request.selector, &request.names, &counts, row)
            .await?;
        missing.extend(answer.missing);
        let mut hosts = answer.items;
        order.sort(&mut hosts);
        let matched = count(hosts.len());
        hosts.truncate(limit(request.limit));
        Ok(v1::ListHostsResponse {
            unknown_names: self.unknown_names(&request.names).await?,
            meta: Some(self.meta(missing)),
            hosts,
            matched,
        })
    }

    /// Names without wildcards that no host has. A typing mistake must not pass for a host that is not
    /// selected.
    async fn unknown_names(&self, names: &[String]) -> Result<Vec<String>, Status> {
        let patterns = parse_names(names)?;
        let literals = patterns.iter().filter_map(Pattern::as_literal);
        let mut unknown: BTreeSet<String> = literals.map(ToOwned::to_owned).collect();
        if unknown.is_empty() {
            return Ok(Vec::new());
        }
        let wanted = Arc::new(unknown.clone());
        let answer = self
            .fleet
            .each(move |host, _| wanted.get(host.name()).cloned())
            .await;
        // A host of the part that did not answer may have the name.
        if !answer.missing.is_empty() {
            return Ok(Vec::new());
        }
        for name in &answer.items {
            unknown.remove(name);
        }
        Ok(unknown.into_iter().collect())
    }

    async fn host(&self, name: &str) -> Result<v1::HostDetail, Status> {
        let read = |host: &HostState, _: &_| {
            let row = rows::host_row(host, 0);
            (host.id(), row, rows::host_detail(host))
        };
        let Some((id, mut row, mut detail)) = self.fleet.host(name, read).await else {
            return Err(self.unknown_host(name).await);
        };
        let filter = IncidentFilter {
            host_id: Some(id),
            ..IncidentFilter::default()
        };
        let mut missing = Vec::new();
        match self.control.incidents(filter).await {
            Ok((open, _)) => {
                row.open_incidents = count(open.len());
                let open = open.into_iter();
                let now = self.clock.now();
                detail.incidents = open
                    .map(|open| incident_row(open, &row.name, now, &self.told))
                    .collect();
            }
            Err(error) => {
                store_failed(&error);
                missing.push("incidents".to_owned());
            }
        }
        let always = (Timestamp::from_millis(0), self.clock.now());
        match self.control.doubts(Some(id), always).await {
            Ok(doubts) => detail.doubts = doubts.into_iter().map(Into::into).collect(),
            Err(error) => {
                store_failed(&error);
                missing.push("whether data is of two machines".to_owned());
            }
        }
        detail.row = Some(row);
        detail.meta = Some(self.meta(missing));
        Ok(detail)
    }

    async fn services(
        &self,
        request: v1::ListServicesRequest,
    ) -> Result<v1::ListServicesResponse, Status> {
        let names = parse_names(&request.names)?;
        let wanted = self.only(&request.host).await?;
        let Open {
            counts,
            mut missing,
            ..
        } = self.open().await;
        let failed_only = request.failed_only;
        let answer = self
            .each(&request.selector, &[], &counts, move |host, _| {
                if !among(wanted.as_deref(), host.id()) {
                    return None;
                }
                let Some(units) = rows::units(host) else {
                    return Some(None);
                };
                let units = units.iter().filter(|unit| {
                    (!failed_only || unit.is_failing())
                        && (names.is_empty() || names.iter().any(|name| name.matches(&unit.name)))
                });
                Some(Some(HostUnits {
                    host: host.name().to_owned(),
                    units: units.cloned().collect(),
                }))
            })
            .await?;
        missing.extend(answer.missing);
        let without = answer.items.iter().filter(|units| units.is_none()).count();
        Ok(v1::ListServicesResponse {
            meta: Some(self.meta(missing)),
            services: group_services(answer.items.into_iter().flatten()),
            hosts_without_services: count(without),
        })
    }

    async fn anomalies(
        &self,
        request: v1::ListAnomaliesRequest,
    ) -> Result<v1::ListAnomaliesResponse, Status> {
        let wanted = self.only(&request.host).await?;
        let Open {
            counts,
            mut missing,
            ..
        } = self.open().await;
        let answer = self
            .each(&request.selector, &[], &counts, move |host, _| {
                if !among(wanted.as_deref(), host.id()) {
                    return None;
                }
                let learning = rows::is_current(host) && host.detection().learning();
                Some((
                    learning,
                    host.detection().told(),
                    rows::anomaly(host).map(|view| (host.name().to_owned(), view)),
                ))
            })
            .await?;
        missing.extend(answer.missing);
        let learning = answer
            .items
            .iter()
            .filter(|(learning, ..)| *learning)
            .count();
        let told_per_host_week = told_rate(answer.items.iter().map(|(_, told, _)| *told));
        let group_shifts = self.peers.shifts(self.clock.now());
        let least = request.min_score.unwrap_or(f64::NEG_INFINITY);
        let mut anomalies: Vec<v1::Anomaly> = answer
            .items
            .into_iter()
            .filter_map(|(.., anomaly)| anomaly)
            .filter(|(_, view)| view.score >= least)
            .map(|(host, view)| v1::Anomaly {
                host,
                score: view.score,
                since_ms: view.since.as_millis(),
                causes: view
                    .causes
                    .iter()
                    .map(|cause| v1::AnomalyCause {
                        signal: cause.signal.to_owned(),
                        observed: cause.observed,
                        usual: cause.usual,
                        excess: cause.excess,
                        since_ms: cause.since.as_millis(),
                    })
                    .collect(),
            })
            .collect();
        anomalies.sort_by(|a, b| {
            b.score
                .total_cmp(&a.score)
                .then_with(|| a.host.cmp(&b.host))
        });
        Ok(v1::ListAnomaliesResponse {
            meta: Some(self.meta(missing)),
            anomalies,
            hosts_learning: count(learning),
            budget_per_host_week: self.about.budget_per_host_week,
            told_per_host_week,
            group_shifts: group_shifts.into_iter().map(group_shift).collect(),
        })
    }

    async fn incidents(
        &self,
        request: v1::ListIncidentsRequest,
    ) -> Result<v1::ListIncidentsResponse, Status> {
        let severity = parse_severity(&request.severity)?;
        let wanted = self.only(&request.host).await?;
        let counts = self.open().await.counts;
        let names = self
            .each(&request.selector, &[], &counts, |host, _| {
                Some((host.id(), host.name().to_owned()))
            })
            .await?;
        let by_id: HashMap<HostId, String> = names.items.into_iter().collect();
        let (found, _) = self
            .control
            .incidents(IncidentFilter {
                all: request.all,
                // One host is looked up by the store, which may keep many incidents of others.
                host_id: wanted
                    .as_deref()
                    .filter(|wanted| wanted.len() == 1)
                    .and_then(|wanted| wanted.iter().next().copied()),
                severity,
                limit: 0,
            })
            .await
            .map_err(|error| store_failed(&error))?;
        let (everywhere, now) = (request.selector.trim().is_empty(), self.clock.now());
        let mut incidents: Vec<v1::IncidentRow> = found
            .into_iter()
            .filter(|incident| among(wanted.as_deref(), incident.host_id))
            .filter_map(|incident| match by_id.get(&incident.host_id) {
                Some(name) => Some(incident_row(incident, name, now, &self.told)),
                // A host that was removed, or whose shard did not answer, still has its incidents.
                None if everywhere => {
                    let id = incident.host_id.to_string();
                    Some(incident_row(incident, &id, now, &self.told))
                }
                None => None,
            })
            .collect();
        let matched = count(incidents.len());
        incidents.truncate(limit(request.limit));
        Ok(v1::ListIncidentsResponse {
            meta: Some(self.meta(names.missing)),
            incidents,
            matched,
        })
    }

    async fn incident(&self, number: u64) -> Result<v1::IncidentDetail, Status> {
        let found = self
            .control
            .incident(number)
            .await
            .map_err(|error| store_failed(&error))?;
        let Some((incident, transitions)) = found else {
            return Err(Status::not_found(format!(
                "there is no incident I-{number}"
            )));
        };
        let id = incident.host_id.to_string();
        let name = self.fleet.host(&id, |host, _| host.name().to_owned()).await;
        Ok(v1::IncidentDetail {
            meta: Some(self.meta(Vec::new())),
            row: Some(incident_row(
                incident,
                name.as_deref().unwrap_or(&id),
                self.clock.now(),
                &self.told,
            )),
            transitions: transitions
                .into_iter()
                .map(|step| v1::IncidentTransition {
                    at_ms: step.at.as_millis(),
                    to: step.to.into(),
                    evidence: step.evidence,
                    what: step.what,
                    actor: step.actor,
                })
                .collect(),
        })
    }

    async fn remove(
        &self,
        name: &str,
        removal: Removal,
        actor: &str,
    ) -> Result<(HostId, Removed), Status> {
        // By its id also a host that was removed before can be banned.
        let id = match name.parse() {
            Ok(id) => id,
            Err(_) => self.known_host(name).await?,
        };
        let removed = self
            .control
            .remove_host(id, removal, actor, self.clock.now())
            .await
            .map_err(|error| not_written(&error))?
            .ok_or_else(|| Status::not_found(format!("no host has the id {id}")))?;
        self.fleet.forget(id).await;
        // Answered after the shard has forgotten it: from then on nothing more is reported of it.
        let _gone = self.fleet.host(&id.to_string(), |_, _| ()).await;
        self.incidents.forget(id);
        tracing::info!(host = %id, name = removed.name, ?removal, operator = actor, "host removed");
        Ok((id, removed))
    }

    /// The hosts that are asked for by name, id or pattern; `None`: all.
    async fn only(&self, name: &str) -> Result<Option<Arc<HashSet<HostId>>>, Status> {
        if name.is_empty() {
            return Ok(None);
        }
        let patterns = parse_names(&[name.to_owned()])?;
        if let [pattern] = &*patterns
            && pattern.as_literal().is_some()
        {
            let id = self.known_host(name).await?;
            return Ok(Some(Arc::new(HashSet::from([id]))));
        }
        let answer = self
            .fleet
            .each(move |host, _| {
                let named = patterns.iter().any(|name| name.matches(host.name()));
                named.then(|| host.id())
            })
            .await;
        if answer.items.is_empty() && answer.missing.is_empty() {
            return Err(Status::not_found(format!("no host is called {name}")));
        }
        Ok(Some(Arc::new(answer.items.into_iter().collect())))
    }
}

/// Whether a host is one of those that are asked for; `None` stands for all.
fn among(wanted: Option<&HashSet<HostId>>, host: HostId) -> bool {
    wanted.is_none_or(|wanted| wanted.contains(&host))
}

fn group_shift(shift: Shift) -> v1::GroupShift {
    v1::GroupShift {
        since_ms: shift.since.as_millis(),
        until_ms: shift.until.map(Timestamp::as_millis),
        before: shift.before.into(),
        farthest: f64::from(shift.before) + f64::from(shift.moved),
        hosts: shift.hosts,
        group: shift.group,
        figure: shift.figure,
    }
}

pub(super) fn incident_row(
    incident: Incident,
    host: &str,
    now: Timestamp,
    told: &Told,
) -> v1::IncidentRow {
    let standing = match incident.state {
        v1::IncidentState::Open => told.standing_of(incident.number, now),
        _ => Standing::default(),
    };
    let acknowledgement = incident.acknowledged(now).map(|ack| v1::Acknowledgement {
        by: ack.by.clone(),
        at_ms: ack.at.as_millis(),
        until_ms: ack.until.map(Timestamp::as_millis),
        text: ack.text.clone(),
    });
    v1::IncidentRow {
        acknowledgement,
        flapping: standing.flapping,
        page: standing.page,
        hosts: standing.hosts,
        quiet: standing.quiet,
        told_ms: standing.told.map(Timestamp::as_millis),
        number: incident.number,
        id: incident.id,
        severity: incident.severity.into(),
        state: incident.state.into(),
        rule: incident.rule,
        host: host.to_owned(),
        subject: incident.subject,
        summary: incident.summary,
        opened_ms: incident.opened.as_millis(),
        resolved_ms: incident.resolved.map(Timestamp::as_millis),
        since_ms: incident.since.as_millis(),
    }
}

#[tonic::async_trait]
impl Operator for OperatorService {
    async fn get_status(
        &self,
        request: Request<v1::GetStatusRequest>,
    ) -> Result<Response<v1::Status>, Status> {
        let caller = self.access.admit(&request, "GetStatus").await?;
        Ok(Response::new(self.status(caller).await))
    }

    async fn get_summary(
        &self,
        request: Request<v1::GetSummaryRequest>,
    ) -> Result<Response<v1::Summary>, Status> {
        self.access.admit(&request, "GetSummary").await?;
        self.summary(request.into_inner()).await.map(Response::new)
    }

    async fn list_hosts(
        &self,
        request: Request<v1::ListHostsRequest>,
    ) -> Result<Response<v1::ListHostsResponse>, Status> {
        self.access.admit(&request, "ListHosts").await?;
        self.hosts(request.into_inner()).await.map(Response::new)
    }

    async fn get_host(
        &self,
        request: Request<v1::GetHostRequest>,
    ) -> Result<Response<v1::HostDetail>, Status> {
        self.access.admit(&request, "GetHost").await?;
        self.host(&request.into_inner().name)
            .await
            .map(Response::new)
    }

    async fn list_services(
        &self,
        request: Request<v1::ListServicesRequest>,
    ) -> Result<Response<v1::ListServicesResponse>, Status> {
        self.access.admit(&request, "ListServices").await?;
        self.services(request.into_inner()).await.map(Response::new)
    }

    async fn list_anomalies(
        &self,
        request: Request<v1::ListAnomaliesRequest>,
    ) -> Result<Response<v1::ListAnomaliesResponse>, Status> {
        self.access.admit(&request, "ListAnomalies").await?;
        self.anomalies(request.into_inner())
            .await
            .map(Response::new)
    }

    async fn list_incidents(
        &self,
        request: Request<v1::ListIncidentsRequest>,
    ) -> Result<Response<v1::ListIncidentsResponse>, Status> {
        self.access.admit(&request, "ListIncidents").await?;
        self.incidents(request.into_inner())
            .await
            .map(Response::new)
    }

    async fn get_incident(
        &self,
        request: Request<v1::GetIncidentRequest>,
    ) -> Result<Response<v1::IncidentDetail>, Status> {
        self.access.admit(&request, "GetIncident").await?;
        self.incident(request.into_inner().number)
            .await
            .map(Response::new)
    }

    async fn evict_host(
        &self,
        request: Request<v1::EvictHostRequest>,
    ) -> Result<Response<v1::EvictHostResponse>, Status> {
        let caller = self.access.admit(&request, "EvictHost").await?;
        let name = request.into_inner().name;
        let (id, removed) = self.remove(&name, Removal::Evict, &caller.name).await?;
        Ok(Response::new(v1::EvictHostResponse {
            name: removed.name,
            host_id: id.as_bytes().to_vec(),
        }))
    }

    async fn ban_host(
        &self,
        request: Request<v1::BanHostRequest>,
    ) -> Result<Response<v1::BanHostResponse>, Status> {
        let caller = self.access.admit(&request, "BanHost").await?;
        let name = request.into_inner().name;
        let (id, removed) = self.remove(&name, Removal::Ban, &caller.name).await?;
        Ok(Response::new(v1::BanHostResponse {
            name: removed.name,
            host_id: id.as_bytes().to_vec(),
            machine_known: removed.machine_known,
        }))
    }

    async fn revoke_operator(
        &self,
        request: Request<v1::RevokeOperatorRequest>,
    ) -> Result<Response<v1::RevokeOperatorResponse>, Status> {
        let caller = self.access.admit(&request, "RevokeOperator").await?;
        let name = request.into_inner().name;
        let role = self.control.operator_role(&name).await;
        if role.map_err(|error| store_failed(&error))?.is_none() {
            return Err(Status::not_found(format!("no operator is called {name}")));
        }
        let certificates = self
            .control
            .revoke_operator(&name, &caller.name, self.clock.now())
            .await
            .map_err(|error| not_written(&error))?;
        tracing::info!(
            name,
            certificates,
            operator = caller.name,
            "operator revoked"
        );
        Ok(Response::new(v1::RevokeOperatorResponse { certificates }))
    }

    async fn list_audit(
        &self,
        request: Request<v1::ListAuditRequest>,
    ) -> Result<Response<v1::ListAuditResponse>, Status> {
        self.access.admit(&request, "ListAudit").await?;
        let asked = request.into_inner();
        let limit = match asked.limit {
            0 => AUDIT_LINES,
            limit => limit.min(MAX_AUDIT_LINES),
        };
        let filter = AuditFilter {
            limit,
            since: (asked.since_ms > 0).then(|| Timestamp::from_millis(asked.since_ms)),
            actor: asked.actor,
            action: asked.action,
            subject: asked.subject,
        };
        let log = self.control.audit_lines(filter).await;
        let lines = log.map_err(|error| store_failed(&error))?.into_iter();
        Ok(Response::new(v1::ListAuditResponse {
            meta: Some(self.meta(Vec::new())),
            lines: lines
                .map(|line| v1::AuditLine {
                    at_ms: line.at.as_millis(),
                    actor: line.actor,
                    action: line.action,
                    subject: line.subject,
                    outcome: line.outcome,
                    seq: line.seq.unsigned_abs(),
                    hash: line.hash,
                })
                .collect(),
        }))
    }
}
