//! The `Paging` service: what operators do about incidents, each act with the name of who did it.

use std::{sync::Arc, time::Duration};

use muster_proto::{
    limits::MAX_OPERATOR_MESSAGE_BYTES,
    time::{Clock, Timestamp},
    v1::{
        self,
        paging_server::{Paging, PagingServer},
    },
};
use tonic::{Request, Response, Status};

use super::{
    access::{Access, Caller},
    ask::{count, not_written, store_failed},
};
use crate::{
    control::{
        Ack, AckOutcome, Control, IncidentFilter, MAX_TEXT_BYTES, Phase, Quiet, QuietKind, Weekly,
    },
    fleet::Fleet,
    incident::{hush::Hush, roster::Roster},
    notify::{self, Message, Told},
    selector::{Selector, pattern::Pattern},
};

const DAY: Duration = Duration::from_secs(86_400);

/// Answers what operators do about incidents.
#[derive(Clone)]
pub struct PagingService {
    fleet: Fleet,
    control: Control,
    told: Told,
    access: Access,
    clock: Arc<dyn Clock>,
}

/// What a silence or window is about now.
struct Reach {
    hosts: u32,
    hides: Vec<u64>,
}

impl PagingService {
    /// Works on this store; hosts are looked up in this fleet.
    #[must_use]
    pub fn new(fleet: Fleet, control: Control, told: Told, clock: Arc<dyn Clock>) -> Self {
        Self {
            access: Access::new(control.clone(), Arc::clone(&clock)),
            fleet,
            control,
            told,
            clock,
        }
    }

    /// As a tonic service with its limits. The transport must give each request its [`crate::listen::Peer`].
    #[must_use]
    pub fn into_server(self) -> PagingServer<Self> {
        PagingServer::new(self).max_encoding_message_size(MAX_OPERATOR_MESSAGE_BYTES)
    }

    async fn acknowledge(
        &self,
        request: v1::AcknowledgeIncidentRequest,
        caller: Caller,
    ) -> Result<v1::AcknowledgeIncidentResponse, Status> {
        let at = self.clock.now();
        let until = request.until_ms.map(Timestamp::from_millis);
        if until.is_some_and(|until| until <= at) {
            return Err(Status::invalid_argument(
                "the acknowledgement would be over already",
            ));
        }
        let ack = Ack {
            by: caller.name,
            at,
            until,
            text: checked_text(request.text)?,
        };
        let outcome = self.control.acknowledge(request.number, ack).await;
        let outcome = outcome.map_err(|error| not_written(&error))?;
        let numbers = acknowledged(outcome, request.number)?;
        Ok(v1::AcknowledgeIncidentResponse { numbers })
    }

    async fn add(&self, quiet: v1::Quiet, caller: Caller) -> Result<v1::AddQuietResponse, Status> {
        let made = self.clock.now();
        let quiet = self.understood(quiet, caller.name, made)?;
        let Some(hush) = Hush::of(quiet.clone()) else {
            return Err(Status::invalid_argument("this is no selector"));
        };
        let (roster, _) = Roster::read(&self.fleet).await;
        let reach = self.reach(&[hush], &roster).await?;
        let number = self.control.add_quiet(quiet).await;
        let (hosts, hides) = reach
            .first()
            .map_or((0, 0), |reach| (reach.hosts, count(reach.hides.len())));
        Ok(v1::AddQuietResponse {
            number: number.map_err(|error| not_written(&error))?,
            hosts,
            hides,
        })
    }

