//! An agent that says the largest, the most and the newest of everything: the aggregator's memory, books and
//! incidents stay bounded, and nothing panics or wraps.

use std::{collections::BTreeMap, time::Duration};

use muster_aggregator::{
    detect::{Engine, HostDetection, Observation, Transition},
    fleet::{
        Enrolled, HostState, SIGNALS, Unit, UnitState,
        host::{FrameIn, Lane, Receiving, Session, Verdict},
        names::Names,
    },
};
use muster_proto::{
    codec::Changes,
    id::{HostId, Incarnation},
    time::Timestamp,
    v1,
};
use proptest::prelude::*;
use tokio::time::Instant;

const START: i64 = 1_700_000_000_000;

fn host() -> HostState {
    let who = Enrolled {
        id: HostId::from_bytes([7; 16]),
        name: "evil".into(),
        labels: BTreeMap::new(),
        facts: v1::HostFacts::default(),
        certificate_not_after: None,
    };
    HostState::new(who, Timestamp::from_millis(START))
}

fn session(incarnation: u64) -> Session {
    Session {
        incarnation: Incarnation(incarnation),
        session: u64::MAX,
        boot_id: vec![0xff; 16],
        interval: Duration::from_secs(1),
        clock_offset_ms: i64::MIN,
    }
}

fn receive(host: &mut HostState, frame: &FrameIn) -> Verdict {
    let mut context = Receiving {
        names: &mut Names::default(),
        engine: &Engine::default(),
        changes: &mut Changes::default(),
        series_quota: 1000,
        now: Instant::now(),
        replayed: false,
    };
    host.receive(frame, &mut context, &mut Vec::new())
}

fn frame(incarnation: u64, seq: u64, tick: i64, payload: Vec<u8>) -> FrameIn {
    FrameIn {
        incarnation: Incarnation(incarnation),
        seq,
        lane: Lane::Live,
        tick: Timestamp::from_millis(tick),
        received: Timestamp::from_millis(START),
        crc32c: crc32c::crc32c(&payload),
        payload: payload.into(),
    }
}

/// Numbers that break arithmetic, and their neighbours.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![
        0_u64..40,
        any::<u64>(),
        prop::sample::select(vec![
            u64::MAX,
            u64::MAX - 1,
            1 << 63,
            (1 << 63) - 1,
            1 << 48,
            (1 << 48) + 1,
            7 * 24 * 3600,
        ]),
    ]
}

#[derive(Debug, Clone)]
enum Say {
    Hello(u64),
    Frame(u64, u64, i64, Vec<u8>),
    Stored(u64, u64),
    Rejected(u64, u64),
    Gap(u64, u64, u64),
    Fin(u64, u64),
}

fn say() -> impl Strategy<Value = Say> {
    let life = || prop_oneof![0_u64..3, number()];
    let tick = prop_oneof![Just(START), any::<i64>()];
    let payload = prop::collection::vec(any::<u8>(), 0..40);
    prop_oneof![
        life().prop_map(Say::Hello),
        (life(), number(), tick, payload).prop_map(|(a, b, c, d)| Say::Frame(a, b, c, d)),
        // The journal's answer: only ever of numbers that were let in.
        (life(), 1_u64..1 << 48).prop_map(|(a, b)| Say::Stored(a, b)),
        (life(), 1_u64..1 << 48).prop_map(|(a, b)| Say::Rejected(a, b)),
        (life(), number(), number()).prop_map(|(a, b, c)| Say::Gap(a, b, c)),
        (life(), number()).prop_map(|(a, b)| Say::Fin(a, b)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_number_breaks_the_books(said in prop::collection::vec(say(), 1..60)) {
        let mut host = host();
        for one in said {
            match one {
                Say::Hello(life) => host.begin_session(session(life)),
                Say::Frame(life, seq, tick, payload) => {
                    let verdict = receive(&mut host, &frame(life, seq, tick, payload));
                    prop_assert_ne!(verdict, Verdict::Store, "noise is no sample");
                }
                Say::Stored(life, seq) => {
                    host.stored(Incarnation(life), seq);
                }
                Say::Rejected(life, seq) => host.rejected(Incarnation(life), seq),
                Say::Gap(life, first, last) => {
                    host.gap(Incarnation(life), first, last);
                }
                Say::Fin(life, last) => {
                    host.fin(Incarnation(life), last, v1::FinReason::Shutdown);
                }
            }
            let books = host.books();
            let known = books.stored.checked_add(books.rejected);
            prop_assert!(known.and_then(|sum| sum.checked_add(books.lost)).is_some());
            prop_assert!(books.lost < u64::MAX / 2, "{books:?}");
            host.write_checkpoint().expect("encodes");
        }
    }
}

#[test]
fn the_largest_numbers_are_refused_and_count_nothing() {
    let mut host = host();
    host.begin_session(session(1));
    let life = Incarnation(1);
    for seq in [0, u64::MAX, u64::MAX - 1] {
        let verdict = receive(&mut host, &frame(1, seq, START, vec![1]));
        assert!(
            matches!(verdict, Verdict::Violation | Verdict::Rejected(_)),
            "{seq}: {verdict:?}"
        );
    }
    for (first, last) in [(0, 0), (1, u64::MAX), (u64::MAX, u64::MAX), (9, 3)] {
        host.gap(life, first, last);
        assert_eq!(host.books().lost, 0, "{first}..={last}");
    }
    host.fin(life, u64::MAX, v1::FinReason::Shutdown);
    let books = host.books();
    assert!(books.produced < u64::MAX - 1, "{books:?}");
    assert_eq!((books.stored, books.lost), (0, 0));
}

#[test]
fn a_flood_of_gaps_and_lives_does_not_grow_a_host() {
    let mut host = host();
    let mut largest = 0;
    for life in 0..300 {
        host.begin_session(session(life));
        // Every second number: as many holes as can be.
        for first in (1..4000).step_by(2) {
            host.gap(Incarnation(life), first, first);
            // As the shard does after each.
            host.bound_holes(Incarnation(life));
        }
        if life % 50 == 0 {
            let kept = host.write_checkpoint().expect("encodes");
            let bytes = postcard::to_stdvec(&kept).expect("encodes").len();
            largest = largest.max(bytes);
        }
    }
    assert!(largest < 512 * 1024, "{largest} bytes in a checkpoint");
}

#[test]
fn a_flood_of_unit_names_makes_few_incidents() {
    let (engine, mut state) = (Engine::default(), HostDetection::default());
    let signals = [f32::NAN; SIGNALS.len()];
    let mut told: Vec<Transition> = Vec::new();
    let mut names = 0;
    for second in 0..600 {
        let units: Vec<Unit> = (0..200)
            .map(|_| {
                names += 1;
                Unit {
                    name: format!("{names:0>1000}.service"),
                    state: UnitState::Failed,
                    since: None,
                    restarts: u64::MAX,
                    restarts_recent: 0,
                }
            })
            .collect();
        let seen = Observation {
            tick: Timestamp::from_millis(START + second * 1000),
            interval: Duration::from_secs(1),
            live: true,
            signals: &signals,
            filesystems: &[],
            filesystems_known: true,
            units: &units,
            units_known: true,
            samples: &[],
            who: None,
        };
        engine.step(&mut state, &seen, &mut told);
    }
    assert_eq!(told.len(), 65, "in 120,000 names");
    assert_eq!(told[64].subject, "more units");
    let bytes = postcard::to_stdvec(&state).expect("encodes").len();
    assert!(bytes < 128 * 1024, "{bytes} bytes in a checkpoint");
}
