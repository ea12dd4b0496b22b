//! What history costs: bytes a sample on disk, bytes written for each that stays, CPU of taking and of reading.
//!
//! ```text
//! bench/history --hosts 200 --interval 10 --hours 26        made-up hosts, as fast as it goes
//! bench/history --live 1800                                 this machine, once a second, in real time
//! bench/history --record 1800 --file pages.gz               node_exporter on this machine, once a second, into a file
//! bench/history --file pages.gz [--every 10]                the file, as fast as it goes; as so many hosts, each of
//!                                                           which takes every tenth page
//! … --peers                                                 the same into prometheus and victoria-metrics
//! … --judge                                                 and all rules judged again over it, as `muster replay --all`
//! ```
//!
//! Frames are encoded as agents do and go the way of the aggregator's history thread: decoded from their chain,
//! appended, written, packed. The last line is one JSON object.

mod http;
mod judged;
mod peers;
mod recorded;

use std::{
    env, fs,
    ops::ControlFlow,
    path::{Path, PathBuf},
    rc::Rc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use judged::JudgeFigures;
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
        EmbeddedStore, GiveUp, HistoryConfig, Needs, SampleQuery, SampleStore as _, Tier,
        chains::Chains, fold::Fold,
    },
    journal::Record,
};
use muster_proto::{
    codec::{Changes, Encoder},
    id::{HostId, Incarnation},
    log::DiskStorage,
    series::Table,
    time::{Clock as _, SystemClock, Timestamp},
};
use peers::{Peer, PeerFigures, Server};
use recorded::Recording;

/// An agent sends a key frame after so many others, or after ten minutes.
const KEY_EVERY: u64 = 360;
const KEY_SECONDS: u64 = 600;

/// What stands before each record of the log.
const RECORD_HEADER: u64 = 20;

struct Host {
    id: HostId,
    telling: Telling,
    encoder: Encoder,
    chains: Chains,
    seq: u64,
}

/// Where a host's samples come from.
enum Telling {
    Source(Box<dyn Source>),
    Recorded(Replay),
}

/// One of the hosts that a recording is made into.
struct Replay {
    recording: Rc<Recording>,
    table: Table,
    /// Its next page, and how many it goes on.
    next: usize,
    every: usize,
}

impl Telling {
    /// The host's next sample, and when it was taken: `at` unless it was recorded.
    fn next(&mut self, at: i64) -> (i64, &Table) {
        match self {
            Self::Source(source) => {
                let (table, _) = source.sample(Timestamp::from_millis(at), &Own::default());
                (at, table)
            }
            Self::Recorded(replay) => {
                let (at, values) = &replay.recording.scrapes[replay.next];
                replay.next += replay.every;
                replay.table.present.fill(false);
                for (place, raw) in values {
                    replay.table.raw[*place] = *raw;
                    replay.table.present[*place] = true;
                }
                (*at, &replay.table)
            }
        }
    }
}

struct Options {
    hosts: u64,
    interval: u64,
    ticks: u64,
    live: bool,
    record: Option<u64>,
    file: Option<PathBuf>,
    peers: bool,
    judge: bool,
}

fn options() -> anyhow::Result<Options> {
    let mut found = Options {
        hosts: 50,
        interval: 10,
        ticks: 0,
        live: false,
        record: None,
        file: None,
        peers: false,
        judge: false,
    };
    let mut hours = 26;
    let mut words = env::args().skip(1);
    while let Some(word) = words.next() {
        if word == "--peers" {
            found.peers = true;
            continue;
        }
        if word == "--judge" {
            found.judge = true;
            continue;
        }
        if word == "--file" {
            found.file = Some(words.next().context("--file FILE")?.into());
            continue;
        }
        let value = words.next().context("every option has a value")?;
        let value: u64 = value.parse().with_context(|| format!("{word} {value}"))?;
        match word.as_str() {
            "--hosts" => found.hosts = value,
            "--interval" | "--every" => found.interval = value.max(1),
            "--record" => found.record = Some(value),
            "--hours" => hours = value,
            "--live" => {
                (found.live, found.hosts, found.interval, found.ticks) = (true, 1, 1, value)
            }
            _ => bail!(
                "{word}: --hosts N --interval SECONDS --hours H, --live SECONDS, --record SECONDS --file FILE, or \
                 --file FILE --every N; --peers; --judge"
            ),
        }
    }
    if !found.live {
        found.ticks = hours * 3600 / found.interval;
    }
    Ok(found)
}

