//! Certificates that are renewed, expired, replaced or withdrawn, over real TLS against a whole aggregator.

#![expect(clippy::panic, reason = "a test fails by panicking")]

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use muster_agent::{
    Agent, AgentConfig, Credentials,
    buffer::BufferLimits,
    enrol::{Joined, enrol},
    identity::{self, Identity},
    simulate::SimulatedHost,
};
use muster_aggregator::{
    cli::client::channel,
    config::Config,
    control::{
        CertificateRefusal, Control, EnrolRefusal, EnrolRequest, OperatorRole, Presented, Removal,
        TokenOptions,
    },
    enrol::EnrolDoor,
    listen::{Counters, Limits, bind},
    pki::{Authority, Doors, Request},
    serve::{self, Aggregator},
};
use muster_proto::{
    limits,
    time::{Clock, FakeClock, SystemClock, Timestamp},
    tls::{TlsFault, TrustedTime, fault, server_name},
    v1::{
        self, HostFacts, agent_message::Message as Up, aggregator_message::Message as Down,
        uplink_client::UplinkClient,
    },
};
use rcgen::{CertificateParams, KeyPair};
use rustls_pki_types::CertificateDer;
use tokio::{net::TcpStream, sync::mpsc};
use tokio_rustls::TlsConnector;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

const DAY: Duration = Duration::from_secs(86_400);
/// Longer than any step here takes, on any machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// A whole aggregator, and hosts that joined it at any time.
struct Lab {
    folder: tempfile::TempDir,
    aggregator: Aggregator,
}

impl Lab {
    /// Starts with hosts that joined this many days ago; their state folders are `host-<n>`.
    async fn with_hosts(days_ago: &[u32]) -> Self {
        let folder = prepared(days_ago).await;
        let aggregator = started(folder.path(), "aggregator").await;
        Self { folder, aggregator }
    }

    fn host(&self, number: usize) -> std::path::PathBuf {
        self.folder.path().join(format!("host-{number}"))
    }

    async fn connect(&self, state: &Path) -> std::io::Result<UplinkClient<Channel>> {
        connect(&self.aggregator, state).await
    }

    async fn audit(&self, action: &str) -> Vec<String> {
        audit(&self.aggregator, action).await
    }
}

/// An authority in `aggregator`, and hosts that joined it this many days ago in `host-<n>`.
async fn prepared(days_ago: &[u32]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let state_dir = folder.path().join("aggregator");
    std::fs::create_dir(&state_dir).expect("a folder");
    let now = SystemClock.now();
    Authority::init(&state_dir, &[], now.minus(DAY * 100)).expect("an authority");
    for (number, days) in days_ago.iter().enumerate() {
        let state = folder.path().join(format!("host-{number}"));
        std::fs::create_dir(&state).expect("a folder");
        join(
            &state_dir,
            &state,
            &format!("web-{number}"),
            now.minus(DAY * *days),
        )
        .await;
    }
    folder
}

/// The aggregator whose state is in this folder.
async fn started(folder: &Path, name: &str) -> Aggregator {
    let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
    let runtime_dir = folder.join(format!("{name}-run"));
    std::fs::create_dir(&runtime_dir).expect("a folder");
    let mut config = Config {
        runtime_dir,
        state_dir: folder.join(name),
        ..Config::default()
    };
    (config.uplink, config.enrolment) = (loopback, loopback);
    (config.operator, config.http.listen) = (loopback, loopback);
    serve::start(&config).await.expect("started")
}

async fn connect(aggregator: &Aggregator, state: &Path) -> std::io::Result<UplinkClient<Channel>> {
    let identity = Identity::load(state).expect("an identity");
    let config = identity
        .client_config(&TrustedTime::default())
        .expect("usable");
    let tcp = TcpStream::connect(aggregator.addresses().uplink).await?;
    let tls = TlsConnector::from(Arc::new(config))
        .connect(server_name(), tcp)
        .await?;
    let channel = channel(tls, Arc::default())
        .await
        .map_err(std::io::Error::other)?;
    Ok(UplinkClient::new(channel))
}

/// What the audit log says of this action.
async fn audit(aggregator: &Aggregator, action: &str) -> Vec<String> {
    let log = aggregator.control().audit_log(100).await;
    let lines = log.expect("readable").into_iter();
    lines
        .filter(|(_, said)| said[1] == action)
        .map(|(_, said)| said[3].clone())
        .collect()
}

