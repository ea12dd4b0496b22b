//! A whole installation in one process: a real aggregator with its doors on loopback, real agents over real
//! TLS, and a raw end of the uplink that says what no agent would.
//!
//! Nothing here sleeps for a fixed time: [`until`] waits for a condition and gives up loudly.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    io,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use hyper_util::rt::TokioIo;
use muster_agent::{
    Agent, AgentConfig, Credentials, Monitor, Source as _,
    buffer::{Books, BufferLimits},
    enrol,
    identity::Identity,
    simulate::SimulatedHost,
    telemetry::Own,
};
use muster_aggregator::{
    config::Config,
    control::TokenOptions,
    fleet::{HostState, Liveness},
    journal::Record,
    serve::{self, Aggregator},
    setup,
};
use muster_proto::{
    codec::Encoder,
    id::{HostId, Incarnation},
    limits,
    log::{DiskStorage, Log, LogConfig},
    time::{Clock as _, SystemClock},
    tls::{self, TrustedTime},
    v1::{self, agent_message, aggregator_message, uplink_client::UplinkClient},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::mpsc,
    task::JoinHandle,
    time::{self, Instant},
};
use tokio_rustls::TlsConnector;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Streaming, transport::Endpoint};

/// The longest that anything here may take. Far more than it does, so that a busy machine fails no test.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `condition` gives a value, looking again every few milliseconds.
pub(crate) async fn until<T, F: Future<Output = Option<T>>>(
    what: &str,
    mut condition: impl FnMut() -> F,
) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = condition().await {
            return found;
        }
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        time::sleep(Duration::from_millis(5)).await;
    }
}

/// An installation's folders. The aggregator on them can be started again and again.
pub(crate) struct Site {
    folder: tempfile::TempDir,
    /// Doors are left to the system at the first start and kept from then on.
    pub(crate) config: Config,
}

impl Site {
    /// An installation with its state in its own folder.
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let state = folder.path().join("state");
        Self::with_state(folder, state)
    }

    /// An installation with its state elsewhere, on a filesystem of its own.
    pub(crate) fn with_state(folder: tempfile::TempDir, state_dir: PathBuf) -> Self {
        setup::init(&state_dir, &["127.0.0.1".to_owned()]).expect("an authority");
        let mut config = Config {
            runtime_dir: folder.path().to_owned(),
            state_dir,
            exempt_loopback: true,
            ..Config::default()
        };
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        (config.uplink, config.enrolment, config.operator) = (any, any, any);
        config.http.listen = any;
        Self { folder, config }
    }

    /// Starts the aggregator, on the same doors each time.
    pub(crate) async fn start(&mut self) -> Aggregator {
        let aggregator = serve::start(&self.config).await.expect("it starts");
        let addresses = aggregator.addresses();
        self.config.uplink = addresses.uplink;
        self.config.enrolment = addresses.enrolment;
        self.config.operator = addresses.operator;
        self.config.http.listen = addresses.http;
        aggregator
    }

    /// Enrols a host over its door.
    pub(crate) async fn enrol(&self, aggregator: &Aggregator, facts: v1::HostFacts) -> Enrolment {
        let options = TokenOptions::default();
        let (pin, now) = (aggregator.authority().pin(), SystemClock.now());
        let token = aggregator.control().create_token(pin, options, "test", now);
        let token = token.await.expect("a token");
        let address = aggregator.addresses().enrolment;
        // The door opens within a second of the token's making.
        until("the enrolment door opens", async || {
            TcpStream::connect(address).await.ok()
        })
        .await;
        let state = tempfile::tempdir_in(self.folder.path()).expect("a folder");
        let joined = enrol::enrol(&address.to_string(), &token, facts, state.path()).await;
        let joined = joined.expect("enrolled");
        Enrolment {
            host: joined.host_id,
            uplink: joined.uplink_address,
            state,
        }
    }

    /// Enrols a made-up host and runs its agent at one sample a second.
    pub(crate) async fn agent(&self, aggregator: &Aggregator, seed: u64) -> Running {
        let source = SimulatedHost::new(seed);
        let name = source.name().to_owned();
        let enrolment = self.enrol(aggregator, source.facts()).await;
        let config = AgentConfig {
            host: enrolment.host,
            interval: limits::MIN_INTERVAL,
            buffer: BufferLimits::default(),
            spool: None,
            status_socket: None,
            seed,
        };
        let credentials =
            Credentials::on_disk(enrolment.state.path(), enrolment.uplink.to_string());
        let agent = Agent::new(config, credentials, Box::new(source));
        let (monitor, stop) = (agent.monitor(), CancellationToken::new());
        let stopped = stop.clone();
        let task = tokio::spawn(agent.run(async move {
            stopped.cancelled().await;
            v1::FinReason::Stopped
        }));
        Running {
            name,
            host: enrolment.host,
            monitor,
            stop,
            task,
            _enrolment: enrolment,
        }
    }

    /// What the log on disk holds, when no aggregator has it open.
    pub(crate) fn stored(&self) -> Stored {
        let storage = DiskStorage::open(self.config.state_dir.join("log")).expect("free");
        let (log, _) = Log::open(storage, LogConfig::aggregator()).expect("a log");
        let mut stored = Stored::default();
        for record in log.read_from(0) {
            let record = record.expect("undamaged");
            let decoded = Record::decode(&record.payload).expect("ours");
            if let (host, Record::Frame(frame)) = decoded {
                let of_life = stored.frames.entry((host, frame.incarnation)).or_default();
                if !of_life.insert(frame.seq) {
                    stored.duplicates += 1;
                }
            }
        }
        stored
    }
}

