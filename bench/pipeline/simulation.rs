//! Agents and an aggregator in virtual time, on simulated disks and pipes: what happens follows from a seed.
//!
//! Real are both ends of a session: uplink, buffer and spool of the agent; gRPC, ingest, shard and journal of the
//! aggregator, and its start from checkpoint and log. TLS, certificates and the accept loop are left out; the
//! control store is in memory and outlives all. Disks forget what was not synced, tear it, and fail for a while;
//! pipes delay, stall and break; either side is killed, loses its power, or is stopped in order; clocks jump. At the
//! end everything is well again, the agents have time to deliver what they hold, and the books are closed from the
//! log: as `bench/faults` does with real processes.
//!
//! One seed is one run: the hash over all that was seen of it comes out the same again.

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io,
    net::{Ipv4Addr, SocketAddr},
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use muster_agent::{
    Agent, AgentConfig, Credentials, Monitor, Source,
    buffer::{Books, BufferLimits},
    sampler::HostClock,
    spool::SpoolLimits,
    telemetry::Own,
    uplink::{
        Memory,
        connect::{Connecting, Connector, Stream},
        fault::Fault as LinkFault,
    },
};
use muster_aggregator::{
    control::{Control, EnrolRequest, Facts, TokenOptions},
    detect::{Engine, Transition},
    directory::Directory,
    events::{EventLimits, Events},
    fleet::{
        Counters, Fleet, FleetConfig, INBOX,
        checkpoint::Checkpoint,
        neighbours::Neighbourhood,
        shard::{Common, Shard, TransitionSink},
    },
    ingest::{Renewing, UplinkService, WelcomeTerms},
    journal::{Journal, Record},
    listen::{Ending, Peer},
    pki::{Authority, Issued, Member},
};
use muster_proto::{
    id::{HostId, Incarnation},
    limits,
    log::{Fault, FaultyStorage, Log, LogConfig},
    ranges::RangeSet,
    series::{Family, Kind, Raw, Scale, Series, Table},
    spiffe::{MAIN_CELL, SpiffeId, TrustDomain},
    time::{Clock, Timestamp, duration_millis},
    v1::{self, uplink_server::UplinkServer},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream, ReadBuf},
    sync::mpsc,
    task::{JoinHandle, JoinSet},
    time::{self, Instant},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Server, server::Connected};

/// When every run begins: 2026-11-18.
const BEGIN: Timestamp = Timestamp::from_millis(1_795_000_000_000);

/// Bytes on their way in a pipe.
const PIPE: usize = 64 * 1024;

/// Longest delay of a piece of bytes.
const DELAY_MS: u64 = 120;

/// Steps of a run, and the longest time between two of them.
const STEPS: std::ops::Range<u32> = 8..20;
const STEP_MS: u64 = 6_000;

/// After this nothing may be held any more: the longest wait of an agent for its next connection, twice, and as long
/// again for what its disk took back.
const PATIENCE: Duration = Duration::from_secs(240);

/// After all was delivered: in this time the ends of earlier lives are told too.
const AFTERWARDS: Duration = Duration::from_secs(10);

/// Turns that tasks get which have been told to end.
const TURNS: u32 = 64;

/// What all runs share and none changes.
pub(crate) struct Stage {
    _folder: tempfile::TempDir,
    authority: Arc<Authority>,
    events: Events,
}

impl Stage {
    /// Makes it, in a folder of its own.
    pub(crate) fn make() -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let clock = Arc::new(Clocks::default());
        Ok(Self {
            authority: Arc::new(Authority::init(folder.path(), &[], BEGIN)?),
            events: Events::open(folder.path(), EventLimits::default(), clock)?,
            _folder: folder,
        })
    }
}

/// What came of runs.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    /// Over all that was seen, in order.
    pub hash: u64,
    /// Frames in the log at the end.
    pub stored: u64,
    /// Lives of agents, and of aggregators.
    pub agent_lives: u64,
    pub aggregator_lives: u64,
    /// Frames that agents gave up, and that were refused.
    pub lost: u64,
    pub rejected: u64,
    /// Of the refused ones those that the log does not name.
    pub refusals_forgotten: u64,
    /// Most frames missing at the end of a life that was killed, with its disk well.
    pub killed_missing: u64,
}

