//! The `Events` service: what happened on hosts, as a list and as it comes in, and recordings of flight
//! recorders.
//!
//! A follower reads from the store by the number it has seen last, so a slow one misses nothing and holds
//! nothing up; at most [`MAX_FOLLOWERS`] follow at once, [`MAX_OF_ONE`] of one operator. Whether they still may is
//! looked up each second.

use std::{
    collections::{HashMap, HashSet},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::Stream;
use muster_proto::{
    event,
    id::HostId,
    limits::MAX_OPERATOR_MESSAGE_BYTES,
    time::{Clock, Timestamp},
    v1::{
        self,
        events_server::{Events as EventsRpc, EventsServer},
    },
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::{self, Instant},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::{
    access::{Access, Caller},
    ask::{parse_names, parse_selector, store_failed},
    rows::Asked,
};
use crate::{
    chain,
    control::{Control, IncidentFilter},
    events::{Choice, Events, EventsError, Kept, KeptRecording, recorded, store::MAX_SCANNED},
    fleet::Fleet,
    rfc3339,
};

/// Events of an answer unless the caller says otherwise, and at most.
const EVENTS: u32 = 200;
const MAX_EVENTS: u32 = 10_000;

/// Recordings of an answer unless the caller says otherwise, and at most.
const RECORDINGS: u32 = 100;
const MAX_RECORDINGS: u32 = 1_000;

/// Streams of events at once.
pub const MAX_FOLLOWERS: usize = 128;
/// Of these, of one operator: as many terminals.
pub const MAX_OF_ONE: usize = 16;

/// How often it is looked up whether a follower still may.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Events in one message of a stream.
const BATCH: usize = 500;

/// Messages of a stream that wait for a slow reader.
const WAITING: usize = 5;

/// An empty message after this long tells that the stream is alive, and finds out who has gone.
const ALIVE_EVERY: Duration = Duration::from_secs(15);

/// Who is chosen is looked up again after this long: hosts join, and change what selectors ask of them.
const CHOOSE_EVERY: Duration = Duration::from_secs(10);

/// Answers operators about events.
#[derive(Clone)]
pub struct EventsService {
    fleet: Fleet,
    events: Events,
    control: Control,
    access: Access,
    clock: Arc<dyn Clock>,
    followers: Followers,
}

/// Who follows: places in all, and of each operator.
#[derive(Clone)]
struct Followers {
    all: Arc<Semaphore>,
    of: Arc<Mutex<HashMap<String, usize>>>,
}

/// A place among them, until it is dropped.
struct Place {
    _of_all: OwnedSemaphorePermit,
    followers: Followers,
    name: String,
}

impl Followers {
    fn new() -> Self {
        Self {
            all: Arc::new(Semaphore::new(MAX_FOLLOWERS)),
            of: Arc::default(),
        }
    }

    fn take(&self, name: &str) -> Result<Place, Status> {
        let Ok(of_all) = Arc::clone(&self.all).try_acquire_owned() else {
            return Err(Status::resource_exhausted(format!(
                "{MAX_FOLLOWERS} streams of events are open already"
            )));
        };
        let mut of = self.of.lock().unwrap_or_else(PoisonError::into_inner);
        let held = of.get(name).copied().unwrap_or(0);
        if held >= MAX_OF_ONE {
            return Err(Status::resource_exhausted(format!(
                "{name} has {MAX_OF_ONE} streams of events open already"
            )));
        }
        of.insert(name.to_owned(), held + 1);
        Ok(Place {
            _of_all: of_all,
            followers: self.clone(),
            name: name.to_owned(),
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut of = self
            .followers
            .of
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(held) = of.get_mut(&self.name) {
            *held -= 1;
            if *held == 0 {
                of.remove(&self.name);
            }
        }
    }
}

/// Hosts that are chosen, with their names; all if there was no choice.
struct Chosen {
    names: HashMap<HostId, String>,
    missing: Vec<String>,
    all: bool,
}

impl EventsService {
    /// Reads events from this store and hosts from this fleet.
    #[must_use]
    pub fn new(fleet: Fleet, events: Events, control: Control, clock: Arc<dyn Clock>) -> Self {
        Self {
            access: Access::new(control.clone(), Arc::clone(&clock)),
            fleet,
            events,
            control,
            clock,
            followers: Followers::new(),
        }
    }

    /// As a tonic service with its limits. The transport must give each request its
    /// [`crate::listen::Peer`].
    #[must_use]
    pub fn into_server(self) -> EventsServer<Self> {
        EventsServer::new(self).max_encoding_message_size(MAX_OPERATOR_MESSAGE_BYTES)
    }

    fn meta(&self, missing: Vec<String>) -> v1::AnswerMeta {
        v1::AnswerMeta {
            complete: missing.is_empty(),
            missing,
            as_of_ms: self.clock.now().as_millis(),
        }
    }

    async fn choose(&self, choice: &v1::EventChoice) -> Result<Chosen, Status> {
        let selector = parse_selector(&choice.selector)?;
        let names: Vec<String> = Some(choice.host.clone())
            .filter(|host| !host.is_empty())
            .into_iter()
            .collect();
        let patterns = parse_names(&names)?;
        let mut open = HashMap::new();
        if !choice.selector.is_empty() {
            let incidents = self.control.incidents(IncidentFilter::default()).await;
            let (incidents, _) = incidents.map_err(|error| store_failed(&error))?;
            for incident in incidents {
                *open.entry(incident.host_id).or_insert(0) += 1;
            }
        }
        let open: Arc<HashMap<HostId, u32>> = Arc::new(open);
        let id = choice.host.clone();
        let answer = self
            .fleet
            .each(move |host, _| {
                let named = patterns.is_empty()
                    || patterns.iter().any(|name| name.matches(host.name()))
                    || host.id().to_string() == id;
                let asked = Asked {
                    host,
                    open_incidents: open.get(&host.id()).copied().unwrap_or(0),
                };
                let chosen = named && selector.matches(&asked);
                chosen.then(|| (host.id(), host.name().to_owned()))
            })
            .await;
        let names: HashMap<HostId, String> = answer.items.into_iter().collect();
        let literal = patterns_are_literal(&choice.host);
        if names.is_empty() && literal && choice.selector.is_empty() && answer.missing.is_empty() {
            let name = &choice.host;
            return Err(Status::not_found(format!("no host is called {name}")));
        }
        Ok(Chosen {
            names,
            missing: answer.missing,
            all: choice.selector.is_empty() && choice.host.is_empty(),
        })
    }

    async fn list(&self, request: v1::ListEventsRequest) -> Result<v1::ListEventsResponse, Status> {
        let choice = request.choice.unwrap_or_default();
        let kinds = parse_kinds(&choice.kinds)?;
        let chosen = self.choose(&choice).await?;
        let limit = match request.limit {
            0 => EVENTS,
            limit => limit.min(MAX_EVENTS),
        };
        let found = self
            .events
            .find(Choice {
                hosts: chosen.hosts(),
                kinds,
                since: request.since_ms.map(Timestamp::from_millis),
                until: request.until_ms.map(Timestamp::from_millis),
                after: None,
                limit: usize::try_from(limit).unwrap_or(usize::MAX),
                newest: true,
            })
            .await
            .map_err(|error| failed(&error))?;
        let mut missing = chosen.missing.clone();
        if let Some(at) = found.cut_short {
            let at = rfc3339(at);
            missing.push(format!(
                "events before {at}: {MAX_SCANNED} were looked at; ask for what happened --until {at}, or for fewer hosts"
            ));
        }
        let first = found.events.iter().map(|kept| kept.event.at_ms).min();
        Ok(v1::ListEventsResponse {
            meta: Some(self.meta(missing)),
            more_before_ms: first.filter(|_| found.more),
            events: found
                .events
                .into_iter()
                .map(|kept| chosen.row(kept))
                .collect(),
            not_kept: self.events.health().not_kept(),
        })
    }

    async fn follow(
        self,
        choice: v1::EventChoice,
        kinds: Vec<i32>,
        mut chosen: Chosen,
        outbound: &mpsc::Sender<Result<v1::EventBatch, Status>>,
    ) {
        let mut newest = self.events.newest();
        let mut seen = *newest.borrow_and_update();
        let mut chosen_at = Instant::now();
        loop {
            let woken = tokio::select! {
                changed = newest.changed() => changed.is_ok(),
                () = time::sleep(ALIVE_EVERY) => true,
                () = outbound.closed() => return,
            };
            if !woken {
                let stopping = Status::unavailable("the aggregator is stopping");
                let _ = outbound.send(Err(stopping)).await;
                return;
            }
            let until = *newest.borrow_and_update();
            if chosen_at.elapsed() > CHOOSE_EVERY {
                chosen_at = Instant::now();
                // A host that is gone in between has no more events; one that cannot be asked keeps its choice.
                if let Ok(anew) = self.choose(&choice).await
                    && anew.missing.is_empty()
                {
                    chosen = anew;
                }
            }
            let mut told = false;
            while seen < until {
                let asked = self.events.find(Choice {
                    hosts: chosen.hosts(),
                    kinds: kinds.clone(),
                    after: Some(seen),
                    limit: BATCH,
                    newest: false,
                    ..Choice::default()
                });
                let found = match asked.await {
                    Ok(found) => found,
                    Err(error) => {
                        let _ = outbound.send(Err(failed(&error))).await;
                        return;
                    }
                };
                // Without more, all up to the newest that was there before was looked at.
                let last = found.events.last().map(|kept| kept.number);
                seen = found.upto.unwrap_or(until.max(last.unwrap_or(0)));
                if found.events.is_empty() {
                    continue;
                }
                told = true;
                let events = found.events.into_iter().map(|kept| chosen.row(kept));
                let batch = v1::EventBatch {
                    events: events.collect(),
                };
                if outbound.send(Ok(batch)).await.is_err() {
                    return;
                }
            }
            if !told
                && outbound.try_send(Ok(v1::EventBatch::default())).is_err()
                && outbound.is_closed()
            {
                return;
            }
        }
    }

    async fn names_of(&self, hosts: HashSet<HostId>) -> HashMap<HostId, String> {
        let hosts = Arc::new(hosts);
        let answer = self.fleet.each(move |host, _| {
            hosts
                .contains(&host.id())
                .then(|| (host.id(), host.name().to_owned()))
        });
        answer.await.items.into_iter().collect()
    }

    async fn recordings(
        &self,
        request: v1::ListRecordingsRequest,
    ) -> Result<v1::ListRecordingsResponse, Status> {
        let host =
            if request.host.is_empty() {
                None
            } else {
                let found = self.fleet.host(&request.host, |host, _| host.id()).await;
                Some(found.ok_or_else(|| {
                    Status::not_found(format!("no host is called {}", request.host))
                })?)
            };
        let between = (
            request.since_ms.map(Timestamp::from_millis),
            request.until_ms.map(Timestamp::from_millis),
        );
        let limit = match request.limit {
            0 => RECORDINGS,
            limit => limit.min(MAX_RECORDINGS),
        };
        let kept = self
            .events
            .recordings(host, between, usize::try_from(limit).unwrap_or(usize::MAX))
            .await
            .map_err(|error| failed(&error))?;
        let names = self
            .names_of(kept.iter().map(|kept| kept.host).collect())
            .await;
        Ok(v1::ListRecordingsResponse {
            meta: Some(self.meta(Vec::new())),
            recordings: kept
                .iter()
                .map(|kept| recording_row(kept, &names))
                .collect(),
        })
    }

    async fn recording(&self, number: u64) -> Result<v1::Recording, Status> {
        let found = self
            .events
            .recording(i64::try_from(number).unwrap_or(0))
            .await;
        let Some((kept, parts)) = found.map_err(|error| failed(&error))? else {
            return Err(Status::not_found(format!("there is no recording {number}")));
        };
        let names = self.names_of(HashSet::from([kept.host])).await;
        let mut missing = Vec::new();
        if kept.parts_here < kept.parts {
            missing.push(format!(
                "{} of {} parts",
                kept.parts - kept.parts_here,
                kept.parts
            ));
        }
        Ok(v1::Recording {
            meta: Some(self.meta(missing)),
            row: Some(recording_row(&kept, &names)),
            seconds: recorded::seconds(&parts),
            busiest: parts.into_iter().flat_map(|part| part.busiest).collect(),
        })
    }
}

impl Chosen {
    fn hosts(&self) -> Option<Vec<HostId>> {
        (!self.all).then(|| self.names.keys().copied().collect())
    }

    fn row(&self, kept: Kept) -> v1::EventRow {
        v1::EventRow {
            number: kept.number.unsigned_abs(),
            host: name(&self.names, kept.host),
            host_id: kept.host.to_string(),
            received_ms: kept.received.as_millis(),
            late: kept.late,
            event: Some(kept.event),
        }
    }
}

/// The name of a host; its id when it is no longer enrolled.
fn name(names: &HashMap<HostId, String>, host: HostId) -> String {
    names
        .get(&host)
        .cloned()
        .unwrap_or_else(|| host.to_string())
}

fn recording_row(kept: &KeptRecording, names: &HashMap<HostId, String>) -> v1::RecordingRow {
    v1::RecordingRow {
        number: kept.number.unsigned_abs(),
        host: name(names, kept.host),
        host_id: kept.host.to_string(),
        asked_ms: kept.asked.as_millis(),
        from_ms: kept.from.as_millis(),
        to_ms: kept.to.as_millis(),
        parts_here: kept.parts_here,
        parts: kept.parts,
        bytes: kept.bytes,
    }
}

fn patterns_are_literal(name: &str) -> bool {
    !name.is_empty() && !name.contains(['*', '?', '[', ','])
}

fn parse_kinds(words: &[String]) -> Result<Vec<i32>, Status> {
    let kind = |word: &String| {
        event::parse_kind(word).map(i32::from).ok_or_else(|| {
            let known: Vec<String> = event::kinds().map(event::kind_word).collect();
            Status::invalid_argument(format!(
                "{word:?} is no kind of event; kinds are {}",
                known.join(", ")
            ))
        })
    };
    words.iter().map(kind).collect()
}

/// Ends when a follower may not follow any more: why.
async fn no_more(access: &Access, caller: &Caller) -> Status {
    loop {
        time::sleep(LOOK_EVERY).await;
        if let Err(refusal) = access.still(caller, "FollowEvents").await {
            return refusal;
        }
    }
}

fn failed(error: &EventsError) -> Status {
    tracing::error!(error = %chain(error), "events cannot be read");
    Status::unavailable("the store of events cannot be read, see the aggregator's log")
}

#[tonic::async_trait]
impl EventsRpc for EventsService {
    type FollowEventsStream = Pin<Box<dyn Stream<Item = Result<v1::EventBatch, Status>> + Send>>;

    async fn list_events(
        &self,
        request: Request<v1::ListEventsRequest>,
    ) -> Result<Response<v1::ListEventsResponse>, Status> {
        self.access.admit(&request, "ListEvents").await?;
        self.list(request.into_inner()).await.map(Response::new)
    }

    async fn follow_events(
        &self,
        request: Request<v1::FollowEventsRequest>,
    ) -> Result<Response<Self::FollowEventsStream>, Status> {
        let caller = self.access.admit(&request, "FollowEvents").await?;
        let choice = request.into_inner().choice.unwrap_or_default();
        let kinds = parse_kinds(&choice.kinds)?;
        let chosen = self.choose(&choice).await?;
        let place = self.followers.take(&caller.name)?;
        let (outbound, stream) = mpsc::channel(WAITING);
        // Kept free for the last word: whoever does not read is told all the same why it ended.
        let last = outbound.clone().try_reserve_owned();
        let last = last.map_err(|_| Status::internal("an empty queue has no room"))?;
        let service = self.clone();
        tokio::spawn(async move {
            let access = service.access.clone();
            tokio::select! {
                () = service.follow(choice, kinds, chosen, &outbound) => {}
                refusal = no_more(&access, &caller) => {
                    last.send(Err(refusal));
                }
            }
            drop(place);
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn list_recordings(
        &self,
        request: Request<v1::ListRecordingsRequest>,
    ) -> Result<Response<v1::ListRecordingsResponse>, Status> {
        self.access.admit(&request, "ListRecordings").await?;
        self.recordings(request.into_inner())
            .await
            .map(Response::new)
    }

    async fn get_recording(
        &self,
        request: Request<v1::GetRecordingRequest>,
    ) -> Result<Response<v1::Recording>, Status> {
        self.access.admit(&request, "GetRecording").await?;
        self.recording(request.into_inner().number)
            .await
            .map(Response::new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::query::access::tests::Lab;

    #[tokio::test(start_paused = true)]
    async fn a_follower_whose_certificate_ends_is_told_so() {
        let lab = Lab::new();
        lab.clock.advance(Duration::from_secs(61));
        let began = Instant::now();
        let why = no_more(&lab.access, &lab.caller).await;
        assert!(why.message().contains("expired since"), "{why}");
        assert_eq!(began.elapsed(), LOOK_EVERY);
    }

    #[test]
    fn one_operator_does_not_take_all_places() {
        let followers = Followers::new();
        let take = |name: &str| followers.take(name);
        let mut held: Vec<Place> = (0..MAX_OF_ONE).filter_map(|_| take("eve").ok()).collect();
        assert_eq!(held.len(), MAX_OF_ONE);
        assert!(take("eve").is_err());
        held.pop();
        assert!(take("eve").is_ok(), "a place that was given back");
        for number in 0..MAX_FOLLOWERS {
            held.extend(take(&number.to_string()));
        }
        assert_eq!(held.len(), MAX_FOLLOWERS);
        assert!(take("jo").is_err());
        drop(held);
        assert!(take("jo").is_ok());
        assert_eq!(followers.of.lock().expect("no panic").len(), 0);
    }
}
