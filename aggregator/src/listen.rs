//! The doors' accept loops, in front of tonic and hyper, which set no limits before a connection has proved
//! anything.
//!
//! Each door has at most so many connections that wait to be admitted (further ones stay in the kernel's backlog),
//! of which so many are in the handshake, at most so many unauthenticated connections per source address, so many
//! connections of each peer that has proved who it is, and a time limit for all of it. A connection that has not
//! said anything takes no place among the handshakes, and a slow handshake gives its place up when others wait for
//! it: whoever has something to say is not kept out by those who have not. Running out of file descriptors slows
//! accepting down instead of spinning. Every connection comes out with its [`Peer`],
//! read from the certificate once. What is refused is counted by reason in [`Counters`] and warned of, once a
//! minute for each reason.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use crate::pki::Origin;
use arc_swap::ArcSwap;
use muster_proto::{
    id::HostId,
    spiffe::{SpiffeId, peer_id},
    time::Timestamp,
    tls::{TlsFault, fault, refused_certificate},
};
use rustls::ServerConfig;
use rustls_pki_types::CertificateDer;
use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpListener, TcpSocket, TcpStream},
    sync::{Semaphore, mpsc},
    time::{Instant, sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use x509_parser::prelude::FromDer as _;

mod conn;
mod places;
pub mod unix;
mod visits;

use conn::{ALPN_H2, Held, Io, Socket};
pub use conn::{Conn, Ending, Peer};
use places::Places;
use visits::{Turn, Visit, Visits};

/// Connections that are accepted and not yet taken by the server.
const READY: usize = 64;

/// Connections the kernel holds until they are accepted, at most `net.core.somaxconn` (4,096 since Linux 5.4). When a
/// fleet comes back at once and there is no room, the kernel drops what completes the connection: the agent believes
/// itself connected and is heard 1, 3 or 7 s later, when the kernel has repeated its answer (tcp(7), listen(2)).
const BACKLOG: u32 = 65_535;

/// First byte of a TLS record that carries a handshake (RFC 8446, 5.1).
const TLS_HANDSHAKE: u8 = 22;

/// What a browser or curl gets from a door that speaks TLS.
const PLAIN_ANSWER: &[u8] = b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\n\
Content-Length: 35\r\nConnection: close\r\n\r\nthis port speaks TLS 1.3, not HTTP\n";

/// Bounds of one door.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Time from accept to the end of the handshake.
    pub handshake: Duration,
    /// Handshakes at a time.
    pub handshakes: usize,
    /// A handshake that lasts longer makes room when others wait for a place.
    pub fair_turn: Duration,
    /// Connections at a time that wait to be admitted, those in the handshake among them. One that says nothing
    /// costs a descriptor and about 2 KiB.
    pub waiting: usize,
    /// Connections per source address that have not authenticated themselves: in the handshake, and for their
    /// whole life at doors without client certificates. Further ones wait for their turn.
    pub unauthenticated_per_address: usize,
    /// The same with those that wait or say nothing. A site behind one address comes back at once after an outage.
    pub waiting_per_address: usize,
    /// Whether loopback is exempt from the limit per address: simulated agents all come from there.
    pub exempt_loopback: bool,
}

impl Default for Limits {
    /// The figures of the threat model: 10 s, 256, 32; 2 s, which is ten round trips of a slow line; and room for
    /// 8,192 that say nothing, 1,024 of one address.
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(10),
            handshakes: 256,
            fair_turn: Duration::from_secs(2),
            waiting: 8_192,
            unauthenticated_per_address: 32,
            waiting_per_address: 1_024,
            exempt_loopback: false,
        }
    }
}

