//! Made-up agents in a process of their own, over real mutually authenticated TLS, driven line by line.
//!
//! The process is this program again with `load` as its first argument. It answers a line `books` on its
//! standard input with one line of JSON, and `stop` with the last one; when its input ends it ends too, so
//! that nothing is left behind by a driver that dies. Identities stay in its folder, so a new process with
//! the same folder plays the same hosts.

use std::{
    env,
    io::{BufRead as _, BufReader, Write as _},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use anyhow::Context as _;
use muster_agent::{
    Agent, AgentConfig, Credentials, Monitor, Source as _,
    buffer::{Books, BufferLimits},
    enrol,
    identity::Identity,
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
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{Semaphore, mpsc},
    task::JoinSet,
    time::{self, Instant},
};
use tokio_util::sync::CancellationToken;

/// Hosts that join at a time; the door takes 32 connections of one address.
const JOINING: usize = 16;

/// Agents whose acknowledgements are timed, and how often they are looked at.
const TIMED: usize = 20;
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// What a load is.
#[derive(Debug, Clone)]
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
    /// Frames of earlier lives that wait on disk.
    pub left_by_earlier_lives: u64,
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
            .arg(plan.enrolment.to_string())
            .arg(plan.hosts.to_string())
            .arg(plan.interval.as_millis().to_string())
            .arg(&plan.folder)
            .arg(plan.seed.to_string())
            .arg(plan.spool.to_string())
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
        writeln!(load.to, "{}", plan.token)?;
        load.read().context("the load process did not begin")?;
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
        writeln!(self.to, "books")?;
        self.read()
    }

    /// Stops all agents; their last books.
    pub(crate) fn stop(mut self) -> anyhow::Result<Report> {
        writeln!(self.to, "stop")?;
        let last = self.read()?;
        self.process.wait()?;
        Ok(last)
    }

    fn read(&mut self) -> anyhow::Result<Report> {
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
    let mut next = || {
        args.next()
            .context("usage: load ENROLMENT HOSTS MS FOLDER SEED SPOOL")
    };
    let mut plan = Plan {
        enrolment: next()?.parse()?,
        token: String::new(),
        hosts: next()?.parse()?,
        interval: Duration::from_millis(next()?.parse()?),
        folder: next()?.into(),
        seed: next()?.parse()?,
        spool: next()?.parse()?,
    };
    allow_descriptors()?;
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?
        .block_on(async move {
            let mut lines = lines();
            plan.token = lines.recv().await.context("no token")?;
            let mut running = Running::start(&plan).await?;
            answer(&running.report())?;
            while let Some(line) = lines.recv().await {
                if line == "stop" {
                    answer(&running.stop().await)?;
                    return Ok(());
                }
                answer(&running.report())?;
            }
            Ok::<(), anyhow::Error>(())
        })?;
    Ok(true)
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
    tasks: JoinSet<(usize, Books)>,
    stop: CancellationToken,
    values: u64,
    ack_ms: Arc<Mutex<Vec<f64>>>,
}

impl Running {
    async fn start(plan: &Plan) -> anyhow::Result<Self> {
        let places = Arc::new(Semaphore::new(JOINING));
        let mut joining = JoinSet::new();
        for number in 1..=plan.hosts {
            let (plan, places) = (plan.clone(), Arc::clone(&places));
            joining.spawn(async move {
                let _place = places.acquire_owned().await;
                join(&plan, number).await
            });
        }
        let mut running = Self {
            agents: Vec::new(),
            tasks: JoinSet::new(),
            stop: CancellationToken::new(),
            values: 0,
            ack_ms: Arc::default(),
        };
        let mut ready = Vec::new();
        while let Some(joined) = joining.join_next().await {
            ready.push(joined??);
        }
        for (host, agent, values) in ready {
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
    }
}

/// An agent of the host with this number, joined now or in an earlier process; and the values in a sample.
async fn join(plan: &Plan, number: u64) -> anyhow::Result<(String, Agent, u64)> {
    let state = plan.folder.join(number.to_string());
    std::fs::create_dir_all(&state)?;
    let mut source = SimulatedHost::new(number);
    let (table, _) = source.sample(SystemClock.now(), &Own::default());
    let values = table.present_count() as u64;
    // A fresh one: a counter that went back would be a reset.
    let source = SimulatedHost::new(number);
    let (host, address) = identity(plan, &state, source.facts()).await?;
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
    let credentials = Credentials::on_disk(&state, address);
    let agent = Agent::new(config, credentials, Box::new(source));
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
