//! The `History` service: the past of the fleet, streamed.
//!
//! A question is bounded by the points it may read, what it may hold at a time, the time it may take and how many are
//! worked on at once. The reading is done on a thread of its own, series by series, and stops as soon as nobody listens
//! any more, or the answer is not taken; until then it has its place among those that are worked on.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::ControlFlow,
    sync::Arc,
    time::Duration,
};

use muster_proto::{
    id::HostId,
    limits::MAX_OPERATOR_MESSAGE_BYTES,
    series::Kind,
    time::{Clock, Timestamp},
    v1::{
        self,
        history_server::{History, HistoryServer},
        read_history_response::Part,
    },
};
use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    time::{Instant, sleep_until, timeout_at},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::{access::Access, ask::store_failed, rows::Asked};
use crate::{
    chain,
    control::{Control, Host},
    fleet::{Fleet, start},
    history::{
        GiveUp, HistoryError, HostSeries, LabelMatch, Needs, ReadReport, SampleQuery, SampleStore,
        Tier,
        expr::{eval, parse},
        fold::{self, Fold},
    },
    journal::JournalHealth,
    selector::{NumberField, Selector, Subject, TextField, pattern::Pattern},
};

/// Largest question: a few thousand names.
const MAX_QUESTION_BYTES: usize = 4 * 1024 * 1024;

/// Questions that are worked on at once; others wait for a moment.
const AT_ONCE: usize = 2;
const WAIT: Duration = Duration::from_secs(10);

/// The longest that one question is worked on.
const WORK: Duration = Duration::from_secs(120);

/// Messages that wait for a reader; then the reading waits.
const AHEAD: usize = 16;

/// A reader that takes nothing for this long is given up: others wait for its place.
const STALL: Duration = Duration::from_secs(30);

/// How far before the range a rate looks for the point before, at least.
const LOOK_BACK_MS: i64 = 300_000;

/// What is missing while history is behind the log.
pub(super) const BEHIND: &str = "the newest samples, which are still being read from the log";

/// Answers operators about the past.
#[derive(Clone)]
pub struct HistoryService {
    pub(super) fleet: Fleet,
    history: Result<start::History, String>,
    pub(super) control: Control,
    journal: Arc<JournalHealth>,
    pub(super) access: Access,
    pub(super) clock: Arc<dyn Clock>,
    work: Arc<Semaphore>,
}

impl HistoryService {
    /// Reads from this store; without one, says why there is none.
    #[must_use]
    pub fn new(
        fleet: Fleet,
        control: Control,
        history: Result<start::History, String>,
        journal: Arc<JournalHealth>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self {
            fleet,
            history,
            access: Access::new(control.clone(), Arc::clone(&clock)),
            control,
            journal,
            clock,
            work: Arc::new(Semaphore::new(AT_ONCE)),
        }
    }

    /// As a tonic service with its limits. The transport must give each request its [`crate::listen::Peer`].
    #[must_use]
    pub fn into_server(self) -> HistoryServer<Self> {
        HistoryServer::new(self)
            .max_decoding_message_size(MAX_QUESTION_BYTES)
            .max_encoding_message_size(MAX_OPERATOR_MESSAGE_BYTES)
    }

    pub(super) fn history(&self) -> Result<&start::History, Status> {
        let history = self.history.as_ref();
        history.map_err(|why| Status::unavailable(format!("there is no history: {why}")))
    }

    /// Whether the newest samples are still being read from the log.
    pub(super) fn is_behind(&self, history: &start::History) -> bool {
        let taken = &history.health.taken;
        let taken = taken.load(std::sync::atomic::Ordering::Relaxed);
        let durable = self.journal.durable();
        durable > history.store.durable() && taken + 10_000 < durable
    }

    /// The one host that was called so and is removed.
    async fn removed_once(&self, name: &str) -> Result<HostId, Status> {
        let hosts = self.control.hosts().await;
        let hosts = hosts.map_err(|error| store_failed(&error))?;
        let mut removed = hosts
            .iter()
            .filter(|host| host.removed.is_some() && host.called() == name);
        match (removed.next(), removed.next()) {
            (Some(host), None) => Ok(host.host_id),
            (Some(_), Some(_)) => Err(Status::failed_precondition(format!(
                "several hosts that are removed were called {name}: name the id, which muster audit --action evict has"
            ))),
            (None, _) => Err(Status::not_found(format!("no host is called {name}"))),
        }
    }

