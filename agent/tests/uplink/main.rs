//! The agent against an aggregator that answers late, twice, wrongly or not at all. Time is paused: what
//! takes minutes here takes milliseconds, and nothing depends on the machine.

mod aggregator;
mod tls;

use std::time::Duration;

use aggregator::{
    Certified, INTERVAL, Reader, START_MS, Session, World, two, two_with, welcome, welcome_with,
};
use muster_proto::v1::{self, agent_message::Message as Up, aggregator_message::Message as Down};
use tokio::time::{self, Instant};

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[tokio::test(start_paused = true)]
async fn frames_flow_and_a_stop_says_fin() {
    let mut world = World::new();
    let (mut session, hello) = world.welcomed(|_| welcome()).await;
    assert_eq!(hello.interval_ms, 10_000);
    assert!(hello.spool.is_empty() && hello.facts.is_some());
    let mut reader = Reader::default();
    let mut ticks = Vec::new();
    for seq in 1..=5 {
        let frame = session.frame().await;
        assert_eq!((frame.incarnation, frame.seq), (hello.incarnation, seq));
        assert_eq!(frame.lane(), v1::Lane::Live);
        assert_eq!(reader.apply(&frame), Ok(seq == 1));
        let started = reader
            .events()
            .iter()
            .any(|event| event.kind() == v1::EventKind::AgentStarted);
        assert_eq!(started, seq == 1, "only the first frame tells of the start");
        ticks.push(frame.tick_ms);
        session.ack(hello.incarnation, seq, &[(1, seq)]).await;
    }
    assert!(
        ticks.windows(2).all(|pair| pair[1] - pair[0] == 10_000),
        "{ticks:?}"
    );
    world.stop(v1::FinReason::Reboot);
    match session.next().await {
        Some(Up::Fin(fin)) => {
            assert_eq!((fin.last_seq, fin.reason()), (5, v1::FinReason::Reboot));
        }
        other => unreachable!("expected fin, got {other:?}"),
    }
    assert_eq!(session.next().await, None);
    drop(session);
    let books = world.books().await;
    assert_eq!((books.produced, books.durable, books.lost), (5, 5, 0));
}

#[tokio::test(start_paused = true)]
async fn acknowledgements_come_late_in_ranges_and_twice() {
    let mut world = World::new();
    let (mut session, hello) = world.welcomed(|_| welcome()).await;
    for _ in 1..=3 {
        session.frame().await;
    }
    session.ack(hello.incarnation, 3, &[(3, 3), (1, 1)]).await;
    session.ack(hello.incarnation, 3, &[(1, 1), (3, 3)]).await;
    session.ack(hello.incarnation + 1, 3, &[(2, 2)]).await;
    session.frame().await;
    drop(session);
    // Only 2 and 4 are open; the decoder stands after 4, so the chain begins again at its key frame.
    let (mut session, again) = world.welcomed(|hello| welcome_with(hello, 1, 4)).await;
    assert_eq!((again.spool[0].first, again.spool[0].last), (2, 4));
    for seq in 1..=4 {
        assert_eq!(session.frame().await.seq, seq);
    }
    session.ack(hello.incarnation, 4, &[(1, 4)]).await;
    world.stop(v1::FinReason::Stopped);
    assert!(matches!(session.next().await, Some(Up::Fin(_))));
    drop(session);
    let books = world.books().await;
    assert_eq!((books.produced, books.durable, books.held), (4, 4, 0));
}

#[tokio::test(start_paused = true)]
async fn without_acknowledgements_the_agent_comes_back_and_sends_the_same_bytes() {
    let mut world = World::new();
    let (mut session, _) = world.welcomed(|_| welcome()).await;
    let began = Instant::now();
    let mut first = Vec::new();
    while let Some(Up::Frame(frame)) = session.next().await {
        first.push(frame);
    }
    // Patience is three intervals from the first frame, which came within one.
    let gave_up = began.elapsed();
    assert!(
        gave_up >= INTERVAL * 3 && gave_up <= INTERVAL * 4 + seconds(1),
        "{gave_up:?}"
    );
    let (mut session, hello) = world.welcomed(|_| welcome()).await;
    assert_eq!(hello.spool[0].first, 1);
    let mut reader = Reader::default();
    for old in first {
        let new = session.frame().await;
        assert_eq!(
            (new.seq, &new.payload, new.tick_ms),
            (old.seq, &old.payload, old.tick_ms)
        );
        assert!(reader.apply(&new).is_ok());
    }
}

