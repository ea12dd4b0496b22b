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
    control::{Control, EnrolRefusal, EnrolRequest, OperatorRole, Removal, TokenOptions},
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
        let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut config = Config {
            runtime_dir: folder.path().to_owned(),
            state_dir,
            ..Config::default()
        };
        (config.uplink, config.enrolment) = (loopback, loopback);
        (config.operator, config.http.listen) = (loopback, loopback);
        let aggregator = serve::start(&config).await.expect("started");
        Self { folder, aggregator }
    }

    fn host(&self, number: usize) -> std::path::PathBuf {
        self.folder.path().join(format!("host-{number}"))
    }

    async fn connect(&self, state: &Path) -> std::io::Result<UplinkClient<Channel>> {
        let identity = Identity::load(state).expect("an identity");
        let config = identity
            .client_config(&TrustedTime::default())
            .expect("usable");
        let tcp = TcpStream::connect(self.aggregator.addresses().uplink).await?;
        let tls = TlsConnector::from(Arc::new(config))
            .connect(server_name(), tcp)
            .await?;
        let channel = channel(tls, Arc::default())
            .await
            .map_err(std::io::Error::other)?;
        Ok(UplinkClient::new(channel))
    }

    async fn audit(&self, action: &str) -> Vec<String> {
        let log = self.aggregator.control().audit_log(100).await;
        let lines = log.expect("readable").into_iter();
        lines
            .filter(|(_, said)| said[1] == action)
            .map(|(_, said)| said[3].clone())
            .collect()
    }
}

/// Joins through a real enrolment door whose clock shows `at`.
async fn join(aggregator: &Path, state: &Path, hostname: &str, at: Timestamp) -> Joined {
    let authority = Arc::new(Authority::open(aggregator).expect("an authority"));
    let control = Control::open(aggregator).expect("a store");
    let token = control
        .create_token(authority.pin(), TokenOptions::default(), "test", at)
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
