//! The enrolment door: how hosts join.
//!
//! It is bound only while a token could let somebody in, so most of the time there is nothing to attack. A caller
//! has proved nothing but that it can reach the port: messages are small, connections short, and an address that
//! fails five times within a minute is not listened to until the minute is over. Whoever shows the secret of a token is
//! no stranger: what others do, from the same network or from ten thousand, does not keep him out.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use muster_proto::{
    id::HostId,
    limits::MAX_ENROLMENT_MESSAGE_BYTES,
    time::{Clock, Timestamp},
    v1::{
        self,
        enrolment_server::{Enrolment, EnrolmentServer},
    },
};
use tokio::{net::TcpListener, sync::mpsc, time::Instant};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, transport::Server};

use crate::{
    control::{Control, ControlError, EnrolRefusal, EnrolRequest},
    directory,
    listen::{self, Counters, Limits, Peer},
    pki::{self, Authority, Doors},
};

/// Failures of one address within [`WINDOW`] before it is refused unheard.
const MAX_FAILURES: u32 = 5;
const WINDOW: Duration = Duration::from_secs(60);
/// Addresses remembered ([`listen::source`]); while there are as many, other strangers are refused unheard.
const MAX_ADDRESSES: usize = 10_000;
/// How often a full list is searched for those whose time is over.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// Hosts that are let in within a second once [`JOIN_BURST`] have been: each costs a signature and a write.
const JOINS_PER_SECOND: f64 = 100.0;
/// Hosts that may come at once.
const JOIN_BURST: f64 = 100.0;
/// A host beyond that asks again after this and as much again by chance.
const COME_BACK: Duration = Duration::from_secs(2);
/// How often a host that waits for a person asks again.
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// How often to look whether a token was made or ended; another process may have done it.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Joining takes two round trips; nobody needs the connection longer.
const CONNECTION_AGE: Duration = Duration::from_secs(60);

/// What the door needs.
#[derive(Clone)]
pub struct EnrolDoor {
    /// Tokens and hosts.
    pub control: Control,
    /// Signs.
    pub authority: Arc<Authority>,
    /// Certificates of the door.
    pub doors: Arc<Doors>,
    /// Told to hosts: host:port of the uplink; `:port` means the host they dialled.
    pub uplink_address: String,
    /// Bounds of the accept loop.
    pub limits: Limits,
    /// What the accept loop did.
    pub counters: Arc<Counters>,
    /// The wall clock.
    pub clock: Arc<dyn Clock>,
    /// Told who has joined. Full or closed: the host is known when it connects.
    pub joined: mpsc::Sender<HostId>,
}

impl EnrolDoor {
    /// Keeps the door at `address` open while a token could let somebody in, until `stop`. A port that is taken is
    /// said once and tried again.
    pub async fn run(self, address: SocketAddr, stop: CancellationToken) {
        let mut open: Option<(CancellationToken, tokio::task::JoinHandle<()>)> = None;
        let mut complained = false;
        let mut ticks = tokio::time::interval(LOOK_EVERY);
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                _ = ticks.tick() => {}
            }
            let wanted = match self.control.live_token_exists(self.clock.now()).await {
                Ok(wanted) => wanted,
                Err(error) => {
                    tracing::warn!(
                        error = crate::chain(&error),
                        "cannot tell whether the enrolment door must be open"
                    );
                    continue;
                }
            };
            if !wanted {
                if let Some((close, task)) = open.take() {
                    close.cancel();
                    finished(task).await;
                    tracing::info!(%address, "enrolment closed: no token is live");
                }
                continue;
            }
            if open.is_some() {
                continue;
            }
            match listen::bind(address).await {
                Ok(listener) => {
                    let close = stop.child_token();
                    let task = tokio::spawn(self.clone().serve(listener, close.clone()));
                    open = Some((close, task));
                    complained = false;
                    tracing::info!(%address, "enrolment open: a token is live");
                }
                Err(error) if !complained => {
                    tracing::error!(%error, "the enrolment door cannot be opened");
                    complained = true;
                }
                Err(_) => {}
            }
        }
        if let Some((close, task)) = open {
            close.cancel();
            finished(task).await;
        }
    }

    /// Serves on a bound listener until `stop`.
    pub async fn serve(self, listener: TcpListener, stop: CancellationToken) {
        let config = Arc::clone(&self.doors.enrolment);
        let (limits, counters) = (self.limits.clone(), Arc::clone(&self.counters));
        let incoming = listen::tls(listener, config, limits, counters, stop.clone());
        let service = EnrolmentServer::new(Service {
            door: self,
            failures: Mutex::default(),
            room: Mutex::new(Room::full(Instant::now())),
        })
        .max_decoding_message_size(MAX_ENROLMENT_MESSAGE_BYTES);
        let served = Server::builder()
            .timeout(Duration::from_secs(10))
            .max_connection_age(CONNECTION_AGE)
            .max_concurrent_streams(4)
            .add_service(service)
            .serve_with_incoming_shutdown(incoming, stop.cancelled_owned())
            .await;
        if let Err(error) = served {
            tracing::error!(error = crate::chain(&error), "the enrolment door failed");
        }
    }
}