#[tokio::test(start_paused = true)]
async fn a_session_goes_on_where_the_decoder_stands() {
    let mut world = World::new();
    let (mut session, hello) = world.welcomed(|_| welcome()).await;
    let mut reader = Reader::default();
    for seq in 1..=3 {
        assert!(reader.apply(&session.frame().await).is_ok());
        session.ack(hello.incarnation, seq, &[(seq, seq)]).await;
    }
    // The fourth is sent and lost with the connection.
    session.frame().await;
    drop(session);
    let (mut session, again) = world.welcomed(|hello| welcome_with(hello, 3, 3)).await;
    assert!(again.session > hello.session);
    assert_eq!(again.ratchet, b"ratchet");
    assert_eq!(again.epoch, 4);
    let frame = session.frame().await;
    assert_eq!((frame.seq, reader.apply(&frame)), (4, Ok(false)));
}

#[tokio::test(start_paused = true)]
async fn a_decoder_that_lost_its_place_gets_the_chain_again() {
    let mut world = World::new();
    let (mut session, hello) = world.welcomed(|_| welcome()).await;
    for seq in 1..=3 {
        session.frame().await;
        session.ack(hello.incarnation, seq, &[(1, seq)]).await;
    }
    session.frame().await;
    drop(session);
    let (mut session, _) = world.welcomed(|hello| welcome_with(hello, 3, 0)).await;
    let mut reader = Reader::default();
    for seq in 1..=4 {
        let frame = session.frame().await;
        assert_eq!((frame.seq, reader.apply(&frame)), (seq, Ok(seq == 1)));
    }
    session.ack(hello.incarnation, 4, &[(1, 4)]).await;
    drop(session);
    // With nothing left to send again the next frame is a key frame of its own.
    let (mut session, _) = world.welcomed(|hello| welcome_with(hello, 4, 0)).await;
    let frame = session.frame().await;
    assert_eq!((frame.seq, Reader::default().apply(&frame)), (5, Ok(true)));
}

#[tokio::test(start_paused = true)]
async fn a_stream_cut_within_a_frame_loses_nothing() {
    // Somewhere in the preface, in Hello, in the key frame and behind it.
    for bytes in [10, 200, 1_000, 3_000, 7_000] {
        let world = World::new();
        world.cut_next_after(bytes);
        let mut world = world;
        let mut reader = Reader::default();
        let mut seen = 0;
        while seen < 3 {
            let mut session = world.session().await;
            let Some(Up::Hello(hello)) = session.next().await else {
                continue;
            };
            let decoded = seen;
            session
                .say(Down::Welcome(welcome_with(&hello, decoded, decoded)))
                .await;
            while seen < 3 {
                let Some(Up::Frame(frame)) = session.next().await else {
                    break;
                };
                assert!(
                    reader.apply(&frame).is_ok(),
                    "cut after {bytes}: frame {}",
                    frame.seq
                );
                seen = frame.seq;
            }
        }
        assert_eq!(seen, 3);
    }
}

#[tokio::test(start_paused = true)]
async fn credit_is_never_exceeded() {
    let mut world = World::new();
    let (mut session, hello) = world
        .welcomed(|_| v1::Welcome {
            credit_bytes: 1,
            ..welcome()
        })
        .await;
    let first = session.frame().await;
    // Heavier than the credit, so alone; nothing follows until it is durable.
    let waited = time::timeout(INTERVAL * 2, session.next()).await;
    assert!(waited.is_err(), "{waited:?}");
    session.ack(hello.incarnation, first.seq, &[(1, 1)]).await;
    assert_eq!(session.frame().await.seq, 2);
}

