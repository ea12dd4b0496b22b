//! A host's state as a fold: whatever order frames, crashes and repetitions come in, nothing that was
//! acknowledged is missing, nothing counts twice, and the latest values are the agent's.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use muster_aggregator::{
    detect::{DetectConfig, Engine},
    fleet::{
        Enrolled, HostState,
        host::{CheckpointedHost, FrameIn, Lane, Receiving, Session, Verdict},
        names::Names,
    },
    journal::Record,
};
use muster_proto::{
    codec::{Changes, Encoder},
    id::{HostId, Incarnation},
    series::{Family, Kind, Raw, Scale, Series, Table},
    time::Timestamp,
    v1,
};
use proptest::prelude::*;
use tokio::time::Instant;

const HOST: HostId = HostId::from_bytes([7; 16]);
const START: i64 = 1_700_000_000_000;

fn enrolled() -> Enrolled {
    Enrolled {
        id: HOST,
        name: "web-01".into(),
        labels: BTreeMap::new(),
        facts: v1::HostFacts::default(),
        certificate_not_after: None,
    }
}

/// An aggregator cut down to one host, with a log and a checkpoint that survive a crash.
struct Aggregator {
    host: HostState,
    names: Names,
    changes: Changes,
    engine: Engine,
    /// On disk.
    log: Vec<Vec<u8>>,
    /// Records of the log it covers, and the host.
    checkpoint: Option<(usize, CheckpointedHost)>,
    /// Handed to the log and lost in a crash.
    queue: Vec<FrameIn>,
}

impl Aggregator {
    fn new() -> Self {
        Self {
            host: HostState::new(enrolled(), Timestamp::from_millis(START)),
            names: Names::default(),
            changes: Changes::default(),
            engine: Engine::new(&DetectConfig::default()),
            log: Vec::new(),
            checkpoint: None,
            queue: Vec::new(),
        }
    }

    /// Runs `f` on the host with what receiving needs.
    fn with<T>(
        &mut self,
        replayed: bool,
        f: impl FnOnce(&mut HostState, &mut Receiving<'_>) -> T,
    ) -> T {
        let mut context = Receiving {
            names: &mut self.names,
            engine: &self.engine,
            changes: &mut self.changes,
            series_quota: 1000,
            now: Instant::now(),
            replayed,
        };
        f(&mut self.host, &mut context)
    }

    fn write(&mut self, record: &Record) {
        self.log.push(record.encode(HOST).expect("encodes"));
    }

    fn begin(&mut self, session: Session) {
        self.host.begin_session(session.clone());
        self.write(&Record::Session(session));
    }

    fn offer(&mut self, frame: &FrameIn) -> Verdict {
        let verdict = self.with(false, |host, context| {
            host.receive(frame, context, &mut Vec::new())
        });
        match verdict {
            Verdict::Store => self.queue.push(frame.clone()),
            Verdict::Rejected(reason) => self.write(&Record::Rejected {
                incarnation: frame.incarnation,
                seq: frame.seq,
                reason: reason.into(),
            }),
            Verdict::Duplicate | Verdict::Violation => {}
        }
        verdict
    }

    /// The group commit: what is queued is on disk and acknowledged.
    fn commit(&mut self) -> Vec<u64> {
        let queue = std::mem::take(&mut self.queue);
        let acknowledged = queue.iter().map(|frame| frame.seq).collect();
        for frame in queue {
            self.host.stored(frame.incarnation, frame.seq);
            self.write(&Record::Frame(frame));
        }
        acknowledged
    }

    fn make_checkpoint(&mut self) {
        let host = self.host.write_checkpoint().expect("encodes");
        self.checkpoint = Some((self.log.len(), host));
    }

    /// kill -9 and start: memory is gone, the checkpoint and the log are not.
    fn crash(&mut self) {
        let (log, checkpoint) = (std::mem::take(&mut self.log), self.checkpoint.take());
        *self = Self::new();
        let mut covered = 0;
        if let Some((covers, kept)) = &checkpoint {
            covered = *covers;
            self.with(true, |host, context| host.restore(kept, context))
                .expect("restores");
        }
        for bytes in &log[covered..] {
            match Record::decode(bytes).expect("own record decodes").1 {
                Record::Session(session) => self.host.begin_session(session),
                Record::Frame(frame) => {
                    self.with(true, |host, context| {
                        host.receive(&frame, context, &mut Vec::new())
                    });
                }
                Record::Rejected {
                    incarnation, seq, ..
                } => self.host.rejected(incarnation, seq),
                Record::Gap { .. } | Record::Fin { .. } => {}
            }
        }
        (self.log, self.checkpoint) = (log, checkpoint);
    }
}

/// An agent that keeps its frames until they are acknowledged.
struct Agent {
    incarnation: Incarnation,
    table: Table,
    encoder: Encoder,
    frames: Vec<FrameIn>,
    sessions: u64,
}

impl Agent {
    fn new(incarnation: u64) -> Self {
        let family = |name: &str, kind| Family {
            name: name.into(),
            kind,
            scale: Scale::One,
            labels: vec!["device".into()],
        };
        let mut table = Table {
            families: vec![
                family("node_network_receive_bytes_total", Kind::Counter),
                family("node_disk_io_now", Kind::Gauge),
            ],
            ..Table::default()
        };
        for device in ["eth0", "eth1"] {
            for family in 0..2 {
                table.series.push(Series {
                    family,
                    labels: vec![device.into()],
                });
                table.raw.push(Raw(0));
                table.present.push(true);
            }
        }
        Self {
            incarnation: Incarnation(incarnation),
            table,
            encoder: Encoder::new(),
            frames: Vec::new(),
            sessions: 0,
        }
    }