    /// A place among the questions that are worked on.
    pub(super) async fn place(&self) -> Result<OwnedSemaphorePermit, Status> {
        let place = tokio::time::timeout(WAIT, Arc::clone(&self.work).acquire_owned()).await;
        let Ok(Ok(place)) = place else {
            return Err(Status::resource_exhausted(
                "other questions about history are being worked on",
            ));
        };
        Ok(place)
    }

    /// Hosts that are asked for, by id; names that none has; shards that did not answer.
    async fn hosts(&self, names: &[String], selector: &str) -> Result<Chosen, Status> {
        let selector = Selector::parse(selector)
            .map_err(|error| Status::invalid_argument(format!("selector: {error}")))?;
        let mut patterns = Vec::new();
        let mut chosen = Chosen::default();
        for name in names {
            if let Ok(id) = name.parse::<HostId>() {
                // A host that is removed has a past all the same.
                chosen.names.insert(id, name.clone());
                continue;
            }
            let list = Pattern::parse_list(name)
                .map_err(|error| Status::invalid_argument(format!("name {name:?}: {error}")))?;
            patterns.extend(list);
        }
        let literals = patterns.iter().filter_map(Pattern::as_literal);
        let mut unknown: BTreeSet<String> = literals.map(ToOwned::to_owned).collect();
        let all = names.is_empty();
        let ids: Vec<HostId> = chosen.names.keys().copied().collect();
        let selects = selector.clone();
        let answer = self
            .fleet
            .each(move |host, _| {
                let asked = Asked {
                    host,
                    open_incidents: 0,
                };
                let named = all
                    || ids.contains(&host.id())
                    || patterns.iter().any(|pattern| pattern.matches(host.name()));
                let matches = named && selects.matches(&asked);
                matches.then(|| (host.id(), host.name().to_owned(), host.labels().clone()))
            })
            .await;
        for (id, name, labels) in answer.items {
            unknown.remove(&name);
            chosen.names.insert(id, name);
            chosen.labels.insert(id, labels);
        }
        chosen.missing = answer.missing;
        if chosen.missing.is_empty() {
            self.removed(&mut unknown, &selector, &mut chosen).await?;
            chosen.unknown = unknown.into_iter().collect();
        }
        Ok(chosen)
    }

    /// Hosts that are removed, by the names that no host of the fleet has (those are then known), and by their ids.
    async fn removed(
        &self,
        unknown: &mut BTreeSet<String>,
        selector: &Selector,
        chosen: &mut Chosen,
    ) -> Result<(), Status> {
        let by_id = |chosen: &Chosen| {
            let mut named = chosen.names.keys();
            named.any(|id| !chosen.labels.contains_key(id))
        };
        if unknown.is_empty() && !by_id(chosen) {
            return Ok(());
        }
        let hosts = self.control.hosts().await;
        let mut hosts = hosts.map_err(|error| store_failed(&error))?;
        hosts.retain(|host| {
            let named = unknown.contains(host.called()) || chosen.names.contains_key(&host.host_id);
            host.removed.is_some() && named && selector.matches(&Labelled(host))
        });
        for host in &hosts {
            let called = host.called();
            unknown.remove(called);
            let alike = hosts.iter().filter(|other| other.called() == called);
            let name = match alike.count() {
                1 => called.to_owned(),
                _ => format!("{called} {}", host.host_id),
            };
            chosen.names.insert(host.host_id, name.clone());
            chosen.labels.insert(host.host_id, host.labels.clone());
            chosen.removed.push(v1::RemovedHost {
                name,
                host_id: host.host_id.as_bytes().to_vec(),
                removed_ms: host.removed.map_or(0, Timestamp::as_millis),
            });
        }
        Ok(())
    }
}

#[derive(Default)]
struct Chosen {
    names: HashMap<HostId, String>,
    labels: HashMap<HostId, BTreeMap<String, String>>,
    unknown: Vec<String>,
    missing: Vec<String>,
    removed: Vec<v1::RemovedHost>,
}