#[tokio::test(start_paused = true)]
async fn frames_that_waited_a_moment_are_late() {
    let mut world = World::new();
    let mut session = world.session().await;
    session.hello().await;
    session
        .say(Down::Throttle(v1::Throttle {
            retry_after_ms: 50_000,
        }))
        .await;
    let (mut session, hello) = world
        .welcomed(|hello| v1::Welcome {
            server_wall_ms: hello.wall_ms,
            ..welcome()
        })
        .await;
    let held = hello.spool[0].last;
    assert!(held >= 3, "{held}");
    for seq in 1..held {
        let frame = session.frame().await;
        assert_eq!((frame.seq, frame.lane()), (seq, v1::Lane::Late));
    }
    session
        .ack(hello.incarnation, held - 1, &[(1, held - 1)])
        .await;
    let mut lanes = Vec::new();
    for _ in 0..2 {
        lanes.push(session.frame().await.lane());
    }
    assert_eq!(lanes[1], v1::Lane::Live);
}

#[tokio::test(start_paused = true)]
async fn a_refused_frame_is_counted_and_the_next_is_a_key_frame() {
    let mut world = World::new();
    let (mut session, hello) = world.welcomed(|_| welcome()).await;
    session.frame().await;
    let second = session.frame().await;
    assert!(Reader::default().apply(&second).is_err(), "a delta");
    session
        .say(Down::Ack(v1::Ack {
            incarnation: hello.incarnation,
            received: 2,
            durable: vec![v1::Range { first: 1, last: 1 }],
            rejected: vec![v1::Rejected {
                seq: 2,
                reason: v1::RejectReason::NoKeyFrame.into(),
                samples: 7,
            }],
            credit_bytes: 1 << 20,
            epoch: 4,
        }))
        .await;
    let third = session.frame().await;
    assert_eq!((third.seq, Reader::default().apply(&third)), (3, Ok(true)));
    session.ack(hello.incarnation, 3, &[(3, 3)]).await;
    world.stop(v1::FinReason::Stopped);
    while session.next().await.is_some() {}
    drop(session);
    let books = world.books().await;
    assert_eq!((books.produced, books.durable, books.rejected), (3, 2, 1));
}

#[tokio::test(start_paused = true)]
async fn a_frame_from_the_future_ends_the_session_and_a_key_frame_follows() {
    let mut world = World::new();
    let (mut session, hello) = world.welcomed(|_| welcome()).await;
    session.frame().await;
    let second = session.frame().await;
    assert!(Reader::default().apply(&second).is_err(), "a delta");
    session
        .say(Down::Ack(v1::Ack {
            incarnation: hello.incarnation,
            received: 2,
            durable: vec![v1::Range { first: 1, last: 1 }],
            rejected: vec![v1::Rejected {
                seq: 2,
                reason: v1::RejectReason::Future.into(),
                samples: 7,
            }],
            credit_bytes: 1 << 20,
            epoch: 4,
        }))
        .await;
    while session.next().await.is_some() {}
    let (mut session, hello) = world.welcomed(|_| welcome()).await;
    let third = session.frame().await;
    assert_eq!((third.seq, Reader::default().apply(&third)), (3, Ok(true)));
    // An old frame that is refused for the same reason does not end the session that has the right time.
    session
        .say(Down::Ack(v1::Ack {
            incarnation: hello.incarnation,
            received: 3,
            rejected: vec![v1::Rejected {
                seq: 1,
                reason: v1::RejectReason::Future.into(),
                samples: 7,
            }],
            credit_bytes: 1 << 20,
            ..v1::Ack::default()
        }))
        .await;
    assert_eq!(session.frame().await.seq, 4);
}