    /// Takes a sample; every seventh frame is a key frame.
    fn sample(&mut self, grow: i64, gauge: Option<i64>) {
        let seq = self.frames.len() as u64 + 1;
        for place in [0, 2] {
            self.table.raw[place] = Raw::int(self.table.raw[place].as_int() + grow);
        }
        self.table.present[1] = gauge.is_some();
        self.table.raw[1] = Raw::int(gauge.unwrap_or(0));
        let mut payload = Vec::new();
        self.encoder
            .encode(&self.table, &[], seq.is_multiple_of(7), &mut payload);
        let tick = START + i64::try_from(seq).expect("small") * 10_000;
        self.frames.push(FrameIn {
            incarnation: self.incarnation,
            seq,
            lane: Lane::Live,
            tick: Timestamp::from_millis(tick),
            received: Timestamp::from_millis(tick + 5),
            crc32c: crc32c::crc32c(&payload),
            payload: payload.into(),
        });
    }

    fn hello(&mut self) -> Session {
        self.sessions += 1;
        Session {
            incarnation: self.incarnation,
            session: self.sessions,
            boot_id: vec![1; 16],
            interval: Duration::from_secs(10),
            clock_offset_ms: 0,
        }
    }

    /// Where to go on after a Welcome: behind the decoder if it stands right, else at a key frame.
    fn resume(&self, have: &v1::Have) -> usize {
        let durable = |frame: &FrameIn| {
            let covers = |range: &v1::Range| (range.first..=range.last).contains(&frame.seq);
            have.durable.iter().any(covers)
        };
        let missing = self.frames.iter().position(|frame| !durable(frame));
        let missing = missing.unwrap_or(self.frames.len());
        if have.decoded_to >= missing as u64 || missing == self.frames.len() {
            return missing;
        }
        let is_key = |at: &usize| muster_proto::codec::is_key_frame(&self.frames[*at].payload);
        (0..=missing).rev().find(is_key).unwrap_or(0)
    }

