//! From a log to a store and back, through restarts, crashes and a queue that is too short.

use std::collections::BTreeMap;

use fastrand::Rng;
use muster_proto::{
    codec::Encoder,
    id::Incarnation,
    log::{FaultyStorage, Log, LogConfig},
    series::{Family, Kind, Raw, Scale, Series, Table},
    time::{FakeClock, Timestamp},
};

use super::*;
use crate::{
    fleet::host::Lane,
    history::{GiveUp, HistoryConfig, Needs, SampleQuery, fold::Fold},
    journal::RECORD_KIND,
};

const START: i64 = 1_767_225_600_000;

/// Hosts that write frames as agents do, and the values that history must have of them.
struct Agents {
    log: Log<FaultyStorage>,
    random: Rng,
    agents: Vec<Agent>,
    /// Host and tick: the value of its one counter, if it has one.
    expected: BTreeMap<(HostId, i64), Option<i64>>,
}

struct Agent {
    host: HostId,
    life: Incarnation,
    seq: u64,
    encoder: Encoder,
    table: Table,
    tick: i64,
    /// Frames held back, to be sent beside the live chain later.
    held: Vec<(FrameIn, Option<i64>)>,
    offline: bool,
}

impl Agents {
    fn new(storage: FaultyStorage, seed: u64) -> Self {
        let config = LogConfig {
            segment_bytes: 4_000,
            ..LogConfig::aggregator()
        };
        let (log, _) = Log::open(storage, config).expect("an empty log");
        let mut random = Rng::with_seed(seed);
        let agents = (1..=4)
            .map(|number| Agent::new(number, &mut random))
            .collect();
        Self {
            log,
            random,
            agents,
            expected: BTreeMap::new(),
        }
    }

    /// One tick of all; what is online is committed to the log.
    fn round(&mut self) {
        for agent in &mut self.agents {
            let random = &mut self.random;
            if random.u8(..12) == 0 {
                agent.offline = !agent.offline;
            }
            let (frame, value) = agent.sample(random);
            if agent.offline {
                agent.held.push((frame, value));
                continue;
            }
            // The live frame first, then some of what was held back, as it came.
            let some = random.usize(..=agent.held.len());
            let mut sent = vec![(frame, value)];
            sent.extend(agent.held.drain(..some).map(|(mut frame, value)| {
                frame.lane = Lane::Backfill;
                (frame, value)
            }));
            for (frame, value) in sent {
                self.expected
                    .insert((agent.host, frame.tick.as_millis()), value);
                let record = Record::Frame(frame).encode(agent.host).expect("encodes");
                self.log
                    .append(RECORD_KIND, &record)
                    .expect("there is room");
            }
        }
        self.log.commit().expect("the log's disk is well");
    }
}

impl Agent {
    fn new(number: u8, random: &mut Rng) -> Self {
        let family = |name: &str, kind| Family {
            name: name.into(),
            kind,
            scale: Scale::One,
            labels: Vec::new(),
        };
        let series = |family| Series {
            family,
            labels: Vec::new(),
        };
        Self {
            host: HostId::from_bytes([number; 16]),
            life: Incarnation(random.u64(..)),
            seq: 0,
            encoder: Encoder::new(),
            table: Table {
                families: vec![family("x_total", Kind::Counter), family("y", Kind::Gauge)],
                series: vec![series(0), series(1)],
                raw: vec![Raw(0), Raw(7)],
                present: vec![true, true],
                generation: 0,
            },
            tick: START + i64::from(number),
            held: Vec::new(),
            offline: false,
        }
    }

    fn sample(&mut self, random: &mut Rng) -> (FrameIn, Option<i64>) {
        if random.u8(..60) == 0 && self.held.is_empty() {
            // A new life of the agent numbers from 1 again.
            (self.life, self.seq, self.encoder) = (Incarnation(random.u64(..)), 0, Encoder::new());
        }
        self.tick += 10_000;
        self.seq += 1;
        self.table.raw[0] = Raw::int(self.table.raw[0].as_int() + random.i64(0..100));
        self.table.present[0] = random.u8(..10) != 0;
        // What is held back goes on in the chain at hand; the live one begins anew beside it.
        let beside = !self.offline && !self.held.is_empty();
        let key = beside || random.u8(..20) == 0;
        let mut payload = Vec::new();
        self.encoder.encode(&self.table, &[], key, &mut payload);
        let frame = FrameIn {
            incarnation: self.life,
            seq: self.seq,
            lane: Lane::Live,
            tick: Timestamp::from_millis(self.tick),
            received: Timestamp::from_millis(self.tick + 100),
            crc32c: 0,
            payload: payload.into(),
        };
        let value = self.table.present[0].then(|| self.table.raw[0].as_int());
        (frame, value)
    }
}