/// Joins through a real enrolment door whose clock shows `at`.
async fn join(aggregator: &Path, state: &Path, hostname: &str, at: Timestamp) -> Joined {
    join_with(aggregator, state, hostname, at, TokenOptions::default()).await
}

async fn join_with(
    aggregator: &Path,
    state: &Path,
    hostname: &str,
    at: Timestamp,
    options: TokenOptions,
) -> Joined {
    let authority = Arc::new(Authority::open(aggregator).expect("an authority"));
    let control = Control::open(aggregator).expect("a store");
    let token = control
        .create_token(authority.pin(), options, "test", at)
        .await
        .expect("a token");
    let door = EnrolDoor {
        control,
        doors: Arc::new(Doors::new(Arc::clone(&authority), &[], SystemClock.now()).expect("doors")),
        authority,
        uplink_address: ":7443".to_owned(),
        limits: Limits::default(),
        counters: Arc::new(Counters::default()),
        clock: Arc::new(FakeClock::at(at)),
        joined: mpsc::channel(1).0,
    };
    let listener = bind(SocketAddr::from(([127, 0, 0, 1], 0)))
        .await
        .expect("a port");
    let address = listener.local_addr().expect("bound");
    let stop = CancellationToken::new();
    tokio::spawn(door.serve(listener, stop.clone()));
    let joined = enrol(&address.to_string(), &token, facts(hostname), state).await;
    stop.cancel();
    joined.expect("joined")
}

fn facts(hostname: &str) -> HostFacts {
    HostFacts {
        hostname: hostname.to_owned(),
        machine_id_hash: hostname.as_bytes().to_vec(),
        ..HostFacts::default()
    }
}

fn hello(hostname: &str) -> v1::AgentMessage {
    let hello = v1::Hello {
        protocol: limits::PROTOCOL_VERSION,
        incarnation: 1,
        session: 1,
        boot_id: vec![1; 16],
        wall_ms: SystemClock.now().as_millis(),
        interval_ms: 10_000,
        facts: Some(facts(hostname)),
        ..v1::Hello::default()
    };
    v1::AgentMessage {
        message: Some(Up::Hello(hello)),
    }
}

/// A session that was opened, or not.
struct Opened {
    first: Down,
    inbound: tonic::Streaming<v1::AggregatorMessage>,
    _outbound: mpsc::Sender<v1::AgentMessage>,
}

impl Opened {
    fn denied(&self) -> Option<v1::DenyReason> {
        match &self.first {
            Down::Deny(deny) => Some(deny.reason()),
            Down::Welcome(_) => None,
            other => panic!("neither welcome nor deny: {other:?}"),
        }
    }

    /// The next message, `None` when the stream has ended.
    async fn next(&mut self) -> Option<Down> {
        let next = tokio::time::timeout(PATIENCE, self.inbound.message()).await;
        next.expect("in time").ok()??.message
    }
}

async fn open(client: &mut UplinkClient<Channel>) -> Opened {
    open_as(client, "web-0").await
}

async fn open_as(client: &mut UplinkClient<Channel>, hostname: &str) -> Opened {
    let (outbound, queue) = mpsc::channel(4);
    outbound.send(hello(hostname)).await.expect("room");
    let answer = client.session(ReceiverStream::new(queue)).await;
    let mut inbound = answer.expect("a stream").into_inner();
    let first = inbound.message().await.expect("no error").expect("no end");
    Opened {
        first: first.message.expect("a message"),
        inbound,
        _outbound: outbound,
    }
}

async fn renew(
    client: &mut UplinkClient<Channel>,
    key: &KeyPair,
) -> Result<Vec<CertificateDer<'static>>, tonic::Status> {
    // What the request asks for beside its key is not looked at.
    let params = CertificateParams::new(vec!["evil.example".to_owned()]).expect("a name");
    let csr = params.serialize_request(key).expect("a request");
    let request = v1::RenewRequest {
        csr: csr.der().to_vec(),
    };
    let answer = client.renew(request).await?.into_inner();
    let chain = answer.certificate_chain.into_iter();
    Ok(chain.map(CertificateDer::from).collect())
}

fn key() -> KeyPair {
    KeyPair::generate().expect("a key")
}