/// Frames in the log.
#[derive(Default)]
pub(crate) struct Stored {
    /// Numbers by host and life of its agent.
    pub(crate) frames: BTreeMap<(HostId, Incarnation), BTreeSet<u64>>,
    /// Frames that stand in the log twice.
    pub(crate) duplicates: u64,
}

impl Stored {
    /// Frames of a host, over all lives.
    pub(crate) fn count(&self, host: HostId) -> u64 {
        let of_host = self.frames.iter().filter(|((id, _), _)| *id == host);
        of_host.map(|(_, seqs)| seqs.len() as u64).sum()
    }
}

/// A host that has joined.
pub(crate) struct Enrolment {
    /// Its identity.
    pub(crate) host: HostId,
    /// Where it was told to go.
    pub(crate) uplink: String,
    /// Where its identity is, and what else survives a restart.
    pub(crate) state: tempfile::TempDir,
}

impl Enrolment {
    /// What it proves itself with.
    pub(crate) fn tls(&self) -> rustls::ClientConfig {
        let identity = Identity::load(self.state.path()).expect("an identity");
        identity
            .client_config(&TrustedTime::default())
            .expect("usable")
    }

    /// Opens a stream of the uplink by hand.
    pub(crate) async fn raw(&self) -> Raw {
        let address = self.uplink.parse().expect("an address");
        Raw::open(address, self.tls()).await.expect("let in")
    }
}

/// An agent at work.
pub(crate) struct Running {
    /// Its host's name.
    pub(crate) name: String,
    /// Its host.
    pub(crate) host: HostId,
    /// Looks at it.
    pub(crate) monitor: Monitor,
    stop: CancellationToken,
    task: JoinHandle<Books>,
    _enrolment: Enrolment,
}

impl Running {
    /// Waits until so many of its frames are durable.
    pub(crate) async fn durable(&self, frames: u64) -> Books {
        until("frames become durable", async || {
            let books = self.monitor.books();
            (books.durable >= frames).then_some(books)
        })
        .await
    }

    /// Asks it to stop and gives its last books.
    pub(crate) async fn stop(self) -> Books {
        self.stop.cancel();
        let ended = time::timeout(PATIENCE, self.task).await;
        ended
            .expect("an agent's stop is bounded")
            .expect("no panic")
    }
}

/// How a host stands.
pub(crate) async fn liveness(aggregator: &Aggregator, host: HostId) -> Option<Liveness> {
    look(aggregator, host, HostState::liveness).await
}

/// The books of a host at the aggregator.
pub(crate) async fn books(aggregator: &Aggregator, host: HostId) -> v1::Books {
    let found = look(aggregator, host, HostState::books).await;
    found.expect("the host is known")
}

/// Looks at a host inside its shard.
pub(crate) async fn look<T: Send + 'static>(
    aggregator: &Aggregator,
    host: HostId,
    read: impl FnOnce(&HostState) -> T + Send + 'static,
) -> Option<T> {
    let id = host.to_string();
    aggregator.fleet().host(&id, |host, _| read(host)).await
}

/// Status and body of a page of the HTTP door.
pub(crate) async fn page(aggregator: &Aggregator, path: &str) -> (u16, String) {
    let address = aggregator.addresses().http;
    let fetch = async {
        let mut stream = TcpStream::connect(address).await?;
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        io::Result::Ok(answer)
    };
    let answer = time::timeout(PATIENCE, fetch).await.expect("in time");
    let answer = String::from_utf8_lossy(&answer.expect("an answer")).into_owned();
    let status = answer.split(' ').nth(1).and_then(|word| word.parse().ok());
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    (status.expect("a status"), body.to_owned())
}

/// A stream of the uplink in a test's hands.
pub(crate) struct Raw {
    to: mpsc::Sender<v1::AgentMessage>,
    from: Streaming<v1::AggregatorMessage>,
    /// Numbers and encodes its frames.
    pub(crate) frames: Frames,
}

