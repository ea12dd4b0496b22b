//! A shard by itself: no log under it, streams put in by hand.

use std::net::IpAddr;

use tokio::sync::oneshot;

use super::{recalls::Recalls, *};

#[tokio::test(start_paused = true)]
async fn a_stall_shows_on_either_clock() {
    let start = Instant::now();
    let wall = |millis: i64| Timestamp::from_millis(1_700_000_000_000 + millis);
    let mono = |millis: u64| start + Duration::from_millis(millis);
    for (mono_ms, wall_ms, stalled) in [
        (500, 500, false),
        (1900, 1900, false),
        (2100, 2100, true),
        // The machine slept, and its monotonic clock with it.
        (500, 60_000, true),
        // Someone set the clock back.
        (500, -3_600_000, true),
        (500, 2400, false),
    ] {
        let away = stood_still((start, wall(0)), (mono(mono_ms), wall(wall_ms)));
        assert_eq!(away.is_some(), stalled, "{mono_ms} {wall_ms}");
    }
}

struct Nobody;

impl TransitionSink for Nobody {
    fn report(&self, _: HostId, _: &str, _: Vec<Transition>) {}
}

fn shard(state: &std::path::Path) -> Shard {
    let clock: Arc<dyn Clock> = Arc::new(muster_proto::time::SystemClock);
    let limits = crate::events::EventLimits::default();
    let common = Common {
        engine: Arc::default(),
        sink: Arc::new(Nobody),
        clock: Arc::clone(&clock),
        counters: Arc::default(),
        neighbours: Arc::default(),
        events: Events::open(state, limits, clock).expect("opens"),
    };
    // No log: it takes nothing, like one whose disk is full.
    Shard::new(0, FleetConfig::default(), common)
}

fn knocks(shard: &mut Shard, host: HostId, connection: Connection) {
    let (to_agent, _gone) = mpsc::channel(8);
    let session = Session {
        incarnation: Incarnation(1),
        session: connection,
        boot_id: vec![1; 16],
        interval: Duration::from_secs(10),
        clock_offset_ms: 0,
    };
    shard.handle(Message::Attach {
        host,
        connection,
        address: IpAddr::from([127, 0, 0, 1]),
        session,
        holds: Vec::new(),
        to_agent,
        close: CancellationToken::new(),
        welcome: Box::default(),
        reply: oneshot::channel().0,
    });
}

/// To be put in by hand: a shard without a log sends away who says Hello.
fn stream(to_agent: ToAgent) -> Stream {
    Stream {
        connection: 1,
        incarnation: Incarnation(1),
        received: 0,
        refused: 0,
        untold: BTreeMap::new(),
        to_agent,
        close: CancellationToken::new(),
    }
}

fn enrolled(shard: &mut Shard, id: HostId) {
    shard.upsert(Enrolled {
        id,
        name: id.to_string(),
        labels: BTreeMap::new(),
        facts: v1::HostFacts::default(),
        certificate_not_after: None,
    });
}

fn first_frame(tick: Timestamp, received: Timestamp) -> FrameIn {
    let mut payload = Vec::new();
    let table = muster_proto::series::Table::default();
    muster_proto::codec::Encoder::new().encode(&table, &[], true, &mut payload);
    FrameIn {
        incarnation: Incarnation(1),
        seq: 1,
        lane: crate::fleet::host::Lane::Live,
        tick,
        received,
        crc32c: crc32c::crc32c(&payload),
        payload: payload.into(),
    }
}

/// A first sample of the host.
fn heard(shard: &mut Shard, id: HostId) {
    heard_as(shard, id, 1);
}

/// A sample of this number.
fn heard_as(shard: &mut Shard, id: HostId, seq: u64) {
    let mut context = Receiving {
        names: &mut shard.names,
        engine: &shard.engine,
        changes: &mut shard.changes,
        series_quota: 10,
        now: Instant::now(),
        replayed: false,
    };
    let now = shard.clock.now();
    let frame = FrameIn {
        seq,
        ..first_frame(now, now)
    };
    let host = shard.hosts.get_mut(&id).expect("enrolled");
    host.receive(&frame, &mut context, &mut Vec::new());
}

fn is_silent(shard: &Shard, host: HostId) -> bool {
    let liveness = shard.hosts[&host].liveness();
    matches!(liveness, crate::fleet::Liveness::Silent(_))
}

struct Doubtful(bool);

impl Clock for Doubtful {
    fn now(&self) -> Timestamp {
        muster_proto::time::SystemClock.now()
    }