impl Seen {
    /// Adds what another run saw.
    pub(crate) fn add(&mut self, other: &Self) {
        self.hash = self.hash.rotate_left(1) ^ other.hash;
        self.stored += other.stored;
        self.agent_lives += other.agent_lives;
        self.aggregator_lives += other.aggregator_lives;
        self.lost += other.lost;
        self.rejected += other.rejected;
        self.refusals_forgotten += other.refusals_forgotten;
        self.killed_missing = self.killed_missing.max(other.killed_missing);
    }
}

/// One run.
///
/// # Errors
/// When a promise was broken, with what the seed was.
pub(crate) fn run(stage: &Stage, seed: u64) -> anyhow::Result<Seen> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()?;
    let seen = runtime.block_on(async {
        let mut world = World::make(stage, seed).await?;
        world.live().await?;
        world.close().await
    });
    seen.with_context(|| format!("seed {seed}"))
}

/// How long a way is shut, at most, in [`partition`]: the waits of agents have long grown as far as they do.
const SHUT_MS: std::ops::Range<u64> = 60_000..300_000;

/// Until this time after a partition every agent is fresh.
const FRESH: Duration = Duration::from_secs(30);

/// All agents are cut off for minutes; the time until the last of them has a new frame on the aggregator's disk.
///
/// # Errors
/// When that takes longer than it may, with what the seed was.
pub(crate) fn partition(stage: &Stage, seed: u64) -> anyhow::Result<Duration> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()?;
    let fresh = runtime.block_on(async {
        let mut world = World::make(stage, seed).await?;
        time::sleep(Duration::from_secs(5)).await;
        let shut = world.random.u64(SHUT_MS);
        world.hosts.iter().for_each(|host| host.way.shut(true));
        time::sleep(Duration::from_millis(shut)).await;
        world.hosts.iter().for_each(|host| host.way.shut(false));
        world.fresh().await
    });
    fresh.with_context(|| format!("seed {seed}"))
}

/// Wall clock and time since boot, by the runtime's time from [`BEGIN`] on.
#[derive(Default)]
struct Clocks {
    began: Option<Instant>,
    jumped_ms: AtomicI64,
}

impl Clocks {
    fn started() -> Arc<Self> {
        Arc::new(Self {
            began: Some(Instant::now()),
            jumped_ms: AtomicI64::new(0),
        })
    }

    fn passed_ms(&self) -> i64 {
        self.began
            .map_or(0, |began| duration_millis(began.elapsed()))
    }
}

impl Clock for Clocks {
    fn now(&self) -> Timestamp {
        let jumped = self.jumped_ms.load(Ordering::SeqCst);
        Timestamp::from_millis(BEGIN.as_millis() + self.passed_ms() + jumped)
    }
}

impl HostClock for Clocks {
    fn boottime_ms(&self) -> i64 {
        1_000_000 + self.passed_ms()
    }
}

/// A few series: runs are many.
struct Small {
    boot: u8,
    table: Table,
}

impl Small {
    fn new(boot: u8) -> Self {
        let family = |name: &str, kind| Family {
            name: name.to_owned(),
            kind,
            scale: Scale::One,
            labels: Vec::new(),
        };
        let series = |family| Series {
            family,
            labels: Vec::new(),
        };
        Self {
            boot,
            table: Table {
                families: vec![
                    family("node_load1", Kind::Gauge),
                    family("node_context_switches_total", Kind::Counter),
                ],
                series: vec![series(0), series(1)],
                raw: vec![Raw::unsigned(1), Raw::unsigned(1)],
                present: vec![true, true],
                generation: 0,
            },
        }
    }
}

impl Source for Small {
    fn facts(&self) -> v1::HostFacts {
        v1::HostFacts::default()
    }

    fn boot_id(&self) -> [u8; 16] {
        [self.boot; 16]
    }