impl Raw {
    /// Opens a stream without saying anything.
    pub(crate) async fn open(
        address: SocketAddr,
        config: rustls::ClientConfig,
    ) -> anyhow::Result<Self> {
        let config = Arc::new(config);
        let connector = tower::service_fn(move |_: http::Uri| {
            let config = Arc::clone(&config);
            async move {
                let tcp = TcpStream::connect(address).await?;
                let stream = TlsConnector::from(config).connect(tls::server_name(), tcp);
                io::Result::Ok(TokioIo::new(stream.await?))
            }
        });
        let endpoint = Endpoint::from_static("https://aggregator.muster.internal");
        let channel = endpoint.connect_with_connector(connector).await?;
        let (to, outbound) = mpsc::channel(4);
        let mut client = UplinkClient::new(channel);
        let opened = client.session(ReceiverStream::new(outbound));
        let opened = time::timeout(PATIENCE, opened).await??;
        Ok(Self {
            to,
            from: opened.into_inner(),
            frames: Frames::new(1),
        })
    }

    /// Says something; the other end may have gone.
    pub(crate) async fn say(&self, message: agent_message::Message) -> bool {
        let message = v1::AgentMessage {
            message: Some(message),
        };
        self.to.send(message).await.is_ok()
    }

    /// The next answer; `None` when the stream has ended, in whatever way.
    pub(crate) async fn hear(&mut self) -> Option<aggregator_message::Message> {
        let heard = time::timeout(PATIENCE, self.from.message()).await;
        heard.expect("an answer or an end").ok()??.message
    }

    /// Says Hello and hears Welcome.
    pub(crate) async fn greet(&mut self) -> v1::Welcome {
        assert!(self.say(self.frames.hello()).await);
        match self.hear().await {
            Some(aggregator_message::Message::Welcome(welcome)) => welcome,
            other => unreachable!("no welcome but {other:?}"),
        }
    }

    /// Sends a frame.
    pub(crate) async fn send(&self, frame: v1::Frame) -> bool {
        self.say(agent_message::Message::Frame(frame)).await
    }

    /// Hears until an acknowledgement says that this frame is durable.
    pub(crate) async fn durable(&mut self, seq: u64) {
        loop {
            match self.hear().await {
                Some(aggregator_message::Message::Ack(ack)) => {
                    let holds = |range: &v1::Range| (range.first..=range.last).contains(&seq);
                    if ack.durable.iter().any(holds) {
                        return;
                    }
                }
                other => unreachable!("no acknowledgement but {other:?}"),
            }
        }
    }

    /// Hears why this frame was refused.
    pub(crate) async fn refused(&mut self, seq: u64) -> v1::RejectReason {
        loop {
            match self.hear().await {
                Some(aggregator_message::Message::Ack(ack)) => {
                    let found = ack.rejected.iter().find(|rejected| rejected.seq == seq);
                    if let Some(rejected) = found {
                        return rejected.reason();
                    }
                }
                other => unreachable!("no refusal but {other:?}"),
            }
        }
    }

    /// Hears until the stream ends; the reason of a Deny, if there was one.
    pub(crate) async fn end(&mut self) -> Option<v1::DenyReason> {
        let mut reason = None;
        while let Some(message) = self.hear().await {
            if let aggregator_message::Message::Deny(deny) = message {
                reason = Some(deny.reason());
            }
        }
        reason
    }
}

/// Makes frames of a made-up host.
pub(crate) struct Frames {
    /// Life of the agent it plays.
    pub(crate) incarnation: u64,
    source: SimulatedHost,
    encoder: Encoder,
    tick: i64,
}

impl Frames {
    /// Frames of this life.
    pub(crate) fn new(incarnation: u64) -> Self {
        Self {
            incarnation,
            source: SimulatedHost::new(incarnation),
            encoder: Encoder::new(),
            tick: SystemClock.now().as_millis(),
        }
    }

    /// A proper Hello.
    pub(crate) fn hello(&self) -> agent_message::Message {
        agent_message::Message::Hello(v1::Hello {
            protocol: limits::PROTOCOL_VERSION,
            incarnation: self.incarnation,
            session: 1,
            boot_id: self.source.boot_id().to_vec(),
            wall_ms: SystemClock.now().as_millis(),
            facts: Some(self.source.facts()),
            interval_ms: 1000,
            ..v1::Hello::default()
        })
    }

    /// The next sample as a frame of this number.
    pub(crate) fn next(&mut self, seq: u64, key: bool) -> v1::Frame {
        self.tick += 10;
        let tick = muster_proto::time::Timestamp::from_millis(self.tick);
        let (table, _) = self.source.sample(tick, &Own::default());
        let mut payload = Vec::new();
        self.encoder.encode(table, &[], key, &mut payload);
        v1::Frame {
            incarnation: self.incarnation,
            seq,
            lane: v1::Lane::Live.into(),
            tick_ms: self.tick,
            boottime_ms: 0,
            crc32c: crc32c::crc32c(&payload),
            payload,
        }
    }
}
