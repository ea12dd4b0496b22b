//! Made-up agents in a process of their own, over real mutually authenticated TLS, driven line by line.
//!
//! The process is this program again with `load` as its only argument. The first line of its standard input is the
//! plan; each further one an [`Order`], answered with one line of JSON. When its input ends it ends too, so
//! that nothing is left behind by a driver that dies. Identities stay in its folder, so a new process with
//! the same folder plays the same hosts.

use std::{
    env,
    io::{BufRead as _, BufReader, Write as _},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::Context as _;
use muster_agent::{
    Agent, AgentConfig, Credentials, Monitor, Source,
    buffer::{Books, BufferLimits},
    enrol,
    identity::Identity,
    sampler::HostClock,
    simulate::SimulatedHost,
    spool::{SpoolConfig, SpoolLimits},
    telemetry::Own,
};
use muster_proto::{
    time::{Clock as _, SystemClock},
    token::Token,
    v1,
};
use rustix::process::{Pid, Resource, Signal, getrlimit, kill_process, setrlimit};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::{
    runtime,
    sync::{Semaphore, mpsc},
    task::JoinSet,
    time::{self, Instant},
};
use tokio_util::sync::CancellationToken;

use crate::{
    gate::{Gate, Gated},
    hosts::{Jumping, Restless, Wider},
};

/// Hosts that join at a time; the door takes 32 connections of one address.
const JOINING: usize = 16;

/// Agents that connect at a time when all are new, and how long is waited for them.
const CONNECTING: usize = 16;
const CONNECTS_IN: Duration = Duration::from_secs(10);

/// Agents whose acknowledgements are timed, and how often they are looked at.
const TIMED: usize = 20;
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// Of the frames of one agent so many may wait for its spool while time is virtual: more would find its queue full.
const UNSPOOLED: u64 = 1_500;

/// Virtual time passes in steps of this.
const VIRTUAL_STEP: Duration = Duration::from_secs(600);

/// What a load is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Plan {
    /// Where hosts join.
    pub enrolment: SocketAddr,
    /// With which token.
    pub token: String,
    /// How many there are.
    pub hosts: u64,
    /// Time between the samples of each.
    pub interval: Duration,
    /// Their identities.
    pub folder: PathBuf,
    /// Seed of what agents leave to chance.
    pub seed: u64,
    /// Whether agents keep a spool, as installed ones do. It is a thread each, so not for thousands.
    pub spool: bool,
    /// Where to connect to, if not where the identity says.
    pub uplink: Option<SocketAddr>,
    /// Whether [`Order::Away`] will be given, which takes a runtime of one thread.
    pub is_virtual: bool,
    /// Instead of what a host has: so many series in each sample, and others in the next.
    pub fresh_series: u32,
}

/// What the process is told.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) enum Order {
    /// How things stand.
    Books,
    /// All agents end in order.
    Stop,
    /// The wall clocks of all hosts jump by so many milliseconds.
    Wall(i64),
    /// All hosts sleep for so many milliseconds and wake now.
    Asleep(i64),
    /// Connections break, new ones are refused.
    Cut,
    /// So many seconds pass, as fast as the agents can work.
    Away(u64),
    /// Connections are possible again.
    Heal,
    /// Each sample has so many series more from now on.
    More(u32),
}

/// What became of the frames of one agent.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct AgentBooks {
    /// Identity of its host, in 32 digits.
    pub host: String,
    /// Life of the agent.
    pub incarnation: u64,
    /// Whether it has a session.
    pub connected: bool,
    /// Frames numbered.
    pub produced: u64,
    /// Frames known to be durable.
    pub durable: u64,
    /// Frames refused.
    pub rejected: u64,
    /// Frames given up.
    pub lost: u64,
    /// Everything below this number is durable, refused or given up.
    pub settled_below: u64,
    /// Frames of earlier lives that wait on disk; none is known before the disk was read.
    pub left_by_earlier_lives: Option<u64>,
    /// The highest number that is known to be durable.
    pub newest_durable: u64,
}

/// What the load process answers.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Report {
    /// All agents.
    pub agents: Vec<AgentBooks>,
    /// Values in one sample, over all agents.
    pub values: u64,
    /// Times from a frame's number to its acknowledgement since the report before, milliseconds.
    pub ack_ms: Vec<f64>,
}

