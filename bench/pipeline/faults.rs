//! kill -9, again and again, under load, and after each the books.
//!
//! ```text
//! bench/faults list
//! bench/faults kill-aggregator --times 50
//! ```
//!
//! After each kill the log on disk is copied and read as the next start will read it: every frame that an
//! agent knows to be durable must stand in it, once. At the end, for each life of each agent, the numbers
//! given are exactly those stored, refused or given up. The last line is one JSON object; the exit status
//! says whether every promise was kept.

mod installation;
mod load;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use clap::{Parser, ValueEnum};
use installation::{Installation, value};
use load::{Load, Plan, Report};
use muster_aggregator::{
    control::{Control, IncidentFilter},
    journal::Record,
};
use muster_proto::{
    id::Incarnation,
    log::{DiskStorage, Log, LogConfig},
};
use rustix::process::Signal;
use serde::Serialize;

/// Share of the agents that must be back before the next kill: it shall hit a working fleet.
const BACK: u64 = 90;

/// Longest wait for agents to be back, and for their last frames to be acknowledged: twice the cap of their
/// waits between connections.
const PATIENCE: Duration = Duration::from_secs(120);

/// How often the fleet is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);

#[derive(Parser)]
struct Options {
    /// What goes wrong
    scenario: Scenario,
    /// How often
    #[arg(long, default_value_t = 3)]
    times: u32,
    /// Made-up hosts, at one sample a second
    #[arg(long, default_value_t = 200)]
    hosts: u32,
    /// Seed of the moments of the kills and of what agents leave to chance
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Scenario {
    /// Name the scenarios
    List,
    /// kill -9 of the aggregator under agents that go on
    KillAggregator,
    /// kill -9 of all agents under an aggregator that goes on
    KillAgent,
}

/// The last line.
#[derive(Debug, Serialize)]
struct Outcome {
    scenario: &'static str,
    times: u32,
    seed: u64,
    hosts: u32,
    frames_stored: u64,
    /// Frames that an agent knew to be durable and the log did not hold.
    acked_lost: u64,
    /// Frames that stand in the log twice.
    duplicates: u64,
    /// Frames of which nothing is known, in lives whose agent ended cleanly or was outlived.
    unaccounted: u64,
    frames_rejected: u64,
    frames_lost: u64,
    /// Starts that found a torn tail or damage in the log and repaired it.
    repairs: u64,
    /// Most hosts at a time that were called silent while their agents ran, and incidents that said so.
    false_silent: u64,
    ready_ms_p50: u128,
    ready_ms_p99: u128,
}

fn main() -> anyhow::Result<()> {
    if load::ran_as_load()? {
        return Ok(());
    }
    let options = Options::parse();
    let name = match options.scenario {
        Scenario::List => {
            println!("kill-aggregator  kill -9 of the aggregator under agents that go on");
            println!("kill-agent       kill -9 of all agents under an aggregator that goes on");
            return Ok(());
        }
        Scenario::KillAggregator => "kill-aggregator",
        Scenario::KillAgent => "kill-agent",
    };
    let mut run = Run::start(&options, name)?;
    for time in 1..=options.times {
        run.settle()?;
        match options.scenario {
            Scenario::KillAggregator => run.kill_aggregator()?,
            _ => run.kill_agents()?,
        }
        let (lost, silent) = (run.outcome.acked_lost, run.outcome.false_silent);
        eprintln!(
            "{time} of {}: {lost} lost, {silent} falsely silent",
            options.times
        );
    }
    let outcome = run.finish()?;
    println!("{}", serde_json::to_string(&outcome)?);
    ensure!(
        outcome.acked_lost + outcome.duplicates + outcome.unaccounted + outcome.false_silent == 0,
        "a promise was broken"
    );
    Ok(())
}

struct Run {
    installation: Installation,
    plan: Plan,
    load: Option<Load>,
    random: fastrand::Rng,
    ready: Vec<Duration>,
    /// The newest report of each life that was killed.
    killed: Vec<Report>,
    outcome: Outcome,
}

impl Run {
    fn start(options: &Options, scenario: &'static str) -> anyhow::Result<Self> {
        let mut installation = Installation::make()?;
        let mut ready = Vec::new();
        let first = installation.start()?;
        if options.scenario == Scenario::KillAgent {
            ready.push(first);
        }
        let folder = installation.folder().join("agents");
        fs::create_dir(&folder)?;
        let plan = Plan {
            enrolment: installation.enrolment(),
            token: installation.token(options.hosts)?,
            hosts: options.hosts.into(),
            interval: Duration::from_secs(1),
            folder,
            seed: options.seed,
        };
        let load = Load::start(&plan)?;
        Ok(Self {
            installation,
            plan,
            load: Some(load),
            random: fastrand::Rng::with_seed(options.seed),
            ready,
            killed: Vec::new(),
            outcome: Outcome {
                scenario,
                times: options.times,
                seed: options.seed,
                hosts: options.hosts,
                frames_stored: 0,
                acked_lost: 0,
                duplicates: 0,
                unaccounted: 0,
                frames_rejected: 0,
                frames_lost: 0,
                repairs: 0,
                false_silent: 0,
                ready_ms_p50: 0,
                ready_ms_p99: 0,
            },
        })
    }