#[tokio::test(start_paused = true)]
async fn what_no_aggregator_says_ends_the_session() {
    let ranges = |count: u64| -> Vec<(u64, u64)> {
        (0..count).map(|n| (1_000 + 2 * n, 1_000 + 2 * n)).collect()
    };
    let most = muster_proto::limits::MAX_ACK_RANGES as u64;
    let mut world = World::new();
    for server_wall_ms in [0, i64::MAX, -1, START_MS + 60 * 366 * 86_400_000] {
        let (mut session, _) = world
            .welcomed(|_| v1::Welcome {
                server_wall_ms,
                ..welcome()
            })
            .await;
        assert!(session.next().await.is_none(), "{server_wall_ms}");
    }
    let (mut session, _) = world
        .welcomed(|hello| v1::Welcome {
            have: vec![v1::Have {
                incarnation: hello.incarnation,
                durable: ranges(most + 1)
                    .into_iter()
                    .map(|(first, last)| v1::Range { first, last })
                    .collect(),
                ..v1::Have::default()
            }],
            ..welcome()
        })
        .await;
    assert!(session.next().await.is_none());
    let (mut session, hello) = world.welcomed(|_| welcome()).await;
    session.frame().await;
    session.ack(hello.incarnation, 1, &ranges(most)).await;
    session.frame().await;
    session.ack(hello.incarnation, 2, &ranges(most + 1)).await;
    while session.next().await.is_some() {}
    world.session().await;
}