    fn sample(&mut self, tick: Timestamp, _own: &Own) -> (&Table, Vec<v1::Event>) {
        self.table.raw = vec![
            Raw::int(tick.as_millis() % 7_000),
            Raw::int(tick.as_millis() / 100),
        ];
        (&self.table, Vec::new())
    }
}

/// What an identity remembers, over the lives of its agent.
#[derive(Clone, Default)]
struct Remembered {
    session: Arc<AtomicU64>,
    ratchet: Arc<Mutex<Vec<u8>>>,
}

impl Memory for Remembered {
    fn next_session(&mut self) -> Result<u64, LinkFault> {
        Ok(self.session.fetch_add(1, Ordering::SeqCst) + 1)
    }

    fn ratchet(&self) -> Vec<u8> {
        let kept = self.ratchet.lock().unwrap_or_else(PoisonError::into_inner);
        kept.clone()
    }

    fn welcomed(&mut self, welcome: &v1::Welcome) -> io::Result<()> {
        let mut kept = self.ratchet.lock().unwrap_or_else(PoisonError::into_inner);
        kept.clone_from(&welcome.ratchet);
        Ok(())
    }

    fn bundle_version(&self) -> u64 {
        u64::MAX
    }
}

/// A connection as the aggregator gets it.
struct Accepted {
    bytes: DuplexStream,
    peer: Peer,
}

impl Connected for Accepted {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Accepted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.bytes).poll_read(cx, buf)
    }
}

impl AsyncWrite for Accepted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.bytes).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.bytes).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.bytes).poll_shutdown(cx)
    }
}

/// The way of one host to the aggregator.
#[derive(Default)]
struct Way {
    /// Where the aggregator accepts, while there is one.
    door: Mutex<Option<mpsc::Sender<io::Result<Accepted>>>>,
    /// Ends what stands.
    cut: Mutex<CancellationToken>,
    /// Whether it is shut.
    shut: Mutex<bool>,
    /// Nothing arrives before this, milliseconds of the run.
    stalled_until_ms: AtomicI64,
    pieces: AtomicU64,
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Way {
    fn break_all(&self) {
        let old = std::mem::take(&mut *locked(&self.cut));
        old.cancel();
    }

    fn shut(&self, shut: bool) {
        *locked(&self.shut) = shut;
        if shut {
            self.break_all();
        }
    }
}

/// Connects one host.
struct Dial {
    way: Arc<Way>,
    clock: Arc<Clocks>,
    seed: u64,
    host: HostId,
    domain: TrustDomain,
}

impl Connector for Dial {
    fn address(&self) -> &str {
        "simulated"
    }

    fn connect(&self) -> Connecting<'_> {
        Box::pin(async move {
            let refused = || LinkFault::Tcp(io::ErrorKind::ConnectionRefused.into());
            if *locked(&self.way.shut) {
                return Err(refused());
            }
            let door = locked(&self.way.door).clone().ok_or_else(refused)?;
            let cut = locked(&self.way.cut).clone();
            let (near, left) = tokio::io::duplex(PIPE);
            let (right, far) = tokio::io::duplex(PIPE);
            let peer = Peer {
                addr: SocketAddr::from((Ipv4Addr::LOCALHOST, 1)),
                id: Some(SpiffeId::Agent {
                    domain: self.domain.clone(),
                    cell: MAIN_CELL.to_owned(),
                    host: self.host,
                }),
                serial: Some(serial(self.host)),
                cert_not_after: Some(expires()),
                origin: None,
                ending: Ending::default(),
            };
            let accepted = Accepted { bytes: far, peer };
            door.send(Ok(accepted)).await.map_err(|_| refused())?;
            let (left, right) = (tokio::io::split(left), tokio::io::split(right));
            let carry = |from, to, salt| {
                carry(
                    from,
                    to,
                    Arc::clone(&self.way),
                    Arc::clone(&self.clock),
                    self.seed ^ salt,
                )
            };
            let (up, down) = (carry(left.0, right.1, 1), carry(right.0, left.1, 2));
            tokio::spawn(async move {
                tokio::select! {
                    biased;
                    () = cut.cancelled() => {}
                    _ = async { tokio::join!(up, down) } => {}
                }
            });
            Ok(Box::new(near) as Box<dyn Stream>)
        })
    }
}

