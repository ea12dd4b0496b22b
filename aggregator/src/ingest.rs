//! The uplink: one stream of one agent.
//!
//! Whose stream it is comes from the certificate, which the accept loop has read. The stream is opened
//! by a Hello, answered with a Welcome, and from then on hands what it receives to the host's shard.
//! What the shard answers goes straight to the agent. A breach of the contract ends the stream with a
//! Deny; a slow shard slows the stream down, since nothing is read while its inbox is full.
//!
//! Two machines with one identity are found here: while one is connected the other is turned away, and what each Hello
//! says is held against what the host said before ([`crate::control::Greeting`]).
//!
//! A connection whose certificate has expired may renew it and nothing else; a stream ends with the life of
//! its certificate.

use std::{
    collections::HashMap,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::{Stream, StreamExt};
use muster_proto::{
    id::{HostId, Incarnation},
    limits,
    time::{Clock, Timestamp},
    v1::{self, agent_message, aggregator_message, uplink_server::Uplink},
    words,
};
use tokio::{
    sync::{Semaphore, mpsc, oneshot},
    time::{Instant, sleep_until, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use crate::{
    control::{
        COPY_SIGNS, COPY_WINDOW, CertificateRefusal, Control, Greeted, Greeting, Lineage, Presented,
    },
    detect::{Change, Severity, Transition},
    directory::{Admitted, Directory, Known},
    fleet::{
        Fleet,
        host::{FrameIn, Lane, Session},
        shard::{Connection, Credit, Message, ToAgent, TransitionSink},
        silence::{Ended, Refused},
    },
    listen::{Ending, Peer},
    pki::{self, Authority, Origin},
    time_guard::{GuardedClock, Said},
};

mod lean;

pub use lean::Door;

/// Longest wait for the Hello of a new stream.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

/// Messages to one agent that wait in memory. Acks are cumulative, so few are enough.
const TO_AGENT: usize = 16;

/// Most incarnations a Hello may name (design/delivery.md §2).
const MAX_SPOOLED_INCARNATIONS: usize = 64;

/// A stream that stays silent for this many intervals, and at least [`IDLE_FLOOR`], is closed.
const IDLE_INTERVALS: u32 = 6;
const IDLE_FLOOR: Duration = Duration::from_secs(60);

/// Streams that one host may open at once, and each minute; then it is told to wait. An honest one opens one, and some
/// more when the network is bad or it is killed over and over: each costs a write.
const MAX_HELLOS: f64 = 60.0;
const HELLOS_PER_MINUTE: f64 = 20.0;
/// How long it is told to wait: until there is room for one more.
const HELLO_PAUSE: Duration = Duration::from_secs(3);

/// Renewals one host may ask for within [`RENEWAL_WINDOW`]: an honest one asks once in weeks, and a few times
/// more when answers are lost.
const MAX_RENEWALS: u32 = 20;
const RENEWAL_WINDOW: Duration = Duration::from_secs(3600);

/// The service behind the uplink door.
#[derive(Clone)]
pub struct UplinkService(Arc<Inner>);

struct Inner {
    fleet: Fleet,
    directory: Directory,
    renewing: Renewing,
    clock: Arc<dyn Clock>,
    welcome: WelcomeTerms,
    connections: AtomicU64,
    /// Begin of each host's window, and what it asked for in it. Bounded by the hosts that have a certificate.
    renewals: Mutex<HashMap<HostId, (Instant, u32)>>,
    /// How many streams each host may still open, and as of when. Bounded as well.
    hellos: Hellos,
    /// Who is connected. Bounded as well.
    live: Mutex<HashMap<HostId, Live>>,
}

#[derive(Debug, Default)]
struct Hellos(Mutex<HashMap<HostId, (f64, Instant)>>);

impl Hellos {
    /// Whether a host may open one more stream now.
    fn takes(&self, host: HostId, now: Instant) -> bool {
        let mut hellos = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (room, at) = hellos.entry(host).or_insert((MAX_HELLOS, now));
        let passed = now.saturating_duration_since(*at).as_secs_f64();
        *room = (*room + passed * HELLOS_PER_MINUTE / 60.0).min(MAX_HELLOS);
        *at = now;
        if *room < 1.0 {
            return false;
        }
        *room -= 1.0;
        true
    }
}

/// A machine that is connected.
#[derive(Debug, Clone)]
struct Live {
    connection: Connection,
    boot_id: Vec<u8>,
    address: SocketAddr,
}

/// Name of the rule that a host in quarantine has an incident of.
pub const COPY_RULE: &str = "identity_copied";

/// What the incident of a host in quarantine says, or its end.
#[must_use]
pub fn copy_transition(since: Timestamp, at: Timestamp, change: Change) -> Transition {
    Transition {
        rule: COPY_RULE,
        subject: String::new(),
        severity: Severity::Warning,
        since,
        at,
        change,
    }
}

/// What every Welcome says.
#[derive(Debug, Clone)]
pub struct WelcomeTerms {
    /// See [`crate::fleet::FleetConfig`].
    pub credit_bytes: u64,
    /// See [`crate::fleet::FleetConfig`].
    pub epoch: u64,
    /// `host:port` of the aggregators agents may use; empty: nothing is said.
    pub servers: Vec<String>,
}

/// What is decided about identities with.
pub struct Renewing {
    /// Which certificate is in use, and the audit log.
    pub control: Control,
    /// Signs.
    pub authority: Arc<Authority>,
    /// What certificates are judged by.
    pub clock: Arc<dyn Clock>,
    /// Told of hosts that come into quarantine.
    pub sink: Arc<dyn TransitionSink>,
    /// Told what hosts say of the time.
    pub guard: Option<Arc<GuardedClock>>,
}

impl UplinkService {
    /// A service that hands what it receives to `fleet`.
    #[must_use]
    pub fn new(
        fleet: Fleet,
        directory: Directory,
        renewing: Renewing,
        clock: Arc<dyn Clock>,
        welcome: WelcomeTerms,
    ) -> Self {
        Self(Arc::new(Inner {
            fleet,
            directory,
            renewing,
            clock,
            welcome,
            connections: AtomicU64::new(1),
            renewals: Mutex::default(),
            hellos: Hellos::default(),
            live: Mutex::default(),
        }))
    }
}

impl Inner {
    /// What every Welcome says; what is stored here is added by the shard.
    fn welcome(&self, hello: &v1::Hello) -> v1::Welcome {
        let millis = |duration: Duration| u32::try_from(duration.as_millis()).unwrap_or(u32::MAX);
        let bundle = self.renewing.authority.bundle();
        let newer = hello.bundle_version < bundle.version;
        v1::Welcome {
            server_wall_ms: self.clock.now().as_millis(),
            ratchet: Vec::new(),
            credit_bytes: self.welcome.credit_bytes,
            have: Vec::new(),
            epoch: self.welcome.epoch,
            min_interval_ms: millis(limits::MIN_INTERVAL),
            max_interval_ms: millis(limits::MAX_INTERVAL),
            heartbeat_ms: 0,
            bundle: newer.then_some(bundle),
            servers: self.servers(),
            fleet_hint: u32::try_from(self.fleet.totals().hosts).unwrap_or(u32::MAX),
        }
    }

    /// The aggregators agents may use, each under its address as its name.
    fn servers(&self) -> Option<v1::ServerList> {
        let servers = self.welcome.servers.iter().map(|address| v1::Server {
            id: address.clone(),
            address: address.clone(),
            weight: 1,
        });
        let servers: Vec<_> = servers.collect();
        (!servers.is_empty()).then_some(v1::ServerList {
            generation: 1,
            servers,
        })
    }

    /// Checks a Hello and brings it into the terms of this program.
    fn session(&self, hello: &v1::Hello) -> Result<(Session, Vec<Incarnation>), Refusal> {
        if hello.protocol != limits::PROTOCOL_VERSION {
            return Err(Refusal::Deny(v1::DenyReason::Protocol));
        }
        let interval = Duration::from_millis(hello.interval_ms.into());
        let plausible = (limits::MIN_INTERVAL..=limits::MAX_INTERVAL).contains(&interval)
            && hello.boot_id.len() == 16
            && hello.spool.len() <= MAX_SPOOLED_INCARNATIONS;
        if !plausible {
            return Err(Refusal::Deny(v1::DenyReason::ProtocolViolation));
        }
        let session = Session {
            incarnation: Incarnation(hello.incarnation),
            session: hello.session,
            boot_id: hello.boot_id.clone(),
            interval,
            clock_offset_ms: Timestamp::from_millis(hello.wall_ms).millis_since(self.clock.now()),
        };
        let mut holds = vec![session.incarnation];
        holds.extend(
            hello
                .spool
                .iter()
                .map(|spool| Incarnation(spool.incarnation)),
        );
        holds.dedup();
        Ok((session, holds))
    }

    /// What a host that is let in says of the time, where the aggregator's own is in doubt.
    async fn bear_witness(&self, host: HostId, hello: &v1::Hello) {
        let said = Said {
            boot_id: hello.boot_id.clone(),
            wall_ms: hello.wall_ms,
            since_boot_ms: hello.boottime_ms,
        };
        let guard = self.renewing.guard.as_ref();
        let Some(wall) = guard.and_then(|guard| guard.hear(host, &said)) else {
            return;
        };
        tracing::warn!(
            shown = %wall,
            "most hosts show the same time as the aggregator's clock after its jump, and were not set: it stood still, and its clock is right"
        );
        if let Err(error) = self.renewing.control.confirm_clock("hosts", wall).await {
            tracing::warn!(
                error = crate::chain(&error),
                "that the clock is right was not noted"
            );
        }
    }

    fn live(&self) -> MutexGuard<'_, HashMap<HostId, Live>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Another boot of this host that is connected, as far as is known: it may be gone without a word.
    fn other_machine(&self, host: HostId, boot_id: &[u8]) -> Option<Live> {
        let live = self.live();
        live.get(&host)
            .filter(|other| other.boot_id != boot_id)
            .cloned()
    }

    /// Holds a Hello against what the host said before; the ratchet value of the Welcome.
    async fn meet(
        &self,
        host: HostId,
        hello: &v1::Hello,
        other: Option<&Live>,
    ) -> Result<Vec<u8>, v1::DenyReason> {
        let (control, now) = (&self.renewing.control, self.clock.now());
        if other.is_some() {
            // The shard knows whether that one is still heard; until then nothing is moved on.
            return match control.is_heard(host, &hello.boot_id).await {
                Ok(false) => Err(v1::DenyReason::StaleCopy),
                _ => Ok(hello.ratchet.clone()),
            };
        }
        let greeting = Greeting {
            session: hello.session,
            boot_id: hello.boot_id.clone(),
            ratchet: hello.ratchet.clone(),
            bundle_version: hello.bundle_version,
        };
        match control.greet(host, greeting, now).await {
            Ok(greeted) => {
                self.tell_copy(host, &greeted, now);
                if greeted.heard {
                    return Ok(greeted.ratchet);
                }
                Err(v1::DenyReason::StaleCopy)
            }
            Err(error) => {
                tracing::warn!(%host, error = crate::chain(&error), "whether this host is a copy cannot be looked up");
                Ok(hello.ratchet.clone())
            }
        }
    }

    fn tell_copy(&self, host: HostId, greeted: &Greeted, now: Timestamp) {
        if let Some(sign) = greeted.sign {
            tracing::warn!(%host, sign, "this may be a copy of the host, or a snapshot of it that was restored");
        }
        let Some(since) = greeted.quarantined.filter(|_| greeted.newly) else {
            return;
        };
        tracing::error!(%host, "two machines speak with this host's identity: only the one that is connected is listened to from now on");
        let change = Change::Opened {
            summary: "two machines speak with this host's identity".to_owned(),
            evidence: format!(
                "{COPY_SIGNS} signs of a copy within {} minutes; muster audit --on {host} lists them with boot ids. Only one boot is listened to until an operator decides: give the copy an identity of its own (muster-agent reset-identity there, then enrol), then muster host {host} release --yes",
                COPY_WINDOW.as_secs() / 60
            ),
        };
        let transition = copy_transition(since, now, change);
        self.renewing
            .sink
            .report(host, &host.to_string(), vec![transition]);
    }

    /// What a second machine is told, which is not let in.
    async fn turn_away(&self, host: HostId, boot_id: &[u8], reason: v1::DenyReason) -> Refusal {
        let other = self.other_machine(host, boot_id);
        let (v1::DenyReason::AlreadyConnected, Some(other)) = (reason, other) else {
            return Refusal::Deny(reason);
        };
        let now = self.clock.now();
        match self
            .renewing
            .control
            .second_machine(host, boot_id, now)
            .await
        {
            Ok(greeted) => self.tell_copy(host, &greeted, now),
            Err(error) => {
                tracing::warn!(%host, error = crate::chain(&error), "a second machine was not put on record");
            }
        }
        Refusal::Occupied(other)
    }

    async fn open(
        &self,
        presented: &Presented,
        address: SocketAddr,
        inbound: &mut impl Inbound,
        to_agent: &ToAgent,
    ) -> Result<Opened, Refusal> {
        let host = presented.host_id;
        let first = timeout(HELLO_TIMEOUT, inbound.next()).await;
        let hello = match first {
            Ok(Some(Ok(v1::AgentMessage {
                message: Some(agent_message::Message::Hello(hello)),
            }))) => hello,
            Ok(Some(Ok(_))) => return Err(Refusal::Deny(v1::DenyReason::ProtocolViolation)),
            Ok(Some(Err(status))) => return Err(Refusal::Status(status)),
            Ok(None) => {
                return Err(Refusal::Status(Status::cancelled(
                    "stream ended before Hello",
                )));
            }
            Err(_) => {
                return Err(Refusal::Status(Status::deadline_exceeded(
                    "no Hello within 10 s",
                )));
            }
        };
        if !self.hellos.takes(host, Instant::now()) {
            return Err(Refusal::Throttle(HELLO_PAUSE));
        }
        let (session, holds) = self.session(&hello)?;
        let interval = session.interval;
        let facts = hello.facts.clone().unwrap_or_default();
        let stopping = || Refusal::Status(Status::unavailable("the aggregator is stopping"));
        match self.directory.admit(presented).await {
            Admitted::Yes => {}
            Admitted::No(refusal) => return Err(Refusal::Deny(denied(refusal))),
            // Known hosts stay connected while the store is sick; who expired does not.
            Admitted::Unavailable => {
                if presented.not_after < self.renewing.clock.now() {
                    return Err(Refusal::Deny(v1::DenyReason::Expired));
                }
            }
        }
        self.bear_witness(host, &hello).await;
        match self.directory.connected(host, facts).await {
            Known::Yes(enrolled) => {
                if !self.fleet.upsert(*enrolled).await {
                    return Err(stopping());
                }
            }
            Known::No => return Err(Refusal::Deny(v1::DenyReason::Removed)),
            Known::Refused(error) => {
                tracing::warn!(%host, %error, "what the agent says of its host is not acceptable");
                return Err(Refusal::Deny(v1::DenyReason::ProtocolViolation));
            }
            // The fleet knows the hosts that were there at its start.
            Known::Unavailable => {}
        }
        let other = self.other_machine(host, &hello.boot_id);
        let ratchet = self
            .meet(host, &hello, other.as_ref())
            .await
            .map_err(Refusal::Deny)?;
        let connection = self.connections.fetch_add(1, Ordering::Relaxed);
        let close = CancellationToken::new();
        let (reply, answer) = oneshot::channel();
        let welcome = v1::Welcome {
            ratchet,
            ..self.welcome(&hello)
        };
        let gave_bundle = welcome.bundle.as_ref().map(|bundle| bundle.version);
        let attach = Message::Attach {
            host,
            connection,
            address: address.ip(),
            session,
            holds,
            to_agent: to_agent.clone(),
            close: close.clone(),
            welcome: Box::new(welcome),
            reply,
        };
        if !self.fleet.tell(host, attach).await {
            return Err(stopping());
        }
        if let Err(reason) = answer.await.map_err(|_| stopping())? {
            return Err(self.turn_away(host, &hello.boot_id, reason).await);
        }
        let live = Live {
            connection,
            boot_id: hello.boot_id,
            address,
        };
        self.live().insert(host, live);
        // Removed between the first look and now: then the fleet was told before it was told of this stream.
        if matches!(self.directory.host(host).await, Known::No) {
            self.fleet.forget(host).await;
            return Err(Refusal::Deny(v1::DenyReason::Removed));
        }
        Ok(Opened {
            host,
            connection,
            idle: (interval * IDLE_INTERVALS).max(IDLE_FLOOR),
            until: Instant::now() + presented.not_after.since(self.renewing.clock.now()),
            close,
            credit: Arc::new(Semaphore::new(self.credit())),
            gave_bundle,
        })
    }
}

/// An opened stream.
struct Opened {
    host: HostId,
    connection: Connection,
    idle: Duration,
    /// End of the certificate's life.
    until: Instant,
    /// Cancelled by the shard when it lets go of the stream.
    close: CancellationToken,
    /// Bytes that may still be on their way to the disk; beyond, nothing is read.
    credit: Arc<Semaphore>,
    /// Version of the trust bundle in the Welcome, if there was one.
    gave_bundle: Option<u64>,
}

/// Why a stream is not opened, or ends.
enum Refusal {
    Deny(v1::DenyReason),
    /// This one is connected.
    Occupied(Live),
    /// It is to come back after this.
    Throttle(Duration),
    Status(Status),
}

fn message(message: aggregator_message::Message) -> Box<v1::AggregatorMessage> {
    Box::new(v1::AggregatorMessage {
        message: Some(message),
    })
}

/// What goes to the agent: the shard's messages, and at the end perhaps a status.
type Outbound = Pin<Box<dyn Stream<Item = Result<v1::AggregatorMessage, Status>> + Send>>;

#[tonic::async_trait]
impl Uplink for UplinkService {
    type SessionStream = Outbound;

    async fn session(
        &self,
        request: Request<Streaming<v1::AgentMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (_, extensions, inbound) = request.into_parts();
        self.serve(&extensions, inbound).map(Response::new)
    }

    async fn renew(
        &self,
        request: Request<v1::RenewRequest>,
    ) -> Result<Response<v1::RenewResponse>, Status> {
        let presented = self.0.presented(request.extensions())?;
        let csr = request.into_inner().csr;
        self.0.renew(presented, &csr).await.map(Response::new)
    }
}

/// What an agent sends.
trait Inbound: Stream<Item = Result<v1::AgentMessage, Status>> + Send + Unpin {}

impl<S: Stream<Item = Result<v1::AgentMessage, Status>> + Send + Unpin> Inbound for S {}

impl UplinkService {
    /// Serves one stream of the connection that the extensions of the request tell of.
    fn serve(
        &self,
        extensions: &http::Extensions,
        mut inbound: impl Inbound + 'static,
    ) -> Result<Outbound, Status> {
        let presented = self.0.presented(extensions)?;
        let host = presented.host_id;
        let (address, ending) = connection(extensions)?;
        let (to_agent, outbound) = mpsc::channel(TO_AGENT);
        let service = Arc::clone(&self.0);
        tokio::spawn(async move {
            // Boxed, so that what opening takes is not held for as long as the stream lasts.
            let opened = Box::pin(service.open(&presented, address, &mut inbound, &to_agent)).await;
            let opened = match opened {
                Ok(opened) => opened,
                Err(refusal) => {
                    if let Some(why) = of_note(&refusal) {
                        service
                            .fleet
                            .tell(host, Message::Refused { host, why })
                            .await;
                    }
                    refuse(host, refusal, &to_agent);
                    return;
                }
            };
            let ended = service.receive(&opened, &mut inbound, &to_agent).await;
            let mut how = ending.seen();
            if let Err(refusal) = ended {
                if let Some(why) = of_note(&refusal) {
                    service
                        .fleet
                        .tell(host, Message::Refused { host, why })
                        .await;
                    how = Ended::ByUs;
                }
                refuse(host, refusal, &to_agent);
            }
            service.gone(host, opened.connection);
            let detach = Message::Detach {
                host,
                connection: opened.connection,
                ended: how,
            };
            service.fleet.tell(host, detach).await;
        });
        let outbound = ReceiverStream::new(outbound);
        Ok(Box::pin(outbound.map(|message| Ok(*message))))
    }
}

/// Where a connection comes from, and how it will have ended.
fn connection(extensions: &http::Extensions) -> Result<(SocketAddr, Ending), Status> {
    let peer = extensions.get::<Peer>();
    peer.map(|peer| (peer.addr, peer.ending.clone()))
        .ok_or_else(|| Status::internal("a connection without a peer"))
}

/// What of a refusal tells why a host is silent.
fn of_note(refusal: &Refusal) -> Option<Refused> {
    match refusal {
        Refusal::Deny(v1::DenyReason::Expired) => Some(Refused::Expired),
        Refusal::Deny(v1::DenyReason::StaleCopy) => Some(Refused::Superseded),
        Refusal::Deny(v1::DenyReason::Protocol) => Some(Refused::Protocol),
        _ => None,
    }
}

/// What an agent is told.
fn denied(refusal: CertificateRefusal) -> v1::DenyReason {
    match refusal {
        CertificateRefusal::Removed => v1::DenyReason::Removed,
        CertificateRefusal::Superseded => v1::DenyReason::StaleCopy,
        // It cannot be renewed either; the agent says that the host must enrol again.
        CertificateRefusal::Expired | CertificateRefusal::Untrusted => v1::DenyReason::Expired,
        CertificateRefusal::OldKey => v1::DenyReason::ProtocolViolation,
    }
}

impl Inner {
    /// The certificate of a connection.
    fn presented(&self, extensions: &http::Extensions) -> Result<Presented, Status> {
        let peer = extensions.get::<Peer>();
        let found = peer.and_then(|peer| {
            Some(Presented {
                host_id: peer.agent()?,
                serial: peer.serial.clone()?,
                not_after: peer.cert_not_after?,
                origin: peer.origin.as_ref().and_then(|origin| self.lineage(origin)),
            })
        });
        found.ok_or_else(|| Status::permission_denied("the certificate is not an agent's"))
    }

    fn lineage(&self, origin: &Origin) -> Option<Lineage> {
        let generation = self.renewing.authority.generation_of(origin)?;
        Some(Lineage {
            joined: origin.joined,
            issued: origin.issued,
            fingerprint: origin.fingerprint,
            generation,
        })
    }

    /// A stream has ended.
    fn gone(&self, host: HostId, connection: Connection) {
        let mut live = self.live();
        if live
            .get(&host)
            .is_some_and(|one| one.connection == connection)
        {
            live.remove(&host);
        }
    }

    fn may_ask(&self, host: HostId) -> bool {
        let now = Instant::now();
        let mut renewals = self.renewals.lock().unwrap_or_else(PoisonError::into_inner);
        let (since, asked) = renewals.entry(host).or_insert((now, 0));
        if now.duration_since(*since) >= RENEWAL_WINDOW {
            (*since, *asked) = (now, 0);
        }
        *asked += 1;
        *asked <= MAX_RENEWALS
    }

    async fn renew(&self, presented: Presented, csr: &[u8]) -> Result<v1::RenewResponse, Status> {
        let (host, now) = (presented.host_id, self.renewing.clock.now());
        if !self.may_ask(host) {
            return Err(Status::resource_exhausted(
                "this host asked for too many certificates within an hour",
            ));
        }
        let csr = pki::Request::check(csr).map_err(|error| {
            Status::invalid_argument(format!(
                "the certificate request is not acceptable: {error}"
            ))
        })?;
        let fingerprint = *csr.fingerprint();
        let authority = Arc::clone(&self.renewing.authority);
        let issue = move |host| authority.issue_agent(&csr, host, now);
        let issued = self
            .renewing
            .control
            .renew_host(presented, fingerprint, issue, now)
            .await
            .map_err(|error| {
                tracing::error!(%host, error = crate::chain(&error), "a certificate could not be renewed");
                Status::unavailable("the aggregator cannot renew now; its log says why")
            })?
            .map_err(|refusal| {
                tracing::warn!(%host, why = %refusal, "renewal refused");
                Status::permission_denied(refusal.to_string())
            })?;
        tracing::info!(%host, serial = issued.serial, until = %issued.not_after, "certificate renewed");
        Ok(v1::RenewResponse {
            certificate_chain: issued
                .chain
                .iter()
                .map(|certificate| certificate.to_vec())
                .collect(),
            bundle: Some(self.renewing.authority.bundle()),
            server_wall_ms: now.as_millis(),
        })
    }
}

impl Inner {
    /// Hands on what the agent sends until the stream ends on either side.
    async fn receive(
        &self,
        opened: &Opened,
        inbound: &mut impl Inbound,
        to_agent: &ToAgent,
    ) -> Result<(), Refusal> {
        let mut gave_bundle = opened.gave_bundle;
        // Made once: to make them for each message would cost as much as the message.
        let mut closed = pin!(opened.close.cancelled());
        let mut expired = pin!(sleep_until(opened.until));
        let mut gone = pin!(to_agent.closed());
        let mut idle = pin!(sleep_until(Instant::now() + opened.idle));
        let mut heard = Instant::now();
        loop {
            // What ends the stream comes first: an agent that sends without end does not hold it open.
            let received = tokio::select! {
                biased;
                () = &mut closed => return Ok(()),
                () = &mut expired => return Err(Refusal::Deny(v1::DenyReason::Expired)),
                received = inbound.next() => received,
                // The agent is gone.
                () = &mut gone => return Ok(()),
                () = &mut idle => {
                    let until = heard + opened.idle;
                    if until > Instant::now() {
                        idle.as_mut().reset(until);
                        continue;
                    }
                    return Err(Refusal::Status(Status::deadline_exceeded(
                        "nothing was received for six intervals",
                    )));
                }
            };
            let agent_message = match received {
                Some(Ok(agent_message)) => agent_message,
                Some(Err(status)) => return Err(Refusal::Status(status)),
                None => return Ok(()),
            };
            heard = Instant::now();
            let host = opened.host;
            // It keeps the bundle of the Welcome before it says anything else.
            if let Some(version) = gave_bundle.take()
                && let Err(error) =
                    Box::pin(self.renewing.control.bundle_taken(host, version)).await
            {
                tracing::warn!(%host, error = crate::chain(&error), "that the host holds the new trust bundle was not noted");
            }
            let for_shard = match agent_message.message {
                Some(agent_message::Message::Frame(frame)) => {
                    let frame = self.frame(frame)?;
                    let credit = tokio::select! {
                        credit = credit_for(&opened.credit, frame.payload.len()) => credit,
                        () = opened.close.cancelled() => return Ok(()),
                    };
                    Message::Frame {
                        host,
                        connection: opened.connection,
                        frame,
                        credit,
                    }
                }
                Some(agent_message::Message::Gap(gap)) => Message::Gap {
                    host,
                    connection: opened.connection,
                    gap,
                },
                Some(agent_message::Message::Fin(fin)) => Message::Fin {
                    host,
                    connection: opened.connection,
                    fin,
                },
                Some(agent_message::Message::Hello(_)) => {
                    return Err(Refusal::Deny(v1::DenyReason::ProtocolViolation));
                }
                // A newer agent's message: ignored, as unknown fields are.
                None => continue,
            };
            if !self.fleet.tell(host, for_shard).await {
                return Ok(());
            }
        }
    }

    /// What an agent may have on its way to the disk. A frame of the largest size always fits.
    fn credit(&self) -> usize {
        usize::try_from(self.welcome.credit_bytes)
            .unwrap_or(usize::MAX)
            .clamp(limits::MAX_PAYLOAD_BYTES, Semaphore::MAX_PERMITS)
    }

    fn frame(&self, frame: v1::Frame) -> Result<FrameIn, Refusal> {
        if frame.payload.len() > limits::MAX_PAYLOAD_BYTES || frame.seq == 0 {
            return Err(Refusal::Deny(v1::DenyReason::ProtocolViolation));
        }
        Ok(FrameIn {
            incarnation: Incarnation(frame.incarnation),
            seq: frame.seq,
            lane: Lane::of_wire(frame.lane()),
            tick: Timestamp::from_millis(frame.tick_ms),
            received: self.clock.now(),
            crc32c: frame.crc32c,
            payload: frame.payload.into(),
        })
    }
}

/// Waits until so many bytes of the agent's credit are free. One that keeps to its credit never waits.
async fn credit_for(credit: &Arc<Semaphore>, bytes: usize) -> Credit {
    let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
    // The semaphore is never closed.
    Arc::clone(credit).acquire_many_owned(bytes).await.ok()
}

fn refuse(host: HostId, refusal: Refusal, to_agent: &ToAgent) {
    match refusal {
        Refusal::Deny(reason) => {
            tracing::warn!(%host, reason = words::denied(reason), "agent denied");
            let deny = v1::Deny {
                reason: reason.into(),
                ..v1::Deny::default()
            };
            // The agent may be gone already, or not read; then the end of the stream must do.
            let _ = to_agent.try_send(message(aggregator_message::Message::Deny(deny)));
        }
        Refusal::Occupied(other) => {
            tracing::warn!(%host, connected_from = %other.address, "a second machine with this host's identity was turned away");
            let deny = v1::Deny {
                reason: v1::DenyReason::AlreadyConnected.into(),
                other_address: other.address.ip().to_canonical().to_string(),
                other_boot_id: other.boot_id,
            };
            // As above.
            let _ = to_agent.try_send(message(aggregator_message::Message::Deny(deny)));
        }
        Refusal::Throttle(pause) => {
            tracing::debug!(%host, "it opens too many streams");
            let throttle = v1::Throttle {
                retry_after_ms: u32::try_from(pause.as_millis()).unwrap_or(u32::MAX),
            };
            // As above.
            let _ = to_agent.try_send(message(aggregator_message::Message::Throttle(throttle)));
        }
        Refusal::Status(status) => {
            tracing::debug!(%host, code = ?status.code(), message = status.message(), "stream ended");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_that_opens_streams_without_end_is_told_to_wait() {
        let (hellos, begin) = (Hellos::default(), Instant::now());
        let host = |number| HostId::from_bytes([number; 16]);
        let taken = |number, after| {
            let now = begin + Duration::from_secs(after);
            (0..100).filter(|_| hellos.takes(host(number), now)).count()
        };
        assert_eq!(taken(1, 0), 60);
        assert_eq!(taken(2, 0), 60, "another host is not concerned");
        assert_eq!(taken(1, 3), 1, "after the pause it is told of");
        assert_eq!(taken(1, 63), 20);
        assert_eq!(taken(1, 3_600), 60);
    }
}
