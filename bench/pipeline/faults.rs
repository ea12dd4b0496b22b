//! Faults under load, again and again, and after each the books.
//!
//! ```text
//! bench/faults list
//! bench/faults kill-aggregator --times 50
//! ```
//!
//! After each kill or power cut the log on disk is copied and read as the next start will read it: every frame
//! that an agent knows to be durable must stand in it, once. Of a series of kills the next one strikes as soon as
//! some agents have something acknowledged again, while the others are still coming back; one in twenty-five waits
//! for all. Then the log is read from its beginning too, and otherwise only what is new in it. At the end, for each life of each agent, the
//! numbers given are exactly those stored, refused or given up. The last line is one JSON object; the exit
//! status says whether every promise was kept.

mod causes;
mod disks;
mod gate;
mod hostile;
mod hosts;
#[expect(dead_code, reason = "bench/fleet asks the rest")]
mod installation;
mod intruders;
mod load;
mod loop_disk;
mod network;
mod oracle;
mod proxy;
mod run;
mod scenarios;
mod simulation;

use std::time::{Duration, Instant};

use anyhow::ensure;

use clap::{Parser, ValueEnum};
use installation::DiskOf;
use intruders::Peer;
use run::{BREATHE_EVERY, Run, Setting};

#[derive(Parser)]
struct Options {
    /// What goes wrong
    scenario: Scenario,
    /// How often
    #[arg(long, default_value_t = 3)]
    times: u32,
    /// Made-up hosts
    #[arg(long, default_value_t = 200)]
    hosts: u32,
    /// Seconds between the samples of a host [default: 1; in a partition, and in a storm of more than 1,000, 10]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=600))]
    interval: Option<u32>,
    /// Series of a host that floods the fleet with them
    #[arg(long, default_value_t = 1_000_000)]
    series: u32,
    /// How long a partition lasts for the agents
    #[arg(long, default_value_t = 24, value_parser = clap::value_parser!(u64).range(1..=168))]
    hours: u64,
    /// Connections that say nothing
    #[arg(long, default_value_t = 5_000)]
    connections: u32,
    /// Seed of the moments of the faults and of what agents leave to chance
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
    /// Power cut of the aggregator's disk (root)
    PowerAggregator,
    /// Power cut of the disk with the agents' spools (root)
    PowerAgent,
    /// Kills, stops and pauses of both sides, by chance
    Chaos,
    /// kill -9 of the aggregator, and how fast the whole fleet is back
    Storm,
    /// Connections that say nothing or a byte, beside agents that work
    SilentConnections,
    /// All agents are cut off for a day, which passes as fast as their spools take it
    Partition,
    /// Clocks of agents and aggregator jump by minutes to years; hosts sleep (needs libfaketime)
    Clocks,
    /// A network that delays, cuts to bytes, flips, swallows, half closes or resets
    Proxy,
    /// A host with a million series, beside agents that work
    HostileSeries,
    /// Hosts are banned while they send, and come back with resumed sessions of TLS
    Revoke,
    /// Peers without a certificate, with one of their own making, or with one for another door
    WrongIdentity,
    /// A joined host that opens streams and resets them as fast as it can
    RapidReset,
    /// A joined host that sends frames and messages that are too large
    Oversized,
    /// Each operation of a simulated disk fails, once and for ever, under the log and under the spool
    Disk,
    /// Real agents that are stopped, killed, paused, cut off, with wrong clocks and certificates: what is said of each
    /// (needs libfaketime)
    Causes,
    /// Whole runs in virtual time from one seed each: kills, power cuts, partitions, failing disks, clocks
    Simulation,
}

/// Hosts up to which each may have a thread and a sample a second.
const LARGE: u32 = 1_000;

/// Hostile peers in one repetition.
const PEERS: u32 = 30;

impl Scenario {
    fn disk(self) -> Option<DiskOf> {
        match self {
            Self::PowerAggregator => Some(DiskOf::Aggregator),
            Self::PowerAgent => Some(DiskOf::Agents),
            _ => None,
        }
    }

    fn setting(self, options: &Options) -> Setting {
        let is_large = self == Self::Storm && options.hosts > LARGE;
        let interval = if self == Self::Partition || is_large {
            10
        } else {
            1
        };
        Setting {
            scenario: described(self).0,
            hosts: options.hosts,
            interval: Duration::from_secs(options.interval.unwrap_or(interval).into()),
            seed: options.seed,
            times: options.times,
            disk: self.disk(),
            // A spool is a thread.
            spool: options.hosts <= LARGE,
            proxy: self == Self::Proxy,
            own_clock: matches!(self, Self::Partition | Self::Clocks),
            is_virtual: self == Self::Partition,
            // Of a series of kills some agents are hit again and again before they were heard once.
            may_be_silent: matches!(self, Self::Partition | Self::Proxy | Self::KillAgent),
        }
    }

    /// Whether a fault of this kind may strike a fleet that is still coming back from the one before.
    fn is_quick(self) -> bool {
        matches!(self, Self::KillAggregator | Self::KillAgent)
    }