    /// A request as the store takes it, or what is wrong with it.
    fn understood(
        &self,
        quiet: v1::Quiet,
        made_by: String,
        made: Timestamp,
    ) -> Result<Quiet, Status> {
        let wrong = |what: String| Status::invalid_argument(what);
        let Some(kind) = QuietKind::of_wire(quiet.kind()) else {
            return Err(wrong(
                "neither a silence nor a maintenance window".to_owned(),
            ));
        };
        let selector = Selector::parse(&quiet.selector)
            .map_err(|error| wrong(format!("this is no selector: {error}")))?;
        if selector.is_all() {
            return Err(wrong(
                "an empty selector would be about the whole fleet; if you mean that, write name=*"
                    .to_owned(),
            ));
        }
        if let Some(field) = selector.fleeting() {
            return Err(wrong(format!(
                "{field} changes from minute to minute, so a {} cannot rest on it; use labels or names",
                kind.as_str()
            )));
        }
        if !quiet.subject.is_empty() {
            Pattern::parse(&quiet.subject)
                .map_err(|error| wrong(format!("{:?} is no pattern: {error}", quiet.subject)))?;
        }
        let weekly = quiet.weekly.map(|weekly| Weekly {
            // More than eight bits are no days; all of them set is refused below.
            days: u8::try_from(weekly.days).unwrap_or(u8::MAX),
            at_minute: weekly.at_minute,
            minutes: weekly.minutes,
            zone: weekly.zone,
        });
        let quiet = Quiet {
            number: 0,
            kind,
            selector: quiet.selector,
            rule: quiet.rule,
            subject: quiet.subject,
            starts: Timestamp::from_millis(quiet.starts_ms).max(made),
            ends: quiet.ends_ms.map(Timestamp::from_millis),
            weekly,
            text: checked_text(quiet.text)?,
            made_by,
            made,
            ended: None,
        };
        quiet
            .check(made)
            .map_err(|error| wrong(error.to_string()))?;
        Ok(quiet)
    }

    async fn list(&self, request: v1::ListQuietsRequest) -> Result<v1::ListQuietsResponse, Status> {
        let now = self.clock.now();
        let quiets = self.control.quiets(request.all, now).await;
        let kind = QuietKind::of_wire(request.kind());
        let quiets = quiets.map_err(|error| store_failed(&error))?.into_iter();
        let hushes: Vec<Hush> = quiets
            .filter(|quiet| kind.is_none_or(|kind| kind == quiet.kind))
            .filter_map(Hush::of)
            .collect();
        let (roster, missing) = Roster::read(&self.fleet).await;
        let reach = self.reach(&hushes, &roster).await?;
        let rows = hushes.into_iter().zip(reach).map(|(hush, reach)| {
            let phase = hush.quiet.phase(now);
            v1::QuietRow {
                active: matches!(phase, Phase::Active(_)),
                changes_ms: match phase {
                    Phase::Active(at) | Phase::Waiting(at) => Some(at.as_millis()),
                    Phase::Over => None,
                },
                hosts: reach.hosts,
                hides: if phase == Phase::Over {
                    Vec::new()
                } else {
                    reach.hides
                },
                quiet: Some(to_wire(hush.quiet)),
            }
        });
        Ok(v1::ListQuietsResponse {
            quiets: rows.collect(),
            meta: Some(v1::AnswerMeta {
                complete: missing.is_empty(),
                missing,
                as_of_ms: now.as_millis(),
            }),
        })
    }

    async fn channels(&self) -> Result<v1::ListChannelsResponse, Status> {
        let now = self.clock.now();
        let mut channels = Vec::new();
        for channel in self.told.channels() {
            let books = self
                .control
                .channel_books(&channel.name, now.minus(DAY))
                .await;
            let books = books.map_err(|error| store_failed(&error))?;
            let severities = channel.severities.iter();
            channels.push(v1::ChannelRow {
                name: channel.name.clone(),
                kind: channel.kind.as_str().to_owned(),
                severities: severities.map(|one| one.as_str().to_owned()).collect(),
                waiting: books.waiting,
                oldest_ms: books.oldest.map(Timestamp::as_millis),
                next_ms: books.next.map(Timestamp::as_millis),
                delivered: books.delivered,
                held_back: books.held_back,
                given_up: books.given_up,
                last_delivered_ms: books.last_delivered.map(Timestamp::as_millis),
                error: books.error,
            });
        }
        Ok(v1::ListChannelsResponse {
            meta: Some(complete(now)),
            channels,
        })
    }