/// What a door did since the start.
#[derive(Debug, Default)]
pub struct Counters {
    /// The door's name, in the log and on the page.
    pub door: &'static str,
    /// Connections handed to the server.
    pub accepted: AtomicU64,
    /// Handshakes that took too long.
    pub timed_out: AtomicU64,
    /// Clients that spoke something else than TLS.
    pub not_tls: AtomicU64,
    /// Clients without TLS 1.3 or HTTP/2.
    pub incompatible: AtomicU64,
    /// Certificates missing or refused.
    pub certificate: AtomicU64,
    /// Handshakes that failed otherwise, mostly clients that went away.
    pub broken: AtomicU64,
    /// Connections over the limit of their address.
    pub address_limit: AtomicU64,
    /// Connections over the limit of the agent or operator they proved to be.
    pub peer_limit: AtomicU64,
    /// Failed accepts, mostly for want of file descriptors.
    pub accept_errors: AtomicU64,
    /// Is told of certificates that were refused and of the host each claims to name, which nothing proves. What
    /// it has no room for is left out: the next attempt comes.
    pub refused_agents: OnceLock<mpsc::Sender<(HostId, Refusal)>>,
}

/// Why a certificate that claims to be an agent's was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Its life is over or has not begun.
    Expired,
    /// Everything else: another issuer, another fleet, malformed.
    NotOurs,
}

impl Counters {
    /// Of the door of this name, which has done nothing yet.
    #[must_use]
    pub fn of(door: &'static str) -> Self {
        Self {
            door,
            ..Self::default()
        }
    }

    /// How often each outcome came about, those that never did too.
    #[must_use]
    pub fn outcomes(&self) -> [(&'static str, u64); 9] {
        [
            ("accepted", &self.accepted),
            ("timed_out", &self.timed_out),
            ("not_tls", &self.not_tls),
            ("incompatible", &self.incompatible),
            ("certificate", &self.certificate),
            ("broken", &self.broken),
            ("address_limit", &self.address_limit),
            ("peer_limit", &self.peer_limit),
            ("accept_error", &self.accept_errors),
        ]
        .map(|(outcome, count)| (outcome, count.load(Ordering::Relaxed)))
    }
}

/// What every door did.
#[derive(Debug, Clone)]
pub struct DoorCounters {
    /// Agents.
    pub uplink: Arc<Counters>,
    /// Joining hosts.
    pub enrolment: Arc<Counters>,
    /// Operators.
    pub operator: Arc<Counters>,
    /// Scrape and discovery.
    pub http: Arc<Counters>,
}

impl Default for DoorCounters {
    fn default() -> Self {
        let of = |door| Arc::new(Counters::of(door));
        Self {
            uplink: of("uplink"),
            enrolment: of("enrolment"),
            operator: of("operator"),
            http: of("http"),
        }
    }
}

impl DoorCounters {
    /// Connections by door and outcome.
    #[must_use]
    pub fn connections(&self) -> Vec<(&'static str, &'static str, u64)> {
        [&self.uplink, &self.enrolment, &self.operator, &self.http]
            .into_iter()
            .flat_map(|counters| {
                let outcomes = counters.outcomes().into_iter();
                outcomes.map(|(outcome, count)| (counters.door, outcome, count))
            })
            .collect()
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Accepted connections, for `serve_with_incoming` or a loop over hyper.
pub type Incoming = ReceiverStream<io::Result<Conn>>;

/// Binds a TCP address.
///
/// # Errors
/// When it is taken or not ours; the message says what to do.
pub async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    listen(address).map_err(|error| {
        let why = match error.kind() {
            io::ErrorKind::AddrInUse => {
                "another program listens there: stop it or configure another port"
            }
            io::ErrorKind::AddrNotAvailable => "this machine does not have that address",
            io::ErrorKind::PermissionDenied => {
                "ports below 1024 need a privilege: configure a higher one"
            }
            _ => return error,
        };
        io::Error::new(error.kind(), format!("cannot listen on {address}: {why}"))
    })
}

/// What limits per address count by: an IPv4 address, or the 64 bits of an IPv6 address that a network is given; of the
/// other 64 one machine has as many as it likes (RFC 4291, 2.5.4).
#[must_use]
pub fn source(address: IpAddr) -> IpAddr {
    // An IPv4 client of a dual-stack socket is the same client.
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let network = address.to_bits() & !u128::from(u64::MAX);
            IpAddr::V6(Ipv6Addr::from_bits(network))
        }
        address => address,
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    // Of a listener that was there before, connections in TIME_WAIT are left: they are no reason not to start.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Accepts TLS connections until `stop`, or until the stream is dropped.
pub fn tls(
    listener: TcpListener,
    config: Arc<ArcSwap<ServerConfig>>,
    limits: Limits,
    counters: Arc<Counters>,
    stop: CancellationToken,
) -> Incoming {
    accept_with(listener, Some(config), limits, counters, stop)
}

/// Accepts connections without TLS, for HTTP on loopback.
pub fn plain(
    listener: TcpListener,
    limits: Limits,
    counters: Arc<Counters>,
    stop: CancellationToken,
) -> Incoming {
    accept_with(listener, None, limits, counters, stop)
}

fn accept_with(
    listener: TcpListener,
    config: Option<Arc<ArcSwap<ServerConfig>>>,
    limits: Limits,
    counters: Arc<Counters>,
    stop: CancellationToken,
) -> Incoming {
    let (ready, incoming) = mpsc::channel(READY);
    let door = Door {
        handshakes: Semaphore::new(limits.handshakes),
        wanting: AtomicU64::new(0),
        waiting: Arc::new(Semaphore::new(limits.waiting)),
        visits: Visits::default(),
        places: Places::default(),
        complaints: Complaints::default(),
        config,
        limits,
        counters,
        ready,
    };
    tokio::spawn(door.run(listener, stop));
    ReceiverStream::new(incoming)
}

struct Door {
    config: Option<Arc<ArcSwap<ServerConfig>>>,
    limits: Limits,
    counters: Arc<Counters>,
    handshakes: Semaphore,
    /// Connections that have begun to speak and wait for a place among the handshakes.
    wanting: AtomicU64,
    waiting: Arc<Semaphore>,
    visits: Visits,
    places: Places,
    complaints: Complaints,
    ready: mpsc::Sender<io::Result<Conn>>,
}

impl Door {
    async fn run(self, listener: TcpListener, stop: CancellationToken) {
        let closed = self.ready.clone();
        tokio::select! {
            () = stop.cancelled() => {}
            () = closed.closed() => {}
            () = self.accept(listener) => {}
        }
    }