struct Site {
    disk: FaultyStorage,
    log: FaultyStorage,
    clock: Arc<FakeClock>,
}

impl Site {
    fn new() -> Self {
        Self {
            disk: FaultyStorage::new(),
            log: FaultyStorage::new(),
            clock: Arc::new(FakeClock::at(Timestamp::from_millis(START))),
        }
    }

    fn feeder(&self, health: &Arc<FeedHealth>) -> Feeder<FaultyStorage, FaultyStorage> {
        let config = HistoryConfig {
            group_hosts: 2,
            memory_per_host: 2 << 10,
            memory_floor: 2 << 10,
            ..HistoryConfig::default()
        };
        let now = self.clock.now().as_millis();
        let (store, opened) =
            EmbeddedStore::open(self.disk.clone(), config, now).expect("the store opens");
        let parts = Parts {
            store: Arc::new(store),
            opened,
            log: Follower::new(self.log.clone(), 0),
            journal: Arc::default(),
            clock: Arc::clone(&self.clock) as Arc<dyn Clock>,
        };
        Feeder::new(Arc::clone(health), parts)
    }
}

fn check(feeder: &Feeder<FaultyStorage, FaultyStorage>, agents: &Agents) {
    let query = SampleQuery {
        hosts: agents.agents.iter().map(|agent| agent.host).collect(),
        metric: Some("x_total".into()),
        labels: Vec::new(),
        from: 0,
        to: i64::MAX,
        step_ms: 0,
        needs: Needs::of(Fold::Last),
        max_points: 1_000_000,
        give_up: GiveUp::default(),
    };
    let mut found = BTreeMap::new();
    let report = feeder.store.read(&query, &mut |series| {
        for point in series.points {
            found.insert((series.host, point.at), point.last);
        }
        ControlFlow::Continue(())
    });
    assert_eq!(report.expect("not too much").missing, [""; 0]);
    let known = agents.expected.iter();
    #[expect(clippy::cast_precision_loss, reason = "small numbers")]
    let expected: BTreeMap<(HostId, i64), f64> = known
        .filter_map(|(at, value)| Some((*at, (*value)? as f64)))
        .collect();
    let lacking = expected.keys().filter(|at| !found.contains_key(at)).count();
    assert_eq!(lacking, 0, "of {}", expected.len());
    assert!(found == expected, "the same values, and no others");
}

#[test]
fn whatever_ends_the_process_history_is_what_was_stored() {
    for seed in 0..40 {
        let site = Site::new();
        let mut agents = Agents::new(site.log.clone(), seed);
        let health = Arc::new(FeedHealth::default());
        let mut feeder = site.feeder(&health);
        let mut random = Rng::with_seed(seed + 1_000);
        for _ in 0..150 {
            agents.round();
            site.clock.advance(Duration::from_secs(10));
            match random.u8(..20) {
                0 => feeder.write_all(),
                1 => {
                    // The power goes: memory is lost, and so is what was not synced.
                    drop(feeder);
                    site.disk.crash(random.u64(..));
                    feeder = site.feeder(&health);
                }
                2..15 => feeder.catch_up(agents.log.durable() + 1),
                _ => {}
            }
        }
        feeder.catch_up(agents.log.durable() + 1);
        check(&feeder, &agents);
        let now = site.clock.now().as_millis() + 100 * 3_600_000;
        feeder.write_all();
        let before = feeder.store.stats();
        assert_eq!(before.head_samples, 0);
        while feeder
            .store
            .maintain(START + 3 * 3_600_000)
            .expect("packed")
        {}
        check(&feeder, &agents);
        assert!(
            feeder.store.durable() == agents.log.durable(),
            "the log may go: {now}"
        );
        assert_eq!(health.undecoded.load(Ordering::Relaxed), 0, "seed {seed}");
        assert_eq!(health.missing.load(Ordering::Relaxed), 0, "seed {seed}");
    }
}