/// A host of which only its name and its labels are known.
pub(super) struct Labelled<'a>(pub(super) &'a Host);

impl Subject for Labelled<'_> {
    fn name(&self) -> &str {
        self.0.called()
    }

    fn label(&self, key: &str) -> Option<&str> {
        self.0.labels.get(key).map(String::as_str)
    }

    fn text(&self, _: TextField) -> Option<Cow<'_, str>> {
        None
    }

    fn number(&self, _: NumberField) -> Option<f64> {
        None
    }
}

fn fold_of(wire: v1::HistoryFold) -> Fold {
    match wire {
        v1::HistoryFold::Last => Fold::Last,
        v1::HistoryFold::Min => Fold::Min,
        v1::HistoryFold::Max => Fold::Max,
        v1::HistoryFold::Avg => Fold::Avg,
        v1::HistoryFold::Sum => Fold::Sum,
        v1::HistoryFold::Count => Fold::Count,
        v1::HistoryFold::Rate => Fold::Rate,
        v1::HistoryFold::Increase => Fold::Increase,
        v1::HistoryFold::Auto => Fold::Auto,
    }
}

fn fold_to(fold: Fold) -> v1::HistoryFold {
    match fold {
        Fold::Last => v1::HistoryFold::Last,
        Fold::Min => v1::HistoryFold::Min,
        Fold::Max => v1::HistoryFold::Max,
        Fold::Avg => v1::HistoryFold::Avg,
        Fold::Sum => v1::HistoryFold::Sum,
        Fold::Count => v1::HistoryFold::Count,
        Fold::Rate => v1::HistoryFold::Rate,
        Fold::Increase => v1::HistoryFold::Increase,
        Fold::Auto => v1::HistoryFold::Auto,
    }
}

/// A kind in Prometheus' words.
#[must_use]
pub const fn kind_word(kind: Kind) -> &'static str {
    match kind {
        Kind::Counter => "counter",
        Kind::Gauge => "gauge",
        Kind::Untyped => "untyped",
    }
}

pub(super) fn refused(error: &HistoryError) -> Status {
    match error {
        HistoryError::TooMuch { .. } | HistoryError::TooWide { .. } => {
            Status::out_of_range(error.to_string())
        }
        HistoryError::GivenUp => Status::deadline_exceeded(format!(
            "the question takes longer than {} s; ask for fewer hosts, a shorter range or a longer --step",
            WORK.as_secs()
        )),
        _ => Status::internal(chain(error)),
    }
}

/// Most moments of one question: a point for each column of a very wide screen, and some.
const MAX_MOMENTS: i64 = 11_000;

/// The moments of a question.
fn moments(from: i64, to: i64, step: i64) -> Result<Vec<i64>, Status> {
    if from > to {
        return Err(Status::invalid_argument("the range is empty"));
    }
    if from == to {
        return Ok(vec![to]);
    }
    if step <= 0 || (to - from) / step >= MAX_MOMENTS {
        return Err(Status::invalid_argument(format!(
            "the step must be so long that there are at most {MAX_MOMENTS} moments"
        )));
    }
    Ok((0..=(to - from) / step)
        .map(|at| from + at * step)
        .collect())
}

fn answer_message(answer: &eval::Answer, moments: &[i64]) -> v1::HistorySeries {
    let known = moments.iter().zip(&answer.values);
    let known = known.filter_map(|(at, value)| Some((*at, (*value)?)));
    let mut before = 0;
    let (at_ms, values) = known
        .map(|(at, value)| (at - std::mem::replace(&mut before, at), value))
        .unzip();
    v1::HistorySeries {
        host: answer.labels.get("host").cloned().unwrap_or_default(),
        label_names: answer.labels.keys().cloned().collect(),
        label_values: answer.labels.values().cloned().collect(),
        at_ms,
        values,
        ..v1::HistorySeries::default()
    }
}

type Answered = Result<v1::ReadHistoryResponse, Status>;

/// Why an answer does not go on.
#[derive(Debug, PartialEq, Eq)]
enum Unsent {
    /// Nobody listens any more.
    Gone,
    /// Nobody has taken anything for [`STALL`].
    Stalled,
    /// The time is over.
    Late,
}