/// Hosts in the middle of joining get a moment; a connection that is only held open does not hold us.
async fn finished(mut task: tokio::task::JoinHandle<()>) {
    if tokio::time::timeout(Duration::from_secs(5), &mut task)
        .await
        .is_err()
    {
        task.abort();
    }
}

struct Service {
    door: EnrolDoor,
    failures: Mutex<Failed>,
    room: Mutex<Room>,
}

/// Room for hosts that join: a bucket that fills again.
#[derive(Debug, Clone, Copy)]
struct Room {
    places: f64,
    at: Instant,
}

impl Room {
    fn full(now: Instant) -> Self {
        Self {
            places: JOIN_BURST,
            at: now,
        }
    }

    /// Takes a place, if there is one.
    fn take(&mut self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.places = (self.places + passed * JOINS_PER_SECOND).min(JOIN_BURST);
        self.at = now;
        let free = self.places >= 1.0;
        if free {
            self.places -= 1.0;
        }
        free
    }
}

/// The host is to ask again.
fn wait(after: Duration, number: u32, now: Timestamp) -> v1::EnrolResponse {
    v1::EnrolResponse {
        wait_ms: u32::try_from(after.as_millis()).unwrap_or(u32::MAX),
        waiting_number: number,
        server_wall_ms: now.as_millis(),
        ..v1::EnrolResponse::default()
    }
}

#[derive(Debug, Clone, Copy)]
struct Failures {
    since: Timestamp,
    count: u32,
}

/// Who asks: an address, and the token whose secret was shown, if one was.
type Caller = (IpAddr, Option<String>);

/// Whether a caller is heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Heard {
    Yes,
    /// It failed too often.
    Failed,
    /// So many others failed that a stranger's failure could not be remembered.
    Crowded,
}

/// Callers that failed lately.
#[derive(Debug, Default)]
struct Failed {
    callers: HashMap<Caller, Failures>,
    swept: Option<Timestamp>,
}

impl Failed {
    fn hears(&mut self, caller: &Caller, now: Timestamp) -> Heard {
        if let Some(seen) = self.callers.get(caller) {
            let failed = seen.count >= MAX_FAILURES && now.since(seen.since) < WINDOW;
            return if failed { Heard::Failed } else { Heard::Yes };
        }
        if self.is_full(now) && caller.1.is_none() {
            return Heard::Crowded;
        }
        Heard::Yes
    }

    fn is_full(&mut self, now: Timestamp) -> bool {
        let due =
            |swept| Duration::from_millis(now.millis_since(swept).unsigned_abs()) >= SWEEP_EVERY;
        if self.callers.len() >= MAX_ADDRESSES && self.swept.is_none_or(due) {
            self.swept = Some(now);
            self.callers
                .retain(|_, seen| now.since(seen.since) < WINDOW);
        }
        self.callers.len() >= MAX_ADDRESSES
    }

    fn note(&mut self, caller: Caller, now: Timestamp) {
        if !self.callers.contains_key(&caller) && self.is_full(now) {
            return;
        }
        let begin = Failures {
            since: now,
            count: 0,
        };
        let seen = self.callers.entry(caller).or_insert(begin);
        if now.since(seen.since) >= WINDOW {
            *seen = begin;
        }
        seen.count += 1;
    }
}

impl Service {
    fn failures(&self) -> MutexGuard<'_, Failed> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn join(
        &self,
        request: v1::EnrolRequest,
        known: bool,
        address: IpAddr,
        now: Timestamp,
    ) -> Result<v1::EnrolResponse, Status> {
        // Room is for who has a token: strangers must not be able to take it.
        let has_room = !known
            || self
                .room
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take(Instant::now());
        if !has_room {
            return Ok(wait(COME_BACK + COME_BACK.mul_f64(fastrand::f64()), 0, now));
        }
        let csr = pki::Request::check(&request.csr).map_err(|error| {
            Status::invalid_argument(format!(
                "the certificate request is not acceptable: {error}"
            ))
        })?;
        let mut facts = request.facts.unwrap_or_default();
        directory::checked(&facts).map_err(|error| {
            tracing::warn!(%address, %error, "a host was refused");
            Status::invalid_argument(format!(
                "what the host says of itself is not acceptable: {error}"
            ))
        })?;
        let labels = std::mem::take(&mut facts.labels).into_iter().collect();
        let asked = EnrolRequest {
            token_id: request.token_id,
            secret: request.token_secret,
            fingerprint: *csr.fingerprint(),
            facts: facts.into(),
            labels,
            from: address.to_string(),
        };
        let authority = Arc::clone(&self.door.authority);
        let issue = move |host_id| authority.issue_agent(&csr, host_id, now);
        let enrolled = self
            .door
            .control
            .enrol(asked, issue, now)
            .await
            .map_err(unrecorded)?;
        if let Err(EnrolRefusal::Waiting(number)) = &enrolled {
            return Ok(wait(ASK_AGAIN, *number, now));
        }
        let enrolled = enrolled.map_err(|refusal| refused(refusal, address))?;
        tracing::info!(host = %enrolled.host_id, name = enrolled.name, %address, again = enrolled.again, "host joined");
        let _ = self.door.joined.try_send(enrolled.host_id);
        Ok(v1::EnrolResponse {
            certificate_chain: enrolled
                .issued
                .chain
                .iter()
                .map(|certificate| certificate.to_vec())
                .collect(),
            bundle: Some(self.door.authority.bundle()),
            host_id: enrolled.host_id.as_bytes().to_vec(),
            uplink_address: self.door.uplink_address.clone(),
            server_wall_ms: now.as_millis(),
            wait_ms: 0,
            waiting_number: 0,
        })
    }
}