    async fn accept(self, listener: TcpListener) {
        let door = Arc::new(self);
        let mut last_complaint = None;
        loop {
            let Ok(permit) = Arc::clone(&door.waiting).acquire_owned().await else {
                return;
            };
            match listener.accept().await {
                Ok((stream, addr)) => {
                    let Some(visit) = door.visit(addr.ip()) else {
                        door.refused(addr, &Refused::AddressLimit);
                        continue;
                    };
                    let door = Arc::clone(&door);
                    tokio::spawn(async move {
                        door.admit(stream, addr, visit).await;
                        drop(permit);
                    });
                }
                Err(error) => {
                    count(&door.counters.accept_errors);
                    complain(&mut last_complaint, &error);
                    if exhausted(&error) {
                        let pause = fastrand::u64(50..=200);
                        sleep(Duration::from_millis(pause)).await;
                    }
                }
            }
        }
    }

    fn visit(&self, address: IpAddr) -> Option<Option<Visit>> {
        let limits = &self.limits;
        if limits.exempt_loopback && address.to_canonical().is_loopback() {
            return Some(None);
        }
        let (most, heard) = (
            limits
                .waiting_per_address
                .max(limits.unauthenticated_per_address),
            limits.unauthenticated_per_address,
        );
        self.visits.begin(source(address), most, heard).map(Some)
    }