/// The way of an answer to whoever asked, with the question's place among those that are worked on. Used on a thread
/// that may block.
struct Outlet {
    out: mpsc::Sender<Answered>,
    /// Room for the last word, however full it is.
    last: mpsc::OwnedPermit<Answered>,
    deadline: Instant,
    give_up: GiveUp,
    runtime: Handle,
    /// Tells whoever watches that the work is over.
    _working: oneshot::Sender<()>,
    _place: OwnedSemaphorePermit,
}

impl Outlet {
    /// A way out, and its other end. What is told to give up is told when the time is over or nobody listens.
    fn new(place: OwnedSemaphorePermit) -> Result<(Self, mpsc::Receiver<Answered>), Status> {
        let (out, answers) = mpsc::channel(AHEAD + 1);
        let last = out.clone().try_reserve_owned();
        let last = last.map_err(|_| Status::internal("an empty queue has no room"))?;
        let (deadline, give_up) = (Instant::now() + WORK, GiveUp::default());
        let (working, over) = oneshot::channel::<()>();
        let (watched, told) = (out.clone(), give_up.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = watched.closed() => {}
                () = sleep_until(deadline) => {}
                _ = over => {}
            }
            told.now();
        });
        let outlet = Self {
            out,
            last,
            deadline,
            give_up,
            runtime: Handle::current(),
            _working: working,
            _place: place,
        };
        Ok((outlet, answers))
    }

    fn send(&self, series: v1::HistorySeries) -> Result<(), Unsent> {
        let message = v1::ReadHistoryResponse {
            part: Some(Part::Series(series)),
        };
        let message = match self.out.try_send(Ok(message)) {
            Ok(()) => return Ok(()),
            Err(mpsc::error::TrySendError::Closed(_)) => return Err(Unsent::Gone),
            Err(mpsc::error::TrySendError::Full(message)) => message,
        };
        self.runtime.block_on(self.wait(message))
    }

    /// Sends as soon as there is room, if there is in time.
    async fn wait(&self, message: Answered) -> Result<(), Unsent> {
        let patience = self.deadline.min(Instant::now() + STALL);
        match timeout_at(patience, self.out.send(message)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Unsent::Gone),
            Err(_) if Instant::now() >= self.deadline => Err(Unsent::Late),
            Err(_) => Err(Unsent::Stalled),
        }
    }

    /// The last word.
    fn end(self, last: Answered) {
        self.last.send(last);
    }
}

fn stalled() -> Status {
    Status::aborted(format!(
        "nobody took the answer for {} s, and other questions wait: write it to a file and look at that",
        STALL.as_secs()
    ))
}

fn end_part(
    clock: &dyn Clock,
    missing: Vec<String>,
    doubts: Vec<v1::HostDoubt>,
    points_read: u64,
    (unknown_names, removed): (Vec<String>, Vec<v1::RemovedHost>),
) -> v1::ReadHistoryResponse {
    let meta = v1::AnswerMeta {
        complete: missing.is_empty(),
        missing,
        as_of_ms: clock.now().as_millis(),
    };
    v1::ReadHistoryResponse {
        part: Some(Part::End(v1::HistoryEnd {
            meta: Some(meta),
            points_read,
            unknown_names,
            removed,
            doubts,
        })),
    }
}

/// What one question works on.
struct Work {
    store: Arc<dyn SampleStore>,
    query: SampleQuery,
    names: HashMap<HostId, String>,
    fold: Fold,
    step_ms: i64,
    from: i64,
}

impl Work {
    /// Reads and sends; what came of it, unless nobody listens any more.
    fn run(&self, outlet: &Outlet) -> Option<Result<ReadReport, Status>> {
        let (mut unsent, mut points) = (None, 0);
        let read = self.store.read(&self.query, &mut |series| {
            points += series.points.len() as u64;
            let Some(message) = self.message(&series) else {
                return ControlFlow::Continue(());
            };
            match outlet.send(message) {
                Ok(()) => ControlFlow::Continue(()),
                Err(why) => {
                    unsent = Some(why);
                    ControlFlow::Break(())
                }
            }
        });
        let late = |missing: Vec<String>| {
            let mut missing = missing;
            missing.push(format!(
                "what takes longer than {} s to read",
                WORK.as_secs()
            ));
            Ok(ReadReport { points, missing })
        };
        match (unsent, read) {
            (Some(Unsent::Gone), _) => None,
            (Some(Unsent::Stalled), _) => Some(Err(stalled())),
            (Some(Unsent::Late), Ok(report)) => Some(late(report.missing)),
            (Some(Unsent::Late), Err(_)) | (None, Err(HistoryError::GivenUp)) => {
                Some(late(Vec::new()))
            }
            (None, Ok(report)) => Some(Ok(report)),
            (None, Err(error)) => Some(Err(refused(&error))),
        }
    }

