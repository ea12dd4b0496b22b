//! A difficult aggregator: real gRPC over byte pipes, and a test that decides what it answers and when.

use std::{
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use muster_agent::{
    Agent, AgentConfig, Credentials, Monitor,
    buffer::{Books, BufferLimits},
    renewal::Life,
    sampler::HostClock,
    simulate::SimulatedHost,
    uplink::{
        Forgetful, Memory,
        connect::{Connecting, Connector, Stream as Bytes},
        fault::Fault,
        renew::Slots,
    },
};
use muster_proto::{
    codec::{Changes, DecodeError, Decoder, Intern},
    series::Family,
    time::{Clock, Timestamp, duration_millis},
    v1::{
        self,
        agent_message::Message as Up,
        aggregator_message::Message as Down,
        uplink_server::{Uplink, UplinkServer},
    },
};
use tokio::{
    io::DuplexStream,
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::Instant,
};
use tokio_stream::{Stream, wrappers::ReceiverStream, wrappers::UnboundedReceiverStream};
use tonic::{Request, Response, Status, Streaming};

/// Time between ticks of the agents under test.
pub(crate) const INTERVAL: Duration = Duration::from_secs(10);
/// Wall clock at the start of each test.
pub(crate) const START_MS: i64 = 1_800_000_000_000;

/// Clocks that follow tokio's paused time.
pub(crate) struct PausedClock(Instant);

impl Clock for PausedClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_millis(START_MS).plus(self.0.elapsed())
    }
}

impl HostClock for PausedClock {
    fn boottime_ms(&self) -> i64 {
        777_000 + duration_millis(self.0.elapsed())
    }
}

/// Hands the server's end of each connection to the aggregator; connections may be cut.
struct Pipes {
    incoming: mpsc::UnboundedSender<DuplexStream>,
    cut_after: Arc<AtomicUsize>,
}

impl Connector for Pipes {
    fn address(&self) -> &str {
        "aggregator.test:7443"
    }

    fn connect(&self) -> Connecting<'_> {
        let (agent, mut near) = tokio::io::duplex(16 * 1024);
        let (mut far, server) = tokio::io::duplex(16 * 1024);
        let left = self.cut_after.swap(usize::MAX, Ordering::SeqCst);
        tokio::spawn(async move {
            if left == usize::MAX {
                let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                return;
            }
            // So many bytes reach the server, then both sides see the end.
            let (mut from_agent, mut to_agent) = tokio::io::split(near);
            let (mut from_server, mut to_server) = tokio::io::split(far);
            let mut up = tokio::io::AsyncReadExt::take(&mut from_agent, left as u64);
            tokio::select! {
                _ = tokio::io::copy(&mut up, &mut to_server) => {}
                _ = tokio::io::copy(&mut from_server, &mut to_agent) => {}
            }
        });
        let sent = self.incoming.send(server);
        Box::pin(async move {
            sent.expect("the aggregator runs");
            Ok(Box::new(agent) as Box<dyn Bytes>)
        })
    }
}

/// One of two aggregators.
pub(crate) struct One {
    /// Whether it can be connected to.
    pub(crate) up: Arc<AtomicBool>,
    sessions: mpsc::UnboundedReceiver<Session>,
}

impl One {
    /// The next stream the agent opens here.
    pub(crate) async fn session(&mut self) -> Session {
        self.sessions.recv().await.expect("the service runs")
    }
}

/// A way to one of two aggregators.
struct Way {
    address: &'static str,
    up: Arc<AtomicBool>,
    incoming: mpsc::UnboundedSender<DuplexStream>,
}

/// The ways to both.
struct Ways(Vec<Way>);

impl Connector for Ways {
    fn address(&self) -> &str {
        self.0[0].address
    }