#[tokio::test(start_paused = true)]
async fn waits_are_what_the_aggregator_asked_for() {
    let throttle = Down::Throttle(v1::Throttle {
        retry_after_ms: 30_000,
    });
    let drain = Down::Drain(v1::Drain { spread_ms: 20_000 });
    let deny = |reason: v1::DenyReason| {
        Down::Deny(v1::Deny {
            reason: reason.into(),
            ..v1::Deny::default()
        })
    };
    for (answer, from, to) in [
        (throttle, 30, 32),
        (drain, 0, 20),
        (deny(v1::DenyReason::Removed), 300, 900),
        (deny(v1::DenyReason::AlreadyConnected), 60, 90),
    ] {
        // As the first word, and in the middle of a session.
        for welcomed in [false, true] {
            let mut world = World::new();
            let mut session = world.session().await;
            let hello = session.hello().await;
            if welcomed {
                session.say(Down::Welcome(welcome_with(&hello, 0, 0))).await;
                session.frame().await;
                session.ack(hello.incarnation, 1, &[(1, 1)]).await;
            }
            session.say(answer.clone()).await;
            while session.next().await.is_some() {}
            let ended = Instant::now();
            drop(session);
            let waited = world.session().await.opened - ended;
            assert!(
                waited >= seconds(from) && waited <= seconds(to + 1),
                "{answer:?} {welcomed}: {waited:?}"
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn draining_still_takes_acknowledgements() {
    let mut world = World::new();
    let (mut session, hello) = world.welcomed(|_| welcome()).await;
    session.frame().await;
    session
        .say(Down::Drain(v1::Drain { spread_ms: 1_000 }))
        .await;
    time::sleep(Duration::from_millis(500)).await;
    session.ack(hello.incarnation, 1, &[(1, 1)]).await;
    assert_eq!(session.next().await, None);
    drop(session);
    let mut session = world.session().await;
    let hello = session.hello().await;
    assert!(hello.spool[0].first > 1, "{:?}", hello.spool);
}

#[tokio::test(start_paused = true)]
async fn redirects_are_refused_and_the_session_goes_on() {
    let mut world = World::new();
    let (mut session, hello) = world.welcomed(|_| welcome()).await;
    let server_id = "elsewhere".into();
    session
        .say(Down::Redirect(v1::Redirect { server_id }))
        .await;
    for seq in 1..=3 {
        assert_eq!(session.frame().await.seq, seq);
        session.ack(hello.incarnation, seq, &[(1, seq)]).await;
    }
}

/// Hello and Welcome.
async fn greet(session: &mut Session) -> v1::Hello {
    let hello = session.hello().await;
    session.say(Down::Welcome(welcome_with(&hello, 0, 0))).await;
    hello
}

/// Acknowledges what comes on a stream until it ends.
async fn serve_on(session: &mut Session) {
    while let Some(message) = session.next().await {
        if let Up::Frame(frame) = message {
            session
                .ack(frame.incarnation, frame.seq, &[(1, frame.seq)])
                .await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_away_gives_way_to_the_next_until_it_is_back() {
    let (mut first, mut second, monitor, _stop) = two();
    first.up.store(false, std::sync::atomic::Ordering::SeqCst);
    let began = Instant::now();
    let mut session = second.session().await;
    assert!(began.elapsed() < seconds(4), "{:?}", began.elapsed());
    greet(&mut session).await;
    assert_eq!(monitor.server(), "b:1");
    let mut looked = Instant::now();
    {
        let mut serving = std::pin::pin!(serve_on(&mut session));
        // It looks whether the first is back, and stays while it is not.
        assert!(time::timeout(seconds(1_800), &mut serving).await.is_err());
        looked = looked.max(Instant::now());
        first.up.store(true, std::sync::atomic::Ordering::SeqCst);
        // It leaves with everything acknowledged.
        serving.await;
    }
    let mut session = first.session().await;
    assert!(looked.elapsed() < seconds(610), "{:?}", looked.elapsed());
    greet(&mut session).await;
    assert_eq!(monitor.server(), "a:1");
    let books = monitor.books();
    assert_eq!((books.lost, books.held), (0, 0), "{books:?}");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_takes_nothing_gives_way_to_the_next() {
    let (mut first, mut second, monitor, _stop) = two();
    let throttle = || {
        Down::Throttle(v1::Throttle {
            retry_after_ms: 5_000,
        })
    };
    // Whatever came between them: what was taken makes the next ones count anew.
    for round in 0..3 {
        let mut session = first.session().await;
        let hello = greet(&mut session).await;
        if round == 1 {
            let frame = session.frame().await;
            session
                .ack(hello.incarnation, frame.seq, &[(1, frame.seq)])
                .await;
            session.frame().await;
        }
        session.say(throttle()).await;
    }
    for _ in 0..2 {
        assert_eq!(monitor.server(), "a:1");
        let mut session = first.session().await;
        greet(&mut session).await;
        session.say(throttle()).await;
    }
    let began = Instant::now();
    let mut session = time::timeout(seconds(60), second.session())
        .await
        .expect("the next server is tried");
    assert!(began.elapsed() < seconds(4), "{:?}", began.elapsed());
    greet(&mut session).await;
    assert_eq!(monitor.server(), "b:1");
    let frame = session.frame().await;
    session
        .ack(frame.incarnation, frame.seq, &[(1, frame.seq)])
        .await;
    session.frame().await;
    assert_eq!(monitor.books().lost, 0);
}

#[tokio::test(start_paused = true)]
async fn a_redirect_within_the_list_is_followed_once_and_for_an_hour() {
    let (mut first, mut second, monitor, _stop) = two();
    let mut session = first.session().await;
    greet(&mut session).await;
    let redirect = |server_id: &str| {
        Down::Redirect(v1::Redirect {
            server_id: server_id.to_owned(),
        })
    };
    session.say(redirect("elsewhere:1")).await;
    let frame = session.frame().await;
    session.ack(frame.incarnation, frame.seq, &[(1, 1)]).await;
    assert_eq!(monitor.server(), "a:1");
    session.say(redirect("b:1")).await;
    serve_on(&mut session).await;
    let mut session = second.session().await;
    greet(&mut session).await;
    assert_eq!(monitor.server(), "b:1");
    // A fleet cannot be made to hop.
    session.say(redirect("a:1")).await;
    let there = Instant::now();
    serve_on(&mut session).await;
    let stayed = there.elapsed();
    assert!(stayed >= seconds(3_590), "{stayed:?}");
    assert!(stayed < seconds(3_600 + 620), "{stayed:?}");
    greet(&mut first.session().await).await;
    assert_eq!(monitor.server(), "a:1");
}

#[tokio::test(start_paused = true)]
async fn a_certificate_is_renewed_at_whichever_server_there_is() {
    use std::sync::atomic::Ordering;
    for (days, first_is_up, asks) in [
        (17, true, false),
        (23, true, true),
        // A first server that is back within days renews its hosts itself.
        (23, false, false),
        (27, false, true),
    ] {
        let (memory, asked) = Certified::days_ago(days);
        let (mut first, mut second, _monitor, _stop) = two_with(memory);
        first.up.store(first_is_up, Ordering::SeqCst);
        let mut session = match first_is_up {
            true => first.session().await,
            false => second.session().await,
        };
        greet(&mut session).await;
        let serving = serve_on(&mut session);
        assert!(time::timeout(seconds(1_200), serving).await.is_err());
        let asked = asked.load(Ordering::SeqCst) > 0;
        assert_eq!(asked, asks, "after {days} days, first up: {first_is_up}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stop_does_not_wait_for_an_aggregator_that_is_silent() {
    let mut world = World::new();
    let (mut session, _) = world.welcomed(|_| welcome()).await;
    session.frame().await;
    session.frame().await;
    let began = Instant::now();
    world.stop(v1::FinReason::Stopped);
    assert!(matches!(session.next().await, Some(Up::Fin(_))));
    let books = world.books().await;
    assert!(began.elapsed() <= seconds(5), "{:?}", began.elapsed());
    assert_eq!((books.durable, books.lost), (0, 2));
}

#[tokio::test(start_paused = true)]
async fn a_stop_without_a_session_is_immediate() {
    let mut world = World::new();
    let session = world.session().await;
    let began = Instant::now();
    world.stop(v1::FinReason::Stopped);
    world.books().await;
    assert!(began.elapsed() < seconds(1));
    drop(session);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_sent_any_more_is_named_before_fin() {
    let mut world = World::new();
    let (mut session, _) = world
        .welcomed(|_| v1::Welcome {
            credit_bytes: 1,
            ..welcome()
        })
        .await;
    session.frame().await;
    time::sleep(INTERVAL * 2 + seconds(1)).await;
    world.stop(v1::FinReason::Stopped);
    match session.next().await {
        Some(Up::Gap(gap)) => assert_eq!((gap.first, gap.last), (2, 3)),
        other => unreachable!("expected a gap, got {other:?}"),
    }
    assert!(matches!(session.next().await, Some(Up::Fin(fin)) if fin.last_seq == 3));
}

#[tokio::test(start_paused = true)]
async fn the_aggregators_clock_moves_future_ticks() {
    let mut world = World::new();
    let (mut session, _) = world
        .welcomed(|_| v1::Welcome {
            server_wall_ms: START_MS + 3_600_000,
            ..welcome()
        })
        .await;
    let frame = session.frame().await;
    let ahead = frame.tick_ms - START_MS - 3_600_000;
    assert!((0..=10_000).contains(&ahead), "{ahead}");
}

#[tokio::test(start_paused = true)]
async fn the_aggregator_bounds_the_interval() {
    let mut world = World::new();
    let (mut session, _) = world
        .welcomed(|_| v1::Welcome {
            min_interval_ms: 30_000,
            ..welcome()
        })
        .await;
    let first = session.frame().await;
    let second = session.frame().await;
    assert_eq!(second.tick_ms - first.tick_ms, 30_000);
}

#[tokio::test(start_paused = true)]
async fn silence_is_broken_by_an_empty_message() {
    let mut world = World::new();
    let mut session = world.session().await;
    session.hello().await;
    session
        .say(Down::Welcome(v1::Welcome {
            min_interval_ms: 600_000,
            heartbeat_ms: 15_000,
            ..welcome()
        }))
        .await;
    let began = Instant::now();
    let message = session.raw().await.expect("the stream is open");
    assert_eq!(message.message, None);
    assert!(began.elapsed() <= seconds(16), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_refusal_by_status_is_not_repeated_in_haste() {
    for (status, least) in [
        (tonic::Status::permission_denied("removed"), seconds(300)),
        (tonic::Status::resource_exhausted("full"), Duration::ZERO),
    ] {
        let mut world = World::new();
        let mut session = world.session().await;
        session.hello().await;
        let began = Instant::now();
        session.fail(status).await;
        let waited = world.session().await.opened - began;
        assert!(waited >= least, "{waited:?}");
        assert!(least > Duration::ZERO || waited <= seconds(3), "{waited:?}");
    }
}
