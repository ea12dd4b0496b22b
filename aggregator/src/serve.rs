//! The parts of an aggregator put together, started in order and stopped in order.
//!
//! Starting reads the authority, the control store and the log, binds every door, and only then lets
//! anybody in. A task that ends early takes the process with it: half an aggregator looks healthy and is
//! not. Stopping is bounded: agents are asked to leave, what they sent is written and acknowledged, the
//! state is put into a checkpoint.

use std::{fs, io, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context as _;
use futures_util::StreamExt as _;
use muster_proto::{
    id::HostId,
    time::{Clock, SystemClock},
};
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
    task::JoinSet,
    time,
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;

use crate::{
    admin::AdminSocket,
    config::Config,
    control::Control,
    detect::Engine,
    directory::{Directory, Known},
    enrol::EnrolDoor,
    events::Events,
    fleet::{
        Fleet, FleetConfig,
        shard::Message,
        silence::Refused,
        start::{self, Parts, Started},
    },
    http,
    incident::Incidents,
    ingest::{Door, Renewing, UplinkService, WelcomeTerms},
    journal::JournalHealth,
    listen::{self, Conn, DoorCounters, Limits},
    notify::{self, Books, Told},
    peers::{self, PeerWatch},
    pki::{Authority, Doors},
    query,
    threads::{ShardThread, ShardThreads},
    time_guard::{GuardedClock, Machine},
};

/// Where there are several aggregators, agents of one that was away are with another: they look whether the first is back
/// after 5 to 10 minutes (`HOME_FROM` of agent/src/uplink/mod.rs), and an attempt takes up to 10 s.
const LOOKS_FOR_HOME: Duration = Duration::from_secs(610);

/// Epoch of an aggregator that shares its hosts with no other.
const EPOCH: u64 = 1;

/// Shortest time over which agents spread their leaving.
const DRAIN_SPREAD_FLOOR: Duration = Duration::from_secs(2);

/// How long a stop waits for agents to leave.
const DRAIN_WAIT: Duration = Duration::from_secs(3);

/// Hosts that joined and are not yet taken into the fleet; they are when they connect, in any case.
const JOINED: usize = 1024;

/// Refused certificates that wait to be told to the host's shard; the rest is left out.
const REFUSALS: usize = 256;

/// Connections that are admitted and not yet taken by the thread of their shard.
const ADMITTED: usize = 64;

/// HTTP/2 bounds of the uplink (design/threats.md): an agent needs one stream.
const UPLINK_STREAMS: u32 = 8;
const UPLINK_STREAM_WINDOW: u32 = 256 * 1024;
const UPLINK_CONNECTION_WINDOW: u32 = 512 * 1024;

/// A peer that does not answer a ping for this long is gone.
const KEEPALIVE: Duration = Duration::from_secs(20);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Where the doors really are, which matters when a port was left to the system.
#[derive(Debug, Clone, Copy)]
pub struct Addresses {
    /// Agents.
    pub uplink: SocketAddr,
    /// Joining hosts.
    pub enrolment: SocketAddr,
    /// Operators.
    pub operator: SocketAddr,
    /// Scrape and discovery.
    pub http: SocketAddr,
}

/// A running aggregator.
pub struct Aggregator {
    addresses: Addresses,
    authority: Arc<Authority>,
    control: Control,
    events: Events,
    started: Started,
    readiness: watch::Sender<http::Readiness>,
    /// Doors: stopped first.
    doors: JoinSet<(&'static str, anyhow::Result<()>)>,
    stop_doors: CancellationToken,
    /// What must outlive the doors.
    rest: JoinSet<(&'static str, anyhow::Result<()>)>,
    stop_rest: CancellationToken,
    socket: PathBuf,
    /// Last: nothing runs on them when they end.
    _threads: ShardThreads,
}

/// The doors, bound and not yet served.
struct Bound {
    uplink: TcpListener,
    operator: TcpListener,
    http: TcpListener,
    enrolment: SocketAddr,
}

impl Bound {
    async fn at(config: &Config) -> io::Result<Self> {
        // The enrolment door is bound only while a token is live. With a port left to the system, one is
        // chosen now so that it can be told; another program might take it in between, which is said then.
        let enrolment = match config.enrolment.port() {
            0 => listen::bind(config.enrolment).await?.local_addr()?,
            _ => config.enrolment,
        };
        Ok(Self {
            uplink: listen::bind(config.uplink).await?,
            operator: listen::bind(config.operator).await?,
            http: listen::bind(config.http.listen).await?,
            enrolment,
        })
    }

    fn addresses(&self) -> io::Result<Addresses> {
        Ok(Addresses {
            uplink: self.uplink.local_addr()?,
            enrolment: self.enrolment,
            operator: self.operator.local_addr()?,
            http: self.http.local_addr()?,
        })
    }
}

/// Starts an aggregator on the state that `init` made.
///
/// # Errors
/// When the authority, the control store or the log cannot be used, or a port is taken. Nothing listens
/// then.
pub async fn start(config: &Config) -> anyhow::Result<Aggregator> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let authority = Arc::new(Authority::open(&config.state_dir)?);
    // Asked first, since what a database says of a folder that it cannot write is hard to understand.
    rustix::fs::access(&config.state_dir, rustix::fs::Access::WRITE_OK).with_context(|| {
        let state = config.state_dir.display();
        format!("cannot write the state folder {state}; this program's user must be able to")
    })?;
    let control = Control::open(&config.state_dir)?;
    let audited = control.clone();
    tokio::spawn(async move { tell_audit_head(&audited).await });
    let kept = control.kept_time().await?;
    let guard = GuardedClock::new(clock, Box::new(Machine), kept.as_ref());
    let guard = Arc::new(guard);
    // Everybody's: a clock in doubt must not refuse a fleet's samples as coming from the future either, nor make
    // agents follow it.
    let clock: Arc<dyn Clock> = Arc::clone(&guard) as Arc<dyn Clock>;
    let judged_by = Arc::clone(&guard) as Arc<dyn Clock>;
    let doors = Doors::judged_by(Arc::clone(&authority), &config.http.hosts, judged_by)?;
    let doors = Arc::new(doors);
    authority.guarded_by(Arc::clone(&guard));
    let directory = Directory::new(control.clone(), Arc::clone(&guard) as Arc<dyn Clock>);
    let hosts = directory.hosts().await?;
    fs::create_dir_all(&config.runtime_dir).with_context(|| {
        format!(
            "cannot make runtime_dir {} for the admin socket",
            config.runtime_dir.display()
        )
    })?;
    let bound = Bound::at(config).await?;
    let addresses = bound.addresses()?;

    let stop_rest = CancellationToken::new();
    let (incidents, incident_task) = Incidents::start(control.clone(), stop_rest.clone()).await?;
    let open = incidents.clone();
    let events = Events::open(&config.state_dir, config.events, Arc::clone(&clock))?;
    let shards = std::thread::available_parallelism().map_or(2, usize::from);
    let threads =
        ShardThreads::start(shards).context("cannot start the threads that receive samples")?;
    let parts = Parts {
        config: FleetConfig {
            series_quota: config.series_per_host,
            series_in_all: config.series_in_all,
            credit_bytes: config.credit_bytes,
            epoch: EPOCH,
            elsewhere: match config.announce.len() {
                0 | 1 => Duration::ZERO,
                _ => LOOKS_FOR_HOME,
            },
        },
        state_dir: config.state_dir.clone(),
        log_max_bytes: config.log_max_bytes,
        history: config.history.clone(),
        threads: threads.each().to_vec(),
        engine: Arc::new(Engine::new(&config.detect)),
        sink: Arc::new(incidents.clone()),
        open: Box::new(move |host| open.open_on(host)),
        clock: Arc::clone(&clock),
        events: events.clone(),
    };
    let started = start::start(parts, hosts)?;

    let mut rest = JoinSet::new();
    rest.spawn(async move {
        incident_task.await;
        ("incidents", Ok(()))
    });
    let (told, tellers) = notify::start(
        &config.notify,
        control.clone(),
        started.fleet.clone(),
        incidents.clone(),
        config.fleet_name.clone(),
        Arc::clone(&clock),
        stop_rest.clone(),
    )
    .await?;
    for (name, task) in tellers {
        rest.spawn(async move {
            task.await;
            (name, Ok(()))
        });
    }
    let books = Books::default();
    let reading = books.clone().run(
        told.clone(),
        control.clone(),
        clock.now(),
        stop_rest.clone(),
    );
    rest.spawn(async move {
        reading.await;
        ("books of the channels", Ok(()))
    });
    let comparing = peers::Parts {
        fleet: started.fleet.clone(),
        incidents: incidents.clone(),
        clock: Arc::clone(&clock),
        path: config.state_dir.join("peers"),
        labels: config.detect.peer_labels.clone(),
    };
    let (peers, comparing) = peers::start(comparing, stop_rest.clone());
    rest.spawn(async move {
        comparing.await;
        ("peers", Ok(()))
    });
    let (joined, joining) = mpsc::channel(JOINED);
    rest.spawn(take_in(
        joining,
        directory.clone(),
        started.fleet.clone(),
        stop_rest.clone(),
    ));

    let (readiness, ready) = watch::channel(http::Readiness::Ready);
    let stop_doors = CancellationToken::new();
    let opening = Opening {
        config,
        clock,
        guard: Arc::clone(&guard),
        authority: Arc::clone(&authority),
        doors,
        control: control.clone(),
        directory,
        incidents,
        told,
        books,
        peers,
        fleet: started.fleet.clone(),
        events: events.clone(),
        journal: Arc::clone(started.journal.health()),
        history: started.history.clone(),
        addresses,
        counters: DoorCounters::default(),
        threads: threads.each().to_vec(),
        stop: stop_doors.clone(),
    };
    let socket = config.runtime_dir.join("admin.sock");
    let doors = opening.open(bound, joined, ready, socket.clone())?;
    Ok(Aggregator {
        addresses,
        authority,
        control,
        events,
        started,
        readiness,
        doors,
        stop_doors,
        rest,
        stop_rest,
        socket,
        _threads: threads,
    })
}

/// Walks the audit log, and tells its newest line where a log collector copies it away: what is changed later can be
/// found with it.
async fn tell_audit_head(control: &Control) {
    let verdict = match control.verify_audit(None).await {
        Ok(verdict) => verdict,
        Err(error) => {
            tracing::error!(error = crate::chain(&error), "the audit log cannot be read");
            return;
        }
    };
    for fault in &verdict.faults {
        tracing::error!(
            fault,
            "the audit log was changed behind this program's back"
        );
    }
    if let Some((seq, hash)) = verdict.head {
        tracing::info!(
            head = format!("{seq}:{}", muster_proto::spiffe::hex(&hash)),
            "newest line of the audit log"
        );
    }
}

impl Aggregator {
    /// Where the doors are.
    #[must_use]
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// The admin socket.
    #[must_use]
    pub fn admin_socket(&self) -> &std::path::Path {
        &self.socket
    }

    /// The authority behind all certificates.
    #[must_use]
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// What happened on hosts.
    #[must_use]
    pub fn events(&self) -> &Events {
        &self.events
    }

    /// The control store.
    #[must_use]
    pub fn control(&self) -> &Control {
        &self.control
    }

    /// The hosts.
    #[must_use]
    pub fn fleet(&self) -> &Fleet {
        &self.started.fleet
    }

    /// The past; why there is none otherwise.
    ///
    /// # Errors
    /// In words for people.
    pub fn history(&self) -> Result<&start::History, &str> {
        self.started.history.as_ref().map_err(String::as_str)
    }

    /// Waits until a task ends that should not, and says which and why. Never returns otherwise.
    pub async fn failed(&mut self) -> anyhow::Error {
        let ended = tokio::select! {
            Some(ended) = self.doors.join_next() => ended,
            Some(ended) = self.rest.join_next() => ended,
            what = self.started.failed() => return anyhow::anyhow!("{what} ended, which it should not"),
        };
        match ended {
            Ok((name, Ok(()))) => anyhow::anyhow!("{name} ended, which it should not"),
            Ok((name, Err(error))) => error.context(format!("{name} failed")),
            Err(error) => anyhow::Error::new(error).context("a task panicked"),
        }
    }

    /// Asks the agents to leave, closes the doors, writes what is queued, and ends.
    pub async fn stop(mut self) {
        // Whoever watches readiness sends no more requests.
        let _ = self.readiness.send(http::Readiness::Stopping);
        let fleet = self.started.fleet.clone();
        let hosts = fleet.totals().hosts;
        let spread = DRAIN_SPREAD_FLOOR.max(Duration::from_secs(hosts / 1000));
        fleet.drain(spread).await;
        let left = async {
            while fleet.totals().connected > 0 {
                time::sleep(Duration::from_millis(20)).await;
            }
        };
        if time::timeout(DRAIN_WAIT, left).await.is_err() {
            tracing::info!(
                agents = fleet.totals().connected,
                "not all agents have left; their streams are cut, they keep what was not acknowledged"
            );
        }
        self.stop_doors.cancel();
        end(&mut self.doors).await;
        drop(fleet);
        self.started.stop().await;
        self.stop_rest.cancel();
        end(&mut self.rest).await;
    }
}

/// Gives tasks a moment to end by themselves, then ends them.
async fn end(tasks: &mut JoinSet<(&'static str, anyhow::Result<()>)>) {
    let ended = async { while tasks.join_next().await.is_some() {} };
    if time::timeout(Duration::from_secs(2), ended).await.is_err() {
        tasks.shutdown().await;
    }
}

/// Takes hosts into the fleet as soon as they have joined.
async fn take_in(
    mut joined: mpsc::Receiver<HostId>,
    directory: Directory,
    fleet: Fleet,
    stop: CancellationToken,
) -> (&'static str, anyhow::Result<()>) {
    loop {
        let host = tokio::select! {
            () = stop.cancelled() => break,
            host = joined.recv() => match host {
                Some(host) => host,
                None => {
                    // All senders are gone: the doors are closed.
                    stop.cancelled().await;
                    break;
                }
            },
        };
        if let Known::Yes(enrolled) = directory.host(host).await {
            // One that took another's place: what the other has open ends now.
            fleet.cut(host).await;
            fleet.upsert(*enrolled).await;
        }
    }
    ("joining hosts", Ok(()))
}

/// Tells hosts' shards of certificates that were refused in their names: a silent host may be silent for that.
async fn tell_refusals(
    mut refusals: mpsc::Receiver<(HostId, listen::Refusal)>,
    fleet: Fleet,
    stop: CancellationToken,
) -> (&'static str, anyhow::Result<()>) {
    loop {
        let (host, refusal) = tokio::select! {
            () = stop.cancelled() => break,
            refused = refusals.recv() => match refused {
                Some(refused) => refused,
                None => {
                    stop.cancelled().await;
                    break;
                }
            },
        };
        let why = match refusal {
            listen::Refusal::Expired => Refused::Expired,
            listen::Refusal::NotOurs => Refused::NotOurs,
        };
        fleet.tell(host, Message::Refused { host, why }).await;
    }
    ("refused certificates", Ok(()))
}

/// Hands each connection to the thread of the shard that has its host.
async fn deal(mut incoming: listen::Incoming, inlets: Vec<mpsc::Sender<Conn>>) {
    while let Some(admitted) = incoming.next().await {
        // What is refused was counted at the door.
        let Ok(conn) = admitted else { continue };
        let host = conn.peer().agent();
        let shard = host.map_or(0, |host| Fleet::shard_of(host, inlets.len()));
        if inlets[shard].send(conn).await.is_err() {
            return;
        }
    }
}

/// What the doors are opened with.
struct Opening<'a> {
    config: &'a Config,
    clock: Arc<dyn Clock>,
    /// What identities are judged by.
    guard: Arc<GuardedClock>,
    authority: Arc<Authority>,
    doors: Arc<Doors>,
    control: Control,
    directory: Directory,
    incidents: Incidents,
    told: Told,
    books: Books,
    peers: PeerWatch,
    fleet: Fleet,
    events: Events,
    journal: Arc<JournalHealth>,
    history: Result<start::History, String>,
    addresses: Addresses,
    counters: DoorCounters,
    /// Of the shards.
    threads: Vec<ShardThread>,
    stop: CancellationToken,
}

impl Opening<'_> {
    fn open(
        self,
        bound: Bound,
        joined: mpsc::Sender<HostId>,
        ready: watch::Receiver<http::Readiness>,
        socket: PathBuf,
    ) -> anyhow::Result<JoinSet<(&'static str, anyhow::Result<()>)>> {
        let mut tasks = JoinSet::new();
        let limits = Limits {
            exempt_loopback: self.config.exempt_loopback,
            ..Limits::default()
        };
        self.uplink(&mut tasks, bound.uplink, &limits);
        self.operator(&mut tasks, bound.operator, &limits);
        self.http(&mut tasks, bound.http, &limits, ready)?;
        let door = EnrolDoor {
            control: self.control.clone(),
            authority: Arc::clone(&self.authority),
            doors: Arc::clone(&self.doors),
            // The host that was dialled for enrolment, with the uplink's port.
            uplink_address: format!(":{}", self.addresses.uplink.port()),
            limits,
            counters: Arc::clone(&self.counters.enrolment),
            clock: Arc::clone(&self.guard) as Arc<dyn Clock>,
            joined,
        };
        let (address, stop) = (bound.enrolment, self.stop.clone());
        tasks.spawn(async move {
            door.run(address, stop).await;
            ("enrolment door", Ok(()))
        });
        let admin = AdminSocket {
            control: self.control.clone(),
            authority: Arc::clone(&self.authority),
            operator_address: self.operator_address(),
            fleet_name: self.config.fleet_name.clone(),
            clock: Arc::clone(&self.guard) as Arc<dyn Clock>,
        };
        let stop = self.stop.clone();
        tasks.spawn(async move { ("admin socket", admin.run(&socket, stop).await) });
        let (guard, control, stop) = (
            Arc::clone(&self.guard),
            self.control.clone(),
            self.stop.clone(),
        );
        tasks.spawn(async move {
            guard.run(control, stop).await;
            ("clock", Ok(()))
        });
        let (doors, clock, stop) = (self.doors, self.guard, self.stop);
        tasks.spawn(async move {
            doors.run(clock, stop).await;
            ("certificate renewal", Ok(()))
        });
        Ok(tasks)
    }

    fn uplink(
        &self,
        tasks: &mut JoinSet<(&'static str, anyhow::Result<()>)>,
        listener: TcpListener,
        limits: &Limits,
    ) {
        let terms = WelcomeTerms {
            credit_bytes: self.config.credit_bytes,
            epoch: EPOCH,
            servers: self.config.announce.clone(),
        };
        let service = UplinkService::new(
            self.fleet.clone(),
            self.directory.clone(),
            Renewing {
                control: self.control.clone(),
                authority: Arc::clone(&self.authority),
                clock: Arc::clone(&self.guard) as Arc<dyn Clock>,
                sink: Arc::new(self.incidents.clone()),
                guard: Some(Arc::clone(&self.guard)),
            },
            Arc::clone(&self.clock),
            terms,
        );
        let service = Door::new(service);
        let (refused, refusals) = mpsc::channel(REFUSALS);
        // Set once: this is the only place that opens this door.
        let _ = self.counters.uplink.refused_agents.set(refused);
        tasks.spawn(tell_refusals(
            refusals,
            self.fleet.clone(),
            self.stop.clone(),
        ));
        let incoming = listen::tls(
            listener,
            Arc::clone(&self.doors.agents),
            limits.clone(),
            Arc::clone(&self.counters.uplink),
            self.stop.clone(),
        );
        let mut inlets = Vec::new();
        for thread in &self.threads {
            let (inlet, outlet) = mpsc::channel(ADMITTED);
            inlets.push(inlet);
            let (service, stop) = (service.clone(), self.stop.clone());
            let serving = async move {
                let incoming = ReceiverStream::new(outlet).filter_map(|conn: Conn| {
                    let moved = conn.moved().inspect_err(|error| {
                        tracing::warn!(%error, "a connection was lost on the way to its shard");
                    });
                    std::future::ready(moved.ok().map(io::Result::Ok))
                });
                let served = Server::builder()
                    .max_concurrent_streams(UPLINK_STREAMS)
                    .initial_stream_window_size(UPLINK_STREAM_WINDOW)
                    .initial_connection_window_size(UPLINK_CONNECTION_WINDOW)
                    .http2_keepalive_interval(Some(KEEPALIVE))
                    .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
                    .add_service(service)
                    .serve_with_incoming_shutdown(incoming, stop.cancelled_owned())
                    .await;
                ("uplink door", served.map_err(anyhow::Error::new))
            };
            tasks.spawn_on(serving, &thread.runtime);
        }
        let stop = self.stop.clone();
        tasks.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = deal(incoming, inlets) => {}
            }
            ("uplink door", Ok(()))
        });
    }

    fn operator(
        &self,
        tasks: &mut JoinSet<(&'static str, anyhow::Result<()>)>,
        listener: TcpListener,
        limits: &Limits,
    ) {
        let (doors, journal) = (Arc::clone(&self.doors), Arc::clone(&self.journal));
        let events = Arc::clone(self.events.health());
        let http = &self.config.http;
        let guard = Arc::clone(&self.guard);
        // Turned off is no problem.
        let no_history = self
            .history
            .as_ref()
            .err()
            .filter(|_| self.config.history.enabled);
        let no_history = no_history.map(|why| format!("there is no history: {why}"));
        let feed = self.history.as_ref().ok();
        let feed = feed.map(|history| Arc::clone(&history.health));
        let about = query::About {
            fleet_name: self.config.fleet_name.clone(),
            started: self.clock.now(),
            certificate_not_after: Box::new(move || Some(doors.not_after())),
            problems: Box::new(move || {
                let problems = [
                    journal.problem(),
                    events.problem(),
                    guard.problem(),
                    no_history.clone(),
                ];
                let history = feed.as_ref().map(|health| health.problems());
                let problems = problems.into_iter().flatten();
                problems.chain(history.into_iter().flatten()).collect()
            }),
            http: query::HttpDoor {
                address: if http.external_address.is_empty() {
                    self.addresses.http.to_string()
                } else {
                    http.external_address.clone()
                },
                tls: http.tls,
                token_needed: http.token.is_some(),
            },
            budget_per_host_week: self.config.detect.budget_per_host_week,
        };
        let asked = query::EventsService::new(
            self.fleet.clone(),
            self.events.clone(),
            self.control.clone(),
            Arc::clone(&self.clock),
        );
        let service = query::OperatorService::new(
            self.fleet.clone(),
            self.control.clone(),
            about,
            Arc::clone(&self.clock),
        )
        .with_told(self.told.clone())
        .with_incidents(self.incidents.clone())
        .with_peers(self.peers.clone());
        let history = query::HistoryService::new(
            self.fleet.clone(),
            self.control.clone(),
            self.history.clone(),
            Arc::clone(&self.journal),
            Arc::clone(&self.clock),
        );
        let past = query::PastService::new(
            history.clone(),
            self.events.clone(),
            self.config.fleet_name.clone(),
        );
        let identity = query::IdentityService::new(query::IdentityParts {
            control: self.control.clone(),
            authority: Arc::clone(&self.authority),
            doors: Arc::clone(&self.doors),
            fleet: self.fleet.clone(),
            sink: Arc::new(self.incidents.clone()),
            enrolment_address: format!(":{}", self.addresses.enrolment.port()),
            clock: Arc::clone(&self.guard) as Arc<dyn Clock>,
        });
        let checks = query::ChecksService::new(service.clone());
        let paging = query::PagingService::new(
            self.fleet.clone(),
            self.control.clone(),
            self.told.clone(),
            Arc::clone(&self.clock),
        );
        let replay = query::ReplayService::new(
            self.fleet.clone(),
            self.control.clone(),
            self.history.clone(),
            self.config.detect.clone(),
            Arc::clone(&self.clock),
        );
        let incoming = listen::tls(
            listener,
            Arc::clone(&self.doors.operators),
            limits.clone(),
            Arc::clone(&self.counters.operator),
            self.stop.clone(),
        );
        let stop = self.stop.clone();
        tasks.spawn(async move {
            let served = Server::builder()
                .timeout(Duration::from_secs(60))
                .http2_keepalive_interval(Some(KEEPALIVE))
                .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
                .add_service(service.into_server())
                .add_service(asked.into_server())
                .add_service(identity.into_server())
                .add_service(history.into_server())
                .add_service(past.into_server())
                .add_service(checks.into_server())
                .add_service(paging.into_server())
                .add_service(replay.into_server())
                .serve_with_incoming_shutdown(incoming, stop.cancelled_owned())
                .await;
            ("operator door", served.map_err(anyhow::Error::new))
        });
    }

    fn http(
        &self,
        tasks: &mut JoinSet<(&'static str, anyhow::Result<()>)>,
        listener: TcpListener,
        limits: &Limits,
        ready: watch::Receiver<http::Readiness>,
    ) -> anyhow::Result<()> {
        let settings = http::Settings::of(&self.config.http).context("http.instance")?;
        let source = http::live::LiveFleet {
            fleet: self.fleet.clone(),
            journal: Arc::clone(&self.journal),
            incidents: self.incidents.clone(),
            history: self.history.as_ref().ok().cloned(),
            doors: self.counters.clone(),
            told: self.told.clone(),
            books: self.books.clone(),
            events: Arc::clone(self.events.health()),
            peers: self.peers.clone(),
            clock: Arc::clone(&self.clock),
            names: http::live::Names::default(),
        };
        let router = http::router(http::HttpState::new(source, settings, ready));
        // One Prometheus server has a connection for each target it scrapes at the same moment.
        let limits = Limits {
            unauthenticated_per_address: http::connection::MAX_OF_ADDRESS,
            ..limits.clone()
        };
        let counters = Arc::clone(&self.counters.http);
        let stop = self.stop.clone();
        let incoming = if self.config.http.tls {
            tracing::info!(
                names = self.doors.names().join(", "),
                "the http door speaks TLS; its certificate carries these names"
            );
            let tls = Arc::clone(&self.doors.http);
            listen::tls(listener, tls, limits, counters, stop.clone())
        } else {
            listen::plain(listener, limits, counters, stop.clone())
        };
        tasks.spawn(async move {
            http::connection::serve_all(incoming, router, stop).await;
            ("http door", Ok(()))
        });
        Ok(())
    }

    /// Where operators are told to go: the first name of the certificate, or this machine's loopback.
    fn operator_address(&self) -> String {
        let address = self.addresses.operator;
        let host = match self.authority.names().first() {
            Some(name) => name.clone(),
            None if address.ip().is_unspecified() => "127.0.0.1".to_owned(),
            None => address.ip().to_string(),
        };
        if host.contains(':') {
            return format!("[{host}]:{}", address.port());
        }
        format!("{host}:{}", address.port())
    }
}

/// Completes when the process is asked to stop: SIGTERM or SIGINT.
///
/// # Errors
/// When signals cannot be listened to.
pub fn stop_signal() -> io::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};

    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// Tells systemd that the doors are open, then keeps its watchdog content while every shard answers; never
/// completes.
///
/// Outside systemd it only waits.
pub async fn notify_ready(fleet: Fleet) {
    notify(&[sd_notify::NotifyState::Ready]);
    let Some(timeout) = sd_notify::watchdog_enabled() else {
        return std::future::pending().await;
    };
    let mut ticks = time::interval(timeout / 2);
    loop {
        ticks.tick().await;
        // A shard that hangs must be ended from outside: systemd does, when it hears nothing.
        if fleet.is_alive().await {
            notify(&[sd_notify::NotifyState::Watchdog]);
        }
    }
}

/// Tells systemd that the process is stopping.
pub fn notify_stopping() {
    notify(&[sd_notify::NotifyState::Stopping]);
}

fn notify(states: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "systemd could not be told");
    }
}