#[tokio::test]
async fn a_renewed_certificate_replaces_the_old_one_when_it_is_used() {
    let lab = Lab::with_hosts(&[20]).await;
    let state = lab.host(0);
    let mut old = lab.connect(&state).await.expect("connected");
    let mut session = open(&mut old).await;
    assert_eq!(session.denied(), None);

    let new_key = key();
    let chain = renew(&mut old, &new_key).await.expect("renewed");
    let leaf = muster_proto::spiffe::peer_id(&chain[0]).expect("named");
    let identity = Identity::load(&state).expect("loaded");
    assert_eq!(leaf.id.host(), Some(identity.host_id));
    // Not used yet: the old one still opens sessions.
    let mut still = lab.connect(&state).await.expect("connected");
    assert_eq!(open(&mut still).await.denied(), None);

    identity::store_next(&state, &new_key.serialize_pem(), &chain).expect("stored");
    let mut new = lab.connect(&state).await.expect("connected");
    assert_eq!(open(&mut new).await.denied(), None);
    assert_eq!(lab.audit("use renewed certificate").await.len(), 1);
    // The newer session has taken the place of the one before; the old certificate opens no other.
    while session.next().await.is_some() {}
    assert_eq!(
        open(&mut still).await.denied(),
        Some(v1::DenyReason::StaleCopy)
    );
    let refused = renew(&mut old, &key()).await.expect_err("refused");
    assert_eq!(refused.code(), tonic::Code::PermissionDenied);
    // No key is certified twice.
    let refused = renew(&mut new, &new_key).await.expect_err("refused");
    assert!(refused.message().contains("new key"), "{refused}");
    let audit = lab.audit("renew").await;
    assert_eq!(audit.len(), 3, "{audit:?}");
    lab.aggregator.stop().await;
}

/// Copies a state folder: what `backup` and `restore` come to.
fn copied(folder: &Path, from: &str, to: &str) {
    let (from, to) = (folder.join(from), folder.join(to));
    std::fs::create_dir(&to).expect("a folder");
    for entry in std::fs::read_dir(&from).expect("readable") {
        let entry = entry.expect("readable");
        let name = entry.file_name().into_string().expect("a plain name");
        if entry.file_type().expect("a type").is_dir() {
            let (from, to) = (from.join(&name), to.join(&name));
            copied(
                Path::new(""),
                &from.to_string_lossy(),
                &to.to_string_lossy(),
            );
        } else {
            std::fs::copy(entry.path(), to.join(name)).expect("copied");
        }
    }
}

/// Renews a host's certificate at the aggregator in this folder, when its clock showed `at`.
async fn renewed_at(aggregator: &Path, state: &Path, at: Timestamp) {
    let identity = Identity::load(state).expect("an identity");
    let leaf = &identity.credentials.chain[0];
    let authority = Authority::open(aggregator).expect("an authority");
    let shown = Presented {
        host_id: identity.host_id,
        serial: muster_proto::spiffe::peer_id(leaf).expect("named").serial,
        not_after: at.plus(DAY),
        origin: None,
    };
    let new_key = key();
    let csr = CertificateParams::default().serialize_request(&new_key);
    let csr = Request::check(csr.expect("a request").der()).expect("acceptable");
    let fingerprint = *csr.fingerprint();
    let control = Control::open(aggregator).expect("a store");
    let issue = move |host| authority.issue_agent(&csr, host, at);
    let issued = control.renew_host(shown, fingerprint, issue, at).await;
    let issued = issued.expect("written").expect("renewed");
    identity::store_next(state, &new_key.serialize_pem(), &issued.chain).expect("stored");
}

/// Whether an aggregator takes what this host shows.
async fn denied(aggregator: &Aggregator, state: &Path) -> Option<v1::DenyReason> {
    let mut client = connect(aggregator, state).await.expect("connected");
    open(&mut client).await.denied()
}

const ELSEWHERE: &str = "use certificate issued elsewhere";