/// Carries bytes one way, each piece with a delay of its own.
async fn carry(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    way: Arc<Way>,
    clock: Arc<Clocks>,
    seed: u64,
) {
    let mut bytes = vec![0; 8 * 1024];
    while let Ok(count) = from.read(&mut bytes).await {
        if count == 0 {
            break;
        }
        let piece = way.pieces.fetch_add(1, Ordering::SeqCst);
        let delay = fastrand::Rng::with_seed(seed.wrapping_add(piece)).u64(..DELAY_MS);
        let stalled = way.stalled_until_ms.load(Ordering::SeqCst) - clock.passed_ms();
        let wait = delay.max(stalled.max(0).unsigned_abs());
        time::sleep(Duration::from_millis(wait)).await;
        if to.write_all(&bytes[..count]).await.is_err() {
            return;
        }
    }
    // One that has gone needs no goodbye.
    let _ = to.shutdown().await;
}

fn serial(host: HostId) -> String {
    host.to_string()
}

fn expires() -> Timestamp {
    BEGIN.plus(Duration::from_secs(30 * 86_400))
}

struct Nobody;

impl TransitionSink for Nobody {
    fn report(&self, _host: HostId, _name: &str, _transitions: Vec<Transition>) {}
}

/// One life of an agent.
struct Life {
    monitor: Monitor,
    stop: CancellationToken,
    task: JoinHandle<Books>,
}

/// A life that is over, by what was known of it last.
struct Past {
    host: HostId,
    incarnation: Incarnation,
    books: Books,
    settled_below: u64,
    /// Its power went, or its disk failed: what was not on disk may be missing in between.
    may_lose: bool,
    /// It ended in order: its books are closed, and what they do not call lost has to be at the aggregator.
    is_closed: bool,
    /// kill -9.
    was_killed: bool,
}

struct Host {
    id: HostId,
    disk: FaultyStorage,
    clock: Arc<Clocks>,
    way: Arc<Way>,
    memory: Remembered,
    /// Its disk fails, or did in this life.
    is_sick: bool,
    lives: u64,
    life: Option<Life>,
}

/// A running aggregator.
struct Running {
    fleet: Fleet,
    journal: Journal,
    tasks: JoinSet<()>,
}

struct World<'a> {
    stage: &'a Stage,
    seed: u64,
    random: fastrand::Rng,
    clock: Arc<Clocks>,
    control: Control,
    disk: FaultyStorage,
    checkpoint: Option<Checkpoint>,
    hosts: Vec<Host>,
    running: Option<Running>,
    past: Vec<Past>,
    trace: DefaultHasher,
    seen: Seen,
}

impl<'a> World<'a> {
    async fn make(stage: &'a Stage, seed: u64) -> anyhow::Result<Self> {
        let mut random = fastrand::Rng::with_seed(seed);
        let clock = Clocks::started();
        let control = Control::in_memory()?;
        let count = random.u32(2..5);
        let options = TokenOptions {
            uses: count,
            ..TokenOptions::default()
        };
        let pin = stage.authority.pin();
        let token = control
            .create_token(pin, options, "simulation", BEGIN)
            .await?;
        let mut hosts = Vec::new();
        for number in 0..count {
            let request = EnrolRequest {
                token_id: token.id().to_owned(),
                secret: token.secret().to_owned(),
                fingerprint: [u8::try_from(number)?; 32],
                facts: Facts::default(),
                labels: BTreeMap::default(),
                from: "simulation".to_owned(),
            };
            let issue = |member: Member| {
                Ok(Issued {
                    chain: Vec::new(),
                    serial: serial(member.host),
                    not_after: expires(),
                    generation: 1,
                })
            };
            let joined = control.enrol(request, issue, BEGIN).await??;
            hosts.push(Host {
                id: joined.host_id,
                disk: FaultyStorage::new(),
                clock: Clocks::started(),
                way: Arc::default(),
                memory: Remembered::default(),
                is_sick: false,
                lives: 0,
                life: None,
            });
        }
        let mut world = Self {
            stage,
            seed,
            random,
            clock,
            control,
            disk: FaultyStorage::new(),
            checkpoint: None,
            hosts,
            running: None,
            past: Vec::new(),
            trace: DefaultHasher::new(),
            seen: Seen::default(),
        };
        world.start().await?;
        for at in 0..world.hosts.len() {
            world.begin(at);
        }
        Ok(world)
    }

