//! A fleet of made-up agents on a real aggregator, to which things happen, and the books at the end.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use muster_agent::identity::Identity;
use rustix::process::Signal;
use serde::Serialize;

use crate::{
    installation::{DiskOf, Installation, value},
    load::{AgentBooks, Load, Order, Plan, Report},
    oracle::{Disk, count, silent_incidents},
    proxy::{Proxy, Weather},
};

/// Share of the agents that must be back before the next fault: it shall hit a working fleet.
const BACK: u64 = 90;

/// Longest wait for agents to be back, and for their last frames to be acknowledged: twice the cap of their
/// waits between connections.
const PATIENCE: Duration = Duration::from_secs(120);

/// How often the fleet is looked at, and how often while the next fault waits for it.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Of a fleet looks are at least so far apart for each of its agents: 0.5 s for 10,000.
const LOOK_AT_ONE: Duration = Duration::from_micros(50);
const LOOK_CLOSELY: Duration = Duration::from_millis(20);

/// Of the agents, in percent, that many must have something acknowledged since the last fault before the next one
/// of a quick series strikes.
const WORKED: u64 = 10;

/// Then it strikes within this time.
const STRIKE_MS: u64 = 300;

/// After so many faults of a quick series one waits for the whole fleet, and the log is read anew from its
/// beginning.
pub(crate) const BREATHE_EVERY: u32 = 25;

/// Hosts that may join beside the fleet.
const GUESTS: u32 = 4;

/// The last line.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Outcome {
    pub scenario: String,
    pub times: u32,
    pub seed: u64,
    pub hosts: u32,
    /// Processes' lives that ended by kill -9 or with the power; agents that share one process count each.
    pub kills: u64,
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
    /// Whether a proxy stands between the agents and the aggregator.
    pub proxy: bool,
    /// Whether the aggregator has a clock of its own.
    pub own_clock: bool,
    /// Whether agents are to live through times that nobody waits for.
    pub is_virtual: bool,
    /// Whether hosts may rightly be called silent.
    pub may_be_silent: bool,
}

/// The fleet. Fields are dropped in this order: agents first, then the aggregator with its folders, then what
/// stands between them.
pub(crate) struct Run {
    load: Option<Load>,
    pub installation: Installation,
    proxy: Option<Proxy>,
    plan: Plan,
    may_be_silent: bool,
    /// What the aggregator's wall clock is ahead of the machine's.
    ahead_seconds: i64,
    /// Hosts that are shut out, with what they still had to say.
    banned: BTreeSet<String>,
    /// Moments that nothing in the programs knows.
    pub random: fastrand::Rng,
    ready: Vec<Duration>,
    /// The newest report of each life that was killed.
    killed: Vec<Report>,
    /// What was read of the log so far.
    disk: Disk,
    /// Reads of the log since it was last read from its beginning.
    reads: u32,
    /// Frames that were durable at the last fault, over the lives that go on.
    durable_before: u64,
    pub outcome: Outcome,
}

