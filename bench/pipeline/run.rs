//! A fleet of made-up agents on a real aggregator, to which things happen, and the books at the end.

use std::{
    collections::BTreeMap,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use rustix::process::Signal;
use serde::Serialize;

use crate::{
    installation::{DiskOf, Installation, value},
    load::{Load, Plan, Report},
    oracle::{Disk, silent_incidents},
};

/// Share of the agents that must be back before the next fault: it shall hit a working fleet.
const BACK: u64 = 90;

/// Longest wait for agents to be back, and for their last frames to be acknowledged: twice the cap of their
/// waits between connections.
const PATIENCE: Duration = Duration::from_secs(120);

/// How often the fleet is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// The last line.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Outcome {
    pub scenario: String,
    pub times: u32,
    pub seed: u64,
    pub hosts: u32,
    pub frames_stored: u64,
    /// Frames that an agent knew to be durable and the log did not hold.
    pub acked_lost: u64,
    /// Frames that stand in the log twice.
    pub duplicates: u64,
    /// Frames of which nothing is known, in lives whose agent ended cleanly or was outlived.
    pub unaccounted: u64,
    pub frames_rejected: u64,
    pub frames_lost: u64,
    /// Most frames that the end of a killed life is missing.
    pub tail_lost_max: u64,
    /// Starts that found a torn tail or damage in the log and repaired it by themselves.
    pub repairs: u64,
    /// Most hosts at a time that were called silent while their agents ran, and incidents that said so.
    pub false_silent: u64,
    pub ready_ms_p50: u128,
    pub ready_ms_p99: u128,
    /// What only this scenario measures.
    #[serde(flatten)]
    pub more: BTreeMap<&'static str, f64>,
}

impl Outcome {
    /// An error if a promise was broken.
    pub(crate) fn judge(&self) -> anyhow::Result<()> {
        let broken = self.acked_lost + self.duplicates + self.unaccounted + self.false_silent;
        ensure!(broken == 0, "a promise was broken");
        Ok(())
    }
}

/// What a run is made with.
pub(crate) struct Setting {
    pub scenario: String,
    pub hosts: u32,
    pub interval: Duration,
    pub seed: u64,
    pub times: u32,
    /// Whose disk can lose its power.
    pub disk: Option<DiskOf>,
    /// Whether agents keep a spool.
    pub spool: bool,
}

/// The fleet. Fields are dropped in this order: agents first, then the aggregator with its folders.
pub(crate) struct Run {
    load: Option<Load>,
    pub installation: Installation,
    plan: Plan,
    /// Moments that nothing in the programs knows.
    pub random: fastrand::Rng,
    ready: Vec<Duration>,
    /// The newest report of each life that was killed.
    killed: Vec<Report>,
    pub outcome: Outcome,
}

impl Run {
    pub(crate) fn start(setting: &Setting) -> anyhow::Result<Self> {
        let mut installation = Installation::make(setting.disk)?;
        installation.start()?;
        let plan = Plan {
            enrolment: installation.enrolment(),
            token: installation.token(setting.hosts)?,
            hosts: setting.hosts.into(),
            interval: setting.interval,
            folder: installation.agents().to_owned(),
            seed: setting.seed,
            spool: setting.spool,
        };
        let load = Load::start(&plan)?;
        Ok(Self {
            load: Some(load),
            installation,
            plan,
            random: fastrand::Rng::with_seed(setting.seed),
            ready: Vec::new(),
            killed: Vec::new(),
            outcome: Outcome {
                scenario: setting.scenario.clone(),
                times: setting.times,
                seed: setting.seed,
                hosts: setting.hosts,
                ..Outcome::default()
            },
        })
    }

    /// The agents.
    pub(crate) fn load(&mut self) -> anyhow::Result<&mut Load> {
        self.load.as_mut().context("no agents run")
    }

    /// Waits until nearly all agents are back and then for a moment that nothing in the programs knows.
    pub(crate) fn settle(&mut self) -> anyhow::Result<()> {
        let wanted = (self.plan.hosts * BACK).div_ceil(100);
        self.look_until(|report| {
            let working = report
                .agents
                .iter()
                .filter(|agent| agent.connected && agent.durable > 0);
            working.count() as u64 >= wanted
        })?;
        let moment = Duration::from_millis(self.random.u64(..1500));
        self.pass(moment)
    }

    /// Lets time pass under load, looking on.
    pub(crate) fn pass(&mut self, time: Duration) -> anyhow::Result<()> {
        let until = Instant::now() + time;
        self.look_until(|_| Instant::now() >= until)
    }

