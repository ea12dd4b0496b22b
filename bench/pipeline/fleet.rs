//! What a fleet costs its aggregator: a real aggregator process and made-up agents in another, over mTLS.
//!
//! ```text
//! bench/fleet --hosts 1000 --interval 10 --seconds 60
//! bench/fleet --hosts 1000 --interval 10 --seconds 60 --peers     Prometheus and VictoriaMetrics on the same hosts
//! bench/fleet --hosts 10000 --interval 10 --seconds 60 --questions --restart --more 50
//! ```
//!
//! The last line of the output is one JSON object. Ends with an error when a frame was dropped.

mod gate;
mod hosts;
#[expect(dead_code, reason = "the faults use the rest")]
mod installation;
mod load;
#[expect(dead_code, reason = "only the faults cut the power")]
mod loop_disk;
mod peers;
mod questions;
mod targets;

use std::{thread, time::Duration};

use anyhow::{Context as _, ensure};
use clap::Parser;
use installation::{Installation, value};
use load::{Load, Plan};
use peers::{Peer, PeerFigures, Task};
use questions::{More, Pages, Past, Restart, Top};
use rustix::process::Signal;
use serde::Serialize;
use targets::Targets;

#[derive(Parser)]
struct Options {
    /// Made-up hosts
    #[arg(long, default_value_t = 200)]
    hosts: u32,
    /// Seconds between the samples of a host
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=600))]
    interval: u32,
    /// Seconds of measuring, after three samples of each host
    #[arg(long, default_value_t = 30)]
    seconds: u32,
    /// Seed of what agents leave to chance
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Then the top ten, the pages of all hosts and the past are asked for
    #[arg(long)]
    questions: bool,
    /// Then each host has so many metrics more
    #[arg(long, default_value_t = 0)]
    more: u32,
    /// Then the aggregator is killed and started, and the agents come back
    #[arg(long)]
    restart: bool,
    /// Afterwards the same hosts are scraped by prometheus and victoria-metrics, where they are installed
    #[arg(long)]
    peers: bool,
}

/// The last line. Bytes and times are of the aggregator.
#[derive(Serialize)]
struct Figures {
    hosts: u32,
    interval_seconds: u32,
    seconds: u32,
    rounds_expected: f64,
    rounds_stored: f64,
    frames_rejected: u64,
    frames_lost: u64,
    agents_connected: u64,
    cpu_us_host_round: f64,
    cpu_ratio: f64,
    rss_kib_empty: f64,
    rss_kib: f64,
    rss_kib_host: f64,
    values_per_round: f64,
    log_bytes_per_round: f64,
    log_bytes_per_value: f64,
    ack_ms_p50: f64,
    ack_ms_p99: f64,
    acks_timed: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    top: Option<Top>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pages: Option<Pages>,
    #[serde(skip_serializing_if = "Option::is_none")]
    past: Option<Past>,
    #[serde(skip_serializing_if = "Option::is_none")]
    more: Option<More>,
    #[serde(skip_serializing_if = "Option::is_none")]
    restart: Option<Restart>,
    /// What the others used, and how many times as much.
    peers: Vec<Beside>,
}

#[derive(Serialize)]
struct Beside {
    #[serde(flatten)]
    figures: PeerFigures,
    cpu_ratio: f64,
    rss_ratio: f64,
}

/// The aggregator at a moment.
struct Moment {
    cpu_seconds: f64,
    resident_bytes: f64,
    stored: f64,
    log_bytes: f64,
}

impl Moment {
    fn of(installation: &Installation) -> anyhow::Result<Self> {
        let page = installation.metrics()?;
        let number = |name| value(&page, name).with_context(|| format!("/metrics has no {name}"));
        Ok(Self {
            cpu_seconds: number("process_cpu_seconds_total")?,
            resident_bytes: number("process_resident_memory_bytes")?,
            stored: number("muster_aggregator_frames_stored_total")?,
            log_bytes: number("muster_aggregator_log_size_bytes")?,
        })
    }
}

