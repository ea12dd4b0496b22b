//! Identity over real TLS on loopback: joining, and everything that must not get in.

#![expect(clippy::panic, reason = "a test fails by panicking")]

use std::{
    io,
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use muster_agent::{
    enrol::{EnrolError, Joined, Progress, enrol, enrol_telling},
    identity::Identity,
};
use muster_aggregator::{
    admin::AdminSocket,
    control::{
        CertificateRefusal, Control, EnrolRefusal, EnrolRequest, Enrolled, Greeting, Labels,
        OperatorRole, Presented, TokenOptions,
    },
    directory::{Directory, Known},
    enrol::EnrolDoor,
    listen::{self, Conn, Counters, Incoming, Limits},
    pki::{Authority, Doors, Member, Request},
};
use muster_proto::{
    id::HostId,
    time::{Clock, FakeClock, SystemClock},
    tls::{Credentials, TlsFault, Trust, TrustedTime, client_config, fault, server_name},
    token::Token,
    v1::{HostFacts, IssueOperatorRequest, TrustBundle, Welcome, admin_client::AdminClient},
};
use rcgen::{CertificateParams, KeyPair};
use rustls::ClientConfig;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_stream::StreamExt as _;
use tokio_util::sync::CancellationToken;

/// An aggregator's identity side, in a temporary state folder.
struct Installation {
    state: tempfile::TempDir,
    authority: Arc<Authority>,
    control: Control,
    doors: Arc<Doors>,
    clock: Arc<FakeClock>,
    counters: Arc<Counters>,
    stop: CancellationToken,
}

impl Installation {
    fn new() -> Self {
        let state = folder();
        let now = SystemClock.now();
        let authority = Authority::init(state.path(), &[], now).expect("an authority");
        let authority = Arc::new(authority);
        Self {
            control: Control::open(state.path()).expect("a store"),
            doors: Arc::new(Doors::new(Arc::clone(&authority), &[], now).expect("doors")),
            clock: Arc::new(FakeClock::at(now)),
            counters: Arc::default(),
            stop: CancellationToken::new(),
            state,
            authority,
        }
    }

    fn door(&self) -> EnrolDoor {
        EnrolDoor {
            control: self.control.clone(),
            authority: Arc::clone(&self.authority),
            doors: Arc::clone(&self.doors),
            uplink_address: ":7443".to_owned(),
            limits: Limits::default(),
            counters: Arc::clone(&self.counters),
            clock: Arc::clone(&self.clock) as Arc<dyn Clock>,
            joined: tokio::sync::mpsc::channel(1).0,
        }
    }

    async fn enrolment(&self) -> SocketAddr {
        let (listener, address) = loopback().await;
        tokio::spawn(self.door().serve(listener, self.stop.clone()));
        address
    }

    async fn agents(&self, limits: Limits) -> (SocketAddr, Incoming) {
        let (listener, address) = loopback().await;
        let config = Arc::clone(&self.doors.agents);
        let counters = Arc::clone(&self.counters);
        let incoming = listen::tls(listener, config, limits, counters, self.stop.clone());
        (address, incoming)
    }

    async fn operators(&self) -> (SocketAddr, Incoming) {
        let (listener, address) = loopback().await;
        let config = Arc::clone(&self.doors.operators);
        let (limits, counters) = (Limits::default(), Arc::clone(&self.counters));
        let incoming = listen::tls(listener, config, limits, counters, self.stop.clone());
        (address, incoming)
    }

    async fn token(&self, uses: u32) -> Token {
        let options = TokenOptions {
            uses,
            labels: [("rack".to_owned(), "b4".to_owned())].into(),
            ..TokenOptions::default()
        };
        let pin = self.authority.pin();
        self.control
            .create_token(pin, options, "test", self.clock.now())
            .await
            .expect("a token")
    }

    fn trust(&self) -> Trust {
        Trust {
            roots: vec![self.authority.root()],
            domain: self.authority.trust_domain().clone(),
            time: TrustedTime::default(),
        }
    }

    fn agent(&self) -> Credentials {
        let (key, request) = request();
        let host = HostId::from_bytes([5; 16]);
        let issued = self
            .authority
            .issue_agent(
                &request,
                Member {
                    host,
                    joined: self.clock.now(),
                },
                self.clock.now(),
            )
            .expect("issued");
        credentials(issued.chain, &key)
    }

    fn operator(&self) -> Credentials {
        let (key, request) = request();
        let issued = self
            .authority
            .issue_operator(&request, "jo", self.clock.now())
            .expect("issued");
        credentials(issued.chain, &key)
    }

    async fn last_audit(&self) -> String {
        let mut log = self.control.audit_log(1).await.expect("readable");
        log.pop().expect("a line").1.join(" | ")
    }
}

impl Drop for Installation {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn credentials(chain: Vec<CertificateDer<'static>>, key: &KeyPair) -> Credentials {
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    Credentials { chain, key }
}

fn request() -> (KeyPair, Request) {
    let key = KeyPair::generate().expect("a key");
    let made = CertificateParams::default()
        .serialize_request(&key)
        .expect("a request");
    let request = Request::check(made.der()).expect("acceptable");
    (key, request)
}

async fn loopback() -> (TcpListener, SocketAddr) {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let listener = listen::bind(any).await.expect("loopback");
    let address = listener.local_addr().expect("bound");
    (listener, address)
}

async fn join(
    address: SocketAddr,
    token: &Token,
    hostname: &str,
    state: &Path,
) -> Result<Joined, EnrolError> {
    let facts = HostFacts {
        hostname: hostname.to_owned(),
        ..HostFacts::default()
    };
    enrol(&address.to_string(), token, facts, state).await
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a folder")
}

/// Connects and waits for a byte: with TLS 1.3 a client learns only then that its certificate was refused.
async fn knock(
    address: SocketAddr,
    config: ClientConfig,
) -> io::Result<(TlsStream<TcpStream>, u8)> {
    let tcp = TcpStream::connect(address).await?;
    let connector = TlsConnector::from(Arc::new(config));
    let mut stream = connector.connect(server_name(), tcp).await?;
    let byte = stream.read_u8().await?;
    Ok((stream, byte))
}

/// Takes the next connection of a door and greets it with one byte.
async fn greet(incoming: &mut Incoming) -> Conn {
    let mut conn = incoming.next().await.expect("a connection").expect("good");
    conn.write_all(b"!").await.expect("sent");
    conn.flush().await.expect("sent");
    conn
}

fn counted(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

#[tokio::test]
async fn a_host_joins_and_is_then_known_at_the_agents_door() {
    let installation = Installation::new();
    let address = installation.enrolment().await;
    let token = installation.token(1).await;
    let state = folder();

    let joined = join(address, &token, "web-1", state.path())
        .await
        .expect("joined");
    assert_eq!(joined.uplink_address, "127.0.0.1:7443");
    assert_eq!(&joined.trust_domain, installation.authority.trust_domain());
    let hosts = installation.control.hosts().await.expect("readable");
    assert_eq!(hosts.len(), 1);
    assert_eq!(hosts[0].host_id, joined.host_id);
    assert_eq!(hosts[0].name, "web-1");
    assert_eq!(hosts[0].labels["rack"], "b4");

    let identity = Identity::load(state.path()).expect("stored");
    let config = identity
        .client_config(&TrustedTime::default())
        .expect("usable");
    let (agents, mut incoming) = installation.agents(Limits::default()).await;
    let (knocked, conn) = tokio::join!(knock(agents, config), greet(&mut incoming));
    assert_eq!(knocked.expect("let in").1, b'!');
    let peer = conn.peer();
    let host = peer.id.as_ref().and_then(|id| id.host());
    assert_eq!(host, Some(joined.host_id));
    assert_eq!(peer.serial.as_ref(), Some(&hosts[0].cert_serial));
    assert_eq!(peer.cert_not_after, Some(hosts[0].cert_not_after));

    let twice = join(address, &token, "web-1", state.path()).await;
    assert!(matches!(twice, Err(EnrolError::Identity(_))), "{twice:?}");
}

#[tokio::test]
async fn a_lost_answer_can_be_asked_for_again_but_only_by_the_same_key() {
    let installation = Installation::new();
    let address = installation.enrolment().await;
    let token = installation.token(1).await;

    let state = folder();
    let first = join(address, &token, "db", state.path())
        .await
        .expect("joined");
    // As if the crash had come before the answer was stored: the key is there, the rest is not.
    let key = state.path().join("identity/key.pem");
    let again = folder();
    std::fs::create_dir(again.path().join("enrolling")).expect("made");
    std::fs::copy(key, again.path().join("enrolling/key.pem")).expect("copied");
    let second = join(address, &token, "db", again.path())
        .await
        .expect("again");
    assert_eq!(first, second);
    let hosts = installation.control.hosts().await.expect("readable");
    assert_eq!(hosts.len(), 1, "no second host came of it");

    let thief = join(address, &token, "db", folder().path()).await;
    let said = thief.expect_err("refused").to_string();
    assert!(said.contains("used by another host"), "{said}");
    let audit = installation.last_audit().await;
    assert!(audit.contains("token used by two keys"), "{audit}");
}

#[tokio::test]
async fn who_has_a_token_is_heard_beside_strangers_that_fail() {
    let installation = Installation::new();
    let address = installation.enrolment().await;
    let token = installation.token(1).await;
    let wrong = Token::from_parts("zzzzzzzz", token.secret(), *token.pin()).expect("a token");
    for attempt in 0..7 {
        let state = folder();
        match join(address, &wrong, "stranger", state.path()).await {
            Err(EnrolError::Refused(_)) if attempt < 5 => {}
            Err(EnrolError::NotNow(said)) if attempt >= 5 => {
                assert!(said.contains("wait a minute"), "{said}");
            }
            other => unreachable!("{attempt}: {:?}", other.err()),
        }
    }
    let state = folder();
    let joined = join(address, &token, "web", state.path()).await;
    let joined = joined.expect("it has a token");
    let hosts = installation.control.hosts().await.expect("readable");
    assert_eq!(hosts[0].host_id, joined.host_id);
}

#[tokio::test]
async fn hosts_of_one_name_are_told_apart() {
    let installation = Installation::new();
    let address = installation.enrolment().await;
    let token = installation.token(3).await;
    for _ in 0..3 {
        join(address, &token, "localhost", folder().path())
            .await
            .expect("joined");
    }
    let hosts = installation.control.hosts().await.expect("readable");
    let names: Vec<&str> = hosts.iter().map(|host| host.name.as_str()).collect();
    assert_eq!(names, ["localhost", "localhost-2", "localhost-3"]);
}

#[tokio::test]
async fn what_a_host_says_of_itself_is_checked_and_its_name_changes_once_an_hour() {
    let installation = Installation::new();
    let address = installation.enrolment().await;
    let token = installation.token(1).await;
    let evil = join(address, &token, "web\u{1b}[2J", folder().path()).await;
    let said = match evil {
        Err(EnrolError::Refused(said)) => said,
        other => panic!("{other:?}"),
    };
    assert!(said.contains("hostname has control characters"), "{said}");
    let state = folder();
    let joined = join(address, &token, "web", state.path()).await;
    let host = joined.expect("the token was not used up").host_id;

    let clock = Arc::clone(&installation.clock) as Arc<dyn Clock>;
    let directory = Directory::new(installation.control.clone(), clock);
    let named = async |hostname: &str| {
        let facts = HostFacts {
            hostname: hostname.to_owned(),
            ..HostFacts::default()
        };
        match directory.connected(host, facts).await {
            Known::Yes(enrolled) => enrolled.name,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(named("web-1").await, "web-1");
    for at in 0..20 {
        assert_eq!(named(&format!("flood-{at}")).await, "web-1");
    }
    installation.clock.advance(Duration::from_secs(3600));
    assert_eq!(named("db").await, "db");
    let facts = HostFacts {
        kernel: "k".repeat(10_000),
        ..HostFacts::default()
    };
    let known = directory.connected(host, facts).await;
    assert!(matches!(known, Known::Refused(_)), "{known:?}");
}

#[tokio::test]
async fn tokens_that_let_nobody_in() {
    let installation = Installation::new();
    let address = installation.enrolment().await;
    let refused = async |token: &Token| match join(address, token, "x", folder().path()).await {
        Err(EnrolError::Refused(said) | EnrolError::NotNow(said)) => said,
        other => panic!("{other:?}"),
    };

    let token = installation.token(1).await;
    installation.clock.advance(Duration::from_secs(15 * 60));
    assert!(refused(&token).await.contains("expired"));

    let token = installation.token(1).await;
    let now = installation.clock.now();
    let done = installation.control.revoke_token(token.id(), "test", now);
    assert_eq!(done.await.ok(), Some(true));
    assert!(refused(&token).await.contains("revoked"));

    // A guess: the right id and fingerprint, another secret.
    let (one, two) = (installation.token(1).await, installation.token(1).await);
    let guess = Token::from_parts(one.id(), two.secret(), *one.pin()).expect("well-formed");
    assert!(refused(&guess).await.contains("not known"));
    assert!(join(address, &one, "y", folder().path()).await.is_ok());

    // After five guesses whoever guesses there is not listened to for a minute; who has a token is.
    for _ in 1..5 {
        assert!(refused(&guess).await.contains("not known"));
    }
    assert!(refused(&guess).await.contains("wait a minute"));
    assert!(join(address, &two, "z", folder().path()).await.is_ok());
    installation.clock.advance(Duration::from_secs(60));
    assert!(refused(&guess).await.contains("not known"));
}

#[tokio::test]
async fn a_wrong_pin_stops_the_agent_before_it_sends_anything() {
    let installation = Installation::new();
    let other = Installation::new();
    let token = other.token(1).await;
    let (listener, address) = loopback().await;
    let config = installation.doors.enrolment.load_full();
    let server = tokio::spawn(async move {
        let (tcp, _) = listener.accept().await.expect("a connection");
        let mut received = Vec::new();
        // A handshake that never finished can carry no application byte.
        if let Ok(mut stream) = tokio_rustls::TlsAcceptor::from(config).accept(tcp).await {
            let _ended = stream.read_to_end(&mut received).await;
        }
        received.len()
    });
    let error = join(address, &token, "x", folder().path())
        .await
        .expect_err("not trusted");
    assert_eq!(server.await.expect("ended"), 0, "application bytes arrived");
    let EnrolError::WrongDoor { source, .. } = error else {
        panic!("{error:?}");
    };
    let hex = muster_proto::spiffe::hex;
    let wanted = TlsFault::WrongPin {
        expected: hex(&other.authority.pin()),
        found: hex(&installation.authority.pin()),
    };
    assert_eq!(source, wanted);
}

#[tokio::test]
async fn each_door_lets_in_its_own_kind_only() {
    let installation = Installation::new();
    let other = Installation::new();
    let (agents, mut agents_in) = installation.agents(Limits::default()).await;
    let (operators, mut operators_in) = installation.operators().await;
    let config = |credentials| client_config(&installation.trust(), credentials).expect("usable");

    for (address, credentials) in [
        (agents, installation.operator()),
        (operators, installation.agent()),
        (agents, other.agent()),
        (operators, other.operator()),
    ] {
        let error = knock(address, config(credentials))
            .await
            .expect_err("refused");
        let said = fault(&error);
        assert!(matches!(said, Some(TlsFault::Refused(_))), "{error:?}");
    }
    assert_eq!(counted(&installation.counters.certificate), 4);
    assert_eq!(counted(&installation.counters.accepted), 0);

    let operator = config(installation.operator());
    let (knocked, conn) = tokio::join!(knock(operators, operator), greet(&mut operators_in));
    assert!(knocked.is_ok());
    let name = conn.peer().id.as_ref().and_then(|id| id.operator());
    assert_eq!(name, Some("jo"));
    let agent = config(installation.agent());
    let (knocked, _) = tokio::join!(knock(agents, agent), greet(&mut agents_in));
    assert!(knocked.is_ok());
}

#[tokio::test]
async fn a_client_knows_its_own_aggregator() {
    let installation = Installation::new();
    let other = Installation::new();
    let (agents, _incoming) = installation.agents(Limits::default()).await;
    let faulty = async |trust: Trust| {
        let config = client_config(&trust, installation.agent()).expect("usable");
        let error = knock(agents, config).await.expect_err("not trusted");
        fault(&error)
    };

    assert_eq!(faulty(other.trust()).await, Some(TlsFault::WrongIssuer));
    let mut elsewhere = installation.trust();
    elsewhere.domain = other.authority.trust_domain().clone();
    let seen = faulty(elsewhere).await;
    assert!(
        matches!(seen, Some(TlsFault::OtherTrustDomain { .. })),
        "{seen:?}"
    );

    // Its certificate is three months and a day old.
    let past = SystemClock.now().minus(Duration::from_secs(91 * 86_400));
    let old = Doors::new(Arc::clone(&installation.authority), &[], past).expect("doors");
    let (listener, address) = loopback().await;
    let (limits, counters) = (Limits::default(), Arc::default());
    let stop = installation.stop.clone();
    let _incoming = listen::tls(listener, old.agents, limits, counters, stop);
    let config = client_config(&installation.trust(), installation.agent()).expect("usable");
    let error = knock(address, config).await.expect_err("not trusted");
    let seen = fault(&error);
    assert!(matches!(seen, Some(TlsFault::Expired { .. })), "{seen:?}");
}

#[tokio::test]
async fn an_agent_that_expired_more_than_thirty_days_ago_is_refused() {
    let installation = Installation::new();
    let (agents, _incoming) = installation.agents(Limits::default()).await;
    let past = SystemClock.now().minus(Duration::from_secs(61 * 86_400));
    installation.clock.set(past);
    let config = client_config(&installation.trust(), installation.agent()).expect("usable");
    let error = knock(agents, config).await.expect_err("expired");
    assert_eq!(fault(&error), Some(TlsFault::Refused("it is expired")));
}

#[tokio::test]
async fn what_is_not_tls_gets_an_answer_or_nothing() {
    let installation = Installation::new();
    let (agents, _incoming) = installation.agents(Limits::default()).await;
    let say = async |bytes: &[u8]| {
        let mut tcp = TcpStream::connect(agents).await.expect("connected");
        tcp.write_all(bytes).await.expect("sent");
        let mut answer = Vec::new();
        // A reset is as good as an end here.
        let _ended = tcp.read_to_end(&mut answer).await;
        String::from_utf8_lossy(&answer).into_owned()
    };
    let answer = say(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    assert!(answer.contains("speaks TLS"), "{answer}");
    assert_eq!(say(b"hello\r\n").await, "");
    assert_eq!(counted(&installation.counters.not_tls), 2);

    // HTTP/1 inside TLS, named and unnamed.
    let mut config = client_config(&installation.trust(), installation.agent()).expect("usable");
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    assert!(knock(agents, config.clone()).await.is_err());
    config.alpn_protocols.clear();
    assert!(knock(agents, config).await.is_err());
    assert_eq!(counted(&installation.counters.incompatible), 2);
}

#[tokio::test]
async fn tls_1_2_is_refused() {
    let installation = Installation::new();
    let (agents, _incoming) = installation.agents(Limits::default()).await;
    let mut tcp = TcpStream::connect(agents).await.expect("connected");
    tcp.write_all(&client_hello_1_2()).await.expect("sent");
    let mut answer = Vec::new();
    tcp.read_to_end(&mut answer)
        .await
        .expect("an alert, then the end");
    // A record with an alert (21), fatal (2): protocol_version (70) or handshake_failure (40).
    assert_eq!(answer.first(), Some(&21), "{answer:?}");
    assert_eq!(answer.get(5), Some(&2), "{answer:?}");
    assert!(matches!(answer.get(6), Some(70 | 40)), "{answer:?}");
    assert_eq!(counted(&installation.counters.incompatible), 1);
}

/// A ClientHello of TLS 1.2 (RFC 5246, 7.4.1.2) with one ECDHE suite and the extensions it needs.
fn client_hello_1_2() -> Vec<u8> {
    let extensions: &[u8] = &[
        0, 10, 0, 4, 0, 2, 0, 23, // supported_groups: secp256r1
        0, 13, 0, 4, 0, 2, 4, 3, // signature_algorithms: ecdsa_secp256r1_sha256
    ];
    let length = |bytes: &[u8]| u8::try_from(bytes.len()).expect("short");
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.extend([0, 0, 2, 0xc0, 0x2b, 1, 0, 0, length(extensions)]);
    body.extend(extensions);
    let mut hello = vec![1, 0, 0, length(&body)];
    hello.extend(body);
    let mut record = vec![22, 3, 1, 0, length(&hello)];
    record.extend(hello);
    record
}

#[tokio::test]
async fn a_silent_connection_is_closed_and_an_address_has_its_limit() {
    let installation = Installation::new();
    let limits = Limits {
        handshake: Duration::from_millis(100),
        unauthenticated_per_address: 1,
        waiting_per_address: 2,
        ..Limits::default()
    };
    let (agents, _incoming) = installation.agents(limits).await;
    let mut silent = Vec::new();
    for _ in 0..3 {
        silent.push(TcpStream::connect(agents).await.expect("connected"));
    }
    for mut tcp in silent {
        let mut nothing = Vec::new();
        tcp.read_to_end(&mut nothing).await.expect("closed");
        assert!(nothing.is_empty());
    }
    assert_eq!(counted(&installation.counters.timed_out), 2);
    assert_eq!(counted(&installation.counters.address_limit), 1);
}

#[tokio::test]
async fn who_says_nothing_or_stalls_keeps_nobody_out() {
    let installation = Installation::new();
    let limits = Limits {
        handshakes: 1,
        fair_turn: Duration::from_millis(10),
        // Nobody leaves by this in the time of the test.
        handshake: Duration::from_secs(600),
        ..Limits::default()
    };
    let (agents, mut incoming) = installation.agents(limits).await;
    let mut stalled = Vec::new();
    for said in [&[][..], &[22], &[], &[22, 3, 1]] {
        let mut tcp = TcpStream::connect(agents).await.expect("connected");
        tcp.write_all(said).await.expect("sent");
        stalled.push(tcp);
    }
    let config = client_config(&installation.trust(), installation.agent()).expect("usable");
    let (knocked, _conn) = tokio::join!(knock(agents, config), greet(&mut incoming));
    assert!(knocked.is_ok(), "kept out by those who say nothing");
    assert_eq!(counted(&installation.counters.accepted), 1);
    // The two that had begun made room, the one after the other; the silent ones cost no place and stay.
    assert_eq!(counted(&installation.counters.timed_out), 2);
}

#[tokio::test]
async fn one_agent_holds_so_many_connections_at_most() {
    let installation = Installation::new();
    let (agents, mut incoming) = installation.agents(Limits::default()).await;
    let credentials = installation.agent();
    let config = client_config(&installation.trust(), credentials).expect("usable");
    let mut held = Vec::new();
    for _ in 0..4 {
        let (knocked, conn) = tokio::join!(knock(agents, config.clone()), greet(&mut incoming));
        held.push((knocked.expect("let in"), conn));
    }
    let fifth = knock(agents, config.clone()).await;
    assert!(fifth.is_err(), "let in");
    assert_eq!(counted(&installation.counters.peer_limit), 1);
    // Another one is not concerned.
    let (operators, mut operators_in) = installation.operators().await;
    let operator = client_config(&installation.trust(), installation.operator());
    let operator = operator.expect("usable");
    let (knocked, _conn) = tokio::join!(knock(operators, operator), greet(&mut operators_in));
    assert!(knocked.is_ok());
    held.pop();
    let (knocked, _conn) = tokio::join!(knock(agents, config), greet(&mut incoming));
    assert!(knocked.is_ok(), "a place is given back");
}

#[tokio::test]
async fn the_enrolment_door_is_open_only_while_a_token_lives() {
    let installation = Installation::new();
    // A free port of an address that no other test uses, given back at once.
    let own = SocketAddr::from(([127, 0, 0, 9], 0));
    let listener = listen::bind(own).await.expect("loopback");
    let address = listener.local_addr().expect("bound");
    drop(listener);
    let door = installation.door().run(address, installation.stop.clone());
    let running = tokio::spawn(door);
    let becomes = async |open: bool| {
        let reached = async {
            while TcpStream::connect(address).await.is_ok() != open {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let patience = Duration::from_secs(20);
        tokio::time::timeout(patience, reached).await.is_ok()
    };
    let shut = TcpStream::connect(address).await;
    assert!(shut.is_err(), "open without a token");
    // Made by another process, as far as the door can tell.
    let state = installation.state.path();
    muster_aggregator::setup::token_create(state, TokenOptions::default())
        .await
        .expect("a token");
    assert!(becomes(true).await);
    installation.clock.advance(Duration::from_secs(3600));
    assert!(becomes(false).await);
    installation.stop.cancel();
    running.await.expect("ended");
}

#[tokio::test]
async fn the_admin_socket_issues_operators() {
    let installation = Installation::new();
    let path = installation.state.path().join("admin.sock");
    let admin = AdminSocket {
        control: installation.control.clone(),
        authority: Arc::clone(&installation.authority),
        operator_address: "agg:7445".to_owned(),
        fleet_name: "test".to_owned(),
        clock: Arc::clone(&installation.clock) as Arc<dyn Clock>,
    };
    let incoming = listen::unix::listen(&path, installation.stop.clone()).expect("bound");
    tokio::spawn(admin.serve(incoming, installation.stop.clone()));
    let connector = tower::service_fn(move |_: http::Uri| {
        let path = path.clone();
        async move {
            let stream = tokio::net::UnixStream::connect(path).await?;
            Ok::<_, io::Error>(hyper_util::rt::TokioIo::new(stream))
        }
    });
    let channel = tonic::transport::Endpoint::from_static("http://admin")
        .connect_with_connector(connector)
        .await
        .expect("connected");
    let mut client = AdminClient::new(channel);

    let key = KeyPair::generate().expect("a key");
    let csr = CertificateParams::default()
        .serialize_request(&key)
        .expect("a request");
    let ask = |name: &str, role: &str, csr: &[u8]| IssueOperatorRequest {
        name: name.to_owned(),
        role: role.to_owned(),
        csr: csr.to_vec(),
    };
    let issued = client
        .issue_operator(ask("jo", "admin", csr.der()))
        .await
        .expect("issued")
        .into_inner();
    let leaf = CertificateDer::from(issued.certificate_chain[0].clone());
    let who = muster_proto::spiffe::peer_id(&leaf).expect("named");
    assert_eq!(who.id.operator(), Some("jo"));
    assert_eq!(issued.operator_address, "agg:7445");
    let role = installation.control.operator_role("jo").await;
    assert_eq!(role.expect("readable"), Some(OperatorRole::Admin));
    let nobody = installation.control.operator_role("eve").await;
    assert_eq!(nobody.expect("readable"), None);

    for wrong in [
        ask("Jo", "admin", csr.der()),
        ask("jo", "root", csr.der()),
        ask("jo", "admin", b"x"),
    ] {
        let status = client.issue_operator(wrong).await.expect_err("refused");
        assert_eq!(status.code(), tonic::Code::InvalidArgument);
    }
}

/// A token with these options.
async fn special(installation: &Installation, options: TokenOptions) -> Token {
    let pin = installation.authority.pin();
    installation
        .control
        .create_token(pin, options, "test", installation.clock.now())
        .await
        .expect("a token")
}

#[tokio::test]
async fn a_token_for_other_networks_is_refused_and_on_record() {
    let installation = Installation::new();
    let address = installation.enrolment().await;
    for (network, good) in [("10.0.0.0/8", false), ("127.0.0.0/8", true)] {
        let options = TokenOptions {
            networks: vec![network.parse().expect("a network")],
            ..TokenOptions::default()
        };
        let token = special(&installation, options).await;
        let joined = join(address, &token, "web", folder().path()).await;
        assert_eq!(joined.is_ok(), good, "{network}: {joined:?}");
        if let Err(error) = joined {
            assert!(error.to_string().contains("not good from your address"));
            let audit = installation.last_audit().await;
            assert!(audit.contains("refused: Elsewhere"), "{audit}");
        }
    }
}

#[tokio::test]
async fn a_host_waits_for_a_person_over_restarts_of_both_ends() {
    let installation = Installation::new();
    let address = installation.enrolment().await;
    let options = TokenOptions {
        approve: true,
        uses: 2,
        ..TokenOptions::default()
    };
    let token = special(&installation, options).await;
    let state = folder();
    let facts = || HostFacts {
        hostname: "web".to_owned(),
        os_pretty: "Debian".to_owned(),
        ..HostFacts::default()
    };
    // Broken off while it waits, as by Ctrl-C.
    let (told, mut heard) = tokio::sync::mpsc::unbounded_channel();
    let text = address.to_string();
    {
        let first = enrol_telling(
            std::slice::from_ref(&text),
            &token,
            facts(),
            state.path(),
            |progress| {
                let _ = told.send(progress);
            },
        );
        let mut first = std::pin::pin!(first);
        let said = tokio::select! {
            joined = &mut first => panic!("{joined:?}"),
            said = heard.recv() => said,
        };
        let Some(Progress::Waiting { number: 1, key }) = said else {
            panic!("{said:?}");
        };
        let now = installation.clock.now();
        let waiting = installation
            .control
            .waiting_hosts(now)
            .await
            .expect("readable");
        assert_eq!(waiting.len(), 1);
        assert_eq!(
            (waiting[0].hostname.as_str(), waiting[0].os.as_str()),
            ("web", "Debian")
        );
        assert!(muster_proto::spiffe::hex(&waiting[0].fingerprint).starts_with(&key));
    }
    assert!(
        installation
            .control
            .hosts()
            .await
            .expect("readable")
            .is_empty()
    );
    let audit = installation.last_audit().await;
    assert!(
        audit.contains("waits to be approved as number 1"),
        "{audit}"
    );
    // Another machine waits too and is denied; a third finds no use left.
    let denied = folder();
    let other = {
        let second = enrol_telling(
            std::slice::from_ref(&text),
            &token,
            facts(),
            denied.path(),
            |progress| {
                let _ = told.send(progress);
            },
        );
        let mut second = std::pin::pin!(second);
        tokio::select! {
            joined = &mut second => panic!("{joined:?}"),
            said = heard.recv() => assert!(matches!(said, Some(Progress::Waiting { number: 2, .. }))),
        }
        join(address, &token, "late", folder().path()).await
    };
    assert!(
        other
            .expect_err("refused")
            .to_string()
            .contains("used by another")
    );

    // The aggregator is started again, the token's own life ends, and then somebody decides.
    let control = Control::open(installation.state.path()).expect("opened again");
    let later = installation.clock.now().plus(Duration::from_secs(3600));
    installation.clock.set(later);
    assert!(
        control.live_token_exists(later).await.expect("readable"),
        "the door stays open"
    );
    let decided = control.decide_waiting(1, true, "jo", later).await;
    assert_eq!(decided.expect("written").as_deref(), Some("web"));
    let decided = control.decide_waiting(2, false, "jo", later).await;
    assert_eq!(decided.expect("written").as_deref(), Some("web"));
    assert_eq!(
        control
            .decide_waiting(2, true, "jo", later)
            .await
            .expect("written"),
        None
    );

    let joined = enrol(&text, &token, facts(), state.path()).await;
    joined.expect("joined with the key of before");
    let serial = &control.hosts().await.expect("readable")[0].cert_serial;
    let again = asked_again(&installation, &token, serial).await;
    assert_eq!(
        again.expect_err("its token has ended"),
        EnrolRefusal::Expired,
        "an approval lets in once"
    );
    let refused = enrol(&text, &token, facts(), denied.path()).await;
    let refused = refused.expect_err("denied").to_string();
    assert!(
        refused.contains("an operator denied this host"),
        "{refused}"
    );
    assert_eq!(control.hosts().await.expect("readable").len(), 1);
}

/// What a key that has a certificate is told that asks again with a token.
async fn asked_again(
    installation: &Installation,
    token: &Token,
    serial: &str,
) -> Result<Enrolled, EnrolRefusal> {
    let file = rusqlite::Connection::open(installation.state.path().join("control.db"));
    let fingerprint = file.expect("opened").query_row(
        "SELECT spki_hash FROM certificates WHERE serial = ?1",
        [serial],
        |row| row.get(0),
    );
    let request = EnrolRequest {
        token_id: token.id().to_owned(),
        secret: token.secret().to_owned(),
        fingerprint: fingerprint.expect("a certificate"),
        facts: HostFacts::default().into(),
        labels: Labels::new(),
        from: "127.0.0.1".to_owned(),
    };
    let issue = |_| unreachable!("nothing is issued to it");
    let now = installation.clock.now();
    let asked = installation.control.enrol(request, issue, now).await;
    asked.expect("decided")
}

#[tokio::test]
async fn one_who_replaces_a_host_keeps_its_name_and_ends_its_certificates() {
    let installation = Installation::new();
    let address = installation.enrolment().await;
    let (old, new) = (folder(), folder());
    let token = installation.token(1).await;
    let before = join(address, &token, "db", old.path())
        .await
        .expect("joined");
    let shown = |state: &Path| {
        let identity = Identity::load(state).expect("stored");
        let leaf = identity.credentials.chain.first().expect("a leaf").clone();
        let (_, parsed) = x509_parser::parse_x509_certificate(&leaf).expect("parsed");
        Presented {
            host_id: identity.host_id,
            serial: muster_proto::spiffe::hex(parsed.raw_serial()),
            not_after: installation.clock.now().plus(Duration::from_secs(60)),
            origin: None,
        }
    };
    let admitted = async |state: &Path| {
        let asked = installation
            .control
            .admit_host(shown(state), installation.clock.now());
        asked.await.expect("readable")
    };
    assert_eq!(admitted(old.path()).await, Ok(()));
    let options = TokenOptions {
        replaces: Some("db".to_owned()),
        ..TokenOptions::default()
    };
    let old_token = token;
    let token = special(&installation, options.clone()).await;
    let after = join(address, &token, "db", new.path())
        .await
        .expect("joined");
    assert_eq!(after.host_id, before.host_id, "its history goes on");
    assert_eq!(admitted(new.path()).await, Ok(()));
    assert_eq!(
        admitted(old.path()).await,
        Err(CertificateRefusal::Superseded)
    );
    // Nor does the old key get the identity back with the token that it joined with.
    let back = asked_again(&installation, &old_token, &shown(old.path()).serial).await;
    assert_eq!(back.expect_err("refused"), EnrolRefusal::Superseded);
    assert_eq!(admitted(new.path()).await, Ok(()));
    let hosts = installation.control.hosts().await.expect("readable");
    assert_eq!(hosts.len(), 1);
    assert_eq!(
        (hosts[0].name.as_str(), hosts[0].labels["rack"].as_str()),
        ("db", "b4")
    );
    // The lost answer of it can be asked for again; another key gets nothing.
    let again = join(address, &token, "db", folder().path()).await;
    assert!(
        again
            .expect_err("used")
            .to_string()
            .contains("used by another host")
    );
    // A token for nobody is not made.
    let nobody = TokenOptions {
        replaces: Some("web-9".to_owned()),
        ..TokenOptions::default()
    };
    let pin = installation.authority.pin();
    let made = installation
        .control
        .create_token(pin, nobody, "test", installation.clock.now());
    assert!(made.await.is_err());
    let many = TokenOptions { uses: 2, ..options };
    let made = installation
        .control
        .create_token(pin, many, "test", installation.clock.now());
    assert!(made.await.is_err());
}

#[tokio::test]
async fn of_several_addresses_the_first_that_can_be_asked_is() {
    let (installation, other) = (Installation::new(), Installation::new());
    let address = installation.enrolment().await.to_string();
    let token = installation.token(2).await;
    // Nobody there, and another authority's door, which is shown nothing.
    let (closed, nobody) = loopback().await;
    drop(closed);
    other.token(1).await;
    let stranger = other.enrolment().await.to_string();
    let facts = || HostFacts {
        hostname: "web".to_owned(),
        ..HostFacts::default()
    };
    let state = folder();
    let unhelpful = vec![nobody.to_string(), stranger.clone()];
    let asked = enrol_telling(&unhelpful, &token, facts(), state.path(), |_| {}).await;
    let said = asked.expect_err("nobody to ask").to_string();
    assert!(
        said.contains(&unhelpful[0]) && said.contains(&stranger),
        "{said}"
    );
    let before = other.last_audit().await;
    let all = [unhelpful, vec![address.clone()]].concat();
    let joined = enrol_telling(&all, &token, facts(), state.path(), |_| {}).await;
    let host = joined.expect("the third").host_id;
    assert_eq!(other.last_audit().await, before, "it was told nothing");
    // One that answers decides: a refusal is not taken elsewhere.
    let refusing = installation.token(1).await;
    join(
        installation.enrolment().await,
        &refusing,
        "one",
        folder().path(),
    )
    .await
    .expect("the only use");
    let state = folder();
    let twice = vec![address.clone(), nobody.to_string()];
    let refused = enrol_telling(&twice, &refusing, facts(), state.path(), |_| {}).await;
    assert!(
        matches!(refused, Err(EnrolError::Refused(_))),
        "{refused:?}"
    );
    let hosts = installation.control.hosts().await.expect("readable");
    assert!(hosts.iter().any(|one| one.host_id == host) && hosts.len() == 2);
}

#[tokio::test]
async fn the_door_closes_when_the_last_use_has_connected() {
    let installation = Installation::new();
    let (address, control) = (installation.enrolment().await, &installation.control);
    let now = installation.clock.now();
    let open = async || control.live_token_exists(now).await.expect("readable");
    assert!(!open().await);
    let token = installation.token(1).await;
    assert!(open().await);
    let joined = join(address, &token, "web", folder().path())
        .await
        .expect("joined");
    assert!(open().await, "its answer may have been lost");
    let first = Greeting {
        session: 1,
        boot_id: vec![1; 16],
        ratchet: Vec::new(),
        bundle_version: 1,
    };
    control
        .greet(joined.host_id, first, now)
        .await
        .expect("written");
    assert!(!open().await, "at once, not at the token's end");
}

#[tokio::test]
async fn ten_wrong_secrets_lock_a_token() {
    let installation = Installation::new();
    let token = installation.token(1).await;
    let (control, now) = (&installation.control, installation.clock.now());
    let ask = async |secret: &str| {
        let (_, csr) = request();
        let asked = EnrolRequest {
            token_id: token.id().to_owned(),
            secret: secret.to_owned(),
            fingerprint: *csr.fingerprint(),
            facts: HostFacts::default().into(),
            labels: std::collections::BTreeMap::new(),
            from: "192.0.2.1".to_owned(),
        };
        let authority = Arc::clone(&installation.authority);
        let issue = move |host| authority.issue_agent(&csr, host, now);
        control
            .enrol(asked, issue, now)
            .await
            .expect("decided")
            .err()
    };
    for _ in 0..10 {
        assert_eq!(ask("0000").await, Some(EnrolRefusal::Unknown));
    }
    assert_eq!(ask(token.secret()).await, Some(EnrolRefusal::Locked));
    assert!(!control.live_token_exists(now).await.expect("readable"));
}

#[tokio::test]
async fn a_trust_bundle_that_would_cut_the_host_off_is_not_kept() {
    let installation = Installation::new();
    let address = installation.enrolment().await;
    let token = installation.token(1).await;
    let state = folder();
    join(address, &token, "web", state.path())
        .await
        .expect("joined");
    let (agents, mut incoming) = installation.agents(Limits::default()).await;
    let mut agent = muster_agent::Credentials::on_disk(state.path(), agents.to_string());
    let (stream, _conn) = tokio::join!(agent.connector.connect(), greet(&mut incoming));
    let _stream = stream.expect("connected");

    let other = folder();
    let other = Authority::init(other.path(), &[], installation.clock.now()).expect("another");
    let (own, foreign) = (
        installation.authority.root().to_vec(),
        other.root().to_vec(),
    );
    let leaf = installation.agent().chain[0].to_vec();
    let mut offer = |version, roots: Vec<Vec<u8>>| {
        let welcome = Welcome {
            bundle: Some(TrustBundle { version, roots }),
            ..Welcome::default()
        };
        agent.memory.welcomed(&welcome).map_err(|error| {
            let cause = error.get_ref().map(ToString::to_string);
            cause.unwrap_or_default()
        })
    };
    for (roots, why) in [
        (vec![], "has 1 to 8 roots"),
        (vec![own.clone(); 9], "has 1 to 8 roots"),
        (vec![foreign.clone()], "would not accept the aggregator"),
        (vec![own.clone(), leaf], "no certificate of an authority"),
        (
            vec![own.clone(), vec![1, 2, 3]],
            "no certificate of an authority",
        ),
    ] {
        let said = offer(9, roots).expect_err(why);
        assert!(said.contains(why), "{said}");
        let held = Identity::load(state.path()).expect("stored");
        assert_eq!((held.bundle_version, held.roots.len()), (1, 1), "{why}");
    }
    assert_eq!(offer(2, vec![own.clone(), foreign]), Ok(()));
    let held = Identity::load(state.path()).expect("stored");
    assert_eq!((held.bundle_version, held.roots.len()), (2, 2));
    assert_eq!(offer(1, vec![own]), Ok(()), "an older one changes nothing");
    let held = Identity::load(state.path()).expect("stored");
    assert_eq!(held.bundle_version, 2);
}