    fn message(&self, series: &HostSeries) -> Option<v1::HistorySeries> {
        let family = &series.name.family;
        let fold = self.fold.of(family.kind);
        let values = fold::fold(&series.points, fold, self.step_ms, self.from);
        if values.is_empty() {
            return None;
        }
        let mut before = 0;
        let (at_ms, values) = values
            .into_iter()
            .map(|(at, value)| (at - std::mem::replace(&mut before, at), value))
            .unzip();
        let name = self.names.get(&series.host);
        Some(v1::HistorySeries {
            host: name.cloned().unwrap_or_else(|| series.host.to_string()),
            host_id: series.host.as_bytes().to_vec(),
            metric: family.name.clone(),
            kind: kind_word(family.kind).to_owned(),
            label_names: family.labels.clone(),
            label_values: series.name.labels.clone(),
            at_ms,
            values,
            fold: fold_to(fold).into(),
        })
    }
}

impl HistoryService {
    /// Times whose data may be of two machines, of these hosts and between these moments.
    async fn doubts(
        &self,
        hosts: &HashMap<HostId, String>,
        (from, to): (i64, i64),
        missing: &mut Vec<String>,
    ) -> Vec<v1::HostDoubt> {
        let between = (Timestamp::from_millis(from), Timestamp::from_millis(to));
        match self.control.doubts(None, between).await {
            Ok(doubts) => doubts
                .into_iter()
                .filter_map(|doubt| {
                    Some(v1::HostDoubt {
                        host: hosts.get(&doubt.host_id)?.clone(),
                        doubt: Some(doubt.into()),
                    })
                })
                .collect(),
            Err(error) => {
                tracing::error!(error = chain(&error), "the control store cannot be read");
                missing.push("whether data is of two machines".to_owned());
                Vec::new()
            }
        }
    }
}

#[tonic::async_trait]
impl History for HistoryService {
    type ReadHistoryStream = ReceiverStream<Result<v1::ReadHistoryResponse, Status>>;

    async fn read_history(
        &self,
        request: Request<v1::ReadHistoryRequest>,
    ) -> Result<Response<Self::ReadHistoryStream>, Status> {
        self.access.admit(&request, "ReadHistory").await?;
        let history = self.history()?;
        let wire = request.get_ref().fold();
        let request = request.into_inner();
        if request.from_ms >= request.to_ms || request.step_ms < 0 {
            return Err(Status::invalid_argument(
                "the range is empty, or the step is negative",
            ));
        }
        let chosen = self.hosts(&request.names, &request.selector).await?;
        let fold = fold_of(wire);
        let back = if fold.looks_back() {
            request.step_ms.max(LOOK_BACK_MS)
        } else {
            0
        };
        let labels = request.labels.into_iter().map(|label| LabelMatch {
            label: label.label,
            patterns: label.patterns,
            negated: label.negated,
        });
        let (outlet, answers) = Outlet::new(self.place().await?)?;
        let work = Work {
            query: SampleQuery {
                hosts: chosen.names.keys().copied().collect(),
                metric: Some(request.metric).filter(|metric| !metric.is_empty()),
                labels: labels.collect(),
                from: request.from_ms.saturating_sub(back),
                to: request.to_ms,
                step_ms: request.step_ms,
                needs: Needs::of(fold),
                max_points: history.store.config().max_points,
                give_up: outlet.give_up.clone(),
            },
            store: Arc::clone(&history.store) as Arc<dyn SampleStore>,
            names: chosen.names,
            fold,
            step_ms: request.step_ms,
            from: request.from_ms,
        };
        let behind = self.is_behind(history);
        let (clock, mut missing) = (Arc::clone(&self.clock), chosen.missing);
        let names = (chosen.unknown, chosen.removed);
        let asked = (request.from_ms, request.to_ms);
        let doubts = self.doubts(&work.names, asked, &mut missing).await;
        if behind {
            missing.push(BEHIND.to_owned());
        }
        tokio::task::spawn_blocking(move || {
            let Some(outcome) = work.run(&outlet) else {
                return;
            };
            outlet.end(outcome.map(|report| {
                missing.extend(report.missing);
                end_part(&*clock, missing, doubts, report.points, names)
            }));
        });
        Ok(Response::new(ReceiverStream::new(answers)))
    }