#[tokio::test]
async fn a_stand_in_takes_what_was_renewed_since_the_backup_and_nothing_older() {
    let folder = prepared(&[25]).await;
    let (state, now) = (folder.path().join("host-0"), SystemClock.now());
    copied(folder.path(), "aggregator", "stand-in");
    copied(folder.path(), "host-0", "host-before");
    let before = folder.path().join("host-before");
    renewed_at(
        &folder.path().join("aggregator"),
        &state,
        now.minus(DAY * 5),
    )
    .await;
    let first = started(folder.path(), "aggregator").await;
    let second = started(folder.path(), "stand-in").await;
    assert_eq!(denied(&first, &state).await, None);

    assert_eq!(denied(&second, &state).await, None, "later than the backup");
    assert_eq!(denied(&second, &state).await, None, "again");
    let noted = audit(&second, ELSEWHERE).await;
    assert_eq!(noted.len(), 1, "{noted:?}");
    let stale = Some(v1::DenyReason::StaleCopy);
    for aggregator in [&first, &second] {
        assert_eq!(denied(aggregator, &before).await, stale, "older");
    }

    // It is renewed where it is, and the first takes that when it is back.
    let mut client = connect(&second, &state).await.expect("connected");
    let new_key = key();
    let chain = renew(&mut client, &new_key).await.expect("renewed");
    copied(folder.path(), "host-0", "host-between");
    let between = folder.path().join("host-between");
    identity::store_next(&state, &new_key.serialize_pem(), &chain).expect("stored");
    assert_eq!(denied(&second, &state).await, None);
    assert_eq!(denied(&second, &between).await, stale);
    assert_eq!(denied(&first, &between).await, None, "not known to be over");
    assert_eq!(denied(&first, &state).await, None, "later");
    assert_eq!(denied(&first, &between).await, stale);
    assert_eq!(audit(&first, ELSEWHERE).await.len(), 1);
    first.stop().await;
    second.stop().await;
}

#[tokio::test]
async fn a_machine_that_was_replaced_does_not_come_back_by_way_of_a_stand_in() {
    let folder = prepared(&[25]).await;
    let (old, now) = (folder.path().join("host-0"), SystemClock.now());
    copied(folder.path(), "aggregator", "stand-in");
    let site = folder.path().join("aggregator");
    let options = TokenOptions {
        replaces: Some("web-0".to_owned()),
        ..TokenOptions::default()
    };
    let new = folder.path().join("host-new");
    std::fs::create_dir(&new).expect("a folder");
    join_with(&site, &new, "web-0", now.minus(DAY * 5), options).await;
    // Later than the new machine's, by an aggregator that has not heard of it.
    renewed_at(&folder.path().join("stand-in"), &old, now.minus(DAY * 2)).await;
    let first = started(folder.path(), "aggregator").await;
    let second = started(folder.path(), "stand-in").await;
    let stale = Some(v1::DenyReason::StaleCopy);
    assert_eq!(denied(&second, &old).await, None, "it knows no better");
    assert_eq!(denied(&first, &old).await, stale);
    assert_eq!(denied(&first, &new).await, None);
    assert_eq!(
        denied(&second, &new).await,
        None,
        "joined later, issued earlier"
    );
    assert_eq!(denied(&second, &old).await, stale);
    first.stop().await;
    second.stop().await;
}

#[tokio::test]
async fn what_another_authority_or_a_removed_host_shows_is_not_taken_for_renewed_elsewhere() {
    let folder = prepared(&[25, 25]).await;
    let (state, now) = (folder.path().join("host-0"), SystemClock.now());
    copied(folder.path(), "aggregator", "stand-in");
    renewed_at(
        &folder.path().join("aggregator"),
        &state,
        now.minus(DAY * 5),
    )
    .await;
    let second = started(folder.path(), "stand-in").await;
    let host = Identity::load(&state).expect("an identity").host_id;
    let identity = Identity::load(&state).expect("an identity");
    let removed = second
        .control()
        .remove_host(host, Removal::Evict, "test", now)
        .await;
    removed.expect("written");
    assert_eq!(denied(&second, &state).await, Some(v1::DenyReason::Removed));
    // A certificate whose issuer is not one of the trusted generations says nothing of when it was issued.
    let leaf = &identity.credentials.chain[0];
    let shown = Presented {
        host_id: Identity::load(&folder.path().join("host-1"))
            .expect("an identity")
            .host_id,
        serial: muster_proto::spiffe::peer_id(leaf).expect("named").serial,
        not_after: now.plus(DAY),
        origin: None,
    };
    let judged = second
        .control()
        .admit_host(shown, now)
        .await
        .expect("readable");
    assert_eq!(judged, Err(CertificateRefusal::Superseded));
    second.stop().await;
}