    /// Starts the aggregator from its disk, as `fleet::start` does.
    async fn start(&mut self) -> anyhow::Result<()> {
        let directory = Directory::new(self.control.clone(), Arc::clone(&self.clock) as _);
        let counters = Arc::new(Counters::default());
        let common = Common {
            engine: Arc::new(Engine::default()),
            sink: Arc::new(Nobody),
            clock: Arc::clone(&self.clock) as _,
            counters: Arc::clone(&counters),
            neighbours: Arc::new(Neighbourhood::default()),
            events: self.stage.events.clone(),
        };
        let config = FleetConfig::default();
        let credit_bytes = config.credit_bytes;
        let mut shard = Shard::new(0, config, common);
        for who in directory.hosts().await? {
            shard.upsert(who);
        }
        let kept = self.checkpoint.as_ref();
        let covers = kept.map_or(0, |kept| kept.covers);
        for host in kept.into_iter().flat_map(|kept| &kept.hosts) {
            shard.restore(host);
        }
        let mut log_config = LogConfig::aggregator();
        log_config.next_at_least = covers + 1;
        let (log, _) = Log::open(self.disk.clone(), log_config)?;
        // What a power cut tore and was never acknowledged may be a hole.
        for record in log.read_from(covers + 1).flatten() {
            let (host, record) = Record::decode(&record.payload)?;
            shard.replay(host, record);
        }
        let (sender, inbox) = mpsc::channel(INBOX);
        let (journal, written) = Journal::in_task(log, vec![sender.clone()], u64::MAX, covers);
        let fleet = Fleet::new(vec![sender], counters);
        let mut tasks = JoinSet::new();
        tasks.spawn(written);
        tasks.spawn(shard.run(inbox, journal.clone(), CancellationToken::new()));
        let terms = WelcomeTerms {
            credit_bytes,
            epoch: 1,
            servers: Vec::new(),
        };
        let renewing = Renewing {
            control: self.control.clone(),
            authority: Arc::clone(&self.stage.authority),
            clock: Arc::clone(&self.clock) as _,
            sink: Arc::new(Nobody),
            guard: None,
        };
        let clock = Arc::clone(&self.clock) as _;
        let service = UplinkService::new(fleet.clone(), directory, renewing, clock, terms);
        let service = UplinkServer::new(service)
            .max_decoding_message_size(limits::MAX_UPLINK_MESSAGE_BYTES)
            .max_encoding_message_size(limits::MAX_DOWNLINK_MESSAGE_BYTES);
        let (door, incoming) = mpsc::channel(8);
        tasks.spawn(async move {
            let incoming = ReceiverStream::new(incoming);
            // It ends with the task.
            let _ = Server::builder()
                .add_service(service)
                .serve_with_incoming(incoming)
                .await;
        });
        for host in &self.hosts {
            *locked(&host.way.door) = Some(door.clone());
        }
        self.seen.aggregator_lives += 1;
        self.running = Some(Running {
            fleet,
            journal,
            tasks,
        });
        Ok(())
    }

    /// kill -9 of the aggregator.
    async fn kill(&mut self) {
        for host in &self.hosts {
            *locked(&host.way.door) = None;
        }
        if let Some(mut running) = self.running.take() {
            // First what writes: nothing more gets to the disk, and nothing is told of it.
            running.tasks.shutdown().await;
        }
        for host in &self.hosts {
            host.way.break_all();
        }
        turns().await;
    }