    fn connect(&self) -> Connecting<'_> {
        self.connect_to(self.address())
    }

    fn servers(&self) -> Vec<String> {
        self.0.iter().map(|way| way.address.to_owned()).collect()
    }

    fn connect_to<'a>(&'a self, server: &'a str) -> Connecting<'a> {
        let way = self.0.iter().find(|way| way.address == server);
        Box::pin(async move {
            let way = way.expect("one of the two");
            if !way.up.load(Ordering::SeqCst) {
                return Err(Fault::Tcp(std::io::ErrorKind::ConnectionRefused.into()));
            }
            let (agent, server) = tokio::io::duplex(16 * 1024);
            way.incoming.send(server).expect("the aggregator runs");
            Ok(Box::new(agent) as Box<dyn Bytes>)
        })
    }
}

/// An agent with two aggregators, `a:1` and `b:1`, in this order.
pub(crate) fn two() -> (One, One, Monitor, oneshot::Sender<v1::FinReason>) {
    two_with(Box::new(Forgetful::default()))
}

/// As [`two`], of an agent that remembers this.
pub(crate) fn two_with(
    memory: Box<dyn Memory>,
) -> (One, One, Monitor, oneshot::Sender<v1::FinReason>) {
    let mut ways = Vec::new();
    let mut ones = ["a:1", "b:1"].map(|address| {
        let (incoming, connections) = mpsc::unbounded_channel();
        let up = Arc::new(AtomicBool::new(true));
        ways.push(Way {
            address,
            up: Arc::clone(&up),
            incoming,
        });
        Some(One {
            up,
            sessions: serve(connections),
        })
    });
    let (monitor, stop, _agent) = start_with(Box::new(Ways(ways)), memory);
    let mut take = |at: usize| ones[at].take().expect("taken once");
    (take(0), take(1), monitor, stop)
}

/// A memory with a certificate that can be renewed, and which is never given another.
pub(crate) struct Certified {
    life: Life,
    /// How often one was asked for.
    asked: Arc<AtomicUsize>,
    session: u64,
}

impl Certified {
    /// One that was issued so many days before the start, and lives for 30.
    pub(crate) fn days_ago(days: u64) -> (Box<dyn Memory>, Arc<AtomicUsize>) {
        let day = Duration::from_secs(86_400);
        let not_before =
            Timestamp::from_millis(START_MS).minus(day * u32::try_from(days).expect("days"));
        let asked = Arc::new(AtomicUsize::new(0));
        let memory = Self {
            life: Life {
                not_before,
                not_after: not_before.plus(day * 30),
            },
            asked: Arc::clone(&asked),
            session: 0,
        };
        (Box::new(memory), asked)
    }
}

impl Memory for Certified {
    fn next_session(&mut self) -> Result<u64, Fault> {
        self.session += 1;
        Ok(self.session)
    }

    fn ratchet(&self) -> Vec<u8> {
        Vec::new()
    }

    fn welcomed(&mut self, _: &v1::Welcome) -> std::io::Result<()> {
        Ok(())
    }

    fn bundle_version(&self) -> u64 {
        0
    }

    fn slots(&mut self) -> Option<&mut dyn Slots> {
        Some(self)
    }
}

impl Slots for Certified {
    fn life(&self) -> Option<Life> {
        Some(self.life)
    }

    fn waiting(&self) -> bool {
        false
    }

    fn request(&mut self) -> Result<Vec<u8>, Fault> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        Ok(Vec::new())
    }

    fn keep(&mut self, _: v1::RenewResponse) -> Result<Timestamp, Fault> {
        Err(Fault::Identity("nothing is issued here".to_owned()))
    }

    fn accepted(&mut self) {}

    fn refused(&mut self) {}
}

/// The gRPC service: each session goes to the test.
struct Service(mpsc::UnboundedSender<Session>);

#[tonic::async_trait]
impl Uplink for Service {
    type SessionStream =
        Pin<Box<dyn Stream<Item = Result<v1::AggregatorMessage, Status>> + Send + 'static>>;

