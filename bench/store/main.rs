//! What history costs: bytes a sample on disk, bytes written for each that stays, CPU of taking and of reading.
//!
//! ```text
//! bench/history --hosts 200 --interval 10 --hours 26        made-up hosts, as fast as it goes
//! bench/history --live 1800                                 this machine, once a second, in real time
//! ```
//!
//! Frames are encoded as agents do and go the way of the aggregator's history thread: decoded from their chain,
//! appended, written, packed. The last line is one JSON object.

use std::{
    env, fs,
    ops::ControlFlow,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use muster_agent::{
    LiveHost, Source, collect::CollectConfig, host::HostRoot, simulate::SimulatedHost,
    telemetry::Own,
};
use muster_aggregator::{
    fleet::{
        host::{FrameIn, Lane},
        names::Names,
    },
    history::{
        EmbeddedStore, GiveUp, HistoryConfig, SampleQuery, SampleStore as _, Tier, chains::Chains,
    },
    journal::Record,
};
use muster_proto::{
    codec::{Changes, Encoder},
    id::{HostId, Incarnation},
    log::DiskStorage,
    time::{Clock as _, SystemClock, Timestamp},
};

/// An agent sends a key frame after so many others, or after ten minutes.
const KEY_EVERY: u64 = 360;
const KEY_SECONDS: u64 = 600;

/// What stands before each record of the log.
const RECORD_HEADER: u64 = 20;

struct Host {
    id: HostId,
    source: Box<dyn Source>,
    encoder: Encoder,
    chains: Chains,
    seq: u64,
}

struct Options {
    hosts: u64,
    interval: u64,
    ticks: u64,
    live: bool,
}

fn options() -> anyhow::Result<Options> {
    let mut found = Options {
        hosts: 50,
        interval: 10,
        ticks: 0,
        live: false,
    };
    let mut hours = 26;
    let mut words = env::args().skip(1);
    while let Some(word) = words.next() {
        let value = words.next().context("every option has a value")?;
        let value: u64 = value.parse().with_context(|| format!("{word} {value}"))?;
        match word.as_str() {
            "--hosts" => found.hosts = value,
            "--interval" => found.interval = value.max(1),
            "--hours" => hours = value,
            "--live" => {
                (found.live, found.hosts, found.interval, found.ticks) = (true, 1, 1, value)
            }
            _ => bail!("{word}: --hosts N, --interval SECONDS, --hours H, or --live SECONDS"),
        }
    }
    if !found.live {
        found.ticks = hours * 3600 / found.interval;
    }
    Ok(found)
}

fn host(number: u64, live: bool) -> Host {
    let source: Box<dyn Source> = if live {
        Box::new(LiveHost::new(
            HostRoot::at("/"),
            &CollectConfig::default(),
            &[],
        ))
    } else {
        Box::new(SimulatedHost::new(number))
    };
    let mut id = [0; 16];
    id[..8].copy_from_slice(&number.to_be_bytes());
    Host {
        id: HostId::from_bytes(id),
        source,
        encoder: Encoder::new(),
        chains: Chains::default(),
        seq: 0,
    }
}

/// CPU time of this process.
fn cpu() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    Duration::new(seconds, u32::try_from(now.tv_nsec).unwrap_or(0))
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn main() -> anyhow::Result<()> {
    let options = options()?;
    let folder = env::temp_dir().join(format!("muster-bench-history-{}", std::process::id()));
    let outcome = run(&options, &folder);
    let _ = fs::remove_dir_all(&folder);
    let figures = outcome?;
    let samples = figures.samples.max(1) as f64;
    let frames = figures.frames.max(1) as f64;
    let all: u64 = figures.bytes.iter().sum();
    let rounded = |value: f64| (value * 1000.0).round() / 1000.0;
    println!(
        "{}",
        serde_json::json!({
            "hosts": options.hosts,
            "interval_s": options.interval,
            "ticks": options.ticks,
            "samples": figures.samples,
            "samples_a_frame": rounded(samples / frames),
            "bytes_sample_disk": rounded(figures.bytes[0] as f64 / samples),
            "bytes_sample_1m": rounded(figures.bytes[1] as f64 / samples),
            "bytes_sample_15m": rounded(figures.bytes[2] as f64 / samples),
            "log_bytes_sample": rounded(figures.log as f64 / samples),
            "write_amplification": rounded((figures.written + figures.log) as f64 / all.max(1) as f64),
            "write_amplification_without_log": rounded(figures.written as f64 / all.max(1) as f64),
            "head_bytes_host_max": figures.head / options.hosts.max(1),
            "take_cpu_us_frame": rounded(figures.take.as_secs_f64() * 1e6 / frames),
            "files_cpu_us_frame": rounded(figures.files.as_secs_f64() * 1e6 / frames),
            "read_points": figures.read_points,
            "read_cpu_ms": rounded(figures.read.as_secs_f64() * 1e3),
            "read_wall_ms": rounded(figures.read_wall.as_secs_f64() * 1e3),
        })
    );
    Ok(())
}

#[derive(Default)]
struct Figures {
    frames: u64,
    samples: u64,
    log: u64,
    written: u64,
    bytes: [u64; 3],
    head: u64,
    take: Duration,
    files: Duration,
    read: Duration,
    read_wall: Duration,
    read_points: u64,
}

fn run(options: &Options, folder: &std::path::Path) -> anyhow::Result<Figures> {
    // The begin of a window, and long enough ago that nothing is in the future.
    let now = SystemClock.now().as_millis();
    let span = i64::try_from(options.ticks * options.interval * 1000)?;
    let start = if options.live {
        now
    } else {
        Tier::Minute.window_of(now - span)
    };
    let config = HistoryConfig::default();
    let (store, _) = EmbeddedStore::open(DiskStorage::open(folder)?, config, start)?;
    let mut hosts: Vec<Host> = (0..options.hosts).map(|n| host(n, options.live)).collect();
    let (mut names, mut changes) = (Names::default(), Changes::default());
    let key_every = KEY_EVERY.min(KEY_SECONDS / options.interval).max(1);
    let mut figures = Figures::default();
    let mut at = start;
    let mut token = 0;
    let began = Instant::now();
    for round in 0..options.ticks {
        if options.live {
            thread::sleep(Duration::from_secs(round).saturating_sub(began.elapsed()));
            at = SystemClock.now().as_millis() / 1000 * 1000;
        } else {
            at = start + i64::try_from(round * options.interval * 1000)?;
        }
        let mut frames = Vec::with_capacity(hosts.len());
        for host in &mut hosts {
            frames.push(frame(host, at, round % key_every == 0, &mut figures)?);
        }
        let before = cpu();
        for (host, frame) in hosts.iter_mut().zip(frames) {
            token += 1;
            let mut values = host.chains.apply(&frame, &mut names, &mut changes)?;
            store.append(token, host.id, at, &mut values)?;
        }
        let taken = cpu();
        figures.take += taken - before;
        for group in store.due(at) {
            store.flush(group, token, at, |_| Vec::new())?;
        }
        if round % 60 == 0 {
            figures.head = figures.head.max(store.stats().head_bytes);
            while store.maintain(at)? {}
        }
        figures.files += cpu() - taken;
    }
    let before = cpu();
    for group in store.unsaved() {
        store.flush(group, token, at, |_| Vec::new())?;
    }
    while store.maintain(at + Tier::Raw.window_ms() * 2)? {}
    figures.files += cpu() - before;
    let stats = store.stats();
    figures.samples = stats.points[0];
    (figures.bytes, figures.written) = (stats.bytes, stats.written_bytes);
    read(&store, &hosts, at, &mut figures)?;
    Ok(figures)
}

fn frame(host: &mut Host, at: i64, key: bool, figures: &mut Figures) -> anyhow::Result<FrameIn> {
    let tick = Timestamp::from_millis(at);
    let mut payload = Vec::new();
    let (table, events) = host.source.sample(tick, &Own::default());
    host.encoder.encode(table, &events, key, &mut payload);
    host.seq += 1;
    let frame = FrameIn {
        incarnation: Incarnation(1),
        seq: host.seq,
        lane: Lane::Live,
        tick,
        received: tick.plus(Duration::from_millis(5)),
        crc32c: 0,
        payload: payload.into(),
    };
    let record = Record::Frame(frame.clone()).encode(host.id)?;
    figures.log += record.len() as u64 + RECORD_HEADER;
    figures.frames += 1;
    Ok(frame)
}

/// A day of one metric of all hosts, a point a minute.
fn read(
    store: &EmbeddedStore<DiskStorage>,
    hosts: &[Host],
    at: i64,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    let query = SampleQuery {
        hosts: hosts.iter().map(|host| host.id).collect(),
        metric: Some("node_load1".into()),
        labels: Vec::new(),
        from: at - 86_400_000,
        to: at + 1,
        step_ms: 60_000,
        max_points: u64::MAX,
        give_up: GiveUp::default(),
    };
    let (before, began) = (cpu(), Instant::now());
    let mut sum = 0.0;
    let report = store.read(&query, &mut |series| {
        sum += series.points.iter().map(|point| point.last).sum::<f64>();
        ControlFlow::Continue(())
    })?;
    figures.read = cpu() - before;
    figures.read_wall = began.elapsed();
    figures.read_points = report.points;
    anyhow::ensure!(
        sum.is_finite() && report.missing.is_empty(),
        "{:?}",
        report.missing
    );
    Ok(())
}