    fn begin(&mut self, at: usize) {
        let host = &mut self.hosts[at];
        host.lives += 1;
        self.seen.agent_lives += 1;
        let seed = self.seed.wrapping_mul(1_000_003) ^ (at as u64) << 32 ^ host.lives;
        let config = AgentConfig {
            // Gives the phase of its ticks, and is not drawn by chance as the identity is.
            host: HostId::from_bytes([u8::try_from(at).unwrap_or(0) * 37 + 1; 16]),
            interval: limits::MIN_INTERVAL,
            buffer: BufferLimits::default(),
            spool: None,
            status_socket: None,
            seed,
        };
        let dial = Dial {
            way: Arc::clone(&host.way),
            clock: Arc::clone(&host.clock),
            seed,
            host: host.id,
            domain: self.stage.authority.trust_domain().clone(),
        };
        let credentials = Credentials {
            connector: Box::new(dial),
            memory: Box::new(host.memory.clone()),
        };
        let source = Box::new(Small::new(u8::try_from(at).unwrap_or(0) + 1));
        let clock = Arc::clone(&host.clock) as Arc<dyn HostClock>;
        let agent = Agent::with_clock(config, credentials, source, clock)
            .with_spool_in_task(host.disk.clone(), SpoolLimits::default());
        let (monitor, stop) = (agent.monitor(), CancellationToken::new());
        let stopped = stop.clone();
        let task = tokio::spawn(agent.run(async move {
            stopped.cancelled().await;
            v1::FinReason::Stopped
        }));
        host.life = Some(Life {
            monitor,
            stop,
            task,
        });
    }

    /// Ends the agent's life, by kill -9, with its power, or in order.
    async fn end(&mut self, at: usize, how: How) {
        let lost_power = how == How::Power;
        let host = &mut self.hosts[at];
        let Some(life) = host.life.take() else {
            return;
        };
        let mut past = Past {
            host: host.id,
            incarnation: life.monitor.incarnation(),
            books: life.monitor.books(),
            settled_below: life.monitor.settled_below(),
            may_lose: lost_power || host.is_sick,
            is_closed: how == How::Order,
            was_killed: how == How::Kill,
        };
        if lost_power {
            // Nothing more gets to the disk.
            host.disk.fail(0, Fault::InputOutput, true);
        }
        if how == How::Order {
            life.stop.cancel();
            if let Ok(books) = life.task.await {
                past.books = books;
            }
        } else {
            life.task.abort();
            // Its last word is that it was aborted.
            let _ = life.task.await;
        }
        drop(life.monitor);
        turns().await;
        if lost_power {
            host.disk.crash(self.random.u64(..));
            host.disk.heal();
            host.is_sick = false;
        }
        self.past.push(past);
    }

    async fn live(&mut self) -> anyhow::Result<()> {
        for _ in 0..self.random.u32(STEPS) {
            let wait = self.random.u64(50..STEP_MS);
            time::sleep(Duration::from_millis(wait)).await;
            self.note();
            self.happen().await?;
        }
        Ok(())
    }

    /// Something, by chance.
    async fn happen(&mut self) -> anyhow::Result<()> {
        let at = self.random.usize(..self.hosts.len());
        match self.random.u8(..12) {
            0 => {
                self.end(at, How::Kill).await;
                self.begin(at);
            }
            1 => {
                self.end(at, How::Power).await;
                self.begin(at);
            }
            2 => {
                self.end(at, How::Order).await;
                self.begin(at);
            }
            3 => self.kill().await,
            4 => {
                self.kill().await;
                self.disk.crash(self.random.u64(..));
            }
            5 => self.hosts[at].way.shut(true),
            6 => self.hosts.iter().for_each(|host| host.way.shut(false)),
            7 => {
                let until = self.clock.passed_ms() + self.random.i64(..25_000);
                let way = &self.hosts[at].way;
                way.stalled_until_ms.store(until, Ordering::SeqCst);
            }
            8 => self.write_checkpoint().await,
            9 => {
                let fault = self.fault();
                self.disk
                    .fail(self.random.u64(..4), fault, self.random.bool());
            }
            10 => {
                let fault = self.fault();
                self.hosts[at].is_sick = true;
                self.hosts[at]
                    .disk
                    .fail(self.random.u64(..4), fault, self.random.bool());
            }
            _ => {
                let by = self.random.i64(-400_000_000..400_000_000);
                self.hosts[at].clock.jumped_ms.store(by, Ordering::SeqCst);
            }
        }
        if self.running.is_none() && self.random.bool() {
            self.disk.heal();
            self.start().await?;
        }
        Ok(())
    }