    type QueryHistoryStream = ReceiverStream<Result<v1::ReadHistoryResponse, Status>>;

    async fn query_history(
        &self,
        request: Request<v1::QueryHistoryRequest>,
    ) -> Result<Response<Self::QueryHistoryStream>, Status> {
        self.access.admit(&request, "QueryHistory").await?;
        let history = self.history()?;
        let request = request.into_inner();
        let expr = parse::parse(&request.expression)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let moments = moments(request.from_ms, request.to_ms, request.step_ms)?;
        let chosen = self.hosts(&request.names, &request.selector).await?;
        let mut labels = chosen.labels;
        let mut missing = chosen.missing;
        let asked = (request.from_ms, request.to_ms);
        let doubts = self.doubts(&chosen.names, asked, &mut missing).await;
        let hosts: HashMap<HostId, (String, BTreeMap<String, String>)> = chosen
            .names
            .into_iter()
            .map(|(id, name)| (id, (name, labels.remove(&id).unwrap_or_default())))
            .collect();
        let (outlet, answers) = Outlet::new(self.place().await?)?;
        let store = Arc::clone(&history.store);
        let (clock, names) = (Arc::clone(&self.clock), (chosen.unknown, chosen.removed));
        tokio::task::spawn_blocking(move || {
            let mut context = eval::Context {
                store: &*store,
                hosts: &hosts,
                span_ms: if moments.len() > 1 {
                    request.step_ms.max(eval::SPAN_MS)
                } else {
                    eval::SPAN_MS
                },
                cells: eval::Cells::new(eval::MAX_CELLS, moments.len()),
                moments,
                points_left: store.config().max_points,
                points: 0,
                missing: Vec::new(),
                give_up: outlet.give_up.clone(),
            };
            let series = match context.eval(&expr) {
                Ok(series) => series,
                Err(error) => return outlet.end(Err(refused(&error))),
            };
            for answer in series {
                match outlet.send(answer_message(&answer, &context.moments)) {
                    Ok(()) => {}
                    Err(Unsent::Gone) => return,
                    Err(Unsent::Stalled) => return outlet.end(Err(stalled())),
                    Err(Unsent::Late) => {
                        return outlet.end(Err(refused(&HistoryError::GivenUp)));
                    }
                }
            }
            missing.append(&mut context.missing);
            let end = end_part(&*clock, missing, doubts, context.points, names);
            outlet.end(Ok(end));
        });
        Ok(Response::new(ReceiverStream::new(answers)))
    }

    async fn get_history_status(
        &self,
        request: Request<v1::GetHistoryStatusRequest>,
    ) -> Result<Response<v1::HistoryStatus>, Status> {
        use std::sync::atomic::Ordering::Relaxed;

        self.access.admit(&request, "GetHistoryStatus").await?;
        let history = self.history()?;
        let (stats, config) = (history.store.stats(), history.store.config());
        let tier = |tier: Tier| {
            let at = tier as usize;
            v1::HistoryTier {
                name: tier.word().to_owned(),
                files: stats.files[at],
                bytes: stats.bytes[at],
                points: stats.points[at],
                oldest_ms: stats.oldest_ms[at],
                kept_ms: config.keep_ms(tier),
            }
        };
        let health = &history.health;
        let taken = health.taken.load(Relaxed);
        Ok(Response::new(v1::HistoryStatus {
            meta: Some(v1::AnswerMeta {
                complete: true,
                missing: Vec::new(),
                as_of_ms: self.clock.now().as_millis(),
            }),
            tiers: Tier::ALL.map(tier).to_vec(),
            hosts: stats.hosts,
            memory_samples: stats.head_samples,
            memory_bytes: stats.head_bytes,
            limit_bytes: config.max_bytes,
            written_bytes: stats.written_bytes,
            behind_records: self.journal.durable().saturating_sub(taken),
            frames_taken: health.frames.load(Relaxed),
            frames_undecoded: health.undecoded.load(Relaxed),
            frames_too_old: health.too_old.load(Relaxed),
            records_missing: health.missing.load(Relaxed),
            files_dropped_by_age: stats.dropped_by_age,
            files_dropped_by_size: stats.dropped_by_size,
            failures: stats.failures,
        }))
    }