    fn load(&mut self) -> anyhow::Result<&mut Load> {
        self.load.as_mut().context("no agents run")
    }

    /// Waits until nearly all agents are back and then for a moment that nothing in the programs knows.
    fn settle(&mut self) -> anyhow::Result<()> {
        let wanted = (self.plan.hosts * BACK).div_ceil(100);
        self.look_until(|report| {
            let working = report
                .agents
                .iter()
                .filter(|agent| agent.connected && agent.durable > 0);
            working.count() as u64 >= wanted
        })?;
        let moment = Instant::now() + Duration::from_millis(self.random.u64(..1500));
        self.look_until(|_| Instant::now() >= moment)
    }

    /// Looks at agents and aggregator until `done`, and counts who is called silent.
    fn look_until(&mut self, done: impl Fn(&Report) -> bool) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let report = self.load()?.books()?;
            self.count_silent()?;
            if done(&report) {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "waited in vain: {} of {} agents connected",
                report.connected(),
                self.plan.hosts
            );
            thread::sleep(LOOK_EVERY);
        }
    }

    fn count_silent(&mut self) -> anyhow::Result<()> {
        let page = self.installation.metrics()?;
        let silent = value(&page, "muster_hosts{state=\"silent\"}");
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a small count"
        )]
        let silent = silent.context("/metrics does not say who is silent")? as u64;
        self.outcome.false_silent = self.outcome.false_silent.max(silent);
        Ok(())
    }

    fn kill_aggregator(&mut self) -> anyhow::Result<()> {
        self.installation.end(Signal::KILL)?;
        // After the kill: an acknowledgement that was still under way counts as well.
        let report = self.load()?.books()?;
        self.check_log(&report)?;
        self.ready.push(self.installation.start()?);
        Ok(())
    }

    fn kill_agents(&mut self) -> anyhow::Result<()> {
        let last = self.load()?.books()?;
        // Dropped is killed.
        drop(self.load.take());
        self.killed.push(last);
        // Another seed, or the new lives would have the old ones' numbers.
        self.plan.seed += 1;
        self.load = Some(Load::start(&self.plan)?);
        Ok(())
    }

    /// What is durable for an agent must be in the log as it lies on the disk.
    fn check_log(&mut self, report: &Report) -> anyhow::Result<()> {
        let copy = self.installation.folder().join("copy");
        let (disk, repaired) =
            read_log(&self.installation.folder().join("state").join("log"), &copy)?;
        self.outcome.repairs += u64::from(repaired);
        self.outcome.duplicates = disk.duplicates;
        self.outcome.acked_lost += acked_lost(&disk, report);
        Ok(())
    }

    /// Lets the agents finish and the aggregator stop, and closes the books.
    fn finish(mut self) -> anyhow::Result<Outcome> {
        self.settle()?;
        // All that the agents waited with is acknowledged but for the newest sample.
        self.look_until(|report| {
            let mut agents = report.agents.iter();
            agents.all(|agent| agent.produced - agent.durable - agent.rejected - agent.lost <= 1)
        })?;
        let incidents = silent_incidents(&self.installation.folder().join("state"))?;
        self.outcome.false_silent = self.outcome.false_silent.max(incidents);
        let last = self.load.take().context("no agents run")?.stop()?;
        self.installation.end(Signal::TERM)?;

        let copy = self.installation.folder().join("copy");
        let (disk, _) = read_log(&self.installation.folder().join("state").join("log"), &copy)?;
        self.outcome.duplicates = disk.duplicates;
        for report in self.killed.iter().chain([&last]) {
            self.outcome.acked_lost += acked_lost(&disk, report);
        }
        for agent in &last.agents {
            let life = disk.life(&agent.host, agent.incarnation);
            let known = life.stored.len() + life.rejected.len() + life.lost.len();
            self.outcome.unaccounted += agent.produced.abs_diff(known as u64);
            self.outcome.unaccounted += agent
                .produced
                .abs_diff(agent.durable + agent.rejected + agent.lost);
        }
        for life in disk.lives.values() {
            // Of a killed agent only the end may be missing, never something in between.
            let all: BTreeSet<u64> = [&life.stored, &life.rejected, &life.lost]
                .into_iter()
                .flatten()
                .copied()
                .collect();
            let highest = all.last().copied().unwrap_or(0);
            self.outcome.unaccounted += highest - all.len() as u64;
            self.outcome.frames_stored += life.stored.len() as u64;
            self.outcome.frames_rejected += life.rejected.len() as u64;
            self.outcome.frames_lost += life.lost.len() as u64;
        }
        self.ready.sort_unstable();
        let rank = |percent: usize| {
            let rank = (self.ready.len() * percent).div_ceil(100);
            let found = rank.checked_sub(1).and_then(|at| self.ready.get(at));
            found.map_or(0, Duration::as_millis)
        };
        (self.outcome.ready_ms_p50, self.outcome.ready_ms_p99) = (rank(50), rank(99));
        Ok(self.outcome)
    }
}