    async fn session(
        &self,
        request: Request<Streaming<v1::AgentMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (outbound, queue) = mpsc::channel(16);
        let session = Session {
            inbound: request.into_inner(),
            outbound,
            opened: Instant::now(),
        };
        self.0
            .send(session)
            .map_err(|_| Status::unavailable("the test is over"))?;
        Ok(Response::new(Box::pin(ReceiverStream::new(queue))))
    }

    async fn renew(
        &self,
        _request: Request<v1::RenewRequest>,
    ) -> Result<Response<v1::RenewResponse>, Status> {
        Err(Status::unavailable("nothing is issued here"))
    }
}

/// One stream as the aggregator sees it. Dropping it ends the stream.
pub(crate) struct Session {
    inbound: Streaming<v1::AgentMessage>,
    outbound: mpsc::Sender<Result<v1::AggregatorMessage, Status>>,
    /// When it came.
    pub(crate) opened: Instant,
}

impl Session {
    /// The next message; `None` at the end of the stream or when it breaks.
    pub(crate) async fn next(&mut self) -> Option<Up> {
        loop {
            if let Some(message) = self.raw().await?.message {
                return Some(message);
            }
        }
    }

    /// As [`Session::next`], empty messages included.
    pub(crate) async fn raw(&mut self) -> Option<v1::AgentMessage> {
        self.inbound.message().await.unwrap_or(None)
    }

    pub(crate) async fn hello(&mut self) -> v1::Hello {
        match self.next().await {
            Some(Up::Hello(hello)) => hello,
            other => unreachable!("expected hello, got {other:?}"),
        }
    }

    pub(crate) async fn frame(&mut self) -> v1::Frame {
        match self.next().await {
            Some(Up::Frame(frame)) => frame,
            other => unreachable!("expected a frame, got {other:?}"),
        }
    }

    pub(crate) async fn say(&self, message: Down) {
        let message = v1::AggregatorMessage {
            message: Some(message),
        };
        // An agent that is gone is for the test to notice.
        let _ = self.outbound.send(Ok(message)).await;
    }

    /// Ends the stream with an error.
    pub(crate) async fn fail(self, status: Status) {
        let _ = self.outbound.send(Err(status)).await;
    }

    pub(crate) async fn ack(&self, incarnation: u64, received: u64, durable: &[(u64, u64)]) {
        let ranges = durable.iter();
        self.say(Down::Ack(v1::Ack {
            incarnation,
            received,
            durable: ranges
                .map(|&(first, last)| v1::Range { first, last })
                .collect(),
            credit_bytes: 1 << 20,
            ..v1::Ack::default()
        }))
        .await;
    }
}

/// A Welcome that knows of nothing and gives much credit.
pub(crate) fn welcome() -> v1::Welcome {
    v1::Welcome {
        server_wall_ms: START_MS,
        credit_bytes: 1 << 20,
        ratchet: b"ratchet".to_vec(),
        epoch: 4,
        ..v1::Welcome::default()
    }
}

/// A Welcome on time that has something of the agent's incarnation.
pub(crate) fn welcome_with(hello: &v1::Hello, durable_to: u64, decoded_to: u64) -> v1::Welcome {
    v1::Welcome {
        server_wall_ms: hello.wall_ms,
        have: vec![v1::Have {
            incarnation: hello.incarnation,
            durable: vec![v1::Range {
                first: 1,
                last: durable_to,
            }],
            decoded_to,
        }],
        ..welcome()
    }
}

/// An agent and the aggregator it talks to.
pub(crate) struct World {
    sessions: mpsc::UnboundedReceiver<Session>,
    cut_after: Arc<AtomicUsize>,
    stop: Mutex<Option<oneshot::Sender<v1::FinReason>>>,
    agent: JoinHandle<Books>,
}

impl World {
    /// Starts both. Tokio's time must be paused.
    pub(crate) fn new() -> Self {
        let (incoming, connections) = mpsc::unbounded_channel();
        let cut_after = Arc::new(AtomicUsize::new(usize::MAX));
        let sessions = serve(connections);
        let pipes = Pipes {
            incoming,
            cut_after: Arc::clone(&cut_after),
        };
        let (_, stop, agent) = start_with(Box::new(pipes), Box::new(Forgetful::default()));
        Self {
            sessions,
            cut_after,
            stop: Mutex::new(Some(stop)),
            agent,
        }
    }