    /// Sends a trial at once, past the queue: who tests wants to see what happens.
    async fn test(&self, name: &str, caller: &Caller) -> Result<v1::TestChannelResponse, Status> {
        let channels = self.told.channels();
        let Some(channel) = channels.iter().find(|channel| channel.name == name) else {
            let known: Vec<&str> = channels.iter().map(|one| one.name.as_str()).collect();
            let known = match known.as_slice() {
                [] => "none is configured".to_owned(),
                known => format!("there are {}", known.join(", ")),
            };
            return Err(Status::not_found(format!(
                "no channel is called {name}; {known}"
            )));
        };
        let now = self.clock.now();
        let audited = self
            .control
            .audit(now, &caller.name, "test channel", name, "sent")
            .await;
        audited.map_err(|error| not_written(&error))?;
        let key = format!("test.{name}.{}", now.as_millis());
        let title = format!(
            "a trial by {}: nothing is wrong, and this channel works",
            caller.name
        );
        let message = Message::about("test", key, self.told.fleet_name(), title, now);
        let began = tokio::time::Instant::now();
        let sent = notify::send::send(channel, &message, &notify::send::To::All, now).await;
        Ok(v1::TestChannelResponse {
            kind: channel.kind.as_str().to_owned(),
            error: match sent {
                Ok(taken) if taken.later.is_empty() => taken.refused,
                Ok(taken) => {
                    let later = format!("refused for now for {}", taken.later.join(", "));
                    [later, taken.refused].join(" ").trim_end().to_owned()
                }
                Err(error) => crate::chain(&error),
            },
            millis: u32::try_from(began.elapsed().as_millis()).unwrap_or(u32::MAX),
        })
    }

    async fn noise(&self, request: v1::ListNoiseRequest) -> Result<v1::ListNoiseResponse, Status> {
        let now = self.clock.now();
        let since = match request.since_ms {
            0 => now.minus(30 * DAY),
            since => Timestamp::from_millis(since),
        };
        let rows = self.control.noise(since).await;
        let rows = rows.map_err(|error| store_failed(&error))?.into_iter();
        let list = v1::ListQuietsRequest::default();
        let quiets = self.list(list).await?.quiets;
        let (idle, others) = quiets
            .into_iter()
            .partition(|row: &v1::QuietRow| row.hosts == 0);
        let others: Vec<v1::QuietRow> = others;
        let hides = |row: &v1::QuietRow| row.active && !row.hides.is_empty();
        Ok(v1::ListNoiseResponse {
            meta: Some(complete(now)),
            rows: rows
                .map(|row| v1::NoiseRow {
                    rule: row.rule,
                    pages: row.pages,
                    acted_on: row.acted_on,
                    cleared_fast: row.cleared_fast,
                    messages: row.messages,
                })
                .collect(),
            since_ms: since.as_millis(),
            idle,
            hiding: others.into_iter().filter(hides).collect(),
        })
    }

    /// How many hosts each matches, and which open incidents it is about.
    async fn reach(&self, hushes: &[Hush], roster: &Roster) -> Result<Vec<Reach>, Status> {
        let open = self.control.incidents(IncidentFilter::default()).await;
        let (open, _) = open.map_err(|error| store_failed(&error))?;
        let reach = |hush: &Hush| Reach {
            hosts: count(
                roster
                    .hosts()
                    .filter(|(host, _)| hush.is_about(*host, roster))
                    .count(),
            ),
            hides: open
                .iter()
                .filter(|one| hush.hides(one.host_id, &one.rule, &one.subject, roster))
                .map(|one| one.number)
                .collect(),
        };
        Ok(hushes.iter().map(reach).collect())
    }
}

fn complete(now: Timestamp) -> v1::AnswerMeta {
    v1::AnswerMeta {
        complete: true,
        missing: Vec::new(),
        as_of_ms: now.as_millis(),
    }
}

fn to_wire(quiet: Quiet) -> v1::Quiet {
    let (ended_by, ended_ms) = match quiet.ended {
        Some((by, at)) => (by, Some(at.as_millis())),
        None => (String::new(), None),
    };
    v1::Quiet {
        kind: quiet.kind.to_wire().into(),
        number: quiet.number,
        selector: quiet.selector,
        rule: quiet.rule,
        subject: quiet.subject,
        starts_ms: quiet.starts.as_millis(),
        ends_ms: quiet.ends.map(Timestamp::as_millis),
        weekly: quiet.weekly.map(|weekly| v1::Weekly {
            days: weekly.days.into(),
            at_minute: weekly.at_minute,
            minutes: weekly.minutes,
            zone: weekly.zone,
        }),
        text: quiet.text,
        made_by: quiet.made_by,
        made_ms: quiet.made.as_millis(),
        ended_by,
        ended_ms,
    }
}