impl Run {
    pub(crate) fn start(setting: &Setting) -> anyhow::Result<Self> {
        let mut installation = Installation::make(setting.disk)?;
        if setting.own_clock {
            installation.fake_clock()?;
        }
        installation.start()?;
        let proxy = setting
            .proxy
            .then(|| Proxy::before(installation.uplink(), setting.seed));
        let proxy = proxy.transpose()?;
        let plan = Plan {
            enrolment: installation.enrolment(),
            token: installation.token(setting.hosts + GUESTS)?,
            hosts: setting.hosts.into(),
            interval: setting.interval,
            folder: installation.agents().to_owned(),
            seed: setting.seed,
            spool: setting.spool,
            uplink: proxy.as_ref().map(Proxy::address),
            is_virtual: setting.is_virtual,
            fresh_series: 0,
        };
        let load = Load::start(&plan)?;
        Ok(Self {
            load: Some(load),
            installation,
            proxy,
            plan,
            may_be_silent: setting.may_be_silent,
            ahead_seconds: 0,
            banned: BTreeSet::new(),
            random: fastrand::Rng::with_seed(setting.seed),
            ready: Vec::new(),
            killed: Vec::new(),
            disk: Disk::default(),
            reads: 0,
            durable_before: 0,
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

    /// What the agents are with, for others like them.
    pub(crate) fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Gives the agents an order.
    pub(crate) fn order(&mut self, order: Order) -> anyhow::Result<Report> {
        self.load()?.order(order)
    }

    /// Changes the weather between agents and aggregator.
    pub(crate) fn weather(&self, weather: Weather) -> anyhow::Result<()> {
        let proxy = self.proxy.as_ref().context("no proxy stands in between")?;
        proxy.set(weather);
        Ok(())
    }

    /// This host does not come back.
    pub(crate) fn ban(&mut self, host: &str) {
        self.banned.insert(host.to_owned());
    }

    /// Where the host with this identity keeps it.
    pub(crate) fn state_of(&self, host: &str) -> anyhow::Result<PathBuf> {
        let folders = (1..=self.plan.hosts).map(|number| self.plan.folder.join(number.to_string()));
        let mut folders = folders.filter(|folder| {
            Identity::load(folder).is_ok_and(|identity| identity.host_id.to_string() == host)
        });
        folders.next().context("no host of this fleet")
    }

    /// Lets time pass without a look at the agents, whose times of acknowledgement stay to be read.
    pub(crate) fn pass_unseen(&mut self, time: Duration) -> anyhow::Result<()> {
        let until = Instant::now() + time;
        while Instant::now() < until {
            self.count_silent()?;
            thread::sleep(LOOK_EVERY);
        }
        Ok(())
    }

    /// The aggregator's wall clock jumps by so many seconds.
    pub(crate) fn clocks_ahead(&mut self, seconds: i64) -> anyhow::Result<()> {
        self.ahead_seconds += seconds;
        self.installation.set_clock(self.ahead_seconds)
    }

    /// Notes the worst of what only this scenario measures.
    pub(crate) fn worst(&mut self, name: &'static str, value: f64) {
        let kept = self.outcome.more.entry(name).or_insert(value);
        *kept = kept.max(value);
    }

    /// Adds to what only this scenario counts.
    pub(crate) fn add(&mut self, name: &'static str, value: f64) {
        *self.outcome.more.entry(name).or_insert(0.0) += value;
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

    /// Waits until some of the fleet has worked since the last fault, and for a moment that nothing knows: of a
    /// series of faults the next one strikes while most are still coming back.
    pub(crate) fn soon(&mut self) -> anyhow::Result<()> {
        let wanted = self.durable_before + (self.plan.hosts * WORKED).div_ceil(100);
        let worked = |report: &Report| report.sum(|agent| agent.durable) >= wanted;
        self.look(LOOK_CLOSELY, worked)?;
        thread::sleep(Duration::from_millis(self.random.u64(..STRIKE_MS)));
        Ok(())
    }

    /// Looks at agents and aggregator until `done`, and counts who is called silent.
    pub(crate) fn look_until(&mut self, done: impl Fn(&Report) -> bool) -> anyhow::Result<()> {
        self.look(LOOK_EVERY, done)
    }

    fn look(&mut self, every: Duration, done: impl Fn(&Report) -> bool) -> anyhow::Result<()> {
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
            thread::sleep(self.look_every(every));
        }
    }

    /// How often the agents may be asked how they stand: an answer names each of them, and of thousands it must not be
    /// what they spend their time with.
    pub(crate) fn look_every(&self, wished: Duration) -> Duration {
        let of_all = LOOK_AT_ONE * u32::try_from(self.plan.hosts).unwrap_or(u32::MAX);
        wished.max(of_all)
    }

    fn count_silent(&mut self) -> anyhow::Result<()> {
        if self.may_be_silent {
            return Ok(());
        }
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
        self.outcome.kills += 1;
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
        self.outcome.kills += last.agents.len() as u64;
        self.durable_before = 0;
        self.killed.push(last);
        between(self)?;
        // Another seed, or the new lives would have the old ones' numbers.
        self.plan.seed += 1;
        self.load = Some(Load::start(&self.plan)?);
        Ok(())
    }

    /// What is durable for an agent must be in the log as it lies on the disk.
    pub(crate) fn check_log(&mut self, report: &Report) -> anyhow::Result<()> {
        self.reads += 1;
        if self.reads >= BREATHE_EVERY {
            self.disk = self.read_log()?;
            self.reads = 0;
        } else {
            let (log, copy) = self.log_and_copy();
            self.disk.read_on(&log, &copy)?;
        }
        self.durable_before = report.sum(|agent| agent.durable);
        self.outcome.repairs += u64::from(self.disk.repaired);
        self.outcome.duplicates = self.disk.duplicates;
        self.outcome.acked_lost += self.disk.acked_lost(&report.agents);
        Ok(())
    }

    fn log_and_copy(&self) -> (PathBuf, PathBuf) {
        let log = self.installation.state().join("log");
        (log, self.installation.folder().join("copy"))
    }

    fn read_log(&self) -> anyhow::Result<Disk> {
        let (log, copy) = self.log_and_copy();
        Disk::read(&log, &copy)
    }

    /// Lets the agents finish and the aggregator stop, and closes the books.
    pub(crate) fn finish(mut self) -> anyhow::Result<Outcome> {
        self.settle()?;
        // All that the agents waited with is acknowledged but for the newest sample.
        let banned = self.banned.clone();
        self.look_until(|report| {
            let mut agents = report.agents.iter();
            agents.all(|agent| {
                let open = agent.produced - agent.durable - agent.rejected - agent.lost;
                let done = open <= 1 && agent.left_by_earlier_lives == Some(0);
                done || banned.contains(&agent.host)
            })
        })?;
        if !self.may_be_silent {
            let incidents = silent_incidents(self.installation.state())?;
            self.outcome.false_silent = self.outcome.false_silent.max(incidents);
        }
        let last = self.load.take().context("no agents run")?.stop()?;
        self.installation.end(Signal::TERM)?;

        let disk = self.read_log()?;
        self.outcome.duplicates = disk.duplicates;
        for report in &self.killed {
            self.outcome.acked_lost += disk.acked_lost(&report.agents);
            for agent in &report.agents {
                let known = disk.known(&agent.host, agent.incarnation);
                let tail = agent.produced.saturating_sub(known.last().unwrap_or(0));
                self.outcome.tail_lost_max = self.outcome.tail_lost_max.max(tail);
            }
        }
        self.outcome.acked_lost += disk.acked_lost(&last.agents);
        let heard = |agent: &&AgentBooks| !self.banned.contains(&agent.host);
        for agent in last.agents.iter().filter(heard) {
            let known = count(&disk.known(&agent.host, agent.incarnation));
            self.outcome.unaccounted += agent.produced.abs_diff(known);
            self.outcome.unaccounted += agent
                .produced
                .abs_diff(agent.durable + agent.rejected + agent.lost);
        }
        for life in disk.lives.values() {
            // Of a killed agent only the end may be missing, never something in between.
            let known = life.known();
            self.outcome.unaccounted += known.last().unwrap_or(0) - count(&known);
            self.outcome.frames_stored += count(&life.stored);
            self.outcome.frames_rejected += count(&life.rejected);
            self.outcome.frames_lost += count(&life.lost);
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