    fn fault(&mut self) -> Fault {
        let all = [
            Fault::NoSpace,
            Fault::InputOutput,
            Fault::ShortWrite,
            Fault::TornWrite,
        ];
        all[self.random.usize(..all.len())]
    }

    /// Waits until frames that are made from now on are on the aggregator's disk, of each host.
    async fn fresh(&self) -> anyhow::Result<Duration> {
        let lives = || self.hosts.iter().filter_map(|host| host.life.as_ref());
        let made: Vec<u64> = lives().map(|life| life.monitor.books().produced).collect();
        let began = Instant::now();
        while !lives()
            .zip(&made)
            .all(|(life, made)| life.monitor.newest_durable() > *made)
        {
            ensure!(
                began.elapsed() < FRESH,
                "not all are fresh after {FRESH:?}: {}",
                self.held()
            );
            time::sleep(Duration::from_millis(100)).await;
        }
        Ok(began.elapsed())
    }

    async fn write_checkpoint(&mut self) {
        if let Some(running) = &self.running {
            let covers = running.journal.health().durable();
            if let Some(hosts) = running.fleet.checkpoint().await {
                self.checkpoint = Some(Checkpoint { covers, hosts });
            }
        }
    }

    /// What an onlooker sees now.
    fn note(&mut self) {
        self.clock.passed_ms().hash(&mut self.trace);
        for host in &self.hosts {
            if let Some(life) = &host.life {
                let books = life.monitor.books();
                let newest = life.monitor.newest_durable();
                (life.monitor.incarnation().0, books.produced, books.durable).hash(&mut self.trace);
                (books.rejected, books.lost, books.spooled, newest).hash(&mut self.trace);
                life.monitor.is_connected().hash(&mut self.trace);
            }
        }
    }

    /// All is well again; the agents deliver, and the books are closed.
    async fn close(mut self) -> anyhow::Result<Seen> {
        self.disk.heal();
        for host in &self.hosts {
            host.disk.heal();
            host.way.shut(false);
            host.way.stalled_until_ms.store(0, Ordering::SeqCst);
        }
        if self.running.is_none() {
            self.start().await?;
        }
        let deadline = Instant::now() + PATIENCE;
        while !self.is_delivered() {
            ensure!(
                Instant::now() < deadline,
                "the agents hold frames still: {}",
                self.held()
            );
            time::sleep(Duration::from_millis(500)).await;
        }
        time::sleep(AFTERWARDS).await;
        self.note();
        for at in 0..self.hosts.len() {
            self.end(at, How::Order).await;
            let left = self.past.last().map_or(0, |past| past.books.held);
            ensure!(
                left == 0,
                "{left} frames were not delivered before a stop with all well"
            );
        }
        self.kill().await;
        self.judge()
    }

    /// Whether agents wait for nothing but the acknowledgement of their newest frames. One that has not come through
    /// or has not read its disk yet knows nothing of it.
    fn is_delivered(&self) -> bool {
        let lives = || self.hosts.iter().filter_map(|host| host.life.as_ref());
        lives().count() == self.hosts.len()
            && lives().all(|Life { monitor, .. }| {
                monitor.is_connected()
                    && monitor.books().held <= 2
                    && monitor.left_by_earlier_lives() == Some(0)
            })
    }