/// Incidents that ever called a host silent.
fn silent_incidents(state: &Path) -> anyhow::Result<u64> {
    let control = Control::open(state)?;
    let all = IncidentFilter {
        all: true,
        ..IncidentFilter::default()
    };
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let (incidents, _) = runtime.block_on(control.incidents(all))?;
    let silent = incidents.iter().filter(|found| found.rule == "host_silent");
    Ok(silent.count() as u64)
}

/// What the log holds of one life of an agent.
#[derive(Debug, Default)]
struct Life {
    stored: BTreeSet<u64>,
    rejected: BTreeSet<u64>,
    lost: BTreeSet<u64>,
}

/// What a log holds.
#[derive(Debug, Default)]
struct Disk {
    lives: BTreeMap<(String, Incarnation), Life>,
    duplicates: u64,
}

impl Disk {
    fn life(&self, host: &str, incarnation: u64) -> &Life {
        const NONE: &Life = &Life {
            stored: BTreeSet::new(),
            rejected: BTreeSet::new(),
            lost: BTreeSet::new(),
        };
        let key = (host.to_owned(), Incarnation(incarnation));
        self.lives.get(&key).unwrap_or(NONE)
    }
}

/// Frames that agents know to be durable and the log does not hold. Agents send in the order of their
/// numbers and the log keeps it, so what is settled is a beginning of them.
fn acked_lost(disk: &Disk, report: &Report) -> u64 {
    let missing = report.agents.iter().map(|agent| {
        let settled = agent.durable + agent.rejected + agent.lost;
        let life = disk.life(&agent.host, agent.incarnation);
        let there = life.stored.range(..=settled).count() as u64;
        agent.durable.saturating_sub(there)
    });
    missing.sum()
}

/// Reads a copy of the log, so that the next start of the aggregator finds it as the kill left it. Also
/// whether there was something to repair.
fn read_log(log: &Path, copy: &Path) -> anyhow::Result<(Disk, bool)> {
    if copy.exists() {
        fs::remove_dir_all(copy)?;
    }
    fs::create_dir(copy)?;
    for entry in fs::read_dir(log)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            fs::copy(entry.path(), copy.join(entry.file_name()))?;
        }
    }
    let (log, recovery) = Log::open(DiskStorage::open(copy)?, LogConfig::aggregator())?;
    let mut disk = Disk::default();
    for record in log.read_from(0) {
        let record = record.context("the log has a hole")?;
        let (host, record) = Record::decode(&record.payload)?;
        let (incarnation, here) = match &record {
            Record::Frame(frame) => (frame.incarnation, frame.seq..=frame.seq),
            Record::Rejected {
                incarnation, seq, ..
            } => (*incarnation, *seq..=*seq),
            Record::Gap {
                incarnation,
                first,
                last,
            } => (*incarnation, *first..=*last),
            Record::Session(_) | Record::Fin { .. } => continue,
        };
        let key = (host.to_string(), incarnation);
        let life = disk.lives.entry(key).or_default();
        match record {
            Record::Frame(frame) => {
                disk.duplicates += u64::from(!life.stored.insert(frame.seq));
            }
            Record::Rejected { .. } => life.rejected.extend(here),
            _ => life.lost.extend(here),
        }
    }
    let repaired = recovery.torn_bytes > 0 || !recovery.quarantined.is_empty();
    Ok((disk, repaired))
}
