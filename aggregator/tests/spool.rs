//! What an agent keeps on disk, against a real aggregator over real TLS: restarts with a backlog, and an
//! outage longer than memory.

#[expect(dead_code, reason = "the other tests of the whole way use the rest")]
mod support;

use std::{path::Path, time::Duration};

use muster_agent::{
    Agent, AgentConfig, Credentials, Monitor, Source,
    buffer::{Books, BufferLimits, MIN_BUFFER_BYTES},
    simulate::SimulatedHost,
    spool::{MIN_SPOOL_BYTES, Spool, SpoolConfig, SpoolLimits, Spooled},
    telemetry::Own,
};
use muster_aggregator::fleet::{HostState, Liveness};
use muster_proto::{
    codec::Encoder,
    id::Incarnation,
    limits,
    log::DiskStorage,
    series::{Family, Kind, Raw, Scale, Series, Table},
    time::{Clock as _, SystemClock, Timestamp},
    v1,
};
use support::{Enrolment, PATIENCE, Site, books, liveness, look, until};
use tokio::{task::JoinHandle, time};
use tokio_util::sync::CancellationToken;

/// An agent with a spool in its host's state folder.
struct Spooling {
    incarnation: Incarnation,
    monitor: Monitor,
    stop: CancellationToken,
    task: JoinHandle<Books>,
}

impl Spooling {
    fn start(host: &Enrolment, source: Box<dyn Source>, buffer: BufferLimits, seed: u64) -> Self {
        let folder = host.state.path().join("spool");
        let limits = SpoolLimits {
            // The machine that runs the tests may be nearly full.
            min_free_bytes: 0,
            ..SpoolLimits::default()
        };
        let config = AgentConfig {
            host: host.host,
            interval: limits::MIN_INTERVAL,
            buffer,
            spool: Some(SpoolConfig { folder, limits }),
            status_socket: None,
            seed,
        };
        let credentials = Credentials::on_disk(host.state.path(), host.uplink.clone());
        let agent = Agent::new(config, credentials, source);
        let (monitor, stop) = (agent.monitor(), CancellationToken::new());
        let stopped = stop.clone();
        let task = tokio::spawn(agent.run(async move {
            stopped.cancelled().await;
            v1::FinReason::Stopped
        }));
        Self {
            // As an agent draws it.
            incarnation: Incarnation(fastrand::Rng::with_seed(seed).u64(..)),
            monitor,
            stop,
            task,
        }
    }

    async fn holds(&self, frames: u64) {
        until("frames are held", async || {
            (self.monitor.books().held >= frames).then_some(())
        })
        .await;
    }

    async fn stop(self) -> Books {
        self.stop.cancel();
        let ended = time::timeout(PATIENCE, self.task).await;
        ended.expect("a stop is bounded").expect("no panic")
    }

    /// As kill -9 does, but for what the operating system takes back. Gives what was numbered.
    async fn kill(self) -> u64 {
        let produced = self.monitor.books().produced;
        drop(self.monitor);
        self.task.abort();
        let _ = self.task.await;
        produced
    }
}

fn simulated() -> Box<SimulatedHost> {
    Box::new(SimulatedHost::new(4))
}