    /// Looks at agents and aggregator until `done`, and counts who is called silent.
    pub(crate) fn look_until(&mut self, done: impl Fn(&Report) -> bool) -> anyhow::Result<()> {
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

    /// kill -9 of the aggregator, a look at what it left, and a new one.
    pub(crate) fn kill_aggregator(&mut self) -> anyhow::Result<()> {
        self.installation.end(Signal::KILL)?;
        // After the kill: an acknowledgement that was still under way counts as well.
        let report = self.load()?.books()?;
        self.check_log(&report)?;
        self.start_aggregator()
    }

    /// Starts the aggregator; the time counts.
    pub(crate) fn start_aggregator(&mut self) -> anyhow::Result<()> {
        self.ready.push(self.installation.start()?);
        Ok(())
    }

    /// kill -9 of all agents; `between` happens to what they left, then they come back with new lives.
    pub(crate) fn kill_agents(
        &mut self,
        between: impl FnOnce(&mut Self) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let last = self.load()?.books()?;
        // Dropped is killed.
        drop(self.load.take());
        self.killed.push(last);
        between(self)?;
        // Another seed, or the new lives would have the old ones' numbers.
        self.plan.seed += 1;
        self.load = Some(Load::start(&self.plan)?);
        Ok(())
    }

    /// What is durable for an agent must be in the log as it lies on the disk.
    pub(crate) fn check_log(&mut self, report: &Report) -> anyhow::Result<()> {
        let disk = self.read_log()?;
        self.outcome.repairs += u64::from(disk.repaired);
        self.outcome.duplicates = disk.duplicates;
        self.outcome.acked_lost += disk.acked_lost(&report.agents);
        Ok(())
    }

    fn read_log(&self) -> anyhow::Result<Disk> {
        let copy = self.installation.folder().join("copy");
        Disk::read(&self.installation.state().join("log"), &copy)
    }

    /// Lets the agents finish and the aggregator stop, and closes the books.
    pub(crate) fn finish(mut self) -> anyhow::Result<Outcome> {
        self.settle()?;
        // All that the agents waited with is acknowledged but for the newest sample.
        self.look_until(|report| {
            report.agents.iter().all(|agent| {
                let open = agent.produced - agent.durable - agent.rejected - agent.lost;
                open <= 1 && agent.left_by_earlier_lives == 0
            })
        })?;
        let incidents = silent_incidents(self.installation.state())?;
        self.outcome.false_silent = self.outcome.false_silent.max(incidents);
        let last = self.load.take().context("no agents run")?.stop()?;
        self.installation.end(Signal::TERM)?;

        let disk = self.read_log()?;
        self.outcome.duplicates = disk.duplicates;
        for report in &self.killed {
            self.outcome.acked_lost += disk.acked_lost(&report.agents);
            for agent in &report.agents {
                let known = disk.life(&agent.host, agent.incarnation).known();
                let tail = agent
                    .produced
                    .saturating_sub(known.last().copied().unwrap_or(0));
                self.outcome.tail_lost_max = self.outcome.tail_lost_max.max(tail);
            }
        }
        self.outcome.acked_lost += disk.acked_lost(&last.agents);
        for agent in &last.agents {
            let known = disk.life(&agent.host, agent.incarnation).known().len() as u64;
            self.outcome.unaccounted += agent.produced.abs_diff(known);
            self.outcome.unaccounted += agent
                .produced
                .abs_diff(agent.durable + agent.rejected + agent.lost);
        }
        for life in disk.lives.values() {
            // Of a killed agent only the end may be missing, never something in between.
            let known = life.known();
            let highest = known.last().copied().unwrap_or(0);
            self.outcome.unaccounted += highest - known.len() as u64;
            self.outcome.frames_stored += life.stored.len() as u64;
            self.outcome.frames_rejected += life.rejected.len() as u64;
            self.outcome.frames_lost += life.lost.len() as u64;
        }
        self.ready.sort_unstable();
        self.outcome.ready_ms_p50 = rank(&self.ready, 50).as_millis();
        self.outcome.ready_ms_p99 = rank(&self.ready, 99).as_millis();
        Ok(self.outcome)
    }
}

/// The value that so many percent do not exceed; zero of none.
pub(crate) fn rank(sorted: &[Duration], percent: usize) -> Duration {
    let rank = (sorted.len() * percent).div_ceil(100);
    let found = rank.checked_sub(1).and_then(|at| sorted.get(at));
    found.copied().unwrap_or_default()
}