fn main() -> anyhow::Result<()> {
    if load::ran_as_load()? || targets::ran_as_targets()? {
        return Ok(());
    }
    let options = Options::parse();
    let mut installation = Installation::make(None)?;
    installation.start()?;
    let empty = Moment::of(&installation)?;
    eprintln!("{} hosts join", options.hosts);
    let folder = installation.agents().to_owned();
    let mut load = Load::start(&Plan {
        enrolment: installation.enrolment(),
        token: installation.token(options.hosts)?,
        hosts: options.hosts.into(),
        interval: Duration::from_secs(options.interval.into()),
        folder,
        seed: options.seed,
        spool: false,
        uplink: None,
        is_virtual: false,
        fresh_series: 0,
    })?;
    warm_up(&mut load, options.hosts)?;
    eprintln!("measuring for {} s", options.seconds);
    load.books()?;
    let before = Moment::of(&installation)?;
    thread::sleep(Duration::from_secs(options.seconds.into()));
    let after = Moment::of(&installation)?;
    let report = load.books()?;
    let answers = Answers::of(&options, &mut installation, &mut load)?;
    let last = load.stop()?;
    installation.end(Signal::TERM)?;

    let dropped = last.sum(|agent| agent.rejected + agent.lost);
    let rounds = after.stored - before.stored;
    let cpu = after.cpu_seconds - before.cpu_seconds;
    let values = count(report.values) / f64::from(options.hosts);
    let per_round = (after.log_bytes - before.log_bytes) / rounds;
    let mut ack_ms = report.ack_ms.clone();
    ack_ms.sort_unstable_by(f64::total_cmp);
    let mut figures = Figures {
        hosts: options.hosts,
        interval_seconds: options.interval,
        seconds: options.seconds,
        rounds_expected: f64::from(options.hosts) * f64::from(options.seconds)
            / f64::from(options.interval),
        rounds_stored: rounds,
        frames_rejected: last.sum(|agent| agent.rejected),
        frames_lost: last.sum(|agent| agent.lost),
        agents_connected: report.connected(),
        cpu_us_host_round: rounded(cpu * 1e6 / rounds),
        cpu_ratio: rounded(cpu / f64::from(options.seconds)),
        rss_kib_empty: empty.resident_bytes / 1024.0,
        rss_kib: after.resident_bytes / 1024.0,
        rss_kib_host: rounded(
            (after.resident_bytes - empty.resident_bytes) / 1024.0 / f64::from(options.hosts),
        ),
        values_per_round: rounded(values),
        log_bytes_per_round: rounded(per_round),
        log_bytes_per_value: rounded(per_round / values),
        ack_ms_p50: rounded(percentile(&ack_ms, 50)),
        ack_ms_p99: rounded(percentile(&ack_ms, 99)),
        acks_timed: ack_ms.len(),
        top: answers.top,
        pages: answers.pages,
        past: answers.past,
        more: answers.more,
        restart: answers.restart,
        peers: Vec::new(),
    };
    if options.peers {
        figures.peers = beside(&options, &installation, &figures)?;
    }
    println!("{}", serde_json::to_string(&figures)?);
    ensure!(dropped == 0, "{dropped} frames were dropped");
    let held = last.sum(|agent| agent.produced - agent.durable);
    ensure!(held == 0, "{held} frames were not acknowledged at the end");
    ensure!(
        report.connected() == u64::from(options.hosts),
        "not all agents were connected"
    );
    Ok(())
}

/// The phases behind the load.
#[derive(Default)]
struct Answers {
    top: Option<Top>,
    pages: Option<Pages>,
    past: Option<Past>,
    more: Option<More>,
    restart: Option<Restart>,
}

impl Answers {
    fn of(
        options: &Options,
        installation: &mut Installation,
        load: &mut Load,
    ) -> anyhow::Result<Self> {
        let mut all = Self::default();
        let tell = |phase: &dyn std::fmt::Debug| eprintln!("{phase:?}");
        if options.questions {
            all.top = Some(questions::top(installation, load)?);
            tell(&all.top);
            all.pages = Some(questions::pages(installation, load)?);
            tell(&all.pages);
            all.past = Some(questions::past(installation, load)?);
            tell(&all.past);
        }
        if options.more > 0 {
            let fleet = (options.hosts, options.interval);
            all.more = Some(questions::more(installation, load, fleet, options.more)?);
            tell(&all.more);
        }
        if options.restart {
            all.restart = Some(questions::restart(installation, load, options.hosts)?);
            tell(&all.restart);
        }
        Ok(all)
    }
}

/// The others on the same hosts.
fn beside(
    options: &Options,
    installation: &Installation,
    ours: &Figures,
) -> anyhow::Result<Vec<Beside>> {
    load::allow_descriptors()?;
    let targets = Targets::start()?;
    let task = Task {
        targets: &targets,
        hosts: options.hosts,
        interval: options.interval,
        seconds: options.seconds,
    };
    let mut all = Vec::new();
    for peer in Peer::ALL {
        if let Some(figures) = peer.measure(installation.folder(), &task)? {
            all.push(Beside {
                cpu_ratio: rounded(figures.cpu_us_host_round / ours.cpu_us_host_round),
                rss_ratio: rounded(figures.rss_kib_host / ours.rss_kib_host),
                figures,
            });
        }
    }
    Ok(all)
}

/// Waits until every host has three samples acknowledged.
fn warm_up(load: &mut Load, hosts: u32) -> anyhow::Result<()> {
    loop {
        let report = load.books()?;
        let warm = report.agents.iter().filter(|agent| agent.durable >= 3);
        let warm = warm.count();
        if warm as u64 == u64::from(hosts) {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(200));
    }
}

fn percentile(sorted: &[f64], percent: usize) -> f64 {
    let rank = (sorted.len() * percent).div_ceil(100);
    let found = rank.checked_sub(1).and_then(|at| sorted.get(at));
    found.copied().unwrap_or(f64::NAN)
}

/// Two places after the point are more than the measurement is worth.
fn rounded(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
fn count(value: u64) -> f64 {
    value as f64
}