    fn in_doubt(&self) -> bool {
        self.0
    }
}

#[tokio::test]
async fn while_the_clock_is_in_doubt_nothing_is_refused_for_good_as_from_the_future() {
    for in_doubt in [true, false] {
        let folder = tempfile::tempdir().expect("a folder");
        let mut shard = shard(folder.path());
        shard.clock = Arc::new(Doubtful(in_doubt));
        let id = HostId::from_bytes([1; 16]);
        enrolled(&mut shard, id);
        let (to_agent, mut said) = mpsc::channel(8);
        shard.streams.insert(id, stream(to_agent));
        let now = shard.clock.now();
        let ahead = now.plus(Duration::from_secs(2 * 3600));
        shard.frame(id, 1, first_frame(ahead, now), None);
        let refused = shard.hosts[&id].books().rejected;
        assert_eq!(refused, u64::from(!in_doubt));
        let answer = said.try_recv().expect("an answer").message;
        let throttled = matches!(answer, Some(v1::aggregator_message::Message::Throttle(_)));
        assert_eq!(throttled, in_doubt, "{answer:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn whom_a_full_log_sends_away_is_not_silent_and_who_is_dead_is() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut shard = shard(folder.path());
    let hosts = [1, 2].map(|number| HostId::from_bytes([number; 16]));
    for (connection, id) in (1..).zip(hosts) {
        enrolled(&mut shard, id);
        knocks(&mut shard, id, connection);
        heard(&mut shard, id);
    }
    for connection in 3..63 {
        knocks(&mut shard, hosts[0], connection);
        time::advance(Duration::from_secs(5)).await;
        shard.judge_all(Instant::now());
        assert!(!is_silent(&shard, hosts[0]), "it knocks every 5 s");
    }
    assert!(is_silent(&shard, hosts[1]), "nothing is heard of it");
}

#[tokio::test(start_paused = true)]
async fn what_finds_no_room_on_the_way_to_an_agent_is_told_later() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut shard = shard(folder.path());
    let id = HostId::from_bytes([1; 16]);
    enrolled(&mut shard, id);
    let (to_agent, mut told) = mpsc::channel(2);
    shard.streams.insert(id, stream(to_agent));
    let now = shard.clock.now();
    for (incarnation, seq) in (1..=50).map(|seq| (1, seq)).chain([(7, 1), (7, 2)]) {
        let frame = FrameIn {
            incarnation: Incarnation(incarnation),
            seq,
            lane: crate::fleet::host::Lane::Backfill,
            tick: now,
            received: now,
            // Of nothing that was sent: refused.
            crc32c: 1,
            payload: vec![0; 10].into(),
        };
        shard.frame(id, 1, frame, None);
    }
    let mut refused = Vec::new();
    for _ in 0..4 {
        while let Ok(message) = told.try_recv() {
            if let Some(v1::aggregator_message::Message::Ack(ack)) = message.message {
                refused.extend(ack.rejected.iter().map(|no| (ack.incarnation, no.seq)));
            }
        }
        shard.tell_untold();
    }
    let all: Vec<(u64, u64)> = (1..=50)
        .map(|seq| (1, seq))
        .chain([(7, 1), (7, 2)])
        .collect();
    assert_eq!(refused, all);
    assert!(shard.streams[&id].untold.is_empty(), "told once");
}

#[tokio::test(start_paused = true)]
async fn what_lies_scattered_is_told_to_the_end_through_a_narrow_way() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut shard = shard(folder.path());
    let id = HostId::from_bytes([1; 16]);
    enrolled(&mut shard, id);
    let (to_agent, mut told) = mpsc::channel(2);
    shard.streams.insert(id, stream(to_agent));
    let incarnation = Incarnation(1);
    let host = shard.hosts.get_mut(&id).expect("enrolled");
    let now = shard.clock.now();
    let mut context = Receiving {
        names: &mut shard.names,
        engine: &shard.engine,
        changes: &mut shard.changes,
        series_quota: 10,
        now: Instant::now(),
        replayed: false,
    };
    let scattered: Vec<u64> = (1..=400).map(|number| number * 2).collect();
    for &seq in &scattered {
        let frame = FrameIn {
            seq,
            ..first_frame(now, now)
        };
        let verdict = host.receive(&frame, &mut context, &mut Vec::new());
        assert_eq!(verdict, Verdict::Store);
    }
    let stored: Vec<Stored> = scattered
        .iter()
        .map(|&seq| Stored {
            host: id,
            incarnation,
            seq,
        })
        .collect();
    shard.settled(&stored, true);
    let mut heard = std::collections::BTreeSet::new();
    for _ in 0..20 {
        while let Ok(message) = told.try_recv() {
            if let Some(v1::aggregator_message::Message::Ack(ack)) = message.message {
                heard.extend(
                    ack.durable
                        .iter()
                        .flat_map(|range| range.first..=range.last),
                );
            }
        }
        shard.tell_untold();
    }
    assert!(
        heard.into_iter().eq(scattered),
        "each of them, though two answers have room at a time"
    );
    assert!(shard.streams[&id].untold.is_empty());
}