impl Report {
    /// A sum over all agents.
    pub(crate) fn sum(&self, of: impl Fn(&AgentBooks) -> u64) -> u64 {
        self.agents.iter().map(of).sum()
    }

    /// Agents with a session.
    pub(crate) fn connected(&self) -> u64 {
        self.sum(|agent| u64::from(agent.connected))
    }
}

/// The other process.
pub(crate) struct Load {
    process: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Load {
    /// Starts it; its agents have joined when this returns.
    pub(crate) fn start(plan: &Plan) -> anyhow::Result<Self> {
        let mut process = Command::new(env::current_exe()?)
            .arg("load")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let to = process.stdin.take().context("no standard input")?;
        let from = process.stdout.take().context("no standard output")?;
        let mut load = Self {
            process,
            to,
            from: BufReader::new(from),
        };
        load.say(plan).context("the load process did not begin")?;
        Ok(load)
    }

    /// Sends the process a signal.
    pub(crate) fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let pid = i32::try_from(self.process.id())
            .ok()
            .and_then(Pid::from_raw);
        Ok(kill_process(pid.context("no such process")?, signal)?)
    }

    /// The books of all agents now.
    pub(crate) fn books(&mut self) -> anyhow::Result<Report> {
        self.order(Order::Books)
    }

    /// Gives an order; the books when it was carried out.
    pub(crate) fn order(&mut self, order: Order) -> anyhow::Result<Report> {
        self.say(&order)
    }

    /// Stops all agents; their last books.
    pub(crate) fn stop(mut self) -> anyhow::Result<Report> {
        let last = self.order(Order::Stop)?;
        self.process.wait()?;
        Ok(last)
    }

    fn say(&mut self, what: &impl Serialize) -> anyhow::Result<Report> {
        writeln!(self.to, "{}", serde_json::to_string(what)?)?;
        let mut line = String::new();
        self.from.read_line(&mut line)?;
        serde_json::from_str(&line).context("the load process answered something else")
    }
}

/// kill -9, unless it was stopped before.
impl Drop for Load {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Whether this process was started as the load; if so, runs it to its end.
pub(crate) fn ran_as_load() -> anyhow::Result<bool> {
    let mut args = env::args().skip(1);
    if args.next().as_deref() != Some("load") {
        return Ok(false);
    }
    allow_descriptors()?;
    let mut lines = lines();
    let plan: Plan = read(&mut lines)?.context("no plan")?;
    let mut builder = if plan.is_virtual {
        runtime::Builder::new_current_thread()
    } else {
        runtime::Builder::new_multi_thread()
    };
    builder.enable_all().build()?.block_on(async move {
        let mut running = Running::start(&plan).await?;
        answer(&running.report())?;
        while let Some(line) = lines.recv().await {
            match serde_json::from_str(&line)? {
                Order::Stop => return answer(&running.stop().await),
                order => running.obey(order).await,
            }
            answer(&running.report())?;
        }
        Ok::<(), anyhow::Error>(())
    })?;
    Ok(true)
}

/// The first line, before there is a runtime.
fn read<T: DeserializeOwned>(lines: &mut mpsc::Receiver<String>) -> anyhow::Result<Option<T>> {
    let line = lines.blocking_recv();
    Ok(line.as_deref().map(serde_json::from_str).transpose()?)
}

/// A connection is a descriptor, and the usual limit is 1,024.
pub(crate) fn allow_descriptors() -> anyhow::Result<()> {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).context("cannot raise the limit on open files")
}

/// The lines of the standard input; the channel closes when it ends.
pub(crate) fn lines() -> mpsc::Receiver<String> {
    let (to, lines) = mpsc::channel(1);
    thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            if to.blocking_send(line).is_err() {
                return;
            }
        }
    });
    lines
}

fn answer(report: &Report) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    serde_json::to_writer(&mut out, report)?;
    writeln!(out)?;
    Ok(out.flush()?)
}

struct Running {
    agents: Vec<(String, Monitor)>,
    gate: Arc<Gate>,
    clock: Arc<Jumping>,
    more: Arc<AtomicU32>,
    tasks: JoinSet<(usize, Books)>,
    stop: CancellationToken,
    values: u64,
    ack_ms: Arc<Mutex<Vec<f64>>>,
}

