//! What a frame costs the aggregator between the socket and the disk, each stage by itself.
//!
//! ```text
//! bench/ingest --stage fold                    processor time a frame, and instructions where valgrind is installed
//! ```
//!
//! Stages: `decode` only decodes; `fold` is a host taking a frame in (books, decoding, rates, detectors) and noting it
//! as durable; `shard` is all of a shard with its log and its answers, no sockets; `history` takes a record of the log
//! into memory. All is done by one thread, in an order that follows from the options, so that two builds can be
//! compared instruction by instruction whatever else the machine does. Time is virtual: a round is a second, in which
//! each host sends once. The last line is one JSON object.

mod shard;

use std::{env, fs, hint::black_box, path::PathBuf, time::Duration};

use anyhow::{Context as _, bail};
use muster_agent::{Source as _, simulate::SimulatedHost, telemetry::Own};
use muster_aggregator::{
    detect::Engine,
    fleet::{
        Enrolled, HostState,
        host::{FrameIn, Lane, Receiving, Session, Verdict},
        names::Names,
    },
    history::{EmbeddedStore, HistoryConfig, SampleStore as _, chains::Chains},
    journal::Record,
};
use muster_proto::{
    codec::{Changes, Decoder, Encoder},
    id::{HostId, Incarnation},
    limits,
    log::DiskStorage,
    time::Timestamp,
    v1,
};
use shard::OneShard;
use tokio::time::Instant;

/// Rounds before measuring begins: names are known, buffers have grown.
const WARM: u64 = 3;

/// The time of the first round.
const START: i64 = 1_770_000_000_000;

struct Options {
    hosts: u64,
    rounds: u64,
    stage: String,
}

fn options() -> anyhow::Result<Options> {
    let mut found = Options {
        hosts: 100,
        rounds: 20,
        stage: "fold".to_owned(),
    };
    let mut words = env::args().skip(1);
    while let Some(word) = words.next() {
        let value = words.next().context("every option has a value")?;
        match word.as_str() {
            "--hosts" => found.hosts = value.parse()?,
            "--rounds" => found.rounds = value.parse()?,
            "--stage" => found.stage = value,
            _ => bail!("{word}: --hosts N --rounds N --stage decode|fold|shard|history"),
        }
    }
    Ok(found)
}

/// A made-up host and what its agent keeps to encode with.
struct Sender {
    id: HostId,
    source: SimulatedHost,
    encoder: Encoder,
    seq: u64,
}

impl Sender {
    fn new(number: u64) -> Self {
        Self {
            id: host_id(number),
            source: SimulatedHost::new(number),
            encoder: Encoder::new(),
            seq: 0,
        }
    }

    fn next(&mut self, at: Timestamp) -> FrameIn {
        let (table, _) = self.source.sample(at, &Own::default());
        let mut payload = Vec::new();
        self.encoder.encode(table, &[], false, &mut payload);
        self.seq += 1;
        FrameIn {
            incarnation: Incarnation(1),
            seq: self.seq,
            lane: Lane::Live,
            tick: at,
            received: at.plus(Duration::from_millis(5)),
            crc32c: crc32c::crc32c(&payload),
            payload: payload.into(),
        }
    }
}

fn host_id(number: u64) -> HostId {
    let mut id = [0; 16];
    id[8..].copy_from_slice(&number.to_be_bytes());
    HostId::from_bytes(id)
}

fn enrolled(number: u64) -> Enrolled {
    Enrolled {
        id: host_id(number),
        name: format!("host-{number}"),
        labels: [("role", "web"), ("site", "fra")]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into(),
        facts: v1::HostFacts::default(),
        certificate_not_after: None,
    }
}

fn session() -> Session {
    Session {
        incarnation: Incarnation(1),
        session: 1,
        boot_id: vec![1; 16],
        interval: Duration::from_secs(1),
        clock_offset_ms: 0,
    }
}

/// A stage: takes in what each host sends in one round.
trait Stage {
    fn take(&mut self, round: Vec<(HostId, FrameIn)>) -> anyhow::Result<()>;
}

/// Decoders alone.
struct Decoding {
    decoders: Vec<Decoder<std::sync::Arc<muster_aggregator::fleet::names::SeriesKey>>>,
    names: Names,
    changes: Changes,
}

impl Stage for Decoding {
    fn take(&mut self, round: Vec<(HostId, FrameIn)>) -> anyhow::Result<()> {
        for (decoder, (_, frame)) in self.decoders.iter_mut().zip(round) {
            decoder.apply(
                frame.seq,
                &frame.payload,
                limits::MAX_SERIES,
                &mut self.names,
                &mut self.changes,
            )?;
        }
        Ok(())
    }
}

/// Hosts without the shard around them.
struct Folding {
    hosts: Vec<HostState>,
    names: Names,
    changes: Changes,
    engine: Engine,
}

impl Folding {
    fn new(hosts: u64) -> Self {
        let host = |number| {
            let mut host = HostState::new(enrolled(number), Timestamp::from_millis(START));
            host.begin_session(session());
            host
        };
        Self {
            hosts: (0..hosts).map(host).collect(),
            names: Names::default(),
            changes: Changes::default(),
            engine: Engine::default(),
        }
    }
}

