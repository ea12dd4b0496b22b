//! The whole way of a sample in one process, and under attack: real agents, a real aggregator, real TLS.

mod support;

use std::{
    collections::BTreeSet,
    fs::Permissions,
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use muster_agent::{
    Agent, AgentConfig, Credentials, Monitor,
    buffer::{Books, BufferLimits},
    simulate::SimulatedHost,
};
use muster_aggregator::{
    control::{COPY_SIGNS, IncidentFilter},
    fleet::{HostState, Liveness, Silence, shard::Message},
    ingest::COPY_RULE,
    journal::{Entry, Journal, Record, Stored},
    serve::Aggregator,
};
use muster_proto::{
    id::{HostId, Incarnation},
    limits,
    log::{DiskStorage, Fault, FaultyStorage, Log, LogConfig},
    time::{Clock as _, SystemClock, Timestamp},
    v1::{self, agent_message, aggregator_message},
};
use support::{Frames, Raw, Site, books, liveness, look, page, until};
use tokio::{
    sync::mpsc,
    task::{JoinHandle, JoinSet},
    time::{self, Instant},
};
use tokio_util::sync::CancellationToken;

/// A stop is bounded: three seconds for the agents, two for the doors, and the last checkpoint.
const STOP: Duration = Duration::from_secs(15);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_joins_lives_says_goodbye_and_is_not_served_as_if_it_were_there() {
    let mut site = Site::new();
    let aggregator = site.start().await;
    let agent = site.agent(&aggregator, 1).await;
    let (host, path) = (agent.host, format!("/metrics/hosts/{}", agent.name));
    agent.durable(2).await;
    assert_eq!(liveness(&aggregator, host).await, Some(Liveness::Live));
    let (status, body) = page(&aggregator, &path).await;
    assert_eq!(status, 200);
    assert!(body.contains("node_cpu_seconds_total{"), "{body}");
    assert!(body.contains("muster_host_up 1\n"), "{body}");
    assert_eq!(page(&aggregator, "/metrics/hosts/no-such").await.0, 404);

    let last = agent.stop().await;
    assert_eq!(last.durable, last.produced, "what is held is shipped first");
    until("the host is silent", async || {
        let now = liveness(&aggregator, host).await;
        (now == Some(Liveness::Silent(Silence::Stopped))).then_some(())
    })
    .await;
    let (status, body) = page(&aggregator, &path).await;
    assert_eq!(status, 503);
    assert!(body.contains("its agent was stopped"), "{body}");
    let here = books(&aggregator, host).await;
    assert_eq!((here.produced, here.stored), (last.produced, last.durable));
    time::timeout(STOP, aggregator.stop())
        .await
        .expect("a stop is bounded");
    assert_eq!(site.stored().count(host), last.durable);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_of_the_aggregator_loses_nothing_doubles_nothing_and_calls_nobody_silent() {
    let mut site = Site::new();
    let first = site.start().await;
    let mut agents = Vec::new();
    for seed in 1..=3 {
        agents.push(site.agent(&first, seed).await);
    }
    let mut before = Vec::new();
    for agent in &agents {
        agent.durable(2).await;
        before.push(books(&first, agent.host).await);
    }
    time::timeout(STOP, first.stop())
        .await
        .expect("a stop is bounded");
    let acknowledged: Vec<u64> = agents
        .iter()
        .map(|agent| agent.monitor.books().durable)
        .collect();
    let on_disk = site.stored();
    for (agent, acknowledged) in agents.iter().zip(&acknowledged) {
        assert!(on_disk.count(agent.host) >= *acknowledged);
    }

    let second = site.start().await;
    assert_eq!(second.fleet().totals().hosts, 3);
    for (agent, before) in agents.iter().zip(&before) {
        let name = look(&second, agent.host, |host| host.name().to_owned()).await;
        assert_eq!(name.as_deref(), Some(&agent.name[..]));
        let after = books(&second, agent.host).await;
        assert!(after.stored >= before.stored && after.produced == after.stored);
    }
    for agent in &agents {
        until("the agent is back and goes on", async || {
            for other in &agents {
                let now = liveness(&second, other.host).await;
                assert!(!matches!(now, Some(Liveness::Silent(_))), "{now:?}");
            }
            let durable = agent.monitor.books().durable;
            (durable > before.iter().map(|b| b.stored).max().unwrap_or(0) + 1).then_some(())
        })
        .await;
    }
    let mut last = Vec::new();
    for agent in agents {
        let host = agent.host;
        last.push((host, agent.stop().await));
    }
    for (host, agent) in &last {
        let here = books(&second, *host).await;
        assert_eq!(
            (agent.durable, agent.held + agent.lost),
            (agent.produced, 0)
        );
        assert_eq!(here.produced, agent.produced);
        assert_eq!(here.stored + here.rejected + here.lost, here.produced);
    }
    time::timeout(STOP, second.stop())
        .await
        .expect("a stop is bounded");
    let stored = site.stored();
    assert_eq!(stored.duplicates, 0);
    for (host, agent) in last {
        assert_eq!(stored.count(host), agent.produced);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_frames_are_refused_by_name_and_change_nothing() {
    let mut site = Site::new();
    let aggregator = site.start().await;
    let host = site.enrol(&aggregator, facts("odd")).await;
    let mut raw = host.raw().await;
    let welcome = raw.greet().await;
    assert_eq!(welcome.credit_bytes, site.config.credit_bytes);

    let mut delta = Frames::new(1);
    delta.next(1, true);
    let delta = delta.next(1, false);
    let mut garbage = raw.frames.next(2, true);
    garbage.payload = (0..200_u8).map(|byte| byte.wrapping_mul(37) | 1).collect();
    garbage.crc32c = crc32c::crc32c(&garbage.payload);
    let mut flipped = raw.frames.next(3, true);
    flipped.payload[7] ^= 1;
    let mut future = raw.frames.next(4, true);
    let ahead = i64::try_from(limits::MAX_FUTURE.as_millis()).expect("small") + 5_000;
    future.tick_ms = SystemClock.now().as_millis() + ahead;
    for (frame, wanted) in [
        (delta, v1::RejectReason::NoKeyFrame),
        (garbage, v1::RejectReason::Malformed),
        (flipped, v1::RejectReason::Checksum),
        (future, v1::RejectReason::Future),
    ] {
        let seq = frame.seq;
        assert!(raw.send(frame).await);
        assert_eq!(raw.refused(seq).await, wanted, "frame {seq}");
    }
    assert_eq!(
        look(&aggregator, host.host, |host| host.last_tick()).await,
        Some(None)
    );

    let good = raw.frames.next(5, true);
    assert!(raw.send(good.clone()).await);
    raw.durable(5).await;
    // The same number with other contents: the first stays.
    let mut conflict = raw.frames.next(6, true);
    conflict.seq = 5;
    assert!(raw.send(conflict).await);
    assert_eq!(raw.refused(5).await, v1::RejectReason::SeqConflict);
    assert!(raw.send(good.clone()).await);
    raw.durable(5).await;
    let tick = look(&aggregator, host.host, |host| host.last_tick()).await;
    assert_eq!(
        tick.flatten().map(|tick| tick.as_millis()),
        Some(good.tick_ms)
    );
    let here = books(&aggregator, host.host).await;
    assert_eq!((here.produced, here.stored, here.rejected), (5, 1, 4));
    drop(raw);
    time::timeout(STOP, aggregator.stop())
        .await
        .expect("a stop is bounded");
    assert_eq!(site.stored().count(host.host), 1);
}

/// What a stream begins with, and what becomes of it.
struct Breach {
    name: &'static str,
    /// Whether a proper Hello goes before.
    greeted: bool,
    message: agent_message::Message,
    wanted: Option<v1::DenyReason>,
}

fn breaches() -> Vec<Breach> {
    let mut frames = Frames::new(1);
    let frame = frames.next(1, true);
    let mut numberless = frame.clone();
    numberless.seq = 0;
    let mut large = frame.clone();
    large.payload = vec![0; limits::MAX_PAYLOAD_BYTES + 1];
    let mut huge = frame.clone();
    huge.payload = vec![0; limits::MAX_UPLINK_MESSAGE_BYTES + 1];
    let proper = match frames.hello() {
        agent_message::Message::Hello(hello) => hello,
        other => unreachable!("{other:?}"),
    };
    let violation = Some(v1::DenyReason::ProtocolViolation);
    let before = |name, change: fn(&mut v1::Hello), wanted| {
        let mut hello = proper.clone();
        change(&mut hello);
        Breach {
            name,
            greeted: false,
            message: agent_message::Message::Hello(hello),
            wanted,
        }
    };
    let after = |name, message, wanted| Breach {
        name,
        greeted: true,
        message,
        wanted,
    };
    vec![
        Breach {
            name: "a frame before Hello",
            greeted: false,
            message: agent_message::Message::Frame(frame),
            wanted: violation,
        },
        before(
            "another protocol",
            |hello| hello.protocol += 1,
            Some(v1::DenyReason::Protocol),
        ),
        before(
            "half a boot id",
            |hello| hello.boot_id.truncate(8),
            violation,
        ),
        before(
            "an interval of nothing",
            |hello| hello.interval_ms = 0,
            violation,
        ),
        before(
            "more lives than anyone has",
            |hello| hello.spool = vec![v1::SpoolRange::default(); 65],
            violation,
        ),
        after("a second Hello", frames.hello(), violation),
        after(
            "frame number 0",
            agent_message::Message::Frame(numberless),
            violation,
        ),
        after(
            "a payload too large",
            agent_message::Message::Frame(large),
            violation,
        ),
        // Refused by gRPC before it is read as a message.
        after(
            "a message too large",
            agent_message::Message::Frame(huge),
            None,
        ),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_breach_of_the_contract_ends_that_stream_and_no_other() {
    let mut site = Site::new();
    let aggregator = site.start().await;
    let good = site.agent(&aggregator, 1).await;
    let host = site.enrol(&aggregator, facts("odd")).await;
    for breach in breaches() {
        let mut raw = host.raw().await;
        if breach.greeted {
            raw.greet().await;
        }
        raw.say(breach.message).await;
        assert_eq!(raw.end().await, breach.wanted, "{}", breach.name);
    }
    // Of all that, nothing was kept, and the next proper stream is let in.
    let here = books(&aggregator, host.host).await;
    assert_eq!((here.produced, here.stored), (0, 0));
    let mut raw = host.raw().await;
    raw.greet().await;
    let frame = raw.frames.next(1, true);
    raw.send(frame).await;
    raw.durable(1).await;
    drop(raw);
    let durable = good.monitor.books().durable;
    good.durable(durable + 1).await;
    let last = good.stop().await;
    assert_eq!((last.durable, last.rejected), (last.produced, 0));
    time::timeout(STOP, aggregator.stop())
        .await
        .expect("a stop is bounded");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whose_a_frame_is_comes_from_the_certificate_alone() {
    let mut site = Site::new();
    let aggregator = site.start().await;
    let victim = site.agent(&aggregator, 1).await;
    victim.durable(1).await;
    // It calls itself by the victim's name when it joins, and by everything the victim says afterwards.
    let thief = site.enrol(&aggregator, facts(&victim.name)).await;
    assert_ne!(thief.host, victim.host);
    let named = look(&aggregator, thief.host, |host| host.name().to_owned()).await;
    assert_eq!(named, Some(format!("{}-2", victim.name)));
    let mut raw = thief.raw().await;
    raw.frames = Frames::new(fastrand::Rng::with_seed(1).u64(..));
    raw.greet().await;
    let before = books(&aggregator, victim.host).await;
    let frame = raw.frames.next(1_000, true);
    raw.send(frame).await;
    raw.durable(1_000).await;
    raw.say(agent_message::Message::Gap(v1::Gap {
        incarnation: raw.frames.incarnation,
        first: 1,
        last: 999,
        ..v1::Gap::default()
    }))
    .await;
    raw.say(agent_message::Message::Fin(v1::Fin {
        incarnation: raw.frames.incarnation,
        last_seq: 1_000,
        reason: v1::FinReason::Shutdown.into(),
        complete: false,
    }))
    .await;
    until("the thief has said goodbye for itself", async || {
        let now = liveness(&aggregator, thief.host).await;
        (now == Some(Liveness::Silent(Silence::Shutdown))).then_some(())
    })
    .await;
    let theirs = books(&aggregator, thief.host).await;
    assert_eq!(
        (theirs.produced, theirs.stored, theirs.lost),
        (1_000, 1, 999)
    );
    assert_eq!(
        liveness(&aggregator, victim.host).await,
        Some(Liveness::Live)
    );
    let after = books(&aggregator, victim.host).await;
    assert!(after.produced < 900 && after.produced >= before.produced);
    assert_eq!((after.lost, after.rejected, after.duplicate), (0, 0, 0));
    let last = victim.stop().await;
    assert_eq!(last.durable, last.produced);
    time::timeout(STOP, aggregator.stop())
        .await
        .expect("a stop is bounded");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_never_reads_holds_up_neither_its_neighbours_nor_the_stop() {
    let mut site = Site::new();
    let aggregator = site.start().await;
    let good = site.agent(&aggregator, 1).await;
    let host = site.enrol(&aggregator, facts("deaf")).await;
    let mut raw = host.raw().await;
    raw.greet().await;
    let frame = raw.frames.next(1, true);
    // Each is answered with an acknowledgement that is never read.
    for _ in 0..20_000 {
        if !raw.send(frame.clone()).await {
            break;
        }
    }
    until("all of it was looked at", async || {
        let duplicates = books(&aggregator, host.host).await.duplicate;
        (duplicates >= 19_000).then_some(())
    })
    .await;
    let durable = good.monitor.books().durable;
    good.durable(durable + 2).await;
    let began = Instant::now();
    time::timeout(STOP, aggregator.stop())
        .await
        .expect("a stop is bounded");
    assert!(
        began.elapsed() < Duration::from_secs(8),
        "{:?}",
        began.elapsed()
    );
    assert_eq!(site.stored().count(host.host), 1);
    drop(raw);
    good.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_in_mid_stream_is_bounded_and_what_was_acknowledged_is_there_afterwards() {
    let mut site = Site::new();
    let aggregator = site.start().await;
    let host = site.enrol(&aggregator, facts("busy")).await;
    let mut raw = host.raw().await;
    raw.greet().await;
    for seq in 1..=50 {
        let frame = raw.frames.next(seq, seq == 1);
        assert!(raw.send(frame).await);
    }
    raw.durable(50).await;
    // It goes on sending while the aggregator stops, and never leaves of its own accord.
    let stopping = time::timeout(STOP, aggregator.stop());
    let sending = async {
        for seq in 51.. {
            let frame = raw.frames.next(seq, false);
            if !raw.send(frame).await {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    let (stopped, ()) = tokio::join!(stopping, sending);
    stopped.expect("a stop is bounded");
    let mut acknowledged = 50;
    while let Some(message) = raw.hear().await {
        if let aggregator_message::Message::Ack(ack) = message {
            let last = ack.durable.iter().map(|range| range.last).max();
            acknowledged = acknowledged.max(last.unwrap_or(0));
        }
    }
    let stored = site.stored();
    assert_eq!(stored.duplicates, 0);
    assert!(stored.count(host.host) >= acknowledged);

    let again = site.start().await;
    let mut raw = host.raw().await;
    let welcome = raw.greet().await;
    assert!(look(&again, host.host, |host| host.series_count()).await > Some(100));
    assert!(welcome.have.iter().any(|have| {
        let mut ranges = have.durable.iter();
        ranges.any(|range| range.first == 1 && range.last >= acknowledged)
    }));
    time::timeout(STOP, again.stop())
        .await
        .expect("a stop is bounded");
}

/// Produced, stored and lost of each life of a host's agent, oldest first.
async fn lives(aggregator: &Aggregator, host: HostId) -> Vec<(u64, u64, u64, u64)> {
    let lives = look(aggregator, host, HostState::lives).await;
    let lives = lives.expect("the host is known").into_iter();
    lives
        .map(|life| (life.incarnation, life.produced, life.stored, life.lost))
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_books_of_an_earlier_life_are_closed_when_nothing_more_will_come_of_it() {
    let mut site = Site::new();
    let aggregator = site.start().await;
    let host = site.enrol(&aggregator, facts("killed")).await;
    let mut first = host.raw().await;
    first.greet().await;
    for seq in [1, 2, 5] {
        let frame = first.frames.next(seq, true);
        assert!(first.send(frame).await);
        first.durable(seq).await;
    }
    // kill -9: what it held besides is not known to anybody.
    drop(first);
    let gone = async |aggregator: &Aggregator| {
        until("the stream is closed", async || {
            (aggregator.fleet().totals().connected == 0).then_some(())
        })
        .await;
    };
    gone(&aggregator).await;
    assert_eq!(lives(&aggregator, host.host).await, [(1, 5, 3, 0)]);

    let end = |incarnation, last_seq| {
        agent_message::Message::Fin(v1::Fin {
            incarnation,
            last_seq,
            complete: true,
            ..v1::Fin::default()
        })
    };
    let mut second = host.raw().await;
    second.frames = Frames::new(2);
    second.greet().await;
    // Said twice it is the same: an answer may be lost.
    for _ in 0..2 {
        assert!(second.say(end(1, 7)).await);
    }
    let frame = second.frames.next(1, true);
    assert!(second.send(frame).await);
    second.durable(1).await;
    let expected = [(1, 7, 3, 4), (2, 1, 1, 0)];
    assert_eq!(lives(&aggregator, host.host).await, expected);
    assert_eq!(aggregator.fleet().totals().frames_lost, 4);
    // The life that speaks cannot be over.
    assert!(second.say(end(2, 1)).await);
    assert_eq!(second.end().await, Some(v1::DenyReason::ProtocolViolation));
    gone(&aggregator).await;
    let mut third = host.raw().await;
    third.frames = Frames::new(2);
    third.greet().await;
    // One that took longer than anybody here heard of may be true, where this is a stand-in, or was restored from a
    // backup: it is not counted, and nobody is sent away for it, now or each time that it is said again.
    let far_gap = agent_message::Message::Gap(v1::Gap {
        incarnation: 1,
        first: 8,
        last: 10_000_000,
        ..v1::Gap::default()
    });
    for message in [far_gap, end(1, 10_000_000), end(77, 10_000_000)] {
        assert!(third.say(message).await);
    }
    let frame = third.frames.next(2, true);
    assert!(third.send(frame).await);
    third.durable(2).await;
    let expected = [(1, 7, 3, 4), (2, 2, 2, 0), (77, 0, 0, 0)];
    assert_eq!(lives(&aggregator, host.host).await, expected);
    time::timeout(STOP, aggregator.stop())
        .await
        .expect("a stop is bounded");

    let aggregator = site.start().await;
    assert_eq!(lives(&aggregator, host.host).await, expected);
    time::timeout(STOP, aggregator.stop())
        .await
        .expect("a stop is bounded");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hundreds_of_scattered_frames_of_an_earlier_life_are_taken_and_each_is_answered() {
    let mut site = Site::new();
    let aggregator = site.start().await;
    let host = site.enrol(&aggregator, facts("scattered")).await;
    let mut raw = host.raw().await;
    raw.frames = Frames::new(9);
    raw.greet().await;
    let mut old = Frames::new(1);
    let mut open: BTreeSet<u64> = (1..=300).map(|at| 3 * at).collect();
    let mut frames: Vec<v1::Frame> = open
        .iter()
        .map(|&seq| v1::Frame {
            lane: v1::Lane::Backfill.into(),
            ..old.next(seq, true)
        })
        .collect();
    frames.reverse();
    let mut under_way = 0;
    while !open.is_empty() {
        // As an agent with credit for some of them: the log takes them together.
        while under_way < 40
            && let Some(frame) = frames.pop()
        {
            assert!(raw.send(frame).await);
            under_way += 1;
        }
        match raw.hear().await {
            Some(aggregator_message::Message::Ack(ack)) => {
                let before = open.len();
                open.retain(|seq| {
                    let holds = |range: &v1::Range| (range.first..=range.last).contains(seq);
                    ack.incarnation != 1 || !ack.durable.iter().any(holds)
                });
                under_way -= before - open.len();
            }
            other => unreachable!("no acknowledgement but {other:?}"),
        }
    }
    // Those at the bottom come again, for their answer was lost: they are answered by number.
    let again = v1::Frame {
        lane: v1::Lane::Backfill.into(),
        ..Frames::new(1).next(3, true)
    };
    assert!(raw.send(again).await);
    raw.durable(3).await;
    let end = agent_message::Message::Fin(v1::Fin {
        incarnation: 1,
        last_seq: 900,
        complete: true,
        ..v1::Fin::default()
    });
    assert!(raw.say(end).await);
    let frame = raw.frames.next(1, true);
    assert!(raw.send(frame).await);
    loop {
        let here = lives(&aggregator, host.host).await;
        if here.len() == 2 && here[0] == (1, 900, 300, 600) && here[1].2 == 1 {
            break;
        }
        assert!(raw.hear().await.is_some(), "{here:?}");
    }
    time::timeout(STOP, aggregator.stop())
        .await
        .expect("a stop is bounded");
    let aggregator = site.start().await;
    assert_eq!(
        lives(&aggregator, host.host).await,
        [(1, 900, 300, 600), (9, 1, 1, 0)]
    );
    time::timeout(STOP, aggregator.stop())
        .await
        .expect("a stop is bounded");
}

/// Copies a folder with what is below it.
fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a folder");
    let mode = Permissions::from_mode(0o700);
    std::fs::set_permissions(to, mode).expect("its mode");
    for entry in std::fs::read_dir(from).expect("listed") {
        let entry = entry.expect("listed");
        let place = to.join(entry.file_name());
        let kind = entry.file_type().expect("its kind");
        if kind.is_dir() {
            copy_folder(&entry.path(), &place);
        } else if kind.is_file() {
            std::fs::copy(entry.path(), place).expect("copied");
        }
    }
}

/// An agent in a test's hands.
struct Hand {
    monitor: Monitor,
    stop: CancellationToken,
    task: JoinHandle<Books>,
}

impl Hand {
    /// Runs the agent of a made-up host with the identity under `state`.
    fn start(host: HostId, state: &Path, servers: Vec<String>, seed: u64) -> Self {
        let config = AgentConfig {
            host,
            interval: limits::MIN_INTERVAL,
            buffer: BufferLimits::default(),
            spool: None,
            status_socket: None,
            seed,
        };
        let credentials = Credentials::on_disk_to(state, servers);
        let agent = Agent::new(config, credentials, Box::new(SimulatedHost::new(seed)));
        let (monitor, stop) = (agent.monitor(), CancellationToken::new());
        let stopped = stop.clone();
        let task = tokio::spawn(agent.run(async move {
            stopped.cancelled().await;
            v1::FinReason::Stopped
        }));
        Self {
            monitor,
            stop,
            task,
        }
    }

    async fn durable(&self, frames: u64) {
        until("frames become durable", async || {
            (self.monitor.books().durable >= frames).then_some(())
        })
        .await;
    }

    async fn stop(self) -> Books {
        self.stop.cancel();
        let ended = time::timeout(support::PATIENCE, self.task).await;
        ended.expect("a stop is bounded").expect("no panic")
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_goes_on_to_the_next_aggregator_of_its_authority() {
    let mut site = Site::new();
    let first = site.start().await;
    let host = site.enrol(&first, facts("moving")).await;
    first.stop().await;
    // What SQLite leaves beside a database when two connections close at once is copied with it.
    until("its databases are closed", async || {
        let mut open = std::fs::read_dir("/proc/self/fd").expect("procfs");
        let held = open.any(|entry| {
            let path = entry.and_then(|entry| std::fs::read_link(entry.path()));
            path.is_ok_and(|path| path.starts_with(&site.config.state_dir))
        });
        (!held).then_some(())
    })
    .await;
    // The second is the first as of a backup.
    let folder = tempfile::tempdir().expect("a folder");
    copy_folder(&site.config.state_dir, &folder.path().join("state"));
    let any = std::net::SocketAddr::from((std::net::Ipv4Addr::LOCALHOST, 0));
    let mut config = site.config.clone();
    config.state_dir = folder.path().join("state");
    config.runtime_dir = folder.path().to_owned();
    (config.uplink, config.enrolment, config.operator) = (any, any, any);
    config.http.listen = any;
    let second = muster_aggregator::serve::start(&config)
        .await
        .expect("it starts");
    let second_uplink = second.addresses().uplink.to_string();
    // The first names the second in its Welcome; the agent is configured with the first alone.
    site.config.announce = vec![second_uplink.clone()];
    let first = site.start().await;
    let first_uplink = first.addresses().uplink.to_string();
    let later = site.enrol(&first, facts("later")).await;

    let agent = Hand::start(host.host, host.state.path(), vec![first_uplink.clone()], 1);
    agent.durable(2).await;
    assert_eq!(agent.monitor.server(), first_uplink);
    assert_eq!(books(&second, host.host).await.produced, 0);
    // A host of which the second does not know goes to the first.
    let other = Hand::start(
        later.host,
        later.state.path(),
        vec![second_uplink.clone(), first_uplink.clone()],
        2,
    );
    other.durable(1).await;
    assert_eq!(other.monitor.server(), first_uplink);
    other.stop().await;

    time::timeout(STOP, first.stop())
        .await
        .expect("a stop is bounded");
    until("the second has its frames", async || {
        (books(&second, host.host).await.stored >= 2).then_some(())
    })
    .await;
    assert_eq!(agent.monitor.server(), second_uplink);
    assert_eq!(
        liveness(&second, host.host).await,
        Some(Liveness::Live),
        "known from the backup"
    );
    let last = agent.stop().await;
    assert_eq!((last.lost, last.held), (0, 0));
    // It is known after a restart of the agent too, with the first still away.
    let again = Hand::start(host.host, host.state.path(), vec![first_uplink], 1);
    again.durable(1).await;
    assert_eq!(again.monitor.server(), second_uplink);
    again.stop().await;
    time::timeout(STOP, second.stop())
        .await
        .expect("a stop is bounded");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_machines_with_one_identity_are_told_apart_and_never_merged() {
    let mut site = Site::new();
    let aggregator = site.start().await;
    let host = site.enrol(&aggregator, facts("original")).await;
    let copied = tempfile::tempdir().expect("a folder");
    copy_folder(host.state.path(), copied.path());
    let original = Hand::start(host.host, host.state.path(), vec![host.uplink.clone()], 1);
    original.durable(1).await;
    // The copy is another boot. It is started again and again, as a machine in doubt is.
    for _ in 0..COPY_SIGNS {
        let copy = Hand::start(host.host, copied.path(), vec![host.uplink.clone()], 2);
        until("the copy is turned away", async || {
            let line = copy.monitor.line();
            line.starts_with("not connected").then_some(())
        })
        .await;
        let books = copy.stop().await;
        assert_eq!(books.durable, 0, "nothing of it was taken");
    }
    let control = aggregator.control();
    let quarantined = control.quarantined_hosts().await.expect("readable");
    assert_eq!(quarantined.len(), 1);
    assert_eq!(quarantined[0].0, host.host);
    let incidents = until("there is an incident", async || {
        let (open, _) = control
            .incidents(IncidentFilter::default())
            .await
            .expect("readable");
        let of_copy = open.into_iter().filter(|open| open.rule == COPY_RULE);
        Some(of_copy.collect::<Vec<_>>()).filter(|open| !open.is_empty())
    })
    .await;
    assert_eq!(incidents.len(), 1, "one is enough");
    // What came between the first sign and the last is named where it is shown.
    let always = (Timestamp::from_millis(0), SystemClock.now());
    let doubts = control
        .doubts(Some(host.host), always)
        .await
        .expect("readable");
    assert_eq!(doubts.len(), 1);
    assert_eq!(doubts[0].until, quarantined[0].1);
    assert!(doubts[0].from < doubts[0].until);

    // The one that was first goes on; when it is gone the copy does not take its place.
    let before = original.monitor.books().durable;
    original.durable(before + 1).await;
    let last = original.stop().await;
    let copy = Hand::start(host.host, copied.path(), vec![host.uplink.clone()], 2);
    until("the copy is refused", async || {
        let line = copy.monitor.line();
        line.starts_with("not connected").then_some(())
    })
    .await;
    assert_eq!(copy.stop().await.durable, 0);
    let lives = lives(&aggregator, host.host).await;
    assert_eq!(lives.len(), 1, "the copy has none");
    assert_eq!((lives[0].1, lives[0].2), (last.produced, last.durable));
    time::timeout(STOP, aggregator.stop())
        .await
        .expect("a stop is bounded");
}

/// Drain was the last word and the stream is over; false if anything else was said after it.
async fn sent_away(raw: &mut Raw) -> bool {
    let drained = matches!(
        raw.hear().await,
        Some(aggregator_message::Message::Drain(drain)) if drain.spread_ms == 60_000
    );
    drained && raw.hear().await.is_none()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_comes_while_the_aggregator_stops_is_sent_away_and_leaves_no_trace() {
    let mut site = Site::new();
    let aggregator = site.start().await;
    let (here, late) = (
        site.enrol(&aggregator, facts("here")).await,
        site.enrol(&aggregator, facts("late")).await,
    );
    let mut first = here.raw().await;
    first.greet().await;
    // A nudge asks to connect anew, and the next one is let in as ever.
    aggregator.fleet().nudge(Duration::from_secs(60)).await;
    let mut second = late.raw().await;
    second.greet().await;
    let frame = second.frames.next(1, true);
    assert!(second.send(frame).await);
    second.durable(1).await;
    drop(second);
    until("the stream is closed", async || {
        (aggregator.fleet().totals().connected == 1).then_some(())
    })
    .await;

    aggregator.fleet().drain(Duration::from_secs(60)).await;
    let mut again = late.raw().await;
    again.greet().await;
    // It may not listen: what it sends all the same is not taken.
    let frame = again.frames.next(2, true);
    again.send(frame).await;
    assert!(sent_away(&mut again).await);
    let totals = aggregator.fleet().totals();
    assert_eq!((totals.connected, totals.frames_received), (1, 1));
    assert_eq!(books(&aggregator, late.host).await.produced, 1);
    time::timeout(STOP, aggregator.stop())
        .await
        .expect("a stop is bounded");
    assert_eq!(site.stored().count(late.host), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_door_knows_its_own_certificates_and_no_others() {
    let mut site = Site::new();
    let aggregator = site.start().await;
    let doors = aggregator.addresses();
    let host = site.enrol(&aggregator, facts("web")).await;
    assert!(Raw::open(doors.uplink, host.tls()).await.is_ok());
    assert!(
        Raw::open(doors.operator, host.tls()).await.is_err(),
        "an agent is no operator"
    );
    assert!(Raw::open(doors.enrolment, host.tls()).await.is_err());

    let mut other_site = Site::new();
    let other = other_site.start().await;
    let stranger = other_site.enrol(&other, facts("web")).await;
    let refused = Raw::open(doors.uplink, stranger.tls()).await;
    assert!(refused.is_err(), "another installation's host");
    // Known by its certificate, but not in the store: as after its removal.
    assert!(look(&aggregator, stranger.host, |_| ()).await.is_none());
    for address in [doors.uplink, doors.operator] {
        let token_only = muster_proto::tls::client_config_enrolment(aggregator.authority().pin());
        assert!(
            Raw::open(address, token_only).await.is_err(),
            "no certificate at {address}"
        );
    }
    time::timeout(STOP, other.stop())
        .await
        .expect("a stop is bounded");
    time::timeout(STOP, aggregator.stop())
        .await
        .expect("a stop is bounded");
}

fn facts(hostname: &str) -> v1::HostFacts {
    v1::HostFacts {
        hostname: hostname.to_owned(),
        ..v1::HostFacts::default()
    }
}

/// A disk of a few megabytes that goes when this is dropped. Only root can make one.
struct SmallDisk {
    at: PathBuf,
}

impl SmallDisk {
    /// `None`, and said, where that is not possible.
    fn mount(at: &Path, test: &str) -> Option<Self> {
        std::fs::create_dir(at).expect("a folder");
        let options = ["-t", "tmpfs", "-o", "size=8m,mode=0700", "tmpfs"];
        let mounted = Command::new("mount").args(options).arg(at).output();
        if mounted.is_ok_and(|output| output.status.success()) {
            return Some(Self { at: at.to_owned() });
        }
        eprintln!("SKIPPED {test}: a small disk can only be mounted by root");
        None
    }

    fn read_only(&self) {
        let options = ["-o", "remount,ro"];
        let done = Command::new("mount").args(options).arg(&self.at).status();
        assert!(done.expect("mount").success());
    }

    /// Takes all the room there is.
    fn fill(&self) {
        let mut ballast = std::fs::File::create(self.ballast()).expect("made");
        while ballast.write(&[1; 4096]).is_ok_and(|written| written > 0) {}
    }

    fn give_back(&self) {
        std::fs::remove_file(self.ballast()).expect("removed");
    }

    fn ballast(&self) -> PathBuf {
        self.at.join("ballast")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // A database is closed by a thread of its own, a moment later.
        let left = Command::new("umount").arg("--lazy").arg(&self.at).status();
        if !left.is_ok_and(|status| status.success()) {
            eprintln!("{} is still mounted", self.at.display());
        }
    }
}

async fn failures(aggregator: &Aggregator) -> u64 {
    let (status, body) = page(aggregator, "/metrics").await;
    assert_eq!(status, 200, "a full disk stops no reader");
    let name = "muster_aggregator_log_commit_failures_total ";
    let line = body.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|count| count.parse().ok()).expect("a count")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_a_full_disk_nothing_is_acknowledged_until_there_is_room_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path().join("disk");
    let Some(disk) = SmallDisk::mount(&at, "full disk") else {
        return;
    };
    let mut site = Site::with_state(folder, at.join("state"));
    let aggregator = site.start().await;
    let agent = site.agent(&aggregator, 1).await;
    agent.durable(2).await;
    disk.fill();
    until("the log cannot be written", async || {
        (failures(&aggregator).await > 0).then_some(())
    })
    .await;
    let stuck = agent.monitor.books();
    until("three samples wait", async || {
        let now = agent.monitor.books();
        assert_eq!(now.durable, stuck.durable, "acknowledged and not on disk");
        (now.produced >= stuck.produced + 3).then_some(())
    })
    .await;
    // Readers go on, with values that are not yet on disk.
    let path = format!("/metrics/hosts/{}", agent.name);
    assert_eq!(page(&aggregator, &path).await.0, 200);
    disk.give_back();
    agent.durable(stuck.produced + 3).await;

    // A stop does not wait for a disk that stays full.
    disk.fill();
    let failed = failures(&aggregator).await;
    until("the log cannot be written again", async || {
        (failures(&aggregator).await > failed).then_some(())
    })
    .await;
    time::timeout(STOP, aggregator.stop())
        .await
        .expect("a stop is bounded");
    disk.give_back();
    let acknowledged = agent.monitor.books().durable;
    let stored = site.stored();
    assert!(stored.count(agent.host) >= acknowledged);

    let again = site.start().await;
    agent.durable(acknowledged + 3).await;
    let host = agent.host;
    let last = agent.stop().await;
    assert_eq!(
        (last.durable, last.rejected + last.lost),
        (last.produced, 0)
    );
    time::timeout(STOP, again.stop())
        .await
        .expect("a stop is bounded");
    let stored = site.stored();
    assert_eq!((stored.count(host), stored.duplicates), (last.produced, 0));
    // Before the folder that it is mounted in.
    drop(disk);
}

/// A disk that refuses at each step of the writing, in turn.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_step_of_writing_fails_only_what_is_on_disk_is_told_durable() {
    let mut cases = JoinSet::new();
    for fault in [Fault::InputOutput, Fault::NoSpace, Fault::TornWrite] {
        for step in 0..12 {
            cases.spawn(write_on_a_disk_that_fails(fault, step));
        }
    }
    while let Some(case) = cases.join_next().await {
        case.expect("the case holds");
    }
}

async fn write_on_a_disk_that_fails(fault: Fault, step: u64) {
    let disk = FaultyStorage::new();
    let (log, _) = Log::open(disk.clone(), LogConfig::aggregator()).expect("a log");
    let (shard, mut told) = mpsc::channel(64);
    let (journal, thread) = Journal::start(log, vec![shard], 1 << 30, 0, None).expect("a thread");
    disk.fail(step, fault, true);
    let mut seen = BTreeSet::new();
    let mut last = 0;
    while journal.health().problem().is_none() {
        last += 1;
        assert!(journal.try_write(entry(last)));
        until("it is told durable, or the disk fails", async || {
            Some(()).filter(|()| journal.health().problem().is_some() || !told.is_empty())
        })
        .await;
        take(&mut told, &mut seen);
    }
    assert_eq!(seen, (1..last).collect(), "{fault:?} at {step}");
    disk.heal();
    until("the disk is well and the rest is told", async || {
        Some(()).filter(|()| !told.is_empty())
    })
    .await;
    take(&mut told, &mut seen);
    assert_eq!(seen, (1..=last).collect(), "{fault:?} at {step}");
    // The plug is pulled: what was told is there, once.
    disk.crash(step);
    drop(journal);
    let ended = tokio::task::spawn_blocking(move || thread.join()).await;
    assert!(ended.is_ok_and(|ended| ended.is_ok()));
    let (log, _) = Log::open(disk, LogConfig::aggregator()).expect("a log");
    let kept: Vec<u64> = log
        .read_from(0)
        .map(|record| {
            let record = record.expect("undamaged");
            match Record::decode(&record.payload).expect("ours") {
                (_, Record::Fin { last_seq, .. }) => last_seq,
                other => unreachable!("{other:?}"),
            }
        })
        .collect();
    assert_eq!(kept, (1..=last).collect::<Vec<_>>(), "{fault:?} at {step}");
}

/// A small record with a number in it.
fn entry(seq: u64) -> Entry {
    let host = HostId::from_bytes([3; 16]);
    let record = Record::Fin {
        incarnation: Incarnation(1),
        last_seq: seq,
        reason: 0,
    };
    Entry {
        shard: 0,
        key: Some(Stored {
            host,
            incarnation: Incarnation(1),
            seq,
        }),
        bytes: record.encode(host).expect("encodes"),
        credit: None,
    }
}

fn take(told: &mut mpsc::Receiver<Message>, seen: &mut BTreeSet<u64>) {
    while let Ok(message) = told.try_recv() {
        match message {
            Message::Stored(stored) => seen.extend(stored.iter().map(|stored| stored.seq)),
            _ => unreachable!("only that is told"),
        }
    }
}

/// The real program, and what it says when it cannot start.
struct Program {
    folder: tempfile::TempDir,
    config: PathBuf,
}

impl Program {
    fn with(extra: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let config = folder.path().join("aggregator.toml");
        let text = format!(
            "state_dir = {:?}\nruntime_dir = {:?}\nuplink.listen = \"127.0.0.1:0\"\n\
             enrolment.listen = \"127.0.0.1:0\"\noperator.listen = \"127.0.0.1:0\"\n\
             http.listen = \"127.0.0.1:0\"\n",
            folder.path().join("state"),
            folder.path()
        );
        // What is given stands instead of the line with the same key.
        let key = extra.split('=').next().unwrap_or("?");
        let lines = text.lines().filter(|line| !line.starts_with(key));
        let text: Vec<&str> = lines.chain([extra]).collect();
        std::fs::write(&config, text.join("\n")).expect("written");
        Self { folder, config }
    }

    /// Exit code and standard error; the program must end by itself.
    fn run(&self, verb: &[&str]) -> (Option<i32>, String) {
        let output = Command::new(env!("CARGO_BIN_EXE_muster-aggregator"))
            .args(verb)
            .env("MUSTER_AGGREGATOR_CONFIG", &self.config)
            .output()
            .expect("it runs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), said)
    }

    fn init(&self) {
        let (code, said) = self.run(&["init"]);
        assert_eq!(code, Some(0), "{said}");
    }

    fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    fn fails(&self, verb: &[&str], code: i32, words: &[&str]) {
        let (found, said) = self.run(verb);
        assert_eq!(found, Some(code), "{said}");
        for word in words {
            assert!(said.contains(word), "{said:?} does not say {word:?}");
        }
        assert!(!said.contains("panicked"), "{said}");
    }
}

#[test]
fn a_start_that_cannot_be_says_why_and_what_to_do() {
    let other_program = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken = other_program.local_addr().expect("bound").to_string();
    for door in ["uplink", "operator", "http"] {
        let program = Program::with(&format!("{door}.listen = \"{taken}\""));
        program.init();
        let why = "another program listens there: stop it or configure another port";
        program.fails(&["serve"], 1, &[&format!("cannot listen on {taken}"), why]);
    }

    let program = Program::with("log.level = \"warn\"");
    program.fails(
        &["serve"],
        1,
        &["no authority", "state", "muster-aggregator init"],
    );
    program.init();
    program.fails(&["init"], 1, &["already", "never overwritten"]);
    let key = program.state().join("ca/agent.key");
    let good = std::fs::read(&key).expect("a key");
    std::fs::write(&key, "no key").expect("written");
    program.fails(&["serve"], 1, &["agent.key"]);
    std::fs::write(&key, good).expect("written");
    std::fs::set_permissions(&key, Permissions::from_mode(0o644)).expect("changed");
    program.fails(&["serve"], 1, &["others can read the key", "chmod 600"]);
    std::fs::remove_file(&key).expect("removed");
    program.fails(&["serve"], 1, &["cannot read", "agent.key"]);

    let program = Program::with("uplnk.listen = \"127.0.0.1:1\"");
    program.fails(&["serve"], 78, &["aggregator.toml", "uplnk", "uplink"]);

    let program = Program::with("state_dir = \"/proc/self/state\"");
    program.fails(&["init"], 1, &["/proc/self/state"]);
}

#[test]
fn a_state_folder_that_cannot_be_written_is_named() {
    let program = Program::with("log.level = \"warn\"");
    let at = program.folder.path().join("state");
    let Some(disk) = SmallDisk::mount(&at, "read-only state") else {
        return;
    };
    program.init();
    disk.read_only();
    let state = at.display().to_string();
    program.fails(&["serve"], 1, &[&state, "ead-only"]);
    let at = at.join("further");
    let program = Program::with(&format!("state_dir = {at:?}"));
    program.fails(&["init"], 1, &[&at.display().to_string(), "ead-only"]);
}

#[test]
fn a_state_in_use_is_not_opened_twice() {
    let program = Program::with("log.level = \"warn\"");
    program.init();
    let log = DiskStorage::open(program.state().join("log")).expect("made");
    program.fails(
        &["serve"],
        1,
        &["in use by another process", "stop it first"],
    );
    drop(log);
}