#[tokio::test]
async fn an_expired_certificate_can_be_renewed_for_thirty_days_and_does_nothing_else() {
    let lab = Lab::with_hosts(&[35, 61]).await;
    let state = lab.host(0);
    let mut late = lab.connect(&state).await.expect("connected");
    assert_eq!(
        open(&mut late).await.denied(),
        Some(v1::DenyReason::Expired)
    );
    let new_key = key();
    let chain = renew(&mut late, &new_key).await.expect("renewed");
    assert!(lab.audit("renew").await[0].contains("had expired"));
    assert_eq!(
        open(&mut late).await.denied(),
        Some(v1::DenyReason::Expired)
    );
    identity::store_next(&state, &new_key.serialize_pem(), &chain).expect("stored");
    let mut new = lab.connect(&state).await.expect("connected");
    assert_eq!(open(&mut new).await.denied(), None);

    let too_late = async {
        let mut client = lab.connect(&lab.host(1)).await?;
        renew(&mut client, &key())
            .await
            .map_err(std::io::Error::other)
    };
    let error = too_late.await.expect_err("refused");
    let said = fault(&error);
    assert!(
        matches!(said, None | Some(TlsFault::Refused("it is expired"))),
        "{error:?}"
    );
    assert_eq!(lab.audit("renew").await.len(), 1, "it never got that far");
    lab.aggregator.stop().await;
}