#[test]
fn a_full_queue_costs_nothing_but_a_look_at_the_log() {
    let site = Site::new();
    let mut agents = Agents::new(site.log.clone(), 3);
    let (feed, inbox) = Feed::new();
    let mut feeder = site.feeder(&inbox.health);
    let mut offered = 0;
    for round in 0..QUEUE + 40 {
        let from = agents.log.durable() + 1;
        if round < 40 {
            agents.round();
        }
        let mut batch = Batch::default();
        for record in agents.log.read_from(from) {
            let record = record.expect("undamaged");
            batch.push(record.number, record.payload);
        }
        if batch.records.is_empty() {
            // Fills the queue with what is known already.
            batch.push(1, Vec::new());
        }
        // Only every third batch is offered, as if the others had found no room.
        if round % 3 == 0 || round >= 40 {
            offered += 1;
            feed.offer(batch);
        }
    }
    assert!(offered > QUEUE);
    let reread = inbox.health.reread.load(Ordering::Relaxed);
    assert_eq!(
        reread,
        (offered - QUEUE) as u64,
        "what found no room is counted"
    );
    while let Ok(batch) = inbox.batches.try_recv() {
        inbox
            .health
            .queued_bytes
            .fetch_sub(batch.bytes, Ordering::Relaxed);
        feeder.take(&batch);
    }
    assert_eq!(inbox.health.queued_bytes(), 0);
    feeder.catch_up(agents.log.durable() + 1);
    check(&feeder, &agents);
}

#[test]
fn a_disk_that_refuses_loses_nothing() {
    let site = Site::new();
    let mut agents = Agents::new(site.log.clone(), 8);
    let health = Arc::new(FeedHealth::default());
    let mut feeder = site.feeder(&health);
    for _ in 0..20 {
        agents.round();
    }
    feeder.catch_up(agents.log.durable() + 1);
    feeder.write_all();
    site.disk.limit_bytes(1);
    for _ in 0..400 {
        agents.round();
        site.clock.advance(Duration::from_secs(10));
        feeder.catch_up(agents.log.durable() + 1);
        feeder.write_all();
    }
    let behind = feeder.next;
    let problems = health.problems();
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems[0].contains("not written"), "{problems:?}");
    assert!(
        feeder.store.durable() < agents.log.durable(),
        "the log is still needed"
    );
    assert!(
        feeder.store.stats().head_bytes < 40 << 20,
        "memory is bounded"
    );
    site.disk.heal();
    feeder.write_due();
    feeder.write_all();
    feeder.catch_up(agents.log.durable() + 1);
    feeder.write_all();
    assert!(feeder.next >= behind);
    assert_eq!(health.problems(), [""; 0], "it is over");
    assert!(
        site.disk.files().len() <= 2 + feeder.store.files().len() + agents.agents.len(),
        "nothing is left of what failed: {:?}",
        site.disk.files().keys()
    );
    check(&feeder, &agents);
    assert_eq!(feeder.store.durable(), agents.log.durable());
}

#[test]
fn what_was_forgotten_stays_so_when_the_log_is_read_again() {
    let site = Site::new();
    let mut agents = Agents::new(site.log.clone(), 5);
    let health = Arc::new(FeedHealth::default());
    let mut feeder = site.feeder(&health);
    for round in 0..60 {
        agents.round();
        site.clock.advance(Duration::from_secs(10));
        feeder.catch_up(agents.log.durable() + 1);
        if round == 20 {
            feeder.write_all();
        }
    }
    // Records that are durable and not taken yet are of the past too.
    agents.round();
    let gone = [agents.agents[0].host, agents.agents[3].host];
    for host in gone {
        let upto = agents.log.durable();
        feeder.store.forget(host, upto).expect("the disk is well");
        agents.expected.retain(|(of, _), _| *of != host);
    }
    feeder.catch_up(agents.log.durable() + 1);
    check(&feeder, &agents);
    // Killed: memory is gone, the log is not.
    drop(feeder);
    site.disk.crash(1);
    let mut feeder = site.feeder(&health);
    feeder.catch_up(agents.log.durable() + 1);
    check(&feeder, &agents);
    for _ in 0..5 {
        agents.round();
    }
    feeder.catch_up(agents.log.durable() + 1);
    check(&feeder, &agents);
    feeder.write_all();
    assert_eq!(feeder.store.durable(), agents.log.durable());
    assert_eq!(feeder.store.manifest().passed_over, [], "no longer needed");
    check(&feeder, &agents);
}

#[test]
fn forgetting_all_that_memory_holds_lets_the_log_go() {
    let site = Site::new();
    let mut agents = Agents::new(site.log.clone(), 6);
    agents.agents.truncate(1);
    let mut feeder = site.feeder(&Arc::new(FeedHealth::default()));
    for _ in 0..3 {
        agents.round();
    }
    feeder.catch_up(agents.log.durable() + 1);
    assert_eq!(feeder.store.durable(), 0, "it is in memory only");
    let host = agents.agents[0].host;
    let upto = agents.log.durable();
    feeder.store.forget(host, upto).expect("the disk is well");
    assert_eq!(feeder.store.durable(), upto);
}