    async fn admit(&self, stream: TcpStream, addr: SocketAddr, visit: Option<Visit>) {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%addr, %error, "no TCP_NODELAY");
        }
        let admitted = async {
            match &self.config {
                None => Ok(Conn {
                    io: Io::Plain(Socket(Some(stream))),
                    peer: Peer {
                        addr,
                        id: None,
                        serial: None,
                        cert_not_after: None,
                        origin: None,
                        ending: Ending::default(),
                    },
                    _held: turn(visit).await?.into(),
                }),
                Some(config) => self.handshake(stream, addr, config, visit).await,
            }
        };
        let conn = timeout(self.limits.handshake, admitted)
            .await
            .unwrap_or(Err(Refused::TimedOut));
        match conn {
            Ok(conn) => {
                // The server is gone when this fails: it stops.
                if self.ready.send(Ok(conn)).await.is_ok() {
                    count(&self.counters.accepted);
                }
            }
            Err(refused) => self.refused(addr, &refused),
        }
    }

    fn tell_of_agent(&self, claims: Option<&str>, fault: &TlsFault) {
        let told = self.counters.refused_agents.get().zip(claims);
        let Some((told, Ok(SpiffeId::Agent { host, .. }))) =
            told.map(|(told, claims)| (told, claims.parse()))
        else {
            return;
        };
        let why = match fault {
            TlsFault::Expired { .. } | TlsFault::NotYetValid { .. } => Refusal::Expired,
            _ => Refusal::NotOurs,
        };
        // Full: agents try again.
        let _ = told.try_send((host, why));
    }

    /// The handshake, once the client has begun it and it is its turn.
    async fn handshake(
        &self,
        stream: TcpStream,
        addr: SocketAddr,
        config: &ArcSwap<ServerConfig>,
        visit: Option<Visit>,
    ) -> Result<Conn, Refused> {
        let first = first_byte(&stream).await?;
        let turn = turn(visit).await?;
        let wanting = Wanting::of(&self.wanting);
        let Ok(_turn) = self.handshakes.acquire().await else {
            return Err(Refused::TimedOut);
        };
        drop(wanting);
        // Boxed, so that a connection which says nothing does not hold the room for it.
        let config = config.load_full();
        let handshake = Box::pin(handshake(stream, first, addr, config, turn, &self.places));
        tokio::select! {
            conn = handshake => conn,
            () = self.crowded_out() => Err(Refused::TimedOut),
        }
    }

    /// Ends when a handshake has had its time and its place is wanted.
    async fn crowded_out(&self) {
        loop {
            sleep(self.limits.fair_turn).await;
            if self.wanting.load(Ordering::Relaxed) > 0 {
                return;
            }
        }
    }

    fn refused(&self, addr: SocketAddr, refused: &Refused) {
        let counters = &self.counters;
        let (reason, counter) = match refused {
            Refused::TimedOut => ("timed_out", &counters.timed_out),
            Refused::NotTls => ("not_tls", &counters.not_tls),
            Refused::Incompatible => ("incompatible", &counters.incompatible),
            Refused::Certificate { .. } => ("certificate", &counters.certificate),
            Refused::PeerLimit(_) => ("peer_limit", &counters.peer_limit),
            Refused::AddressLimit => ("address_limit", &counters.address_limit),
            Refused::Broken(_) => {
                // Nobody was turned away: the client left, as probes of ports do.
                count(&counters.broken);
                tracing::debug!(door = counters.door, %addr, why = %refused, "connection broke");
                return;
            }
        };
        count(counter);
        let claims = match refused {
            Refused::Certificate { claims, fault } => {
                self.tell_of_agent(claims.as_deref(), fault);
                claims.as_deref()
            }
            _ => None,
        };
        match self.complaints.note(reason, Instant::now()) {
            Some(count) => tracing::warn!(
                door = counters.door,
                %addr,
                why = %refused,
                certificate_of = claims,
                count,
                "connections refused, this one for example"
            ),
            None => {
                tracing::debug!(door = counters.door, %addr, why = %refused, certificate_of = claims, "connection refused");
            }
        }
    }
}