#[tokio::test]
async fn a_host_that_was_off_for_a_month_comes_back_by_itself() {
    let lab = Lab::with_hosts(&[45]).await;
    let state = lab.host(0);
    let joined = Identity::load(&state).expect("an identity");
    let address = lab.aggregator.addresses().uplink.to_string();
    let config = AgentConfig {
        host: joined.host_id,
        interval: Duration::from_secs(1),
        buffer: BufferLimits::default(),
        spool: None,
        status_socket: None,
        seed: 1,
    };
    let source = Box::new(SimulatedHost::new(1));
    let agent = Agent::new(config, Credentials::on_disk(&state, address), source);
    let monitor = agent.monitor();
    let (stop, stopped) = tokio::sync::oneshot::channel();
    let running = tokio::spawn(agent.run(async move {
        let _ = stopped.await;
        v1::FinReason::Stopped
    }));
    let connected = async {
        while !monitor.is_connected() || monitor.books().durable == 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let done = tokio::time::timeout(PATIENCE, connected).await;
    assert!(done.is_ok(), "{}", monitor.line());
    assert!(state.join("identity/current.pem").exists());
    assert!(!identity::has_next(&state) && !state.join("identity/key.pem").exists());
    let _ = stop.send(());
    running.await.expect("ended");
    lab.aggregator.stop().await;
}

/// What a machine that asks with a new token and a new key is told.
async fn ask_again(lab: &Lab, hostname: &str) -> Option<EnrolRefusal> {
    let (control, now) = (lab.aggregator.control(), SystemClock.now());
    let token = control
        .create_token([0; 32], TokenOptions::default(), "test", now)
        .await
        .expect("a token");
    let csr = CertificateParams::default().serialize_request(&key());
    let csr = Request::check(csr.expect("a request").der()).expect("acceptable");
    let request = EnrolRequest {
        token_id: token.id().to_owned(),
        secret: token.secret().to_owned(),
        fingerprint: *csr.fingerprint(),
        facts: facts(hostname).into(),
        labels: std::collections::BTreeMap::new(),
        from: "192.0.2.1".to_owned(),
    };
    let authority = Authority::open(&lab.folder.path().join("aggregator")).expect("an authority");
    let issue = move |host| authority.issue_agent(&csr, host, now);
    let joined = control.enrol(request, issue, now).await.expect("decided");
    joined.err()
}

#[tokio::test]
async fn a_removed_host_is_cut_off_within_a_second_and_stays_out() {
    let lab = Lab::with_hosts(&[1, 1, 1]).await;
    let operator = Operator::login(&lab, "jo").await;
    for (number, removal) in [(0, Removal::Evict), (1, Removal::Ban)] {
        let (state, name) = (lab.host(number), format!("web-{number}"));
        let mut client = lab.connect(&state).await.expect("connected");
        let mut session = open_as(&mut client, &name).await;
        assert_eq!(session.denied(), None);
        let began = std::time::Instant::now();
        operator.remove(&name, removal).await.expect("removed");
        let last = session.next().await.expect("a last word");
        assert!(
            matches!(&last, Down::Deny(deny) if deny.reason() == v1::DenyReason::Removed),
            "{last:?}"
        );
        assert!(session.next().await.is_none(), "the stream is closed");
        assert!(
            began.elapsed() < Duration::from_secs(1),
            "{:?}",
            began.elapsed()
        );

        // The connection stands still, and opens nothing; nor does a new one.
        let removed = Some(v1::DenyReason::Removed);
        assert_eq!(open_as(&mut client, &name).await.denied(), removed);
        let refused = renew(&mut client, &key()).await.expect_err("refused");
        assert_eq!(refused.code(), tonic::Code::PermissionDenied);
        let mut again = lab.connect(&state).await.expect("connected");
        assert_eq!(open_as(&mut again, &name).await.denied(), removed);
        let missing = operator.remove(&name, removal).await.expect_err("gone");
        assert_eq!(missing.code(), tonic::Code::NotFound);
    }
    // Nobody else is touched.
    let mut other = lab.connect(&lab.host(2)).await.expect("connected");
    assert_eq!(open_as(&mut other, "web-2").await.denied(), None);
    assert_eq!(lab.aggregator.fleet().totals().hosts, 1);

    assert_eq!(ask_again(&lab, "web-0").await, None);
    assert_eq!(ask_again(&lab, "web-1").await, Some(EnrolRefusal::Banned));
    let hosts = lab.aggregator.control().hosts().await.expect("readable");
    let back = hosts.iter().filter(|host| host.name == "web-0").count();
    assert_eq!(back, 1, "under its old name, as a new host");
    assert_eq!(hosts.len(), 4, "what was recorded is kept");
    assert_eq!(lab.audit("evict host").await, ["it was called web-0"]);
    lab.aggregator.stop().await;
}

/// An operator at the operator door.
struct Operator(v1::operator_client::OperatorClient<Channel>);

impl Operator {
    async fn login(lab: &Lab, name: &str) -> Self {
        let (authority, now) = (lab.aggregator.authority(), SystemClock.now());
        let key = key();
        let csr = CertificateParams::default().serialize_request(&key);
        let csr = Request::check(csr.expect("a request").der()).expect("acceptable");
        let issued = authority.issue_operator(&csr, name, now).expect("issued");
        lab.aggregator
            .control()
            .operator_issued(
                "test",
                name,
                OperatorRole::Admin,
                &issued,
                *csr.fingerprint(),
                now,
            )
            .await
            .expect("noted");
        let trust = muster_proto::tls::Trust {
            roots: vec![authority.root()],
            domain: authority.trust_domain().clone(),
            time: TrustedTime::default(),
        };
        let credentials = muster_proto::tls::Credentials {
            chain: issued.chain,
            key: rustls_pki_types::PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        };
        let config = muster_proto::tls::client_config(&trust, credentials).expect("usable");
        let tcp = TcpStream::connect(lab.aggregator.addresses().operator).await;
        let tls = TlsConnector::from(Arc::new(config))
            .connect(server_name(), tcp.expect("connected"))
            .await
            .expect("trusted");
        let channel = channel(tls, Arc::default()).await.expect("HTTP/2");
        Self(v1::operator_client::OperatorClient::new(channel))
    }

    async fn remove(&self, name: &str, removal: Removal) -> Result<(), tonic::Status> {
        let (mut client, name) = (self.0.clone(), name.to_owned());
        match removal {
            Removal::Evict => client
                .evict_host(v1::EvictHostRequest { name })
                .await
                .map(drop),
            Removal::Ban => client.ban_host(v1::BanHostRequest { name }).await.map(drop),
        }
    }

    async fn status(&self) -> Result<(), tonic::Code> {
        let asked = self
            .0
            .clone()
            .get_status(v1::GetStatusRequest::default())
            .await;
        asked.map(drop).map_err(|status| status.code())
    }
}

#[tokio::test]
async fn a_revoked_operator_is_refused_at_the_next_call() {
    let lab = Lab::with_hosts(&[]).await;
    let (admin, eve) = (
        Operator::login(&lab, "jo").await,
        Operator::login(&lab, "eve").await,
    );
    assert_eq!(eve.status().await, Ok(()));
    let request = v1::RevokeOperatorRequest {
        name: "eve".to_owned(),
    };
    let revoked = admin.0.clone().revoke_operator(request.clone()).await;
    assert_eq!(revoked.expect("revoked").into_inner().certificates, 1);
    assert_eq!(eve.status().await, Err(tonic::Code::PermissionDenied));
    let twice = admin.0.clone().revoke_operator(request).await;
    assert_eq!(twice.expect_err("gone").code(), tonic::Code::NotFound);
    // A new certificate is good; the old one stays refused.
    let again = Operator::login(&lab, "eve").await;
    assert_eq!(again.status().await, Ok(()));
    assert_eq!(eve.status().await, Err(tonic::Code::PermissionDenied));
    assert_eq!(admin.status().await, Ok(()));
    lab.aggregator.stop().await;
}