fn segments(state: &Path) -> usize {
    let files = std::fs::read_dir(state.join("spool")).expect("a spool");
    let names = files.map(|file| file.expect("listed").file_name());
    // What stands beside the samples has a log of its own, which stays.
    names
        .map(|name| name.to_string_lossy().into_owned())
        .filter(|name| name.ends_with(".seg") && !name.starts_with(&"0".repeat(16)))
        .count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backlog_survives_restarts_of_the_agent_and_arrives_once() {
    let mut site = Site::new();
    let aggregator = site.start().await;
    let host = site.enrol(&aggregator, simulated().facts()).await;
    let first = Spooling::start(&host, simulated(), BufferLimits::default(), 1);
    until("the first frames are durable", async || {
        (first.monitor.books().durable >= 2).then_some(())
    })
    .await;
    aggregator.stop().await;

    // One life ends as asked for, without an aggregator to tell; the next is killed.
    first.holds(2).await;
    let first_incarnation = first.incarnation;
    let first = first.stop().await;
    assert_eq!(
        (first.lost, first.held),
        (0, first.produced - first.durable)
    );
    assert!(first.held >= 2 && first.spooled == first.held);
    let second = Spooling::start(&host, simulated(), BufferLimits::default(), 2);
    second.holds(3).await;
    let second_incarnation = second.incarnation;
    let killed_at = second.kill().await;

    let aggregator = site.start().await;
    let third = Spooling::start(&host, simulated(), BufferLimits::default(), 3);
    let here = until("all of it has arrived", async || {
        let own = third.monitor.books();
        let here = books(&aggregator, host.host).await;
        let left = segments(host.state.path());
        (own.durable >= 2 && here.stored >= first.produced + killed_at && left == 1).then_some(here)
    })
    .await;
    assert_eq!((here.lost, here.rejected), (0, 0));
    // Nothing more will come of the lives before, which the aggregator is told, and has noted.
    let closed = |life: &v1::LifeBooks| life.produced == life.stored + life.rejected + life.lost;
    until("the books of both earlier lives are closed", async || {
        let lives = look(&aggregator, host.host, HostState::lives).await?;
        let earlier: Vec<_> = lives.iter().filter(|life| !life.newest).collect();
        (earlier.len() == 2 && earlier.into_iter().all(closed)).then_some(())
    })
    .await;
    assert_eq!(liveness(&aggregator, host.host).await, Some(Liveness::Live));
    let third_incarnation = third.incarnation;
    let third = third.stop().await;
    assert_eq!((third.durable, third.lost), (third.produced, 0));
    aggregator.stop().await;
    let stored = site.stored();
    assert_eq!(stored.duplicates, 0);
    for (incarnation, produced) in [
        (first_incarnation, first.produced),
        (second_incarnation, killed_at),
        (third_incarnation, third.produced),
    ] {
        let seqs = &stored.frames[&(host.host, incarnation)];
        assert!(seqs.iter().copied().eq(1..=produced), "{seqs:?} {produced}");
    }
}

/// A host whose frames are heavy: every value is new at each tick.
struct Heavy {
    table: Table,
    random: fastrand::Rng,
}

impl Heavy {
    fn new() -> Self {
        let mut table = Table {
            families: vec![Family {
                name: "node_disk_io_now".into(),
                kind: Kind::Gauge,
                scale: Scale::One,
                labels: vec!["device".into()],
            }],
            ..Table::default()
        };
        for device in 0..9_000 {
            table.series.push(Series {
                family: 0,
                labels: vec![format!("{device}")],
            });
            table.raw.push(Raw(0));
            table.present.push(true);
        }
        Self {
            table,
            random: fastrand::Rng::with_seed(9),
        }
    }
}

impl Source for Heavy {
    fn facts(&self) -> v1::HostFacts {
        v1::HostFacts {
            hostname: "heavy".into(),
            ..v1::HostFacts::default()
        }
    }

    fn boot_id(&self) -> [u8; 16] {
        [5; 16]
    }

    fn sample(&mut self, _: Timestamp, _: &Own) -> (&Table, Vec<v1::Event>) {
        for raw in &mut self.table.raw {
            *raw = Raw::int(self.random.i64(..));
        }
        (&self.table, Vec::new())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_longer_than_memory_loses_nothing_and_news_does_not_wait_for_it() {
    let mut site = Site::new();
    site.config.series_per_host = limits::MAX_SERIES;
    let aggregator = site.start().await;
    let host = site.enrol(&aggregator, Heavy::new().facts()).await;
    let memory = BufferLimits {
        max_bytes: MIN_BUFFER_BYTES,
        ..BufferLimits::default()
    };
    // 90 kB a frame: a dozen are more than memory holds.
    let agent = Spooling::start(&host, Box::new(Heavy::new()), memory, 7);
    until("a frame is durable", async || {
        (agent.monitor.books().durable >= 1).then_some(())
    })
    .await;
    aggregator.stop().await;
    agent.holds(14).await;
    let held = agent.monitor.books();
    assert_eq!(held.lost, 0, "the oldest chain is on disk");

    let aggregator = site.start().await;
    let back = SystemClock.now();
    // The live chain begins with the next tick and is not behind the backlog.
    until("the host is as of now again", async || {
        let tick = look(&aggregator, host.host, HostState::last_tick).await;
        tick.flatten().filter(|tick| *tick > back)
    })
    .await;
    until("the backlog has arrived", async || {
        let books = agent.monitor.books();
        (books.held == 0).then_some(())
    })
    .await;
    let incarnation = agent.incarnation;
    let last = agent.stop().await;
    assert_eq!((last.durable, last.lost), (last.produced, 0));
    let here = books(&aggregator, host.host).await;
    assert_eq!(
        (here.stored, here.lost, here.rejected),
        (last.produced, 0, 0)
    );
    time::timeout(Duration::from_secs(15), aggregator.stop())
        .await
        .expect("a stop is bounded");
    let stored = site.stored();
    assert_eq!(stored.duplicates, 0);
    let seqs = &stored.frames[&(host.host, incarnation)];
    assert!(seqs.iter().copied().eq(1..=last.produced), "{seqs:?}");
}

/// A life of the agent before, of which nobody heard: every second of its 600 frames has events, and its spool held less
/// than half of the samples.
fn leave_behind(host: &Enrolment, incarnation: u64) {
    let folder = host.state.path().join("spool");
    let storage = DiskStorage::open(&folder).expect("a folder");
    let limits = SpoolLimits {
        max_bytes: MIN_SPOOL_BYTES,
        min_free_bytes: 0,
        ..SpoolLimits::default()
    };
    let life = Incarnation(incarnation);
    let mut spool = Spool::open(storage, life, limits).expect("opens");
    let mut heavy = Heavy::new();
    heavy.table.series.truncate(900);
    heavy.table.raw.truncate(900);
    heavy.table.present.truncate(900);
    let mut encoder = Encoder::new();
    let start = SystemClock.now().minus(Duration::from_secs(7_000));
    for seq in 1..=600 {
        let tick = start.plus(Duration::from_secs(10 * seq));
        let events = vec![v1::Event {
            kind: v1::EventKind::UnitStateChanged.into(),
            subject: format!("unit-{seq}.service"),
            at_ms: tick.as_millis(),
            fields: Vec::new(),
        }];
        for raw in &mut heavy.table.raw {
            *raw = Raw::int(heavy.random.i64(..));
        }
        let mut payload = Vec::new();
        let key = seq % 5 == 1;
        encoder.encode(&heavy.table, &[], key, &mut payload);
        let frame = Spooled {
            seq,
            tick,
            boottime_ms: 10_000 * seq.cast_signed(),
            samples: 900,
            crc32c: crc32c::crc32c(&payload),
            key,
            payload: payload.into(),
        };
        spool.append(&frame);
        if seq % 2 == 0 {
            spool.keep(frame.outline(&events).expect("something happened"));
        }
    }
    spool.commit();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hundreds_of_outlines_of_a_life_nobody_heard_of_do_not_lock_the_host_out() {
    let mut site = Site::new();
    site.config.series_per_host = limits::MAX_SERIES;
    let aggregator = site.start().await;
    let host = site.enrol(&aggregator, simulated().facts()).await;
    leave_behind(&host, 1);
    let agent = Spooling::start(&host, simulated(), BufferLimits::default(), 2);
    until("the host is as of now", async || {
        (agent.monitor.books().durable >= 1).then_some(())
    })
    .await;
    // The folder may be read only after the first Hello, which then names no earlier life; the next one does.
    aggregator.stop().await;
    let aggregator = site.start().await;
    let earlier = until("the books of the earlier life are closed", async || {
        let lives = look(&aggregator, host.host, HostState::lives).await?;
        let earlier = lives.into_iter().find(|life| life.incarnation == 1)?;
        let closed = earlier.produced == earlier.stored + earlier.rejected + earlier.lost;
        (closed && earlier.produced == 600 && earlier.stored > 160).then_some(earlier)
    })
    .await;
    // All that happened is there, and of the samples what the spool held.
    assert_eq!(earlier.rejected, 0);
    assert!(earlier.stored > 300 && earlier.lost > 100, "{earlier:?}");
    agent.stop().await;
    aggregator.stop().await;
    let stored = site.stored();
    let seqs = &stored.frames[&(host.host, Incarnation(1))];
    assert!((2..=600).step_by(2).all(|seq| seqs.contains(&seq)));
    assert_eq!(stored.duplicates, 0);
}