fn unrecorded(error: ControlError) -> Status {
    tracing::error!(error = crate::chain(&error), "a host could not join");
    Status::unavailable("the aggregator cannot record new hosts now; its log says why")
}

fn refused(refusal: EnrolRefusal, address: IpAddr) -> Status {
    tracing::warn!(%address, why = %refusal, "a host was refused");
    match refusal {
        EnrolRefusal::Unknown => Status::unauthenticated(refusal.to_string()),
        _ => Status::permission_denied(refusal.to_string()),
    }
}

#[tonic::async_trait]
impl Enrolment for Service {
    async fn enrol(
        &self,
        request: Request<v1::EnrolRequest>,
    ) -> Result<Response<v1::EnrolResponse>, Status> {
        let address = request
            .extensions()
            .get::<Peer>()
            .map(|peer| peer.addr.ip().to_canonical())
            .ok_or_else(|| Status::internal("the connection has no address"))?;
        let now = self.door.clock.now();
        let request = request.into_inner();
        let (token_id, secret) = (&request.token_id, &request.token_secret);
        let known = self.door.control.is_secret_of(token_id, secret).await;
        let known = known.map_err(unrecorded)?;
        let caller = (listen::source(address), known.then(|| token_id.clone()));
        let heard = self.failures().hears(&caller, now);
        let why = match heard {
            Heard::Yes => None,
            Heard::Failed => Some("too many failed attempts from this address: wait a minute"),
            Heard::Crowded => Some(
                "too many addresses failed here within a minute, so only who has a token is heard, and this is none of ours: is it whole, and of this aggregator?",
            ),
        };
        if let Some(why) = why {
            return Err(Status::resource_exhausted(why));
        }
        let joined = self.join(request, known, address, now).await;
        if let Err(status) = &joined
            && status.code() != tonic::Code::Unavailable
        {
            self.failures().note(caller, now);
        }
        joined.map(Response::new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_fails_is_not_heard_and_others_are_not_forgotten_for_it() {
        let mut failed = Failed::default();
        let begin = Timestamp::from_millis(1_795_000_000_000);
        let stranger = |number: u32| (IpAddr::from(number.to_be_bytes()), None);
        let guilty = stranger(1);
        let known = (guilty.0, Some("t1".to_owned()));
        for _ in 0..MAX_FAILURES {
            assert_eq!(failed.hears(&guilty, begin), Heard::Yes);
            failed.note(guilty.clone(), begin);
        }
        assert_eq!(failed.hears(&guilty, begin), Heard::Failed);
        assert_eq!(failed.hears(&known, begin), Heard::Yes, "it has a token");
        let mut number = 2;
        while failed.hears(&stranger(number), begin) == Heard::Yes {
            failed.note(stranger(number), begin);
            number += 1;
        }
        assert_eq!(failed.hears(&stranger(number), begin), Heard::Crowded);
        failed.note(stranger(number), begin);
        failed.note(known.clone(), begin);
        assert_eq!(failed.callers.len(), MAX_ADDRESSES, "it is bounded");
        assert_eq!(
            failed.hears(&stranger(2), begin),
            Heard::Yes,
            "who is in it is heard"
        );
        assert_eq!(
            failed.hears(&guilty, begin),
            Heard::Failed,
            "and is not forgotten"
        );
        assert_eq!(failed.hears(&known, begin), Heard::Yes);
        let later = begin.plus(WINDOW);
        assert_eq!(failed.hears(&stranger(number), later), Heard::Yes);
        assert_eq!(failed.hears(&guilty, later), Heard::Yes);
        assert_eq!(failed.callers.len(), 0, "their time is over");
        // A token that is good for nothing any more is not heard for ever either.
        for _ in 0..MAX_FAILURES {
            failed.note(known.clone(), later);
        }
        assert_eq!(failed.hears(&known, later), Heard::Failed);
    }

    #[test]
    fn a_hundred_at_once_and_a_hundred_a_second() {
        let begin = Instant::now();
        let mut room = Room::full(begin);
        let mut taken = |after_ms: u64| {
            let now = begin + Duration::from_millis(after_ms);
            (0..1000).filter(|_| room.take(now)).count()
        };
        assert_eq!(taken(0), 100);
        assert_eq!(taken(0), 0);
        assert_eq!(taken(500), 50);
        assert_eq!(taken(60_000), 100);
    }
}
