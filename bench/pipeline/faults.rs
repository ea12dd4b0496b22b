//! Faults under load, again and again, and after each the books.
//!
//! ```text
//! bench/faults list
//! bench/faults kill-aggregator --times 50
//! ```
//!
//! After each kill or power cut the log on disk is copied and read as the next start will read it: every frame
//! that an agent knows to be durable must stand in it, once. At the end, for each life of each agent, the
//! numbers given are exactly those stored, refused or given up. The last line is one JSON object; the exit
//! status says whether every promise was kept.

mod installation;
mod load;
mod loop_disk;
mod oracle;
mod run;
mod scenarios;

use std::time::Duration;

use clap::{Parser, ValueEnum};
use installation::DiskOf;
use run::{Run, Setting};

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
    /// Seconds between the samples of a host
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=600))]
    interval: u32,
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
}

impl Scenario {
    fn disk(self) -> Option<DiskOf> {
        match self {
            Self::PowerAggregator => Some(DiskOf::Aggregator),
            Self::PowerAgent => Some(DiskOf::Agents),
            _ => None,
        }
    }

    fn happen(self, run: &mut Run, options: &Options) -> anyhow::Result<()> {
        match self {
            Self::List => Ok(()),
            Self::KillAggregator => run.kill_aggregator(),
            Self::KillAgent => run.kill_agents(|_| Ok(())),
            Self::PowerAggregator => scenarios::power_cut_of_aggregator(run),
            Self::PowerAgent => scenarios::power_cut_of_agents(run),
            Self::Chaos => scenarios::something(run),
            Self::Storm => scenarios::storm(run),
            Self::SilentConnections => scenarios::silent_connections(run, options.connections),
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
    let mut run = Run::start(&Setting {
        scenario: described(options.scenario).0,
        hosts: options.hosts,
        interval: Duration::from_secs(options.interval.into()),
        seed: options.seed,
        times: options.times,
        disk: options.scenario.disk(),
        // A spool is a thread.
        spool: options.hosts <= 1_000,
    })?;
    for time in 1..=options.times {
        run.settle()?;
        options.scenario.happen(&mut run, &options)?;
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