impl Running {
    async fn start(plan: &Plan) -> anyhow::Result<Self> {
        let places = Arc::new(Semaphore::new(JOINING));
        let (gate, clock) = (Arc::new(Gate::default()), Arc::new(Jumping::new()));
        let more: Arc<AtomicU32> = Arc::default();
        let mut joining = JoinSet::new();
        for number in 1..=plan.hosts {
            let (plan, places) = (plan.clone(), Arc::clone(&places));
            let (gate, clock) = (Arc::clone(&gate), Arc::clone(&clock));
            let more = Arc::clone(&more);
            joining.spawn(async move {
                let _place = places.acquire_owned().await;
                join(&plan, number, gate, clock, more).await
            });
        }
        let mut running = Self {
            agents: Vec::new(),
            gate,
            clock,
            more,
            tasks: JoinSet::new(),
            stop: CancellationToken::new(),
            values: 0,
            ack_ms: Arc::default(),
        };
        let mut ready = Vec::new();
        while let Some(joined) = joining.join_next().await {
            ready.push(joined??);
        }
        for (at, (host, agent, values)) in ready.into_iter().enumerate() {
            // A fleet does not start in one moment, and an address may have few connections that say nothing yet.
            running.let_connect(at.saturating_sub(CONNECTING)).await;
            let place = running.agents.len();
            running.agents.push((host, agent.monitor()));
            running.values += values;
            let stop = running.stop.clone();
            running.tasks.spawn(async move {
                let stopped = async move {
                    stop.cancelled().await;
                    v1::FinReason::Stopped
                };
                (place, agent.run(stopped).await)
            });
        }
        let timed: Vec<Monitor> = running
            .agents
            .iter()
            .take(TIMED)
            .map(|(_, monitor)| monitor.clone())
            .collect();
        tokio::spawn(time_acks(timed, Arc::clone(&running.ack_ms)));
        Ok(running)
    }

    /// Waits until so many agents are connected, as long as one of them may take.
    async fn let_connect(&self, count: usize) {
        let connected = || {
            let agents = self.agents.iter();
            agents.filter(|(_, monitor)| monitor.is_connected()).count()
        };
        let began = Instant::now();
        while count.is_multiple_of(CONNECTING)
            && connected() < count
            && began.elapsed() < CONNECTS_IN
        {
            time::sleep(LOOK_EVERY).await;
        }
    }

    fn report(&self) -> Report {
        let agents = self.agents.iter();
        let mut report = Report {
            agents: agents
                .map(|(host, monitor)| books(host, monitor, monitor.books()))
                .collect(),
            values: self.values,
            ack_ms: Vec::new(),
        };
        let mut ack_ms = self.ack_ms.lock().unwrap_or_else(PoisonError::into_inner);
        report.ack_ms = std::mem::take(&mut *ack_ms);
        report
    }

    async fn obey(&mut self, order: Order) {
        match order {
            Order::Books | Order::Stop => {}
            Order::Wall(ms) => self.clock.jump(ms),
            Order::Asleep(ms) => self.clock.sleep(ms),
            Order::Cut => self.gate.cut(),
            Order::Away(seconds) => self.pass(Duration::from_secs(seconds)).await,
            Order::Heal => self.gate.heal(),
            Order::More(series) => self.more.store(series, Ordering::Relaxed),
        }
    }

    /// Lets time pass as fast as the agents can work: timers fire in their order, without the waits between.
    async fn pass(&self, mut left: Duration) {
        time::pause();
        while !left.is_zero() {
            let step = left.min(VIRTUAL_STEP);
            time::sleep(step).await;
            left -= step;
            // Spools are threads, for which no time has passed.
            while self.unspooled() > UNSPOOLED {
                thread::sleep(LOOK_EVERY);
            }
        }
        time::resume();
    }

    /// Frames of the agent whose spool is furthest behind; none without spools.
    fn unspooled(&self) -> u64 {
        let behind = self.agents.iter().map(|(_, monitor)| {
            let books = monitor.books();
            if books.spooled == 0 {
                0
            } else {
                books.held - books.spooled.min(books.held)
            }
        });
        behind.max().unwrap_or(0)
    }