impl Stage for Folding {
    fn take(&mut self, round: Vec<(HostId, FrameIn)>) -> anyhow::Result<()> {
        let now = Instant::now();
        let mut transitions = Vec::new();
        for (host, (_, frame)) in self.hosts.iter_mut().zip(round) {
            let mut context = Receiving {
                names: &mut self.names,
                engine: &self.engine,
                changes: &mut self.changes,
                series_quota: limits::MAX_SERIES,
                now,
                replayed: false,
            };
            let verdict = host.receive(&frame, &mut context, &mut transitions);
            if verdict != Verdict::Store {
                bail!("a frame was not taken: {verdict:?}");
            }
            host.stored(frame.incarnation, frame.seq);
        }
        black_box(transitions);
        Ok(())
    }
}

/// The history's thread, without a log to read.
struct Keeping {
    store: EmbeddedStore<DiskStorage>,
    chains: Vec<Chains>,
    names: Names,
    changes: Changes,
    token: u64,
}

impl Stage for Keeping {
    fn take(&mut self, round: Vec<(HostId, FrameIn)>) -> anyhow::Result<()> {
        for (chains, (host, frame)) in self.chains.iter_mut().zip(round) {
            self.token += 1;
            let tick = frame.tick.as_millis();
            let bytes = Record::Frame(frame).encode(host)?;
            let (_, record) = Record::decode(&bytes)?;
            let Record::Frame(frame) = record else {
                bail!("a record is not what it was");
            };
            let mut values = chains.apply(&frame, &mut self.names, &mut self.changes)?;
            self.store.append(self.token, host, tick, &mut values)?;
        }
        Ok(())
    }
}

/// The stage of the options; `folder` is for what it keeps on disk.
fn stage(options: &Options, folder: &PathBuf) -> anyhow::Result<Box<dyn Stage>> {
    Ok(match options.stage.as_str() {
        "decode" => Box::new(Decoding {
            decoders: (0..options.hosts).map(|_| Decoder::default()).collect(),
            names: Names::default(),
            changes: Changes::default(),
        }),
        "fold" => Box::new(Folding::new(options.hosts)),
        "shard" => Box::new(OneShard::start(options.hosts, folder)?),
        "history" => Box::new(Keeping {
            store: EmbeddedStore::open(
                DiskStorage::open(folder)?,
                HistoryConfig::default(),
                START,
            )?
            .0,
            chains: (0..options.hosts).map(|_| Chains::default()).collect(),
            names: Names::default(),
            changes: Changes::default(),
            token: 0,
        }),
        other => bail!("{other}: the stages are decode, fold, shard and history"),
    })
}

/// CPU time of this thread, as /proc/self/schedstat has it in nanoseconds: the clock for it, asked through rustix, does
/// not work under valgrind.
fn cpu() -> anyhow::Result<Duration> {
    let stat = fs::read_to_string("/proc/self/schedstat")?;
    let first = stat.split_whitespace().next();
    Ok(Duration::from_nanos(
        first.context("no time in schedstat")?.parse()?,
    ))
}

/// One round of the measured ones. By its name valgrind counts what happens within it, and nothing else.
#[inline(never)]
fn measured_round(stage: &mut dyn Stage, round: Vec<(HostId, FrameIn)>) -> anyhow::Result<()> {
    stage.take(black_box(round))
}

fn run(options: &Options, folder: &PathBuf) -> anyhow::Result<()> {
    let mut stage = stage(options, folder)?;
    let mut senders: Vec<Sender> = (0..options.hosts).map(Sender::new).collect();
    let mut spent = Duration::ZERO;
    let mut bytes = 0;
    for number in 0..WARM + options.rounds {
        let at = Timestamp::from_millis(START + i64::try_from(number * 1000)?);
        let round: Vec<(HostId, FrameIn)> = senders
            .iter_mut()
            .map(|sender| (sender.id, sender.next(at)))
            .collect();
        if number < WARM {
            stage.take(round)?;
            continue;
        }
        bytes += round
            .iter()
            .map(|(_, frame)| frame.payload.len())
            .sum::<usize>();
        let before = cpu()?;
        measured_round(&mut *stage, round)?;
        spent += cpu()? - before;
    }
    let frames = options.hosts * options.rounds;
    #[expect(clippy::cast_precision_loss, reason = "figures for people")]
    let (frames_f, bytes) = (frames.max(1) as f64, bytes as f64);
    println!(
        "{}",
        serde_json::json!({
            "stage": options.stage,
            "hosts": options.hosts,
            "frames": frames,
            "cpu_us_frame": (spent.as_secs_f64() * 1e8 / frames_f).round() / 100.0,
            "payload_bytes_frame": (bytes / frames_f).round(),
        })
    );
    Ok(())
}

fn main() -> anyhow::Result<()> {
    let options = options()?;
    let folder = env::temp_dir().join(format!("muster-bench-ingest-{}", std::process::id()));
    let outcome = run(&options, &folder);
    // What is left of it is of no use to anybody.
    let _ = fs::remove_dir_all(&folder);
    outcome
}