    /// The next stream the agent opens.
    pub(crate) async fn session(&mut self) -> Session {
        self.sessions.recv().await.expect("the service runs")
    }

    /// A stream with its Hello read and answered with this Welcome.
    pub(crate) async fn welcomed(
        &mut self,
        welcome: impl Fn(&v1::Hello) -> v1::Welcome,
    ) -> (Session, v1::Hello) {
        let mut session = self.session().await;
        let hello = session.hello().await;
        session.say(Down::Welcome(welcome(&hello))).await;
        (session, hello)
    }

    /// The connection after next carries so many bytes of the agent, then breaks.
    pub(crate) fn cut_next_after(&self, bytes: usize) {
        self.cut_after.store(bytes, Ordering::SeqCst);
    }

    /// Tells the agent to stop.
    pub(crate) fn stop(&self, reason: v1::FinReason) {
        let stop = self.stop.lock().expect("not poisoned").take();
        stop.expect("stopped once")
            .send(reason)
            .expect("the agent runs");
    }

    /// What became of the agent's frames, when it has ended.
    pub(crate) async fn books(self) -> Books {
        self.agent.await.expect("the agent does not panic")
    }
}

/// Serves the uplink on connections; gives the sessions.
pub(crate) fn serve(
    connections: mpsc::UnboundedReceiver<DuplexStream>,
) -> mpsc::UnboundedReceiver<Session> {
    let (accepted, sessions) = mpsc::unbounded_channel();
    let incoming = UnboundedReceiverStream::new(connections);
    let incoming = tokio_stream::StreamExt::map(incoming, Ok::<_, std::io::Error>);
    tokio::spawn(
        tonic::transport::Server::builder()
            .add_service(UplinkServer::new(Service(accepted)))
            .serve_with_incoming(incoming),
    );
    sessions
}

/// Runs an agent of a made-up host over this connector.
pub(crate) fn start_with(
    connector: Box<dyn Connector>,
    memory: Box<dyn Memory>,
) -> (Monitor, oneshot::Sender<v1::FinReason>, JoinHandle<Books>) {
    let source = SimulatedHost::new(11);
    let config = AgentConfig {
        host: source.host_id(),
        interval: INTERVAL,
        buffer: BufferLimits::default(),
        spool: None,
        status_socket: None,
        seed: 5,
    };
    let credentials = Credentials { connector, memory };
    let clock = Arc::new(PausedClock(Instant::now()));
    let agent = Agent::with_clock(config, credentials, Box::new(source), clock);
    let monitor = agent.monitor();
    let (stop, stopped) = oneshot::channel();
    // An agent whose stop is dropped goes on.
    let agent = tokio::spawn(agent.run(async {
        match stopped.await {
            Ok(reason) => reason,
            Err(_) => std::future::pending().await,
        }
    }));
    (monitor, stop, agent)
}

/// Decodes what an agent sends as an aggregator would.
#[derive(Default)]
pub(crate) struct Reader {
    decoder: Decoder<()>,
    changes: Changes,
}

struct Nameless;

impl Intern for Nameless {
    type Key = ();

    fn series(&mut self, _: &Arc<Family>, _: &[String]) {}
}

impl Reader {
    /// Applies a frame; true if it was a key frame.
    pub(crate) fn apply(&mut self, frame: &v1::Frame) -> Result<bool, DecodeError> {
        assert_eq!(frame.crc32c, crc32c::crc32c(&frame.payload));
        self.decoder.apply(
            frame.seq,
            &frame.payload,
            10_000,
            &mut Nameless,
            &mut self.changes,
        )?;
        Ok(self.changes.key)
    }

    /// What happened on the host, of the frame that was applied last.
    pub(crate) fn events(&self) -> &[v1::Event] {
        &self.changes.events
    }
}