/// Why no connection came of it.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("the handshake took too long")]
    TimedOut,
    #[error("the client does not speak TLS")]
    NotTls,
    #[error("the client does not speak TLS 1.3 with HTTP/2")]
    Incompatible,
    #[error("{fault}")]
    Certificate {
        fault: TlsFault,
        /// Whom a certificate that was not believed claims to name.
        claims: Option<String>,
    },
    #[error("{0} has too many connections")]
    PeerLimit(SpiffeId),
    #[error("too many connections of this address that have not proved who they are")]
    AddressLimit,
    #[error("the handshake broke: {0}")]
    Broken(io::Error),
}

/// One more that waits, until it is dropped.
struct Wanting<'a>(&'a AtomicU64);

impl<'a> Wanting<'a> {
    fn of(count: &'a AtomicU64) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Wanting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Waits for the turn of an address that is limited.
async fn turn(visit: Option<Visit>) -> Result<Option<Turn>, Refused> {
    let Some(visit) = visit else { return Ok(None) };
    let turn = visit.turn().await.ok_or(Refused::AddressLimit)?;
    Ok(Some(turn))
}

/// Waits until the client has said something, which stays to be read.
async fn first_byte(stream: &TcpStream) -> Result<u8, Refused> {
    let mut first = [0];
    let seen = stream.peek(&mut first).await.map_err(Refused::Broken)?;
    if seen == 0 {
        return Err(Refused::Broken(io::ErrorKind::UnexpectedEof.into()));
    }
    Ok(first[0])
}

async fn handshake(
    mut stream: TcpStream,
    first: u8,
    addr: SocketAddr,
    config: Arc<ServerConfig>,
    turn: Option<Turn>,
    places: &Places,
) -> Result<Conn, Refused> {
    if first != TLS_HANDSHAKE {
        refuse_plain(&mut stream, first).await;
        return Err(Refused::NotTls);
    }
    let wants_h2 = !config.alpn_protocols.iter().any(|name| name == b"http/1.1");
    let stream = TlsAcceptor::from(config)
        .accept(Socket(Some(stream)))
        .await
        .map_err(|error| match fault(&error) {
            Some(TlsFault::Incompatible) => Refused::Incompatible,
            Some(TlsFault::NotTls) => Refused::NotTls,
            Some(fault) => disbelieved(fault),
            None => Refused::Broken(error),
        })?;
    let (_, session) = stream.get_ref();
    if wants_h2 && session.alpn_protocol() != Some(ALPN_H2) {
        return Err(Refused::Incompatible);
    }
    let peer = match session.peer_certificates().and_then(|chain| chain.first()) {
        None => Peer {
            addr,
            id: None,
            serial: None,
            cert_not_after: None,
            origin: None,
            ending: Ending::default(),
        },
        Some(leaf) => proved(addr, leaf)?,
    };
    let held = match &peer.id {
        None => turn.into(),
        Some(id) => Held::Peer(places.take_of(id)?),
    };
    Ok(Conn {
        io: Io::Tls(Box::new(stream)),
        peer,
        _held: held,
    })
}

/// To be called in the moment of the failure, or the claim may be another connection's.
fn disbelieved(fault: TlsFault) -> Refused {
    let chain_was_refused = matches!(
        fault,
        TlsFault::WrongIssuer
            | TlsFault::Expired { .. }
            | TlsFault::NotYetValid { .. }
            | TlsFault::Unusable(_)
    );
    let claims = chain_was_refused.then(refused_certificate).flatten();
    Refused::Certificate { fault, claims }
}

/// A letter is the begin of an HTTP request: it gets an answer that a person understands.
async fn refuse_plain(stream: &mut TcpStream, first: u8) {
    if !first.is_ascii_uppercase() {
        return;
    }
    // The request is read away, at most one buffer of it: closing with unread bytes would reset the connection and
    // take the answer with it. Whether the client hears it is its own affair, so errors end the attempt.
    let mut request = [0; 1024];
    if stream.try_read(&mut request).is_ok() && stream.write_all(PLAIN_ANSWER).await.is_ok() {
        let _gone = stream.shutdown().await;
    }
}

fn proved(addr: SocketAddr, leaf: &CertificateDer<'_>) -> Result<Peer, Refused> {
    let who = peer_id(leaf).map_err(|error| disbelieved(TlsFault::Nameless(error)))?;
    let not_after = x509_parser::certificate::X509Certificate::from_der(leaf)
        .ok()
        .map(|(_, parsed)| parsed.validity().not_after.timestamp())
        .map(|seconds| Timestamp::from_millis(seconds.saturating_mul(1000)));
    let origin = who.id.host().and_then(|_| Origin::of(leaf));
    Ok(Peer {
        addr,
        origin,
        id: Some(who.id),
        serial: Some(who.serial),
        cert_not_after: not_after,
        ending: Ending::default(),
    })
}

/// Whether an accept failed for want of descriptors or memory, which trying again at once does not mend.
fn exhausted(error: &io::Error) -> bool {
    use rustix::io::Errno;
    [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM]
        .iter()
        .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

/// Once a minute.
fn complain(last: &mut Option<Instant>, error: &io::Error) {
    let now = Instant::now();
    if last.is_some_and(|last| now.duration_since(last) < Duration::from_secs(60)) {
        return;
    }
    *last = Some(now);
    if exhausted(error) {
        tracing::error!(%error, "connections cannot be accepted: raise LimitNOFILE of the service");
    } else {
        tracing::warn!(%error, "a connection could not be accepted");
    }
}

/// How often a reason is complained of.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60);

/// Lets one complaint a minute through for each reason, and counts those it holds back.
#[derive(Default)]
struct Complaints(Mutex<HashMap<&'static str, (Instant, u64)>>);

impl Complaints {
    /// Takes note of one. When it is to be said: how many there were since the last that was, with this one.
    fn note(&self, reason: &'static str, now: Instant) -> Option<u64> {
        let mut complaints = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((said, held_back)) = complaints.get_mut(reason) else {
            complaints.insert(reason, (now, 0));
            return Some(1);
        };
        *held_back += 1;
        if now.duration_since(*said) < COMPLAIN_EVERY {
            return None;
        }
        *said = now;
        Some(std::mem::take(held_back))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_complained_of_once_a_minute_with_its_count() {
        let complaints = Complaints::default();
        let began = Instant::now();
        let at = |seconds| began + Duration::from_secs(seconds);
        for (seconds, reason, said) in [
            (0, "certificate", Some(1)),
            (1, "certificate", None),
            (1, "not_tls", Some(1)),
            (59, "certificate", None),
            (60, "certificate", Some(3)),
            (61, "certificate", None),
            (300, "not_tls", Some(1)),
        ] {
            assert_eq!(
                complaints.note(reason, at(seconds)),
                said,
                "{seconds} {reason}"
            );
        }
    }

    #[test]
    fn a_network_of_ipv6_is_one_source() {
        for (address, expected) in [
            ("192.0.2.7", "192.0.2.7"),
            ("::ffff:192.0.2.7", "192.0.2.7"),
            ("2001:db8:1:2::1", "2001:db8:1:2::"),
            ("2001:db8:1:2:ffff:ffff:ffff:ffff", "2001:db8:1:2::"),
            ("2001:db8:1:3::1", "2001:db8:1:3::"),
        ] {
            let address: IpAddr = address.parse().expect("an address");
            assert_eq!(source(address).to_string(), expected);
        }
    }

    #[test]
    fn the_plain_answer_announces_its_length() {
        let text = std::str::from_utf8(PLAIN_ANSWER).expect("ASCII");
        let (head, body) = text.split_once("\r\n\r\n").expect("head and body");
        assert!(head.contains(&format!("Content-Length: {}", body.len())));
    }

    #[test]
    fn want_of_descriptors_is_recognised() {
        for (errno, wanted) in [(24, true), (23, true), (103, false)] {
            assert_eq!(exhausted(&io::Error::from_raw_os_error(errno)), wanted);
        }
    }
}
