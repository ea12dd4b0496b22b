//! The `History` service: the past of the fleet, streamed.
//!
//! A question is bounded by the points it may read, the time it may take and how many are worked on at once. The
//! reading is done on a thread of its own, series by series, and stops as soon as nobody listens any more.

use std::{
    collections::{BTreeSet, HashMap},
    ops::ControlFlow,
    sync::Arc,
    time::Duration,
};

use muster_proto::{
    id::HostId,
    limits::MAX_OPERATOR_MESSAGE_BYTES,
    series::Kind,
    time::Clock,
    v1::{
        self,
        history_server::{History, HistoryServer},
        read_history_response::Part,
    },
};
use tokio::{
    sync::{Semaphore, mpsc},
    time::Instant,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::{access::Access, rows::Asked};
use crate::{
    chain,
    control::Control,
    fleet::{Fleet, start},
    history::{
        HistoryError, HostSeries, LabelMatch, ReadReport, SampleQuery, SampleStore, Tier,
        fold::{self, Fold},
    },
    journal::JournalHealth,
    selector::{Selector, pattern::Pattern},
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

/// How far before the range a rate looks for the point before, at least.
const LOOK_BACK_MS: i64 = 300_000;

/// Answers operators about the past.
#[derive(Clone)]
pub struct HistoryService {
    fleet: Fleet,
    history: Result<start::History, String>,
    control: Control,
    journal: Arc<JournalHealth>,
    access: Access,
    clock: Arc<dyn Clock>,
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

    fn history(&self) -> Result<&start::History, Status> {
        let history = self.history.as_ref();
        history.map_err(|why| Status::unavailable(format!("there is no history: {why}")))
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
                let matches = named && selector.matches(&asked);
                matches.then(|| (host.id(), host.name().to_owned()))
            })
            .await;
        for (id, name) in answer.items {
            unknown.remove(&name);
            chosen.names.insert(id, name);
        }
        chosen.missing = answer.missing;
        if chosen.missing.is_empty() {
            chosen.unknown = unknown.into_iter().collect();
        }
        Ok(chosen)
    }
}

#[derive(Default)]
struct Chosen {
    names: HashMap<HostId, String>,
    unknown: Vec<String>,
    missing: Vec<String>,
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

fn refused(error: &HistoryError) -> Status {
    match error {
        HistoryError::TooMuch { .. } => Status::out_of_range(error.to_string()),
        _ => Status::internal(chain(error)),
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
    out: mpsc::Sender<Result<v1::ReadHistoryResponse, Status>>,
    deadline: Instant,
}

impl Work {
    /// Reads and sends; what came of it, unless nobody listens any more.
    fn run(&self) -> Option<Result<ReadReport, Status>> {
        let (mut gone, mut late) = (false, false);
        let read = self.store.read(&self.query, &mut |series| {
            if Instant::now() > self.deadline {
                late = true;
                return ControlFlow::Break(());
            }
            let Some(message) = self.message(&series) else {
                return ControlFlow::Continue(());
            };
            let message = v1::ReadHistoryResponse {
                part: Some(Part::Series(message)),
            };
            gone = self.out.blocking_send(Ok(message)).is_err();
            if gone {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        });
        if gone {
            return None;
        }
        Some(match read {
            Ok(mut report) => {
                if late {
                    let seconds = WORK.as_secs();
                    report
                        .missing
                        .push(format!("what takes longer than {seconds} s to read"));
                }
                Ok(report)
            }
            Err(error) => Err(refused(&error)),
        })
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
        let (out, answers) = mpsc::channel(AHEAD);
        let work = Work {
            query: SampleQuery {
                hosts: chosen.names.keys().copied().collect(),
                metric: Some(request.metric).filter(|metric| !metric.is_empty()),
                labels: labels.collect(),
                from: request.from_ms.saturating_sub(back),
                to: request.to_ms,
                step_ms: request.step_ms,
                max_points: history.store.config().max_points,
            },
            store: Arc::clone(&history.store) as Arc<dyn SampleStore>,
            names: chosen.names,
            fold,
            step_ms: request.step_ms,
            from: request.from_ms,
            out: out.clone(),
            deadline: Instant::now() + WORK,
        };
        let permit = tokio::time::timeout(WAIT, Arc::clone(&self.work).acquire_owned()).await;
        let Ok(Ok(permit)) = permit else {
            return Err(Status::resource_exhausted(
                "other questions about history are being worked on",
            ));
        };
        let behind = self.journal.durable() > history.store.durable()
            && history
                .health
                .taken
                .load(std::sync::atomic::Ordering::Relaxed)
                + 10_000
                < self.journal.durable();
        let (clock, mut missing, unknown_names) =
            (Arc::clone(&self.clock), chosen.missing, chosen.unknown);
        if behind {
            missing.push("the newest samples, which are still being read from the log".to_owned());
        }
        tokio::task::spawn_blocking(move || {
            let Some(outcome) = work.run() else { return };
            drop(permit);
            let last = outcome.map(|report| {
                missing.extend(report.missing);
                v1::ReadHistoryResponse {
                    part: Some(Part::End(v1::HistoryEnd {
                        meta: Some(v1::AnswerMeta {
                            complete: missing.is_empty(),
                            missing,
                            as_of_ms: clock.now().as_millis(),
                        }),
                        points_read: report.points,
                        unknown_names,
                    })),
                }
            });
            // Whoever asked may have gone.
            let _ = out.blocking_send(last);
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
                found.ok_or_else(|| Status::not_found(format!("no host is called {name}")))?
            }
        };
        if history.store.group_of(id).is_none() {
            return Err(Status::not_found(format!("nothing was recorded of {name}")));
        }
        let store = Arc::clone(&history.store);
        let forgotten = tokio::task::spawn_blocking(move || store.forget(id)).await;
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