    async fn stop(&mut self) -> Report {
        self.stop.cancel();
        let mut last = self.report();
        while let Some(Ok((place, of_agent))) = self.tasks.join_next().await {
            let (host, monitor) = &self.agents[place];
            last.agents[place] = books(host, monitor, of_agent);
        }
        last
    }
}

fn books(host: &str, monitor: &Monitor, books: Books) -> AgentBooks {
    AgentBooks {
        host: host.to_owned(),
        incarnation: monitor.incarnation().0,
        connected: monitor.is_connected(),
        produced: books.produced,
        durable: books.durable,
        rejected: books.rejected,
        lost: books.lost,
        settled_below: monitor.settled_below(),
        left_by_earlier_lives: monitor.left_by_earlier_lives(),
        newest_durable: monitor.newest_durable(),
    }
}

/// An agent of the host with this number, joined now or in an earlier process; and the values in a sample.
async fn join(
    plan: &Plan,
    number: u64,
    gate: Arc<Gate>,
    clock: Arc<Jumping>,
    more: Arc<AtomicU32>,
) -> anyhow::Result<(String, Agent, u64)> {
    let state = plan.folder.join(number.to_string());
    std::fs::create_dir_all(&state)?;
    let mut source = SimulatedHost::new(number);
    let (table, _) = source.sample(SystemClock.now(), &Own::default());
    let values = table.present_count() as u64;
    // A fresh one: a counter that went back would be a reset.
    let source = SimulatedHost::new(number);
    let (host, address) = identity(plan, &state, source.facts()).await?;
    let address = plan.uplink.map_or(address, |uplink| uplink.to_string());
    let config = AgentConfig {
        host,
        interval: plan.interval,
        buffer: BufferLimits::default(),
        spool: plan.spool.then(|| SpoolConfig {
            folder: state.join("spool"),
            limits: SpoolLimits {
                // The machine may be nearly full.
                min_free_bytes: 0,
                ..SpoolLimits::default()
            },
        }),
        status_socket: None,
        seed: plan.seed.wrapping_mul(1_000_003).wrapping_add(number),
    };
    let mut credentials = Credentials::on_disk(&state, address);
    credentials.connector = Box::new(Gated {
        inner: credentials.connector,
        gate,
    });
    let source: Box<dyn Source> = match plan.fresh_series {
        0 => Box::new(Wider::new(source, more)),
        series => Box::new(Restless::new(source, series)),
    };
    let agent = Agent::with_clock(config, credentials, source, clock as Arc<dyn HostClock>);
    Ok((host.to_string(), agent, values))
}

async fn identity(
    plan: &Plan,
    state: &Path,
    facts: v1::HostFacts,
) -> anyhow::Result<(muster_proto::id::HostId, String)> {
    if let Ok(identity) = Identity::load(state) {
        return Ok((identity.host_id, identity.uplink_address));
    }
    let token: Token = plan.token.parse()?;
    let joined = enrol::enrol(&plan.enrolment.to_string(), &token, facts, state).await?;
    Ok((joined.host_id, joined.uplink_address))
}

/// Times how long frames wait for their acknowledgement, to the grain of [`LOOK_EVERY`].
async fn time_acks(monitors: Vec<Monitor>, ack_ms: Arc<Mutex<Vec<f64>>>) {
    let mut waiting: Vec<Option<(u64, Instant)>> = vec![None; monitors.len()];
    let mut seen: Vec<u64> = vec![0; monitors.len()];
    let mut ticks = time::interval(LOOK_EVERY);
    loop {
        ticks.tick().await;
        for (at, monitor) in monitors.iter().enumerate() {
            let books = monitor.books();
            if let Some((produced, since)) = waiting[at]
                && books.durable + books.rejected + books.lost >= produced
            {
                let took = since.elapsed().as_secs_f64() * 1000.0;
                let mut ack_ms = ack_ms.lock().unwrap_or_else(PoisonError::into_inner);
                ack_ms.push(took);
                waiting[at] = None;
            }
            if books.produced > seen[at] {
                seen[at] = books.produced;
                waiting[at].get_or_insert((books.produced, Instant::now()));
            }
        }
    }
}