    async fn forget_history(
        &self,
        request: Request<v1::ForgetHistoryRequest>,
    ) -> Result<Response<v1::ForgetHistoryResponse>, Status> {
        let caller = self.access.admit(&request, "ForgetHistory").await?;
        let history = self.history()?;
        let name = request.into_inner().name;
        let id = match name.parse::<HostId>() {
            Ok(id) => id,
            Err(_) => {
                let found = self.fleet.host(&name, |host, _| host.id()).await;
                match found {
                    Some(id) => id,
                    None => self.removed_once(&name).await?,
                }
            }
        };
        if history.store.group_of(id).is_none() {
            return Err(Status::not_found(format!("nothing was recorded of {name}")));
        }
        let (store, upto) = (Arc::clone(&history.store), self.journal.durable());
        let forgotten = tokio::task::spawn_blocking(move || store.forget(id, upto)).await;
        let outcome = match forgotten {
            Ok(Ok(())) => "done",
            Ok(Err(_)) | Err(_) => "failed",
        };
        let at = self.clock.now();
        let audited = self
            .control
            .audit(at, &caller.name, "forget_history", &id.to_string(), outcome)
            .await;
        if let Err(error) = audited {
            tracing::warn!(host = %id, error = chain(&error), "what was done could not be audited");
        }
        match forgotten {
            Ok(Ok(())) => Ok(Response::new(v1::ForgetHistoryResponse {
                host_id: id.as_bytes().to_vec(),
            })),
            Ok(Err(error)) => Err(Status::unavailable(chain(&error))),
            Err(_) => Err(Status::internal("the history did not answer")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn outlet() -> (Outlet, mpsc::Receiver<Answered>, Arc<Semaphore>) {
        let places = Arc::new(Semaphore::new(1));
        let place = Arc::clone(&places).acquire_owned().await.expect("open");
        let (outlet, answers) = Outlet::new(place).expect("an empty queue");
        (outlet, answers, places)
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_stalls_is_given_up_and_told_why() {
        let (outlet, mut answers, places) = outlet().await;
        let began = Instant::now();
        for _ in 0..AHEAD {
            assert_eq!(outlet.send(v1::HistorySeries::default()), Ok(()));
        }
        let more = || Ok(v1::ReadHistoryResponse::default());
        assert_eq!(outlet.wait(more()).await, Err(Unsent::Stalled));
        assert_eq!(began.elapsed(), STALL);
        answers.recv().await.expect("an answer").expect("a series");
        assert_eq!(outlet.wait(more()).await, Ok(()), "somebody reads again");
        tokio::time::sleep(WORK - STALL - Duration::from_secs(1)).await;
        assert_eq!(outlet.wait(more()).await, Err(Unsent::Late));
        outlet.end(Err(stalled()));
        assert_eq!(places.available_permits(), 1, "its place is free");
        let mut last = None;
        while let Some(answer) = answers.recv().await {
            last = Some(answer);
        }
        let last = last.expect("answers").expect_err("the last word");
        assert_eq!(last.code(), tonic::Code::Aborted);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_goes_or_takes_too_long_ends_the_work() {
        let (gone, answers, _places) = outlet().await;
        drop(answers);
        while gone.give_up.check().is_ok() {
            tokio::task::yield_now().await;
        }
        assert_eq!(gone.send(v1::HistorySeries::default()), Err(Unsent::Gone));
        let (late, _answers, _places) = outlet().await;
        tokio::time::sleep(WORK - Duration::from_secs(1)).await;
        assert!(late.give_up.check().is_ok());
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert!(late.give_up.check().is_err());
    }
}