#[tokio::test(start_paused = true)]
async fn who_may_send_nothing_while_the_log_fails_is_not_silent_and_has_time_afterwards() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut shard = shard(folder.path());
    let [open, gone] = [1, 2].map(|number| HostId::from_bytes([number; 16]));
    for id in [open, gone] {
        enrolled(&mut shard, id);
        heard(&mut shard, id);
    }
    let host = shard.hosts.get_mut(&open).expect("enrolled");
    host.set_connected(true);
    shard.held_up = true;
    for _ in 0..60 {
        time::advance(Duration::from_secs(5)).await;
        for id in [open, gone] {
            shard.judge_one(id, Instant::now());
        }
        assert!(!is_silent(&shard, open), "its stream is open");
    }
    assert!(is_silent(&shard, gone), "it has no stream");
    shard.held_up = false;
    time::advance(Duration::from_secs(5)).await;
    shard.judge_one(open, Instant::now());
    assert!(!is_silent(&shard, open), "it is let send again");
    for _ in 0..60 {
        time::advance(Duration::from_secs(5)).await;
        shard.judge_one(open, Instant::now());
    }
    assert!(is_silent(&shard, open), "and sends nothing");
}

#[tokio::test(start_paused = true)]
async fn after_a_start_agents_may_be_with_a_stand_in_for_a_while() {
    let minutes = |minutes: u64| Duration::from_secs(minutes * 60);
    for (elsewhere, silent_at) in [(Duration::ZERO, [true, true]), (minutes(10), [false, true])] {
        let folder = tempfile::tempdir().expect("a folder");
        let mut shard = shard(folder.path());
        shard.config.elsewhere = elsewhere;
        let [away, dies] = [1, 2].map(|number| HostId::from_bytes([number; 16]));
        for id in [away, dies] {
            enrolled(&mut shard, id);
            heard(&mut shard, id);
        }
        time::advance(minutes(1)).await;
        shard.listening_since = Instant::now();
        time::advance(Duration::from_secs(1)).await;
        heard_as(&mut shard, dies, 2);
        for (minute, silent) in [5, 13].into_iter().zip(silent_at) {
            while Instant::now() < shard.listening_since + minutes(minute) {
                time::advance(Duration::from_secs(5)).await;
                shard.judge_all(Instant::now());
            }
            assert_eq!(
                is_silent(&shard, away),
                silent,
                "{elsewhere:?}, {minute} min"
            );
            assert!(is_silent(&shard, dies), "it was back, and is dead");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn stalls_again_and_again_take_away_no_more_than_they_last() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut shard = shard(folder.path());
    let began = Instant::now();
    for _ in 0..20 {
        time::advance(Duration::from_secs(10)).await;
        shard.stood_still(Duration::from_secs(3), Instant::now());
    }
    assert_eq!(shard.listening_since - began, Duration::from_secs(60));
    shard.stood_still(Duration::from_secs(30), Instant::now());
    assert_eq!(shard.listening_since, Instant::now());
    assert_eq!(shard.counters.totals().stalls, 21);
}

#[test]
fn recordings_are_asked_for_seldom_of_a_host_and_of_a_fleet() {
    let mut recalls = Recalls::default();
    let began = Instant::now();
    let host = |number: u8| HostId::from_bytes([number; 16]);
    let after = |seconds| began + Duration::from_secs(seconds);
    assert!(recalls.admits(host(0), began));
    assert!(!recalls.admits(host(0), after(599)));
    assert!(recalls.admits(host(0), after(601)));
    let storm = (1..=100).filter(|number| recalls.admits(host(*number), after(602)));
    assert_eq!(storm.count(), 9, "what is left of ten");
    assert!(!recalls.admits(host(200), after(610)));
    assert!(recalls.admits(host(200), after(640)));
    assert!(recalls.asked.len() <= 21, "forgotten when it is over");
}