/// The hosts of a run.
fn hosts(options: &mut Options) -> anyhow::Result<Vec<Host>> {
    let mut tellings = Vec::new();
    if let Some(file) = &options.file {
        let recording = Rc::new(Recording::read(file)?);
        let every = usize::try_from(options.interval)?;
        options.hosts = options.interval;
        options.ticks = (recording.scrapes.len() / every) as u64;
        for next in 0..every {
            tellings.push(Telling::Recorded(Replay {
                table: Table {
                    families: recording.table.families.clone(),
                    series: recording.table.series.clone(),
                    raw: recording.table.raw.clone(),
                    present: recording.table.present.clone(),
                    generation: 0,
                },
                recording: Rc::clone(&recording),
                next,
                every,
            }));
        }
    } else {
        for number in 0..options.hosts {
            tellings.push(Telling::Source(if options.live {
                Box::new(LiveHost::new(
                    HostRoot::at("/"),
                    &CollectConfig::default(),
                    &[],
                ))
            } else {
                Box::new(SimulatedHost::new(number))
            }));
        }
    }
    let host = |(number, telling): (u64, Telling)| {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&number.to_be_bytes());
        Host {
            id: HostId::from_bytes(id),
            telling,
            encoder: Encoder::new(),
            chains: Chains::default(),
            seq: 0,
        }
    };
    Ok((0u64..).zip(tellings).map(host).collect())
}

/// CPU time of this process.
fn cpu() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    Duration::new(seconds, u32::try_from(now.tv_nsec).unwrap_or(0))
}

fn main() -> anyhow::Result<()> {
    let mut options = options()?;
    if let Some(seconds) = options.record {
        let file = options.file.as_ref().context("--record needs --file")?;
        return recorded::record(file, seconds);
    }
    let folder = env::temp_dir().join(format!("muster-bench-history-{}", std::process::id()));
    let outcome = measure(&mut options, &folder);
    // What is left of it is of no use to anybody.
    let _ = fs::remove_dir_all(&folder);
    let (figures, peers) = outcome?;
    print(&options, &figures, &peers);
    Ok(())
}

/// Ours, then the others with the same.
fn measure(options: &mut Options, folder: &Path) -> anyhow::Result<(Figures, Vec<PeerFigures>)> {
    let mut ours = hosts(options)?;
    let figures = run(options, &mut ours, &folder.join("muster"))?;
    let mut peers = Vec::new();
    if options.peers {
        for peer in Peer::ALL {
            let Some(mut server) = Server::start(peer, folder)? else {
                continue;
            };
            eprintln!("{peer:?} takes the same");
            let mut hosts = hosts(options)?;
            let mut range = (i64::MAX, i64::MIN);
            for round in 0..options.ticks {
                let due = figures.start + i64::try_from(round * options.interval * 1000)?;
                for (number, host) in hosts.iter_mut().enumerate() {
                    let (at, table) = host.telling.next(due);
                    range = (range.0.min(at), range.1.max(at));
                    server.take(number, at, table)?;
                }
            }
            peers.push(server.figures(METRIC, hosts.len(), range)?);
        }
    }
    Ok((figures, peers))
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn print(options: &Options, figures: &Figures, peers: &[PeerFigures]) {
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
            "take_cpu_us_sample": rounded((figures.take + figures.files).as_secs_f64() * 1e6 / samples),
            "files_cpu_us_frame": rounded(figures.files.as_secs_f64() * 1e6 / frames),
            "read_points": figures.read_points,
            "read_cpu_ms": rounded(figures.read.as_secs_f64() * 1e3),
            "read_wall_ms": rounded(figures.read_wall.as_secs_f64() * 1e3),
            "open_ms": rounded(figures.open.as_secs_f64() * 1e3),
            "peers": peers,
            "judged": figures.judged,
        })
    );
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
    /// Opening the store again and reading one metric of the last minutes of all hosts.
    open: Duration,
    /// The first tick of made-up hosts.
    start: i64,
    judged: Option<JudgeFigures>,
}