    fn latest(&self) -> BTreeMap<String, f64> {
        (0..self.table.series.len())
            .filter(|&at| self.table.present[at])
            .map(|at| {
                let series = &self.table.series[at];
                let family = &self.table.families[series.family as usize];
                let name = format!("{} {}", family.name, series.labels[0]);
                (name, family.scale.value(self.table.raw[at]))
            })
            .collect()
    }
}

fn held(host: &HostState) -> BTreeMap<String, f64> {
    let name = |name: &str, labels: &[String]| format!("{name} {}", labels[0]);
    host.series()
        .map(|series| (name(&series.family.name, series.labels), series.value))
        .collect()
}

#[derive(Debug, Clone)]
enum Step {
    Sample(i64, Option<i64>),
    Send(usize),
    Repeat(usize),
    Commit,
    Checkpoint,
    Crash,
    Reconnect,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let gauge = prop::option::weighted(0.8, 0i64..9);
    let one = prop_oneof![
        6 => (0i64..1000, gauge).prop_map(|(grow, gauge)| Step::Sample(grow, gauge)),
        5 => (1usize..5).prop_map(Step::Send),
        1 => (1usize..9).prop_map(Step::Repeat),
        4 => Just(Step::Commit),
        1 => Just(Step::Checkpoint),
        1 => Just(Step::Crash),
        1 => Just(Step::Reconnect),
    ];
    prop::collection::vec(one, 1..80)
}

fn reconnect(agent: &mut Agent, aggregator: &mut Aggregator) -> usize {
    aggregator.begin(agent.hello());
    agent.resume(&aggregator.host.have(agent.incarnation))
}

proptest! {
    #[test]
    fn acknowledged_is_stored_and_the_books_balance(steps in steps()) {
        let (mut agent, mut aggregator) = (Agent::new(42), Aggregator::new());
        let mut next = reconnect(&mut agent, &mut aggregator);
        let mut acknowledged = BTreeSet::new();
        for step in steps {
            match step {
                Step::Sample(grow, gauge) => agent.sample(grow, gauge),
                Step::Send(count) => {
                    for frame in agent.frames.iter().skip(next).take(count) {
                        let verdict = aggregator.offer(frame);
                        prop_assert!(matches!(verdict, Verdict::Store | Verdict::Duplicate), "{verdict:?}");
                    }
                    next = agent.frames.len().min(next + count);
                }
                Step::Repeat(back) => {
                    if let Some(at) = next.checked_sub(back) {
                        prop_assert_eq!(aggregator.offer(&agent.frames[at]), Verdict::Duplicate);
                    }
                }
                Step::Commit => acknowledged.extend(aggregator.commit()),
                Step::Checkpoint => aggregator.make_checkpoint(),
                Step::Crash => {
                    aggregator.crash();
                    next = reconnect(&mut agent, &mut aggregator);
                }
                // What is in flight goes on to the disk; the agent sends it again.
                Step::Reconnect => next = reconnect(&mut agent, &mut aggregator),
            }
            let durable = aggregator.host.durable(agent.incarnation);
            for seq in &acknowledged {
                let covers = |range: &v1::Range| (range.first..=range.last).contains(seq);
                prop_assert!(durable.iter().any(covers), "{seq} was acknowledged and is missing");
            }
        }
        // The link stays up at last: everything arrives, once.
        for frame in agent.frames.iter().skip(next) {
            aggregator.offer(frame);
        }
        aggregator.commit();
        let books = aggregator.host.books();
        prop_assert_eq!(books.produced, agent.frames.len() as u64);
        prop_assert_eq!(books.stored, books.produced);
        prop_assert_eq!((books.rejected, books.lost), (0, 0));
        if !agent.frames.is_empty() {
            prop_assert_eq!(held(&aggregator.host), agent.latest());
        }
        let mut in_log: Vec<u64> = aggregator.log.iter().filter_map(|bytes| {
            match Record::decode(bytes).expect("decodes").1 {
                Record::Frame(frame) => Some(frame.seq),
                _ => None,
            }
        }).collect();
        in_log.sort_unstable();
        prop_assert_eq!(in_log, (1..=books.produced).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn a_number_with_another_content_is_refused() {
    let (mut agent, mut aggregator) = (Agent::new(1), Aggregator::new());
    aggregator.begin(agent.hello());
    agent.sample(5, Some(1));
    assert_eq!(aggregator.offer(&agent.frames[0]), Verdict::Store);
    aggregator.commit();
    assert_eq!(aggregator.offer(&agent.frames[0]), Verdict::Duplicate);
    let mut other = agent.frames[0].clone();
    other.crc32c ^= 1;
    let conflict = Verdict::Rejected(v1::RejectReason::SeqConflict);
    assert_eq!(aggregator.offer(&other), conflict);
    assert_eq!(aggregator.host.books().stored, 1);
}

#[tokio::test]
async fn what_is_refused_is_counted_and_a_key_frame_begins_anew() {
    let (mut agent, mut aggregator) = (Agent::new(1), Aggregator::new());
    aggregator.begin(agent.hello());
    for _ in 0..8 {
        agent.sample(5, Some(1));
    }
    assert_eq!(aggregator.offer(&agent.frames[0]), Verdict::Store);
    let mut future = agent.frames[1].clone();
    future.received = Timestamp::from_millis(START - 120_000);
    let refused = Verdict::Rejected;
    let mut flipped = agent.frames[2].clone();
    flipped.crc32c ^= 1;
    assert_eq!(aggregator.offer(&future), refused(v1::RejectReason::Future));
    assert_eq!(
        aggregator.offer(&flipped),
        refused(v1::RejectReason::Checksum)
    );
    let delta = &agent.frames[3];
    assert_eq!(
        aggregator.offer(delta),
        refused(v1::RejectReason::NoKeyFrame)
    );
    // Number 7 is a key frame.
    assert_eq!(aggregator.offer(&agent.frames[6]), Verdict::Store);
    assert_eq!(aggregator.offer(&agent.frames[7]), Verdict::Store);
    aggregator.commit();
    assert_eq!(aggregator.host.gap(agent.incarnation, 2, 6), Some(2));
    let books = aggregator.host.books();
    let figures = (books.produced, books.stored, books.rejected, books.lost);
    assert_eq!(figures, (8, 3, 3, 2));
    // Claims about what is stored, or about numbers that nobody gave, change nothing.
    assert_eq!(aggregator.host.gap(agent.incarnation, 1, 8), Some(0));
    assert_eq!(aggregator.host.gap(agent.incarnation, 9, u64::MAX), None);
    assert_eq!(aggregator.host.books(), books);
}

#[tokio::test]
async fn rates_begin_anew_with_a_boot() {
    let (mut agent, mut aggregator) = (Agent::new(1), Aggregator::new());
    let rate = |aggregator: &Aggregator| {
        let mut series = aggregator.host.series();
        series.find(|s| s.labels[0] == "eth0").and_then(|s| s.rate)
    };
    aggregator.begin(agent.hello());
    agent.sample(500, None);
    aggregator.offer(&agent.frames[0]);
    assert_eq!(rate(&aggregator), None);
    agent.sample(500, None);
    aggregator.offer(&agent.frames[1]);
    assert_eq!(rate(&aggregator), Some(50.0));
    let derived = aggregator.host.derived();
    assert_eq!(derived.network_receive_bytes_per_second, Some(100.0));

    let mut rebooted = agent.hello();
    rebooted.boot_id = vec![2; 16];
    aggregator.begin(rebooted);
    agent.sample(500, None);
    aggregator.offer(&agent.frames[2]);
    assert_eq!(rate(&aggregator), None);
}

#[tokio::test]
async fn a_decoder_that_lost_its_state_gets_it_from_what_is_sent_again() {
    let (mut agent, mut aggregator) = (Agent::new(1), Aggregator::new());
    aggregator.begin(agent.hello());
    for grow in 1..=6 {
        agent.sample(grow, Some(grow));
    }
    for frame in &agent.frames[..3] {
        assert_eq!(aggregator.offer(frame), Verdict::Store);
    }
    aggregator.commit();
    let mut damaged = agent.frames[3].clone();
    damaged.payload = vec![1, 0, 0xff].into();
    damaged.crc32c = crc32c::crc32c(&damaged.payload);
    let malformed = Verdict::Rejected(v1::RejectReason::Malformed);
    assert_eq!(aggregator.offer(&damaged), malformed);

    let next = reconnect(&mut agent, &mut aggregator);
    assert_eq!(next, 0, "from the key frame on");
    let verdicts: Vec<Verdict> = agent
        .frames
        .iter()
        .map(|frame| aggregator.offer(frame))
        .collect();
    assert_eq!(verdicts[..3], [Verdict::Duplicate; 3]);
    assert_eq!(verdicts[3..], [Verdict::Store; 3]);
    aggregator.commit();
    assert_eq!(held(&aggregator.host), agent.latest());
    let books = aggregator.host.books();
    assert_eq!((books.produced, books.stored, books.rejected), (6, 6, 0));
}

/// The backlog of an agent that was away, of a life before or of this one, goes beside the live chain.
#[tokio::test]
async fn two_chains_are_decoded_apart_and_only_the_live_one_tells_of_now() {
    let (mut before, mut agent, mut aggregator) = (Agent::new(1), Agent::new(2), Aggregator::new());
    for _ in 0..9 {
        before.sample(7, Some(3));
    }
    for _ in 0..20 {
        agent.sample(500, Some(1));
    }
    aggregator.begin(agent.hello());
    let beside = |frame: &FrameIn| FrameIn {
        lane: Lane::Backfill,
        ..frame.clone()
    };
    // Frame 14 is a key frame: the live chain begins there, all before it is backfill.
    let backlog: Vec<FrameIn> = before
        .frames
        .iter()
        .chain(&agent.frames[..13])
        .map(beside)
        .collect();
    let mut live = agent.frames[13..].iter();
    for (at, frame) in backlog.iter().enumerate() {
        if at % 4 == 0
            && let Some(live) = live.next()
        {
            assert_eq!(aggregator.offer(live), Verdict::Store);
        }
        let (tick, liveness) = (aggregator.host.last_tick(), aggregator.host.last_seen());
        let values = held(&aggregator.host);
        assert_eq!(aggregator.offer(frame), Verdict::Store, "{at}");
        assert_eq!(held(&aggregator.host), values);
        assert_eq!(
            (aggregator.host.last_tick(), aggregator.host.last_seen()),
            (tick, liveness)
        );
    }
    for live in live {
        assert_eq!(aggregator.offer(live), Verdict::Store);
    }
    assert_eq!(held(&aggregator.host), agent.latest());
    aggregator.commit();
    // The stream ends, and with it the second decoder: what is durable is decoded again for what follows.
    aggregator.host.set_connected(false);
    agent.sample(500, Some(1));
    before.sample(7, Some(3));
    let delta = beside(&before.frames[9]);
    for frame in &before.frames[7..9] {
        let verdict = aggregator.offer(&beside(frame));
        assert_eq!(verdict, Verdict::Duplicate, "{}", frame.seq);
    }
    assert_eq!(
        aggregator.offer(&delta),
        Verdict::Rejected(v1::RejectReason::NoKeyFrame)
    );
    for frame in &before.frames[6..9] {
        assert_eq!(aggregator.offer(&beside(frame)), Verdict::Duplicate);
    }
    // A restart: the log brings both lives back, and the live chain goes on where it stood.
    aggregator.crash();
    assert_eq!(aggregator.host.have(agent.incarnation).decoded_to, 20);
    assert_eq!(aggregator.offer(&agent.frames[20]), Verdict::Store);
    aggregator.commit();
    let books = aggregator.host.books();
    assert_eq!((books.produced, books.stored), (10 + 21, 9 + 21));
    assert_eq!((books.rejected, books.lost), (1, 0));
}

#[tokio::test]
async fn what_is_on_disk_stays_stored_when_what_was_before_it_is_lost() {
    let (mut agent, mut aggregator) = (Agent::new(1), Aggregator::new());
    aggregator.begin(agent.hello());
    for _ in 0..9 {
        agent.sample(5, Some(1));
    }
    for frame in &agent.frames {
        aggregator.offer(frame);
    }
    aggregator.commit();
    // The session and the first three frames, the key frame among them, are in a damaged segment.
    aggregator.log.drain(..4);
    aggregator.crash();
    let books = aggregator.host.books();
    assert_eq!((books.stored, books.rejected), (6, 0));
    // From the next key frame on (number 7) values are known again.
    assert_eq!(held(&aggregator.host), agent.latest());
}

#[tokio::test]
async fn impossible_numbers_are_violations_and_change_no_books() {
    let (mut agent, mut aggregator) = (Agent::new(1), Aggregator::new());
    aggregator.begin(agent.hello());
    agent.sample(5, Some(1));
    let mut huge = agent.frames[0].clone();
    huge.seq = u64::MAX;
    assert_eq!(aggregator.offer(&huge), Verdict::Violation);
    assert_eq!(aggregator.host.gap(agent.incarnation, 1, u64::MAX), None);
    assert_eq!(aggregator.host.books().produced, 0);
    assert_eq!(aggregator.offer(&agent.frames[0]), Verdict::Store);
}

#[tokio::test]
async fn more_holes_than_are_kept_track_of_cost_the_oldest_and_not_the_host() {
    let (mut agent, mut aggregator) = (Agent::new(1), Aggregator::new());
    aggregator.begin(agent.hello());
    for _ in 0..1201 {
        agent.sample(5, Some(1));
    }
    // Each a key frame that stands for itself, as what happened does; every second one only.
    let mut holes = Vec::new();
    for frame in agent.frames.iter().step_by(2) {
        let mut frame = frame.clone();
        (frame.payload, frame.lane) = (agent.frames[0].payload.clone(), Lane::Backfill);
        frame.crc32c = agent.frames[0].crc32c;
        assert_eq!(aggregator.offer(&frame), Verdict::Store, "{}", frame.seq);
        aggregator.commit();
        holes.extend(aggregator.host.bound_holes(agent.incarnation));
        let books = aggregator.host.books();
        assert!(books.produced >= books.stored + books.lost, "{books:?}");
    }
    let books = aggregator.host.books();
    let lost: u64 = holes.iter().map(|(_, _, lost)| lost).sum();
    assert!(holes.len() >= 5 && lost > 300, "{holes:?}");
    assert_eq!(
        (books.produced, books.stored, books.lost),
        (1201, 601, lost)
    );
    // One that was given up comes after all: it is stored, and lost no more. A gap that joins all is taken.
    let late = agent.frames[1].clone();
    let mut late = FrameIn {
        lane: Lane::Backfill,
        ..late
    };
    (late.payload, late.crc32c) = (agent.frames[0].payload.clone(), agent.frames[0].crc32c);
    assert_eq!(aggregator.offer(&late), Verdict::Store);
    aggregator.commit();
    let here = aggregator.host.books();
    assert_eq!((here.stored, here.lost), (602, lost - 1));
    assert!(aggregator.host.gap(agent.incarnation, 1, 1201).is_some());
    let here = aggregator.host.books();
    assert_eq!((here.produced, here.stored + here.lost), (1201, 1201));
    // Gaps alone are no way round it.
    let floods = (0..1000).map(|at| {
        let first = 2 * at + 1300;
        let taken = aggregator.host.gap(agent.incarnation, first, first);
        (
            taken,
            aggregator.host.bound_holes(agent.incarnation).is_some(),
        )
    });
    let (taken, bounds): (Vec<_>, Vec<_>) = floods.unzip();
    assert!(taken.iter().all(|taken| *taken == Some(1)));
    assert!(bounds.iter().filter(|bound| **bound).count() >= 10);
}

#[tokio::test]
async fn a_tick_from_a_clock_that_was_wrong_does_not_stick() {
    let (mut agent, mut aggregator) = (Agent::new(1), Aggregator::new());
    aggregator.begin(agent.hello());
    for _ in 0..3 {
        agent.sample(500, None);
    }
    let day = Duration::from_secs(86_400);
    let mut early = agent.frames[0].clone();
    (early.tick, early.received) = (early.tick.plus(day), early.received.plus(day));
    aggregator.offer(&early);
    aggregator.offer(&agent.frames[1]);
    assert_eq!(aggregator.host.last_tick(), Some(agent.frames[1].tick));
    aggregator.offer(&agent.frames[2]);
    let rate = aggregator.host.derived().network_receive_bytes_per_second;
    assert_eq!(rate, Some(100.0));
}

#[tokio::test]
async fn a_refusal_is_told_again() {
    let (mut agent, mut aggregator) = (Agent::new(1), Aggregator::new());
    aggregator.begin(agent.hello());
    for _ in 0..7 {
        agent.sample(5, Some(1));
    }
    let delta = agent.frames[2].clone();
    let refused = Verdict::Rejected(v1::RejectReason::NoKeyFrame);
    assert_eq!(aggregator.offer(&delta), refused);
    assert_eq!(aggregator.offer(&agent.frames[6]), Verdict::Store);
    assert!(matches!(aggregator.offer(&delta), Verdict::Rejected(_)));
    aggregator.commit();
    let books = aggregator.host.books();
    assert_eq!((books.stored, books.rejected), (1, 1));
}