    fn held(&self) -> String {
        let hosts = self.hosts.iter().filter_map(|host| host.life.as_ref());
        let held = hosts.map(|life| {
            let (books, line) = (life.monitor.books(), life.monitor.line());
            let earlier = life.monitor.left_by_earlier_lives();
            format!("{books:?}, {earlier:?} of earlier lives, {line}")
        });
        held.collect::<Vec<_>>().join("; ")
    }

    fn judge(mut self) -> anyhow::Result<Seen> {
        let (log, _) = Log::open(self.disk.clone(), LogConfig::aggregator())?;
        let mut ledger: BTreeMap<(HostId, Incarnation), Ledger> = BTreeMap::new();
        for record in log.read_from(0).flatten() {
            let (host, record) = Record::decode(&record.payload)?;
            match record {
                Record::Frame(frame) => {
                    let life = ledger.entry((host, frame.incarnation)).or_default();
                    ensure!(
                        life.stored.insert(frame.seq),
                        "frame {} stands in the log twice",
                        frame.seq
                    );
                }
                Record::Rejected {
                    incarnation, seq, ..
                } => {
                    ledger
                        .entry((host, incarnation))
                        .or_default()
                        .other
                        .insert(seq);
                }
                Record::Gap {
                    incarnation,
                    first,
                    last,
                } => {
                    let life = ledger.entry((host, incarnation)).or_default();
                    life.other.insert_range(first, last);
                }
                Record::Session(_) | Record::Fin { .. } => {}
            }
        }
        for past in &self.past {
            let key = (past.host, past.incarnation);
            let life = ledger.remove(&key).unwrap_or_default();
            let (stored, known, books) = (count(&life.stored), life.known(), past.books);
            ensure!(
                stored >= books.durable,
                "{} frames were acknowledged, {stored} are there",
                books.durable
            );
            // A refusal is told before it is on disk: an aggregator that is killed in between forgets it, and the
            // frame was good for nothing. Of these the count must be right.
            let forgotten = books.rejected.saturating_sub(count(&life.other));
            let settled = past.settled_below.saturating_sub(1);
            let unknown = settled - known.count_in(1, settled);
            ensure!(
                unknown <= forgotten,
                "{unknown} of {settled} settled frames are not known"
            );
            let highest = known.last().unwrap_or(0);
            let holes = highest - count(&known);
            ensure!(
                holes <= forgotten || past.may_lose,
                "{holes} frames in between are missing"
            );
            let missing = books.produced.saturating_sub(count(&known));
            ensure!(
                missing <= forgotten + books.lost || !past.is_closed,
                "{missing} of {} frames are not known, and the agent gave up {}",
                books.produced,
                books.lost
            );
            // Its newest frame may have been in its memory only.
            ensure!(
                missing <= forgotten + books.lost + 1 || past.may_lose || !past.was_killed,
                "{missing} of {} frames of a life that was killed are not known, and the agent gave up {}",
                books.produced,
                books.lost
            );
            self.seen.killed_missing = self.seen.killed_missing.max(match past.was_killed {
                true if !past.may_lose => missing.saturating_sub(forgotten + books.lost),
                _ => 0,
            });
            self.seen.stored += stored;
            self.seen.lost += books.lost;
            self.seen.rejected += books.rejected;
            self.seen.refusals_forgotten += missing.min(forgotten);
            (stored, highest, holes).hash(&mut self.trace);
        }
        ensure!(ledger.is_empty(), "frames of nobody are in the log");
        self.seen.hash = self.trace.finish();
        Ok(self.seen)
    }
}

/// How a life ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    Kill,
    Power,
    Order,
}

/// What the log has of a life.
#[derive(Default)]
struct Ledger {
    stored: RangeSet,
    /// Refused, or named as lost.
    other: RangeSet,
}

impl Ledger {
    fn known(&self) -> RangeSet {
        let mut all = self.stored.clone();
        for (first, last) in self.other.iter() {
            all.insert_range(first, last);
        }
        all
    }
}

fn count(set: &RangeSet) -> u64 {
    set.count_in(0, u64::MAX)
}

/// Lets tasks come to their end that were told to.
async fn turns() {
    for _ in 0..TURNS {
        tokio::task::yield_now().await;
    }
}