/// The incidents that an act was about, or why there was none.
fn acknowledged(outcome: AckOutcome, number: u64) -> Result<Vec<u64>, Status> {
    match outcome {
        AckOutcome::Done(numbers) => Ok(numbers),
        AckOutcome::Unknown => Err(Status::not_found(format!(
            "there is no incident I-{number}"
        ))),
        AckOutcome::Resolved => Err(Status::failed_precondition(format!(
            "I-{number} has cleared already"
        ))),
        AckOutcome::NotAcknowledged => Err(Status::failed_precondition(format!(
            "nobody has acknowledged I-{number}"
        ))),
    }
}

fn checked_text(text: String) -> Result<String, Status> {
    if text.len() > MAX_TEXT_BYTES {
        return Err(Status::invalid_argument(format!(
            "the text has {} bytes, {MAX_TEXT_BYTES} are kept; put the rest where it is linked to",
            text.len()
        )));
    }
    Ok(text)
}

#[tonic::async_trait]
impl Paging for PagingService {
    async fn acknowledge_incident(
        &self,
        request: Request<v1::AcknowledgeIncidentRequest>,
    ) -> Result<Response<v1::AcknowledgeIncidentResponse>, Status> {
        let caller = self.access.admit(&request, "AcknowledgeIncident").await?;
        let answer = self.acknowledge(request.into_inner(), caller).await;
        answer.map(Response::new)
    }

    async fn unacknowledge_incident(
        &self,
        request: Request<v1::UnacknowledgeIncidentRequest>,
    ) -> Result<Response<v1::UnacknowledgeIncidentResponse>, Status> {
        let caller = self.access.admit(&request, "UnacknowledgeIncident").await?;
        let (number, at) = (request.into_inner().number, self.clock.now());
        let outcome = self.control.unacknowledge(number, &caller.name, at).await;
        let outcome = outcome.map_err(|error| not_written(&error))?;
        let numbers = acknowledged(outcome, number)?;
        Ok(Response::new(v1::UnacknowledgeIncidentResponse { numbers }))
    }

    async fn add_quiet(
        &self,
        request: Request<v1::AddQuietRequest>,
    ) -> Result<Response<v1::AddQuietResponse>, Status> {
        let caller = self.access.admit(&request, "AddQuiet").await?;
        let quiet = request.into_inner().quiet.unwrap_or_default();
        self.add(quiet, caller).await.map(Response::new)
    }

    async fn list_quiets(
        &self,
        request: Request<v1::ListQuietsRequest>,
    ) -> Result<Response<v1::ListQuietsResponse>, Status> {
        self.access.admit(&request, "ListQuiets").await?;
        self.list(request.into_inner()).await.map(Response::new)
    }

    async fn end_quiet(
        &self,
        request: Request<v1::EndQuietRequest>,
    ) -> Result<Response<v1::EndQuietResponse>, Status> {
        let caller = self.access.admit(&request, "EndQuiet").await?;
        let request = request.into_inner();
        let Some(kind) = QuietKind::of_wire(request.kind()) else {
            return Err(Status::invalid_argument(
                "neither a silence nor a maintenance window",
            ));
        };
        let (number, now) = (request.number, self.clock.now());
        let ended = self
            .control
            .end_quiet(kind, number, &caller.name, now)
            .await
            .map_err(|error| not_written(&error))?;
        let was_over = ended.ok_or_else(|| {
            Status::not_found(format!("there is no {} {}", kind.as_str(), kind.id(number)))
        })?;
        Ok(Response::new(v1::EndQuietResponse { was_over }))
    }

    async fn list_channels(
        &self,
        request: Request<v1::ListChannelsRequest>,
    ) -> Result<Response<v1::ListChannelsResponse>, Status> {
        self.access.admit(&request, "ListChannels").await?;
        self.channels().await.map(Response::new)
    }

    async fn test_channel(
        &self,
        request: Request<v1::TestChannelRequest>,
    ) -> Result<Response<v1::TestChannelResponse>, Status> {
        let caller = self.access.admit(&request, "TestChannel").await?;
        let name = request.into_inner().name;
        self.test(&name, &caller).await.map(Response::new)
    }

    async fn list_noise(
        &self,
        request: Request<v1::ListNoiseRequest>,
    ) -> Result<Response<v1::ListNoiseResponse>, Status> {
        self.access.admit(&request, "ListNoise").await?;
        self.noise(request.into_inner()).await.map(Response::new)
    }
}