    fn happen(self, run: &mut Run, options: &Options, time: u32) -> anyhow::Result<()> {
        match self {
            Self::List | Self::Disk | Self::Simulation | Self::Causes => Ok(()),
            Self::KillAggregator => run.kill_aggregator(),
            Self::KillAgent => run.kill_agents(|_| Ok(())),
            Self::PowerAggregator => scenarios::power_cut_of_aggregator(run),
            Self::PowerAgent => scenarios::power_cut_of_agents(run),
            Self::Chaos => scenarios::something(run),
            Self::Storm => scenarios::storm(run),
            Self::SilentConnections => scenarios::silent_connections(run, options.connections),
            Self::Partition => network::partition(run, options.hours),
            Self::Clocks => network::clocks(run, time),
            Self::Proxy => network::weather(run, time),
            Self::HostileSeries => hostile::series(run, options.series),
            Self::Revoke => hostile::revoke(run, time),
            Self::WrongIdentity => intruders::meet(run, Peer::WrongIdentity, PEERS),
            Self::RapidReset => intruders::meet(run, Peer::RapidReset, PEERS),
            Self::Oversized => intruders::meet(run, Peer::Oversized, PEERS),
        }
    }
}

/// The name on the command line and what it does.
fn described(scenario: Scenario) -> (String, String) {
    let value = scenario.to_possible_value();
    let help = value.as_ref().and_then(|value| value.get_help());
    let help = help.map(ToString::to_string).unwrap_or_default();
    (
        value
            .map(|value| value.get_name().to_owned())
            .unwrap_or_default(),
        help,
    )
}

/// Fails every operation of a disk.
fn sweep(options: &Options) -> anyhow::Result<()> {
    let swept = disks::sweep(options.seed)?;
    let mut line = serde_json::to_value(swept)?;
    line["scenario"] = described(options.scenario).0.into();
    line["seed"] = options.seed.into();
    println!("{line}");
    Ok(())
}

/// What is said of silent hosts, as often as asked.
fn causes(options: &Options) -> anyhow::Result<()> {
    for seed in (options.seed..).take(options.times as usize) {
        let line = causes::run(seed)?;
        println!("{line}");
        ensure!(line["not_right"] == 0, "a cause was not right");
    }
    Ok(())
}

/// Of so many runs one is made twice, to see that a seed is all that decides; and its agents are cut off for minutes.
const REPLAY_EVERY: u64 = 10;

/// Runs of as many seeds as there are to be times.
fn simulate(options: &Options) -> anyhow::Result<()> {
    let stage = simulation::Stage::make()?;
    let began = Instant::now();
    let mut total = simulation::Seen::default();
    let (mut broken, mut replayed, mut differ) = (0_u32, 0_u32, 0_u32);
    let mut fresh = Duration::ZERO;
    for seed in (options.seed..).take(options.times as usize) {
        let seen = match simulation::run(&stage, seed) {
            Ok(seen) => seen,
            Err(error) => {
                broken += 1;
                eprintln!("{error:#}");
                continue;
            }
        };
        if options.times < 10 {
            eprintln!("seed {seed}: {:016x}", seen.hash);
        }
        if seed % REPLAY_EVERY == 0 {
            match simulation::partition(&stage, seed) {
                Ok(took) => fresh = fresh.max(took),
                Err(error) => {
                    broken += 1;
                    eprintln!("{error:#}");
                }
            }
            replayed += 1;
            let again = simulation::run(&stage, seed)?;
            if again != seen {
                differ += 1;
                eprintln!("seed {seed} came out twice, and not the same");
            }
        }
        total.add(&seen);
    }
    let line = serde_json::json!({
        "scenario": described(options.scenario).0,
        "times": options.times,
        "seed": options.seed,
        "broken": broken,
        "replayed": replayed,
        "replays_that_differ": differ,
        "fresh_after_partition_s_max": fresh.as_secs_f64(),
        "frames_stored": total.stored,
        "frames_lost": total.lost,
        "frames_rejected": total.rejected,
        "refusals_forgotten": total.refusals_forgotten,
        "killed_missing_most": total.killed_missing,
        "agent_lives": total.agent_lives,
        "aggregator_lives": total.aggregator_lives,
        "hash": format!("{:016x}", total.hash),
        "seconds": began.elapsed().as_secs_f64(),
    });
    println!("{line}");
    ensure!(broken == 0, "a promise was broken");
    ensure!(differ == 0, "a seed does not decide all");
    Ok(())
}

fn main() -> anyhow::Result<()> {
    if load::ran_as_load()? {
        return Ok(());
    }
    let options = Options::parse();
    if options.scenario == Scenario::List {
        for &scenario in Scenario::value_variants()
            .iter()
            .filter(|known| **known != Scenario::List)
        {
            let (name, help) = described(scenario);
            println!("{name:<20} {help}");
        }
        return Ok(());
    }
    match options.scenario {
        Scenario::Disk => return sweep(&options),
        Scenario::Simulation => return simulate(&options),
        Scenario::Causes => return causes(&options),
        _ => {}
    }
    let mut run = Run::start(&options.scenario.setting(&options))?;
    for time in 1..=options.times {
        if options.scenario.is_quick() && time % BREATHE_EVERY != 1 {
            run.soon()?;
        } else {
            run.settle()?;
        }
        options.scenario.happen(&mut run, &options, time)?;
        let (lost, silent) = (run.outcome.acked_lost, run.outcome.false_silent);
        eprintln!(
            "{time} of {}: {lost} lost, {silent} falsely silent",
            options.times
        );
    }
    let outcome = run.finish()?;
    println!("{}", serde_json::to_string(&outcome)?);
    outcome.judge()
}