/// What is read.
const METRIC: &str = "node_load1";

fn run(options: &Options, hosts: &mut [Host], folder: &Path) -> anyhow::Result<Figures> {
    // The begin of a window, and long enough ago that nothing is in the future.
    let now = SystemClock.now().as_millis();
    let span = i64::try_from(options.ticks * options.interval * 1000)?;
    let start = if options.live {
        now
    } else {
        Tier::Minute.window_of(now - span)
    };
    let config = HistoryConfig::default();
    let (store, _) = EmbeddedStore::open(DiskStorage::open(folder)?, config.clone(), start)?;
    let (mut names, mut changes) = (Names::default(), Changes::default());
    let key_every = KEY_EVERY.min(KEY_SECONDS / options.interval).max(1);
    let mut figures = Figures {
        start,
        ..Figures::default()
    };
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
        for host in hosts.iter_mut() {
            let frame = frame(host, at, round % key_every == 0, &mut figures)?;
            at = frame.tick.as_millis();
            frames.push(frame);
        }
        let before = cpu();
        for (host, frame) in hosts.iter_mut().zip(frames) {
            token += 1;
            let mut values = host.chains.apply(&frame, &mut names, &mut changes)?;
            let tick = frame.tick.as_millis();
            store.append(token, host.id, tick, &mut values)?;
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
    (figures.read_points, figures.read, figures.read_wall) = read(&store, hosts, at, 86_400_000)?;
    drop(store);
    let began = Instant::now();
    let (store, _) = EmbeddedStore::open(DiskStorage::open(folder)?, config, at)?;
    read(&store, hosts, at, 600_000)?;
    figures.open = began.elapsed();
    if options.judge {
        let ids: Vec<HostId> = hosts.iter().map(|host| host.id).collect();
        let interval = Duration::from_secs(options.interval);
        figures.judged = Some(judged::judge(&store, &ids, interval, (start, at + 1))?);
    }
    Ok(figures)
}

fn frame(host: &mut Host, at: i64, key: bool, figures: &mut Figures) -> anyhow::Result<FrameIn> {
    let mut payload = Vec::new();
    let (at, table) = host.telling.next(at);
    let tick = Timestamp::from_millis(at);
    host.encoder.encode(table, &[], key, &mut payload);
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

/// One metric of all hosts, a point a minute, up to `at`: points, processor time, time.
fn read(
    store: &EmbeddedStore<DiskStorage>,
    hosts: &[Host],
    at: i64,
    span_ms: i64,
) -> anyhow::Result<(u64, Duration, Duration)> {
    let query = SampleQuery {
        hosts: hosts.iter().map(|host| host.id).collect(),
        metric: Some(METRIC.into()),
        labels: Vec::new(),
        from: at - span_ms,
        to: at + 1,
        step_ms: 60_000,
        // What is asked when nothing else is said: means.
        needs: Needs::of(Fold::Auto),
        max_points: u64::MAX,
        give_up: GiveUp::default(),
    };
    let (before, began) = (cpu(), Instant::now());
    let (mut sum, mut told) = (0.0, 0);
    let report = store.read(&query, &mut |series| {
        told += 1;
        sum += series.points.iter().map(|point| point.last).sum::<f64>();
        ControlFlow::Continue(())
    })?;
    let (cpu, wall) = (cpu() - before, began.elapsed());
    anyhow::ensure!(
        sum.is_finite() && report.missing.is_empty() && told == hosts.len(),
        "{told} of {} hosts, {:?}",
        hosts.len(),
        report.missing
    );
    Ok((report.points, cpu, wall))
}
